"""The measures of a study: reads the numbers of its cells from the files that its commands wrote."""

import pathlib
from typing import Callable, Optional

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.lab.studies import statistics
from rlvr_jax.lab.studies.commands import fill
from rlvr_jax.runs import files

# operation on measures, unit by unit -> function of their values
COMBINED = {"-": np.subtract, "/": lambda a, b: a / b if np.all(b) else None,  # None if b has a 0
            "log10": np.log10}
# operation on all values of a measure in a study that crosses bases and examples -> function of f[B,E]
CROSSED = {f"variance of the {name}": lambda values_BxE, place=place: statistics.components(values_BxE)[place]
           for place, name in enumerate(("base", "example", "rest"))}
# number of measures that each operation takes
PARTS = {"-": 2, "/": 2, "log10": 1} | dict.fromkeys(CROSSED, 1)


def values_of(study: dict, known: Callable, repeated: list[dict]) -> dict:
    """`{arm: {measure: [value of each unit]}}`. `known(arm, name)` returns measured values, or None for a measure that
    is computed from others: unit by unit (COMBINED), or from one measure over all units, `repeated` (CROSSED)."""
    def compute(arm: str, name: str) -> list:
        values, definition = known(arm, name), study["measures"][name]
        if values is not None:
            return values
        operation, *parts = definition
        parts = [compute(arm, part) for part in parts]
        if operation in CROSSED:
            return over_bases(CROSSED[operation], parts[0], repeated)
        made = [None if any(value is None for value in each) else COMBINED[operation](*each) for each in zip(*parts)]
        return [None if value is None else np.asarray(value) for value in made]

    return {arm: {name: compute(arm, name) for name in study["measures"]} for arm in study["arms"]}


def over_bases(function: Callable, values: list, repeated: list[dict]) -> list:
    """The jackknife value of each unit's base model; None if values are missing. A cell's seeds are averaged first."""
    if any(value is None for value in values):
        return [None] * len(values)
    table = {}
    for unit, value in zip(repeated, values):
        table.setdefault(unit["base"], {}).setdefault(unit["example"], []).append(np.mean(value))
    by_base = statistics.jackknife(function, np.array([[np.mean(x) for x in row.values()] for row in table.values()]))
    return [np.array(dict(zip(table, by_base))[unit["base"]]) for unit in repeated]


def source_values(name: str, source: str, cell: dict) -> Optional[np.ndarray]:
    """A measure of one cell: a number f64[], or f64[P], one for each problem. None if its file or number is missing.

    Its `source` is "FILE.json: path.to.a.number" (or to a list, one for each problem), "FILE.jsonl: benchmark" (the
    accuracy on each problem of that benchmark, or of "all"), "FILE.jsonl: benchmark: column" (the mean of that column,
    or the share of rows in which a column of texts is not null), "RUN/metrics.jsonl: column" (its sum over all steps),
    or "{word}", a text of the arm that is a number or one of these. Raises UserError for a bad number or column.
    """
    file, _, path = fill(source, cell).partition(": ")
    if not path:
        try:
            return np.array(float(file))
        except ValueError:
            raise UserError(f"the study's measure {name}: {file!r} is no number, nor FILE: WHAT") from None
    file = pathlib.Path(cell["work"]) / file
    if not file.exists():  # the arm leaves out the command that writes it
        return None
    if file.name == "metrics.jsonl":
        return np.array(sum(row.get(path, 0) for _, row in files.read_lines(file)), float)
    if file.suffix == ".jsonl":
        (benchmark, _, column), found = path.partition(": "), {}
        for _, row in files.read_lines(file):
            if benchmark in (row["benchmark"], "all"):
                if column and column not in row:
                    raise UserError(f"the study's measure {name}: {file} has no {column!r}; it has {', '.join(row)}")
                value = row[column or "correct"]
                found.setdefault((row["benchmark"], row["problem"]), []).append(
                    value is not None if isinstance(value, str | None) else value)
        return np.array([np.mean(values) for values in found.values()])
    value, _ = looked_up(file, path)
    return None if value is None else np.array(value, float)


def changed(before: pathlib.Path, after: pathlib.Path, arms: list[str]) -> dict:
    """`{words: {"benchmark", "problem", "answer", "arms", "completions"}}`: the first problem that was wrong `before`
    and is right `after`, and the first with the opposite change. Both files have a completion for each problem."""
    pairs = [(old, new) for (_, old), (_, new) in zip(files.read_lines(before), files.read_lines(after))]
    wanted = {"The first problem that became right": False, "The first problem that became wrong": True}
    found = {words: next((pair for pair in pairs if pair[0]["correct"] is was and pair[1]["correct"] is not was), None)
             for words, was in wanted.items()}
    return {words: {key: pair[0][key] for key in ("benchmark", "problem", "answer")} | {
            "arms": arms, "completions": [row["completion"] for row in pair]} for words, pair in found.items() if pair}


def refuse_strangers(study: dict, cells: list[dict]) -> None:
    """Raises UserError for a measure whose path is in none of the existing files. A path may have the value null."""
    for name, source in study["measures"].items():
        places = [] if isinstance(source, list) else dict.fromkeys(
            (pathlib.Path(cell["work"]) / file, path) for cell in cells
            for file, _, path in [fill(source, cell).partition(": ")] if path and file.endswith(".json"))
        there = [place for place in places if place[0].is_file()]
        if there and all(looked_up(*place)[1] for place in there):  # usually the first file has the path
            raise UserError(f"the study's measure {name}: {looked_up(*there[0])[1]}")


def looked_up(file: pathlib.Path, path: str, content: Optional[dict] = None) -> tuple:
    """(value under a dotted path in a JSON file, or in its `content` if given, None if there is none; an error message
    if a key of the path is missing, else empty)."""
    value, message = files.read_json(file) if content is None else content, ""
    for key in path.split("."):
        if isinstance(value, dict) and value and key not in value:
            message = message or f"{file} has no {key!r} of {path!r} there; it has {', '.join(value)}"
        value = value.get(key) if isinstance(value, dict) else None
    return value, message
