"""What a probe reads and what it finds: rows of kept completions in, a record, a page, a figure and items out."""

import pathlib
from typing import Callable, NamedTuple, Optional, Sequence

import numpy as np

from rlvr_jax.config import ProbeConfig
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.completions import Asked, keep
from rlvr_jax.evaluation.estimators import RESAMPLES, shown, wilson
from rlvr_jax.evaluation.regrade import read_completions
from rlvr_jax.pretrained import loading


class Found(NamedTuple):
    """What a probe finds. The page shows an item's "prompt", "rest", "completion", "completions" (name -> text) and
    "steps" (each with "text", "right", "verdict") whole, and its other texts and numbers in a line."""

    record: dict  # JSON
    page: str  # Markdown
    draw: Callable  # of a matplotlib Figure
    items: list[dict]  # what was found of each completion, or problem


def kept_rows(config: ProbeConfig, ask: Callable[..., list[Asked]], needs: Sequence[str]) -> dict[str, list[dict]]:
    """The rows of every file in --completions, by a short name of the file; else those of the model, sampled now.

    `ask(config, loaded)` are the sets that are sampled; they are kept in `config.out` and resumed like an evaluation.
    Raises UserError for a file whose rows lack one of `needs`.
    """
    if bool(config.completions) == bool(config.model):
        raise UserError("give one of --completions, files of rows that were kept, and --model, which is sampled now")
    if config.completions:
        paths = config.completions.split(",")
        return {name: _with(needs, path, config.probe) for name, path in zip(short_names(paths), paths)}
    loaded = loading.load_model(config.model, config.dtype, config.dtype)
    kept = keep(config, loaded, ask(config, loaded))
    return {pathlib.Path(config.model).name: [row for rows in kept.values() for row in rows]}


def _with(needs: Sequence[str], path: str, probe: str) -> list[dict]:
    rows = read_completions(path)
    for number, row in enumerate(rows, 1):
        if lacking := [key for key in needs if key not in row or (key == "prompt" and not isinstance(row[key], str))]:
            raise UserError(f"{path}: completion {number} has no {lacking[0]}, which --probe={probe} reads; it takes "
                            "the completions.jsonl of scripts.evaluate or of the same probe")
    return rows


def short_names(paths: list[str]) -> list[str]:
    """One name for each: the files' own where they differ, else their folders', else the paths."""
    for names in ([pathlib.Path(path).stem for path in paths], [pathlib.Path(path).parent.name for path in paths]):
        if len(set(names)) == len(paths):
            return names
    if len(set(paths)) < len(paths):
        raise UserError(f"--completions={','.join(paths)} names a file twice")
    return paths


def share(hits: Sequence[bool], owners: Sequence) -> dict:
    """`{"value", "interval", "n"}`: the share of hits, with 95 %. Without any trial the first two are None.

    `owners` says which problem each trial is of. With one trial a problem the interval is Wilson's, else that of a
    bootstrap over problems, since trials of one problem are not independent.
    """
    if not hits:
        return {"value": None, "interval": None, "n": 0}
    value, problems = float(np.mean(hits)), {owner: place for place, owner in enumerate(dict.fromkeys(owners))}
    if len(problems) == len(hits):
        return {"value": value, "interval": list(wilson(value, len(hits))), "n": len(hits)}
    places = [problems[owner] for owner in owners]
    hit_P, count_P = (np.bincount(places, weights) for weights in (np.asarray(hits, float), None))
    drawn = np.random.default_rng(0).integers(0, len(problems), (RESAMPLES, len(problems)))
    low, high = np.quantile(hit_P[drawn].sum(-1) / count_P[drawn].sum(-1), (0.025, 0.975))
    return {"value": value, "interval": [float(low), float(high)], "n": len(hits)}


def said(found: Optional[dict]) -> str:
    """A `share` as a cell of a table."""
    return "-" if not found else shown(found["value"], found["interval"]) + f" of {found['n']}"


def owner(row: dict) -> tuple:
    """What tells the problem of a row from others."""
    return row.get("benchmark"), row.get("problem", row["prompt"])
