"""Computer algebra at arm's length: what `mathematics` and `original` cannot tell from the text.

SymPy may need for ever, or all memory, for what a model writes (9^{9^{9^9}}), and cannot be interrupted in a thread.
So it runs in a few child processes, `python -m rlvr_jax.grading.child`, that answer one line of JSON with another and
can be killed. A question that exceeds a limit of `child`, or whose child dies or talks nonsense, is answered with "no".
The child sets its own limits, and the parent ends a child that is past WALL_SECONDS all the same.
"""

import atexit
import importlib.util
import json
import os
import pathlib
import selectors
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from rlvr_jax.errors import UserError
from rlvr_jax.grading import child
from rlvr_jax.grading.child import Question

GRACE_SECONDS = 1  # for a child to end by its own limit
START_SECONDS = 120  # importing SymPy on a busy machine
COMMAND = [sys.executable, "-W", "ignore", "-m", "rlvr_jax.grading.child"]


class Reply(NamedTuple):
    equal: bool
    timed_out: bool  # or out of memory, or dead


READY = b'"ready"\n'
REPLIES = {b"true\n": Reply(True, False), b"false\n": Reply(False, False), b"null\n": Reply(False, True)}


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
            cwd=pathlib.Path(__file__).parents[2], env=os.environ | {"PYTHONHASHSEED": "0"},
            start_new_session=True)  # a Ctrl-C is the parent's to handle
        self.ready, self.broken, self.received, self.deadline = False, False, b"", 0.0

    def ask(self, question: Question) -> None:
        self.deadline = time.monotonic() + (child.WALL_SECONDS + GRACE_SECONDS if self.ready else START_SECONDS)
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
            self.deadline = time.monotonic() + child.WALL_SECONDS + GRACE_SECONDS
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
                            "echo | python -m rlvr_jax.grading.child")

    def close(self) -> None:
        """Ends the workers; a later question starts new ones."""
        with self.lock:
            while self.idle:
                self.idle.pop().end()


POOL = Pool(min(4, os.cpu_count() or 1))
atexit.register(POOL.close)


