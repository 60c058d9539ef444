"""A vector added to the residual after one layer, at tokens that a gate or a rule chooses (arXiv 2510.07364).

The gate reads the residual after the same layer, before the vector is added. Vectors added at earlier tokens act only
on later layers, so the gate reads what the base model computes of the text. B completions, T tokens, D width.
"""

import functools
from typing import Callable, Optional

import flax.struct
import jax
import jax.numpy as jnp

from rlvr_jax import model, sampler
from rlvr_jax.records import Prompts


@flax.struct.dataclass
class Steering:
    """What is added, and when."""

    vector: jax.Array  # f32[D]
    weight: jax.Array  # f32[D], the gate acts where residual . weight
    threshold: jax.Array  # f32[] is above this
    rate: jax.Array  # f32[], chance of a token under shuffled_gate


def everywhere(steering: Steering, x_BxTxD, steps_BxT, uniforms_BxT) -> jax.Array:
    """Every token, the prompt's too, as the adapter --trainable=vector is."""
    return steps_BxT >= -1


def generated(steering: Steering, x_BxTxD, steps_BxT, uniforms_BxT) -> jax.Array:
    """Every generated token."""
    return steps_BxT >= 0


def first(steering: Steering, x_BxTxD, steps_BxT, uniforms_BxT) -> jax.Array:
    """The first generated token."""
    return steps_BxT == 0


def gate(steering: Steering, x_BxTxD, steps_BxT, uniforms_BxT) -> jax.Array:
    """Generated tokens where a probe of the base model expects another token of the trained model."""
    return (steps_BxT >= 0) & (jnp.matmul(x_BxTxD.astype(jnp.float32), steering.weight) > steering.threshold)


def shuffled_gate(steering: Steering, x_BxTxD, steps_BxT, uniforms_BxT) -> jax.Array:
    """Generated tokens drawn by chance, as many as the gate takes: a control."""
    return (steps_BxT >= 0) & (uniforms_BxT < steering.rate)


# --where -> function of (steering, residual after the layer, tokens generated so far or -1 in the prompt, uniform
# numbers) to bool[B,T]: whether the vector is added where the next token is chosen
WHERE: dict[str, Callable] = {"all": everywhere, "generated": generated, "first": first, "gate": gate,
                              "shuffled_gate": shuffled_gate}


def add_where(steering: Steering, layer: int, acts: Callable) -> model.EditResidual:
    """The hook that adds the vector after the layer at the tokens of `acts(x_BxTxD)`, bool[B,T]."""
    def edit(index, x_BxTxD, positions_BxT):
        acts_BxTx1 = (acts(x_BxTxD) & (index == layer))[..., None]
        return jnp.where(acts_BxTx1, x_BxTxD + steering.vector.astype(x_BxTxD.dtype)[None, None], x_BxTxD)
    return edit


@functools.cache  # the same function each time: samplers are cached by it
def steered_sample_fn(where: str, layer: int) -> Callable:
    """The `sample_fn` (`sampler.make_sampler`) of a steered model; for params it takes {"model", "steering": Steering}.

    `noted` has how many tokens of a completion were `steered`, counted by the unsteered model on the text.
    """
    def sample_fn(params, config, prompts, rows, decoding):
        weights, steering, decide, length = params["model"], params["steering"], WHERE[where], decoding.max_new_tokens
        spare_B = jax.vmap(jax.random.fold_in, (0, None))(rows.keys, length)  # tokens are drawn with smaller numbers
        uniforms_BxT = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(spare_B)

        def edit_at(rows_N, steps_N):
            return add_where(steering, layer, lambda x: decide(steering, x, steps_N[:, None],
                                                               uniforms_BxT[rows_N, steps_N][:, None]))

        def acts_in_prompt(x):
            before = jnp.full(x.shape[:2], -1)
            return decide(steering, x, before, jnp.ones(before.shape))

        out = sampler.sample(weights, config, prompts, rows, decoding, sampler.Hooks(
            edit_residual=add_where(steering, layer, acts_in_prompt), edit_at=edit_at))
        steps_BxT = jnp.broadcast_to(jnp.arange(length)[None], out.completions.shape)
        plain = model.prefill(weights, config, prompts)
        inputs_BxT = jnp.concatenate([plain.last_tokens[out.prompt_index][:, None], out.completions[:, :-1]], 1)
        _, acts_LxBxT = model.forward(weights, config, inputs_BxT, plain, out.prompt_index, model.ForwardOptions(
            read_residual=lambda x: decide(steering, x, steps_BxT, uniforms_BxT)))
        return out.replace(noted={"steered": jnp.sum(acts_LxBxT[layer] & out.completion_mask, -1)})
    return sample_fn


def run_beside(params: model.Params, config: model.ModelConfig, prompts: Prompts, rows: sampler.Rows,
               decoding: sampler.Decoding) -> tuple[Callable, model.KVCache]:
    """A further model for `sampler.Hooks.propose`, which reads the same text: (feed, its cache at the first token).

    `feed(place, cache, edit_residual)` returns its logits f32[N,V] for the tokens to draw, and the next cache.
    """
    context, count = model.unroll_layers(params, model.prefill(params, config, prompts)), len(rows.keys)

    def feed(place: sampler.Draw, cache: model.KVCache, edit_residual: Optional[model.EditResidual] = None):
        here = context._replace(prompt_index=rows.prompt_index[place.rows])
        return model.decode_step(params, config, here, place.inputs, cache, edit_residual)
    return feed, model.init_cache(config, min(decoding.num_slots or count, count), decoding.max_new_tokens,
                                  decoding.layout)


def trained_gate_sample_fn(layer: int) -> Callable:
    """The `sample_fn` of greedy completions by the base model, steered wherever the trained model's likeliest token on
    the same text differs from the unsteered base's: an oracle, the ceiling of a hybrid.

    For params it takes {"model", "trained", "steering"}. `noted` has how many tokens of a completion were `steered`.
    """
    def sample_fn(params, config, prompts, rows, decoding):
        (feed_trained, trained_cache), (feed_steered, steered_cache) = (
            run_beside(params[name], config, prompts, rows, decoding) for name in ("trained", "model"))

        def propose(caches, place: sampler.Draw, base_NxV):
            trained_NxV, trained_cache = feed_trained(place, caches[0])
            differ_N = jnp.argmax(base_NxV, -1) != jnp.argmax(trained_NxV, -1)
            steered_NxV, steered_cache = feed_steered(place, caches[1], add_where(
                params["steering"], layer, lambda x: differ_N[:, None]))
            tokens_N = jnp.argmax(steered_NxV, -1).astype(jnp.int32)
            return (trained_cache, steered_cache), tokens_N, {"steered": differ_N}

        out = sampler.sample(params["model"], config, prompts, rows, decoding, sampler.Hooks(
            propose=propose, carry=(trained_cache, steered_cache)))
        return out.replace(noted={"steered": jnp.sum(out.noted["steered"], -1)})
    return sample_fn
