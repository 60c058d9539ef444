"""Diagnostics of a pair of models that are tables of transition probabilities: every value is known from the tables."""

import itertools
import json
import math
import re

import jax
import numpy as np
import pytest
import tokenizers

from rlvr_jax.errors import UserError
from rlvr_jax.lab.diagnostics import diagnose, formulas
from rlvr_jax.lab.diagnostics.diagnose import DIAGNOSTICS
from rlvr_jax.lab.diagnostics.pair import DiagnoseConfig
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.pretrained.tokenizer import Tokenizer

from fixtures import bigrams, read_jsonl, run, write_jsonl

# Prompts end in a or c. After a comes an answer; after c comes x, and then one. "s" is never said.
WORDS = ["<pad>", "<eos>", "q", "a", "c", "x", "s", "7", "8", "9"]
ENDS = {"7": {"<eos>": 1}, "8": {"<eos>": 1}, "9": {"<eos>": 1}, "<pad>": {"<eos>": 1}, "<eos>": {"<eos>": 1}}
BASE = ENDS | {"q": {"a": .5, "9": .5}, "a": {"9": .6, "7": .4}, "c": {"x": 1}, "x": {"9": .4, "8": .3, "7": .3},
               "s": {"7": 1}}
TRAINED = BASE | {"q": {"a": .25, "9": .75}, "a": {"7": .95, "9": .05}, "x": {"8": .5, "9": .3, "7": .2}}
PROBLEMS = [{"question": "a", "answer": "7", "steps": ["7"]}, {"question": "q a", "answer": "7"},
            {"question": "c", "answer": "8", "steps": ["x", "8"]}]  # the base solves none greedily, the other all


def make_model(chances: dict, words=WORDS) -> LanguageModel:
    config, params = bigrams(np.maximum([[chances[a].get(b, 0) for b in words] for a in words], 1e-30))
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "<pad>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<pad>", "<eos>"])
    return LanguageModel(config, jax.tree.map(np.asarray, params),
                         Tokenizer(backend, (1,), 0, None, {"eos_token": "<eos>", "pad_token": "<pad>"}))


@pytest.fixture
def models(monkeypatch) -> dict[str, LanguageModel]:
    """The models that loading finds under each name; a test may add to it."""
    known, load = {"base": make_model(BASE), "trained": make_model(TRAINED)}, loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda name, *dtypes: known.get(name) or load(name, *dtypes))
    return known


@pytest.fixture
def measured(models, tmp_path):
    """`measured(diagnostics, **flags)`: the summary of the pair."""
    problems = write_jsonl(tmp_path / "problems.jsonl", *PROBLEMS)

    def run_diagnose(diagnostics="", **flags):
        return diagnose.diagnose(DiagnoseConfig.from_flags(**{
            "base": "base", "trained": "trained", "problems": problems, "max_new_tokens": 4, "num_samples": 4,
            "out": str(tmp_path / "out"), "diagnostics": diagnostics} | flags))
    return run_diagnose


def values(summary: dict) -> dict:
    return {label: row["value"] for label, row in summary["rows"].items()}


def kl(place: str) -> float:
    return sum(p * math.log(p / BASE[place][word]) for word, p in TRAINED[place].items())


# ----- swaps

def test_swaps_recover_the_problems_whose_tokens_they_change(measured, models, tmp_path):
    """Of 7 tokens, that after a is swapped in two problems, that after x in one; two prompts end in a. At the end of
    the trained model's text, not of the base's, the base is least sure, and the KL is larger than after x."""
    end = {"<eos>": .6, "7": .1, "8": .1, "9": .1, "x": .1}
    models["base"] = make_model(BASE | {"7": end})
    assert kl("a") > math.log(1 / .6) > kl("x") > 0
    entropy = {place: -sum(p * math.log(p) for p in (BASE | {"7": end})[place].values()) for place in "7axc"}
    assert entropy["7"] > entropy["x"] > entropy["a"] > entropy["c"] == 0
    summary = measured("forced_prefix,swap,reverse_swap,entropy_swap", first=(1, 2), shares=(.15, .3, .4, .7))
    assert (summary["base"], summary["trained"], summary["gain"], summary["n"]) == (0, 1, 1, 3)
    assert values(summary) == {
        "forced_prefix, 1": pytest.approx(2 / 3), "forced_prefix, 2": 1,
        "swap, 15 %": pytest.approx(2 / 3), "swap, 30 %": pytest.approx(2 / 3), "swap, 40 %": 1, "swap, 70 %": 1,
        "reverse_swap, 15 %": pytest.approx(2 / 3), "reverse_swap, 30 %": pytest.approx(2 / 3),
        "reverse_swap, 40 %": pytest.approx(2 / 3), "reverse_swap, 70 %": 1, "entropy_swap, 15 %": pytest.approx(1 / 3),
        "entropy_swap, 30 %": 1, "entropy_swap, 40 %": 1, "entropy_swap, 70 %": 1}
    rows = summary["rows"]
    assert all(row["interval"][0] <= row["value"] <= row["interval"][1] for row in rows.values())
    assert rows["entropy_swap, 15 %"]["more"]["tokens_swapped"] == pytest.approx(1 / 7)
    assert rows["reverse_swap, 70 %"]["more"]["accuracy"] == 0
    # each writes 2 + 2 + 3 tokens after prompts of 1 + 2 + 1; both models are run on base's, trained's and this text
    assert {row["forward_tokens"] for row in rows.values()} == {3 * 2 * 11} and summary["forward_tokens"] == 16 * 22
    greedy = read_jsonl(tmp_path / "out" / "texts" / "completions.jsonl")
    assert [row["completion"] for row in greedy] == ["9", "7", "9", "7", "x 9", "x 8"]
    assert greedy[0]["entropy"] == pytest.approx([entropy["a"], 0], abs=1e-5)


def test_without_a_gain_there_are_no_shares(measured, models):
    models["trained"] = models["base"]
    summary = measured("forced_prefix,hybrid,rank,sparsity")
    assert all(value is None for label, value in values(summary).items() if label != "sparsity")
    assert summary["rows"]["hybrid"]["why"] == "undefined: the gain, +0.000, is below 0.1"
    assert summary["rows"]["rank"]["why"] == "undefined: no matrix changed" and values(summary)["sparsity"] == 1
    assert summary["rows"]["forced_prefix, 1"]["forward_tokens"] == summary["forward_tokens"] == 2 * 22


def test_the_hybrid_says_what_the_vector_adds(measured, tmp_path):
    """The vector leads from the end of a prompt to s, after which 7 is said: right after a, wrong after x."""
    (tmp_path / "fit.jsonl").write_bytes((tmp_path / "problems.jsonl").read_bytes())
    summary = measured("hybrid", layer=0, opening="s", fit_problems=str(tmp_path / "fit.jsonl"), num_fit=5,
                       strengths=(2.0,), rates=(.2, .6))
    assert values(summary)["hybrid"] == pytest.approx(2 / 3)
    assert read_jsonl(tmp_path / "out" / "hybrid" / "test" / "completions.jsonl")[0]["completion"] == "7"
    parts = summary["parts"]
    assert parts["hybrid, strength_2_rate_0.2"] == parts["hybrid, strength_2_rate_0.6"] == parts["hybrid"] == 4 + 7
    assert parts["hybrid, fitting"] == 7 * 4 + 3 * 14  # seven times the prompts, three times both texts
    assert summary["rows"]["hybrid"]["forward_tokens"] == summary["forward_tokens"] == sum(parts.values())
    measured("hybrid", layer=0, opening="s", out=str(tmp_path / "other"))
    why = json.loads((tmp_path / "other" / "summary.json").read_text())["rows"]["hybrid"]["why"]
    assert why.startswith("not measured: --problems=") and why.endswith("name another file with --fit_problems")


# ----- luck

def test_luck_by_hand():
    """A problem's guess is right as often as the others are answered so."""
    answers = [["7", "9"], ["7", ""], ["8", "7"]]
    right = np.array([[True, False], [True, False], [True, False]])
    np.testing.assert_allclose(formulas.guess_rates(answers, right, ["7", "7", "8"]), [2 / 4, 2 / 4, 0])
    assert formulas.guess_rates([["1/2", ".5"]], np.array([[True, True]]), ["1/2"]) == [0]  # no others
    other = formulas.guess_rates([["1/2", "3"], [".5", "1/2"]], np.array([[1, 0], [1, 1]]), ["1/2", ".5"])
    np.testing.assert_allclose(other, [1 / 2, 1 / 2])  # what was graded right counts as it is written
    np.testing.assert_allclose(formulas.luck(np.array([.5, 0]), 3), [.875, 0])
    assert formulas.beyond_luck(.7, .4) == pytest.approx(.5)
    assert formulas.most_tries([np.array([.002]), np.array([.001])], 256) == 256  # 1 - .998^256 is .40
    assert formulas.most_tries([np.array([.04])], 256) == 16  # 1 - .96^16 is .48, 1 - .96^32 .73
    assert formulas.most_tries([np.array([.04])], 17) == 16 and formulas.most_tries([np.array([.6])], 9) is None
    rights = np.array([[1, 1, 0, 0], [1, 0, 0, 0]])
    assert formulas.covered(rights, np.array([0, 0]), .5).tolist() == [1, 0]
    assert formulas.covered(rights, np.array([.1, .25]), .44).tolist() == [1, 0]  # (.5 - .1) / .9 is .444
    assert formulas.covered(rights, np.array([.1, .25]), .45).tolist() == [0, 0]


def test_pass_at_k_and_cover_are_those_of_the_completions(measured, tmp_path):
    summary = measured("pass_at_k,cover", taus=(.3, .9))
    sampled = [read_jsonl(tmp_path / "out" / f"samples_{name}" / "completions.jsonl") for name in ("base", "trained")]
    answers = [np.array([row["completion"].split()[-1] for row in rows]).reshape(3, 4) for rows in sampled]
    truths, models = np.array(list("778")), []  # of each model: guesses, success rates, (pass@k, luck) by k
    for answers_3x4 in answers:
        right = answers_3x4 == truths[:, None]
        guess = np.array([np.mean(np.delete(answers_3x4, i, 0) == truth) for i, truth in enumerate(truths)])
        models.append((guess, right.mean(-1), {k: (
            np.mean([any(tries) for each in right for tries in itertools.combinations(each, k)]),
            np.mean(1 - (1 - guess) ** k)) for k in (1, 2, 4)}))
    k = max(k for k in (1, 2, 4) if all(curve[k][1] <= .5 for _, _, curve in models))
    row = summary["rows"]["pass_at_k"]
    assert row["more"]["k"] == k and row["more"]["pass@k"] == pytest.approx([curve[k][0] for _, _, curve in models])
    before, after = ((solved - luck) / (1 - luck) for solved, luck in (curve[k] for _, _, curve in models))
    assert row["value"] == pytest.approx(after - before)
    for tau in (.3, .9):
        before, after = (np.mean((rate - guess) / (1 - guess) >= tau) for guess, rate, _ in models)
        assert summary["rows"][f"cover, {100 * tau:g} %"]["value"] == pytest.approx(after - before)
    assert row["forward_tokens"] == 8 + sum(row["num_tokens"] for rows in sampled for row in rows)


# ----- perplexity, weights

def test_perplexity_is_that_of_the_tables(measured):
    rows = measured("answer_perplexity,prompt_perplexity")["rows"]
    change = {place: math.log(BASE[place][word] / TRAINED[place][word]) for place, word in ("a7", "x8", "qa")}
    wanted = {"answer_perplexity, own": np.mean([change["a"] / 2, change["a"] / 2, change["x"] / 3]),  # with the end
              "answer_perplexity, reference": change["a"] / 2 + change["x"] / 4, "prompt_perplexity": change["q"]}
    assert {label: row["value"] for label, row in rows.items()} == pytest.approx(wanted, abs=1e-4)
    assert [row["more"]["n"] for row in rows.values()] == [3, 2, 1]
    assert rows["prompt_perplexity"]["forward_tokens"] == 2 * 2


def test_weights_are_those_of_the_tables(measured):
    rows = [np.array([[math.log(max(chances[a].get(b, 0), 1e-30)) for b in WORDS] for a in WORDS])
            for chances in (TRAINED, BASE)]
    squares = np.linalg.svd(rows[0] - rows[1], compute_uv=False) ** 2
    size = sum(x.size for x in jax.tree.leaves(make_model(BASE).params))
    assert values(measured("rank,sparsity")) == {
        "rank": pytest.approx(squares.sum() / squares.max(), rel=1e-4),
        "sparsity": pytest.approx(1 - np.sum(rows[0] != rows[1]) / size)}


# ----- runs

def write_run(folder, trained: int, accuracies: list, tokens: int = 10, saturated=None, n: int = 10) -> str:
    """A run directory of one step between evaluations; each solves the first problems, as its accuracy says."""
    folder.mkdir()
    ends = [{"greedy": accuracy, "n": n} for accuracy in (accuracies[0], accuracies[-1])]
    (folder / "summary.json").write_text(json.dumps({"base": ends[0], "final": ends[1], "trained": trained,
                                                     "saturation_step": saturated}))
    write_jsonl(folder / "metrics.jsonl", *({"step": i, "train/tokens": tokens * (i > 0)}
                                            for i in range(len(accuracies))))
    write_jsonl(folder / "heldout.jsonl", *({"step": i, "correct": [int(j < round(accuracy * n)) for j in range(n)]}
                                            for i, accuracy in enumerate(accuracies)))
    return str(folder)


def test_half_of_the_gain_lies_between_two_runs_on_a_logarithmic_scale(measured, models, tmp_path):
    assert formulas.numbers_at(.5, np.array([1000, 10, 10]), np.array([.8, .1, .3])) == pytest.approx(10 * 100**.5)
    assert formulas.numbers_at(.2, np.array([10, 1000]), np.array([.2, .8])) == 10
    assert math.isnan(formulas.numbers_at(.9, np.array([10]), np.array([.8])))
    whole = write_run(tmp_path / "whole", 100_000, [.2, 1.0], n=1000)
    models[whole] = models["trained"]
    few = [write_run(tmp_path / str(k), k, [.2, right], n=1000) for k, right in ((10, .3), (1000, .7))]
    row = measured("frontier", trained=whole, frontier=",".join(few))["rows"]["frontier"]
    assert row["value"] == pytest.approx(10 * 100 ** .75)  # .6 is three quarters of the way from .3 to .7
    assert row["interval"][0] < row["value"] < row["interval"][1] < 1000
    assert row["more"]["points"] == [[10, .3], [1000, .7], [100_000, 1.0]]
    (tmp_path / "whole" / "summary.json").write_text(json.dumps(json.loads(
        (tmp_path / "whole" / "summary.json").read_text()) | {"steps": 4}))
    models[f"{whole}@2"] = models["trained"]
    assert "a step before the run's end" in measured("frontier", trained=f"{whole}@2", frontier=few[0], out=str(
        tmp_path / "early"))["rows"]["frontier"]["why"]
    assert measured("frontier", trained=whole)["rows"]["frontier"]["why"].startswith("not measured: --frontier names")
    with pytest.raises(UserError, match="--frontier=.*nowhere: no directory of a finished run"):
        measured("frontier", trained=whole, frontier=str(tmp_path / "nowhere"))


def test_budget_is_the_ratio_of_tokens_to_half_of_the_gain(measured, models, tmp_path):
    whole = write_run(tmp_path / "whole", 9, [.2, .3, .5, .6, 1.0], saturated=3)
    models[whole] = models["trained"]

    def against(name, accuracies):
        run_dir = write_run(tmp_path / name, 9, accuracies, tokens=6)
        return measured("budget,saturation", trained=whole, sft=run_dir)["rows"]
    rows = against("sft", [.2, .4, .7, .5])
    assert rows["budget"]["value"] == pytest.approx(30 / 12)  # .6 is reached at the third, and at the second
    assert rows["budget"]["more"] == {"rl_tokens": 30, "sft_tokens": 12}
    low, high = rows["budget"]["interval"]  # fine-tuning never gets to half in some resamples: none of its tokens do
    assert low == 0 and 30 / 12 <= high <= 40 / 6
    assert rows["saturation"]["value"] == 3
    models[f"{whole}@2"] = models["trained"]  # half of its gain, .2 to .5, is reached a step earlier
    early = measured("budget,saturation", trained=f"{whole}@2", sft=str(tmp_path / "sft"),
                     out=str(tmp_path / "early"))["rows"]
    assert early["budget"]["more"] == {"rl_tokens": 20, "sft_tokens": 6} and early["saturation"]["value"] is None
    assert against("low", [.2, .5])["budget"]["why"].endswith("never reaches half of the gain")
    assert against("high", [.6, .5])["budget"]["why"].endswith("before its first step")
    assert values(measured("budget,saturation", out=str(tmp_path / "x"))) == {"budget": None, "saturation": None}
    with pytest.raises(UserError, match="--sft=.*no run directory with a heldout.jsonl"):
        measured("budget", trained=whole, sft=str(tmp_path))


def test_half_is_looked_up_in_each_resample():
    """Of two problems one is solved for a while, and one at the end; a resample of the first alone has no gain."""
    run_of = lambda *rows: (np.array([0.0, 10, 20]), np.array(rows, float))
    first, second = formulas.tokens_to_half(run_of([0, 0], [1, 0], [0, 1]), run_of([0, 0], [0, 0], [1, 1]))
    assert (first[0], second[0]) == (10, 20)
    assert set(first[1:]) == {0, 10, 20} and set(second[1:]) == {0, 20}


# ----- the command

def test_the_page_says_what_each_row_measures(measured, tmp_path):
    summary = measured()
    text = (tmp_path / "out" / "diagnose.md").read_text()
    there = {row["diagnostic"] for row in summary["rows"].values() if row["value"] is not None}
    assert {"swap", "rank"} < there < set(DIAGNOSTICS) and len(summary["rows"]) == 24
    assert all((f"- **{name}**" in text) == (row.high in text) == (name in there) for name, row in DIAGNOSTICS.items())
    assert all(f"| {label} | {row['why']}" in text for label, row in summary["rows"].items())
    assert re.fullmatch(r"`python -m scripts.diagnose --base=.*`, commit .*, JAX .* on .*\.", text.splitlines()[-1])
    assert (tmp_path / "out" / "diagnose.png").stat().st_size > 1000


def test_it_goes_on_where_it_was_stopped(measured, tmp_path):
    summary, out = measured(), tmp_path / "out"
    assert json.loads(json.dumps(summary)) == json.loads((out / "summary.json").read_text())
    for name in ("texts", "swapped", "samples_base"):
        path = out / name / "completions.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    assert measured() == summary
    assert measured("rank")["rows"] == {"rank": summary["rows"]["rank"]}
    with pytest.raises(UserError, match="other flags: --num_samples"):
        measured(num_samples=2)


@pytest.mark.parametrize("flags, error", [
    ({"trained": "wide"}, "--trained=wide has another shape than --base=base; take a model that was"),
    ({"trained": "renamed"}, "--trained=renamed has another tokenizer than --base=base; take"),
    ({"trained": ""}, "--base, --trained and --out are required"),
    ({"trained": "nowhere"}, "^--trained=nowhere: no such directory"),
    ({"diagnostics": "depth"}, "--diagnostics: there is no depth; the rows are pass_at_k, cover,")])
def test_what_does_not_fit_is_one_line(flags, error, measured, models):
    for name, words in (("wide", [*WORDS, "t", "u"]), ("renamed", ["p" if word == "q" else word for word in WORDS])):
        models[name] = make_model({word: {"<eos>": 1} for word in words}, words)
    with pytest.raises(UserError, match=error):
        measured(**flags)


def test_the_command_on_two_run_directories(base, tmp_path, compiled):
    flags = [f"--base={base}@100", f"--trained={base}@200", "--num_ops=2", "--max_new_tokens=10", "--max_problems=6",
             "--num_samples=2", "--rows_per_call=5", f"--out={tmp_path / 'out'}"]
    printed = run("diagnose", *flags, compiled=compiled, expect=0).out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "| pass_at_k |" in printed and printed.rstrip().endswith("/out/summary.json")
    assert summary["rows"]["rank"]["value"] > 1 and summary["rows"]["saturation"]["value"] is None
    assert len(read_jsonl(tmp_path / "out" / "samples_base" / "completions.jsonl")) == 6 * 2
    assert summary["rows"]["answer_perplexity, reference"]["value"] < 0 and "model" not in summary["flags"]
