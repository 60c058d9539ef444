"""The loop: what it trains on, and how it treats zero-variance groups and truncated completions."""

import jax
import numpy as np

from rlvr_jax import grpo, objectives
from rlvr_jax.grpo import GRPOConfig, Programs, PromptBatch, Scored
from rlvr_jax.records import Rollouts

from fixtures import random_rollouts, table_loss_and_gradient

CONFIG = GRPOConfig.from_flags(num_prompts=4, group_size=4, max_new_tokens=10, remat=False, learning_rate=3e-3,
                               num_steps=3)


def fake_rollouts(marker, size=8):
    made = Rollouts(np.arange(size), np.full((size, 2), marker), np.ones((size, 2), bool),
                    np.zeros((size, 2), np.float32), np.ones(size, bool))
    for array in jax.tree.leaves(made):
        array.setflags(write=False)  # like arrays from a device
    return made


def scored_as(rewards) -> Scored:
    return Scored(np.array(rewards, np.float32), {"text": np.array(["x"] * len(rewards), object)})


def test_dead_groups_are_sampled_again_up_to_the_bound():
    config = CONFIG.with_flags(num_prompts=4, group_size=2, max_resamples=2)
    outcomes = iter([[1, 1, 0, 1, 0, 0, 1, 1], [0, 0, 0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
    first_rows = []

    def sample(params, prompts, index, request):
        first_rows.append(request.first_row)
        return fake_rollouts(len(first_rows))

    def reward(rollouts, params, step, attempt):
        return scored_as(next(outcomes))

    collected, scored = grpo.sample_and_score(Programs(sample, None, None), reward, config, None,
                                              PromptBatch(1, None, np.arange(8)))
    assert first_rows == [0, 8, 16]  # fresh keys each time, and never more than the bound
    np.testing.assert_array_equal(scored.reward, [1, 0, 0, 1, 0, 0, 1, 1])  # the live group replaced the first dead one
    np.testing.assert_array_equal(collected.completions[:, 0], [2, 2, 1, 1, 1, 1, 1, 1])


def test_the_reward_sees_whole_groups_and_the_update_the_first_of_each():
    """Groups of six votes, two of which are learnt from: those two alone are compared, and decide on zero variance."""
    config = CONFIG.with_flags(num_prompts=2, group_size=6, update_group_size=2, max_resamples=1, objective="dr_grpo")
    paid = iter([[1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1]])
    seen = []

    def sample(params, prompts, index, request):
        made = fake_rollouts(0, 12)
        return made.replace(completions=100 * len(seen) + np.arange(24).reshape(12, 2))

    def reward(rollouts, params, step, attempt):
        seen.append(rollouts.completions[:, 0])
        return scored_as(next(paid))

    asked = PromptBatch(1, None, np.repeat(np.arange(2), 6))
    collected, scored = grpo.sample_and_score(Programs(sample, None, None), reward, config, None, asked)
    assert [len(rows) for rows in seen] == [12, 12]  # the first group is mixed, but not its first two
    assert collected.completions[:, 0].tolist() == [100, 102, 12, 14]
    assert collected.prompt_index.tolist() == [0, 1, 6, 7]
    assert scored.reward.tolist() == [0, 1, 1, 0] and len(scored.info["text"]) == 4
    batch = grpo.make_batch(config, None, collected, scored)
    assert batch.advantages.tolist() == [-0.5, 0.5, 0.5, -0.5]  # the mean of two, not of six
    alone = grpo.make_batch(config.with_flags(drop_dead_groups=True), None, collected, scored_as([0, 0, 1, 0]))
    assert alone.completion_mask.any(-1).tolist() == [False, False, True, True]


def test_a_group_of_one_is_always_live():
    assert objectives.live_groups(np.array([[0.0], [1.0], [1.0]])).tolist() == [True] * 3
    assert objectives.live_groups(np.array([[0.0, 0.0], [0.0, 1.0]])).tolist() == [False, True]


def test_dropping_dead_groups_takes_their_tokens_out_of_the_divisor():
    config = CONFIG.with_flags(group_size=2, drop_dead_groups=True)
    scored = scored_as([1, 0, 1, 1, 0, 0, 0, 1])
    batch = grpo.make_batch(config, None, fake_rollouts(1), scored)
    np.testing.assert_array_equal(batch.completion_mask[:, 0], [1, 1, 0, 0, 0, 0, 1, 1])
    kept = grpo.make_batch(config.with_flags(drop_dead_groups=False), None, fake_rollouts(1), scored)
    assert kept.completion_mask.all()
    cut = fake_rollouts(1).replace(ended=np.arange(8) != 0)
    both = grpo.make_batch(config.with_flags(mask_truncated=True), None, cut, scored)
    assert both.completion_mask[:, 0].tolist() == [0, 1, 0, 0, 0, 0, 1, 1]  # neither flag undoes the other


def test_a_truncated_completion_counts_in_its_groups_mean_and_nowhere_else():
    """The fourth is truncated: the loss is that of the other seven, whose advantages include its reward."""
    config = GRPOConfig.from_flags(objective="dr_grpo", group_size=4, mask_truncated=True, temperature=1.0)
    rng = np.random.default_rng(0)
    rollouts = random_rollouts(rng).replace(ended=np.arange(8) != 3)
    table = rng.standard_normal((8, 4, 3))
    batch = grpo.make_batch(config, None, rollouts, scored_as([1, 0, 0, 1, 1, 0, 0, 0]))
    np.testing.assert_array_equal(batch.advantages[:3], [0.5, -0.5, -0.5])  # 1/3 and -2/3 without the fourth
    loss, gradient = table_loss_and_gradient(config, table, batch)
    rest = jax.tree.map(lambda x: np.delete(x, 3, 0), batch)
    assert (gradient[3] == 0).all() and (gradient[[0, 1, 2, 4, 5, 6, 7]] != 0).any((1, 2)).all()
    for got, wanted in zip((loss, gradient), table_loss_and_gradient(config, table, rest)):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)


def test_the_order_of_the_problems_is_the_seeds():
    problems = grpo.Problems(None, np.ones(12, int))
    orders = [grpo.curriculum(CONFIG.with_flags(num_prompts=12, seed=seed), problems, 1).index for seed in (0, 1, 0)]
    assert (orders[0] != orders[1]).any() and (orders[0] == orders[2]).all()


def test_tokens_that_were_put_in_have_no_gap_to_the_sampler():
    there, scored = np.ones((8, 2), bool), scored_as([1, 0] * 4)
    targets = grpo.Targets(np.full((8, 2), 7), there, there, np.ones((8, 2), np.float32))
    config = CONFIG.with_flags(objective="rloo", num_prompts=2)
    batch = grpo.make_batch(config, None, fake_rollouts(1), scored._replace(targets=targets))
    assert batch.sampler_logprobs is None and (batch.completions == 7).all()
    assert grpo.make_batch(config, None, fake_rollouts(1), scored).sampler_logprobs is not None
