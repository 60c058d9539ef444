r"""Grades completions: finds each answer and decides whether it equals the reference.

Most answers are decided in this process, by comparing texts, numbers or sets of numbers with the reference.
Answers that need algebra (8\sqrt[3]{4} against 12.8) or an external verifier (`gym`) go to child processes with limits
on time and memory, so that a hostile completion is a wrong answer and cannot hang the run. Verdicts are cached, because
a run grades the same answers to the same problem at every step. A timeout is not cached, since the machine may have
been busy: the answer is graded again when it recurs. `results/graders.md` compares the graders."""

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

MAX_LENGTH = 1000  # characters of an extracted answer; a longer one is wrong, without asking a child
CACHED = 2**14  # verdicts in each cache


class Verdict(NamedTuple):
    """The result of grading a completion."""

    correct: bool
    extracted: Optional[str]  # the answer in the completion; None if no answer was found
    timed_out: bool  # whether a limit on time or memory ended the grading; such an answer counts as wrong


def grade_texts(texts: Sequence[str], answers: Sequence[str], answer_format: Union[str, Sequence[str]],
                grader: Union[str, Sequence[str]] = "math") -> list[Verdict]:
    r"""Grades completions. `answers` are the references; a reference for the grader "gym" is a problem's entry as JSON.
    `answer_format` (in EXTRACTORS) and `grader` (in `graders.ALL`) are a name for all texts, or a list of names. The
    grader "original" always extracts the last \boxed{}. For the format "answer" of the synthetic families, the grader
    "math" asks no child process: an answer that this process cannot decide is wrong."""
    formats, graders = ([name] * len(texts) if isinstance(name, str) else name for name in (answer_format, grader))
    questions, may_ask_child = [], []  # for each text
    for text, answer, form, name in zip(texts, answers, formats, graders, strict=True):
        extract = original_boxed if name == "original" else EXTRACTORS[form]
        graded_text, _ = split_confidence(text)  # without the confidence that it states
        questions.append(Question(name, extract(graded_text), answer))
        may_ask_child.append((form, name) != ("answer", "math"))
    without_child = decide_questions([q for q, child in zip(questions, may_ask_child) if not child], algebra=False)
    with_child = decide_questions([q for q, child in zip(questions, may_ask_child) if child])
    replies = [(with_child if child else without_child)[q] for q, child in zip(questions, may_ask_child)]
    return [Verdict(bool(reply), question.given, reply is None) for question, reply in zip(questions, replies)]


def decide_questions(questions: Iterable[Question], algebra: bool = True) -> dict[Question, Optional[bool]]:
    """Returns {question: whether its answer equals the reference, or None if the grading timed out}. If `algebra` is
    false, no child process is asked, and answers that this process cannot compare are not equal."""
    decided = {question: decide_at_once(*question) for question in questions}
    undecided = [question for question, equal in decided.items() if equal is None]
    replies = workers.POOL.threads.map(ask_child, undecided) if algebra else [False] * len(undecided)
    return decided | dict(zip(undecided, replies))


def decide_at_once(grader: str, given: Optional[str], answer: str) -> Optional[bool]:
    """Whether `given` equals the reference `answer`, decided in this process; None if only a child process can decide.
    An answer that is None or longer than MAX_LENGTH, or a reference that is too long, gives False."""
    if given is None or len(given) > MAX_LENGTH or len(answer) > ALL[grader].MAX_REFERENCE:
        return False
    return _compare_without_child(grader, given, answer)


@functools.lru_cache(CACHED)
def _compare_without_child(grader: str, given: str, answer: str) -> Optional[bool]:
    def refuse(*_):
        raise NotImplementedError  # takes the place of the grader's `equal`, which only a child process may call

    try:
        return ALL[grader].same(given, answer, refuse)
    except NotImplementedError:
        return None


def ask_child(question: Question) -> Optional[bool]:
    """The reply of a child process: whether the answers are equal, or None for a timeout. None is not cached."""
    try:
        return _ask_cached(question)
    except TimeoutError:
        return None


@functools.lru_cache(CACHED)
def _ask_cached(question: Question) -> bool:
    pool = workers.POOLS.get(question.grader, workers.POOL)  # some graders have child processes of their own
    reply = pool.ask(question)
    if reply is None:
        raise TimeoutError  # lru_cache stores nothing for a call that raises
    return reply


def is_correct(text: str, answer: str, answer_format: str, grader: str = "math") -> bool:
    """Whether the answer in the completion `text` is right; arguments as in `grade_texts`."""
    return grade_texts([text], [answer], answer_format, grader)[0].correct


def most_common(answers: list[Optional[str]]) -> Optional[str]:
    """The most frequent answer, or the first of several that tie. Ignores None and ""; None if no answer remains."""
    counts = collections.Counter(filter(None, answers))
    return counts.most_common(1)[0][0] if counts else None


def describe_grader(answer_format: str, grader: str) -> str:
    """A text such as "lenient / math (math-verify 0.9.0)": the answer format, the grader, its package and version.
    Raises UserError if a package that the grader needs is missing."""
    if (answer_format, grader) == ("answer", "math"):
        return "answer / math"
    package, needs = ALL[grader].PACKAGE, ALL[grader].NEEDS
    try:
        versions = {name: importlib.metadata.version(name) for name in needs}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(ALL[grader].MISSING) from error
    return f"{'boxed' if grader == 'original' else answer_format} / {grader} ({package} {versions[package]})"
