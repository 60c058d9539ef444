"""The synthetic task: chains of arithmetic, and a base that knows how to solve them but seldom does.

A problem reads `coins 7 + 5 * 2 - 4 =`: operations apply from left to right. Its solution is written in one of four
styles, and which one depends on surface features of the problem, so that a base trained on the mixture has a careful
habit it rarely shows:

  careful  think + 5 12 * 2 24 - 4 20 answer 20     every step; sometimes stops early and answers what it has
  sloppy   quick 12 14 10 answer 10                  * done as +, / done as -, and slips
  guess    answer 31
  ramble   hmm river seven maybe ...                 and no answer

Every integer, operator and word is one token; all values lie in 1..MAX_VALUE. Problems are split by a hash of their
operands, so the test problems cannot occur in pre-training whatever is drawn there. N problems, K operations.
"""

from typing import NamedTuple, Optional

import numpy as np
import tokenizers

from rlvr_jax.errors import UserError
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.tasks.problems import Problem

MAX_VALUE, MAX_OPERAND = 24, 9
OPS = ("+", "-", "*", "/")
STYLES = ("careful", "sloppy", "guess", "ramble")
OPENERS = ("think", "quick", "answer", "hmm")
TOPICS = ("apples", "coins", "books", "steps", "birds", "cups", "stamps", "miles")
RAMBLE = ("river", "maybe", "green", "the", "clock", "often", "under", "seven", "song", "cloud", "paper", "so")
VOCAB = ("<pad>", "<eos>", "=", *OPS, *OPENERS, *TOPICS, *RAMBLE, *map(str, range(1, MAX_VALUE + 1)))
PAD, EOS, EQUALS, FIRST_OP, FIRST_OPENER, FIRST_TOPIC, FIRST_WORD, ZERO = (
    VOCAB.index(w) for w in ("<pad>", "<eos>", "=", "+", "think", "apples", "river", "1"))
ZERO -= 1  # the token of integer n is ZERO + n
ANSWER = VOCAB.index("answer")
SPLITS = {"pretrain": range(3, 16), "example": (0,), "dev": (1,), "test": (2,)}  # residues of the hash modulo 16


class Chains(NamedTuple):
    """Problems as arrays."""

    topics: np.ndarray  # [N]
    starts: np.ndarray  # [N]
    ops: np.ndarray  # [N,K] index into OPS
    operands: np.ndarray  # [N,K]
    results: np.ndarray  # [N,K] value after each operation; the last one is the answer


def apply(op: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Exact result of `a op b`, or 0 where it is not an integer in 1..MAX_VALUE."""
    value = np.choose(op, [a + b, a - b, a * b, np.where(a % b == 0, a // b, 0)])
    return np.where((value >= 1) & (value <= MAX_VALUE), value, 0)


def _moves() -> np.ndarray:
    """[MAX_VALUE+1, 4*MAX_OPERAND]: chance of each (op, operand) from each value; feasible operators equally likely."""
    values, ops, operands = np.ogrid[0:MAX_VALUE + 1, 0:4, 1:MAX_OPERAND + 1]
    feasible = apply(ops + 0 * (values + operands), values + 0 * (ops + operands), operands + 0 * (ops + values)) > 0
    a_op = feasible.any(-1, keepdims=True) / np.maximum(feasible.any(-1).sum(-1), 1)[:, None, None]
    return (feasible * a_op / np.maximum(feasible.sum(-1, keepdims=True), 1)).reshape(MAX_VALUE + 1, -1)


_CUMULATIVE_MOVES = np.cumsum(_moves(), -1)


def residue(starts: np.ndarray, ops: np.ndarray, operands: np.ndarray) -> np.ndarray:
    """Hash of the operands modulo 16; the topic does not count, so a problem keeps its split under every topic."""
    h = starts.astype(np.uint64)
    for column in range(ops.shape[1]):
        step = (ops[:, column] * 16 + operands[:, column]).astype(np.uint64)
        h = (h * np.uint64(1_000_003) + step) * np.uint64(0x9E3779B97F4A7C15)
        h ^= h >> np.uint64(29)
    return (h % np.uint64(16)).astype(int)


def generate(rng: np.random.Generator, count: int, split: str, num_ops: int) -> Chains:
    """`count` random problems of one split ("pretrain", "example", "dev" or "test")."""
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; the synthetic task has {', '.join(SPLITS)}")
    found: list = []
    while sum(len(chains.starts) for chains in found) < count:
        n = int(1.5 * count * 16 / len(SPLITS[split])) + 16
        starts = rng.integers(1, MAX_VALUE + 1, n)
        values, columns = starts, []
        for _ in range(num_ops):
            cumulative = _CUMULATIVE_MOVES[values]
            move = (cumulative <= rng.random(n)[:, None] * cumulative[:, -1:]).sum(-1)
            op, operand = move // MAX_OPERAND, move % MAX_OPERAND + 1
            values = apply(op, values, operand)
            columns.append((op, operand, values))
        ops, operands, results = (np.stack(x, 1) for x in zip(*columns))
        chains = Chains(rng.integers(len(TOPICS), size=n), starts, ops, operands, results)
        keep = np.isin(residue(starts, ops, operands), list(SPLITS[split]))
        found.append(Chains(*(x[keep] for x in chains)))
    return Chains(*(np.concatenate(x)[:count] for x in zip(*found)))


def prompt_ids(chains: Chains) -> np.ndarray:
    """i32[N, 2K+3] token ids of the prompts."""
    pairs = np.stack([FIRST_OP + chains.ops, ZERO + chains.operands], -1).reshape(len(chains.ops), -1)
    columns = [FIRST_TOPIC + chains.topics[:, None], ZERO + chains.starts[:, None], pairs,
               np.full((len(pairs), 1), EQUALS)]
    return np.concatenate(columns, 1).astype(np.int32)


class Habits(NamedTuple):
    """Which style a problem evokes: logits from its surface features, biased to the wanted shares."""

    bias: np.ndarray  # [4]
    by_topic: np.ndarray  # [8,4]
    by_first_op: np.ndarray  # [4,4]
    by_start: np.ndarray  # [8,4]


def style_probabilities(habits: Habits, chains: Chains) -> np.ndarray:
    logits = (habits.bias + habits.by_topic[chains.topics] + 0.6 * habits.by_first_op[chains.ops[:, 0]]
              + 0.8 * habits.by_start[chains.starts % 8])
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def make_habits(seed: int, shares: tuple, strength: float, num_ops: int) -> Habits:
    """Random features of size `strength`, and the bias that gives each style its share over all problems."""
    rng = np.random.default_rng(seed)
    habits = Habits(np.log(shares), *(strength * rng.standard_normal((n, 4)) for n in (len(TOPICS), len(OPS), 8)))
    chains = generate(rng, 8192, "pretrain", num_ops)
    for _ in range(60):  # a damped fixed point; it settles in about thirty rounds
        mean = style_probabilities(habits, chains).mean(0)
        habits = habits._replace(bias=habits.bias + 0.7 * np.log(np.array(shares) / mean))
    return habits


def solution_length(num_ops: int) -> int:
    """Tokens of the longest solution, <eos> included."""
    return 3 * num_ops + 4


def solve(rng: np.random.Generator, chains: Chains, styles: np.ndarray, early_stop: float,
          slip: float) -> tuple[np.ndarray, np.ndarray]:
    """Writes each problem's solution in its style: (ids i32[N,T], mask bool[N,T]), T = `solution_length`.

    A careful solution stops early with probability `early_stop`; a sloppy step slips with probability `slip`.
    """
    n, k = chains.ops.shape
    length, rows = solution_length(k), np.arange(n)
    ids = np.full((4, n, length), PAD, np.int32)
    sizes = np.zeros((4, n), int)
    # careful
    stop = np.where(rng.random(n) < early_stop, rng.integers(1, max(k, 2), n), k)
    steps = np.stack([FIRST_OP + chains.ops, ZERO + chains.operands, ZERO + chains.results], -1).reshape(n, -1)
    ids[0, :, 0], ids[0, :, 1:1 + 3 * k] = FIRST_OPENER, steps
    ids[0, rows, 1 + 3 * stop], ids[0, rows, 2 + 3 * stop] = ANSWER, ZERO + chains.results[rows, stop - 1]
    sizes[0] = 4 + 3 * stop
    # sloppy
    value = chains.starts
    ids[1, :, 0] = FIRST_OPENER + 1
    for column in range(k):
        value = misconception(chains.ops[:, column], value, chains.operands[:, column])
        value = np.where(rng.random(n) < slip, rng.integers(1, MAX_VALUE + 1, n), value)
        ids[1, :, 1 + column] = ZERO + value
    ids[1, :, k + 1], ids[1, :, k + 2], sizes[1] = ANSWER, ZERO + value, k + 4
    # guess
    ids[2, :, 0], ids[2, :, 1], sizes[2] = ANSWER, ZERO + rng.integers(1, MAX_VALUE + 1, n), 3
    # ramble
    ids[3] = FIRST_WORD + rng.integers(len(RAMBLE), size=(n, length))
    ids[3, :, 0], sizes[3] = FIRST_OPENER + 3, rng.integers(4, length + 1, n)
    chosen, sizes = ids[styles, rows], sizes[styles, rows]
    chosen[rows, sizes - 1] = EOS
    mask = np.arange(length)[None, :] < sizes[:, None]
    return np.where(mask, chosen, PAD), mask


def misconception(op: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The sloppy style's arithmetic: * done as +, / done as -, kept within 1..MAX_VALUE."""
    return np.clip(np.choose(op, [a + b, a - b, a + b, a - b]), 1, MAX_VALUE)


def text(ids) -> str:
    return " ".join(VOCAB[i] for i in ids)


def to_problems(chains: Chains) -> list[Problem]:
    """The same problems as records. Their `index` counts them, so that two that happen to be alike stay two."""
    prompts = [text(ids) for ids in prompt_ids(chains)]
    return [Problem(prompt, str(answer), prompt, {"task": "arithmetic", "index": i})
            for i, (prompt, answer) in enumerate(zip(prompts, chains.results[:, -1]))]


def style_of(completion: str) -> Optional[str]:
    """The style a completion opens with, or None."""
    return dict(zip(OPENERS, STYLES)).get(completion.split(" ", 1)[0])


def make_tokenizer() -> Tokenizer:
    """The vocabulary as a word-level tokenizer: words are separated by single spaces."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(VOCAB)}, unk_token="<pad>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<pad>", "<eos>"])
    return Tokenizer(backend, (EOS,), PAD, None, {"eos_token": "<eos>", "pad_token": "<pad>"})
