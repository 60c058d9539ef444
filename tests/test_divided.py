"""A divided state behaves as a whole one: the same updates, samples and checkpoints, with 1/n of it on each device."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from rlvr_jax.runs import processes

from fixtures import ROOT, environment


def run(devices: int, names: str, compiled, tmp_path) -> tuple[dict, dict]:
    """(arrays, bytes on a device) that tests/divided.py returns with so many devices."""
    file = tmp_path / f"{devices}.npz"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = environment(compiled) | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, ROOT / "tests" / "divided.py", str(devices), file, names], text=True,
                          capture_output=True, env=env)
    assert done.returncode == 0, done.stderr
    return dict(np.load(file)), json.loads(done.stdout.splitlines()[-1])


def assert_same(arrays: dict) -> None:
    """Parameters, moments and reference of the divided state agree with those of the whole one to 1e-6;
    log-probabilities and metrics, which sum many numbers, to 2e-5."""
    compared = 0
    for name, x in arrays.items():
        if " whole " in name:
            ours, x = arrays[name.replace(" whole ", " divided ")].astype(float), x.astype(float)
            np.testing.assert_allclose(ours, x, rtol=1e-5, atol=1e-6 if "state" in name else 2e-5, err_msg=name)
            compared += 1
        if "drawn by layer" in name:
            np.testing.assert_allclose(x.astype(float), arrays[name.replace(" by layer", "")].astype(float), atol=2e-5)
    assert compared > 50


@pytest.mark.parametrize("devices, names", [
    (4, "all"), *(pytest.param(n, "kept,lora", marks=pytest.mark.slow) for n in (1, 2, 4, 8))])
def test_divided_is_whole(devices, names, compiled, tmp_path):
    arrays, held = run(devices, names, compiled, tmp_path)
    assert_same(arrays)
    for name in names.split(","):
        vectors = 0.06  # norms and biases are whole, and matrices of rank 2 on four devices
        assert held[f"{name} divided"] <= (1 / devices + vectors) * held[f"{name} whole"] or devices == 1


@pytest.mark.slow
def test_gradients_of_a_bfloat16_model_are_summed_in_float32(compiled, tmp_path):
    """Adam's first moments after one update on four devices, in four micro-batches; 16-bit sums differ by 1e-3."""
    arrays, _ = run(4, "bfloat16", compiled, tmp_path)
    moments = [name for name in arrays if " whole " in name and ".mu[" in name]
    assert len(moments) == 12
    for name in moments:
        ours, x = arrays[name.replace(" whole ", " divided ")].astype(float), arrays[name].astype(float)
        assert np.linalg.norm(ours - x) <= 1e-6 * np.linalg.norm(x), name


def test_a_broadcast_puts_little_on_a_device_at_a_time(monkeypatch):
    sent = []
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "SENT", 64)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda tree: sent.append(tree) or tree)
    state = {"params": np.arange(105, dtype=np.float32).reshape(3, 5, 7), "step": np.int32(4), "none": np.zeros((0, 2))}
    arrived = processes.broadcast(state)
    jax.tree.map(np.testing.assert_array_equal, arrived, state)
    assert [x.dtype for x in jax.tree.leaves(arrived)] == [x.dtype for x in jax.tree.leaves(state)]
    assert max(sum(x.nbytes for x in jax.tree.leaves(tree)) for tree in sent) <= 64
