"""Data sets as one record: JSONL in the layouts that maths benchmarks come in, parquet in that of One-Shot-RLVR."""

import dataclasses
import pathlib
import re
from typing import Optional

from rlvr_jax.errors import UserError
from rlvr_jax.grading import extract, grade
from rlvr_jax.records import Problem
from rlvr_jax.runs.files import read_lines


def _clean_answer(answer) -> str:
    r"""What follows GSM8K's ####; 43.0 is 43, and ASDiv's 9 (apples) is 9\text{ apples}, a number with a unit."""
    text = str(answer).rsplit("####", 1)[-1].strip()
    if with_unit := _WITH_UNIT.fullmatch(text):
        return "{}\\text{{ {}}}".format(*with_unit.groups())
    return text[:-2] if text.endswith(".0") else text


def _join_answers(answers) -> str:
    """OlympiadBench's list of LaTeX answers as one text."""
    return ", ".join(str(answer).strip().strip("$") for answer in (answers if isinstance(answers, list) else [answers]))


def _read_boxed(solution) -> Optional[str]:
    return extract.EXTRACTORS["boxed"](str(solution))


_WITH_UNIT = re.compile(r"(-?\d[\d,./]*) ?\(([a-zA-Z]{2}[a-zA-Z .'/-]*|[gmslh])\)")  # 5 (x) is a product

# One row a layout: the columns of the question (joined by a space), the column of the answer, how to read that.
LAYOUTS = [
    (("body", "question"), "answer", _clean_answer),  # ASDiv
    (("problem",), "answer", _clean_answer),  # MATH-500, AIME, AMC
    (("question",), "answer", _clean_answer),  # GSM8K, AIME, AMC, or one's own
    (("Body", "Question"), "Answer", _clean_answer),  # SVAMP
    (("input",), "target", _clean_answer),  # MAWPS
    (("question",), "final_answer", _join_answers),  # OlympiadBench
    (("problem",), "solution", _read_boxed),  # Minerva Math: the last \boxed{} of the solution
]
# Columns that say where a problem is from, of what kind it is, or how it is solved (in any case): a question is whole
# without them. Text in any other column may be a part of the question, so a file that has it is refused.
ASIDE = frozenset("""
    ability answer_type author category competition data_source dataset difficulty domain equation error extra_info
    formula grade id idx index is_multiple_answer language level license modality question_concat question_type
    rationale solution solution_type source split steps subfield subject tags topic type unique_id unit url uuid year
    """.split())


def load(path: str, ignore_columns: str = "") -> list[Problem]:
    """Problems of a JSONL or parquet file, row by row; `prompt` is the bare question.

    Columns named in `ignore_columns`, joined by commas, are read as if they were not there. Raises UserError naming
    the file, the line or row, and the layouts that can be read, or the columns of text that none of them reads; for an
    empty question, and for one with two different answers.
    """
    ignored = set(ignore_columns.split(","))
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"no problem file {path}; --problems takes a family such as arithmetic (a row of "
                        "rlvr_jax/tasks/families.py), a JSONL file or a .parquet file")
    unit, read, rows = (("row", _read_one_shot, enumerate(_parquet_rows(file))) if file.suffix == ".parquet" else
                        ("line", _read_layouts, read_lines(file)))
    problems = [read({name: x for name, x in row.items() if name not in ignored}, f"{file}, {unit} {number}",
                     {"file": str(file), unit: number}) for number, row in rows]
    if not problems:
        raise UserError(f"{path} holds no problems")
    earlier = {}
    for problem in problems:
        if not problem.question.strip():
            raise UserError(f"{file}, {unit} {problem.meta[unit]}: the question is empty; write it, or remove the row")
        first = earlier.setdefault(problem.question, problem)
        if first.answer != problem.answer and not grade.at_once("math", problem.answer, first.answer):
            raise UserError(f"{file}, {unit}s {first.meta[unit]} and {problem.meta[unit]}: the same question with the "
                            f"answers {first.answer!r} and {problem.answer!r}; correct one of them, or remove it")
    return problems


def merge(problems: list[Problem]) -> list[Problem]:
    """Each distinct problem once, in order, with the number of its `copies`, and `meta["index"]` that tells them apart.

    The index is the file's own where that has one for each; otherwise the place in the merged list, from 0. Rows with
    different indices of their own are not copies: the published pool counts its problems that way.
    """
    groups = {}
    for problem in problems:
        groups.setdefault((problem.prompt, problem.answer, problem.meta.get("index")), []).append(problem)
    own = {index for _, _, index in groups}
    numbered = None not in own and len(own) == len(groups)
    return [dataclasses.replace(same[0], copies=len(same), meta=same[0].meta | {"index": index if numbered else place})
            for place, ((_, _, index), same) in enumerate(groups.items())]


def _read_layouts(row: dict, where: str, meta: dict) -> Problem:
    for questions, column, read in LAYOUTS:
        if all(row.get(name) is not None for name in (column, *questions)):
            several = row[column] if read is _join_answers and isinstance(row[column], list) else [row[column]]
            for name, x in [*((name, row[name]) for name in questions), *((column, x) for x in several)]:
                _check_text(x, name, where)
            question, answer = " ".join(str(row[name]).strip() for name in questions), read(row[column])
            if not answer:
                raise UserError(f"{where}: no answer in {column}"
                                + (", which needs a \\boxed{}" if read is _read_boxed else ""))
            _check_read(row, {column, *questions}, where)
            return Problem(question, answer, question, meta | ({"steps": row["steps"]} if _is_steps(row) else {}))
    expected = "; ".join(f"{', '.join(questions)} and {column}" for questions, column, _ in LAYOUTS)
    has = ", ".join(f"{name} (null)" if value is None else name for name, value in row.items())
    raise UserError(f"{where}: needs one of these sets of columns: {expected}; it has {has}")


def _check_text(x, name: str, where: str) -> None:
    """Raises UserError for what is neither a text nor a number: as text it would be none that a model answers with."""
    if type(x) not in (str, int, float):  # True is an int, too
        raise UserError(f"{where}: {name} is {str(x)[:60]}, a {type(x).__name__}: write it as a text or a number")


def _check_read(row: dict, read: set, where: str) -> None:
    """Raises UserError if the row has text in columns that are neither `read` nor ASIDE."""
    unread = [name for name, x in row.items() if name not in read and name.lower() not in ASIDE and _has_text(x)]
    if unread:
        raise UserError(f"{where}: no known layout reads the text in {', '.join(unread)}; where the question is not "
                        "whole without it, put it there; else leave it out with "
                        f"--ignore_columns={','.join(unread)}")


def _is_steps(row: dict) -> bool:
    """Whether the row has an expert's solution, a list of texts, in the column steps."""
    steps = row.get("steps")
    return isinstance(steps, list) and all(isinstance(step, str) and step.strip() for step in steps)


def _has_text(x) -> bool:
    """Whether there is a letter in a column: in a string, or in strings of a list or record."""
    if isinstance(x, (list, dict)):
        return any(map(_has_text, x.values() if isinstance(x, dict) else x))
    return isinstance(x, str) and any(map(str.isalpha, x))


def _parquet_rows(file: pathlib.Path) -> list[dict]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{file}: parquet is read with pyarrow: pip install 'rlvr_jax[real]'") from None
    try:
        return parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # the library raises each of them for damaged files
        raise UserError(f"{file} cannot be read as parquet ({error}): copy it again") from None


def _read_one_shot(row: dict, where: str, meta: dict) -> Problem:
    """Questions and labels stay as they are, spaces and the row's own instruction included. An empty label is kept as
    well, though nothing equals it: the published pool has one (index 265)."""
    match row:
        case {"prompt": [{"role": "user", "content": str(question)}], "reward_model": {"ground_truth": answer}} \
                if answer is not None:
            _check_read(row, {"prompt", "reward_model"}, where)
            _check_text(answer, "reward_model.ground_truth", where)
            match row:
                case {"extra_info": {"index": int() | str() as index}}:
                    meta["index"] = index
            return Problem(question, str(answer), question, meta)
    shown = ", ".join(f"{name}={str(value)[:60]!r}" for name, value in row.items())
    raise UserError(f"{where}: needs prompt (a list with one message, of the user) and "
                    f"reward_model.ground_truth; it has {shown}")
