"""Files that are read whole and replaced whole, JSON and JSON lines, with errors that name them."""

import contextlib
import json
import os
import pathlib
from pathlib import Path
from typing import Iterator

from rlvr_jax.errors import UserError


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): copy it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} where names and values belong: copy it again")
    return content


def read_jsonl(path: pathlib.Path) -> list[dict]:
    """The objects of a JSON-lines file by "step"; none if it is missing. Raises UserError naming the line."""
    rows = []
    for line_number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else (), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(f'{path}, line {line_number}: not a JSON object with an integer "step"; remove the line')
        rows.append(row)
    return sorted(rows, key=lambda row: row["step"])


def read_summary(path: pathlib.Path) -> dict:
    """A run's summary.json, origin.json or example.json; {} if it is missing. Raises UserError if it is no object."""
    try:
        return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a JSON object: remove it to report the run without it") from error


def write_json(path: pathlib.Path, content: dict) -> None:
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_whole(path: pathlib.Path, text: str) -> None:
    """Replaces the file at once: a reader, or a process that is killed, never leaves half of it."""
    aside = path.with_name(path.name + ".part")
    with naming(path):
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)


@contextlib.contextmanager
def naming(path: pathlib.Path):
    """Adds the file to an error of the disk: Python names it on opening, not on writing."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_lines(file: pathlib.Path) -> Iterator[tuple[int, object]]:
    """(number, content) of each line of JSON; blank ones are left out. Raises UserError naming a line that is none."""
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):  # text has other line ends, legal inside JSON
        try:
            if line.strip():
                yield number, json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}, line {number}: not JSON ({error})") from None
