r"""Is this completion right: whether its answer equals the reference.

Most answers are decided here at once: the same text, the same number, the same set of numbers. What is left
(8\sqrt[3]{4} against 12.8) goes to computer algebra in child processes with limits of time and memory, so a hostile
completion is a wrong answer, not a hang (invariant 10). So do verifiers of other programs (`gym`). Verdicts are
remembered, since a run grades the same answers to the same problem at every step. A limit that ended the grading is no
verdict: the machine may have been busy, so the same answer is asked again at the next step, within the same limits.
`results/graders.md` has what the graders differ in.
"""

import collections
import functools
import importlib.metadata
from typing import Iterable, NamedTuple, Optional, Sequence, Union

from rlvr_jax.errors import UserError
from rlvr_jax.grading import stated_confidence, workers
from rlvr_jax.grading.child import Question
from rlvr_jax.grading.extract import EXTRACTORS, last_box
from rlvr_jax.grading.graders import ALL
from rlvr_jax.grading.workers import Reply

MAX_LENGTH = 1000  # characters of a given answer; a longer one is wrong, and reaches no child
REMEMBERED = 2**14  # verdicts


class Verdict(NamedTuple):
    """`extracted` is the answer that was found, None if there was none; `timed_out`: a limit ended the grading."""

    correct: bool
    extracted: Optional[str]
    timed_out: bool


def verdicts(texts: Sequence[str], answers: Sequence[str], answer_format: Union[str, Sequence[str]],
             grader: Union[str, Sequence[str]] = "math") -> list[Verdict]:
    r"""Verdicts on completions, by rows of EXTRACTORS and GRADERS, one for all or one for each text.

    `answers` are the references, as the grader wants them. A confidence that a text states is no part of its answer: it
    is taken out before the answer is looked for. The original grader looks into the last \boxed{} whatever
    `answer_format` says. The synthetic families' answers are words: there, what is not decided at once is wrong, and
    computer algebra is never asked.
    """
    formats, graders = ([name] * len(texts) if isinstance(name, str) else name for name in (answer_format, grader))
    asked = []
    for text, answer, form, by in zip(texts, answers, formats, graders, strict=True):
        extract = last_box if by == "original" else EXTRACTORS[form]
        question = Question(by, extract(stated_confidence.split(text)[0]), answer)
        asked.append((question, (form, by) != ("answer", "math")))
    replies = {algebra: decide([question for question, needs in asked if needs == algebra], algebra)
               for algebra in (False, True)}
    decided = [(question.given, replies[algebra][question]) for question, algebra in asked]
    return [Verdict(reply.equal, given, reply.timed_out) for given, reply in decided]


def decide(questions: Iterable[Question], algebra: bool = True) -> dict[Question, Reply]:
    """Whether each given answer equals its reference. Without `algebra`, what would take it is a no."""
    verdicts = {question: at_once(*question) for question in questions}
    left = [question for question, verdict in verdicts.items() if verdict is None and algebra]
    replies = dict(zip(left, workers.POOL.map(ask, left)))
    return {question: replies.get(question, Reply(bool(verdict), False)) for question, verdict in verdicts.items()}


def at_once(grader: str, given: Optional[str], answer: str) -> Optional[bool]:
    """The verdict without a child process; None if it takes one. No answer equals nothing."""
    if given is None or len(given) > MAX_LENGTH or len(answer) > ALL[grader].MAX_REFERENCE:
        return False
    return _without_child(grader, given, answer)


@functools.lru_cache(REMEMBERED)
def _without_child(grader: str, given: str, answer: str) -> Optional[bool]:
    def leaf(*_):
        raise NotImplementedError

    try:
        return ALL[grader].same(given, answer, leaf)
    except NotImplementedError:
        return None


def ask(question: Question) -> Reply:
    """The reply of a child process; one that came in time is remembered."""
    try:
        return _asked(question)
    except TimeoutError:
        return Reply(False, True)


@functools.lru_cache(REMEMBERED)
def _asked(question: Question) -> Reply:
    reply = workers.pool(question.grader).ask(question)
    if reply.timed_out:
        raise TimeoutError  # past the cache, which keeps what is returned
    return reply


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
    package, needs = ALL[grader].PACKAGE, ALL[grader].NEEDS
    try:
        versions = {name: importlib.metadata.version(name) for name in needs}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(ALL[grader].MISSING) from error
    return f"{'boxed' if grader == 'original' else answer_format} / {grader} ({package} {versions[package]})"
