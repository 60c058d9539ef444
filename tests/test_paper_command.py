"""The published experiment's command, end to end, on a random model that has Qwen2.5-Math's layout.

What differs from the experiment is the size of the model, the number of steps and the length of the completions.
"""

import json
import math

import jax
import numpy as np
import pytest
from golden.cases import LINES, QUESTIONS, assert_same_params, random_params, write_qwen2_tokenizer

from rlvr_jax.model import ModelConfig
from rlvr_jax.pretrained import huggingface, loading, tokenizer
from rlvr_jax.runs import checkpoint

from helpers import ROOT, compiled, read_jsonl, run, saved_arrays  # noqa: F401

GROUPS, GROUP, NEW_TOKENS = 128, 8, 12
ANSWER = r"\boxed{12.8}"
CONFIG = ModelConfig(vocab_size=640, num_layers=4, d_model=32, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=64,
                     max_seq_len=1024, qkv_bias=True, norm_eps=1e-6, rope_theta=10_000.0)


@pytest.fixture(scope="module")
def qwen2_folder(tmp_path_factory):
    """A Hugging Face folder. One more token than Qwen2's is a whole answer, so that random completions hit at times."""
    dir = tmp_path_factory.mktemp("qwen2")
    huggingface.save_folder(CONFIG, random_params(CONFIG, 0), dir)
    write_qwen2_tokenizer(dir, [*LINES, *QUESTIONS], vocab_size=400, more=[ANSWER])
    return dir


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data, qwen2_folder, compiled):  # noqa: F811
    """The run directory of two steps."""
    pytest.importorskip("pyarrow", reason="pip install pyarrow: the published problems are parquet files")
    run_dir = tmp_path_factory.mktemp("paper") / "run"
    run("train", f"--flagfile={ROOT / 'configs' / 'pi1_qwen2.5_math_1.5b.flags'}", f"--model={qwen2_folder}",
        f"--problems={data / 'one_shot_rlvr' / 'pi1_r128.parquet'}", f"--run_dir={run_dir}", "--num_steps=2",
        f"--max_new_tokens={NEW_TOKENS}", f"--log_rollouts={GROUPS * GROUP}", "--heldout=none", "--grad_accumulation=1",
        "--num_slots=0", compiled=compiled, expect=0)
    return run_dir


@pytest.fixture(scope="module")
def exported(tmp_path_factory, trained, compiled):  # noqa: F811
    """The Hugging Face folder of its last checkpoint."""
    dir = tmp_path_factory.mktemp("paper") / "exported"
    run("export", f"--model={trained}", f"--out={dir}", compiled=compiled, expect=0)
    return dir


@pytest.fixture(scope="module")
def rollouts(trained):
    """The 1,024 rows of each step."""
    rows = read_jsonl(trained / "rollouts.jsonl")
    return [[row for row in rows if row["step"] == step] for step in (1, 2)]


def test_every_step_answers_the_one_problem_1024_times(rollouts, qwen2_folder, data):
    import pyarrow.parquet
    row = pyarrow.parquet.read_table(data / "one_shot_rlvr" / "pi1_r128.parquet").to_pylist()[0]
    words = tokenizer.load_tokenizer(qwen2_folder)
    prompt = words.render_chat(row["prompt"])
    assert "put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>user\nThe pressure" in prompt
    assert [len(rows) for rows in rollouts] == [GROUPS * GROUP] * 2
    assert {(row["prompt"], row["answer"]) for rows in rollouts for row in rows} == {(prompt, "12.8")}


def test_each_copy_of_the_problem_is_a_group_of_its_own(rollouts):
    for rows in rollouts:
        assert all(row["reward"] == row["correct"] for row in rows)
        rewards = np.array([row["reward"] for row in rows]).reshape(GROUPS, GROUP)
        spread = rewards.std(1, ddof=1, keepdims=True)
        expected = (rewards - rewards.mean(1, keepdims=True)) / (spread + 1e-6)
        np.testing.assert_allclose([row["advantage"] for row in rows], expected.ravel(), atol=1e-5)
        assert 0 < (spread > 0).sum() < GROUPS  # some groups hold an answer, others none


def test_the_released_reward_judges_the_last_box(rollouts):
    for row in rollouts[0] + rollouts[1]:
        assert "original" in row["graded_by"]
        if "boxed" not in row["completion"].replace(ANSWER, ""):  # nearly all: random text holds no other box
            assert row["reward"] == (ANSWER in row["completion"])


def test_completions_end_at_an_end_token_or_at_the_limit(rollouts, trained):
    for step, rows in zip(read_jsonl(trained / "metrics.jsonl")[-2:], rollouts):
        lengths = np.array([row["num_tokens"] for row in rows])
        cut = np.array([row["truncated"] for row in rows])
        assert (lengths[cut] == NEW_TOKENS).all() and lengths.min() >= 1 and lengths.max() <= NEW_TOKENS
        assert 0 < (~cut).sum() < len(rows) and (lengths[~cut] < NEW_TOKENS).any()
        assert step["train/completion_length"] == pytest.approx(lengths.mean())
        assert step["train/truncated"] == pytest.approx(cut.mean())


def test_metrics_are_finite(trained):
    rows = [row for row in read_jsonl(trained / "metrics.jsonl") if row["step"]]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        numbers = {key: x for key, x in row.items() if isinstance(x, (int, float))}
        assert all(map(math.isfinite, numbers.values()))
        assert numbers.keys() >= {"train/loss", "train/kl", "train/entropy", "train/grad_norm", "train/clip_fraction"}
        assert 0 < row["train/live_groups"] < 1 and row["train/grad_norm"] > 0
        assert row["train/logprob_gap_mean"] < 0.05  # bfloat16, and random weights ten times a trained model's
        assert 0 < row["train/entropy"] < math.log(CONFIG.vocab_size)
    assert rows[0]["train/kl"] == pytest.approx(0, abs=1e-6)


def test_the_flags_are_the_published_ones(trained):
    flags = dict(line.removeprefix("--").split("=", 1) for line in (trained / "flags.txt").read_text().splitlines())
    published = {"num_prompts": 128, "group_size": 8, "temperature": 0.6, "learning_rate": 1e-6, "kl_coef": 0.001,
                 "entropy_coef": 0.001, "max_grad_norm": 1.0, "num_passes": 1, "num_minibatches": 1, "warmup_steps": 0}
    assert {key: float(flags[key]) for key in published} == published
    assert (flags["grader"], flags["prompt_style"], flags["objective"]) == ("original", "qwen_math", "one_shot")


def test_the_checkpoint_comes_back_from_an_export(trained, exported, qwen2_folder):
    assert checkpoint.steps(trained)[-1] == 2
    assert int(saved_arrays(trained, 2)["training/step"]) == 2
    ours, theirs = loading.load_model(str(trained)), loading.load_model(str(exported))
    assert theirs.config == ours.config == CONFIG
    assert_same_params(theirs.params, ours.params)
    assert theirs.tokenizer.to_json() == ours.tokenizer.to_json()
    assert ours.tokenizer.to_json() == tokenizer.load_tokenizer(qwen2_folder).to_json()
    moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(ours.params),
                                                 jax.tree.leaves(huggingface.load_folder(qwen2_folder)[1]))]
    assert 0 < max(moved) < 1e-5 and min(moved) > 0  # two updates of about the learning rate, 1e-6, everywhere
    assert json.loads((exported / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]
