"""Data sets as one record, read from JSONL files in the layouts that maths benchmarks come in."""

import dataclasses
import json
import pathlib

from rlvr_jax.config import UserError

# One row a layout: the columns of the question (joined by a space), the column of the answer.
LAYOUTS = [
    (("problem",), "answer"),  # MATH-500
    (("question",), "answer"),  # GSM8K, or one's own
    (("Body", "Question"), "Answer"),  # SVAMP
    (("input",), "target"),  # MAWPS
]


@dataclasses.dataclass(frozen=True)
class Problem:
    """What to ask and how to know: `prompt` is the exact text the model continues, `answer` the reference answer."""

    question: str
    answer: str
    prompt: str
    meta: dict = dataclasses.field(default_factory=dict)


def load_jsonl(path: str) -> list[Problem]:
    """Problems of a JSONL file; `prompt` is the bare question. Raises UserError naming the file, line and layout."""
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"no problem file {path}; --problems takes 'arithmetic' or a JSONL file")
    problems = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):  # text has other line ends, legal inside JSON
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})") from None
        problems.append(_problem(row, path, number))
    if not problems:
        raise UserError(f"{path} holds no problems")
    return problems


def _problem(row: dict, path: str, number: int) -> Problem:
    for questions, answer in LAYOUTS:
        if isinstance(row, dict) and all(row.get(column) is not None for column in (answer, *questions)):
            question = " ".join(str(row[column]).strip() for column in questions)
            return Problem(question, _reference(row[answer]), question, {"file": path, "line": number})
    expected = "; ".join(f"{', '.join(questions)} and {answer}" for questions, answer in LAYOUTS)
    found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
    raise UserError(f"{path}, line {number}: needs one of these sets of columns: {expected}; it has {found}")


def _reference(answer) -> str:
    """Bare reference answer: what follows GSM8K's ####; 43.0 is 43."""
    text = str(answer).rsplit("####", 1)[-1].strip()
    return text[:-2] if text.endswith(".0") else text
