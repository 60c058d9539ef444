r"""Is this completion right: whether its answer equals the reference.

Most answers are decided here at once: the same text, the same number, the same set of numbers. Others
(8\sqrt[3]{4} against 12.8), and those that other programs verify (`gym`), go to child processes with limits on time and
memory, so that a hostile completion is a wrong answer and not a hang (invariant 10). Verdicts are cached, because a run
grades the same answers to the same problem at every step. Only a verdict is cached, not a timeout: the machine may have
been busy, so the answer is graded again when it recurs. `results/graders.md` compares the graders.
"""

import collections
import functools
import importlib.metadata
from typing import Iterable, NamedTuple, Optional, Sequence, Union

from rlvr_jax.errors import UserError
from rlvr_jax.grading import workers
from rlvr_jax.grading.child import Question
from rlvr_jax.grading.extract import EXTRACTORS, original_boxed
from rlvr_jax.grading.graders import ALL
from rlvr_jax.grading.stated_confidence import split_confidence
from rlvr_jax.grading.workers import Reply

MAX_LENGTH = 1000  # characters of a given answer; a longer one is wrong, and reaches no child
CACHED = 2**14  # verdicts


class Verdict(NamedTuple):
    """`extracted`: the answer that was found, None if there is none; `timed_out`: a limit ended the grading."""

    correct: bool
    extracted: Optional[str]
    timed_out: bool


def grade_texts(texts: Sequence[str], answers: Sequence[str], answer_format: Union[str, Sequence[str]],
                grader: Union[str, Sequence[str]] = "math") -> list[Verdict]:
    r"""Verdicts on completions, by rows of EXTRACTORS and GRADERS, one for all texts or one for each.

    `answers` are the references in the form that the grader reads. A stated confidence is removed before the answer is
    extracted. The original grader looks into the last \boxed{}, whatever `answer_format` says. Answers of the synthetic
    families are words: if one is not decided at once it is wrong, without computer algebra.
    """
    formats, graders = ([name] * len(texts) if isinstance(name, str) else name for name in (answer_format, grader))
    questions = []  # each with whether it may need computer algebra
    for text, answer, form, name in zip(texts, answers, formats, graders, strict=True):
        extract = original_boxed if name == "original" else EXTRACTORS[form]
        question = Question(name, extract(split_confidence(text)[0]), answer)
        questions.append((question, (form, name) != ("answer", "math")))
    replies = {algebra: decide_questions([question for question, own in questions if own == algebra], algebra)
               for algebra in (False, True)}
    decided = [(question.given, replies[algebra][question]) for question, algebra in questions]
    return [Verdict(reply.equal, given, reply.timed_out) for given, reply in decided]


def decide_questions(questions: Iterable[Question], algebra: bool = True) -> dict[Question, Reply]:
    """Whether each given answer equals its reference. Without `algebra`, a question that needs a child is a no."""
    verdicts = {question: decide_at_once(*question) for question in questions}
    left = [question for question, verdict in verdicts.items() if verdict is None and algebra]
    replies = dict(zip(left, workers.POOL.threads.map(ask_child, left)))
    return {question: replies.get(question, Reply(bool(verdict), False)) for question, verdict in verdicts.items()}


def decide_at_once(grader: str, given: Optional[str], answer: str) -> Optional[bool]:
    """The verdict without a child process; None if one is needed. A missing answer equals nothing."""
    if given is None or len(given) > MAX_LENGTH or len(answer) > ALL[grader].MAX_REFERENCE:
        return False
    return _compare_without_child(grader, given, answer)


@functools.lru_cache(CACHED)
def _compare_without_child(grader: str, given: str, answer: str) -> Optional[bool]:
    def refuse(*_):
        raise NotImplementedError

    try:
        return ALL[grader].same(given, answer, refuse)
    except NotImplementedError:
        return None


def ask_child(question: Question) -> Reply:
    """The reply of a child process, cached unless it timed out."""
    try:
        return _ask_cached(question)
    except TimeoutError:
        return Reply(False, True)


@functools.lru_cache(CACHED)
def _ask_cached(question: Question) -> Reply:
    reply = workers.POOLS.get(question.grader, workers.POOL).ask(question)
    if reply.timed_out:
        raise TimeoutError  # an exception bypasses the cache
    return reply


def is_correct(text: str, answer: str, answer_format: str, grader: str = "math") -> bool:
    """Whether the answer in one completion is right."""
    return grade_texts([text], [answer], answer_format, grader)[0].correct


def most_common(answers: list[Optional[str]]) -> Optional[str]:
    """The most frequent text, the first of those that tie; None and "" have no vote."""
    counts = collections.Counter(filter(None, answers))
    return counts.most_common(1)[0][0] if counts else None


def describe_grader(answer_format: str, grader: str) -> str:
    """What grades, for reports: "lenient / math (math-verify 0.9.0)". Raises UserError if it is not installed."""
    if (answer_format, grader) == ("answer", "math"):
        return "answer / math"
    package, needs = ALL[grader].PACKAGE, ALL[grader].NEEDS
    try:
        versions = {name: importlib.metadata.version(name) for name in needs}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(ALL[grader].MISSING) from error
    return f"{'boxed' if grader == 'original' else answer_format} / {grader} ({package} {versions[package]})"
