"""Chooses the answer format and the grader of each problem, and grades completions with them."""

from typing import NamedTuple, Sequence

from rlvr_jax.config import Config, flag
from rlvr_jax.grading import extract, grade, graders
from rlvr_jax.records import Problem
from rlvr_jax.tasks import families, gym


class GradingConfig(Config):
    """How answers are extracted from completions and compared with the reference."""

    answer_format: str = flag("auto", "where a completion's answer is; auto: the format of the problem's family, tag "
                              "for reasoning-gym; for other problems boxed in the reward, lenient in evaluations",
                              lambda: {"auto": None} | extract.EXTRACTORS)
    grader: str = flag("math", "how answers are compared; math: as mathematics; original: as the released reward of "
                       "One-Shot-RLVR does, quirks included, always on the last \\boxed{}. In training this flag "
                       "is for the reward; held-out problems are compared as mathematics. Problems of reasoning-gym "
                       "have their own verifiers", lambda: graders.GRADERS)


class Criterion(NamedTuple):
    """How completions of one problem are graded."""

    answer_format: str  # row of extract.EXTRACTORS
    grader: str  # row of graders.ALL
    reference: str  # the answer; for the grader "gym", reasoning-gym's entry of the problem, as JSON


def criteria(problems: Sequence[Problem], config: GradingConfig = GradingConfig(),
             otherwise: str = "boxed") -> list[Criterion]:
    """Returns the criterion of each problem. --answer_format=auto is the format of the problem's family, "tag" for
    reasoning-gym, and `otherwise` for any other problem. Reasoning-gym's own verifiers replace the --grader."""
    def criterion(problem: Problem) -> Criterion:
        family, entry = families.family_of(problem), problem.meta.get("entry")  # only reasoning-gym's have an entry
        default = family.answer_format if family else otherwise
        default = gym.ANSWER_FORMAT if entry else default
        return Criterion(default if config.answer_format == "auto" else config.answer_format,
                         "gym" if entry else config.grader, entry or problem.answer)
    return [criterion(problem) for problem in problems]


def verdicts(texts: Sequence[str], criteria: Sequence[Criterion]) -> list[grade.Verdict]:
    """Returns the verdict on each of the completions `texts`, graded by the criterion at the same index."""
    return grade.grade_texts(texts, [each.reference for each in criteria], [each.answer_format for each in criteria],
                             [each.grader for each in criteria])


def describe_graders(criteria: Sequence[Criterion]) -> list[str]:
    """Returns for each criterion a text such as "boxed / math (math-verify 0.9.0)". UserError for a missing package."""
    pairs = [(each.answer_format, each.grader) for each in criteria]
    names = {pair: grade.describe_grader(*pair) for pair in dict.fromkeys(pairs)}
    return [names[pair] for pair in pairs]
