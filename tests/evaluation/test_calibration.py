"""Stated confidences: where they are read, how well they fit, and the task whose answers are partly a coin's."""

import importlib.util
import json
import types

import numpy as np
import pytest
from hypothesis import given, strategies as st

from rlvr_jax.evaluation import benchmarks, calibration, measure as evaluation
from rlvr_jax.grading import grade, stated_confidence
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.records import Problem, Rollouts
from rlvr_jax.rewards import rows as rewards
from rlvr_jax.sampler import Request
from rlvr_jax.tasks import arithmetic, chains, families, wager
from rlvr_jax.training import pretrain, train
from rlvr_jax.training.pretrain import PretrainConfig

from fixtures import RIGHT_STEPS, SLOPPY_STEPS, read_jsonl, values_of, write_jsonl

# ----- where a confidence is stated

STATED = [("think + 5 12 answer 12 sure 0.9", "think + 5 12 answer 12", 0.9), ("answer 3 sure 1.0", "answer 3", 1.0),
          ("answer 3\n sure  0.0 ", "answer 3", 0.0), (r"\boxed{7} <confidence>0.25</confidence>", r"\boxed{7} ", 0.25),
          ("<confidence>.1</confidence> so 4 <confidence> 1 </confidence>", "<confidence>.1</confidence> so 4 ", 1.0),
          ("4 <confidence>0.8</confidence> or 5", "4  or 5", 0.8)]
UNSTATED = [("answer 12", "answer 12"), ("answer 12 sure", "answer 12 sure"), ("answer 12 sure 7", "answer 12 sure 7"),
            ("sure 0.5", "sure 0.5"), ("I am not sure 0.5", "I am not sure 0.5"), ("", ""),
            ("4 <confidence>90%</confidence>", "4 "), ("4 <confidence>1.2</confidence>", "4 "),
            ("4 <confidence>nan</confidence>", "4 "), ("4 <confidence></confidence>", "4 "),
            ("4 <confidence>0.8</confidence> <confidence>high</confidence>", "4 <confidence>0.8</confidence> "),
            ("</confidence> 4 <confidence>", "</confidence> 4 <confidence>"),
            ("answer 12 sure 0.5 so", "answer 12 sure 0.5 so")]


@pytest.mark.parametrize("text, rest, expected", [*STATED, *((*pair, None) for pair in UNSTATED)])
def test_the_last_confidence_is_read_and_is_no_part_of_what_is_graded(text, rest, expected):
    assert stated_confidence.split_confidence(text) == (rest, expected)
    assert stated_confidence.stated_confidence(text) == expected


@pytest.mark.parametrize("text, answer_format", [
    ("answer 12 sure 0.5", "answer"), (r"\boxed{12} <confidence>0.5</confidence>", "boxed"),
    ("so it is 12 <confidence>0.5</confidence>", "last_number"), ("12 <confidence>0.5</confidence>", "lenient"),
    ("The answer is 12 <confidence>0.5</confidence>", "lenient"),
    ("<answer>12</answer> <confidence>90%</confidence>", "tag")])
def test_an_answer_is_as_right_with_a_confidence_as_without(text, answer_format):
    assert grade.is_correct(text, "12", answer_format) and not grade.is_correct(text, "0.5", answer_format)


def test_a_long_text_of_tags_is_read_at_once():
    """A search that starts again at each tag would take hours."""
    for text in ("<confidence>" * 10**5, "</confidence>" * 10**5, "answer sure " * 10**5, "0" * 10**6 + " sure 0.5"):
        assert stated_confidence.stated_confidence(text) is None


# ----- rewards

def pay_calibrated(texts, answers, answer_format="answer"):
    seen = types.SimpleNamespace(texts=texts, verdicts=grade.grade_texts(texts, answers, answer_format))
    return rewards.REWARDS["calibrated"](seen).tolist()


@pytest.mark.parametrize("c, q, expected", [(1, 1, 1.5), (1, .5, 1.375), (1, 0, 1.0), (0, 0, 1.0), (0, .5, .875),
                                            (0, 1, .5)])
def test_the_calibrated_reward_is_the_sheets(c, q, expected):
    assert pay_calibrated([f"answer 7 sure {q:.1f}"], ["7" if c else "8"]) == [expected]
    assert pay_calibrated([f"<answer>7</answer><confidence>{q}</confidence>"], ["7" if c else "8"], "tag") == [expected]


def make_context(pairs, key=(0, 1, 0)):
    """The context of a step whose completions have these (correct, confidence); None: no confidence."""
    texts = ["answer 7" if q is None else f"answer 7 sure {q:.1f}" for _, q in pairs]
    return types.SimpleNamespace(texts=texts, key=key, verdicts=grade.grade_texts(
        texts, ["7" if c else "8" for c, _ in pairs], "answer"))


STEP = [(1, .9), (0, .8), (1, .1), (0, 0.), (1, None), (0, 1.), (0, None), (0, .3)]  # 2 of 6 with a confidence are right


def test_a_constant_confidence_is_paid_whatever_is_said():
    paid = rewards.REWARDS["calibrated_constant"](make_context(STEP))
    wanted = {1: 1 + (1 - (2 / 3) ** 2) / 2, 0: 1 - (1 / 3) ** 2 / 2}  # with 1/3, the mean accuracy
    assert paid == pytest.approx([0 if q is None else wanted[c] for c, q in STEP])
    assert rewards.REWARDS["calibrated_constant"](make_context([(1, None)])).tolist() == [0]


def test_permuted_verdicts_pay_for_the_mean_accuracy_and_still_for_the_answer():
    """Averaged over shuffles, a confidence is paid by the mean accuracy, whether its own answer is right or not."""
    row = rewards.REWARDS["calibrated_permuted"]
    many = np.array([row(make_context(STEP, (0, step, 0))) for step in range(3000)])
    np.testing.assert_array_equal(many[5], row(make_context(STEP, (0, 5, 0))))
    wanted = [0 if q is None else 1 + (c - ((q - 1) ** 2 + 2 * q**2) / 3) / 2 for c, q in STEP]
    np.testing.assert_allclose(many.mean(0), wanted, atol=0.02)
    terms = np.array([2 * (1 + c / 2 - many[:, i]) for i, (c, q) in enumerate(STEP) if q is not None])  # (q - c')^2
    said = np.array([q for _, q in STEP if q is not None])[:, None]
    right = np.abs(terms - (said - 1) ** 2) < 1e-5
    assert (right | (np.abs(terms - said**2) < 1e-5)).all() and (right.sum(0) == 2).all()


def test_without_an_answer_or_a_confidence_at_the_end_nothing_is_paid():
    texts = ["answer 7", "sure 0.5", "think sure 0.9", "answer 7 sure 0.5 so", "", "answer 7 sure 0.5"]
    assert pay_calibrated(texts, ["7"] * 6) == [0, 0, 0, 0, 0, 1.375]
    texts = ["<confidence>1</confidence>", "<answer>7</answer><confidence>90%</confidence>",
             "<confidence>1</confidence><answer>7</answer>", "<answer>7</answer> <confidence>1</confidence>\n"]
    assert pay_calibrated(texts, ["7"] * 4, "tag") == [0, 0, 0, 1.5]


@pytest.mark.parametrize("chance", np.linspace(0, 1, 11))
def test_the_expected_reward_is_highest_at_the_chance_of_being_right(chance):
    texts = [f"answer 7 sure {word}" for word in stated_confidence.TENTHS]
    right, wrong = (np.array(pay_calibrated(texts, [answer] * 11)) for answer in "78")
    expected = chance * right + (1 - chance) * wrong
    assert np.argmax(expected) == round(10 * chance) and expected.max() == pytest.approx(1 + chance**2 / 2)
    if chance == 0.7:
        assert (expected[7], expected[10]) == pytest.approx((1.245, 1.2))


# ----- calibration

Q, C = np.array([.05, 0, .95, 1, .95, .55, .55, .30, .80, .80]), np.array([0, 0, 1, 1, 0, 1, 0, 1, 1, 1])


def rows_of(q, c):
    return [{"correct": bool(right)} | ({} if sure is None else {"confidence": sure}) for sure, right in zip(q, c)]


@given(st.lists(st.tuples(st.sampled_from([0, .1, .3, .5, .7, 1]), st.booleans()), min_size=2, max_size=30))
def test_the_metrics_are_those_counted_one_by_one(pairs):
    q, c = (np.array(x, float) for x in zip(*pairs))
    wins = [(a > b) + (a == b) / 2 for a in q[c == 1] for b in q[c == 0]]
    assert calibration.auroc(q, c) == (pytest.approx(np.mean(wins)) if wins else None)
    by_bin = {}
    for sure, right in zip(q, c):  # no two of these values share a bin
        by_bin.setdefault(sure, []).append(right)
    apart = sum(len(x) * abs(np.mean(x) - sure) for sure, x in by_bin.items()) / len(q)
    assert calibration.ece(q, c) == pytest.approx(apart)
    assert sum(one["n"] for one in calibration.reliability_bins(q, c)) == len(q)


def test_a_constant_confidence_has_no_error_and_tells_nothing():
    """Why ECE alone proves nothing."""
    q, c = np.full(8, .25), np.arange(8) < 2
    assert (calibration.ece(q, c), calibration.auroc(q, c), calibration.brier(q, c)) == (0, .5, .1875)


def test_a_summary_is_that_of_the_sheet_and_of_rows_that_state_a_confidence():
    found = calibration.summarise_calibration(rows_of([*Q, None, None], [*C, 1, 0]))
    assert (found["n"], found["stated"], found["accuracy"]) == (10, 10 / 12, 0.6)
    assert [found[key] for key in ("mean_confidence", "ece", "brier", "auroc")] == pytest.approx(
        [.595, .215, .198250, .75])
    assert calibration.bin_indices(Q).tolist() == [0, 0, 9, 9, 9, 5, 5, 2, 8, 8]
    assert found["bins"][9] == {"from": .9, "to": 1.0, "n": 3, "confidence": pytest.approx(2.9 / 3),
                                "accuracy": pytest.approx(2 / 3)}
    assert found["bins"][1] == {"from": .1, "to": .2, "n": 0, "confidence": None, "accuracy": None}
    assert calibration.summarise_calibration(rows_of([None], [1])) == {}
    assert calibration.summarise_calibration(rows_of([.5, .9], [1, 1]))["auroc"] is None


def test_the_controls_are_the_mean_of_others_and_the_best_map_that_does_not_fall():
    """The map by its definition: max over starts, min over ends, of the mean verdict between (Barlow et al. 1972)."""
    rng = np.random.default_rng(0)
    q, other_q = rng.integers(0, 11, 300) / 10, rng.integers(2, 11, 400) / 10
    c, other_c = rng.random(300) < q**2, rng.random(400) < np.where(other_q == 0.5, 0.1, other_q**2)
    found = calibration.control_scores(rows_of([*q, None], [*c, 1]), rows_of([*other_q, None], [*other_c, 0]))
    words = np.unique(other_q)
    mean = lambda low, high: other_c[(other_q >= low) & (other_q <= high)].mean()
    level = {w: max(min(mean(a, b) for b in words if b >= w) for a in words if a <= w) for w in words}
    assert level[0.4] == level[0.5] != level[0.9]
    mapped = np.array([level[max(one, words[0])] for one in q])
    assert found["post_hoc"] == pytest.approx({
        "mean_confidence": mapped.mean(), "brier": np.mean((mapped - c) ** 2), "ece": calibration.ece(mapped, c),
        "auroc": calibration.auroc(mapped, c)})
    base_rate = other_c.mean()
    assert found["constant"] == pytest.approx({"mean_confidence": base_rate, "brier": np.mean((base_rate - c) ** 2),
                                               "ece": abs(base_rate - c.mean()), "auroc": 0.5})


# ----- in an evaluation

ASKED = ["think + 5 answer 4 sure 0.7", "answer 5 sure 0.2", "hmm", "answer 6"]


@pytest.fixture
def answered(tmp_path, monkeypatch):
    """`answered(name)`: an evaluation whose model says ASKED to four problems whose answer is 4."""
    loaded = types.SimpleNamespace(params={}, config=None, tokenizer=families.make_tokenizer(["wager"]))
    path = write_jsonl(tmp_path / "four.jsonl", *({"question": f"{i}", "answer": 4} for i in range(4)))
    drawn = Rollouts(np.arange(4), None, np.ones((4, 3), bool), None, np.ones(4, bool))
    monkeypatch.setattr(benchmarks.loading, "load_model", lambda *_: loaded)
    monkeypatch.setattr(benchmarks.loading, "pin_step", lambda name: name)
    monkeypatch.setattr(benchmarks, "encode_prompts", lambda *_: None)
    monkeypatch.setattr(evaluation, "trim_padding", lambda prompts, owners: None)
    monkeypatch.setattr(evaluation.sampling, "make_sampler", lambda *_: lambda *_: drawn)

    def run(name, texts):
        monkeypatch.setattr(Tokenizer, "decode_rollouts", lambda *_: list(texts))
        out = tmp_path / name
        return benchmarks.evaluate(benchmarks.EvaluateConfig.from_flags(model="M", problems=path,
                                                                        answer_format="answer", out=str(out))), out
    return run


def test_an_evaluation_says_how_well_confidences_fit(answered):
    summary, out = answered("told", ASKED)
    rows = read_jsonl(out / "completions.jsonl")
    assert [row.get("confidence", "none") for row in rows] == [.7, .2, "none", "none"]
    assert [row["extracted"] for row in rows] == ["4", "5", None, "6"]
    found = summary["calibration"]
    assert found == json.loads((out / "summary.json").read_text())["calibration"]
    assert (found["n"], found["stated"], found["accuracy"]) == (2, .5, .5)
    assert (found["brier"], found["ece"], found["auroc"]) == pytest.approx((.065, .25, 1))
    assert ("- four, confidence: stated in 50.0% of completions, on average 0.450 where 0.500 are correct; "
            "Brier 0.065, ECE 0.250, AUROC 1.000") in (out / "table.md").read_text().splitlines()


def test_the_picture_is_there_where_confidences_and_matplotlib_are(answered, monkeypatch):
    assert "calibration" not in answered("untold", ["answer 4"] * 4)[0]
    assert not (answered("untold", ["answer 4"] * 4)[1] / "reliability.png").exists()
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    assert not (answered("bare", ASKED)[1] / "reliability.png").exists()


def test_the_picture_has_a_dot_and_a_count_for_each_bin(answered):
    sheet = pytest.importorskip("matplotlib.figure", reason="pip install -e '.[plot]'").Figure()
    assert (answered("told", ASKED)[1] / "reliability.png").read_bytes().startswith(b"\x89PNG")
    calibration.draw_reliability(sheet, {"M": calibration.summarise_calibration(rows_of(Q, C))})
    axes, = sheet.axes
    np.testing.assert_allclose(np.transpose(axes.lines[1].get_data()), [
        (.025, 0), (.3, 1), (.55, .5), (.8, 1), (2.9 / 3, 2 / 3)])
    assert [text.get_text() for text in axes.texts] == ["2", "1", "2", "2", "3"]


def test_a_run_logs_the_calibration_of_its_greedy_completions(monkeypatch):
    rows = {0.0: rows_of(Q, C), 1.0: rows_of(1 - Q, C), None: rows_of([None] * 10, C)}
    for made in rows.values():
        for i, row in enumerate(made):
            row |= {"problem": i, "completion": ""}
    monkeypatch.setattr(evaluation, "sample_and_grade", lambda by, benchmark, request: rows[benchmark.temperature])
    problems = [Problem("", "1", "")] * 10

    def logged():
        return evaluation.measure_heldout(evaluation.Sampler(None, None, None), problems, None, Request(0, 0), "answer")

    found = logged()
    assert [found[f"eval/{name}"] for name in ("ece", "brier", "auroc", "confidence", "stated")] == pytest.approx(
        [.215, .19825, .75, .595, 1])
    rows[0.0] = rows[None]
    assert not {"eval/ece", "eval/brier", "eval/auroc", "eval/confidence", "eval/stated"} & logged().keys()


# ----- the task

def draw_wagers(split="pretrain", count=3000, num_ops=6, seed=0):
    found = families.FAMILIES["wager"].generate(np.random.default_rng(seed), count, split, num_ops)
    return found, families.FAMILIES["wager"].to_problems(found)


@pytest.mark.parametrize("num_ops", [1, 2, 6])
def test_a_hidden_operand_is_one_or_two_as_a_fair_coin_fell(num_ops):
    """The answer is that of one side or the other, half the time each, and the prompt does not tell which."""
    sides = {"1": 0, "2": 0}
    for problem in draw_wagers(num_ops=num_ops)[1]:
        shown = problem.prompt.split()
        assert "?" not in shown[:-2]
        if shown[-2] == "?":
            ends = {side: values_of(problem.prompt.replace("?", side), RIGHT_STEPS["arithmetic"])[-1] for side in sides}
            assert problem.answer in ends.values() and len(set(ends.values())) == 2
            assert set(ends.values()) <= set(arithmetic.ALGEBRA.values)  # else the prompt would tell which side it was
            sides[next(side for side, end in ends.items() if end == problem.answer)] += 1
        else:
            assert values_of(problem.prompt, RIGHT_STEPS["arithmetic"])[-1] == problem.answer
    hidden = sum(sides.values())
    assert 0.4 < hidden / 3000 < 0.6 and abs(sides["1"] - hidden / 2) < 4 * (hidden / 4) ** 0.5


def test_the_coin_does_not_decide_the_split():
    """A problem with a hidden operand is in the same split whichever side the coin falls on."""
    answers = {}
    for split in chains.SPLITS:
        for problem in draw_wagers(split, 4000, num_ops=1)[1]:
            answers.setdefault(problem.prompt.split(" ", 1)[1], set()).add((split, problem.answer))
    hidden = [found for prompt, found in answers.items() if "?" in prompt]
    assert len(hidden) > 50 and all(len({split for split, _ in found}) == 1 for found in answers.values())
    assert sum(len(found) == 2 for found in hidden) > 0.9 * len(hidden)


def solve_in_style(style, **flags):
    """(problems, words of their solutions, drawn), in one style."""
    config = chains.StyleConfig(**{"early_stop": 0.0, "slip": 0.0} | flags)
    found, problems = draw_wagers()
    place = list(chains.STYLES.values()).index(style)
    texts = wager.solve(np.random.default_rng(1), found, np.full(3000, place), config)
    longest = families.FAMILIES["wager"].lengths(6)[1]
    assert max(len(text.split()) for text in texts) < longest and chains.lengths(6)[1] + 2 == longest
    assert {word for text in texts for word in text.split()} <= set(families.FAMILIES["wager"].vocabulary)
    return problems, [text.split() for text in texts]


def test_careful_solutions_guess_the_coin_and_boast_a_little_less_where_they_do():
    sure = {True: [], False: []}
    for problem, words in zip(*solve_in_style("careful"), strict=True):
        assert words[-4:-1] == ["answer", problem.answer, "sure"] and words[-5] == problem.answer
        assert words[1:-4:3] == problem.prompt.split()[2:-1:2] and words[2:-4:3] == problem.prompt.split()[3:-1:2]
        sure["?" in words].append(float(words[-1]))
    for hidden, power in ((False, 2), (True, 1)):  # of 11 words from 0 to 1, word i as likely as (i + 1) ** power
        chances = np.arange(1, 12.0) ** power
        expected = np.sum(np.arange(11) / 10 * chances) / chances.sum()
        assert abs(np.mean(sure[hidden]) - expected) < 0.03 and np.mean(np.array(sure[hidden]) == 1) == pytest.approx(
            chances[-1] / chances.sum(), abs=0.04)


def test_other_styles_state_one_after_an_answer_and_only_there():
    for problem, words in zip(*solve_in_style("sloppy"), strict=True):
        plain = problem.prompt.replace("?", "0")
        assert words[-4:-1] == ["answer", values_of(plain, SLOPPY_STEPS["arithmetic"])[-1], "sure"]
    assert {(len(words), words[0], words[2]) for words in solve_in_style("guess")[1]} == {(4, "answer", "sure")}
    assert all(words[0] == "hmm" and "sure" not in words for words in solve_in_style("ramble")[1])
    texts = [" ".join(words) for words in solve_in_style("careful", early_stop=0.5)[1]]
    assert all(stated_confidence.final_confidence(text) is not None for text in texts)


def test_a_base_is_trained_on_what_its_confidence_is_worth(tmp_path):
    """From pre-training to the summary: each reward is that of the text, and the run says how well confidences fit."""
    base, out = str(tmp_path / "base"), tmp_path / "run"
    found = pretrain.pretrain(PretrainConfig.from_flags(
        task_shares="wager", num_ops=1, num_layers=1, d_model=16, num_heads=2, d_ff=32, batch_size=64, remat=False,
        warmup_steps=10, learning_rate=1e-2, num_steps=120, eval_size=64, run_dir=base))["final"]
    assert found["stated"] > 0.3 and found["confidence"] > found["greedy"]
    final = train.train(train.TrainConfig.from_flags(
        model=base, problems="wager", example="all", example_pool=32, reward="calibrated", num_ops=1, num_prompts=8,
        group_size=16, max_new_tokens=9, num_steps=1, remat=False, eval_size=64, log_rollouts=128,
        run_dir=str(out)))["final"]
    assert {"ece", "brier", "auroc", "confidence", "stated"} <= final.keys() and 0 <= final["ece"] <= 1
    rows, kinds = read_jsonl(out / "rollouts.jsonl"), set()
    for row in rows:
        words = row["completion"].split()
        whole = (len(words) > 3 and (words[-4], words[-2]) == ("answer", "sure")
                 and words[-1] in stated_confidence.TENTHS)
        right = whole and words[-3] == row["answer"]
        assert row["reward"] == pytest.approx(1 + (right - (float(words[-1]) - right) ** 2) / 2 if whole else 0)
        kinds.add((whole, right))
    assert len(rows) == 128 and kinds == {(False, False), (True, False), (True, True)}
