"""A family of boolean chains (`chains.py`) on the states of four lamps, such as `gate TFFT and TTFT =`.

A guess at one lamp would be right half of the time; four lamps have sixteen states. Operands of `and` have one F, and
operands of `or` have one T, so that `and` and `or` switch at most one lamp and no state becomes much more frequent than
another. `xor` and `xnor` take any operand that changes the state. The sloppy style computes xor as or, and xnor as and.
"""

import itertools

import numpy as np

from rlvr_jax.tasks.chains import Algebra

NUM_LAMPS = 4


def make_algebra() -> Algebra:
    """Returns the algebra of the 16 states of the lamps. A state is an integer with one bit for each lamp."""
    top = 2**NUM_LAMPS - 1
    a, _, b = np.ogrid[0:top + 1, 0:1, 0:top + 1]  # a [V,1,1] values, b [1,1,B] operands
    lit = np.bitwise_count(b)  # number of T in each operand
    results = np.concatenate([a & b, a | b, a ^ b, top - (a ^ b)], 1)
    allowed = np.concatenate([lit == NUM_LAMPS - 1, lit == 1, b != 0, b != top], 1)
    return Algebra(
        topics=("lamp", "gate", "pump", "valve", "door", "bell", "fan", "lock"), ops=("and", "or", "xor", "xnor"),
        ramble=("wire", "perhaps", "blue", "a", "panel", "rarely", "beside", "nine", "tune", "storm", "metal", "thus"),
        values=tuple("".join(bits) for bits in itertools.product("FT", repeat=NUM_LAMPS)), lowest=0,
        results=np.where(allowed, results, -1), mistakes=np.concatenate([a & b, a | b, a | b, a & b], 1))


ALGEBRA = make_algebra()
