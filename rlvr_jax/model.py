"""The transformer, as functions over a pytree of parameters.

The architecture is Llama's (Touvron et al., arXiv 2302.13971) with the switches that Qwen2 (query/key/value biases) and
Qwen3 (query/key norms) need. One `layer` serves two callers: `forward` scans it over stacked parameters (training,
prefill), `decode_step` unrolls it (a scan inside a decoding loop would copy every weight at every token). Callers pass
`layer` its attention. `Prefix` has the keys and values of prompts, which rows share; `KVCache` of decoded tokens.

Array names carry their axes: B rows (completions), P distinct prompts, S prompt positions, T positions of a row,
W cache window, D width, H query heads, K key/value heads, R = H/K query heads per key/value head, E head size,
F feed-forward width, V vocabulary, L layers.
"""

import dataclasses
import math
import re
from typing import Callable, NamedTuple, Optional

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from rlvr_jax import ops, parallel
from rlvr_jax.ops import RopeScaling
from rlvr_jax.records import Prompts


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a transformer. Sizes are counts; `max_seq_len` is prompt and completion together, in tokens."""

    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    max_seq_len: int
    rope_theta: float = 10_000.0
    rope_scaling: Optional[RopeScaling] = None
    norm_eps: float = 1e-6
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3
    tie_embeddings: bool = True
    dtype: str = "float32"  # dtype of the computation

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict) -> "ModelConfig":
        scaling = fields.get("rope_scaling")
        return cls(**fields | {"rope_scaling": scaling and RopeScaling(**scaling)})


# {"embed": [V,D], "layers": {name: [L,...]}, "final_norm": [D], "head": [D,V] unless tied}, plus leaves of an adapter
Params = dict
KEPT = "attention"  # name of the attention outputs of long rows, which remat keeps: small, but slow to recompute
EditResidual = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (layer, x_BxTxD, positions_BxT) -> x_BxTxD


class ForwardOptions(NamedTuple):
    """Options of `forward`; hashable, so that they may be static under jit."""

    remat: bool = False  # recompute each layer in the backward pass instead of keeping its activations
    attend: Callable = ops.causal_attention  # attention of rows longer than `ops.SHORT`
    keep_kv: bool = False  # return each layer's (keys, values), [L,B,T,K,E], as `kept`
    edit_residual: Optional[EditResidual] = None  # applied to the output of every layer
    read_residual: Optional[Callable] = None  # x_BxTxD after a layer and `edit_residual` -> what `kept` has of it


@flax.struct.dataclass
class Prefix:
    """Keys and values of the prompts, except of each prompt's last token, which is the first input of a completion."""

    keys: jax.Array  # [L,P,S,K,E]
    values: jax.Array  # [L,P,S,K,E]
    lengths: jax.Array  # i32[P] positions in use: prompt length - 1
    last_tokens: jax.Array  # i32[P] the first input of every completion


class Layout(NamedTuple):
    """How decoding uses a device's memory; hashable, so that it may be static under jit."""

    axis: int = 1  # the axis of a cache's positions: 1 for [B,W,K,E], 2 for [B,K,W,E]
    cast: bool = False  # cast the weights once, before the decoding loop
    grows: bool = False  # enlarge the cache as completions grow; else allocate all of it, and read a part at each step
    shrinks: bool = False  # halve the slots each time half of them are idle (see `sampler`)


# With the CPU's layout, TPUs would copy the cache at each token, GPUs the part they read, and both would cast weights.
LAYOUTS = {"cpu": Layout(shrinks=True), "tpu": Layout(axis=2, cast=True), "gpu": Layout(axis=2, cast=True, grows=True)}


@flax.struct.dataclass
class KVCache:
    """Keys and values of decoded tokens, in one array for each layer so that decoding updates them in place."""

    layers: tuple  # L x (keys, values), each [B,W,K,E] or [B,K,W,E], see `Layout.axis`
    layout: Layout = flax.struct.field(pytree_node=False)


class Context(NamedTuple):
    """The inputs of `decode_step` that stay the same from token to token."""

    layers: list  # (weights, prefix keys, prefix values) of each layer
    prefix: Prefix
    prompt_index: Optional[jax.Array]  # i32[B] the prompt that each row continues; None: row b continues prompt b
    # (q_Bx1xHxE, segment of the prompt, (keys_BxKxWxE, values_BxKxWxE), filled positions i32[B]) -> mixed_Bx1x(H*E)
    attend: Optional[Callable] = None


class Inputs(NamedTuple):
    """The next input token of each row; rows may be at different steps."""

    tokens: jax.Array  # i32[B]
    steps: jax.Array  # i32[B] how many inputs of its completion each row has had before


def init_params(key: jax.Array, config: ModelConfig) -> Params:
    """Returns random float32 parameters: std 0.02, or 0.02/sqrt(2L) for "o" and "down" (GPT-2); norms are 1."""
    c, keys = config, iter(jax.random.split(key, 16))  # `normal` takes them in turn: the order of its calls matters

    def normal(*shape, std=0.02):
        return std * jax.random.normal(next(keys), shape, jnp.float32)

    heads, kv_heads = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    residual_std = 0.02 / math.sqrt(2 * c.num_layers)
    shapes = {"q": (c.d_model, heads), "k": (c.d_model, kv_heads), "v": (c.d_model, kv_heads),
              "gate": (c.d_model, c.d_ff), "up": (c.d_model, c.d_ff)}
    layers = {name: normal(c.num_layers, *shape) for name, shape in shapes.items()}
    layers |= {"o": normal(c.num_layers, heads, c.d_model, std=residual_std),
               "down": normal(c.num_layers, c.d_ff, c.d_model, std=residual_std),
               "attn_norm": jnp.ones((c.num_layers, c.d_model)), "mlp_norm": jnp.ones((c.num_layers, c.d_model))}
    if c.qkv_bias:
        layers |= {name + "_bias": jnp.zeros((c.num_layers, shapes[name][1])) for name in "qkv"}
    if c.qk_norm:
        layers |= {name + "_norm": jnp.ones((c.num_layers, c.head_dim)) for name in "qk"}
    params = {"embed": normal(c.vocab_size, c.d_model), "layers": layers, "final_norm": jnp.ones((c.d_model,))}
    return params if c.tie_embeddings else params | {"head": normal(c.d_model, c.vocab_size)}


def layer(p: dict, config: ModelConfig, x_BxTxD: jax.Array, positions_BxT: jax.Array, attend: Callable,
          first_BxT: jax.Array) -> tuple:
    """Applies one pre-norm block with parameters `p` and returns (x_BxTxD, kept). The caller's `attend(q_BxTxHxE,
    k_BxTxKxE, v_BxTxKxE) -> (mixed_BxTx(H*E), kept)` applies masks and caches; its `kept` is returned. `first_BxT`,
    bool, marks positions that predict the first token of a completion. Weights are cast to the dtype of x."""
    def project(name, x, scale=None):  # (x W + LoRA's product) * scale + bias
        y = ops.linear(x, p[name].astype(x.dtype))
        if name + "_lora_a" in p:
            a, b = p[name + "_lora_a"], p["lora_scale"] * p[name + "_lora_b"]  # float32: 16 bits may not hold alpha/r
            if a.shape[1] == 1:  # pad: XLA fuses rank-1 products, so sampler and learner would not agree bitwise
                a, b = jnp.pad(a, ((0, 0), (0, 1))), jnp.pad(b, ((0, 1), (0, 0)))
            y += ops.linear(ops.linear(x, a.astype(x.dtype)), b.astype(x.dtype))
        y = y if scale is None else y * scale
        bias = p.get(name + "_bias")
        return y if bias is None else y + bias.astype(x.dtype)[None, None]

    h = ops.rms_norm(x_BxTxD, p["attn_norm"], config.norm_eps)
    q, k, v = (project(name, h).reshape(*h.shape[:2], -1, config.head_dim) for name in "qkv")
    if config.qk_norm:
        q, k = ops.rms_norm(q, p["q_norm"], config.norm_eps), ops.rms_norm(k, p["k_norm"], config.norm_eps)
    frequencies = ops.rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    mixed, kept = attend(ops.rotate(q, positions_BxT, frequencies), ops.rotate(k, positions_BxT, frequencies), v)
    x = x_BxTxD + project("o", mixed)
    h = ops.rms_norm(x, p["mlp_norm"], config.norm_eps)
    inner, scale = ops.swiglu(project("gate", h), project("up", h))
    x = x + project("down", inner, scale).astype(x.dtype)
    if "vector" in p:
        x = x + p["vector"].astype(x.dtype)[None, None]
    if "first_vector" in p:
        x = x + jnp.where(first_BxT[..., None], p["first_vector"].astype(x.dtype)[None, None], 0)
    return x, kept


def prefix_segment(keys_PxSxKxE, values_PxSxKxE, lengths_P, prompt_index_B, num_queries: int) -> tuple:
    """Returns the segment (keys, values, mask_BxTxS) of `ops.attention` by which row b attends to prompt
    `prompt_index_B[b]`, or to prompt b if that is None. A single prompt is not copied for all rows: keys [S,K,E]."""
    num_prompts, size = keys_PxSxKxE.shape[:2]
    lengths_B = lengths_P if prompt_index_B is None else lengths_P[prompt_index_B]
    mask_BxS = jnp.arange(size)[None, :] < lengths_B[:, None]
    mask_BxTxS = jnp.broadcast_to(mask_BxS[:, None], (len(lengths_B), num_queries, size))
    if prompt_index_B is None:
        return keys_PxSxKxE, values_PxSxKxE, mask_BxTxS
    rows = 0 if num_prompts == 1 else prompt_index_B  # 0 removes the axis of prompts
    return keys_PxSxKxE[rows], values_PxSxKxE[rows], mask_BxTxS


def forward(params: Params, config: ModelConfig, tokens_BxT: jax.Array, prefix: Optional[Prefix] = None,
            prompt_index_B: Optional[jax.Array] = None, how: ForwardOptions = ForwardOptions()) -> tuple:
    """Runs whole rows through the layers and returns (hidden_BxTxD, kept): the states after the final norm, and what
    `how` asks to keep of each layer, [L,...] or None. Tokens are i32, right-padded; attention is causal, so padding
    needs no mask. Row b continues prompt `prompt_index_B[b]` of the prefix, into which gradients flow; its first input
    predicts the first token of a completion (`first_BxT` of `layer`). Without a prefix, no input does."""
    b, t = tokens_BxT.shape
    starts_B = jnp.zeros(b, jnp.int32) if prefix is None else prefix.lengths[prompt_index_B]
    positions_BxT = starts_B[:, None] + jnp.arange(t)[None, :]
    first_BxT = jnp.broadcast_to((jnp.arange(t) == 0)[None] & (prefix is not None), (b, t))
    causal_BxTxT = jnp.broadcast_to(jnp.tril(jnp.ones((t, t), bool))[None], (b, t, t))

    def block(x, xs):
        index, p, prefix_kv = xs

        def attend(q, k, v):
            segments = [(k, v, causal_BxTxT)]
            if prefix is not None:
                segments.insert(0, prefix_segment(*prefix_kv, prefix.lengths, prompt_index_B, t))
            mixed = ops.attention(q, segments) if t <= ops.SHORT else checkpoint_name(how.attend(q, segments), KEPT)
            return mixed, ((k, v) if how.keep_kv else None)

        x, kept = layer(parallel.all_gather_parts(p, config.dtype), config, x, positions_BxT, attend, first_BxT)
        x = x if how.edit_residual is None else how.edit_residual(index, x, positions_BxT)
        return x, (kept if how.read_residual is None else how.read_residual(x))

    stacked_kv = None if prefix is None else (prefix.keys, prefix.values)  # [L,...], as the layers' parameters
    if how.remat:
        block = jax.checkpoint(block, policy=jax.checkpoint_policies.save_only_these_names(KEPT))
    x, kept = lax.scan(block, params["embed"][tokens_BxT].astype(config.dtype),
                       (jnp.arange(config.num_layers), params["layers"], stacked_kv))
    return ops.rms_norm(x, params["final_norm"], config.norm_eps), kept


def prefill(params: Params, config: ModelConfig, prompts: Prompts, how: ForwardOptions = ForwardOptions()) -> Prefix:
    """Runs each distinct prompt through the model once and returns the `Prefix`."""
    _, (keys, values) = forward(params, config, prompts.tokens, how=how._replace(keep_kv=True))
    last_tokens_P = jnp.take_along_axis(prompts.tokens, prompts.lengths[:, None] - 1, axis=1)[:, 0]
    return Prefix(keys, values, prompts.lengths - 1, last_tokens_P)


def cast_weights(params: Params, dtype: str) -> Params:
    """Casts all parameters to `dtype` except norms and LoRA's factors, which are used in float32."""
    def cast(path, x):
        return x if re.search("norm|lora", jax.tree_util.keystr(path)) else x.astype(dtype)
    return jax.tree_util.tree_map_with_path(cast, params)


def head(params: Params, hidden: jax.Array) -> jax.Array:
    """Maps hidden states [..., D] to float32 logits [..., V]."""
    if "head" in params:
        return ops.float32_einsum("...d,dv->...v", hidden, params["head"].astype(hidden.dtype))
    return ops.float32_einsum("...d,vd->...v", hidden, params["embed"].astype(hidden.dtype))


def unroll_layers(params: Params, prefix: Prefix, prompt_index_B: Optional[jax.Array] = None) -> Context:
    """Returns the `Context` of a decoding loop. Slices the stacked layers here, so that the loop need not do it."""
    stacked = (params["layers"], prefix.keys, prefix.values)
    layers = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(len(prefix.keys))]
    return Context(layers, prefix, prompt_index_B)


def init_cache(config: ModelConfig, rows: int, window: int, layout: Layout = Layout()) -> KVCache:
    heads, size = config.num_kv_heads, config.head_dim
    shape = (rows, window, heads, size) if layout.axis == 1 else (rows, heads, window, size)
    zeros = lambda: jnp.zeros(shape, config.dtype)  # called for each array: separate buffers can be donated
    return KVCache(tuple((zeros(), zeros()) for _ in range(config.num_layers)), layout)


def decode_step(params: Params, config: ModelConfig, context: Context, inputs: Inputs, cache: KVCache,
                edit_residual: Optional[EditResidual] = None) -> tuple[jax.Array, KVCache]:
    """Feeds one token of each row. Returns (logits_BxV f32, the cache with the keys and values of these tokens). A row
    at step 0 starts a completion; cache entries past its step are masked, so old ones need no clearing. Attention reads
    the first 64 * 2^i, the fewest that hold every row's, or all if `Layout.grows`; `context.attend` is given all."""
    prefix, prompt_index_B, attend = context.prefix, context.prompt_index, context.attend
    tokens_B, steps_B = inputs
    axis = cache.layout.axis
    rows_B, window = jnp.arange(len(tokens_B)), cache.layers[0][0].shape[axis]
    new_entry = ((rows_B, steps_B) if axis == 1 else  # indexes all heads, since a slice would move their axis
                 (rows_B[:, None], jnp.arange(config.num_kv_heads)[None], steps_B[:, None]))
    starts_B = prefix.lengths if prompt_index_B is None else prefix.lengths[prompt_index_B]
    positions_Bx1 = (starts_B + steps_B)[:, None]
    buckets = [64 * 2**i for i in range(24) if 64 * 2**i < window and not cache.layout.grows] + [window]
    bucket = 0  # not computed: a sum of no elements in the sampler's loop crashes XLA's CPU compiler (jaxlib 0.11.2)
    if len(buckets) > 1:  # the index of the smallest bucket that holds the tokens of the row with most steps
        bucket = jnp.sum(jnp.max(steps_B) >= jnp.array(buckets[:-1], jnp.int32))
    seen_Bx1xW = (jnp.arange(window)[None, :] <= steps_B[:, None])[:, None]
    x, new_layers = params["embed"][tokens_B[:, None]].astype(config.dtype), []
    for i, (p, prefix_keys, prefix_values) in enumerate(context.layers):
        def mix(q, k, v):  # the `attend` of `layer`: returns its result and the layer's new (keys, values)
            kv = tuple(old.at[new_entry].set(new[:, 0]) for old, new in zip(cache.layers[i], (k, v)))
            prompt = prefix_segment(prefix_keys, prefix_values, prefix.lengths, prompt_index_B, 1)
            if attend is not None:
                return attend(q, prompt, tuple(jnp.moveaxis(x, axis, 2) for x in kv), steps_B + 1), kv

            def attend_to_first(size):
                keys, values = (jnp.moveaxis(lax.slice_in_dim(x, 0, size, axis=axis), axis, 1) for x in kv)
                return ops.attention(q, [prompt, (keys, values, seen_Bx1xW[:, :, :size])])
            return lax.switch(bucket, [lambda size=size: attend_to_first(size) for size in buckets]), kv

        x, kv = layer(parallel.all_gather_parts(p, config.dtype), config, x, positions_Bx1, mix, steps_B[:, None] == 0)
        if edit_residual is not None:
            x = edit_residual(i, x, positions_Bx1)
        new_layers.append(kv)
    hidden_BxD = ops.rms_norm(x, params["final_norm"], config.norm_eps)[:, 0]
    return head(params, hidden_BxD), cache.replace(layers=tuple(new_layers))


def local_prompts(prompts: Prompts, prompt_index_B: np.ndarray, pieces: int, repeats: int = 1,
                  cut: bool = False) -> tuple[Prompts, np.ndarray]:
    """Cuts rows into equal pieces, each with only the prompts it uses. Returns (prompts [pieces,P',S], index
    i32[pieces,B'] of each row's prompt in its piece). Groups of `repeats` consecutive rows share a prompt; `cut` says
    that the first row may be inside a group. P', the most prompts that such a piece can have, is the same for all
    steps, and so are all shapes. Raises ValueError if a piece has more."""
    index = np.asarray(prompt_index_B).reshape(pieces, -1)
    size = index.shape[1]
    cut_groups = 2 if size % repeats else int(cut)  # groups of which a piece may hold a part
    width = min(len(prompts.lengths), size, size // repeats + cut_groups)  # P'
    used, local_index = zip(*(np.unique(piece, return_inverse=True) for piece in index))  # each piece: prompts, index
    if (most := max(map(len, used))) > width:
        raise ValueError(f"{size} rows use {most} prompts, but can use {width} if groups of {repeats} share a prompt")
    used = np.stack([np.resize(piece, width) for piece in used])  # repeats prompts up to P'
    return jax.tree.map(lambda x: np.asarray(x)[used], prompts), np.stack(local_index).astype(np.int32)
