"""Chains of operations, applied from left to right, on which all synthetic families are built.

A problem reads `TOPIC value op operand op operand ... =`. Its solution is written in one of four styles. The style
depends on surface features of the problem, so that a base model trained on the mixture can be careful but rarely is:

  careful  think op operand value op operand value ... answer value    writes every step; sometimes stops early
  sloppy   quick value value ... answer value                          mistakes some operators for others, and slips
  guess    answer value                                                a random value
  ramble   hmm word word word ...                                      random words without an answer

Every value, operator and word is one token, unless a family says otherwise. A hash of a problem's first value,
operators and operands decides its split, so test problems never occur in pre-training.

Axes: N problems, K operations of a problem, O operators, V values, B operands, S styles.
"""

import dataclasses
import functools
from typing import Callable, NamedTuple

import numpy as np

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.records import Problem

STYLES = {"think": "careful", "quick": "sloppy", "answer": "guess", "hmm": "ramble"}  # first word -> style
OPENERS = tuple(STYLES)
SPLITS = {"pretrain": range(3, 16), "example": (0,), "dev": (1,), "test": (2,)}  # values of `residue`


class StyleConfig(Config):
    """The styles of solutions in pre-training, and how often they go wrong."""

    style_shares: tuple[float, ...] = flag((), "share of solutions written in each style, for most families "
                                           "careful, sloppy, guess, ramble; empty: the family's own shares", above=0)
    habit_strength: float = flag(0.7, "scale of the random logits with which a problem's surface features decide "
                                 "its style", minimum=0)
    early_stop: float = flag(0.15, "chance that a careful solution stops early and answers its last value",
                             minimum=0, maximum=1)
    slip: float = flag(0.1, "chance that the result of a sloppy step is random", minimum=0, maximum=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Algebra:
    """The values, operators and words of a family. Values and operands are integers, indices of the axes V and B."""

    topics: tuple[str, ...]  # words that start a problem
    ops: tuple[str, ...]  # word of each operator
    ramble: tuple[str, ...]  # words of the style ramble
    values: tuple[str, ...]  # word of each value, from `lowest` up
    lowest: int
    results: np.ndarray  # i[V,O,B] the value after an operation; -1 where the operation is not allowed
    mistakes: np.ndarray  # i[V,O,B] the value that the sloppy style computes
    operands: tuple[str, ...] = ()  # word of each operand, from 0 up; empty: operands are written as values are
    tokens: tuple[str, ...] = ()  # tokens of values, operands and further words; empty: `values`

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return ("<pad>", "<eos>", "=", *self.ops, *OPENERS, *self.topics, *self.ramble, *(self.tokens or self.values))

    @functools.cached_property
    def cumulative_moves(self) -> np.ndarray:
        """f64[V,O*B]: for each value, the cumulative probabilities of the pairs (operator, operand). All operators with
        an allowed operand are equally likely, and so are the allowed operands of an operator."""
        allowed = self.results >= 0
        op_allowed = allowed.any(-1, keepdims=True)  # [V,O,1]
        op_chances = op_allowed / np.maximum(op_allowed.sum(1, keepdims=True), 1)
        chances = allowed * op_chances / np.maximum(allowed.sum(-1, keepdims=True), 1)
        return np.cumsum(chances.reshape(len(allowed), -1), -1)

    def write(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the word of each value in `numbers`, integers in an array of any shape."""
        return np.array(self.values)[numbers - self.lowest]

    def write_operands(self, numbers: np.ndarray) -> np.ndarray:
        return np.array(self.operands)[numbers] if self.operands else self.write(numbers)

    def write_steps(self, chains: "Chains") -> np.ndarray:
        """Returns the words of each operation, [N,K,3]: operator, operand, and the value after it."""
        return np.stack([np.array(self.ops)[chains.ops], self.write_operands(chains.operands),
                         self.write(chains.results)], -1)

    def draw_values(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.integers(self.lowest, len(self.results), count)


class Chains(NamedTuple):
    """N problems as integer arrays."""

    topics: np.ndarray  # [N] index into Algebra.topics
    starts: np.ndarray  # [N] first value
    ops: np.ndarray  # [N,K] index into Algebra.ops
    operands: np.ndarray  # [N,K] index into the last axis of Algebra.results
    results: np.ndarray  # [N,K] value after each operation; the last one is the answer

    def select(self, keep_N: np.ndarray) -> "Chains":
        """Returns the problems where `keep_N`, bool[N], is true."""
        return Chains(*(x[keep_N] for x in self))


def residue(starts: np.ndarray, ops: np.ndarray, operands: np.ndarray) -> np.ndarray:
    """i[N]: hash of first value, operators and operands, modulo 16; the same for problems that differ only in topic."""
    h = starts.astype(np.uint64)
    for op, operand in zip(ops.T, operands.T):
        h = (h * np.uint64(1_000_003) + (op * 16 + operand).astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        h ^= h >> np.uint64(29)
    return (h % np.uint64(16)).astype(int)


def draw_chains(algebra: Algebra, rng: np.random.Generator, count: int, num_ops: int, split: str = "") -> Chains:
    """Returns `count` random problems of all splits. `split` is ignored: `generate` passes it to every `draw`."""
    starts = algebra.draw_values(rng, count)
    values, steps = starts, []  # steps: (operators, operands, values after it) of each operation, each i[count]
    for _ in range(num_ops):
        cumulative = algebra.cumulative_moves[values]
        move = (cumulative <= rng.random(count)[:, None] * cumulative[:, -1:]).sum(-1)  # index of (operator, operand)
        op, operand = np.divmod(move, algebra.results.shape[-1])
        values = algebra.results[values, op, operand]
        steps.append((op, operand, values))
    ops, operands, results = (np.stack(columns, 1) for columns in zip(*steps))
    return Chains(rng.integers(len(algebra.topics), size=count), starts, ops, operands, results)


def generate(algebra: Algebra, rng: np.random.Generator, count: int, split: str, num_ops: int,
             draw: Callable[..., Chains] = draw_chains) -> Chains:
    """Returns `count` random problems of `split`, a key of SPLITS, drawn by `draw`. UserError for an unknown split."""
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; the synthetic task has {', '.join(SPLITS)}")
    parts: list[Chains] = []
    while sum(len(part.starts) for part in parts) < count:
        n = int(1.5 * count * 16 / len(SPLITS[split])) + 16  # enough for `count` of the split, almost always
        chains = draw(algebra, rng, n, num_ops, split)
        in_split = np.isin(residue(chains.starts, chains.ops, chains.operands), list(SPLITS[split]))
        parts.append(chains.select(in_split))
    return Chains(*(np.concatenate(arrays)[:count] for arrays in zip(*parts)))  # field by field


def to_problems(algebra: Algebra, chains: Chains) -> list[Problem]:
    """Returns the chains as Problems. meta["index"] is the index in `chains`, and meta["steps"] the careful solution as
    a list of texts: "think", "OP OPERAND VALUE" for each operation, and "answer VALUE"."""
    problems, topics, starts = [], np.array(algebra.topics)[chains.topics], algebra.write(chains.starts)
    for i, steps in enumerate(algebra.write_steps(chains)):
        prompt, answer = " ".join([topics[i], starts[i], *steps[:, :2].flat, "="]), str(steps[-1, -1])
        careful = [OPENERS[0], *map(" ".join, steps), f"answer {answer}"]
        problems.append(Problem(prompt, answer, prompt, {"index": i, "steps": careful}))
    return problems


def make_habits(algebra: Algebra, config: StyleConfig, seed: int, num_ops: int) -> Callable[[Chains], np.ndarray]:
    """Returns a function from Chains to f64[N,S], the probabilities of the styles. A style's logit is a bias, for the
    style's share, plus `habit_strength` times random numbers for topic, first operator and first value modulo 8."""
    rng, shares = np.random.default_rng(seed), np.array(config.style_shares)
    by_topic, by_first_op, by_start = (config.habit_strength * rng.standard_normal((n, len(shares)))
                                       for n in (len(algebra.topics), len(algebra.ops), 8))

    def chances(bias: np.ndarray, chains: Chains) -> np.ndarray:
        logits = (bias + by_topic[chains.topics] + 0.6 * by_first_op[chains.ops[:, 0]]
                  + 0.8 * by_start[chains.starts % 8])
        exp = np.exp(logits - logits.max(-1, keepdims=True))
        return exp / exp.sum(-1, keepdims=True)

    bias, chains = np.log(shares), generate(algebra, rng, 8192, "pretrain", num_ops)
    for _ in range(60):  # a damped fixed-point iteration, which converges in about thirty rounds
        bias = bias + 0.7 * np.log(shares / chances(bias, chains).mean(0))
    return functools.partial(chances, bias)


def lengths(num_ops: int, value_tokens: int = 1, ending: int = 0) -> tuple[int, int]:
    """Returns (most tokens of a prompt, most tokens of a solution with its <eos>) for chains of `num_ops` operations. A
    value has at most `value_tokens` tokens, and `ending` more tokens follow the answer."""
    extra = value_tokens - 1  # of a value: a prompt has one value, and a solution one for each operation and the answer
    return 2 * num_ops + 3 + extra, 3 * num_ops + 4 + extra * (num_ops + 1) + ending


def solve(algebra: Algebra, rng: np.random.Generator, chains: Chains, styles: np.ndarray,
          config: StyleConfig) -> list[str]:
    """Writes a solution of each problem in its style, `styles` i[N], an index into STYLES. A careful solution stops
    early with probability `early_stop`; the result of a sloppy step is random with probability `slip`."""
    n, k = chains.ops.shape
    rows, length = np.arange(n), lengths(k)[1] - 1  # most words of a solution, without <eos>
    # Every problem is solved in all four styles: words[s,i,:sizes[s,i]] is the solution of problem i in style s.
    words, sizes = np.full((4, n, length), "", object), np.zeros((4, n), int)
    words[:, :, 0] = np.array(OPENERS)[:, None]
    # careful, stopping after `stop` of the k operations
    stop = np.where(rng.random(n) < config.early_stop, rng.integers(1, max(k, 2), n), k)
    words[0, :, 1:1 + 3 * k] = algebra.write_steps(chains).reshape(n, -1)
    words[0, rows, 1 + 3 * stop], words[0, rows, 2 + 3 * stop] = "answer", algebra.write(chains.results[rows, stop - 1])
    sizes[0] = 3 + 3 * stop
    # sloppy
    value = chains.starts
    for column in range(k):
        value = algebra.mistakes[value, chains.ops[:, column], chains.operands[:, column]]
        value = np.where(rng.random(n) < config.slip, algebra.draw_values(rng, n), value)
        words[1, :, 1 + column] = algebra.write(value)
    words[1, :, k + 1], words[1, :, k + 2], sizes[1] = "answer", algebra.write(value), k + 3
    words[2, :, 1], sizes[2] = algebra.write(algebra.draw_values(rng, n)), 2  # guess
    # ramble; two more words are drawn and dropped, as in the first version of this code, so that seeds keep their data
    words[3, :, 1:] = np.array(algebra.ramble)[rng.integers(len(algebra.ramble), size=(n, length + 1))[:, 1:-1]]
    sizes[3] = rng.integers(3, length + 1, n)
    return [" ".join(row[:size]) for row, size in zip(words[styles, rows], sizes[styles, rows])]
