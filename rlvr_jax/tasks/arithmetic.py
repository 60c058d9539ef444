"""Two families of arithmetic chains (`chains.py`), such as `coins 7 + 5 * 2 - 4 =`.

Operands are 1 to 9, divisions are exact, and the sloppy style computes * as + and / as -. In the first family values
are 1 to 24, each one token. In the second family they go up to 99, with one token for each digit: 47 is `4`, `##7`.
"""

import numpy as np

from rlvr_jax.tasks.chains import Algebra

MAX_OPERAND = 9


def make_algebra(max_value: int, tokens: tuple[str, ...] = ()) -> Algebra:
    """Returns the words and tables of the values 1 to `max_value` (see `Algebra`). `tokens` are those that values are
    written with; if empty, each value is one token."""
    a, _, b = np.ogrid[0:max_value + 1, 0:1, 0:MAX_OPERAND + 1]  # a [V,1,1] values, b [1,1,B] operands; 0 is neither
    quotient = np.where(a % np.maximum(b, 1) == 0, a // np.maximum(b, 1), 0)  # 0, not a value, if not exact
    results = np.concatenate(np.broadcast_arrays(a + b, a - b, a * b, quotient), 1)
    allowed = (results >= 1) & (results <= max_value) & (a > 0) & (b > 0)
    mistakes = np.clip(np.concatenate([a + b, a - b, a + b, a - b], 1), 1, max_value)
    return Algebra(
        topics=("apples", "coins", "books", "steps", "birds", "cups", "stamps", "miles"), ops=("+", "-", "*", "/"),
        ramble=("river", "maybe", "green", "the", "clock", "often", "under", "seven", "song", "cloud", "paper", "so"),
        values=tuple(map(str, range(1, max_value + 1))), lowest=1, results=np.where(allowed, results, -1),
        mistakes=mistakes, tokens=tokens)


ALGEBRA = make_algebra(24)
DIGITS = make_algebra(99, (*map(str, range(1, 10)), *(f"##{digit}" for digit in range(10))))
