"""Mixtures of sources of problems, each problem graded by its own criterion; reasoning-gym as a source."""

import json
import sys

import numpy as np
import pytest

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import measure
from rlvr_jax.grading import grade, gym as verifiers
from rlvr_jax.records import Problem
from rlvr_jax.rewards.context import RewardContext
from rlvr_jax.rewards.rows import RewardConfig
from rlvr_jax.tasks import answers, families, gym, pool
from rlvr_jax.tasks.answers import GradingConfig
from rlvr_jax.tasks.families import FAMILIES, Family
from rlvr_jax.training import advice, pretrain, train

from fixtures import QWEN, START, heldout_of, load_problems, read_jsonl, write_jsonl

CONFIG = train.TrainConfig.from_flags(num_ops=2, example="all", num_prompts=8, group_size=4, max_new_tokens=10,
                                      remat=False, eval_size=32, num_steps=2, eval_every=1, temperature=0.7,
                                      log_rollouts=64)


def boxes() -> Family:
    r"""A family that states its answers in a box, one word each: `box 1 3 =` is solved by `well \boxed{3}`."""
    splits = ("pretrain", "example", "dev", "test")
    def generate(rng, count, split, num_ops):
        return [(splits.index(split), a) for a in rng.integers(4, size=count)]
    def to_problems(drawn):
        return [Problem(f"box {x} {a} =", str(a), f"box {x} {a} =", {"index": i}) for i, (x, a) in enumerate(drawn)]
    def solve(rng, drawn, styles, config):
        return [(f"well \\boxed{{{a}}}", f"eh \\boxed{{{a}}}", "no", "hmm")[style]
                for (_, a), style in zip(drawn, styles)]
    words = ("<pad>", "<eos>", "box", "=", "well", "eh", "no", "hmm",
             *(form.format(a) for a in range(4) for form in ("{}", "\\boxed{{{}}}")))
    def habits(config, seed, num_ops):
        return lambda drawn: np.array([config.style_shares] * len(drawn))
    return Family(words, {"well": "careful", "eh": "sloppy", "no": "guess", "hmm": "ramble"}, lambda num_ops: (4, 3),
                  generate, to_problems, solve, habits, answer_format="boxed")


@pytest.fixture
def box(monkeypatch):
    monkeypatch.setitem(FAMILIES, "box", boxes())


# ----- training

def test_two_families_are_trained_on_and_measured_each_in_its_own_format(tmp_path, box):
    pytest.importorskip("math_verify", reason="pip install -e '.[real]'")
    base, run = tmp_path / "base", tmp_path / "run"
    made = pretrain.pretrain(pretrain.PretrainConfig.from_flags(
        num_ops=2, num_layers=1, d_model=16, num_heads=2, d_ff=32, batch_size=64, remat=False, warmup_steps=10,
        learning_rate=1e-2, eval_size=32, task_shares="box:0.5,arithmetic:0.5", num_steps=150, run_dir=str(base)))
    formats = {"box": grade.describe_grader("boxed", "math"), "arithmetic": "answer / math"}
    assert made["final"]["graded_by"] == ", ".join(formats.values())
    train.train(CONFIG.with_flags(model=str(base), run_dir=str(run), problems="box,arithmetic", example_pool=12))
    rows, metrics = read_jsonl(run / "rollouts.jsonl"), read_jsonl(run / "metrics.jsonl")
    task = lambda row: "box" if row["prompt"].startswith("box") else "arithmetic"
    for step in (1, 2):
        assert {task(row) for row in rows if row["step"] == step} == set(formats)
    assert all(row["graded_by"] == formats[task(row)] for row in rows)
    for row in rows:
        words = row["completion"].split()
        boxed = [word for word in words if word.startswith("\\boxed")][-1:] == [f"\\boxed{{{row['answer']}}}"]
        assert row["correct"] == (boxed if task(row) == "box" else words[-2:] == ["answer", row["answer"]])
    assert any(row["correct"] for row in rows if task(row) == "box")
    for row in metrics:
        assert row["eval/greedy"] == pytest.approx((row["eval/greedy_box"] + row["eval/greedy_arithmetic"]) / 2)


def test_what_a_label_is_compared_with_is_looked_for_in_the_problems_own_format(box):
    asked = [Problem("", "3", "", {"task": "box"}), Problem("", "3", "", {"task": "arithmetic"})]
    def seen(*texts, grading=GradingConfig()):
        formats = [by.answer_format for by in answers.criteria(asked, grading)]
        return RewardContext(RewardConfig(), formats, "math", asked, list(texts), [], None, np.zeros(2, int), (0,),
                             None)
    assert seen(r"\boxed{3}", "answer 3").equals(["3", "3"]).tolist() == [1, 1]
    assert seen("answer 3", r"\boxed{3}").equals(["3", "3"]).tolist() == [0, 0]
    assert seen(r"\boxed{3}", r"\boxed{3}", grading=GradingConfig("boxed")).equals(["3", "3"]).tolist() == [1, 1]


def test_a_problem_without_a_label_pays_for_no_answer_not_even_an_empty_box():
    pytest.importorskip("math_verify", reason="pip install -e '.[real]'")
    asked = [Problem("", "3", "")] * 2
    texts = [r"\boxed{}", r"\boxed{3}"]
    seen = RewardContext(RewardConfig(), ["boxed"] * 2, "original", asked, texts, [], None, np.zeros(2, int), (0,),
                         None)
    assert seen.equals([None, None]).tolist() == [0, 0] and seen.equals([None, "3"]).tolist() == [0, 1]


def test_a_warning_names_the_format_of_the_problem_that_has_it(box):
    right = [Problem("", "3", "", {"task": "box"}), Problem("", "3", "", {"task": "arithmetic"})]
    assert not advice.on_answers(GradingConfig(), right)
    text = advice.on_answers(GradingConfig(), [*right, Problem("", "9 apples", "", {"task": "arithmetic"})])
    assert text.startswith("--answer_format=answer with --grader=math never accepts 1 of 3 answers, such as '9 apples'")


# ----- sources

def source_of(problem):
    return problem.meta.get("task") or problem.meta["file"]


def test_sources_are_divided_evenly_and_files_are_whole_where_no_example_is_chosen(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", *[{"question": f"q{i}", "answer": i} for i in range(9)])
    def counts(**flags):
        config = CONFIG.with_flags(**flags)
        made = [source_of(problem) for problem in pool.source_problems(config.pool, config.source, QWEN, 0)]
        return {name: made.count(name) for name in dict.fromkeys(made)}
    assert counts(problems="arithmetic,boolean", example_pool=10) == {"arithmetic": 5, "boolean": 5}
    assert counts(problems=f"arithmetic,{path}", example_pool=10) == {"arithmetic": 10, path: 9}
    assert counts(problems=f"arithmetic,{path}", example_pool=10, example="auto") == {"arithmetic": 5, path: 5}
    with pytest.raises(UserError, match="--example_pool=1 is less than the 2 sources of --problems=arithmetic,boolean"):
        counts(problems="arithmetic,boolean", example_pool=1)


@pytest.mark.parametrize("names, says", [
    ("arithmetic,arithmetic", "arithmetic,arithmetic names a source of problems twice"),
    ("arithmetic,bolean", "no problem file bolean"), ("arithmetic,boolean", "boolean problems have words such as")])
def test_a_mixture_that_cannot_be_is_refused_by_name(names, says):
    with pytest.raises(UserError, match=says):
        load_problems(names, families.make_tokenizer(["arithmetic"]), count=8)


def test_what_is_held_out_by_default_are_the_families_that_are_trained_on(tmp_path, monkeypatch):
    path, seen = write_jsonl(tmp_path / "p.jsonl", {"question": "q", "answer": 1}), []
    monkeypatch.setattr(measure, "load_problems",
                        lambda source, *_: seen.append(source.problems) or [Problem("", "", "p")])
    for names in ("arithmetic,boolean", f"arithmetic,{path}", path):
        heldout_of(CONFIG.with_flags(problems=names), START)
    assert seen == ["arithmetic,boolean", "arithmetic"]


# ----- reasoning-gym

@pytest.fixture
def installed():
    pytest.importorskip("reasoning_gym", reason="pip install -e '.[gym]'")


def test_without_reasoning_gym_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"drawn and graded by reasoning-gym: pip install -e '.\[gym\]'"):
        load_problems("gym:chain_sum", QWEN)


def test_chain_sums_are_drawn_by_seed_and_no_split_shares_a_question(installed):
    draw = lambda split, seed=0: gym.draw_problems("gym:chain_sum", seed, 60, split)
    first = draw("example")
    assert first == draw("example") and first != draw("example", seed=1) and len(first) == 60
    for problem in first:
        assert eval(problem.question.partition(":")[2].rstrip(" =").strip()) == int(problem.answer)
        assert source_of(problem) == "gym:chain_sum" and json.loads(problem.meta["entry"])["answer"] == problem.answer
    asked = {split: {problem.question for seed in range(4) for problem in draw(split, seed)} for split in gym.SPLITS}
    assert min(map(len, asked.values())) > 150
    assert sum(map(len, asked.values())) == len(set.union(*asked.values()))


def test_a_dataset_of_reasoning_gym_is_asked_as_a_file_is(installed):
    found = load_problems("gym:chain_sum,arithmetic", QWEN, count=4, prompt_style="chat", instruction="Box it.")
    assert [source_of(problem) for problem in found] == 2 * ["gym:chain_sum"] + 2 * ["arithmetic"]
    assert found[0].prompt == f"<s>[{found[0].question} Box it.]"


@pytest.mark.parametrize("name, says", [
    ("chain", "no data set 'chain'; similar names: chain_sum"), ("", "no data set ''; choose one, such as chain_sum"),
    ("countdown", "gym:countdown: its verifier executes a model's answer as Python code"),
    ("spiral_matrix", "executes a model's answer as Python code"),
    ("word_ladder", "gym:word_ladder: this data set draws different problems in each process"),
    ("rubiks_cube", "gym:rubiks_cube: the verifier does not accept the data set's own"),
    ("composite", "gym:composite needs settings")])
def test_a_dataset_that_is_not_fit_is_refused_by_name(installed, name, says):
    with pytest.raises(UserError, match=says):
        gym.draw_problems(f"gym:{name}", 0, 2, "example")


def test_a_problem_is_judged_by_its_own_verifier(installed):
    """The verifier accepts 07.0 for 7, and never gets a text that is too long."""
    problem, = gym.draw_problems("gym:chain_sum", 0, 1, "example")
    entry = json.loads(problem.meta["entry"]) | {"answer": "7"}
    by, = answers.criteria([Problem("", "7", "", problem.meta | {"entry": json.dumps(entry)})],
                           GradingConfig(grader="original"))
    assert by[:2] == ("tag", "gym")
    texts = ["so <answer>7</answer>", "<answer>07.0</answer>", "<answer>8</answer>", "7", "<answer>9**9**9</answer>",
             "<answer>" + "0" * 5000 + "7</answer>"]
    found = answers.verdicts(texts, [by] * len(texts))
    assert [verdict.correct for verdict in found] == [True, True, False, False, False, False]
    assert answers.describe_graders([by])[0].startswith("tag / gym (reasoning-gym 0.")
    assert answers.verdicts(["It is 7."], [by._replace(answer_format="last_number")])[0].correct


def test_a_part_of_the_score_is_not_right(installed):
    entry = {"question": "", "answer": "yes", "metadata": {"source_dataset": "letter_counting"}}
    import reasoning_gym

    assert reasoning_gym.get_score_answer_fn("letter_counting")("yes it is", entry) == pytest.approx(1 / 3)
    assert verifiers.equal("yes", json.dumps(entry)) and not verifiers.equal("yes it is", json.dumps(entry))


def test_a_label_is_compared_as_mathematics_not_by_the_verifier(installed):
    """The verifier knows only its own reference."""
    problem = gym.draw_problems("gym:chain_sum", 0, 1, "example")[0]
    seen = RewardContext(RewardConfig(), ["tag"], "math", [problem], ["<answer>1,234</answer>"], [], None,
                         np.zeros(1, int), (0,), None)
    assert seen.equals(["1234"]).tolist() == [1] and seen.equals(["1235"]).tolist() == [0]
