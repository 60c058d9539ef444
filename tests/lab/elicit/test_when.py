"""When a trained model differs from its base: KL and swaps by hand, the change of the weights, the command."""

import json

import numpy as np
import pytest

from rlvr_jax import parallel, records, sampler
from rlvr_jax.errors import UserError
from rlvr_jax.lab.elicit import decoding, when
from rlvr_jax.lab.elicit.comparison import spectrum, weight_difference
from rlvr_jax.lab.elicit.when import Gate, WhenConfig
from rlvr_jax.pretrained import loading

from fixtures import bigrams, read_jsonl

# Tokens: 0 the prompt, 1 the end. Greedily the base writes 2 3 1; the trained model writes 3 2 2 2 ... 2
BASE = np.array([[.1, .1, .5, .3], [1, 0, 0, 0], [.1, .2, .3, .4], [.1, .6, .2, .1]])
TRAINED = np.array([[.1, .1, .2, .6], [1, 0, 0, 0], [.1, .2, .4, .3], [.1, .2, .6, .1]])
KL = [float(np.sum(q * np.log(q / p))) for p, q in zip(BASE[[0, 2, 3]], TRAINED[[0, 2, 3]])]  # after 0, 2 and 3


def swap(gates, num_slots=0, seed=0, repeats=1):
    """The tokens under each gate, up to the end, and the rollouts."""
    (config, old), (_, new) = (bigrams(np.maximum(table, 1e-30)) for table in (BASE, TRAINED))
    sample = sampler.make_sampler(config, sampler.Decoding((1,), 4, num_slots), sample_fn=when.swap_sample_fn(gates))
    count = len(gates) * repeats
    out = sample(parallel.place_state({"base": old, "trained": new}), records.Prompts(np.zeros((1, 1), np.int32),
                 np.ones(1, np.int32)), np.zeros(count, np.int32), sampler.Request(seed, 0, 0.0, repeats=count))
    return [tuple(ids[mask].tolist()) for ids, mask in zip(out.completions, out.completion_mask)], out


@pytest.mark.parametrize("num_slots", [0, 2])
def test_a_gate_says_whose_token_stands(num_slots):
    gates = [Gate(first=0), Gate(), Gate(first=1), Gate(least=.4), Gate(least=.2), Gate(chance=0.0), Gate(first=2)]
    texts, out = swap(gates, num_slots)
    assert texts == [(2, 3, 1), (3, 2, 2, 2), (3, 1), (2, 3, 2, 3), (3, 2, 3, 2), (2, 3, 1), (3, 2, 3, 1)]
    assert out.ended.tolist() == [ids[-1] == 1 for ids in texts]
    np.testing.assert_allclose(out.noted["kl"][3], [KL[0], KL[1], KL[2], KL[1]], atol=1e-5)
    assert out.noted["swapped"][3:5].tolist() == [[False, False, True, False], [True, True, False, True]]
    assert out.noted["base"][1].tolist() == [2, 1, 3, 3] and out.noted["trained"][1].tolist() == [3, 2, 2, 2]
    np.testing.assert_allclose(out.sampler_logprobs[2, :2], np.log([.3, .6]), atol=1e-5)  # the base's


def test_chance_is_a_share_of_the_places_and_of_the_seed_alone():
    texts, out = swap([Gate(chance=.3)], repeats=1024)
    assert np.mean(out.noted["swapped"][:, 0]) == pytest.approx(.3, abs=.05)
    assert texts == swap([Gate(chance=.3)], num_slots=100, repeats=1024)[0]
    assert texts != swap([Gate(chance=.3)], repeats=1024, seed=1)[0]


ROWS = [{"base": [5, 6, 7], "trained": [8, 6, 7], "kl": [.9, .1, .2]},
        {"base": [5, 7], "trained": [8, 6], "kl": [.5, .3]}]


def test_gates_of_a_share_are_the_largest_kl_and_as_many_at_random():
    gates = when.make_gates(WhenConfig(first=(2,), shares=(.2, .6)), ROWS)
    assert list(gates.values()) == [Gate(first=2), Gate(least=.9), Gate(chance=pytest.approx(1 / 3)), Gate(least=.3),
                                    Gate(chance=1.0)]
    assert list(gates)[1:3] == ["largest KL, 20 %", "at random, as many as 20 %"]


def test_the_control_of_a_share_has_as_many_swaps_as_tokens_can_change_there():
    """At a large KL the likeliest tokens may be the same, and then nothing is swapped."""
    rows = [*ROWS, {"base": [4, 7], "trained": [4, 6], "kl": [1.5, .05]}]
    gates = when.make_gates(WhenConfig(first=(), shares=(2 / 7,)), rows)
    assert list(gates.values()) == [Gate(least=.9), Gate(chance=pytest.approx(1 / 4))]  # 1 of the 4 that differ


def test_a_text_is_summarised_by_position_and_by_pairs(base):
    words = loading.load_model(str(base)).tokenizer
    text = when.summarise_text(ROWS, words)
    name = [words.backend.id_to_token(i) for i in range(9)]
    assert text["pairs"] == [[name[5], name[8], 2], [name[7], name[6], 1]]
    assert (text["tokens"], text["changed"], text["kl"]) == (5, .6, pytest.approx(.4))
    assert text["first_of_changed"] == pytest.approx(2 / 3)
    assert text["by_position"] == [{"tokens": 2, "changed": 1, "kl": pytest.approx(.7)},
                                   {"tokens": 2, "changed": .5, "kl": pytest.approx(.2)},
                                   {"tokens": 1, "changed": 0, "kl": pytest.approx(.2)}]


# ----- weights

def test_a_change_is_few_directions_and_few_weights():
    column = spectrum(np.diag([3.0, 0, 4])[:, :2] + np.array([[0, 0], [0, 0], [4, 0.0]]))
    assert column == {"stable_rank": pytest.approx(1), "top": {"1": pytest.approx(1), "4": 1, "16": 1}}
    two = spectrum(np.array([[0, 3.0, 0], [-4.0, 0, 0]]))  # singular values 4 and 3
    assert two["stable_rank"] == pytest.approx(25 / 16) and two["top"]["1"] == pytest.approx(.64)
    assert spectrum(np.ones(3)) is None and spectrum(np.zeros((2, 2))) is None


def test_moved_is_relative_and_adapters_count():
    old = {"embed": np.array([[1.0, 100.0], [0, -2.0]]), "layers": {"q": np.ones((2, 2, 2))}}
    new = {"embed": np.array([[1 + 2e-5, 100 + 9e-4], [1e-9, -2.0]]),
           "layers": {"q": np.stack([np.ones((2, 2)), np.full((2, 2), 3.0)]), "vector": np.array([[0, 1.0], [0, 0]])}}
    change = weight_difference(old, new)
    moved = {name: tensor["moved"] for name, tensor in change["tensors"].items()}
    assert moved == {"embed": .5, "layers/q/0": 0, "layers/q/1": 1, "layers/down_bias/0": .5, "layers/down_bias/1": 0}
    assert change["all"] == {"size": 16, "moved": pytest.approx(7 / 16), "stable_rank": pytest.approx(1)}
    assert change["tensors"]["layers/q/1"]["relative"] == pytest.approx(2)
    assert change["tensors"]["layers/q/1"]["spectrum"]["stable_rank"] == pytest.approx(1)


# ----- the command

def test_the_command_compares_both_models_and_continues(base, tmp_path):
    out = tmp_path / "out"

    def compare():
        return when.when(WhenConfig.from_flags(
            model=f"{base}@100", trained=f"{base}@200", num_ops=2, max_new_tokens=10, max_problems=6,
            first=(1, 10), shares=(.5,), rows_per_call=5, num_slots=2, out=str(out)))
    summary = compare()
    assert json.loads(json.dumps(summary)) == json.loads((out / "summary.json").read_text())
    rows = read_jsonl(out / "texts" / "completions.jsonl")
    for i, step in enumerate((100, 200)):
        decoding.elicit(decoding.ElicitConfig.from_flags(model=f"{base}@{step}", num_ops=2, max_new_tokens=10,
                                                         max_problems=6, out=str(tmp_path / str(step))))
        assert [row["completion"] for row in rows[i::2]] == [
            row["completion"] for row in read_jsonl(tmp_path / str(step) / "completions.jsonl")]
    assert list(summary["swapped"]) == ["base", "trained", "first 1", "first 10", "largest KL, 50 %",
                                        "at random, as many as 50 %"]
    swapped = read_jsonl(out / "swapped" / "completions.jsonl")
    assert [row["completion"] for row in swapped[1::4]] == [row["completion"] for row in rows[1::2]]  # first 10: always
    assert summary["swapped"]["base"]["tokens"] == 0 < summary["texts"]["base"]["changed"] < 1
    assert summary["weights"]["all"]["moved"] > .5
    assert "| wherever they differ |" in (out / "when.md").read_text() and (out / "when.png").stat().st_size > 1000
    path = out / "swapped" / "completions.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:7]))
    assert compare() == summary and read_jsonl(path) == swapped


def test_what_is_compared_has_to_be_named(base, tmp_path):
    with pytest.raises(UserError, match="--out and --trained are required"):
        when.when(WhenConfig.from_flags(model=str(base), out=str(tmp_path)))
