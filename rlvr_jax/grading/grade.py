r"""Is this completion right: whether its answer equals the reference.

Most answers are decided here at once: the same text, the same number, the same set of numbers. What is left
(8\sqrt[3]{4} against 12.8) goes to computer algebra in child processes with limits of time and memory, so a hostile
completion is a wrong answer, not a hang (invariant 10). Verdicts are remembered, since a run grades the same answers
to the same problem at every step. `results/graders.md` has what the graders differ in.
"""

import collections
import functools
import importlib.metadata
from typing import Iterable, NamedTuple, Optional, Sequence

from rlvr_jax.errors import UserError
from rlvr_jax.grading import confidence, workers
from rlvr_jax.grading.child import Question
from rlvr_jax.grading.extract import EXTRACTORS, last_box
from rlvr_jax.grading.graders import GRADERS
from rlvr_jax.grading.workers import Reply

MAX_LENGTH = 1000  # characters; a longer answer is wrong, and reaches no child
REMEMBERED = 2**14  # verdicts


class Verdict(NamedTuple):
    """`extracted` is the answer that was found, None if there was none; `timed_out`: a limit ended the grading."""

    correct: bool
    extracted: Optional[str]
    timed_out: bool


def verdicts(texts: Sequence[str], answers: Sequence[str], answer_format: str, grader: str = "math") -> list[Verdict]:
    r"""Verdicts on completions, by rows of EXTRACTORS and GRADERS; `answers` are the references.

    A confidence that a text states is no part of its answer: it is taken out before the answer is looked for.
    The original grader looks into the last \boxed{} whatever `answer_format` says. The synthetic task's answers are
    integers: there, what is not decided at once is wrong, and computer algebra is never asked.
    """
    extract = last_box if grader == "original" else EXTRACTORS[answer_format]
    questions = [Question(grader, extract(confidence.split(text)[0]), answer)
                 for text, answer in zip(texts, answers, strict=True)]
    replies = decide(questions, algebra=(answer_format, grader) != ("answer", "math"))
    return [Verdict(replies[question].equal, question.given, replies[question].timed_out) for question in questions]


def decide(questions: Iterable[Question], algebra: bool = True) -> dict[Question, Reply]:
    """Whether each given answer equals its reference. Without `algebra`, what would take it is a no."""
    told = {question: at_once(*question) for question in questions}
    left = [question for question, verdict in told.items() if verdict is None and algebra]
    replies = dict(zip(left, workers.POOL.map(_asked, left)))
    return {question: replies.get(question, Reply(bool(verdict), False)) for question, verdict in told.items()}


def at_once(grader: str, given: Optional[str], answer: str) -> Optional[bool]:
    """The verdict without computer algebra; None if it takes that. No answer equals nothing."""
    return False if given is None or max(len(given), len(answer)) > MAX_LENGTH else _told(grader, given, answer)


@functools.lru_cache(REMEMBERED)
def _told(grader: str, given: str, answer: str) -> Optional[bool]:
    def leaf(*_):
        raise NotImplementedError

    try:
        return GRADERS[grader].same(given, answer, leaf)
    except NotImplementedError:
        return None


@functools.lru_cache(REMEMBERED)
def _asked(question: Question) -> Reply:
    return workers.POOL.ask(question)


def correct(text: str, answer: str, answer_format: str, grader: str = "math") -> bool:
    """Whether the answer in one completion is right."""
    return verdicts([text], [answer], answer_format, grader)[0].correct


def most_common(answers: list[Optional[str]]) -> Optional[str]:
    """The most frequent text, the first of those that tie; None and "" have no vote."""
    counts = collections.Counter(filter(None, answers))
    return counts.most_common(1)[0][0] if counts else None


def describe(answer_format: str, grader: str) -> str:
    """What will grade, for reports: "lenient / math (math-verify 0.9.0)". Raises UserError if it is not installed."""
    if (answer_format, grader) == ("answer", "math"):
        return "answer / math"
    try:
        versions = {name: importlib.metadata.version(name) for name in ("math-verify", "sympy", "pylatexenc")}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError("answers that are not from the synthetic task are compared by Math-Verify and pylatexenc, and "
                        "one of them is not installed: pip install 'rlvr_jax[real]'") from error
    package = GRADERS[grader].PACKAGE
    return f"{'boxed' if grader == 'original' else answer_format} / {grader} ({package} {versions[package]})"
