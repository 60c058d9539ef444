"""Which program made a run, and which of its rollouts belong together."""

import os
import pathlib
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from rlvr_jax import grpo
from rlvr_jax.records import Problem
from rlvr_jax.runs import origin, summary


def git(directory, *command) -> str:
    return subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=directory, check=True,
                          capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with the program; the process works in another one."""
    for name in ("program", "elsewhere"):
        (tmp_path / name / "rlvr_jax").mkdir(parents=True)
        shutil.copy(origin.__file__, tmp_path / name / "rlvr_jax")
        git(tmp_path / name, "init", "-q")
        git(tmp_path / name, "add", ".")
        git(tmp_path / name, "commit", "-qm", name)
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(origin, "__file__", str(tmp_path / "program" / "rlvr_jax" / "origin.py"))
    return tmp_path / "program"


def test_the_commit_is_that_of_the_program_not_of_the_place_it_is_started_in(checkout, monkeypatch):
    head = git(checkout, "describe", "--always")
    assert origin.commit() == head != git(pathlib.Path.cwd(), "describe", "--always")
    monkeypatch.setenv("GIT_DIR", str(pathlib.Path.cwd() / ".git"))  # as a hook of the other repository sets it
    assert origin.commit() == head
    monkeypatch.delenv("GIT_DIR")
    with open(checkout / "rlvr_jax" / "origin.py", "a") as file:
        file.write("# changed\n")
    assert origin.commit() == f"{head}-dirty"
    assert "+# changed" in origin.run_git("diff", "HEAD").splitlines()


def test_a_program_installed_inside_another_repository_has_no_commit(checkout, monkeypatch):
    installed = checkout / ".venv" / "origin.py"
    installed.parent.mkdir()
    shutil.copy(origin.__file__, installed)
    monkeypatch.setattr(origin, "__file__", str(installed))
    assert origin.commit() == "unknown"


def test_without_git_the_commit_is_unknown(checkout, monkeypatch):
    monkeypatch.setitem(os.environ, "PATH", "/nowhere")
    assert origin.commit() == "unknown"


def test_what_each_reward_of_a_sum_paid_is_logged_and_how_many_groups_were_all_alike():
    """Three groups of two; the rewards of the first are equal, though not their terms."""
    right, box = np.array([1, 0, 1, 0, 1, 0]), np.array([0, 1, 0, 0, 0, 0])
    mask = np.arange(3) < np.array([3, 1, 2, 1, 1, 1])[:, None]
    rollouts = SimpleNamespace(prompt_index=np.arange(6) // 2, ended=np.ones(6, bool), completion_mask=mask,
                               completions=np.arange(18).reshape(6, 3))
    info = {"text": np.array(list("abcdef")), "correct": right, "graded_by": np.full(6, "math"),
            "timed_out": np.zeros(6), "reward/correct": right, "reward/format": box}
    scored = grpo.Scored(right + box, info)
    row = summary.describe_step(rollouts, scored, 2)
    assert row["train/live_groups"] == pytest.approx(2 / 3) and row["train/frac_reward_zero_std"] == pytest.approx(1 / 3)
    assert row["train/reward/correct"] == 0.5 and row["train/reward/format"] == pytest.approx(1 / 6)
    assert row["train/reward_std"] == pytest.approx(8 ** 0.5 / 6)  # over 1, 1, 1, 0, 1, 0, not within groups
    assert (row["train/length_correct"], row["train/length_wrong"]) == (2, 1)
    record = grpo.Record(grpo.PromptBatch(7, None, None), rollouts, scored, SimpleNamespace(advantages=right), {})
    rows = summary.rollout_rows([Problem(name, "1", name) for name in "abc"], record, 2, 6)
    assert [(row["reward/correct"], row["reward/format"]) for row in rows] == list(zip(right, box))
    alone = grpo.Scored(right, {key: x for key, x in info.items() if key != "reward/format"})
    assert not any("/reward/" in key for key in summary.describe_step(rollouts, alone, 2))


@pytest.mark.parametrize("count, kept", [(0, []), (3, [0, 1, 2]), (4, range(4)), (7, range(4)),
                                         (8, [0, 1, 2, 3, 20, 21, 22, 23]), (99, range(24))])
def test_rollouts_are_logged_in_whole_groups_that_are_named(count, kept):
    """Six groups of four, of one problem each; row i says "i"."""
    rewards = np.arange(24) % 5 / 4
    rollouts = SimpleNamespace(prompt_index=np.arange(24) // 4, ended=np.ones(24, bool),
                               completion_mask=np.ones((24, 3), bool))
    scored = grpo.Scored(rewards, {"text": np.array(list(map(str, range(24)))), "correct": rewards > 0,
                                   "graded_by": np.full(24, "math")})
    record = grpo.Record(grpo.PromptBatch(7, None, None), rollouts, scored, SimpleNamespace(advantages=rewards), {})
    rows = summary.rollout_rows([Problem(name, "1", name) for name in "abcdef"], record, 4, count)
    assert [int(row["completion"]) for row in rows] == list(kept)
    for row in rows:
        group = int(row["completion"]) // 4
        assert row["group"] == group and row["prompt"] == "abcdef"[group]
        assert row["group_mean"] == np.mean([i % 5 / 4 for i in range(4 * group, 4 * group + 4)])
