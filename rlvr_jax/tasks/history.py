"""Each problem's accuracy in each pass over a run's pool, and the ranking of problems by the variance of accuracy."""

import collections
import pathlib
import statistics

import numpy as np

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.records import Problem
from rlvr_jax.runs import files
from rlvr_jax.tasks import problems

HISTORY = "history.json"  # in a run directory: {problem index: [its accuracy in each pass over the pool]}


class SelectConfig(Config):
    """A ranking of problems by the variance of their accuracy in training."""

    history: str = flag("", "JSON file of index -> list of accuracies, or a run directory with a history.json")
    problems: str = flag("", "the JSONL or parquet file of the problems, to show their text; empty: only indices")
    ignore_columns: str = flag("", "columns of --problems to ignore, joined by commas")
    top: int = flag(20, "rows to print; 0: all", minimum=0)
    out: str = flag("", "JSON file to write the whole ranking to; empty: only print")


def read_history(path: str) -> dict[str, list[float]]:
    """Reads `{problem index: [accuracy in each pass, 0 to 1]}` from a file or run directory. UserError if faulty."""
    if not path:
        raise UserError("--history is required: a file of index -> list of accuracies, or a run directory")
    file = pathlib.Path(path, HISTORY) if pathlib.Path(path).is_dir() else pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"--history={path}: no file {file}; a run writes one with --record_history")
    history = files.read_json(file)
    if not history:
        raise UserError(f"{file}: needs index -> list of accuracies for at least one problem; it is empty")
    for index, accuracies in history.items():
        if not (isinstance(accuracies, list) and accuracies
                and all(type(x) in (int, float) and 0 <= x <= 1 for x in accuracies)):
            raise UserError(f"{file}, index {index}: needs a list of accuracies from 0 to 1; it has "
                            f"{str(accuracies)[:60]}")
    return history


def check_same_pool(config: SelectConfig, ranking: list[dict], known: dict) -> None:
    """Raises UserError if `ranking` (`rank_by_variance`) cannot belong to the problems `known`, {index: Problem}.
    If --history is a run directory, its flags must name the file in --problems. Every ranked index must be known. A
    pass takes every problem, so if all ranked problems have two passes or more, every known problem must be ranked."""
    flags = pathlib.Path(config.history) / "flags.txt"
    if flags.is_file():
        values = dict(line.split("=", 1) for line in flags.read_text("utf-8", "replace").splitlines() if "=" in line)
        name = "--question" if values.get("--question") else values.get("--problems", "")
        if pathlib.Path(name).name != pathlib.Path(config.problems).name:
            raise UserError(f"--history={config.history} is a run on {name}, not on --problems={config.problems}: "
                            "leave --problems out, or name the file that the run trained on")
    missing = [row["index"] for row in ranking if row["index"] not in known]
    incomplete = len(known) > len(ranking) and min(row["passes"] for row in ranking) > 1
    if missing or incomplete:
        fault = (f"has no problem of index {missing[0]}, which --history has" if missing else
                 f"has {len(known)} problems, but --history has {len(ranking)} after several passes")
        raise UserError(f"--problems={config.problems} {fault}: name the file that the run trained on")


def rank_by_variance(history: dict[str, list[float]]) -> list[dict]:
    """Returns rows `{"rank", "index", "score", "accuracy", "passes"}`, the highest score first. "score" is the exact
    population variance of a problem's accuracies (arXiv 2504.20571), "accuracy" their mean, "passes" their number."""
    scored = [(float(statistics.pvariance(accuracies)), index) for index, accuracies in history.items()]
    return [{"rank": rank, "index": index, "score": score, "accuracy": statistics.fmean(history[index]),
             "passes": len(history[index])}
            for rank, (score, index) in enumerate(sorted(scored, key=lambda pair: -pair[0]), 1)]  # a stable sort


def select(config: SelectConfig) -> list[dict]:
    """Returns the ranking of problems (`rank_by_variance`) and writes it to `config.out` if that is set. Rows also have
    "answer" and "question" if `config.problems` is set; UserError if these problems cannot be those of the history."""
    ranking = rank_by_variance(read_history(config.history))
    if config.problems:
        known = {str(problem.meta["index"]): problem
                 for problem in problems.merge(problems.load(config.problems, config.ignore_columns))}
        check_same_pool(config, ranking, known)
        ranking = [row | {"answer": known[row["index"]].answer, "question": known[row["index"]].question}
                   for row in ranking]
    if config.out:
        files.write_json(pathlib.Path(config.out), ranking)
    return ranking


def group_accuracies(pool: list[Problem], prompt_index: np.ndarray, correct: np.ndarray, group_size: int) -> dict:
    """Returns `{problem index: [accuracy of each of its groups]}` for one step. `correct[i]` is the verdict on a
    completion of `pool[prompt_index[i]]`. A group is `group_size` consecutive completions, all of one problem."""
    by_index, accuracies = {}, correct.reshape(-1, group_size).mean(-1, dtype=float).tolist()
    for i, accuracy in zip(prompt_index[::group_size], accuracies):
        by_index.setdefault(str(pool[i].meta["index"]), []).append(accuracy)
    return by_index


def build_history(rows: list[dict], pool: list[Problem]) -> dict[str, list[float]]:
    """Returns `{problem index: [accuracy in each complete pass]}` from `rows` of metrics.jsonl; problems without one
    are left out. In a pass, each copy of a problem has one group, so `Problem.copies` groups in a row are a pass."""
    groups = collections.defaultdict(list)
    for row in rows:
        for index, accuracies in row.get("train/group_accuracies", {}).items():
            groups[index] += accuracies
    by_index = {}
    for problem in pool:
        index, copies = str(problem.meta["index"]), problem.copies
        passes = len(groups[index]) // copies
        if passes:
            by_index[index] = np.reshape(groups[index][: passes * copies], (passes, copies)).mean(-1).tolist()
    return by_index
