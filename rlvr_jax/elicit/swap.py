"""Two models of one shape write one text: at each token both are read, and a gate says whose likeliest token stands.

A base and what training made of it (the token swap of arXiv 2510.07364's controls). N completions decoded together, B
of a call, T tokens, G gates; KL in nats.
"""

import math
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rlvr_jax import model, sampler


class Gate(NamedTuple):
    """Where the trained model's token takes the place of the base's: where they differ, and all of this holds."""

    first: float = math.inf  # only among so many first tokens
    least: float = 0.0  # only where KL(trained || base) is at least this
    chance: float = 1.0  # there, with this chance


def compare(base_NxV: jax.Array, trained_NxV: jax.Array) -> dict[str, jax.Array]:
    """Of two models' logits: the likeliest token of each, i32[N], and `kl`, KL(trained || base) at temperature 1."""
    logp, logq = jax.nn.log_softmax(trained_NxV), jax.nn.log_softmax(base_NxV)
    kl_N = jnp.maximum(jnp.sum(jnp.exp(logp) * (logp - logq), -1), 0.0)  # rounding can lead below 0
    return {"base": jnp.argmax(base_NxV, -1).astype(jnp.int32), "kl": kl_N,
            "trained": jnp.argmax(trained_NxV, -1).astype(jnp.int32)}


def swap_draw(gates: list[Gate]) -> Callable:
    """The `draw` (`sampler.make_sampler`) of greedy completions, the j-th of a prompt under the j-th gate.

    Its params are `{"base": Params, "trained": Params}`. `noted` has at every token what `compare` says, and whether it
    was `swapped`. The log-probabilities are the base's. Only a gate's chance is random.
    """
    def draw(params, config, prompts, prompt_index_B, keys_B, temperature, top_p, *, rows_B, num_slots, **fixed):
        prefixes = {name: model.prefill(part, config, prompts) for name, part in params.items()}
        rows, size = len(rows_B), min(num_slots or len(rows_B), len(rows_B))
        gates_B = Gate(*(jnp.array(column)[rows_B % len(gates)] for column in zip(*gates)))
        cut = jnp.minimum(jnp.arange(-(-rows // size) * size), rows - 1).reshape(-1, size)  # [parts,N]
        out = lax.map(lambda part_N: decode_both(
            params, config, prefixes, *jax.tree.map(lambda x: x[part_N], (prompt_index_B, keys_B, gates_B)), **fixed),
            cut)
        out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:rows], out)
        mask_BxT = out.pop("mask")
        return sampler.Rollouts(prompt_index_B, jnp.where(mask_BxT, out.pop("tokens"), 0), mask_BxT,
                                out.pop("logprobs"), out.pop("ended"), out)
    return draw


def decode_both(params: dict, config: model.ModelConfig, prefixes: dict, prompt_index_N: jax.Array, keys_N: jax.Array,
                gates_N: Gate, *, eos_ids: tuple, max_new_tokens: int) -> dict:
    """[N,T] of `tokens`, `mask`, the base's `logprobs`, `swapped` and all of `compare`; `ended` bool[N]."""
    size, eos_E = len(prompt_index_N), jnp.array(eos_ids, jnp.int32)
    own = {name: prefix.replace(keys=prefix.keys[:, prompt_index_N], values=prefix.values[:, prompt_index_N],
                                lengths=prefix.lengths[prompt_index_N], last_tokens=prefix.last_tokens[prompt_index_N])
           for name, prefix in prefixes.items()}
    layers = {name: model.split_layers(params[name], own[name]) for name in params}

    def body(s):
        step, tokens, ended, caches, kept = s
        logits = {}
        for name in params:
            logits[name], caches[name] = model.decode_step(params[name], config, layers[name], own[name], None, tokens,
                                                           jnp.full(size, step), caches[name])
        said = compare(logits["base"], logits["trained"])
        uniforms = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, step)))(keys_N)
        swapped = ((said["base"] != said["trained"]) & (step < gates_N.first) & (said["kl"] >= gates_N.least)
                   & (uniforms < gates_N.chance))
        tokens = jnp.where(swapped, said["trained"], said["base"])
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits["base"]), tokens[:, None], 1)[:, 0]
        values = said | {"tokens": tokens, "mask": ~ended, "logprobs": logprobs, "swapped": swapped}
        kept = {name: kept[name].at[:, step].set(value) for name, value in values.items()}
        return step + 1, tokens, ended | jnp.any(tokens[:, None] == eos_E[None, :], -1), caches, kept

    kinds = {"base": jnp.int32, "trained": jnp.int32, "tokens": jnp.int32, "mask": bool, "swapped": bool,
             "kl": jnp.float32, "logprobs": jnp.float32}
    start = (jnp.int32(0), own["base"].last_tokens, jnp.zeros(size, bool),
             {name: model.init_cache(config, size, max_new_tokens) for name in params},
             {name: jnp.zeros((size, max_new_tokens), kind) for name, kind in kinds.items()})
    _, _, ended, _, kept = lax.while_loop(lambda s: (s[0] < max_new_tokens) & ~jnp.all(s[2]), body, start)
    return kept | {"ended": ended}
