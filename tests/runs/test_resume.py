"""A run that is stopped, killed or damaged continues as if nothing had happened, or says in one line what to do."""

import functools
import json
import pathlib
import random
import secrets
import shutil
import signal
import time

import jax
import pytest

from rlvr_jax.errors import UserError
from rlvr_jax.grading import grade
from rlvr_jax.runs import checkpoint

from fixtures import TRAIN_FLAGS, assert_same_run, count_lines, finish, read_jsonl, run, saved_arrays, wait_for

STEPS = 60
FLAGS = (*TRAIN_FLAGS, f"--num_steps={STEPS}", "--eval_every=5", "--save_every=3", "--keep_every=30")


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


@pytest.fixture
def copied(tmp_path, straight):
    """A finished run in tmp_path/run, to damage; it has the checkpoints of steps 30, 57 and 60."""
    return pathlib.Path(shutil.copytree(straight(), tmp_path / "run"))


def drop_checkpoints(run_dir, *steps) -> None:
    """Makes an older checkpoint the newest."""
    for step in steps:
        shutil.rmtree(run_dir / "checkpoints" / str(step))


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


def test_a_run_says_where_it_comes_from_and_where_it_went_on(train, copied):
    first, = json.loads((copied / "origin.json").read_text())["starts"]
    assert first["step"] == 0 and first["jax"] == jax.__version__ and first["devices"] == 1
    drop_checkpoints(copied, 57, 60)
    for _ in range(2):  # the second start has nothing to do
        train()
        again = json.loads((copied / "origin.json").read_text())["starts"]
        assert again[0] == first and [start["step"] for start in again] == [0, 30]


def test_nothing_is_compiled_after_the_first_step(straight):
    """Neither for an evaluation nor for a checkpoint."""
    counts = [row["compilations"] for row in read_jsonl(straight() / "metrics.jsonl")]
    assert min(counts[:2]) > 0 and not any(counts[2:])


def test_killed_five_times_equals_the_whole(begin, train, tmp_path, straight):
    seed = secrets.randbits(32)
    rng, log = random.Random(seed), tmp_path / "run" / "metrics.jsonl"
    for attempt in range(5):
        goal, process = count_lines(log) + rng.randint(1, 6), begin()
        if attempt == 2:
            time.sleep(rng.uniform(0, 3))  # while it starts
        else:
            wait_for(lambda: count_lines(log) >= goal, process)  # a little further than the previous start
            time.sleep(rng.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        assert finish(process).code == -signal.SIGKILL, f"seed {seed}: finished before it was killed"
    train()
    print(f"seed {seed}")  # pytest shows it if what follows fails
    assert_same_run(tmp_path / "run", straight(), STEPS)
    assert not list((tmp_path / "run" / "checkpoints").glob("*tmp*"))


@pytest.mark.slow
def test_a_divided_state_killed_in_its_checkpoints_equals_the_whole(begin, train, tmp_path, straight):
    """Four times, each as soon as a half-written checkpoint appears."""
    flags, saved = ("--host_devices=2", "--divide_state"), tmp_path / "run" / "checkpoints"
    for attempt in range(1, 5):
        process = begin(*flags)
        wait_for(lambda: count_lines(tmp_path / "run" / "metrics.jsonl") > 6 * attempt and [*saved.glob("*tmp*")], process)
        process.send_signal(signal.SIGKILL)
        assert finish(process).code == -signal.SIGKILL
    train(*flags)
    assert_same_run(tmp_path / "run", straight(2, "--divide_state"), STEPS)
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
    drop_checkpoints(run_dir, 57, 60)
    train(f"--host_devices={after}", more)
    rows, wanted = (read_jsonl(path / "metrics.jsonl") for path in (run_dir, straight(before)))
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    # Gradients are summed in another order: the first rollouts are identical, later numbers nearly so.
    first, same = ([row for row in read_jsonl(path / "rollouts.jsonl") if row["step"] == 31]
                   for path in (run_dir, straight(before)))
    assert first == same
    assert rows[31]["train/loss"] == pytest.approx(wanted[31]["train/loss"], rel=1e-5, abs=1e-6)
    ours, theirs = saved_arrays(run_dir, STEPS), saved_arrays(straight(before), STEPS)
    assert ours["training/opt_state/1/0/count"] == theirs["training/opt_state/1/0/count"] == STEPS


def test_a_finished_run_says_so_and_resume_never_moves_it_aside(train, copied, straight):
    assert "already" in train().out
    assert_same_run(copied, straight(), STEPS)
    train("--resume=never", "--num_steps=1")
    assert_same_run(copied.with_name("run.1"), straight(), STEPS)
    assert [row["step"] for row in read_jsonl(copied / "metrics.jsonl")] == [0, 1]
    assert checkpoint.steps(copied) == [1]


def test_half_written_files_do_not_count(train, copied, straight):
    """The files that a power cut during the save of step 58 leaves behind."""
    drop_checkpoints(copied, 60)
    (copied / "summary.json").unlink()
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        lines = [line for line in (copied / name).read_text().splitlines(keepends=True)
                 if json.loads(line)["step"] < 59]
        (copied / name).write_text("".join(lines)[:-20])
    whole = (copied / "heldout.jsonl").read_text()  # its rows are those of steps 55 and 60 at the end
    (copied / "heldout.jsonl").write_text(whole[:-20])
    shutil.copytree(copied / "checkpoints" / "57", copied / "checkpoints" / "58.orbax-checkpoint-tmp-7")
    (copied / "summary.json.part").write_text("{")
    train()
    assert_same_run(copied, straight(), STEPS)


@pytest.mark.parametrize("how", ["truncate", "garble", "remove"])
@pytest.mark.parametrize("item", ["params", "meta"])
def test_no_damaged_model_is_loaded(copied, item, how):
    damage(copied / "checkpoints" / "60" / item, how)
    with pytest.raises(UserError, match="cannot read checkpoint .*60.* go back to step 57"):
        checkpoint.restore_model(str(copied))
    assert checkpoint.restore_model(str(copied), 57)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # from orbax's threads
def test_a_flipped_bit_on_the_disk_is_noticed_or_changes_no_number(copied):
    """Most bytes of these files are the numbers themselves."""
    seed = secrets.randbits(32)
    rng, whole = random.Random(seed), checkpoint.restore_model(str(copied))[1]
    paths = [path for path in sorted((copied / "checkpoints" / "60" / "params").rglob("*")) if path.is_file()]
    refused = 0
    for _ in range(8):
        path, = rng.choices(paths, [path.stat().st_size for path in paths])
        content = path.read_bytes()
        place = rng.randrange(8 * len(content))
        path.write_bytes(bytes(byte ^ (1 << place % 8) * (i == place // 8) for i, byte in enumerate(content)))
        try:
            loaded = checkpoint.restore_model(str(copied), "60")[1]
            assert jax.tree.map(lambda x: x.tobytes(), loaded) == jax.tree.map(lambda x: x.tobytes(), whole), seed
        except UserError:
            refused += 1
        path.write_bytes(content)
    assert refused > 2, seed


def damage(item: pathlib.Path, how: str) -> None:
    """Cuts, overwrites or removes every file of an item of a checkpoint that holds data."""
    for path in [path for path in item.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        if how == "truncate":
            path.write_bytes(content[: len(content) // 2])
        elif how == "garble":  # the length stays
            path.write_bytes(bytes(byte ^ 0x55 for byte in content))
        else:
            path.unlink()
