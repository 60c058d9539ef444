"""Two models of one shape write one text: both are run at each token, and a gate chooses whose likeliest is taken.

The two are a base and what training made of it (the token swap of arXiv 2510.07364's controls, both ways in arXiv
2603.22446). N slots, B completions, V vocabulary; KL and entropy in nats.
"""

import math
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp

from rlvr_jax import model, sampler


class Gate(NamedTuple):
    """Where the trained model's token takes the place of the base's: where they differ, and all of this holds. In
    `reverse` the trained model writes, and it is the base's token that is put in there."""

    first: float = math.inf  # only among so many first tokens
    least: float = 0.0  # only where KL(trained || base) is at least this
    chance: float = 1.0  # there, with this chance
    unsure: float = -math.inf  # only where the base's entropy is at least this
    reverse: bool = False


def compare(base_NxV: jax.Array, trained_NxV: jax.Array) -> dict[str, jax.Array]:
    """Of two models' logits at temperature 1: the likeliest tokens i32[N], KL(trained || base), base's entropy."""
    logp, logq = jax.nn.log_softmax(trained_NxV), jax.nn.log_softmax(base_NxV)
    kl_N = jnp.maximum(jnp.sum(jnp.exp(logp) * (logp - logq), -1), 0.0)  # rounding can lead below 0
    return {"base": jnp.argmax(base_NxV, -1).astype(jnp.int32), "kl": kl_N,
            "trained": jnp.argmax(trained_NxV, -1).astype(jnp.int32), "entropy": -jnp.sum(jnp.exp(logq) * logq, -1)}


def swap_sample_fn(gates: list[Gate]) -> Callable:
    """The `sample_fn` (`sampler.make_sampler`) of greedy completions, the j-th of a prompt under the j-th gate.

    Its params are `{"base": Params, "trained": Params}`. `noted` has at every token what `compare` returns, and whether
    it was `swapped`. The log-probabilities are the base's. Only a gate's chance is random.
    """
    def sample_fn(params, config, prompts, rows, decoding):
        trained, count = params["trained"], len(rows.keys)
        gates_B = Gate(*(jnp.array(column)[rows.numbers % len(gates)] for column in zip(*gates)))
        context = model.unroll_layers(trained, model.prefill(trained, config, prompts))

        def propose(cache, place: sampler.Draw, base_NxV):
            here = context._replace(prompt_index=rows.prompt_index[place.rows])
            trained_NxV, cache = model.decode_step(trained, config, here, place.inputs, cache)
            both, gate = compare(base_NxV, trained_NxV), Gate(*(column[place.rows] for column in gates_B))
            swapped_N = ((both["base"] != both["trained"]) & (place.inputs.steps < gate.first)
                         & (both["kl"] >= gate.least) & (both["entropy"] >= gate.unsure)
                         & (place.uniforms < gate.chance))
            tokens_N = jnp.where(swapped_N ^ gate.reverse, both["trained"], both["base"])
            return cache, tokens_N, both | {"swapped": swapped_N}

        cache = model.init_cache(config, min(decoding.num_slots or count, count), decoding.max_new_tokens,
                                 decoding.layout)
        return sampler.sample(params["base"], config, prompts, rows, decoding, sampler.Hooks(
            propose=propose, carry=cache))
    return sample_fn
