"""Computer algebra in child processes: right when it answers, bounded when it does not, and nobody left behind."""

import contextlib
import importlib.metadata
import os
import select
import signal
import subprocess
import sys
import threading
import time

import pytest

from rlvr_jax.errors import UserError
from rlvr_jax.grading import child, grade, graders, workers
from rlvr_jax.grading.child import Question

from fixtures import ROOT

EASY = [Question("math", r"\sqrt{8}", r"2\sqrt{2}"), Question("math", r"\sqrt{8}", r"3\sqrt{2}"),
        Question("math", "(x+1)(x+2)", "x^2+3x+2"), Question("original", "2*sqrt(3)", r"\sqrt{12}"),
        Question("original", r"\sqrt{12}", r"\sqrt{13}"), Question("math", r"\frac{x}{0}", "x")]
RIGHT = [True, False, True, True, False, False]
TOWERS = [Question("math", "9^{9^{9^{9}}}", "7"), Question("original", "10**10**10", "7.5")]
READY = "import sys, time; print('\"ready\"', flush=True); line = sys.stdin.readline();"


@pytest.fixture(scope="module")
def shared():
    with contextlib.closing(workers.Pool(2)) as pool:
        yield pool


@pytest.fixture
def fresh():
    """A pool of one child, for tests that change how children are started."""
    with contextlib.closing(workers.Pool(1)) as pool:
        yield pool


def ask(pool, questions: list[Question]) -> list[bool]:
    return list(pool.threads.map(pool.ask, questions))


def running() -> dict[int, int]:
    """{process id: that of its parent}; zombies do not run."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True).stdout.splitlines()
    return {int(pid): int(parent) for pid, parent, state in map(str.split, table) if state[0] != "Z"}


def gone(pids: list[int], limit: float = 6 * child.WALL_SECONDS) -> bool:
    end = time.monotonic() + limit
    while running().keys() & set(pids) and time.monotonic() < end:
        time.sleep(0.1)
    return not running().keys() & set(pids)


def descendants(pid: int) -> list[int]:
    """The process ids below `pid`: children of a pool, and the forks in which they work."""
    found, parents = [pid], running()
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found[1:]


def test_replies_come_in_the_order_of_the_questions(shared):
    assert ask(shared, EASY) == RIGHT and ask(shared, EASY[::-1]) == RIGHT[::-1] and ask(shared, []) == []


def test_a_question_without_end_is_a_no_and_the_others_are_answered(shared):
    start = time.monotonic()
    assert ask(shared, [*TOWERS, *EASY]) == [None] * 2 + RIGHT
    assert time.monotonic() - start < 3 * child.WALL_SECONDS + workers.START_SECONDS
    assert ask(shared, EASY) == RIGHT


def test_any_text_is_answered(shared):
    texts = ["\0", "x\0y", "\ud800", "\n", '"', "\\", "{" * 500, "[" * 500, "x" * 1000, "\U0001f600" * 1000, "exit()",
             "__import__('os')._exit(0)", "$", "%", r"\boxed{", r"\begin{pmatrix}", "print('true')"]
    for rule in graders.GRADERS:
        assert not any(ask(shared, [Question(rule, text, "7y") for text in texts]))
    assert ask(shared, EASY) == RIGHT


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no limit on memory")
def test_a_child_may_use_no_more_memory(shared):
    assert ask(shared, [Question("original", "['']*200000000", "7.5")]) == [None]  # a list of 1.6 GB
    assert ask(shared, EASY) == RIGHT


@pytest.mark.parametrize("kill_child", [True, False])
def test_a_child_or_its_fork_killed_between_questions_is_replaced_and_leaves_no_reply(shared, kill_child):
    """A reply to no question would be taken for the reply to the next one."""
    ask(shared, EASY)
    pids = [worker.process.pid for worker in shared.idle]
    for pid in pids:
        if kill_child:
            os.killpg(pid, signal.SIGKILL)  # with the fork that works in it
        for fork in [] if kill_child else descendants(pid):
            os.kill(fork, signal.SIGKILL)
    assert gone(pids) and ask(shared, EASY) == RIGHT


def test_a_child_killed_at_work_costs_its_question_alone(shared):
    replies = []
    thread = threading.Thread(target=lambda: replies.extend(ask(shared, [TOWERS[0], *EASY])))
    ask(shared, EASY)
    waiting = {worker.process.pid for worker in shared.idle}
    thread.start()
    while len(shared.idle) == len(waiting):
        time.sleep(0.01)
    for pid in waiting:
        os.killpg(pid, signal.SIGKILL)
    thread.join(workers.START_SECONDS)
    assert len(replies) == 7 and replies[0] is None
    assert replies.count(None) <= len(waiting)


@pytest.mark.parametrize("code", [
    "print('nonsense', flush=True); time.sleep(60)", "print('true true', flush=True); time.sleep(60)", "sys.exit()",
    "print('tru', end='', flush=True)", "print('true\\nfalse', flush=True); time.sleep(60)", "import os; os.abort()",
    "print('x' * 200000, flush=True); time.sleep(60)"])
def test_a_child_that_talks_nonsense_or_dies_is_a_no(monkeypatch, fresh, code):
    monkeypatch.setattr(workers, "COMMAND", [sys.executable, "-c", READY + code])
    start = time.monotonic()
    assert ask(fresh, EASY[:1]) == [None] and not fresh.idle
    assert time.monotonic() - start < child.WALL_SECONDS  # without waiting for more output
    monkeypatch.undo()
    assert ask(fresh, EASY[:1]) == RIGHT[:1]


def test_a_child_that_says_nothing_is_ended(monkeypatch, fresh):
    monkeypatch.setattr(workers, "COMMAND", [sys.executable, "-c", READY + "time.sleep(600)"])
    monkeypatch.setattr(child, "WALL_SECONDS", 0.5)
    assert ask(fresh, EASY[:3]) == [None] * 3 and not fresh.idle


def test_slow_and_broken_replies_are_put_together(monkeypatch, fresh):
    say = "".join(f"print({part!r}, end='', flush=True); time.sleep(0.2);" for part in ("tr", "ue", "\n"))
    monkeypatch.setattr(workers, "COMMAND", [sys.executable, "-c", READY + say + "time.sleep(60)"])
    assert ask(fresh, EASY[:1]) == [True] and len(fresh.idle) == 1


@pytest.mark.parametrize("code", ["raise SystemExit(1)", "print('hello', flush=True)", "import time; time.sleep(600)"])
def test_a_child_that_does_not_start_is_an_error(monkeypatch, fresh, code):
    monkeypatch.setattr(workers, "COMMAND", [sys.executable, "-c", code])
    monkeypatch.setattr(workers, "START_SECONDS", 1)
    with pytest.raises(UserError, match="does not start; to see why: echo | python -m rlvr_jax.grading.child"):
        ask(fresh, EASY)
    assert not fresh.idle


def test_libraries_are_asked_for_by_name_before_anything_is_graded(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert grade.describe_grader("answer", "math") == "answer / math"  # the synthetic tasks need no library
    for answer_format, grader in (("lenient", "math"), ("answer", "original")):
        with pytest.raises(UserError, match=r"Math-Verify.* is not installed: pip install -e '.\[real\]'"):
            grade.describe_grader(answer_format, grader)


PARENT = """
import sys, threading, time
from rlvr_jax.grading import child, workers
workers.POOL.ask(child.Question("math", "x+x", "2x"))
threading.Thread(target=workers.POOL.ask, args=[child.Question("math", "9^{9^{9^9}}", "7")], daemon=True).start()
print("ready", flush=True)
WAIT
"""


@pytest.mark.parametrize("end", ["exits", "is killed"])
def test_no_child_outlives_its_parent(end):
    """Even one in the middle of an endless computation."""
    code = PARENT.replace("WAIT", "time.sleep(600)" if end == "is killed" else "time.sleep(1); workers.POOL.size")
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "ready\n"
        children = descendants(parent.pid)
        assert children
        if end == "is killed":
            parent.kill()
        parent.wait(workers.START_SECONDS)
    assert gone(children)


def test_a_child_loads_no_jax_and_its_parent_no_sympy():
    code = "import sys, rlvr_jax.grading.grade; sys.exit(str({'jax', 'sympy', 'math_verify'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stderr.strip() == "set()"


def test_a_child_is_ended_with_the_fork_in_which_it_works(monkeypatch):
    """The fork keeps the child's output open until it ends."""
    forks = "import os, sys, time; print('\"ready\"', flush=True) if os.fork() else 0; time.sleep(30)"
    monkeypatch.setattr(workers, "COMMAND", [sys.executable, "-c", forks])
    worker = workers.Worker()
    worker.kill()
    readable, _, _ = select.select([worker.process.stdout], [], [], 15)
    assert readable and worker.process.stdout.read(1) == b""
    worker.end()


def test_a_verifier_that_only_waits_is_ended_without_a_parent():
    """It uses no CPU time, and no parent is left to kill it."""
    code = ("import time; from rlvr_jax.grading import child; child.WALL_SECONDS = 0.2;"
            "child.decide_question = lambda question: time.sleep(60); child.serve([])")
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, input=b'["math", "1", "2"]\n', capture_output=True,
                          timeout=40)
    assert told.stdout == b'"ready"\nnull\n' and told.returncode == 0
