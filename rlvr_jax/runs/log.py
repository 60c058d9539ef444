"""A log of JSON lines, the progress bar, and counts of compilations and seconds."""

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

# The progress bar: steps, <time left, metrics, and a bar as wide as the terminal leaves room for.
LINE = "{desc}: {n_fmt}/{total_fmt} <{remaining}{postfix} |{bar}|"
COMPILING = "{desc}: {n_fmt}/{total_fmt} compiling…"


class JsonLines:
    """An append-only file with one JSON object a line, written without a buffer."""

    def __init__(self, path: pathlib.Path, keep_step: float):
        """Opens the file and cuts off what `read_log` drops. Raises UserError where it does."""
        self.rows, size, whole = read_log(path, keep_step)
        self.path, self.file = path, open(path, "ab", buffering=0)  # a buffer would keep what a full disk refused
        self.count = len(self.rows)  # rows in the file; the owner of the log may drop some from memory
        os.truncate(path, size)
        if not whole:
            self.file.write(b"\n")

    def write(self, row: dict) -> None:
        clean = {key: _to_json(value) for key, value in row.items()}
        self.rows.append(clean)
        self.count += 1
        line = (json.dumps(clean, ensure_ascii=False) + "\n").encode()
        with name_in_errors(self.path):
            while line:
                line = line[self.file.write(line):]

    def close(self) -> None:
        self.file.close()


def _to_json(value):
    """The value without what JSON lacks: NaN and infinity become None, numpy numbers Python's."""
    if isinstance(value, (list, tuple)):
        return [_to_json(part) for part in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def numeric_metrics(row: dict) -> dict:
    """The numbers of a row, without its step."""
    return {key: value for key, value in row.items() if isinstance(value, (int, float)) and key != "step"}


@contextlib.contextmanager
def count_compilations() -> Iterator[Callable[[], dict]]:
    """Yields `take_counts()`: how many programs were compiled or read from the cache since its last call, and in how
    many seconds. A run has none after its first steps."""
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
    """A progress bar that estimates the time left from the second update on, since the first step compiles."""

    def update(self, n: float = 1) -> None:
        if self.disable or self.bar_format == LINE:
            super().update(n)
        else:
            self.n += n
            self.initial, self.bar_format = self.n, LINE  # tqdm computes the rate from `initial` on
            self.last_print_n, self.last_print_t = self.n, self._time()
            self.refresh()


def progress(total: int, start: int = 0, what: str = "", quiet: bool = False, unit: str = "step") -> Progress:
    """A progress bar; where standard error is no terminal, a line twice a minute."""
    return Progress(total=total, initial=start, desc=what, unit=unit, dynamic_ncols=True, disable=quiet, smoothing=0.1,
                    mininterval=0.2 if os.isatty(2) else 30.0, bar_format=COMPILING if start < total else LINE)


@contextlib.contextmanager
def add_seconds(seconds: dict, phase: str):
    """Adds the wall-clock seconds of the block to `seconds["seconds/PHASE"]`."""
    start, key = time.perf_counter(), f"seconds/{phase}"
    yield
    seconds[key] = seconds.get(key, 0.0) + time.perf_counter() - start
