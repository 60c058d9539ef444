"""The child process that runs computer algebra or a verifier: it answers each line of JSON with a line of JSON. A
question may take CPU_SECONDS of processor time, WALL_SECONDS of elapsed time and MEGABYTES of address space."""

import contextlib
import json
import logging
import os
import resource
import signal
import sys
from typing import NamedTuple, Sequence

from rlvr_jax.grading.graders import ALL

CPU_SECONDS = 5  # unlike elapsed time, this does not depend on how busy the machine is
WALL_SECONDS = 20
MEGABYTES = 1024  # address space of a child; SymPy itself takes about 150


class Question(NamedTuple):
    """The question whether `given` equals the reference `answer`. `grader` is the name of a row of `graders.ALL`."""

    grader: str
    given: str
    answer: str


def decide_question(question: Question) -> bool:
    """Whether the question's two answers are equal, decided in this process without limits on time and memory."""
    grader = ALL[question.grader]

    def equal(given: str, answer: str) -> bool:
        try:
            return grader.equal(given, answer)
        except MemoryError:
            raise
        except Exception:  # answers that cannot be parsed or compared are not equal
            return False

    return bool(grader.same(question.given, question.answer, equal))


ALGEBRA = ("math", "original")  # the graders that one child serves together
WARM_UP = {  # pairs (given, answer) that make a grader load and compile what it needs, before limits apply
    "math": [(text, text.replace("1", "2")) for text in (
        r"\sqrt{x}+1.5,3", r"(1,\infty)", r"\begin{pmatrix}1\\y\end{pmatrix}", r"x^2=2y+1", r"\sin x<1")],
    "original": [(r"x+\frac12", "1.5x")]}


def serve(graders: Sequence[str] = ALGEBRA) -> None:
    """Answers questions for `graders`, names in `graders.ALL`: prints "ready", then true, false or null for each line
    of standard input, a `Question` as a JSON list. Returns when standard input is closed. A fork of this process
    decides the questions. If a question exceeds a limit, the fork dies and the reply is null; a new fork, which
    inherits the loaded libraries, reads the next question."""
    for name in graders:
        ALL[name].load()
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # discards what the libraries print
    logging.disable(logging.CRITICAL)
    for name in graders:
        for pair in WARM_UP.get(name, ()):
            decide_question(Question(name, *pair))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # macOS does not support this limit
        resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES << 20, MEGABYTES << 20))
    replies.write(b'"ready"\n')
    over_limit = (1, -signal.SIGPROF, -signal.SIGALRM)  # exit codes of the fork: no memory, or out of time
    while True:
        if not (child := os.fork()):
            _answer_questions(replies)  # ends the fork
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) not in over_limit:
            return  # standard input is closed, or another process killed the fork, maybe when no reply was due
        replies.write(b"null\n")


def _answer_questions(replies) -> None:
    """Reads a question from each line of standard input and writes its reply to `replies`. Exits with code 0 at the end
    of standard input and 1 after an exception; a question over a time limit ends the process by a signal."""
    try:
        for line in sys.stdin.buffer:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # SIGPROF ends the process even inside a long C call
            signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)  # SIGALRM ends the process even if the parent is gone
            reply = json.dumps(decide_question(Question(*json.loads(line))))
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            replies.write(reply.encode() + b"\n")
        os._exit(0)
    finally:
        os._exit(1)


if __name__ == "__main__":
    serve(sys.argv[1:] or ALGEBRA)
