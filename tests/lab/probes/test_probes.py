"""Probes of saved completions: numbers counted by hand, twins, parts of questions, what the command writes."""

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
from rlvr_jax.lab.probes.traces import UNSOUND, Judgement
from rlvr_jax.records import Problem
from rlvr_jax.tasks import calculation, families
from rlvr_jax.training.train import TrainConfig, train

from fixtures import (
    CALC, HOSTILE, PROBED, PROOF, RIGHT_STEPS, as_any_probe, kept_completions, read_jsonl, values_of, write_jsonl)
from golden import rouge as asked_rouge

EARLY, LUCK = "think + 4 7 answer 7", "think + 4 7 + 2 9 answer 9"
GUESS, BROKEN = "answer 9", "think + 4 maybe answer 9"


# ----- likeness

def test_rouge_l_is_the_librarys_on_500_pairs():
    """The expected values come from tests/golden/rouge.py."""
    wanted = json.loads(asked_rouge.PATH.read_text())["f1"]
    found = [rouge.rouge_l(text, reference) for reference, text in asked_rouge.pairs()]
    assert len(wanted) == 500 and found == pytest.approx(wanted, abs=1e-8)
    assert 0.0 in wanted and 1.0 in wanted and len(set(wanted)) > 100


# ----- equations

@pytest.mark.parametrize("text, expected", [
    ("He has 3 * 4 = 12 apples, so 12 - 5 = 8.", [("3 * 4 = 12", True), ("12 - 5 = 8", False)]),
    ("$1,200 / 4 = $300 and <<0.5*6=3>>3", [("$1,200 / 4 = $300", True), ("0.5*6=3", True)]),
    (r"3 \times 4 = 12, 12 ÷ 5 = 2.4, 2 − 5 = -3",
     [("3 * 4 = 12", True), ("12 / 5 = 2.4", True), ("2 - 5 = -3", True)]),
    ("2 + 3 + 4 = 9; 2 * 3 = 4 + 2; 10 -5 + 3 = 8; x -5 + 3 = 1; (2 + 3) * 4 = 20", []),  # parts of something longer
    ("20% * 5 = 1, 2 + 3 = 50%, 3 apples + 4 apples = 7, 1/2 + 1/3 = 5/6, a = 5", []),
    ("-5 + 3 = -2, total: (0.1 + 0.2 = 0.3)", [("-5 + 3 = -2", True), ("0.1 + 0.2 = 0.3", True)]),
    ("1 / 0 = 7", [("1 / 0 = 7", False)]), ("12345678901234567890 + 1 = 2", []),
    ("10 / 3 = 3.33. 10 / 3 = 3.34, 10 / 3 = 3; 10/4=2.5",
     [("10 / 3 = 3.33", "rounded"), ("10 / 3 = 3.34", False), ("10 / 3 = 3", False), ("10/4=2.5", True)])])
def test_equations_are_found_and_checked(text, expected):
    assert [(one.text, "rounded" if one.rounded else one.holds) for one in equations.read_equations(text)] == expected


@settings(deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from("1 23 4.5 $ , + - * / = ( ) \\times % x".split())).map(" ".join)))
def test_garbage_has_equations_or_none(text):
    for one in equations.read_equations(text):
        assert not (one.holds and one.rounded)


def test_a_long_text_of_digits_is_read_in_no_time():
    assert len(equations.read_equations("1+1=2;" * 10**6)) < 10**4
    assert not equations.read_equations("1" * 10**6 + "+" * 10**6)


# ----- coherence

def test_a_summary_counts_traces():
    found = coherence.probe_coherence({"run": kept_completions(PROOF, PROOF, CALC, EARLY, LUCK, GUESS, BROKEN,
                                                               "hmm river")})
    one = found.record["files"]["run"]["traces"]
    assert {cell: n for cell, n in one["cells"].items() if n} == {
        "111": 2, "010": 1, "100": 1, "101": 1, "001": 2, "000": 1}
    shares = {key: (one[key]["value"], one[key]["n"]) for key in coherence.SHARES}
    assert shares == {"with_steps": (6 / 8, 8), "coherent": (4 / 8, 8), "valid": (3 / 8, 8), "right": (5 / 8, 8),
                      "coherent_of_shown": (4 / 6, 6), "valid_of_shown": (3 / 6, 6), "valid_if_coherent": (2 / 4, 4),
                      "right_if_both": (1.0, 2)}
    assert one["steps"] == (3 + 3 + 3 + 1 + 2 + 1) / 8 and one["wrong_steps_per_100"] == pytest.approx(100 * 2 / 13)
    assert one["errors"] == {"empty": {"1": 2}, "format": {"1": 1}, "calc": {"2": 1}, "plan": {"2": 2}}
    assert one["by_steps"]["1"] == {"n": 2, "coherent": 0.5, "valid": 0.0} and list(one["by_steps"]) == list("0123")
    assert [item["errors"] for item in found.items[2:4]] == [[("calc", 1)], [("plan", 1)]]
    assert "| calc: a op b is not what the step says | 1 | 2: 1 |" in found.page


def test_a_step_with_two_errors_is_one_wrong_step():
    judgement = Judgement(False, False, False, [(UNSOUND[0], 1), (UNSOUND[1], 1), (UNSOUND[0], 2)])
    found = coherence.summarise_traces([coherence.JudgedTrace(kept_completions(PROOF)[0], 4 * ("",), judgement)])
    assert found["wrong_steps_per_100"] == 100 * 2 / 4


def test_two_files_are_split_by_who_was_right():
    before, after = kept_completions(GUESS, CALC, EARLY, PROOF), kept_completions(PROOF, PROOF, LUCK, CALC)
    split = coherence.probe_coherence({"base": before, "after": after}).record["before_after"]
    assert {cell: one["n"] for cell, one in split.items()} == {"00": 0, "01": 2, "10": 1, "11": 1}
    gained = split["01"]
    assert [gained[key]["value"] for key in ("coherent_before", "valid_before", "coherent_after", "valid_after")] == [
        0.5, 0.5, 1.0, 0.5]
    assert split["10"]["coherent_after"]["value"] == 0 and split["00"]["valid_after"]["value"] is None
    with pytest.raises(UserError, match="not of the same problems"):
        coherence.probe_coherence({"base": before, "after": after[:3]})


def test_lengths_are_matched_by_drawing_from_traces_of_the_same_length():
    """Each trace after is matched with the mean of the traces before that have as many steps."""
    before = [PROOF, CALC, CALC, EARLY, BROKEN, GUESS, "hmm river", LUCK]
    after = [PROOF, PROOF, CALC, PROOF, EARLY, EARLY, BROKEN, GUESS]
    one = coherence.probe_coherence({"a": kept_completions(*before), "b": kept_completions(*after)})
    by_length = {3: [(1, 1), (0, 1), (0, 1)], 1: [(1, 0), (0, 0)], 0: [(0, 0), (0, 0)]}  # coherent, valid; before
    draws = [by_length[steps] for steps in (3, 3, 3, 3, 1, 1, 1, 0)]
    wanted = [sum(sum(trace[i] for trace in pool) / len(pool) for pool in draws) / 8 for i in (0, 1)]
    matched = one.record["length_matched"]
    assert [matched[f"{name}_before"] for name in ("coherent", "valid")] == pytest.approx(wanted)
    assert (matched["coherent_after"], matched["valid_after"], matched["covered"]) == (5 / 8, 4 / 8, 1.0)
    assert f"| {wanted[0]:.3f} | {wanted[1]:.3f} | 0.625 | 0.500 |" in one.page


def test_lengths_that_one_side_has_alone_are_left_out():
    matched = lambda before, after: coherence.probe_coherence(
        {"a": kept_completions(*before), "b": kept_completions(*after)}).record["length_matched"]
    assert matched([GUESS, EARLY, CALC], [PROOF, PROOF, LUCK]) == {
        "covered": 2 / 3, "coherent_before": 0, "coherent_after": 1, "valid_before": 1, "valid_after": 1}
    assert matched([GUESS, EARLY], [PROOF, PROOF]) == {
        "covered": 0, "coherent_before": None, "coherent_after": None, "valid_before": None, "valid_after": None}


def test_samples_of_one_problem_do_not_make_the_interval_narrower():
    """16 problems, half of them always coherent: as wide as 16 trials, not 128."""
    texts = [text for text in (PROOF, GUESS) for _ in range(64)]
    found = coherence.probe_coherence({"x": kept_completions(*texts, samples=8)})
    many = found.record["files"]["x"]["traces"]["coherent"]
    assert many["value"] == 0.5 and many["n"] == 128
    assert many["interval"] == pytest.approx([0.5 - 1.96 * 0.125, 0.5 + 1.96 * 0.125], abs=0.04)
    single = rows.estimate_share([True] * 180 + [False] * 320, range(500))
    assert single["interval"] == pytest.approx([0.319, 0.403], abs=5e-4)
    assert rows.estimate_share([], []) == {"value": None, "interval": None, "n": 0}


def test_word_problems_have_their_equations_checked():
    found = coherence.probe_coherence({"x": kept_completions("3 * 4 = 12, 12 + 1 = 14", "10 / 3 = 3.33", "no idea",
                                                  prompt="Tom has 3 bags.")})
    one = found.record["files"]["x"]
    assert one["traces"] == {} and one["equations"]["equations"] == 3 and one["equations"]["with_any"] == 2 / 3
    assert one["equations"]["hold"]["value"] == one["equations"]["rounded"]["value"] == 1 / 3
    assert "| x | 3 | 66.7% | 3 |" in found.page
    verdicts = [[(step["text"], step["right"], step["verdict"]) for step in item["steps"]] for item in found.items]
    assert verdicts == [[("3 * 4 = 12", True, "holds"), ("12 + 1 = 14", False, "does not hold")],
                        [("10 / 3 = 3.33", True, "holds when rounded")], []]
    assert [item.get("equations_hold") for item in found.items] == [False, True, None]
    assert "coherent" not in found.items[0]


# ----- calibration

def test_confidences_are_shown_beside_those_that_need_no_training(tmp_path):
    """The controls are fitted on other problems: their mean accuracy, and a map of confidences to accuracies there."""
    row = lambda i, q, right: {"problem": i, "prompt": f"p{i}", "answer": "1", "completion": f"answer 1 sure {q}",
                               "confidence": q, "correct": right}
    judged = {"test": [row(0, .9, True), row(1, .9, False), row(2, .1, False), row(3, .1, False)]}
    dev = [row(10 + i, q, i < 2) for i, q in enumerate([.9, .9, .9, .1, .1])]
    found = calibration.probe_calibration(judged, write_jsonl(tmp_path / "dev.jsonl", *dev))
    one = found.record["files"]["test"]
    assert (one["brier"], one["ece"]) == pytest.approx(((.01 + .81 + .01 + .01) / 4, .25))
    assert one["constant"] == pytest.approx({"mean_confidence": .4, "brier": .21, "ece": .15, "auroc": .5})
    assert one["post_hoc"] == pytest.approx({"mean_confidence": 1 / 3, "brier": 5 / 36, "ece": 1 / 12, "auroc": 5 / 6})
    assert "the mean accuracy of --fit_on for every confidence: Brier 0.210, ECE 0.150, AUROC 0.500" in found.page
    assert "constant" not in calibration.probe_calibration(judged).record["files"]["test"]
    with pytest.raises(UserError, match="dev.jsonl has 5 of the problems that are judged.*--heldout_split=dev"):
        calibration.probe_calibration({"test": dev}, str(tmp_path / "dev.jsonl"))
    silent = row(9, .5, True) | {"confidence": None}
    with pytest.raises(UserError, match="no completion of .*silent.jsonl states a confidence"):
        calibration.probe_calibration(judged, write_jsonl(tmp_path / "silent.jsonl", silent))
    with pytest.raises(UserError, match="no completion of silent states"):
        calibration.probe_calibration(judged | {"silent": [silent]})


# ----- contamination

@pytest.mark.parametrize("words, fraction, shown", [(5, 0.6, 3), (5, 0.4, 2), (10, 0.8, 8), (7, 0.6, 4), (2, 0.4, 0),
                                                    (100, 0.29, 29)])
def test_a_question_is_cut_after_whole_words(words, fraction, shown):
    question = "  ".join(f"w{i}" for i in range(words)) + "\n"
    part = contamination.cut_question(Problem(question, "1", "in a template: " + question), fraction)
    if not shown:
        assert part is None
    else:
        assert question.startswith(part.prompt) and part.prompt.split() == [f"w{i}" for i in range(shown)]
        assert part.prompt == part.prompt.rstrip() and part.meta["rest"].split() == question.split()[shown:]


def test_what_is_reconstructed_is_as_many_words_as_are_hidden():
    found = contamination.compare_with_rest(" red  green\nblue and so on", "red green blue")
    assert found == {"rest": "red green blue", "exact": True, "rouge_l": 1.0, "too_short": False}
    found = contamination.compare_with_rest("red green", "red green blue")
    assert not found["exact"] and found["too_short"]
    assert found["rouge_l"] == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    found = contamination.compare_with_rest("Red green blue", "red green blue")
    assert not found["exact"] and not found["too_short"]


def make_rows(source, exact, likeness=None, twin="", correct=None, fraction=0.6):
    """Rows of a source, one for each of `exact`."""
    likeness = likeness or [1.0 if one else 0.25 for one in exact]
    correct = correct or [False] * len(exact)
    return [{"source": source, "twin": twin, "item": n, "fraction": fraction, "exact": bool(one), "rouge_l": like,
             "correct": right, "too_short": not one, "prompt": "p", "rest": "r", "completion": "c"}
            for n, (one, like, right) in enumerate(zip(exact, likeness, correct))]


def test_each_source_and_fraction_has_a_line():
    made = make_rows("a", [1] * 3 + [0] * 7, correct=[True] + [False] * 9) + make_rows("b", [0], correct=[True])
    found = contamination.probe_contamination({"m": made})
    first, second = (found.record["files"]["m"][name]["60%"] for name in "ab")
    assert (first["exact"]["value"], first["correct"]["value"], first["n"]) == (0.3, 0.1, 10)
    assert first["exact"]["interval"] == pytest.approx([0.1078, 0.6032], abs=1e-4)  # Wilson, 3 of 10
    assert first["rouge_l"]["value"] == pytest.approx(0.3 + 0.7 * 0.25) and first["too_short"] == 0.7
    assert second["n"] == 1 and [one["exact"] for one in found.items[:4]] == [True] * 3 + [False]
    assert "against" not in first and "verdict" not in found.page


def test_a_source_that_is_known_is_seen_and_another_is_not():
    """20 problems each; AUROC by hand: of 20 x 20 pairs, 12 x 20 are ordered correctly and 8 x 20 tie."""
    made = make_rows("known", [1] * 12 + [0] * 8) + make_rows("fresh", [0] * 20) + make_rows("other", [1] + [0] * 19)
    record = contamination.probe_contamination({"m": made}, "set/fresh.jsonl").record["files"]["m"]
    known, other = (record[name]["60%"]["against"]["fresh"] for name in ("known", "other"))
    assert known["exact"]["difference"] == 0.6 and known["rouge_l"]["difference"] == pytest.approx(0.6 * 0.75)
    assert known["exact"]["interval"] == pytest.approx([0.6 - 1.96 * 0.11, 0.6 + 1.96 * 0.11], abs=0.04)
    assert known["auroc"] == {"exact": 0.8, "rouge_l": 0.8} and not known["paired"]
    assert (known["verdict"], other["verdict"]) == ("seen", "no sign")
    assert "against" not in record["fresh"]["60%"]
    with pytest.raises(UserError, match="--clean=new: the completions are of known, fresh, other"):
        contamination.probe_contamination({"m": made}, "new")


@pytest.mark.parametrize("kind, answer_known, verdict", [
    ("renumbered", True, "seen"), ("renumbered", False, "no sign"), ("reordered", True, "no sign")])
def test_twins_are_compared_in_pairs_and_likeness_counts_where_they_are_drawn_alike(kind, answer_known, verdict):
    """Each problem scores about .1 above its twin, though problems differ by more. One has no twin."""
    level = [0.1 * n for n in range(9)]
    made = make_rows("a", [0] * 10, [x + more for x, more in zip(level, [.09, .1, .11] * 3)] + [0.0])
    made += make_rows("a", [0] * 9, level, twin=kind, correct=[False if answer_known else None] * 9)
    found = contamination.probe_contamination({"m": made})
    record = found.record["files"]["m"]
    one = record["a"]["60%"]["against"][f"a, {kind}"]
    assert one["rouge_l"]["interval"] == pytest.approx([0.1, 0.1], abs=.006) and (one["n"], one["control_n"]) == (9, 9)
    assert one["verdict"] == verdict and one["paired"]
    assert one["exact"]["interval"] == pytest.approx([-.299, .299], abs=1e-3)  # of 9 equal pairs: Wilson's
    assert record[f"a, {kind}"]["60%"]["correct"]["value"] == (0 if answer_known else None)
    assert f"| a | {kind} | +0.000 [-0.299, +0.299] | +0.100 [+0.0" in found.page
    likeness = [(item["twin"], item["rouge_l"]) for item in found.items]
    assert likeness == sorted(likeness, key=lambda pair: (pair[0] != "", -pair[1]))  # suspicious first, twins last


# ----- twins

def make_problems(*questions):
    return [Problem(question, "7", question) for question in questions]


def twins_of(kind, *questions, seed=0):
    return twins.make_twins(kind, make_problems(*questions), seed)[kind]


def test_sentences_are_put_in_another_order():
    story = "Tom has 3 bags. Each holds 4.5 kg! How heavy are they?"
    made = twins_of("reordered", story, "One sentence alone?", "Same. Same.")
    assert list(made) == [0] and made[0].answer == "7" and made[0].prompt == made[0].question != story
    orders = map(" ".join, itertools.permutations(["Tom has 3 bags.", "Each holds 4.5 kg!", "How heavy are they?"]))
    assert {twins_of("reordered", story, seed=seed)[0].question for seed in range(40)} == {*orders} - {story}


def test_numbers_of_a_text_are_swapped_alike_and_nobody_knows_the_answer():
    story = "Tom has 3 bags and 12 more, so 3 + 12 = 15; a bag is $1.25."
    twin = twins_of("renumbered", story, "no number")
    assert list(twin) == [0] and twin[0].answer == ""
    old, new = (re.findall(r"\d+", text) for text in (story, twin[0].question))
    assert [len(a) for a in old] == [len(b) for b in new] and all(a != b and b[0] != "0" for a, b in zip(old, new))
    assert new[0] == new[2] and new[1] == new[3] and re.split(r"\d+", story) == re.split(r"\d+", twin[0].question)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_a_renumbered_chain_is_solved_anew(seed):
    if twin := twins_of("renumbered", PROBED, seed=seed).get(0):  # one seed in a thousand draws the same numbers again
        assert re.sub(r"\d+", "n", twin.question) == "coins n + n * n - n =" and twin.question != PROBED
        assert twin.answer == values_of(twin.question, RIGHT_STEPS["arithmetic"])[-1]


def test_a_renumbered_calculation_keeps_its_shape():
    problems = calculation.draw_problems("calculation:3", 20, "test")
    made = twins.make_twins("renumbered", problems, 0)["renumbered"]
    assert len(made) == 20
    for place, twin in made.items():
        shapes = [re.sub(r"(?<!\^)\b\d+", "n", one.question) for one in (problems[place], twin)]
        assert shapes[0] == shapes[1] and twin.question != problems[place].question
        assert twin.answer == str(calculation.evaluate(twin.meta["tree"]))


def test_a_twin_depends_on_its_place_alone_and_is_no_problem_of_the_set():
    problems = make_problems("Add 1 to 2?", "Add 3 to 4?", "I am 5. So?")
    made = twins.make_twins("renumbered,reordered", problems, 3)
    assert made["renumbered"][0] == twins.make_twins("renumbered", problems[:1], 3)["renumbered"][0]
    assert not twins_of("renumbered", *(f"Is {n} odd?" for n in range(1, 10)))  # every possible twin is a problem
    assert list(twins_of("reordered", "One two. Three?")) == [0]
    assert not twins_of("reordered", "One two. Three?", "Three?\n One  two.")  # which reads the same
    for names in ("mirrored", "renumbered,renumbered"):
        with pytest.raises(UserError, match=f"--twins={names}: give some of reordered, renumbered"):
            twins.make_twins(names, problems, 0)


# ----- memory

QUESTION = "coins 7 + 5 * 2 - 4 ="
FAMILY, CHAIN = memorisation.parse_chain(QUESTION)
ALGEBRA = memorisation.ALGEBRAS[FAMILY]


@pytest.mark.parametrize("kind, places, count", [
    ("other topic", {0}, 1), ("other start", {1}, 1), ("one operator", {2, 4, 6}, 1), ("one operand", {3, 5, 7}, 1),
    ("two operands", {3, 5, 7}, 2), ("three operands", {3, 5, 7}, 3)])
def test_twins_differ_in_what_their_kind_says(kind, places, count):
    made = memorisation.draw_twins(kind, np.random.default_rng(0), ALGEBRA, CHAIN, 64)
    problems = memorisation.to_problems(ALGEBRA, made)
    assert len({problem.prompt for problem in problems}) == len(problems) > 3
    for problem in problems:
        pairs = list(zip(problem.prompt.split(), QUESTION.split(), strict=True))
        different = {i for i, (word, own) in enumerate(pairs) if word != own}
        assert different <= places and len(different) == count
        values = values_of(problem.prompt, RIGHT_STEPS["arithmetic"])
        assert set(values) <= set(map(str, range(1, 25))) and problem.answer == values[-1]
        assert problem.meta["split"] in ("pretrain", "example", "dev", "test")


def test_all_twins_of_one_operand_are_found():
    """Compared with all twins, enumerated."""
    wanted = set()
    for place in range(3):
        for operand in range(1, 10):
            operands = list(CHAIN.operands)
            operands[place] = operand
            twin = CHAIN._replace(operands=tuple(operands))
            wanted |= {twin} if twin != CHAIN and memorisation.solve_chain(ALGEBRA, twin) else set()
    assert set(memorisation.draw_twins("one operand", np.random.default_rng(1), ALGEBRA, CHAIN, 1000)) == wanted


def test_a_longer_twin_begins_as_the_example_does():
    made = memorisation.draw_twins("one step longer", np.random.default_rng(0), ALGEBRA, CHAIN, 9)
    problems = memorisation.to_problems(ALGEBRA, made)
    for problem in problems:
        assert problem.prompt.startswith(QUESTION.removesuffix("=")) and len(problem.prompt.split()) == 11
    windows = [SimpleNamespace(tokenizer=families.make_tokenizer([FAMILY]), config=SimpleNamespace(max_seq_len=length))
               for length in (30, 31)]  # 11 tokens of the prompt and 20 of the solution
    assert [memorisation.fits_window(problems, one, 4, 20) for one in windows] == [False, True]


@pytest.mark.parametrize("question", ["", "What is 7 + 5?", "coins 7 + 5 * 2", "coins 7 = 5 =", "coins 20 + 9 =",
                                      "coins 7 + 24 =", "gate 7 + 5 =", "coins 7 + =", "coins 7 ="])
def test_what_is_no_chain_is_refused(question):
    with pytest.raises(UserError, match="twins of chains of arithmetic, boolean"):
        memorisation.parse_chain(question)


def test_accuracy_is_by_kind_and_by_split():
    made = [{"benchmark": kind, "problem": n, "prompt": "p", "correct": n < right, "split": ("dev", "pretrain")[n % 2]}
            for kind, right, count in (("the example", 1, 1), ("one operand", 3, 4)) for n in range(count)]
    found = memorisation.probe_memorisation({"m": made})
    one = found.record["files"]["m"]["one operand"]
    assert (one["accuracy"]["value"], one["problems"]) == (0.75, 4)
    assert (one["not_in_pretraining"]["value"], one["not_in_pretraining"]["n"]) == (1.0, 2)
    assert list(found.record["files"]["m"]) == ["the example", "one operand"]
    assert "Left out" in found.page and "one step longer" in found.page
    samples = [{"benchmark": "unseen", "problem": n, "prompt": "p", "correct": n == 0, "split": "test"}
               for n in (0, 1) for _ in range(50)]  # two problems are little evidence, however often they are asked
    one = memorisation.probe_memorisation({"m": samples}).record["files"]["m"]["unseen"]
    assert one["problems"] == 2 and one["accuracy"]["interval"] == [0.0, 1.0]


# ----- the command

def config(tmp_path, **flags):
    return probe.ProbeConfig.from_flags(out=str(tmp_path / "out"),
                                        **{"num_ops": 2, "max_new_tokens": 10, "max_problems": 12} | flags)


def read_outputs(tmp_path, name):
    out = tmp_path / "out"
    assert {f"{name}.json", f"{name}.md", f"{name}_items.jsonl"} <= {path.name for path in out.iterdir()}
    return json.loads((out / f"{name}.json").read_text()), read_jsonl(out / f"{name}_items.jsonl")


def test_coherence_of_kept_completions_and_of_a_model_are_the_same(tmp_path, base):
    evaluate(EvaluateConfig.from_flags(model=str(base), out=str(tmp_path / "eval"), num_ops=2, max_new_tokens=10,
                                       max_problems=12))
    sampled = probe.run_probe(config(tmp_path, model=str(base)))
    record, items = read_outputs(tmp_path, "coherence")
    assert (tmp_path / "out" / "coherence.png").stat().st_size > 5000 and len(items) == 12
    again = probe.run_probe(config(tmp_path / "2", completions=str(tmp_path / "eval" / "completions.jsonl")))
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
    found = probe.run_probe(config(tmp_path, model=str(base), problems=",".join(files), fractions=(0.4, 0.8), **flags))
    record, items = read_outputs(tmp_path, "contamination")
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
    again = probe.run_probe(config(tmp_path / "2", completions=kept_rows, **flags))
    assert list(again.record["files"].values()) == [json.loads(json.dumps(found.record))["files"][file]]
    for flag, says in (({"temperature": 1.0}, "one greedy completion without a template"),
                       ({"prompt_style": "chat"}, "one greedy completion without a template"),
                       ({"twins": "reordered"}, "no question of arithmetic has a twin that is reordered"),
                       ({"fractions": (0.1,)}, "no question of arithmetic has enough words")):
        with pytest.raises(UserError, match=says):
            probe.run_probe(config(tmp_path / "3", probe="contamination", model=str(base), **flag))
    with pytest.raises(UserError, match="other flags: .*--probe"):
        probe.run_probe(config(tmp_path, probe="memory", model=str(base), example="coins 3 + 4 * 2 ="))


def test_memory_of_a_run_that_chose_its_example(tmp_path, base):
    run = tmp_path / "run"
    train(TrainConfig.from_flags(model=str(base), run_dir=str(run), num_ops=2, num_prompts=2, group_size=2, num_steps=1,
                                 max_new_tokens=10, eval_size=4, remat=False, heldout="none", example_pool=4))
    trained = json.loads((run / "example.json").read_text())
    found = probe.run_probe(config(tmp_path, probe="memory", model=str(run)))
    record, items = read_outputs(tmp_path, "memory")
    one = next(iter(record["files"].values()))
    assert list(one)[0] == "the example" and list(one)[-1] == "unseen" and one["the example"]["problems"] == 1
    assert "one step longer" not in one and "Left out" in found.page  # it does not fit the window of this base model
    assert [(item["prompt"], item["answer"]) for item in items if item["benchmark"] == "the example"] == [
        (trained["question"], trained["answer"])]
    of_base = probe.run_probe(config(tmp_path / "2", probe="memory", model=str(base), example=str(run)))
    assert [item["prompt"] for item in of_base.items] == [item["prompt"] for item in items]
    with pytest.raises(UserError, match="has no example.json"):
        probe.run_probe(config(tmp_path / "3", probe="memory", model=str(base)))


def read_page_items(html):
    """The items in the page's data."""
    return json.loads(html.split('id="data">')[1].split("</script>")[0])


@pytest.mark.parametrize("name", probe.PROBES)
def test_every_probe_has_a_page_of_its_items(tmp_path, name):
    path = write_jsonl(tmp_path / "a.jsonl", *map(as_any_probe, kept_completions(*HOSTILE)))
    found = probe.run_probe(config(tmp_path, probe=name, completions=path))
    html = (tmp_path / "out" / f"{name}.html").read_text()
    assert (html.count("<script"), html.count("</script>"), html.count("<img")) == (2, 2, 1) and "{{ 1 }}" in html
    assert "<table>" in html and f"--probe={name}" in html
    shown = read_page_items(html)
    assert len(shown) == len(found.items) == 4
    for one in shown:
        assert one["verdicts"] and one["texts"]["Prompt"] == PROBED
    assert {text for one in shown for label, text in one["texts"].items() if "Completion" in label} == set(HOSTILE)


def test_a_page_with_many_items_has_some_and_says_where_all_are(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_ITEMS", 3)
    monkeypatch.setattr(page, "MAX_BYTES", 2000)
    path = write_jsonl(tmp_path / "a.jsonl", *kept_completions(*["x" * 4000] * 9))
    probe.run_probe(config(tmp_path, completions=path))
    html = (tmp_path / "out" / "coherence.html").read_text()
    assert "3 of 9, evenly spread; all of them in <a href=\"coherence_items.jsonl\">" in html
    assert [one["facts"]["problem"] for one in read_page_items(html)] == ["0", "4", "8"]
    assert len(json.dumps(read_page_items(html))) < 5000 and "characters left out" in html


def test_a_probe_is_a_row(tmp_path, monkeypatch):
    """The extension point: a function of the flags that returns a result."""
    def lengths(flags):
        """Words of a completion."""
        words = {name: [len(row["completion"].split()) for row in kept]
                 for name, kept in probe.load_rows(flags, ()).items()}
        return rows.Result({"words": words}, f"{words}\n", lambda sheet: sheet.subplots().hist(*words.values()),
                          [{"prompt": "<p>", "short": True, "steps": 3, "completions": 2}, {"short": False, "x": None}])

    monkeypatch.setitem(probe.PROBES, "lengths", lengths)
    probe.run_probe(config(tmp_path, probe="lengths",
                           completions=write_jsonl(tmp_path / "a.jsonl", *kept_completions(GUESS))))
    record = read_outputs(tmp_path, "lengths")[0]
    assert record["words"] == {"a": [2]}
    shown = (f"`python -m scripts.probe --num_ops=2 --max_new_tokens=10 --max_problems=12 --probe=lengths "
             f"--completions={tmp_path}/a.jsonl`, commit ")
    assert record["origin"].startswith(shown) and record["origin"] in (tmp_path / "out" / "lengths.md").read_text()
    html = (tmp_path / "out" / "lengths.html").read_text()  # booleans are filters by default
    assert "Words of a completion." in html and '<select name="short">' in html
    assert [one["verdicts"] for one in read_page_items(html)] == [{"short": "yes"}, {"short": "no"}]
    assert read_page_items(html)[0]["facts"]["steps"] == "3"


def test_what_cannot_be_probed_is_said(tmp_path):
    path, odd = (write_jsonl(tmp_path / f"{prompt}.jsonl", {"completion": "x", "answer": "1", "prompt": prompt})
                 for prompt in ("p", 7))
    for flags, says in [({"completions": odd}, "completion 1 has no prompt"),
                        ({}, "give one of --completions"), ({"completions": path, "model": "m"}, "give one of"),
                        ({"completions": str(tmp_path / "nowhere.jsonl")}, "no such file"),
                        ({"completions": f"{path},{path}"}, "names a file twice"),
                        ({"completions": path, "probe": "memory"}, "has no correct, which --probe=memory"),
                        ({"completions": write_jsonl(tmp_path / "no.jsonl", {"prompt": "p", "correct": "no",
                         "completion": "x", "answer": "1"}),
                          "probe": "boundary"}, "has no correct, which --probe=boundary"),
                        ({"completions": path, "probe": "contamination"}, "has no rest, which")]:
        with pytest.raises(UserError, match=says):
            probe.run_probe(config(tmp_path, **flags))
    with pytest.raises(UserError, match="--out is required"):
        probe.run_probe(config(tmp_path).with_flags(out=""))


@pytest.mark.parametrize("flags, says", [({"num_samples": 4}, "--num_samples=4 at --temperature=0 are one completion"),
                                         ({"cut": 5}, "--probe=memory samples by"),
                                         ({"protocol": "one_shot"}, "--probe=memory samples by")])
def test_the_memory_probe_refuses_flags_that_it_cannot_follow(flags, says):
    with pytest.raises(UserError, match=says):
        memorisation.make_benchmarks(EvaluateConfig.from_flags(**flags), QUESTION, None)


@pytest.mark.parametrize("flags, title", [
    ({"completions": "runs/one/completions.jsonl"}, "Coherence of the completions in one"),
    ({"completions": "runs/base.jsonl,runs/one.jsonl"}, "Coherence of the completions in base, one"),
    ({"completions": "x/c.jsonl,y/c.jsonl"}, "Coherence of the completions in x, y"),
    ({"completions": "x/1/c.jsonl,y/1/c.jsonl"}, "Coherence of the completions in x/1/c.jsonl, y/1/c.jsonl"),
    ({"model": "runs/base@3", "probe": "memory"}, "Memory of the model base@3")])
def test_the_title_of_a_page_says_whose_completions_these_are(flags, title):
    assert probe.page_title(probe.ProbeConfig.from_flags(**flags)) == title
