"""Power sampling (arXiv 2510.14901): Metropolis-Hastings sampling from p(completion)^alpha, normalised.

A low temperature sharpens the distribution of each token on its own; a power of the whole completion's probability also
weighs a token by the completions that can follow it. A completion grows in blocks. After each block come moves: the
tokens from a random position on are sampled again at temperature 1/alpha, and the new completion is accepted or
rejected. The distribution is exact in the limit of many moves. B completions, T tokens; log-probabilities in nats.
"""

from typing import Callable

import jax
import jax.numpy as jnp
from jax import lax

from rlvr_jax import model, sampler
from rlvr_jax.config import Config, flag
from rlvr_jax.records import Rollouts


class PowerConfig(Config):
    """The method power, which samples by Metropolis-Hastings."""

    alpha: float = flag(4.0, "power samples completions in proportion to their probability to this power", minimum=1)
    num_blocks: int = flag(16, "number of blocks in which power grows a completion of max_new_tokens", minimum=1)
    num_moves: int = flag(10, "Metropolis-Hastings moves of power after each block", minimum=0)


def log_acceptance(alpha: float, old: tuple, new: tuple) -> jax.Array:
    """f32[B]: log-probability of accepting a move from completion `old` to `new`, at most 0. Both are triples of [B]:
    log-probability of the resampled tokens under the model, the same under the proposal, and the completion's length.
    The position from which a move resamples is uniform over the completion, so each has probability 1/length: hence
    the terms in the lengths. The paper's released code cuts both completions to one length and has no such terms."""
    (logp, logq, length), (logp_new, logq_new, length_new) = old, new
    return jnp.minimum(0.0, alpha * (logp_new - logp) + logq - logq_new + jnp.log(length) - jnp.log(length_new))


def accept_moves(alpha: float, old: Rollouts, new: Rollouts, kept_B: jax.Array, uniforms_B: jax.Array) -> jax.Array:
    """bool[B]: whether each completion of `old` is replaced by its proposal in `new`, which keeps its first `kept_B`
    tokens. That is so if the random number of `uniforms_B` is below the acceptance probability. In both Rollouts,
    `noted["unscaled"]` has the tokens' log-probabilities under the model, f32[B,T]."""
    def measure(rollouts: Rollouts) -> tuple:  # an argument of `log_acceptance`
        mask_BxT = rollouts.completion_mask
        fresh_BxT = mask_BxT & (jnp.arange(mask_BxT.shape[1])[None, :] >= kept_B[:, None])
        logp_B, logq_B = (jnp.sum(jnp.where(fresh_BxT, values_BxT, 0.0), -1)
                          for values_BxT in (rollouts.noted["unscaled"], rollouts.sampler_logprobs))
        return logp_B, logq_B, jnp.maximum(jnp.sum(mask_BxT, -1), 1)
    return jnp.log(uniforms_B) < log_acceptance(alpha, measure(old), measure(new))


def power_sample_fn(power: PowerConfig) -> Callable:
    """Returns a `sample_fn` for `sampler.make_sampler` that samples in proportion to p(completion)^alpha.
    `Rollouts.noted` has each completion's `logprob` under the model, the share of moves that were `accepted`, and
    `forward_tokens`, the number of tokens fed to the model. It includes the tokens that each proposal keeps: every
    proposal starts with an empty cache, so they are fed again."""
    def note(logits, tokens):  # the log-probability of each token at temperature 1
        return {"unscaled": jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], 1)[:, 0]}

    def sample_fn(params, config, prompts, rows, decoding):
        prefix, b, t = model.prefill(params, config, prompts), len(rows.keys), decoding.max_new_tokens
        blocks, positions_T = min(power.num_blocks, t), jnp.arange(t)
        block_steps = power.num_moves + 1  # a step that extends the completions, then the moves
        zeros_B, zeros_BxT = jnp.zeros(b, jnp.int32), jnp.zeros((b, t))
        empty = Rollouts(rows.prompt_index, zeros_BxT.astype(jnp.int32), zeros_BxT > 0, zeros_BxT, zeros_B > 0,
                         {"unscaled": zeros_BxT})

        def step(i, state: tuple) -> tuple:  # (completions, numbers of accepted moves i32[B], of tokens fed i32[B])
            chain, accepted_B, fed_B = state
            block, extends = i // block_steps, i % block_steps == 0
            keys = jax.vmap(jax.random.fold_in, (0, None))(rows.keys, i)
            uniforms_Bx2 = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, t), 2))(keys)
            lengths_B = jnp.sum(chain.completion_mask, -1)
            cut_B = jnp.floor(uniforms_Bx2[:, 0] * lengths_B).astype(jnp.int32)  # a move samples again from here on
            kept_B = jnp.where(extends, lengths_B, jnp.minimum(cut_B, lengths_B - 1))
            given_BxT = jnp.where(positions_T[None, :] < kept_B[:, None], chain.completions, -1)
            proposals = rows._replace(keys=keys, temperature=1 / power.alpha, given=given_BxT,
                                      limit=((block + 1) * t + blocks - 1) // blocks)  # the block's end, rounded up
            new = sampler.decode(params, config, prefix, proposals, decoding, sampler.Hooks(note=note))
            accept_B = extends | accept_moves(power.alpha, chain, new, kept_B, uniforms_Bx2[:, 1])
            chain = jax.tree.map(lambda x, y: jnp.where(accept_B.reshape(-1, *[1] * (x.ndim - 1)), y, x), chain, new)
            return chain, accepted_B + (accept_B & ~extends), fed_B + jnp.sum(new.completion_mask, -1)

        chain, accepted_B, fed_B = lax.fori_loop(0, blocks * block_steps, step, (empty, zeros_B, zeros_B))
        return chain.replace(noted={
            "logprob": jnp.sum(jnp.where(chain.completion_mask, chain.noted["unscaled"], 0.0), -1),
            "forward_tokens": fed_B, "accepted": accepted_B / max(blocks * power.num_moves, 1)})
    return sample_fn
