"""Results of an earlier start of a study, from its record: its runs may be lost, as on a machine that was rented."""

import hashlib
import json
import pathlib
from typing import Callable, Iterator

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.lab.studies import records
from rlvr_jax.lab.studies.commands import units


def read(path: str, name: str, study: dict) -> dict:
    """The record in the file `path`; {} without a path. Raises UserError if it is another study's, lacks a measure, or
    was made by other commands in all arms."""
    if not path:
        return {}
    if not pathlib.Path(path).is_file():
        raise UserError(f"--earlier={path}: no such file; give the STUDY.json that an earlier start wrote")
    record = records.read(pathlib.Path(path))
    if record.get("study") != name:
        raise UserError(f"--earlier={path}: not a record of the study {name}")
    lacks = [measure for measure, source in study["measures"].items() if isinstance(source, str)
             for measures in record["measures"].values() if measure not in measures]
    if lacks or not same_arms(record, study):
        what = f"it has no {lacks[0]!r}" if lacks else "no arm was made by the commands that the study's file has now"
        raise UserError(f"--earlier={path}: {what}; leave --earlier out, and all is run again")
    return record


def recipes(study: dict) -> dict[str, str]:
    """`{arm: hash}` of the commands of each arm, as the study's file has them."""
    parts = {arm: [study["commands"], keys | {"seeds": None}] for arm, keys in study["arms"].items()}
    return {arm: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:12]
            for arm, part in parts.items()}


def same_arms(record: dict, study: dict) -> list[str]:
    """The arms that the record has by the same commands as the study's file has now."""
    return [arm for arm, recipe in recipes(study).items() if record.get("recipes", {}).get(arm) == recipe]


def results(record: dict, study: dict) -> Iterator[tuple[str, dict, dict]]:
    """Yields (arm, unit, {measure: value}) of each arm and unit that the record has: a value for each problem, f64[P],
    if the record has these, else a number f64[]. A run of which the record has no value at all is left out."""
    for i, unit in enumerate(record.get("units") or units(study, record.get("seeds", []))):
        for arm, measures in record.get("measures", {}).items():
            values = {name: summary.get("of_problems", summary["seeds"])[i] for name, summary in measures.items()}
            if any(value is not None for value in values.values()):
                yield arm, unit, {name: None if value is None else np.array(value) for name, value in values.items()}


def kept(record: dict, study: dict, lines_of: dict, commands: Callable) -> dict:
    """`{(arm, unit's label): {measure: value}}`: of the asked cells, those whose commands are word for word the ones by
    which the record's were made. `lines_of` is {(arm, label): commands of this cell}; `commands(arm, unit)` returns
    those of another. A seed that now has another example or base model has other commands, so it is not among them.
    The code that ran the commands may be of another commit: the record names it."""
    same = same_arms(record, study)
    made = {(arm, *lines): values for arm, unit, values in results(record, study)
            if arm in same and (lines := commands(arm, unit))}
    return {key: made[key[0], *lines] for key, lines in lines_of.items() if (key[0], *lines) in made}


def joined(cells: dict, record: dict, new: dict) -> dict:
    """{arm: {unit's label: content}} in the order of `cells`: from `new` or, where that has none, from `record`."""
    both = {}
    for arm, unit in cells:
        if content := new.get(arm, {}).get(str(unit)) or record.get(arm, {}).get(str(unit)):
            both.setdefault(arm, {})[str(unit)] = content
    return both
