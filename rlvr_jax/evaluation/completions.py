"""Completions of benchmarks, saved as they are sampled, so that an interrupted command can be resumed at any row."""

import contextlib
import pathlib
from typing import Any, Callable, Iterator, NamedTuple, Optional

from rlvr_jax.config import Config, flag, nested
from rlvr_jax.errors import Interrupted, UserError
from rlvr_jax.evaluation.measure import Benchmark, Sampler, sample_and_grade
from rlvr_jax.pretrained.loading import ModelChoice
from rlvr_jax.runs import origin
from rlvr_jax.runs.flags import changed_flags, claim, write_flags
from rlvr_jax.runs.log import JsonLines, progress
from rlvr_jax.runs.machine import MachineConfig
from rlvr_jax.sampler import EVAL, Request, SamplingConfig
from rlvr_jax.tasks.answers import GradingConfig
from rlvr_jax.tasks.prompts import ProblemSource


class KeptConfig(Config):
    """The model and the benchmarks to sample completions of, and how the completions are graded and saved."""

    choice: ModelChoice = ModelChoice()
    source: ProblemSource = nested(ProblemSource(), problems=(
        "a synthetic family, gym:NAME, calculation:LEVEL (expressions of 1 to 20 operations), or a file of problems as "
        "in training; or several, joined by commas: each is a row of the table"))
    grading: GradingConfig = GradingConfig()
    sampling: SamplingConfig = SamplingConfig()
    machine: MachineConfig = MachineConfig()
    heldout_split: str = flag("test", "split of a synthetic family to measure on", ["dev", "test"])
    out: str = flag("", "directory for summary.json, table.md and completions.jsonl", free=True)
    resume: str = flag("auto", "continue after the completions that are in out: never (start over), auto (if there "
                       "are any), must (error if there are none)", ["never", "auto", "must"], free=True)
    max_problems: int = flag(0, "problems of each benchmark; 0: all of a file, 512 of any other source", minimum=0)
    rows_per_call: int = flag(512, "completions handed to the sampler at a time, over all devices", minimum=1)
    seed: int = flag(0, "seed of the sampling", minimum=0, maximum=2**31 - 1)


class Folder(NamedTuple):
    """A directory of completions, the command that writes it, and its flags."""

    path: str
    command: str  # name of the script, such as "evaluate"
    flags: Any  # the config of the command
    resume: str = "auto"
    what: str = ""  # label of the progress bar; empty: the command


def sample_and_keep(folder: Folder, sampler: Sampler, benchmarks: list[Benchmark], request: Request,
                    rows_per_call: int = 512, more: Optional[Callable] = None) -> dict[str, list[dict]]:
    """Samples and grades the completions that completions.jsonl in the folder lacks, and appends them to the file.
    Returns {benchmark name: its rows, earlier and new}. `request`, with EVAL as the stream of random keys, and `more`,
    which adds columns, are passed to `sample_and_grade`. A call with the same flags continues after the last complete
    line. Raises UserError if the folder was started with other flags or problems, and Interrupted on Ctrl-C."""
    rows, start, total = {}, 0, sum(len(b.problems) * b.num_samples for b in benchmarks)
    with open_log(folder, benchmarks) as log, progress(total, len(log.rows), folder.what or folder.command) as bar:
        for benchmark in benchmarks:
            end = start + len(benchmark.problems) * benchmark.num_samples
            done = len(log.rows) - start  # rows that the file has from this benchmark on
            try:
                for row in sample_and_grade(sampler, benchmark, request._replace(stream=EVAL), rows_per_call, done,
                                            more):
                    log.write({"benchmark": benchmark.name} | row)
                    bar.update()
            except KeyboardInterrupt:
                raise Interrupted(f"interrupted with {len(log.rows)} of {total} completions in {log.path}; the same "
                                  "command continues", 130) from None
            rows[benchmark.name], start = log.rows[start:end], end
    return rows


@contextlib.contextmanager
def open_log(folder: Folder, benchmarks: list[Benchmark]) -> Iterator[JsonLines]:
    """Locks the folder, writes flags.txt and origin.json, and yields the log completions.jsonl with its earlier rows.
    Raises UserError if the folder has other flags, or if its rows are not of these problems in this order."""
    out = pathlib.Path(folder.path)
    flags, path = out / "flags.txt", out / "completions.jsonl"
    if folder.resume == "must" and not flags.exists():
        raise UserError(f"--resume=must, but {out} holds no evaluation")
    with claim(out, "--out", folder.resume):
        if path.exists() and not flags.exists():
            raise UserError(f"{path} is there, but not its flags.txt; choose another --out, or --resume=never")
        if flags.exists() and (refusal := changed_flags(out, folder.flags, "--out", folder.command)):
            raise UserError(refusal)
        write_flags(flags, folder.flags)
        origin.write(out, folder.command)
        log = JsonLines(path, 0)
        with contextlib.closing(log.file):
            all_expected = ({"benchmark": b.name, "problem": i, "sample": j, "prompt": problem.prompt,
                             "answer": problem.answer}
                            for b in benchmarks for i, problem in enumerate(b.problems) for j in range(b.num_samples))
            for number, row in enumerate(log.rows, 1):
                expected = next(all_expected, {"benchmark": None})  # a row after the last expected one matches nothing
                if not expected.items() <= row.items():
                    raise UserError(f"{path}, line {number}: not of these problems, which have changed since this line "
                                    "was written; choose another --out, or start over with --resume=never")
            yield log
