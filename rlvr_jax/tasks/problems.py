"""Reads problems from files: JSONL with the columns of maths benchmarks, and parquet with those of One-Shot-RLVR."""

import dataclasses
import pathlib
import re
from typing import Optional

from rlvr_jax.errors import UserError
from rlvr_jax.grading import extract, grade
from rlvr_jax.records import Problem
from rlvr_jax.runs.files import read_lines


def _clean_answer(answer) -> str:
    r"""The answer as text: what follows a "####". "43.0" becomes "43", and "9 (apples)" becomes "9\text{ apples}"."""
    text = _WITH_UNIT.sub(r"\1\\text{ \2}", str(answer).rsplit("####", 1)[-1].strip())
    return text[:-2] if text.endswith(".0") else text


def _join_answers(answers) -> str:
    """OlympiadBench's list of LaTeX answers as one text, joined by commas."""
    return ", ".join(str(answer).strip().strip("$") for answer in (answers if isinstance(answers, list) else [answers]))


def _read_boxed(solution) -> Optional[str]:
    r"""The content of the last \boxed{} of a solution; None without one."""
    return extract.EXTRACTORS["boxed"](str(solution))


_WITH_UNIT = re.compile(r"^(-?\d[\d,./]*) ?\(([a-zA-Z]{2}[a-zA-Z .'/-]*|[gmslh])\)\Z")  # the x in "5 (x)" is no unit
# (columns of the question, whose texts are joined by spaces; column of the answer; function that returns the answer's
# text). A row is read by the first layout whose columns it has.
LAYOUTS = [
    (("body", "question"), "answer", _clean_answer),  # ASDiv
    (("problem",), "answer", _clean_answer),  # MATH-500, AIME, AMC
    (("question",), "answer", _clean_answer),  # GSM8K, AIME, AMC, or one's own
    (("Body", "Question"), "Answer", _clean_answer),  # SVAMP
    (("input",), "target", _clean_answer),  # MAWPS
    (("question",), "final_answer", _join_answers),  # OlympiadBench
    (("problem",), "solution", _read_boxed),  # Minerva Math
]
# Columns, in lower case, that a question is complete without: they tell its source, kind or solution. Text in any other
# column may belong to the question, so `load` refuses a file that has such text.
ASIDE = frozenset("""
    ability answer_type author category competition data_source dataset difficulty domain equation error extra_info
    formula grade id idx index is_multiple_answer language level license modality question_concat question_type
    rationale solution solution_type source split steps subfield subject tags topic type unique_id unit url uuid year
    """.split())


def load(path: str, ignore_columns: str = "") -> list[Problem]:
    """Reads the problems of a JSONL or parquet file, one per row. `prompt` is the question. `meta` has "file" and
    "line" or "row". `ignore_columns` names columns to skip, joined by commas. Raises UserError, naming file and line,
    for an unknown layout, text in columns that the layout lacks, an empty question, and a question with two answers."""
    ignored = set(ignore_columns.split(","))
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"no problem file {path}{', but a directory' * file.is_dir()}; --problems (or --heldout) takes "
                        "a family such as arithmetic (a row of rlvr_jax/tasks/families.py), a JSONL or a .parquet file")
    if file.suffix == ".parquet":
        unit, read_row, rows = "row", _read_one_shot_row, enumerate(_parquet_rows(file))
    else:
        unit, read_row, rows = "line", _read_benchmark_row, read_lines(file)
    rows = ((number, {name: x for name, x in row.items() if name not in ignored}) for number, row in rows)
    problems = [read_row(row, f"{file}, {unit} {number}", {"file": str(file), unit: number}) for number, row in rows]
    if not problems:
        raise UserError(f"{path} holds no problems")
    earlier = {}  # question -> first problem that asks it
    for problem in problems:
        if not problem.question.strip():
            raise UserError(f"{file}, {unit} {problem.meta[unit]}: the question is empty; write it, or remove the row")
        first = earlier.setdefault(problem.question, problem)
        if first.answer != problem.answer and not grade.decide_at_once("math", problem.answer, first.answer):
            raise UserError(f"{file}, {unit}s {first.meta[unit]} and {problem.meta[unit]}: the same question with the "
                            f"answers {first.answer!r} and {problem.answer!r}; correct one of them, or remove it")
    return problems


def merge(problems: list[Problem]) -> list[Problem]:
    """Returns each distinct problem once, in order, with its number of `copies` and a unique meta["index"].
    The index is the one in the file if all problems have one and no two share it, else the position in the merged list,
    from 0. Rows with different indices in the file are never copies; so One-Shot-RLVR counts its pool's problems."""
    groups = {}
    for problem in problems:
        groups.setdefault((problem.prompt, problem.answer, problem.meta.get("index")), []).append(problem)
    indices = {index for _, _, index in groups}
    unique = None not in indices and len(indices) == len(groups)
    return [dataclasses.replace(same[0], copies=len(same), meta=same[0].meta | {"index": index if unique else position})
            for position, ((_, _, index), same) in enumerate(groups.items())]


def _read_benchmark_row(row: dict, where: str, meta: dict) -> Problem:
    """The problem of a row in one of LAYOUTS, with `meta`. UserError, naming `where` (file, line), if none fits."""
    for questions, column, read in LAYOUTS:
        if all(row.get(name) is not None for name in (column, *questions)):
            has_list = read is _join_answers and isinstance(row[column], list)
            for name in questions:
                _check_text(row[name], name, where)
            for part in row[column] if has_list else [row[column]]:
                _check_text(part, column, where)
            question, answer = " ".join(str(row[name]).strip() for name in questions), read(row[column])
            if not answer:
                raise UserError(f"{where}: no answer in {column}"
                                + (", which needs a \\boxed{}" if read is _read_boxed else ""))
            _check_unread(row, {column, *questions}, where)
            match row.get("steps"):  # an optional column: the steps of an expert's solution, for --expert_steps
                case [*steps] if all(isinstance(step, str) and step.strip() for step in steps):
                    meta["steps"] = steps
            return Problem(question, answer, question, meta)
    expected = "; ".join(f"{', '.join(questions)} and {column}" for questions, column, _ in LAYOUTS)
    has = ", ".join(f"{name} (null)" if value is None else name for name, value in row.items())
    raise UserError(f"{where}: needs one of these sets of columns: {expected}; it has {has}")


def _check_text(x, name: str, where: str) -> None:
    """Raises UserError, naming the column `name`, if `x` is neither a text nor a number."""
    if type(x) not in (str, int, float):  # isinstance would accept True as an int
        raise UserError(f"{where}: {name} is {str(x)[:60]}, a {type(x).__name__}: write it as a text or a number")


def _check_unread(row: dict, read: set, where: str) -> None:
    """Raises UserError if a column of `row` that is neither in `read`, the columns in use, nor in ASIDE has letters."""
    def has_text(x) -> bool:
        if isinstance(x, (list, dict)):
            return any(map(has_text, x.values() if isinstance(x, dict) else x))
        return isinstance(x, str) and any(map(str.isalpha, x))

    if unread := [name for name, x in row.items() if name not in read and name.lower() not in ASIDE and has_text(x)]:
        raise UserError(f"{where}: no known layout reads the text in {', '.join(unread)}; if the question needs it, "
                        f"move it there, else skip it with --ignore_columns={','.join(unread)}")


def _parquet_rows(file: pathlib.Path) -> list[dict]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{file}: parquet is read with pyarrow: pip install -e '.[real]'") from None
    try:
        return parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # each of these can mean a damaged file
        raise UserError(f"{file} cannot be read as parquet ({error}): copy it again") from None


def _read_one_shot_row(row: dict, where: str, meta: dict) -> Problem:
    """The problem of a row of One-Shot-RLVR. The question keeps its instruction; no spaces are stripped.
    An empty reference answer, which no completion can match, is allowed: the published pool has one (index 265)."""
    match row:
        case {"prompt": [{"role": "user", "content": str(question)}], "reward_model": {"ground_truth": answer}} \
                if answer is not None:
            _check_unread(row, {"prompt", "reward_model"}, where)
            _check_text(answer, "reward_model.ground_truth", where)
            match row:
                case {"extra_info": {"index": int() | str() as index}}:
                    meta["index"] = index
            return Problem(question, str(answer), question, meta)
    shown = ", ".join(f"{name}={str(value)[:60]!r}" for name, value in row.items())
    raise UserError(f"{where}: needs prompt (a list with one message, of the user) and "
                    f"reward_model.ground_truth; it has {shown}")
