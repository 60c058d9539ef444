"""Choosing the one example: by how often the untrained model solves it, or by its history in an earlier training."""

import json
import pathlib
import statistics

import numpy as np

from rlvr_jax import families, metrics, problems
from rlvr_jax.config import SelectConfig, UserError
from rlvr_jax.problems import Problem

HISTORY = "history.json"  # of a run directory: index of a problem -> its accuracy in each pass over the pool


def choose_example(rows: list[dict], pool: list[Problem], pass_rate: float) -> int:
    """The place in the pool of the problem whose pass rate is nearest `pass_rate`.

    `rows` are as many completions of every problem (`evaluation.measure`). A problem that is never or always solved teaches
    nothing. In a synthetic family a right answer that is not a careful one is luck: where more than 0.5 % of the
    completions are lucky, training would reward the wrong style, so such problems come last.
    """
    right, lucky = np.zeros((2, len(pool)))
    for row in rows:
        right[row["problem"]] += row["correct"]
        lucky[row["problem"]] += row["correct"] and families.is_careless(pool[row["problem"]], row["completion"])
    count = len(rows) / len(pool)
    right, lucky = right / count, lucky / count
    teaches = (right > 0) & (right < 1)
    if not teaches.any():
        raise UserError("--example=auto found no problem that the model solves sometimes but not always among "
                        f"{len(pool)}; raise --example_pool or --temperature, or name one with --example=INDEX")
    return int(np.argmin(np.abs(right - pass_rate) + 10.0 * (lucky > 0.005) + 100.0 * ~teaches))


def read_history(path: str) -> dict[str, list[float]]:
    """The record of a training on a pool, `{index: [accuracy of each pass, 0 to 1]}`, or that of a run directory.

    Raises UserError naming the file and the entry that is no list of accuracies.
    """
    if not path:
        raise UserError("--history is required: a file of index -> list of accuracies, or a run directory")
    file = pathlib.Path(path)
    file = file / HISTORY if file.is_dir() else file
    if not file.is_file():
        raise UserError(f"--history={path}: no file {file}; a run writes one with --record_history")
    try:
        history = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({error})") from None
    if not isinstance(history, dict) or not history:
        raise UserError(f"{file}: needs one object, index -> list of accuracies, with at least one of them")
    for index, accuracies in history.items():
        if not (isinstance(accuracies, list) and accuracies
                and all(type(x) in (int, float) and 0 <= x <= 1 for x in accuracies)):
            raise UserError(f"{file}, index {index}: needs a list of accuracies from 0 to 1; it has "
                            f"{str(accuracies)[:60]}")
    return history


def check_same_pool(config: SelectConfig, ranking: list[dict], known: dict) -> None:
    """Raises UserError where a ranked history cannot be of the problems in `known`, by index.

    A run's directory says what it was trained on. Of any other history the indices tell, and the count: each pass
    takes every problem, so after two whole ones no problem is without a record.
    """
    flags = pathlib.Path(config.history) / "flags.txt"
    if flags.is_file():
        trained = dict(line.split("=", 1) for line in flags.read_text("utf-8").splitlines())
        name = "--question" if trained.get("--question") else trained.get("--problems", "")
        if pathlib.Path(name).name != pathlib.Path(config.problems).name:
            raise UserError(f"--history={config.history} is of a run on {name}, not on --problems={config.problems}: "
                            "leave --problems out, or name the file that was trained on")
    missing = [row["index"] for row in ranking if row["index"] not in known]
    if missing:
        raise UserError(f"--problems={config.problems} has no problem of index {missing[0]}, which --history has: "
                        "is it the file that was trained on?")
    if len(known) > len(ranking) and min(row["passes"] for row in ranking) > 1:
        raise UserError(f"--problems={config.problems} has {len(known)} problems, and --history a record of "
                        f"{len(ranking)} after several passes: is it the file that was trained on?")


def rank_by_variance(history: dict[str, list[float]]) -> list[dict]:
    """Rows of `rank, index, score, accuracy, passes`, the highest population variance first (arXiv 2504.20571).

    Variances are computed exactly, so what is equal is a tie, and ties stay in the order of the record.
    """
    scored = [(float(statistics.pvariance(accuracies)), index) for index, accuracies in history.items()]
    return [{"rank": rank, "index": index, "score": score, "accuracy": statistics.fmean(history[index]),
             "passes": len(history[index])}
            for rank, (score, index) in enumerate(sorted(scored, key=lambda row: -row[0]), 1)]


def select(config: SelectConfig) -> list[dict]:
    """The ranking, with `answer` and `question` where `config.problems` names their file; written to `config.out`.

    Raises UserError where the history cannot be one of that file.
    """
    ranking = rank_by_variance(read_history(config.history))
    if config.problems:
        known = {str(problem.meta["index"]): problem
                 for problem in problems.merge(problems.load(config.problems, config.ignore_columns))}
        check_same_pool(config, ranking, known)
        ranking = [row | {"answer": known[row["index"]].answer, "question": known[row["index"]].question}
                   for row in ranking]
    if config.out:
        metrics.write_json(pathlib.Path(config.out), ranking)
    return ranking
