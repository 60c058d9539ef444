"""What a run directory does for a loop: stop rules, the best checkpoint, mirrors of the log, flags that may not change.

The loop here trains nothing: its metrics are given, and the state of step s is full of s.
"""

import json
import struct
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_jax import grpo, parallel
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import measure
from rlvr_jax.records import LearnerState, Problem, build, flat, replace
from rlvr_jax.runs import checkpoint, flags, log, origin, stopping, summary
from rlvr_jax.runs.run import Run
from rlvr_jax.tasks import families
from rlvr_jax.tasks.problems import merge
from rlvr_jax.training import train
from rlvr_jax.training.pretrain import PretrainConfig
from rlvr_jax.training.train import TrainConfig

from fixtures import read_jsonl

CONFIG = build(TrainConfig, save_every=2, eval_every=2, keep_last=1)
ENTROPY = [9, 8, 0.5, 0.4, 2, 0.3, 0.2, 0.1, 7, 7]  # of steps 1 to 10
GREEDY = {2: 0.25, 4: 0.75, 6: 0.75, 8: 0.5, 10: 0.5}


def state_of(step: int) -> LearnerState:
    return LearnerState(np.int32(step), {"w": np.full(3, step, np.float32)}, {"m": np.full(2, step, np.float32)}, None)


@pytest.fixture
def go(tmp_path):
    """`go(**flags)` starts the run or goes on with it; `crash_at` is a step that it does not live to log."""
    def loop(crash_at=None, **flags):
        config = replace(CONFIG, run_dir=str(tmp_path / "run"), **{"num_steps": 10} | flags)
        meta = {"flags": flat(config)}
        with Run(config.run, config, config.grpo.loop.num_steps, "train") as run:
            state = parallel.place_state(run.restore(state_of(0)))
            for step in run.steps():
                state = parallel.place_state(state_of(step))
                if step == crash_at:
                    raise RuntimeError("crash")
                row = {"step": step, "train/loss": 0.0, "train/entropy": ENTROPY[step - 1], "train/name": "text"}
                evaluated = run.due(step, config.run.eval_every, row)
                run.log(row | ({"eval/greedy": GREEDY.get(step, 0.1)} if evaluated else {}))
                if run.due(step, config.run.save_every):
                    run.save(state, meta)
            return run.finish(state, meta)
    return loop


def logged(tmp_path) -> list[int]:
    return [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")]


# ----- stop rules


@pytest.mark.parametrize("crash_at", [None, 3, 5, 8])
def test_a_stop_rule_ends_a_run_at_the_same_step_whatever_happens_before(go, tmp_path, capsys, crash_at):
    """Below 1 at steps 3 and 4, then 6, 7 and 8: three in succession are complete at step 8."""
    flags = {"stop_when": "train/loss>5, train/entropy<1", "stop_patience": 3}
    if crash_at:
        with pytest.raises(RuntimeError):
            go(crash_at=crash_at, **flags)
    summary = go(**flags)
    assert summary["stopped_by"] == {"rule": "train/entropy<1", "patience": 3, "step": 8, "value": 0.1}
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert logged(tmp_path) == list(range(1, 9)) and checkpoint.steps(tmp_path / "run") == [8]
    printed = capsys.readouterr().out
    assert "--stop_when at step 8: train/entropy<1 in 3 rows in succession, the last with 0.1" in printed


def test_a_stopped_run_goes_on_only_under_another_rule(go, tmp_path):
    flags = {"stop_when": "train/entropy<1", "stop_patience": 3}
    assert go(**flags) == go(**flags) and logged(tmp_path)[-1] == 8
    assert go(**flags, num_steps=9)["steps"] == 8
    assert "stopped_by" not in go(**flags | {"stop_patience": 4}) and logged(tmp_path)[-1] == 10


def test_evaluations_in_succession_count_without_the_steps_between(go):
    assert go(stop_when="eval/greedy>0.5", stop_patience=2)["stopped_by"]["step"] == 6


rows_of = st.lists(st.sampled_from([{}, {"m": None}, {"m": 0.0}, {"m": 1.0}, {"m": 2.0}]), max_size=12)


@given(rows_of, st.integers(1, 4))
def test_a_rule_has_to_hold_in_all_of_the_last_rows_that_have_its_metric(values, patience):
    rows = [{"step": step} | row for step, row in enumerate(values, 1)]
    seen = ["y" if (row["m"] or 0) > 1.5 else "n" for row in values if "m" in row]
    held = "".join(seen).endswith("y" * patience)
    assert (stopping.verdict(stopping.parse("m>1.5"), patience, rows) is not None) == held


def test_the_base_does_not_count_and_the_first_rule_that_holds_is_named():
    rows = [{"step": 0, "a": 0.0}, {"step": 1, "a": 0.0, "b": 9.0}]
    rules = stopping.parse(" c<1,a < 1e-3,b>2")
    assert stopping.verdict(rules, 2, rows) is None
    assert stopping.verdict(rules, 1, rows) == {"rule": "a<0.001", "patience": 1, "step": 1, "value": 0.0}
    assert stopping.verdict(stopping.parse(""), 1, rows) is None


@pytest.mark.parametrize("text", ["entropy", "entropy<", "<1", "a=1", "a<=1", "a<b", "a<1<2", "a<nan", "a<1,,b>2",
                                  "a<1,"])
def test_a_rule_that_cannot_be_read_is_refused(text):
    with pytest.raises(UserError, match="--stop_when: .* is no rule; rules are METRIC<NUMBER or METRIC>NUMBER"):
        stopping.parse(text)


@pytest.mark.parametrize("flags, says, rows", [
    ({"stop_when": "train/entropie<1"}, "--stop_when: this run does not measure train/entropie; step 1 has train/e", 0),
    ({"keep_best": "eval/gready"}, "--keep_best: this run does not measure eval/gready; step 2 has eval/greedy, tr", 1),
    ({"stop_when": "eval/gready>1"}, "--stop_when: this run does not measure eval/gready; step 2 has", 1)])
def test_a_metric_that_is_not_measured_is_refused_at_the_first_row_that_should_have_it(go, tmp_path, flags, says, rows):
    with pytest.raises(UserError, match=says):
        go(**flags)
    assert len(logged(tmp_path)) == rows


# ----- the best checkpoint


def test_the_best_checkpoint_stays_whatever_came_after_and_has_a_name(go, tmp_path):
    """The newest of the equal ones of steps 4 and 6; the run starts anew after it, from step 8."""
    with pytest.raises(RuntimeError):
        go(keep_best="eval/greedy", crash_at=9)
    assert checkpoint.steps(tmp_path / "run") == [6, 8]
    go(keep_best="eval/greedy")
    assert checkpoint.steps(tmp_path / "run") == [6, 10]
    assert checkpoint.best_step(str(tmp_path / "run")) == 6


@pytest.mark.parametrize("patience, step", [(1, 3), (2, 4)])
def test_a_run_that_a_rule_ends_is_evaluated_at_its_end_and_has_a_best(go, tmp_path, patience, step):
    """Entropy is below 1 at steps 3 and 4; nothing but the end is evaluated, and nothing else is saved."""
    summary = go(stop_when="train/entropy<1", stop_patience=patience, keep_best="eval/greedy", eval_every=0,
                 save_every=0)
    assert summary["stopped_by"]["step"] == step and summary["final"] == {"greedy": GREEDY.get(step, 0.1)}
    assert [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "eval/greedy" in row] == [step]
    assert checkpoint.best_step(str(tmp_path / "run")) == step


def test_without_keep_best_the_newest_stay_and_no_step_is_best(go, tmp_path):
    go()
    assert checkpoint.steps(tmp_path / "run") == [10]
    with pytest.raises(UserError, match="run@best: its --keep_best= names no metric of a checkpoint; name a step: 10$"):
        checkpoint.restore_model(str(tmp_path / "run"), "best")


def test_every_so_many_steps_a_checkpoint_stays(go, tmp_path):
    go(keep_every=4)
    assert checkpoint.steps(tmp_path / "run") == [4, 8, 10]


def test_a_checkpoint_without_the_metric_is_not_the_best(go, tmp_path):
    go(keep_best="eval/greedy", save_every=3, keep_last=2)  # steps 3 and 9 are saved and not evaluated
    assert checkpoint.steps(tmp_path / "run") == [6, 9, 10] and checkpoint.best_step(str(tmp_path / "run")) == 6


def test_keep_best_may_change_and_judges_old_checkpoints_too(go, tmp_path):
    go(keep_last=9, keep_best="eval/greedy", num_steps=8)
    assert checkpoint.steps(tmp_path / "run") == [2, 4, 6, 8] and checkpoint.best_step(str(tmp_path / "run")) == 6
    go(keep_best="train/entropy")
    assert checkpoint.steps(tmp_path / "run") == [2, 10] and checkpoint.best_step(str(tmp_path / "run")) == 2


# ----- what is not finite


@pytest.fixture
def spoil(monkeypatch):
    """`spoil(field, value, step)`: from that step on, the field of the state is full of the value."""
    def install(field, value, first):
        monkeypatch.setattr(sys.modules[__name__], "state_of", lambda step: sound(step) if step < first else sound(
            step).replace(**{field: jax.tree.map(lambda x: np.full_like(x, value), getattr(sound(step), field))}))
    sound = state_of
    return install


@pytest.mark.parametrize("field, value", [("params", np.nan), ("opt_state", np.inf)])
@pytest.mark.parametrize("num_steps, first, step, good", [(10, 5, 6, [4]), (6, 6, 6, [4]), (2, 2, 2, [])])
def test_a_state_that_is_not_finite_is_not_saved(go, tmp_path, spoil, field, value, num_steps, first, step, good):
    """Not on the way, and not at the end, where no later loss would show it."""
    spoil(field, value, first)
    kept = "good checkpoints of steps 4" if good else "no good checkpoint"
    with pytest.raises(UserError, match=f"not finite after step {step}, which is not saved; .*run has {kept};"):
        go(num_steps=num_steps)
    assert checkpoint.steps(tmp_path / "run") == good and not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("field", ["params", "opt_state"])
def test_a_checkpoint_that_is_not_finite_is_not_loaded(go, tmp_path, spoil, monkeypatch, field):
    with monkeypatch.context() as patch:  # as a version that did not look has saved it
        patch.setattr(checkpoint, "finite", lambda tree: True)
        spoil(field, np.nan, 9)
        go(keep_last=2)
    says = "checkpoint .*10 holds numbers that are not finite .*; remove that directory to go back to step 8"
    with pytest.raises(UserError, match=says):
        go(num_steps=12)
    if field == "params":
        with pytest.raises(UserError, match=says):
            checkpoint.restore_model(str(tmp_path / "run"))


@pytest.mark.parametrize("name", ["train/loss", "train/grad_norm"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_or_gradient_that_is_not_finite_ends_the_run(go, tmp_path, monkeypatch, name, value):
    log = Run.log
    monkeypatch.setattr(Run, "log", lambda run, row: log(run, row | ({name: value} if row["step"] == 5 else {})))
    with pytest.raises(UserError, match="the loss or its gradient is not finite at step 5"):
        go()
    assert logged(tmp_path)[-1] == 5 and checkpoint.steps(tmp_path / "run") == [4]


def test_only_checkpoints_before_the_update_that_went_wrong_are_called_good(go, monkeypatch):
    """The loss of step 5 is of the state after step 4."""
    log = Run.log
    wrong = {5: {"train/loss": np.nan}}
    monkeypatch.setattr(Run, "log", lambda run, row: log(run, row | wrong.get(row["step"], {})))
    with pytest.raises(UserError, match="not finite at step 5; .*run has good checkpoints of steps 1, 2, 3;"):
        go(save_every=1, keep_last=9)


# ----- flags that may not change


@pytest.mark.parametrize("before, after, says", [
    ({"schedule": "cosine"}, {"num_steps": 90}, "--num_steps=90 moves the end of its schedule: add --decay_steps=360"),
    ({"schedule": "linear"}, {"num_steps": 30}, "--num_steps=30 moves the end of its schedule: add --decay_steps=360"),
    ({"schedule": "linear", "decay_steps": 360}, {"decay_steps": 0, "num_steps": 90}, "add --decay_steps=360,"),
    ({"schedule": "linear", "decay_steps": 7}, {"decay_steps": 9}, "--decay_steps (was 7); restore them,"),
    ({"schedule": "linear"}, {"num_steps": 90, "seed": 1}, "--decay_steps (was 360), --seed (was 0); restore them,"),
    ({"schedule": "cosine"}, {"num_steps": 90, "decay_steps": 360}, ""),
    ({"schedule": "cosine"}, {"decay_steps": 360}, ""),
    ({"schedule": "constant"}, {"num_steps": 90}, "")])
def test_a_schedule_that_ends_with_the_run_keeps_its_end(tmp_path, before, after, says):
    first = replace(CONFIG, num_steps=60, num_passes=2, num_minibatches=3, **before)
    (tmp_path / "flags.txt").write_text("\n".join(flags.flag_lines(first)))
    found = flags.changed_flags(tmp_path, replace(first, **after), "--run_dir", "train")
    assert says in found and bool(found) == bool(says)


@pytest.mark.parametrize("before, after, same", [
    ("base/", "base", True), ("./base", "base//", True), ("base/@20", "base@20", True), ("base@20", "base@30", False),
    ("base", "bas", False)])
def test_a_model_is_the_same_however_its_directory_is_written(tmp_path, before, after, same):
    first = replace(CONFIG, model=before)
    (tmp_path / "flags.txt").write_text("\n".join(flags.flag_lines(first)))
    found = flags.changed_flags(tmp_path, replace(first, model=after), "--run_dir", "train")
    assert ("--model" in found) != same


def test_a_directory_of_another_script_gets_one_sentence(tmp_path):
    (tmp_path / "flags.txt").write_text("\n".join(flags.flag_lines(PretrainConfig())))
    origin.write(tmp_path, "pretrain")
    assert flags.changed_flags(tmp_path, CONFIG, "--run_dir", "train") == (
        f"{tmp_path} was written by scripts.pretrain, and scripts.train needs a directory of its own: choose another "
        "--run_dir")
    (tmp_path / "flags.txt").write_text("\n".join(flags.flag_lines(replace(CONFIG, seed=9))[:-4]))
    origin.write(tmp_path, "train")
    assert "--seed (was 9)" in flags.changed_flags(tmp_path, CONFIG, "--run_dir", "train")  # of an earlier version
    (tmp_path / "origin.json").unlink()  # which a run that started with nothing to do does not have
    assert "--seed (was 9)" in flags.changed_flags(tmp_path, CONFIG, "--run_dir", "train")


# ----- what is chosen once


def test_a_run_that_goes_on_does_not_choose_again(go, tmp_path, monkeypatch):
    """A run that starts, anew or after a start that saved nothing, does; so does one whose note is gone or damaged."""
    asked, restore = [], Run.restore

    def restore_and_choose(run, fresh):
        chosen.append(run.once("example", lambda: {"example": asked.append(1) or 40 + len(asked), "rate": 0.5})["example"])
        return restore(run, fresh)

    chosen, kept = [], tmp_path / "run" / "example.json"
    monkeypatch.setattr(Run, "restore", restore_and_choose)
    with pytest.raises(RuntimeError):
        go(crash_at=1)
    go(num_steps=2)
    assert json.loads(kept.read_text()) == {"example": 42, "rate": 0.5}
    go(num_steps=4)
    go(num_steps=4)  # finished already
    kept.write_text("{")
    go(num_steps=6)
    kept.unlink()
    go(num_steps=8)
    go(num_steps=2, resume="never")
    assert chosen == [41, 42, 42, 42, 43, 44, 45]


def test_the_place_that_is_kept_names_the_chosen_problem(monkeypatch):
    words = families.make_tokenizer(["arithmetic"])
    problems, kept = merge([Problem(str(i), "3", str(i)) for i in (7, 8, 9)]), {}
    start = SimpleNamespace(params={"layers": {}}, tokenizer=words, config=SimpleNamespace(max_seq_len=99))
    rows = [{"problem": p, "correct": i < right, "completion": "think answer 3"}
            for p, right in enumerate([0, 60, 15]) for i in range(64)]
    monkeypatch.setattr(measure, "measure", lambda *_, **__: rows)
    monkeypatch.setattr(train, "load_pool", lambda *_: problems)
    chosen = train.find_problems(build(TrainConfig, example="auto"), start, grpo.Programs(None, None, None),
                                 lambda name, make: kept.setdefault(name, make()))
    assert chosen == [problems[2]]  # 15 of 64 is nearer to 0.2 than 60
    assert kept == {"example": {"example": 2, "question": "9", "answer": "3", "pass_rate": 15 / 64, "num_samples": 64}}


# ----- mirrors and counts


def events(folder) -> list[tuple]:
    """(tag, step, value) of every scalar in a folder of event files: length, checksum, data, checksum."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in folder.iterdir():
        content, place = path.read_bytes(), 0
        while place < len(content):
            length, = struct.unpack_from("<Q", content, place)
            event = event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            place += length + 16
    return found


def test_tensorboard_mirrors_the_log_and_a_resumed_run_repeats_no_step(go, tmp_path):
    pytest.importorskip("tensorboardX", reason="pip install 'rlvr_jax[tensorboard]'")
    with pytest.raises(RuntimeError):
        go(tensorboard=True, crash_at=4)  # step 3 is logged, and done again from the checkpoint of step 2
    go(tensorboard=True)
    wanted = [(key, row["step"], value) for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")
              for key, value in row.items() if key not in ("step", "train/name")]
    found = events(tmp_path / "run" / "tensorboard")
    assert len(found) == 10 * 3 + 5
    assert sorted(found) == [(key, step, pytest.approx(value)) for key, step, value in sorted(wanted)]


def test_without_tensorboardx_the_extra_is_named_before_anything_is_written(go, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"--tensorboard needs tensorboardX: pip install 'rlvr_jax\[tensorboard\]'"):
        go(tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_every_program_built_is_counted_once():
    with log.compilations() as taken:
        double = jax.jit(lambda x: jax.jit(lambda y: y + 1)(x) * 2)  # two are traced, one is built
        for size in (3, 3, 4, 4):
            double(np.ones(size, np.float32))
        assert (taken(), taken()) == (2, 0)
        double(np.ones(5, np.float32))
        assert taken() == 1
    double(np.ones(6, np.float32))
    assert taken() == 0  # it listens no longer


def test_an_ngram_counts_as_repeated_within_its_own_completion_only():
    ids = np.array([[5, 5, 5, 5, 5, 5], [1, 2, 1, 2, 1, 2], [1, 2, 1, 2, 9, 9], [7, 7, 7, 7, 7, 7]])
    lengths = np.array([6, 6, 5, 3])
    mask = np.arange(6) < lengths[:, None]
    # windows of 4: 3 equal ones (2 repeat); 1212 2121 1212 (1 repeats); 1212 2129 (none); none at all
    assert summary.repetition(ids, mask) == pytest.approx(3 / 8)
    assert summary.repetition(ids[:, :3], mask[:, :3]) == 0


# ----- the log and the summary


def test_a_row_that_was_cut_before_its_line_ended_spoils_no_other(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 2}\n{"step": 3}')
    lines = log.JsonLines(path, 10)
    lines.write({"step": lines.rows[-1]["step"] + 1})
    lines.close()
    assert [row["step"] for row in read_jsonl(path)] in ([2, 3], [2, 3, 4]) and path.read_bytes().endswith(b"\n")


def test_a_log_is_cut_after_the_step_that_a_run_goes_on_from(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in (0, 1, 2, 3)))
    log.JsonLines(path, 2).close()
    assert [row["step"] for row in read_jsonl(path)] == [0, 1, 2]


def test_an_evaluation_at_the_step_of_saturation_counts_as_after_it():
    rows = [{"step": 0, "eval/greedy": 0.1, "eval/sampled": 0.1}, {"step": 1, "train/accuracy": 0.5},
            {"step": 2, "train/accuracy": 0.99, "eval/greedy": 0.7, "eval/sampled": 0.6},
            {"step": 3, "train/accuracy": 1.0}, {"step": 4, "eval/greedy": 0.8, "eval/sampled": 0.5}]
    found = summary.summarise(rows)
    assert found["saturation_step"] == 2 and found["base"] == {"greedy": 0.1, "sampled": 0.1}
    assert found["after_saturation"] == {"greedy": {"at_saturation": 0.7, "peak": 0.8, "end": 0.8},
                                         "sampled": {"at_saturation": 0.6, "peak": 0.6, "end": 0.5}}
