"""Runs commands as `python -m scripts.X` does, each in a forked process, which need not import JAX again.

Reads a line of JSON for each command, {"args": [...], "out": path, "err": path, "done": path}, forks a process for it,
and writes the exit code into `done` when it has ended. The imports start no thread and touch no device, so it may
fork.
"""

import json
import os
import pathlib
import runpy
import signal
import sys

import rlvr_jax.training.finetune
import rlvr_jax.training.pretrain
import rlvr_jax.training.train  # noqa: F401  (most commands need what these import)

os.setpgrp()
for line in sys.stdin.buffer:
    request = json.loads(line)
    if os.fork() == 0:
        break
else:  # the tests have ended
    os.killpg(0, signal.SIGKILL)
if pid := os.fork():  # this process waits for the one that runs the command
    code, done = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), pathlib.Path(request["done"])
    done.with_suffix(".part").write_text(str(code))
    done.with_suffix(".part").rename(done)
    os._exit(0)

for number, path in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
    os.dup2(os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT), number)
script, *arguments = request["args"]
del sys.modules["__main__"].__doc__
sys.argv = [str(pathlib.Path("scripts", f"{script}.py").absolute()), *arguments]
runpy.run_module(f"scripts.{script}", run_name="__main__", alter_sys=True)
