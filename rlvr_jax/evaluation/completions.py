"""Completions that are kept: sets of problems asked, every completion written as it comes, resumable anywhere."""

import contextlib
import dataclasses
import pathlib
from typing import Callable, Iterator, Optional

from rlvr_jax import parallel, sampler
from rlvr_jax.config import KeptConfig
from rlvr_jax.errors import Interrupted, UserError
from rlvr_jax.evaluation.measure import measure
from rlvr_jax.model import Prompts
from rlvr_jax.pretrained import loading
from rlvr_jax.runs import files
from rlvr_jax.runs.flags import changed_flags, claim, flag_lines
from rlvr_jax.runs.log import JsonLines, progress
from rlvr_jax.tasks.problems import Problem


@dataclasses.dataclass(frozen=True)
class Asked:
    """A set of problems: what is asked, how often, and who says what is right."""

    name: str  # "benchmark" of its rows
    problems: list[Problem]
    prompts: Prompts
    num_samples: int
    temperature: float
    judge: Callable  # as in `measure`, whose row a kept one is


def keep(config: KeptConfig, loaded: loading.LanguageModel, sets: list[Asked], *, what: str = "evaluate",
         top_p: float = 1.0, draw: Optional[Callable] = None, sample: Optional[Callable] = None,
         tell: Optional[Callable] = None) -> dict[str, list[dict]]:
    """The rows of each set, by its name. They are in completions.jsonl of `config.out`, or sampled and appended there.

    `draw` and `tell` are as in `make_sampler` and `measure`, or `sample` is a sampler that is there already; `what` is
    the name of the line of progress.
    The same configuration again continues after the last whole line. Raises UserError where other flags or problems
    began what is there, Interrupted on Ctrl-C.
    """
    sample = sample or sampler.make_sampler(
        loaded.config, eos_ids=loaded.tokenizer.eos_ids, max_new_tokens=config.max_new_tokens,
        num_slots=config.num_slots, use_top_p=top_p < 1, draw=draw)
    params, kept, start = parallel.place_state(loaded.params), {}, 0
    total = sum(len(one.problems) * one.num_samples for one in sets)
    with open_log(config, sets) as log, progress(total, len(log.rows), what, unit="completion") as bar:
        for one in sets:
            end = start + len(one.problems) * one.num_samples
            try:
                for row in measure(sample, params, loaded.tokenizer, one.problems, one.prompts, judge=one.judge,
                                   temperature=one.temperature, num_samples=one.num_samples, top_p=top_p,
                                   seed=config.seed, step=0, rows_per_call=config.rows_per_call,
                                   done=len(log.rows) - start, tell=tell):
                    log.write({"benchmark": one.name} | row)
                    bar.update()
            except KeyboardInterrupt:
                raise Interrupted(f"interrupted with {len(log.rows)} of {total} completions in {log.path}; the same "
                                  "command continues", 130) from None
            kept[one.name], start = log.rows[start:end], end
    return kept


@contextlib.contextmanager
def open_log(config: KeptConfig, sets: list[Asked]) -> Iterator[JsonLines]:
    """completions.jsonl with the rows it has, the flags beside it. Raises UserError if they are of something else."""
    out = pathlib.Path(config.out)
    flags, path = out / "flags.txt", out / "completions.jsonl"
    if config.resume == "must" and not flags.exists():
        raise UserError(f"--resume=must, but {out} holds no evaluation")
    with claim(out, "--out", config.resume):
        if path.exists() and not flags.exists():
            raise UserError(f"{path} is there without the flags that made it; choose another --out, or --resume=never")
        refusal = changed_flags(out, config, "--out") if flags.exists() else ""
        if refusal:
            raise UserError(refusal)
        files.write_whole(flags, "\n".join(flag_lines(config)) + "\n")
        log = JsonLines(path, 0)
        with contextlib.closing(log.file):
            check_rows(log, sets)
            yield log


def check_rows(log: JsonLines, sets: list[Asked]) -> None:
    """Raises UserError if a row of the log is not of these problems, in their order."""
    wanted = ({"benchmark": one.name, "problem": i, "sample": j, "prompt": problem.prompt, "answer": problem.answer}
              for one in sets for i, problem in enumerate(one.problems) for j in range(one.num_samples))
    for number, row in enumerate(log.rows, 1):
        want = next(wanted, {"benchmark": None})
        if want != {key: row.get(key) for key in want}:
            raise UserError(f"{log.path}, line {number}: not of these problems, which have changed since; choose "
                            "another --out, or start over with --resume=never")
