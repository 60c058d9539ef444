"""Log-probabilities of given completions, which agree with those of the sampler. Axis letters as in `model`."""

import math
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rlvr_jax import model, ops, parallel
from rlvr_jax.model import ModelConfig
from rlvr_jax.records import Batch


def token_logprobs(params: model.Params, hidden_BxTxD: jax.Array, targets_BxT: jax.Array, temperature: float,
                   max_logits: int = 2**25, self_certainty: bool = False) -> tuple[jax.Array, ...]:
    """Returns (log-probability of each target, entropy of each distribution) at `temperature`, f32[B,T] in nats; with
    `self_certainty` a third array, KL(uniform || policy) (Intuitor, arXiv 2505.19590). Computes at most `max_logits`
    logits at a time, and again in the backward pass: all of them, [B,T,V], would be a training step's largest array."""
    b, t, d = hidden_BxTxD.shape
    num_chunks = -(-b * t // max(1, max_logits // params["embed"].shape[0]))  # rounded up
    chunk = -(-b * t // num_chunks)  # tokens in a chunk

    def cut_chunks(x):
        flat = x.reshape(b * t, *x.shape[2:])
        padded = jnp.pad(flat, [(0, num_chunks * chunk - b * t)] + [(0, 0)] * (flat.ndim - 1))
        return padded.reshape(num_chunks, chunk, *flat.shape[1:])

    @jax.checkpoint
    def score_chunk(args):
        hidden, targets = args
        logprobs = jax.nn.log_softmax(model.head(params, hidden) / temperature)
        chosen = jnp.take_along_axis(logprobs, targets[:, None], axis=1)[:, 0]
        entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, -1)
        certainty = (-jnp.mean(logprobs, -1) - math.log(logprobs.shape[-1]),) if self_certainty else ()
        return chosen, entropy, *certainty

    values = lax.map(score_chunk, (cut_chunks(hidden_BxTxD), cut_chunks(targets_BxT)))
    return tuple(x.reshape(-1)[: b * t].reshape(b, t) for x in values)


class Scoring(NamedTuple):
    """Options of `completion_logprobs`; hashable, so that they may be static under jit."""

    max_logits: int = 2**25  # most logits (tokens x vocabulary) in memory at a time
    remat: bool = False  # recompute layers in the backward pass
    attend: Callable = ops.causal_attention  # attention of rows longer than `ops.SHORT`
    self_certainty: bool = False  # also return KL(uniform || policy), see `token_logprobs`


def completion_logprobs(params: model.Params, config: ModelConfig, batch: Batch, temperature,
                        how: Scoring = Scoring()) -> tuple[jax.Array, ...]:
    """Returns (logprobs, entropy), f32[B,T], of every completion token given its prompt and the tokens before it; with
    `how.self_certainty` also self-certainty. Uses only `prompts`, `prompt_index` and `completions` of the batch."""
    options = model.ForwardOptions(how.remat, how.attend)
    params = parallel.all_gather_parts(params, config.dtype, but="layers", reused=True)  # `forward` gathers each layer
    prefix = model.prefill(params, config, batch.prompts, options)
    inputs_BxT = jnp.concatenate([prefix.last_tokens[batch.prompt_index][:, None], batch.completions[:, :-1]], axis=1)
    hidden_BxTxD, _ = model.forward(params, config, inputs_BxT, prefix, batch.prompt_index, options)
    return token_logprobs(params, hidden_BxTxD, batch.completions, temperature, how.max_logits, how.self_certainty)
