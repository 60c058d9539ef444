"""Power sampling: completions by their probability to a power alpha, by Metropolis-Hastings (arXiv 2510.14901).

A low temperature sharpens each token on its own; a power of the whole completion's probability also weighs a first
token by the completions that follow it. A completion grows in blocks. After each block come moves: everything behind a
random position is redrawn at temperature 1/alpha, and the new completion is accepted or not. In the limit, completions
are distributed as p(completion)^alpha. B completions, T tokens; log-probabilities in nats.
"""

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rlvr_jax import model, sampler
from rlvr_jax.config import Config, flag
from rlvr_jax.records import Rollouts


class PowerConfig(Config):
    """The power, and the moves that lead to it."""

    alpha: float = flag(4.0, "power draws completions by their whole probability to this power", minimum=1)
    num_blocks: int = flag(16, "power grows a completion of max_new_tokens in this many blocks", minimum=1)
    num_moves: int = flag(10, "Metropolis-Hastings moves of power after each block", minimum=0)


class Chain(NamedTuple):
    """The current completions."""

    tokens: jax.Array  # i32[B,T]
    mask: jax.Array  # bool[B,T], up to and including the end token
    logprobs: jax.Array  # f32[B,T] of the model
    proposed: jax.Array  # f32[B,T] of the proposal, the model at temperature 1/alpha
    ended: jax.Array  # bool[B]
    accepted: jax.Array  # i32[B] accepted moves
    fed: jax.Array  # i32[B] tokens run through the model

    @property
    def lengths(self) -> jax.Array:
        return jnp.sum(self.mask, -1)


def log_acceptance(alpha: float, old: tuple, new: tuple) -> jax.Array:
    """Log-probability of accepting a move, at most 0. `old` and `new` are (log-probability of the redrawn tokens by the
    model, by the proposal, length of the whole completion).

    The position to redraw from is uniform over the completion, so the move back from another length has another
    probability: hence the lengths. The released code cuts both to one length and has no such term.
    """
    (logp, logq, length), (logp_new, logq_new, length_new) = old, new
    return jnp.minimum(0.0, alpha * (logp_new - logp) + logq - logq_new + jnp.log(length) - jnp.log(length_new))


def move(alpha: float, chain: Chain, new: Chain, kept_B: jax.Array, uniforms_B: jax.Array, always) -> Chain:
    """The chain after a proposal that keeps the first `kept_B` tokens; with `always` it is accepted for certain."""
    def suffix(values_BxT, mask_BxT):
        fresh_BxT = mask_BxT & (jnp.arange(mask_BxT.shape[1])[None, :] >= kept_B[:, None])
        return jnp.sum(jnp.where(fresh_BxT, values_BxT, 0.0), -1)

    old, proposal = ((suffix(each.logprobs, each.mask), suffix(each.proposed, each.mask), jnp.maximum(each.lengths, 1))
                     for each in (chain, new))
    accept_B = always | (jnp.log(uniforms_B) < log_acceptance(alpha, old, proposal))
    merged = jax.tree.map(lambda a, b: jnp.where(accept_B.reshape(-1, *[1] * (a.ndim - 1)), b, a), chain, new)
    return merged._replace(accepted=chain.accepted + (accept_B & ~always), fed=chain.fed + new.lengths)


def power_sample_fn(power: PowerConfig) -> Callable:
    """The `sample_fn` (`sampler.make_sampler`) of completions by p^alpha: `num_blocks` blocks of `num_moves` moves.

    `noted` has each completion's `logprob` under the model, the share of moves `accepted`, and `forward_tokens`, with
    the tokens that a proposal keeps: all rows decode together from the prompt, so a cache would save no time.
    """
    def note(logits, tokens):
        return {"unscaled": jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], 1)[:, 0]}

    def sample_fn(params, config, prompts, rows, decoding):
        prefix, b, t = model.prefill(params, config, prompts), len(rows.keys), decoding.max_new_tokens
        blocks, positions_T = min(power.num_blocks, t), jnp.arange(t)
        zeros_B, zeros_BxT = jnp.zeros(b, jnp.int32), jnp.zeros((b, t))
        empty = Chain(zeros_BxT.astype(jnp.int32), zeros_BxT > 0, zeros_BxT, zeros_BxT, zeros_B > 0, zeros_B, zeros_B)

        def step(i, chain: Chain) -> Chain:
            block, grows = i // (power.num_moves + 1), i % (power.num_moves + 1) == 0  # the first step of a block grows
            keys = jax.vmap(jax.random.fold_in, (0, None))(rows.keys, i)
            uniforms_Bx2 = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, t), 2))(keys)
            kept_B = jnp.floor(uniforms_Bx2[:, 0] * chain.lengths).astype(jnp.int32)
            kept_B = jnp.where(grows, chain.lengths, jnp.minimum(kept_B, chain.lengths - 1))
            given_BxT = jnp.where(positions_T[None, :] < kept_B[:, None], chain.tokens, -1)
            proposals = rows._replace(keys=keys, temperature=1 / power.alpha, given=given_BxT,
                                      limit=((block + 1) * t + blocks - 1) // blocks)
            out = sampler.decode(params, config, prefix, proposals, decoding, sampler.Hooks(note=note))
            new = Chain(out.completions, out.completion_mask, out.noted["unscaled"], out.sampler_logprobs, out.ended,
                        zeros_B, zeros_B)
            return move(power.alpha, chain, new, kept_B, uniforms_Bx2[:, 1], grows)

        end = lax.fori_loop(0, blocks * (power.num_moves + 1), step, empty)
        noted = {"logprob": jnp.sum(jnp.where(end.mask, end.logprobs, 0.0), -1), "forward_tokens": end.fed,
                 "accepted": end.accepted / max(blocks * power.num_moves, 1)}
        return Rollouts(rows.prompt_index, end.tokens, end.mask, end.proposed, end.ended, noted)
    return sample_fn
