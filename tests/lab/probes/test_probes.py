"""Probes of kept completions: numbers counted by hand, twins, parts of questions, what the command writes."""

import functools
import itertools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.benchmarks import EvaluateConfig, evaluate
from rlvr_jax.lab.probes import (
    calibration, coherence, contamination, equations, memorisation, page, probe, rouge, rows, twins)
from rlvr_jax.records import Problem
from rlvr_jax.tasks import calculation, families
from rlvr_jax.training.train import TrainConfig, train

from fixtures import CALC, HOSTILE, PROBED, PROOF, as_any_probe, kept_completions, read_jsonl, write_jsonl
from golden import rouge as asked_rouge

EARLY, LUCK = "think + 4 7 answer 7", "think + 4 7 + 2 9 answer 9"
GUESS, BROKEN = "answer 9", "think + 4 maybe answer 9"


# ----- likeness

def test_rouge_l_of_the_sheet():
    text, reference = ("the area of the sail times the cube of wind velocity",
                       "the area of the sail and the cube of the wind velocity")
    assert rouge.longest_common(text.split(), reference.split()) == 10
    assert rouge.rouge_l(text, reference) == pytest.approx(0.869565, abs=1e-6)


def test_rouge_l_is_the_librarys_on_500_pairs():
    """tests/golden/rouge.py asked it."""
    wanted = json.loads(asked_rouge.PATH.read_text())["f1"]
    found = [rouge.rouge_l(text, reference) for reference, text in asked_rouge.pairs()]
    assert len(wanted) == 500 and found == pytest.approx(wanted, abs=1e-8)
    assert 0.0 in wanted and 1.0 in wanted and len(set(wanted)) > 100


@settings(deadline=None)
@given(*2 * [st.lists(st.sampled_from("abc"), max_size=9)])
def test_the_longest_common_subsequence_is_that_of_the_definition(a, b):
    @functools.cache
    def longest(i, j):
        if i == len(a) or j == len(b):
            return 0
        return 1 + longest(i + 1, j + 1) if a[i] == b[j] else max(longest(i + 1, j), longest(i, j + 1))

    assert rouge.longest_common(a, b) == longest(0, 0)


@given(st.text(), st.text())
def test_any_text_has_a_likeness(a, b):
    assert 0 <= rouge.rouge_l(a, b) <= 1 and rouge.rouge_l(a, a) in (0, 1) and rouge.same_words(f" {a}\n", a)


# ----- equations

@pytest.mark.parametrize("text, expected", [
    ("He has 3 * 4 = 12 apples, so 12 - 5 = 8.", [("3 * 4 = 12", True), ("12 - 5 = 8", False)]),
    ("$1,200 / 4 = $300 and <<0.5*6=3>>3", [("$1,200 / 4 = $300", True), ("0.5*6=3", True)]),
    (r"3 \times 4 = 12, 12 ÷ 5 = 2.4, 2 − 5 = -3",
     [("3 * 4 = 12", True), ("12 / 5 = 2.4", True), ("2 - 5 = -3", True)]),
    ("2 + 3 + 4 = 9; 2 * 3 = 4 + 2; 10 -5 + 3 = 8; x -5 + 3 = 1; (2 + 3) * 4 = 20", []),  # parts of something longer
    ("20% * 5 = 1, 2 + 3 = 50%, 3 apples + 4 apples = 7, 1/2 + 1/3 = 5/6, a = 5", []),
    ("-5 + 3 = -2, total: (0.1 + 0.2 = 0.3)", [("-5 + 3 = -2", True), ("0.1 + 0.2 = 0.3", True)]),
    ("1 / 0 = 7", [("1 / 0 = 7", False)]), ("12345678901234567890 + 1 = 2", [])])
def test_equations_are_found_and_checked(text, expected):
    assert [(one.text, one.holds) for one in equations.equations(text)] == expected


def test_a_rounded_value_is_told_apart():
    found = equations.equations("10 / 3 = 3.33. 10 / 3 = 3.34, 10 / 3 = 3; 10/4=2.5")
    assert [(one.holds, one.rounded) for one in found] == [(False, True), (False, False), (False, False), (True, False)]


@settings(deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from("1 23 4.5 $ , + - * / = ( ) \\times % x".split())).map(" ".join)))
def test_garbage_has_equations_or_none(text):
    for one in equations.equations(text):
        assert not (one.holds and one.rounded)


def test_a_long_text_of_digits_is_read_in_no_time():
    assert len(equations.equations("1+1=2;" * 10**6)) < 10**4 and not equations.equations("1" * 10**6 + "+" * 10**6)


# ----- coherence

def test_a_summary_counts_traces():
    found = coherence.find({"run": kept_completions(PROOF, PROOF, CALC, EARLY, LUCK, GUESS, BROKEN, "hmm river")})
    one = found.record["files"]["run"]["traces"]
    assert {cell: n for cell, n in one["cells"].items() if n} == {
        "111": 2, "010": 1, "100": 1, "101": 1, "001": 2, "000": 1}
    shares = {key: (one[key]["value"], one[key]["n"]) for key in coherence.SHOWN}
    assert shares == {"with_steps": (6 / 8, 8), "coherent": (4 / 8, 8), "valid": (3 / 8, 8), "right": (5 / 8, 8),
                      "coherent_of_shown": (4 / 6, 6), "valid_of_shown": (3 / 6, 6), "valid_if_coherent": (2 / 4, 4),
                      "right_if_both": (1.0, 2)}
    assert one["steps"] == (3 + 3 + 3 + 1 + 2 + 1) / 8 and one["wrong_steps_per_100"] == pytest.approx(100 * 2 / 13)
    assert one["errors"] == {"empty": {"1": 2}, "format": {"1": 1}, "calc": {"2": 1}, "plan": {"2": 2}}
    assert one["by_steps"]["1"] == {"n": 2, "coherent": 0.5, "valid": 0.0} and list(one["by_steps"]) == list("0123")
    assert [item["errors"] for item in found.items[2:4]] == [[("calc", 1)], [("plan", 1)]]
    assert "| calc: a op b is not what the step says | 1 | 2: 1 |" in found.page


def test_a_step_with_two_errors_is_one_wrong_step():
    errors = [(coherence.UNSOUND[0], 1), (coherence.UNSOUND[1], 1), (coherence.UNSOUND[0], 2)]
    judgement = SimpleNamespace(errors=errors, coherent=False, valid=False, right=False)
    row, = kept_completions(PROOF)
    found = coherence.summary([SimpleNamespace(row=row, judgement=judgement, steps=4, cell="000")])
    assert found["wrong_steps_per_100"] == 100 * 2 / 4


def test_two_files_are_split_by_who_was_right():
    before, after = kept_completions(GUESS, CALC, EARLY, PROOF), kept_completions(PROOF, PROOF, LUCK, CALC)
    split = coherence.find({"base": before, "after": after}).record["before_after"]
    assert {cell: one["n"] for cell, one in split.items()} == {"00": 0, "01": 2, "10": 1, "11": 1}
    gained = split["01"]
    assert [gained[key]["value"] for key in ("coherent_before", "valid_before", "coherent_after", "valid_after")] == [
        0.5, 0.5, 1.0, 0.5]
    assert split["10"]["coherent_after"]["value"] == 0 and split["00"]["valid_after"]["value"] is None
    with pytest.raises(UserError, match="not of the same problems"):
        coherence.find({"base": before, "after": after[:3]})


def test_lengths_are_matched_by_drawing_from_traces_of_the_same_length():
    """Drawn: for each trace after, any trace before with as many steps, so each coherent share is a mean of draws."""
    before = [PROOF, CALC, CALC, EARLY, BROKEN, GUESS, "hmm river", LUCK]
    after = [PROOF, PROOF, CALC, PROOF, EARLY, EARLY, BROKEN, GUESS]
    one = coherence.find({"a": kept_completions(*before), "b": kept_completions(*after)})
    by_length = {3: [(1, 1), (0, 1), (0, 1)], 1: [(1, 0), (0, 0)], 0: [(0, 0), (0, 0)]}  # coherent, valid; before
    draws = [by_length[steps] for steps in (3, 3, 3, 3, 1, 1, 1, 0)]
    wanted = [sum(sum(trace[i] for trace in pool) / len(pool) for pool in draws) / 8 for i in (0, 1)]
    matched = one.record["length_matched"]
    assert [matched[f"{name}_before"] for name in ("coherent", "valid")] == pytest.approx(wanted)
    assert (matched["coherent_after"], matched["valid_after"], matched["covered"]) == (5 / 8, 4 / 8, 1.0)
    assert f"| {wanted[0]:.3f} | {wanted[1]:.3f} | 0.625 | 0.500 |" in one.page


def test_lengths_that_one_side_has_alone_are_left_out():
    matched = lambda before, after: coherence.find(
        {"a": kept_completions(*before), "b": kept_completions(*after)}).record["length_matched"]
    assert matched([GUESS, EARLY, CALC], [PROOF, PROOF, LUCK]) == {
        "covered": 2 / 3, "coherent_before": 0, "coherent_after": 1, "valid_before": 1, "valid_after": 1}
    assert matched([GUESS, EARLY], [PROOF, PROOF]) == {
        "covered": 0, "coherent_before": None, "coherent_after": None, "valid_before": None, "valid_after": None}


def test_samples_of_one_problem_do_not_make_the_interval_narrower():
    """16 problems, half of them always coherent: as wide as 16 trials, not 128."""
    texts = [text for text in (PROOF, GUESS) for _ in range(64)]
    many = coherence.find({"x": kept_completions(*texts, samples=8)}).record["files"]["x"]["traces"]["coherent"]
    assert many["value"] == 0.5 and many["n"] == 128
    assert many["interval"] == pytest.approx([0.5 - 1.96 * 0.125, 0.5 + 1.96 * 0.125], abs=0.04)
    single = rows.share([True] * 180 + [False] * 320, range(500))
    assert single["interval"] == pytest.approx([0.319, 0.403], abs=5e-4)
    assert rows.share([], []) == {"value": None, "interval": None, "n": 0}


def test_word_problems_have_their_equations_checked():
    found = coherence.find({"x": kept_completions("3 * 4 = 12, 12 + 1 = 14", "10 / 3 = 3.33", "no idea",
                                                  prompt="Tom has 3 bags.")})
    one = found.record["files"]["x"]
    assert one["traces"] == {} and one["equations"]["equations"] == 3 and one["equations"]["with_any"] == 2 / 3
    assert one["equations"]["hold"]["value"] == one["equations"]["rounded"]["value"] == 1 / 3
    assert "| x | 3 | 66.7% | 3 |" in found.page


# ----- calibration

def test_confidences_are_shown_beside_those_that_need_no_training(tmp_path):
    """Made on other problems: saying their mean accuracy, and mapping each word to what it was worth there."""
    row = lambda i, q, right: {"problem": i, "prompt": f"p{i}", "answer": "1", "completion": f"answer 1 sure {q}",
                               "confidence": q, "correct": right}
    judged = {"test": [row(0, .9, True), row(1, .9, False), row(2, .1, False), row(3, .1, False)]}
    dev = [row(10 + i, q, i < 2) for i, q in enumerate([.9, .9, .9, .1, .1])]
    found = calibration.find(judged, write_jsonl(tmp_path / "dev.jsonl", *dev))
    one = found.record["files"]["test"]
    assert (one["brier"], one["ece"]) == pytest.approx(((.01 + .81 + .01 + .01) / 4, .25))
    assert one["constant"] == pytest.approx({"mean_confidence": .4, "brier": .21, "ece": .15, "auroc": .5})
    assert one["post_hoc"] == pytest.approx({"mean_confidence": 1 / 3, "brier": 5 / 36, "ece": 1 / 12, "auroc": 5 / 6})
    assert "the mean accuracy of --fit_on for every confidence: Brier 0.210, ECE 0.150, AUROC 0.500" in found.page
    assert "constant" not in calibration.find(judged).record["files"]["test"]
    with pytest.raises(UserError, match="dev.jsonl has 5 of the problems that are judged.*--heldout_split=dev"):
        calibration.find({"test": dev}, str(tmp_path / "dev.jsonl"))
    with pytest.raises(UserError, match="no completion of .*silent.jsonl states a confidence"):
        calibration.find(judged, write_jsonl(tmp_path / "silent.jsonl", row(9, .5, True) | {"confidence": None}))


# ----- contamination

@pytest.mark.parametrize("words, fraction, shown", [(5, 0.6, 3), (5, 0.4, 2), (10, 0.8, 8), (7, 0.6, 4), (2, 0.4, 0),
                                                    (100, 0.29, 29)])
def test_a_question_is_cut_after_whole_words(words, fraction, shown):
    question = "  ".join(f"w{i}" for i in range(words)) + "\n"
    part = contamination.cut(Problem(question, "1", "in a template: " + question), fraction)
    if not shown:
        assert part is None
    else:
        assert question.startswith(part.prompt) and part.prompt.split() == [f"w{i}" for i in range(shown)]
        assert part.prompt == part.prompt.rstrip() and part.meta["rest"].split() == question.split()[shown:]


def test_what_is_reconstructed_is_as_many_words_as_are_hidden():
    found = contamination.reconstruction(" red  green\nblue and so on", "red green blue")
    assert found == {"rest": "red green blue", "exact": True, "rouge_l": 1.0, "too_short": False}
    found = contamination.reconstruction("red green", "red green blue")
    assert not found["exact"] and found["too_short"]
    assert found["rouge_l"] == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    found = contamination.reconstruction("Red green blue", "red green blue")
    assert not found["exact"] and not found["too_short"]


def said_of(source, exact, likeness=None, twin="", correct=None, fraction=0.6):
    """Rows of a source, one for each of `exact`."""
    likeness = likeness or [1.0 if one else 0.25 for one in exact]
    correct = correct or [False] * len(exact)
    return [{"source": source, "twin": twin, "item": n, "fraction": fraction, "exact": bool(one), "rouge_l": like,
             "correct": right, "too_short": not one, "prompt": "p", "rest": "r", "completion": "c"}
            for n, (one, like, right) in enumerate(zip(exact, likeness, correct))]


def test_each_source_and_fraction_has_a_line():
    made = said_of("a", [1] * 3 + [0] * 7, correct=[True] + [False] * 9) + said_of("b", [0], correct=[True])
    found = contamination.find({"m": made})
    first, second = (found.record["files"]["m"][name]["60%"] for name in "ab")
    assert (first["exact"]["value"], first["correct"]["value"], first["n"]) == (0.3, 0.1, 10)
    assert first["exact"]["interval"] == pytest.approx([0.1078, 0.6032], abs=1e-4)  # Wilson, 3 of 10
    assert first["rouge_l"]["value"] == pytest.approx(0.3 + 0.7 * 0.25) and first["too_short"] == 0.7
    assert second["n"] == 1 and [one["exact"] for one in found.items[:4]] == [True] * 3 + [False]
    assert "against" not in first and "verdict" not in found.page


def test_a_source_that_is_known_is_seen_and_another_is_not():
    """20 problems each; AUROC by hand: of 20 x 20 pairs, 12 x 20 are told right and 8 x 20 tie."""
    made = said_of("known", [1] * 12 + [0] * 8) + said_of("fresh", [0] * 20) + said_of("other", [1] + [0] * 19)
    record = contamination.find({"m": made}, "set/fresh.jsonl").record["files"]["m"]
    known, other = (record[name]["60%"]["against"]["fresh"] for name in ("known", "other"))
    assert known["exact"]["difference"] == 0.6 and known["rouge_l"]["difference"] == pytest.approx(0.6 * 0.75)
    assert known["exact"]["interval"] == pytest.approx([0.6 - 1.96 * 0.11, 0.6 + 1.96 * 0.11], abs=0.04)
    assert known["auroc"] == {"exact": 0.8, "rouge_l": 0.8} and not known["paired"]
    assert (known["verdict"], other["verdict"]) == ("seen", "no sign")
    assert "against" not in record["fresh"]["60%"]
    with pytest.raises(UserError, match="--clean=new: the completions are of known, fresh, other"):
        contamination.find({"m": made}, "new")


@pytest.mark.parametrize("kind, answer_known, verdict", [
    ("renumbered", True, "seen"), ("renumbered", False, "no sign"), ("reordered", True, "no sign")])
def test_twins_are_compared_in_pairs_and_likeness_counts_where_they_are_drawn_alike(kind, answer_known, verdict):
    """Each problem is .1 likelier than its twin, which differs more from one problem to the next. One has no twin."""
    level = [0.1 * n for n in range(9)]
    made = said_of("a", [0] * 10, [x + 0.1 for x in level] + [0.0])
    made += said_of("a", [0] * 9, level, twin=kind, correct=[False if answer_known else None] * 9)
    found = contamination.find({"m": made})
    record = found.record["files"]["m"]
    one = record["a"]["60%"]["against"][f"a, {kind}"]
    assert one["rouge_l"]["interval"] == pytest.approx([0.1, 0.1]) and (one["n"], one["control_n"]) == (9, 9)
    assert one["verdict"] == verdict and one["paired"] and one["exact"]["interval"] == [0, 0]
    assert record[f"a, {kind}"]["60%"]["correct"]["value"] == (0 if answer_known else None)
    assert f"| a | {kind} | +0.000 [+0.000, +0.000] | +0.100 [+0.100, +0.100] |" in found.page


def test_suspicious_items_come_first_and_twins_last():
    made = said_of("a", [1], twin="renumbered") + said_of("a", [0, 1], [0.9, 1.0])
    assert [(one["twin"], one["exact"]) for one in contamination.find({"m": made}).items] == [
        ("", True), ("", False), ("renumbered", True)]


# ----- twins

def plain(*questions):
    return [Problem(question, "7", question) for question in questions]


def test_sentences_are_put_in_another_order():
    story = "Tom has 3 bags. Each holds 4.5 kg! How heavy are they?"
    made = twins.make("reordered", plain(story, "One sentence alone?", "Same. Same."), 0)["reordered"]
    assert list(made) == [0] and made[0].answer == "7" and made[0].prompt == made[0].question != story
    parts = ["Tom has 3 bags.", "Each holds 4.5 kg!", "How heavy are they?"]
    orders = {" ".join(order) for order in itertools.permutations(parts)} - {story}
    assert {twins.make("reordered", plain(story), seed)["reordered"][0].question for seed in range(40)} == orders


def test_numbers_of_a_text_are_swapped_alike_and_nobody_knows_the_answer():
    story = "Tom has 3 bags and 12 more, so 3 + 12 = 15; a bag is $1.25."
    twin = twins.make("renumbered", plain(story, "no number"), 0)["renumbered"]
    assert list(twin) == [0] and twin[0].answer == ""
    old, new = (re.findall(r"\d+", text) for text in (story, twin[0].question))
    assert [len(a) for a in old] == [len(b) for b in new] and all(a != b and b[0] != "0" for a, b in zip(old, new))
    assert new[0] == new[2] and new[1] == new[3] and re.split(r"\d+", story) == re.split(r"\d+", twin[0].question)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_a_renumbered_chain_is_solved_anew(seed):
    twin = twins.make("renumbered", plain("coins 3 + 4 * 2 - 5 ="), seed)["renumbered"].get(0)
    if twin:  # with a seed in a thousand the same numbers come out
        topic, start, *words = twin.question.split()
        value = int(start)
        for op, operand in zip(words[:-1:2], words[1::2]):
            value = value + int(operand) if op == "+" else value - int(operand) if op == "-" else value * int(operand)
        assert (topic, words[::2], str(value)) == ("coins", ["+", "*", "-", "="], twin.answer)
        assert twin.question != "coins 3 + 4 * 2 - 5 ="


def test_a_renumbered_calculation_keeps_its_shape():
    problems = calculation.draw_problems("calculation:3", 20, "test")
    made = twins.make("renumbered", problems, 0)["renumbered"]
    assert len(made) == 20
    for place, twin in made.items():
        shapes = [re.sub(r"(?<!\^)\b\d+", "n", one.question) for one in (problems[place], twin)]
        assert shapes[0] == shapes[1] and twin.question != problems[place].question
        assert twin.answer == str(calculation.evaluate(twin.meta["tree"]))


def test_a_twin_depends_on_its_place_alone_and_is_no_problem_of_the_set():
    problems = plain("Add 1 to 2?", "Add 3 to 4?", "I am 5. So?")
    made = twins.make("renumbered,reordered", problems, 3)
    assert made["renumbered"][0] == twins.make("renumbered", problems[:1], 3)["renumbered"][0]
    every = plain(*(f"Is {n} odd?" for n in range(1, 10)))  # all that a twin could be
    assert not twins.make("renumbered", every, 0)["renumbered"]
    for names in ("mirrored", "renumbered,renumbered"):
        with pytest.raises(UserError, match=f"--twins={names}: give some of reordered, renumbered"):
            twins.make(names, problems, 0)


def test_a_twin_that_reads_as_a_problem_with_other_spaces_is_left_out():
    assert twins.make("reordered", plain("One two. Three?", "Three?\n One  two."), 0)["reordered"] == {}
    assert set(twins.make("reordered", plain("One two. Three?"), 0)["reordered"]) == {0}


# ----- memory

QUESTION = "coins 7 + 5 * 2 - 4 ="
FAMILY, CHAIN = memorisation.parse(QUESTION)
ALGEBRA = memorisation.ALGEBRAS[FAMILY]


@pytest.mark.parametrize("kind, places, count", [
    ("other topic", {0}, 1), ("other start", {1}, 1), ("one operator", {2, 4, 6}, 1), ("one operand", {3, 5, 7}, 1),
    ("two operands", {3, 5, 7}, 2), ("three operands", {3, 5, 7}, 3)])
def test_twins_differ_in_what_their_kind_says(kind, places, count):
    made = memorisation.twins(kind, np.random.default_rng(0), ALGEBRA, CHAIN, 64)
    problems = memorisation.to_problems(ALGEBRA, made)
    assert len({problem.prompt for problem in problems}) == len(problems) > 3
    for problem in problems:
        words, own = problem.prompt.split(), QUESTION.split()
        assert {i for i, (a, b) in enumerate(zip(words, own)) if a != b} <= places and len(words) == len(own)
        assert sum(a != b for a, b in zip(problem.prompt.split(), QUESTION.split())) == count
        value = int(words[1])
        for op, operand in zip(words[2:-1:2], words[3:-1:2]):
            value = {"+": value + int(operand), "-": value - int(operand), "*": value * int(operand),
                     "/": value / int(operand)}[op]
            assert value in range(1, 25)
        assert problem.answer == str(int(value)) and problem.meta["split"] in ("pretrain", "example", "dev", "test")


def test_all_twins_of_one_operand_are_found():
    """Counted one by one."""
    wanted = set()
    for place in range(3):
        for operand in range(1, 10):
            operands = list(CHAIN.operands)
            operands[place] = operand
            twin = CHAIN._replace(operands=tuple(operands))
            wanted |= {twin} if twin != CHAIN and memorisation.solved(ALGEBRA, twin) else set()
    assert set(memorisation.twins("one operand", np.random.default_rng(1), ALGEBRA, CHAIN, 1000)) == wanted


def test_a_longer_twin_begins_as_the_example_does():
    made = memorisation.twins("one step longer", np.random.default_rng(0), ALGEBRA, CHAIN, 9)
    for problem in memorisation.to_problems(ALGEBRA, made):
        assert problem.prompt.startswith(QUESTION.removesuffix("=")) and len(problem.prompt.split()) == 11
    windows = [SimpleNamespace(tokenizer=families.make_tokenizer([FAMILY]), config=SimpleNamespace(max_seq_len=length))
               for length in (30, 31)]  # 11 tokens of the prompt and 20 of the solution
    assert [memorisation.fits(memorisation.to_problems(ALGEBRA, made), one, 4, 20) for one in windows] == [False, True]


@pytest.mark.parametrize("question", ["", "What is 7 + 5?", "coins 7 + 5 * 2", "coins 7 = 5 =", "coins 20 + 9 =",
                                      "coins 7 + 24 =", "gate 7 + 5 =", "coins 7 + =", "coins 7 ="])
def test_what_is_no_chain_is_refused(question):
    with pytest.raises(UserError, match="twins of chains of arithmetic, boolean"):
        memorisation.parse(question)


def test_accuracy_is_by_kind_and_by_split():
    made = [{"benchmark": kind, "problem": n, "prompt": "p", "correct": n < right, "split": ("dev", "pretrain")[n % 2]}
            for kind, right, count in (("the example", 1, 1), ("one operand", 3, 4)) for n in range(count)]
    found = memorisation.find({"m": made})
    one = found.record["files"]["m"]["one operand"]
    assert (one["accuracy"]["value"], one["problems"]) == (0.75, 4)
    assert (one["not_in_pretraining"]["value"], one["not_in_pretraining"]["n"]) == (1.0, 2)
    assert list(found.record["files"]["m"]) == ["the example", "one operand"]
    assert "Left out" in found.page and "one step longer" in found.page
    samples = [{"benchmark": "unseen", "problem": n, "prompt": "p", "correct": n == 0, "split": "test"}
               for n in (0, 1) for _ in range(50)]  # two problems are little evidence, however often they are asked
    one = memorisation.find({"m": samples}).record["files"]["m"]["unseen"]
    assert one["problems"] == 2 and one["accuracy"]["interval"] == [0.0, 1.0]


# ----- the command

def config(tmp_path, **flags):
    return probe.ProbeConfig.from_flags(out=str(tmp_path / "out"),
                                        **{"num_ops": 2, "max_new_tokens": 10, "max_problems": 12} | flags)


def written(tmp_path, name):
    out = tmp_path / "out"
    assert {f"{name}.json", f"{name}.md", f"{name}_items.jsonl"} <= {path.name for path in out.iterdir()}
    return json.loads((out / f"{name}.json").read_text()), read_jsonl(out / f"{name}_items.jsonl")


def test_coherence_of_kept_completions_and_of_a_model_are_the_same(tmp_path, base):
    evaluate(EvaluateConfig.from_flags(model=str(base), out=str(tmp_path / "eval"), num_ops=2, max_new_tokens=10,
                                       max_problems=12))
    sampled = probe.probe(config(tmp_path, model=str(base)))
    record, items = written(tmp_path, "coherence")
    assert (tmp_path / "out" / "coherence.png").stat().st_size > 5000 and len(items) == 12
    again = probe.probe(config(tmp_path / "2", completions=str(tmp_path / "eval" / "completions.jsonl")))
    first, second = (next(iter(found.record["files"].values())) for found in (sampled, again))
    assert first == second == next(iter(record["files"].values())) and first["traces"]["n"] == 12
    right = [row["correct"] for row in read_jsonl(tmp_path / "eval" / "completions.jsonl")]
    assert first["traces"]["right"]["value"] == np.mean(right)  # the parser's K is the grader's verdict


def test_contamination_of_a_model(tmp_path, base):
    dirs = "a", "b"
    for name, questions in zip(dirs, (["coins 3 + 4 * 2 =", "cups 9 - 2 + 1 ="], ["miles 5 + 5 - 4 ="])):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "p.jsonl", *({"question": q, "answer": 1} for q in questions))
    files = [str(tmp_path / name / "p.jsonl") for name in dirs]
    flags = {"probe": "contamination", "clean": "arithmetic", "twins": "renumbered"}
    found = probe.probe(config(tmp_path, model=str(base), problems=",".join(files), fractions=(0.4, 0.8), **flags))
    record, items = written(tmp_path, "contamination")
    (file, sets), = record["files"].items()
    assert {name: (list(one), one["80%"]["n"]) for name, one in sets.items()} == {
        name: (["40%", "80%"], n) for name, n in [(files[0], 2), (f"{files[0]}, renumbered", 2), (files[1], 1),
                                                  (f"{files[1]}, renumbered", 1), ("arithmetic", 12)]}
    assert set(sets[files[0]]["40%"]["against"]) == {f"{files[0]}, renumbered", "arithmetic"}
    for item in items:
        words = f"{item['prompt']} {item['rest']}".split()
        assert item["correct"] is not None  # the answers of these twins are known
        assert len(words) == 7 and words[-1] == "=" and len(item["prompt"].split()) == int(item["fraction"] * 7)
        assert item["exact"] == (item["completion"].split()[: len(item["rest"].split())] == item["rest"].split())
    kept_rows = str(tmp_path / "out" / "completions.jsonl")
    again = probe.probe(config(tmp_path / "2", completions=kept_rows, **flags))
    assert list(again.record["files"].values()) == [json.loads(json.dumps(found.record))["files"][file]]
    for flag, says in (({"temperature": 1.0}, "one greedy completion without a template"),
                       ({"prompt_style": "chat"}, "one greedy completion without a template"),
                       ({"twins": "reordered"}, "no question of arithmetic has a twin that is reordered"),
                       ({"fractions": (0.1,)}, "no question of arithmetic has enough words")):
        with pytest.raises(UserError, match=says):
            probe.probe(config(tmp_path / "3", probe="contamination", model=str(base), **flag))
    with pytest.raises(UserError, match="other flags: .*--probe"):
        probe.probe(config(tmp_path, probe="memory", model=str(base), example="coins 3 + 4 * 2 ="))


def test_memory_of_a_run_that_chose_its_example(tmp_path, base):
    run = tmp_path / "run"
    train(TrainConfig.from_flags(model=str(base), run_dir=str(run), num_ops=2, num_prompts=2, group_size=2, num_steps=1,
                                 max_new_tokens=10, eval_size=4, remat=False, heldout="none", example_pool=4))
    trained = json.loads((run / "example.json").read_text())
    found = probe.probe(config(tmp_path, probe="memory", model=str(run)))
    record, items = written(tmp_path, "memory")
    one = next(iter(record["files"].values()))
    assert list(one)[0] == "the example" and list(one)[-1] == "unseen" and one["the example"]["problems"] == 1
    assert "one step longer" not in one and "Left out" in found.page  # the window of the base has no room
    assert [(item["prompt"], item["answer"]) for item in items if item["benchmark"] == "the example"] == [
        (trained["question"], trained["answer"])]
    of_base = probe.probe(config(tmp_path / "2", probe="memory", model=str(base), example=str(run)))
    assert [item["prompt"] for item in of_base.items] == [item["prompt"] for item in items]
    with pytest.raises(UserError, match="has no example.json"):
        probe.probe(config(tmp_path / "3", probe="memory", model=str(base)))


def data_of(html):
    """What the page has to leaf through."""
    return json.loads(html.split('id="data">')[1].split("</script>")[0])


@pytest.mark.parametrize("name", probe.PROBES)
def test_every_probe_has_a_page_of_its_items(tmp_path, name):
    write_jsonl(tmp_path / "a.jsonl", *map(as_any_probe, kept_completions(*HOSTILE)))
    found = probe.probe(config(tmp_path, probe=name, completions=str(tmp_path / "a.jsonl")))
    html = (tmp_path / "out" / f"{name}.html").read_text()
    assert (html.count("<script"), html.count("</script>"), html.count("<img")) == (2, 2, 1) and "{{ 1 }}" in html
    assert "<table>" in html and f"--probe={name}" in html
    shown = data_of(html)
    assert len(shown) == len(found.items) == 4
    for one in shown:
        assert one["verdicts"] and one["texts"]["Prompt"] == PROBED
    assert {text for one in shown for label, text in one["texts"].items() if "Completion" in label} == set(HOSTILE)


def test_a_page_with_many_items_has_some_and_says_where_all_are(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_ITEMS", 3)
    monkeypatch.setattr(page, "MAX_BYTES", 2000)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept_completions(*["x" * 4000] * 9)))
    probe.probe(config(tmp_path, completions=str(tmp_path / "a.jsonl")))
    html = (tmp_path / "out" / "coherence.html").read_text()
    assert "3 of 9, evenly spread; all of them in <a href=\"coherence_items.jsonl\">" in html
    assert [one["facts"]["problem"] for one in data_of(html)] == ["0", "4", "8"]
    assert len(json.dumps(data_of(html))) < 5000 and "characters left out" in html


def test_equations_are_the_steps_of_a_text():
    kept = kept_completions("3 * 4 = 12, 12 + 1 = 14, 10 / 3 = 3.33", prompt="Tom has 3 bags.")
    item, = coherence.find({"x": kept}).items
    assert [(one["text"], one["right"], one["verdict"]) for one in item["steps"]] == [
        ("3 * 4 = 12", True, "holds"), ("12 + 1 = 14", False, "does not hold"), ("10 / 3 = 3.33", True,
                                                                                 "holds when rounded")]
    assert item["equations_hold"] is False and "coherent" not in item


def test_a_probe_is_a_row(tmp_path, monkeypatch):
    """The door: a function of the flags that returns a result."""
    def lengths(flags):
        """Words of a completion."""
        words = {name: [len(row["completion"].split()) for row in kept]
                 for name, kept in probe.kept_rows(flags, ()).items()}
        return rows.Result({"words": words}, f"{words}\n", lambda sheet: sheet.subplots().hist(*words.values()),
                          [{"prompt": "<p>", "short": True, "steps": 3, "completions": 2}, {"short": False, "x": None}])

    monkeypatch.setitem(probe.PROBES, "lengths", lengths)
    (tmp_path / "a.jsonl").write_text(json.dumps(kept_completions(GUESS)[0]) + "\n")
    probe.probe(config(tmp_path, probe="lengths", completions=str(tmp_path / "a.jsonl")))
    record = written(tmp_path, "lengths")[0]
    assert record["words"] == {"a": [2]}
    shown = (f"`python -m scripts.probe --num_ops=2 --max_new_tokens=10 --max_problems=12 --probe=lengths "
             f"--completions={tmp_path}/a.jsonl`, commit ")
    assert record["origin"].startswith(shown) and record["origin"] in (tmp_path / "out" / "lengths.md").read_text()
    html = (tmp_path / "out" / "lengths.html").read_text()  # it may choose by what is true or false
    assert "Words of a completion." in html and '<select name="short">' in html
    assert [one["verdicts"] for one in data_of(html)] == [{"short": "yes"}, {"short": "no"}]
    assert data_of(html)[0]["facts"]["steps"] == "3"


def test_what_cannot_be_probed_is_said(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"completion": "x", "answer": "1", "prompt": "p"}) + "\n")
    odd = tmp_path / "odd.jsonl"
    odd.write_text(json.dumps({"completion": "x", "answer": "1", "prompt": 7}) + "\n")
    for flags, says in [({"completions": str(odd)}, "completion 1 has no prompt"),
                        ({}, "give one of --completions"), ({"completions": str(path), "model": "m"}, "give one of"),
                        ({"completions": str(tmp_path / "no.jsonl")}, "no such file"),
                        ({"completions": f"{path},{path}"}, "names a file twice"),
                        ({"completions": str(path), "probe": "memory"}, "has no correct, which --probe=memory"),
                        ({"completions": str(path), "probe": "contamination"}, "has no rest, which")]:
        with pytest.raises(UserError, match=says):
            probe.probe(config(tmp_path, **flags))
    with pytest.raises(UserError, match="--out is required"):
        probe.probe(config(tmp_path).with_flags(out=""))


def test_files_have_short_names():
    assert rows.short_names(["x/base.jsonl", "y/after.jsonl"]) == ["base", "after"]
    assert rows.short_names(["x/c.jsonl", "y/c.jsonl"]) == ["x", "y"]
    assert rows.short_names(["x/1/c.jsonl", "y/1/c.jsonl"]) == ["x/1/c.jsonl", "y/1/c.jsonl"]


@pytest.mark.parametrize("given, title", [
    ({"completions": "runs/one/completions.jsonl"}, "Coherence of the completions in one"),
    ({"completions": "runs/base.jsonl,runs/one.jsonl"}, "Coherence of the completions in base, one"),
    ({"model": "runs/base@3", "probe": "memory"}, "Memory of the model base@3")])
def test_the_title_of_a_page_says_whose_completions_these_are(given, title):
    assert probe.title(probe.ProbeConfig.from_flags(**given)) == title
