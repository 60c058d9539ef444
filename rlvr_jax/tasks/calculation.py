"""RandomCalculation (arXiv 2507.10532): random arithmetic expressions, as plain text, that no model can have memorised.

`--problems=calculation:3` has expressions of 3 operations; `calculation:3:7` draws others, from seed 7. The default
seed is the date on which the benchmark was made: older models have not seen it. An expression is a random binary tree
of +, -, * and /, whose leaves are n, a/b, n^2 or n^3 of integers from 0 to 100. Values are exact fractions; a tree with
a division by zero or a value above LARGEST in any part is drawn again. No two problems differ only in the order of the
sides of + and *, and a hash of the tree decides its split.
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
    """The first `count` problems of a split; meta["tree"] is the expression. Raises UserError for a malformed name."""
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
    """(level, seed) of `calculation:LEVEL` or `calculation:LEVEL:SEED`. Raises UserError for any other name."""
    level, _, seed = name.removeprefix(PREFIX).partition(":")
    if not (level.isdecimal() and int(level) in LEVELS and (seed or "0").isdecimal()) or name.endswith(":"):
        raise UserError(f"--problems={name}: calculation:LEVEL has a level, the number of operations, from {LEVELS[0]} "
                        f"to {LEVELS[-1]}; calculation:LEVEL:SEED draws other problems, from an integer seed")
    return int(level), int(seed or SEED)


def make_problem(tree: Tree, index: int) -> Problem:
    """The problem that asks for the value of `tree`. The answer is an integer or a fraction in lowest terms: -7/12."""
    question = f"What is {format_tree(tree)}?"
    return Problem(question, str(evaluate(tree)), question, {"index": index, "tree": tree})


def draw_tree(rng: np.random.Generator, level: int) -> Tree:
    """A random tree of `level` operations whose value exists and is short enough for the graders."""
    grown = None
    while grown is None or not is_short(grown[1]):
        grown = grow_tree(rng, level)
    return grown[0]


def grow_tree(rng: np.random.Generator, level: int) -> Optional[tuple[Tree, Fraction]]:
    """A random tree of `level` operations and its value; None if a part of the tree has none (`apply_operation`)."""
    if level:
        left = int(rng.integers(level))
        parts = grow_tree(rng, left), grow_tree(rng, level - 1 - left)
        if None in parts:
            return None
        (sides, values), table = zip(*parts), OPERATIONS  # a part is a pair of a tree and its value
    else:
        sides = values = tuple(map(int, rng.integers(0, TOP + 1, 2)))
        table = LEAVES
    name = list(table)[rng.integers(len(table))]
    result = apply_operation(name, values)
    return None if result is None else ((name, *sides), result)


def renumber(rng: np.random.Generator, tree: Tree) -> Tree:
    """The same tree with new random numbers in its leaves, redrawn until it has a value that the graders can read."""
    def redraw(part: Tree) -> Tree:
        name, *sides = part
        return (name, *(map(redraw, sides) if name in OPERATIONS else map(int, rng.integers(0, TOP + 1, 2))))

    twin = redraw(tree)
    while not is_short(evaluate(twin)):
        twin = redraw(tree)
    return twin


def evaluate(tree: Tree) -> Optional[Fraction]:
    """The tree's exact value; None if a part of the tree has no value."""
    name, *sides = tree
    values = list(map(evaluate, sides)) if name in OPERATIONS else sides
    return None if None in values else apply_operation(name, values)


def apply_operation(name: str, values: Sequence) -> Optional[Fraction]:
    """The value of a row of OPERATIONS or LEAVES; None if it divides by zero or its absolute value exceeds LARGEST."""
    try:
        result = (OPERATIONS | LEAVES)[name](*values)
    except ZeroDivisionError:
        return None
    return result if abs(result) <= LARGEST else None


def is_short(number: Optional[Fraction]) -> bool:
    """Whether `number` exists and the graders can read it: numerator and denominator have at most MAX_DIGITS digits."""
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
