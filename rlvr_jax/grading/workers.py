"""Computer algebra, and verifiers of other programs, in child processes that can be killed.

SymPy may take forever, or all memory, on what a model writes (9^{9^{9^9}}), and cannot be interrupted in a thread. A
child (`python -m rlvr_jax.grading.child`) answers one question at a time within its own limits; the parent kills one
that exceeds them nevertheless. Exceeding a limit, dying, or an unreadable reply counts as "no".
"""

import atexit
import concurrent.futures
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
from typing import NamedTuple

from rlvr_jax.errors import UserError
from rlvr_jax.grading import child
from rlvr_jax.grading.graders import OWN

GRACE_SECONDS = 1  # for a child to end by its own limit
START_SECONDS = 120  # importing SymPy on a busy machine
COMMAND = [sys.executable, "-W", "ignore", "-m", "rlvr_jax.grading.child"]


class Reply(NamedTuple):
    equal: bool
    timed_out: bool  # or out of memory, or dead


REPLIES = {b"true\n": Reply(True, False), b"false\n": Reply(False, False), b"null\n": Reply(False, True)}


class Worker:
    """A child process for these graders that has reported to be ready. Raises UserError if it does not start."""

    def __init__(self, *graders: str):
        self.process = subprocess.Popen(
            [*COMMAND, *graders], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            cwd=pathlib.Path(__file__).parents[2], env=os.environ | {"PYTHONHASHSEED": "0"},
            start_new_session=True)  # a Ctrl-C is the parent's to handle
        if self._exchange(b"", START_SECONDS) != b'"ready"\n':
            self.end()
            raise UserError("the process that compares answers does not start; to see why: "
                            f"echo | python -m {' '.join(['rlvr_jax.grading.child', *graders])}")

    def ask(self, question: child.Question) -> Reply:
        """The reply. An unreadable one counts as a timeout and ends the worker."""
        line = json.dumps(question).encode() + b"\n"  # fits into a pipe, so that writing never blocks
        reply = REPLIES.get(self._exchange(line, child.WALL_SECONDS + GRACE_SECONDS))
        if reply is None:
            self.end()
        return reply or Reply(False, True)

    def _exchange(self, line: bytes, seconds: float) -> bytes:
        """Writes a line; returns one line, or a part of it if the child dies or the time runs out."""
        timer, reply = threading.Timer(seconds, self.kill), b""
        timer.start()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line)
            while not reply.endswith(b"\n") and len(reply) < 64 and (part := self.process.stdout.read(64)):
                reply += part
        timer.cancel()
        return reply

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> None:
        self.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Pool:
    """At most `size` workers for the named graders (without names, `child.ALGEBRA`), each started when first needed and
    kept in `idle` between questions. `threads`, as many as workers, are for callers who ask several questions."""

    def __init__(self, size: int, *graders: str):
        self.threads, self.idle, self.graders = concurrent.futures.ThreadPoolExecutor(size), [], graders

    def ask(self, question: child.Question) -> Reply:
        """The reply to one question. Raises UserError if a child does not start."""
        try:
            worker = self.idle.pop()
        except IndexError:
            worker = Worker(*self.graders)
        if worker.process.poll() is not None:  # another process killed it
            worker.end()
            return self.ask(question)
        reply = worker.ask(question)
        if worker.process.returncode is None:
            self.idle.append(worker)
        return reply

    def close(self) -> None:
        """Ends the idle workers; a later question starts new ones."""
        while self.idle:
            self.idle.pop().end()


SIZE = min(4, os.cpu_count() or 1)
POOL = Pool(SIZE)
POOLS = {name: Pool(SIZE, name) for name in OWN}  # separate, because their libraries take seconds to load
for _pool in (POOL, *POOLS.values()):
    atexit.register(_pool.close)
