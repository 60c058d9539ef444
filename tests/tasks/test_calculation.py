"""Random calculations: values by another evaluator, equivalent trees, bounds, and names."""

import ast
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings, strategies as st

from rlvr_jax.errors import UserError
from rlvr_jax.grading import grade
from rlvr_jax.tasks import calculation, prompts

from fixtures import load_problems


def evaluated(node, largest) -> Fraction:
    """The value of a Python syntax tree; the absolute value of each part is appended to `largest`."""
    if isinstance(node, ast.Constant):
        found = Fraction(node.value)
    else:
        a, b = (evaluated(side, largest) for side in (node.left, node.right))
        found = {ast.Add: lambda: a + b, ast.Sub: lambda: a - b, ast.Mult: lambda: a * b, ast.Div: lambda: a / b,
                 ast.Pow: lambda: a ** int(b)}[type(node.op)]()
    largest.append(abs(found))
    return found


def turned(tree: tuple, number: int) -> tuple:
    """The tree with the sides of some + and * exchanged, by the bits of `number`."""
    if tree[0] in calculation.LEAVES:
        return tree
    sides = [turned(side, number // 2) for side in tree[1:]]
    return (tree[0], *(sides[::-1] if number % 2 and tree[0] in "+*" else sides))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 20), st.integers(0, 10**9))
def test_the_answer_is_the_value_of_the_text_by_another_evaluator(level, seed):
    problem, = calculation.draw_problems(f"calculation:{level}:{seed}", 1, "test")
    text, largest = re.fullmatch(r"What is (.*)\?", problem.question)[1], []
    assert Fraction(problem.answer) == evaluated(ast.parse(text.replace("^", "**"), mode="eval").body, largest)
    assert max(largest) <= 10**6
    outer = re.sub(r"\(\d+/\d+\)", "1", text)  # a fraction is a leaf
    assert len(re.findall(r" [-+*/] ", outer)) == level and max(map(int, re.findall(r"\d+", text))) <= 100
    assert grade.is_correct(rf"\boxed{{{problem.answer}}}", problem.answer, "boxed")
    assert grade.is_correct(f"The answer is {problem.answer}.", problem.answer, "lenient")
    assert not grade.is_correct(rf"\boxed{{{Fraction(problem.answer) + 1}}}", problem.answer, "boxed")


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(0, 10**9), st.integers(0, 2**9))
def test_trees_that_are_alike_but_for_the_sides_of_sums_and_products_are_one(level, seed, number):
    tree = calculation.draw_problems(f"calculation:{level}:{seed}", 1, "dev")[0].meta["tree"]
    other = turned(tree, number)
    assert calculation.format_tree(tree, canonical=True) == calculation.format_tree(other, canonical=True)
    assert calculation.evaluate(tree) == calculation.evaluate(other)


def test_a_difference_and_a_quotient_have_an_order():
    one, two = ("{}", 1, 0), ("{}", 2, 0)
    for op, same in {"+": True, "*": True, "-": False, "/": False}.items():
        texts = {calculation.format_tree((op, *sides), canonical=True) for sides in ((one, two), (two, one))}
        assert (len(texts) == 1) == same


def test_no_problem_comes_twice_in_any_split(monkeypatch):
    """With numbers up to 1 there are so few trees that many are drawn twice."""
    monkeypatch.setattr(calculation, "TOP", 1)
    keys = [calculation.format_tree(problem.meta["tree"], canonical=True) for split in calculation.SPLITS
            for problem in calculation.draw_problems("calculation:1", 12, split)]
    assert len(set(keys)) == len(keys) == 36


def test_an_answer_is_no_longer_than_a_number_that_graders_read(monkeypatch):
    monkeypatch.setattr(calculation, "MAX_DIGITS", 3)
    answers = [Fraction(problem.answer) for problem in calculation.draw_problems("calculation:2", 20, "test")]
    assert max(max(abs(answer.numerator), answer.denominator) for answer in answers) <= 999


def test_parts_without_a_value_have_none():
    zero, big = ("{}", 0, 0), ("{}^3", 100, 0)
    assert calculation.evaluate(big) == 10**6 and calculation.evaluate(("+", big, ("{}", 1, 0))) is None
    assert calculation.evaluate(("-", ("*", big, big), ("*", big, big))) is None  # a part is too large
    assert calculation.evaluate(("/", big, zero)) is None and calculation.evaluate(("({}/{})", 1, 0)) is None


def test_a_benchmark_is_the_same_every_time_and_has_a_seed_in_its_name():
    ask = lambda name, **flags: [p.question for p in load_problems(name, None, count=6, **flags)]
    assert ask("calculation:2") == ask("calculation:2", seed=5) == ask("calculation:2:20261127")
    assert ask("calculation:2")[:2] == ["What is (83/37) + ((55/77) * 59^2)?", "What is (69^2 - 48^3) - 34^3?"]
    assert not set(ask("calculation:2")) & set(ask("calculation:2:1") + ask("calculation:2", split="dev"))
    asked = load_problems("calculation:2", None, count=2, instruction="Box it.")
    assert asked[0].prompt == asked[0].question + " Box it." and prompts.is_drawn("calculation:2")


@pytest.mark.parametrize("name", ["calculation:", "calculation:0", "calculation:21", "calculation:x", "calculation:3:",
                                  "calculation:3:-1", "calculation:3:1:2", "calculation:-3"])
def test_a_level_that_is_none_is_said(name):
    with pytest.raises(UserError, match=f"--problems={name}: write calculation:LEVEL, .* from 1 to 20"):
        load_problems(name, None)
