"""Reads and writes JSON, JSON Lines, text and figures. Errors name the file. A text file is replaced by a rename."""

import codecs
import contextlib
import importlib.util
import json
import math
import os
from pathlib import Path
from typing import Callable, Iterable, Iterator, Optional

from rlvr_jax.errors import UserError

FROM_COPY = "correct the line, or take the file from a copy"  # not "remove it": a run cannot continue without the row


def read_json(path: Path, missing: Optional[dict] = None, remedy: str = "copy it again") -> dict:
    """Returns the object in a JSON file; if there is no such file, returns `missing` unless that is None. Raises
    UserError, ending with `remedy`, for a file that cannot be read or does not hold a JSON object."""
    if missing is not None and not path.is_file():
        return missing
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} where names and values belong: {remedy}")
    return content


def parse_json(text: str):
    """Like `json.loads`, but also raises ValueError for a repeated name in an object, NaN and infinity."""
    def make_object(pairs: list) -> dict:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError(f"{max(names, key=names.count)!r} is there twice")
        return dict(pairs)

    def refuse_number(digits: str):
        raise ValueError(f"{digits} is no number in JSON")

    def parse_number(digits: str) -> float:
        return float(digits) if math.isfinite(float(digits)) else refuse_number(digits)

    return json.loads(text, object_pairs_hook=make_object, parse_constant=refuse_number, parse_float=parse_number)


def read_lines(path: Path, remedy: str = "correct the line, or remove it") -> Iterator[tuple[int, dict]]:
    """Yields (line number from 1, object) for each line of a JSONL file, skipping blank lines. Raises UserError, ending
    with `remedy`, for a line that is not a JSON object."""
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    for number, line in enumerate(content.split(b"\n"), 1):  # splitlines would also split at \r, legal in JSON
        if line.strip():
            yield number, _parse_line(line, f"{path}, line {number}", remedy)


def _parse_line(line: bytes, where: str, remedy: str) -> dict:
    try:
        row = parse_json(line.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); {remedy}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: needs names and values, {{...}}; it has {type(row).__name__}; {remedy}")
    return row


def read_log(path: Path, keep_step: float = math.inf) -> tuple[list[dict], int, bool]:
    """Reads the rows of a JSONL log before the first whose "step" exceeds `keep_step`; a missing "step" counts as 0.
    Returns (rows, size, complete): `size` is the number of bytes of these rows in the file; `complete` is False if the
    last row has no line end. A missing file has no rows. Ignores a damaged last line, because a process may have been
    killed while writing it. Raises UserError for a damaged line elsewhere: ignoring it would lose later rows."""
    rows, size, content = [], 0, path.read_bytes() if path.exists() else b""
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        where = f"{path}, line {number}"
        try:
            row = _parse_line(line, where, FROM_COPY)
            if not isinstance(row.get("step", 0), int):
                raise UserError(f"{where}: its step is {row['step']!r}, no whole number; {FROM_COPY}")
        except UserError:
            if size + len(line) < len(content):  # not the last line
                raise
            break
        if row.get("step", 0) > keep_step:
            break
        rows.append(row)
        size += len(line)
    return rows, size, content[:size].endswith(b"\n") or not size


def read_steps(path: Path, single: bool = True, keep_step: float = math.inf) -> list[dict]:
    """Returns the rows of a run's log up to step `keep_step`, as `read_log` does, sorted by their "step". Raises
    UserError for a row without a step and, if `single` (one row per step), for a gap or repetition of steps."""
    rows, _, _ = read_log(path, keep_step)
    last = None  # step of the row before
    for number, row in enumerate(rows, 1):
        step = row.get("step")
        if step is None:
            raise UserError(f'{path}, line {number}: has no integer "step"; {FROM_COPY}')
        if single and last is not None and step != last + 1:
            raise UserError(f"{path}, line {number}: step {step} follows step {last}, so rows are lost, swapped or "
                            "doubled; put each row in its place, or take the file from a copy")
        last = step
    return sorted(rows, key=lambda row: row["step"])


def write_json(path: Path, content: dict) -> None:
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_whole(path: Path, text: str) -> None:
    """Writes the text to PATH.part and renames that file to PATH, so that PATH is never half-written."""
    temporary = path.with_name(path.name + ".part")
    with name_in_errors(path):
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            sync(file)  # otherwise a power cut may leave an empty file under the new name
        os.replace(temporary, path)


def write_figure(path: Path, draw: Callable) -> None:
    """Writes a PNG of the matplotlib Figure that `draw(figure)` fills; does nothing if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib"):
        from matplotlib.figure import Figure  # optional

        figure = Figure(layout="constrained")
        draw(figure)
        with name_in_errors(path):
            figure.savefig(path, dpi=150)


def sync(file) -> None:
    """Flushes an open file to the disk, so that what was written to the file survives a power cut."""
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def name_in_errors(path: Path):
    """A context manager that adds `path` to an OSError of its block: Python names the file only if opening it fails."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
