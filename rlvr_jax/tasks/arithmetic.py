"""The first family: chains of arithmetic (`chains.py`), such as `coins 7 + 5 * 2 - 4 =`.

All values lie in 1..MAX_VALUE, divisions are exact, and the sloppy style does * as + and / as -. A second family of the
same form has values up to MAX_DIGITS_VALUE, written digit by digit, so that an answer has several tokens: `4`, `##7`.
"""

import numpy as np

from rlvr_jax.tasks import chains
from rlvr_jax.tasks.chains import Algebra

MAX_VALUE, MAX_OPERAND = 24, 9
MAX_DIGITS_VALUE = 99


class Digits(Algebra):
    """An algebra of numbers whose first digit is a token, and each digit after it another."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        words = [word for word in super().vocabulary if not word.isdecimal()]
        return (*words, *map(str, range(1, 10)), *(f"##{digit}" for digit in range(10)))


def digits_lengths(num_ops: int) -> tuple[int, int]:
    """Tokens of a prompt, and of the longest solution with its <eos>, where every value has all its digits."""
    more = len(str(MAX_DIGITS_VALUE)) - 1
    prompt, solution = chains.lengths(num_ops)
    return prompt + more, solution + more * (num_ops + 1)


def _algebra(kind: type[Algebra], max_value: int) -> Algebra:
    a, _, b = np.ogrid[0:max_value + 1, 0:1, 0:MAX_OPERAND + 1]
    quotient = np.where(a % np.maximum(b, 1) == 0, a // np.maximum(b, 1), 0)
    results = np.concatenate(np.broadcast_arrays(a + b, a - b, a * b, quotient), 1)
    allowed = (results >= 1) & (results <= max_value) & (a > 0) & (b > 0)
    mistakes = np.clip(np.concatenate([a + b, a - b, a + b, a - b], 1), 1, max_value)
    return kind(
        topics=("apples", "coins", "books", "steps", "birds", "cups", "stamps", "miles"), ops=("+", "-", "*", "/"),
        ramble=("river", "maybe", "green", "the", "clock", "often", "under", "seven", "song", "cloud", "paper", "so"),
        values=tuple(map(str, range(1, max_value + 1))), lowest=1, results=np.where(allowed, results, -1),
        mistakes=mistakes)


ALGEBRA = _algebra(Algebra, MAX_VALUE)
DIGITS = _algebra(Digits, MAX_DIGITS_VALUE)
