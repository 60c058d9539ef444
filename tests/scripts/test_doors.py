"""The extension points: a reward, an objective, an adapter and a study, added from outside and run."""

import json

import numpy as np
import pytest

from rlvr_jax import adapters, objectives
from rlvr_jax.errors import UserError
from rlvr_jax.grpo import Targets
from rlvr_jax.lab.studies import study
from rlvr_jax.lab.studies.study import StudyConfig
from rlvr_jax.objectives import OBJECTIVES, Objective
from rlvr_jax.pretrained import loading
from rlvr_jax.rewards.rows import REWARDS, Reward
from rlvr_jax.runs import checkpoint
from rlvr_jax.training import train
from scripts import cli

from fixtures import REWARD_RUN, ROOT, read_jsonl

CONFIG = REWARD_RUN.with_flags(heldout="none")


def rows_of(base, tmp_path, **changes) -> list[dict]:
    """The 16 rows of rollouts.jsonl of a run of two steps with two groups of four."""
    train.train(CONFIG.with_flags(model=str(base), run_dir=str(tmp_path / "run"), **changes))
    rows = read_jsonl(tmp_path / "run" / "rollouts.jsonl")
    assert len(rows) == 16
    return rows


# ----- what is added

def shortest(seen):
    """A reward that replaces the sampled tokens to learn from, by the group's first completion."""
    first = seen.rollouts.completions[seen.groups * seen.group_size]
    mask = seen.rollouts.completion_mask[seen.groups * seen.group_size]
    return Targets(first, mask, np.zeros_like(mask), np.zeros(mask.shape, np.float32))


def only_with_rloo(objective):
    return "" if objective == "rloo" else f"--reward=first needs --objective=rloo, not {objective}"


FIRST = Reward(lambda seen: np.arange(len(seen.texts)) % 2.0, check=only_with_rloo, targets=shortest)
SIGNS = Objective(lambda rewards_NxG: np.sign(rewards_NxG - 0.5), objectives.score_function, objectives.sequence_sum)


def on_attention(config, layers, key):
    """LoRA on queries, keys, values and outputs alone."""
    return {name: x for name, x in adapters.lora(config, layers, key).items() if name[0] in "qkvol"}


STUDY = '''
title = "Heat"
question = "Does this base solve fewer problems at a higher temperature?"
known = "Nothing."
prediction = "Yes."
seeds = [7]
control = "cold"
commands.ask = "evaluate --model={BASE} --num_ops=2 --max_new_tokens=10 --max_problems=64 --seed={seed} --out={work}/{arm}"
arms = {cold = {}, hot = {ask = ["--temperature=50"]}}
measures = {right = "{arm}/completions.jsonl: arithmetic", length = "{arm}/summary.json: num_tokens"}
rules = [{says = "hot is worse", arm = "hot", measure = "right", difference = true, below = 0.0}]
'''


# ----- that it works

def test_a_reward_that_refuses_an_objective_and_replaces_the_tokens_to_learn(base, tmp_path, monkeypatch):
    monkeypatch.setitem(REWARDS, "first", FIRST)
    with pytest.raises(UserError, match="--reward=first needs --objective=rloo, not one_shot"):
        rows_of(base, tmp_path, reward="first")
    batches, update = [], train.grpo.grpo_step
    monkeypatch.setattr(train.grpo, "grpo_step", lambda *args: batches.append(update(*args)) or batches[-1])
    rows_of(base, tmp_path, reward="first", objective="rloo")
    for _, record in batches:
        completions = record.batch.completions.reshape(2, 4, -1)
        assert (completions == completions[:, :1]).all() and record.batch.advantages.any()
        assert (record.rollouts.completions.reshape(2, 4, -1) != completions).any()


def test_an_objective(base, tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "signs", SIGNS)
    rows = rows_of(base, tmp_path, objective="signs", reward="format")
    assert [row["advantage"] for row in rows] == [1 if row["reward"] else -1 for row in rows]


def test_rows_added_by_a_script_are_choices_of_its_flags(monkeypatch, parse):
    monkeypatch.setitem(OBJECTIVES, "signs", SIGNS)
    monkeypatch.setitem(adapters.ADAPTERS, "on_attention", on_attention)
    config = parse(train.TrainConfig, "--objective=signs", "--trainable=on_attention")
    assert (config.grpo.loss.objective, config.grpo.adapter.trainable) == ("signs", "on_attention")
    assert cli.describe_row(adapters.ADAPTERS, "on_attention") == "LoRA on queries, keys, values and outputs alone"
    assert cli.describe_row({"signs": SIGNS, "one": (read_jsonl, len)}, "one") == "read jsonl, len"


def test_an_adapter(base, tmp_path, monkeypatch):
    monkeypatch.setitem(adapters.ADAPTERS, "on_attention", on_attention)
    rows_of(base, tmp_path, trainable="on_attention", reward="format", entropy_coef=0.01)
    params = checkpoint.restore_model(str(tmp_path / "run"))[1]
    trained, _ = adapters.split(params)
    assert {name.split("_")[0] for name in trained["layers"]} == set("qkvo")
    assert all(x.any() for x in trained["layers"].values())
    for name, weight in loading.load_model(str(base)).params["layers"].items():
        np.testing.assert_array_equal(params["layers"][name], weight)


def test_a_study(base, compiled, tmp_path, monkeypatch):
    """Runs its two commands as a user would; the page and the record show what they measured."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", compiled)
    (tmp_path / "heat.toml").write_text(STUDY.replace("{BASE}", str(base)))
    page = study.run(StudyConfig.from_flags(study=str(tmp_path / "heat.toml"), work_dir=str(tmp_path / "work")))
    record = json.loads(page.with_suffix(".json").read_text())
    right = {}
    for arm in ("cold", "hot"):
        rows = read_jsonl(tmp_path / "work" / arm / "completions.jsonl")
        right[arm] = np.mean([row["correct"] for row in rows])
        assert record["measures"][arm]["right"]["mean"] == right[arm] and len(rows) == 64
        assert record["measures"][arm]["length"]["seeds"] == [np.mean([row["num_tokens"] for row in rows])]
    assert right["hot"] < right["cold"]
    assert record["measures"]["hot"]["right"]["difference"]["mean"] == pytest.approx(right["hot"] - right["cold"])
    assert record["verdict"] == "undecided" and record["rules"][0]["open"] == "one seed"
    assert "| hot is worse (**primary**) |" in page.read_text()
