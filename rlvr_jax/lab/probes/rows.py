"""What all probes share: rows of completions.jsonl, the result of a probe, and shares with intervals."""

import pathlib
from typing import Callable, NamedTuple, Optional, Sequence

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.estimators import bootstrap_statistic, format_estimate, wilson
from rlvr_jax.evaluation.regrade import read_completions

COLUMNS = ("benchmark", "problem", "sample", "prompt", "answer", "completion")  # columns copied to most items


class Result(NamedTuple):
    """What a probe returns. The page shows "prompt", "rest", "completion" and "completions" ({name: text}) of an item
    as texts, and its "steps" (dicts with "text", "right", "verdict") as a list; each other value takes one line."""

    record: dict  # content of the JSON file
    page: str  # Markdown text
    draw: Callable  # (Figure) -> None, draws on a matplotlib Figure
    items: list[dict]  # one for each completion, or for each problem
    filters: dict[str, str] = {}  # keys by which the page filters items -> labels; empty: all boolean values


def read_files(paths: list[str], needs: Sequence[str], probe: str) -> dict[str, list[dict]]:
    """{short name of a file: its rows}. Raises UserError for rows without one of `needs`, the columns `probe` reads."""
    files = dict(zip(short_names(paths), map(read_completions, paths)))
    for path, rows in zip(paths, files.values()):
        for number, row in enumerate(rows, 1):
            if lacking := [key for key in needs if key not in row or key == "prompt" and not isinstance(row[key], str)
                           or key == "correct" and row[key] not in (True, False, None)]:
                raise UserError(f"{path}: completion {number} has no {lacking[0]}, which --probe={probe} reads; it "
                                "takes the completions.jsonl of scripts.evaluate or of the same probe")
    return files


def short_names(paths: list[str]) -> list[str]:
    """The paths' file names if all differ, else their folders' names if all differ, else the paths themselves. Raises
    UserError if a path is given twice."""
    files = list(map(pathlib.Path, paths))
    for names in ([file.stem for file in files], [file.parent.name for file in files], paths):
        if len(set(names)) == len(paths):
            return names
    raise UserError(f"--completions={','.join(paths)} names a file twice")


def make_items(rows_by_file: dict[str, list[dict]], keys: Sequence[str]) -> list[dict]:
    """Makes an item of each row: the name of its file as "file", and the columns `keys` that the row has."""
    return [{"file": name} | {key: row[key] for key in keys if key in row}
            for name, rows in rows_by_file.items() for row in rows]


def problem_key(row: dict) -> tuple:
    """What identifies a row's problem within a file: (benchmark, number), or (benchmark, prompt) without a number."""
    return row.get("benchmark"), row.get("problem", row["prompt"])


def group_rows(rows: list[dict], key: Callable) -> dict:
    """{key(row): its rows}, in the order in which the keys occur."""
    groups: dict = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def estimate_share(hits: Sequence[bool], problems: Sequence) -> dict:
    """`{"value", "interval", "n"}`: the share of True in `hits`, its 95 % interval, and the number of trials, which are
    None, None and 0 without trials. `problems` has the problem of each trial. The interval is that of a bootstrap over
    problems, because trials of one problem are not independent; with one trial per problem, one problem, or equal hits,
    Wilson's for as many trials as there are problems."""
    if not hits:
        return {"value": None, "interval": None, "n": 0}
    value = float(np.mean(hits))
    index_of = {problem: i for i, problem in enumerate(dict.fromkeys(problems))}
    if len(index_of) in (1, len(hits)) or value in (0.0, 1.0):
        return {"value": value, "interval": list(wilson(value, len(index_of))), "n": len(hits)}
    indices = [index_of[problem] for problem in problems]
    hits_P, trials_P = np.bincount(indices, hits), np.bincount(indices)
    interval = bootstrap_statistic(np.divide, hits_P, trials_P, reduce=np.sum)  # total hits / total trials
    return {"value": value, "interval": list(interval), "n": len(hits)}


def format_share(share: dict) -> str:
    """The result of `estimate_share` as a cell of a table, such as "0.500 [0.237, 0.763] of 10"."""
    return format_estimate(share["value"], share["interval"]) + f" of {share['n']}"


def draw_shares(axes, shares: list[Optional[dict]], shift: float, label: str) -> None:
    """Draws results of `estimate_share` at x = 0, 1, ... plus `shift`. None, or a share of no trials, leaves a gap."""
    present = [(x + shift, share["value"], *share["interval"]) for x, share in enumerate(shares)
               if share and share["n"]]
    x, values, low, high = np.array(present).reshape(-1, 4).T
    axes.errorbar(x, values, np.maximum([values - low, high - values], 0), fmt="o", capsize=3, label=label)
