"""The measures of a study: reads them from the files that its commands wrote, or computes them from other measures."""

import pathlib
from typing import Callable, Optional

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.lab.studies import statistics
from rlvr_jax.lab.studies.commands import fill
from rlvr_jax.report import figures, pages
from rlvr_jax.runs import files

# operation on values of measures in one unit (base model, example, seed) -> function of these values
COMBINED = {"-": np.subtract, "/": lambda a, b: a / b if np.all(b) else None,  # None if b has a 0
            "log10": np.log10}
# operation on all values of a measure in a study that crosses bases and examples -> function of f[B,E]
CROSSED = {f"variance of the {name}": lambda values_BxE, place=place: statistics.components(values_BxE)[place]
           for place, name in enumerate(("base", "example", "rest"))}
MOST_POINTS = 200  # points of a curve in the record
# number of measures that each operation takes
PARTS = {"-": 2, "/": 2, "log10": 1} | dict.fromkeys(CROSSED, 1)


def values_of(study: dict, known: Callable, repeated: list[dict]) -> dict:
    """`{arm: {measure: [value in each unit]}}` for the units `repeated`. `known(arm, measure)` returns measured values,
    or None for a measure to compute from others: in each unit (COMBINED), or from all values of a measure (CROSSED)."""
    def compute(arm: str, name: str) -> list:
        values, definition = known(arm, name), study["measures"][name]
        if values is not None:
            return values
        operation, *names = definition
        parts = [compute(arm, part) for part in names]
        if operation in CROSSED:
            return over_bases(CROSSED[operation], parts[0], repeated)
        return [None if any(x is None for x in each) else COMBINED[operation](*each) for each in zip(*parts)]

    return {arm: {name: compute(arm, name) for name in study["measures"]} for arm in study["arms"]}


def over_bases(function: Callable, values: list, repeated: list[dict]) -> list:
    """The jackknife pseudo-value of each unit's base model, or None for all units if a value is missing. Seeds with the
    same base model and example are averaged first. `function` is one of CROSSED."""
    if any(value is None for value in values):
        return [None] * len(values)
    table = {}  # {base: {example: [mean value of each seed]}}
    for unit, value in zip(repeated, values):
        table.setdefault(unit["base"], {}).setdefault(unit["example"], []).append(np.mean(value))
    by_base = statistics.jackknife(function, np.array([[np.mean(x) for x in row.values()] for row in table.values()]))
    return [dict(zip(table, by_base))[unit["base"]] for unit in repeated]


def source_values(name: str, source: str, cell: dict) -> Optional[np.ndarray]:
    """A measure of one cell: a number f64[], or f64[P], one for each problem. None if its file or number is missing.
    `source` is "FILE.json: path.to.a.number" (or to a list, one for each problem), "FILE.jsonl: benchmark" (accuracy on
    each problem of this benchmark, or of "all"), "FILE.jsonl: benchmark: column" (for each problem the mean of this
    column, or the share of texts that are not null), "RUN/metrics.jsonl: column" (the sum over all steps), or "{word}",
    a text in `cell` that is a number or such a source. Raises UserError for a bad number or column."""
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


def read_runs(study: dict, cells: dict) -> tuple[dict, dict]:
    """`{arm: {unit: content of summary.json}}` and `{arm: {unit: {metric: [steps, values]}}}` of the runs that `run` in
    [figure] of the study's file names, for the metrics that are its `curves`. `cells` is {(arm, unit): cell}."""
    figure, summaries, curves = study.get("figure", {}), {}, {}
    for (arm, unit), cell in cells.items() if figure.get("run") else ():
        run = pathlib.Path(cell["work"]) / fill(figure["run"], cell)
        if (run / "summary.json").is_file():
            summaries.setdefault(arm, {})[str(unit)] = files.read_json(run / "summary.json")
        rows = files.read_steps(run / "metrics.jsonl")
        for metric in figure.get("curves", []):
            if points := pages.evenly(list(zip(*figures.series(rows, metric))), MOST_POINTS):
                curves.setdefault(arm, {}).setdefault(str(unit), {})[metric] = [list(axis) for axis in zip(*points)]
    return summaries, curves


def changed(study: dict, cells: dict) -> dict:
    """`{what: {"benchmark", "problem", "answer", "arms", "completions"}}`: the first problem that is wrong with the
    control and right with an arm, in the arm's first unit, and the first with the opposite change. {} unless the
    study's file has `changed = {arm = "one", file = "FILE.jsonl"}`, and FILE a completion of each problem. `cells` is
    {(arm, unit): cell}."""
    asked, control = study.get("changed"), study.get("control")
    if not asked:
        return {}
    first = next(unit for arm, unit in cells if arm == asked["arm"])
    arms = [control, f"{asked['arm']}, seed {first}"]
    lines = [files.read_lines(pathlib.Path(cell["work"]) / fill(asked["file"], cell))
             for cell in (cells[control, first], cells[asked["arm"], first])]
    pairs = [(old, new) for (_, old), (_, new) in zip(*lines)]
    wanted = {"The first problem that became right": False, "The first problem that became wrong": True}
    found = {words: next((pair for pair in pairs if pair[0]["correct"] is was and pair[1]["correct"] is not was), None)
             for words, was in wanted.items()}
    return {words: {key: pair[0][key] for key in ("benchmark", "problem", "answer")} | {
            "arms": arms, "completions": [row["completion"] for row in pair]} for words, pair in found.items() if pair}


def refuse_missing_paths(study: dict, cells: list[dict]) -> None:
    """Raises UserError for a measure whose path is in none of its cells' existing JSON files. The value may be null."""
    for name, source in study["measures"].items():
        places = [] if isinstance(source, list) else dict.fromkeys(
            (pathlib.Path(cell["work"]) / file, path) for cell in cells
            for file, _, path in [fill(source, cell).partition(": ")] if path and file.endswith(".json"))
        present = [(file, path) for file, path in places if file.is_file()]
        # `looked_up` returns (value, message); the message is empty if the path exists, usually in the first file.
        if present and all(looked_up(file, path)[1] for file, path in present):
            raise UserError(f"the study's measure {name}: {looked_up(*present[0])[1]}")


def looked_up(file: pathlib.Path, path: str, content: Optional[dict] = None) -> tuple:
    """(value, message): the value under a dotted path in a JSON file, or in its `content` if given, None if there is no
    such value; and a message on the first key of the path that is missing, empty if none is."""
    value, message = files.read_json(file) if content is None else content, ""
    for key in path.split("."):
        if isinstance(value, dict) and value and key not in value:
            message = message or f"{file} has no {key!r} of {path!r} there; it has {', '.join(value)}"
        value = value.get(key) if isinstance(value, dict) else None
    return value, message
