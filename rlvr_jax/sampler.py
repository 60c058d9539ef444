"""Sampling completions: one prefill per distinct prompt, then a queue of rollouts over a few decoding slots.

A slot whose completion ends takes the next rollout of the queue at once. With the prompt's keys and values shared, that
is resetting one position and one input token, not another prefill. On a CPU the slots are halved each time half of them
are idle at the end, so that a long tail costs what it holds. The tokens of rollout b are a function of its key and
prompt alone, not of the number of slots or devices (invariant 4).

Axis letters as in `model`; N slots, and T tokens of a completion.
"""

from typing import Any, Callable, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rlvr_jax import model, parallel
from rlvr_jax.config import Config, flag
from rlvr_jax.model import ModelConfig, local_prompts
from rlvr_jax.records import Prompts, Rollouts

TRAIN, EVAL, CHOOSE = 0, 1, 2  # streams of keys: the same seed and step draw differently in each


class SamplingConfig(Config):
    """How long completions may be, and how many are decoded at a time."""

    max_new_tokens: int = flag(22, "longest completion, in tokens", minimum=1)
    num_slots: int = flag(0, "completions decoded at a time on each device; 0: all", minimum=0)


class Decoding(NamedTuple):
    """What a decoding program is compiled for."""

    eos_ids: tuple[int, ...]  # any of these ends a completion and belongs to it
    max_new_tokens: int
    num_slots: int = 0  # rollouts decoded at a time; 0 for all of them
    layout: model.Layout = model.Layout()  # that of the devices
    by_layer: bool = False  # gather divided weights a layer at a time, at each token: all devices go on together
    attend: Optional[Callable] = None  # that of `model.Context`; its cache has a multiple of 64 positions


class Rows(NamedTuple):
    """The rollouts of one call: B rows, each continuing a prompt."""

    prompt_index: jax.Array  # i32[B]
    keys: jax.Array  # [B] of `rollout_keys`; the t-th token of a rollout uses fold_in(key, t)
    temperature: jax.Array | float = 1.0  # 0 is greedy
    top_p: Optional[jax.Array] = None  # None samples from the whole distribution
    given: Optional[jax.Array] = None  # i32[B,T] tokens that completions have to have; -1 where they are drawn
    limit: Optional[jax.Array] = None  # longest completion of this call; None for `max_new_tokens`
    numbers: Optional[jax.Array] = None  # i32[B] numbers of the rows over all devices and calls


class Request(NamedTuple):
    """What one call of a sampler (`make_sampler`) draws."""

    seed: int
    step: int
    temperature: float = 1.0
    top_p: float = 1.0
    stream: int = TRAIN
    first_row: int = 0  # number of the call's first row, by which its rows are drawn
    repeats: int = 1  # rows in succession that are known to share a prompt


class Hooks(NamedTuple):
    """What a caller may change or record at each decoded token; hashable, but for `carry`."""

    edit_residual: Optional[model.EditResidual] = None  # applied to every layer's output, in the prefill as well
    edit_at: Optional[Callable] = None  # (rows_N, steps_N) -> EditResidual, for decoded tokens in place of the above
    note: Optional[Callable] = None  # (logits_NxV, tokens_N) -> {name: [N]}, returned as [B,T] in `Rollouts.noted`
    # (carry, Draw, logits_NxV) -> (carry, tokens_N to take, -1 where they are drawn, {name: [N]} to note)
    propose: Optional[Callable] = None
    carry: Any = None  # what `propose` is handed at the first token: arrays [N,...], such as another model's cache


class Draw(NamedTuple):
    """Where the slots stand when a token is drawn."""

    rows: jax.Array  # i32[N] row of the call that each slot works on
    prompt_index: Optional[jax.Array]  # i32[N], as in `model.Context`
    inputs: model.Inputs  # what has just been fed
    uniforms: jax.Array  # f32[N] in [0, 1), those that tokens are drawn with


class _Slots(NamedTuple):
    rows: jax.Array  # i32[N] the rollout each slot works on; B when the queue is empty
    steps: jax.Array  # i32[N] tokens of it drawn so far
    tokens: jax.Array  # i32[N] next input
    next_row: jax.Array  # i32[] head of the queue
    cache: model.KVCache
    carry: Any  # of Hooks.propose
    written: dict  # arrays [B,T]: "completions", "logprobs", and under "noted" those of the hooks
    lengths: jax.Array  # i32[B]
    ended: jax.Array  # bool[B]


def stages(num_slots: int, most: int, layout: model.Layout, attend: Optional[Callable] = None) -> list[tuple[int, int]]:
    """(slots, window of the cache) of each decoding loop, one after the other; few, as each is compiled."""
    most += -most % 64 if attend else 0  # read in blocks, and of a large cache no more than of a small one
    windows = [64 * 4**i for i in range(12) if layout.grows and not attend and 64 * 4**i < most] + [most]
    fewer = [num_slots // 2**i for i in range(1, 5) if layout.shrinks and most >= 64 and num_slots >= 8 * 2**i]
    return [(num_slots, window) for window in windows] + [(size, most) for size in fewer]


def resize_slots(s: _Slots, config: ModelConfig, size: int, window: int) -> _Slots:
    """The slots of the first rows alone, which are all that are busy where no more of these are, with such a cache."""
    if size < len(s.rows):
        kept_N = jnp.argsort(s.rows)[:size]
        s = s._replace(**{name: jax.tree.map(lambda x: x[kept_N], getattr(s, name))
                          for name in ("rows", "steps", "tokens", "cache", "carry")})
    longer = model.init_cache(config, size, window, s.cache.layout)
    return s._replace(cache=jax.tree.map(lambda new, x: lax.dynamic_update_slice(new, x, (0,) * 4), longer, s.cache))


def rollout_keys(seed, step, rows_B, stream: int = 0) -> jax.Array:
    """One key a rollout from (seed, step, row). `stream` keeps training and evaluation apart."""
    step_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key, rows_B)


def keep_nucleus(logprobs_BxV: jax.Array, top_p) -> jax.Array:
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
        logprobs = keep_nucleus(logprobs, top_p)
    tokens = lax.cond(greedy, lambda: jnp.argmax(logits_BxV, -1), lambda: invert_cdf(jnp.exp(logprobs), uniforms_B))
    if given_B is not None:
        tokens = jnp.where(given_B < 0, tokens, given_B)
    return tokens.astype(jnp.int32), jnp.take_along_axis(logprobs, tokens[:, None], axis=1)[:, 0]


def invert_cdf(weights_BxV: jax.Array, uniforms_B: jax.Array, block: int = 256) -> jax.Array:
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


def sample(params: model.Params, config: ModelConfig, prompts: Prompts, rows: Rows, decoding: Decoding,
           hooks: Hooks = Hooks()) -> Rollouts:
    """One completion for each row: the prompts are run through the model once, and `decode` continues them."""
    prefix = model.prefill(params, config, prompts, model.ForwardOptions(edit_residual=hooks.edit_residual))
    return decode(params, config, prefix, rows, decoding, hooks)


def decode(params: model.Params, config: ModelConfig, prefix: model.Prefix, rows: Rows, decoding: Decoding,
           hooks: Hooks = Hooks()) -> Rollouts:
    """One completion for each row, after the prompt `rows.prompt_index[b]` of the prefix."""
    eos_ids, most, num_slots, layout, by_layer, attend = decoding
    num_rows, eos_E = len(rows.prompt_index), jnp.array(eos_ids, jnp.int32)
    num_slots = min(num_slots or num_rows, num_rows)
    in_place = 1 < len(prefix.lengths) == num_rows == num_slots  # slot b only ever has row b: order the prompts so
    if in_place:
        prefix = jax.tree.map(lambda x: x[rows.prompt_index] if x.ndim == 1 else x[:, rows.prompt_index], prefix)
    params = model.cast_weights(params, config.dtype) if layout.cast else params
    layers = model.unroll_layers(params, prefix)._replace(attend=attend)

    def prompt_of(slots_N):
        slots_N = jnp.minimum(slots_N, num_rows - 1)
        return slots_N if in_place else rows.prompt_index[slots_N]

    def step(s: _Slots) -> tuple:
        """(cache, carry, what is written of the tokens that were drawn)."""
        rows_N = jnp.minimum(s.rows, num_rows - 1)
        edit = hooks.edit_at(rows_N, s.steps) if hooks.edit_at else hooks.edit_residual
        index_N = None if in_place and len(s.rows) == num_rows else prompt_of(s.rows)
        inputs = model.Inputs(s.tokens, s.steps)
        logits, cache = model.decode_step(params, config, layers._replace(prompt_index=index_N), inputs, s.cache, edit)
        uniforms_N = jax.vmap(lambda key, t: jax.random.uniform(jax.random.fold_in(key, t)))(rows.keys[rows_N], s.steps)
        given_N = None if rows.given is None else rows.given[rows_N, s.steps]
        carry, given_N, noted = (hooks.propose(s.carry, Draw(rows_N, index_N, inputs, uniforms_N), logits)
                                 if hooks.propose else (s.carry, given_N, {}))
        tokens, logprobs = draw_tokens(logits, uniforms_N, rows.temperature, rows.top_p, given_N)
        noted = noted | (hooks.note(logits, tokens) if hooks.note else {})
        return cache, carry, {"completions": tokens, "logprobs": logprobs, "noted": noted}

    def body(s: _Slots) -> _Slots:
        cache, carry, values = step(s)
        tokens = values["completions"]
        stopped = jnp.any(tokens[:, None] == eos_E[None, :], -1)
        busy = s.rows < num_rows
        finished = busy & (stopped | (s.steps + 1 == (most if rows.limit is None else rows.limit)))
        queued = s.next_row + jnp.cumsum(finished, dtype=jnp.int32) - 1
        after = jnp.minimum(jnp.where(finished, queued, s.rows), num_rows)
        written = jax.tree.map(lambda array, value: array.at[s.rows, s.steps].set(value, mode="drop"),
                               s.written, values)  # idle slots write outside the arrays
        return _Slots(after, jnp.where(busy & ~finished, s.steps + 1, 0),
                      jnp.where(finished, prefix.last_tokens[prompt_of(after)], tokens),
                      s.next_row + jnp.sum(finished, dtype=jnp.int32), cache, carry, written,
                      s.lengths.at[s.rows].set(s.steps + 1, mode="drop"), s.ended.at[s.rows].set(stopped, mode="drop"))

    plan, everywhere = stages(num_slots, most, layout, attend), parallel.pmax if by_layer else lambda x: x
    slots = jnp.arange(num_slots, dtype=jnp.int32)
    start = _Slots(slots, jnp.zeros_like(slots), prefix.last_tokens[prompt_of(slots)], jnp.int32(num_slots),
                   model.init_cache(config, num_slots, plan[0][1], layout), hooks.carry, {},
                   jnp.zeros(num_rows, jnp.int32), jnp.zeros(num_rows, bool))
    drawn = jax.eval_shape(step, start)[-1]
    s = start._replace(written=jax.tree.map(lambda x: jnp.zeros((num_rows, most), x.dtype), drawn))
    for (size, window), (later, _) in zip(plan, [*plan[1:], (0, most)]):
        least = later if later < size else 0
        s = lax.while_loop(lambda s: (everywhere(jnp.sum(s.rows < num_rows)) > least)
                           & (everywhere(jnp.max(s.steps)) < window), body, resize_slots(s, config, size, window))
    mask_BxT = jnp.arange(most)[None, :] < s.lengths[:, None]
    return Rollouts(rows.prompt_index, s.written["completions"], mask_BxT, s.written["logprobs"], s.ended,
                    s.written["noted"] or None)


def spread_rows(prompts: Prompts, prompt_index_B: np.ndarray, request: Request, devices: int) -> tuple:
    """The rows of a call, equal parts for the devices: (prompts [devices,P',S], prompt_index i32[devices,B'], numbers
    of the rows i32[devices,B']). Where rows do not divide, the last one is sampled more than once. All calls of a
    measurement have as many rows, so that `request.first_row` changes no shape."""
    wanted, repeats = len(prompt_index_B), request.repeats
    rows = np.minimum(np.arange(-(-wanted // devices) * devices, dtype=np.int32), wanted - 1)
    cut = bool(wanted % repeats or request.first_row % repeats)
    local, index = local_prompts(prompts, np.asarray(prompt_index_B)[rows], devices, repeats, cut)
    return local, index, (request.first_row + rows).reshape(devices, -1).astype(np.int32)


def make_sampler(config: ModelConfig, decoding: Decoding, use_top_p: bool = False,
                 sample_fn: Callable = sample, devices: Optional[list] = None) -> Callable:
    """`sampler(params, prompts, prompt_index_B, request) -> Rollouts` over all devices and processes.

    Params are placed (`parallel.place_state`); prompts and index are host arrays. Returns all rows in order, as numpy.
    Row b draws with `rollout_keys(seed, step, first_row + b, stream)`.
    `sample_fn(params, config, prompts, rows, decoding)` may take the place of `sample`.
    """
    def on_device(params, prompts, prompt_index_B, rows_B, seed, step, stream, temperature, top_p):
        rows = Rows(prompt_index_B, rollout_keys(seed, step, rows_B, stream), temperature,
                    top_p if use_top_p else None, numbers=rows_B)
        params = parallel.all_gather_parts(params, config.dtype, but="layers" if decoding.by_layer else "")
        return sample_fn(params, config, prompts, rows, decoding)

    layout = model.LAYOUTS.get((devices or jax.devices())[0].platform, model.Layout())
    decoding, mapped = decoding._replace(layout=layout), parallel.map_devices(on_device, devices=devices)

    def sampler(params, prompts: Prompts, prompt_index_B, request: Request) -> Rollouts:
        devices, wanted = parallel.device_count(), len(prompt_index_B)
        spread = spread_rows(prompts, prompt_index_B, request, devices)
        scalars = [np.full(devices, x, kind) for x, kind in [
            (request.seed, np.int32), (request.step, np.int32), (request.stream, np.int32),
            (request.temperature, np.float32), (request.top_p, np.float32)]]
        out = mapped(params, *parallel.place_rows((*spread, *scalars)))
        rollouts = jax.tree.map(lambda x: x[:wanted], parallel.fetch_rows(out))
        return rollouts.replace(prompt_index=np.asarray(prompt_index_B))

    sampler.mapped = mapped  # what is compiled for devices that are not here
    return sampler
