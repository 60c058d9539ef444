"""A family of boolean chains (`chains.py`) on four lamps at once, such as `gate TFFT and TTFT =`.

One lamp could be guessed half of the time; four have sixteen values. `and` switches one lamp off and `or` switches one
on, so that no value becomes much more frequent than the others; `xor` and `xnor` take any operand that changes
something. The sloppy style computes xor as or, and xnor as and.
"""

import itertools

import numpy as np

from rlvr_jax.tasks.chains import Algebra

NUM_LAMPS = 4


def make_algebra() -> Algebra:
    top = 2**NUM_LAMPS - 1
    a, _, b = np.ogrid[0:top + 1, 0:1, 0:top + 1]
    lit = np.bitwise_count(b)
    results = np.concatenate([a & b, a | b, a ^ b, top - (a ^ b)], 1)
    allowed = np.concatenate([lit == NUM_LAMPS - 1, lit == 1, b != 0, b != top], 1)
    return Algebra(
        topics=("lamp", "gate", "pump", "valve", "door", "bell", "fan", "lock"), ops=("and", "or", "xor", "xnor"),
        ramble=("wire", "perhaps", "blue", "a", "panel", "rarely", "beside", "nine", "tune", "storm", "metal", "thus"),
        values=tuple("".join(bits) for bits in itertools.product("FT", repeat=NUM_LAMPS)), lowest=0,
        results=np.where(allowed, results, -1), mistakes=np.concatenate([a & b, a | b, a | b, a & b], 1))


ALGEBRA = make_algebra()
