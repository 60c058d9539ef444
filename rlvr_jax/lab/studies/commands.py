"""The commands of a study, each a line as a user types it, and how they run, one by one or in parallel.
An arm is one variant of the commands. A unit is a base model, an example and a seed. A cell is an arm with a unit."""

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
NOTES, TOOK = "finished.txt", "# seconds: "  # file of the finished commands, start of its lines "# seconds: 4.2 SCRIPT"


def units(study: dict, seeds: list[int]) -> list[dict]:
    """The units that each arm is run with: a list of `{"base", "example", "seed"}`, whose values are numbers. A seed
    comes with the base model and example of the same number, or with those at its position in `bases` and `examples`.
    With `crossed = true` every base model is combined with every example and every seed."""
    if study.get("crossed"):
        return [{"base": base, "example": example, "seed": seed} for base, example, seed in itertools.product(
            study.get("bases", [0]), study.get("examples", [0]), seeds)]
    named = {key: dict(zip(study["seeds"], study.get(key + "s", ()))) for key in ("base", "example")}
    return [{key: by_seed.get(seed, seed) for key, by_seed in named.items()} | {"seed": seed} for seed in seeds]


def label(study: dict, unit: dict):
    """The name of a unit in tables: its seed, a number, or in a crossed study what varies, as "base 1, seed 2"."""
    if not study.get("crossed"):
        return unit["seed"]
    varying = [key for key in unit if len(study.get(key + "s", ())) > 1]
    return ", ".join(f"{key} {unit[key]}" for key in varying or ["seed"])


def names(template: str) -> set[str]:
    """The {names} of a template. Raises UserError if braces contain anything but a name."""
    try:  # the parser yields (text before a field, name, format, conversion); the name is None if no field follows
        found = [field for _, *field in string.Formatter().parse(template) if field[0] is not None]
    except ValueError as error:
        raise UserError(f"the study's {template!r}: {error}") from None
    if any(how or conversion or not name.isidentifier() for name, how, conversion in found):
        raise UserError(f"the study's {template!r}: braces hold a name alone, such as {{seed}}")
    return {name for name, *_ in found}


def fill(template: str, values: dict) -> str:
    """Replaces the {names} of a template by `values`. Raises UserError for a name without a value."""
    missing = names(template) - values.keys()
    if "data" in missing:
        raise UserError("--data is required by this study: the directory of its problem files")
    if missing:
        raise UserError(f"the study's {template!r} needs {', '.join(sorted(missing))}, which is not given")
    return template.format(**values)


def variables(study: dict, cell: dict) -> dict:
    """{name: value} for templates: `cell`, with work, data, arm, base, example and seed, and the texts of its arm."""
    return cell | {key: fill(value, cell) for key, value in study["arms"][cell["arm"]].items()
                   if isinstance(value, str)}


def commands(study: dict, cell: dict, quick: bool, bases: str = "") -> list[str]:
    """The commands of one cell, in order, as typed after `python -m scripts.`. `quick` adds the flags of [quick] in the
    study's file. `bases` is the directory of the cache of base models."""
    arm, lines, values = study["arms"][cell["arm"]], [], variables(study, cell)
    for name, command in study["commands"].items():
        flags = arm.get(name, [])
        if flags is not False:
            flags = [*flags, *(study.get("quick", {}).get(name, []) if quick else [])]
            template = " ".join([command, *map(shlex.quote, flags)])
            if bank.MAKES in template:
                values = values | {"bank": bank.place(bases, fill(template, values | {"bank": "{bank}"}))}
            lines.append(fill(template, values))
    return lines


def execute(cells: list[list[str]], work: pathlib.Path, bases: str = "", jobs: int = 1) -> tuple[list[str], list[str]]:
    """Runs each command of `cells`, lists of commands, once, after the commands before it in its lists. Skips commands
    that an earlier start finished in the directory `work`. Returns (all commands, the skipped ones). `jobs` commands
    run in parallel. `bases` is the directory of the cache of base models."""
    work.mkdir(parents=True, exist_ok=True)
    wanted, earlier = finished(cells, work, bases)
    notes = work / NOTES

    def run(line: str, share: dict) -> None:
        base, quiet, began = bank.made_by(line, bases), work / LOGS if jobs > 1 else None, time.monotonic()
        if base:
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
    notes = noted(work)

    def has_finished(line: str) -> bool:
        base = bank.made_by(line, bases)
        return bool(bank.note(base)) if base else line in notes

    return wanted, [line for line in wanted if has_finished(line)]


def noted(work: pathlib.Path) -> list[str]:
    """The lines of the file NOTES; [] before the first command has finished."""
    return (work / NOTES).read_text("utf-8").splitlines() if (work / NOTES).is_file() else []


def plan(cells: list[list[str]], work: pathlib.Path, bases: str, jobs: int) -> str:
    """What a dry run prints: all commands, and how long those that have not finished will take. The estimate for a
    script is the mean time of its earlier runs in this work directory."""
    wanted, earlier = finished(cells, work, bases)
    # {script: number of its commands to run}, {script: seconds of each earlier command}
    counts, seconds = collections.Counter(line.split()[0] for line in wanted if line not in earlier), {}
    for line in noted(work):
        if line.startswith(TOOK):
            took, name = line.removeprefix(TOOK).split()
            seconds.setdefault(name, []).append(float(took))
    minutes = sum(count * statistics.mean(seconds.get(name, [0])) for name, count in counts.items()) / 60 / jobs
    times = [f"about {minutes:.0f} min with --jobs={jobs}"] if minutes else []
    if unknown := [name for name in counts if name not in seconds]:
        times.append(f"the time of {', '.join(unknown)} is not known before one has run in {work}")
    return "\n".join([
        *(("finished   " if line in earlier else "           ") + f"python -m scripts.{line}" for line in wanted),
        f"{len(wanted)} commands, {len(earlier)} finished; to run: "
        + (", ".join(f"{count} {name}" for name, count in counts.items()) or "none"), "; ".join(times)])


def shares(jobs: int) -> list[dict]:
    """What each of `jobs` parallel commands has to itself: its "cores" and, if there are GPUs, its "gpu". A command
    that runs alone has the whole machine, {}. Raises UserError if there are fewer cores or GPUs than commands."""
    if jobs == 1:
        return [{}]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    gpus = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
    gpus = gpus or [path.name[6:] for path in sorted(pathlib.Path("/dev").glob("nvidia[0-9]*"))]
    for what, present in (("cores", cores), ("GPUs", gpus or cores)):
        if len(present) < jobs:
            raise UserError(f"--jobs={jobs}: a command that runs beside others needs one of the {what} to itself, and "
                            f"this machine has {len(present)}; give --jobs={len(present)}")
    return [{"cores": cores[place::jobs]} | ({"gpu": gpus[place]} if gpus else {}) for place in range(jobs)]


def side_by_side(lines: list[str], before: dict[str, set], places: list[dict], run: Callable, done: int) -> None:
    """Calls `run(line, place)` in a thread for each line, once all lines of `before[line]` have finished. `places` are
    the `shares`: each has one line at a time. `done` is the number of lines that an earlier start had finished. After a
    failure no further line starts, and the error is raised when the running lines end. With one place each line is
    announced, with the time left; otherwise there is a progress bar."""
    waiting, running, failed, began = list(lines), {}, [], time.monotonic()  # running: {future: (line, place)}
    with (concurrent.futures.ThreadPoolExecutor(len(places)) as threads,
          log.progress(done + len(lines), done, "study", len(places) == 1) as bar):
        bar.bar_format = log.LINE  # otherwise the bar says at first that the program compiles
        while running or waiting and not failed:
            busy = {line for line, _ in running.values()}
            free = [place for place in places if place not in [place for _, place in running.values()]]
            ready = [line for line in waiting if not before[line] & (busy | set(waiting))]
            for line, place in zip(ready if not failed else (), free):
                waiting.remove(line)
                if len(places) == 1:
                    announce(line, len(lines) - len(waiting) - 1, len(waiting) + 1, done, time.monotonic() - began)
                running[threads.submit(run, line, place)] = line, place
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
    """Prints the command `line`, which starts now, its number, and the time left. `ran` commands took the past
    `seconds`; `left` commands remain, with this one; an earlier start of the study had finished `done` commands."""
    eta = f", about {seconds / ran * left / 60:.0f} min left" if ran else ""
    print(f"[{done + ran + 1} of {done + ran + left}{eta}] python -m scripts.{line}", file=sys.stderr, flush=True)


def short(line: str) -> str:
    """A command in two words: the script, and the name of the folder that it writes."""
    words = shlex.split(line)
    wrote = [word.split("=", 1)[1] for word in words if word.startswith(("--run_dir=", "--out="))]
    return " ".join([words[0], *(pathlib.Path(path).name for path in wrote[:1])])


def script(line: str, share: Optional[dict] = None, quiet: Optional[pathlib.Path] = None, holding=None) -> None:
    """Runs the command `line` of one of the scripts as a user would. Raises UserError if it fails. Its output is shown,
    or goes to a file in the folder `quiet`. `share` is one of `shares`. The command inherits the open file `holding`,
    so that a lock on the file lasts until the command ends."""
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
