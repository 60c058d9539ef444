"""A TopK sparse autoencoder of activations: each is a bias plus a few of many directions.

The recipe is that of openai/sparse_autoencoder (Gao et al., arXiv 2406.04093): the geometric median as pre-bias,
decoder rows of norm 1, and an auxiliary loss that trains dead latents to explain what the others leave. B activations
of a batch, N in all, D width, F latents, S steps of a scan. Everything is float32.
"""

from typing import Callable, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

CHUNK = 100  # steps of one scan
SAMPLE = 32_768  # activations whose median is the pre-bias


class Sae(NamedTuple):
    """Encodes x as the largest k of `encoder (x - pre_bias) + bias`; decodes that by the decoder's rows."""

    encoder: jax.Array  # [F,D]
    bias: jax.Array  # [F]
    decoder: jax.Array  # [F,D], each row of norm 1
    pre_bias: jax.Array  # [D]


class State(NamedTuple):
    """Everything that training changes."""

    sae: Sae
    opt_state: optax.OptState
    silent: jax.Array  # i32[F], activations since each latent was last active


class Recipe(NamedTuple):
    """Sizes and rates; hashable, because programs are compiled for them."""

    num_latents: int = 512
    active: int = 8  # k, latents of one activation
    learning_rate: float = 1e-3
    batch_size: int = 512
    num_steps: int = 2000
    dead_after: int = 100_000  # a latent that was silent for more activations than this is dead
    aux_active: int = 256  # dead latents in the auxiliary loss, at most
    aux_weight: float = 1 / 32

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate, eps=6.25e-10)


def geometric_median(x_NxD: jax.Array, iterations: int = 100) -> jax.Array:
    """f32[D]: the point with the smallest sum of distances to all (Weiszfeld, 1937)."""
    def improve(_, median_D):
        weights_N = 1 / jnp.maximum(jnp.linalg.norm(x_NxD - median_D[None, :], axis=-1), 1e-8)
        return jnp.sum(weights_N[:, None] * x_NxD, 0) / jnp.sum(weights_N)
    return lax.fori_loop(0, iterations, improve, jnp.mean(x_NxD, 0))


def preactivations(sae: Sae, x_BxD: jax.Array) -> jax.Array:
    """f32[B,F]."""
    return (x_BxD - sae.pre_bias[None, :]) @ sae.encoder.T + sae.bias[None, :]


def top_k(values_BxF: jax.Array, k: int) -> jax.Array:
    """f32[B,F]: the k largest of each row where they are above 0; 0 elsewhere."""
    values_BxK, places_BxK = lax.top_k(values_BxF, k)
    return jnp.zeros_like(values_BxF).at[jnp.arange(len(values_BxF))[:, None], places_BxK].set(jax.nn.relu(values_BxK))


def encode(sae: Sae, x_BxD: jax.Array, k: int) -> jax.Array:
    """f32[B,F], at least 0, at most k of each row above 0."""
    return top_k(preactivations(sae, x_BxD), k)


def decode(sae: Sae, z_BxF: jax.Array) -> jax.Array:
    return z_BxF @ sae.decoder + sae.pre_bias[None, :]


def unexplained(guess_BxD: jax.Array, x_BxD: jax.Array) -> jax.Array:
    """f32[]: the fraction of variance that the guess leaves; the batch's mean leaves 1."""
    left = jnp.mean((x_BxD - jnp.mean(x_BxD, 0)[None, :]) ** 2)
    return jnp.mean((guess_BxD - x_BxD) ** 2) / jnp.maximum(left, 1e-30)


def loss(sae: Sae, recipe: Recipe, x_BxD: jax.Array, dead_F: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(unexplained share of x, plus aux_weight times that of the rest by dead latents alone; z f32[B,F])."""
    values_BxF = preactivations(sae, x_BxD)
    z_BxF = top_k(values_BxF, recipe.active)
    guess_BxD = decode(sae, z_BxF)
    rest_BxD = lax.stop_gradient(x_BxD - guess_BxD)
    dead_BxF = top_k(jnp.where(dead_F[None, :], values_BxF, -jnp.inf), min(recipe.aux_active, recipe.num_latents))
    extra = jnp.where(jnp.any(dead_F), unexplained(dead_BxF @ sae.decoder, rest_BxD), 0.0)
    return unexplained(guess_BxD, x_BxD) + recipe.aux_weight * extra, z_BxF


def normalise(rows_FxD: jax.Array) -> jax.Array:
    """Rows of norm 1."""
    return rows_FxD / jnp.maximum(jnp.linalg.norm(rows_FxD, axis=-1, keepdims=True), 1e-30)


def init(activations: np.ndarray, recipe: Recipe, seed: int) -> State:
    """The same random rows of norm 1 in encoder and decoder; the pre-bias is the median of up to SAMPLE activations."""
    places = np.random.default_rng((seed, 1)).permutation(len(activations))[:SAMPLE]
    median_D = jax.jit(geometric_median)(jnp.asarray(activations[np.sort(places)]))
    rows_FxD = normalise(jax.random.normal(jax.random.key(seed), (recipe.num_latents, activations.shape[1])))
    sae = Sae(rows_FxD, jnp.zeros(recipe.num_latents), rows_FxD, median_D)
    return State(sae, recipe.optimizer.init(sae), jnp.zeros(recipe.num_latents, jnp.int32))


def step(state: State, recipe: Recipe, x_BxD: jax.Array) -> State:
    """One update on one batch."""
    dead_F = state.silent > recipe.dead_after
    gradient, z_BxF = jax.grad(loss, has_aux=True)(state.sae, recipe, x_BxD, dead_F)
    along_Fx1 = jnp.sum(gradient.decoder * state.sae.decoder, -1, keepdims=True)  # would change the norm of the rows
    gradient = gradient._replace(decoder=gradient.decoder - along_Fx1 * state.sae.decoder)
    updates, opt_state = recipe.optimizer.update(gradient, state.opt_state)
    sae = optax.apply_updates(state.sae, updates)
    silent_F = jnp.where(jnp.any(z_BxF > 0, 0), 0, state.silent + len(x_BxD))
    return State(sae._replace(decoder=normalise(sae.decoder)), opt_state, silent_F)


def train(activations: np.ndarray, recipe: Recipe, seed: int, after: Optional[Callable] = None) -> Sae:
    """The autoencoder of activations [N,D], which may be memory-mapped. Each batch is a function of (seed, step);
    `after(n)` is called after every n steps."""
    run = jax.jit(lambda state, x_SxBxD: lax.scan(lambda s, x_BxD: (step(s, recipe, x_BxD), None), state, x_SxBxD)[0])
    state = init(activations, recipe, seed)
    for start in range(0, recipe.num_steps, CHUNK):
        steps = range(start, min(start + CHUNK, recipe.num_steps))
        places = np.stack([np.random.default_rng((seed, 2, i)).integers(0, len(activations), recipe.batch_size)
                           for i in steps])
        state = run(state, jnp.asarray(activations[places]))
        if after:
            after(len(steps))
    return state.sae


def measure_quality(sae: Sae, k: int, activations: np.ndarray, size: int = 4096) -> dict:
    """`explained`, the share of the activations' variance, and `dead`, the share of latents that none of them uses."""
    read = jax.jit(lambda x: (lambda z: (decode(sae, z), jnp.any(z > 0, 0)))(encode(sae, x, k)))
    mean_D, left, whole, used_F = np.mean(activations, 0, dtype=np.float64), 0.0, 0.0, np.zeros(len(sae.bias), bool)
    for start in range(0, len(activations), size):
        x = np.asarray(activations[start : start + size])
        guess, active = map(np.asarray, read(jnp.asarray(x)))
        left, whole = left + np.sum((x - guess) ** 2), whole + np.sum((x - mean_D[None, :]) ** 2)
        used_F |= active
    return {"explained": float(1 - left / whole), "dead": float(1 - used_F.mean())}
