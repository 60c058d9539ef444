"""What training maximises: one table, name -> function of (problem, completion, verdict of the grader).

Whether a completion is *correct* is measured beside the reward in every run, so a spurious reward can be told from a
true one by its curve.
"""

from typing import Callable

from rlvr_jax.grading import Verdict
from rlvr_jax.problems import Problem


def correctness(problem: Problem, completion: str, verdict: Verdict) -> float:
    """1 if the extracted answer equals the reference answer, else 0."""
    return float(verdict.correct)


def well_formed(problem: Problem, completion: str, verdict: Verdict) -> float:
    """1 if there is an answer to extract, whatever it says: the control that pays for format alone."""
    return float(bool(verdict.extracted))


def nothing(problem: Problem, completion: str, verdict: Verdict) -> float:
    """0, whatever was said: no advantage, so the loss is its KL and entropy terms alone."""
    return 0.0


REWARDS: dict[str, Callable[[Problem, str, Verdict], float]] = {"correct": correctness, "format": well_formed,
                                                                "none": nothing}
