"""What training maximises: one table, name -> function of (problem, completion, answer format).

A reward sees text alone. Whether a completion is *correct* is measured beside it in every run, so a spurious reward
can be told from a true one by its curve.
"""

from typing import Callable

from rlvr_jax import grading
from rlvr_jax.problems import Problem


def correctness(problem: Problem, completion: str, answer_format: str) -> float:
    """1 if the extracted answer equals the reference answer, else 0."""
    return float(grading.correct(completion, problem.answer, answer_format))


def well_formed(problem: Problem, completion: str, answer_format: str) -> float:
    """1 if there is an answer to extract, whatever it says: the control that pays for format alone."""
    return float(bool(grading.EXTRACTORS[answer_format](completion)))


REWARDS: dict[str, Callable[[Problem, str, str], float]] = {"correct": correctness, "format": well_formed}
