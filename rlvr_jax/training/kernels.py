"""Attention kernels for TPUs and GPUs, added to `ops.ATTENTION`. No kernel has run on a chip yet, see BUILD.md.

Each entry has two functions. One attends in whole rows of tokens. The other attends from the token being decoded, and
reads only the filled part of each row's cache. Prompts are not in the cache: all rows attend to their prompts in one
matrix product, and `join_prompt` combines the two softmaxes. A kernel's result for a row depends on no other row and
not on the unfilled part of the cache. Axis letters are as in `model`. Each function imports Pallas itself, so that
commands without a kernel do not wait for the import. `interpret` runs a kernel in Pallas's interpreter, without a chip.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from rlvr_jax import ops
from rlvr_jax.errors import UserError
from rlvr_jax.ops import ATTENTION, Attention

PLATFORM = {"splash": "tpu", "cudnn": "gpu", "triton": "gpu"}
BLOCKS = 512, 256, 128  # possible sizes of blocks of queries and keys, largest first


def pad_to_blocks(q_BxTxHxE: jax.Array, segments) -> tuple:
    """Turns the arguments of `ops.causal_attention` into those of kernels that know only causal masks and segment ids.
    Returns queries [B,S,H,E], scaled; keys and values, each [B,S,K,E]; and ids i32[B,S]. A query sees keys with its own
    id: 1, or 0 for masked keys and padding. All are padded in front to a common S, a multiple of the smallest block."""
    keys, values, mask_BxTxS = ops.join_segments(q_BxTxHxE, segments)
    e, size = q_BxTxHxE.shape[-1], -(-keys.shape[1] // BLOCKS[-1]) * BLOCKS[-1]
    seen_BxS = mask_BxTxS[:, -1].astype(jnp.int32)  # the last query sees every visible key
    return tuple(jnp.pad(x, [(0, 0), (size - x.shape[1], 0)] + [(0, 0)] * (x.ndim - 2))
                 for x in (q_BxTxHxE * e**-0.5, keys, values, seen_BxS))


def splash(q_BxTxHxE: jax.Array, segments, interpret: bool = False) -> jax.Array:
    """Computes `ops.causal_attention` by Pallas's splash attention, for TPUs and head sizes that 128 divides."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    b, t, h, e = q_BxTxHxE.shape
    queries, keys, values, ids_BxS = pad_to_blocks(q_BxTxHxE, segments)
    size = ids_BxS.shape[1]
    block = next(n for n in BLOCKS if size % n == 0)  # the largest block that divides the size
    attend = kernel.make_splash_mha_single_device(
        masks.MultiHeadMask([masks.CausalMask((size, size))] * h), interpret=interpret,
        block_sizes=kernel.BlockSizes(block, block, block, block, block, block, block, block))
    out_BxHxSxE = jax.vmap(lambda q, k, v, ids: attend(q, k, v, segment_ids=kernel.SegmentIds(ids, ids)))(
        *(x.swapaxes(1, 2) for x in (queries, keys, values)), ids_BxS)
    return out_BxHxSxE[:, :, -t:].swapaxes(1, 2).reshape(b, t, h * e)


def triton(q_BxTxHxE: jax.Array, segments, interpret: bool = False) -> jax.Array:
    """Computes `ops.causal_attention` by Pallas's attention in Triton, for NVIDIA GPUs from Ampere on."""
    from jax.experimental.pallas.ops.gpu.attention import mha

    b, t, h, e = q_BxTxHxE.shape
    q, keys, values, ids_BxS = pad_to_blocks(q_BxTxHxE, segments)
    keys, values = (jnp.repeat(x, h // x.shape[2], 2) for x in (keys, values))  # one for each query head
    return mha(q, keys, values, ids_BxS, causal=True, interpret=interpret)[:, -t:].reshape(b, t, h * e)


def cudnn(q_BxTxHxE: jax.Array, segments, implementation: str = "cudnn") -> jax.Array:
    """Computes `ops.attention` by cuDNN in 16 bits, for NVIDIA GPUs from Ampere on."""
    keys, values, mask_BxTxS = ops.join_segments(q_BxTxHxE, segments)
    out = jax.nn.dot_product_attention(q_BxTxHxE, keys, values, mask=mask_BxTxS[:, None],
                                       implementation=implementation)
    return out.reshape(*q_BxTxHxE.shape[:2], -1)


def decode_triton(q_Bx1xHxE: jax.Array, prompt: tuple, cache: tuple, filled_B: jax.Array, interpret: bool = False):
    """Pallas's `decode_attention.gqa` in blocks of 64 positions, for NVIDIA GPUs from Ampere on. Arguments are those of
    `model.Context.attend`. The kernel sums in q's dtype before it divides, which can overflow float16."""
    from jax.experimental.pallas.ops.gpu import decode_attention

    keys_BxWxKxE, values_BxWxKxE = (x.swapaxes(1, 2) for x in cache)  # the kernel swaps them back
    splits = math.gcd(cache[0].shape[2] // 64, 4)  # parts of a row that are read in parallel
    mixed, (sums, tops) = decode_attention.gqa(
        q_Bx1xHxE[:, 0], keys_BxWxKxE, values_BxWxKxE, kv_seq_len=filled_B, block_k=64, k_splits=splits,
        return_residuals=True, normalize_output=False, interpret=interpret)
    return join_prompt(q_Bx1xHxE, prompt, mixed, sums, tops)


def decode_mosaic(q_Bx1xHxE: jax.Array, prompt: tuple, cache: tuple, filled_B: jax.Array, interpret: bool = False):
    """Attention of each row's newest token to the row's cache, for TPUs, in blocks of at most 512 positions. Pallas's
    paged_attention cannot be used: it does not return the sums and maxima that `join_prompt` needs. Arguments are those
    of `model.Context.attend`."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    b, k, window, e = cache[0].shape
    r, size = q_Bx1xHxE.shape[2] // k, math.gcd(window, 512)  # query heads per key/value head, positions in a block

    def of_row(*dims):  # the block with all heads of one row
        return pl.BlockSpec((1, k, *dims), lambda row, block, filled: (row, 0, 0, 0))

    def index_of(row, block, filled):  # after the filled blocks, names the last of them again: nothing is loaded
        return row, 0, jnp.minimum(block, lax.div(filled[row] - 1, size)), 0

    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, grid=(b, window // size), out_specs=[of_row(r, e), of_row(r, 1), of_row(r, 1)],
        in_specs=[of_row(r, e), *[pl.BlockSpec((1, k, size, e), index_of)] * 2])
    mixed, sums, tops = pl.pallas_call(
        _attend_block, [jax.ShapeDtypeStruct((b, k, r, n), jnp.float32) for n in (e, 1, 1)], grid_spec=spec,
        interpret=interpret)(filled_B, q_Bx1xHxE.reshape(b, k, r, e), *cache)
    return join_prompt(q_Bx1xHxE, prompt, mixed, sums, tops)


def _attend_block(filled_ref, q_ref, keys_ref, values_ref, mixed_ref, sums_ref, tops_ref):
    """Adds one block of a row's cache, S positions, to the row's running softmax. Refs of q are [1,K,R,E], of keys and
    values [1,K,S,E]. `mixed` [1,K,R,E], `sums` and `tops` [1,K,R,1] are the results that `join_prompt` takes; they stay
    in fast memory until the row's last block."""
    from jax.experimental import pallas as pl

    row, block, size = pl.program_id(0), pl.program_id(1), keys_ref.shape[2]

    @pl.when(block == 0)
    def start():
        mixed_ref[...], sums_ref[...] = jnp.zeros_like(mixed_ref), jnp.zeros_like(sums_ref)
        tops_ref[...] = jnp.full_like(tops_ref, -1e30)

    @pl.when(block * size < filled_ref[row])
    def add():
        q_KxRxE, keys_KxSxE, values_KxSxE, old_tops = q_ref[0], keys_ref[0], values_ref[0], tops_ref[0]
        scores_KxRxS = q_KxRxE.shape[-1]**-0.5 * jnp.einsum("kre,kse->krs", q_KxRxE, keys_KxSxE,
                                                            preferred_element_type=jnp.float32)
        seen = block * size + lax.broadcasted_iota(jnp.int32, scores_KxRxS.shape, 2) < filled_ref[row]
        scores_KxRxS = jnp.where(seen, scores_KxRxS, -1e30)
        tops_ref[0] = jnp.maximum(old_tops, jnp.max(scores_KxRxS, -1, keepdims=True))
        weights_KxRxS, decay = jnp.exp(scores_KxRxS - tops_ref[0]), jnp.exp(old_tops - tops_ref[0])
        sums_ref[0] = decay * sums_ref[0] + jnp.sum(weights_KxRxS, -1, keepdims=True)
        mixed_ref[0] = decay * mixed_ref[0] + jnp.einsum("krs,kse->kre", weights_KxRxS.astype(values_KxSxE.dtype),
                                                         values_KxSxE, preferred_element_type=jnp.float32)


def join_prompt(q_Bx1xHxE: jax.Array, prompt: tuple, mixed: jax.Array, sums: jax.Array, tops: jax.Array) -> jax.Array:
    """Attends to `prompt`, (keys, values, mask), and joins that with attention to the cache in one softmax, [B,1,H*E].
    For the cache, `tops` [B,H] are the largest scores, `sums` [B,H] the sums of the weights exp(score - top), and
    `mixed` [B,H,E] the weighted sums of the values; the axis H of all three may be split into [K,R]."""
    (keys, values, mask_Bx1xS), (b, _, h, e) = prompt, q_Bx1xHxE.shape
    rows, heads = "" if keys.ndim == 3 else "b", (b, keys.shape[-2], h // keys.shape[-2])
    scores_BxKxRxS = e**-0.5 * jnp.einsum(f"bkre,{rows}ske->bkrs", q_Bx1xHxE.reshape(*heads, e), keys,
                                          preferred_element_type=jnp.float32)
    scores_BxKxRxS = jnp.where(mask_Bx1xS[:, :, None], scores_BxKxRxS, -1e30)
    top_BxKxR = jnp.maximum(tops.reshape(heads), jnp.max(scores_BxKxRxS, -1))
    weights_BxKxRxS = jnp.exp(scores_BxKxRxS - top_BxKxR[..., None])
    decay_BxKxR = jnp.exp(tops.reshape(heads) - top_BxKxR)  # rescales the sums of the cache
    out = jnp.einsum(f"bkrs,{rows}ske->bkre", weights_BxKxRxS.astype(values.dtype), values,
                     preferred_element_type=jnp.float32) + decay_BxKxR[..., None] * mixed.reshape(*heads, e)
    out /= (jnp.sum(weights_BxKxRxS, -1) + decay_BxKxR * sums.reshape(heads))[..., None]
    return out.astype(q_Bx1xHxE.dtype).reshape(b, 1, h * e)


ATTENTION |= {"splash": Attention(splash, decode_mosaic), "cudnn": Attention(cudnn, decode_triton),
              "triton": Attention(triton, decode_triton)}


def check_kernel(name: str, dtype: str) -> None:
    """Raises UserError for a kernel that cannot run in this dtype or on this backend."""
    backend = jax.default_backend()
    if (name == "cudnn" and dtype == "float32") or (PLATFORM.get(name) == "gpu" and dtype == "float16"):
        raise UserError(f"--attention={name} does not compute in {dtype}: use --dtype=bfloat16, or --attention=plain")
    if PLATFORM.get(name, backend) != backend:
        raise UserError(f"--attention={name} is a kernel for a {PLATFORM[name].upper()}, and JAX runs on a "
                        f"{backend.upper()} here; --attention=plain runs everywhere")
