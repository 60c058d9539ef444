"""Each problem's accuracy in each pass of a run over its pool, and the ranking of problems by its variance."""

import collections
import pathlib
import statistics

import numpy as np

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.records import Problem
from rlvr_jax.runs import files
from rlvr_jax.tasks import problems

HISTORY = "history.json"  # in a run directory: index of a problem -> its accuracy in each pass over the pool


class SelectConfig(Config):
    """A ranking of problems by the variance of their accuracy in training."""

    history: str = flag("", "JSON file of index -> list of accuracies, or a run directory with a history.json")
    problems: str = flag("", "the JSONL or parquet file of the problems, to show their text; empty: only indices")
    ignore_columns: str = flag("", "columns of --problems to ignore, joined by commas")
    top: int = flag(20, "rows to print; 0: all", minimum=0)
    out: str = flag("", "JSON file to write the whole ranking to; empty: only print")


def read_history(path: str) -> dict[str, list[float]]:
    """Reads `{problem index: [accuracy in each pass, 0 to 1]}` from a JSON file or a run directory. Raises UserError if
    there is no such file, or if an entry is not a list of accuracies."""
    if not path:
        raise UserError("--history is required: a file of index -> list of accuracies, or a run directory")
    file = pathlib.Path(path)
    file = file / HISTORY if file.is_dir() else file
    if not file.is_file():
        raise UserError(f"--history={path}: no file {file}; a run writes one with --record_history")
    history = files.read_json(file)
    if not history:
        raise UserError(f"{file}: needs index -> list of accuracies, at least one of them")
    for index, accuracies in history.items():
        if not (isinstance(accuracies, list) and accuracies
                and all(type(x) in (int, float) and 0 <= x <= 1 for x in accuracies)):
            raise UserError(f"{file}, index {index}: needs a list of accuracies from 0 to 1; it has "
                            f"{str(accuracies)[:60]}")
    return history


def check_same_pool(config: SelectConfig, ranking: list[dict], known: dict) -> None:
    """Raises UserError if the ranked history cannot belong to the problems `known`, {index: Problem}.

    If --history is a run directory, its flags must name the file in --problems. Every ranked index must be known. A
    pass takes every problem, so if all ranked problems have two passes or more, every known problem must be ranked.
    """
    flags = pathlib.Path(config.history) / "flags.txt"
    if flags.is_file():
        trained = dict(line.split("=", 1) for line in flags.read_text("utf-8", "replace").splitlines() if "=" in line)
        name = "--question" if trained.get("--question") else trained.get("--problems", "")
        if pathlib.Path(name).name != pathlib.Path(config.problems).name:
            raise UserError(f"--history={config.history} is a run on {name}, not on --problems={config.problems}: "
                            "leave --problems out, or name the file that the run trained on")
    missing = [row["index"] for row in ranking if row["index"] not in known]
    incomplete = len(known) > len(ranking) and min(row["passes"] for row in ranking) > 1
    if missing or incomplete:
        raise UserError(f"--problems={config.problems} " + (
            f"has no problem of index {missing[0]}, which --history has" if missing else
            f"has {len(known)} problems, but --history has {len(ranking)} after several passes")
            + ": name the file that the run trained on")


def rank_by_variance(history: dict[str, list[float]]) -> list[dict]:
    """Returns rows `{"rank", "index", "score", "accuracy", "passes"}`, the highest score first. The score is the exact
    population variance of a problem's accuracies, rounded once (arXiv 2504.20571). Ties keep the order of `history`."""
    scored = [(float(statistics.pvariance(accuracies)), index) for index, accuracies in history.items()]
    return [{"rank": rank, "index": index, "score": score, "accuracy": statistics.fmean(history[index]),
             "passes": len(history[index])}
            for rank, (score, index) in enumerate(sorted(scored, key=lambda row: -row[0]), 1)]


def select(config: SelectConfig) -> list[dict]:
    """Returns the rows of `rank_by_variance`, with "answer" and "question" if `config.problems` is set, and writes them
    to `config.out` if that is set. Raises UserError if the history cannot belong to `config.problems`."""
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
    """`{problem index: [accuracy of each of its groups]}` of one step, whose groups are consecutive in `correct`."""
    by_index, accuracies = {}, correct.reshape(-1, group_size).mean(-1, dtype=float).tolist()
    for i, accuracy in zip(prompt_index[::group_size], accuracies):
        by_index.setdefault(str(pool[i].meta["index"]), []).append(accuracy)
    return by_index


def build_history(rows: list[dict], pool: list[Problem]) -> dict[str, list[float]]:
    """`{problem index: [accuracy in each complete pass]}` from the rows of metrics.jsonl. A pass takes each copy of a
    problem once, so each pass has the next `copies` groups of that problem."""
    groups = collections.defaultdict(list)
    for row in rows:
        for index, accuracies in row.get("train/group_accuracies", {}).items():
            groups[index] += accuracies
    by_index = {}
    for index, size in ((str(problem.meta["index"]), problem.copies) for problem in pool):
        passes = len(groups[index]) // size
        if passes:
            by_index[index] = np.reshape(groups[index][: passes * size], (passes, size)).mean(-1).tolist()
    return by_index
