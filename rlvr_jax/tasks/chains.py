"""Chains of operations, applied from left to right: what the synthetic families share.

A problem reads `TOPIC value op operand op operand ... =`. Its solution is written in one of four styles, and which one
depends on surface features of the problem, so that a base trained on the mixture has a careful habit it rarely shows:

  careful  think op operand value op operand value ... answer value    every step; sometimes stops early and answers
                                                                       what it has
  sloppy   quick value value ... answer value                          a misconception, and slips
  guess    answer value
  ramble   hmm word word word ...                                      and no answer

Every value, operator and word is one token. Problems are split by a hash of their operands, so the test problems
cannot occur in pre-training whatever is drawn there. N problems, K operations, O operators, V values, B operands.
"""

import dataclasses
import functools
from typing import Callable, NamedTuple

import numpy as np

from rlvr_jax.config import PretrainConfig
from rlvr_jax.errors import UserError
from rlvr_jax.tasks.problems import Problem

STYLES = {"think": "careful", "quick": "sloppy", "answer": "guess", "hmm": "ramble"}  # opening word -> style
OPENERS = tuple(STYLES)
SPLITS = {"pretrain": range(3, 16), "example": (0,), "dev": (1,), "test": (2,)}  # residues of the hash modulo 16


@dataclasses.dataclass(frozen=True, eq=False)
class Rules:
    """What tells one family of chains from another. Values are numbers from `lowest` on, and so are operands."""

    topics: tuple[str, ...]
    ops: tuple[str, ...]
    ramble: tuple[str, ...]
    values: tuple[str, ...]  # word of each value, the lowest first; operands are written in the same words
    lowest: int
    results: np.ndarray  # [V,O,B] the value after an operation; -1 where the operation is not allowed
    mistakes: np.ndarray  # [V,O,B] what the sloppy style takes it for

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return ("<pad>", "<eos>", "=", *self.ops, *OPENERS, *self.topics, *self.ramble, *self.values)

    @functools.cached_property
    def cumulative_moves(self) -> np.ndarray:
        """[V,O*B] running sum of the chance of each (op, operand) from each value; operators allowed equally likely."""
        allowed = self.results >= 0
        an_op = allowed.any(-1, keepdims=True) / np.maximum(allowed.any(-1).sum(-1), 1)[:, None, None]
        chances = allowed * an_op / np.maximum(allowed.sum(-1, keepdims=True), 1)
        return np.cumsum(chances.reshape(len(allowed), -1), -1)

    def write(self, numbers: np.ndarray) -> np.ndarray:
        """Words of values or operands, in the shape of `numbers`."""
        return np.array(self.values)[numbers - self.lowest]

    def draw_values(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.integers(self.lowest, len(self.results), count)


class Chains(NamedTuple):
    """Problems as arrays."""

    topics: np.ndarray  # [N]
    starts: np.ndarray  # [N]
    ops: np.ndarray  # [N,K] index into the operators
    operands: np.ndarray  # [N,K]
    results: np.ndarray  # [N,K] value after each operation; the last one is the answer


def residue(starts: np.ndarray, ops: np.ndarray, operands: np.ndarray) -> np.ndarray:
    """Hash of the operands modulo 16; the topic does not count, so a problem keeps its split under every topic."""
    h = starts.astype(np.uint64)
    for column in range(ops.shape[1]):
        step = (ops[:, column] * 16 + operands[:, column]).astype(np.uint64)
        h = (h * np.uint64(1_000_003) + step) * np.uint64(0x9E3779B97F4A7C15)
        h ^= h >> np.uint64(29)
    return (h % np.uint64(16)).astype(int)


def draw(rules: Rules, rng: np.random.Generator, count: int, num_ops: int) -> Chains:
    """`count` random problems of any split."""
    starts = rules.draw_values(rng, count)
    values, columns = starts, []
    for _ in range(num_ops):
        cumulative = rules.cumulative_moves[values]
        move = (cumulative <= rng.random(count)[:, None] * cumulative[:, -1:]).sum(-1)
        op, operand = np.divmod(move, rules.results.shape[-1])
        values = rules.results[values, op, operand]
        columns.append((op, operand, values))
    return Chains(rng.integers(len(rules.topics), size=count), starts, *(np.stack(x, 1) for x in zip(*columns)))


def generate(rules: Rules, rng: np.random.Generator, count: int, split: str, num_ops: int,
             draw: Callable[..., Chains] = draw) -> Chains:
    """`count` random problems of one split ("pretrain", "example", "dev" or "test"), drawn as by the function above."""
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; the synthetic task has {', '.join(SPLITS)}")
    kept: list = []
    while sum(len(chains.starts) for chains in kept) < count:
        n = int(1.5 * count * 16 / len(SPLITS[split])) + 16
        chains = draw(rules, rng, n, num_ops)
        keep = np.isin(residue(chains.starts, chains.ops, chains.operands), list(SPLITS[split]))
        kept.append(Chains(*(x[keep] for x in chains)))
    return Chains(*(np.concatenate(x)[:count] for x in zip(*kept)))


def to_problems(rules: Rules, chains: Chains) -> list[Problem]:
    """The same problems as records. Their `index` counts them, so that two that happen to be alike stay two."""
    pairs = np.stack([np.array(rules.ops)[chains.ops], rules.write(chains.operands)], -1).reshape(len(chains.ops), -1)
    rows = zip(np.array(rules.topics)[chains.topics], rules.write(chains.starts), pairs)
    prompts = [" ".join([topic, start, *operations, "="]) for topic, start, operations in rows]
    results = rules.write(chains.results)
    return [Problem(prompt, str(values[-1]), prompt, {"index": i, "steps": expert_steps(operations, values)})
            for i, (prompt, operations, values) in enumerate(zip(prompts, pairs, results))]


def expert_steps(operations: np.ndarray, values: np.ndarray) -> list[str]:
    """The careful solution in steps: its opening word, one an operation, and the answer.

    `operations` [2K] are the prompt's words after its first value, `values` [K] the words of the results.
    """
    steps = [" ".join([op, operand, value]) for op, operand, value in zip(operations[::2], operations[1::2], values)]
    return [OPENERS[0], *steps, f"answer {values[-1]}"]


class Habits(NamedTuple):
    """Which style a problem evokes: logits from its surface features, biased to the wanted shares."""

    bias: np.ndarray  # [4]
    by_topic: np.ndarray  # [8,4]
    by_first_op: np.ndarray  # [O,4]
    by_start: np.ndarray  # [8,4]


def style_probabilities(habits: Habits, chains: Chains) -> np.ndarray:
    """f64[N,4] chances of the styles."""
    logits = (habits.bias + habits.by_topic[chains.topics] + 0.6 * habits.by_first_op[chains.ops[:, 0]]
              + 0.8 * habits.by_start[chains.starts % 8])
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def make_habits(rules: Rules, config: PretrainConfig) -> Habits:
    """Random features of size `habit_strength`, and the bias that gives each style its share over all problems."""
    rng, shares = np.random.default_rng(config.seed), np.array(config.style_shares)
    habits = Habits(np.log(shares), *(config.habit_strength * rng.standard_normal((n, 4))
                                      for n in (len(rules.topics), len(rules.ops), 8)))
    chains = generate(rules, rng, 8192, "pretrain", config.num_ops)
    for _ in range(60):  # a damped fixed point; it settles in about thirty rounds
        mean = style_probabilities(habits, chains).mean(0)
        habits = habits._replace(bias=habits.bias + 0.7 * np.log(shares / mean))
    return habits


def lengths(num_ops: int) -> tuple[int, int]:
    """Tokens of a prompt, and of the longest solution with its <eos>."""
    return 2 * num_ops + 3, 3 * num_ops + 4


def solve(rules: Rules, rng: np.random.Generator, chains: Chains, styles: np.ndarray,
          config: PretrainConfig) -> list[str]:
    """Each problem's solution in its style, an index i[N] into STYLES.

    A careful solution stops early with probability `early_stop`; a sloppy step slips with probability `slip`.
    """
    n, k = chains.ops.shape
    length, rows = lengths(k)[1] - 1, np.arange(n)
    words = np.full((4, n, length), "", object)
    words[:, :, 0] = np.array(OPENERS)[:, None]
    sizes = np.zeros((4, n), int)
    # careful
    stop = np.where(rng.random(n) < config.early_stop, rng.integers(1, max(k, 2), n), k)
    steps = [np.array(rules.ops)[chains.ops], rules.write(chains.operands), rules.write(chains.results)]
    words[0, :, 1:1 + 3 * k] = np.stack(steps, -1).reshape(n, -1)
    words[0, rows, 1 + 3 * stop], words[0, rows, 2 + 3 * stop] = "answer", rules.write(chains.results[rows, stop - 1])
    sizes[0] = 3 + 3 * stop
    # sloppy
    value = chains.starts
    for column in range(k):
        value = rules.mistakes[value, chains.ops[:, column], chains.operands[:, column]]
        value = np.where(rng.random(n) < config.slip, rules.draw_values(rng, n), value)
        words[1, :, 1 + column] = rules.write(value)
    words[1, :, k + 1], words[1, :, k + 2], sizes[1] = "answer", rules.write(value), k + 3
    # guess
    words[2, :, 1], sizes[2] = rules.write(rules.draw_values(rng, n)), 2
    # ramble
    words[3, :, 1:] = np.array(rules.ramble)[rng.integers(len(rules.ramble), size=(n, length + 1))[:, 1:-1]]
    sizes[3] = rng.integers(3, length + 1, n)
    return [" ".join(row[:size]) for row, size in zip(words[styles, rows], sizes[styles, rows])]
