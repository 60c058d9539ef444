"""VeriFree: the probability of the reference answer after the policy's reasoning, as reward and as gradient weight."""

import dataclasses
import itertools
import types

import jax
import numpy as np
import pytest

from rlvr_jax import grpo, learner, model, objectives, parallel
from rlvr_jax.errors import UserError
from rlvr_jax.grading import extract
from rlvr_jax.grpo import GRPOConfig, Scored
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.records import Batch, Problem, Prompts, Rollouts
from rlvr_jax.rewards import rows as rewards
from rlvr_jax.rewards.context import ReferenceAnswers, RewardContext
from rlvr_jax.tasks import families
from rlvr_jax.tasks.prompts import encode_prompts, pad_rows
from rlvr_jax.training import train

from fixtures import REWARD_RUN, full_logits, make_scorer, saying

CONFIG = REWARD_RUN.with_flags(reward="verifier_free", objective="rloo")


def test_the_answer_is_replaced_where_it_begins_and_ends_with_the_end_token(seen):
    """The first statement of an answer counts; without one, or without room, the completion stays as sampled."""
    given = saying(seen, *["3"] * 8)
    words = seen.policy.tokenizer
    texts = ["quick 4 answer 9", "answer 1 answer 2", "hmm river", " ".join(["hmm"] * 9 + ["answer"]), *given.texts[4:]]
    references = dataclasses.replace(given, texts=texts).reference_answers
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


def test_a_reference_answer_may_fill_the_window_to_its_last_token():
    words, blank = families.make_tokenizer(["arithmetic"]), np.zeros((2, 6), bool)
    texts = ["hmm hmm hmm answer", "hmm hmm hmm hmm answer"]  # and "3 <eos>": six tokens, and one too many
    policy = types.SimpleNamespace(tokenizer=words, logprobs_of=lambda completions, mask: np.zeros(mask.shape))
    rollouts = Rollouts(np.zeros(2, int), blank.astype(np.int32), blank, None, None)
    made = RewardContext(None, ["answer"] * 2, "math", [Problem("q", "3", "q")] * 2, texts, [], rollouts, None, (0,),
                         policy).reference_answers
    assert made.answer.tolist() == [[False] * 4 + [True] * 2, [False] * 6]
    assert made.completions[0].tolist() == words.encode("hmm hmm hmm answer 3 <eos>")
    assert made.probability.tolist() == [1, 0]  # 0 if none was inserted
    probabilities = ReferenceAnswers(None, None, np.array([[0, 1, 1, 1]], bool), np.log([[0.1, 0.9, 0.8, 0.5]]))
    assert probabilities.probability[0] == pytest.approx(0.36)


def test_an_answer_of_several_tokens_is_paid_by_all_of_them(monkeypatch):
    """Digit tokens of 7, 47 and 100: the product of the tokens' probabilities, from logits of the text before each."""
    words = families.make_tokenizer(["arithmetic_digits"])
    shape = model.ModelConfig(vocab_size=words.backend.get_vocab_size(), num_layers=1, d_model=16, num_heads=2,
                              num_kv_heads=2, head_dim=8, d_ff=32, max_seq_len=32)
    loaded = LanguageModel(shape, jax.tree.map(lambda x: x * 6, model.init_params(jax.random.key(0), shape)), words)
    problems = [Problem("", answer, question) for question, answer in (
        ("coins 9 - 2 =", "7"), ("coins 42 + 5 =", "47"), ("coins 99 + 1 =", "100"))]
    texts = ["think - 2 7 answer 7", "think - 2 47 answer 12", "quick 47 answer 4", "hmm answer 99 answer"]
    index = np.array([0, 1, 1, 2], np.int32)
    ids, lengths = pad_rows([words.encode(f"{text} <eos>") for text in texts], words.pad_id, 14)
    rollouts = Rollouts(index, ids, np.arange(14) < lengths[:, None], np.zeros((4, 14), np.float32), np.ones(4, bool))
    handed = []
    monkeypatch.setitem(rewards.REWARDS, "spy", lambda seen: handed.append(seen) or np.zeros(4))
    config = CONFIG.with_flags(reward="spy", group_size=2, answer_format="answer", host_devices=1)
    make_scorer(config, loaded, problems, encode_prompts(words, problems, shape, 14))(
        rollouts, parallel.place_state(loaded.params), 1)
    given, = handed
    assert given.texts == texts

    wanted = []
    pieces = {"7": ["7"], "47": ["4", "##7"], "100": ["1", "##0", "##0"]}
    for text, problem in zip(texts, [problems[i] for i in index]):
        row, product = words.encode(f"{problem.prompt} {text.split('answer')[0]}answer"), 1.0
        for piece in [*pieces[problem.answer], "<eos>"]:
            logits = np.asarray(full_logits(loaded.params, shape, row)[-1], np.float64) / config.grpo.update.temperature
            row = [*row, words.backend.token_to_id(piece)]
            product *= np.exp(logits[row[-1]]) / np.exp(logits).sum()
        wanted.append(product)
    np.testing.assert_allclose(rewards.verifier_free(given), wanted, rtol=1e-3)
    targets = rewards.learn_reference_answers(given)
    assert targets.fixed.sum(-1).tolist() == [2, 3, 3, 4]
    for b, length in enumerate(targets.mask.sum(-1)):
        assert targets.fixed[b, length - targets.fixed[b].sum() : length].all()
        np.testing.assert_allclose(targets.advantages[b][targets.fixed[b]], wanted[b], rtol=1e-3)
    assert words.decode(targets.completions[2][targets.mask[2]]) == "quick 47 answer 47"


def test_what_the_update_learns_from(seen):
    """Reasoning has its completion's advantage and the answer its probability; without an answer, both are negative."""
    given = saying(seen, "3", "4", "5", None, "6", "7", "8", "9")
    reward = rewards.verifier_free(given)
    batch = grpo.make_batch(CONFIG.grpo, None, given.rollouts,
                            Scored(reward, targets=rewards.learn_reference_answers(given)))
    assert batch.sampler_logprobs is None  # those of the replaced tokens
    advantages = objectives.leave_one_out_advantages(reward.reshape(2, 4)).reshape(-1)
    for b in range(8):
        for t in np.flatnonzero(batch.completion_mask[b]):
            wanted = float(reward[b] if given.reference_answers.answer[b, t] else advantages[b])
            assert batch.advantages[b, t] == pytest.approx(wanted, abs=1e-6)
    assert reward[3] == 0 and (batch.advantages[3][batch.completion_mask[3]] < 0).all()


def test_the_weight_of_the_reward_is_also_that_of_the_answers_tokens(sampled):
    loaded, problems, encoded, params, rollouts = sampled
    once, twice = (make_scorer(CONFIG.with_flags(reward=f"verifier_free:{weight}"), loaded, problems, encoded)(
        rollouts, params, 1) for weight in (1, -2))
    np.testing.assert_allclose(twice.reward, -2 * once.reward)
    np.testing.assert_allclose(twice.targets.advantages, -2 * once.targets.advantages)
    assert once.targets.advantages.any()


def test_the_gradient_is_that_of_the_expected_probability():
    """Enumerated: the expectation over all pairs of reasonings is the gradient of J = sum_z pi(z) pi(y|z), to 1e-5. A
    reasoning is any one token of a vocabulary of five, the answer the token 3."""
    shape = model.ModelConfig(vocab_size=5, num_layers=1, d_model=8, num_heads=2, num_kv_heads=2, head_dim=4, d_ff=16,
                              max_seq_len=8)
    params = jax.tree.map(lambda x: x * 6, model.init_params(jax.random.key(0), shape))
    config = GRPOConfig.from_flags(objective="rloo", remat=False, temperature=1.0, group_size=2)
    prompts = Prompts(np.array([[1, 2]], np.int32), np.array([2], np.int32))
    rows = np.array([[z, 3] for z in range(5)], np.int32)
    answer, mask = np.array([[False, True]] * 2), np.ones((2, 2), bool)
    batch = Batch(prompts, np.zeros(5, np.int32), rows, np.ones((5, 2), bool), np.zeros(5, np.float32))
    statistics = learner.make_statistics(shape, config.update)

    def probabilities(params):
        one = jax.tree.map(lambda x: x[None], batch)
        logprobs = statistics(params, one)[0][0]
        return jax.numpy.exp(logprobs[:, 0]), jax.numpy.exp(logprobs[:, 1])

    exact = jax.jit(jax.grad(lambda params: jax.numpy.vdot(*probabilities(params))))(params)
    of_z, of_y = map(np.asarray, probabilities(params))
    assert of_z.sum() == pytest.approx(1, abs=1e-6) and of_y.max() > 3 * of_y.min()
    loss = learner.make_loss(shape, config.update, config.loss)
    gradient = jax.jit(jax.grad(lambda params, micro: -loss(params, {}, micro)[0] / 2))
    total = jax.tree.map(np.zeros_like, params)
    for pair in itertools.product(range(5), repeat=2):
        put_in = ReferenceAnswers(rows[list(pair)], mask, answer, np.log(np.stack([of_z, of_y], 1))[list(pair)])
        targets = rewards.learn_reference_answers(types.SimpleNamespace(reference_answers=put_in))
        rollouts = Rollouts(np.zeros(2, np.int32), rows[list(pair)], mask, np.zeros((2, 2), np.float32),
                            np.ones(2, bool))
        micro = grpo.make_batch(config, prompts, rollouts, Scored(put_in.probability, targets=targets))
        weight = float(of_z[pair[0]] * of_z[pair[1]])
        total = jax.tree.map(lambda t, g: t + weight * np.asarray(g), total, gradient(params, micro))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), total, exact)
    assert max(np.abs(x).max() for x in jax.tree.leaves(exact)) > 1e-2


@pytest.mark.parametrize("changes, message", [
    ({"objective": "grpo"}, "--objective=rloo"), ({"objective": "dapo"}, "--objective=dapo would clip or scale")])
def test_an_objective_that_would_change_the_weights_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        train.check_config(CONFIG.with_flags(**changes))


def test_a_format_that_opens_no_answer_is_refused():
    with pytest.raises(UserError, match="--answer_format=last_number.*answer, boxed, tag, lenient"):
        extract.answer_opening("last_number")
    for name, (opening, _) in extract.STATED.items():
        assert extract.EXTRACTORS[name](f"so {extract.state_answer(name, '17')}") == "17"
        assert extract.state_answer(name, "17").startswith(opening)
