r"""Computer algebra at arm's length: the questions that `notation` and `original_grader` cannot answer.

SymPy may need for ever, or all memory, for what a model writes (9^{9^{9^9}}), and cannot be interrupted in a thread.
So it runs in a few child processes, `python -m rlvr_jax.symbolic`, that answer one line of JSON with another and can be
killed. A question may take CPU_SECONDS (which a busy machine does not shorten), WALL_SECONDS and MEGABYTES; one that
exceeds a limit, or whose child dies or talks nonsense, is answered with "no". The child sets its own limits, and the
parent ends a child that is past WALL_SECONDS all the same.
"""

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import re
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from rlvr_jax import notation, original_grader
from rlvr_jax.config import UserError

CPU_SECONDS = 5
WALL_SECONDS = 20
GRACE_SECONDS = 1  # for a child to end by its own limit
START_SECONDS = 120  # importing SymPy on a busy machine
MEGABYTES = 1024  # address space of a child; SymPy itself takes about 150
COMMAND = [sys.executable, "-W", "ignore", "-m", "rlvr_jax.symbolic"]


class Question(NamedTuple):
    """Whether `given` equals the reference `answer` by a row of RULES."""

    rule: str
    given: str
    answer: str


class Reply(NamedTuple):
    equal: bool
    timed_out: bool  # or out of memory, or dead


READY = b'"ready"\n'
REPLIES = {b"true\n": Reply(True, False), b"false\n": Reply(False, False), b"null\n": Reply(False, True)}


# ----- in the child


@functools.cache
def _parser():
    """LaTeX of one answer to SymPy objects, by Math-Verify: units were dealt with before, time limits are ours."""
    import logging

    import math_verify
    from latex2sympy2_extended import NormalizationConfig

    logging.disable(logging.CRITICAL)
    config = [math_verify.LatexExtractionConfig(normalization_config=NormalizationConfig(
        units=False, malformed_operators=True, nits=True, boxed="none"))]
    return lambda text: math_verify.parse(f"${text}$", config, fallback_mode="no_fallback", parsing_timeout=None)


def mathematics(given: str, answer: str) -> bool:
    """Whether two normalised answers are equal as mathematics. Decimals are exact: 0.333 is not 1/3."""
    import math_verify

    exact = [re.sub(r"\d*\.\d+|\d+\.(?!\d)", _fraction, text) for text in (answer, given)]
    gold, found = map(_parser(), exact)
    return math_verify.verify(gold, found, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)


def _fraction(match: re.Match) -> str:
    whole, _, digits = match[0].partition(".")
    return rf"{{\frac{{{int(whole + digits)}}}{{{10 ** len(digits)}}}}}"


def released_reward(given: str, answer: str) -> bool:
    """Whether SymPy simplifies the difference to 0, as the released one-shot reward asks it."""
    import sympy
    from sympy.parsing import sympy_parser

    rules = sympy_parser.standard_transformations + (sympy_parser.implicit_multiplication_application,)
    difference = f"({answer})-({given})".replace("^", "**")
    return bool(sympy.simplify(sympy_parser.parse_expr(difference, transformations=rules)) == 0)


# grader -> (its equality, what decides the cases that it leaves open)
RULES = {"math": (notation.same, mathematics), "original": (original_grader.same, released_reward)}


def decide(question: Question) -> bool:
    """The answer to a question, without any limit."""
    same, leaf = RULES[question.rule]

    def asked(given: str, answer: str) -> bool:
        try:
            return leaf(given, answer)
        except MemoryError:
            raise
        except Exception:  # what cannot be parsed or compared is not equal
            return False

    return bool(same(question.given, question.answer, asked))


def serve() -> None:
    """Answers questions from standard input, one line each, until it is closed.

    A fork of this process does the work. If it exceeds its limits it dies, the answer is null, and the next fork has
    SymPy loaded already.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever the libraries print is no reply
    _parser()
    for question in (r"\sqrt{x}+1.5,3", r"(1,\infty)", r"\begin{pmatrix}1\\y\end{pmatrix}", r"x^2=2y+1", r"\sin x<1"):
        decide(Question("math", question, question.replace("1", "2")))  # the first of a kind loads and compiles much
    decide(Question("original", "x+1.5", "1.5x"))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES << 20, MEGABYTES << 20))
    _say(replies, "ready")
    while True:
        if not (child := os.fork()):
            _work(replies)
        if os.waitpid(child, 0)[1] == 0:
            return
        _say(replies, None)


def _work(replies) -> None:
    """Answers questions until there are no more, then exits with 0."""
    try:
        for line in sys.stdin.buffer:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process, also within one product
            signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)  # and so does this one's, also without a parent
            equal = decide(Question(*json.loads(line)))
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _say(replies, equal)
        os._exit(0)
    finally:
        os._exit(1)


def _say(replies, content) -> None:
    print(json.dumps(content), file=replies, flush=True)


# ----- in the parent


def check_installed() -> None:
    """Raises UserError without Math-Verify, which brings SymPy: better before a run than at its first odd answer."""
    if not importlib.util.find_spec("math_verify"):
        raise UserError("answers that are not from the synthetic task are compared by Math-Verify, which is not "
                        "installed: pip install 'rlvr_jax[real]'")


class Worker:
    """A child process. `deadline` is when it has to be ready, or to have answered, on the monotonic clock; `broken`
    that it is of no further use."""

    def __init__(self):
        self.process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            cwd=pathlib.Path(__file__).parents[1], env=os.environ | {"PYTHONHASHSEED": "0"},
            start_new_session=True)  # a Ctrl-C is the parent's to handle
        self.ready, self.broken, self.received, self.deadline = False, False, b"", 0.0

    def ask(self, question: Question) -> None:
        self.deadline = time.monotonic() + (WALL_SECONDS + GRACE_SECONDS if self.ready else START_SECONDS)
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")  # less than a pipe holds: never blocks
        except BrokenPipeError:
            pass  # the end of its output says the same

    def read(self) -> Reply | None:
        """What has come of the reply; None if that is not all. Call it when there is something to read."""
        fresh = os.read(self.process.stdout.fileno(), 65536)
        self.received += fresh
        if not self.ready and self.received.startswith(READY):
            self.ready, self.received = True, self.received.removeprefix(READY)
            self.deadline = time.monotonic() + WALL_SECONDS + GRACE_SECONDS
        if self.ready and self.received in REPLIES:
            found, self.received = REPLIES[self.received], b""
            return found
        self.broken = not fresh or not any(line.startswith(self.received) for line in (*REPLIES, READY))
        return Reply(False, True) if self.broken else None

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Pool:
    """At most `size` workers, started when they are first needed and kept. One batch is asked at a time."""

    def __init__(self, size: int):
        self.size, self.idle, self.lock = size, [], threading.Lock()

    def ask(self, questions: list[Question]) -> list[Reply]:
        """The replies, in order. Raises UserError if a child does not start."""
        replies, waiting, busy = [None] * len(questions), list(enumerate(questions))[::-1], {}
        with self.lock, selectors.DefaultSelector() as selector:
            try:
                while waiting or busy:
                    while waiting and len(busy) < self.size:
                        worker = self._worker()
                        busy[worker], question = waiting.pop()
                        selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
                        worker.ask(question)
                    wait = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
                    found = {key.data: key.data.read() for key, _ in selector.select(wait)}
                    for worker in busy.keys() - found.keys():
                        worker.broken = worker.deadline <= time.monotonic()
                        found[worker] = Reply(False, True) if worker.broken else None
                    for worker, reply in found.items():
                        if reply:
                            selector.unregister(worker.process.stdout)
                            replies[busy.pop(worker)] = reply
                            self._release(worker)
            finally:
                for worker in busy:  # an exception is on its way
                    worker.end()
        return replies

    def _worker(self) -> Worker:
        while self.idle:
            worker = self.idle.pop()
            if worker.process.poll() is None:
                return worker
            worker.end()
        return Worker()

    def _release(self, worker: Worker) -> None:
        if not worker.broken:
            self.idle.append(worker)
            return
        worker.end()
        if not worker.ready:
            raise UserError("the process that compares answers does not start; to see why: "
                            "echo | python -m rlvr_jax.symbolic")

    def close(self) -> None:
        """Ends the workers; a later question starts new ones."""
        with self.lock:
            while self.idle:
                self.idle.pop().end()


POOL = Pool(min(4, os.cpu_count() or 1))
atexit.register(POOL.close)


if __name__ == "__main__":
    serve()
