"""Runs that cannot learn print one line with the flag to change; other runs print none."""

import importlib.metadata

import numpy as np
import pytest

from rlvr_jax import grpo
from rlvr_jax.errors import UserError
from rlvr_jax.objectives import OBJECTIVES
from rlvr_jax.records import Batch, Problem, Rollouts
from rlvr_jax.rewards import score
from rlvr_jax.tasks.answers import GradingConfig
from rlvr_jax.training import advice, train
from rlvr_jax.training.train import TrainConfig

from fixtures import run, write_jsonl

# Objectives whose advantage is always the distance to the group's mean, even for a group of one.
CENTRED = {"dr_grpo", "reinforce", "rloo"}


def problems(*answers):
    return [Problem("q", answer, "q") for answer in answers]


def on_flags(**flags) -> str:
    """The warning of a run with these flags before it starts."""
    config = TrainConfig.from_flags(**flags)
    return advice.on_flags(config.grpo, config.rewards.reward, score.is_constant(config.rewards))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_group_of_one_has_no_advantage_under_some_objectives_and_the_bare_reward_under_others(objective):
    text = on_flags(objective=objective, group_size=1)
    assert ("the reward teaches nothing" in text) == (objective in CENTRED)
    assert ("so the advantage is the raw reward" in text) == (objective not in CENTRED | {"entropy"})
    assert not text or f"--group_size=1 under --objective={objective}" in text
    assert not on_flags(objective=objective, group_size=2)
    assert bool(text) == ("--update_group_size=1 under" in on_flags(objective=objective, update_group_size=1))


@pytest.mark.parametrize("base, problems, says", [
    ({"num_ops": 2}, "arithmetic", "trained on problems of 2 operations, and these have 6; use --num_ops=2"),
    ({"num_ops": 6}, "arithmetic", ""), ({"num_ops": 2}, "rows.jsonl", ""), ({}, "arithmetic", "")])
def test_problems_longer_than_those_of_the_base(base, problems, says):
    said = advice.on_base_model(base, TrainConfig.from_flags(problems=problems).source)
    assert said.endswith(says) and bool(said) == bool(says)


def test_without_a_reward_only_entropy_teaches():
    assert "--reward=none with --entropy_coef=0" in on_flags(reward="none", kl_coef=0.1)
    assert not on_flags(reward="none", entropy_coef=0.001, group_size=1, objective="rloo")
    assert not on_flags(reward="correct:1,none:1")  # one informative reward is enough


@pytest.mark.parametrize("answer_format, answer, says", [
    ("last_number", r"\frac{1}{2}", r"the answer '\\frac{1}{2}' (from a completion that states it, '2' is read); "
                                    "try --answer_format=boxed"),
    ("answer", "9 apples", "(from a completion that states it, None is read); try --answer_format=boxed"),
    ("boxed", "}", "correct it in the problems"), ("last_number", "", "correct it in the problems")])
def test_an_answer_that_its_format_cannot_read(answer_format, answer, says):
    text = advice.on_answers(GradingConfig(answer_format), problems(answer))
    assert text.startswith(f"--answer_format={answer_format} with --grader=math never accepts") and says in text
    several = advice.on_answers(GradingConfig(answer_format), problems("7", answer))
    assert "never accepts 1 of 2 answers, such as" in several


@pytest.mark.parametrize("answer_format, answers", [
    ("last_number", ["12.8", "-5", "1,200", r"9\text{ apples}", "025"]), ("answer", ["7", "-7"]),
    ("boxed", [r"\frac{1}{2}", r"\left( 3, \frac{\pi}{2} \right)", "yes"]), ("tag", ["x+1"]), ("lenient", ["x+1"])])
def test_an_answer_that_its_format_can_read(answer_format, answers):
    assert not advice.on_answers(GradingConfig(answer_format), problems(*answers))


def test_the_original_grader_looks_into_the_box_whatever_the_format():
    pytest.importorskip("sympy", reason="pip install -e '.[real]'")
    assert not advice.on_answers(GradingConfig("last_number", "original"), problems(r"\frac{1}{2}"))


def test_words_that_the_model_lacks_are_named_before_a_package_that_would_grade_them(base, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: importlib.metadata.distribution("not installed"))
    path = write_jsonl(tmp_path / "p.jsonl", {"question": "koins 1 + 1 =", "answer": "2"})
    for asked in ({"question": "koins 1 + 1 =", "answer": "2"}, {"problems": path}):
        with pytest.raises(UserError, match="the model does not know 'koins'"):
            train.train(TrainConfig.from_flags(model=str(base), run_dir=str(tmp_path / "run"), max_new_tokens=10,
                                               **asked))


def step_of(rewards, advantages, number=1) -> grpo.Record:
    """A step of one group of four, all but the first of its completions cut at 22 tokens."""
    index, mask = np.zeros(4, np.int32), np.ones((4, 22), bool)
    rollouts = Rollouts(index, np.zeros((4, 22), np.int32), mask, None, np.array([True, False, False, False]))
    info = {"text": index, "correct": index, "timed_out": index, "graded_by": np.array(["x"] * 4)}
    batch = Batch(None, index, rollouts.completions, mask, np.array(advantages, np.float32))
    return grpo.Record(grpo.PromptBatch(number, None, index), rollouts,
                       grpo.Scored(np.array(rewards, np.float32), info), batch, {})


def first_step(rewards, advantages) -> str:
    return advice.on_first_step(step_of(rewards, advantages))


def test_a_first_step_that_teaches_nothing():
    none, equal = first_step([0] * 4, [0] * 4), first_step([1] * 4, [0] * 4)
    assert "none of the 4 completions" in none and "75% of them were cut at --max_new_tokens=22" in none
    assert "all 4 completions of step 1 have the full reward" in equal and "--example" in equal
    assert not first_step([0, 1, 0, 0], [-1, 1, -1, -1])
    assert not first_step([0, 0, 1, 1], [0] * 4)  # the groups differ, so later steps may teach
    assert not first_step([1] * 4, [1] * 4)  # a group of one, compared with 0


def test_only_the_first_step_is_warned_of_and_not_where_every_reward_is_the_same(capsys):
    config = TrainConfig.from_flags(group_size=4, log_rollouts=0)
    for changes, number, warned in (({}, 1, True), ({}, 2, False), ({"reward": "none"}, 1, False)):
        train.make_rows(config.with_flags(**changes), problems("1"), [], step_of([0] * 4, [0] * 4, number))
        assert ("none of the 4 completions" in capsys.readouterr().err) == warned


def test_a_run_whose_rewards_stay_equal_says_once_which_term_pays_what(capsys):
    """In steps 1 to 3 no group has different rewards; in step 4 one has, and in the next four again none."""
    config, logged = TrainConfig.from_flags(group_size=4, log_rollouts=0, inert_steps=3), []
    for number, live in enumerate([0, 0, 0, 1, 0, 0, 0, 0], 1):
        step = step_of([live, 0.5, 0.5, 0.5] if live else [0.5] * 4, [1, 0, 0, 0], number)
        info = step.scored.info | {"reward/correct": np.zeros(4), "reward/format": np.array([0, 1, 1, 1])}
        step = step._replace(scored=step.scored._replace(info=info))
        logged.append(train.make_rows(config, problems("1"), logged, step)[0])
        said = capsys.readouterr().err
        assert ("all rewards of each group have been equal for 3 steps" in said) == (number in (3, 7))
        assert number != 3 or "(step 3: correct pays every completion 0, format pays 0 to 1); choose" in said
        train.make_rows(config.with_flags(reward="none"), problems("1"), logged[:-1], step)
        assert not capsys.readouterr().err


def test_a_run_prints_them_once(tmp_path, base, compiled):
    flags = (f"--model={base}", f"--run_dir={tmp_path / 'run'}", "--num_prompts=4", "--group_size=1", "--noremat",
             "--objective=dr_grpo", "--max_new_tokens=4", "--question=coins 7 + 5 - 3 =", r"--answer=\frac{1}{2}",
             "--answer_format=last_number")
    lines = [line for line in run("train", *flags, "--num_steps=2", compiled=compiled, expect=0).err.splitlines()
             if "warning:" in line]
    assert [line[: len("warning: ")] for line in lines] == ["warning: "] * 3
    for line, says in zip(lines, ("--group_size=1 under", r"'\\frac{1}{2}'", "none of the 4 completions of step 1")):
        assert says in line
