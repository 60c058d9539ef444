"""Files that are read whole and replaced whole, JSON and JSON lines, with errors that name them."""

import codecs
import contextlib
import json
import math
import os
from pathlib import Path
from typing import Iterable, Iterator, Optional

from rlvr_jax.errors import UserError


def read_json(path: Path, missing: Optional[dict] = None, remedy: str = "copy it again") -> dict:
    """The object in a file of JSON; `missing`, where one is given, if there is no such file.

    Raises UserError, ending in the `remedy`, for a file that cannot be read or holds anything else.
    """
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


FROM_COPY = "correct the line, or take the file from a copy"  # of a log, which goes on only where no row is missing


def read_lines(path: Path, remedy: str = "correct the line, or remove it") -> Iterator[tuple[int, dict]]:
    """(number, object) of each line of JSON; blank ones are left out. Raises UserError naming a line that is none, with
    the remedy."""
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


def read_steps(path: Path) -> list[dict]:
    """The rows of a run's log by their "step"; none if there is no such file. Raises UserError naming the line."""
    rows = []
    for number, row in read_lines(path, FROM_COPY) if path.is_file() else ():
        if not isinstance(row.get("step"), int):
            raise UserError(f'{path}, line {number}: has no integer "step"; {FROM_COPY}')
        rows.append(row)
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
