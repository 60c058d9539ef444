"""The published experiment's command, end to end, on a random model that has Qwen2.5-Math's layout.

What differs from the experiment is the size of the model, the number of steps and the length of the completions.
"""

import json
import math

import jax
import numpy as np
import pytest

from rlvr_jax.pretrained import huggingface, loading, tokenizer
from rlvr_jax.runs import checkpoint

from fixtures import PAPER_ANSWER, PAPER_GROUP, PAPER_GROUPS, PAPER_MODEL, PAPER_TOKENS, read_jsonl, saved_arrays
from golden.cases import assert_same_params


@pytest.fixture(scope="module")
def rollouts(paper_run):
    """The 1,024 rows of each step."""
    rows = read_jsonl(paper_run / "rollouts.jsonl")
    return [[row for row in rows if row["step"] == step] for step in (1, 2)]


def test_every_step_answers_the_one_problem_1024_times(rollouts, qwen2_folder, data):
    import pyarrow.parquet
    row = pyarrow.parquet.read_table(data / "one_shot_rlvr" / "pi1_r128.parquet").to_pylist()[0]
    words = tokenizer.load_tokenizer(qwen2_folder)
    prompt = words.render_chat(row["prompt"])
    assert "put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>user\nThe pressure" in prompt
    assert [len(rows) for rows in rollouts] == [PAPER_GROUPS * PAPER_GROUP] * 2
    assert {(row["prompt"], row["answer"]) for rows in rollouts for row in rows} == {(prompt, "12.8")}


def test_each_copy_of_the_problem_is_a_group_of_its_own(rollouts):
    for rows in rollouts:
        assert all(row["reward"] == row["correct"] for row in rows)
        rewards = np.array([row["reward"] for row in rows]).reshape(PAPER_GROUPS, PAPER_GROUP)
        spread = rewards.std(1, ddof=1, keepdims=True)
        expected = (rewards - rewards.mean(1, keepdims=True)) / (spread + 1e-6)
        np.testing.assert_allclose([row["advantage"] for row in rows], expected.ravel(), atol=1e-5)
        assert 0 < (spread > 0).sum() < PAPER_GROUPS  # some groups hold an answer, others none


def test_the_released_reward_judges_the_last_box(rollouts):
    for row in rollouts[0] + rollouts[1]:
        assert "original" in row["graded_by"]
        if "boxed" not in row["completion"].replace(PAPER_ANSWER, ""):  # nearly all: random text holds no other box
            assert row["reward"] == (PAPER_ANSWER in row["completion"])


def test_completions_end_at_an_end_token_or_at_the_limit(rollouts, paper_run):
    for step, rows in zip(read_jsonl(paper_run / "metrics.jsonl")[-2:], rollouts):
        lengths = np.array([row["num_tokens"] for row in rows])
        cut = np.array([row["truncated"] for row in rows])
        assert (lengths[cut] == PAPER_TOKENS).all() and lengths.min() >= 1 and lengths.max() <= PAPER_TOKENS
        assert 0 < (~cut).sum() < len(rows) and (lengths[~cut] < PAPER_TOKENS).any()
        assert step["train/completion_length"] == pytest.approx(lengths.mean())
        assert step["train/truncated"] == pytest.approx(cut.mean())


def test_metrics_are_finite(paper_run):
    rows = [row for row in read_jsonl(paper_run / "metrics.jsonl") if row["step"]]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        numbers = {key: x for key, x in row.items() if isinstance(x, (int, float))}
        assert all(map(math.isfinite, numbers.values()))
        assert numbers.keys() >= {"train/loss", "train/kl", "train/entropy", "train/grad_norm", "train/clip_fraction"}
        assert 0 < row["train/live_groups"] < 1 and row["train/grad_norm"] > 0
        assert row["train/logprob_gap_mean"] < 0.05  # bfloat16, and random weights ten times a trained model's
        assert 0 < row["train/entropy"] < math.log(PAPER_MODEL.vocab_size)
    assert rows[0]["train/kl"] == pytest.approx(0, abs=1e-6)


def test_the_checkpoint_comes_back_from_an_export(paper_run, paper_export, qwen2_folder):
    assert checkpoint.steps(paper_run)[-1] == 2
    assert int(saved_arrays(paper_run, 2)["training/step"]) == 2
    ours, theirs = loading.load_model(str(paper_run)), loading.load_model(str(paper_export))
    assert theirs.config == ours.config == PAPER_MODEL
    assert_same_params(theirs.params, ours.params)
    assert theirs.tokenizer.to_json() == ours.tokenizer.to_json()
    assert ours.tokenizer.to_json() == tokenizer.load_tokenizer(qwen2_folder).to_json()
    moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(ours.params),
                                                 jax.tree.leaves(huggingface.load_folder(qwen2_folder)[1]))]
    assert 0 < max(moved) < 1e-5 and min(moved) > 0  # two updates of about the learning rate, 1e-6, everywhere
    assert json.loads((paper_export / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]
