"""The sparse autoencoder: the published numbers, a step, a planted dictionary; and the latent of it that is added."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr_jax.errors import UserError
from rlvr_jax.lab.elicit import latents, openings, sae
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
    np.testing.assert_allclose(sae.scores(SHEET, X), [[2, 1, -2, 3]])
    z = sae.encode(SHEET, X, 1)
    np.testing.assert_allclose(z, [[0, 0, 0, 3]])
    guess = sae.decode(SHEET, z)
    np.testing.assert_allclose(guess, [[2.62132, 2.12132]], atol=1e-5)
    assert float(jnp.mean((guess - X) ** 2)) == pytest.approx(.636039, abs=1e-6)
    np.testing.assert_allclose(sae.encode(SHEET, X, 4), [[2, 1, 0, 3]])  # none below 0


def test_dead_latents_explain_the_rest():
    """Latent 1 is dead. Of x = (2.5, 1), (.5, 2), (1.5, 1) the others, one at a time, give what stands in `guess`."""
    x = np.array([[2.5, 1], [.5, 2], [1.5, 1]])
    scores = [[2, 1, -2, 3], [0, 2, 0, 2.000001], [1, 1, -1, 2]]
    here = SHEET._replace(bias=jnp.array([0, 0, 0, 1e-6]))  # 3 is ahead of 1 in the second
    guess = np.array([[.5, 0]] * 3) + np.array([[3], [2], [2]]) / 2**.5
    rest, dead = x - guess, np.array([[0, row[1]] for row in scores])

    def left(a, b):
        return np.mean((a - b) ** 2) / np.mean((b - b.mean(0)) ** 2)
    recipe, loss = Recipe(num_latents=4, active=1, aux_active=2), jax.jit(sae.loss, static_argnums=1)
    for alive, wanted in (([0, 1, 0, 0], left(guess, x) + left(dead, rest) / 32), ([0, 0, 0, 0], left(guess, x))):
        value, _ = loss(here, recipe, jnp.asarray(x, jnp.float32), jnp.array(alive, bool))
        assert float(value) == pytest.approx(wanted, rel=1e-4)
    slope = jax.grad(lambda s: loss(s, recipe, jnp.asarray(x, jnp.float32), jnp.array([0, 1, 0, 0], bool))[0])(here)
    assert slope.encoder[1].any() and not slope.encoder[0].any()  # a latent that is not active has no other gradient


def test_the_median_is_where_the_diagonals_meet():
    found = sae.geometric_median(jnp.array([[0, 0], [6, 0], [4, 4], [0, 3.0]]))
    np.testing.assert_allclose(found, [2, 2], atol=1e-3)


def test_rows_keep_their_norm_and_the_gradient_lies_across():
    rows = sae.unit(jnp.array([[3.0, 4], [1, 0]]))
    np.testing.assert_allclose(sae.across(jnp.array([[1.0, 0], [5, 2]]), rows), [[.64, -.48], [0, 2]], atol=1e-6)
    x = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    recipe = Recipe(num_latents=8, active=2, learning_rate=.1, dead_after=100)
    state, step = sae.init(x, recipe, 0), jax.jit(sae.step, static_argnums=1)
    before, state = state.sae.decoder, step(state, recipe, x)
    along = np.sum(state.opt_state[0].mu.decoder * before, -1)  # of the first moment, a tenth of the gradient
    assert np.abs(along).max() < 1e-6 < np.abs(state.opt_state[0].mu.decoder).max()
    for _ in range(2):
        state = step(state, recipe, x)
    np.testing.assert_allclose(np.linalg.norm(state.sae.decoder, axis=-1), np.ones(8), rtol=1e-5)
    used = np.asarray(sae.encode(state.sae, jnp.asarray(x), 2)).any(0)
    assert used.any() and set(np.asarray(state.silent).tolist()) <= {0, 64, 128, 192}


def test_a_latent_is_silent_for_as_many_activations_as_went_by_without_it():
    x = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    recipe, step = Recipe(num_latents=8, active=2, learning_rate=1e-6), jax.jit(sae.step, static_argnums=1)
    state = sae.init(x, recipe, 0)
    state = state._replace(sae=state.sae._replace(bias=state.sae.bias.at[3].set(-1e6)))  # it is never active
    for steps in (1, 2):
        state = step(state, recipe, x)
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
    found = sae.train(x, recipe, 0)
    best = np.max(truth @ np.asarray(found.decoder).T, 1)
    assert np.mean(best >= .95) >= .9
    told = sae.quality(found, 3, x)
    z = np.asarray(sae.encode(found, jnp.asarray(x), 3))
    wanted = 1 - np.sum((np.asarray(sae.decode(found, jnp.asarray(z))) - x) ** 2) / np.sum((x - x.mean(0)) ** 2)
    assert told["explained"] == pytest.approx(wanted, abs=1e-4) and wanted > .9
    assert told["dead"] == pytest.approx(1 - (z > 0).any(0).mean())


def test_training_depends_on_the_seed_alone_and_tells_its_steps():
    _, x = planted(1, count=300)
    recipe, told = Recipe(num_latents=8, active=2, batch_size=16, num_steps=150), []
    one, two, other = sae.train(x, recipe, 3, told.append), sae.train(x, recipe, 3), sae.train(x, recipe, 4)
    assert told == [100, 50]
    assert all((a == b).all() for a, b in zip(one, two)) and not (one.encoder == other.encoder).all()


# ----- the latent that is added

SMALL = latents.LatentConfig(active=2, num_latents=8, sae_steps=120, strengths=(0.0, 1e-9, 4.0))


def flags(**more) -> SteeringConfig:
    return SteeringConfig.from_flags(**{"num_ops": 2, "max_new_tokens": 10, "layer": 0, "num_fit": 16} | more)


def test_the_contrast_or_another_active_latent():
    scores = np.array([-.5, .2, -np.inf, .7, .1])
    assert latents.contrast(scores, 0) == 3
    assert {latents.random(scores, seed) for seed in range(40)} == {0, 1, 4}
    assert latents.random(scores, 5) == latents.random(scores, 5)
    with pytest.raises(UserError, match="only one latent"):
        latents.random(np.array([-np.inf, .7]), 0)


def test_scores_are_careful_less_other_completions(base):
    """By hand over completions, each of which counts once: the residual's positive part in place of a code."""
    loaded, config = loading.load_model(str(base)), flags()
    problems = load_problems(ProblemSource("arithmetic", PromptConfig(2)), loaded.tokenizer, "example", 3)
    think, quick, hmm = (loaded.tokenizer.encode(word)[0] for word in ("think", "quick", "hmm"))
    opened = [[think, hmm], [think, think], [hmm, quick]]
    rows = [{"problem": i, "ids": np.array([word, quick])} for i, words in enumerate(opened) for word in words]

    def read(x):
        return np.maximum(x, 0) * (np.arange(x.shape[1]) != 5)[None]
    z = read(openings.at_last_token(loaded, problems)[0][0])
    wanted = (z[0] + 2 * z[1]) / 3 - (z[0] + 2 * z[2]) / 3
    found = latents.opening_scores(config, loaded, problems, rows, read)
    assert found[5] == -np.inf and (np.isfinite(found) == z.any(0)).all()
    np.testing.assert_allclose(found[z.any(0)], wanted[z.any(0)], rtol=1e-6, atol=1e-9)
    with pytest.raises(UserError, match="always or never"):
        latents.opening_scores(config, loaded, problems, [row | {"ids": [think]} for row in rows], read)
    bare = [dataclasses.replace(problem, prompt=" ".join(problem.prompt.split()[:4])) for problem in problems]
    file = config.with_flags(problems="some.jsonl", opening="think")
    ends = [read(openings.at_last_token(loaded, [dataclasses.replace(problem, prompt=problem.prompt + more)
                                                 for problem in bare])[0][0]) for more in ("", " think")]
    scores, active = latents.opening_scores(file, loaded, bare, [], read), (ends[0] + ends[1]).any(0)
    np.testing.assert_allclose(scores[active], (ends[1] - ends[0]).mean(0)[active], rtol=1e-6, atol=1e-9)


def test_the_best_strength_on_dev_counts_and_nothing_is_fitted_twice(base, tmp_path, monkeypatch):
    loaded, config = loading.load_model(str(base)), flags(model=str(base), out=str(tmp_path))
    steering, told = latents.choose_latent(SMALL, config, loaded, 4)
    assert told["dev"]["0"] == told["dev"]["1e-09"]  # nothing is added
    assert told["strength"] == next(s for s in SMALL.strengths if told["dev"][f"{s:g}"] == max(told["dev"].values()))
    assert 0 < told["explained"] < 1 and 0 <= told["dead"] < 1 and told["contrast"] > 0
    found, scores, _ = latents.dictionary(SMALL, config, loaded, 4)
    assert told["latent"] == np.argmax(scores)
    np.testing.assert_allclose(steering.vector, told["strength"] * found.decoder[told["latent"]], rtol=1e-6)

    def refuse(*args):
        raise AssertionError("fitted again")
    with monkeypatch.context() as patched:
        patched.setattr(latents, "train", refuse)
        again, same = latents.choose_latent(SMALL, config, loaded, 4)
        assert same == told and (again.vector == steering.vector).all()
        with pytest.raises(AssertionError, match="fitted again"):  # other settings are another autoencoder
            latents.choose_latent(SMALL.with_flags(sae_steps=1), config, loaded, 4)
    with pytest.raises(UserError, match="--layer=1"):
        latents.choose_latent(SMALL, config.with_flags(layer=1), loaded, 4)


def test_the_strength_is_chosen_on_other_problems_than_the_autoencoder_was_fitted_on(monkeypatch):
    steered, chosen_on = steered_model(), []
    loaded, width = LanguageModel(steered.config, steered.params, steered.words), steered.config.d_model
    ones = Sae(*(np.ones(shape, np.float32) for shape in ((8, width), 8, (8, width), width)))
    monkeypatch.setattr(latents, "dictionary", lambda config, steering, *_: (ones, np.arange(8.0), {}))
    monkeypatch.setattr(latents, "sample_and_grade", lambda by, benchmark, *_: chosen_on.append(
        {problem.prompt for problem in benchmark.problems}) or [{"correct": True}])
    _, told = latents.choose_latent(SMALL, flags(), loaded, 4)
    fitted_on, dev = ({problem.prompt for problem in load_problems(ProblemSource("arithmetic", PromptConfig(2)),
                       loaded.tokenizer, split, 16)} for split in ("example", "dev"))
    assert chosen_on == [dev] * 3 and not dev & fitted_on and told["strength"] == 0  # of equal ones the first


def test_what_an_autoencoder_is_fitted_on_is_drawn_from_a_stream_of_its_own(monkeypatch):
    steered, asked = steered_model(), []
    loaded = LanguageModel(steered.config, steered.params, steered.words)
    problems = load_problems(ProblemSource("arithmetic", PromptConfig(2)), loaded.tokenizer, "example", 2)
    monkeypatch.setattr(latents, "sample_and_grade", lambda by, benchmark, request, *_, **__: asked.append(request) or [
        {"problem": i, "ids": np.array([5, 6])} for i in range(2)])
    monkeypatch.setattr(latents, "stream", lambda loaded, texts, *_: texts)
    _, texts, ends = latents.sample_activations(flags(seed=7), loaded, problems, 1)
    assert asked == [Request(7, 0, stream=CHOOSE)]
    assert [text[end + 1:].tolist() for text, end in zip(texts, ends)] == [[5, 6]] * 2
