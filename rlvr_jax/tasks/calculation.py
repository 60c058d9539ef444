"""RandomCalculation (arXiv 2507.10532): random arithmetic expressions, as plain text, that no model can have memorised.

`--problems=calculation:3` has expressions of 3 operations; `calculation:3:7` draws others, from seed 7. The default
seed is the date on which the benchmark was made: older models have not seen it. An expression is a random binary tree
of +, -, * and /. Its leaves are n, a/b, n^2 or n^3, of integers from 0 to 100. Values are exact fractions. A tree of
which any part divides by zero or exceeds LARGEST is drawn again. No two problems differ only in the order of the sides
of + and *. A hash of the tree decides the split of its problem.
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
LARGEST = 10**6  # largest absolute value of any part of an expression
TOP = 100  # largest number in a leaf

LEAVES = {"{}": lambda a, b: Fraction(a), "({}/{})": Fraction, "{}^2": lambda a, b: Fraction(a**2),
          "{}^3": lambda a, b: Fraction(a**3)}
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
Tree = tuple  # (row of OPERATIONS, left Tree, right Tree), or a leaf: (row of LEAVES, a, b)


def draw_problems(name: str, count: int, split: str) -> list[Problem]:
    """The first `count` problems of `split` of the source `name`; meta["tree"] is a Tree. UserError for a bad name."""
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
    """Returns (level, seed) of `calculation:LEVEL` or `calculation:LEVEL:SEED`. Raises UserError for any other name."""
    level, _, seed = name.removeprefix(PREFIX).partition(":")
    if not (level.isdecimal() and int(level) in LEVELS and (seed or "0").isdecimal()) or name.endswith(":"):
        raise UserError(f"--problems={name}: write calculation:LEVEL, with a number of operations from {LEVELS[0]} to "
                        f"{LEVELS[-1]} as LEVEL, or calculation:LEVEL:SEED, with an integer as SEED, to draw others")
    return int(level), int(seed or SEED)


def make_problem(tree: Tree, index: int) -> Problem:
    """Returns the problem "What is TREE?". The answer is an integer or a fraction in lowest terms, such as -7/12."""
    question = f"What is {format_tree(tree)}?"
    return Problem(question, str(evaluate(tree)), question, {"index": index, "tree": tree})


def draw_tree(rng: np.random.Generator, level: int) -> Tree:
    """Returns a random tree of `level` operations whose value is short enough for the graders (`is_short`)."""
    grown = None  # (tree, value)
    while grown is None or not is_short(grown[1]):
        grown = grow_tree(rng, level)
    return grown[0]


def grow_tree(rng: np.random.Generator, level: int) -> Optional[tuple[Tree, Fraction]]:
    """Returns (random tree of `level` operations, its value), or None if a part of the tree divides by zero or exceeds
    LARGEST. A tree of 0 operations is a leaf: a number that one of LEAVES makes from two random integers."""
    if level:
        left = int(rng.integers(level))  # the number of operations in the left side
        pairs = grow_tree(rng, left), grow_tree(rng, level - 1 - left)  # (tree, value) of the left and the right side
        if None in pairs:
            return None
        table = OPERATIONS
        sides, values = zip(*pairs)
    else:
        table = LEAVES
        sides = values = tuple(map(int, rng.integers(0, TOP + 1, 2)))
    name = list(table)[rng.integers(len(table))]
    result = apply_operation(name, values)
    return None if result is None else ((name, *sides), result)


def renumber(rng: np.random.Generator, tree: Tree) -> Tree:
    """Returns `tree` with new random numbers in its leaves, drawn until its value is short enough (`is_short`)."""
    def redraw(part: Tree) -> Tree:
        name, *sides = part
        if name in OPERATIONS:
            return (name, *map(redraw, sides))
        return (name, *map(int, rng.integers(0, TOP + 1, 2)))

    twin = redraw(tree)
    while not is_short(evaluate(twin)):
        twin = redraw(tree)
    return twin


def evaluate(tree: Tree) -> Optional[Fraction]:
    """Returns the tree's exact value, or None if a part of the tree divides by zero or exceeds LARGEST."""
    name, *sides = tree
    values = list(map(evaluate, sides)) if name in OPERATIONS else sides
    return None if None in values else apply_operation(name, values)


def apply_operation(name: str, values: Sequence) -> Optional[Fraction]:
    """Applies OPERATIONS[name] or LEAVES[name] to 2 `values`. None for division by zero and results beyond LARGEST."""
    try:
        result = (OPERATIONS | LEAVES)[name](*values)
    except ZeroDivisionError:
        return None
    return result if abs(result) <= LARGEST else None


def is_short(number: Optional[Fraction]) -> bool:
    """Whether graders can read `number`: it is not None; numerator and denominator have at most MAX_DIGITS digits."""
    return number is not None and max(len(str(abs(number.numerator))), len(str(number.denominator))) <= MAX_DIGITS


def format_tree(tree: Tree, canonical: bool = False) -> str:
    """The expression as text, such as `(3 + (1/2)) * 7^2`, with parentheses around every inner operation. `canonical`
    sorts the sides of + and *, so that trees that differ only in the order of these sides have the same text."""
    name, *sides = tree
    if name in LEAVES:
        return name.format(*sides)
    texts = [format_tree(side, canonical) for side in sides]
    texts = [f"({text})" if side[0] in OPERATIONS else text for side, text in zip(sides, texts)]
    return f" {name} ".join(sorted(texts) if canonical and name in "+*" else texts)
