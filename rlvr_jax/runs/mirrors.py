"""Copies of metrics.jsonl for programs that draw curves. MIRRORS has a context manager for each program. On entry it
replaces an earlier copy by `rows`, the log so far, so that no step is doubled when a run continues. It yields the
function `write(row)`, which adds a row to the copy."""

import contextlib
import importlib.util
import pathlib
import shutil
import time
from typing import Callable, Iterator

from rlvr_jax.errors import UserError
from rlvr_jax.runs.files import name_in_errors
from rlvr_jax.runs.log import numeric_metrics

PACKAGES = {"tensorboard": "tensorboardX"}  # name in MIRRORS -> Python package, if their names differ


@contextlib.contextmanager
def tensorboard(run_dir: pathlib.Path, rows: list) -> Iterator[Callable[[dict], None]]:
    """Writes the metrics into the run directory, for `tensorboard --logdir=RUN`."""
    from tensorboardX import event_file_writer  # optional; not SummaryWriter, whose thread hangs on a full disk
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary

    directory = run_dir / "tensorboard"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    writer = event_file_writer.EventsWriter(str(directory / "events"))

    def write(row: dict) -> None:
        values = [Summary.Value(tag=key, simple_value=value) for key, value in numeric_metrics(row).items()]
        with name_in_errors(directory):
            writer.write_event(Event(step=row["step"], wall_time=time.time(), summary=Summary(value=values)))
            writer.flush()

    try:  # START makes a running TensorBoard discard what it read from this directory before
        writer.write_event(Event(step=0, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)))
        for row in rows:
            write(row)
        yield write
    finally:
        with name_in_errors(directory):
            writer.close()


@contextlib.contextmanager
def trackio(run_dir: pathlib.Path, rows: list) -> Iterator[Callable[[dict], None]]:
    """Writes the metrics to Trackio's own folder, for `trackio show`; the run's parent folder names the project."""
    import trackio  # optional

    project, name = run_dir.resolve().parent.name or "runs", run_dir.resolve().name
    with contextlib.suppress(ValueError):  # raised if there is no such project yet
        for run in trackio.Api().runs(project):
            if run.name == name:
                run.delete()
    trackio.init(project=project, name=name, embed=False, auto_log_gpu=False, auto_log_cpu=False)

    def write(row: dict) -> None:
        trackio.log(numeric_metrics(row), step=row["step"])

    try:
        for row in rows:
            write(row)
        yield write
    finally:
        trackio.finish()


MIRRORS = {"tensorboard": tensorboard, "trackio": trackio}


def parse_mirrors(text: str) -> list[str]:
    """Returns the names in a value of --log_to. UserError if MIRRORS lacks a name, or its package is not installed."""
    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        if name not in MIRRORS:
            raise UserError(f"--log_to={text}: {name!r} is none of {', '.join(MIRRORS)}")
        if importlib.util.find_spec(package := PACKAGES.get(name, name)) is None:
            raise UserError(f"--log_to={name} needs {package}: pip install -e '.[{name}]'")
    return names
