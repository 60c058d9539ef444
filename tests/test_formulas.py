"""The update against formulas written independently in NumPy: loss, gradient, metrics, schedule, minibatches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlvr_jax import batches, learner, parallel

from fixtures import PROMPTS, TINY, UPDATE, fresh_state, full_logits, make_batch, tiny_params

PARAMS = tiny_params()
DESCENT = optax.sgd(1.0)  # moves parameters by the gradient itself
WEIGHTED = UPDATE.with_flags(kl_coef=0.5, entropy_coef=0.3)


def off_policy():
    """A batch whose old log-probabilities are neither the policy's nor the sampler's, and which has a reference."""
    batch = make_batch()
    noise = np.random.default_rng(5).standard_normal(batch.sampler_logprobs.shape).astype(np.float32)
    return batch.replace(old_logprobs=batch.sampler_logprobs + 0.3 * noise)


def scores(batch, params=PARAMS):
    """(log-probability, entropy) of every completion token at temperature 0.8, from the logits of whole rows."""
    chosen, entropy = np.zeros((2, *batch.completions.shape))
    for b, (prompt, ids) in enumerate(zip(batch.prompt_index, batch.completions)):
        logits = np.asarray(full_logits(params, TINY, PROMPTS[prompt] + ids.tolist()), np.float64) / 0.8
        logprobs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[len(PROMPTS[prompt]) - 1 : -1]
        chosen[b], entropy[b] = logprobs[np.arange(len(ids)), ids], -(np.exp(logprobs) * logprobs).sum(-1)
    return chosen, entropy


@functools.cache
def compiled(config):
    return jax.jit(learner.make_update(TINY, config.update, config.loss, DESCENT))


def updated(batch, config=WEIGHTED) -> tuple:
    """(parameters, metrics) after one step of descent."""
    laid = jax.tree.map(lambda x: x[0], batches.shard_batch(batch, 1, 1)[0])
    state, metrics = compiled(config)(learner.init_state(PARAMS, DESCENT, False), laid, jnp.int32(1))
    return state.params, metrics


def expected(batch, objective="one_shot", low=0.2, high=0.2, params=PARAMS) -> dict:
    """The loss under WEIGHTED's coefficients, and the metrics: means over the completion tokens."""
    mask, advantages = batch.completion_mask, batch.advantages[:, None].astype(np.float64)
    lengths = mask.sum(-1)
    policy, entropy = scores(batch, params)
    log_ratio = policy - batch.old_logprobs
    if objective == "gspo":  # the mean over each completion
        log_ratio = np.repeat(np.where(mask, log_ratio, 0).sum(-1, keepdims=True) / lengths[:, None], mask.shape[1], 1)
    ratio = np.exp(log_ratio)
    terms = -np.minimum(ratio * advantages, np.clip(ratio, 1 - low, 1 + high) * advantages)
    distance = batch.ref_logprobs - policy
    kl = np.exp(distance) - distance - 1
    rows = np.where(mask, terms + 0.5 * kl - 0.3 * entropy, 0).sum(-1)
    loss = np.mean(rows / lengths) if objective == "gspo" else np.sum(rows) / lengths.sum()
    gap = batch.old_logprobs - batch.sampler_logprobs
    means = {"entropy": entropy, "kl": kl, "clip_fraction": (ratio < 1 - low) | (ratio > 1 + high),
             "logprob_gap_mean": np.abs(gap), "ratio_outside": np.abs(np.exp(gap) - 1) > 0.1}
    return {"loss": loss, "logprob_gap_max": np.abs(gap[mask]).max()} | {
        name: np.mean(values[mask]) for name, values in means.items()}


@pytest.mark.parametrize("objective, low, high", [
    ("one_shot", 0.2, 0.2), ("one_shot", 0.05, 0.1), ("gspo", 0.02, 0.03)])
def test_loss_and_metrics(objective, low, high):
    """test_objectives.py has every objective."""
    batch = off_policy()
    _, found = updated(batch, WEIGHTED.with_flags(objective=objective, clip_low=low, clip_high=high))
    wanted = expected(batch, objective, low, high)
    assert found.keys() == wanted.keys() | {"grad_norm"}
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=2e-6, err_msg=name)


def test_the_gradient_is_the_slope_of_the_loss():
    """By central differences along the gradient itself, where the slope is its norm."""
    batch = off_policy()
    after, metrics = updated(batch)
    gradient = jax.tree.map(lambda old, new: np.float64(old) - np.float64(new), PARAMS, after)
    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-3)

    def loss(distance):
        moved = jax.tree.map(lambda x, g: jnp.float32(np.float64(x) + distance * g / norm), PARAMS, gradient)
        return expected(batch, params=moved)["loss"]

    np.testing.assert_allclose((loss(1e-3) - loss(-1e-3)) / 2e-3, norm, rtol=0.01)


def test_every_pass_of_every_step_is_cut_anew(monkeypatch):
    """Two passes in two minibatches: each pass has every row once, and no two have the same minibatches."""
    config = UPDATE.with_flags(num_passes=2, num_minibatches=2)
    seen, shard_batch = [], batches.shard_batch
    monkeypatch.setattr(batches, "shard_batch", lambda part, *sizes: (
        seen.append(part.advantages) or shard_batch(part, *sizes)))
    monkeypatch.setattr(learner, "make_update", lambda *_: lambda state, *_: (state, {"loss": 0.0}))
    optimizer, state = fresh_state(config)
    batch = make_batch(advantages=np.arange(16, dtype=np.float32))
    update = learner.map_update(TINY, config.update, config.loss, optimizer, config.loop.seed)
    state, _ = update(parallel.place_state(state), batch, 1)
    update(state, batch, 2)
    passes = np.sort(np.reshape(seen, (4, 2, 8)), -1)  # the order within a minibatch does not matter
    assert (np.sort(passes.reshape(4, 16), -1) == np.arange(16)).all()
    assert len({frozenset(map(tuple, halves)) for halves in passes}) == 4


@pytest.mark.parametrize("schedule, num_minibatches, last", [
    ("constant", 1, [1, 1, 1]), ("linear", 1, [1, 0.55, 0.1]), ("linear", 3, [1, 0.55, 0.1]),
    ("cosine", 2, [1, 0.55, 0.1])])
def test_a_schedule_follows_the_warm_up_for_all_updates_of_a_run(schedule, num_minibatches, last):
    """--num_steps counts batches; each is learnt from in passes x minibatches updates."""
    config = UPDATE.with_flags(learning_rate=1.0, warmup_steps=4, schedule=schedule, final_lr_fraction=0.1,
                               num_steps=12, num_passes=2, num_minibatches=num_minibatches, adam_b1=0.0, adam_b2=0.0)
    optimizer, params, updates = learner.make_optimizer(config), jnp.zeros(1), 24 * num_minibatches
    state, rates = optimizer.init(params), []
    for _ in range(updates + 1):  # with both decays at 0, AdamW moves by the learning rate itself
        change, state = optimizer.update(jnp.ones(1), state, params)
        rates.append(float(-change[0]))
    np.testing.assert_allclose(rates[:4], [0, 0.25, 0.5, 0.75], atol=1e-3)
    np.testing.assert_allclose([rates[4], rates[updates // 2 + 2], rates[updates]], last, atol=1e-3)
