"""Sampling completions: one prefill per distinct prompt, then a queue of rollouts over a few decoding slots.

A slot whose completion ends starts the next rollout of the queue. As the keys and values of prompts are shared, this
only resets the slot's position and input token; no prefill is repeated. Once the queue is empty, a CPU halves the slots
each time half of them are idle, so that a few long completions are not decoded in full batches. The tokens of a rollout
are a function of its key and prompt, not of the number of slots or devices. Axis letters as in `model`; N slots.
"""

import functools
from typing import Any, Callable, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rlvr_jax import model, parallel
from rlvr_jax.config import Config, flag
from rlvr_jax.model import ModelConfig, local_prompts
from rlvr_jax.records import Prompts, Rollouts

TRAIN, EVAL, CHOOSE = 0, 1, 2  # streams of random keys: they differ even for the same seed and step
MOST_SLOTS = {"T4": 128}  # device kind -> most slots that XLA compiles for it; the number does not change results


class SamplingConfig(Config):
    """How long completions may be, and how many are decoded at a time."""

    max_new_tokens: int = flag(22, "longest completion, in tokens", minimum=1)
    num_slots: int = flag(0, "completions decoded at a time on each device; 0: as many as possible", minimum=0)


class Decoding(NamedTuple):
    """Options of a sampler that are fixed when it is compiled."""

    eos_ids: tuple[int, ...]  # any of these ends a completion and belongs to it
    max_new_tokens: int
    num_slots: int = 0  # rollouts decoded at a time; 0: all of them
    layout: model.Layout = model.Layout()  # set by `make_sampler` for its devices
    by_layer: bool = False  # gather divided weights by layer, at each token; all devices then run equally many steps
    attend: Optional[Callable] = None  # see `model.Context`; the size of the cache is then a multiple of 64


class Rows(NamedTuple):
    """The rollouts of one call: B rows, each continuing a prompt."""

    prompt_index: jax.Array  # i32[B]
    keys: jax.Array  # [B], see `rollout_keys`; the t-th token of a rollout uses fold_in(key, t)
    temperature: jax.Array | float = 1.0  # 0 is greedy
    top_p: Optional[jax.Array] = None  # None samples from the whole distribution
    given: Optional[jax.Array] = None  # i32[B,T] tokens to take; -1 where a token is sampled
    limit: Optional[jax.Array] = None  # longest completion of this call; None: `max_new_tokens`
    numbers: Optional[jax.Array] = None  # i32[B] row numbers, counted over all devices and calls


class Request(NamedTuple):
    """What one call of a sampler (`make_sampler`) samples."""

    seed: int
    step: int
    temperature: float = 1.0
    top_p: float = 1.0
    stream: int = TRAIN
    first_row: int = 0  # the number of the call's first row; a row's number is part of its random key
    repeats: int = 1  # this many consecutive rows share a prompt


class Hooks(NamedTuple):
    """What a caller may change or record at each decoded token; hashable, except for `carry`."""

    edit_residual: Optional[model.EditResidual] = None  # applied to every layer's output, also in the prefill
    edit_at: Optional[Callable] = None  # (rows_N, steps_N) -> EditResidual that replaces edit_residual while decoding
    note: Optional[Callable] = None  # (logits_NxV, tokens_N) -> {name: [N]}, returned as [B,T] in `Rollouts.noted`
    # (carry, Draw, logits_NxV) -> (carry, tokens_N to take, or -1 where to sample, {name: [N]} to add to `noted`)
    propose: Optional[Callable] = None
    carry: Any = None  # the first `carry` of `propose`: arrays [N,...], such as another model's cache


class Draw(NamedTuple):
    """What `Hooks.propose` receives about the slots before their next tokens are sampled."""

    rows: jax.Array  # i32[N] the row of the call that each slot works on
    prompt_index: Optional[jax.Array]  # i32[N], as in `model.Context`
    inputs: model.Inputs  # the inputs that gave the logits
    uniforms: jax.Array  # f32[N] in [0, 1), one random number for each token


class Call(NamedTuple):
    """The arguments that stay the same while the rows of one call are decoded."""

    params: model.Params
    config: ModelConfig
    context: model.Context
    rows: Rows
    decoding: Decoding
    hooks: Hooks


class Slots(NamedTuple):
    """The state of a decoding loop."""

    rows: jax.Array  # i32[N] the row each slot works on; B when the queue is empty
    steps: jax.Array  # i32[N] how many tokens of that row have been sampled
    tokens: jax.Array  # i32[N] the next input of each slot
    next_row: jax.Array  # i32[] the next row of the queue
    cache: model.KVCache
    carry: Any  # see `Hooks`
    values: dict  # arrays [B,T]: "completions", "logprobs", and "noted", a dict of arrays that the hooks add
    lengths: jax.Array  # i32[B]
    ended: jax.Array  # bool[B]


def stages(num_slots: int, most: int, layout: model.Layout, attend: Optional[Callable] = None) -> list[tuple[int, int]]:
    """Plans the consecutive decoding loops of a call: (number of slots, window of the cache) of each. As `layout` says,
    windows grow to `most`, the longest completion, or slots are halved up to 4 times. Few loops: each is compiled."""
    most += -most % 64 if attend else 0  # a kernel reads whole blocks, and only filled ones
    windows = [64 * 4**i for i in range(12) if layout.grows and not attend and 64 * 4**i < most] + [most]
    fewer = [num_slots // 2**i for i in range(1, 5) if layout.shrinks and most >= 64 and num_slots >= 8 * 2**i]
    return [(num_slots, window) for window in windows] + [(size, most) for size in fewer]


def resize_slots(slots: Slots, config: ModelConfig, size: int, window: int) -> Slots:
    """Keeps the `size` slots with the lowest rows (idle slots have the highest), and widens the cache to `window`."""
    if size < len(slots.rows):
        kept_N = jnp.argsort(slots.rows)[:size]
        slots = slots._replace(**{name: jax.tree.map(lambda x: x[kept_N], getattr(slots, name))
                                  for name in ("rows", "steps", "tokens", "cache", "carry")})
    wider = model.init_cache(config, size, window, slots.cache.layout)
    cache = jax.tree.map(lambda new, x: lax.dynamic_update_slice(new, x, (0,) * 4), wider, slots.cache)
    return slots._replace(cache=cache)


def rollout_keys(seed, step, rows_B, stream: int = 0) -> jax.Array:
    """Returns a random key for each rollout, a function of (seed, step, row) and `stream`, such as TRAIN or EVAL."""
    step_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key, rows_B)


def keep_nucleus(logprobs_BxV: jax.Array, top_p) -> jax.Array:
    """Renormalises over the fewest tokens with total probability >= `top_p`; others get -inf (arXiv 1904.09751)."""
    descending = -jnp.sort(-logprobs_BxV, axis=-1)
    before = jnp.cumsum(jnp.exp(descending), -1) - jnp.exp(descending)  # probability of all more likely tokens
    threshold_Bx1 = jnp.min(jnp.where(before < top_p, descending, jnp.inf), -1, keepdims=True)
    return jax.nn.log_softmax(jnp.where(logprobs_BxV >= threshold_Bx1, logprobs_BxV, -jnp.inf))


def draw_tokens(logits_BxV: jax.Array, uniforms_B: jax.Array, temperature, top_p=None,
                given_B: Optional[jax.Array] = None) -> tuple[jax.Array, jax.Array]:
    """Samples a token for each row by inverting the cumulative distribution. `temperature` 0 is greedy. Where `given_B`
    is not -1, its token is taken. Returns (tokens_B i32, logprobs_B f32 under the distribution sampled from)."""
    greedy = jnp.asarray(temperature == 0)
    logprobs = jax.nn.log_softmax(logits_BxV / jnp.where(greedy, 1.0, temperature))
    if top_p is not None:
        logprobs = keep_nucleus(logprobs, top_p)
    tokens = lax.cond(greedy, lambda: jnp.argmax(logits_BxV, -1), lambda: invert_cdf(jnp.exp(logprobs), uniforms_B))
    if given_B is not None:
        tokens = jnp.where(given_B < 0, tokens, given_B)
    return tokens.astype(jnp.int32), jnp.take_along_axis(logprobs, tokens[:, None], axis=1)[:, 0]


def invert_cdf(weights_BxV: jax.Array, uniforms_B: jax.Array, block: int = 256) -> jax.Array:
    """Returns the token of each row, i32[B], at which the running sum of the weights exceeds uniform * total; never one
    of weight 0. Finds a block of tokens, then the token in it: a running sum over all tokens would cost twice."""
    def first_past(running_BxN, targets_B):  # index of the first sum above the target, else of the first largest sum
        return jnp.sum((running_BxN <= targets_B[:, None]) & (running_BxN < running_BxN[:, -1:]), -1)

    rows, vocabulary = weights_BxV.shape
    blocks_BxNxW = jnp.pad(weights_BxV, ((0, 0), (0, -vocabulary % block))).reshape(rows, -1, block)
    running_BxN = jnp.cumsum(jnp.sum(blocks_BxNxW, -1), -1)
    targets_B = uniforms_B * running_BxN[:, -1]
    block_B = first_past(running_BxN, targets_B)
    inside_BxW = jnp.cumsum(blocks_BxNxW[jnp.arange(rows), block_B], -1)
    before_B = jnp.where(block_B > 0, running_BxN[jnp.arange(rows), block_B - 1], 0.0)
    return block_B * block + first_past(inside_BxW, targets_B - before_B)


def sample(params: model.Params, config: ModelConfig, prompts: Prompts, rows: Rows, decoding: Decoding,
           hooks: Hooks = Hooks()) -> Rollouts:
    """Samples one completion for each row: runs each prompt through the model once, then decodes."""
    prefix = model.prefill(params, config, prompts, model.ForwardOptions(edit_residual=hooks.edit_residual))
    return decode(params, config, prefix, rows, decoding, hooks)


def decode(params: model.Params, config: ModelConfig, prefix: model.Prefix, rows: Rows, decoding: Decoding,
           hooks: Hooks = Hooks()) -> Rollouts:
    """Samples one completion for each row b, which continues prompt `rows.prompt_index[b]` of the prefix."""
    num_rows, most, layout = len(rows.prompt_index), decoding.max_new_tokens, decoding.layout
    num_slots, prompt_index_B = min(decoding.num_slots or num_rows, num_rows), rows.prompt_index
    if 1 < len(prefix.lengths) == num_rows == num_slots:  # slot b only works on row b: put prompts in the order of rows
        prefix = jax.tree.map(lambda x: x[prompt_index_B] if x.ndim == 1 else x[:, prompt_index_B], prefix)
        rows = rows._replace(prompt_index=None)
    params = model.cast_weights(params, config.dtype) if layout.cast else params
    context = model.unroll_layers(params, prefix)._replace(attend=decoding.attend)
    call = Call(params, config, context, rows, decoding, hooks)
    plan = stages(num_slots, most, layout, decoding.attend)
    rows_N, first_window = jnp.arange(num_slots, dtype=jnp.int32), plan[0][1]
    slots = Slots(rows=rows_N, steps=jnp.zeros_like(rows_N), tokens=prefix.last_tokens[find_prompts(rows, rows_N)],
                  next_row=jnp.int32(num_slots), cache=model.init_cache(config, num_slots, first_window, layout),
                  carry=hooks.carry, values={}, lengths=jnp.zeros(num_rows, jnp.int32), ended=jnp.zeros(num_rows, bool))
    _, _, values = jax.eval_shape(functools.partial(sample_tokens, call), slots)  # shapes and dtypes only
    slots = slots._replace(values=jax.tree.map(lambda x: jnp.zeros((num_rows, most), x.dtype), values))
    axis_name = parallel.AXIS if decoding.by_layer else None  # None: `parallel.pmax` is about this device alone
    for (size, window), (next_size, _) in zip(plan, [*plan[1:], (0, most)]):  # each loop and the next
        stop_at = next_size if next_size < size else 0  # the next loop takes over when its slots suffice

        def unfinished(slots: Slots):  # more than `stop_at` slots are busy, and the cache has room for another token
            num_busy, longest = jnp.sum(slots.rows < num_rows), jnp.max(slots.steps)
            return (parallel.pmax(num_busy, axis_name) > stop_at) & (parallel.pmax(longest, axis_name) < window)
        slots = lax.while_loop(unfinished, functools.partial(decode_once, call),
                               resize_slots(slots, config, size, window))
    mask_BxT = jnp.arange(most)[None, :] < slots.lengths[:, None]
    return Rollouts(prompt_index_B, slots.values["completions"], mask_BxT, slots.values["logprobs"], slots.ended,
                    slots.values["noted"] or None)


def find_prompts(rows: Rows, rows_N: jax.Array) -> jax.Array:
    """Returns the prompt of each row number, i32[N]; for idle slots, with numbers past the last row, the last row's."""
    rows_N = jnp.minimum(rows_N, len(rows.keys) - 1)
    return rows_N if rows.prompt_index is None else rows.prompt_index[rows_N]


def sample_tokens(call: Call, slots: Slots) -> tuple[model.KVCache, Any, dict]:
    """Feeds each slot its input and samples its next token. Returns the new cache, the new carry, and a dict like
    `Slots.values`, but with arrays [N]: one value for each slot."""
    rows, hooks, num_rows = call.rows, call.hooks, len(call.rows.keys)
    rows_N = jnp.minimum(slots.rows, num_rows - 1)
    edit = hooks.edit_at(rows_N, slots.steps) if hooks.edit_at else hooks.edit_residual
    in_order = rows.prompt_index is None and len(slots.rows) == num_rows  # then slot b continues prompt b
    context = call.context._replace(prompt_index=None if in_order else find_prompts(rows, slots.rows))
    inputs = model.Inputs(slots.tokens, slots.steps)
    logits, cache = model.decode_step(call.params, call.config, context, inputs, slots.cache, edit)
    uniforms_N = jax.vmap(lambda key, t: jax.random.uniform(jax.random.fold_in(key, t)))(rows.keys[rows_N], slots.steps)
    given_N = None if rows.given is None else rows.given[rows_N, slots.steps]
    carry, noted = slots.carry, {}
    if hooks.propose:
        carry, given_N, noted = hooks.propose(carry, Draw(rows_N, context.prompt_index, inputs, uniforms_N), logits)
    tokens, logprobs = draw_tokens(logits, uniforms_N, rows.temperature, rows.top_p, given_N)
    noted = noted | (hooks.note(logits, tokens) if hooks.note else {})
    return cache, carry, {"completions": tokens, "logprobs": logprobs, "noted": noted}


def decode_once(call: Call, slots: Slots) -> Slots:
    """Samples one token in every slot; a slot whose completion is finished takes the next row of the queue."""
    cache, carry, values = sample_tokens(call, slots)
    rows, decoding, tokens = call.rows, call.decoding, values["completions"]
    num_rows = len(rows.keys)
    limit = decoding.max_new_tokens if rows.limit is None else rows.limit
    stopped = jnp.any(tokens[:, None] == jnp.array(decoding.eos_ids, jnp.int32)[None, :], -1)
    busy = slots.rows < num_rows
    finished = busy & (stopped | (slots.steps + 1 == limit))
    queued = slots.next_row + jnp.cumsum(finished, dtype=jnp.int32) - 1  # the row that each finished slot takes next
    rows_N = jnp.minimum(jnp.where(finished, queued, slots.rows), num_rows)
    first_N = call.context.prefix.last_tokens[find_prompts(rows, rows_N)]

    def write(array, value, *index):  # idle slots have an index outside the array, which "drop" ignores
        return array.at[(slots.rows, *index)].set(value, mode="drop")
    return Slots(rows=rows_N, steps=jnp.where(busy & ~finished, slots.steps + 1, 0),
                 tokens=jnp.where(finished, first_N, tokens), cache=cache, carry=carry,
                 next_row=slots.next_row + jnp.sum(finished, dtype=jnp.int32),
                 values=jax.tree.map(lambda array, value: write(array, value, slots.steps), slots.values, values),
                 lengths=write(slots.lengths, slots.steps + 1), ended=write(slots.ended, stopped))


def spread_rows(prompts: Prompts, prompt_index_B: np.ndarray, request: Request, devices: int) -> tuple:
    """Divides the rows of a call equally among devices: returns (prompts [devices,P',S], prompt_index i32[devices,B'],
    row numbers i32[devices,B']). If rows do not divide, the last row is repeated. Calls with the same number of rows
    have the same shapes, and so share a compiled program, if every `first_row` is a multiple of this number."""
    wanted, repeats = len(prompt_index_B), request.repeats
    rows = np.minimum(np.arange(-(-wanted // devices) * devices, dtype=np.int32), wanted - 1)
    cut = bool(wanted % repeats or request.first_row % repeats)
    local, index = local_prompts(prompts, np.asarray(prompt_index_B)[rows], devices, repeats, cut)
    return local, index, (request.first_row + rows).reshape(devices, -1).astype(np.int32)


def make_sampler(config: ModelConfig, decoding: Decoding, use_top_p: bool = False,
                 sample_fn: Callable = sample) -> Callable:
    """Returns `sampler(params, prompts, prompt_index_B, request) -> Rollouts` on all devices and processes. All rows
    return in order, as numpy. `params` are on the devices (`parallel.place_state`), other arguments on the host. Row b
    has the random key of row number `first_row + b` (`rollout_keys`). `request.top_p` has no effect unless `use_top_p`.
    `sample_fn` replaces `sample`, and is called with its first five arguments, without hooks."""
    device = parallel.first_device()
    most_slots = next((most for kind, most in MOST_SLOTS.items() if kind in device.device_kind), 0)
    decoding = decoding._replace(num_slots=decoding.num_slots or most_slots,
                                 layout=model.LAYOUTS.get(device.platform, model.Layout()))

    def sample_on_device(params, prompts, prompt_index_B, rows_B, seed, step, stream, temperature, top_p):
        rows = Rows(prompt_index_B, rollout_keys(seed, step, rows_B, stream), temperature,
                    top_p if use_top_p else None, numbers=rows_B)
        params = parallel.all_gather_parts(params, config.dtype, but="layers" if decoding.by_layer else "")
        return sample_fn(params, config, prompts, rows, decoding)

    mapped = parallel.map_devices(sample_on_device)

    def sampler(params, prompts: Prompts, prompt_index_B, request: Request) -> Rollouts:
        devices, wanted = parallel.device_count(), len(prompt_index_B)
        spread = spread_rows(prompts, prompt_index_B, request, devices)
        scalars = [np.full(devices, x, np.int32) for x in (request.seed, request.step, request.stream)]
        scalars += [np.full(devices, x, np.float32) for x in (request.temperature, request.top_p)]
        out = mapped(params, *parallel.place_rows((*spread, *scalars)))
        rollouts = jax.tree.map(lambda x: x[:wanted], parallel.fetch_rows(out))
        return rollouts.replace(prompt_index=np.asarray(prompt_index_B))
    return sampler
