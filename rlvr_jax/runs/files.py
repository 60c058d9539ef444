"""Files that are read whole and replaced whole, JSON and JSON lines, with errors that name them."""

import codecs
import contextlib
import importlib.util
import json
import math
import os
from pathlib import Path
from typing import Callable, Iterable, Iterator, Optional

from rlvr_jax.errors import UserError

FROM_COPY = "correct the line, or take the file from a copy"  # of a log, which goes on only where no row is missing


def read_json(path: Path, missing: Optional[dict] = None, remedy: str = "copy it again") -> dict:
    """The object in a file of JSON; `missing`, where one is given, if there is no such file. Raises UserError, ending
    in the `remedy`, for a file that cannot be read or holds anything else."""
    if missing is not None and not path.is_file():
        return missing
    try:
        content = parse(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} where names and values belong: {remedy}")
    return content


def parse(text: str):
    """What JSON says. Raises ValueError for text that is none, or has a name twice, NaN, or a number too large."""
    def once(pairs: list) -> dict:
        record = dict(pairs)
        if len(record) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
        return record

    def refuse(word: str):
        raise ValueError(f"{word} is no number that JSON has")

    def finite(digits: str) -> float:
        return float(digits) if math.isfinite(float(digits)) else refuse(digits)

    return json.loads(text, object_pairs_hook=once, parse_constant=refuse, parse_float=finite)


def read_lines(path: Path, remedy: str = "correct the line, or remove it") -> Iterator[tuple[int, dict]]:
    """(number, object) of each line that is not blank. UserError, ending in the remedy, names a line that is none."""
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    for number, line in enumerate(content.split(b"\n"), 1):  # text has other line ends, legal inside JSON
        if line.strip():
            yield number, read_line(line, f"{path}, line {number}", remedy)


def read_line(line: bytes, where: str, remedy: str) -> dict:
    """The object in a line of JSON. Raises UserError, beginning with `where`, for anything else."""
    try:
        row = parse(line.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); {remedy}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: needs names and values, {{...}}; it has {type(row).__name__}; {remedy}")
    return row


def read_log(path: Path, keep_step: float = math.inf) -> tuple[list[dict], int, bool]:
    """(rows, their bytes, whether the last one has its line end) of a log, up to its last row whose `step`, 0 where it
    has none, is at most `keep_step`; no rows where there is no such file.

    A last line that is no JSON is what a process was writing when it was killed, and does not count. Raises UserError
    for any other line that is none: good ones come after it, and nothing of them is to be lost.
    """
    rows, size, content = [], 0, path.read_bytes() if path.exists() else b""
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        where = f"{path}, line {number}"
        try:
            row = read_line(line, where, FROM_COPY)
            if not isinstance(row.get("step", 0), int):
                raise UserError(f"{where}: its step is {row['step']!r}, no whole number; {FROM_COPY}")
        except UserError:
            if size + len(line) < len(content):
                raise
            break
        if row.get("step", 0) > keep_step:
            break
        rows.append(row)
        size += len(line)
    return rows, size, content[:size].endswith(b"\n") or not size


def read_steps(path: Path, single: bool = True, keep_step: float = math.inf) -> list[dict]:
    """The rows of a run's log, as `read_log` keeps them, by their "step". Raises UserError naming a line that has none,
    or where `single` a line whose step is not that of the line before it and one."""
    rows = read_log(path, keep_step)[0]
    for number, row in enumerate(rows, 1):
        step, last = row.get("step"), rows[max(number - 2, 0)].get("step")
        if step is None:
            raise UserError(f'{path}, line {number}: has no integer "step"; {FROM_COPY}')
        if single and number > 1 and step != last + 1:
            raise UserError(f"{path}, line {number}: step {step} follows step {last}, as where rows are lost, swapped "
                            "or doubled; put each row in its place, or take the file from a copy")
    return sorted(rows, key=lambda row: row["step"])


def write_json(path: Path, content: dict) -> None:
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    """JSON lines, by `write_whole`."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_whole(path: Path, text: str) -> None:
    """Replaces the file at once: a reader, or a process that is killed, never leaves half of it."""
    aside = path.with_name(path.name + ".part")
    with naming(path):
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            sync(file)  # else a power cut may leave the new name with nothing in it
        os.replace(aside, path)


def write_figure(path: Path, draw: Callable) -> None:
    """A PNG of the matplotlib Figure that `draw(sheet)` fills; nothing without matplotlib."""
    if importlib.util.find_spec("matplotlib"):
        from matplotlib.figure import Figure  # optional

        sheet = Figure(layout="constrained")
        draw(sheet)
        with naming(path):
            sheet.savefig(path, dpi=150)


def sync(file) -> None:
    """Returns once what was written to an open file would outlive a power cut."""
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def naming(path: Path):
    """Adds the file to an error of the disk: Python names it on opening, not on writing."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
