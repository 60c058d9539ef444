"""Rewards: what one may ask of the policy, and sums of them. test_doors.py adds some from outside."""

import dataclasses

import jax
import numpy as np
import pytest

from helpers import base, compiled  # noqa: F401  (fixtures)
from rlvr_jax import learner, logprobs, model, objectives, parallel, rewards, sampler
from rlvr_jax.config import TrainConfig
from rlvr_jax.errors import UserError
from rlvr_jax.pretrained import loading
from rlvr_jax.rewards import REWARDS
from rlvr_jax.tasks import prompts

CONFIG = TrainConfig(num_ops=2, example="1", num_prompts=2, group_size=4, max_new_tokens=10, remat=False, eval_size=16,
                     learning_rate=1e-3, num_steps=2, eval_every=0, temperature=0.7, log_rollouts=8)


@pytest.fixture(scope="module")
def sampled(base):
    """(model, problems, prompts, params on the devices, rollouts): 8 completions of two problems."""
    loaded = loading.load_model(str(base))
    problems = prompts.load_problems("arithmetic", loaded.tokenizer, count=2, num_ops=2)
    encoded = prompts.encode_prompts(loaded.tokenizer, problems, loaded.config, 10)
    draw = sampler.make_sampler(loaded.config, eos_ids=loaded.tokenizer.eos_ids, max_new_tokens=10)
    params = parallel.place_state(loaded.params)
    index = np.repeat(np.arange(2, dtype=np.int32), 4)
    return loaded, problems, encoded, params, draw(params, encoded, index, 0, 1, CONFIG.temperature, repeats=4)


@pytest.fixture
def seen(sampled, monkeypatch):
    """The `Step` that a reward is handed for those completions."""
    loaded, problems, prompts, params, rollouts = sampled
    steps = []
    monkeypatch.setitem(REWARDS, "spy", lambda step: steps.append(step) or np.zeros(8))
    rewards.make_scorer(dataclasses.replace(CONFIG, reward="spy"), loaded, problems, prompts)(params, rollouts, 3)
    return steps[0]


# ----- what a reward sees


def test_the_policy_is_the_one_that_drew_the_rollouts(sampled, seen):
    mask = sampled[4].completion_mask
    np.testing.assert_allclose(seen.policy.logprobs[mask], sampled[4].sampler_logprobs[mask], atol=2e-5)


def test_entropy_and_self_certainty_are_those_of_the_whole_distribution(sampled, seen):
    loaded, _, prompts, _, rollouts = sampled
    for b in (0, 7):
        length = int(prompts.lengths[rollouts.prompt_index[b]])
        tokens = np.concatenate([prompts.tokens[rollouts.prompt_index[b], :length], rollouts.completions[b]])
        hidden, _ = model.forward(loaded.params, loaded.config, tokens[None])
        logits = np.asarray(model.head(loaded.params, hidden), np.float64)[0, length - 1 : -1] / CONFIG.temperature
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(seen.policy.entropies[b], -(p * np.log(p)).sum(-1), atol=2e-5)
        size = p.shape[-1]
        np.testing.assert_allclose(seen.policy.self_certainty[b], (np.log(1 / size / p) / size).sum(-1), atol=2e-4)


def test_self_certainty_of_the_sheets_vector():
    """Logits 2, 1, 0, -1: log-sum-exp - mean - log 4 = .553895 (methods sheet, from arXiv 2505.19590)."""
    params = {"embed": np.eye(4, dtype=np.float32)}
    hidden = np.array([[[2, 1, 0, -1]]], np.float32)
    _, entropy, certainty = logprobs.token_logprobs(params, hidden, np.zeros((1, 1), np.int32), 1.0, self_certainty=True)
    np.testing.assert_allclose([entropy[0, 0], certainty[0, 0]], [0.947537, 0.553895], atol=1e-6)


def test_the_probability_of_another_text_after_a_beginning(sampled, seen):
    """After the first two tokens of each completion, its third is as likely as when it was drawn."""
    encode, rollouts = sampled[0].tokenizer.encode, sampled[4]
    words = [text.split(" ") for text in seen.texts]
    long = [i for i, row in enumerate(words) if len(row) > 3]
    assert len(long) > 2 and [len(encode(text)) for text in seen.texts] == [len(row) for row in words]
    found = seen.policy.logprob_of([" ".join(row[2:4]) for row in words], [" ".join(row[:2]) for row in words])
    np.testing.assert_allclose(found[long], rollouts.sampler_logprobs[long, 2:4].sum(-1), atol=5e-5)


def test_a_group_is_a_row_of_the_step_and_the_key_a_function_of_seed_and_step(seen):
    assert seen.groups.tolist() == [0, 0, 0, 0, 1, 1, 1, 1] and seen.key == (0, 3, 0)
    assert [problem.prompt for problem in seen.problems[::4]] == [p.prompt for p in seen.problems[3::4]]


def test_the_coin_pays_at_its_rate_and_the_same_when_asked_again(seen):
    many = dataclasses.replace(seen, texts=["x"] * 20_000, config=dataclasses.replace(CONFIG, random_rate=0.3))
    paid = rewards.coin(many)
    assert set(paid) == {0, 1} and abs(paid.mean() - 0.3) < 0.02
    np.testing.assert_array_equal(paid, rewards.coin(many))
    assert (paid != rewards.coin(dataclasses.replace(many, key=(0, 4, 0)))).any()


# ----- sums


def test_a_weighted_sum(sampled):
    loaded, problems, prompts, params, rollouts = sampled
    score = {text: rewards.make_scorer(dataclasses.replace(CONFIG, reward=text), loaded, problems, prompts)(
        params, rollouts, 1).reward for text in ("correct", "format", "correct:2,format:-0.5")}
    np.testing.assert_allclose(score["correct:2,format:-0.5"], 2 * score["correct"] - 0.5 * score["format"])
    assert 0 < score["format"].mean() < 1


@pytest.mark.parametrize("text", ["corect", "correct:much", "correct:1,", "format:nan", ""])
def test_what_is_no_reward_is_refused_with_the_names_that_are(text):
    with pytest.raises(UserError, match="--reward=.*is none of correct, format, random, none"):
        rewards.parse(text)


# ----- advantages of tokens


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_an_advantage_for_each_token_that_is_the_same_everywhere_is_the_completions(name):
    rng = np.random.default_rng(0)
    policy, old, advantages = rng.normal(-1, 0.3, (3, 5)), rng.normal(-1, 0.3, (3, 5)), rng.normal(size=3)
    objective = objectives.OBJECTIVES[name]
    made = [objective.token_loss(policy, old, a, np.ones((3, 5), bool), objective.clip_low, objective.clip_high)
            for a in (advantages, np.repeat(advantages[:, None], 5, 1))]
    np.testing.assert_array_equal(*made)


def test_advantages_of_tokens_reach_the_gradient(sampled):
    """Advantage 1 on the second tokens alone is the same update as advantage 1 where only they are in the mask."""
    loaded, _, prompts, _, rollouts = sampled
    config = dataclasses.replace(CONFIG, objective="rloo", track_kl=False)
    optimizer, second = learner.make_optimizer(config), np.zeros(rollouts.completions.shape, bool)
    update = learner.map_update(loaded.config, config, optimizer)
    second[:, 1] = True
    after = []
    for advantages, mask in ((second.astype(np.float32), rollouts.completion_mask), (np.ones(8, np.float32), second)):
        state = parallel.place_state(learner.init_state(loaded.params, optimizer, keep_reference=False))
        batch = learner.Batch(prompts, rollouts.prompt_index, rollouts.completions, mask, advantages)
        after.append(parallel.fetch_state(update(state, batch, 1)[0].params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *after)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(after[0]), jax.tree.leaves(loaded.params)))
