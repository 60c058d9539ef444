"""What a study measured: the numbers of its cells, out of the files that its commands wrote."""

import functools
import pathlib
from typing import Callable, Optional

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import calibration, estimators
from rlvr_jax.lab.studies import statistics
from rlvr_jax.lab.studies.commands import fill
from rlvr_jax.runs import files

# how a measure is made of others -> function of their values
COMBINED = {"-": np.subtract, "/": lambda a, b: a / b if np.all(b) else None,  # no share of nothing
            "overlap": lambda *rights: (estimators.overlap(*rights) or [None])[0],  # base, one way, another
            "overlap by chance": lambda *rights: (estimators.overlap(*rights) or [0, None])[1]}
# how a measure is made of all values of another, where bases and examples are crossed -> function of f[B,E]
CROSSED = {"variance of the base": lambda values_BxE: statistics.components(values_BxE)[0],
           "variance of the example": lambda values_BxE: statistics.components(values_BxE)[1],
           "variance of the rest": lambda values_BxE: statistics.components(values_BxE)[2]}
PARTS = {"-": 2, "/": 2, "overlap": 3, "overlap by chance": 3} | dict.fromkeys(CROSSED, 1)  # how many others each takes


def values_of(measures: dict, known: Callable, repeated: list[dict]) -> dict:
    """`{measure: its value of each unit}` of one arm. `known(name)` has those values, or None for a measure that has to
    be made of others."""
    def of(name: str) -> list:
        values, source = known(name), measures[name]
        if values is not None:
            return values
        parts = [of(part) for part in source[1:]]
        if source[0] in CROSSED:
            return over_bases(CROSSED[source[0]], parts[0], repeated)
        made = [None if any(value is None for value in each) else COMBINED[source[0]](*each) for each in zip(*parts)]
        return [None if value is None else np.asarray(value) for value in made]

    return {name: of(name) for name in measures}


def told_apart(contrast: dict, found: dict, names: list[str]) -> dict:
    """`{measure: for each seed the jackknife value of its AUROC}`: how well the measure tells the arms `high` from the
    arms `low`. None where one side has no value."""
    number = len(found[contrast["high"][0]][contrast["where"]])

    def area(name: str, seeds: np.ndarray) -> float:
        pairs = [(float(np.mean(found[arm][name][i])), side == "high") for side in ("high", "low")
                 for arm in contrast[side] for i in seeds
                 if None not in (found[arm][name][i], found[arm][contrast["where"]][i])
                 and found[arm][contrast["where"]][i] >= contrast["above"]]
        found_area = calibration.auroc(*map(np.array, zip(*pairs))) if pairs else None
        return np.nan if found_area is None else found_area

    areas = {name: statistics.jackknife(functools.partial(area, name), np.arange(number)) for name in names}
    return {name: [None] * number if np.isnan(values).any() else [*map(np.array, values)]
            for name, values in areas.items()}


def over_bases(function: Callable, values: list, repeated: list[dict]) -> list:
    """The jackknife value of each unit's base; None where a value is missing. Seeds of a cell are averaged first."""
    if any(value is None for value in values):
        return [None] * len(values)
    table = {}
    for unit, value in zip(repeated, values):
        table.setdefault(unit["base"], {}).setdefault(unit["example"], []).append(np.mean(value))
    by_base = statistics.jackknife(function, np.array([[np.mean(x) for x in row.values()] for row in table.values()]))
    return [np.array(dict(zip(table, by_base))[unit["base"]]) for unit in repeated]


def source_values(name: str, source: str, cell: dict) -> Optional[np.ndarray]:
    """A measure of one cell, an arm with a unit: a number, or one for each problem; None where its file is missing.

    Its source is "FILE.json: path.to.a.number" (or to a list, one for each problem), "FILE.jsonl: benchmark" (whether
    each problem of that benchmark was right), "RUN/metrics.jsonl: column" (its sum over all steps), or "{word}" of an
    arm that is a number or one of these. Other measures are lists: [a row of COMBINED, one measure, another, ...], or
    [a row of CROSSED, a measure], made by `values_of`.
    """
    file, _, path = fill(source, cell).partition(": ")
    if not path:
        try:
            return np.array(float(file))
        except ValueError:
            raise UserError(f"the study's measure {name}: {file!r} is no number, nor FILE: WHAT") from None
    file = pathlib.Path(cell["work"]) / file
    if not file.exists():  # of a command that the arm leaves out
        return None
    if file.name == "metrics.jsonl":
        return np.array(sum(row.get(path, 0) for _, row in files.read_lines(file)), float)
    if file.suffix == ".jsonl":
        right = {}
        for _, row in files.read_lines(file):
            if row["benchmark"] == path:
                right.setdefault(row["problem"], []).append(row["correct"])
        return np.array([np.mean(values) for values in right.values()])
    value = files.read_json(file)
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return None if value is None else np.array(value, float)


def refuse_strangers(study: dict, cells: list[dict]) -> None:
    """Raises UserError for a measure whose number is in none of the files that there are, as after a slip of the pen.

    A number that is null there is known: it has no value.
    """
    for name, source in study["measures"].items():
        places = [] if isinstance(source, list) else dict.fromkeys(
            (pathlib.Path(cell["work"]) / file, path) for cell in cells
            for file, _, path in [fill(source, cell).partition(": ")] if path and file.endswith(".json"))
        there = [place for place in places if place[0].is_file()]
        if there and all(stray(*place) for place in there):  # most often the first file has it, and no other is read
            raise UserError(f"the study's measure {name}: {stray(*there[0])}")


def stray(file: pathlib.Path, path: str) -> str:
    """What the file has in place of the first key of the path that is not there; empty if all are."""
    value = files.read_json(file)
    for key in path.split("."):
        if isinstance(value, dict) and value and key not in value:
            return f"{file} has no {key!r} of {path!r} there; it has {', '.join(value)}"
        value = value.get(key) if isinstance(value, dict) else None
    return ""
