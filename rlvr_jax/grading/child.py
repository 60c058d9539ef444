"""The child process that runs computer algebra, or a verifier: a line of JSON in, a line out, within its own limits.

A question may take CPU_SECONDS (independent of how busy the machine is), WALL_SECONDS and MEGABYTES.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import sys
from typing import NamedTuple, Sequence

from rlvr_jax.grading.graders import ALL

CPU_SECONDS = 5
WALL_SECONDS = 20
MEGABYTES = 1024  # address space of a child; SymPy itself takes about 150


class Question(NamedTuple):
    """Whether `given` equals the reference `answer`, by a row of `graders.ALL`."""

    grader: str
    given: str
    answer: str


def decide_question(question: Question) -> bool:
    """The answer to a question, without limits."""
    grader = ALL[question.grader]

    def equal(given: str, answer: str) -> bool:
        try:
            return grader.equal(given, answer)
        except MemoryError:
            raise
        except Exception:  # answers that cannot be parsed or compared are not equal
            return False

    return bool(grader.same(question.given, question.answer, equal))


ALGEBRA = ("math", "original")  # the graders that share one kind of child
WARM_UP = {  # questions that make a grader load and compile, asked before the first one that has limits
    "math": [(text, text.replace("1", "2")) for text in (
        r"\sqrt{x}+1.5,3", r"(1,\infty)", r"\begin{pmatrix}1\\y\end{pmatrix}", r"x^2=2y+1", r"\sin x<1")],
    "original": [(r"x+\frac12", "1.5x")]}


def serve(graders: Sequence[str] = ALGEBRA) -> None:
    """Answers questions of these graders from standard input, one line each, until it is closed.

    A fork of this process does the work. If it exceeds its limits it dies, the answer is null, and the next fork
    inherits the graders' loaded libraries.
    """
    for name in graders:
        ALL[name].load()
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # keeps prints of the libraries out of the replies
    logging.disable(logging.CRITICAL)
    for name in graders:
        for pair in WARM_UP.get(name, ()):
            decide_question(Question(name, *pair))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES << 20, MEGABYTES << 20))
    replies.write(b'"ready"\n')
    while True:
        if not (child := os.fork()):
            _answer_questions(replies)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) not in (1, -signal.SIGPROF, -signal.SIGALRM):
            return  # no more questions, or another process killed the fork, maybe between two questions
        replies.write(b"null\n")


def _answer_questions(replies) -> None:
    """Answers questions until there are no more, then exits with code 0."""
    try:
        for line in sys.stdin.buffer:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # SIGPROF ends the process, even within one product
            signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)  # so does SIGALRM, even without a parent
            reply = json.dumps(decide_question(Question(*json.loads(line))))
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            replies.write(reply.encode() + b"\n")
        os._exit(0)
    finally:
        os._exit(1)


if __name__ == "__main__":
    serve(sys.argv[1:] or ALGEBRA)
