"""Power sampling: completions by their probability to a power alpha, by Metropolis-Hastings (arXiv 2510.14901).

Not low temperature, which sharpens each token by itself: a power of the whole completion's probability asks at the
first token what comes of it. A completion grows in blocks. After each block come moves: a place in the completion is
drawn, what follows it is drawn anew at temperature 1/alpha, and the new completion is taken or not, so that in the end
p(completion)^alpha is what it follows. B completions, T tokens; log-probabilities in nats.
"""

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rlvr_jax import model, sampler


class Chain(NamedTuple):
    """Where the moves have led."""

    tokens: jax.Array  # i32[B,T]
    mask: jax.Array  # bool[B,T], up to and including the end token
    logprobs: jax.Array  # f32[B,T] of the model
    proposed: jax.Array  # f32[B,T] of the proposal, the model at temperature 1/alpha
    ended: jax.Array  # bool[B]
    accepted: jax.Array  # i32[B] moves that were taken
    fed: jax.Array  # i32[B] tokens run through the model

    @property
    def lengths(self) -> jax.Array:
        return jnp.sum(self.mask, -1)


def log_acceptance(alpha: float, logp, logp_new, logq, logq_new, length, length_new):
    """Log of the chance to take a move, at most 0: log-probabilities of what is drawn anew, before and after, by the
    model and by the proposal.

    A place is drawn among the tokens that there are, so that the way back from a completion of another length has
    another chance: hence the lengths. The released code, where both are cut to one length, has no such term.
    """
    return jnp.minimum(0.0, alpha * (logp_new - logp) + logq - logq_new + jnp.log(length) - jnp.log(length_new))


def move(alpha: float, chain: Chain, new: Chain, kept_B: jax.Array, uniforms_B: jax.Array, always) -> Chain:
    """The chain after a proposal that keeps the first `kept_B` tokens; `always`: it is taken unasked."""
    def suffix(values_BxT, mask_BxT):
        fresh_BxT = mask_BxT & (jnp.arange(mask_BxT.shape[1])[None, :] >= kept_B[:, None])
        return jnp.sum(jnp.where(fresh_BxT, values_BxT, 0.0), -1)

    chance_B = log_acceptance(alpha, suffix(chain.logprobs, chain.mask), suffix(new.logprobs, new.mask),
                              suffix(chain.proposed, chain.mask), suffix(new.proposed, new.mask),
                              jnp.maximum(chain.lengths, 1), new.lengths)
    take_B = always | (jnp.log(uniforms_B) < chance_B)
    merged = jax.tree.map(lambda a, b: jnp.where(take_B.reshape(-1, *[1] * (a.ndim - 1)), b, a), chain, new)
    return merged._replace(accepted=chain.accepted + (take_B & ~always), fed=chain.fed + new.lengths)


def power_draw(alpha: float, num_blocks: int, num_moves: int) -> Callable:
    """The `draw` (`sampler.make_sampler`) of completions by p^alpha, each of up to `num_blocks` blocks with
    `num_moves` moves after each.

    `noted` has each completion's `logprob` under the model, the share of moves `accepted`, and `forward_tokens`: tokens
    fed, those of a kept beginning included, since every proposal is decoded from the prompt on. (All rows are decoded
    together and one of them begins near the start, so that keeping the cache would save no time.)
    """
    def draw(params, config, prompts, prompt_index_B, keys_B, temperature, top_p, *, rows_B, max_new_tokens, **fixed):
        prefix, places_T = model.prefill(params, config, prompts), jnp.arange(max_new_tokens)
        b, t, blocks = len(rows_B), max_new_tokens, min(num_blocks, max_new_tokens)
        zeros_B, zeros_BxT = jnp.zeros(b, jnp.int32), jnp.zeros((b, t))
        empty = Chain(zeros_BxT.astype(jnp.int32), zeros_BxT > 0, zeros_BxT, zeros_BxT, zeros_B > 0, zeros_B, zeros_B)

        def note(logits, tokens):
            return {"logprobs": jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], 1)[:, 0]}

        def step(i, chain: Chain) -> Chain:  # the first of a block lets the completion grow
            block, grows = i // (num_moves + 1), i % (num_moves + 1) == 0
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, i)
            uniforms_Bx2 = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, t), 2))(keys)
            kept_B = jnp.floor(uniforms_Bx2[:, 0] * chain.lengths).astype(jnp.int32)
            kept_B = jnp.where(grows, chain.lengths, jnp.minimum(kept_B, chain.lengths - 1))
            given_BxT = jnp.where(places_T[None, :] < kept_B[:, None], chain.tokens, -1)
            out = sampler.decode(params, config, prefix, prompt_index_B, keys, 1 / alpha, given_BxT=given_BxT,
                                 limit=((block + 1) * t + blocks - 1) // blocks, max_new_tokens=t, note=note, **fixed)
            new = Chain(out.completions, out.completion_mask, out.noted["logprobs"], out.sampler_logprobs, out.ended,
                        zeros_B, zeros_B)
            return move(alpha, chain, new, kept_B, uniforms_Bx2[:, 1], grows)

        end = lax.fori_loop(0, blocks * (num_moves + 1), step, empty)
        noted = {"logprob": jnp.sum(jnp.where(end.mask, end.logprobs, 0.0), -1), "forward_tokens": end.fed,
                 "accepted": end.accepted / max(blocks * num_moves, 1)}
        return sampler.Rollouts(prompt_index_B, end.tokens, end.mask, end.proposed, end.ended, noted)
    return draw
