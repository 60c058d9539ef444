"""The update: what it learns from, what it ignores, and that spreading the work changes nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlvr_jax import adapters, batches, learner, logprobs, parallel
from rlvr_jax.grpo import GRPOConfig

from fixtures import TINY, UPDATE, assert_close, fresh_state, make_batch, random_params, tiny_params

PARAMS = tiny_params()


def shard_for_one(batch):
    return jax.tree.map(lambda x: x[0], batches.shard_batch(batch, 1, 1)[0])


@functools.cache
def compiled(config):
    return jax.jit(learner.make_update(TINY, config.update, config.loss, learner.make_optimizer(config)))


def plain_update(batch, config=UPDATE):
    """One device, plain jit: the definition the mapped update must equal."""
    state, metrics = compiled(config)(fresh_state(config)[1], shard_for_one(batch), jnp.int32(1))
    return jax.tree.map(np.asarray, state.params), {name: float(x) for name, x in metrics.items()}


@functools.cache
def mapped_update():
    return learner.map_update(TINY, UPDATE.update, UPDATE.loss, learner.make_optimizer(UPDATE), UPDATE.loop.seed)


def test_two_devices_and_a_sharded_jit_give_the_same_step():
    """test_objectives.py has micro-batches."""
    batch = make_batch()
    reference, metrics = plain_update(batch)
    assert parallel.device_count() == 2
    mapped, mapped_metrics = mapped_update()(parallel.place_state(fresh_state()[1]), batch, 1)
    assert_close(parallel.fetch_state(mapped.params), reference)
    for name, value in metrics.items():
        np.testing.assert_allclose(mapped_metrics[f"train/{name}"], value, rtol=1e-4, atol=1e-6)

    rows = NamedSharding(Mesh(jax.devices(), ("data",)), PartitionSpec(None, "data"))
    whole = shard_for_one(batch)
    spread = jax.device_put(whole.replace(prompts=None), rows).replace(prompts=whole.prompts)
    sharded, _ = compiled(UPDATE)(fresh_state()[1], spread, jnp.int32(1))
    assert_close(jax.tree.map(np.asarray, sharded.params), reference)


@pytest.mark.parametrize("objective", ["dr_grpo", pytest.param("gspo", marks=pytest.mark.slow)])
def test_padding_that_is_not_computed_changes_no_step(objective, monkeypatch):
    """16 completions of up to 80 tokens: micro-batches of like length are cut to 10, 20, 40 or 80 tokens."""
    batch = make_batch(drawn={"eos_ids": (12,), "max_new_tokens": 80})
    config = UPDATE.with_flags(objective=objective, grad_accumulation=4)
    made, lengths = [], batch.completion_mask.sum(-1)
    assert lengths.min() < 20 and lengths.max() > 40
    assert batches.bucket_lengths(80) == [10, 20, 40, 80] and batches.bucket_lengths(63) == [63]
    for longest in (batches.LONG, 1000):
        monkeypatch.setattr(batches, "LONG", longest)
        optimizer, state = fresh_state(config)
        update = learner.map_update(TINY, config.update, config.loss, optimizer, 0)
        state, metrics = update(parallel.place_state(state), batch, 1)
        made.append((parallel.fetch_state(optax.tree.get(state.opt_state, "mu")), metrics))  # a tenth of the gradient
    assert_close(made[0][0], made[1][0], atol=1e-6)
    for name, value in made[1][1].items():
        np.testing.assert_allclose(made[0][1][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("groups", [(0, 0, 0, 0), (0, 2, 1, 0)])
def test_padding_that_is_not_computed_changes_no_log_probability(groups):
    """Of 16 completions of up to 80 tokens, on two devices, against whole rows: the same numbers in the same places."""
    batch = make_batch(groups=groups, drawn={"eos_ids": (12,), "max_new_tokens": 80})
    config = UPDATE.with_flags(grad_accumulation=4)
    if groups == (0, 0, 0, 0):
        pieces = batches.shard_batch(batch, 2, 4)[0].completion_mask.sum(-1)
        assert (pieces.max((0, 2))[:-1] <= pieces.min((0, 2))[1:]).all() and pieces.max((0, 2))[0] <= 20
    found = learner.map_statistics(TINY, config.update)(parallel.place_state(PARAMS), batch)
    wanted = jax.jit(logprobs.completion_logprobs, static_argnums=(1, 4))(
        PARAMS, TINY, batch, config.update.temperature, logprobs.Scoring(self_certainty=True))
    mask = batch.completion_mask
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one[mask], np.asarray(other)[mask], atol=1e-5)
        assert (one[mask.sum(-1) <= 20].any(-1)).all() and (one == 0).any() and not np.asarray(other == 0).any()


def test_masked_tokens_have_no_influence_at_all():
    batch = make_batch()
    garbage = np.random.default_rng(1)

    def spoil(x, values):
        return np.where(batch.completion_mask, x, values.astype(x.dtype))

    spoiled = batch.replace(completions=spoil(batch.completions, garbage.integers(0, 31, batch.completions.shape)),
                            sampler_logprobs=spoil(batch.sampler_logprobs, np.full(batch.completions.shape, np.nan)),
                            ref_logprobs=spoil(batch.ref_logprobs, np.full(batch.completions.shape, 1e3)))
    (params, metrics), (expected, expected_metrics) = plain_update(spoiled), plain_update(batch)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert metrics == expected_metrics


def test_dead_groups_and_a_kl_without_a_weight_give_exactly_no_gradient():
    """With a weight of 0, a reference of NaN would still make all parameters NaN."""
    batch = make_batch(advantages=np.zeros(16, np.float32), ref_logprobs=np.full((16, 12), np.nan, np.float32))
    params, metrics = plain_update(batch, UPDATE.with_flags(kl_coef=0.0, entropy_coef=0.0))
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
    assert metrics["grad_norm"] == 0


def test_what_devices_exchange_in_a_divided_update_has_one_order():
    """Every exchange depends on the loops that gather weights, or they on it; else the order could differ by device."""
    config = UPDATE.with_flags(trainable="lora")
    optimizer, params = learner.make_optimizer(config), adapters.add(config.adapter, tiny_params(), 0)
    state = parallel.place_state(learner.init_state(params, optimizer, False), divide=True)
    update = learner.make_update(TINY, config.update, config.loss, optimizer, parallel.AXIS)
    first = jax.tree.map(lambda x: x[0], (state, batches.shard_batch(make_batch(), 2, 1)[0]))
    jaxpr = jax.make_jaxpr(update, axis_env=[(parallel.AXIS, 2)])(*first, 1).jaxpr
    exchanges = ("psum", "pmax", "all_gather", "reduce_scatter")
    found = [i for i, eqn in enumerate(jaxpr.eqns) if any(f"{name}[" in str(eqn) for name in exchanges)]
    gathers = {i for i in found if "all_gather[" in str(jaxpr.eqns[i])}
    needs, origin = [], {}  # the equations that each one depends on; the equation of each value
    for i, eqn in enumerate(jaxpr.eqns):
        needs.append({i}.union(*(needs[origin[x]] for x in map(id, eqn.invars) if x in origin)))
        origin |= {id(x): i for x in eqn.outvars}
    assert gathers and len(found) > len(gathers)
    assert all(g in needs[i] or i in needs[g] for i in found for g in gathers)


def test_the_first_update_is_on_policy_and_later_minibatches_are_not():
    _, metrics = plain_update(make_batch())
    assert metrics["clip_fraction"] == 0 and metrics["logprob_gap_max"] < 5e-5 and metrics["ratio_outside"] == 0
    config = UPDATE.with_flags(num_minibatches=2, num_passes=2, learning_rate=0.05)
    optimizer, state = fresh_state(config)
    batch = make_batch()
    state = parallel.place_state(state)
    old = learner.map_statistics(TINY, config.update, 1)(state.params, batch)[0]
    np.testing.assert_allclose(old[batch.completion_mask], batch.sampler_logprobs[batch.completion_mask], atol=5e-5)
    update = learner.map_update(TINY, config.update, config.loss, optimizer, config.loop.seed)
    _, metrics = update(state, batch.replace(old_logprobs=old), 1)
    assert metrics["train/clip_fraction"] > 0.02 and metrics["train/logprob_gap_max"] < 5e-5


def test_a_gap_between_sampler_and_learner_is_reported_raw_from_every_device():
    """Rows 8 to 15 are those of the second device."""
    batch, shift = make_batch(), np.where(np.arange(16) >= 8, 0.5, 0).astype(np.float32)[:, None]
    shifted = batch.replace(sampler_logprobs=batch.sampler_logprobs + shift)
    _, metrics = mapped_update()(parallel.place_state(fresh_state()[1]), shifted, 1)
    share = batch.completion_mask[8:].sum() / batch.completion_mask.sum()
    for name, wanted in {"logprob_gap_max": 0.5, "ratio_outside": share, "logprob_gap_mean": 0.5 * share}.items():
        np.testing.assert_allclose(metrics[f"train/{name}"], wanted, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_tokens_that_float16_has_no_number_for_are_counted(dtype):
    """Embeddings of 1e5 leave its range; the usual ones do not. Other types need no count."""
    shape, (optimizer, state) = dataclasses.replace(TINY, dtype=dtype), fresh_state()
    update = jax.jit(learner.make_update(shape, UPDATE.update, UPDATE.loss, optimizer))
    far = state.replace(params=state.params | {"embed": state.params["embed"] * 1e7})
    overflows = [update(each, shard_for_one(make_batch()), jnp.int32(1))[1].get("overflow") for each in (state, far)]
    assert overflows == ([0, 1] if dtype == "float16" else [None, None])


def test_the_first_moment_may_have_16_bits_and_the_second_keeps_32():
    steps = {}
    for dtype in ("bfloat16", "float32"):
        optimizer = learner.make_optimizer(UPDATE.with_flags(first_moment_dtype=dtype))
        steps[dtype], state = jax.jit(optimizer.update)(PARAMS, optimizer.init(PARAMS), PARAMS)  # as their own gradient
        for name, wanted in (("mu", dtype), ("nu", "float32")):
            assert {x.dtype for x in jax.tree.leaves(optax.tree.get(state, name))} == {jnp.dtype(wanted)}
    assert_close(steps["bfloat16"], steps["float32"], 1e-2 * UPDATE.optimizer.learning_rate)


@pytest.mark.parametrize("max_logits", [31, 31 * 7, 2**24])
def test_chunked_logprobs_equal_a_plain_log_softmax(max_logits):
    rng = np.random.default_rng(0)
    hidden, targets = rng.standard_normal((3, 5, 16)).astype(np.float32), rng.integers(0, 31, (3, 5))
    got, entropy = logprobs.token_logprobs(PARAMS, jnp.array(hidden), jnp.array(targets), 0.6, max_logits)
    logits = (hidden.astype(np.float64) @ np.asarray(PARAMS["embed"], np.float64).T) / 0.6
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(got, np.take_along_axis(expected, targets[..., None], -1)[..., 0], atol=2e-5)
    np.testing.assert_allclose(entropy, -(np.exp(expected) * expected).sum(-1), atol=2e-5)


def sizes(jaxpr):
    """Elements of every array in a jaxpr and the jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield from (int(np.prod(v.aval.shape)) for v in equation.outvars if hasattr(v.aval, "shape"))
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from sizes(inner)


def test_no_array_of_all_logits_exists_in_the_update():
    vocab = 5000
    shape, config = dataclasses.replace(TINY, vocab_size=vocab), UPDATE.with_flags(max_logits=4 * vocab)
    batch, optimizer = make_batch(), learner.make_optimizer(config)
    state = jax.eval_shape(lambda: learner.init_state(random_params(shape), optimizer, False))
    update = learner.make_update(shape, config.update, config.loss, optimizer)
    jaxpr = jax.make_jaxpr(update)(state, shard_for_one(batch), jnp.int32(1))
    assert max(sizes(jaxpr.jaxpr)) <= max(vocab * shape.d_model, 4 * vocab) < batch.completions.size * vocab


def test_the_state_is_donated():
    state = parallel.place_state(fresh_state()[1])
    before = state.params["embed"]
    after, _ = mapped_update()(state, make_batch(), 1)
    assert before.is_deleted() and not after.params["embed"].is_deleted()


def test_gradients_are_clipped_by_their_global_norm():
    optimizer = learner.make_optimizer(UPDATE.with_flags(max_grad_norm=0.5))
    big, small = {"a": jnp.full(4, 100.0)}, {"a": jnp.full(4, 0.25)}
    changes = [optimizer.update(g, optimizer.init(g), g)[1] for g in (big, small)]
    moments = [optax.tree_utils.tree_get(state, "mu")["a"] for state in changes]
    np.testing.assert_allclose(moments[0], moments[1], rtol=1e-5)


def test_the_largest_gap_of_a_step_is_that_of_all_its_minibatches(monkeypatch):
    """Everything else is a mean over the updates."""
    gaps = iter([0.1, 0.5])
    monkeypatch.setattr(learner.parallel, "map_devices", lambda *_, **__: lambda state, rows, steps: (
        state, {"logprob_gap_max": (gap := next(gaps)), "logprob_gap_mean": gap}))
    monkeypatch.setattr(learner.parallel, "fetch_state", lambda metrics: metrics)
    update = learner.map_update(TINY, UPDATE.with_flags(num_minibatches=2).update, UPDATE.loss, None, 0)
    _, metrics = update(None, make_batch(), 1)
    assert metrics == {"train/logprob_gap_max": 0.5, "train/logprob_gap_mean": pytest.approx(0.3)}


def test_two_updates_are_those_of_adamw():
    """By the published formula (arXiv 1711.05101), with coefficients that are not the defaults."""
    rate, b1, b2, decay = 0.1, 0.8, 0.6, 0.3
    optimizer = learner.make_optimizer(GRPOConfig.from_flags(learning_rate=rate, adam_b1=b1, adam_b2=b2,
                                                          weight_decay=decay, max_grad_norm=1e9))
    x, m, v = np.array([1.0, -2.0]), 0, 0
    params, wanted = jnp.array(x, jnp.float32), x
    state = optimizer.init(params)
    for t, gradient in enumerate(np.array([[0.5, 3.0], [-2.0, 0.1]]), 1):
        change, state = optimizer.update(jnp.array(gradient, jnp.float32), state, params)
        params = params + change
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        wanted = wanted - rate * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + 1e-8) + decay * wanted)
    np.testing.assert_allclose(params, wanted, rtol=1e-5)
