"""The transformer: causality, cached decoding against the full pass, the attention of a shared prefix."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr_jax import model, ops

from fixtures import PROMPTS, TINY, VARIANTS, full_logits, padded, random_params

prefill = jax.jit(model.prefill, static_argnums=(1, 3))
decode_step = jax.jit(model.decode_step, static_argnums=(1, 5))


@pytest.fixture(params=VARIANTS)
def variant(request):
    config = VARIANTS[request.param]
    return config, random_params(config)


def test_no_position_sees_a_later_token():
    params, tokens = random_params(TINY), np.arange(6)
    logits = full_logits(params, TINY, tokens)
    for place in range(6):
        other = full_logits(params, TINY, np.where(tokens == place, 9, tokens))
        assert (logits != other).any(-1).tolist() == [False] * place + [True] * (6 - place)


@pytest.mark.parametrize("prompts, index", [(PROMPTS[:1], [0, 0, 0]), (PROMPTS, [2, 0, 1])], ids=["shared", "ragged"])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_cached_decoding_equals_the_full_pass_even_in_a_refilled_slot(variant, prompts, index, platform):
    config, params = variant
    prefix, index = prefill(params, config, padded(prompts)), np.array(index)
    cache = model.init_cache(config, 3, 8, model.LAYOUTS[platform])
    rng = np.random.default_rng(0)
    fed, steps = [[] for _ in index], np.zeros(3, np.int32)
    for time in range(7):
        if time == 4:  # row 0 starts another completion on top of its old cache
            fed[0], steps[0], index = [], 0, np.where(np.arange(3) == 0, index[1], index)
        tokens = np.where(steps == 0, prefix.last_tokens[index], rng.integers(0, config.vocab_size, 3)).astype(np.int32)
        for row in range(3):
            fed[row].append(tokens[row])
        context = model.unroll_layers(params, prefix, jnp.array(index))
        logits, cache = decode_step(params, config, context, model.Inputs(jnp.array(tokens), jnp.array(steps)), cache)
        for row in range(3):
            expected = full_logits(params, config, prompts[index[row]][:-1] + fed[row])[-1]
            np.testing.assert_allclose(logits[row], expected, atol=2e-5)
        steps += 1


@pytest.mark.parametrize("platform", model.LAYOUTS)
def test_decoding_across_cache_buckets_equals_the_full_pass(platform):
    config, params = TINY, random_params(TINY)
    prefix = prefill(params, config, padded([[3, 4]]))
    context = model.unroll_layers(params, prefix, jnp.zeros(1, jnp.int32))
    cache = model.init_cache(config, 1, 140, model.LAYOUTS[platform])
    tokens = np.random.default_rng(1).integers(0, 31, 140)
    tokens[0] = 4
    expected = full_logits(params, config, [3, *tokens])[1:]
    for i, token in enumerate(tokens):
        inputs = model.Inputs(jnp.full(1, token, jnp.int32), jnp.full(1, i, jnp.int32))
        logits, cache = decode_step(params, config, context, inputs, cache)
        np.testing.assert_allclose(logits[0], expected[i], atol=5e-5)


def test_a_completion_with_a_prefix_equals_the_whole_row(variant):
    config, params = variant
    rows = [[4, 6, 1], [8, 8, 2]]
    prefix = model.prefill(params, config, padded(PROMPTS, width=11, fill=30))  # padding that would show
    index = jnp.array([2, 1])
    inputs = jnp.array([[PROMPTS[i][-1], *row] for i, row in zip((2, 1), rows)])
    hidden, _ = model.forward(params, config, inputs, prefix, index)
    for i, row, logits in zip((2, 1), rows, model.head(params, hidden)):
        whole = full_logits(params, config, PROMPTS[i] + row)[len(PROMPTS[i]) - 1:]
        np.testing.assert_allclose(logits, whole, atol=2e-5)


def test_gradients_flow_into_the_shared_prompt():
    config, params = VARIANTS["untied"], random_params(VARIANTS["untied"])

    def loss(embed):
        p = params | {"embed": embed}
        prefix = model.prefill(p, config, padded([[5, 9, 2]]))
        hidden, _ = model.forward(p, config, jnp.array([[2, 4]]), prefix, jnp.zeros(1, jnp.int32))
        return model.head(p, hidden)[0, -1, 0]

    by_prefix = jax.jit(jax.grad(loss))(params["embed"])
    whole = jax.grad(lambda e: full_logits(params | {"embed": e}, config, [5, 9, 2, 4])[-1, 0])(params["embed"])
    np.testing.assert_allclose(by_prefix, whole, atol=1e-5)
    assert np.abs(by_prefix[5]).max() > 0


def test_rematerialisation_changes_no_gradient():
    def loss(params, remat):
        hidden, _ = model.forward(params, TINY, jnp.array([[1, 2, 3]]), how=model.ForwardOptions(remat=remat))
        return jnp.sum(hidden[..., 0])

    kept, recomputed = (jax.grad(loss)(random_params(TINY), remat) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), kept, recomputed)


def test_an_edit_of_the_residual_stream_acts_alike_in_both_passes():
    config, params = TINY, random_params(TINY)
    direction = jax.random.normal(jax.random.key(5), (1, 1, 16))

    def edit(layer, x, positions):  # layer 1, from position 2 on
        return x + jnp.where((layer == 1) & (positions >= 2), 1.0, 0.0)[..., None] * direction

    prefix = prefill(params, config, padded([[5, 9]]), model.ForwardOptions(edit_residual=edit))
    cache, context = model.init_cache(config, 1, 4), model.unroll_layers(params, prefix, jnp.zeros(1, jnp.int32))
    for i, token in enumerate([9, 3, 7]):
        inputs = model.Inputs(jnp.array([token]), jnp.full(1, i, jnp.int32))
        logits, cache = decode_step(params, config, context, inputs, cache, edit)
    edited, plain = full_logits(params, config, [5, 9, 3, 7], edit)[-1], full_logits(params, config, [5, 9, 3, 7])[-1]
    np.testing.assert_allclose(logits[0], edited, atol=2e-5)
    assert np.abs(edited - plain).max() > 0.1


@pytest.mark.parametrize("dtype, near", [("bfloat16", 0.2), ("float16", 0.02)])
def test_16_bits_compute_in_16_bits_and_stay_near_float32(dtype, near):
    config = dataclasses.replace(TINY, dtype=dtype)
    params = random_params(TINY)
    hidden, _ = model.forward(params, config, jnp.array([[1, 2, 3]]))
    assert hidden.dtype == dtype and model.head(params, hidden).dtype == jnp.float32
    exact = full_logits(params, TINY, [1, 2, 3])
    assert 0 < np.abs(model.head(params, hidden)[0] - exact).max() < near


def test_a_product_of_the_feed_forward_may_leave_float16s_range():
    """Here it reaches 340,000, five times the largest float16; forward and backward."""
    config, params = dataclasses.replace(TINY, dtype="float16", num_layers=1), random_params(TINY)
    layers = {name: x[:1] for name, x in params["layers"].items()}
    params["layers"] = layers | {"gate": layers["gate"] * 400, "up": layers["up"] * 400, "down": layers["down"] / 1e4}

    def logits(params, config):
        return model.head(params, model.forward(params, config, jnp.array([[1, 2, 3]]))[0])

    h = ops.rms_norm(params["embed"][None, 1:4], layers["mlp_norm"][0], 1e-6)
    product, _ = ops.swiglu(*(ops.linear(h, params["layers"][name][0]) for name in ("gate", "up")))
    assert 1e5 < np.abs(product).max()
    wide = dataclasses.replace(config, dtype="float32")
    np.testing.assert_allclose(logits(params, config), logits(params, wide), atol=0.03)
    ours, exact = (jax.grad(lambda p: logits(p, c).var())(params)["layers"] for c in (config, wide))
    for name in ("gate", "up", "down", "q"):
        np.testing.assert_allclose(ours[name], exact[name], atol=0.02 * np.abs(exact[name]).max())


def test_initial_parameters_have_the_spread_of_gpt_2():
    config = dataclasses.replace(TINY, num_layers=8, d_model=64, d_ff=128, vocab_size=512, tie_embeddings=False)
    params = jax.jit(model.init_params, static_argnums=1)(jax.random.key(0), config)
    spread = {name: np.std(x) for name, x in (params["layers"] | {"embed": params["embed"]}).items()}
    for name in ("embed", "q", "k", "v", "gate", "up", "o", "down"):  # 4 = sqrt(2 x 8 layers)
        assert spread[name] == pytest.approx(0.02 / (4 if name in ("o", "down") else 1), rel=0.03), name
