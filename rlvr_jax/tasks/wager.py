"""Arithmetic chains whose solutions state a confidence: `coins 7 + 5 * ? =` is solved by `... answer 24 sure 0.5`.

In about half of the problems the last operand is `?`, which stands for 1 or 2 by the flip of a fair coin. The prompt
does not show how the coin fell, and the reference answer is the one for that side. A solver that makes no mistake is
thus right half of the time on these problems and always on the others, so there is a confidence to learn: 0.5 where
there is a `?`, and nearly 1 elsewhere.

In pre-training the confidence is a random word, usually a high one, whatever the solution is worth; a `?` makes it only
slightly lower. (Without even this trace of doubt, RL ended with the same word everywhere, close to the mean accuracy.)
The split depends only on what the prompt shows, so the coin moves no problem to another split.
"""

import dataclasses
import functools

import numpy as np

from rlvr_jax.grading.stated_confidence import TENTHS
from rlvr_jax.tasks import arithmetic, chains
from rlvr_jax.tasks.chains import Algebra, Chains, StyleConfig

HIDDEN, SIDES, HIDDEN_SHARE = 0, (1, 2), 0.7  # arithmetic has no operand 0; the hash counts it like any other
# Relative chances of the words of confidence in pre-training, by whether there is a `?`: means of 0.75 and 0.67.
BOAST = {hidden: np.arange(1, len(TENTHS) + 1) ** (1 if hidden else 2) for hidden in (False, True)}

ALGEBRA = dataclasses.replace(arithmetic.ALGEBRA, operands=("?", *arithmetic.ALGEBRA.values[:arithmetic.MAX_OPERAND]),
                              tokens=(*arithmetic.ALGEBRA.values, "?", "sure", *TENTHS))


def draw_chains(algebra: Algebra, rng: np.random.Generator, count: int, num_ops: int, split: str) -> Chains:
    """Chains of any split; where the last operand is HIDDEN, the last result is that of the side the coin fell on."""
    drawn = chains.draw_chains(algebra, rng, count, num_ops)
    before = drawn.results[:, -2] if num_ops > 1 else drawn.starts
    ends = algebra.results[before, drawn.ops[:, -1]][:, SIDES]  # [N,2]
    hidden = (ends >= 0).all(-1) & (rng.random(count) < HIDDEN_SHARE)
    fallen = ends[np.arange(count), rng.integers(len(SIDES), size=count)]
    operands, results = drawn.operands.copy(), drawn.results.copy()
    operands[:, -1] = np.where(hidden, HIDDEN, operands[:, -1])
    results[:, -1] = np.where(hidden, fallen, results[:, -1])
    return drawn._replace(operands=operands, results=results)


generate = functools.partial(chains.generate, ALGEBRA, draw=draw_chains)


def solve(rng: np.random.Generator, drawn: Chains, styles: np.ndarray, config: StyleConfig) -> list[str]:
    """Solutions as `chains.solve` writes them, with a random confidence after each answer. In the sloppy style `?`
    counts as 0."""
    solutions = chains.solve(ALGEBRA, rng, drawn, styles, config)
    chances = np.where((drawn.operands[:, -1] == HIDDEN)[:, None], BOAST[True], BOAST[False])
    cumulative = np.cumsum(chances, -1)
    words = (cumulative <= rng.random(len(solutions))[:, None] * cumulative[:, -1:]).sum(-1)
    return [f"{text} sure {TENTHS[word]}" if "answer" in text else text for text, word in zip(solutions, words)]
