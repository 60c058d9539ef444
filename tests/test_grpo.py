"""The loop: what it trains on, how it treats dead groups, one trace a run, and that it learns."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

import tabular
from helpers import base, compiled  # noqa: F401  (fixtures)
from rlvr_jax import grpo, learner, model, objectives, sampler
from rlvr_jax.config import TrainConfig
from rlvr_jax.errors import UserError
from rlvr_jax.rewards import Scored
from rlvr_jax.runs import checkpoint, summary
from rlvr_jax.tasks import pool
from rlvr_jax.tasks.problems import Problem

CONFIG = TrainConfig(num_ops=2, example="1", num_prompts=4, group_size=4, max_new_tokens=10, remat=False, eval_size=16,
                     reward="format", learning_rate=3e-3, num_steps=3, eval_every=0, temperature=1.0)


def train(base, tmp_path, **changes):
    config = dataclasses.replace(CONFIG, model=str(base), run_dir=str(tmp_path / "run"), **changes)
    summary = grpo.train(config)
    return summary, [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]


def test_training_raises_the_reward_it_is_paid_for(base, tmp_path):
    summary, rows = train(base, tmp_path, num_steps=25)
    reward = [row["train/reward_mean"] for row in rows[1:]]
    assert np.mean(reward[-5:]) > np.mean(reward[:5]) + 0.2
    assert summary["steps"] == 25 and summary["base"]["n"] == summary["final"]["n"] == 16
    assert (tmp_path / "run" / "summary.json").exists() and rows[0]["step"] == 0


def test_every_step_reports_what_diagnoses_a_run(base, tmp_path):
    _, rows = train(base, tmp_path, kl_coef=0.01)
    wanted = {"accuracy", "reward_mean", "reward_std", "live_groups", "entropy", "kl", "clip_fraction", "grad_norm",
              "completion_length", "tokens", "truncated", "logprob_gap_mean", "logprob_gap_max", "ratio_outside",
              "repetition", "loss"}
    for row in rows[1:]:
        assert wanted <= {key[6:] for key in row if key.startswith("train/")}
        rows_of_a_step = CONFIG.num_prompts * CONFIG.group_size
        assert row["train/tokens"] == pytest.approx(row["train/completion_length"] * rows_of_a_step)
        assert row["sample/tokens_per_second"] > 0 and row["update/tokens_per_second"] > 0
        assert {"seconds/sample", "seconds/score", "seconds/update"} <= set(row)
        assert row["train/logprob_gap_max"] < 1e-4 and row["train/ratio_outside"] == 0
    assert rows[1]["train/kl"] == 0 < rows[3]["train/kl"]


def test_minibatches_alone_are_off_policy_and_the_kl_is_measured_without_a_weight(base, tmp_path):
    """The second minibatch of a single pass is held against the policy that sampled it, not against itself."""
    _, rows = train(base, tmp_path, num_minibatches=2, num_steps=2, learning_rate=0.05, entropy_coef=0.1)
    assert min(row["train/clip_fraction"] for row in rows[1:]) > 0
    assert rows[2]["train/kl"] > rows[1]["train/kl"] >= 0


def test_a_first_update_that_is_not_finite_is_not_saved(base, tmp_path, monkeypatch):
    """Its loss and gradient were finite, and no later step is there to show what became of the parameters."""
    monkeypatch.setattr(learner, "make_optimizer", lambda config: optax.sgd(np.nan))
    with pytest.raises(UserError, match="not finite after step 1, which is not saved; .* has no good checkpoint"):
        train(base, tmp_path, num_steps=1, track_kl=False)
    assert checkpoint.steps(tmp_path / "run") == []
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["step"] == 1 and "train/kl" not in row


def test_a_run_traces_each_program_once(base, tmp_path, monkeypatch):
    traces = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *a, **k: traces.append(1) or forward(*a, **k))
    counts = []
    for steps in (1, 4):
        traces.clear()
        train(base, tmp_path / str(steps), num_steps=steps, eval_every=1, num_minibatches=2, kl_coef=0.01)
        counts.append(len(traces))
    assert counts[0] == counts[1] > 0


def fake_rollouts(marker, size=8):
    made = sampler.Rollouts(np.arange(size), np.full((size, 2), marker), np.ones((size, 2), bool),
                            np.zeros((size, 2), np.float32), np.ones(size, bool))
    for array in jax.tree.leaves(made):
        array.setflags(write=False)  # as what comes from a device is
    return made


def scored_as(rewards) -> Scored:
    rewards, text = np.array(rewards, np.float32), np.array(["x"] * len(rewards), object)
    return Scored(text, rewards, rewards.copy(), rewards.copy(), text, None)


def test_dead_groups_are_sampled_again_up_to_the_bound():
    config = dataclasses.replace(CONFIG, num_prompts=4, group_size=2, max_resamples=2)
    outcomes = iter([[1, 1, 0, 1, 0, 0, 1, 1], [0, 0, 0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
    first_rows = []

    def draw(params, prompts, index, seed, step, temperature, *, repeats, first_row):
        first_rows.append(first_row)
        return fake_rollouts(len(first_rows))

    def score(params, rollouts, step, attempt):
        return scored_as(next(outcomes))

    collected, scored = grpo.collect(config, draw, score, None, None, np.arange(8), 1, {})
    assert first_rows == [0, 8, 16]  # fresh keys each time, and never more than the bound
    np.testing.assert_array_equal(scored.reward, [1, 0, 0, 1, 0, 0, 1, 1])  # the live group replaced the first dead one
    np.testing.assert_array_equal(collected.completions[:, 0], [2, 2, 1, 1, 1, 1, 1, 1])


def test_a_group_of_one_is_always_live():
    assert objectives.live_groups(np.array([[0.0], [1.0], [1.0]])).tolist() == [True] * 3
    assert objectives.live_groups(np.array([[0.0, 0.0], [0.0, 1.0]])).tolist() == [False, True]


def test_dropping_dead_groups_takes_their_tokens_out_of_the_divisor():
    config = dataclasses.replace(CONFIG, group_size=2, drop_dead_groups=True)
    scored = scored_as([1, 0, 1, 1, 0, 0, 0, 1])
    batch = grpo.with_advantages(config, None, fake_rollouts(1), scored)
    np.testing.assert_array_equal(batch.completion_mask[:, 0], [1, 1, 0, 0, 0, 0, 1, 1])
    kept = grpo.with_advantages(dataclasses.replace(config, drop_dead_groups=False), None, fake_rollouts(1), scored)
    assert kept.completion_mask.all()


def test_dynamic_sampling_trains_no_zero_variance_group(base, tmp_path, monkeypatch):
    batches, map_update = [], learner.map_update

    def watched(*args):
        update = map_update(*args)
        return lambda state, batch, step: batches.append(batch) or update(state, batch, step)

    monkeypatch.setattr(learner, "map_update", watched)
    _, rows = train(base, tmp_path, group_size=2, num_prompts=8, max_resamples=1, drop_dead_groups=True)
    trained = np.concatenate([batch.completion_mask.any(-1).reshape(-1, 2) for batch in batches])
    advantages = np.concatenate([batch.advantages.reshape(-1, 2) for batch in batches])
    assert (trained == (advantages != 0)).all() and 0 < trained[:, 0].sum() < len(trained)
    np.testing.assert_allclose(trained[:, 0].mean(), np.mean([row["train/live_groups"] for row in rows[1:]]))


def test_a_truncated_completion_counts_in_its_groups_mean_and_nowhere_else():
    """The fourth is cut: the loss is that of the other seven, with advantages to which its reward belongs."""
    config = TrainConfig(objective="dr_grpo", group_size=4, mask_truncated=True, temperature=1.0)
    rng = np.random.default_rng(0)
    rollouts = tabular.random_rollouts(rng).replace(ended=np.arange(8) != 3)
    table = rng.standard_normal((8, 4, 3))
    batch = grpo.with_advantages(config, None, rollouts, scored_as([1, 0, 0, 1, 1, 0, 0, 0]))
    np.testing.assert_array_equal(batch.advantages[:3], [0.5, -0.5, -0.5])  # 1/3 and -2/3 without the fourth
    loss, gradient = tabular.loss_and_gradient(config, table, batch)
    rest = jax.tree.map(lambda x: np.delete(x, 3, 0), batch)
    assert (gradient[3] == 0).all() and (gradient[[0, 1, 2, 4, 5, 6, 7]] != 0).any((1, 2)).all()
    for got, wanted in zip((loss, gradient), tabular.loss_and_gradient(config, table, rest)):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)


def test_groups_are_rows_even_where_all_rows_hold_one_problem():
    config = dataclasses.replace(CONFIG, group_size=4, num_prompts=2)
    scored = scored_as([1, 0, 0, 0, 1, 1, 1, 1])
    advantages = grpo.with_advantages(config, None, fake_rollouts(1), scored).advantages
    assert (advantages[4:] == 0).all() and advantages[0] > 0 > advantages[1]


POOL = [Problem("", "3", "", {"task": "arithmetic"})] * 6


def completions(rates, lucky=()):
    """100 completions of each problem, right at the given rates, the right ones careful unless lucky."""
    return [{"problem": p, "correct": i < 100 * rate, "completion": "quick 3 answer 3" if p in lucky else "think answer 3"}
            for p, rate in enumerate(rates) for i in range(100)]


def test_the_example_is_the_one_whose_pass_rate_is_nearest():
    assert pool.choose_example(completions([0, 0.1, 0.3, 1]), POOL[:4], 0.28) == 2
    assert pool.choose_example(completions([0, 0.1, 0.3, 1], lucky=[2]), POOL[:4], 0.28) == 1
    for wanted, place in ((0.12, 1), (0.28, 2), (0.4, 2), (0.5, 3), (0.75, 3), (0.85, 4)):
        assert pool.choose_example(completions([0, 0.1, 0.3, 0.6, 0.9, 1]), POOL[:6], wanted) == place
    assert pool.choose_example(completions([0, 0.1, 0.3, 1]), POOL[:4], 1.0) == 2  # a solved one teaches nothing
    with pytest.raises(UserError, match="--example=auto"):
        pool.choose_example(completions([0, 1, 0, 1]), POOL[:4], 0.3)


def test_repetition_and_lengths_are_told_apart():
    loop, varied = np.tile([1, 2], 8), np.arange(16)
    ids, mask = np.stack([loop, varied]), np.ones((2, 16), bool)
    assert summary.repetition(ids[1:], mask[1:]) == 0
    np.testing.assert_allclose(summary.repetition(ids[:1], mask[:1]), 11 / 13)  # 13 windows of 4, 2 of them new
    mask[0, 4:] = False
    looped = sampler.Rollouts(np.zeros(2), ids, mask, None, np.array([True, False]))
    right, boxed = np.array([1.0, 0.0]), np.array(["boxed"] * 2, object)
    scored = Scored(None, right, right, 1 - right, boxed, None)
    row = summary.describe(looped, scored, 2)
    assert (row["train/graded_by"], row["train/grader_timeouts"]) == ("boxed", 1)
    assert (row["train/length_correct"], row["train/length_wrong"], row["train/truncated"]) == (4, 16, 0.5)
    assert row["train/live_groups"] == 1


def test_heldout_never_contains_the_example(base, tmp_path):
    problem = {"question": "coins 3 + 4 =", "answer": "7"}
    other = {"question": "coins 2 + 4 =", "answer": "6"}
    path = tmp_path / "problems.jsonl"
    path.write_text("\n".join(map(json.dumps, [problem, other])))
    summary, _ = train(base, tmp_path, problems=str(path), heldout=str(path), example="0", answer_format="answer",
                       num_steps=1)
    assert summary["final"]["n"] == 1
