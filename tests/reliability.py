"""Injects faults into real training runs, and checks that each run has the same result in the end.

  python tests/reliability.py --out=results/reliability.md [--only=clock]

Each run of 24 steps is broken once: by a signal at a chosen call of sampling, scoring, the update, the log or the
checkpoint, by a full or read-only file system, by a clock that is set back, by killing the graders, or by the loss of
one of two processes. The same command then continues the run, whose files must equal those of an uninterrupted run bit
for bit, except for times. Mounting the file systems requires root.
"""

import argparse
import collections
import contextlib
import functools
import json
import os
import pathlib
import platform
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import fixtures  # noqa: E402
from rlvr_jax import grpo  # noqa: E402
from rlvr_jax.rewards import score  # noqa: E402
from rlvr_jax.runs import checkpoint, log  # noqa: E402
from rlvr_jax.runs.markdown import markdown_table  # noqa: E402
from rlvr_jax.runs.origin import commit  # noqa: E402

STEPS, SEED = 24, 0
KINDS = ("sampling", "scoring", "update", "log", "checkpoint")
SIZES = range(5, 100, 5)  # of a file system that fills up: percent of what a whole run writes


# ----- in the process that is broken

def run_with_fault(plan: dict, words: list[str]) -> None:
    """Runs a script with the fault of the plan in it."""
    calls = collections.Counter()

    def due(kind: str) -> bool:
        calls[kind] += 1
        return (plan["at"], plan["nth"]) == (kind, calls[kind])

    def inject_fault() -> None:
        if plan["do"] == "clock":
            real = time.time
            time.time = lambda: real() - 86_400
        elif plan["do"] == "graders":
            for entry in pathlib.Path("/proc").glob("[0-9]*/stat"):
                pid, _, rest = entry.read_text().partition(" (")
                if int(rest.rpartition(") ")[2].split()[1]) == os.getpid():
                    os.kill(int(pid), signal.SIGKILL)
        else:
            os.kill(os.getpid(), plan["do"])

    def inject_before(kind: str, function):
        def call(*args, **more):
            if due(kind):
                inject_fault()
            return function(*args, **more)
        return call

    compile_programs, make_scorer = grpo.compile_programs, score.make_scorer
    save, write = checkpoint.save, log.JsonLines.write

    def with_faults(*args):
        programs = compile_programs(*args)
        return programs._replace(sample=inject_before("sampling", programs.sample), update=inject_before("update", programs.update))

    def half_written(lines, row):
        if due("log"):
            if plan["do"] == signal.SIGKILL:
                lines.file.write(json.dumps({"step": row.get("step")}).encode()[:-3])
            inject_fault()
        write(lines, row)

    def half_saved(*args):
        save(*args)  # its threads go on writing arrays
        if due("checkpoint"):
            inject_fault()

    grpo.compile_programs, log.JsonLines.write, checkpoint.save = with_faults, half_written, half_saved
    score.make_scorer = lambda *args: inject_before("scoring", make_scorer(*args))
    sys.argv = words
    runpy.run_module(f"scripts.{words[0]}", run_name="__main__")


# ----- in the process that breaks it

class Trial:
    """One run directory, and the command that writes it."""

    def __init__(self, folder: pathlib.Path, base: pathlib.Path, compiled: str, more: tuple = ()):
        self.run_dir, self.compiled = folder / "run", compiled
        self.flags = [*fixtures.TRAIN_FLAGS, f"--num_steps={STEPS}", "--eval_every=6", "--save_every=3",
                      f"--model={base}", f"--run_dir={self.run_dir}", f"--seed={SEED}", *more]

    def start(self, plan: dict | None = None, *more: str) -> subprocess.Popen:
        if not plan:
            return fixtures.start("train", *self.flags, *more, compiled=self.compiled)
        words = [sys.executable, __file__, "--child", json.dumps(plan), "train", *self.flags, *more]
        return subprocess.Popen(words, cwd=ROOT, env=fixtures.environment(self.compiled), text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, plan: dict | None = None):
        return fixtures.finish(self.start(plan))


def compare(trial: Trial, whole: Trial) -> str:
    """"identical", or what differs."""
    try:
        fixtures.assert_same_run(trial.run_dir, whole.run_dir, STEPS)
    except (AssertionError, OSError) as error:
        return f"differs: {' '.join(str(error).split())[:150]}"
    return "identical"


def resume(trial: Trial, whole: Trial) -> str:
    again = trial.run()
    if again.code:
        return f"exit {again.code}: {' '.join(again.errors) or again.err[-150:]}"
    return compare(trial, whole)


def outcome(result) -> str:
    """How the broken run ended: killed, or with an exit code and an error of one line."""
    if result.code == -signal.SIGKILL:
        return "killed"
    if "Traceback" in result.err:
        return f"exit {result.code}, a traceback"
    return f"exit {result.code}" + (f", {len(result.errors)} line" if result.errors else "")


def signals(make, whole):
    """SIGKILL and SIGTERM at twenty calls: four of each kind, from the first to one near the end."""
    for do in (signal.SIGKILL, signal.SIGTERM):
        for kind in KINDS:
            for nth in (1, 2, 5, 7) if kind == "checkpoint" else (1, 4, 11, 20):
                trial = make()
                broken = trial.run({"at": kind, "nth": nth, "do": int(do)})
                yield f"{do.name} in {kind}", f"call {nth}", outcome(broken), resume(trial, whole())


def full(make, whole):
    """A file system with room for a part of what a run writes."""
    size = sum(path.stat().st_size for path in whole().run_dir.rglob("*") if path.is_file()) + (256 << 10)
    for percent in SIZES:
        with mount_tmpfs(f"size={size * percent // 100}") as folder:
            trial = make(folder)
            broken = trial.run()
            subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
            yield "file system with room for part of the run", f"{percent} %", outcome(broken), resume(trial, whole())


def read_only(make, whole):
    for nth in (1, 4):
        with mount_tmpfs("size=64m") as folder:
            trial = make(folder)
            trial.run({"at": "checkpoint", "nth": nth, "do": int(signal.SIGKILL)})
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            broken = trial.run()
            subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
            yield "read-only folder", f"after checkpoint {nth}", outcome(broken), resume(trial, whole())


def clock(make, whole):
    for kind in KINDS:
        trial = make()
        broken = trial.run({"at": kind, "nth": 4, "do": "clock"})
        yield "clock set back by a day", f"in {kind}", outcome(broken), compare(trial, whole())


def graders(make, whole):
    """Kills the graders' processes, which the answer format of this run needs."""
    boxed = ("--answer_format=lenient", "--reward=correct:0.5,format:0.5")
    straight = make(more=boxed)
    straight.run()
    for nth in (1, 4, 11, 20):
        trial = make(more=boxed)
        broken = trial.run({"at": "scoring", "nth": nth, "do": "graders"})
        yield "graders killed", f"before scoring {nth}", outcome(broken), compare(trial, straight)


def peer(make, whole):
    """Kills one of two processes; then both continue."""
    def run_both(trial, plan=None, lost=0):
        address = (f"--coordinator_address=127.0.0.1:{fixtures.free_port()}", "--num_processes=2")
        pair = [trial.start(plan if i == lost else None, *address, f"--process_id={i}") for i in range(2)]
        return [fixtures.finish(process) for process in pair]

    alone = make(more=("--host_devices=2",))
    alone.run()
    for lost in range(2):
        for kind in ("update", "sampling"):
            trial = make()
            ends = run_both(trial, {"at": kind, "nth": 7, "do": int(signal.SIGKILL)}, lost)
            left = ends[1 - lost]
            again = run_both(trial)
            result = compare(trial, alone) if not any(end.code for end in again) else "did not go on"
            yield f"process {lost} of two killed", f"in {kind} 7", f"the other: exit {left.code}", result


FAULTS = {"signals": signals, "full": full, "read_only": read_only, "clock": clock, "graders": graders, "peer": peer}


@contextlib.contextmanager
def mount_tmpfs(options: str):
    """Mounts a file system in memory; yields its folder."""
    folder = pathlib.Path(tempfile.mkdtemp())
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


def format_page(rows: list[tuple], made_by: str) -> str:
    """The page, with one line for all places at which a fault ended alike."""
    places: dict[tuple, list] = {}
    for fault, where, *ends in rows:
        places.setdefault((fault, *ends), []).append(where)
    fine = sum(row[-1] == "identical" for row in rows)
    return "\n\n".join([
        "# Faults in real runs", made_by,
        f"A run of {STEPS} steps on a tiny base was broken {len(rows)} times and continued by the same command. {fine} "
        "times the result was that of the uninterrupted run, bit for bit but for times: parameters, moments, log, "
        "rollouts, evaluations and summary.",
        markdown_table(["fault", "where", "how it ended", "in the end"], [
            [fault, ", ".join(wheres), *ends] for (fault, *ends), wheres in places.items()])]) + "\n"


def main(options) -> int:
    work, rows = pathlib.Path(tempfile.mkdtemp()), []
    try:
        compiled, base = str(work / "programs"), work / "base"
        fixtures.finish(fixtures.start("pretrain", *fixtures.BASE_FLAGS, "--num_steps=200", f"--run_dir={base}",
                                       compiled=compiled), expect=0)

        def make(folder=None, more=()):
            return Trial(folder or pathlib.Path(tempfile.mkdtemp(dir=work)), base, compiled, more)

        @functools.cache
        def whole() -> Trial:
            trial = make()
            fixtures.finish(trial.start(), expect=0)
            return trial

        for name in options.only.split(",") if options.only else FAULTS:
            for row in FAULTS[name](make, whole):
                rows.append(row)
                print(" | ".join(row), flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    made_by = (f"`python tests/reliability.py{options.only and ' --only=' + options.only}`, commit {commit()}, JAX "
               f"{jax.__version__} on cpu ({platform.machine()}).")
    fine = sum(row[-1] == "identical" for row in rows)
    if options.out:
        pathlib.Path(options.out).write_text(format_page(rows, made_by), "utf-8")
    print(f"{fine} of {len(rows)} identical")
    return fine < len(rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_with_fault(json.loads(sys.argv[2]), sys.argv[3:])
    else:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("--out", default="", help="file for the page")
        parser.add_argument("--only", default="", help=f"of {', '.join(FAULTS)}, joined by commas")
        sys.exit(main(parser.parse_args()))
