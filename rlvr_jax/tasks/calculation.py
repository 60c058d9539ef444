"""RandomCalculation (arXiv 2507.10532): expressions that no model can have memorised, as plain text.

`--problems=calculation:3` is the benchmark of 3 operations; `calculation:3:7` is another one, drawn from seed 7. The
default seed is the date on which the benchmark was made: models older than that have not seen it. An expression is a
random binary tree of +, -, * and /, whose leaves are n, a/b, n^2 or n^3 of integers from 0 to 100. Values are exact
fractions; an expression that divides by zero or exceeds LARGEST anywhere is drawn again. All problems are different
trees, even after swapping the sides of + and *, and a hash of the tree decides its split.
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
LARGEST = 10**6  # absolute value of any part of an expression
TOP = 100  # largest number in a leaf

LEAVES = {"{}": lambda a, b: Fraction(a), "({}/{})": Fraction, "{}^2": lambda a, b: Fraction(a**2),
          "{}^3": lambda a, b: Fraction(a**3)}
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
Tree = tuple  # (row of OPERATIONS, Tree, Tree), or a leaf: (row of LEAVES, a, b)


def draw_problems(name: str, count: int, split: str) -> list[Problem]:
    """The first `count` problems of a split, with the expression in meta["tree"]. Raises UserError for a bad name."""
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
                        f"to {LEVELS[-1]}; calculation:LEVEL:SEED draws other problems, from an integer seed")
    return int(level), int(seed or SEED)


def make_problem(tree: Tree, index: int) -> Problem:
    """The problem of a tree. Its answer is an integer or a fraction in lowest terms, such as -7/12."""
    question = f"What is {format_tree(tree)}?"
    return Problem(question, str(evaluate(tree)), question, {"index": index, "tree": tree})


def draw_tree(rng: np.random.Generator, level: int) -> Tree:
    """A random tree of `level` operations whose value exists and is short enough for the graders."""
    grown = None
    while grown is None or not is_short(grown[1]):
        grown = grow_tree(rng, level)
    return grown[0]


def grow_tree(rng: np.random.Generator, level: int) -> Optional[tuple[Tree, Fraction]]:
    """A random tree and its value; None as soon as a part has no value."""
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
    """The same tree with other random numbers in its leaves, such that it has a value."""
    def other(part: Tree) -> Tree:
        return (part[0], *(map(other, part[1:]) if part[0] in OPERATIONS else map(int, rng.integers(0, TOP + 1, 2))))

    twin = other(tree)
    while not is_short(evaluate(twin)):
        twin = other(tree)
    return twin


def evaluate(tree: Tree) -> Optional[Fraction]:
    """The tree's value; None if a part has none."""
    name, *sides = tree
    values = list(map(evaluate, sides)) if name in OPERATIONS else sides
    return None if None in values else apply_operation(name, values)


def apply_operation(name: str, values: Sequence) -> Optional[Fraction]:
    """The value of an operation or a leaf; None for a division by zero or a value above LARGEST."""
    try:
        result = (OPERATIONS | LEAVES)[name](*values)
    except ZeroDivisionError:
        return None
    return result if abs(result) <= LARGEST else None


def is_short(number: Optional[Fraction]) -> bool:
    """Whether the graders can read it: they reject longer numbers."""
    return number is not None and max(len(str(abs(number.numerator))), len(str(number.denominator))) <= MAX_DIGITS


def format_tree(tree: Tree, canonical: bool = False) -> str:
    """`(3 + (1/2)) * 7^2`, with parentheses around every inner operation. `canonical` sorts the sides of + and *, so
    that equivalent trees have the same text."""
    name, *sides = tree
    if name in LEAVES:
        return name.format(*sides)
    texts = [format_tree(side, canonical) for side in sides]
    texts = [f"({text})" if side[0] in OPERATIONS else text for side, text in zip(sides, texts)]
    return f" {name} ".join(sorted(texts) if canonical and name in "+*" else texts)
