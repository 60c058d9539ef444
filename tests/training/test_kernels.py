"""Attention of long rows in chunks and by kernels, run by Pallas's interpreter, against that of short rows; and kernels
that decode: equal to plain attention, and of each row alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr_jax import logprobs, model, ops
from rlvr_jax.errors import UserError
from rlvr_jax.training import kernels

from fixtures import TINY, VARIANTS, as_batch, draw_rollouts, random_params

# Prompts: the shape of their keys (a shared prompt has no axis of rows), and how many keys each of two rows sees.
SEEN = {"no prompt": ((0,), [0, 0]), "shared": ((9,), [5, 5]), "own": ((2, 9), [9, 3]), "one empty": ((2, 9), [0, 4])}


def segments_of(rng, t: int, prompts: str, dtype) -> tuple:
    """Queries of two rows of T positions, 4 heads on 2, and the segments that they see."""
    def draw(*shape):
        return jnp.array(rng.standard_normal(shape), dtype)

    shape, lengths = SEEN[prompts]
    seen = jnp.broadcast_to(jnp.arange(shape[-1])[None, None] < jnp.array(lengths)[:, None, None], (2, t, shape[-1]))
    own = draw(2, t, 2, 8), draw(2, t, 2, 8), jnp.tril(jnp.ones((2, t, t), bool))
    return draw(2, t, 4, 8), [(draw(*shape, 2, 8), draw(*shape, 2, 8), seen), own]


@pytest.mark.parametrize("name, t, dtype", [*(("plain", t, "float32") for t in (63, 64, 65, 150)),
                                            ("plain", 150, "bfloat16"), ("splash", 150, "float32"),
                                            ("triton", 150, "float32"), ("cudnn", 150, "float32")])
@pytest.mark.parametrize("prompts", SEEN)
def test_long_rows_attend_as_short_ones_do(name, t, dtype, prompts):
    """In chunks of 64 queries, and by interpreted kernels (XLA replaces cuDNN): values and gradients."""
    atol = 3e-6 if dtype == "float32" else 0.03
    how = {"plain": dict(chunk=64), "cudnn": dict(implementation="xla")}.get(name, dict(interpret=True))
    rng = np.random.default_rng(t)
    q, segments = segments_of(rng, t, prompts, dtype)
    weights = rng.standard_normal((2, t, 32)).astype("f4")

    def loss(attend, q, arrays):
        out = attend(q, [(*kv, mask) for kv, (*_, mask) in zip(arrays, segments)]).astype("f4")
        return jnp.sum(out * weights), out

    long = functools.partial(ops.ATTENTION[name].rows, **how)
    mine, theirs = (jax.jit(jax.grad(functools.partial(loss, attend), (0, 1), has_aux=True))(
        q, [kv[:2] for kv in segments]) for attend in (long, ops.attention))
    for one, other in zip(*(jax.tree.leaves(jax.tree.map(lambda x: np.array(x, "f4"), x)) for x in (mine, theirs))):
        np.testing.assert_allclose(one, other, atol=atol * (1 + np.abs(other).max(initial=0)))


def test_the_sampler_and_the_policy_agree_on_600_tokens():
    config = dataclasses.replace(TINY, max_seq_len=640)
    params = random_params(config)
    out = draw_rollouts(params=params, config=config, eos_ids=(31,), max_new_tokens=600)  # no token ends a completion
    ours, _ = jax.jit(logprobs.completion_logprobs, static_argnums=1)(params, config, as_batch(out), 1.0)
    assert out.completion_mask.all() and np.abs(ours - out.sampler_logprobs).max() < 1e-4


@pytest.mark.parametrize("name, dtype, said", [("splash", "bfloat16", "a kernel for a TPU, and JAX runs on a CPU"),
                                               ("cudnn", "float32", "--dtype=bfloat16")])
def test_a_kernel_that_cannot_run_here_is_refused(name, dtype, said):
    kernels.check_kernel("auto", dtype)
    with pytest.raises(UserError, match=said):
        kernels.check_kernel(name, dtype)


# ----- decoding

FILLED, W, S, K, R, E = (1, 63, 64, 65, 513, 1024), 1024, 5, 2, 3, 16
TRITON, MOSAIC = (functools.partial(x, interpret=True) for x in (kernels.decode_triton, kernels.decode_mosaic))


def operands(dtype: str, shared: bool) -> tuple:
    """Random arguments of a kernel: all rows share a prompt, or each has its own, and the first prompt is empty."""
    b, rng = len(FILLED), np.random.default_rng(0)
    q, keys, values, prompt_keys, prompt_values = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in [
        (b, 1, K * R, E), *[(b, K, W, E)] * 2, *[((S, K, E) if shared else (b, S, K, E))] * 2])
    seen_B = np.full(b, 4) if shared else np.arange(b)
    mask_Bx1xS = jnp.asarray(np.arange(S) < seen_B[:, None])[:, None]
    return q, (prompt_keys, prompt_values, mask_Bx1xS), (keys, values), jnp.array(FILLED, jnp.int32)


@pytest.mark.parametrize("kernel", [TRITON, MOSAIC])
@pytest.mark.parametrize("dtype, shared", [("float32", True), ("float32", False), ("bfloat16", True)])
def test_a_row_attends_to_its_prompt_and_to_what_it_has_filled(kernel, dtype, shared):
    given = operands(dtype, shared)
    q, (*prompt, mask), cache, filled_B = given
    q, *prompt, keys, values = (x.astype(jnp.float32) for x in (q, *prompt, *cache))
    seen = (jnp.arange(W)[None] < filled_B[:, None])[:, None]
    expected = ops.attention(q, [(*prompt, mask), (keys.swapaxes(1, 2), values.swapaxes(1, 2), seen)])
    error = jnp.abs(jax.jit(kernel)(*given).astype(jnp.float32) - expected).max()
    assert error < (1e-6 if dtype == "float32" else 2**-8 * jnp.abs(expected).max())


@pytest.mark.parametrize("kernel, block", [(TRITON, 64), (MOSAIC, 512)])
def test_a_row_is_the_same_bit_for_bit_beside_others_and_after_others(kernel, block):
    """Fewer slots in another order, and slots that were refilled: the rest of a row's block is what another row left,
    and the blocks after it, here no numbers at all, are not read."""
    q, prompt, cache, filled_B = operands("float32", False)
    place, ends = jnp.arange(W)[None, None, :, None], filled_B[:, None, None, None]
    stale = tuple(jnp.where(place < ends, x, jnp.where(place < -(-ends // block) * block, 1e4, jnp.nan)) for x in cache)
    whole, kept = jax.jit(kernel)(q, prompt, cache, filled_B), np.array([4, 0, 3])
    np.testing.assert_array_equal(jax.jit(kernel)(q, prompt, stale, filled_B), whole)
    fewer = jax.tree.map(lambda x: x[kept], (q, prompt, stale, filled_B))
    np.testing.assert_array_equal(jax.jit(kernel)(*fewer), whole[kept])


@pytest.mark.parametrize("kernel, name, platform, num_slots", [
    (TRITON, "llama", "gpu", 3), (TRITON, "qwen3", "cpu", 3), (MOSAIC, "llama", "tpu", 8), (MOSAIC, "llama", "tpu", 3)])
def test_rollouts_are_those_of_plain_attention(kernel, name, platform, num_slots):
    """With refilled slots, several prompts, and completions that span two blocks."""
    config = VARIANTS[name]
    asked = dict(params=random_params(config), config=config, eos_ids=(12,), max_new_tokens=80, seed=1)
    reference = draw_rollouts(**asked, num_slots=8)
    out = draw_rollouts(**asked, num_slots=num_slots, layout=model.LAYOUTS[platform], attend=kernel)
    assert reference.completion_mask.sum(-1).max() > 64
    np.testing.assert_array_equal(out.completions, reference.completions)
    np.testing.assert_array_equal(out.completion_mask, reference.completion_mask)
    np.testing.assert_allclose(out.sampler_logprobs, reference.sampler_logprobs, atol=1e-5)
