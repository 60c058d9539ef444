"""Readers of files and texts under damaged and hostile input (`fuzz.py`), each in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

import fuzz
from fixtures import ROOT

NEEDS = {"parquet": "pyarrow", "gguf": "gguf", "original grader": "sympy"}


def run(name: str, first: int, count: int, seconds: float) -> dict:
    """The last line of the process; if it fails, the test shows everything it printed."""
    done = subprocess.run([sys.executable, ROOT / "tests" / "fuzz.py", name, str(first), str(count)], cwd=ROOT,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("first, count, seconds", [
    (0, 200, 300), pytest.param(200, 10_000, 7200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", fuzz.READERS)
def test_damaged_inputs_are_read_or_refused_in_one_line(name, first, count, seconds):
    pytest.importorskip(NEEDS.get(name, "json"))
    assert run(name, first, count, seconds) == {"reader": name, "inputs": count, "faults": 0}


@pytest.mark.parametrize("read, said", [
    (lambda path: 1 / 0, "ZeroDivisionError"), (lambda path: path.rename(path.with_suffix(".x")), "")])
def test_the_harness_sees_a_fault(read, said, tmp_path):
    found = fuzz.fault(read, b"abc", tmp_path)
    assert said in found and bool(found) == bool(said)
    assert not list(tmp_path.iterdir())


def test_the_harness_sees_memory(tmp_path):
    """In a process of its own, as a process only knows its peak since it started."""
    program = ("import fuzz, pathlib; "
               f"print(fuzz.fault(lambda _: bytearray(300 << 20), b'abc', pathlib.Path({str(tmp_path)!r})))")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "tests", capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert "MiB for 3 bytes" in done.stdout, done.stderr


def test_an_input_is_a_function_of_its_number():
    import numpy as np

    made = [fuzz.changed(b"coins 7 + 5 =" * 4, np.random.default_rng(7)) for _ in range(2)]
    assert made[0] == made[1] != b"coins 7 + 5 =" * 4
