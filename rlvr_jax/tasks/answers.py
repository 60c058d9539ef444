"""How answers are found and compared: by a problem's family or verifier, or else by --answer_format and --grader."""

from typing import NamedTuple, Sequence

from rlvr_jax.config import Config, flag
from rlvr_jax.grading import extract, grade, graders
from rlvr_jax.records import Problem
from rlvr_jax.tasks import families, gym


class GradingConfig(Config):
    """How answers are found and compared, unless a problem says so itself."""

    answer_format: str = flag("auto", "where a completion's answer is; auto: as in the problem's family (tag for "
                              "reasoning-gym), or else boxed for the reward and lenient for measuring accuracy",
                              lambda: {"auto": None} | extract.EXTRACTORS)
    grader: str = flag("math", "how answers are compared: as mathematics, or as in the released one-shot reward, "
                       "quirks included, which always reads the last \\boxed{}. In training this is for the reward; "
                       "held-out problems are compared as mathematics. Problems of reasoning-gym have their own "
                       "verifiers", lambda: graders.GRADERS)


class Criterion(NamedTuple):
    """How a problem is judged: rows of extract.EXTRACTORS and graders.ALL, and the reference as the grader wants it."""

    answer_format: str
    grader: str
    reference: str


def criteria(problems: Sequence[Problem], config: GradingConfig = GradingConfig(),
             otherwise: str = "boxed") -> list[Criterion]:
    """The criterion of each problem. The format "auto" is that of its family, or `otherwise` for a problem from a
    file. A problem that comes with a verifier is judged by it, whatever --grader is."""
    def criterion(problem: Problem) -> Criterion:
        family, entry = families.family_of(problem), problem.meta.get("entry")
        own = gym.ANSWER_FORMAT if entry else family.answer_format if family else otherwise
        return Criterion(own if config.answer_format == "auto" else config.answer_format,
                         "gym" if entry else config.grader, entry or problem.answer)
    return [criterion(problem) for problem in problems]


def verdicts(texts: Sequence[str], criteria: Sequence[Criterion]) -> list[grade.Verdict]:
    """Verdicts on completions, each by its own criterion."""
    return grade.grade_texts(texts, [each.reference for each in criteria], [each.answer_format for each in criteria],
                          [each.grader for each in criteria])


def describe_graders(criteria: Sequence[Criterion]) -> list[str]:
    """The name of the grader of each criterion, for reports. Raises UserError for one that is not installed."""
    names = {pair: grade.describe_grader(*pair) for pair in dict.fromkeys(each[:2] for each in criteria)}
    return [names[each[:2]] for each in criteria]
