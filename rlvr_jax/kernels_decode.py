"""Decoding by kernels that read of each row's cache what the row has filled: what `sampler.Decoding.attend` may be.

Axis letters as in `model`. The prompt is not in the cache: all rows look at it in one product, and the two softmaxes
are joined by their largest scores and sums. What a kernel says of a row depends on that row alone, and not on what its
cache holds beyond the filled positions.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.gpu import decode_attention


def triton(q_Bx1xHxE: jax.Array, prompt: tuple, cache: tuple, filled_B: jax.Array, interpret: bool = False):
    """For GPUs from Ampere on: Pallas's `decode_attention.gqa`, by blocks of 64 positions. Arguments as those of
    `model.Context.attend`. It keeps sums in q's type before they are divided, which may leave the range of float16."""
    keys_BxKxWxE, values_BxKxWxE = (x.swapaxes(1, 2) for x in cache)  # turned back in there
    splits = math.gcd(cache[0].shape[2] // 64, 4)  # parts of a row that are read side by side
    mixed, (sums, tops) = decode_attention.gqa(
        q_Bx1xHxE[:, 0], keys_BxKxWxE, values_BxKxWxE, kv_seq_len=filled_B, block_k=64, k_splits=splits,
        return_residuals=True, normalize_output=False, interpret=interpret)
    return joined(q_Bx1xHxE, prompt, mixed, sums, tops)


def mosaic(q_Bx1xHxE: jax.Array, prompt: tuple, cache: tuple, filled_B: jax.Array, interpret: bool = False):
    """For TPUs, by blocks of at most 512 positions, in which paged_attention does not give what joins two softmaxes.
    Arguments as those of `model.Context.attend`."""
    b, k, window, e = cache[0].shape
    rows, size = q_Bx1xHxE.shape[2] // k, math.gcd(window, 512)

    def of_row(*dims):
        return pl.BlockSpec((1, k, *dims), lambda row, block, filled: (row, 0, 0, 0))

    def at(row, block, filled):  # beyond the last filled block it is named again, and not read again
        return row, 0, jnp.minimum(block, lax.div(filled[row] - 1, size)), 0

    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, grid=(b, window // size), out_specs=[of_row(rows, e), of_row(rows, 1), of_row(rows, 1)],
        in_specs=[of_row(rows, e), *[pl.BlockSpec((1, k, size, e), at)] * 2])
    parts = pl.pallas_call(
        _look_at_block, [jax.ShapeDtypeStruct((b, k, rows, n), jnp.float32) for n in (e, 1, 1)], grid_spec=spec,
        interpret=interpret)(filled_B, q_Bx1xHxE.reshape(b, k, rows, e), *cache)
    return joined(q_Bx1xHxE, prompt, *parts)


def _look_at_block(filled_ref, q_ref, keys_ref, values_ref, mixed_ref, sums_ref, tops_ref):
    """A block of a row; what is written stays in place until the row's last one."""
    row, block, size = pl.program_id(0), pl.program_id(1), keys_ref.shape[2]

    @pl.when(block == 0)
    def start():
        mixed_ref[...], sums_ref[...] = jnp.zeros_like(mixed_ref), jnp.zeros_like(sums_ref)
        tops_ref[...] = jnp.full_like(tops_ref, -1e30)

    @pl.when(block * size < filled_ref[row])
    def add():
        q_KxRxE, keys_KxSxE, values_KxSxE, before = q_ref[0], keys_ref[0], values_ref[0], tops_ref[0]
        scores_KxRxS = q_KxRxE.shape[-1]**-0.5 * jnp.einsum("kre,kse->krs", q_KxRxE, keys_KxSxE,
                                                            preferred_element_type=jnp.float32)
        seen = block * size + lax.broadcasted_iota(jnp.int32, scores_KxRxS.shape, 2) < filled_ref[row]
        scores_KxRxS = jnp.where(seen, scores_KxRxS, -1e30)
        tops_ref[0] = jnp.maximum(before, jnp.max(scores_KxRxS, -1, keepdims=True))
        weights_KxRxS, share = jnp.exp(scores_KxRxS - tops_ref[0]), jnp.exp(before - tops_ref[0])
        sums_ref[0] = share * sums_ref[0] + jnp.sum(weights_KxRxS, -1, keepdims=True)
        mixed_ref[0] = share * mixed_ref[0] + jnp.einsum("krs,kse->kre", weights_KxRxS.astype(values_KxSxE.dtype),
                                                         values_KxSxE, preferred_element_type=jnp.float32)


def joined(q_Bx1xHxE: jax.Array, prompt: tuple, mixed: jax.Array, sums: jax.Array, tops: jax.Array) -> jax.Array:
    """Attention to the prompt, and to the cache: `mixed` [B,H,E] are its values weighted by exp(score - top), `sums` of
    these weights and `tops` [B,H]; or with H as K, R. Returns [B,1,H*E]."""
    (keys, values, mask_Bx1xS), (b, _, h, e) = prompt, q_Bx1xHxE.shape
    rows, heads = "" if keys.ndim == 3 else "b", (b, keys.shape[-2], h // keys.shape[-2])
    scores_BxKxRxS = e**-0.5 * jnp.einsum(f"bkre,{rows}ske->bkrs", q_Bx1xHxE.reshape(*heads, e), keys,
                                          preferred_element_type=jnp.float32)
    scores_BxKxRxS = jnp.where(mask_Bx1xS[:, :, None], scores_BxKxRxS, -1e30)
    top_BxKxR = jnp.maximum(tops.reshape(heads), jnp.max(scores_BxKxRxS, -1))
    weights_BxKxRxS = jnp.exp(scores_BxKxRxS - top_BxKxR[..., None])
    share_BxKxR = jnp.exp(tops.reshape(heads) - top_BxKxR)
    out = jnp.einsum(f"bkrs,{rows}ske->bkre", weights_BxKxRxS.astype(values.dtype), values,
                     preferred_element_type=jnp.float32) + share_BxKxR[..., None] * mixed.reshape(*heads, e)
    out /= (jnp.sum(weights_BxKxRxS, -1) + share_BxKxR * sums.reshape(heads))[..., None]
    return out.astype(q_Bx1xHxE.dtype).reshape(b, 1, h * e)
