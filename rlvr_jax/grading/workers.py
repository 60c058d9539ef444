"""Computer algebra, and verifiers of other programs, at arm's length: child processes that can be killed.

Each is asked one question at a time. SymPy may need for ever, or all memory, for what a model writes (9^{9^{9^9}}), and
cannot be interrupted in a thread. A child (`python -m rlvr_jax.grading.child`) sets its own limits, and the parent
kills one that is past them all the same. The answer is "no" past a limit, and from a child that dies or talks nonsense.
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
from typing import Callable, Iterable, NamedTuple

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
    """A child process, for these graders, that has said that it is ready. Raises UserError if it does not."""

    def __init__(self, *graders: str):
        self.process = subprocess.Popen(
            [*COMMAND, *graders], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            cwd=pathlib.Path(__file__).parents[2], env=os.environ | {"PYTHONHASHSEED": "0"},
            start_new_session=True)  # a Ctrl-C is the parent's to handle
        if self._say(b"", START_SECONDS) != b'"ready"\n':
            self.end()
            raise UserError("the process that compares answers does not start; to see why: "
                            f"echo | python -m {' '.join(['rlvr_jax.grading.child', *graders])}")

    def ask(self, question: child.Question) -> Reply:
        """The reply. After one that is none the worker has ended."""
        line = json.dumps(question).encode() + b"\n"  # less than a pipe holds: never blocks
        reply = REPLIES.get(self._say(line, child.WALL_SECONDS + GRACE_SECONDS))
        if reply is None:
            self.end()
        return reply or Reply(False, True)

    def _say(self, line: bytes, seconds: float) -> bytes:
        """What comes back, up to the end of a line; less if the time is over or the child dead."""
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
    """At most `size` workers, each started when it is first needed and kept in `idle` between questions. They answer
    for the named graders; for none named, for those of computer algebra (`child.ALGEBRA`)."""

    def __init__(self, size: int, *graders: str):
        self.threads, self.idle, self.graders = concurrent.futures.ThreadPoolExecutor(size), [], graders

    def map(self, ask: Callable[[child.Question], Reply], questions: Iterable[child.Question]) -> list[Reply]:
        """What `ask` (which calls `self.ask`) says of each, in order; as many at a time as there are workers."""
        return list(self.threads.map(ask, questions))

    def ask(self, question: child.Question) -> Reply:
        """The reply to one question. Raises UserError if a child does not start."""
        try:
            worker = self.idle.pop()
        except IndexError:
            worker = Worker(*self.graders)
        if worker.process.poll() is not None:  # somebody killed it
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
POOLS = {name: Pool(SIZE, name) for name in OWN}  # apart: what their verifiers need takes seconds to load


def pool(grader: str) -> Pool:
    """Where questions of a grader are asked."""
    return POOLS.get(grader, POOL)


for _pool in (POOL, *POOLS.values()):
    atexit.register(_pool.close)
