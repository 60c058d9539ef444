"""Other decodings: what is given is kept, margins by hand, power sampling against enumeration, the command."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from rlvr_jax import parallel, records, sampler
from rlvr_jax.errors import UserError
from rlvr_jax.lab.elicit import decoding, gate, power
from rlvr_jax.lab.elicit.answer_selection import (
    answer_margin, answer_place, branched_sample_fn, first, majority, margins, opened_sample_fn, summed, widest)
from rlvr_jax.lab.elicit.power import PowerConfig, power_sample_fn
from rlvr_jax.lab.elicit.vectors import SteeringConfig
from rlvr_jax.pretrained import loading

from fixtures import bigrams, read_jsonl, run

EOS = 1


def drawn(table, count, max_new_tokens, sample_fn=sampler.sample, temperature=1.0, seed=0):
    """`count` completions of the prompt of token 0, as tuples up to their end, and the rollouts."""
    config, params = bigrams(np.maximum(table, 1e-30))
    sample = sampler.make_sampler(config, sampler.Decoding((EOS,), max_new_tokens), sample_fn=sample_fn)
    out = sample(parallel.place_state(params), records.Prompts(np.zeros((1, 1), np.int32), np.ones(1, np.int32)),
                 np.zeros(count, np.int32), sampler.Request(seed, 0, temperature, repeats=count))
    return [tuple(ids[mask].tolist()) for ids, mask in zip(out.completions, out.completion_mask)], out


def powers(table, length, alpha) -> dict[tuple, float]:
    """p^alpha of every completion of up to `length` tokens, normalised, by enumeration."""
    found = {}
    for ids in itertools.product(range(len(table)), repeat=length):
        ids = ids[: ids.index(EOS) + 1] if EOS in ids else ids
        found[ids] = np.prod([table[a, b] for a, b in zip((0, *ids), ids)]) ** alpha
    return {ids: x / sum(found.values()) for ids, x in found.items() if x > 0}


def distance(said: list[tuple], wanted: dict[tuple, float]) -> float:
    """Total variation between frequencies and probabilities."""
    share = {ids: said.count(ids) / len(said) for ids in {*said, *wanted}}
    return sum(abs(share[ids] - wanted.get(ids, 0.0)) for ids in share) / 2


# A with probability .6, then one of four; B with .4, then a single way on.
FORK = np.array([[0, 0, .6, .4, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, .25, .25, .25, .25],
                 [0, 0, 0, 0, 1, 0, 0, 0]] + 4 * [[1, 0, 0, 0, 0, 0, 0, 0]])
RAGGED = np.array([[0, .3, .4, .3], [1, 0, 0, 0], [0, .2, .3, .5], [0, .8, .1, .1]])


# ----- power sampling

def test_a_move_is_taken_with_the_published_chance():
    assert np.exp(power.log_acceptance(4.0, (-10.0, -6.0, 5), (-9.0, -5.5, 5))) == 1
    chance = np.exp(power.log_acceptance(4.0, (-9.8, -5.5, 5), (-10.0, -5.4, 5)))
    assert float(chance) == pytest.approx(.40657, abs=1e-5)


def test_a_power_of_the_whole_is_not_low_temperature():
    wanted = powers(FORK, 2, 4.0)
    assert sum(x for ids, x in wanted.items() if ids[0] == 3) == pytest.approx(.92670, abs=5e-6)
    assert .6 ** 4 / (.6 ** 4 + .4 ** 4) == pytest.approx(.83505, abs=5e-6)
    said, out = drawn(FORK, 2048, 2, power_sample_fn(PowerConfig(4.0, 1, 60)))
    cold, _ = drawn(FORK, 2048, 2, temperature=.25)
    assert np.mean([ids[0] == 3 for ids in said]) == pytest.approx(.92670, abs=.02)
    assert np.mean([ids[0] == 2 for ids in cold]) == pytest.approx(.83505, abs=.02)
    assert distance(said, wanted) < .03


@pytest.mark.parametrize("alpha, blocks", [(2.0, 1), (2.0, 3)])
def test_moves_lead_to_the_power_of_the_distribution(alpha, blocks):
    """Completions of several lengths: a move's way back has another chance than its way there."""
    said, out = drawn(RAGGED, 4096, 3, power_sample_fn(PowerConfig(alpha, blocks, 16)))
    wanted = powers(RAGGED, 3, alpha)
    assert distance(said, wanted) < .03 < distance(drawn(RAGGED, 4096, 3, temperature=1 / alpha)[0], wanted)
    exact = [sum(np.log(RAGGED[a, b]) for a, b in zip((0, *ids), ids)) for ids in said]
    np.testing.assert_allclose(out.noted["logprob"], exact, atol=1e-4)
    assert (out.ended == [ids[-1] == EOS for ids in said]).all()
    assert 0 < out.noted["accepted"].mean() < 1


def test_power_without_moves_is_the_proposal_and_its_cost_is_counted():
    said, out = drawn(RAGGED, 512, 3, power_sample_fn(PowerConfig(2.0, 1, 0)))
    assert (out.noted["forward_tokens"] == out.completion_mask.sum(-1)).all() and (out.noted["accepted"] == 0).all()
    assert distance(said, powers(RAGGED, 3, 1.0)) > .05
    _, grown = drawn(RAGGED, 512, 3, power_sample_fn(PowerConfig(2.0, 3, 0)))
    lengths = grown.completion_mask.sum(-1)  # 1, then 2, then 3 tokens, the end token fed again in each later block
    np.testing.assert_array_equal(grown.noted["forward_tokens"], np.choose(lengths - 1, [3, 5, 6]))


def test_power_depends_on_seed_and_row_alone():
    whole, _ = drawn(RAGGED, 64, 3, power_sample_fn(PowerConfig(2.0, 2, 4)))
    assert whole[:6] == drawn(RAGGED, 6, 3, power_sample_fn(PowerConfig(2.0, 2, 4)))[0]
    assert whole != drawn(RAGGED, 64, 3, power_sample_fn(PowerConfig(2.0, 2, 4)), seed=1)[0]


# ----- paths

SHEET = [("5", [(.40, .35)]), ("8", [(.95, .02), (.90, .05)]), ("8", [(.60, .30), (.70, .20)]), ("5", [(.55, .40)]),
         ("7", [(.85, .10)])]


def test_margins_and_their_sums_are_the_published_ones():
    rows = [{"extracted": answer, "margin": float(np.mean([a - b for a, b in pairs]))} for answer, pairs in SHEET]
    for (_, pairs), wanted in zip(SHEET, (.05, .89, .40, .15, .75)):
        rest = [[(1 - a - b) / 98] * 98 for a, b in pairs]
        logits = jnp.log(jnp.array([[b, a, *more] for (a, b), more in zip(pairs, rest)]))
        assert float(jnp.mean(margins(logits))) == pytest.approx(wanted, abs=1e-6)
    assert summed(rows) is rows[1] and widest(rows) is rows[1] and first(rows) is rows[0]
    assert summed(rows[2:]) is rows[4]  # .75 against .40 and .15
    assert summed([*rows[2:], {"extracted": "5", "margin": .65}]) is rows[3]  # .80 together
    nothing = [{"extracted": None, "margin": None}] * 2
    assert summed(nothing) is widest(nothing) is majority(nothing) is None
    assert majority([nothing[0], rows[4], *rows[:4]]) is rows[0]  # 5 and 8 tie, and 5 came first


def test_the_margin_is_of_the_answers_tokens(base):
    words = loading.load_model(str(base)).tokenizer
    text = "think + 4 24 answer 4"
    ids, margins_T = words.encode(text + " <eos>"), np.array([.1, .2, .3, .4, .5, .6, .7])
    assert answer_margin(words, ids, margins_T, text, "4") == .6
    assert answer_margin(words, ids, margins_T, text, "24") == .4
    assert answer_margin(words, ids, margins_T, text, "4 24") == pytest.approx(.35)  # several tokens
    assert answer_margin(words, ids, margins_T, text, "2") is answer_margin(words, ids, margins_T, text, None) is None
    assert answer_place("so 1,234 dollars", "1234") == (3, 8)


def test_paths_begin_with_the_likeliest_tokens_and_go_on_greedily():
    table = np.array([[.1, .2, .3, .4], [1, 0, 0, 0], [.2, .1, .1, .6], [.1, .7, .15, .05]])
    said, out = drawn(table, 6, 3, branched_sample_fn(3), temperature=0.0)
    assert said == 2 * [(3, 1), (2, 3, 1), (1,)]
    np.testing.assert_allclose(out.noted["margin"][1], [.1, .4, .55], atol=1e-5)
    assert out.noted["forward_tokens"].tolist() == 2 * [3, 3, 1]
    assert drawn(table, 2, 3, opened_sample_fn((2, 2)), temperature=0.0)[0] == 2 * [(2, 2, 3)]
    assert drawn(table, 1, 1, branched_sample_fn(6), temperature=0.0)[0] == [(3,)]  # fewer tokens than paths


# ----- the command

FLAGS = ("--num_ops=2", "--max_new_tokens=10", "--max_problems=6")
KEYS = {"benchmark", "problem", "sample", "prompt", "answer", "completion", "extracted", "correct", "timed_out",
        "graded_by", "truncated", "num_tokens", "forward_tokens"}


def elicited(base, out, method, **flags) -> tuple[dict, list[dict]]:
    config = decoding.ElicitConfig.from_flags(**{
        "model": str(base), "method": method, "num_ops": 2, "max_new_tokens": 10, "max_problems": 6, "out": str(out),
        "num_samples": 4, "num_blocks": 2, "num_moves": 2, "layer": 0, "num_fit": 16, "num_latents": 8, "active": 2,
        "sae_steps": 20} | flags)
    summary = decoding.elicit(config)
    assert json.loads(json.dumps(summary)) == json.loads((out / "summary.json").read_text())
    return summary, read_jsonl(out / "completions.jsonl")


@pytest.mark.parametrize("method", decoding.METHODS)
def test_every_method_keeps_its_completions_and_says_what_it_cost(method, base, tmp_path):
    samples = 4 if method in ("self_consistency", "cot_decoding") else 1
    summary, rows = elicited(base, tmp_path / "out", method, rows_per_call=5)  # a call ends within a problem's paths
    assert [(row["problem"], row["sample"]) for row in rows] == [(i, j) for i in range(6) for j in range(samples)]
    more = {"cot_decoding": {"margin"}, "power": {"logprob", "accepted"}, "steer": {"steered"},
            "sae": {"steered"}}.get(method, set())
    assert all(set(row) == KEYS | more for row in rows)
    assert summary["method"] == method and summary["n"] == 6 and summary["num_samples"] == samples
    assert summary["accuracy"] == sum(summary["right"]) / 6 == next(iter(summary["rules"].values()))["accuracy"]
    assert summary["mean_accuracy"] == np.mean([row["correct"] for row in rows])
    fed = sum(row["forward_tokens"] for row in rows)
    assert summary["forward_tokens"] == pytest.approx(7 + fed / 6)  # coins 7 + 5 - 3 =
    if method == "cot_decoding":
        firsts = [[row["completion"].split(" ")[0] for row in rows[i : i + 4]] for i in range(0, 24, 4)]
        assert all(len(set(words)) == 4 for words in firsts) and fed == sum(row["num_tokens"] for row in rows) + 6
    elif method == "power":
        assert fed > sum(row["num_tokens"] for row in rows)
    else:
        assert fed == sum(row["num_tokens"] for row in rows)
    assert summary.get("steered") == {"steer": 1, "sae": 6 / sum(row["num_tokens"] for row in rows)}.get(
        method)  # --where=generated: all of them; sae: the first of each
    if method == "forced":
        assert all(row["completion"].startswith("think ") for row in rows)
    path, written = tmp_path / "out" / "completions.jsonl", (tmp_path / "out" / "completions.jsonl").read_bytes()
    path.write_bytes(b"".join(written.splitlines(keepends=True)[:3]))
    assert elicited(base, tmp_path / "out", method, rows_per_call=5)[0] == summary and path.read_bytes() == written


def test_an_opening_has_to_be_of_the_models_words(base, tmp_path):
    for opening in ("hmmm", "", "think " * 10):
        with pytest.raises(UserError, match="--opening="):
            elicited(base, tmp_path / "out", "forced", opening=opening)


def test_a_gate_is_fitted_to_another_model(base, tmp_path):
    """Base and trained model are two steps of one run; as many tokens are steered as the rate says, or nearly so."""
    flags = {"where": "gate", "trained": f"{base}@100", "strength": 0.0, "max_problems": 64}
    summary, rows = elicited(base, tmp_path / "gate", "steer", rate=.2, **flags)
    plain, _ = elicited(base, tmp_path / "plain", "greedy", max_problems=64)
    assert summary["right"] == plain["right"] and .05 < summary["steered"] < .45
    assert summary["steered"] == sum(row["steered"] for row in rows) / sum(row["num_tokens"] for row in rows)
    for wrong, flaw in (({"trained": ""}, "--trained is required"), ({"layer": 1}, "--layer=1"),
                        ({"vector": "trained"}, "--vectors"), ({"problems": "some.jsonl"}, "--fit_problems"),
                        ({"trained": str(base)}, "there is no gate")):
        with pytest.raises(UserError, match=flaw):
            gate.fit(config := SteeringConfig.from_flags(**{
                "model": str(base), "num_ops": 2, "num_fit": 64, "layer": 0, "max_new_tokens": 10,
                "trained": f"{base}@100", "out": str(tmp_path / "w")} | wrong),
                     loaded := loading.load_model(str(base)), gate.load_trained(config, loaded))


def test_the_command_prints_its_table_and_scripts_grade_reads_its_rows(base, tmp_path, compiled):
    out = tmp_path / "forced"
    printed = run("elicit", "--method=forced", "--opening=quick", f"--model={base}", *FLAGS, f"--out={out}",
                  compiled=compiled, expect=0).out
    accuracy = json.loads((out / "summary.json").read_text())["accuracy"]
    assert f"| arithmetic | 6 | forced | only | {accuracy:.3f} [" in printed
    assert printed.rstrip().endswith("/forced/summary.json")
    run("grade", f"--completions={out / 'completions.jsonl'}", "--answer_format=answer",
        f"--out={tmp_path / 'g.jsonl'}", compiled=compiled, expect=0)
    assert [row["correct"] for row in read_jsonl(tmp_path / "g.jsonl")] == [
        row["correct"] for row in read_jsonl(out / "completions.jsonl")]
