"""Worlds: families where it is known whether RL must elicit a skill that the base model has, or teach a new one.

Problems are chains (`chains.py`) on numbers of three digits, such as `coins 712 + 3t * 7u =`. An operand is an amount
and the digit that it changes (h hundreds, t tens, u units), modulo 10: `712 + 3t` is 742, and `742 * 7u` is 744. The
1,000 answers are about equally frequent. Each digit is a token. All steps are written; sloppy solutions compute * as +.

  s1  a marked switch: careful solutions start with one word; sloppy ones, which are the majority, with another
  s2  the same skill without a mark: all solutions start alike, and each step is careful with probability 0.4
  s3  like s1, with a third style that is short, accurate and frequent
  c   pre-training has every operator and every digit, but never * on the tens; all problems of other splits need it
  t   in pre-training a fifth of the multiplication facts is random; all problems of other splits need such a fact
  n   no skill: all solutions are sloppy

Whatever accuracy RL gains in c and t is a skill that it has taught. In the variants of s1, s2 and t in `LEVELS`, such
as s1_15, problems need a fact that t withholds, and base models of a level should solve as much. Axes: see `chains.py`.
"""

import functools
from typing import Callable

import numpy as np

from rlvr_jax.tasks import chains
from rlvr_jax.tasks.chains import OPENERS, Algebra, Chains, StyleConfig

AMOUNTS, PLACES = np.array([3, 7, 9]), ("h", "t", "u")  # multiplying by any amount is invertible modulo 10
OPERANDS = tuple(f"{amount}{place}" for place in PLACES for amount in AMOUNTS)
VALUE_TOKENS = 3
CAREFUL_STEP = 0.4  # chance that a step of s2 is careful
SHORT = "so"  # first word of the short style of s3
WITHHELD = 0.2  # share of facts that pre-training of t withholds
# right solutions in 100, outside pre-training's split -> (share of careful solutions in s1, chance of a careful step in
# s2, number of digits among which t guesses)
LEVELS = {9: (0.057, 0.217, 10), 15: (0.115, 0.346, 6), 23: (0.2, 0.475, 4)}
TIMES, TENS = 2, 1  # index of * among the operators, and of the tens in PLACES


def make_algebra() -> Algebra:
    """Returns the algebra of the values 0 to 999, of which an operation changes one digit."""
    value, operand = np.arange(1000)[:, None], np.arange(len(OPERANDS))[None, :]
    place, amount = np.divmod(operand, len(AMOUNTS))
    unit, amount = 10 ** (2 - place), AMOUNTS[amount]
    digit = value // unit % 10
    results = np.stack([value + unit * (after % 10 - digit)
                        for after in (digit + amount, digit - amount, digit * amount)], 1)
    digits = [str(x) for x in range(10)]
    return Algebra(
        topics=("apples", "coins", "books", "steps", "birds", "cups", "stamps", "miles"), ops=("+", "-", "*"),
        ramble=("river", "maybe", "green", "the", "clock", "often", "under", "seven", "song", "cloud", "paper", "also"),
        values=tuple(f"{x:03}" for x in range(1000)), lowest=0, results=results, mistakes=results[:, [0, 1, 0]],
        operands=OPERANDS, tokens=(SHORT, *digits, *(f"##{digit}" for digit in digits), *OPERANDS))


ALGEBRA = make_algebra()


def recompute(drawn: Chains, step: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Chains:
    """Returns `drawn` with new results: `step(value, op, operand)`, all i[N], returns the values after an operation."""
    value, results = drawn.starts, []
    for op, operand in zip(drawn.ops.T, drawn.operands.T):
        value = step(value, op, operand)
        results.append(value)
    return drawn._replace(results=np.stack(results, 1))


def write(drawn: Chains, opener: str = OPENERS[0]) -> list[str]:
    """Writes solutions with the steps and results of `drawn`: `OPENER op operand value ... answer value`."""
    return write_solutions(opener, ALGEBRA.write_steps(drawn).reshape(len(drawn.ops), -1))


def write_solutions(opener: str, rows: np.ndarray) -> list[str]:
    """Writes a solution for each row of words: `opener`, the words, "answer", and the last word of the row again."""
    return [" ".join([opener, *row, "answer", row[-1]]) for row in rows]


STYLES = {OPENERS[0]: "careful", OPENERS[1]: "sloppy"}  # first word of a solution -> style
STYLES_S3 = {**STYLES, SHORT: "short"}


def solve_marked(rng: np.random.Generator, drawn: Chains, styles: np.ndarray, config: StyleConfig) -> list[str]:
    """Solutions of s1, s3, n in `styles` i[N]: 0 careful, 1 sloppy, 2 short (`so value ... answer value`, correct)."""
    sloppy = recompute(drawn, lambda value, op, operand: ALGEBRA.mistakes[value, op, operand])
    in_style = write(drawn), write(sloppy, OPENERS[1]), write_solutions(SHORT, ALGEBRA.write(drawn.results))
    return [in_style[style][row] for row, style in enumerate(styles)]


def solve_s2(rng: np.random.Generator, drawn: Chains, styles: np.ndarray, config: StyleConfig,
             careful: float = CAREFUL_STEP) -> list[str]:
    """Solutions whose steps are careful with probability `careful`, else sloppy; later steps build on errors."""
    def step(value: np.ndarray, op: np.ndarray, operand: np.ndarray) -> np.ndarray:
        is_careful = rng.random(len(value)) < careful
        return np.where(is_careful, ALGEBRA.results[value, op, operand], ALGEBRA.mistakes[value, op, operand])
    return write(recompute(drawn, step))


def is_new_pair(ops: np.ndarray, operands: np.ndarray) -> np.ndarray:
    """Whether each step is * on the tens, which never occurs in pre-training of c; bool, in the shape of `ops`."""
    return (ops == TIMES) & (operands // len(AMOUNTS) == TENS)


def draw_c(algebra: Algebra, rng: np.random.Generator, count: int, num_ops: int, split: str) -> Chains:
    """Draws problems without a new pair (`is_new_pair`) for pre-training, and with at least one for other splits."""
    drawn = chains.draw_chains(algebra, rng, 3 * count, num_ops)  # about half of them have a new pair
    return drawn.select(is_new_pair(drawn.ops, drawn.operands).any(1) == (split != "pretrain"))


def solve_c(rng: np.random.Generator, drawn: Chains, styles: np.ndarray, config: StyleConfig) -> list[str]:
    return write(drawn)


@functools.cache
def withheld_facts() -> np.ndarray:
    """bool[V,O,B]: whether a step needs a withheld fact. A fact is the result of digit * amount at one of PLACES."""
    order = np.random.default_rng(0).permutation(10 * len(OPERANDS)).reshape(len(PLACES), 10, len(AMOUNTS))
    withheld, value = np.zeros(ALGEBRA.results.shape, bool), np.arange(1000)
    hidden = order < round(WITHHELD * order.size)  # bool[place, digit, amount], true for a random share WITHHELD
    rows = [hidden[i, value // 10 ** (2 - i) % 10] for i in range(len(PLACES))]  # bool[V,amount] for each place
    withheld[:, TIMES] = np.concatenate(rows, -1)
    return withheld


def needs_withheld(drawn: Chains) -> np.ndarray:
    """bool[N,K]: whether a careful solution needs a withheld fact at each step."""
    before = np.concatenate([drawn.starts[:, None], drawn.results[:, :-1]], 1)
    return withheld_facts()[before, drawn.ops, drawn.operands]


def draw_t(algebra: Algebra, rng: np.random.Generator, count: int, num_ops: int, split: str) -> Chains:
    """Draws any problems for pre-training, and for other splits only problems that need a withheld fact."""
    if split == "pretrain":
        return chains.draw_chains(algebra, rng, count, num_ops)
    drawn = chains.draw_chains(algebra, rng, 3 * count, num_ops)  # about a third of them need a withheld fact
    return drawn.select(needs_withheld(drawn).any(1))


def solve_t(rng: np.random.Generator, drawn: Chains, styles: np.ndarray, config: StyleConfig,
            digits: int = 10) -> list[str]:
    """Careful solutions in which each withheld fact has as its result a random one of `digits` digits: the digits are
    consecutive modulo 10, and the right one is among them."""
    def step(value: np.ndarray, op: np.ndarray, operand: np.ndarray) -> np.ndarray:
        place = operand // len(AMOUNTS)  # of the digit that changes, as in OPERANDS
        unit = 10 ** (2 - place)
        digit, result = value // unit % 10, ALGEBRA.results[value, op, operand]
        right = result // unit % 10
        guess = (right - right % digits + rng.integers(digits, size=len(value))) % 10
        guessed = value + unit * (guess - digit)  # the value with a random digit in the place of the right one
        return np.where(withheld_facts()[value, op, operand], guessed, result)
    return write(recompute(drawn, step))
