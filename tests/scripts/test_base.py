"""The base model of the repository, checkpoints/tiny_base: its card, and that `make base` makes it again."""

import hashlib
import json
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest

from rlvr_jax.pretrained import loading

from fixtures import ROOT, run

BASE = ROOT / "checkpoints" / "tiny_base"
README = (ROOT / "README.md").read_text("utf-8")
CARD = (BASE / "README.md").read_text("utf-8")


def test_the_files_are_those_of_the_card():
    sums = dict(re.findall(r"^\| (\S+) \| ([0-9a-f]{64}) \|$", CARD, re.M))
    assert sums == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in BASE.iterdir()
                    if path.name != "README.md"}
    assert sum(path.stat().st_size for path in BASE.iterdir()) < 1e6


def test_its_flags_are_those_of_its_flag_file():
    given = [line for line in (ROOT / "configs" / "tiny_base.flags").read_text().splitlines() if line[0] != "#"]
    kept = {"--learning_rate=3e-3": "--learning_rate=0.003", "--noremat": "--remat=False"}
    assert {kept.get(line, line) for line in given} <= set((BASE / "flags.txt").read_text().splitlines())


def test_its_completion_in_the_readme_is_its_own(compiled):
    problem, completion = (re.search(rf"^\\| {row}[^`\n]*`([^`]+)`", README, re.M)[1] for row in ("an unseen", "before"))
    printed = run("sample", f"--model={BASE}", f"--prompt={problem}", "--temperature=0", "--num_samples=1",
                  "--max_new_tokens=22", compiled=compiled, expect=0).out
    assert completion in printed


@pytest.mark.slow
def test_make_base_makes_it_again(tmp_path):
    """Bit for bit with AVX-512 and the JAX of the card; elsewhere a base that solves about as much."""
    lines = re.search(r"^base:.*?\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    for line in re.findall(r"-m scripts\.(.*)", lines):
        line = line.replace("$(RUN)", f"{tmp_path}/run").replace("$(BASE)", f"{tmp_path}/tiny_base")
        script, *flags = shlex.split(line)
        subprocess.run([sys.executable, "-m", f"scripts.{script}", *flags], cwd=ROOT, check=True, capture_output=True)
    ours, theirs = (loading.load_model(str(path)).params for path in (BASE, tmp_path / "tiny_base"))
    same = [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True)]
    if f"JAX {jax.__version__}," in CARD and "avx512f" in pathlib.Path("/proc/cpuinfo").read_text():
        assert all(same)
    else:
        final = json.loads((tmp_path / "run_base" / "summary.json").read_text())["final"]
        assert abs(final["greedy"] - float(re.search(r"\| greedy \| (\S+)", CARD)[1])) < 0.15
