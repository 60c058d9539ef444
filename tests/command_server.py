"""Runs commands as `python -m scripts.X` does, each in a forked process, which need not import JAX again.

Reads a line of JSON for each command, {"args": [...], "out": path, "err": path, "done": path}, forks a process for it,
and writes the exit code into `done` when it has ended. The imports start no thread and touch no device, so it may
fork.
"""

import json
import os
import pathlib
import runpy
import select
import signal
import sys

import rlvr_jax.training.finetune
import rlvr_jax.training.pretrain
import rlvr_jax.training.train  # noqa: F401  (most commands need what these import)

children, unread = {}, b""
while True:
    if select.select([0], [], [], 0.01)[0]:
        received = os.read(0, 1 << 16)
        if not received:  # the tests have ended
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            os._exit(0)
        *lines, unread = (unread + received).split(b"\n")
        for line in lines:
            request = json.loads(line)
            pid = os.fork()
            if pid == 0:
                break
            children[pid] = request["done"]
        else:
            request = None
        if request:
            break
    while children and (ended := os.waitpid(-1, os.WNOHANG))[0]:
        done = pathlib.Path(children.pop(ended[0]))
        done.with_suffix(".part").write_text(str(os.waitstatus_to_exitcode(ended[1])))
        done.with_suffix(".part").rename(done)

for number, path in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
    os.dup2(os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT), number)
script, *arguments = request["args"]
del sys.modules["__main__"].__doc__
sys.argv = [str(pathlib.Path("scripts", f"{script}.py").absolute()), *arguments]
runpy.run_module(f"scripts.{script}", run_name="__main__", alter_sys=True)
