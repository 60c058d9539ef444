"""Other decodings: what is given is kept, margins by hand, power sampling against enumeration, the command."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from rlvr_jax import parallel, records, sampler
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.regrade import GradeConfig
from rlvr_jax.lab.elicit import decoding, gate, power
from rlvr_jax.lab.elicit.comparison import load_trained
from rlvr_jax.lab.elicit.decoding import (
    answer_margin, branched_sample_fn, find_answer, first_completion, largest_margin_sum, majority_answer, margins,
    opened_sample_fn, widest_margin)
from rlvr_jax.lab.elicit.power import PowerConfig, power_sample_fn
from rlvr_jax.lab.elicit.vectors import SteeringConfig
from rlvr_jax.pretrained import loading
from scripts import elicit as elicit_door, grade as grade_door

from fixtures import bigrams, read_jsonl

EOS = 1


def complete(table, count, max_new_tokens, sample_fn=sampler.sample, temperature=1.0, seed=0):
    """`count` completions of the prompt of token 0, as tuples up to their end, and the rollouts."""
    config, params = bigrams(np.maximum(table, 1e-30))
    sample = sampler.make_sampler(config, sampler.Decoding((EOS,), max_new_tokens), sample_fn=sample_fn)
    out = sample(parallel.place_state(params), records.Prompts(np.zeros((1, 1), np.int32), np.ones(1, np.int32)),
                 np.zeros(count, np.int32), sampler.Request(seed, 0, temperature, repeats=count))
    return [tuple(ids[mask].tolist()) for ids, mask in zip(out.completions, out.completion_mask)], out


def enumerate_powers(table, length, alpha) -> dict[tuple, float]:
    """p^alpha of every completion of up to `length` tokens, normalised, by enumeration."""
    weights = {}
    for ids in itertools.product(range(len(table)), repeat=length):
        ids = ids[: ids.index(EOS) + 1] if EOS in ids else ids
        weights[ids] = np.prod([table[a, b] for a, b in zip((0, *ids), ids)]) ** alpha
    return {ids: x / sum(weights.values()) for ids, x in weights.items() if x > 0}


def total_variation(said: list[tuple], wanted: dict[tuple, float]) -> float:
    share = {ids: said.count(ids) / len(said) for ids in {*said, *wanted}}
    return sum(abs(share[ids] - wanted.get(ids, 0.0)) for ids in share) / 2


RAGGED = np.array([[0, .3, .4, .3], [1, 0, 0, 0], [0, .2, .3, .5], [0, .8, .1, .1]])


# ----- power sampling

def test_a_move_is_taken_with_the_published_chance():
    assert np.exp(power.log_acceptance(4.0, (-10.0, -6.0, 5), (-9.0, -5.5, 5))) == 1
    chance = np.exp(power.log_acceptance(4.0, (-9.8, -5.5, 5), (-10.0, -5.4, 5)))
    assert float(chance) == pytest.approx(.40657, abs=1e-5)


@pytest.mark.parametrize("alpha, blocks", [pytest.param(2.0, 1, marks=pytest.mark.slow), (2.0, 3)])
def test_moves_lead_to_the_power_of_the_distribution(alpha, blocks):
    """Of completions of several lengths, where a move has another chance than the move back; not of single tokens."""
    said, out = complete(RAGGED, 4096, 3, power_sample_fn(PowerConfig(alpha, blocks, 16)))
    wanted = enumerate_powers(RAGGED, 3, alpha)
    assert total_variation(said, wanted) < .03
    assert total_variation(complete(RAGGED, 4096, 3, temperature=1 / alpha)[0], wanted) > .03
    exact = [sum(np.log(RAGGED[a, b]) for a, b in zip((0, *ids), ids)) for ids in said]
    np.testing.assert_allclose(out.noted["logprob"], exact, atol=1e-4)
    assert (out.ended == [ids[-1] == EOS for ids in said]).all()
    assert 0 < out.noted["accepted"].mean() < 1


def test_power_without_moves_is_the_proposal_and_its_cost_is_counted():
    said, out = complete(RAGGED, 512, 3, power_sample_fn(PowerConfig(2.0, 1, 0)))
    assert (out.noted["forward_tokens"] == out.completion_mask.sum(-1)).all() and (out.noted["accepted"] == 0).all()
    assert total_variation(said, enumerate_powers(RAGGED, 3, 1.0)) > .05
    _, grown = complete(RAGGED, 512, 3, power_sample_fn(PowerConfig(2.0, 3, 0)))
    lengths = grown.completion_mask.sum(-1)  # 1, then 2, then 3 tokens, the end token fed again in each later block
    np.testing.assert_array_equal(grown.noted["forward_tokens"], np.choose(lengths - 1, [3, 5, 6]))


def test_power_depends_on_seed_and_row_alone():
    whole, _ = complete(RAGGED, 64, 3, power_sample_fn(PowerConfig(2.0, 2, 4)))
    assert whole[:6] == complete(RAGGED, 6, 3, power_sample_fn(PowerConfig(2.0, 2, 4)))[0]
    assert whole != complete(RAGGED, 64, 3, power_sample_fn(PowerConfig(2.0, 2, 4)), seed=1)[0]


# ----- paths

SHEET = [("5", [(.40, .35)]), ("8", [(.95, .02), (.90, .05)]), ("8", [(.60, .30), (.70, .20)]), ("5", [(.55, .40)]),
         ("7", [(.85, .10)])]


def test_margins_and_their_sums_are_the_published_ones():
    rows = [{"extracted": answer, "margin": float(np.mean([a - b for a, b in pairs]))} for answer, pairs in SHEET]
    for (_, pairs), wanted in zip(SHEET, (.05, .89, .40, .15, .75)):
        rest = [[(1 - a - b) / 98] * 98 for a, b in pairs]
        logits = jnp.log(jnp.array([[b, a, *more] for (a, b), more in zip(pairs, rest)]))
        assert float(jnp.mean(margins(logits))) == pytest.approx(wanted, abs=1e-6)
    assert largest_margin_sum(rows) is widest_margin(rows) is rows[1] and first_completion(rows) is rows[0]
    assert largest_margin_sum(rows[2:]) is rows[4]  # .75 against .40 and .15
    assert largest_margin_sum([*rows[2:], {"extracted": "5", "margin": .65}]) is rows[3]  # .80 together
    nothing = [{"extracted": None, "margin": None}] * 2
    assert largest_margin_sum(nothing) is widest_margin(nothing) is majority_answer(nothing) is None
    assert majority_answer([nothing[0], rows[4], *rows[:4]]) is rows[0]  # 5 and 8 tie, and 5 came first


def test_the_margin_is_of_the_answers_tokens(base):
    words = loading.load_model(str(base)).tokenizer
    text = "think + 4 24 answer 4"
    ids, margins_T = words.encode(text + " <eos>"), np.array([.1, .2, .3, .4, .5, .6, .7])
    assert answer_margin(words, ids, margins_T, text, "4") == .6
    assert answer_margin(words, ids, margins_T, text, "24") == .4
    assert answer_margin(words, ids, margins_T, text, "4 24") == pytest.approx(.35)  # several tokens
    assert answer_margin(words, ids, margins_T, text, "2") is answer_margin(words, ids, margins_T, text, None) is None
    assert find_answer("so 1,234 dollars", "1234") == (3, 8)


def test_paths_begin_with_the_likeliest_tokens_and_go_on_greedily():
    table = np.array([[.1, .2, .3, .4], [1, 0, 0, 0], [.2, .1, .1, .6], [.1, .7, .15, .05]])
    said, out = complete(table, 6, 3, branched_sample_fn(3), temperature=0.0)
    assert said == 2 * [(3, 1), (2, 3, 1), (1,)]
    np.testing.assert_allclose(out.noted["margin"][1], [.1, .4, .55], atol=1e-5)
    assert out.noted["forward_tokens"].tolist() == 2 * [3, 3, 1]
    assert complete(table, 2, 3, opened_sample_fn((2, 2)), temperature=0.0)[0] == 2 * [(2, 2, 3)]
    assert complete(table, 1, 1, branched_sample_fn(6), temperature=0.0)[0] == [(3,)]  # fewer tokens than paths


# ----- the command

KEYS = {"benchmark", "problem", "sample", "prompt", "answer", "completion", "extracted", "correct", "timed_out",
        "graded_by", "truncated", "num_tokens", "forward_tokens"}
MORE = {"cot_decoding": {"margin"}, "power": {"logprob", "accepted"}, "steer": {"steered"}, "sae": {"steered"}}


def config(base, out, method, **flags) -> decoding.ElicitConfig:
    return decoding.ElicitConfig.from_flags(**{
        "model": str(base), "method": method, "num_ops": 2, "max_new_tokens": 10, "max_problems": 6, "out": str(out),
        "num_samples": 4, "num_blocks": 2, "num_moves": 2, "layer": 0, "num_fit": 16, "num_latents": 8, "active": 2,
        "sae_steps": 20} | flags)


def elicit(base, out, method, **flags) -> tuple[dict, list[dict]]:
    summary = decoding.elicit(config(base, out, method, **flags))
    assert json.loads(json.dumps(summary)) == json.loads((out / "summary.json").read_text())
    return summary, read_jsonl(out / "completions.jsonl")


@pytest.mark.parametrize("method", decoding.METHODS)
def test_every_method_keeps_its_completions_and_says_what_it_cost(method, base, tmp_path):
    samples = 4 if method in ("self_consistency", "cot_decoding") else 1
    summary, rows = elicit(base, tmp_path / "out", method, rows_per_call=5)  # a call ends within a problem's paths
    assert [(row["problem"], row["sample"]) for row in rows] == [(i, j) for i in range(6) for j in range(samples)]
    assert all(set(row) == KEYS | MORE.get(method, set()) for row in rows)
    assert summary["method"] == method and summary["n"] == 6 and summary["num_samples"] == samples
    assert summary["accuracy"] == sum(summary["right"]) / 6 == next(iter(summary["rules"].values()))["accuracy"]
    assert summary["mean_accuracy"] == np.mean([row["correct"] for row in rows])
    fed, written = (sum(row[column] for row in rows) for column in ("forward_tokens", "num_tokens"))
    assert summary["forward_tokens"] == pytest.approx(7 + fed / 6)  # coins 7 + 5 - 3 =
    assert fed > written if method == "power" else fed == written + 6 * (method == "cot_decoding")
    assert summary.get("steered") == {"steer": 1, "sae": 6 / written}.get(method)  # every token; first tokens
    if method == "cot_decoding":
        first_words = [row["completion"].split(" ")[0] for row in rows]
        assert all(len(set(first_words[i : i + 4])) == 4 for i in range(0, 24, 4))
    if method == "forced":
        assert all(row["completion"].startswith("think ") for row in rows)
    path = tmp_path / "out" / "completions.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    assert elicit(base, tmp_path / "out", method, rows_per_call=5) == (summary, rows)


@pytest.mark.parametrize("opening", ["hmmm", "", "think " * 10])
def test_an_opening_has_to_be_of_the_models_words(opening, base, tmp_path):
    with pytest.raises(UserError, match="--opening="):
        elicit(base, tmp_path, "forced", opening=opening)


def test_a_gate_is_fitted_to_a_trained_model(base, tmp_path):
    """Base and trained model are two steps of one run; about as many tokens are steered as the rate says."""
    summary, rows = elicit(base, tmp_path / "gate", "steer", where="gate", trained=f"{base}@100", strength=0.0, rate=.2,
                           max_problems=64)
    plain, _ = elicit(base, tmp_path / "plain", "greedy", max_problems=64)
    assert summary["right"] == plain["right"] and .05 < summary["steered"] < .45
    assert summary["steered"] == sum(row["steered"] for row in rows) / sum(row["num_tokens"] for row in rows)


@pytest.mark.parametrize("wrong, error", [
    ({"trained": ""}, "--trained is required"), ({"layer": 1}, "--layer=1"), ({"vector": "trained"}, "--vectors"),
    ({"problems": "some.jsonl"}, "--fit_problems"), ({"trained": "BASE"}, "there is no gate")])
def test_what_a_gate_needs_is_named(wrong, error, base, tmp_path):
    config = SteeringConfig.from_flags(**{"num_ops": 2, "num_fit": 64, "layer": 0, "max_new_tokens": 10,
                                          "trained": f"{base}@100", "out": str(tmp_path / "w")} | wrong)
    loaded = loading.load_model(str(base))
    with pytest.raises(UserError, match=error):
        gate.fit(config, loaded, load_trained(config.trained.replace("BASE", str(base)), loaded, "--model",
                                              config.kept.choice.dtype))


def test_the_command_prints_its_table_and_scripts_grade_reads_its_rows(base, tmp_path, capsys):
    elicit_door.main(config(base, tmp_path, "forced", opening="quick"))
    printed, accuracy = capsys.readouterr().out, json.loads((tmp_path / "summary.json").read_text())["accuracy"]
    assert f"| arithmetic | 6 | forced | only | {accuracy:.3f} [" in printed
    assert printed.rstrip().endswith("/summary.json")
    rows, graded = tmp_path / "completions.jsonl", tmp_path / "graded.jsonl"
    grade_door.main(GradeConfig(completions=str(rows), answer_format="answer", out=str(graded)))
    assert [row["correct"] for row in read_jsonl(graded)] == [row["correct"] for row in read_jsonl(rows)]
