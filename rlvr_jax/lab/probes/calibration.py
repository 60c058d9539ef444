"""How well the confidences that completions state match their correctness (RLCR, arXiv 2507.16806)."""

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import calibration
from rlvr_jax.lab.probes.rows import COLUMNS, Result, make_items, read_files
from rlvr_jax.runs.markdown import markdown_table

NEEDS = ("prompt", "completion", "correct")  # columns that each row must have
CONTROLS = {"constant": "the mean accuracy of --fit_on for every confidence",
            "post_hoc": "confidences mapped by isotonic regression on --fit_on"}  # keys of `control_scores`


def probe_calibration(rows_by_file: dict[str, list[dict]], fit_on: str = "") -> Result:
    """Computes the calibration of each file of completions, given as {name: rows} (`evaluation.calibration`). `fit_on`
    may name a file of completions of other problems: the two CONTROLS are fitted on it, and then scored on each file.
    Raises UserError for a file without confidences, and if `fit_on` has a problem of another file."""
    [fit_rows] = read_files([fit_on], NEEDS, "calibration").values() if fit_on else [[]]
    record = {"files": {name: calibration.summarise_calibration(rows) for name, rows in rows_by_file.items()}}
    silent = [name for name, summary in record["files"].items() if not summary]  # files that state no confidence
    if silent or (fit_rows and not calibration.summarise_calibration(fit_rows)):
        raise UserError(f"--probe=calibration: no completion of {', '.join(silent) or fit_on} states a confidence")
    lines = []
    for name, summary in record["files"].items():
        lines.append(f"- {name}, {calibration.format_calibration(summary)}")
        if fit_rows:
            if shared := {row["prompt"] for row in rows_by_file[name]} & {row["prompt"] for row in fit_rows}:
                raise UserError(f"--fit_on={fit_on} has {len(shared)} of the problems that are judged: give "
                                "completions of another split, as scripts.evaluate --heldout_split=dev makes them")
            summary |= calibration.control_scores(rows_by_file[name], fit_rows)
            lines += [f"- {name}, {what}: {calibration.format_scores(summary[key])}" for key, what in CONTROLS.items()]
    table = markdown_table(["of", "confidence from", "to", "completions", "mean confidence", "share that was right"], [
        [name, each["from"], each["to"], each["n"], f"{each['confidence']:.3f}", f"{each['accuracy']:.3f}"]
        for name, summary in record["files"].items() for each in summary["bins"] if each["n"]])
    return Result(record, "\n".join([*lines, "", table, ""]),
                  lambda sheet: calibration.draw_reliability(sheet, record["files"]),
                  make_items(rows_by_file, (*COLUMNS, "confidence", "correct")), {"correct": "right"})
