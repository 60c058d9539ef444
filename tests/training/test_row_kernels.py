"""Rows of more than 256 tokens: attention in chunks of queries and by kernels, against that of short rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr_jax import logprobs, ops, sampler
from rlvr_jax.errors import UserError
from rlvr_jax.training import kernels

from fixtures import TINY, as_batch, padded, random_params


def segments_of(rng, rows: int, t: int, prompts, dtype) -> tuple:
    """Queries of T positions, 4 heads on 2, and their segments: the prompts' (a shared one without an axis of rows)."""
    def draw(*shape):
        return jnp.array(rng.standard_normal(shape), dtype)

    own = (draw(rows, t, 2, 8), draw(rows, t, 2, 8), jnp.tril(jnp.ones((rows, t, t), bool)))
    if prompts is None:
        return draw(rows, t, 4, 8), [own]
    shape, lengths = prompts
    seen = np.broadcast_to((np.arange(shape[-1]) < np.array(lengths)[:, None])[:, None], (rows, t, shape[-1]))
    return draw(rows, t, 4, 8), [(draw(*shape, 2, 8), draw(*shape, 2, 8), jnp.array(seen)), own]


SEEN = {"no prompt": None, "shared": ((9,), [5, 5]), "own": ((2, 9), [9, 3]), "one empty": ((2, 9), [0, 4])}


@pytest.mark.parametrize("name, t, dtype", [*(("plain", t, "float32") for t in (63, 64, 65, 150)),
                                            ("plain", 150, "bfloat16"), ("splash", 150, "float32"),
                                            ("triton", 150, "float32"), ("cudnn", 150, "float32")])
@pytest.mark.parametrize("prompts", SEEN)
def test_long_rows_attend_as_short_ones_do(name, t, dtype, prompts):
    """In chunks of 64 queries, and by kernels, interpreted (cuDNN's place is taken by XLA): values and gradients."""
    atol = 3e-6 if dtype == "float32" else 0.03
    how = {"plain": dict(chunk=64), "cudnn": dict(implementation="xla")}.get(name, dict(interpret=True))
    rng = np.random.default_rng(t)
    q, segments = segments_of(rng, 2, t, SEEN[prompts], dtype)
    weights = rng.standard_normal((2, t, 32)).astype("f4")

    def loss(attend, q, arrays):
        out = attend(q, [(*kv, mask) for kv, (*_, mask) in zip(arrays, segments)]).astype("f4")
        return jnp.sum(out * weights), out

    long = functools.partial(ops.ATTENTION[name].rows, **how)
    mine, theirs = (jax.jit(jax.grad(functools.partial(loss, attend), (0, 1), has_aux=True))(
        q, [kv[:2] for kv in segments]) for attend in (long, ops.attention))
    for one, other in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(np.array(one, "f4"), np.array(other, "f4"), atol=atol * (1 + np.abs(other).max()))


def test_the_sampler_and_the_policy_agree_on_600_tokens():
    config, prompts = dataclasses.replace(TINY, max_seq_len=640), padded([[5, 9, 2]])
    rows = sampler.Rows(jnp.zeros(2, jnp.int32), sampler.rollout_keys(0, 1, jnp.arange(2)))
    params, endless = random_params(config), sampler.Decoding((31,), 600)  # no token ends a completion
    out = jax.jit(sampler.sample, static_argnums=(1, 4))(params, config, prompts, rows, endless)
    assert out.completion_mask.sum() == 1200
    ours, _ = jax.jit(logprobs.completion_logprobs, static_argnums=1)(params, config, as_batch(out, [[5, 9, 2]]), 1.0)
    assert np.abs(np.where(out.completion_mask, ours - out.sampler_logprobs, 0)).max() < 1e-4


@pytest.mark.parametrize("name, dtype, said", [("splash", "bfloat16", "a kernel for a TPU, and JAX runs on a CPU"),
                                               ("cudnn", "float32", "--dtype=bfloat16")])
def test_a_kernel_that_cannot_run_here_is_refused(name, dtype, said):
    kernels.check("auto", dtype)
    with pytest.raises(UserError, match=said):
        kernels.check(name, dtype)
