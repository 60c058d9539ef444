"""A TopK sparse autoencoder: reconstructs an activation vector as a bias plus a few latents, each times a direction.

The recipe is that of openai/sparse_autoencoder (Gao et al., arXiv 2406.04093): the geometric median as pre-bias,
decoder rows of norm 1, and an auxiliary loss that trains dead latents to explain the error of the reconstruction. B
activations of a batch, N in all, D width, F latents, K active ones, S steps of a scan. All numbers are float32.
"""

from typing import Callable, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

CHUNK = 100  # training steps in one scan
SAMPLE = 32_768  # largest number of activations whose geometric median is the pre-bias


class Sae(NamedTuple):
    """The parameters: z = top_k(encoder @ (x - pre_bias) + bias), and x is reconstructed as z @ decoder + pre_bias."""

    encoder: jax.Array  # [F,D]
    bias: jax.Array  # [F]
    decoder: jax.Array  # [F,D], each row of norm 1
    pre_bias: jax.Array  # [D]


class State(NamedTuple):
    """Everything that training changes."""

    sae: Sae
    opt_state: optax.OptState
    silent: jax.Array  # i32[F], number of activations since each latent was last active


class Recipe(NamedTuple):
    """Hyperparameters; hashable, so that they can be a static argument under jit."""

    num_latents: int = 512
    active: int = 8  # k, the largest number of latents that are active for one activation
    learning_rate: float = 1e-3
    batch_size: int = 512
    num_steps: int = 2000
    dead_after: int = 100_000  # a latent that was silent for more activations than this is dead
    aux_active: int = 256  # largest number of dead latents that reconstruct one error in the auxiliary loss
    aux_weight: float = 1 / 32  # of the auxiliary loss

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate, eps=6.25e-10)


def geometric_median(x_NxD: jax.Array, iterations: int = 100) -> jax.Array:
    """f32[D]: the point with the smallest sum of distances to all rows, by Weiszfeld's algorithm (1937)."""
    def improve(_, median_D):
        weights_N = 1 / jnp.maximum(jnp.linalg.norm(x_NxD - median_D[None, :], axis=-1), 1e-8)
        return jnp.sum(weights_N[:, None] * x_NxD, 0) / jnp.sum(weights_N)
    return lax.fori_loop(0, iterations, improve, jnp.mean(x_NxD, 0))


def preactivations(sae: Sae, x_BxD: jax.Array) -> jax.Array:
    """f32[B,F]: the latents before TopK."""
    return (x_BxD - sae.pre_bias[None, :]) @ sae.encoder.T + sae.bias[None, :]


def top_k(values_BxF: jax.Array, k: int) -> jax.Array:
    """f32[B,F]: the k largest of each row where they are above 0; 0 elsewhere."""
    values_BxK, latents_BxK = lax.top_k(values_BxF, k)
    return jnp.zeros_like(values_BxF).at[jnp.arange(len(values_BxF))[:, None], latents_BxK].set(jax.nn.relu(values_BxK))


def encode(sae: Sae, x_BxD: jax.Array, k: int) -> jax.Array:
    """f32[B,F]: the latents of x, none below 0, at most k of each row above 0."""
    return top_k(preactivations(sae, x_BxD), k)


def decode(sae: Sae, z_BxF: jax.Array) -> jax.Array:
    """f32[B,D]: the reconstruction from latents."""
    return z_BxF @ sae.decoder + sae.pre_bias[None, :]


def unexplained(reconstruction_BxD: jax.Array, x_BxD: jax.Array) -> jax.Array:
    """f32[]: the share of the variance of x that a reconstruction leaves unexplained; 1 for the mean of the batch."""
    variance = jnp.mean((x_BxD - jnp.mean(x_BxD, 0)[None, :]) ** 2)
    return jnp.mean((reconstruction_BxD - x_BxD) ** 2) / jnp.maximum(variance, 1e-30)


def loss(sae: Sae, recipe: Recipe, x_BxD: jax.Array, is_dead_F: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (loss f32[], latents f32[B,F]). The loss is the share of the variance of x that its reconstruction leaves
    unexplained. If any latent is dead, aux_weight times a second share is added: how much of the reconstruction's error
    remains unexplained by the largest `aux_active` dead latents, which are decoded without pre_bias."""
    values_BxF = preactivations(sae, x_BxD)
    z_BxF = top_k(values_BxF, recipe.active)
    reconstruction_BxD = decode(sae, z_BxF)
    error_BxD = lax.stop_gradient(x_BxD - reconstruction_BxD)
    dead_BxF = top_k(jnp.where(is_dead_F[None, :], values_BxF, -jnp.inf), min(recipe.aux_active, recipe.num_latents))
    aux_loss = jnp.where(jnp.any(is_dead_F), unexplained(dead_BxF @ sae.decoder, error_BxD), 0.0)
    return unexplained(reconstruction_BxD, x_BxD) + recipe.aux_weight * aux_loss, z_BxF


def normalise(rows_FxD: jax.Array) -> jax.Array:
    """f32[F,D]: the rows divided by their norms."""
    return rows_FxD / jnp.maximum(jnp.linalg.norm(rows_FxD, axis=-1, keepdims=True), 1e-30)


def init(activations: np.ndarray, recipe: Recipe, seed: int) -> State:
    """The initial state: the same random rows of norm 1 in encoder and decoder, the geometric median as pre-bias."""
    chosen = np.random.default_rng((seed, 1)).permutation(len(activations))[:SAMPLE]
    median_D = jax.jit(geometric_median)(jnp.asarray(activations[np.sort(chosen)]))
    rows_FxD = normalise(jax.random.normal(jax.random.key(seed), (recipe.num_latents, activations.shape[1])))
    sae = Sae(rows_FxD, jnp.zeros(recipe.num_latents), rows_FxD, median_D)
    return State(sae, recipe.optimizer.init(sae), jnp.zeros(recipe.num_latents, jnp.int32))


def step(state: State, recipe: Recipe, x_BxD: jax.Array) -> State:
    """The state after one Adam update on a batch."""
    is_dead_F = state.silent > recipe.dead_after
    gradient, z_BxF = jax.grad(loss, has_aux=True)(state.sae, recipe, x_BxD, is_dead_F)
    # Removes the part of the gradient along each row of the decoder, which would change the norm of the row.
    along_Fx1 = jnp.sum(gradient.decoder * state.sae.decoder, -1, keepdims=True)
    gradient = gradient._replace(decoder=gradient.decoder - along_Fx1 * state.sae.decoder)
    updates, opt_state = recipe.optimizer.update(gradient, state.opt_state)
    sae = optax.apply_updates(state.sae, updates)
    silent_F = jnp.where(jnp.any(z_BxF > 0, 0), 0, state.silent + len(x_BxD))
    return State(sae._replace(decoder=normalise(sae.decoder)), opt_state, silent_F)


def train(activations: np.ndarray, recipe: Recipe, seed: int, after: Optional[Callable] = None) -> Sae:
    """Trains an autoencoder on activations f32[N,D], which may be memory-mapped. The indices of a batch are a function
    of (seed, step). `after(n)` is called after every chunk of n steps, which are CHUNK or, at the end, fewer."""
    run = jax.jit(lambda state, x_SxBxD: lax.scan(lambda s, x_BxD: (step(s, recipe, x_BxD), None), state, x_SxBxD)[0])
    state = init(activations, recipe, seed)
    for start in range(0, recipe.num_steps, CHUNK):
        steps = range(start, min(start + CHUNK, recipe.num_steps))
        chosen = np.stack([np.random.default_rng((seed, 2, i)).integers(0, len(activations), recipe.batch_size)
                           for i in steps])
        state = run(state, jnp.asarray(activations[chosen]))
        if after:
            after(len(steps))
    return state.sae


def measure_quality(sae: Sae, k: int, activations: np.ndarray, size: int = 4096) -> dict:
    """Returns {"explained": share of the variance of `activations` f32[N,D] that is reconstructed, "dead": share of the
    latents that are never active}. At most `k` latents are active for one activation; `size` is that of a batch."""
    @jax.jit
    def reconstruct(x_BxD):
        z_BxF = encode(sae, x_BxD, k)
        return decode(sae, z_BxF), jnp.any(z_BxF > 0, 0)

    mean_D, used_F = np.mean(activations, 0, dtype=np.float64), np.zeros(len(sae.bias), bool)
    error = variance = 0.0
    for start in range(0, len(activations), size):
        x_BxD = np.asarray(activations[start : start + size])
        reconstruction_BxD, active_F = map(np.asarray, reconstruct(jnp.asarray(x_BxD)))
        error += np.sum((x_BxD - reconstruction_BxD) ** 2)
        variance += np.sum((x_BxD - mean_D[None, :]) ** 2)
        used_F |= active_F
    return {"explained": float(1 - error / variance), "dead": float(1 - used_F.mean())}
