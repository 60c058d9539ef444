"""Steering: the sampler's hook against whole passes, vectors and the gate against formulas written anew."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from rlvr_jax import model, parallel, sampler
from rlvr_jax.errors import UserError
from rlvr_jax.lab.elicit import gate, steering, vectors
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.tasks.prompts import ProblemSource, PromptConfig, load_problems

from fixtures import PROMPTS, padded, steered_model

WORDS, CONFIG, PARAMS, INDEX, LAYER, T, VECTOR, WEIGHT, STEERING = steered_model()
RNG = np.random.default_rng(1)


@functools.cache
def drawer(where, num_slots=0):
    return sampler.make_sampler(CONFIG, sampler.Decoding((1,), T, num_slots),
                                sample_fn=steering.steered_sample_fn(where, LAYER) if where else sampler.sample)


def drawn(where, steered=STEERING, seed=0, num_slots=0):
    params = {"model": PARAMS, "steering": steered} if where else PARAMS
    return drawer(where, num_slots)(parallel.place_state(params), padded(PROMPTS), INDEX, sampler.Request(seed, 0))


@functools.partial(jax.jit, static_argnums=0)
def whole(steered, tokens, acts):
    """(log-probabilities of each next token, residual after LAYER) of a row in one pass, steered where `acts`."""
    edit = lambda i, x, _: x + ((i == LAYER) & acts)[None, :, None] * jnp.array(VECTOR)[None, None] * steered
    how = model.ForwardOptions(edit_residual=edit, read_residual=lambda x: x)
    hidden, kept = model.forward(PARAMS, CONFIG, tokens[None], how=how)
    return jax.nn.log_softmax(model.head(PARAMS, hidden))[0], kept[LAYER, 0]


RULES = {"all": lambda step, residual: step >= -9, "generated": lambda step, residual: step >= 0,
         "first": lambda step, residual: step == 0,
         "gate": lambda step, residual: (step >= 0) & (residual @ WEIGHT > 0)}


@pytest.mark.parametrize("where", RULES)
def test_a_steered_completion_is_that_of_a_whole_pass(where):
    out = drawn(where, seed=2)
    for row, prompt in enumerate(INDEX):
        ids, mask = out.completions[row], out.completion_mask[row]
        text = np.zeros(16, np.int32)
        text[: len(PROMPTS[prompt]) + T] = [*PROMPTS[prompt], *ids]
        start = len(PROMPTS[prompt]) - 1
        acts = np.array(RULES[where](np.arange(16) - start, np.asarray(whole(0, text, np.zeros(16, bool))[1])))
        logprobs = np.asarray(whole(1, text, acts)[0])[start : start + T][np.arange(T), ids]
        np.testing.assert_allclose(out.sampler_logprobs[row][mask], logprobs[mask], atol=5e-5)
        assert out.noted["steered"][row] == (acts[start : start + T] & mask).sum()
    assert 0 < out.noted["steered"].sum() <= out.completion_mask.sum()
    assert (drawn(None, seed=2).completions != out.completions).any()


@pytest.mark.parametrize("where", ["generated", "gate"])
def test_a_zero_vector_is_the_base_bit_for_bit(where):
    still, plain = drawn(where, STEERING.replace(vector=0 * VECTOR), seed=1), drawn(None, seed=1)
    for name in ("completions", "completion_mask", "sampler_logprobs", "ended"):
        assert getattr(still, name).tobytes() == getattr(plain, name).tobytes()
    assert still.noted["steered"].sum() > 0


def test_chance_steers_at_its_rate_and_by_seed_and_row_alone():
    still = STEERING.replace(vector=0 * VECTOR)
    counts, lengths = zip(*((out.noted["steered"], out.completion_mask.sum(-1)) for out in
                            (drawn("shuffled_gate", still, seed) for seed in range(20))))
    assert np.sum(counts) / np.sum(lengths) == pytest.approx(.4, abs=.08)  # of some 800 tokens
    assert len({tuple(row) for row in counts}) > 10
    first, again, slots = (drawn("shuffled_gate", num_slots=n) for n in (0, 0, 2))
    assert (first.completions == again.completions).all() and (first.completions == slots.completions).all()
    assert (drawn("shuffled_gate", STEERING.replace(rate=np.float32(0))).completions == drawn(None).completions).all()


def test_a_hook_that_does_nothing_leaves_the_program_as_it_is():
    def lowered(edit_at):
        rows = sampler.Rows(jnp.array(INDEX), sampler.rollout_keys(0, 0, jnp.arange(6)), 1.0)
        prefix = jax.eval_shape(lambda: model.prefill(PARAMS, CONFIG, padded(PROMPTS)))
        return jax.jit(lambda params, prefix: sampler.decode(
            params, CONFIG, prefix, rows, sampler.Decoding((1,), T), sampler.Hooks(edit_at=edit_at))).lower(
                PARAMS, prefix).as_text()

    bare = lowered(None)
    assert lowered(lambda rows, steps: lambda i, x, positions: x) == bare
    assert lowered(lambda rows, steps: lambda i, x, positions: x + 1) != bare


# ----- vectors

def flags(tmp_path=None, **more) -> vectors.SteeringConfig:
    return vectors.SteeringConfig.from_flags(**{"num_ops": 2, "max_new_tokens": T, "num_fit": 20, "layer": LAYER,
                                             "out": str(tmp_path and tmp_path / "out")} | more)


def asked(count) -> list:
    return load_problems(ProblemSource("arithmetic", PromptConfig(2)), WORDS, "example", count)


LOADED = LanguageModel(CONFIG, PARAMS, WORDS)


def last_states(texts) -> np.ndarray:
    how = model.ForwardOptions(read_residual=lambda x: x)
    return np.stack([np.asarray(model.forward(PARAMS, CONFIG, np.array([WORDS.encode(text)]), how=how)[1])[LAYER, 0, -1]
                     for text in texts])


def test_vectors_are_directions_of_the_residual_with_one_length():
    problems, of_file = asked(12), flags(problems="some.jsonl", opening="think")
    found = vectors.means(of_file, LOADED, problems)
    ends = last_states([problem.prompt for problem in problems])
    by_hand = (last_states([problem.prompt + " think" for problem in problems]) - ends).mean(0)
    np.testing.assert_allclose(found, by_hand, atol=1e-5)
    length = np.linalg.norm(by_hand)
    one, other = (vectors.random(of_file.with_flags(seed=seed), LOADED, problems) for seed in (0, 1))
    direction = vectors.pca(of_file, LOADED, problems)
    assert [np.linalg.norm(x) for x in (one, other, direction)] == pytest.approx(3 * [length], rel=1e-5)
    assert abs(one @ other) < .9 * length**2 and direction @ by_hand >= 0
    likeliest = np.linalg.eigh(np.cov(ends.T.astype(np.float64)))[1][:, -1]
    assert abs(direction @ likeliest) == pytest.approx(length, rel=1e-4)
    like = vectors.pca(of_file, LOADED, problems, like_D=-7 * direction)
    np.testing.assert_allclose(like, -7 * direction, rtol=1e-4, atol=1e-5)


def test_means_need_problems_that_are_opened_carefully_and_others(monkeypatch):
    think, quick = (WORDS.encode(word)[0] for word in ("think", "quick"))
    said = np.array(4 * [think] + 8 * [quick])
    told = np.stack(2 * [RNG.normal(size=(12, 16))])
    monkeypatch.setattr(vectors.openings, "at_last_token", lambda *_: (told, said))
    np.testing.assert_allclose(vectors.means(flags(), LOADED, asked(12)), told[0, :4].mean(0) - told[0, 4:].mean(0))
    said[:] = think
    with pytest.raises(UserError, match="opens 12 of 12 problems carefully"):
        vectors.means(flags(), LOADED, asked(12))


# ----- the gate

def test_the_gate_is_a_logistic_regression():
    x = RNG.normal(size=(300, 3)) * [1, 10, .1] + 5
    y = RNG.uniform(size=300) < 1 / (1 + np.exp(-((x - 5) @ [1, .1, -3])))
    found, z = gate.logistic(x, y), (x - x.mean(0)) / x.std(0)
    w = found * x.std(0)
    chance = lambda b: 1 / (1 + np.exp(-(z @ w + b)))
    b = scipy.optimize.brentq(lambda b: (chance(b) - y).mean(), -20, 20)
    np.testing.assert_allclose(((chance(b) - y)[:, None] * z).mean(0) + gate.PENALTY * w, 0, atol=1e-4)
    assert np.abs(w).min() > .05


def test_the_gate_is_fitted_where_the_models_differ(tmp_path):
    head = PARAMS["head"].at[:, WORDS.encode("think")[0]].multiply(3)
    other = dataclasses.replace(LOADED, params=PARAMS | {"head": head})
    config = flags(tmp_path, vector="random", problems="some.jsonl", fit_problems="arithmetic")
    fitted = gate.fit(config, LOADED, other)

    @jax.jit
    def likeliest(head, tokens):
        return model.head({"head": head}, model.forward(PARAMS, CONFIG, tokens[None])[0])[0].argmax(-1)

    differ = []
    for mine in (PARAMS["head"], head):
        for problem in asked(20):
            ids, steps = WORDS.encode(problem.prompt), []
            while len(steps) < T and (not steps or ids[-1] not in WORDS.eos_ids):
                text = np.pad(np.array(ids, np.int32), (0, 32 - len(ids)))
                said = [int(likeliest(h, text)[len(ids) - 1]) for h in (PARAMS["head"], head)]
                steps.append(said[0] != said[1])
                ids.append(int(likeliest(mine, text)[len(ids) - 1]))
            differ.append(steps)
    every = np.concatenate(differ)
    assert fitted.gate["n"] == len(every) and fitted.gate["differ"] == pytest.approx(every.mean())
    assert fitted.gate["differ_first"] == pytest.approx(np.mean([steps[0] for steps in differ]))
    assert fitted.gate["first_of_differ"] == pytest.approx(sum(steps[0] for steps in differ) / every.sum())
    assert fitted.gate["auroc"] > .7
    for rate in (.1, .5):
        assert np.mean(fitted.scores_N > fitted.steering(2.0, rate).threshold) == pytest.approx(rate, abs=.01)
    np.testing.assert_allclose(fitted.steering(2.0, .1).vector, 2 * fitted.vector_D, rtol=1e-6)


def test_the_gates_auroc_is_of_problems_that_it_was_not_fitted_on(monkeypatch):
    """Where nothing can be known it is .5, though 30 dimensions fit the 80 tokens of the other problems well."""
    rng, problems, found = np.random.default_rng(0), asked(20), []
    lengths = np.array([len(WORDS.encode(problem.prompt)) for problem in problems])
    row = np.repeat(np.arange(20), 5)
    positions = (lengths[:, None] - 1 + np.arange(5)).ravel()
    monkeypatch.setattr(gate, "greedy_texts", lambda *_: [np.zeros(n + 5, int) for n in lengths])
    for _ in range(8):
        base, other = (SimpleNamespace(row=row, positions=positions, likeliest=said, at=lambda _, x=rng.normal(
            size=(100, 30)): x) for said in (np.zeros(100), rng.integers(2, size=100)))
        made = iter([base, other])
        monkeypatch.setattr(gate, "stream", lambda *_: next(made))
        weight_D, _, numbers = gate.fit_gate(flags(), LOADED, LOADED, problems)
        mine, differ = row % 5 > 0, other.likeliest > 0
        assert gate.auroc(base.at(0)[mine] @ weight_D, differ[mine]) > .75
        found.append(numbers["auroc"])
    assert abs(np.mean(found) - .5) < .12
