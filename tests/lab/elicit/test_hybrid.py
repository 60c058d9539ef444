"""The hybrid: the published shares of the gap, the oracle against whole passes, and which model is run when."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr_jax import model, parallel, sampler
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.estimators import recovered_share
from rlvr_jax.lab.elicit import gate, hybrid, steering
from rlvr_jax.lab.elicit.hybrid import HybridConfig
from scripts import hybrid as door

from fixtures import PROMPTS, padded, read_jsonl, steered_model

WORDS, CONFIG, PARAMS, INDEX, LAYER, T, VECTOR, _, STEERING = steered_model()


def solved(count):
    return np.arange(100) < count


def test_the_gap_recovered_is_the_published_one():
    share, (low, high) = recovered_share(solved(50), solved(75), solved(62))
    assert share == pytest.approx(.48) and .2 < low < .48 < high < .8
    assert recovered_share(solved(50), solved(75), solved(48))[0] == pytest.approx(-.08)
    assert recovered_share(solved(50), solved(59), solved(55)) == (None, None)
    assert recovered_share(solved(50), solved(60), solved(60)) == (1.0, (1.0, 1.0))
    base, trained, better = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert recovered_share(base, trained,
                           better)[1][0] == 0  # in a third of the resamples the trained model is the worse


# ----- the oracle

RAISED = np.array([WORDS.encode(word)[0] for word in ("think", "hmm")])
OTHER = PARAMS | {"head": PARAMS["head"].at[:, RAISED].multiply(3)}


@jax.jit
def next_tokens(params, tokens, acts):
    """The likeliest next tokens of a whole row, steered where `acts`."""
    edit = lambda i, x, _: x + ((i == LAYER) & acts)[None, :, None] * jnp.array(VECTOR)[None, None]
    hidden, _ = model.forward(params, CONFIG, tokens[None], how=model.ForwardOptions(edit_residual=edit))
    return model.head(params, hidden)[0].argmax(-1)


def test_the_oracle_runs_the_trained_model_at_every_token():
    """Against a loop that writes one token after the other; some texts end early, at the token 14."""
    sample = sampler.make_sampler(CONFIG, sampler.Decoding((1, 14), T),
                                  sample_fn=steering.trained_gate_sample_fn(LAYER))
    placed = parallel.place_state({"model": PARAMS, "trained": OTHER, "steering": STEERING})
    out = sample(placed, padded(PROMPTS), INDEX, sampler.Request(0, 0, 0.0))
    steered = 0
    for row, prompt in enumerate(INDEX[:4]):
        text, start = np.zeros(16, np.int32), len(PROMPTS[prompt])
        text[:start], acts, nowhere = PROMPTS[prompt], np.zeros(16, bool), np.zeros(16, bool)
        for place in range(start, start + out.completion_mask[row].sum()):
            theirs, ours = (int(next_tokens(params, text, nowhere)[place - 1]) for params in (OTHER, PARAMS))
            acts[place - 1] = theirs != ours
            text[place] = int(next_tokens(PARAMS, text, acts)[place - 1])
        np.testing.assert_array_equal(text[start:place + 1], out.completions[row][out.completion_mask[row]])
        assert out.noted["steered"][row] == acts.sum()
        steered += acts.sum()
    assert steered > 2 and out.completion_mask[:4].sum(-1).min() < T


# ----- what is chosen, and the controls

FITTED = gate.Fitted([], np.ones(16), np.ones(16), np.arange(10), {})


def make_rows(right, steered) -> list[dict]:
    """Ten completions of four tokens."""
    return [{"correct": i < right, "steered": steered, "num_tokens": 4} for i in range(10)]


def test_of_settings_that_solve_as_many_the_one_that_steers_least_is_chosen(monkeypatch):
    solved_and_steered = {(1, .1): (6, 2), (1, .3): (8, 3), (3, .1): (8, 1), (3, .3): (8, 2)}
    splits = []
    monkeypatch.setattr(hybrid, "load_sets", lambda kept, _: splits.append(kept.heldout_split) or [])
    monkeypatch.setattr(hybrid, "sample_steered", lambda config, loaded, sets, name, *_: make_rows(*solved_and_steered[
        tuple(map(float, name.removeprefix("dev/strength_").split("_rate_")))]))
    chosen = hybrid.choose_setting(HybridConfig.from_flags(strengths=(1.0, 3.0), rates=(.1, .3)), None, FITTED)
    assert chosen == {"strength": 3.0, "rate": .1, "steered": .25, "accuracy": .8} and splits == ["dev"]


@pytest.mark.parametrize("flags, says", [
    ({"heldout_split": "dev"}, "--heldout_split=dev: settings are chosen on this split of arithmetic"),
    ({"problems": "a.jsonl", "fit_problems": "b.jsonl,a.jsonl"}, "--fit_problems=a.jsonl: --problems measures on the")])
def test_no_setting_is_chosen_on_the_measured_problems(flags, says):
    with pytest.raises(UserError, match=says):
        hybrid.choose_setting(HybridConfig.from_flags(**flags), None, FITTED)


def test_the_control_at_random_places_steers_as_many_tokens_as_the_hybrid_did(monkeypatch):
    """The gate acts at another share of the measured problems than of those it was fitted on."""
    arms, places = {}, {}

    def sample_steered(config, loaded, benchmarks, name, where, values):
        arms[name], places[name] = values, where
        return make_rows(5, 1)

    monkeypatch.setattr(hybrid, "sample_steered", sample_steered)
    for name in ("random", "pca"):
        monkeypatch.setattr(hybrid.vectors, name, lambda *_: np.zeros(16))
    hybrid.sample_arms(HybridConfig.from_flags(rates=(.1, .4)), None, [], FITTED, {"strength": 2.0, "rate": .4})
    assert arms["random_places"].rate == pytest.approx(.25) and arms["rate_0.4"].rate == pytest.approx(.4)
    np.testing.assert_array_equal(arms["random_places"].vector, 2 * np.ones(16))
    assert places == dict.fromkeys(["rate_0.1", "rate_0.4", "random_vector", "principal_direction"], "gate") | {
        "random_places": "shuffled_gate", "always_on": "generated", "first_token": "first"}
    assert arms["rate_0.1"].threshold == pytest.approx(8.1) and arms["rate_0.4"].threshold == pytest.approx(5.4)


# ----- the command

def flags(base, out, **more) -> HybridConfig:
    return HybridConfig.from_flags(**{
        "model": str(base), "trained": f"{base}@100", "num_ops": 2, "max_new_tokens": 10, "max_problems": 48,
        "num_fit": 64, "layer": 0, "out": str(out), "strengths": (1.0, 3.0), "rates": (.1, .3)} | more)


def read_arms(out) -> dict[str, list[dict]]:
    return {str(path.parent.relative_to(out)): read_jsonl(path) for path in out.glob("**/completions.jsonl")}


@pytest.fixture(scope="module")
def measured(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("hybrid")
    return out, hybrid.hybrid(flags(base, out))


def test_the_summary_is_of_the_rows_that_are_kept(measured):
    out, summary = measured
    assert json.loads(json.dumps(summary)) == json.loads((out / "summary.json").read_text())
    arms, kept, chosen = summary["arms"], read_arms(out), summary["chosen"]
    assert set(arms) == {"base", "hybrid", "random_vector", "principal_direction", "random_places", "always_on",
                         "first_token", "trained", "trained_gate"}
    assert [name for name, arm in arms.items() if arm["oracle"]] == ["trained_gate"]
    right = {name: np.mean([row["correct"] for row in rows]) for name, rows in kept.items()}
    assert all(arm["accuracy"] == pytest.approx(right[name]) for name, arm in arms.items() if name != "hybrid")
    assert summary["gap"] == pytest.approx(right["trained"] - right["base"])
    assert arms["always_on"]["steered"] == 1 and arms["trained"]["steered"] is None
    low, high = summary["curve"]
    assert (low["rate"], high["rate"]) == (.1, .3) and low["steered"] < high["steered"]
    main = low if chosen["rate"] == .1 else high
    assert all(main[name] == arms["hybrid"][name] for name in ("accuracy", "steered"))
    dev = {name: accuracy for name, accuracy in right.items() if name.startswith("dev/")}
    assert len(dev) == 4 and max(dev.values()) == dev[
        f"dev/strength_{chosen['strength']:g}_rate_{chosen['rate']:g}"]
    assert not {row["prompt"] for row in kept["dev/strength_1_rate_0.1"]} & {row["prompt"] for row in kept["base"]}
    table = (out / "table.md").read_text()
    assert "| trained_gate (oracle) |" in table and "| hybrid, rate 0.3 |" in table and "| hybrid |" in table


def test_after_the_fit_only_the_oracle_runs_the_trained_model(measured, base, tmp_path, monkeypatch):
    fit = gate.fit

    def fit_and_poison(config, loaded, trained):
        fitted = fit(config, loaded, trained)
        trained.params.update(jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), trained.params))
        return fitted

    monkeypatch.setattr(gate, "fit", fit_and_poison)
    hybrid.hybrid(flags(base, tmp_path))
    sound, poisoned = read_arms(measured[0]), read_arms(tmp_path)
    assert sound.keys() == poisoned.keys()
    assert {name for name in sound if sound[name] != poisoned[name]} == {"trained", "trained_gate"}


def test_it_goes_on_and_refuses_what_does_not_fit(measured, base, tmp_path):
    out, summary = measured
    (out / "always_on" / "completions.jsonl").unlink()
    assert hybrid.hybrid(flags(base, out)) == summary
    for config, error in ((flags(base, out, strengths=(1.0,)), "other flags: --strengths"),
                          (flags(base, ""), "--out is required"),
                          (flags(base, tmp_path, trained=""), "--trained is required")):
        with pytest.raises(UserError, match=error):
            hybrid.hybrid(config)


def test_the_command_prints_its_table(measured, base, capsys):
    door.main(flags(base, measured[0]))
    printed = capsys.readouterr().out
    assert "| trained_gate (oracle) |" in printed and printed.rstrip().endswith("/summary.json")
