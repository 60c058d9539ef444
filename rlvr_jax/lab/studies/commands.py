"""The commands of a study, each a line as a user types it, and how they run, one by one or in parallel.
An arm is a variant of the commands. A unit is a base model, an example and a seed. A cell is one arm with one unit."""

import collections
import concurrent.futures
import contextlib
import itertools
import os
import pathlib
import shlex
import statistics
import string
import subprocess
import sys
import threading
import time
from typing import Callable, Optional

from rlvr_jax.errors import UserError
from rlvr_jax.lab.studies import bank
from rlvr_jax.runs import files, log

LOGS = "logs"  # folder in the work directory for the output of commands that run in parallel
NOTES = "finished.txt"  # file in the work directory that lists the finished commands and how long each took
TOOK = "# seconds: "  # a line of NOTES that starts so, "# seconds: 4.2 SCRIPT", is the time of one command


def units(study: dict, seeds: list[int]) -> list[dict]:
    """The units that each arm is run with: a list of `{"base", "example", "seed"}`, whose values are numbers. A seed
    comes with the base model and example of the same number or, given lists `bases` and `examples`, with those at its
    position in `seeds`. With `crossed = true` every base model is combined with every example and every seed."""
    if study.get("crossed"):
        return [{"base": base, "example": example, "seed": seed} for base, example, seed in itertools.product(
            study.get("bases", [0]), study.get("examples", [0]), seeds)]
    base_of, example_of = (dict(zip(study["seeds"], study.get(key, ()))) for key in ("bases", "examples"))
    return [{"base": base_of.get(seed, seed), "example": example_of.get(seed, seed), "seed": seed} for seed in seeds]


def label(study: dict, unit: dict) -> int | str:
    """Names a unit in tables: by its seed, an int, or in a crossed study by what varies, such as "base 1, seed 2"."""
    if not study.get("crossed"):
        return unit["seed"]
    varying = [key for key in unit if len(study.get(key + "s", ())) > 1]
    return ", ".join(f"{key} {unit[key]}" for key in varying or ["seed"])


def names(template: str) -> set[str]:
    """The {names} of a template. Raises UserError if braces contain anything but a name."""
    try:  # the parser yields (text before a field, name, format, conversion); the name is None if no field follows
        fields = [field for _, *field in string.Formatter().parse(template) if field[0] is not None]
    except ValueError as error:
        raise UserError(f"the study's {template!r}: {error}") from None
    if any(form or conversion or not name.isidentifier() for name, form, conversion in fields):
        raise UserError(f"the study's {template!r}: braces hold a name alone, such as {{seed}}")
    return {name for name, _, _ in fields}


def fill(template: str, values: dict) -> str:
    """Replaces the {names} of a template by `values`. Raises UserError for a name without a value."""
    missing = names(template) - values.keys()
    if "data" in missing:
        raise UserError("--data is required by this study: the directory of its problem files")
    if missing:
        raise UserError(f"the study's {template!r} needs {', '.join(sorted(missing))}, which is not given")
    return template.format(**values)


def variables(study: dict, cell: dict) -> dict:
    """`{name: value}` for templates: work, data, arm, base, example and seed, from `cell`, and the texts of its arm."""
    return cell | {key: fill(value, cell) for key, value in study["arms"][cell["arm"]].items()
                   if isinstance(value, str)}


def commands(study: dict, cell: dict, quick: bool, bases: str = "") -> list[str]:
    """The commands of one cell, in order, as typed after `python -m scripts.`. `quick` adds the flags of [quick] in the
    study's file. `bases` is the directory of the cache of base models."""
    arm, lines, values = study["arms"][cell["arm"]], [], variables(study, cell)
    for name, command in study["commands"].items():
        flags = arm.get(name, [])
        if flags is not False:  # `COMMAND = false`: the arm leaves the command out
            flags = [*flags, *(study.get("quick", {}).get(name, []) if quick else [])]
            template = " ".join([command, *map(shlex.quote, flags)])
            if bank.MAKES in template:  # makes a base model: {bank}, here and in later commands, is its directory
                base_command = fill(template, values | {"bank": "{bank}"})  # keeps {bank} as it is
                values = values | {"bank": bank.place(bases, base_command)}
            lines.append(fill(template, values))
    return lines


def execute(cells: list[list[str]], work: pathlib.Path, bases: str = "", jobs: int = 1) -> tuple[list[str], list[str]]:
    """Runs the commands of `cells`, a list for each cell. A command in several lists runs once, after those before it
    in each list. Skips commands that an earlier start finished in the directory `work`. Returns (all commands, the
    skipped ones). `jobs` commands run in parallel. `bases` is the directory of the cache of base models."""
    work.mkdir(parents=True, exist_ok=True)
    wanted, earlier = finished(cells, work, bases)
    notes = work / NOTES

    def run(line: str, share: dict) -> None:
        base = bank.made_by(line, bases)
        quiet, began = (work / LOGS if jobs > 1 else None), time.monotonic()
        if base:  # the cache notes that a base model is finished, so that NOTES needs only the time
            bank.make(base, line, lambda line, holding: script(line, share, quiet, holding))
        else:
            script(line, share, quiet)
        took = f"{TOOK}{time.monotonic() - began:.1f} {line.split()[0]}\n"
        with files.name_in_errors(notes), notes.open("a", encoding="utf-8") as file:
            file.write(took if base else f"{line}\n{took}")

    # What has to finish before each line starts: the lines before it in each of its cells.
    before = {line: {first for lines in cells if line in lines for first in lines[: lines.index(line)]}
              for line in wanted}
    side_by_side([line for line in wanted if line not in earlier], before, shares(jobs), run, len(earlier))
    return wanted, earlier


def finished(cells: list[list[str]], work: pathlib.Path, bases: str) -> tuple[list[str], list[str]]:
    """(all commands of the cells, each once; those of them that have finished)."""
    wanted = list(dict.fromkeys(line for lines in cells for line in lines))
    notes, made = noted(work), {line: bank.made_by(line, bases) for line in wanted}
    return wanted, [line for line in wanted if (bank.note(made[line]) if made[line] else line in notes)]


def noted(work: pathlib.Path) -> list[str]:
    """The lines of the file NOTES; [] before the first command has finished."""
    return (work / NOTES).read_text("utf-8").splitlines() if (work / NOTES).is_file() else []


def plan(cells: list[list[str]], work: pathlib.Path, bases: str, jobs: int) -> str:
    """What a dry run prints: all commands, and how long those that have not finished will take. The estimate for a
    script is the mean time of its earlier runs in this work directory."""
    wanted, earlier = finished(cells, work, bases)
    counts = collections.Counter(line.split()[0] for line in wanted if line not in earlier)  # {script: number to run}
    seconds = {}  # {script: list of the seconds that each of its earlier commands took}
    for line in noted(work):
        if line.startswith(TOOK):
            took, name = line.removeprefix(TOOK).split()
            seconds.setdefault(name, []).append(float(took))
    minutes = sum(count * statistics.mean(seconds.get(name, [0])) for name, count in counts.items()) / 60 / jobs
    estimate = [f"about {minutes:.0f} min with --jobs={jobs}"] if minutes else []
    if unknown := [name for name in counts if name not in seconds]:
        estimate.append(f"the time of {', '.join(unknown)} is not known before one has run in {work}")
    return "\n".join([
        *(("finished   " if line in earlier else "           ") + f"python -m scripts.{line}" for line in wanted),
        f"{len(wanted)} commands, {len(earlier)} finished; to run: "
        + (", ".join(f"{count} {name}" for name, count in counts.items()) or "none"), "; ".join(estimate)])


def shares(jobs: int) -> list[dict]:
    """The part of the machine that each of `jobs` parallel commands has to itself: its "cores", numbers of CPU cores,
    and, if there are GPUs, its "gpu", a word of CUDA_VISIBLE_DEVICES. A command that runs alone has the whole machine,
    {}. Raises UserError if there are fewer cores or GPUs than commands."""
    if jobs == 1:
        return [{}]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    gpus = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
    gpus = gpus or [path.name.removeprefix("nvidia") for path in sorted(pathlib.Path("/dev").glob("nvidia[0-9]*"))]
    for what, present in (("cores", cores), ("GPUs", gpus)):
        if len(present) < jobs and (present or what == "cores"):  # a machine without GPUs runs on its cores
            raise UserError(f"--jobs={jobs}: a command that runs beside others needs one of the {what} to itself, and "
                            f"this machine has {len(present)}; give --jobs={len(present)}")
    return [{"cores": cores[i::jobs]} | ({"gpu": gpus[i]} if gpus else {}) for i in range(jobs)]


def side_by_side(lines: list[str], before: dict[str, set], parts: list[dict], run: Callable, done: int) -> None:
    """Calls `run(line, part)` in a thread for each command in `lines`, when all commands in the set `before[line]` have
    finished. `parts` are the parts of the machine, from `shares`; each runs one command at a time. `done` commands were
    finished by an earlier start. After a failure no further command starts, and the error is raised when the running
    ones have ended. With one part, each command is announced with the time left; otherwise there is a progress bar."""
    waiting, running, failed, began = list(lines), {}, [], time.monotonic()  # running: {future: (line, part)}
    with (concurrent.futures.ThreadPoolExecutor(len(parts)) as threads,
          log.progress(done + len(lines), done, "study", len(parts) == 1) as bar):
        bar.bar_format = log.LINE  # otherwise the bar says at first that the program compiles
        while running or waiting and not failed:
            unfinished = {*waiting, *(line for line, _ in running.values())}
            busy = [part for _, part in running.values()]
            free = [part for part in parts if part not in busy]
            ready = [] if failed else [line for line in waiting if not before[line] & unfinished]
            for line, part in zip(ready, free):
                waiting.remove(line)
                if len(parts) == 1:
                    announce(line, len(lines) - len(waiting) - 1, len(waiting) + 1, done, time.monotonic() - began)
                running[threads.submit(run, line, part)] = line, part
            bar.set_postfix_str("; ".join(short(line) for line, _ in running.values()))
            for future in concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED).done:
                running.pop(future)
                if future.exception():
                    failed.append(future.exception())
                else:
                    bar.update()
    if failed:
        raise failed[0]


def announce(line: str, ran: int, left: int, done: int, seconds: float) -> None:
    """Prints the command `line`, which starts now, its number, and an estimate of the time left. This start of the
    study has run `ran` commands in `seconds`; an earlier start had finished `done`; `left` remain, with this one."""
    eta = f", about {seconds / ran * left / 60:.0f} min left" if ran else ""
    print(f"[{done + ran + 1} of {done + ran + left}{eta}] python -m scripts.{line}", file=sys.stderr, flush=True)


def short(line: str) -> str:
    """A command in two words: the script, and the last part of its first --run_dir or --out, if it has one."""
    words = shlex.split(line)
    wrote = [word.split("=", 1)[1] for word in words if word.startswith(("--run_dir=", "--out="))]
    return " ".join([words[0], *(pathlib.Path(path).name for path in wrote[:1])])


def script(line: str, share: Optional[dict] = None, quiet: Optional[pathlib.Path] = None, holding=None) -> None:
    """Runs the command `line` of one of the scripts as a user would. Raises UserError if it fails. Its output is shown
    or, if `quiet` is a folder, added to a log file there. `share` is the command's part of the machine, from `shares`.
    The command inherits the open file `holding`, so that a lock on the file lasts until the command ends."""
    share = share or {}
    if "cores" in share and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(threading.get_native_id(), share["cores"])  # of this thread; the command inherits it
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": share["gpu"]} if "gpu" in share else {})
    output = contextlib.nullcontext()  # stdout=None: the command's output is shown
    if quiet:
        quiet.mkdir(exist_ok=True)
        output = (quiet / f"{short(line).replace(' ', '_')}.log").open("a", encoding="utf-8")
    with output as file:
        code = subprocess.run([sys.executable, "-m", *shlex.split(f"scripts.{line}")], check=False, env=environment,
                              stdout=file, stderr=subprocess.STDOUT if file else None,
                              pass_fds=(holding.fileno(),) if holding else ()).returncode
    if code:
        told = f"at the end of {file.name}" if file else "above"
        raise UserError(f"python -m scripts.{line} failed; its message is {told}. The same command continues the study")
