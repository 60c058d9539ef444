"""Metrics as JSON lines, the progress line, and what is counted: compilations and seconds."""

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

from rlvr_jax.runs.files import naming, read_log

# Progress: steps, <time left, what is measured, and a bar of the columns that are left.
LINE = "{desc}: {n_fmt}/{total_fmt} <{remaining}{postfix} |{bar}|"
COMPILING = "{desc}: {n_fmt}/{total_fmt} compiling…"


class JsonLines:
    """An append-only file of one JSON object a line. Lines reach the file as they are written."""

    def __init__(self, path: pathlib.Path, keep_step: float):
        """Opens the file and cuts it after what `read_log` keeps of it. Raises UserError as that does."""
        self.rows, size, whole = read_log(path, keep_step)
        self.path, self.file = path, open(path, "ab", buffering=0)  # what a full disk refused is not kept for later
        self.count = len(self.rows)  # of the file; whoever holds the log may drop rows from memory
        os.truncate(path, size)
        if not whole:
            self.file.write(b"\n")

    def write(self, row: dict) -> None:
        clean = {key: _plain(value) for key, value in row.items()}
        self.rows.append(clean)
        self.count += 1
        line = (json.dumps(clean, ensure_ascii=False) + "\n").encode()
        with naming(self.path):
            while line:
                line = line[self.file.write(line):]

    def close(self) -> None:
        self.file.close()


def _plain(value):
    """JSON has no NaN, and no numpy numbers."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, (np.generic, float)):
        value = value.item() if isinstance(value, np.generic) else value
        return None if isinstance(value, float) and not math.isfinite(value) else value
    return value


def numbers(row: dict) -> dict:
    """The metrics of a row: all that is a number, without the step."""
    return {key: value for key, value in row.items() if isinstance(value, (int, float)) and key != "step"}


@contextlib.contextmanager
def compilations() -> Iterator[Callable[[], dict]]:
    """`taken()`: programs built since it was last asked, compiled or from a cache, and the seconds that this took.
    After the first steps there are none."""
    built = []

    def listen(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            built.append(duration)

    def taken() -> dict:
        found = {"compilations": len(built), "seconds_compiling": sum(built)}
        built.clear()
        return found

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield taken
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


class Progress(tqdm.tqdm):
    """A line with an ETA, from the second update on: the first one takes the compilation with it."""

    def update(self, n: float = 1) -> None:
        if self.disable or self.bar_format == LINE:
            super().update(n)
        else:
            self.n += n
            self.initial, self.bar_format = self.n, LINE  # the rate is that of what comes after `initial`
            self.last_print_n, self.last_print_t = self.n, self._time()
            self.refresh()


def progress(total: int, start: int = 0, what: str = "", quiet: bool = False, unit: str = "step") -> Progress:
    """A line of progress; on a file instead of a terminal it is repeated twice a minute."""
    return Progress(total=total, initial=start, desc=what, unit=unit, dynamic_ncols=True, disable=quiet, smoothing=0.1,
                    mininterval=0.2 if os.isatty(2) else 30.0, bar_format=COMPILING if start < total else LINE)


@contextlib.contextmanager
def timed(seconds: dict, phase: str):
    """Adds the wall-clock seconds of the block to `seconds["seconds/PHASE"]`."""
    start, key = time.perf_counter(), f"seconds/{phase}"
    yield
    seconds[key] = seconds.get(key, 0.0) + time.perf_counter() - start
