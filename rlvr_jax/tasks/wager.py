"""Arithmetic chains whose solutions state a confidence: `coins 7 + 5 * ? =` is solved by `... answer 24 sure 0.5`.

In about half of the problems the last operand is `?`, which stands for 1 or 2, by a flip of a fair coin. The prompt
does not show the result of the flip, on which the reference answer depends. A solver that makes no mistake is right
half of the time on problems with `?` and always on others: the confidences to learn are 0.5 with `?` and 1 without.

In pre-training the confidence is a random word, usually a high one, whether or not the answer is right; `?` makes it
slightly lower. (When `?` did not lower it, RL ended with the same word everywhere, close to the mean accuracy.) The
split is a hash of what the prompt shows, so both results of a flip are in the same split.
"""

import dataclasses

import numpy as np

from rlvr_jax.grading.stated_confidence import TENTHS
from rlvr_jax.tasks import arithmetic, chains
from rlvr_jax.tasks.chains import Algebra, Chains, StyleConfig

HIDDEN, SIDES, HIDDEN_SHARE = 0, (1, 2), 0.7  # operand `?`, the operands it stands for, how often it is used
# Whether a problem has a `?` -> weights of the confidences TENTHS in pre-training. Means: 0.76 without `?`, 0.67 with.
BOAST = {False: np.arange(1, len(TENTHS) + 1) ** 2, True: np.arange(1, len(TENTHS) + 1)}

ALGEBRA = dataclasses.replace(arithmetic.ALGEBRA, operands=("?", *arithmetic.ALGEBRA.values[:arithmetic.MAX_OPERAND]),
                              tokens=(*arithmetic.ALGEBRA.values, "?", "sure", *TENTHS))


def draw_chains(algebra: Algebra, rng: np.random.Generator, count: int, num_ops: int, split: str) -> Chains:
    """Like `chains.draw_chains`, but some last operands are HIDDEN: the answer is that for a random one of SIDES."""
    drawn = chains.draw_chains(algebra, rng, count, num_ops)
    before = drawn.results[:, -2] if num_ops > 1 else drawn.starts  # values before the last operation
    ends = algebra.results[before, drawn.ops[:, -1]][:, SIDES]  # i[N,2] answer for each of SIDES; -1: not allowed
    hidden = (ends >= 0).all(-1) & (rng.random(count) < HIDDEN_SHARE)
    flipped = ends[np.arange(count), rng.integers(len(SIDES), size=count)]
    operands, results = drawn.operands.copy(), drawn.results.copy()
    operands[:, -1] = np.where(hidden, HIDDEN, operands[:, -1])
    results[:, -1] = np.where(hidden, flipped, results[:, -1])
    return drawn._replace(operands=operands, results=results)


def solve(rng: np.random.Generator, drawn: Chains, styles: np.ndarray, config: StyleConfig) -> list[str]:
    """The solutions of `chains.solve`, with a random confidence after each answer. Sloppy solutions (a style of
    `chains`) compute with `?` as if it were 0, its index."""
    solutions = chains.solve(ALGEBRA, rng, drawn, styles, config)
    weights = np.where((drawn.operands[:, -1] == HIDDEN)[:, None], BOAST[True], BOAST[False])
    cumulative = np.cumsum(weights, -1)
    picks = (cumulative <= rng.random(len(solutions))[:, None] * cumulative[:, -1:]).sum(-1)  # indices into TENTHS
    return [f"{text} sure {TENTHS[pick]}" if "answer" in text else text for text, pick in zip(solutions, picks)]
