"""Attention by kernels of chips, as further rows of `ops.ATTENTION`. Nothing here has run on a chip: BUILD.md."""

import jax
import jax.numpy as jnp

from rlvr_jax import ops
from rlvr_jax.errors import UserError

PLATFORM = {"splash": "tpu", "cudnn": "gpu", "triton": "gpu"}
BLOCKS = 512, 256, 128  # queries, or keys, that a kernel works on at a time


def square(q_BxTxHxE: jax.Array, segments) -> tuple:
    """What kernels take that know causal masks and ids alone: scaled queries, keys and values, [B,S,H or K,E], and ids
    i32[B,S]. A query sees what has its id. All are padded in front, queries to the keys' number; padding has id 0."""
    keys, values, mask_BxTxS = ops.joined(q_BxTxHxE, segments)
    e, more = q_BxTxHxE.shape[-1], -keys.shape[1] % BLOCKS[-1]
    seen_BxS = mask_BxTxS[:, -1].astype(jnp.int32)  # the last query sees all that any one does
    size = keys.shape[1] + more
    return tuple(jnp.pad(x, [(0, 0), (size - x.shape[1], 0)] + [(0, 0)] * (x.ndim - 2))
                 for x in (q_BxTxHxE * e**-0.5, keys, values, seen_BxS))


def splash(q_BxTxHxE: jax.Array, segments, interpret: bool = False) -> jax.Array:
    """Pallas's splash attention, for TPUs and heads of a multiple of 128."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    b, t, h, e = q_BxTxHxE.shape
    *heads, ids_BxS = square(q_BxTxHxE, segments)
    size = ids_BxS.shape[1]
    block = next(n for n in BLOCKS if size % n == 0)
    attend = kernel.make_splash_mha_single_device(
        masks.MultiHeadMask([masks.CausalMask((size, size))] * h), interpret=interpret,
        block_sizes=kernel.BlockSizes(block, block, block, block, block, block, block, block))
    out_BxHxSxE = jax.vmap(lambda q, k, v, ids: attend(q, k, v, segment_ids=kernel.SegmentIds(ids, ids)))(
        *(x.swapaxes(1, 2) for x in heads), ids_BxS)
    return out_BxHxSxE[:, :, -t:].swapaxes(1, 2).reshape(b, t, h * e)


def triton(q_BxTxHxE: jax.Array, segments, interpret: bool = False) -> jax.Array:
    """Pallas's attention in Triton, for NVIDIA GPUs from Ampere on."""
    from jax.experimental.pallas.ops.gpu.attention import mha

    b, t, h, e = q_BxTxHxE.shape
    q, keys, values, ids_BxS = square(q_BxTxHxE, segments)
    keys, values = (jnp.repeat(x, h // x.shape[2], 2) for x in (keys, values))
    return mha(q, keys, values, ids_BxS, causal=True, interpret=interpret)[:, -t:].reshape(b, t, h * e)


def cudnn(q_BxTxHxE: jax.Array, segments, implementation: str = "cudnn") -> jax.Array:
    """cuDNN's, for NVIDIA GPUs from Ampere on and 16 bits."""
    keys, values, mask_BxTxS = ops.joined(q_BxTxHxE, segments)
    out = jax.nn.dot_product_attention(q_BxTxHxE, keys, values, mask=mask_BxTxS[:, None],
                                       implementation=implementation)
    return out.reshape(*q_BxTxHxE.shape[:2], -1)


ops.ATTENTION |= {"splash": splash, "cudnn": cudnn, "triton": triton}


def check(name: str, dtype: str) -> None:
    """UserError for a kernel that cannot run here."""
    here = jax.default_backend()
    if name == "cudnn" and dtype == "float32":
        raise UserError("--attention=cudnn computes in 16 bits: --dtype=bfloat16, or --attention=plain")
    if PLATFORM.get(name, here) != here:
        raise UserError(f"--attention={name}: a kernel for a {PLATFORM[name].upper()}, and JAX runs on a "
                        f"{here.upper()} here; --attention=plain runs everywhere")
