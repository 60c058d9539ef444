"""Sampling completions: one prefill per distinct prompt, then a queue of rollouts over a few decoding slots.

A slot whose completion ends takes the next rollout of the queue at once. With the prompt's keys and values shared,
that is resetting one position and one input token, not another prefill. What rollout b says is a function of its key
and prompt alone, not of the number of slots or devices (invariant 4).
"""

from typing import Callable, NamedTuple, Optional

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rlvr_jax import model, parallel
from rlvr_jax.model import ModelConfig, Prompts, localise

TRAIN, EVAL, CHOOSE = 0, 1, 2  # streams of keys: the same seed and step draw differently in each


@flax.struct.dataclass
class Rollouts:
    """Completions as sampled. The mask, not a token id, says what belongs to a completion."""

    prompt_index: jax.Array  # i32[B]
    completions: jax.Array  # i32[B,T], 0 after the end
    completion_mask: jax.Array  # bool[B,T], true up to and including the first end-of-text token
    sampler_logprobs: jax.Array  # f32[B,T] nats, under the distribution drawn from (at temperature 0: the model's own)
    ended: jax.Array  # bool[B], false if `max_new_tokens` cut the completion
    noted: Optional[dict] = None  # name -> [B] or [B,T], what a caller of `decode` wanted to know besides


class _Slots(NamedTuple):
    rows: jax.Array  # i32[N] the rollout each slot works on; B when the queue is empty
    steps: jax.Array  # i32[N] tokens of it drawn so far
    tokens: jax.Array  # i32[N] next input
    next_row: jax.Array  # i32[] head of the queue
    cache: model.KVCache
    completions: jax.Array  # i32[B,T]
    logprobs: jax.Array  # f32[B,T]
    lengths: jax.Array  # i32[B]
    ended: jax.Array  # bool[B]
    noted: Optional[dict]  # name -> f32[B,T]


def rollout_keys(seed, step, rows_B, stream: int = 0) -> jax.Array:
    """One key a rollout from (seed, step, row). `stream` keeps training and evaluation apart."""
    step_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key, rows_B)


def nucleus(logprobs_BxV: jax.Array, top_p) -> jax.Array:
    """Keeps the fewest tokens whose probability reaches `top_p`, renormalised; others get -inf (arXiv 1904.09751)."""
    descending = -jnp.sort(-logprobs_BxV, axis=-1)
    before = jnp.cumsum(jnp.exp(descending), -1) - jnp.exp(descending)
    threshold_Bx1 = jnp.min(jnp.where(before < top_p, descending, jnp.inf), -1, keepdims=True)
    return jax.nn.log_softmax(jnp.where(logprobs_BxV >= threshold_Bx1, logprobs_BxV, -jnp.inf))


def draw_tokens(logits_BxV: jax.Array, uniforms_B: jax.Array, temperature, top_p=None,
                given_B: Optional[jax.Array] = None) -> tuple[jax.Array, jax.Array]:
    """Draws a token a row by inverting the cumulative distribution: one uniform a row instead of one a logit.

    `temperature` 0 is greedy. A token that is `given`, not -1, is taken as it is. Returns (tokens_B i32, logprobs_B
    f32 under the distribution drawn from).
    """
    greedy = jnp.asarray(temperature == 0)
    logprobs = jax.nn.log_softmax(logits_BxV / jnp.where(greedy, 1.0, temperature))
    if top_p is not None:
        logprobs = nucleus(logprobs, top_p)
    tokens = lax.cond(greedy, lambda: jnp.argmax(logits_BxV, -1), lambda: invert(jnp.exp(logprobs), uniforms_B))
    if given_B is not None:
        tokens = jnp.where(given_B < 0, tokens, given_B)
    return tokens.astype(jnp.int32), jnp.take_along_axis(logprobs, tokens[:, None], axis=1)[:, 0]


def invert(weights_BxV: jax.Array, uniforms_B: jax.Array, block: int = 256) -> jax.Array:
    """The token of each row at which the running sum of `weights` passes uniform * their sum; never one of weight 0.

    First the block of tokens, then the token in it: a running sum over the whole vocabulary would cost as much as the
    rest of the draw.
    """
    def first_past(running_BxN, targets_B):  # the sum's last rise is the last place that can be drawn
        return jnp.sum((running_BxN <= targets_B[:, None]) & (running_BxN < running_BxN[:, -1:]), -1)

    rows, vocabulary = weights_BxV.shape
    blocks_BxNxW = jnp.pad(weights_BxV, ((0, 0), (0, -vocabulary % block))).reshape(rows, -1, block)
    running_BxN = jnp.cumsum(jnp.sum(blocks_BxNxW, -1), -1)
    targets_B = uniforms_B * running_BxN[:, -1]
    chosen_B = first_past(running_BxN, targets_B)
    inside_BxW = jnp.cumsum(blocks_BxNxW[jnp.arange(rows), chosen_B], -1)
    before_B = jnp.where(chosen_B > 0, running_BxN[jnp.arange(rows), chosen_B - 1], 0.0)
    return chosen_B * block + first_past(inside_BxW, targets_B - before_B)


def _first(config: ModelConfig, rows_N: jax.Array, tokens_N: jax.Array, num_rows: int, t_max: int) -> _Slots:
    """Slots at the first token of the first rows."""
    return _Slots(rows_N, jnp.zeros_like(rows_N), tokens_N, jnp.int32(len(rows_N)),
                  model.init_cache(config, len(rows_N), t_max), jnp.zeros((num_rows, t_max), jnp.int32),
                  jnp.zeros((num_rows, t_max)), jnp.zeros(num_rows, jnp.int32), jnp.zeros(num_rows, bool), None)


def sample(params: model.Params, config: ModelConfig, prompts: Prompts, prompt_index_B: jax.Array, keys_B: jax.Array,
           temperature, top_p=None, *, edit_residual: Optional[model.EditResidual] = None, **fixed) -> Rollouts:
    """Samples one completion for each row of `prompt_index_B`; jit it with the keyword arguments fixed.

    The prompts are run through the model once, and `decode` continues them; its arguments are explained there.
    """
    prefix = model.prefill(params, config, prompts, edit_residual=edit_residual)
    return decode(params, config, prefix, prompt_index_B, keys_B, temperature, top_p, edit_residual=edit_residual,
                  **fixed)


def decode(params: model.Params, config: ModelConfig, prefix: model.Prefix, prompt_index_B: jax.Array,
           keys_B: jax.Array, temperature, top_p=None, *, eos_ids: tuple, max_new_tokens: int, num_slots: int = 0,
           edit_residual: Optional[model.EditResidual] = None, edit_at: Optional[Callable] = None,
           given_BxT: Optional[jax.Array] = None, limit=None, note: Optional[Callable] = None) -> Rollouts:
    """One completion for each row, after the prompt `prompt_index_B[b]` of the prefix.

    Args:
      keys_B: one key a rollout (`rollout_keys`); its t-th token uses `fold_in(key, t)`.
      temperature: scalar; 0 is greedy. `top_p` None samples from the whole distribution.
      eos_ids: any of these ends a completion and belongs to it.
      num_slots: rollouts decoded at a time; 0 for all of them.
      edit_at: `(rows_N, steps_N) -> EditResidual`, in place of `edit_residual` where it matters which rollouts the
        tokens are of, and how many tokens of each there are already.
      given_BxT: i32, tokens that the completions have to have; -1 where they are drawn.
      limit: scalar, longest completion of this call; None for `max_new_tokens`, which the arrays have room for.
      note: `(logits_NxV, tokens_N) -> {name: f32[N]}` at each token; [B,T] of each name come back as `noted`.
    """
    num_rows, t_max = len(prompt_index_B), max_new_tokens
    num_slots = min(num_slots or num_rows, num_rows)
    in_place = 1 < len(prefix.lengths) == num_rows == num_slots  # slot b only ever has row b: order the prompts so
    if in_place:
        prefix = prefix.replace(keys=prefix.keys[:, prompt_index_B], values=prefix.values[:, prompt_index_B],
                                lengths=prefix.lengths[prompt_index_B], last_tokens=prefix.last_tokens[prompt_index_B])
    layers, eos_E = model.split_layers(params, prefix), jnp.array(eos_ids, jnp.int32)

    def prompt_of(rows):
        return jnp.minimum(rows, num_rows - 1) if in_place else prompt_index_B[jnp.minimum(rows, num_rows - 1)]

    def body(s: _Slots) -> _Slots:
        own_N = jnp.minimum(s.rows, num_rows - 1)
        edit = edit_at(own_N, s.steps) if edit_at else edit_residual
        logits, cache = model.decode_step(params, config, layers, prefix, None if in_place else prompt_of(s.rows),
                                          s.tokens, s.steps, s.cache, edit)
        keys_N = keys_B[own_N]
        uniforms_N = jax.vmap(lambda key, t: jax.random.uniform(jax.random.fold_in(key, t)))(keys_N, s.steps)
        given_N = None if given_BxT is None else given_BxT[own_N, s.steps]
        tokens, logprobs = draw_tokens(logits, uniforms_N, temperature, top_p, given_N)
        stopped = jnp.any(tokens[:, None] == eos_E[None, :], -1)
        busy = s.rows < num_rows
        finished = busy & (stopped | (s.steps + 1 == (t_max if limit is None else limit)))
        queued = s.next_row + jnp.cumsum(finished, dtype=jnp.int32) - 1
        rows = jnp.minimum(jnp.where(finished, queued, s.rows), num_rows)

        def put(array, values):  # writes of idle slots fall outside the arrays and are dropped
            return array.at[s.rows, s.steps].set(values, mode="drop")
        return _Slots(
            rows, jnp.where(busy & ~finished, s.steps + 1, 0),
            jnp.where(finished, prefix.last_tokens[prompt_of(rows)], tokens),
            s.next_row + jnp.sum(finished, dtype=jnp.int32), cache, put(s.completions, tokens),
            put(s.logprobs, logprobs), s.lengths.at[s.rows].set(s.steps + 1, mode="drop"),
            s.ended.at[s.rows].set(stopped, mode="drop"), note and jax.tree.map(put, s.noted, note(logits, tokens)))

    rows = jnp.arange(num_slots, dtype=jnp.int32)
    start = _first(config, rows, prefix.last_tokens[prompt_of(rows)], num_rows, t_max)
    if note:
        names = jax.eval_shape(note, jax.ShapeDtypeStruct((num_slots, config.vocab_size), jnp.float32), rows)
        start = start._replace(noted={name: jnp.zeros((num_rows, t_max)) for name in names})
    s = lax.while_loop(lambda s: jnp.any(s.rows < num_rows), body, start)
    mask_BxT = jnp.arange(t_max)[None, :] < s.lengths[:, None]
    return Rollouts(prompt_index_B, s.completions, mask_BxT, s.logprobs, s.ended, s.noted)


def make_sampler(config: ModelConfig, *, eos_ids: tuple, max_new_tokens: int, num_slots: int = 0,
                 use_top_p: bool = False, draw: Optional[Callable] = None) -> Callable:
    """`sampler(params, prompts, prompt_index_B, seed, step, temperature, ...)` over all devices and processes.

    Params are placed (`parallel.place_state`); prompts and index are host arrays. Returns all rows in order, as numpy.
    Row b draws with `rollout_keys(seed, step, first_row + b, stream)`; `repeats` is as in `localise`.
    `draw` takes the place of `sample`, and is told by `rows_B` which row, `first_row + b`, each one is.
    """
    fixed = {"eos_ids": eos_ids, "max_new_tokens": max_new_tokens, "num_slots": num_slots}

    def on_device(params, prompts, prompt_index_B, rows_B, seed, step, stream, temperature, top_p):
        told = fixed | ({"rows_B": rows_B} if draw else {})
        return (draw or sample)(params, config, prompts, prompt_index_B, rollout_keys(seed, step, rows_B, stream),
                                temperature, top_p if use_top_p else None, **told)

    mapped = parallel.map_devices(on_device)

    def sampler(params, prompts: Prompts, prompt_index_B, seed: int, step: int, temperature: float, top_p: float = 1.0,
                *, stream: int = TRAIN, first_row: int = 0, repeats: int = 1) -> Rollouts:
        devices, wanted = parallel.device_count(), len(prompt_index_B)
        rows = np.minimum(np.arange(-(-wanted // devices) * devices, dtype=np.int32), wanted - 1)
        index = np.asarray(prompt_index_B)[rows]
        local_prompts, local_index = localise(prompts, index, devices, repeats)
        scalars = [np.full(devices, x, kind) for x, kind in [(seed, np.int32), (step, np.int32), (stream, np.int32),
                                                             (temperature, np.float32), (top_p, np.float32)]]
        keyed = (first_row + rows).reshape(devices, -1).astype(np.int32)
        out = mapped(params, *parallel.place_rows((local_prompts, local_index, keyed, *scalars)))
        rollouts = parallel.fetch_rows(out).replace(prompt_index=index)
        return jax.tree.map(lambda x: x[:wanted], rollouts)

    return sampler
