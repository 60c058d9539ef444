"""Runs computer algebra and external verifiers in child processes that can be killed.

On what a model writes (9^{9^{9^9}}), SymPy may run forever or take all memory, and a thread cannot be interrupted. A
child (`python -m rlvr_jax.grading.child`) answers one question at a time within its own limits; the parent kills a
child that exceeds them nevertheless. If a child exceeds a limit, dies or sends no readable reply, the reply is None."""

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
from typing import Optional

from rlvr_jax.errors import UserError
from rlvr_jax.grading import child
from rlvr_jax.grading.graders import OWN

GRACE_SECONDS = 1  # time beyond its own limit before the parent kills a child
START_SECONDS = 120  # time for a child to start; importing SymPy is slow on a busy machine
COMMAND = [sys.executable, "-W", "ignore", "-m", "rlvr_jax.grading.child"]
REPLIES = {b"true\n": True, b"false\n": False, b"null\n": None}  # None: out of time or memory


class Worker:
    """A child process for the named graders. The constructor waits until the child is ready, or raises UserError."""

    def __init__(self, *graders: str):
        self.process = subprocess.Popen(
            [*COMMAND, *graders], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            cwd=pathlib.Path(__file__).parents[2], env=os.environ | {"PYTHONHASHSEED": "0"},
            start_new_session=True)  # so that Ctrl-C reaches only the parent
        if self._exchange(b"", START_SECONDS) != b'"ready"\n':  # writes nothing and reads the child's first line
            self.end()
            raise UserError("the process that compares answers does not start; to see why: "
                            f"echo | python -m {' '.join(['rlvr_jax.grading.child', *graders])}")

    def ask(self, question: child.Question) -> Optional[bool]:
        """Whether the answers are equal; None for a timeout or an unreadable reply. The latter also ends the child."""
        line = json.dumps(question).encode() + b"\n"  # fits into a pipe, so that writing never blocks
        reply = self._exchange(line, child.WALL_SECONDS + GRACE_SECONDS)
        if reply not in REPLIES:
            self.end()
        return REPLIES.get(reply)

    def _exchange(self, line: bytes, seconds: float) -> bytes:
        """Writes `line` and returns the reply line, or a part of it if the child dies or is killed after `seconds`."""
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
        with self.process:  # closes its pipes and waits for its end
            self.kill()


class Pool:
    """Workers for the named graders, by default `child.ALGEBRA`. Between questions they wait in the list `idle`; a
    question that finds the list empty starts a worker. `threads`, an executor of `size` threads, asks in parallel."""

    def __init__(self, size: int, *graders: str):
        self.threads, self.idle, self.graders = concurrent.futures.ThreadPoolExecutor(size), [], graders

    def ask(self, question: child.Question) -> Optional[bool]:
        """Returns the reply of an idle or a new worker (`Worker.ask`). UserError if a new worker does not start."""
        try:
            worker = self.idle.pop()
        except IndexError:
            worker = Worker(*self.graders)
        if worker.process.poll() is not None:  # another process killed this worker
            worker.end()
            return self.ask(question)
        reply = worker.ask(question)
        if worker.process.returncode is None:  # `worker.ask` has not ended the child
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
