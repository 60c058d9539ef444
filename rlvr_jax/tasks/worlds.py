"""Worlds: families of which it is known whether RL has to switch on what the base can do, or to teach it.

All have chains (`chains.py`) on numbers of three digits, such as `coins 712 + 3t * 7u =`: an operand says which digit
it is for (hundreds, tens, units), and that digit alone changes, modulo 10. So an answer is one of 1,000, all about
equally frequent. Each digit is a token. Solutions are written step by step; a sloppy step does * as +.

  s1  a switch with a mark: careful solutions open with a word of their own, sloppy ones, the most, with another
  s2  the same skill without a mark: all solutions open alike, and each step is careful with a chance of .4, or sloppy
  s3  like s1, and beside it a style that is short, accurate and frequent
  c   every operation is known, and every place, but * never at the tens; problems of the other splits need that
  t   a fifth of the table of * has random results in pre-training; problems of the other splits need such a fact
  n   no skill: sloppy solutions alone

What RL gains in c and t, it has taught. N problems, K operations, S styles.
"""

import functools
from typing import Callable

import numpy as np

from rlvr_jax.tasks import chains
from rlvr_jax.tasks.chains import OPENERS, Algebra, Chains, StyleConfig

AMOUNTS, PLACES = np.array([3, 7, 9]), ("h", "t", "u")  # * by each of these loses nothing
CAREFUL_STEP = 0.4
SHORT = "so"
WITHHELD = 0.2  # of the table of *
TIMES, TENS = 2, 1  # their places among the operators, and among PLACES


class Places(Algebra):
    """The algebra of three digits. An operand is 3 place + the number of its amount."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        words, digits = [word for word in super().vocabulary if word not in self.values], [str(x) for x in range(10)]
        return (*words, SHORT, *digits, *(f"##{digit}" for digit in digits), *self.operands)

    @property
    def operands(self) -> tuple[str, ...]:
        return tuple(f"{amount}{place}" for place in PLACES for amount in AMOUNTS)

    def write_operands(self, numbers: np.ndarray) -> np.ndarray:
        return np.array(self.operands)[numbers]


def _algebra() -> Places:
    value, operand = np.arange(1000)[:, None], np.arange(len(PLACES) * len(AMOUNTS))[None, :]
    place, amount = np.divmod(operand, len(AMOUNTS))
    unit, amount = 10 ** (2 - place), AMOUNTS[amount]
    digit = value // unit % 10
    results = np.stack([value + unit * (after % 10 - digit)
                        for after in (digit + amount, digit - amount, digit * amount)], 1)
    return Places(
        topics=("apples", "coins", "books", "steps", "birds", "cups", "stamps", "miles"), ops=("+", "-", "*"),
        ramble=("river", "maybe", "green", "the", "clock", "often", "under", "seven", "song", "cloud", "paper", "also"),
        values=tuple(f"{x:03}" for x in range(1000)), lowest=0, results=results, mistakes=results[:, [0, 1, 0]])


ALGEBRA = _algebra()


def lengths(num_ops: int) -> tuple[int, int]:
    """Tokens of a prompt, and of the longest solution with its <eos>."""
    prompt, solution = chains.lengths(num_ops)
    return prompt + 2, solution + 2 * (num_ops + 1)


def recompute(drawn: Chains, step: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Chains:
    """The same problems with other results: `step(value, op, operand)` gives the values i[N] after one operation."""
    value, results = drawn.starts, []
    for op, operand in zip(drawn.ops.T, drawn.operands.T):
        value = step(value, op, operand)
        results.append(value)
    return drawn._replace(results=np.stack(results, 1))


def correct_value(value: np.ndarray, op: np.ndarray, operand: np.ndarray) -> np.ndarray:
    return ALGEBRA.results[value, op, operand]


def sloppy_value(value: np.ndarray, op: np.ndarray, operand: np.ndarray) -> np.ndarray:
    return ALGEBRA.mistakes[value, op, operand]


def write(drawn: Chains, opener: str = OPENERS[0]) -> list[str]:
    """The steps and results of `drawn` as a solution: `think op operand value ... answer value`."""
    steps = [np.array(ALGEBRA.ops)[drawn.ops], ALGEBRA.write_operands(drawn.operands), ALGEBRA.write(drawn.results)]
    return write_solutions(opener, np.stack(steps, -1).reshape(len(drawn.ops), -1))


def write_solutions(opener: str, rows: np.ndarray) -> list[str]:
    """Rows of words as solutions, whose answer is the last word."""
    return [" ".join([opener, *row, "answer", row[-1]]) for row in rows]


# ----- s1, s3, n

STYLES = {OPENERS[0]: "careful", OPENERS[1]: "sloppy"}
STYLES_S3 = {**STYLES, SHORT: "short"}


def solve_marked(rng: np.random.Generator, drawn: Chains, styles: np.ndarray, config: StyleConfig) -> list[str]:
    """Careful, sloppy, and in the short style `so value value ... answer value`, which is right."""
    in_style = write(drawn), write(recompute(drawn, sloppy_value), OPENERS[1]), write_solutions(SHORT,
                                                                                       ALGEBRA.write(drawn.results))
    return [in_style[style][row] for row, style in enumerate(styles)]


# ----- s2


def solve_s2(rng: np.random.Generator, drawn: Chains, styles: np.ndarray, config: StyleConfig) -> list[str]:
    """Solutions whose steps are careful with a chance of CAREFUL_STEP, and go on from what was written."""
    return write(recompute(drawn, lambda value, *step: np.where(
        rng.random(len(value)) < CAREFUL_STEP, correct_value(value, *step), sloppy_value(value, *step))))


# ----- c


def is_new_pair(ops: np.ndarray, operands: np.ndarray) -> np.ndarray:
    """Where an operation meets a place that it never meets in pre-training. Both are known from others."""
    return (ops == TIMES) & (operands // len(AMOUNTS) == TENS)


def generate_c(rng: np.random.Generator, count: int, split: str, num_ops: int) -> Chains:
    """Problems without new pairs in pre-training, elsewhere with some."""
    def draw(algebra: Algebra, rng: np.random.Generator, n: int, num_ops: int) -> Chains:
        drawn = chains.draw_chains(algebra, rng, 3 * n, num_ops)  # half of them have none
        return select_chains(drawn, is_new_pair(drawn.ops, drawn.operands).any(1) == (split != "pretrain"))
    return chains.generate(ALGEBRA, rng, count, split, num_ops, draw)


def solve_c(rng: np.random.Generator, drawn: Chains, styles: np.ndarray, config: StyleConfig) -> list[str]:
    return write(drawn)


def select_chains(drawn: Chains, keep_N: np.ndarray) -> Chains:
    return Chains(*(x[keep_N] for x in drawn))


# ----- t


@functools.cache
def withheld_facts() -> np.ndarray:
    """bool[V,O,B]: the facts that pre-training does not tell. One is a digit and an amount, at one place."""
    drawn = np.random.default_rng(0).permutation(10 * len(ALGEBRA.operands)).reshape(len(PLACES), 10, len(AMOUNTS))
    made = np.zeros(ALGEBRA.results.shape, bool)
    hidden, value = drawn < round(WITHHELD * drawn.size), np.arange(1000)
    made[:, TIMES] = np.concatenate([hidden[i, value // 10 ** (2 - i) % 10] for i in range(len(PLACES))], -1)
    return made


def needs_withheld(drawn: Chains) -> np.ndarray:
    """bool[N,K]: whether a careful solution needs a withheld fact at that step."""
    before = np.concatenate([drawn.starts[:, None], drawn.results[:, :-1]], 1)
    return withheld_facts()[before, drawn.ops, drawn.operands]


def generate_t(rng: np.random.Generator, count: int, split: str, num_ops: int) -> Chains:
    """Any problems in pre-training, elsewhere those that need a withheld fact."""
    def draw(algebra: Algebra, rng: np.random.Generator, n: int, num_ops: int) -> Chains:
        drawn = chains.draw_chains(algebra, rng, n if split == "pretrain" else 3 * n,
                                   num_ops)  # a third of them need one
        return drawn if split == "pretrain" else select_chains(drawn, needs_withheld(drawn).any(1))
    return chains.generate(ALGEBRA, rng, count, split, num_ops, draw)


def solve_t(rng: np.random.Generator, drawn: Chains, styles: np.ndarray, config: StyleConfig) -> list[str]:
    """Careful solutions, in which a withheld fact comes out at random: any digit."""
    def step(value: np.ndarray, op: np.ndarray, operand: np.ndarray) -> np.ndarray:
        unit = 10 ** (2 - operand // len(AMOUNTS))
        guessed = value + unit * (rng.integers(10, size=len(value)) - value // unit % 10)
        return np.where(withheld_facts()[value, op, operand], guessed, correct_value(value, op, operand))
    return write(recompute(drawn, step))
