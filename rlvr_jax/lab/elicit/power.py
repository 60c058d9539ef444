"""Power sampling (arXiv 2510.14901): Metropolis-Hastings sampling from p(completion)^alpha, normalised.

A low temperature sharpens the distribution of each token on its own; a power of the whole completion's probability also
weighs a token by the completions that can follow it. A completion grows in blocks. After each block come moves: the
tokens from a random position on are sampled again at temperature 1/alpha, and the new completion is accepted or
rejected. The distribution is exact in the limit of many moves. B completions, T tokens; log-probabilities in nats.
"""

from typing import Callable, NamedTuple

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


class Chain(NamedTuple):
    """The state of B Markov chains: their current completions, and counts."""

    tokens: jax.Array  # i32[B,T]
    mask: jax.Array  # bool[B,T], true up to and including the end token
    logprobs: jax.Array  # f32[B,T], under the model
    proposed: jax.Array  # f32[B,T], log-probabilities under the proposal, the model at temperature 1/alpha
    ended: jax.Array  # bool[B], whether the completion has an end token
    accepted: jax.Array  # i32[B], number of accepted moves
    fed: jax.Array  # i32[B], number of tokens run through the model

    @property
    def lengths(self) -> jax.Array:
        return jnp.sum(self.mask, -1)


def log_acceptance(alpha: float, old: tuple, new: tuple) -> jax.Array:
    """Log-probability of accepting a move from completion `old` to `new`, at most 0. Each is (log-probability of the
    tokens sampled again, under the model; the same under the proposal; length of the completion). The first of these
    tokens is drawn uniformly over the completion, so a move between completions of two lengths and its reverse differ
    in probability: hence the terms in the lengths. The released code cuts both to one length and has no such terms."""
    (logp, logq, length), (logp_new, logq_new, length_new) = old, new
    return jnp.minimum(0.0, alpha * (logp_new - logp) + logq - logq_new + jnp.log(length) - jnp.log(length_new))


def move(alpha: float, chain: Chain, new: Chain, kept_B: jax.Array, uniforms_B: jax.Array, always) -> Chain:
    """Returns the chain after it accepted or rejected the proposals `new`, which keep its first `kept_B` tokens;
    `uniforms_B` decide. With `always`, all proposals are accepted, but do not count as accepted moves."""
    def sum_from_kept(values_BxT, mask_BxT):
        fresh_BxT = mask_BxT & (jnp.arange(mask_BxT.shape[1])[None, :] >= kept_B[:, None])
        return jnp.sum(jnp.where(fresh_BxT, values_BxT, 0.0), -1)

    old, proposal = ((sum_from_kept(each.logprobs, each.mask), sum_from_kept(each.proposed, each.mask),
                      jnp.maximum(each.lengths, 1)) for each in (chain, new))
    accept_B = always | (jnp.log(uniforms_B) < log_acceptance(alpha, old, proposal))
    merged = jax.tree.map(lambda a, b: jnp.where(accept_B.reshape(-1, *[1] * (a.ndim - 1)), b, a), chain, new)
    return merged._replace(accepted=chain.accepted + (accept_B & ~always), fed=chain.fed + new.lengths)


def power_sample_fn(power: PowerConfig) -> Callable:
    """Returns a `sample_fn` for `sampler.make_sampler` that samples in proportion to p(completion)^alpha.
    `Rollouts.noted` has each completion's `logprob` under the model, the share of moves that were `accepted`, and
    `forward_tokens`, the number of tokens fed to the model. Tokens that a proposal keeps are fed again and count: all
    rows decode together from the prompt, so a cache would save no time."""
    def note(logits, tokens):
        return {"unscaled": jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], 1)[:, 0]}

    def sample_fn(params, config, prompts, rows, decoding):
        prefix, b, t = model.prefill(params, config, prompts), len(rows.keys), decoding.max_new_tokens
        blocks, positions_T = min(power.num_blocks, t), jnp.arange(t)
        block_steps = power.num_moves + 1  # a step that extends the completions, then the moves
        zeros_B, zeros_BxT = jnp.zeros(b, jnp.int32), jnp.zeros((b, t))
        empty = Chain(zeros_BxT.astype(jnp.int32), zeros_BxT > 0, zeros_BxT, zeros_BxT, zeros_B > 0, zeros_B, zeros_B)

        def step(i, chain: Chain) -> Chain:
            block, extends = i // block_steps, i % block_steps == 0
            keys = jax.vmap(jax.random.fold_in, (0, None))(rows.keys, i)
            uniforms_Bx2 = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, t), 2))(keys)
            cut_B = jnp.floor(uniforms_Bx2[:, 0] * chain.lengths).astype(jnp.int32)  # a move samples again from here on
            kept_B = jnp.where(extends, chain.lengths, jnp.minimum(cut_B, chain.lengths - 1))
            given_BxT = jnp.where(positions_T[None, :] < kept_B[:, None], chain.tokens, -1)
            proposals = rows._replace(keys=keys, temperature=1 / power.alpha, given=given_BxT,
                                      limit=((block + 1) * t + blocks - 1) // blocks)  # the block's end, rounded up
            out = sampler.decode(params, config, prefix, proposals, decoding, sampler.Hooks(note=note))
            new = Chain(out.completions, out.completion_mask, out.noted["unscaled"], out.sampler_logprobs, out.ended,
                        zeros_B, zeros_B)
            return move(power.alpha, chain, new, kept_B, uniforms_Bx2[:, 1], extends)

        end = lax.fori_loop(0, blocks * block_steps, step, empty)
        noted = {"logprob": jnp.sum(jnp.where(end.mask, end.logprobs, 0.0), -1), "forward_tokens": end.fed,
                 "accepted": end.accepted / max(blocks * power.num_moves, 1)}
        return Rollouts(rows.prompt_index, end.tokens, end.mask, end.proposed, end.ended, noted)
    return sample_fn
