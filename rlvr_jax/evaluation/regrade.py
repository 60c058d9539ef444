"""Grades saved completions again, by another grader or answer format, without sampling."""

import json
import pathlib
import time

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.grading import extract, grade, graders
from rlvr_jax.runs import files
from rlvr_jax.runs.log import progress

ROWS_PER_CALL = 512  # rows between updates of the progress bar


class GradeConfig(Config):
    """Grading of saved completions, without sampling them again."""

    completions: str = flag("", "JSONL file of rows with a completion and an answer, such as completions.jsonl of "
                            "an evaluation")
    out: str = flag("", "JSONL file for the same rows with correct, extracted, graded_by and timed_out; may be the "
                    "file in --completions")
    answer_format: str = flag("lenient", "where a completion's answer is", lambda: extract.EXTRACTORS)
    grader: str = flag("math", "how answers are compared; math: as mathematics; original: as in the released reward of "
                       "One-Shot-RLVR, quirks included, which always takes the last \\boxed{}", lambda: graders.GRADERS)


def regrade(config: GradeConfig) -> dict:
    """Grades the rows of `config.completions` again and writes them, other columns unchanged, to `config.out`.
    Both may be the same file: it is replaced in one step when all rows are graded. Returns "n", "correct" and
    "timed_out" (numbers of rows), "graded_by" and "seconds". UserError for a row without a completion, or no rows."""
    if not config.out:
        raise UserError("--out is required: the JSONL file for the graded rows")
    rows, graded_by = read_completions(config.completions), grade.describe_grader(config.answer_format, config.grader)
    start, verdicts = time.perf_counter(), []
    with progress(len(rows), what="grade") as bar:
        for first in range(0, len(rows), ROWS_PER_CALL):
            batch = rows[first : first + ROWS_PER_CALL]
            verdicts += grade.grade_texts([row["completion"] for row in batch], [str(row["answer"]) for row in batch],
                                          config.answer_format, config.grader)
            bar.update(len(batch))
    seconds = time.perf_counter() - start
    out = pathlib.Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row | verdict._asdict() | {"graded_by": graded_by}, ensure_ascii=False) + "\n"
                   for row, verdict in zip(rows, verdicts))
    files.write_whole(out, text.encode("utf-8", "backslashreplace").decode())  # UTF-8 cannot encode lone surrogates
    return {"n": len(rows), "correct": sum(verdict.correct for verdict in verdicts),
            "timed_out": sum(verdict.timed_out for verdict in verdicts), "graded_by": graded_by, "seconds": seconds}


def read_completions(path: str) -> list[dict]:
    """Reads rows that have a completion and an answer. Raises UserError, naming file and line, for any other row."""
    file, rows = pathlib.Path(path), []
    if not file.is_file():
        raise UserError(f"--completions={path}: no such file; it takes a JSONL file of rows with completion and answer")
    for number, row in files.read_lines(file, files.FROM_COPY):
        if not isinstance(row.get("completion"), str) or type(row.get("answer")) not in (str, int, float):
            raise UserError(f"{path}, line {number}: needs a completion (text) and an answer (text or number); it has "
                            + ", ".join(row))
        rows.append(row)
    if not rows:
        raise UserError(f"{path} holds no completions")
    return rows
