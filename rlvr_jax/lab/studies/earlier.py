"""Results of an earlier start of a study, from its record: its runs may be lost, as on a machine that was rented."""

import hashlib
import json
import pathlib
from typing import Callable

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.lab.studies import records
from rlvr_jax.lab.studies.commands import units


def read(path: str, name: str, study: dict) -> dict:
    """The record in the file `path`; {} without a path. UserError if it is not of the study `name` (that of --quick has
    another name), or if no arm of it has the study's present recipe."""
    if not path:
        return {}
    if not pathlib.Path(path).is_file():
        raise UserError(f"--earlier={path}: no such file; give the STUDY.json that an earlier start wrote")
    record = records.read(pathlib.Path(path))
    if record.get("study") != name or not same_arms(record, study):
        raise UserError(f"--earlier={path}: no arm of {name} was run and measured there as the study's file has it; "
                        "leave --earlier out, and all is run again")
    return record


def recipes(study: dict) -> dict[str, str]:
    """`{arm: hash}` of the commands of each arm, and of the sources of all measures, as the study's file has them."""
    sources = {name: source for name, source in study["measures"].items() if isinstance(source, str)}
    parts = {arm: [study["commands"], keys | {"seeds": None}, sources] for arm, keys in study["arms"].items()}
    return {arm: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:12]
            for arm, part in parts.items()}


def same_arms(record: dict, study: dict) -> list[str]:
    """The arms that the record has by the same recipe as the study's file has now."""
    return [arm for arm, recipe in recipes(study).items() if record.get("recipes", {}).get(arm) == recipe]


def kept(record: dict, study: dict, lines_of: dict, commands: Callable) -> dict:
    """`{(arm, unit's label): {measure: value}}`: of the asked cells, those that the record has by the same commands. A
    value is f64[P], over problems, if the record has these, else f64[]. `lines_of` is {(arm, label): commands};
    `commands(arm, unit)` returns those of a recorded unit. A seed with another example now has other commands."""
    made = {}
    for arm in same_arms(record, study):
        for i, unit in enumerate(record.get("units") or units(study, record["seeds"])):
            values = {name: summary.get("of_problems", summary["seeds"])[i]
                      for name, summary in record["measures"][arm].items()}
            if any(value is not None for value in values.values()) and (lines := commands(arm, unit)):
                made[arm, *lines] = {name: None if value is None else np.array(value) for name, value in values.items()}
    return {key: made[key[0], *lines] for key, lines in lines_of.items() if (key[0], *lines) in made}


def joined(kept_cells: dict, record: dict, new: dict) -> dict:
    """`{arm: {unit's label: content}}`: of the kept cells what `record` has of them, and all of `new`."""
    of_kept = {(arm, str(unit)) for arm, unit in kept_cells}
    both = {arm: {unit: content for unit, content in record.get(arm, {}).items() if (arm, unit) in of_kept}
            | new.get(arm, {}) for arm in [*record, *new]}
    return {arm: by_unit for arm, by_unit in both.items() if by_unit}
