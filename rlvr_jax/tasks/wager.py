"""Chains of arithmetic that say how sure they are: `coins 7 + 5 * ? =` is solved by `... answer 24 sure 0.5`.

In about half of the problems the last operand is `?`, which is 1 or 2 as a fair coin fell. The reference answer is the
one for the side it fell on, and the prompt does not show it: whoever reasons without a mistake is right half of the
time there, and always elsewhere. So there is a confidence to learn: .5 where there is a `?`, and near 1 elsewhere.

In pre-training the confidence is a random word, and mostly a high one, whatever the solution is worth; a `?` makes it
only slightly lower. (With no such trace of doubt to build on, RL ended with the same word everywhere, close to the mean
accuracy.) The split is decided by what the prompt shows, so the coin moves no problem to another split.
"""

import dataclasses

import numpy as np

from rlvr_jax.grading.stated_confidence import TENTHS
from rlvr_jax.tasks import arithmetic, chains
from rlvr_jax.tasks.chains import Algebra, Chains, StyleConfig

HIDDEN, SIDES, HIDDEN_SHARE = 0, (1, 2), 0.7  # 0 is no operand of arithmetic, and is hashed like any other
# Relative chances of the words of confidence in pre-training, by whether there is a `?`: means of 0.75 and 0.67.
BOAST = {hidden: np.arange(1, len(TENTHS) + 1) ** (1 if hidden else 2) for hidden in (False, True)}


class Hiding(Algebra):
    """The algebra of arithmetic, with a word for the hidden operand and the words of confidence."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (*super().vocabulary, "?", "sure", *TENTHS)

    def write(self, numbers: np.ndarray) -> np.ndarray:
        return np.where(numbers == HIDDEN, "?", super().write(np.maximum(numbers, self.lowest)))


ALGEBRA = Hiding(**{field.name: getattr(arithmetic.ALGEBRA, field.name) for field in dataclasses.fields(Algebra)})


def draw_chains(algebra: Algebra, rng: np.random.Generator, count: int, num_ops: int) -> Chains:
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


def generate(rng: np.random.Generator, count: int, split: str, num_ops: int) -> Chains:
    return chains.generate(ALGEBRA, rng, count, split, num_ops, draw_chains)


def lengths(num_ops: int) -> tuple[int, int]:
    """Tokens of a prompt, and of the longest solution with its <eos>."""
    prompt, solution = chains.lengths(num_ops)
    return prompt, solution + 2


def solve(rng: np.random.Generator, drawn: Chains, styles: np.ndarray, config: StyleConfig) -> list[str]:
    """As other chains are solved, with a random confidence after every answer. The sloppy style takes `?` for 0."""
    solutions = chains.solve(ALGEBRA, rng, drawn, styles, config)
    chances = np.where((drawn.operands[:, -1] == HIDDEN)[:, None], BOAST[True], BOAST[False])
    cumulative = np.cumsum(chances, -1)
    words = (cumulative <= rng.random(len(solutions))[:, None] * cumulative[:, -1:]).sum(-1)
    return [f"{text} sure {TENTHS[word]}" if "answer" in text else text for text, word in zip(solutions, words)]
