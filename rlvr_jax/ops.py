"""The operations of a layer: matrix products, norms, rotary positions, attention. Axis letters as in `model`."""

import dataclasses
import functools
import math
from typing import Callable, NamedTuple, Optional

import jax
import jax.numpy as jnp
from jax import lax

SHORT = 256  # longest rows whose attention scores are computed in one piece; longer rows use `Attention.rows`


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's rule for rotary embeddings: wavelengths above original_max_seq_len / low_freq_factor are multiplied
    by `factor`, wavelengths below original_max_seq_len / high_freq_factor are unchanged, and others interpolated."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_seq_len: int


@jax.custom_vjp
def linear(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns x [..., D] @ weight [D, F], with a gradient of the weight that needs no copies. JAX's own gradient
    transposes a product over two batch axes, for which XLA copies both operands on a CPU."""
    return x @ weight


def linear_backward(operands, g):
    x, weight = operands
    x_rows, g_rows = (y.reshape(-1, y.shape[-1]) for y in (x, g))
    return jnp.matmul(g, weight.T), lax.dot_general(x_rows, g_rows, (((0,), (0,)), ((), ())))  # g W^T, x^T g


linear.defvjp(lambda x, weight: (x @ weight, (x, weight)), linear_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def float32_einsum(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """An einsum with a float32 result. Gradients are computed in the operands' dtype, which is faster in 16 bits."""
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def float32_einsum_backward(equation, operands, g):
    _, pull_back = jax.vjp(functools.partial(jnp.einsum, equation), *operands)
    return pull_back(g.astype(operands[0].dtype))


float32_einsum.defvjp(lambda equation, x, y: (float32_einsum(equation, x, y), (x, y)), float32_einsum_backward)


def swiglu(gate: jax.Array, up: jax.Array) -> tuple[jax.Array, Optional[jax.Array]]:
    """Returns (y, scale) such that y * scale = silu(gate) * up (SwiGLU, arXiv 2002.05202); None stands for 1. In
    float16 this product may overflow (beyond 65,504), so each row is divided by scale, f32 [..., 1], to stay below."""
    if gate.dtype != jnp.float16:
        return jax.nn.silu(gate) * up, None
    product = jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)
    scale = lax.stop_gradient(jnp.maximum(1.0, jnp.max(jnp.abs(product), -1, keepdims=True) / 2**14))
    return (product / scale).astype(jnp.float16), scale


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis, computed in float32, returned in x's dtype (arXiv 1910.07467)."""
    x32 = x.astype(jnp.float32)
    normed = x32 * lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + eps)
    return (normed * scale.reshape((1,) * (x.ndim - 1) + scale.shape)).astype(x.dtype)


def rope_frequencies(head_dim: int, theta: float, scaling: Optional[RopeScaling]) -> jax.Array:
    """Returns rotary frequencies in radians per position, f32[E/2] (RoPE, arXiv 2104.09864), scaled by `scaling`."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is None:
        return frequencies
    turns = scaling.original_max_seq_len * frequencies / (2 * math.pi)  # rotations within the original window
    keep = jnp.clip((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0, 1)
    return frequencies * (keep + (1 - keep) / scaling.factor)


def rotate(x_BxTxHxE: jax.Array, positions_BxT: jax.Array, frequencies: jax.Array) -> jax.Array:
    """Applies rotary embeddings in the layout of Hugging Face weights, where dimensions i and i + E/2 form a pair."""
    angles = positions_BxT[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x_BxTxHxE.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BxTxHxE.dtype)


def attention(q_BxTxHxE: jax.Array, segments) -> jax.Array:
    """Returns softmax attention, [B,T,H*E], over the concatenation of `segments`, each (keys, values, mask). Keys and
    values are [B,S,K,E], or [S,K,E] if all rows share them: then one matrix product serves all rows. mask, bool[B,T,S],
    is true where a query sees a key; every query must see at least one key."""
    b, t, h, e = q_BxTxHxE.shape
    kv_heads = segments[0][0].shape[-2]
    q = (q_BxTxHxE * e**-0.5).reshape(b, t, kv_heads, h // kv_heads, e)
    scores = []
    for keys, _, mask_BxTxS in segments:
        equation = "btkre,ske->bkrts" if keys.ndim == 3 else "btkre,bske->bkrts"
        scores.append(jnp.where(mask_BxTxS[:, None, None], float32_einsum(equation, q, keys), -1e30))
    weights = jax.nn.softmax(jnp.concatenate(scores, -1), -1).astype(q.dtype)
    out, start = 0, 0
    for keys, values, _ in segments:
        size = keys.shape[-3]
        equation = "bkrts,ske->btkre" if values.ndim == 3 else "bkrts,bske->btkre"
        out += jnp.einsum(equation, weights[..., start : start + size], values)
        start += size
    return out.reshape(b, t, h * e)


def join_segments(q_BxTxHxE: jax.Array, segments) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Concatenates the segments of `attention`: returns keys and values, each [B,S,K,E], and the mask, bool[B,T,S]."""
    keys, values, masks = zip(*segments)
    join = lambda arrays: jnp.concatenate([jnp.broadcast_to(x, (len(q_BxTxHxE), *x.shape[-3:])) for x in arrays], 1)
    return join(keys), join(values), jnp.concatenate(masks, -1)


def causal_attention(q_BxTxHxE: jax.Array, segments, chunk: int = 256) -> jax.Array:
    """Computes `attention` where the last T keys belong to the T queries and no query sees a key after its own. Takes
    the queries in chunks, each with the keys up to the chunk's last query, and recomputes chunks in the backward
    pass: a chunk's scores fit in a chip's fast memory; those of whole rows would dominate memory traffic."""
    b, t, h, e = q_BxTxHxE.shape
    keys, values, mask_BxTxS = join_segments(q_BxTxHxE, segments)
    size, k = keys.shape[1:3]
    keys_BxKxSxE, values_BxKxSxE = keys.swapaxes(1, 2), values.swapaxes(1, 2)
    q_BxKxRxTxE = (q_BxTxHxE * e**-0.5).reshape(b, t, k, h // k, e).transpose(0, 2, 3, 1, 4)

    @jax.checkpoint
    def attend(q, keys, values, mask):  # merges heads and queries first: GPUs would copy the scores to merge them
        scores = float32_einsum("bkqe,bkse->bkqs", q.reshape(b, k, -1, e), keys)
        scores = jnp.where(mask[:, None, None], scores.reshape(*q.shape[:-1], -1), -1e30)
        weights = jax.nn.softmax(scores, -1).astype(q.dtype).reshape(b, k, -1, keys.shape[2])
        return jnp.einsum("bkqs,bkse->bkqe", weights, values).reshape(q.shape)

    out = []
    for start in range(0, t, chunk):
        now, seen = slice(start, start + chunk), min(size - t + start + chunk, size)  # queries, and how many keys
        out.append(attend(q_BxKxRxTxE[..., now, :], keys_BxKxSxE[:, :, :seen], values_BxKxSxE[:, :, :seen],
                          mask_BxTxS[:, now, :seen]))
    return jnp.concatenate(out, 3).transpose(0, 3, 1, 2, 4).reshape(b, t, h * e)


class Attention(NamedTuple):
    """A row of `ATTENTION`: one implementation of attention."""

    rows: Callable = causal_attention  # for rows of more than `SHORT` tokens; called as `attention` is
    cache: Optional[Callable] = None  # for decoded tokens, see `model.Context.attend`; None: `attention`


ATTENTION = {"auto": Attention(), "plain": Attention()}  # values of --attention; `training.kernels` adds kernels
