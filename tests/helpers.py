"""Scripts run as a user runs them, in processes of their own, on a base small enough to make in seconds."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = pathlib.Path(__file__).parents[1]
BASE = ("--num_ops=2", "--num_layers=1", "--d_model=16", "--num_heads=2", "--d_ff=32", "--batch_size=64", "--noremat",
        "--warmup_steps=10", "--learning_rate=1e-2", "--eval_size=16")
# Every reward pays for format, which even this base has at times, and the other terms have a gradient always.
TRAIN = ("--num_ops=2", "--example=1", "--num_prompts=2", "--group_size=4", "--max_new_tokens=10", "--noremat",
         "--eval_size=16", "--reward=format", "--kl_coef=0.01", "--entropy_coef=0.01", "--learning_rate=1e-3",
         "--schedule=linear", "--decay_steps=60")


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that begin with "error:"."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


@pytest.fixture(scope="session")
def compiled(request) -> str:
    """A folder of compiled programs that all processes share, and the next session of tests too."""
    return str(request.config.cache.mkdir("jax_programs"))


@pytest.fixture(scope="session")
def base(tmp_path_factory, compiled) -> pathlib.Path:
    """A run directory of `scripts.pretrain`."""
    return _base(tmp_path_factory.getbasetemp() / "base", compiled)


@functools.cache  # once, however many modules import the fixture
def _base(path, compiled) -> pathlib.Path:
    run("pretrain", *BASE, "--num_steps=200", "--save_every=100", f"--run_dir={path}", compiled=compiled, expect=0)
    return path


def start(script: str, *flags, compiled: str, prefix: tuple = ()) -> subprocess.Popen:
    """`python -m scripts.SCRIPT FLAGS`, started; by the command `prefix`, if there is one."""
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": compiled, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen([*prefix, sys.executable, "-m", f"scripts.{script}", *map(str, flags)], cwd=ROOT, env=env,
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen, expect: int | None = None, limit: float = 300) -> Result:
    """Waits for it; `expect` is the exit code it has to have."""
    try:
        out, err = process.communicate(timeout=limit)
    finally:
        process.kill()
    assert expect is None or process.returncode == expect, f"exit code {process.returncode}\n{out}\n{err}"
    return Result(process.returncode, out, err)


def run(script: str, *flags, compiled: str, expect: int | None = None, **options) -> Result:
    return finish(start(script, *flags, compiled=compiled, **options), expect)


def wait_for(condition, process: subprocess.Popen, limit: float = 120) -> None:
    """Returns once `condition()` holds; fails if the process ends or `limit` seconds pass before."""
    end = time.monotonic() + limit
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.001)


def read_jsonl(path) -> list[dict]:
    return [json.loads(line) for line in pathlib.Path(path).read_text("utf-8").splitlines()]


def count_lines(path) -> int:
    path = pathlib.Path(path)
    return path.read_bytes().count(b"\n") if path.exists() else 0


def without_clock(row: dict) -> dict:
    """A row or summary without what belongs to one process: all else is a function of (flags, seed, step)."""
    return {key: value for key, value in row.items()
            if not key.startswith("seconds") and "per_second" not in key and key != "compilations"}


def saved_arrays(run_dir, step: int) -> dict:
    """Every array of a checkpoint, by path: parameters, optimiser moments, reference, step."""
    with ocp.PyTreeCheckpointer() as reader:
        items = {name: reader.restore((pathlib.Path(run_dir) / "checkpoints" / str(step) / name).absolute())
                 for name in ("params", "training")}
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(items)}


def assert_same_arrays(actual: dict, expected: dict) -> None:
    """Bit for bit."""
    assert actual.keys() == expected.keys()
    assert not [name for name, x in expected.items()
                if (x.dtype, x.shape, x.tobytes()) != (actual[name].dtype, actual[name].shape, actual[name].tobytes())]


def assert_same_run(actual, expected, step: int) -> None:
    """Two run directories hold the same training up to `step`, bit for bit."""
    assert_same_arrays(saved_arrays(actual, step), saved_arrays(expected, step))
    for name in ("metrics.jsonl", "rollouts.jsonl", "heldout.jsonl"):
        rows = [[without_clock(row) for row in read_jsonl(pathlib.Path(run_dir) / name)]
                for run_dir in (actual, expected)]
        assert rows[0] == rows[1], name
    summaries = [json.loads((pathlib.Path(run_dir) / "summary.json").read_text()) for run_dir in (actual, expected)]
    assert without_clock(summaries[0]) == without_clock(summaries[1])
