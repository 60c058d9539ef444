"""The sparse autoencoder: the published numbers, a step, a planted dictionary; and the latent of it that is added."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.measure import make_sampler
from rlvr_jax.lab.elicit import activations, latents, sae
from rlvr_jax.lab.elicit.activations import read_prompt_ends
from rlvr_jax.lab.elicit.sae import Recipe, Sae
from rlvr_jax.lab.elicit.vectors import SteeringConfig
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.sampler import CHOOSE, Request
from rlvr_jax.tasks.prompts import ProblemSource, PromptConfig, load_problems

from fixtures import steered_model

ROWS = np.array([[1.0, 0], [0, 1], [-1, 0], [1, 1]], np.float32)
SHEET = Sae(jnp.array(ROWS), jnp.zeros(4), jnp.array(ROWS / np.array([[1.0], [1], [1], [2**.5]], np.float32)),
            jnp.array([.5, 0]))
X = jnp.array([[2.5, 1.0]])


def test_the_published_activation():
    np.testing.assert_allclose(sae.preactivations(SHEET, X), [[2, 1, -2, 3]])
    z = sae.encode(SHEET, X, 1)
    np.testing.assert_allclose(z, [[0, 0, 0, 3]])
    guess = sae.decode(SHEET, z)
    np.testing.assert_allclose(guess, [[2.62132, 2.12132]], atol=1e-5)
    assert float(jnp.mean((guess - X) ** 2)) == pytest.approx(.636039, abs=1e-6)
    np.testing.assert_allclose(sae.encode(SHEET, X, 4), [[2, 1, 0, 3]])  # none below 0


def test_dead_latents_explain_the_rest():
    """Latent 1 is dead. Of x = (2.5, 1), (.5, 2), (1.5, 1) the others, one at a time, give `guess`."""
    x = np.array([[2.5, 1], [.5, 2], [1.5, 1]], np.float32)
    here = SHEET._replace(bias=jnp.array([0, 0, 0, 1e-6]))  # 3 is ahead of 1 in the second
    guess = np.array([[.5, 0]] * 3) + np.array([[3], [2], [2]]) / 2**.5
    by_dead = np.array([[0, 1], [0, 2], [0, 1]])

    def left(a, b):
        return np.mean((a - b) ** 2) / np.mean((b - b.mean(0)) ** 2)
    recipe, loss = Recipe(num_latents=4, active=1, aux_active=2), jax.jit(sae.loss, static_argnums=1)
    for dead, wanted in (([0, 1, 0, 0], left(guess, x) + left(by_dead, x - guess) / 32), ([0] * 4, left(guess, x))):
        assert float(loss(here, recipe, x, jnp.array(dead, bool))[0]) == pytest.approx(wanted, rel=1e-4)
    slope = jax.grad(lambda s: loss(s, recipe, x, jnp.array([0, 1, 0, 0], bool))[0])(here)
    assert slope.encoder[1].any() and not slope.encoder[0].any()  # only this gradient reaches an inactive latent


def test_the_median_is_where_the_diagonals_meet():
    median = sae.geometric_median(jnp.array([[0, 0], [6, 0], [4, 4], [0, 3.0]]))
    np.testing.assert_allclose(median, [2, 2], atol=1e-3)


X_64 = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)


def test_rows_keep_their_norm_and_the_gradient_is_orthogonal_to_them():
    recipe = Recipe(num_latents=8, active=2, learning_rate=.1, dead_after=100)
    state, step = sae.init(X_64, recipe, 0), jax.jit(sae.step, static_argnums=1)
    before, state = state.sae.decoder, step(state, recipe, X_64)
    moment = state.opt_state[0].mu.decoder  # the first, a tenth of the gradient
    assert np.abs(np.sum(moment * before, -1)).max() < 1e-6 < np.abs(moment).max()
    state = step(step(state, recipe, X_64), recipe, X_64)
    np.testing.assert_allclose(np.linalg.norm(state.sae.decoder, axis=-1), np.ones(8), rtol=1e-5)


def test_a_latent_is_silent_for_as_many_activations_as_went_by_without_it():
    recipe, step = Recipe(num_latents=8, active=2, learning_rate=1e-6), jax.jit(sae.step, static_argnums=1)
    state = sae.init(X_64, recipe, 0)
    state = state._replace(sae=state.sae._replace(bias=state.sae.bias.at[3].set(-1e6)))  # it is never active
    for steps in (1, 2):
        state = step(state, recipe, X_64)
        assert state.silent[3] == 64 * steps and state.silent.min() == 0


def planted(seed, features=24, width=16, count=20_000):
    """Activations that are sums of three of 24 unit directions in 16 dimensions, around a point."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(features, width))
    truth /= np.linalg.norm(truth, axis=-1, keepdims=True)
    chosen = rng.permuted(np.tile(np.arange(features), (count, 1)), axis=1)[:, :3]
    x = np.einsum("nk,nkd->nd", rng.uniform(1, 2, (count, 3)), truth[chosen]) + 3 * rng.normal(size=width)
    return truth, x.astype(np.float32)


def test_a_planted_dictionary_is_found():
    truth, x = planted(0)
    recipe = Recipe(num_latents=48, active=3, learning_rate=3e-3, batch_size=256, num_steps=2000, dead_after=20_000)
    trained = sae.train(x, recipe, 0)
    best = np.max(truth @ np.asarray(trained.decoder).T, 1)
    assert np.mean(best >= .95) >= .9
    z = sae.encode(trained, x, 3)
    explained = 1 - np.sum((np.asarray(sae.decode(trained, z)) - x) ** 2) / np.sum((x - x.mean(0)) ** 2)
    assert explained > .9 and sae.measure_quality(trained, 3, x) == {
        "explained": pytest.approx(explained, abs=1e-4), "dead": pytest.approx(1 - np.mean((z > 0).any(0)))}


def test_training_depends_on_the_seed_alone_and_reports_its_steps():
    _, x = planted(1, count=300)
    recipe, steps = Recipe(num_latents=8, active=2, batch_size=16, num_steps=150), []
    one, two, other = sae.train(x, recipe, 3, steps.append), sae.train(x, recipe, 3), sae.train(x, recipe, 4)
    assert steps == [100, 50]
    assert all((a == b).all() for a, b in zip(one, two)) and not (one.encoder == other.encoder).all()


# ----- the latent that is added

SMALL = latents.LatentConfig(active=2, num_latents=8, sae_steps=120, strengths=(0.0, 1e-9, 4.0))
STEERED = steered_model()
LOADED = LanguageModel(STEERED.config, STEERED.params, STEERED.words)


def flags(**more) -> SteeringConfig:
    return SteeringConfig.from_flags(num_ops=2, max_new_tokens=10, layer=0, num_fit=16, **more)


def load_split(split, count) -> list:
    return load_problems(ProblemSource("arithmetic", PromptConfig(2)), LOADED.tokenizer, split, count)


def test_the_contrast_or_another_active_latent():
    scores = np.array([-.5, .2, -np.inf, .7, .1])
    assert latents.contrast(scores, 0) == 3 and latents.random(scores, 5) == latents.random(scores, 5)
    assert {latents.random(scores, seed) for seed in range(40)} == {0, 1, 4}
    with pytest.raises(UserError, match="only one latent"):
        latents.random(np.array([-np.inf, .7]), 0)


def read_positive(x):
    """In place of a code: the positive part of the residual, without dimension 5."""
    return np.maximum(x, 0) * (np.arange(x.shape[1]) != 5)[None]


def read_ends(problems) -> np.ndarray:
    return read_positive(read_prompt_ends(LOADED, problems)[0][0])


def test_scores_are_careful_less_other_completions():
    """By hand over completions, each of which counts once."""
    problems = load_split("example", 3)
    think, quick, hmm = (LOADED.tokenizer.encode(word)[0] for word in ("think", "quick", "hmm"))
    words = [think, hmm, think, think, hmm, quick]  # the first of each completion, two of a problem
    z = read_ends(problems)
    scores, active = latents.score_latents(flags(), LOADED, problems, words, read_positive), z.any(0)
    assert scores[5] == -np.inf and (np.isfinite(scores) == active).all()
    np.testing.assert_allclose(scores[active], ((z[0] + 2 * z[1]) / 3 - (z[0] + 2 * z[2]) / 3)[active], rtol=1e-6,
                               atol=1e-9)
    with pytest.raises(UserError, match="6 of 6 completions start in the careful style; some"):
        latents.score_latents(flags(), LOADED, problems, 6 * [think], read_positive)


def test_scores_without_styles_are_after_the_opening_less_before_it():
    bare = [dataclasses.replace(problem, prompt=" ".join(problem.prompt.split()[:4]))
            for problem in load_split("example", 3)]
    before, after = read_ends(bare), read_ends([dataclasses.replace(problem, prompt=problem.prompt + " think")
                                                for problem in bare])
    scores = latents.score_latents(flags(problems="some.jsonl", opening="think"), LOADED, bare, [], read_positive)
    active = (before + after).any(0)
    np.testing.assert_allclose(scores[active], (after - before).mean(0)[active], rtol=1e-6, atol=1e-9)


def test_the_best_strength_on_dev_counts_and_nothing_is_fitted_twice(base, tmp_path, monkeypatch):
    loaded, config = loading.load_model(str(base)), flags(model=str(base), out=str(tmp_path))
    steering, numbers = latents.choose_latent(SMALL, config, loaded, 4)
    dev = numbers["dev"]
    assert dev["0"] == dev["1e-09"]  # nothing is added
    assert numbers["strength"] == next(x for x in SMALL.strengths if dev[f"{x:g}"] == max(dev.values()))
    assert 0 < numbers["explained"] < 1 and 0 <= numbers["dead"] < 1 and numbers["contrast"] > 0
    fitted, scores, _ = latents.load_or_fit(SMALL, config, loaded, 4)
    assert numbers["latent"] == np.argmax(scores)
    np.testing.assert_allclose(steering.vector, numbers["strength"] * fitted.decoder[numbers["latent"]], rtol=1e-6)

    def refuse(*args):
        raise AssertionError("fitted again")
    monkeypatch.setattr(latents, "train", refuse)
    again, same = latents.choose_latent(SMALL, config, loaded, 4)
    assert same == numbers and (again.vector == steering.vector).all()
    with pytest.raises(AssertionError, match="fitted again"):  # other flags are another autoencoder
        latents.choose_latent(SMALL.with_flags(sae_steps=1), config, loaded, 4)
    with pytest.raises(UserError, match="--layer=1"):
        latents.choose_latent(SMALL, config.with_flags(layer=1), loaded, 4)


def test_the_strength_is_chosen_on_other_problems_than_the_autoencoder_was_fitted_on(monkeypatch):
    chosen_on, width = [], STEERED.config.d_model
    ones = Sae(*(np.ones(shape, np.float32) for shape in ((8, width), 8, (8, width), width)))
    monkeypatch.setattr(latents, "load_or_fit", lambda config, steering, *_: (ones, np.arange(8.0), {}))
    monkeypatch.setattr(latents, "sample_and_grade", lambda sampler, benchmark, *_: chosen_on.append(
        {problem.prompt for problem in benchmark.problems}) or [{"correct": True}])
    _, numbers = latents.choose_latent(SMALL, flags(), LOADED, 4)
    fitted_on, dev = ({problem.prompt for problem in load_split(split, 16)} for split in ("example", "dev"))
    assert chosen_on == [dev] * 3 and not dev & fitted_on and numbers["strength"] == 0  # of equal ones the first


def test_what_an_autoencoder_is_fitted_on_is_drawn_from_a_stream_of_its_own(monkeypatch):
    requests = []
    monkeypatch.setattr(activations, "sample_and_grade", lambda sampler, benchmark, request, *_, **__: requests.append(
        request) or [{"problem": i, "ids": np.array([5, 6])} for i in range(2)])
    texts, lengths = activations.sample_texts(flags(seed=7).kept, LOADED.config, make_sampler(
        LOADED, flags().kept.sampling), load_split("example", 2))
    assert [text[length:].tolist() for text, length in zip(texts, lengths)] == [[5, 6]] * 2
    assert requests == [Request(7, 0, stream=CHOOSE)]
