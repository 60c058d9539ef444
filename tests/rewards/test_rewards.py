"""Rewards: the policy's distributions, the rows of the table, and weighted sums. test_doors.py adds further rewards."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from rlvr_jax import objectives
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import measure
from rlvr_jax.grading import grade
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.records import REWARD_DRAWS, Rollouts
from rlvr_jax.rewards import rows as rewards, score
from rlvr_jax.runs import processes
from rlvr_jax.runs.summary import describe_step
from rlvr_jax.tasks import pool
from rlvr_jax.training import train

from fixtures import REWARD_RUN, full_logits, load_problems, make_scorer, saying, steered_model, training_problems


# ----- what a reward sees

def test_the_policy_is_the_one_that_drew_the_rollouts(sampled, seen):
    mask = sampled[4].completion_mask
    np.testing.assert_allclose(seen.policy.logprobs[mask], sampled[4].sampler_logprobs[mask], atol=2e-5)


def test_entropy_and_self_certainty_are_those_of_the_whole_distribution(sampled, seen):
    loaded, _, prompts, _, rollouts = sampled
    for b in (0, 7):
        length = int(prompts.lengths[rollouts.prompt_index[b]])
        tokens = np.concatenate([prompts.tokens[rollouts.prompt_index[b], :length], rollouts.completions[b]])
        logits = np.asarray(full_logits(loaded.params, loaded.config, tokens), np.float64)[length - 1 : -1]
        logits /= REWARD_RUN.grpo.update.temperature
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(seen.policy.entropies[b], -(p * np.log(p)).sum(-1), atol=2e-5)
        size = p.shape[-1]
        np.testing.assert_allclose(seen.policy.self_certainty[b], (np.log(1 / size / p) / size).sum(-1), atol=2e-4)


def test_the_probability_of_another_text_after_a_beginning(sampled, seen):
    """After the first two tokens of each completion, its next two are as likely as when they were drawn."""
    rollouts, words = sampled[4], [text.split(" ") for text in seen.texts]  # a word is a token
    long = [i for i, row in enumerate(words) if len(row) > 3]
    found = seen.policy.logprob_of([" ".join(row[2:4]) for row in words], [" ".join(row[:2]) for row in words])
    assert len(long) > 2
    np.testing.assert_allclose(found[long], rollouts.sampler_logprobs[long, 2:4].sum(-1), atol=5e-5)


def test_a_group_is_a_row_of_the_step_and_the_key_a_function_of_seed_and_step(seen):
    assert seen.groups.tolist() == [0, 0, 0, 0, 1, 1, 1, 1] and seen.key == (0, 3, 0, REWARD_DRAWS)
    assert [problem.prompt for problem in seen.problems[::4]] == [p.prompt for p in seen.problems[3::4]]


def test_the_coin_pays_at_its_rate_and_the_same_when_asked_again(seen):
    many = dataclasses.replace(seen, texts=["x"] * 20_000, config=seen.config.with_flags(random_rate=0.3))
    paid = rewards.coin(many)
    assert set(paid) == {0, 1} and abs(paid.mean() - 0.3) < 0.02
    np.testing.assert_array_equal(paid, rewards.coin(many))
    assert (paid != rewards.coin(dataclasses.replace(many, key=(0, 4, 0)))).any()


def scoring(reward):
    """`score(attempt)` of eight completions of two problems, as a run with this reward computes it."""
    steered = steered_model()
    loaded = LanguageModel(steered.config, steered.params, steered.words)
    problems = load_problems("arithmetic", loaded.tokenizer, count=2, num_ops=2)
    texts = [f"guess answer {problem.answer if i % 3 else 25} <eos>" for i in range(4) for problem in problems]
    ids = np.array([loaded.tokenizer.encode(text) for text in texts])
    there = np.ones(ids.shape, bool)
    index, logprobs_BxT = np.repeat(np.arange(2, dtype=np.int32), 4), np.zeros(ids.shape, np.float32)
    rollouts = Rollouts(index, ids, there, logprobs_BxT, there[:, 0])
    score_of = make_scorer(REWARD_RUN.with_flags(reward=reward), loaded, problems, None)
    return lambda attempt=0: score_of(rollouts, None, 3, attempt)


def test_another_attempt_of_a_step_draws_other_coins():
    score_of = scoring("random")
    first, again, second = (score_of(attempt).reward for attempt in (0, 0, 1))
    assert (first == again).all() and (first != second).any()


def test_verdicts_and_rewards_of_the_main_process_hold_on_all(monkeypatch):
    """Another process, whose grader returns the opposite, uses what the main process sends."""
    score_of, sent = scoring("correct"), []
    with monkeypatch.context() as main:
        main.setattr(processes, "broadcast", lambda x: sent.append(x) or x)
        told = score_of()
    graded = score.answers.verdicts
    monkeypatch.setattr(score.answers, "verdicts", lambda *args: [
        verdict._replace(correct=not verdict.correct, timed_out=True) for verdict in graded(*args)])
    monkeypatch.setattr(processes, "broadcast", lambda x: sent.pop(0))
    other = score_of()
    assert 0 < told.reward.sum() < 8 and (other.reward == told.reward).all()
    for name in ("correct", "timed_out"):
        np.testing.assert_array_equal(other.info[name], told.info[name])


# ----- rows of the table

def asking(seen, *answers):
    """The step's problems with other reference answers."""
    return [dataclasses.replace(problem, answer=answer) for problem, answer in zip(seen.problems, answers)]


def test_inverted_pays_for_what_is_not_correct(seen):
    given = saying(seen, "3", "4", None, "3", "3", "3", "3", "4", problems=asking(seen, *["3"] * 8))
    np.testing.assert_array_equal(rewards.correctness(given), [1, 0, 0, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(rewards.inverted_correctness(given), [0, 1, 1, 0, 0, 0, 0, 1])


def test_each_group_is_permuted_by_itself():
    verdicts = [grade.Verdict(right, "3", False) for right in [True, False, False, False] * 2]
    permute = lambda i: rewards.permuted_correctness(
        SimpleNamespace(verdicts=verdicts, group_size=4, key=(i,))).reshape(2, 4)
    many = np.array([permute(i) for i in range(200)])
    assert (many.sum(-1) == 1).all() and np.abs(many.mean(0) - 0.25).max() < 0.1  # each place is equally likely
    assert 0.15 < (many[:, 0] == many[:, 1]).all(-1).mean() < 0.35  # one in four by chance, not always
    np.testing.assert_array_equal(permute(0), permute(0))


def test_votes_are_asked_for_where_a_reward_needs_them():
    asked = {name: score.needs_votes(rewards.RewardConfig(name)) for name in ("correct", "majority", "incorrect")}
    assert asked == {"correct": False, "majority": True, "incorrect": True}
    assert not score.needs_votes(rewards.RewardConfig("incorrect", wrong_answer="5"))
    assert score.needs_votes(rewards.RewardConfig("incorrect:1,majority:1", wrong_answer="5"))


def test_ttrl_votes_anew_in_every_step_over_all_completions_of_a_problem(seen):
    """Two groups of four vote together if they share a problem. A tie goes to the first answer."""
    answers = ["3", "3", "4", None, "5", "5", "5", "4"]
    apart = saying(seen, *answers)
    np.testing.assert_array_equal(apart.rollouts.prompt_index, [0] * 4 + [1] * 4)
    np.testing.assert_array_equal(rewards.ttrl(apart), [1, 1, 0, 0, 1, 1, 1, 0])
    together = dataclasses.replace(apart, rollouts=apart.rollouts.replace(prompt_index=np.zeros(8, np.int32)))
    np.testing.assert_array_equal(rewards.ttrl(together), [0, 0, 0, 0, 1, 1, 1, 0])
    later = saying(together, "4", "4", "4", "4", "5", "5", "5", "3")
    np.testing.assert_array_equal(rewards.ttrl(later), [1, 1, 1, 1, 0, 0, 0, 0])
    assert rewards.ttrl(saying(seen, *[None] * 8)).sum() == 0


def test_labels_of_before_training_are_paid_for_whatever_the_step_says(seen):
    votes = {"votes": {"majority": "3", "majority_correct": False, "wrong": "4"}}
    given = saying(seen, "3", "4", "5", None, "03", "4", "4", "3", meta=votes)
    np.testing.assert_array_equal(rewards.majority_vote(given)[:4], [1, 0, 0, 0])
    np.testing.assert_array_equal(rewards.wrong_vote(given)[:4], [0, 1, 0, 0])
    fixed = dataclasses.replace(given, config=given.config.with_flags(wrong_answer="5"))
    np.testing.assert_array_equal(rewards.wrong_vote(fixed)[:4], [0, 0, 1, 0])
    none = saying(seen, *["4"] * 8, meta={"votes": {"majority": None, "majority_correct": False, "wrong": None}})
    assert rewards.majority_vote(none).sum() == rewards.wrong_vote(none).sum() == 0


@pytest.mark.parametrize("given, answer, wanted", [
    ("10", "10", 1), ("10.1", "10", 0.945), ("10.5", "10", 0.725), ("11", "10", 0.45), ("20", "10", 5e-8),
    ("25", "10", 0), (".1", "0", 0.45), ("0", "0", 1), ("x", "10", 0), (None, "10", 0)])
def test_continuous_is_the_sheets(given, answer, wanted):
    assert rewards.closeness(given, answer) == pytest.approx(wanted, abs=1e-7)


def test_continuous_refuses_a_reference_that_is_no_number(seen):
    with pytest.raises(UserError, match="--reward=continuous needs numbers.*blue"):
        rewards.continuous(saying(seen, *["4"] * 8, problems=asking(seen, *["blue"] * 8)))


def stepping(seen, step, *texts):
    """Completions of single steps, where the expert's next step is `step`."""
    problems = [dataclasses.replace(problem, meta=problem.meta | {"step": step}) for problem in seen.problems]
    return dataclasses.replace(seen, problems=problems, texts=[*texts, *[""] * (len(problems) - len(texts))])


@pytest.mark.parametrize("text, words, characters, same", [
    ("12 + 7 = 19", 1, 1, 1), ("12 + 7 = 18", 0.8, 0.909091, 0), ("", -1, -1, 0), ("  \n 12", 2 / 6, 2 * 2 / 13, 0),
    ("12 + 7 = 19 and so on", 1, 1, 1), ("12 + 7 = 19\nand", 1, 1, 1), ("+ 12 7 = 19", 0.8, 18 / 22, 0)])
def test_imitation_is_the_sheets_ratio_of_the_next_step(seen, text, words, characters, same):
    """2M/T: for "12 + 7 = 18", 4 of 5 words and 10 of 11 letters match (methods sheet, section 9)."""
    said = stepping(seen, "12 + 7 = 19", text)
    assert rewards.imitation(said)[0] == pytest.approx(words, abs=1e-6)
    assert rewards.imitation_characters(said)[0] == pytest.approx(characters, abs=1e-6)
    assert rewards.step_accuracy(said)[0] == same


def test_imitation_pays_no_other_opening_word_for_its_letters(seen):
    said = stepping(seen, "think", "think + 5", "quick 12 18", "hmm river so", "answer 3")
    np.testing.assert_array_equal(rewards.imitation(said)[:4], [1, 0, 0, 0])
    np.testing.assert_allclose(rewards.imitation_characters(said)[:4], [1, 0.4, 0.25, 2 / 11], atol=1e-6)


@pytest.mark.parametrize("name", ["imitation", "imitation_characters", "step_accuracy"])
def test_imitation_needs_the_experts_steps(seen, name):
    with pytest.raises(UserError, match="--expert_steps"):
        rewards.REWARDS[name](seen)


def test_self_certainty_and_entropy_are_means_over_the_completions_tokens(seen):
    mask = seen.rollouts.completion_mask
    for b, length in enumerate(mask.sum(-1)):
        assert rewards.self_certainty(seen)[b] == pytest.approx(seen.policy.self_certainty[b, :length].mean(), abs=1e-5)
        assert rewards.low_entropy(seen)[b] == pytest.approx(-seen.policy.entropies[b, :length].mean(), abs=1e-5)
    assert len(set(mask.sum(-1))) > 1


def test_overlong_is_the_sheets(seen):
    """Lengths 16384, 17408, 18432, 20480 of at most 20480 with a buffer of 4096: 0, -.25, -.5, -1; here in 1024s."""
    config = seen.config.with_flags(overlong_buffer=4)
    lengths = np.array([16, 17, 18, 20, 3, 0, 19, 20])
    rollouts = seen.rollouts.replace(completions=np.zeros((8, 20), np.int32),
                                     completion_mask=np.arange(20) < lengths[:, None])
    given = dataclasses.replace(seen, config=config, rollouts=rollouts)
    np.testing.assert_allclose(rewards.overlong(given), [0, -0.25, -0.5, -1, 0, 0, -0.75, -1])
    assert not rewards.overlong(dataclasses.replace(given, config=config.with_flags(overlong_buffer=0))).any()


# ----- votes before training

def test_votes_are_counts_of_the_models_own_answers():
    given = {0: ["3"] * 30 + ["4"] * 20 + [None] * 14, 1: ["5"] * 40 + ["6"] * 4 + [""] * 20}
    right = {0: "4", 1: "5"}
    rows = [{"problem": place, "extracted": text, "correct": text == right[place]}
            for place, texts in given.items() for text in texts]
    assert measure.majority_votes(rows, 2) == [
        {"majority": "3", "majority_correct": False, "wrong": "3"},
        {"majority": "5", "majority_correct": True, "wrong": "6"}]


def test_only_problems_with_a_wrong_majority_are_trained_on(base):
    loaded = loading.load_model(str(base))
    config = REWARD_RUN.with_flags(example="all", example_pool=3, only_wrong_majority=True)
    three = pool.load_pool(config.pool, config.source, loaded.tokenizer, config.grpo.loop.seed)

    def chosen(vote, **changes):
        changed = config.with_flags(**changes)
        return pool.training_problems(changed.pool, changed.source.problems, three, None, vote)

    def vote(pool):
        return [{"majority": "1", "majority_correct": place != 1, "wrong": "2"} for place in range(len(pool))]

    every, kept = chosen(vote, only_wrong_majority=False), chosen(vote)
    assert len(every) == 3 and kept == [every[1]] and len(train.encode_problems(config, loaded, kept).lengths) == 1
    with pytest.raises(UserError, match="--only_wrong_majority leaves no problem"):
        chosen(lambda pool: [{"majority_correct": True}] * len(pool))


# ----- an expert's steps

def test_a_problem_becomes_one_item_a_step_of_the_careful_solution(base):
    loaded = loading.load_model(str(base))
    config = REWARD_RUN.with_flags(example="0", expert_steps=True, max_new_tokens=3)  # room for one step
    items, (whole,) = (training_problems(each, loaded) for each in (config, config.with_flags(expert_steps=False)))
    assert len(items) == len(train.encode_problems(config, loaded, items).lengths) == 4
    assert len({item.meta["index"] for item in items}) == 4
    solution = " ".join(item.meta["step"] for item in items)
    assert solution.split()[0] == "think" and solution.endswith(f"answer {whole.answer}")
    value = int(whole.prompt.split()[1])
    for k, item in enumerate(items):
        before = [item.meta["step"] for item in items[:k]]
        assert item.prompt == " ".join([whole.prompt, *before]) and item.answer == whole.answer
    for op, operand, result in zip(*[iter(solution.split()[1:-2])] * 3):
        value = {"+": value + int(operand), "-": value - int(operand), "*": value * int(operand),
                 "/": value // int(operand)}[op]
        assert value == int(result)
    assert value == int(whole.answer)


def items_of(base, **flags):
    config = REWARD_RUN.with_flags(expert_steps=True, max_new_tokens=3, example_pool=5, **flags)
    return training_problems(config, loading.load_model(str(base)))


def test_which_of_an_experts_steps_are_wanted_is_a_choice(base):
    """The prompt always continues with the problem's own steps."""
    own, opened, another, shuffled = (items_of(base, example="all", expert=name)
                                      for name in ("own", "opened", "another", "shuffled"))
    wanted = {name: [item.meta["step"] for item in items] for name, items in (
        ("own", own), ("another", another), ("shuffled", shuffled))}
    assert opened == [item for item in own if item.meta["step"] != "think"] and len(opened) == len(own) - 5
    assert [item.prompt for item in own] == [item.prompt for item in another] == [item.prompt for item in shuffled]
    assert all(item.prompt.endswith("= think") or "= think " in item.prompt for item in opened)
    size = len(own) // 5
    assert wanted["another"] == wanted["own"][size:] + wanted["own"][:size]
    for i, step in enumerate(wanted["shuffled"]):
        problem = i // size * size
        assert step in wanted["own"][:problem] + wanted["own"][problem + size :]
    assert len(set(wanted["shuffled"][::size])) > 1 and shuffled == items_of(base, example="all", expert="shuffled")


@pytest.mark.parametrize("flags, says", [
    ({"example": "0", "expert": "another"}, "--expert=another takes steps of other problems.*--example=all"),
    ({"example": "0", "expert": "shuffled"}, "--expert=shuffled takes steps of other problems"),
    ({"example": "0", "expert": "opened", "expert_steps": False}, "--expert=opened selects.*give --expert_steps")])
def test_a_choice_of_steps_that_cannot_be_met_is_refused(base, flags, says):
    config = REWARD_RUN.with_flags(**{"expert_steps": True, "max_new_tokens": 3, **flags})
    with pytest.raises(UserError, match=says):
        training_problems(config, loading.load_model(str(base)))


def test_the_share_of_the_experts_steps_is_logged_whatever_is_paid(sampled):
    loaded, problems, prompts, params, rollouts = sampled
    first = loaded.tokenizer.decode_rollouts(rollouts)[0].split()[0]
    asked = [dataclasses.replace(problem, meta=problem.meta | {"step": first}) for problem in problems]
    scored = make_scorer(REWARD_RUN.with_flags(reward="random"), loaded, asked, prompts)(rollouts, params, 1)
    opened = np.array([text.split()[:1] == [first] for text in scored.info["text"]])
    assert 0 < opened.mean() < 1
    assert describe_step(rollouts, scored, len(opened))["train/step_accuracy"] == pytest.approx(opened.mean())
    plain = make_scorer(REWARD_RUN, loaded, problems, prompts)(rollouts, params, 1)
    assert "train/step_accuracy" not in describe_step(rollouts, plain, len(opened))


def test_a_files_steps_are_read_and_a_file_without_is_refused(base, tmp_path):
    loaded, file = loading.load_model(str(base)), tmp_path / "steps.jsonl"
    file.write_text(json.dumps({"question": "coins 3 + 4 =", "answer": "7", "steps": ["think + 4 7", "answer 7"]}))
    config = REWARD_RUN.with_flags(problems=str(file), example="0", expert_steps=True, max_new_tokens=4)
    items = training_problems(config, loaded)
    assert [item.prompt for item in items] == ["coins 3 + 4 =", "coins 3 + 4 =\nthink + 4 7"]
    file.write_text(json.dumps({"question": "coins 3 + 4 =", "answer": "7"}))
    with pytest.raises(UserError, match="--expert_steps needs the steps.*coins 3"):
        training_problems(config, loaded)


# ----- sums

@pytest.mark.parametrize("text, says", [
    ("corect", "is none of correct, format, random, inverted"), ("correct:1,", "is none of correct, format"),
    ("", "is none of correct, format"), ("correct:much", "the weight of correct is 'much', no finite number"),
    ("correct:1,format:nan", "the weight of format is 'nan', no")])
def test_what_is_no_reward_is_refused_with_the_names_that_are(text, says):
    with pytest.raises(UserError, match=f"--reward=.*{says}"):
        score.parse_reward(text)


def test_an_error_inside_a_reward_keeps_its_own_line(seen):
    with pytest.raises(ValueError, match="could not convert string to float: 'maybe'"):
        score.score_row("num", rewards.Reward(lambda context: float("maybe")), seen)


# ----- advantages of tokens

@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_an_advantage_for_each_token_that_is_the_same_everywhere_is_the_completions(name):
    rng = np.random.default_rng(0)
    policy, old, advantages = rng.normal(-1, 0.3, (3, 5)), rng.normal(-1, 0.3, (3, 5)), rng.normal(size=3)
    objective = objectives.OBJECTIVES[name]
    made = [objective.token_loss(policy, old, a, np.ones((3, 5), bool), objective.clip_low, objective.clip_high)
            for a in (advantages, np.repeat(advantages[:, None], 5, 1))]
    np.testing.assert_array_equal(*made)


# ----- invalid rewards

@pytest.mark.parametrize("made, says", [
    (np.zeros(7), r"shape \(7,\) and type float64"), (np.zeros((8, 1)), r"shape \(8, 1\)"), (1.0, r"shape \(\)"),
    (None, "type object"), (["1"] * 8, "type <U1"), (np.zeros(8, complex), "type complex128"),
    ([[1], [1, 2]] * 4, "an array of shape .*"), ([1.0] * 7 + [np.nan], "nan for completion 7, and 1 in all"),
    (np.array([np.inf, 0, 0, -np.inf] * 2), "inf for completion 0, and 4 in all"),
    ([1e39] * 8, "1e\\+39 for completion 0")])
def test_a_reward_that_gives_no_numbers_is_named(sampled, monkeypatch, made, says):
    loaded, problems, encoded, params, rollouts = sampled
    monkeypatch.setitem(rewards.REWARDS, "mine", lambda seen: made)
    pay = make_scorer(REWARD_RUN.with_flags(reward="format:0.5,mine:2"), loaded, problems, encoded)
    with pytest.raises(UserError, match=f"reward mine must return 8 finite numbers, one .*; it returned .*{says}"):
        pay(rollouts, params, 3)


@pytest.mark.parametrize("made", [[1, 2] * 4, [True, False] * 4, np.arange(8, dtype=np.int8)])
def test_a_list_of_numbers_is_a_reward_and_each_term_is_kept(sampled, monkeypatch, made):
    loaded, problems, encoded, params, rollouts = sampled
    monkeypatch.setitem(rewards.REWARDS, "mine", lambda seen: made)
    pay = make_scorer(REWARD_RUN.with_flags(reward="format:0.5,mine:2"), loaded, problems, encoded)
    scored = pay(rollouts, params, 3)
    terms = scored.info["reward/format"], scored.info["reward/mine"]
    np.testing.assert_array_equal(terms[1], np.asarray(made, np.float32))
    np.testing.assert_allclose(scored.reward, 0.5 * terms[0] + 2 * terms[1])
    with pytest.raises(UserError, match="--reward=mine:1e38: the weighted sum is too large"):
        monkeypatch.setitem(rewards.REWARDS, "mine", lambda seen: [100.0] * 8)
        make_scorer(REWARD_RUN.with_flags(reward="mine:1e38"), loaded, problems, encoded)(rollouts, params, 3)
