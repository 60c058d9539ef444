"""The flags of a run directory: what may change before it goes on, and which script wrote it."""

import dataclasses
import math
import os
import pathlib
from typing import IO

from rlvr_jax.config import (ElicitConfig, EvaluateConfig, FinetuneConfig, HybridConfig, PretrainConfig, ProbeConfig,
                             TrainConfig, WhenConfig)
from rlvr_jax.errors import UserError
from rlvr_jax.runs import locks

# What writes a directory with a flags.txt; which one did is told by the names of the flags.
WRITERS = {TrainConfig: "scripts.train", PretrainConfig: "scripts.pretrain", FinetuneConfig: "scripts.finetune",
           EvaluateConfig: "scripts.evaluate", ElicitConfig: "scripts.elicit", HybridConfig: "scripts.hybrid",
           ProbeConfig: "scripts.probe", WhenConfig: "scripts.when"}


def flag_lines(config) -> list[str]:
    """The record as a flag file."""
    def text(value):
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    lines = [f"--{f.name}={text(getattr(config, f.name))}" for f in dataclasses.fields(config)
             if getattr(config, f.name) is not None]
    for line in lines:
        if len(line.splitlines()) > 1:
            raise UserError(f"{line.split('=')[0]} holds a line break, which a flag file cannot keep")
    return lines


def changed_flags(directory: pathlib.Path, config, flag: str) -> str:
    """Why what is in `directory`, named by `flag`, cannot be continued under this configuration; empty if it can."""
    kept = (directory / "flags.txt").read_text("utf-8").splitlines()
    old = _values([*flag_lines(type(config)()), *kept])  # a flag that is newer than the run had its default
    new = _values(flag_lines(config))
    free = {f"--{field.name}" for field in dataclasses.fields(config) if field.metadata["free"]}
    changed = [name for name in sorted((old.keys() | new.keys()) - free) if old.get(name) != new.get(name)]
    ours, made_by = type(config), min(WRITERS, key=lambda writer: len(_values(kept).keys() ^ _names(writer)))
    if changed and made_by is not ours:
        return (f"{directory} was written by {WRITERS[made_by]}, and {WRITERS[ours]} needs a directory of its own: "
                f"choose another {flag}")
    advice = "restore them"
    if changed == ["--decay_steps"] and config.decay_steps == 0:
        advice = f"--num_steps={config.num_steps} moves the end of its schedule: add --decay_steps={old[changed[0]]}"
    was = ", ".join(f"{name} (was {old.get(name, 'unset')})" for name in changed)
    return "" if not changed else (f"{directory} was started with other flags: {was}; {advice}, choose another {flag}, "
                                   "or start over with --resume=never")


def _names(writer) -> set[str]:
    return {f"--{field.name}" for field in dataclasses.fields(writer)}


def _values(lines: list[str]) -> dict[str, str]:
    """Flags by name, each in one of the ways to write it: --decay_steps=0, a schedule that ends with the run, as the
    number of updates it stands for, and --model=DIR/ as --model=DIR."""
    values = dict(line.split("=", 1) for line in lines)
    directory, at, step = values.get("--model", "").partition("@")
    if directory:
        values["--model"] = os.path.normpath(directory) + at + step
    if values.get("--decay_steps") == "0" and values["--schedule"] != "constant":
        values["--decay_steps"] = str(math.prod(int(values["--" + name]) for name in
                                                ("num_steps", "num_passes", "num_minibatches")))
    return values


def set_aside(directory: pathlib.Path) -> None:
    """Makes room for a new run: an earlier one is moved, not erased."""
    if directory.exists():
        number = next(i for i in range(1, 10**6) if not directory.with_name(f"{directory.name}.{i}").exists())
        directory.rename(directory.with_name(f"{directory.name}.{number}"))


def claim(directory: pathlib.Path, flag: str, resume: str) -> IO:
    """The lock of a directory (`locks.lock`); with --resume=never of a new one, after the earlier run was set aside."""
    earlier = directory.exists()
    held = locks.lock(directory, flag)
    if not (resume == "never" and earlier):
        return held
    with held:
        set_aside(directory)
        return locks.lock(directory, flag)
