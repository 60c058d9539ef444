"""Steering: the sampler's hook against whole passes, vectors and the gate against formulas written anew."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from rlvr_jax import model, parallel, sampler
from rlvr_jax.errors import UserError
from rlvr_jax.lab.elicit import gate, steering, vectors
from rlvr_jax.lab.elicit.activations import Activations
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.tasks.prompts import ProblemSource, PromptConfig, load_problems

from fixtures import PROMPTS, full_logits, padded, steered_model

WORDS, CONFIG, PARAMS, INDEX, LAYER, T, VECTOR, WEIGHT, STEERING = steered_model()
RNG = np.random.default_rng(1)


@functools.cache
def make_drawer(where, num_slots=0):
    return sampler.make_sampler(CONFIG, sampler.Decoding((1,), T, num_slots),
                                sample_fn=steering.steered_sample_fn(where, LAYER) if where else sampler.sample)


def draw(where, steered=STEERING, seed=0, num_slots=0):
    params = {"model": PARAMS, "steering": steered} if where else PARAMS
    return make_drawer(where, num_slots)(parallel.place_state(params), padded(PROMPTS), INDEX, sampler.Request(seed, 0))


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
    out = draw(where, seed=2)
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
    assert (draw(None, seed=2).completions != out.completions).any()


@pytest.mark.parametrize("where", ["generated", "gate"])
def test_a_zero_vector_is_the_base_bit_for_bit(where):
    still, plain = draw(where, STEERING.replace(vector=0 * VECTOR), seed=1), draw(None, seed=1)
    for name in ("completions", "completion_mask", "sampler_logprobs", "ended"):
        assert getattr(still, name).tobytes() == getattr(plain, name).tobytes()
    assert still.noted["steered"].sum() > 0


def test_chance_steers_at_its_rate_and_by_seed_and_row_alone():
    outs = [draw("shuffled_gate", STEERING.replace(vector=0 * VECTOR), seed) for seed in range(20)]
    share = sum(out.noted["steered"].sum() for out in outs) / sum(out.completion_mask.sum() for out in outs)
    assert share == pytest.approx(.4, abs=.08)  # of some 800 tokens
    assert len({tuple(out.noted["steered"]) for out in outs}) > 10
    first, again, slots = (draw("shuffled_gate", num_slots=n) for n in (0, 0, 2))
    assert (first.completions == again.completions).all() and (first.completions == slots.completions).all()
    assert (draw("shuffled_gate", STEERING.replace(rate=np.float32(0))).completions == draw(None).completions).all()


# ----- vectors

def flags(**more) -> vectors.SteeringConfig:
    return vectors.SteeringConfig.from_flags(num_ops=2, max_new_tokens=T, num_fit=20, layer=LAYER, **more)


def fit_problems(count) -> list:
    return load_problems(ProblemSource("arithmetic", PromptConfig(2)), WORDS, "example", count)


LOADED = LanguageModel(CONFIG, PARAMS, WORDS)


def last_states(texts) -> np.ndarray:
    how = model.ForwardOptions(read_residual=lambda x: x)
    return np.stack([np.asarray(model.forward(PARAMS, CONFIG, np.array([WORDS.encode(text)]), how=how)[1])[LAYER, 0, -1]
                     for text in texts])


def test_vectors_are_directions_of_the_residual_with_one_length():
    problems, of_file = fit_problems(12), flags(problems="some.jsonl", opening="think")
    means = vectors.means(of_file, LOADED, problems)
    ends = last_states([problem.prompt for problem in problems])
    by_hand = (last_states([problem.prompt + " think" for problem in problems]) - ends).mean(0)
    np.testing.assert_allclose(means, by_hand, atol=1e-5)
    length = np.linalg.norm(by_hand)
    one, other = (vectors.random(of_file.with_flags(seed=seed), LOADED, problems) for seed in (0, 1))
    direction = vectors.pca(of_file, LOADED, problems)
    assert [np.linalg.norm(x) for x in (one, other, direction)] == pytest.approx(3 * [length], rel=1e-5)
    assert abs(one @ other) < .9 * length**2 and direction @ by_hand >= 0
    principal = np.linalg.eigh(np.cov(ends.T.astype(np.float64)))[1][:, -1]
    assert abs(direction @ principal) == pytest.approx(length, rel=1e-4)
    like = vectors.pca(of_file, LOADED, problems, like_D=-7 * direction)
    np.testing.assert_allclose(like, -7 * direction, rtol=1e-4, atol=1e-5)


def test_means_need_problems_that_are_opened_carefully_and_others(monkeypatch):
    think, quick = (WORDS.encode(word)[0] for word in ("think", "quick"))
    tokens, residuals = np.array(4 * [think] + 8 * [quick]), np.stack(2 * [RNG.normal(size=(12, 16))])
    monkeypatch.setattr(vectors, "read_prompt_ends", lambda *_: (residuals, tokens))
    np.testing.assert_allclose(vectors.means(flags(), LOADED, fit_problems(12)),
                               residuals[0, :4].mean(0) - residuals[0, 4:].mean(0))
    tokens[:] = think
    with pytest.raises(UserError, match="12 of 12 completions start in the careful style; some"):
        vectors.means(flags(), LOADED, fit_problems(12))


# ----- the gate

def test_the_gate_is_a_logistic_regression():
    x = RNG.normal(size=(300, 3)) * [1, 10, .1] + 5
    y = RNG.uniform(size=300) < 1 / (1 + np.exp(-((x - 5) @ [1, .1, -3])))
    w, z = gate.logistic_weights(x, y) * x.std(0), (x - x.mean(0)) / x.std(0)
    chance = lambda b: 1 / (1 + np.exp(-(z @ w + b)))
    b = scipy.optimize.brentq(lambda b: (chance(b) - y).mean(), -20, 20)
    np.testing.assert_allclose(((chance(b) - y)[:, None] * z).mean(0) + gate.PENALTY * w, 0, atol=1e-4)
    assert np.abs(w).min() > .05


def test_the_gate_is_fitted_where_the_models_differ():
    other = PARAMS | {"head": PARAMS["head"].at[:, WORDS.encode("think")[0]].multiply(3)}
    config = flags(vector="random", problems="some.jsonl", fit_problems="arithmetic")
    fitted = gate.fit(config, LOADED, dataclasses.replace(LOADED, params=other))
    differ = []
    for writer in (0, 1):
        for problem in fit_problems(20):
            ids, steps = WORDS.encode(problem.prompt), []
            while len(steps) < T and (not steps or ids[-1] not in WORDS.eos_ids):
                both = [int(full_logits(params, CONFIG, ids)[-1].argmax()) for params in (PARAMS, other)]
                steps.append(both[0] != both[1])
                ids.append(both[writer])
            differ.append(steps)
    every, first = np.concatenate(differ), np.array([steps[0] for steps in differ])
    assert fitted.gate == {"n": len(every), "differ": pytest.approx(every.mean()), "auroc": fitted.gate["auroc"],
                           "differ_first": pytest.approx(first.mean()),
                           "first_of_differ": pytest.approx(first.sum() / every.sum())}
    assert fitted.gate["auroc"] > .7
    for rate in (.1, .5):
        assert np.mean(fitted.scores_N > fitted.steering(2.0, rate).threshold) == pytest.approx(rate, abs=.01)
    np.testing.assert_allclose(fitted.steering(2.0, .1).vector, 2 * fitted.vector_D, rtol=1e-6)


def test_the_gates_auroc_is_of_problems_that_it_was_not_fitted_on(monkeypatch):
    """Of noise it is .5, though 30 dimensions fit the 80 tokens of the other problems well."""
    rng, problems, aurocs = np.random.default_rng(0), fit_problems(20), []
    lengths = np.array([len(WORDS.encode(problem.prompt)) for problem in problems])
    text, position = np.repeat(np.arange(20), 5), (lengths[:, None] - 1 + np.arange(5)).ravel()
    monkeypatch.setattr(gate, "sample_texts", lambda *_: ([np.zeros(n + 5, int) for n in lengths], lengths))
    for _ in range(8):
        base, other = (Activations(text, position, likeliest, rng.normal(size=(100, 30)))
                       for likeliest in (np.zeros(100), rng.integers(2, size=100)))
        monkeypatch.setattr(gate, "read_tokens", lambda loaded, texts, starts, *layer: base if layer else other)
        weight_D, _, numbers = gate.fit_gate(flags(), LOADED, LOADED, problems)
        fitted, differ = text % 5 > 0, other.likeliest > 0
        assert gate.auroc(base.residual[fitted] @ weight_D, differ[fitted]) > .75
        aurocs.append(numbers["auroc"])
    assert abs(np.mean(aurocs) - .5) < .12
