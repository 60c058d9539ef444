"""RandomCalculation (arXiv 2507.10532): expressions that nobody can have met, as plain text for language models.

`--problems=calculation:3` is the benchmark of 3 operations, `calculation:3:7` another one, drawn from seed 7. One
without a seed is drawn from SEED, the date on which it was made: a model that is older has not seen it. An expression
is a random binary tree: the operations are split at random between the two sides of each one, which is +, -, * or /,
and a leaf is n, a/b, n^2 or n^3 of whole numbers from 0 to 100. It is computed in exact fractions. One that divides by
zero or passes LARGEST anywhere is drawn again. No two problems are the same tree, sides of + and * turned round
included, and a hash of the tree decides which split it is of.
"""

import hashlib
import operator
from fractions import Fraction
from typing import Optional, Sequence

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.grading.mathematics import MAX_DIGITS
from rlvr_jax.records import Problem

PREFIX = "calculation:"
SEED = 20_261_127
LEVELS = range(1, 21)
SPLITS = ("example", "dev", "test")
LARGEST = 10**6  # of any part of an expression, whatever its sign
TOP = 100  # of the numbers in a leaf

LEAVES = {"{}": lambda a, b: Fraction(a), "({}/{})": Fraction, "{}^2": lambda a, b: Fraction(a**2),
          "{}^3": lambda a, b: Fraction(a**3)}
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
Tree = tuple  # (row of OPERATIONS, Tree, Tree), or a leaf: (row of LEAVES, a, b)


def draw_problems(name: str, count: int, split: str) -> list[Problem]:
    """The first `count` problems of one of SPLITS; meta["tree"] is the expression. Raises UserError for a bad name."""
    level, seed = parse_name(name)
    rng, seen, problems = np.random.default_rng((seed, level)), set(), []
    while len(problems) < count:
        tree = draw_tree(rng, level)
        key = format_tree(tree, canonical=True)
        if key in seen:
            continue
        seen.add(key)
        if SPLITS[hashlib.sha256(key.encode()).digest()[0] % len(SPLITS)] == split:
            problems.append(make_problem(tree, len(problems)))
    return problems


def parse_name(name: str) -> tuple[int, int]:
    """(level, seed) of `calculation:LEVEL` or `calculation:LEVEL:SEED`."""
    level, _, seed = name.removeprefix(PREFIX).partition(":")
    if not (level.isdecimal() and int(level) in LEVELS and (seed or "0").isdecimal()) or name.endswith(":"):
        raise UserError(f"--problems={name}: calculation:LEVEL has a level, the number of operations, from {LEVELS[0]} "
                        f"to {LEVELS[-1]}; calculation:LEVEL:SEED draws other problems, by a whole number")
    return int(level), int(seed or SEED)


def make_problem(tree: Tree, index: int) -> Problem:
    """The answer is a whole number or a fraction in lowest terms, such as -7/12."""
    question = f"What is {format_tree(tree)}?"
    return Problem(question, str(evaluate(tree)), question, {"index": index, "tree": tree})


def draw_tree(rng: np.random.Generator, level: int) -> Tree:
    """A random tree of so many operations that has a value, which the graders can read."""
    made = None
    while made is None or not is_short(made[1]):
        made = grow_tree(rng, level)
    return made[0]


def grow_tree(rng: np.random.Generator, level: int) -> Optional[tuple[Tree, Fraction]]:
    """A random tree and its value; None as soon as a part of it has none."""
    if level:
        left = int(rng.integers(level))
        parts = grow_tree(rng, left), grow_tree(rng, level - 1 - left)
        if None in parts:
            return None
        (sides, values), table = zip(*parts), OPERATIONS
    else:
        sides = values = tuple(map(int, rng.integers(0, TOP + 1, 2)))
        table = LEAVES
    name = list(table)[rng.integers(len(table))]
    result = apply_operation(name, values)
    return None if result is None else ((name, *sides), result)


def renumber(rng: np.random.Generator, tree: Tree) -> Tree:
    """The same tree with other numbers in its leaves, as far as it has a value with them."""
    def other(part: Tree) -> Tree:
        return (part[0], *(map(other, part[1:]) if part[0] in OPERATIONS else map(int, rng.integers(0, TOP + 1, 2))))

    made = other(tree)
    while evaluate(made) is None or not is_short(evaluate(made)):
        made = other(tree)
    return made


def evaluate(tree: Tree) -> Optional[Fraction]:
    """None where a part of the tree has no value."""
    name, *sides = tree
    values = list(map(evaluate, sides)) if name in OPERATIONS else sides
    return None if None in values else apply_operation(name, values)


def apply_operation(name: str, values: Sequence) -> Optional[Fraction]:
    """The value of an operation or a leaf; None for a division by zero, and for what is larger than LARGEST."""
    try:
        result = (OPERATIONS | LEAVES)[name](*values)
    except ZeroDivisionError:
        return None
    return result if abs(result) <= LARGEST else None


def is_short(number: Optional[Fraction]) -> bool:
    """Whether the graders take it for a number: they read no longer one."""
    return number is not None and max(len(str(abs(number.numerator))), len(str(number.denominator))) <= MAX_DIGITS


def format_tree(tree: Tree, canonical: bool = False) -> str:
    """`(3 + (1/2)) * 7^2`, with parentheses around every operation in another. `canonical`: + and * have their sides
    in the order of the alphabet, so that trees that are alike have one text."""
    name, *sides = tree
    if name in LEAVES:
        return name.format(*sides)
    texts = [f"({format_tree(side, canonical)})" if side[0] in OPERATIONS else format_tree(side, canonical) for side in sides]
    return f" {name} ".join(sorted(texts) if canonical and name in "+*" else texts)
