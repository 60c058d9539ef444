"""One process at a time writes a directory; and a process acknowledges a signal at once."""

import os
import signal
import subprocess
import sys

import pytest

from rlvr_jax.errors import Interrupted, UserError
from rlvr_jax.runs import flags, locks
from rlvr_jax.runs.run import Run
from rlvr_jax.training.train import TrainConfig

from fixtures import ROOT, finish

HOLD = "import sys, pathlib; from rlvr_jax.runs import locks; f = locks.lock(pathlib.Path(sys.argv[1]), '--run_dir')\n" \
       "print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path):
    """A process that holds tmp_path/run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], cwd=ROOT, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_directory_in_use_is_refused_by_process_and_flag_and_stays_where_it_is(tmp_path, holder):
    directory = tmp_path / "run"
    for resume in ("auto", "never"):
        with pytest.raises(UserError, match=rf"{directory} is being written by process {holder.pid} on {os.uname()[1]};"
                                            " wait for it, or choose another --out"):
            flags.claim(directory, "--out", resume)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_killed_process_holds_nothing(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locks.lock(tmp_path / "run", "--run_dir") as held:
        assert f"process {os.getpid()} on" in (tmp_path / "run" / locks.NAME).read_text()
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            locks.lock(tmp_path / "run", "--run_dir")
    assert held.closed
    locks.lock(tmp_path / "run", "--run_dir").close()


def test_the_file_names_the_last_holder_alone(tmp_path):
    for _ in range(2):
        locks.lock(tmp_path, "--run_dir").close()
    assert (tmp_path / locks.NAME).read_text() == f"process {os.getpid()} on {os.uname()[1]}\n"


def test_a_new_run_sets_the_old_one_aside_and_holds_its_own(tmp_path):
    directory = tmp_path / "run"
    flags.claim(directory, "--run_dir", "never").close()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # no earlier run to rename
    with flags.claim(directory, "--run_dir", "never"):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1"]
        with pytest.raises(UserError):
            locks.lock(directory, "--run_dir")


@pytest.mark.parametrize("reason", [OSError(38, "Function not implemented"), None])
def test_without_locks_the_user_is_told_and_the_run_goes_on(tmp_path, monkeypatch, capsys, reason):
    """A file system without locks, and a Python without fcntl."""
    def flock(*_):
        raise reason

    if reason:
        monkeypatch.setattr(locks.fcntl, "flock", flock)
    else:
        monkeypatch.setattr(locks, "fcntl", None)
    locks.lock(tmp_path, "--run_dir").close()
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path} cannot be locked (") and said.count("\n") == 1


# ----- signals

ANSWER = """
import hashlib, signal
from rlvr_jax.runs import signals
signal.signal(signal.SIGINT, lambda *_: None)
signals.GRACE = 0.01
with signals.acknowledge_signals(lambda: "stopping after this step"):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # like a compilation: long, in C, and other threads run
"""


def test_the_first_signal_is_answered_at_once_and_the_second_ends_the_process(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ANSWER], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline() == "SIGINT: stopping after this step; Ctrl-C again to stop at once\n"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert finish(process, limit=60).code == 130


def test_a_run_stopped_before_its_first_step_says_that_it_can_start_again(tmp_path, capfd):
    config = TrainConfig.from_flags(run_dir=str(tmp_path / "run"))
    with pytest.raises(Interrupted, match="SIGINT: stopped before the first step; the same command starts") as stop:
        with Run(config.run, config, config.grpo.loop.num_steps, "train"):
            signal.raise_signal(signal.SIGINT)
    assert stop.value.exit_code == 130
    assert "SIGINT: stopping; Ctrl-C again to stop at once" in capfd.readouterr().err
    locks.lock(tmp_path / "run", "--run_dir").close()  # it is free again


def test_ctrl_c_in_a_program_of_ones_own_leaves_one_line():
    program = "from rlvr_jax.errors import Interrupted; raise Interrupted('SIGINT: saved step 3', 130)"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, "SIGINT: saved step 3\n")
