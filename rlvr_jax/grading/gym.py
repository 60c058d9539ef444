"""The verifiers of reasoning-gym: each of its data sets scores answers from 0 to 1; a score of 1 is right.
The reference is a problem's whole entry as JSON, because a verifier may read other fields besides the answer.
`tasks.gym` refuses data sets whose verifier would execute code that a model wrote."""

import json
from typing import Callable

PACKAGE = "reasoning-gym"
NEEDS = (PACKAGE,)
MISSING = "problems named gym:NAME are drawn and graded by reasoning-gym: pip install -e '.[gym]'"
MAX_REFERENCE = 20_000  # characters; a longer question, escaped as JSON, might not fit into a pipe


def same(given: str, answer: str, leaf: Callable[[str, str], bool]) -> bool:
    """Always calls `leaf`, because only the verifier knows which answers are right."""
    return leaf(given, answer)


# ----- called only in a child process


def load() -> None:
    import reasoning_gym  # noqa: F401


def equal(given: str, answer: str) -> bool:
    """Whether the verifier gives `given` the full score, 1. `answer` is the problem's entry as JSON."""
    import reasoning_gym

    entry = json.loads(answer)
    return reasoning_gym.get_score_answer_fn(entry["metadata"]["source_dataset"])(given, entry) == 1
