"""Grading: exact where it has to be, never hanging, and an equality that deserves the name."""

import functools
import json
import random
import threading
import time
from fractions import Fraction

import pytest
from hypothesis import example, given, settings, strategies as st

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import regrade
from rlvr_jax.evaluation.regrade import GradeConfig
from rlvr_jax.grading import extract, grade, graders, mathematics, workers
from rlvr_jax.grading.child import Question

from fixtures import read_jsonl, run
from golden.distortions import OTHER, SAME, distorted
from golden.graders import GOLDEN, MEASURED, PAGE, render

HOSTILE = {
    "a power of a power": "answer 10**10**10", "a power in a box": r"\boxed{10**10**10}",
    "a tower in a box": r"\boxed{9^{9^{9^{9}}}}", "a tower announced": r"The answer is $9^{9^{9^{9}}}x$.",
    "a tower in a tag": r"<answer>9^{9^{9^{9}}}y</answer>",
    "braces 1e5 deep": "\\boxed" + "{" * 100_000 + "7" + "}" * 100_000,
    "roots 100 deep": r"\boxed{" + r"\sqrt{" * 100 + "x" + "}" * 100 + "}",
    "braces that never close": "\\boxed{" * 100_000 + "7", "nested boxes": "\\boxed{" * 50_000 + "7" + "}" * 50_000,
    "NUL": "answer 7\0", "NUL in a box": "\\boxed{x\0}", "only NUL": "\0" * 1000,
    "1 MB of digits": "answer " + "7" * 1_000_000, "1 MB of digits in a box": r"\boxed{" + "7" * 1_000_000 + "}",
    "1 MB of thousands": "7" + ",777" * 250_000, "1 MB of commas": "7" + "," * 1_000_000,
    "1 MB of minus signs": "-" * 1_000_000, "1 MB of dots": "7" + "." * 1_000_000,
    "1 MB of spaces": "answer" + " " * 1_000_000, "1 MB of text": "seven " * 170_000,
    "1 MB of announcements": "the answer is " * 70_000, "1 MB of tags": "<answer>" * 125_000,
    "a huge denominator": r"\boxed{7/" + "9" * 5000 + "}", "an exponent": r"\boxed{7e999999999}",
    "zero denominator": r"\boxed{7/0}", "empty": "", "empty box": r"\boxed{}", "lone surrogate": "answer \ud800",
    "lone surrogate in a box": "\\boxed{x+\ud800}"}


@pytest.mark.parametrize("answer_format, grader", [*((name, "math") for name in extract.EXTRACTORS),
                                                   ("boxed", "original")])
def test_hostile_completions_are_wrong_and_over_soon(answer_format, grader):
    verdicts = []

    def work():
        verdicts.extend(grade.grade_texts([*HOSTILE.values()], ["12345.5"] * len(HOSTILE), answer_format, grader))

    thread = threading.Thread(target=work, daemon=True)  # verdicts must not depend on the main thread
    thread.start()
    thread.join(300)  # some take CPU_SECONDS
    assert [verdict.correct for verdict in verdicts] == [False] * len(HOSTILE)
    late = {name for name, verdict in zip(HOSTILE, verdicts) if verdict.timed_out}
    assert ("a tower in a box" in late) == (answer_format in ("boxed", "lenient") and grader == "math")


LONG = {
    "braces": "{" * 490 + "x+7" + "}" * 490, "open braces": "{" * 1000, "tuples": "(x," * 250 + "7" + ")" * 200,
    "sets": r"\{x,1" * 100 + r"\}" * 100, "matrices": r"\begin{pmatrix}1&" * 40 + r"\end{pmatrix}" * 20,
    "roots": r"\sqrt{" * 140 + "x" + "}" * 140, "fractions": r"\frac1" * 160, "a list": "x,y,z," * 160,
    "signs": "+-" * 500, "words and a sign": "5" + "a" * 990 + "!", "units": "5" + " cm" * 300 + "!",
    "texts": r"5\text{a}" * 100 + "!", "names": "x=" * 500, "plus-minus": r"\pm" * 300, "unions": r"(1,2)\cup" * 110,
    "spaces": "5 " * 500, "digits": "7" * 1000, "points": "1." * 500, "thousands": "1" + ",777" * 249,
    "quotes": "'" * 1000, "macros": "\\" * 1000, "dollars": "$" * 1000, "ands": " and " * 200,
    "repeating": r".1\overline{2}" * 70, "approx": r"x\approx" * 110, "powers": "x^{" * 330}


@pytest.mark.parametrize("grader", graders.GRADERS)
def test_no_text_is_slow_to_read(grader):
    """Without a child: as given and as reference, against a number, a set, itself, and itself with another end. None of
    them is the number or the set, though computer algebra may be needed to say so, and each is itself."""
    same = functools.partial(grade.decide_at_once, grader)
    for name, text in LONG.items():
        assert len(text) <= grade.MAX_LENGTH, name
        start = time.process_time()
        for other in ("12.5", "x,y"):
            assert same(text, other) is not True and same(other, text) is not True
        nothing = (grader, name) == ("math", "dollars")  # no answer is left of it
        assert same(text, text) is not nothing, name
        for pair in ((text, text[:-1] + "0"), (text[:-1] + "0", text)):
            same(*pair)
        assert time.process_time() - start < 1, name


# ----- where the answer is

EXTRACTED = {
    "answer": [
        ("think + 5 12 answer 12", "12"), ("answer 3 answer 12", "12"), ("answer 12 so", None), ("answer", None),
        ("", None), ("12", None), ("the answer is 12", None), ("  answer\n\t12  ", "12"),
        ("x" * 500 + " answer 12", "12")],
    "boxed": [
        (r"so \boxed{12}.", "12"), (r"\boxed{1} and \boxed{2}", "2"), (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{}", ""), (r"\boxed{1", None), (r"\boxed{1} then \boxed{2", None), (r"\boxed 5", None),
        (r"\fbox{5}", None), ("5", None), (r"\boxed{\text{a}}}", r"\text{a}"), (r"\boxed{\{1,2\}}", r"\{1,2\}")],
    "last_number": [
        ("3 apples and 4 pears", "4"), ("it costs $1,234.50.", "1234.50"), ("1,234,567", "1234567"),
        ("-5 degrees", "-5"), ("the pairs 1,2,3", "3"), ("1,2345", "2345"), ("0.5", "0.5"), (".5", ".5"), ("3.", "3"),
        ("10, 20", "20"), ("none", None), ("version 2.0.1", ".1")],
    "tag": [
        ("<think>3</think><answer> 12 </answer>", "12"), ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<answer>1</answer> no, <answer>2", None), ("<answer>1", None), ("1</answer>", None), ("12", None), ("", None),
        (r"<answer>\boxed{5}</answer>", r"\boxed{5}"), ("<answer></answer>", "")],
    "lenient": [
        (r"The answer is 3. So \boxed{12}. I used 7 steps.", "12"), ("The answer is 12.", "12"),
        ("the answer is: 12", "12"), ("Final answer is 3.5. 7", "3.5"),
        (r"The answer is 3. No, the final answer is $\frac{1}{2}$. Done 7.", r"$\frac{1}{2}$"),
        ("The Answer Is\n\n12 miles\nand 7 more", "12 miles"), ("The answer is x = 5", "x = 5"),
        ("I get 3, then 12.", "12"), (r"The answer is 3. \boxed{4", "3"), (r"it is 3 \boxed{", "3"),
        ("the answer is", None), ("the answer is\n", None), ("7 is what the answer is", "7"), ("none", None),
        ("", None), (r"\boxed{}", "")]}


@pytest.mark.parametrize("answer_format, text, expected", [
    (name, *case) for name, cases in EXTRACTED.items() for case in cases])
def test_where_each_format_finds_the_answer(answer_format, text, expected):
    assert extract.EXTRACTORS[answer_format](text) == expected


def test_the_original_looks_into_the_last_box_alone():
    for text, right in ((r"\boxed{12.8}", True), ("The answer is 12.8", False), (r"\boxed{12.8} ... \boxed{4}", False),
                        (r"\boxed{12.8} \boxed{4", False), (r"\boxed{12.8} or \boxed 5", False), (r"\boxed{}", False),
                        (r"\boxed{4} \boxed{12.8}", True), ("<answer>12.8</answer>", False)):
        for answer_format in extract.EXTRACTORS:
            assert grade.is_correct(text, "12.8", answer_format, "original") is right
    assert grade.is_correct("The answer is 12.8", "12.8", "lenient")
    assert all(grade.is_correct(r"\boxed{2\sqrt{3}}", r"\sqrt{12}", name, "original") for name in extract.EXTRACTORS)


# ----- which answers are equal

def equal(given, answer: str, grader: str = "math") -> bool:
    question = Question(grader, given, answer)
    return grade.decide_questions([question])[question]


def same_at_once(given: str, answer: str):
    """The verdict of the mathematical grader, with "no" for what it would ask of computer algebra."""
    return mathematics.same(given, answer, lambda *_: False)


@pytest.mark.parametrize("grader, column", [("math", 2), ("original", 3)])
def test_every_pair_of_the_table(grader, column):
    for answer in {pair[1] for pair in GOLDEN["pairs"]}:  # one call for all answers to a reference, as for a group
        rows = [pair for pair in GOLDEN["pairs"] if pair[1] == answer]
        verdicts = grade.grade_texts([rf"\boxed{{{row[0]}}}" for row in rows], [answer] * len(rows), "boxed", grader)
        assert [(row[0], answer, verdict.correct) for row, verdict in zip(rows, verdicts)] == [
            (row[0], answer, row[column]) for row in rows]
        assert not any(verdict.timed_out for verdict in verdicts)


def test_the_page_of_differences_is_the_table():
    assert PAGE.read_text("utf-8") == render(GOLDEN, json.loads(MEASURED.read_text("utf-8")))


@pytest.mark.parametrize("a, b, same", [
    ("12", "12", True), ("12", "12.0", True), ("0.5", "1/2", True), ("2/4", "1/2", True), ("-.5", "-1/2", True),
    ("1,234", "1234", True), ("$5$", "5", True), ("$5$.", "5", True), ("5 .", "5", True), (" x + 1 ", "x+1", True),
    ("+7", "7", True), ("007", "7", True), ("0.1", "0.10000000000000000555", False), ("1/3", "0.3333333333", False),
    ("12", "13", False), ("x", "y", False), ("", "", False), ("$", "$", False), ("1/0", "1/0", True),
    ("1/0", "2/0", False), ("1e3", "1000", True), ("inf", "1", False), ("nan", "nan", True),
    ("x" * 10_001, "x" * 10_001, False),
    ("0" * 998 + "12", "12", True), ("0" * 999 + "12", "12", False),  # a limit of 1000 characters on either side
    ("7" * 500, "7" * 500, True), ("7" * 500, "7" * 499 + "8", False), (r"\text{}", "", False)])
def test_equal(a, b, same):
    assert equal(a, b) is same and equal(b, a) is same


@pytest.mark.parametrize("grader", graders.GRADERS)
def test_no_answer_equals_nothing(grader):
    assert not equal(None, "None", grader) and not equal(None, "", grader)


fractions = st.fractions(max_denominator=10**6).filter(lambda x: abs(x.numerator) < 10**12)
answers = st.one_of(st.text(max_size=50), st.text("0123456789+-./,$ ", max_size=50), fractions.map(str),
                    st.text(r"12x{}()[],\=% ", max_size=30))


def value(text: str):
    return mathematics.read_number(mathematics.normalise(text))


@given(fractions)
def test_value_reads_fractions_exactly(x):
    for text in (f"{x.numerator}/{x.denominator}", rf"\frac{{{x.numerator}}}{{{x.denominator}}}"):
        assert value(text) == x


@given(st.integers(-10**15, 10**15), st.integers(0, 12))
def test_value_reads_decimals_exactly(digits, places):
    whole, rest = divmod(abs(digits), 10**places)
    text = ("-" if digits < 0 else "") + str(whole) + (f".{rest:0{places}d}" if places else "")
    assert value(text) == Fraction(digits, 10**places)


@given(st.integers(0, 999), st.integers(1, 99), st.integers(1, 99))
def test_mixed_numbers_are_sums(whole, above, below):
    for text in (rf"{whole}\frac{{{above}}}{{{below}}}", f"{whole} {above}/{below}"):
        assert value(text) == whole + Fraction(above, below) == -value("-" + text)


@given(fractions, fractions)
def test_numbers_are_equal_exactly_when_their_values_are(x, y):
    assert equal(str(x), str(y)) == (x == y)


@given(answers)
def test_equality_is_reflexive(text):
    assert same_at_once(text, text) is (mathematics.normalise(text) != "")


@given(answers, answers)
@example("<,", "0,0000")  # an empty element equals no number, on either side
def test_equality_is_symmetric(a, b):
    assert same_at_once(a, b) == same_at_once(b, a)


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=8), st.randoms())
def test_a_set_has_no_order_and_a_tuple_has(numbers, random):
    shuffled = random.sample(numbers, len(numbers))
    text, other = ", ".join(map(str, numbers)), ", ".join(map(str, shuffled))
    assert same_at_once(other, text) and same_at_once(rf"\{{{other}\}}", text)
    assert same_at_once(f"({other})", f"({text})") == (shuffled == numbers)
    assert not same_at_once(f"{other}, 100", text)


@given(st.text(max_size=200), st.integers(-10**9, 10**9))
def test_every_format_finds_the_answer_at_the_end(text, number):
    ends = {"answer": f" answer {number}", "boxed": rf" \boxed{{{number}}}", "last_number": f" {number}",
            "tag": f"<answer>{number}</answer>", "lenient": f" the answer is {number}."}
    assert ends.keys() == extract.EXTRACTORS.keys()
    for answer_format, end in ends.items():
        assert grade.is_correct(text + end, str(number), answer_format)
        assert not grade.is_correct(text + end, str(number + 1), answer_format)


@given(st.text())
def test_any_text_is_graded_and_wrong_unless_it_has_the_digits(text):
    for answer_format in extract.EXTRACTORS:
        assert not grade.is_correct(text, "12345", answer_format) or sum(map(str.isnumeric, text)) >= 5


@settings(max_examples=30, deadline=None)
@given(answers, answers)
def test_the_original_reads_any_text(a, b):
    """Spaces around a text change no verdict, a text equals itself, and no text equals a number it does not contain."""
    assert equal(f" {a} ", f" {b} ", "original") is equal(a, b, "original")
    assert equal(a, a, "original")
    for pair in ((a, "98765"), ("98765", a)):
        assert not equal(*pair, "original") or sum(map(str.isnumeric, a)) >= 5


def test_a_pair_is_asked_once_and_only_if_need_be(monkeypatch):
    """After a timeout it is asked again at the next call."""
    asked = []
    monkeypatch.setattr(workers.POOL, "ask", lambda question: asked.append(question) or (
        None if late and question.given == "q^q" else question.given in ("q+q", "q^q")))
    texts = [rf"\boxed{{{given}}}" for given in ("q+q", "2q", "3", "q+q", "q^q", "q+q")] + ["nothing"]
    for late, times in ((True, 1), (True, 2), (False, 3), (False, 3)):
        verdicts = grade.grade_texts(texts, ["2q"] * 5 + ["3q", "2q"], "boxed")
        assert sorted(question.given for question in asked) == ["3", "q+q", "q+q"] + ["q^q"] * times
        assert len(set(asked)) == 4
        assert [(verdict.correct, verdict.extracted, verdict.timed_out) for verdict in verdicts] == [
            (True, "q+q", False), (True, "2q", False), (False, "3", False), (True, "q+q", False),
            (not late, "q^q", late), (True, "q+q", False), (False, None, False)]
    asked.clear()
    assert not grade.is_correct("answer q+q+q", "3q", "answer") and not asked  # integers and nothing else


def test_a_text_that_is_too_long_is_not_remembered():
    before = grade._compare_without_child.cache_info().currsize
    assert not grade.is_correct(r"\boxed{" + "7" * 10_000 + "}", "7", "boxed")
    after = grade._compare_without_child.cache_info()
    assert after.currsize == before < after.maxsize


def test_a_report_can_name_the_grader():
    import importlib.metadata
    math, sympy = (importlib.metadata.version(name) for name in ("math-verify", "sympy"))
    assert grade.describe_grader("lenient", "math") == f"lenient / math (math-verify {math})"
    assert grade.describe_grader("lenient", "original") == f"boxed / original (sympy {sympy})"
    assert grade.describe_grader("answer", "math") == "answer / math"


def test_simple_answers_are_graded_a_thousand_a_second():
    given = ["12.8", r"\frac{64}{5}", "-3", "1,234", r"12\frac{4}{5}", "12.8 miles per hour", "V = 12.8", r"\$12.8",
             "13", "(1, 2)"]
    texts = [f"Step {i}: we find {i} and so on, and then some more words. " * 20 + rf"\boxed{{{given[i % 10]}}}"
             for i in range(2000)]
    start = time.process_time()
    verdicts = grade.grade_texts(texts, [f"12.{i % 97}" for i in range(2000)], "lenient")
    assert 2000 / (time.process_time() - start) > 1000
    assert not any(verdict.timed_out for verdict in verdicts) and any(verdict.correct for verdict in verdicts)


# ----- real answers

@pytest.fixture
def math500(data) -> list[dict]:
    return read_jsonl(data / "eval" / "math500.jsonl")


@pytest.mark.parametrize("answer_format", ["boxed", "lenient"])
@pytest.mark.parametrize("grader", graders.GRADERS)
def test_every_reference_solution_is_right(math500, answer_format, grader):
    solutions, answers = ([row[key] for row in math500] for key in ("solution", "answer"))
    verdicts = grade.grade_texts(solutions, answers, answer_format, grader)
    assert len(verdicts) == 500
    assert [answer for answer, verdict in zip(answers, verdicts) if not verdict.correct] == []


def test_rewritten_references_are_right_and_changed_ones_wrong(math500):
    """Every rule of the distortions, on every reference that it applies to."""
    given, answers, wanted, rules = zip(*distorted([row["answer"] for row in math500]))
    assert len(given) > 3000 and len(set(rules)) == len(SAME | OTHER)
    verdicts = grade.grade_texts([rf"\boxed{{{text}}}" for text in given], answers, "boxed")
    assert [(text, answer, rule) for text, answer, want, rule, verdict in zip(given, answers, wanted, rules, verdicts)
            if verdict.correct != want] == []


def test_shuffled_references_are_wrong_as_math_verify_says(math500):
    """Compared with Math-Verify on the bare texts; it drops the base of 40_9, so pairs with a base are left out."""
    math_verify = pytest.importorskip("math_verify", reason="pip install -e '.[real]'")
    references = [row["answer"] for row in math500]
    others = random.Random(0).sample(references, len(references))
    verdicts = grade.grade_texts([rf"\boxed{{{other}}}" for other in others], references, "boxed")
    config = [math_verify.LatexExtractionConfig()]
    parsed = {text: math_verify.parse(f"${text}$", config, parsing_timeout=None) for text in references}
    direct = [math_verify.verify(parsed[answer], parsed[other], timeout_seconds=None)
              for other, answer in zip(others, references)]
    different = [(other, answer) for other, answer, verdict, expected in zip(others, references, verdicts, direct)
                 if verdict.correct != expected and "_" not in other + answer]
    assert different == [] and sum(verdict.correct for verdict in verdicts) < 10
    assert all(math_verify.verify(parsed[text], parsed[text], timeout_seconds=None) for text in set(references))


# ----- graded again

ROWS = [{"completion": r"so \boxed{12.80}", "answer": "12.8", "prompt": "p", "problem": 3},
        {"completion": "The answer is 64/5.", "answer": 12.8},
        {"completion": r"\boxed{\sqrt{8}}", "answer": r"2\sqrt{2}"},
        {"completion": "é \ud800 no", "answer": "12.8", "correct": True}]


def write(path, *lines) -> str:
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return str(path)


def test_rows_are_graded_and_kept(tmp_path):
    path = write(tmp_path / "c.jsonl", *(json.dumps(row).encode() + b"\n\n" for row in ROWS))
    found = regrade.regrade(GradeConfig(completions=path, out=str(tmp_path / "deep" / "g.jsonl")))
    graded = [json.loads(line) for line in (tmp_path / "deep" / "g.jsonl").read_text("utf-8").splitlines()]
    by = grade.describe_grader("lenient", "math")
    found_in = zip(ROWS, (True, True, True, False), ("12.80", "64/5", r"\sqrt{8}", None))
    assert graded == [row | {"correct": right, "extracted": text, "graded_by": by, "timed_out": False}
                      for row, right, text in found_in]
    assert (found["n"], found["correct"], found["timed_out"], found["graded_by"]) == (4, 3, 0, by)
    again = regrade.regrade(GradeConfig(completions=path, out=path, grader="original"))  # onto the file itself
    assert again["correct"] == 2 and read_jsonl(path)[1]["correct"] is False


@pytest.mark.parametrize("content, says", [
    (b"", "holds no completions"), (b'{"completion": "a", "answer": 1}\nnot json\n', "line 2: not JSON"),
    (b"\xff\xfe", "line 1: not JSON"), (b"[" * 100_000, "line 1: not JSON"), (b"7", "line 1: needs .* it has int"),
    (b'{"completion": "a"}', "line 1: needs a completion .* and an answer .*; it has completion"),
    *((b'{"completion": "a", "answer": %b}' % answer, "line 1: needs") for answer in (b"null", b"true", b'["1"]')),
    (b'{"completion": 7, "answer": 7}', "line 1: needs"),
    (b'\n\n{"text": "a", "answer": 7}', "line 3: needs .* it has text, answer")])
def test_what_is_no_file_of_completions_is_refused_with_its_line(tmp_path, content, says):
    path = write(tmp_path / "c.jsonl", content)
    with pytest.raises(UserError, match=rf"c\.jsonl.*{says}"):
        regrade.regrade(GradeConfig(completions=path, out=str(tmp_path / "g.jsonl")))
    assert not (tmp_path / "g.jsonl").exists()


def test_missing_files_are_named(tmp_path):
    nowhere = {"completions": str(tmp_path / "nowhere.jsonl"), "out": "g.jsonl"}
    for flags, says in ((nowhere, "--completions=.*nowhere.jsonl: no such file"),
                        ({"out": "g"}, "--completions=: no such file"), ({"completions": "c"}, "--out is required")):
        with pytest.raises(UserError, match=says):
            regrade.regrade(GradeConfig(**flags))


def test_the_command(tmp_path, compiled):
    path, out = write(tmp_path / "c.jsonl", *(json.dumps(row).encode() + b"\n" for row in ROWS)), tmp_path / "g.jsonl"
    printed = run("grade", f"--completions={path}", f"--out={out}", "--answer_format=boxed", compiled=compiled,
                  expect=0).out
    assert "0.500 correct (2 of 4), graded by boxed / math" in printed and "0 timed out" in printed
    assert "answers/s" in printed and [row["correct"] for row in read_jsonl(out)] == [True, False, True, False]
