"""A run of GRPO in its directory: it learns, reports its metrics, traces each program once, and is measured."""

import collections
import itertools
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from rlvr_jax.errors import UserError
from rlvr_jax.runs import log, machine, stopping
from rlvr_jax.training import train

from fixtures import REWARD_RUN, read_jsonl, write_jsonl

CONFIG = REWARD_RUN.with_flags(num_prompts=4, reward="format", learning_rate=3e-3, num_steps=3, temperature=1.0)


def run_of(base, tmp_path, **changes):
    config = CONFIG.with_flags(model=str(base), run_dir=str(tmp_path / "run"), **changes)
    return train.train(config), read_jsonl(tmp_path / "run" / "metrics.jsonl")


def test_training_raises_the_reward_it_is_paid_for(base, tmp_path):
    summary, rows = run_of(base, tmp_path, num_steps=25)
    reward = [row["train/reward_mean"] for row in rows[1:]]
    assert np.mean(reward[-5:]) > np.mean(reward[:5]) + 0.2
    assert summary["steps"] == 25 and summary["base"]["n"] == summary["final"]["n"] == 16
    assert (tmp_path / "run" / "summary.json").exists() and rows[0]["step"] == 0


# The state has 56 kB, and exists twice while it is placed.
@pytest.mark.parametrize("room, divided", [(112_000, False), (60_000, True)])
def test_a_state_that_no_device_could_hold_is_divided_among_them_and_that_is_said(base, tmp_path, monkeypatch, capsys,
                                                                                  room, divided):
    monkeypatch.setattr(machine, "memory_limit", lambda: room)
    run_of(base, tmp_path, num_steps=1, heldout="none")
    assert (f"--divide_state={divided}" in (tmp_path / "run" / "flags.txt").read_text().splitlines())
    assert ("it is divided among the devices, as --divide_state does" in capsys.readouterr().err) == divided


def test_every_step_reports_what_diagnoses_a_run(base, tmp_path, monkeypatch):
    """At temperature 0.7, learning from two of each group's four, with a clock that advances a second per reading."""
    monkeypatch.setattr(log, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    summary, rows = run_of(base, tmp_path, kl_coef=0.01, track_kl=False, temperature=0.7, update_group_size=2)
    learnt = CONFIG.grpo.num_prompts * 2
    wanted = {"accuracy", "reward_mean", "reward_std", "live_groups", "entropy", "kl", "clip_fraction", "grad_norm",
              "completion_length", "tokens", "truncated", "logprob_gap_mean", "logprob_gap_max", "ratio_outside",
              "repetition", "loss"}
    for row in rows[1:]:
        assert wanted <= {key[6:] for key in row if key.startswith("train/")}
        assert row["train/tokens"] == pytest.approx(row["train/completion_length"] * learnt)
        assert [row[f"seconds/{phase}"] for phase in ("sample", "score", "update")] == [1, 1, 2]  # reference and update
        assert row["sample/tokens_per_second"] == 2 * row["update/tokens_per_second"] == row["train/tokens"]
        for name in log.numeric_metrics(row):  # a rule may name any of them that is no time
            if name.startswith(("train/", "eval/")):
                stopping.check_metric("--stop_when", name)
            else:
                with pytest.raises(UserError, match=f"{name} would differ in a resumed run"):
                    stopping.check_metric("--stop_when", name)
        assert row["train/logprob_gap_max"] < 1e-4 and row["train/ratio_outside"] == 0
    assert rows[1]["train/kl"] == 0 < rows[3]["train/kl"]
    assert summary["seconds"] == {"eval": 2, "sample": 3, "score": 3, "update": 6}
    assert [row["group"] for row in read_jsonl(tmp_path / "run" / "rollouts.jsonl")] == 3 * [0, 0, 1, 1, 2, 2, 3, 3]


def test_minibatches_alone_are_off_policy_and_the_kl_is_measured_without_a_weight(base, tmp_path):
    """The ratio of the second minibatch is taken to the policy that sampled it."""
    _, rows = run_of(base, tmp_path, num_minibatches=2, num_steps=2, learning_rate=0.05, entropy_coef=0.1,
                     heldout="none")
    first, second = rows[-2:]
    assert min(row["train/clip_fraction"] for row in (first, second)) > 0
    assert second["train/kl"] > first["train/kl"] >= 0
    assert max(row["train/logprob_gap_max"] for row in (first, second)) < 1e-4  # the second step's policy is not the first's


def test_orders_and_rewards_are_drawn_from_streams_of_their_own(base, tmp_path, monkeypatch):
    """NumPy pads a seed with zeros, so (seed, epoch) and (seed, step, 0) could be the same stream."""
    purposes, default_rng = collections.defaultdict(set), np.random.default_rng

    def recorded(seed):
        purposes[tuple(np.random.SeedSequence(seed).generate_state(4))].add(
            sys._getframe(1).f_code.co_qualname.split(".")[0])
        return default_rng(seed)

    monkeypatch.setattr(np.random, "default_rng", recorded)
    run_of(base, tmp_path, reward="random", num_minibatches=2, num_passes=2, example="all", example_pool=4,
           heldout="none")
    kinds = [names & {"curriculum", "minibatches", "coin"} for names in purposes.values()]
    assert max(map(len, kinds)) == 1 and len(set().union(*kinds)) == 3


def test_a_run_whose_rewards_are_all_equal_says_so_and_ends_where_it_was_asked_to(base, tmp_path, capsys):
    inert = {"reward": "format:0", "num_steps": 6, "inert_steps": 3, "save_every": 2, "record_history": True,
             "num_ops": 1}
    summary, rows = run_of(base, tmp_path, **inert, stop_when="inert")
    assert summary["stopped_by"] == {"rule": "inert", "patience": 3, "step": 3, "value": 0.0}
    said = capsys.readouterr().err
    assert rows[-1]["step"] == 3 and said.count("--stop_when=inert ends") == 1
    assert said.count("--model was trained on problems of 2 operations, and these have 1; use --num_ops=2") == 1
    history, = json.loads((tmp_path / "run" / "history.json").read_text()).values()
    assert len(history) == 3 * CONFIG.grpo.num_prompts  # including steps after the last checkpoint
    assert run_of(base, tmp_path, **inert)[0]["steps"] == 6  # continues without the rule


def test_heldout_never_contains_the_example(base, tmp_path):
    """It is recognised by its prompt, which here is more than the question."""
    path = write_jsonl(tmp_path / "problems.jsonl", {"question": "coins 3 + 4", "answer": "7"},
                       {"question": "coins 2 + 4", "answer": "6"})
    summary, _ = run_of(base, tmp_path, problems=path, heldout=path, example="0", answer_format="answer",
                        instruction="=", num_steps=1)
    assert summary["final"]["n"] == 1


def test_heldout_never_contains_a_problem_of_which_only_later_steps_are_trained(base, tmp_path):
    """The expert's first step, which opens the solution, is none that --expert=opened trains."""
    path = write_jsonl(tmp_path / "problems.jsonl", *(
        {"question": f"coins {a} + 4 =", "answer": str(a + 4), "steps": ["think", f"+ 4 {a + 4}"]} for a in (3, 2)))
    for expert in ("own", "opened"):
        summary, _ = run_of(base, tmp_path / expert, problems=path, heldout=path, example="0", answer_format="answer",
                            expert_steps=True, expert=expert, reward="imitation", num_steps=1)
        assert summary["final"]["n"] == 1
