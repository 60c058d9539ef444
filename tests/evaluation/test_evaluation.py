"""Estimators against values found by counting; evaluations that stop anywhere and continue; the table."""

import collections
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import signal
import types

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from rlvr_jax import sampler as sampling
from rlvr_jax.errors import Interrupted, UserError
from rlvr_jax.evaluation import benchmarks, completions, estimators, measure as evaluation, regrade
from rlvr_jax.evaluation.benchmarks import EvaluateConfig
from rlvr_jax.evaluation.measure import Benchmark
from rlvr_jax.grading import grade
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.records import Problem, Prompts, Rollouts
from rlvr_jax.sampler import Request, SamplingConfig
from rlvr_jax.tasks import prompts
from rlvr_jax.tasks.answers import GradingConfig
from rlvr_jax.training.train import TrainConfig

from fixtures import count_lines, heldout_of, load_problems, make_scorer, read_jsonl, run, write_jsonl


@settings(deadline=None, max_examples=200)
@given(*(st.integers(1, most) for most in (8, 40, 7, 30)))
def test_which_prompt_and_number_a_row_has_depends_on_nothing_but_the_row(devices, rows_per_call, num_samples, count):
    """Over all calls of a measurement, which may begin and end between samples of one problem and share one shape."""
    shapes, asked = set(), Prompts(np.arange(100, 100 + count)[:, None], np.ones(count, int))

    def sample(params, prompts, owners, request):
        local, index, numbers = sampling.spread_rows(prompts, owners, request, devices)
        shapes.add((local.tokens.shape, index.shape))
        seen = np.stack([np.take_along_axis(local.tokens[..., 0], index, 1).ravel(), numbers.ravel()], 1)
        return Rollouts(owners, seen[: len(owners)], np.ones((len(owners), 1), bool), None, np.ones(len(owners), bool))

    sampler = evaluation.Sampler(sample, None,
                                 types.SimpleNamespace(decode_rollouts=lambda rollouts: rollouts.completions))
    problems = [Problem("", "", "")] * count
    benchmark = Benchmark("any", problems, asked, lambda texts, _: [{}] * len(texts), num_samples, 1.0)
    rows = list(evaluation.sample_and_grade(sampler, benchmark, Request(0, 0), rows_per_call))
    wanted = [[100 + number // num_samples, number] for number in range(count * num_samples)]
    assert [list(row["completion"]) for row in rows] == wanted and len(shapes) == 1


# ----- estimators

@pytest.mark.parametrize("n, c, k, expected", [(8, 2, 1, 0.25), (8, 2, 4, 0.785714), (8, 2, 7, 1), (16, 1, 8, 0.5),
                                               (256, 3, 64, 0.579782), (8, 0, 8, 0)])
def test_pass_at_k_of_the_sheet(n, c, k, expected):
    assert estimators.pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("given, text", [
    ((0.8954, (0.7, 1.0)), "0.895 [0.700, 1.000]"), ((0.0001, (-0.003, 0.003)), "0.000 [-0.003, 0.003]"),
    ((3.5e-7, (-1.6e-7, 8.7e-7)), "3.5e-07 [-1.6e-07, 8.7e-07]"), ((9.2e-5,), "9.2e-05"), ((1.5e-32,), "0.000"),
    ((0.0,), "0.000"), ((12.0,), "12"), ((31_655.4,), "31,655"), ((None,), "-")])
def test_numbers_are_shown_with_three_decimals_unless_these_would_all_be_0(given, text):
    assert estimators.format_estimate(*given) == text


@pytest.mark.parametrize("n, c, k", list(itertools.product([6], range(7), range(1, 7))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n, c, k):
    subsets = list(itertools.combinations(range(n), k))
    assert estimators.pass_at_k(n, c, k) == pytest.approx(np.mean([min(s) < c for s in subsets]))


@pytest.mark.parametrize("answers", ["a a b b", "a b b c c", "a - - -", "- - - -", "b b a - c", "a a a b b - c c c",
                                     "a b a c b a b a"])
def test_maj_at_k_is_the_expected_vote_over_subsets(answers):
    """"a" is right, "-" no answer: counted one by one, ties shared. The last is the sheet's."""
    answers = [answer.strip("-") for answer in answers.split()]
    for k in range(1, len(answers) + 1):
        votes = []
        for subset in itertools.combinations(answers, k):
            counts = collections.Counter(answer for answer in subset if answer)
            best = [answer for answer in counts if counts[answer] == max(counts.values())]
            votes.append(("a" in best) / len(best) if best else 0)
        assert estimators.maj_at_k(answers, [answer == "a" for answer in answers], k) == pytest.approx(np.mean(votes))


@pytest.mark.parametrize("k", [3, 8, 33])
def test_maj_at_k_of_many_samples_is_close_to_the_exact_chance(k):
    """Two answers, 24 right ones in 40: the hypergeometric distribution, half of a draw."""
    ways = [math.comb(24, right) * math.comb(16, k - right) / math.comb(40, k) for right in range(k + 1)]
    exact = sum(way * ((2 * right > k) + 0.5 * (2 * right == k)) for right, way in enumerate(ways))
    answers = ["a", "b", "a", "b", "a"] * 8
    found = estimators.maj_at_k(answers, [answer == "a" for answer in answers], k)
    assert found == pytest.approx(exact, abs=0.04)  # 1000 subsets: a standard error of at most 0.016
    assert found == estimators.maj_at_k(answers, [answer == "a" for answer in answers], k)
    assert (estimators.subsets(40, k).sum(-1) == k).all()


def test_the_bootstrap_is_as_wide_as_theory_says():
    """Over problems: four equal samples of each are no more evidence than one."""
    values = np.repeat([0.0, 1.0], 200)
    low, high = estimators.bootstrap(values)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.004)
    others = 1.96**2 / (30 + 1.96**2)  # Wilson's upper end for none of 30
    for span, wanted in (((0, 1), (.25 - others / 4, .25 + others * .75)), ((0, np.inf), (.25, .25)),
                         ((-1, 1), (.25 - others * 1.25, .25 + others * .75))):
        assert estimators.bootstrap(np.full(30, .25), span) == pytest.approx(wanted, abs=1e-5)
    assert estimators.bootstrap([0.0] * 8) == pytest.approx(estimators.wilson(0, 8))
    rows = make_graded_rows([[value] * 4 for value in values], [["7"] * 4] * 400)
    assert estimators.summarise_rows(rows, 4)["interval"] == (low, high)


def make_graded_rows(correct, extracted):
    """Rows as `sample_and_grade` makes them, from lists of each problem's samples."""
    return [{"correct": bool(c), "extracted": e, "timed_out": False, "truncated": j == 0, "num_tokens": 3 + j}
            for cs, es in zip(correct, extracted) for j, (c, e) in enumerate(zip(cs, es))]


def test_a_summary_averages_over_problems():
    right = [[i < c for i in range(8)] for c in (0, 2, 8)]
    extracted = [["4", "4", "4", "4", "4", None, None, None], ["1,000", "1000", "5", "6", "7", "8", "", " "], ["9"] * 8]
    found = estimators.summarise_rows(make_graded_rows(right, extracted), 8)
    assert (found["n"], found["num_samples"], found["timed_out"]) == (3, 8, 0)
    assert found["accuracy"] == pytest.approx(10 / 24) == pytest.approx(found["pass@k"]["1"])
    assert found["pass@k"]["4"] == pytest.approx(0.595238, abs=1e-6)
    assert found["maj@k"]["8"] == pytest.approx(2 / 3) and list(found["maj@k"]) == ["1", "2", "4", "8"]
    assert (found["truncated"], found["num_tokens"]) == (1 / 8, 6.5)
    assert found["accuracy_of_ended"] == pytest.approx(8 / 21)  # of each problem the first was cut
    low, high = found["interval"]
    assert low < 10 / 24 < high and tuple(found["intervals"]["pass@k"]["1"]) == (low, high)


def test_one_sample_a_problem_has_wilsons_interval():
    """180 of 500, as in the sheet; the largest k is the number of samples."""
    found = estimators.summarise_rows(make_graded_rows([[i < 180] for i in range(500)], [["1"]] * 500), 1)
    assert found["interval"] == pytest.approx((0.319, 0.403), abs=5e-4) and found["pass@k"] == {"1": 0.36}
    assert list(estimators.summarise_rows(make_graded_rows([[1, 0, 0]], [["1"] * 3]), 3)["maj@k"]) == ["1", "2", "3"]


# ----- sampling

@pytest.fixture(scope="module")
def tiny(base):
    """(model, problems, prompts, sampler of the model)."""
    loaded = loading.load_model(str(base))
    problems = load_problems("arithmetic", loaded.tokenizer, count=7, num_ops=2)
    sampler = evaluation.make_sampler(loaded, SamplingConfig(max_new_tokens=10))
    return loaded, problems, prompts.encode_prompts(loaded.tokenizer, problems, loaded.config, 10), sampler


def measure(tiny, prompts=None, sample=None, done=0):
    """The rows of three samples of each problem; `sample` replaces the sampler's own function."""
    _, problems, own, sampler = tiny
    benchmark = Benchmark("tiny", problems, prompts or own, evaluation.judge_by_answer(GradingConfig("answer")), 3, 1.0)
    sampler = sampler._replace(sample=sample or sampler.sample)
    return list(evaluation.sample_and_grade(sampler, benchmark, Request(0, 0), 8, done))


@pytest.fixture(scope="module")
def measured(tiny):
    return measure(tiny)


@pytest.mark.parametrize("done", [0, 5, 8, 16, 20, 21])
def test_measuring_goes_on_after_any_row(tiny, measured, done):
    """21 rows in calls of 8: after `done` rows the others are the same, and no call is repeated without need."""
    calls = []

    def draw(params, prompts, owners, request):
        calls.append(request.first_row)
        return tiny[3].sample(params, prompts, owners, request)

    assert measure(tiny, sample=draw, done=done) == measured[done:]
    assert calls == [first for first in (0, 8, 16) if done < min(first + 8, 21)]


def test_padding_is_cut_to_the_call_and_changes_nothing(tiny, measured):
    prompts = tiny[2]
    wide = Prompts(np.pad(prompts.tokens, ((0, 0), (0, 200 - prompts.tokens.shape[1]))), prompts.lengths)
    widths = []

    def draw(params, given, *args):
        widths.append(given.tokens.shape[1])
        return tiny[3].sample(params, given, *args)

    assert measure(tiny, wide, draw) == measured and widths == [64] * 3
    long = Prompts(np.zeros((3, 144), np.int32), np.array([3, 65, 130]))
    assert [evaluation.trim_padding(long, np.array([i])).tokens.shape[1] for i in range(3)] == [64, 128, 144]


def test_an_evaluation_draws_from_a_stream_of_its_own(tiny):
    """With the seed and step of a training step, it does not sample the completions just trained on."""
    _, problems, prompts, sampler = tiny
    requests = []
    spy = sampler._replace(sample=lambda *args: requests.append(args[-1]) or sampler.sample(*args))
    evaluation.measure_heldout(spy, problems, prompts, Request(3, 5), "answer")
    assert [(x.seed, x.step, x.stream, x.temperature) for x in requests] == [
        (3, 5, sampling.EVAL, temperature) for temperature in (0, 1)]


def test_top_p_reaches_the_completions_of_an_evaluation(tmp_path, files, base):
    """With almost no probability mass only the most likely token remains."""
    def completions_under(**flags):
        benchmarks.evaluate(config(files[:1], base, tmp_path / str(flags), **flags))
        return [row["completion"] for row in read_jsonl(tmp_path / str(flags) / "completions.jsonl")]

    assert completions_under(temperature=1.0, top_p=1e-6) == completions_under() != completions_under(temperature=1.0)


def test_what_is_cut_is_what_a_shorter_evaluation_gives(tmp_path, files, base):
    """Tokens, verdicts, truncation and the summary; the completions themselves stay whole."""
    whole, cut, short = (tmp_path / name for name in ("whole", "cut", "short"))
    benchmarks.evaluate(config(files[:2], base, whole))
    same = benchmarks.evaluate(config(files[:2], base, cut, cut=2))
    shorter = benchmarks.evaluate(config(files[:2], base, short, max_new_tokens=2))
    rows = [[{key: row[key] for key in row if key != "cut"} for row in read_jsonl(folder / "completions.jsonl")]
            for folder in (whole, cut, cut / "cut_2", short)]
    assert rows[0] == rows[1] != rows[2] == rows[3]
    found = json.loads((cut / "cut_2" / "summary.json").read_text())
    assert found["benchmarks"] == json.loads((short / "summary.json").read_text())["benchmarks"]
    assert shorter["benchmarks"]["math500"]["truncated"] > same["benchmarks"]["math500"]["truncated"]


def test_a_confidence_that_is_cut_off_was_not_stated():
    judge = lambda texts, problems: [{"correct": False} | ({"confidence": .5} if ".5" in text else {}) for text in texts]
    rows = [{"problem": 0, "cut": text, "completion": "", "confidence": .9, "num_tokens": 9, "truncated": False}
            for text in ("think", "sure .5")]
    cut = benchmarks.truncate_rows(types.SimpleNamespace(judge=judge, problems=[None]), rows, 2)
    assert [row.get("confidence") for row in cut] == [None, .5]


def test_the_reward_wants_a_box_where_held_out_problems_need_none(tiny, files, monkeypatch):
    """With --answer_format=auto on a file there are two parsers, both named; an explicit format holds for both."""
    loaded = tiny[0]
    texts = ["The answer is 4.", "\\boxed{4}", "\\boxed{5}"]
    asked = Rollouts(np.zeros(3, int), None, None, None, None)
    monkeypatch.setattr(Tokenizer, "decode_rollouts", lambda words, rollouts: texts)
    monkeypatch.setattr(evaluation, "sample_and_grade", lambda sampler, benchmark, request, **_: (
        {"problem": 0, "completion": text} | benchmark.judge([text], benchmark.problems[:1])[0] for text in texts))
    for answer_format, right, evaluated, measured in (
            ("auto", [0, 1, 0], "lenient", 2 / 3), ("lenient", [1, 1, 0], "lenient", 2 / 3),
            ("boxed", [0, 1, 0], "boxed", 1 / 3), ("last_number", [1, 1, 0], "last_number", 2 / 3)):
        config = TrainConfig.from_flags(problems=files[0], heldout=files[1], answer_format=answer_format,
                                        max_new_tokens=10)
        scored = make_scorer(config, loaded, load_problems(files[0], loaded.tokenizer), None)(asked, None, 1)
        assert scored.reward.tolist() == scored.info["correct"].tolist() == right
        before = evaluation.sample_before_training(None, load_problems(files[0], loaded.tokenizer), None,
                                                   config.grading, Request(0, 0))
        assert [row["correct"] for row in before] == right  # an example is chosen by the verdicts of its reward
        assert not scored.info["timed_out"].any()
        reward_format = "boxed" if answer_format == "auto" else answer_format
        assert set(scored.info["graded_by"]) == {grade.describe_grader(reward_format, "math")}
        found = heldout_of(config, loaded)(None, 1)
        assert (found["eval/graded_by"], found["eval/n"]) == (grade.describe_grader(evaluated, "math"), 3)
        assert found["eval/greedy"] == pytest.approx(measured)


def test_the_format_reward_pays_for_any_answer(tiny, monkeypatch):
    loaded, problems, _, _ = tiny
    texts = ["think answer 99", "think 99", "answer "]
    monkeypatch.setattr(Tokenizer, "decode_rollouts", lambda words, rollouts: texts)
    scored = make_scorer(TrainConfig.from_flags(reward="format"), loaded, problems, None)(
        Rollouts(np.zeros(3, int), None, None, None, None), None, 1)
    assert scored.reward.tolist() == [1, 0, 0] and scored.info["correct"].tolist() == [0, 0, 0]


# ----- several benchmarks

@pytest.fixture
def files(tmp_path):
    """Paths of three benchmark files of three problems each."""
    rows = [{"question": f"coins {i} + 5 - 3 =", "answer": i + 2} for i in (2, 3, 4)]
    return [write_jsonl(tmp_path / f"{name}.jsonl", *rows) for name in ("math500", "AIME24", "amc23")]


def config(files, base, out, **changes):
    return EvaluateConfig.from_flags(model=str(base), problems=",".join(files), out=str(out),
                                     **{"max_new_tokens": 10} | changes)


def test_the_one_shot_protocol_samples_aime_and_amc_eight_times(files, base):
    loaded = loading.load_model(str(base))
    made = benchmarks.load_benchmarks(config(files, base, "x", protocol="one_shot"), loaded)
    assert [(b.name, b.num_samples, b.temperature) for b in made] == [("math500", 1, 0), ("AIME24", 8, 0.6),
                                                                      ("amc23", 8, 0.6)]
    made = benchmarks.load_benchmarks(config(files, base, "x", num_samples=2, temperature=1.0), loaded)
    assert {(b.num_samples, b.temperature) for b in made} == {(2, 1.0)}
    assert [b.judge(["It is 4."], b.problems[:1]) for b in made] == 3 * [[
        {"extracted": "4", "correct": True, "timed_out": False, "graded_by": grade.describe_grader("lenient", "math")}]]
    with pytest.raises(UserError, match="leave those out"):
        benchmarks.load_benchmarks(config(files, base, "x", protocol="one_shot", num_samples=2), loaded)
    with pytest.raises(UserError, match="--num_samples=2 at --temperature=0"):
        benchmarks.load_benchmarks(config(files, base, "x", num_samples=2), loaded)
    with pytest.raises(UserError, match="names a file twice"):
        benchmarks.load_benchmarks(config(files[:1] * 2, base, "x"), loaded)


def test_files_of_one_name_are_told_apart(tmp_path, files, base):
    (tmp_path / "amc").mkdir()
    twin = (tmp_path / "amc" / "math500.jsonl")
    twin.write_text(pathlib.Path(files[0]).read_text())
    loaded = loading.load_model(str(base))
    made = benchmarks.load_benchmarks(config([files[0], str(twin)], base, "x", protocol="one_shot"), loaded)
    assert [(b.name, b.num_samples) for b in made] == [(files[0], 1), (str(twin), 1)]  # the protocol ignores folders


def test_several_benchmarks_are_one_table(tmp_path, files, base):
    out = tmp_path / "out"
    summary = benchmarks.evaluate(config(files, base, out, protocol="one_shot"))
    assert summary == json.loads((out / "summary.json").read_text(), object_hook=lambda pairs: {  # JSON has no tuples
        key: tuple(x) if key in ("interval", "seeds") or isinstance(x, list) else x for key, x in pairs.items()})
    assert list(summary) == ["benchmarks", "mean", "flags"]
    assert list(summary["benchmarks"]) == ["math500", "AIME24", "amc23"]
    assert summary["mean"] == pytest.approx(np.mean([one["accuracy"] for one in summary["benchmarks"].values()]))
    rows = read_jsonl(out / "completions.jsonl")
    assert [row["benchmark"] for row in rows] == ["math500"] * 3 + ["AIME24"] * 24 + ["amc23"] * 24
    assert {row["graded_by"] for row in rows} == {grade.describe_grader("lenient", "math")}
    assert [row["completion"] for row in rows[3:27]] == [row["completion"] for row in rows[27:]]  # in any place
    alone = benchmarks.evaluate(config(files[1:2], base, tmp_path / "alone", num_samples=8, temperature=0.6))
    assert {key: alone[key] for key in summary["benchmarks"]["AIME24"]} == summary["benchmarks"]["AIME24"]
    assert summary["flags"]["model"] == f"{base}@200"


def test_the_table():
    greedy = estimators.summarise_rows(make_graded_rows([[1], [0], [0], [1]], [["1"]] * 4), 1) | {
        "temperature": 0.0, "graded_by": "G", "styles": {"careful": (0.5, 0.75), "ramble": (0.0, None)}}
    sampled = estimators.summarise_rows(make_graded_rows([[1, 0]] * 2, [["1", "2"]] * 2), 2) | {
        "temperature": 0.6, "graded_by": "H"}
    lines = benchmarks.format_table("M", {"one": greedy, "two": sampled}).splitlines()
    assert lines[:3] == [
        "M, 95 % intervals in brackets", "",
        "| benchmark | problems | measure | accuracy | pass@k | maj@k | truncated | timed out | graded by |"]
    assert lines[4:] == [
        "| one | 4 | pass@1, greedy | 0.500 [0.150, 0.850] | - | - | 100.0% | 0 | G |",
        "| two | 2 | avg@2, T=0.6 | 0.500 [0.171, 0.829] | pass@2 1.000 [0.342, 1.000] | maj@2 0.500 [0.171, 0.829] "
        "| 50.0% | 0 | H |", "| mean |  |  | 0.500 |  |  |  |  |  |", "",
        "- one, careful: 50.0% of completions, 0.750 correct", "- one, ramble: 0.0% of completions",
        "- two: pass@1 0.500, pass@2 1.000", "- two: maj@1 0.500, maj@2 0.500"]


# ----- stopping and continuing

def test_completions_are_kept_of_any_prompts_by_any_judge(tiny, tmp_path, monkeypatch):
    """As in a probe: half a question for a prompt, and a judge of its own."""
    loaded, problems, _, sampler = tiny
    halves = [dataclasses.replace(p, prompt=p.prompt.rsplit(" ", 3)[0]) for p in problems]
    sets = [Benchmark(name, asked, prompts.encode_prompts(loaded.tokenizer, asked, loaded.config, 10),
                      lambda texts, asked: [{"words": len(text.split()), "of": p.question}
                                            for text, p in zip(texts, asked, strict=True)], 2, 1.0)
            for name, asked in (("whole", problems), ("half", halves))]
    out, streams = str(tmp_path / "out"), set()
    same = completions.Folder(out, "evaluate", EvaluateConfig.from_flags(model="m", out=out, max_new_tokens=10))
    spy = sampler._replace(sample=lambda *args: streams.add(args[-1].stream) or sampler.sample(*args))

    def keep():
        return completions.sample_and_keep(same, spy, sets, Request(0, 0), rows_per_call=4)

    kept = keep()
    assert streams == {sampling.EVAL}  # whatever stream the request names
    for name, asked in (("whole", problems), ("half", halves)):
        assert [(row["problem"], row["sample"]) for row in kept[name]] == [(i, j) for i in range(7) for j in range(2)]
        for row in kept[name]:
            assert row["prompt"] == asked[row["problem"]].prompt and row["of"] == asked[row["problem"]].question
            assert row["words"] == len(row["completion"].split()) and "correct" not in row
    log = tmp_path / "out" / "completions.jsonl"
    assert read_jsonl(log) == kept["whole"] + kept["half"]
    written = log.read_bytes()
    for rows in (5, 14, 21):  # within the first set, between the two, within the second
        log.write_bytes(b"".join(written.splitlines(keepends=True)[:rows]))
        assert keep() == kept and log.read_bytes() == written
    monkeypatch.setattr(Tokenizer, "decode_rollouts", None)  # fails if anything is sampled
    assert keep() == kept


def test_ctrl_c_says_that_the_same_command_continues(tmp_path, base, files, monkeypatch, request):
    """In this process, so that the signal comes at a known point: after the third call of the sampler."""
    decode, calls = Tokenizer.decode_rollouts, []
    request.addfinalizer(functools.partial(  # a background job of a shell ignores Ctrl-C
        signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler)))

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return decode(*args)

    monkeypatch.setattr(Tokenizer, "decode_rollouts", interrupted)
    log = tmp_path / "out" / "completions.jsonl"
    with pytest.raises(Interrupted) as stop:
        benchmarks.evaluate(config(files, base, log.parent, num_samples=4, temperature=1.0, rows_per_call=2))
    done = count_lines(log)
    assert str(stop.value) == f"interrupted with {done} of 36 completions in {log}; the same command continues"
    assert stop.value.exit_code == 130 and 4 <= done < 36


def test_what_was_graded_again_is_summarised_without_sampling(tmp_path, base, files, monkeypatch):
    """After grading in place, the evaluation's own command reports the other grader's verdicts and its name."""
    same = config(files[:1], base, tmp_path)
    assert benchmarks.evaluate(same)["graded_by"] == grade.describe_grader("lenient", "math")
    path = tmp_path / "completions.jsonl"
    write_jsonl(path, *(row | {"completion": rf"\\boxed{{{row['answer']}}}"} for row in read_jsonl(path)))
    regrade.regrade(regrade.GradeConfig(completions=str(path), out=str(path), answer_format="boxed"))
    monkeypatch.setattr(Tokenizer, "decode_rollouts", None)
    again = benchmarks.evaluate(same)
    assert (again["accuracy"], again["graded_by"]) == (1, grade.describe_grader("boxed", "math"))


def test_what_is_not_the_same_evaluation_is_refused(tmp_path, base, files):
    out = tmp_path / "out"
    same = config(files[:1], base, out)
    first = benchmarks.evaluate(same)
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    for change, says in (({"seed": 1}, "--seed (was 0)"), ({"model": f"{base}@100"}, f"--model (was {base}@200)"),
                         ({"grader": "original"}, "--grader (was math)")):
        with pytest.raises(UserError, match="other flags") as caught:
            benchmarks.evaluate(same.with_flags(**change))
        assert says in str(caught.value) and "another --out" in str(caught.value)
    path, text = pathlib.Path(files[0]), pathlib.Path(files[0]).read_text()
    path.write_text(text.replace("coins 3", "coins 5"))
    with pytest.raises(UserError, match=r"line 2: not of these problems"):
        benchmarks.evaluate(same)
    path.write_text("".join(text.splitlines(keepends=True)[:2]))
    with pytest.raises(UserError, match=r"line 3: not of these problems"):
        benchmarks.evaluate(same)
    path.write_text(text)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept
    again = benchmarks.evaluate(same.with_flags(seed=1, resume="never"))  # the old one is moved, not erased
    assert again["accuracy"] == first["accuracy"] and (tmp_path / "out.1" / "summary.json").exists()
    (out / "flags.txt").unlink()
    with pytest.raises(UserError, match="but not its flags.txt"):
        benchmarks.evaluate(same)
    with pytest.raises(UserError, match="--resume=must"):
        benchmarks.evaluate(same.with_flags(out=str(tmp_path / "new"), resume="must"))


def test_a_full_disk_names_the_file_and_the_evaluation_continues_within_a_row(tmp_path, base, compiled):
    def evaluate(name, *flags, **options):
        return run("evaluate", f"--model={base}", f"--out={tmp_path / name}", "--num_ops=2", "--max_new_tokens=10",
                   "--num_samples=4", "--temperature=1", "--max_problems=150", "--rows_per_call=8", *flags,
                   compiled=compiled, **options)

    def outputs(name):
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        return [(tmp_path / name / file).read_bytes() for file in ("completions.jsonl", "table.md")], summary | {
            "flags": summary["flags"] | {"out": "", "resume": ""}}

    log = tmp_path / "cut" / "completions.jsonl"
    result = evaluate("cut", prefix=("sh", "-c", 'ulimit -f 32; exec "$@"', "sh"), expect=1)
    assert result.errors == [f"error: {log}: File too large"] and 0 < count_lines(log) < 600
    assert not log.read_bytes().endswith(b"\n") and not log.with_name("summary.json").exists()
    evaluate("cut", "--resume=must", expect=0)
    evaluate("whole", expect=0)
    assert outputs("cut") == outputs("whole")
