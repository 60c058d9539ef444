"""VeriFree: the reference answer after the policy's own reasoning, as reward and as the answer tokens' weight."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from helpers import base, compiled  # noqa: F401  (fixtures)
from rlvr_jax import grpo, learner, model, objectives, rewards
from rlvr_jax.config import TrainConfig
from rlvr_jax.errors import UserError
from rlvr_jax.grading import extract
from rlvr_jax.sampler import Rollouts
from test_rewards import CONFIG, sampled, saying, seen  # noqa: F401  (fixtures)

CONFIG = dataclasses.replace(CONFIG, reward="verifier_free", objective="rloo")


def test_leave_one_out_of_the_sheet():
    rewards_NxG = np.array([[0.9, 0.2, 0.1, 0]], np.float32)
    np.testing.assert_allclose(objectives.leave_one_out_advantages(rewards_NxG)[0],
                               [0.8, -0.133333, -0.266667, -0.4], atol=1e-6)


def test_the_answer_is_replaced_where_it_begins_and_ends_with_the_end_token(seen):  # noqa: F811
    """The first statement of an answer counts; without one, or without room, the completion stays as it was sampled."""
    step = saying(seen, *["3"] * 8)
    words = seen.policy.tokenizer
    texts = ["quick 4 answer 9", "answer 1 answer 2", "hmm river", " ".join(["hmm"] * 9 + ["answer"]), *step.texts[4:]]
    references = dataclasses.replace(step, texts=texts).references
    wanted = seen.problems[0].answer
    rows = [words.encode(f"quick 4 answer {wanted} <eos>"), words.encode(f"answer {wanted} <eos>")]
    for b, (row, length) in enumerate(zip(rows, (5, 3))):
        assert references.completions[b, :length].tolist() == row
        assert references.mask[b].sum() == length
        np.testing.assert_array_equal(np.flatnonzero(references.answer[b]), [length - 2, length - 1])
    for b in (2, 3):
        np.testing.assert_array_equal(references.completions[b], seen.rollouts.completions[b])
        np.testing.assert_array_equal(references.mask[b], seen.rollouts.completion_mask[b])
        assert not references.answer[b].any() and references.probability[b] == 0


def test_the_reward_is_the_product_of_the_probabilities_of_the_answers_tokens(seen):  # noqa: F811
    step = saying(seen, *["3"] * 8)
    told = [f"{problem.answer} <eos>" for problem in step.problems]
    wanted = np.exp(seen.policy.logprob_of(told, [text.rpartition(" ")[0] for text in step.texts]))
    np.testing.assert_allclose(rewards.verifier_free(step), wanted, rtol=1e-4)
    probabilities = rewards.References(None, None, np.array([[0, 1, 1, 1]], bool), np.log([[0.1, 0.9, 0.8, 0.5]]))
    assert probabilities.probability[0] == pytest.approx(0.36)


def test_what_the_update_learns_from(seen):  # noqa: F811
    """Reasoning carries its completion's advantage, the answer its probability; one without answer a negative one."""
    step = dataclasses.replace(saying(seen, "3", "4", "5", None, "6", "7", "8", "9"), config=CONFIG)
    reward = rewards.verifier_free(step)
    scored = rewards.Scored(None, reward, None, None, None, step.references)
    batch = grpo.with_advantages(CONFIG, None, step.rollouts, scored)
    advantages = objectives.leave_one_out_advantages(reward.reshape(2, 4)).reshape(-1)
    for b in range(8):
        for t in np.flatnonzero(batch.completion_mask[b]):
            wanted = float(reward[b] if step.references.answer[b, t] else advantages[b])
            assert batch.advantages[b, t] == pytest.approx(wanted, abs=1e-6)
    assert reward[3] == 0 and (batch.advantages[3][batch.completion_mask[3]] < 0).all()


def test_the_gradient_is_that_of_the_expected_probability():
    """Enumerated: the expectation over all pairs of reasonings is the gradient of J = sum_z pi(z) pi(y|z), to 1e-5.

    A reasoning is any one token of a vocabulary of five, the answer the token 3.
    """
    shape = model.ModelConfig(vocab_size=5, num_layers=1, d_model=8, num_heads=2, num_kv_heads=2, head_dim=4, d_ff=16,
                              max_seq_len=8)
    params = jax.tree.map(lambda x: x * 6, model.init_params(jax.random.key(0), shape))
    config = TrainConfig(objective="rloo", remat=False, temperature=1.0)
    prompts = model.Prompts(np.array([[1, 2]], np.int32), np.array([2], np.int32))
    rows = np.array([[z, 3] for z in range(5)], np.int32)
    answer, mask = np.array([[False, True]] * 2), np.ones((2, 2), bool)
    batch = learner.Batch(prompts, np.zeros(5, np.int32), rows, np.ones((5, 2), bool), np.zeros(5, np.float32))
    statistics = learner.make_statistics(shape, config)

    def probabilities(params):
        one = jax.tree.map(lambda x: x[None], batch)
        logprobs = statistics(params, one)[0][0]
        return jax.numpy.exp(logprobs[:, 0]), jax.numpy.exp(logprobs[:, 1])

    exact = jax.jit(jax.grad(lambda params: jax.numpy.vdot(*probabilities(params))))(params)
    of_z, of_y = map(np.asarray, probabilities(params))
    assert of_z.sum() == pytest.approx(1, abs=1e-6) and of_y.max() > 3 * of_y.min()
    loss = learner.make_loss(shape, config, objectives.OBJECTIVES["rloo"])
    gradient = jax.jit(jax.grad(lambda params, micro: -loss(params, {}, micro)[0] / 2))
    total = jax.tree.map(np.zeros_like, params)
    for pair in itertools.product(range(5), repeat=2):
        references = rewards.References(rows[list(pair)], mask, answer, np.log(np.stack([of_z, of_y], 1))[list(pair)])
        rollouts = Rollouts(np.zeros(2, np.int32), rows[list(pair)], mask, np.zeros((2, 2), np.float32),
                            np.ones(2, bool))
        scored = rewards.Scored(None, references.probability, None, None, None, references)
        micro = grpo.with_advantages(dataclasses.replace(config, group_size=2), prompts, rollouts, scored)
        weight = float(of_z[pair[0]] * of_z[pair[1]])
        total = jax.tree.map(lambda t, g: t + weight * np.asarray(g), total, gradient(params, micro))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), total, exact)
    assert max(np.abs(x).max() for x in jax.tree.leaves(exact)) > 1e-2


@pytest.mark.parametrize("changes, message", [
    ({"objective": "grpo"}, "--objective=rloo"),
    ({"objective": "dapo"}, "--objective=dapo would clip or scale")])
def test_an_objective_that_would_change_the_weights_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        grpo.check(dataclasses.replace(CONFIG, **changes))


def test_a_format_that_opens_no_answer_is_refused():
    with pytest.raises(UserError, match="--answer_format=last_number.*answer, boxed, tag, lenient"):
        extract.stated("last_number")
    for name, (opening, _) in extract.STATED.items():
        assert extract.EXTRACTORS[name](f"so {extract.state(name, '17')}") == "17"
        assert extract.state(name, "17").startswith(opening)
