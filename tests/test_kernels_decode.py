"""The kernels that decode, run by Pallas's interpreter: equal to plain attention, and of each row alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr_jax import kernels_decode, model

from fixtures import VARIANTS, draw_rollouts, random_params

LENGTHS, W, S, K, R, E = (1, 63, 64, 65, 513, 1024), 1024, 5, 2, 3, 16
TRITON, MOSAIC = (functools.partial(x, interpret=True) for x in (kernels_decode.triton, kernels_decode.mosaic))


def operands(dtype: str, shared: bool) -> tuple:
    """Random queries, a prompt that all rows share or a prompt of each, the first of them
    empty; the cache, and how much of it each row has filled."""
    b, rng = len(LENGTHS), np.random.default_rng(0)
    q, keys, values, prompt_keys, prompt_values = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in [
        (b, 1, K * R, E), *[(b, K, W, E)] * 2, *[((S, K, E) if shared else (b, S, K, E))] * 2])
    seen_B = np.full(b, 4) if shared else np.arange(b)
    mask_Bx1xS = jnp.asarray(np.arange(S) < seen_B[:, None])[:, None]
    return q, (prompt_keys, prompt_values, mask_Bx1xS), (keys, values), jnp.array(LENGTHS, jnp.int32)


@pytest.mark.parametrize("kernel", [TRITON, MOSAIC])
@pytest.mark.parametrize("dtype, shared", [("float32", True), ("float32", False), ("bfloat16", True)])
def test_a_row_attends_to_its_prompt_and_to_what_it_has_filled(kernel, dtype, shared):
    given = operands(dtype, shared)
    q, (*prompt, mask), cache, lengths = jax.tree.map(lambda x: np.asarray(x, np.float64), given)
    expected = np.zeros((len(LENGTHS), K * R, E))
    for b, head in np.ndindex(expected.shape[:2]):
        parts = [(p if shared else p[b])[: int(mask[b].sum()), head // R] for p in prompt]
        keys, values = (np.concatenate([part, x[b, head // R, : LENGTHS[b]]]) for part, x in zip(parts, cache))
        weights = np.exp(keys @ q[b, 0, head] / np.sqrt(E))
        expected[b, head] = weights @ values / weights.sum()
    out = np.asarray(jax.jit(kernel)(*given), np.float64)
    error = np.abs(out.reshape(expected.shape) - expected).max()
    assert error < (1e-6 if dtype == "float32" else 2**-8 * np.abs(expected).max())


@pytest.mark.parametrize("kernel", [TRITON, MOSAIC])
def test_a_row_is_the_same_bit_for_bit_beside_others_and_after_others(kernel):
    """Fewer slots in another order, and a slot that was refilled: the cache beyond its length is that of others."""
    q, prompt, cache, lengths = operands("float32", False)
    kept = np.array([4, 0, 3])
    stale = [jnp.where(jnp.arange(W)[None, None, :, None] < lengths[:, None, None, None], x, 1e4) for x in cache]
    whole = jax.jit(kernel)(q, prompt, cache, lengths)
    np.testing.assert_array_equal(jax.jit(kernel)(q, prompt, tuple(stale), lengths), whole)
    fewer = jax.tree.map(lambda x: x[kept], (q, prompt, tuple(stale), lengths))
    np.testing.assert_array_equal(jax.jit(kernel)(*fewer), whole[kept])


@pytest.mark.parametrize("kernel, name, platform, num_slots", [
    (TRITON, "llama", "gpu", 3), (TRITON, "qwen3", "cpu", 3), (MOSAIC, "llama", "tpu", 8), (MOSAIC, "llama", "tpu", 3)])
def test_rollouts_are_those_of_plain_attention(kernel, name, platform, num_slots):
    """With refilled slots, several prompts, and completions that end in another block than they began."""
    config = VARIANTS[name]
    asked = dict(params=random_params(config), config=config, eos_ids=(12,), max_new_tokens=80, seed=1)
    reference = draw_rollouts(**asked, num_slots=8)
    out = draw_rollouts(**asked, num_slots=num_slots, layout=model.LAYOUTS[platform], attend=kernel)
    assert reference.completion_mask.sum(-1).max() > 64
    np.testing.assert_array_equal(out.completions, reference.completions)
    np.testing.assert_array_equal(out.completion_mask, reference.completion_mask)
    np.testing.assert_allclose(out.sampler_logprobs, reference.sampler_logprobs, atol=1e-5)
