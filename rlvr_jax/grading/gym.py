"""The verifiers of reasoning-gym: each of its data sets scores answers itself, from 0 to 1; right is a score of 1.

The reference is a problem's whole entry as JSON, since a verifier may read more of it than the answer. Data sets whose
verifier would run what a model wrote as code are refused where problems are drawn (`tasks.gym`).
"""

import json
from typing import Callable

PACKAGE = "reasoning-gym"  # whose version a report names
NEEDS = (PACKAGE,)
MISSING = "problems named gym:NAME are drawn and graded by reasoning-gym: pip install 'rlvr_jax[gym]'"
MAX_REFERENCE = 20_000  # characters: a question to a child has to fit into a pipe, escaped


def same(given: str, answer: str, leaf: Callable[[str, str], bool]) -> bool:
    """Whether the verifier is content. It is always asked: what it takes for equal is its own affair."""
    return leaf(given, answer)


# ----- in the child


def load() -> None:
    """Imports what `equal` needs."""
    import reasoning_gym  # noqa: F401


def equal(given: str, answer: str) -> bool:
    """Whether the verifier of the entry's data set gives the full score, 1; part of a score is not right."""
    import reasoning_gym

    entry = json.loads(answer)
    return reasoning_gym.get_score_answer_fn(entry["metadata"]["source_dataset"])(given, entry) == 1
