"""Steering: adds a vector to the residual after one layer, at tokens that a gate or rule chooses (arXiv 2510.07364).

The gate uses the residual after the same layer, before the vector is added. A vector that was added at an earlier token
affects only later layers, so the gate sees the residual of the unsteered model on the same text.
B completions, N slots of the sampler, T tokens, V vocabulary, D width.
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
    """The vector to add, and what decides at which tokens."""

    vector: jax.Array  # f32[D]
    weight: jax.Array  # f32[D]: the gate acts where `residual @ weight > threshold`
    threshold: jax.Array  # f32[]
    rate: jax.Array  # f32[], the probability with which shuffled_gate acts at a token


# ----- rules (--where): bool[B,T], at which inputs to add the vector. `steps_BxT` is the number of tokens generated so
# far: 0 at the prompt's last token, -1 before it. `x_BxTxD` is the residual; `uniforms_BxT` are random, in [0, 1).


def everywhere(steering: Steering, x_BxTxD, steps_BxT, uniforms_BxT) -> jax.Array:
    """Every token, including the prompt's, as with --trainable=vector."""
    return steps_BxT >= -1


def generated(steering: Steering, x_BxTxD, steps_BxT, uniforms_BxT) -> jax.Array:
    """Every generated token."""
    return steps_BxT >= 0


def first(steering: Steering, x_BxTxD, steps_BxT, uniforms_BxT) -> jax.Array:
    """The first generated token."""
    return steps_BxT == 0


def gate(steering: Steering, x_BxTxD, steps_BxT, uniforms_BxT) -> jax.Array:
    """Generated tokens where a probe of the base model predicts that the trained model prefers another token."""
    return (steps_BxT >= 0) & (jnp.matmul(x_BxTxD.astype(jnp.float32), steering.weight) > steering.threshold)


def shuffled_gate(steering: Steering, x_BxTxD, steps_BxT, uniforms_BxT) -> jax.Array:
    """A control: generated tokens chosen at random, each with probability `rate`."""
    return (steps_BxT >= 0) & (uniforms_BxT < steering.rate)


WHERE: dict[str, Callable] = {"all": everywhere, "generated": generated, "first": first, "gate": gate,
                              "shuffled_gate": shuffled_gate}


def add_where(steering: Steering, layer: int, acts: Callable) -> model.EditResidual:
    """Returns a hook that adds the vector to the residual after `layer` where `acts(x_BxTxD)`, bool[B,T], is true."""
    def edit(index, x_BxTxD, positions_BxT):
        acts_BxTx1 = (acts(x_BxTxD) & (index == layer))[..., None]
        return jnp.where(acts_BxTx1, x_BxTxD + steering.vector.astype(x_BxTxD.dtype)[None, None], x_BxTxD)
    return edit


@functools.cache  # returns the same `sample_fn` each time, because compiled samplers are cached by it
def steered_sample_fn(where: str, layer: int) -> Callable:
    """Returns a `sample_fn` for `sampler.make_sampler` that adds the vector after `layer` where the rule WHERE[where]
    says. Its argument `params` is `{"model": Params, "steering": Steering}`. `Rollouts.noted` has "steered", i32[B],
    the number of steered tokens of each completion, counted afterwards in a pass without the vector."""
    def sample_fn(params, config, prompts, rows, decoding):
        weights, steering, decide, length = params["model"], params["steering"], WHERE[where], decoding.max_new_tokens
        keys_B = jax.vmap(jax.random.fold_in, (0, None))(rows.keys, length)  # the sampler folds in 0 to length - 1
        uniforms_BxT = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys_B)

        def edit_at(rows_N, steps_N):  # the hook for one decoding step: slot n works on row rows_N[n], T = 1
            return add_where(steering, layer, lambda x_Nx1xD: decide(steering, x_Nx1xD, steps_N[:, None],
                                                                     uniforms_BxT[rows_N, steps_N][:, None]))

        edit_prompt = add_where(steering, layer, lambda x: decide(  # the prefill; a prompt's last token is fed again
            steering, x, jnp.full(x.shape[:2], -1), jnp.ones(x.shape[:2])))
        out = sampler.sample(weights, config, prompts, rows, decoding, sampler.Hooks(edit_prompt, edit_at))
        steps_BxT = jnp.broadcast_to(jnp.arange(length)[None], out.completions.shape)
        prefix = model.prefill(weights, config, prompts)
        inputs_BxT = jnp.concatenate([prefix.last_tokens[out.prompt_index][:, None], out.completions[:, :-1]], 1)
        _, acts_LxBxT = model.forward(weights, config, inputs_BxT, prefix, out.prompt_index, model.ForwardOptions(
            read_residual=lambda x: decide(steering, x, steps_BxT, uniforms_BxT)))
        return out.replace(noted={"steered": jnp.sum(acts_LxBxT[layer] & out.completion_mask, -1)})
    return sample_fn


def run_beside(params: model.Params, config: model.ModelConfig, prompts: Prompts, rows: sampler.Rows,
               decoding: sampler.Decoding) -> tuple[Callable, model.KVCache]:
    """Returns (feed, initial cache) for `sampler.Hooks.propose` to run a second model on the text that is sampled.
    `feed(draw, cache, edit_residual)` feeds this model `draw.inputs`, the inputs that gave the sampler's logits. The
    hook `edit_residual`, if given, edits this model's residual. Returns (its logits f32[N,V], its updated cache)."""
    context = model.unroll_layers(params, model.prefill(params, config, prompts))
    num_slots = min(decoding.num_slots or len(rows.keys), len(rows.keys))  # as in `sampler.decode`

    def feed(draw: sampler.Draw, cache: model.KVCache, edit_residual: Optional[model.EditResidual] = None):
        slot_context = context._replace(prompt_index=rows.prompt_index[draw.rows])  # the prompt of each slot
        return model.decode_step(params, config, slot_context, draw.inputs, cache, edit_residual)
    return feed, model.init_cache(config, num_slots, decoding.max_new_tokens, decoding.layout)


def trained_gate_sample_fn(layer: int) -> Callable:
    """Returns a `sample_fn` of greedy completions by the base model, steered wherever the trained model's most likely
    token on the same text differs from that of the unsteered base model: an oracle, what a perfect gate could reach.
    Its argument `params` is `{"model": Params, "trained": Params, "steering": Steering}`, the model being the base.
    `Rollouts.noted` has "steered", i32[B], the number of steered tokens of each completion."""
    def sample_fn(params, config, prompts, rows, decoding):
        feed_trained, trained_start = run_beside(params["trained"], config, prompts, rows, decoding)
        feed_steered, steered_start = run_beside(params["model"], config, prompts, rows, decoding)

        def propose(caches, draw: sampler.Draw, base_NxV):
            trained_cache, steered_cache = caches
            trained_NxV, trained_cache = feed_trained(draw, trained_cache)
            differ_N = jnp.argmax(base_NxV, -1) != jnp.argmax(trained_NxV, -1)
            steered_NxV, steered_cache = feed_steered(draw, steered_cache, add_where(
                params["steering"], layer, lambda x: differ_N[:, None]))
            tokens_N = jnp.argmax(steered_NxV, -1).astype(jnp.int32)
            return (trained_cache, steered_cache), tokens_N, {"steered": differ_N}

        out = sampler.sample(params["model"], config, prompts, rows, decoding, sampler.Hooks(
            propose=propose, carry=(trained_start, steered_start)))
        return out.replace(noted={"steered": jnp.sum(out.noted["steered"], -1)})
    return sample_fn
