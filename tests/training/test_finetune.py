"""Supervised training from a file: its batches, its loss, resuming, and critiques as training data."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from rlvr_jax import logprobs
from rlvr_jax.errors import UserError
from rlvr_jax.grading import extract
from rlvr_jax.lab.elicit import critique
from rlvr_jax.pretrained import loading
from rlvr_jax.records import Problem
from rlvr_jax.training import finetune
from rlvr_jax.training.finetune import FinetuneConfig

from fixtures import assert_same_run, read_jsonl, write_jsonl

ROWS = [{"prompt": "coins 7 + 5 - 3 =", "completion": "think + 5 12 - 3 9 answer 9", "source": "mine"},
        {"prompt": "books 2 * 3 + 1 =", "completion": "answer 7"},
        {"prompt": "coins 7 + 5 - 3 =", "completion": "hmm river", "truncated": True}]


@pytest.fixture
def examples(tmp_path):
    return write_jsonl(tmp_path / "examples.jsonl", *ROWS)


def test_rows_become_tokens_each_distinct_prompt_once(base, examples):
    loaded = loading.load_model(str(base))
    read, words = finetune.read_examples(str(examples), loaded), loaded.tokenizer
    assert read.texts == ["coins 7 + 5 - 3 =", "books 2 * 3 + 1 ="] and read.index.tolist() == [0, 1, 0]
    for text, ids, size in zip(read.texts, *read.prompts.__dict__.values()):
        assert ids[:size].tolist() == words.encode(text)
    texts = ["think + 5 12 - 3 9 answer 9 <eos>", "answer 7 <eos>", "hmm river"]
    assert [ids[mask].tolist() for ids, mask in zip(read.completions, read.mask)] == list(map(words.encode, texts))


@pytest.mark.parametrize("row, says", [
    ({"prompt": "coins 7 =", "completion": 7}, "line 4: needs a prompt and a completion"),
    ({"prompt": "coins 7 =", "completion": "answer hello"}, "line 4: this model's tokenizer has no word 'hello'"),
    ({"prompt": "coins 7 =", "completion": "river " * 40}, "line 4: 3 tokens of prompt and 41 of completion")])
def test_a_row_that_cannot_be_learnt_is_named(base, examples, row, says):
    with open(examples, "a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=says):
        finetune.read_examples(str(examples), loading.load_model(str(base)))


def test_every_epoch_has_every_row_once_in_an_order_of_its_own(base, examples):
    read = finetune.read_examples(str(examples), loading.load_model(str(base)))
    batches = [finetune.make_batch(read, 2, 0, step) for step in range(1, 31)]
    lengths = np.concatenate([b.completion_mask.sum(-1) for b in batches]).reshape(-1, 3)  # 10, 3, 2 tell rows apart
    assert (np.sort(lengths) == [2, 3, 10]).all() and len({tuple(epoch) for epoch in lengths}) > 3
    assert all((b.advantages == 1).all() for b in batches)


FLAGS = {"batch_size": 4, "learning_rate": 1e-2, "remat": False, "max_new_tokens": 10, "eval_size": 8, "num_ops": 2,
         "heldout": "arithmetic", "eval_every": 5, "save_every": 5}


def test_it_learns_completions_and_resumes_bit_for_bit(base, examples, tmp_path):
    def tune(name):
        return finetune.finetune(FinetuneConfig.from_flags(model=str(base), examples=str(examples), num_steps=12,
                                                           run_dir=str(tmp_path / name), window=40, **FLAGS))
    summary = tune("whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "12")
    tune("parts")
    assert_same_run(tmp_path / "parts", tmp_path / "whole", 12)
    assert summary["base"]["n"] == summary["final"]["n"] == 8 and summary["steps"] == 12
    rows = read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    before, after = (loading.load_model(str(path)) for path in (base, tmp_path / "whole"))
    assert after.config.max_seq_len == 40 > before.config.max_seq_len
    read = finetune.read_examples(str(examples), before)

    def loss(loaded, step):
        b = finetune.make_batch(read, FLAGS["batch_size"], 0, step)
        found, _ = logprobs.completion_logprobs(loaded.params, loaded.config, b, 1.0)
        return -float(np.mean(np.asarray(found)[b.completion_mask])), int(b.completion_mask.sum())
    assert (rows[1]["train/loss"], rows[1]["train/tokens"]) == pytest.approx(loss(before, 1), rel=1e-4)
    assert loss(after, 1)[0] < loss(before, 1)[0] / 2


# ----- critiques


STEPS = ["think", "+ 5 12", "* 2 24", "- 4 20", "answer 20"]
PROBLEM = Problem("q", "20", "coins 7 + 5 * 2 - 4 =", {"steps": STEPS, "task": "arithmetic"})


@pytest.mark.parametrize("attempt, said", [
    ("think + 5 12 * 2 22 - 4 18 answer 18", "think + 5 12 * 2 24 = * 2 22 - 4 20 = 18 answer 20"),
    ("think + 5 12 * 2 24 - 4 20 answer 20", "think + 5 12 * 2 24 - 4 20 answer 20"),
    ("think + 5 12 answer 12", "think + 5 12 * 2 24 - 4 20 = 12 answer 20"),  # stopped early
    ("quick 12 14 10 answer 10", "think + 5 12 * 2 24 = 14 - 4 20 = 10 answer 20"),
    ("quick 12 24 10 answer 10", "think + 5 12 * 2 24 - 4 20 = 10 answer 20"),  # one place, one remark
    ("quick 12 14 20 answer 20", "think + 5 12 * 2 24 = 14 - 4 20 answer 20"),  # right by luck
    ("quick 12 24 20 3 3 answer 20", "think + 5 12 * 2 24 - 4 20 answer 20"),
    ("answer 20", "think + 5 12 * 2 24 - 4 20 answer 20"), ("answer 3", "think + 5 12 * 2 24 - 4 20 = 3 answer 20"),
    ("hmm river often", "think + 5 12 * 2 24 - 4 20 = answer 20"), ("", "think + 5 12 * 2 24 - 4 20 = answer 20"),
    ("think + 5", "think + 5 12 = + 5 * 2 24 - 4 20 = answer 20")])
def test_the_critic_is_exact(attempt, said):
    """A critique is a careful solution that marks the first wrong step and a wrong answer."""
    assert critique.criticise(STEPS, attempt) == said
    assert extract.word_after_answer(said) == "20"


def test_a_critique_begins_where_the_model_begins_when_it_is_asked_the_problem():
    (prompt, completion), = critique.critique(PROBLEM, [{"completion": "quick 12 14 10 answer 10"}], None)
    assert prompt == "quick 12 14 10 answer 10 coins 7 + 5 * 2 - 4 =" and prompt.endswith(PROBLEM.prompt)
    assert completion.startswith("think ")
    assert critique.critique(PROBLEM, [{"completion": ""}], None)[0][0] == PROBLEM.prompt


def test_the_problem_can_be_the_one_that_a_run_trained_on(tmp_path):
    pool = [dataclasses.replace(PROBLEM, question=f"q{i}") for i in range(3)]
    (tmp_path / "example.json").write_text(json.dumps({"example": 2, "question": "q2"}))

    def chosen(example):
        return critique.choose_problems(critique.CritiqueConfig.from_flags(example=str(example)), pool)
    assert chosen(tmp_path) == chosen(f"{tmp_path}@best") == chosen(2) == [pool[2]] and chosen("all") == pool
    (tmp_path / "example.json").write_text(json.dumps({"example": 1, "question": "q2"}))
    with pytest.raises(UserError, match="that run trained on 'q2', which is not problem 1 here"):
        chosen(tmp_path)
    for wrong in ("3", str(tmp_path / "none"), "auto"):
        with pytest.raises(UserError, match="has problems 0 to 2; or all, or a run directory with an example.json"):
            chosen(wrong)


def test_controls_have_as_many_rows_and_what_they_leave_out_is_gone():
    attempts = [{"completion": text, "correct": text.endswith("20")} for text in
                ("answer 3", "answer 20", "answer 4", "quick 12 24 20 answer 20", "answer 5")]
    made = {kind: function(PROBLEM, attempts, np.random.default_rng(0)) for kind, function in critique.KINDS.items()}
    assert {len(rows) for rows in made.values()} == {5}
    assert made["critique"][0] == ("answer 3 coins 7 + 5 * 2 - 4 =", "think + 5 12 * 2 24 - 4 20 = 3 answer 20")
    (asked, said), (same, moved) = zip(*made["critique"]), zip(*made["shuffled"])
    assert asked == same and sorted(said) == sorted(moved) and said != moved
    assert made["attempts"] == [(PROBLEM.prompt, each["completion"]) for each in attempts]
    assert made["expert"] == [(PROBLEM.prompt, "think + 5 12 * 2 24 - 4 20 answer 20")] * 5
    assert made["correct"] == [(PROBLEM.prompt, attempts[i]["completion"]) for i in (1, 3, 1, 3, 1)]
    assert made["answer"] == [(PROBLEM.prompt, "answer 20")] * 5
    assert critique.correct(PROBLEM, attempts[:1], None) == []


def test_own_right_solutions_are_of_the_problems_that_have_some(base, tmp_path, monkeypatch):
    right = {1, 3}
    monkeypatch.setattr(critique, "sample_and_grade", lambda sampler, asked, request: [
        {"completion": str(i), "correct": i in right} for i in range(len(asked.problems)) for _ in range(2)])
    config = critique.CritiqueConfig.from_flags(model=str(base), num_ops=2, max_new_tokens=10, num_attempts=2,
                                                kind="correct", example="all", example_pool=5,
                                                out=str(tmp_path / "right.jsonl"))
    assert [row["completion"] for row in critique.make_examples(config)] == ["1", "1", "3", "3"]
    right.clear()
    with pytest.raises(UserError, match="--kind=correct: none of 10 attempts is right; raise --num_attempts"):
        critique.make_examples(config)


def test_the_shuffled_control_leaves_no_critique_in_its_place():
    attempts = [{"completion": f"answer {n}"} for n in range(3, 6)]
    own = critique.critique(PROBLEM, attempts, None)
    for seed in range(100):
        moved = critique.shuffled(PROBLEM, attempts, np.random.default_rng(seed))
        assert not any(one[1] == other[1] for one, other in zip(own, moved)) and len({said for _, said in moved}) == 3
