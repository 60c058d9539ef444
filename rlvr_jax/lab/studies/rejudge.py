"""Judges records again by the rules that their studies' files have now, without running a command.

A record keeps the value of every seed, so that intervals and verdicts follow from it. The words of a page stay those of
the record; where the rules or their verdicts have changed, it says that it was judged again. The figure is drawn again
where it has no curves, which are in the runs alone.
"""

import json
import pathlib
from typing import Optional

import numpy as np

from rlvr_jax.lab.studies import commands, design, records, study, study_figure
from rlvr_jax.runs import files


def folder(results: pathlib.Path) -> list[pathlib.Path]:
    """Writes record, page and figure anew of each record that is judged differently now; returns these records."""
    changed = []
    for path in sorted(results.glob("*.json")):
        record = records.read(path)
        new = again(record) if record else None
        if new and new != record:
            files.write_json(path, new)
            files.write_whole(path.with_suffix(".md"), records.markdown(new))
            content = study.load(new["study"])[1]
            if not content.get("figure", {}).get("curves"):
                study_figure.write(content, {}, new["measures"], path.with_suffix(".png"))
            changed.append(path)
    return changed


def again(record: dict) -> Optional[dict]:
    """The record as its study's file has it judged now; None without a file, or where it asks for other arms or looks:
    its rules are then the prediction of runs that are still to come."""
    if not (study.FOLDER / f"{record['study']}.toml").is_file():
        return None
    content = study.load(record["study"])[1]
    if not content["arms"].keys() <= record["measures"].keys() or content.get("looks") != record.get("looks"):
        return None
    measured = study.measure(content, values(record, content), repeated(record))
    if len(record["seeds"]) == 1:  # its intervals are over problems, which the record has not
        measured = {arm: by_name | {name: record["measures"][arm][name] for name in by_name
                                    if name in record["measures"][arm]} for arm, by_name in measured.items()}
    kept = {key: record[key] for key in (*records.WORDS, "question", "prediction") if key in record and key != "table"}
    new = json.loads(json.dumps(study.plain(record | study.written(content, measured, repeated(record)) | kept)))
    return new | ({} if new["rules"] == record["rules"] else {"judged_again": True})


def repeated(record: dict) -> list[dict]:
    """The base, example and seed of each column of a record; one of before has them all by its seed."""
    return record.get("units") or [{"base": seed, "example": seed, "seed": seed} for seed in record["seeds"]]


def values(record: dict, content: dict) -> dict:
    """`{arm: {measure: a value for each seed}}` of a study's file from a record. A measure that the record lacks is
    made of others, or is one of another arm: its file and path are the same."""
    cells = {(arm, seed): commands.variables(content, {"work": "", "data": "", "arm": arm} | {
        key: str(value) for key, value in unit.items()})
        for arm in design.ran(content) for seed, unit in zip(record["seeds"], repeated(record))}
    by_text = {}
    for (arm, seed), cell in cells.items():
        for name, measure in record["measures"][arm].items():
            source = content["measures"].get(name)
            if isinstance(source, str):
                by_text[commands.fill(source, cell)] = measure["seeds"][record["seeds"].index(seed)]

    def known(arm: str, name: str) -> Optional[list]:
        source = content["measures"][name]
        if name in record["measures"][arm]:
            found = record["measures"][arm][name]["seeds"]
        elif isinstance(source, list):
            return None
        else:
            found = [by_text.get(commands.fill(source, cells[arm, seed])) for seed in record["seeds"]]
        return [None if value is None else np.array(value) for value in found]

    return design.found(content, known, repeated(record))
