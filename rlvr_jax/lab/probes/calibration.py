"""Stated confidences against what was right, for any completions that state one (RLCR, arXiv 2507.16806)."""

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import calibration
from rlvr_jax.lab.probes.rows import COLUMNS, Result, items_of
from rlvr_jax.runs.markdown import markdown_table

NEEDS = ("prompt", "completion", "correct")


def find(rows_by_file: dict[str, list[dict]]) -> Result:
    """The calibration of each file (`evaluation.calibration`). Raises UserError for a file without any confidence."""
    record = {"files": {name: calibration.calibration(rows) for name, rows in rows_by_file.items()}}
    silent = [name for name, summary in record["files"].items() if not summary]
    if silent:
        raise UserError(f"--probe=calibration: no completion of {', '.join(silent)} states a confidence")
    lines = [f"- {name}, {calibration.line(summary)}" for name, summary in record["files"].items()]
    table = markdown_table(["of", "confidence from", "to", "completions", "mean confidence", "share that was right"], [
        [name, part["from"], part["to"], part["n"], f"{part['confidence']:.3f}", f"{part['accuracy']:.3f}"]
        for name, summary in record["files"].items() for part in summary["bins"] if part["n"]])
    return Result(record, "\n".join([*lines, "", table, ""]), lambda sheet: calibration.panels(sheet, record["files"]),
                  items_of(rows_by_file, (*COLUMNS, "confidence", "correct")))
