"""The problems that a run trains on, their shares, and the ranking by the history of a run."""

import json

import numpy as np
import pytest

from rlvr_jax import grpo
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import benchmarks
from rlvr_jax.evaluation.benchmarks import EvaluateConfig
from rlvr_jax.pretrained import loading
from rlvr_jax.records import Problem, Rollouts
from rlvr_jax.tasks import history as selection
from rlvr_jax.tasks.history import SelectConfig
from rlvr_jax.training import train

from fixtures import (START, TRAIN_FLAGS, heldout_of, load_problems, read_jsonl, released, run, training_problems,
                      write_jsonl, write_parquet)

CONFIG = train.TrainConfig.from_flags(num_prompts=4, group_size=2, example="all")
# From the published history, computed by another program: index -> (rank, variance).
PUBLISHED = {"124": (1, 0.16545), "267": (2, 0.15687), "531": (3, 0.11401), "682": (13, 0.07432), "789": (1209, 0.0)}


def asked(config, problems, step):
    """The problem that each completion of the step answers."""
    copies = np.array([problem.copies for problem in problems])
    return grpo.curriculum(config.grpo, grpo.Problems(None, copies), step).index


def groups(config, problems, step):
    return asked(config, problems, step)[:: config.grpo.group_size].tolist()


# ----- the pool and its order

def test_a_pool_is_passed_over_in_fresh_orders():
    problems, seen = [Problem(str(i), "1", "") for i in range(5)], []
    config = CONFIG.with_flags(num_prompts=3)
    for step in range(1, 11):
        index = asked(config, problems, step)
        assert (index[::2] == index[1::2]).all() and len(index) == 6 and index.dtype == np.int32
        seen += index[::2].tolist()
    passes = np.reshape(seen, (6, 5))
    assert all(sorted(row) == list(range(5)) for row in passes) and len({tuple(row) for row in passes}) > 1


def test_copies_keep_their_share_of_every_pass():
    problems = [Problem("a", "1", "", copies=5), Problem("b", "1", "", copies=1), Problem("c", "1", "", copies=2)]
    for step in (1, 2, 9):
        assert np.bincount(groups(CONFIG.with_flags(num_prompts=8), problems, step)).tolist() == [5, 1, 2]
    halves = [groups(CONFIG, problems, step) for step in (1, 2)]
    assert np.bincount(halves[0] + halves[1]).tolist() == [5, 1, 2]


def test_an_example_is_counted_among_the_distinct_problems(tmp_path):
    rows = [released(text, "1", index=index) for text, index in (("a", 7), ("a", 7), ("b", 9), ("b", 9), ("c", 11))]
    path = write_parquet(tmp_path / "p.parquet", *rows)
    config = CONFIG.with_flags(problems=path)
    assert [p.question for p in training_problems(config)] == ["a", "b", "c"]
    assert [p.question for p in training_problems(config.with_flags(example="1"))] == ["b"]
    for outside in ("3", "²"):
        with pytest.raises(UserError, match=f"--example={outside}: .* has problems 0 to 2"):
            training_problems(config.with_flags(example=outside))


def test_every_command_that_reads_problems_can_ignore_a_column(tmp_path):
    path, history = write_jsonl(tmp_path / "p.jsonl", {"question": "q", "answer": 1, "hint": "h"}), tmp_path / "h.json"
    history.write_text('{"0": [1]}')
    readers = [lambda **flags: training_problems(CONFIG.with_flags(problems=path, **flags)),
               lambda **flags: heldout_of(CONFIG.with_flags(heldout=path, **flags)),
               lambda **flags: benchmarks.load_benchmarks(EvaluateConfig.from_flags(problems=path, **flags), START),
               lambda **flags: selection.select(SelectConfig.from_flags(history=str(history), problems=path, **flags))]
    for read in readers:
        read(ignore_columns="hint")
        with pytest.raises(UserError, match="--ignore_columns=hint"):
            read()


# ----- --question and --answer

@pytest.mark.parametrize("example", ["auto", "all", "0"])
def test_a_problem_from_flags_is_the_whole_pool(example):
    config = CONFIG.with_flags(question="What is 2 * 6.4?", answer="12.8", example=example, prompt_style="qwen_math",
                               instruction="Think.")
    problem, = problems = training_problems(config)
    assert (problem.question, problem.answer) == ("What is 2 * 6.4?", "12.8")
    assert "<|im_start|>user\nWhat is 2 * 6.4? Think.<|im_end|>" in problem.prompt
    assert len(train.encode_problems(config, START, problems).tokens) == 1 and set(asked(CONFIG, problems, 3)) == {0}


@pytest.mark.parametrize("flags, says", [
    ({"question": "q"}, "--question and --answer"), ({"answer": "1"}, "--question and --answer"),
    ({"question": "q", "answer": "1", "problems": "p.jsonl"}, "--question .*--problems=p.jsonl"),
    ({"question": "q", "answer": "1", "example": "3"}, "--question .*--example=3")])
def test_a_problem_from_flags_is_given_whole_and_alone(flags, says):
    with pytest.raises(UserError, match=says):
        training_problems(CONFIG.with_flags(**flags))


def test_training_on_a_problem_from_flags(tmp_path, base, compiled):
    """Defaults of the synthetic task do not apply: the answer is boxed, and nothing is held out by default."""
    def train_on_it(name, *flags):
        run("train", f"--model={base}", f"--run_dir={tmp_path / name}", "--num_steps=1", "--num_prompts=2",
            "--group_size=4", "--max_new_tokens=10", "--noremat", "--log_rollouts=8", "--question=coins 7 + 5 - 3 =",
            "--answer=9", *flags, compiled=compiled, expect=0)
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        return read_jsonl(tmp_path / name / "rollouts.jsonl"), summary

    rows, summary = train_on_it("boxed")
    assert {(row["prompt"], row["answer"], row["correct"]) for row in rows} == {("coins 7 + 5 - 3 =", "9", False)}
    assert len(rows) == 8 and summary["final"] == {}
    rows, summary = train_on_it("answer", "--answer_format=answer", "--heldout=arithmetic", "--num_ops=2",
                                "--eval_size=16")
    assert [row["correct"] for row in rows] == [row["completion"].split()[-2:] == ["answer", "9"] for row in rows]
    assert summary["final"]["n"] == 16


# ----- historical variance

def test_variance_is_that_of_the_population():
    (row,) = selection.rank_by_variance({"7": [0, 0.25, 0.5, 1]})
    assert row == {"rank": 1, "index": "7", "score": pytest.approx(0.136719, abs=1e-6), "accuracy": 0.4375, "passes": 4}
    assert row["score"] ** 0.5 == pytest.approx(0.369755, abs=1e-6)


def test_the_same_accuracies_in_another_order_are_a_tie_and_stay_in_place():
    values = [0.6, 0.7, 0.1, 0.0, 0.7]
    history = {"9": [0.0], "3": [0.5], "8": values, "5": values[::-1], "6": sorted(values)}
    assert len({float(np.var(history[i])) for i in "856"}) > 1  # in floating point they differ
    assert [row["index"] for row in selection.rank_by_variance(history)] == ["8", "5", "6", "9", "3"]


@pytest.mark.parametrize("content, says", [
    ("{", "h.json cannot be read as JSON"), ("[]", "h.json holds a list"), ("{}", "h.json: needs index"),
    ('{"1": [0.5], "2": []}', "h.json, index 2: needs a list"), ('{"1": 0.5}', "index 1: needs a list"),
    ('{"1": ["0.5"]}', "index 1: needs"), ('{"1": [NaN]}', "NaN"), ('{"1": [50]}', "from 0 to 1"),
    ('{"1": [true]}', "index 1: needs"), ('{"1": [0.5, null]}', "index 1: needs")])
def test_what_is_no_history_is_refused(tmp_path, content, says):
    (tmp_path / "h.json").write_text(content)
    with pytest.raises(UserError, match=says):
        selection.read_history(str(tmp_path / "h.json"))


def test_a_missing_history_is_named(tmp_path):
    for path, says in (("", "--history is required"), (tmp_path / "nowhere.json", "no file .*nowhere.json"),
                       (tmp_path, "--history=.*: no file .*history.json; .*--record_history")):
        with pytest.raises(UserError, match=says):
            selection.read_history(str(path))


def test_problems_are_found_by_their_own_index_or_their_place(tmp_path):
    (tmp_path / "h.json").write_text('{"1": [1], "5": [0.5]}')
    config = SelectConfig.from_flags(history=str(tmp_path / "h.json"))
    parquet = write_parquet(tmp_path / "p.parquet", released("a", "a!", index=5), released("b", "b!", index=1))
    ranking = selection.select(config.with_flags(problems=parquet))
    assert [(row["index"], row["question"], row["answer"]) for row in ranking] == [("1", "b", "b!"), ("5", "a", "a!")]
    lines = write_jsonl(tmp_path / "p.jsonl", *({"question": q, "answer": q + "!"} for q in "xxyzuvw"))  # a copy of x
    ranking = selection.select(config.with_flags(problems=lines))
    assert [(row["index"], row["question"]) for row in ranking] == [("1", "y"), ("5", "w")]
    short = write_jsonl(tmp_path / "p.jsonl", {"question": "x", "answer": 1}, {"question": "y", "answer": 1})
    with pytest.raises(UserError, match="--problems=.*p.jsonl has no problem of index 5"):
        selection.select(config.with_flags(problems=short))


def test_a_history_of_several_passes_has_every_problem_of_its_file(tmp_path):
    """Each pass takes all problems, so two records of two passes belong to a file of two problems."""
    file, config = tmp_path / "h.json", SelectConfig.from_flags(history=str(tmp_path / "h.json"))
    three = write_jsonl(tmp_path / "three.jsonl", *({"question": q, "answer": 1} for q in "abc"))
    two = write_jsonl(tmp_path / "two.jsonl", *({"question": q, "answer": 1} for q in "ab"))
    file.write_text('{"0": [0, 1], "1": [0, 0.5]}')
    with pytest.raises(UserError, match="three.jsonl has 3 problems, but --history has 2 after several passes"):
        selection.select(config.with_flags(problems=three))
    assert [row["question"] for row in selection.select(config.with_flags(problems=two))] == ["a", "b"]
    file.write_text('{"0": [0, 1], "1": [0]}')  # stopped within the second pass
    assert len(selection.select(config.with_flags(problems=three))) == 2


@pytest.mark.parametrize("recorded, named", [
    ("--problems=arithmetic", "arithmetic"), ("--problems=b/q.jsonl", "q.jsonl"),
    ("--problems=arithmetic\n--question=q", "--question")])
def test_a_run_is_not_ranked_with_another_file(tmp_path, recorded, named):
    path = write_jsonl(tmp_path / "p.jsonl", {"question": "a", "answer": 1})
    (tmp_path / "history.json").write_text('{"0": [0, 1]}')
    config = SelectConfig.from_flags(history=str(tmp_path), problems=path)
    (tmp_path / "flags.txt").write_text(f"--seed=0\n{recorded}\n")
    with pytest.raises(UserError, match=f"is a run on .*{named}, not on --problems=.*p.jsonl"):
        selection.select(config)
    (tmp_path / "flags.txt").write_text("--problems=elsewhere/p.jsonl\n--question=\n")
    assert [row["question"] for row in selection.select(config)] == ["a"]


def test_select_example_prints_and_writes_the_ranking(tmp_path, data, compiled):
    pytest.importorskip("pyarrow", reason="pip install -e '.[real]'")
    folder = data / "one_shot_rlvr"
    printed = run("select_example", f"--history={folder / 'acc_step_500.json'}", f"--out={tmp_path / 'r.json'}",
                  f"--problems={folder / 'dsr_sub.parquet'}", "--top=13", compiled=compiled, expect=0).out.splitlines()
    assert printed[0].split() == ["rank", "index", "variance", "accuracy", "passes"] and len(printed) == 15
    assert printed[1].split()[:3] == ["1", "124", "0.16545"] and r"12.8  The pressure \( P \) exerted" in printed[1]
    ranking = json.loads((tmp_path / "r.json").read_text())
    assert [row["rank"] for row in ranking] == list(range(1, 1210)) and ranking[-1]["answer"] == r"-\frac{2023}{2024}"
    for index, (rank, score) in PUBLISHED.items():
        assert (ranking[rank - 1]["index"], ranking[rank - 1]["score"]) == (index, pytest.approx(score, abs=5e-6))


# ----- recording

def test_a_history_holds_whole_passes_in_order():
    problems = [Problem("a", "1", "", {"index": 4}), Problem("b", "1", "", {"index": 2}, copies=2)]
    steps = [{}, {"4": [0.5], "2": [0.25]}, {"2": [0.75, 1.0]}, {"4": [1.0], "2": [0.0, 0.5]}]
    rows = [{"step": step, "train/group_accuracies": found} for step, found in enumerate(steps)]
    assert selection.build_history(rows, problems) == {"4": [0.5, 1.0], "2": [0.5, 0.5]}
    assert selection.build_history(rows[:1], problems) == {}


def test_each_group_counts_for_its_problem():
    problems = [Problem(q, "1", "", {"index": i}) for q, i in (("a", 7), ("b", 9))]
    index, correct = np.array([1, 1, 0, 0, 1, 1]), np.array([1, 0, 1, 1, 0, 0], np.float32)
    assert selection.group_accuracies(problems, index, correct, 2) == {"9": [0.5, 0.0], "7": [1.0]}
    info = {"text": index, "correct": correct, "timed_out": np.zeros(6), "graded_by": np.array(["x"] * 6)}
    rollouts = Rollouts(index, np.zeros((6, 1), np.int32), np.ones((6, 1), bool), None, np.ones(6, bool))
    record = grpo.Record(grpo.PromptBatch(2, None, index), rollouts, grpo.Scored(correct, info), None, {})
    told = [train.make_rows(CONFIG.with_flags(record_history=keeps, log_rollouts=0), problems, [], record)[0].get(
        "train/group_accuracies") for keeps in (True, False)]
    assert told == [{"9": [0.5, 0.0], "7": [1.0]}, None]


@pytest.mark.parametrize("flags, says", [
    ({"record_history": True, "max_resamples": 1}, "--record_history needs --max_resamples=0"),
    ({"reset_patience": 2, "heldout": "none"}, "--reset_patience counts evaluations, and --heldout=none makes none"),
    ({"reset": "reference", "reset_every": 1, "track_kl": False}, "--reset=reference has no reference to renew"),
    ({"trainable": "vector", "adapter_alpha": 3.0}, "--adapter_alpha need --trainable=lora"),
    ({"reward": "correct:1,overlong:1"}, "--reward=overlong is 0 without --overlong_buffer")])
def test_flags_that_would_do_nothing_together_are_refused(flags, says):
    with pytest.raises(UserError, match=says):
        train.check_config(CONFIG.with_flags(**flags))


def test_a_recorded_history_agrees_with_the_rollouts(tmp_path, base, compiled):
    assert "warning:" not in run(
        "train", *TRAIN_FLAGS, f"--model={base}", "--example=all", "--example_pool=5", "--record_history",
        "--log_rollouts=8", "--answer_format=answer", "--eval_every=0", "--schedule=constant", "--num_steps=30",
        f"--run_dir={tmp_path}", compiled=compiled, expect=0).err
    history = json.loads((tmp_path / "history.json").read_text())
    names = {p.prompt: str(i) for i, p in enumerate(load_problems(
        "arithmetic", loading.load_model(str(base)).tokenizer, count=5, split="example", num_ops=2, seed=0))}
    rows, expected = read_jsonl(tmp_path / "rollouts.jsonl"), {name: [] for name in names.values()}
    assert len(rows) == 30 * 8
    for i in range(0, len(rows), 4):
        assert len({row["prompt"] for row in rows[i : i + 4]}) == 1
        expected[names[rows[i]["prompt"]]].append(sum(row["correct"] for row in rows[i : i + 4]) / 4)
    assert history == expected and {len(accuracies) for accuracies in history.values()} == {12}
    assert len({x for accuracies in history.values() for x in accuracies}) > 1

    ranking = selection.select(SelectConfig.from_flags(history=str(tmp_path)))
    assert len(ranking) == 5 and ranking[0]["score"] == pytest.approx(max(np.var(x) for x in expected.values()))
