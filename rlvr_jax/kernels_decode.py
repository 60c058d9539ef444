"""Decoding by kernels that read of each row's cache what the row has filled: what `sampler.Decoding.attend` may be.

Axis letters as in `model`. The prompt is not in the cache. All rows look at it in one product, and the two softmaxes
are joined by their maxima and sums.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import decode_attention

BLOCK = 64  # positions read at a time; divides every window


def triton(q_Bx1xHxE: jax.Array, prompt: tuple, cache: tuple, lengths_B: jax.Array, interpret: bool = False):
    """Pallas's `decode_attention.gqa`, for GPUs from Ampere on, in float32 or bfloat16. As `model.decode_step` has it.

    What it says of a row depends on that row alone, and not on what the cache holds beyond the row's length. Sums are
    not divided until the end, and may leave the range of float16.
    """
    keys_BxKxWxE, values_BxKxWxE = (x.swapaxes(1, 2) for x in cache)  # turned back in there
    splits = math.gcd(keys_BxKxWxE.shape[1] // BLOCK, 4)  # of a row, read side by side
    mixed, (sums, tops) = decode_attention.gqa(
        q_Bx1xHxE[:, 0], keys_BxKxWxE, values_BxKxWxE, kv_seq_len=lengths_B, block_k=BLOCK, k_splits=splits,
        return_residuals=True, normalize_output=False, interpret=interpret)
    return joined(q_Bx1xHxE, prompt, mixed, sums, tops)


def joined(q_Bx1xHxE: jax.Array, prompt: tuple, mixed_BxHxE: jax.Array, sums_BxH: jax.Array, tops_BxH: jax.Array):
    """Attention to the prompt and to what `mixed` has seen: values weighted by exp(score - top), and their sum."""
    (keys, values, mask_Bx1xS), (b, _, h, e) = prompt, q_Bx1xHxE.shape
    rows, heads = "" if keys.ndim == 3 else "b", (b, keys.shape[-2], h // keys.shape[-2])
    scores_BxKxRxS = e**-0.5 * jnp.einsum(f"bkre,{rows}ske->bkrs", q_Bx1xHxE.reshape(*heads, e), keys,
                                          preferred_element_type=jnp.float32)
    scores_BxKxRxS = jnp.where(mask_Bx1xS[:, :, None], scores_BxKxRxS, -1e30)
    tops_BxKxR = jnp.maximum(tops_BxH.reshape(heads), jnp.max(scores_BxKxRxS, -1))
    weights_BxKxRxS = jnp.exp(scores_BxKxRxS - tops_BxKxR[..., None])
    share_BxKxR = jnp.exp(tops_BxH.reshape(heads) - tops_BxKxR)
    sums_BxKxR = jnp.sum(weights_BxKxRxS, -1) + share_BxKxR * sums_BxH.reshape(heads)
    out = jnp.einsum(f"bkrs,{rows}ske->bkre", weights_BxKxRxS.astype(values.dtype), values,
                     preferred_element_type=jnp.float32)
    out += share_BxKxR[..., None] * mixed_BxHxE.reshape(*heads, e)
    return (out / sums_BxKxR[..., None]).astype(q_Bx1xHxE.dtype).reshape(b, 1, h * e)
