r"""Is this completion right: whether its answer equals the reference.

Most answers are decided here at once: the same text, the same number, the same set of numbers. What is left
(8\sqrt[3]{4} against 12.8) goes to computer algebra in child processes with limits of time and memory, so a hostile
completion is a wrong answer, not a hang (invariant 10). `results/graders.md` has what the two graders differ in.
"""

import importlib.metadata
from typing import NamedTuple, Optional, Sequence

from rlvr_jax.grading import workers
from rlvr_jax.grading.child import Question
from rlvr_jax.grading.extract import EXTRACTORS, last_box
from rlvr_jax.grading.graders import GRADERS

MAX_LENGTH = 1000  # characters; a longer answer is wrong, and reaches no child


class Verdict(NamedTuple):
    """`extracted` is the answer that was found, None if there was none; `timed_out`: a limit ended the grading."""

    correct: bool
    extracted: Optional[str]
    timed_out: bool


def grade(texts: Sequence[str], answers: Sequence[str], answer_format: str, grader: str = "math") -> list[Verdict]:
    r"""Verdicts on completions, by rows of EXTRACTORS and GRADERS; `answers` are the references.

    The original grader looks into the last \boxed{} whatever `answer_format` says. The synthetic task's answers are
    integers: there, what is not decided at once is wrong, and computer algebra is never asked.
    """
    extract = last_box if grader == "original" else EXTRACTORS[answer_format]
    pairs = [(extract(text), answer) for text, answer in zip(texts, answers, strict=True)]
    known = {pair: _at_once(*pair, grader) for pair in dict.fromkeys(pairs)}
    final = grader == "math" and answer_format == "answer"
    open_pairs = [pair for pair, verdict in known.items() if verdict is None and not final]
    replies = workers.POOL.ask([Question(grader, *pair) for pair in open_pairs])
    late = {pair for pair, reply in zip(open_pairs, replies) if reply.timed_out}
    known |= {pair: reply.equal for pair, reply in zip(open_pairs, replies)}
    return [Verdict(bool(known[pair]), pair[0], pair in late) for pair in pairs]


def _at_once(given: Optional[str], answer: str, grader: str) -> Optional[bool]:
    """The verdict on one pair without computer algebra; None if it takes that."""
    if given is None or max(len(given), len(answer)) > MAX_LENGTH:
        return False
    return GRADERS[grader].same(given, answer)


def correct(text: str, answer: str, answer_format: str, grader: str = "math") -> bool:
    """Whether the answer in one completion is right."""
    return grade([text], [answer], answer_format, grader)[0].correct


def equal(given: Optional[str], answer: str, grader: str = "math") -> bool:
    """Whether an extracted answer equals the reference. No answer equals nothing."""
    verdict = _at_once(given, answer, grader)
    return workers.POOL.ask([Question(grader, given, answer)])[0].equal if verdict is None else verdict


def describe(answer_format: str, grader: str) -> str:
    """What will grade, for reports: "lenient / math (math-verify 0.9.0)". Raises UserError if it is not installed."""
    if answer_format == "answer" and grader == "math":
        return "answer / math"
    workers.check_installed()
    package = GRADERS[grader].package
    version = f"{package} {importlib.metadata.version(package)}"
    return f"{'boxed' if grader == 'original' else answer_format} / {grader} ({version})"
