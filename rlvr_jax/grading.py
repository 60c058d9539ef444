r"""Is this completion right? Where its answer is, and whether that equals the reference.

Most answers are decided here at once: the same text, the same number, the same set of numbers. What is left
(8\sqrt[3]{4} against 12.8) goes to computer algebra in child processes with limits of time and memory, so a hostile
completion is a wrong answer, not a hang (invariant 10). `results/graders.md` has what the two graders differ in.
"""

import importlib.metadata
import re
from typing import NamedTuple, Optional, Sequence

from rlvr_jax import notation, original_grader, symbolic

MAX_LENGTH = 1000  # characters; a longer answer is wrong, and reaches no child
normalise = notation.normalise  # also the ballot of a majority vote
GRADERS = {name: same for name, (same, _) in symbolic.RULES.items()}
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|-?\.\d+")
_ANNOUNCED = re.compile(r"(?:the|final)\s+answer\s+is", re.IGNORECASE)


class Verdict(NamedTuple):
    """`extracted` is the answer that was found, None if there was none; `timed_out`: a limit ended the grading."""

    correct: bool
    extracted: Optional[str]
    timed_out: bool


# ----- where the answer is


def after_answer(text: str) -> Optional[str]:
    """The one word that follows a final "answer", as the synthetic task ends; None if the text ends otherwise."""
    words = text[-200:].split()
    return words[-1] if len(words) >= 2 and words[-2] == "answer" else None


def last_boxed(text: str) -> Optional[str]:
    r"""The content of the last `\boxed{...}` with balanced braces; None if there is none or it never closes."""
    start = text.rfind("\\boxed{")
    return original_grader.braced(text, start + len("\\boxed")) if start >= 0 else None


def last_number(text: str) -> Optional[str]:
    """The last number in the text, thousands separators removed."""
    found = None
    for found in _NUMBER.finditer(text):
        pass
    return found.group().replace(",", "") if found else None


def last_tag(text: str) -> Optional[str]:
    """What is in the last <answer>...</answer>; None if there is none or it never closes."""
    start = text.rfind("<answer>")
    end = text.find("</answer>", start)
    return text[start + len("<answer>") : end].strip() if 0 <= start < end else None


def lenient(text: str) -> Optional[str]:
    r"""As the one-shot paper's evaluation looks for it (Qwen2.5-Math's harness), and the training reward does not: the
    last box, else the rest of the sentence after the last "the answer is", else the last number."""
    boxed, announced = last_boxed(text), None
    for announced in _ANNOUNCED.finditer(text if boxed is None else ""):
        pass
    rest = text[announced.end() :].lstrip(" \t\r\n:") if announced else ""
    sentence = re.split(r"\.(?=\s|$)|\n", rest, maxsplit=1)[0].strip()
    return boxed if boxed is not None else sentence or last_number(text)


EXTRACTORS = {"answer": after_answer, "boxed": last_boxed, "last_number": last_number, "tag": last_tag,
              "lenient": lenient}


# ----- whether it is right


def grade(texts: Sequence[str], answers: Sequence[str], answer_format: str, grader: str = "math") -> list[Verdict]:
    r"""Verdicts on completions, by rows of EXTRACTORS and GRADERS; `answers` are the references.

    The original grader looks into the last \boxed{} whatever `answer_format` says. The synthetic task's answers are
    integers: there, what is not decided at once is wrong, and computer algebra is never asked.
    """
    extract = original_grader.last_box if grader == "original" else EXTRACTORS[answer_format]
    pairs = [(extract(text), answer) for text, answer in zip(texts, answers, strict=True)]
    known = {pair: _at_once(*pair, grader) for pair in dict.fromkeys(pairs)}
    final = grader == "math" and answer_format == "answer"
    open_pairs = [pair for pair, verdict in known.items() if verdict is None and not final]
    replies = symbolic.POOL.ask([symbolic.Question(grader, *pair) for pair in open_pairs])
    late = {pair for pair, reply in zip(open_pairs, replies) if reply.timed_out}
    known |= {pair: reply.equal for pair, reply in zip(open_pairs, replies)}
    return [Verdict(bool(known[pair]), pair[0], pair in late) for pair in pairs]


def _at_once(given: Optional[str], answer: str, grader: str) -> Optional[bool]:
    """The verdict on one pair without computer algebra; None if it takes that."""
    if given is None or max(len(given), len(answer)) > MAX_LENGTH:
        return False
    return GRADERS[grader](given, answer)


def correct(text: str, answer: str, answer_format: str, grader: str = "math") -> bool:
    """Whether the answer in one completion is right."""
    return grade([text], [answer], answer_format, grader)[0].correct


def equal(given: Optional[str], answer: str, grader: str = "math") -> bool:
    """Whether an extracted answer equals the reference. No answer equals nothing."""
    verdict = _at_once(given, answer, grader)
    return symbolic.POOL.ask([symbolic.Question(grader, given, answer)])[0].equal if verdict is None else verdict


def describe(answer_format: str, grader: str) -> str:
    """What will grade, for reports: "lenient / math (math-verify 0.9.0)". Raises UserError if it is not installed."""
    if answer_format == "answer" and grader == "math":
        return "answer / math"
    symbolic.check_installed()
    package = {"math": "math-verify", "original": "sympy"}[grader]
    version = f"{package} {importlib.metadata.version(package)}"
    return f"{'boxed' if grader == 'original' else answer_format} / {grader} ({version})"
