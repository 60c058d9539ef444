"""The measures of a study: reads them from the files that its commands wrote, or computes them from other measures."""

import pathlib
from typing import Callable, Optional

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.lab.studies import statistics
from rlvr_jax.lab.studies.commands import fill
from rlvr_jax.report import figures, pages
from rlvr_jax.runs import files

# operation that combines the values of one or two measures in one unit (base model, example, seed) -> its function
COMBINED = {"-": np.subtract, "/": lambda a, b: a / b if np.all(b) else None,  # None if b has a 0
            "log10": np.log10}
# operation on all values of a measure, f[B,E] by base and example, in a study that crosses them -> its function
CROSSED = {f"variance of the {name}": lambda values_BxE, i=i: statistics.components(values_BxE)[i]
           for i, name in enumerate(("base", "example", "rest"))}
MOST_POINTS = 200  # points of a curve in the record
# number of measures that each operation takes
PARTS = {"-": 2, "/": 2, "log10": 1} | dict.fromkeys(CROSSED, 1)


def values_of(study: dict, known: Callable, repeated: list[dict]) -> dict:
    """`{arm: {measure: [value, or None, in each unit]}}` for the units `repeated`. `known(arm, measure)` returns such a
    list, or None for a measure that the study's file defines as [operation, other measures ...]: that is computed."""
    def compute(arm: str, name: str) -> list:
        values = known(arm, name)
        if values is not None:
            return values
        operation, *names = study["measures"][name]
        operands = [compute(arm, operand) for operand in names]  # a list of values for each of the other measures
        if operation in CROSSED:
            return over_bases(CROSSED[operation], operands[0], repeated)
        return [None if any(x is None for x in unit) else COMBINED[operation](*unit) for unit in zip(*operands)]

    return {arm: {name: compute(arm, name) for name in study["measures"]} for arm in study["arms"]}


def over_bases(function: Callable, values: list, repeated: list[dict]) -> list:
    """For each unit the jackknife pseudo-value (`statistics.jackknife`) of its base model, or None for all units if a
    value is missing. Seeds with the same base model and example are averaged first. `function` is one of CROSSED."""
    if any(value is None for value in values):
        return [None] * len(values)
    table = {}  # {base: {example: [mean value of each seed]}}
    for unit, value in zip(repeated, values):
        table.setdefault(unit["base"], {}).setdefault(unit["example"], []).append(np.mean(value))
    values_BxE = np.array([[np.mean(seeds) for seeds in row.values()] for row in table.values()])
    by_base = dict(zip(table, statistics.jackknife(function, values_BxE)))
    return [by_base[unit["base"]] for unit in repeated]


def source_values(name: str, source: str, cell: dict) -> Optional[np.ndarray]:
    """The measure `name` in one cell: a number f64[], or f64[P], one for each problem. None if its file or number is
    missing. `source` is "FILE.json: path.to.a.number" (or to a list of a number for each problem), "FILE.jsonl:
    benchmark" (accuracy on each problem of this benchmark, or of "all"), "FILE.jsonl: benchmark: column" (for each
    problem the mean of the column or, if it has texts, the share that is not null), "RUN/metrics.jsonl: column" (the
    sum over all steps), or "{word}", a text in `cell` that is a number or such a source. UserError for a bad one."""
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
        benchmark, _, column = path.partition(": ")
        by_problem = {}  # {(benchmark, problem): [value of each row]}
        for _, row in files.read_lines(file):
            if benchmark in (row["benchmark"], "all"):
                if column and column not in row:
                    raise UserError(f"the study's measure {name}: {file} has no {column!r}; it has {', '.join(row)}")
                value = row[column or "correct"]
                by_problem.setdefault((row["benchmark"], row["problem"]), []).append(
                    value is not None if isinstance(value, str | None) else value)
        return np.array([np.mean(values) for values in by_problem.values()])
    value, _ = looked_up(file, path)
    return None if value is None else np.array(value, float)


def read_runs(study: dict, cells: dict) -> tuple[dict, dict]:
    """(`{arm: {unit: content of summary.json}}`, `{arm: {unit: {metric: [steps, values]}}}`) of the runs that `run` in
    [figure] of the study's file names, for the metrics in its `curves`. `cells` is {(arm, label of the unit): cell}."""
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
    control and right with an arm, in the arm's first unit, and the first with the opposite change. "arms" and
    "completions" are pairs of texts, of the control and of the arm. {} unless the study's file has `changed = {arm =
    "ARM", file = "FILE.jsonl"}`, and both were run; FILE has a row for each problem. `cells` is {(arm, unit): cell}."""
    asked, control = study.get("changed"), study.get("control")
    first = next((unit for arm, unit in cells if asked and arm == asked["arm"]), None)
    if (control, first) not in cells:
        return {}
    arms = [control, f"{asked['arm']}, seed {first}"]
    before, after = (files.read_lines(pathlib.Path(cell["work"]) / fill(asked["file"], cell))
                     for cell in (cells[control, first], cells[asked["arm"], first]))
    pairs, changes = [(old, new) for (_, old), (_, new) in zip(before, after)], {}  # (rows of control and arm)
    for what, was in (("The first problem that became right", False), ("The first problem that became wrong", True)):
        changed_pairs = (pair for pair in pairs if pair[0]["correct"] is was and pair[1]["correct"] is not was)
        if pair := next(changed_pairs, None):
            changes[what] = {key: pair[0][key] for key in ("benchmark", "problem", "answer")} | {
                "arms": arms, "completions": [row["completion"] for row in pair]}
    return changes


def refuse_missing_paths(study: dict, cells: list[dict]) -> None:
    """Raises UserError for a measure whose path is in none of its cells' existing JSON files. The value may be null."""
    for name, source in study["measures"].items():
        filled = [] if isinstance(source, list) else dict.fromkeys(
            (cell["work"], *fill(source, cell).partition(": ")) for cell in cells)
        present = [(pathlib.Path(work) / file, path) for work, file, _, path in filled
                   if path and file.endswith(".json") and (pathlib.Path(work) / file).is_file()]
        # `looked_up` returns (value, message); the message is empty if the path exists, usually in the first file.
        if present and all(looked_up(file, path)[1] for file, path in present):
            raise UserError(f"the study's measure {name}: {looked_up(*present[0])[1]}")


def looked_up(file: pathlib.Path, path: str, content: Optional[dict] = None) -> tuple:
    """(value, message): the value at a dotted path "KEY.KEY" in a JSON file, or in its `content` if given, or None; and
    a message on the first key of the path that an object of the file lacks, or ""."""
    value, message = files.read_json(file) if content is None else content, ""
    for key in path.split("."):
        if isinstance(value, dict) and value and key not in value:
            message = message or f"{file} has no {key!r} of {path!r} there; it has {', '.join(value)}"
        value = value.get(key) if isinstance(value, dict) else None
    return value, message
