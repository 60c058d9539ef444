"""Advantages by hand, losses and gradients against formulas in NumPy, and the properties their papers promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlvr_jax import grpo, objectives
from rlvr_jax.grpo import GRPOConfig, Scored
from rlvr_jax.objectives import OBJECTIVES

from fixtures import random_rollouts, table_loss_and_gradient

REWARDS = np.array([[1, 0, 0, 1, 0, 0, 0, 0]], np.float32)


@pytest.mark.parametrize("fn, right, wrong", [
    (objectives.group_advantages, 1.620182, -0.540061), (objectives.centred_advantages, 0.75, -0.25),
    (objectives.leave_one_out_advantages, 0.857143, -0.285714)])
def test_advantages_of_two_right_in_eight(fn, right, wrong):
    np.testing.assert_allclose(fn(REWARDS)[0], np.where(REWARDS[0] == 1, right, wrong), atol=2e-6)


@pytest.mark.parametrize("name, expected", [("one_shot", [1.0, 0.0, 0.5]), ("grpo", [1.0, 0.0, 0.5]),
                                            ("dr_grpo", [0.0] * 3), ("rloo", [0.0] * 3)])
def test_a_group_of_one_is_its_reward_where_groups_are_scaled_and_nothing_where_they_are_centred(name, expected):
    advantages = OBJECTIVES[name].advantages(np.array([[1.0], [0.0], [0.5]], np.float32))
    assert np.asarray(advantages)[:, 0].tolist() == expected


GROUPS = st.integers(2, 9).flatmap(lambda g: st.lists(st.lists(st.floats(-5, 5, width=32), min_size=g, max_size=g),
                                                      min_size=1, max_size=4))


@settings(deadline=None, max_examples=50)
@given(GROUPS, st.randoms())
def test_advantages_belong_to_their_group_and_follow_permutations(groups, random):
    rewards = np.array(groups, np.float32)
    order = list(range(rewards.shape[1]))
    random.shuffle(order)
    for fn in {o.advantages for o in OBJECTIVES.values()}:
        advantages = np.asarray(fn(rewards))
        np.testing.assert_allclose(fn(rewards[:, order]), advantages[:, order], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(fn(rewards[:1]), advantages[:1], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(advantages.sum(-1), 0, atol=1e-3 * max(1, np.abs(advantages).max()))
        assert np.isfinite(advantages).all()


@settings(deadline=None, max_examples=50)
@given(st.floats(-5, 5, width=32), st.sampled_from([2, 3, 8, 128]))  # each size is compiled
def test_equal_rewards_give_exactly_no_advantage(reward, size):
    for objective in OBJECTIVES.values():
        assert (np.asarray(objective.advantages(np.full((3, size), reward, np.float32))) == 0).all()


@settings(deadline=None, max_examples=50)
@given(st.floats(-8, 0, width=32), st.floats(-8, 0, width=32))
@example(-2.0 ** -24, 0.0)  # exp(x) - x - 1 rounds to -x here
@example(-300.0, 0.0)  # exp of this is more than float32 holds
def test_k3_is_never_negative_but_for_rounding_and_zero_at_equality(logprob, reference):
    assert np.isfinite(jax.grad(objectives.k3_kl)(jnp.float32(logprob), jnp.float32(reference)))
    assert -1e-6 < objectives.k3_kl(jnp.float32(logprob), jnp.float32(reference)) <= 10
    assert objectives.k3_kl(jnp.float32(logprob), jnp.float32(logprob)) == 0


# ----- the whole update, from rewards to its gradient, against the sheet's table written once more

# advantage, term of a token, aggregation, clip range, entropy bonus
SHEET = {
    "one_shot": ("scaled", "clip", "tokens", 0.2, 0.2, 0.0), "grpo": ("scaled", "clip", "sequences", 0.2, 0.2, 0.0),
    "dr_grpo": ("centred", "clip", "window", 0.2, 0.2, 0.0), "dapo": ("scaled", "clip", "tokens", 0.2, 0.28, 0.0),
    "gspo": ("scaled", "sequence", "sequences", 3e-4, 4e-4, 0.0), "cispo": ("scaled", "cap", "tokens", 1.0, 4.0, 0.0),
    "reinforce": ("centred", "score", "tokens", 0.2, 0.2, 0.0), "rloo": ("others", "score", "sums", 0.2, 0.2, 0.0),
    "entropy": ("none", "score", "tokens", 0.2, 0.2, -1.0)}
CONFIG = GRPOConfig.from_flags(num_prompts=2, group_size=4, temperature=0.7, kl_coef=0.3)
VARIANTS = {
    "off_policy": {}, "on_policy": {}, "without_dead_groups": {"drop_dead_groups": True, "entropy_coef": 0.2},
    "other_clips": {"clip_low": 0.05, "clip_high": 0.1, "entropy_coef": 0.5}}


def batch_of(config, rng, on_policy):
    """A batch as the loop makes it, of one group whose rewards differ and one whose do not, and its rewards [2,4]."""
    rollouts, shape = random_rollouts(rng), (8, 4)
    rollouts.completion_mask[2] = False  # a completion without any token
    rewards = np.array([*rng.permutation([0, 0.1, 1, 1.1]), 1, 1, 1, 1], np.float32)
    batch = grpo.make_batch(config, None, rollouts, Scored(rewards))
    near = np.log(1 / 3) + 0.5 * rng.standard_normal((2, *shape))
    old, reference = np.where(rollouts.completion_mask, near, -1e3).astype(np.float32)  # garbage behind the end
    return batch.replace(old_logprobs=None if on_policy else old, ref_logprobs=reference), rewards.reshape(2, 4)


def loss_of_the_sheet(name, config, table, held, batch, rewards_NxG):
    """The loss of logits `table`, sequence by sequence. Where gradients stop, and as old policy, `held` stands in."""
    advantage, term, aggregation, low, high, bonus = SHEET[name]
    low, high, bonus = (a if b is None else b for a, b in zip(
        (low, high, bonus), (config.loss.clip_low, config.loss.clip_high, config.loss.entropy_coef)))
    sums, lengths = [], []
    for b, ids in enumerate(batch.completions):
        group = rewards_NxG[b // 4].astype(float)
        n = batch.completion_mask[b].sum()
        if n == 0 or (config.drop_dead_groups and np.ptp(group) == 0):
            continue
        others = np.delete(group, b % 4)
        centred = group[b % 4] - group.mean()
        A = {"scaled": centred / (group.std(ddof=1) + 1e-6), "centred": centred, "others": group[b % 4] - others.mean(),
             "none": 0}[advantage]

        def logprobs(logits):
            scaled = logits[b, :n] / config.update.temperature
            return scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))

        words, chosen = logprobs(table), logprobs(table)[np.arange(n), ids[:n]]
        kept = logprobs(held)[np.arange(n), ids[:n]]
        old = kept if batch.old_logprobs is None else batch.old_logprobs[b, :n]
        rho = np.exp(chosen - old)
        if term == "sequence":
            rho = np.exp(np.mean(chosen - old)) * np.ones(n)
        terms = {"clip": -np.minimum(rho * A, np.clip(rho, 1 - low, 1 + high) * A), "score": -A * chosen,
                 "cap": -np.minimum(np.exp(kept - old), 1 + high) * A * chosen}[{"sequence": "clip"}.get(term, term)]
        d = batch.ref_logprobs[b, :n] - chosen
        terms = terms + config.loss.kl_coef * (np.exp(d) - d - 1) + bonus * np.sum(np.exp(words) * words, -1)
        sums.append(terms.sum())
        lengths.append(n)
    sums, lengths = np.array(sums), np.array(lengths)
    return {"tokens": sums.sum() / lengths.sum(), "sequences": np.mean(sums / lengths), "sums": np.mean(sums),
            "window": np.mean(sums / 4)}[aggregation]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_update_is_that_of_the_sheet(name, variant):
    """Loss and gradient in two micro-batches, to 1e-6; the gradient by central differences of the formula."""
    config = CONFIG.with_flags(objective=name, **VARIANTS[variant])
    for seed in range(3):
        rng = np.random.default_rng(seed)
        batch, rewards = batch_of(config, rng, variant == "on_policy")
        table = 0.7 * rng.standard_normal((8, 4, 3)).astype(np.float32)
        loss, gradient = table_loss_and_gradient(config, table, batch, num_micro=2)
        held = table.astype(float)
        wanted, slope = loss_of_the_sheet(name, config, held, held, batch, rewards), np.zeros(table.shape)
        np.testing.assert_allclose(loss, wanted, rtol=1e-6, atol=1e-6)
        for place in np.argwhere(batch.completion_mask[..., None] & np.ones(3, bool)):
            step = np.zeros(table.shape)
            step[tuple(place)] = 1e-5
            slope[tuple(place)] = (loss_of_the_sheet(name, config, held + step, held, batch, rewards)
                                   - loss_of_the_sheet(name, config, held - step, held, batch, rewards)) / 2e-5
        np.testing.assert_allclose(gradient, slope, rtol=1e-6, atol=1e-6)
