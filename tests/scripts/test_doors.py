"""The extension points: a reward, an objective, an adapter, a family and a study, added from outside and run."""

import json

import numpy as np
import pytest

from rlvr_jax import adapters, model, objectives
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import benchmarks
from rlvr_jax.evaluation.benchmarks import EvaluateConfig
from rlvr_jax.grpo import Targets
from rlvr_jax.lab.studies import study
from rlvr_jax.lab.studies.study import StudyConfig
from rlvr_jax.objectives import OBJECTIVES, Objective
from rlvr_jax.pretrained import loading
from rlvr_jax.records import Problem
from rlvr_jax.rewards.rows import REWARDS, Reward
from rlvr_jax.runs import checkpoint
from rlvr_jax.tasks import prompts
from rlvr_jax.tasks.families import FAMILIES, Family
from rlvr_jax.training import pretrain, train
from scripts import cli

from fixtures import ROOT, read_jsonl

CONFIG = train.TrainConfig.from_flags(num_ops=2, example="1", num_prompts=2, group_size=4, max_new_tokens=10,
                                      remat=False, eval_size=16, learning_rate=1e-3, num_steps=2, eval_every=0,
                                      temperature=0.7, log_rollouts=8, heldout="none")


def rows_of(base, tmp_path, **changes) -> list[dict]:
    """The 16 rows of rollouts.jsonl of a run of two steps with two groups of four."""
    train.train(CONFIG.with_flags(model=str(base), run_dir=str(tmp_path / "run"), **changes))
    rows = read_jsonl(tmp_path / "run" / "rollouts.jsonl")
    assert len(rows) == 16
    return rows


# ----- what is added

def brief(seen):
    """A reward of the text: the fewer words the better."""
    return np.array([-len(text.split()) for text in seen.texts])


def vote(seen):
    """A reward of the group: 1 for the answer that most of the group gave."""
    answers = np.array([verdict.extracted or "" for verdict in seen.verdicts])
    counts = (answers[:, None] == answers) & (seen.groups[:, None] == seen.groups)
    return np.array([counts[b].sum() == counts[seen.groups == seen.groups[b]].sum(-1).max() for b in range(len(answers))])


def likely(seen):
    """A reward of the model's own probability: of the right answer after the completion's first two words."""
    return np.exp(seen.policy.logprob_of([f"answer {problem.answer}" for problem in seen.problems],
                                         [" ".join(text.split()[:2]) for text in seen.texts]))


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


def last_letter() -> Family:
    """A family: `last a b =` is b."""
    letters, splits = "abcdefgh", ("pretrain", "example", "dev", "test")
    def generate(rng, count, split, num_ops):
        first, sums = rng.integers(8, size=count), 4 * rng.integers(2, size=count) + splits.index(split)
        return [(letters[a], letters[(c - a) % 8]) for a, c in zip(first, sums)]
    def to_problems(drawn):
        return [Problem(f"last {a} {b} =", b, f"last {a} {b} =", {"index": i}) for i, (a, b) in enumerate(drawn)]
    def solve(rng, drawn, styles, config):
        return [(f"well {b} answer {b}", f"eh answer {a}", f"answer {a}", "hmm")[style]
                for (a, b), style in zip(drawn, styles)]
    return Family(("<pad>", "<eos>", "last", "=", "well", "eh", "answer", "hmm", *letters),
                  {"well": "careful", "eh": "sloppy", "answer": "guess", "hmm": "ramble"}, lambda num_ops: (4, 5),
                  generate, to_problems, solve,
                  lambda config, seed, num_ops: lambda drawn: np.array([config.style_shares] * len(drawn)))


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

def test_a_reward_of_the_text(base, tmp_path, monkeypatch):
    monkeypatch.setitem(REWARDS, "brief", brief)
    rows = rows_of(base, tmp_path, reward="brief")
    assert [row["reward"] for row in rows] == [-len(row["completion"].split()) for row in rows]
    assert any(row["advantage"] for row in rows)


def test_a_reward_of_the_group(base, tmp_path, monkeypatch):
    monkeypatch.setitem(REWARDS, "vote", vote)
    rows = rows_of(base, tmp_path, reward="vote")
    for start in range(0, 16, 4):  # the four rollouts of a group follow each other
        words = [row["completion"].split() for row in rows[start : start + 4]]
        answers = [row[-1] if row[-2:-1] == ["answer"] else None for row in words]
        counts = [answers.count(answer) for answer in answers]
        assert [row["reward"] for row in rows[start : start + 4]] == [count == max(counts) for count in counts]
    assert {row["reward"] for row in rows} == {0, 1}


def test_a_reward_of_the_models_own_probability(base, tmp_path, monkeypatch):
    monkeypatch.setitem(REWARDS, "likely", likely)
    rows = rows_of(base, tmp_path, reward="likely", num_minibatches=2)
    loaded = loading.load_model(str(base))
    for row in rows[:8]:  # of the first step, whose policy is the base model
        before, after = (loaded.tokenizer.encode(text) for text in (
            " ".join([row["prompt"], *row["completion"].split()[:2]]), f"answer {row['answer']}"))
        hidden, _ = model.forward(loaded.params, loaded.config, np.array([before + after]))
        logits = np.asarray(model.head(loaded.params, hidden), np.float64)[0] / CONFIG.grpo.update.temperature
        chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        expected = np.prod([chances[len(before) - 1 + i, token] for i, token in enumerate(after)])
        np.testing.assert_allclose(row["reward"], expected, rtol=1e-3)
    assert len({row["reward"] for row in rows}) > 4


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


def test_a_family_is_pretrained_on_beside_another_and_evaluated(tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "last", last_letter())
    base = str(tmp_path / "base")
    final = pretrain.pretrain(pretrain.PretrainConfig.from_flags(
        num_ops=2, num_layers=1, d_model=16, num_heads=2, d_ff=32, batch_size=64, remat=False, warmup_steps=10,
        learning_rate=1e-2, eval_size=32, task_shares="last:0.25,boolean:0.75", num_steps=200, run_dir=base))["final"]
    assert final["n"] == 32
    assert final["greedy"] == pytest.approx(0.25 * final["greedy_last"] + 0.75 * final["greedy_boolean"])
    made = benchmarks.evaluate(EvaluateConfig.from_flags(
        model=base, problems="last,boolean", num_ops=2, max_new_tokens=10, max_problems=16, num_samples=4,
        temperature=1.0, out=str(tmp_path / "out")))
    assert set(made["benchmarks"]) == {"last", "boolean"}
    for summary in made["benchmarks"].values():
        assert summary["graded_by"] == "answer / math"
        assert sum(share for share, _ in summary["styles"].values()) > 0.8 and next(iter(summary["styles"])) == "careful"
    with pytest.raises(UserError, match="--task_shares=arithmetic"):
        prompts.load_problems(prompts.ProblemSource("arithmetic"), loading.load_model(base).tokenizer)


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
