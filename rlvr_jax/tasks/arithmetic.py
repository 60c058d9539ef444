"""The first family: chains of arithmetic (`chains.py`), such as `coins 7 + 5 * 2 - 4 =`.

All values lie in 1..MAX_VALUE, divisions are exact, and the sloppy style does * as + and / as -.
"""

import numpy as np

from rlvr_jax.tasks.chains import Algebra

MAX_VALUE, MAX_OPERAND = 24, 9


def _algebra() -> Algebra:
    a, _, b = np.ogrid[0:MAX_VALUE + 1, 0:1, 0:MAX_OPERAND + 1]
    quotient = np.where(a % np.maximum(b, 1) == 0, a // np.maximum(b, 1), 0)
    results = np.concatenate(np.broadcast_arrays(a + b, a - b, a * b, quotient), 1)
    allowed = (results >= 1) & (results <= MAX_VALUE) & (a > 0) & (b > 0)
    mistakes = np.clip(np.concatenate([a + b, a - b, a + b, a - b], 1), 1, MAX_VALUE)
    return Algebra(
        topics=("apples", "coins", "books", "steps", "birds", "cups", "stamps", "miles"), ops=("+", "-", "*", "/"),
        ramble=("river", "maybe", "green", "the", "clock", "often", "under", "seven", "song", "cloud", "paper", "so"),
        values=tuple(map(str, range(1, MAX_VALUE + 1))), lowest=1, results=np.where(allowed, results, -1),
        mistakes=mistakes)


ALGEBRA = _algebra()
