"""Two processes of one device each train as one process of two devices does, and write one run directory."""

import pathlib
import shutil
import signal
import time

import pytest

from rlvr_jax.runs import checkpoint

from fixtures import TRAIN_FLAGS, assert_same_run, count_lines, finish, free_port, read_jsonl, run, wait_for

STEPS = 60
FLAGS = (*TRAIN_FLAGS, f"--num_steps={STEPS}", "--eval_every=20", "--save_every=20", "--keep_last=9")


@pytest.fixture(scope="module", params=[(), pytest.param(("--divide_state",), marks=pytest.mark.slow)])
def alone(request, tmp_path_factory, base, compiled) -> tuple[pathlib.Path, tuple[str, ...]]:
    """The run of one process, and its additional flags."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    run("train", *FLAGS, *request.param, f"--model={base}", f"--run_dir={run_dir}", "--host_devices=2",
        compiled=compiled, expect=0)
    return run_dir, request.param


@pytest.fixture
def begin(tmp_path, base, launch):
    """`begin(*flags)` starts both processes on tmp_path/run."""
    def both(*flags):
        address = f"--coordinator_address=127.0.0.1:{free_port()}"
        return [launch("train", *FLAGS, f"--model={base}", f"--run_dir={tmp_path / 'run'}", address,
                       "--num_processes=2", f"--process_id={i}", *flags) for i in range(2)]
    return both


def test_two_processes_equal_two_devices_and_continue(begin, tmp_path, alone, base, compiled):
    """Bit for bit: a sum over two devices has one order, whichever processes they belong to."""
    run_dir, (wanted, flags) = tmp_path / "run", alone
    main, other = begin(*flags)
    wait_for(lambda: count_lines(run_dir / "metrics.jsonl") >= 4, main)
    other.send_signal(signal.SIGTERM)  # to one of them alone; both must stop at the same step
    for process in (main, other):
        assert "the same command continues" in finish(process, expect=143).err
    step = max(checkpoint.steps(run_dir))
    assert 3 <= step < STEPS and read_jsonl(run_dir / "metrics.jsonl")[-1]["step"] == step

    finished = [finish(process, expect=0) for process in begin(*flags)]
    assert_same_run(run_dir, wanted, STEPS)
    assert "training accuracy" in finished[0].out and "training accuracy" not in finished[1].out
    assert [path.name for path in tmp_path.iterdir()] == ["run"]

    # One process continues what two have saved.
    shutil.rmtree(run_dir / "checkpoints" / str(STEPS))
    run("train", *FLAGS, *flags, f"--model={base}", f"--run_dir={run_dir}", "--host_devices=2", compiled=compiled,
        expect=0)
    assert_same_run(run_dir, wanted, STEPS)


def test_a_main_process_that_fails_alone_takes_the_other_with_it(begin, tmp_path):
    """It cannot write its log; the other one waits for it in a collective, which times out after five minutes."""
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    started = time.monotonic()
    main, other = begin()
    failed = finish(main, expect=1, limit=150)
    assert failed.errors == [f"error: {tmp_path / 'run' / 'metrics.jsonl'}: Is a directory"]
    assert finish(other, limit=60).code != 0 and time.monotonic() - started < 200


def test_both_processes_refuse_other_flags(begin, tmp_path, alone):
    """Only one reads the run directory; the other must not wait for it."""
    shutil.copytree(alone[0], tmp_path / "run")
    results = [finish(process, expect=1, limit=60) for process in begin("--learning_rate=0.5")]
    assert "--learning_rate (was 0.001)" in results[0].errors[0] and len(results[1].errors) == 1
    assert_same_run(tmp_path / "run", alone[0], STEPS)
