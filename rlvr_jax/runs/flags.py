"""The flags of a directory that a command writes: which may change when it continues, and how a process claims it."""

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


def parse_weights(flag: str, text: str, rows: Iterable[str]) -> list[tuple[str, float]]:
    """`"correct:1,format:0.1"` as pairs of a row's name and its weight, 1 for a name alone. UserError for others."""
    pairs, (first, second) = [], list(rows)[:2]
    for part in map(str.strip, text.split(",")):
        name, colon, weight = part.partition(":")
        try:
            pairs.append((name, float(weight) if colon else 1.0))
        except ValueError:
            name = ""
        if name not in rows or not math.isfinite(pairs[-1][1]):
            near = difflib.get_close_matches(part.partition(":")[0], rows, 1)
            raise UserError(f"--{flag}={text}: {part!r} is none of {', '.join(rows)}, nor one of them with a weight "
                            f"as in {first}:0.5,{second}:0.5" + (f"; did you mean {near[0]}?" if near else ""))
    return pairs


def flag_lines(config) -> list[str]:
    """The lines of a flag file of a configuration. Raises UserError for a text with a line break."""
    def format_value(value):
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    lines = [f"--{leaf.name}={format_value(leaf.value)}" for leaf in flags_of(config) if leaf.value is not None]
    for line in lines:
        if len(line.splitlines()) > 1:
            raise UserError(f"{line.split('=')[0]} holds a line break, which a flag file cannot keep")
    return lines


def write_flags(path: pathlib.Path, config) -> None:
    """Writes a flag file, with digests of the table rows from outside the package as comments."""
    files.write_whole(path, "\n".join([*flag_lines(config), *source_lines(config)]) + "\n")


def describe_command(command: str, config, always: str = "") -> str:
    """The command with the flag `always` and those that are not defaults, but without --out; commit and machine."""
    defaults, machine = flag_lines(type(config)()), origin.machine()
    flags = [line for line in flag_lines(config) if line.startswith(f"--{always}=") or (
        line not in defaults and not line.startswith("--out="))]
    return (f"`python -m scripts.{command} {shlex.join(flags)}`, commit {machine['commit']}, JAX {machine['jax']} on "
            f"{machine['device']} ({machine['platform']}).")


def changed_flags(directory: pathlib.Path, config, flag: str, command: str) -> str:
    """Why this command and configuration cannot continue the `directory` of `flag`; empty if they can."""
    writer = origin.read(directory).get("command", command)
    if writer != command:
        return (f"{directory} was written by scripts.{writer}, and scripts.{command} needs a directory of its own: "
                f"choose another {flag}")
    path = directory / "flags.txt"
    sources = source_lines(config)
    try:  # a flag that the run's version lacked had its default; an unrecorded digest counts as unchanged
        lines = path.read_text("utf-8").splitlines(keepends=True)
        old = _parse_lines([*flag_lines(type(config)()), *sources, *(line.rstrip("\n") for line in lines)])
    except (OSError, ValueError):
        lines = []
    if not (lines and lines[-1].endswith("\n")):
        return (f"{path} is {'damaged' if path.is_file() else 'gone'}: it needs a complete line --name=value for "
                f"each flag; take it from a copy, choose another {flag}, or start over with --resume=never")
    new = _parse_lines([*flag_lines(config), *sources])
    free = {f"--{leaf.name}" for leaf in flags_of(config) if leaf.meta["free"]}
    changed = [name for name in sorted((old.keys() | new.keys()) - free) if old.get(name) != new.get(name)]
    if not changed:
        return ""
    values, advice = config.as_flags(), "restore them"
    if changed == ["--decay_steps"] and values["decay_steps"] == 0:
        advice = f"--num_steps={values['num_steps']} moves the end of its schedule: add --decay_steps={old[changed[0]]}"
    was = ", ".join(f"{name.replace('# ', 'the ')} (was {old.get(name, 'unset')})" for name in changed)
    return (f"{directory} was started with other flags: {was}; {advice}, choose another {flag}, or start over with "
            "--resume=never")


def _parse_lines(lines: list[str]) -> dict[str, str]:
    """Values by flag, in one spelling: --decay_steps=0 (until the end of the run) as the number of updates that it
    stands for, --model=DIR/ as --model=DIR."""
    values = dict(line.split("=", 1) for line in lines)
    directory, at, step = values.get("--model", "").partition("@")
    if directory:
        values["--model"] = os.path.normpath(directory) + at + step
    if values.get("--decay_steps") == "0" and values["--schedule"] != "constant":
        values["--decay_steps"] = str(math.prod(int(values["--" + name]) for name in
                                                ("num_steps", "num_passes", "num_minibatches")))
    return values


def claim(directory: pathlib.Path, flag: str, resume: str) -> IO:
    """Locks a directory (`locks.lock`). With --resume=never, renames an earlier run to DIRECTORY.1, or .2 and so on."""
    earlier = directory.exists()
    held = locks.lock(directory, flag)
    if not (resume == "never" and earlier):
        return held
    with held:
        names = (directory.with_name(f"{directory.name}.{i}") for i in range(1, 10**6))
        directory.rename(next(path for path in names if not path.exists()))
        return locks.lock(directory, flag)
