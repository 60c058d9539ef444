"""The verifiers of reasoning-gym: each of its data sets scores answers from 0 to 1; a score of 1 is right.

The reference is a problem's whole entry as JSON, because a verifier may read more of it than the answer. Data sets
whose verifier would execute code that a model wrote are refused in `tasks.gym`.
"""

import json
from typing import Callable

PACKAGE = "reasoning-gym"
NEEDS = (PACKAGE,)
MISSING = "problems named gym:NAME are drawn and graded by reasoning-gym: pip install -e '.[gym]'"
MAX_REFERENCE = 20_000  # characters: an escaped question has to fit into a pipe


def same(given: str, answer: str, leaf: Callable[[str, str], bool]) -> bool:
    """Always asks the verifier, which alone knows what counts as equal."""
    return leaf(given, answer)


# ----- in the child


def load() -> None:
    import reasoning_gym  # noqa: F401


def equal(given: str, answer: str) -> bool:
    """Whether the verifier of the entry's data set gives the full score, 1."""
    import reasoning_gym

    entry = json.loads(answer)
    return reasoning_gym.get_score_answer_fn(entry["metadata"]["source_dataset"])(given, entry) == 1
