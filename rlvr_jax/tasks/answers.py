"""How a problem's answers are found and judged: by its own family or verifier, else by --answer_format and --grader."""

from typing import NamedTuple, Sequence

from rlvr_jax.grading import grade
from rlvr_jax.grading.grade import Verdict
from rlvr_jax.tasks import families, gym
from rlvr_jax.tasks.problems import Problem


class Rule(NamedTuple):
    """Rows of grading.extract.EXTRACTORS and grading.graders.ALL, and the reference as that grader wants it."""

    answer_format: str
    grader: str
    reference: str


def rule(problem: Problem, answer_format: str = "auto", grader: str = "math", otherwise: str = "boxed") -> Rule:
    """The rule of one problem. The format "auto" is that of its family; `otherwise` for a problem from a file.

    A problem that brings a verifier along is judged by that, whatever `grader` is.
    """
    family, entry = families.of_problem(problem), problem.meta.get("entry")
    own = gym.ANSWER_FORMAT if entry else family.answer_format if family else otherwise
    return Rule(own if answer_format == "auto" else answer_format, "gym" if entry else grader, entry or problem.answer)


def rules(problems: Sequence[Problem], answer_format: str, grader: str = "math",
          otherwise: str = "boxed") -> list[Rule]:
    """The rule of each problem."""
    return [rule(problem, answer_format, grader, otherwise) for problem in problems]


def verdicts(texts: Sequence[str], by: Sequence[Rule]) -> list[Verdict]:
    """Verdicts on completions, each by its own rule."""
    return grade.verdicts(texts, [one.reference for one in by], [one.answer_format for one in by],
                          [one.grader for one in by])


def described(by: Sequence[Rule]) -> list[str]:
    """What will grade by each rule, for reports. UserError where it is not installed."""
    known = {pair: grade.describe(*pair) for pair in dict.fromkeys(one[:2] for one in by)}
    return [known[one[:2]] for one in by]
