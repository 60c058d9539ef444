"""Stated confidences against what was right, for any completions that state one (RLCR, arXiv 2507.16806)."""

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import calibration
from rlvr_jax.probes.rows import Found
from rlvr_jax.runs.markdown import markdown_table

NEEDS = ("prompt", "completion", "correct")


def find(kept: dict[str, list[dict]]) -> Found:
    """What `evaluation.calibration` says of each file. Raises UserError for a file in which no confidence is stated."""
    record = {"files": {name: calibration.calibration(rows) for name, rows in kept.items()}}
    silent = [name for name, one in record["files"].items() if not one]
    if silent:
        raise UserError(f"--probe=calibration: no completion of {', '.join(silent)} states a confidence")
    keys = ("benchmark", "problem", "sample", "prompt", "answer", "completion", "confidence", "correct")
    items = [{"file": name} | {key: row[key] for key in keys if key in row} for name, rows in kept.items()
             for row in rows]
    lines = [f"- {name}, {calibration.line(one)}" for name, one in record["files"].items()]
    table = markdown_table(["of", "confidence from", "to", "completions", "mean confidence", "share that was right"], [
        [name, part["from"], part["to"], part["n"], f"{part['confidence']:.3f}", f"{part['accuracy']:.3f}"]
        for name, one in record["files"].items() for part in one["bins"] if part["n"]])
    return Found(record, "\n".join([*lines, "", table, ""]), lambda sheet: calibration.panels(sheet, record["files"]),
                 items)
