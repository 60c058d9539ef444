"""Problems from files: JSONL in the layouts of maths benchmarks, and parquet in that of One-Shot-RLVR."""

import dataclasses
import pathlib
import re
from typing import Optional

from rlvr_jax.errors import UserError
from rlvr_jax.grading import extract, grade
from rlvr_jax.records import Problem
from rlvr_jax.runs.files import read_lines


def _clean_answer(answer) -> str:
    r"""The text after GSM8K's ####. 43.0 becomes 43; ASDiv's 9 (apples) becomes 9\text{ apples}."""
    text = _WITH_UNIT.sub(r"\1\\text{ \2}", str(answer).rsplit("####", 1)[-1].strip())
    return text[:-2] if text.endswith(".0") else text


def _join_answers(answers) -> str:
    """OlympiadBench's list of LaTeX answers as one text."""
    return ", ".join(str(answer).strip().strip("$") for answer in (answers if isinstance(answers, list) else [answers]))


def _read_boxed(solution) -> Optional[str]:
    return extract.EXTRACTORS["boxed"](str(solution))


_WITH_UNIT = re.compile(r"^(-?\d[\d,./]*) ?\(([a-zA-Z]{2}[a-zA-Z .'/-]*|[gmslh])\)\Z")  # 5 (x) is a product

# One layout per row: the columns of the question (joined by a space), the column of the answer, and its reader.
LAYOUTS = [
    (("body", "question"), "answer", _clean_answer),  # ASDiv
    (("problem",), "answer", _clean_answer),  # MATH-500, AIME, AMC
    (("question",), "answer", _clean_answer),  # GSM8K, AIME, AMC, or one's own
    (("Body", "Question"), "Answer", _clean_answer),  # SVAMP
    (("input",), "target", _clean_answer),  # MAWPS
    (("question",), "final_answer", _join_answers),  # OlympiadBench
    (("problem",), "solution", _read_boxed),  # Minerva Math: the last \boxed{} of the solution
]
# Columns (in any case) about a problem's source, kind or solution, without which the question is complete. Text in any
# other column may belong to the question, so a file that has one is refused.
ASIDE = frozenset("""
    ability answer_type author category competition data_source dataset difficulty domain equation error extra_info
    formula grade id idx index is_multiple_answer language level license modality question_concat question_type
    rationale solution solution_type source split steps subfield subject tags topic type unique_id unit url uuid year
    """.split())


def load(path: str, ignore_columns: str = "") -> list[Problem]:
    """The problems of a JSONL or parquet file, one per row, with the question as `prompt`.

    `ignore_columns` names columns to skip, joined by commas. Raises UserError, naming the file and the line or row, for
    an unknown layout, text that no layout reads, an empty question, and a question with two different answers.
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
        if first.answer != problem.answer and not grade.decide_at_once("math", problem.answer, first.answer):
            raise UserError(f"{file}, {unit}s {first.meta[unit]} and {problem.meta[unit]}: the same question with the "
                            f"answers {first.answer!r} and {problem.answer!r}; correct one of them, or remove it")
    return problems


def merge(problems: list[Problem]) -> list[Problem]:
    """Each distinct problem once, in order, with its number of `copies` and a unique `meta["index"]`.

    The index is the file's own if every problem has one, else the place in the merged list, from 0. Rows whose own
    indices differ are not copies: the published pool counts its problems that way.
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
            match row.get("steps"):  # of an expert's solution
                case [*steps] if all(isinstance(step, str) and step.strip() for step in steps):
                    meta["steps"] = steps
            return Problem(question, answer, question, meta)
    expected = "; ".join(f"{', '.join(questions)} and {column}" for questions, column, _ in LAYOUTS)
    has = ", ".join(f"{name} (null)" if value is None else name for name, value in row.items())
    raise UserError(f"{where}: needs one of these sets of columns: {expected}; it has {has}")


def _check_text(x, name: str, where: str) -> None:
    """Raises UserError for anything but text or a number."""
    if type(x) not in (str, int, float):  # True is an int, too
        raise UserError(f"{where}: {name} is {str(x)[:60]}, a {type(x).__name__}: write it as a text or a number")


def _check_read(row: dict, read: set, where: str) -> None:
    """Raises UserError if the row has text in columns that are neither `read` nor ASIDE."""
    def has_text(x) -> bool:
        return (any(map(has_text, x.values() if isinstance(x, dict) else x)) if isinstance(x, (list, dict)) else
                isinstance(x, str) and any(map(str.isalpha, x)))

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
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # all are raised for damaged files
        raise UserError(f"{file} cannot be read as parquet ({error}): copy it again") from None


def _read_one_shot(row: dict, where: str, meta: dict) -> Problem:
    """A row of One-Shot-RLVR. Questions and labels stay unchanged, including spaces and the row's own instruction. So
    does an empty label, which no answer equals: the published pool has one (index 265)."""
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
