"""Logs of JSON lines, the progress bar, and the measuring of compilations and of wall-clock time."""

import contextlib
import json
import math
import os
import pathlib
import time
from typing import Callable, Iterator

import jax
import numpy as np
import tqdm

from rlvr_jax.runs.files import name_in_errors, read_log

# Formats of the progress bar: LINE shows steps, time left, metrics and a bar; COMPILING is for the first step.
LINE = "{desc}: {n_fmt}/{total_fmt} <{remaining}{postfix} |{bar}|"
COMPILING = "{desc}: {n_fmt}/{total_fmt} compiling…"


class JsonLines:
    """An append-only file with one JSON object per line, written without a buffer. `rows` has these objects."""

    def __init__(self, path: pathlib.Path, keep_step: float):
        """Opens the file; cuts it before the first row whose step exceeds `keep_step`. UserError for a damaged line."""
        self.rows, size, whole = read_log(path, keep_step)
        self.path, self.file = path, open(path, "ab", buffering=0)  # with a buffer, `close` would fail on a full disk
        self.count = len(self.rows)  # rows in the file; the log's owner may delete some of `rows` to save memory
        os.truncate(path, size)
        if not whole:
            self.file.write(b"\n")  # the last row has no line end

    def write(self, row: dict) -> None:
        clean = {key: _to_json(value) for key, value in row.items()}
        self.rows.append(clean)
        self.count += 1
        line = (json.dumps(clean, ensure_ascii=False) + "\n").encode()
        with name_in_errors(self.path):
            while line:  # an unbuffered write may write only the beginning
                line = line[self.file.write(line):]

    def close(self) -> None:
        self.file.close()


def _to_json(value):
    """Makes a value fit for JSON: NaN and infinity become None, numpy scalars Python numbers, also in lists."""
    if isinstance(value, (list, tuple)):
        return [_to_json(part) for part in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def numeric_metrics(row: dict) -> dict:
    """Returns {name: value} for the entries of a row of metrics that are numbers, without "step"."""
    return {key: value for key, value in row.items() if isinstance(value, (int, float)) and key != "step"}


@contextlib.contextmanager
def count_compilations() -> Iterator[Callable[[], dict]]:
    """Yields a function that returns {"compilations": number, "seconds_compiling": total} of the programs that JAX
    compiled, or read from its cache, since the function's last call. A run compiles none after its first steps."""
    durations = []

    def listen(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            durations.append(duration)

    def take_counts() -> dict:
        counts = {"compilations": len(durations), "seconds_compiling": sum(durations)}
        durations.clear()
        return counts

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield take_counts
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


class Progress(tqdm.tqdm):
    """A progress bar whose estimate of the time left ignores the first update, because the first step compiles."""

    def update(self, n: float = 1) -> None:
        if self.disable or self.bar_format == LINE:
            super().update(n)
        else:
            self.n += n
            self.initial, self.bar_format = self.n, LINE  # tqdm's rate counts steps after `initial`
            self.last_print_n, self.last_print_t = self.n, self._time()
            self.refresh()


def progress(total: int, start: int = 0, what: str = "", quiet: bool = False) -> Progress:
    """Returns a progress bar from `start` to `total`, called `what`. Without a terminal it prints twice a minute."""
    return Progress(total=total, initial=start, desc=what, dynamic_ncols=True, disable=quiet, smoothing=0.1,
                    mininterval=0.2 if os.isatty(2) else 30.0, bar_format=COMPILING if start < total else LINE)


@contextlib.contextmanager
def add_seconds(seconds: dict, phase: str):
    """Adds the wall-clock seconds of the block to `seconds["seconds/PHASE"]`."""
    start, key = time.perf_counter(), f"seconds/{phase}"
    yield
    seconds[key] = seconds.get(key, 0.0) + time.perf_counter() - start
