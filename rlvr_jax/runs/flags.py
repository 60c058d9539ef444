"""Writes flags.txt, the flags of the command that writes a directory, and compares it when the command continues."""

import difflib
import math
import os
import pathlib
import shlex
from typing import IO, Iterable

from rlvr_jax.config import flags_of
from rlvr_jax.errors import UserError
from rlvr_jax.runs import files, locks, origin
from rlvr_jax.runs.sources import source_lines


WRITTEN = ("flags.txt", "origin.json", "lock.txt", "metrics.jsonl", "checkpoints")  # in directories of commands


def parse_weights(flag: str, text: str, rows: Iterable[str]) -> list[tuple[str, float]]:
    """Parses the value of --FLAG, such as "correct:1,format:0.1", into pairs (name, weight). A name alone has weight 1.
    Raises UserError for a name that is not in `rows`, the names of a table, and for a weight that is not finite."""
    pairs = []
    first, second = list(rows)[:2]  # examples for the error message
    for part in map(str.strip, text.split(",")):
        name, colon, number = part.partition(":")
        try:
            weight = float(number) if colon else 1.0
        except ValueError:
            weight = math.nan  # refused below
        if name in rows and not math.isfinite(weight):
            raise UserError(f"--{flag}={text}: the weight of {name} is {number!r}, no finite number")
        if name not in rows:
            near = difflib.get_close_matches(name, rows, 1)
            raise UserError(f"--{flag}={text}: {part!r} is none of {', '.join(rows)}, nor one of them with a weight "
                            f"as in {first}:0.5,{second}:0.5" + (f"; did you mean {near[0]}?" if near else ""))
        pairs.append((name, weight))
    return pairs


def flag_lines(config) -> list[str]:
    """Returns a line `--name=value` for each flag that is not None. UserError for a value with a line break."""
    def format_value(value):
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    lines = [f"--{leaf.name}={format_value(leaf.value)}" for leaf in flags_of(config) if leaf.value is not None]
    for line in lines:
        if len(line.splitlines()) > 1:
            raise UserError(f"{line.split('=')[0]} holds a line break, which a flag file cannot keep")
    return lines


def write_flags(path: pathlib.Path, config) -> None:
    """Writes the flags of a configuration to a file, followed by the comments of `source_lines`."""
    files.write_whole(path, "\n".join([*flag_lines(config), *source_lines(config)]) + "\n")


def describe_command(command: str, config, always: str = "") -> str:
    """Returns a sentence of Markdown with the line of `python -m scripts.COMMAND`, the commit and the machine. The line
    has the flags that differ from their defaults, except --out, and in any case the flag named `always`."""
    defaults, machine = flag_lines(type(config)()), origin.machine()
    flags = [line for line in flag_lines(config) if line.startswith(f"--{always}=") or (
        line not in defaults and not line.startswith("--out="))]
    return (f"`python -m scripts.{command} {shlex.join(flags)}`, commit {machine['commit']}, JAX {machine['jax']} on "
            f"{machine['device']} ({machine['platform']}).")


def changed_flags(directory: pathlib.Path, config, flag: str, command: str) -> str:
    """Returns why scripts.COMMAND cannot continue in `directory` with the flags of `config`; "" if it can. `flag` names
    the flag whose value is the directory, such as "--run_dir"."""
    writer = origin.read(directory).get("command", command)
    if writer != command:
        return (f"{directory} was written by scripts.{writer}, and scripts.{command} needs a directory of its own: "
                f"choose another {flag}")
    path = directory / "flags.txt"
    sources = source_lines(config)
    try:  # a flag that an earlier version did not write counts as its default, and a missing digest as unchanged
        lines = path.read_text("utf-8").splitlines(keepends=True)
        old = _parse_lines([*flag_lines(type(config)()), *sources, *(line.rstrip("\n") for line in lines)])
    except (OSError, ValueError):
        lines = []
    if not (lines and lines[-1].endswith("\n")):
        return (f"{path} is {'damaged' if path.is_file() else 'gone'}: it needs a complete line --name=value for "
                f"each flag; take it from a copy, choose another {flag}, or start over with --resume=never")
    new = _parse_lines([*flag_lines(config), *sources])
    free = {f"--{leaf.name}" for leaf in flags_of(config) if leaf.meta["free"]}  # may change when a run continues
    changed = [name for name in sorted((old.keys() | new.keys()) - free) if old.get(name) != new.get(name)]
    if not changed:
        return ""
    values, advice = config.as_flags(), "restore them"
    if "--decay_steps" in changed and values["decay_steps"] == 0:
        advice = (f"--num_steps={values['num_steps']} moves the end of its schedule: add --decay_steps="
                  f"{old['--decay_steps']}" + ", and restore the others" * (len(changed) > 1))
    before = ", ".join(f"{name.replace('# ', 'the ')} (was {old.get(name, 'unset')})" for name in changed)
    return (f"{directory} was started with other flags: {before}; {advice}, choose another {flag}, or start over with "
            "--resume=never")


def _parse_lines(lines: list[str]) -> dict[str, str]:
    """Returns {"--name": value} for lines `--name=value` and for comments of `source_lines`; a name's last line counts.
    Values are normalised: --decay_steps=0 becomes the number of updates, and --model=DIR/ becomes --model=DIR."""
    values = dict(line.split("=", 1) for line in lines)
    directory, at, step = values.get("--model", "").partition("@")
    if directory:
        values["--model"] = os.path.normpath(directory) + at + step
    if values.get("--leaked"):  # the texts are spread evenly over all steps
        values["--leaked"] += f", --num_steps={values['--num_steps']}"
    if values.get("--decay_steps") == "0" and values["--schedule"] != "constant":
        values["--decay_steps"] = str(math.prod(int(values["--" + name]) for name in
                                                ("num_steps", "num_passes", "num_minibatches")))
    return values


def claim(directory: pathlib.Path, flag: str, resume: str) -> IO:
    """Creates and locks a directory, the value of `flag`, and returns its open lock file, as `locks.lock` does. If
    `resume` is "never", an existing directory is first renamed to DIRECTORY.1, or to the next number that is free.
    Raises UserError if that would rename the current directory, or files that no command wrote."""
    found = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if resume == "never" and (not directory.name or found and not found & {*WRITTEN}):
        raise UserError(f"{flag}={directory} with --resume=never would rename this directory, which is not of a run or "
                        "a measurement: name another one")
    earlier = directory.exists()
    held = locks.lock(directory, flag)
    if not (resume == "never" and earlier):
        return held
    with held:
        names = (directory.with_name(f"{directory.name}.{i}") for i in range(1, 10**6))
        directory.rename(next(path for path in names if not path.exists()))
        return locks.lock(directory, flag)
