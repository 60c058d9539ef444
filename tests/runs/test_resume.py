"""A run that is stopped, killed or damaged continues as if nothing had happened, or says in one line what to do."""

import functools
import pathlib
import random
import secrets
import shutil
import signal
import time

import pytest

from rlvr_jax.errors import UserError
from rlvr_jax.grading import grade
from rlvr_jax.runs import checkpoint

from fixtures import TRAIN_FLAGS, assert_same_run, count_lines, finish, read_jsonl, run, saved_arrays, wait_for

STEPS = 30
FLAGS = (*TRAIN_FLAGS, f"--num_steps={STEPS}", "--eval_every=5", "--save_every=3", "--keep_every=15")


@pytest.fixture(scope="module")
def straight(tmp_path_factory, base, compiled):
    """`straight(devices, *flags)`: the uninterrupted run, which the others must equal."""
    made = {}

    def get(devices: int = 1, *flags: str) -> pathlib.Path:
        if (devices, flags) not in made:
            made[devices, flags] = tmp_path_factory.mktemp("straight") / "run"
            run("train", *FLAGS, f"--model={base}", f"--run_dir={made[devices, flags]}", f"--host_devices={devices}",
                *flags, compiled=compiled, expect=0)
        return made[devices, flags]

    return get


@pytest.fixture
def train(tmp_path, base, compiled):
    """`train(*flags)` starts or continues the run in tmp_path/run."""
    def again(*flags, expect=0):
        return run("train", *FLAGS, f"--model={base}", f"--run_dir={tmp_path / 'run'}", *flags, compiled=compiled,
                   expect=expect)
    return again


@pytest.fixture
def begin(tmp_path, base, launch):
    """Starts the same command and returns its process."""
    return functools.partial(launch, "train", *FLAGS, f"--model={base}", f"--run_dir={tmp_path / 'run'}")


def test_the_whole_learns_something(straight, base):
    """Otherwise equality would say little: parameters move, and rewards differ within groups."""
    rows = read_jsonl(straight() / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    assert any(row["train/live_groups"] > 0 for row in rows[1:]) and rows[-1]["train/kl"] > 0
    before, after = saved_arrays(base, 200)["params/embed"], saved_arrays(straight(), STEPS)["params/embed"]
    assert (before != after).any()


def test_the_greedy_completions_of_every_evaluation_are_kept(straight):
    """Their accuracy is that of the log; only the first row has the problems."""
    first, *later = rows = read_jsonl(straight() / "heldout.jsonl")
    logged = {row["step"]: row["eval/greedy"] for row in read_jsonl(straight() / "metrics.jsonl") if "eval/n" in row}
    assert {row["step"]: sum(row["correct"]) / 16 for row in rows} == logged and len(rows) == 1 + STEPS // 5
    assert all(row.keys() == {"step", "completions", "correct"} for row in later)
    assert len(first["prompts"]) == len(first["answers"]) == 16
    for row in rows:
        verdicts = grade.grade_texts(row["completions"], first["answers"], "answer", "math")
        assert [verdict.correct for verdict in verdicts] == [bool(right) for right in row["correct"]]


def test_nothing_is_compiled_after_the_first_step(straight):
    """Neither for an evaluation nor for a checkpoint."""
    counts = [row["compilations"] for row in read_jsonl(straight() / "metrics.jsonl")]
    assert min(counts[:2]) > 0 and not any(counts[2:])


@pytest.mark.parametrize("devices, more", [(1, ()), pytest.param(2, ("--divide_state",), marks=pytest.mark.slow)])
def test_killed_three_times_equals_the_whole(begin, train, tmp_path, straight, devices, more):
    """As soon as a half-written checkpoint appears, while it starts, and at any other moment."""
    flags, seed = (f"--host_devices={devices}", *more), secrets.randbits(32)
    rng, log, saved = random.Random(seed), tmp_path / "run" / "metrics.jsonl", tmp_path / "run" / "checkpoints"
    for moment in ("checkpoint", "start", "any"):
        goal, process = count_lines(log) + rng.randint(1, 6), begin(*flags)  # a little further than the previous start
        if moment == "checkpoint":
            wait_for(lambda: count_lines(log) >= goal and [*saved.glob("*tmp*")], process)
        elif moment == "any":
            wait_for(lambda: count_lines(log) >= goal, process)
        time.sleep(rng.uniform(0, {"checkpoint": 0, "start": 3, "any": 0.03}[moment]))
        process.send_signal(signal.SIGKILL)
        assert finish(process).code == -signal.SIGKILL, f"seed {seed}: finished before it was killed"
    train(*flags)
    print(f"seed {seed}")  # pytest shows it if what follows fails
    assert_same_run(tmp_path / "run", straight(devices, *more), STEPS)
    assert not list(saved.glob("*tmp*"))


@pytest.mark.parametrize("devices, number, code", [
    (1, signal.SIGTERM, 143), pytest.param(2, signal.SIGINT, 130, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_same_command_continues(begin, train, tmp_path, straight, devices, number, code):
    run_dir = tmp_path / "run"
    process = begin(f"--host_devices={devices}")
    wait_for(lambda: count_lines(run_dir / "metrics.jsonl") >= 8, process)
    process.send_signal(number)
    stopped = finish(process, expect=code)
    step = read_jsonl(run_dir / "metrics.jsonl")[-1]["step"]
    assert 7 <= step < STEPS and max(checkpoint.steps(run_dir)) == step
    said = [line for line in stopped.err.splitlines() if line and not line.startswith("train:")]
    assert said == [f"{number.name}: stopping after this step; Ctrl-C again to stop at once",
                    f"{number.name}: saved step {step} in {run_dir}; the same command continues"]
    assert not (run_dir / "summary.json").exists()
    train(f"--host_devices={devices}")
    assert_same_run(run_dir, straight(devices), STEPS)


@pytest.mark.parametrize("before, after, more", [
    (1, 2, "--divide_state"), pytest.param(1, 2, "--nodivide_state", marks=pytest.mark.slow),
    pytest.param(2, 1, "--nodivide_state", marks=pytest.mark.slow)])
def test_continues_on_another_number_of_devices(train, tmp_path, straight, before, after, more):
    run_dir = pathlib.Path(shutil.copytree(straight(before), tmp_path / "run"))
    for step in (27, 30):
        shutil.rmtree(run_dir / "checkpoints" / str(step))
    train(f"--host_devices={after}", more)
    rows, wanted = (read_jsonl(path / "metrics.jsonl") for path in (run_dir, straight(before)))
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    # Gradients are summed in another order: the first rollouts are identical, later numbers nearly so.
    first, same = ([row for row in read_jsonl(path / "rollouts.jsonl") if row["step"] == 16]
                   for path in (run_dir, straight(before)))
    assert first == same
    assert rows[16]["train/loss"] == pytest.approx(wanted[16]["train/loss"], rel=1e-5, abs=1e-6)
    ours, theirs = saved_arrays(run_dir, STEPS), saved_arrays(straight(before), STEPS)
    assert ours["training/opt_state/1/0/count"] == theirs["training/opt_state/1/0/count"] == STEPS


@pytest.mark.parametrize("how", ["truncate", "garble", "remove"])
@pytest.mark.parametrize("item", ["params", "meta"])
def test_no_damaged_model_is_loaded(straight, tmp_path, item, how):
    """Every file of the item that holds data is cut, overwritten or removed. The run has checkpoints 15, 27 and 30."""
    copied = pathlib.Path(shutil.copytree(straight(), tmp_path / "run"))
    for path in [path for path in (copied / "checkpoints" / "30" / item).rglob("*") if path.is_file()]:
        content = path.read_bytes()
        if how == "truncate":
            path.write_bytes(content[: len(content) // 2])
        elif how == "garble":  # the length stays
            path.write_bytes(bytes(byte ^ 0x55 for byte in content))
        else:
            path.unlink()
    with pytest.raises(UserError, match="cannot read checkpoint .*30.* go back to step 27"):
        checkpoint.restore_model(str(copied))
    assert checkpoint.restore_model(str(copied), 27)
