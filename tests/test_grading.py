"""Grading: exact where it has to be, never hanging, and an equality that deserves the name."""

import threading
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_jax import grading

HOSTILE = {
    "a power of a power": "answer 10**10**10",
    "a power in a box": r"\boxed{10**10**10}",
    "braces 1e5 deep": "\\boxed" + "{" * 100_000 + "7" + "}" * 100_000,
    "braces that never close": "\\boxed{" * 100_000 + "7",
    "nested boxes": "\\boxed{" * 50_000 + "7" + "}" * 50_000,
    "NUL": "answer 7\0",
    "only NUL": "\0" * 1000,
    "1 MB of digits": "answer " + "7" * 1_000_000,
    "1 MB of digits in a box": r"\boxed{" + "7" * 1_000_000 + "}",
    "1 MB of thousands": "7" + ",777" * 250_000,
    "1 MB of commas": "7" + "," * 1_000_000,
    "1 MB of minus signs": "-" * 1_000_000,
    "1 MB of dots": "7" + "." * 1_000_000,
    "1 MB of spaces": "answer" + " " * 1_000_000,
    "1 MB of text": "seven " * 170_000,
    "a huge denominator": r"\boxed{7/" + "9" * 5000 + "}",
    "an exponent": r"\boxed{7e999999999}",
    "zero denominator": r"\boxed{7/0}",
    "empty": "",
    "lone surrogate": "answer \ud800",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("answer_format", grading.EXTRACTORS)
def test_hostile_completions_are_wrong_and_over_soon(name, answer_format):
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(grading.correct(HOSTILE[name], "12345", answer_format)),
                              daemon=True)
    thread.start()
    thread.join(20)  # linear time takes well under a second of it
    assert verdicts == [False]


@pytest.mark.parametrize("text, expected", [
    ("think + 5 12 answer 12", "12"), ("answer 3 answer 12", "12"), ("answer 12 so", None), ("answer", None), ("", None),
    ("12", None), ("the answer is 12", None), ("  answer\n\t12  ", "12"), ("x" * 500 + " answer 12", "12"),
])
def test_after_answer(text, expected):
    assert grading.after_answer(text) == expected


@pytest.mark.parametrize("text, expected", [
    (r"so \boxed{12}.", "12"), (r"\boxed{1} and \boxed{2}", "2"), (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"), (r"\boxed{}", ""),
    (r"\boxed{1", None), (r"\boxed{1} then \boxed{2", None), (r"\boxed 5", None), (r"\fbox{5}", None), ("5", None),
    (r"\boxed{\text{a}}}", r"\text{a}"),
])
def test_last_boxed(text, expected):
    assert grading.last_boxed(text) == expected


@pytest.mark.parametrize("text, expected", [
    ("3 apples and 4 pears", "4"), ("it costs $1,234.50.", "1234.50"), ("1,234,567", "1234567"), ("-5 degrees", "-5"),
    ("the pairs 1,2,3", "3"), ("1,2345", "2345"), ("0.5", "0.5"), (".5", ".5"), ("3.", "3"), ("10, 20", "20"), ("none", None),
    ("version 2.0.1", ".1"),
])
def test_last_number(text, expected):
    assert grading.last_number(text) == expected


@pytest.mark.parametrize("a, b, same", [
    ("12", "12", True), ("12", "12.0", True), ("0.5", "1/2", True), ("2/4", "1/2", True), ("-.5", "-1/2", True),
    ("1,234", "1234", True), ("$5$", "5", True), ("$5$.", "5", True), ("5 .", "5", True), (" x + 1 ", "x+1", True),
    ("+7", "7", True), ("007", "7", True), ("0.1", "0.10000000000000000555", False), ("1/3", "0.3333333333", False),
    ("12", "13", False), ("x", "y", False), ("", "", False), ("$", "$", False), ("1/0", "1/0", True), ("1/0", "2/0", False),
    ("2**3", "8", False), ("1e3", "1000", False), ("inf", "1", False), ("nan", "nan", True), ("x" * 10_001, "x" * 10_001, False),
])
def test_equal(a, b, same):
    assert grading.equal(a, b) is same and grading.equal(b, a) is same


def test_no_answer_equals_nothing():
    assert not grading.equal(None, "None") and not grading.equal(None, "")


fractions = st.fractions(max_denominator=10**6).filter(lambda x: abs(x.numerator) < 10**12)
answers = st.one_of(st.text(max_size=50), st.text("0123456789+-./,$ ", max_size=50), fractions.map(str))


@given(fractions)
def test_value_reads_fractions_exactly(x):
    assert grading.value(f"{x.numerator}/{x.denominator}") == x


@given(st.integers(-10**15, 10**15), st.integers(0, 12))
def test_value_reads_decimals_exactly(digits, places):
    whole, rest = divmod(abs(digits), 10**places)
    text = ("-" if digits < 0 else "") + str(whole) + (f".{rest:0{places}d}" if places else "")
    assert grading.value(text) == Fraction(digits, 10**places)


@given(fractions, fractions)
def test_numbers_are_equal_exactly_when_their_values_are(x, y):
    assert grading.equal(str(x), str(y)) == (x == y)


@given(answers)
def test_normalise_is_idempotent_and_equality_reflexive(text):
    once = grading.normalise(text)
    assert grading.normalise(once) == once
    assert grading.equal(text, text) == (once != "") and grading.equal(text, once) == (once != "")


@given(answers, answers)
def test_equality_is_symmetric(a, b):
    assert grading.equal(a, b) == grading.equal(b, a)


@given(st.text(max_size=200), st.integers(-10**9, 10**9))
def test_every_format_finds_the_answer_at_the_end(text, number):
    ends = {"answer": f" answer {number}", "boxed": rf" \boxed{{{number}}}", "last_number": f" {number}"}
    for answer_format, end in ends.items():
        assert grading.correct(text + end, str(number), answer_format)
        assert not grading.correct(text + end, str(number + 1), answer_format)


@given(st.text())
def test_any_text_can_be_graded(text):
    for answer_format in grading.EXTRACTORS:
        assert grading.correct(text, "12345", answer_format) in (True, False)
