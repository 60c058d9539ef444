"""What all probes share: the rows of completions they read, what they return, and shares with their intervals."""

import pathlib
from typing import Callable, NamedTuple, Optional, Sequence

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.estimators import RESAMPLES, shown, wilson
from rlvr_jax.evaluation.regrade import read_completions

COLUMNS = ("benchmark", "problem", "sample", "prompt", "answer", "completion")  # of a row, that most items have


class Result(NamedTuple):
    """What a probe returns. The page shows an item's "prompt", "rest", "completion", "completions" (name -> text) and
    "steps" (each with "text", "right", "verdict") whole, and its other texts and numbers in a line."""

    record: dict  # JSON
    page: str  # Markdown
    draw: Callable  # of a matplotlib Figure
    items: list[dict]  # of each completion, or of each problem


def read_files(paths: list[str], needs: Sequence[str], probe: str) -> dict[str, list[dict]]:
    """The rows of each file, by a short name of the file. Raises UserError for a row that lacks one of `needs`, the
    columns that the probe reads."""
    files = {}
    for name, path in zip(short_names(paths), paths):
        files[name] = read_completions(path)
        for number, row in enumerate(files[name], 1):
            lacking = [key for key in needs if key not in row or (key == "prompt" and not isinstance(row[key], str))]
            if lacking:
                raise UserError(f"{path}: completion {number} has no {lacking[0]}, which --probe={probe} reads; it "
                                "takes the completions.jsonl of scripts.evaluate or of the same probe")
    return files


def short_names(paths: list[str]) -> list[str]:
    """One name for each: the files' names where they differ, else those of their folders, else the paths."""
    for names in ([pathlib.Path(path).stem for path in paths], [pathlib.Path(path).parent.name for path in paths]):
        if len(set(names)) == len(paths):
            return names
    if len(set(paths)) < len(paths):
        raise UserError(f"--completions={','.join(paths)} names a file twice")
    return paths


def items_of(rows_by_file: dict[str, list[dict]], keys: Sequence[str]) -> list[dict]:
    """Each row as an item: its file, and of the columns `keys` those that it has."""
    return [{"file": name} | {key: row[key] for key in keys if key in row}
            for name, rows in rows_by_file.items() for row in rows]


def problem_of(row: dict) -> tuple:
    """What tells the problem of a row from other problems."""
    return row.get("benchmark"), row.get("problem", row["prompt"])


def share(hits: Sequence[bool], problems: Sequence) -> dict:
    """`{"value", "interval", "n"}`: the share of hits among trials, with 95 %. Without trials the first two are None.

    `problems` names the problem of each trial. With one trial a problem the interval is Wilson's, else that of a
    bootstrap over problems, since trials of one problem are not independent.
    """
    if not hits:
        return {"value": None, "interval": None, "n": 0}
    value, number = float(np.mean(hits)), {problem: place for place, problem in enumerate(dict.fromkeys(problems))}
    if len(number) == len(hits):
        return {"value": value, "interval": list(wilson(value, len(hits))), "n": len(hits)}
    places = [number[problem] for problem in problems]
    hit_P, count_P = (np.bincount(places, weights) for weights in (np.asarray(hits, float), None))
    drawn = np.random.default_rng(0).integers(0, len(number), (RESAMPLES, len(number)))
    low, high = np.quantile(hit_P[drawn].sum(-1) / count_P[drawn].sum(-1), (0.025, 0.975))
    return {"value": value, "interval": [float(low), float(high)], "n": len(hits)}


def share_cell(share: Optional[dict]) -> str:
    """A `share` as a cell of a table."""
    return "-" if not share else shown(share["value"], share["interval"]) + f" of {share['n']}"


def draw_shares(axes, shares: list[Optional[dict]], shift: float, label: str) -> None:
    """Shares with their intervals, at x = 0, 1, ... moved by `shift`; None and one without trials leave their place."""
    there = [(x, share) for x, share in enumerate(shares) if share and share["n"]]
    values = np.array([share["value"] for _, share in there])
    ends = np.array([share["interval"] for _, share in there]).T
    axes.errorbar([x + shift for x, _ in there], values, np.maximum([values - ends[0], ends[1] - values], 0), fmt="o",
                  capsize=3, label=label)
