"""The sparse autoencoder: the published numbers, what a step leaves as it is, and a dictionary that was planted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr_jax.lab.elicit import sae
from rlvr_jax.lab.elicit.sae import Recipe, Sae

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
