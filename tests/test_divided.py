"""A divided state behaves as a whole one: the same updates, samples and checkpoints, with 1/n of it on each device."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from rlvr_jax.runs import processes

from fixtures import ROOT, TRAIN_FLAGS, count_lines, environment, finish, start, wait_for


def run(devices: int, names: str, compiled, tmp_path) -> tuple[dict, dict]:
    """(arrays, bytes on a device) that tests/divided.py returns with so many devices."""
    file = tmp_path / f"{devices}.npz"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = environment(compiled) | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, ROOT / "tests" / "divided.py", str(devices), file, names], text=True,
                          capture_output=True, env=env)
    assert done.returncode == 0, done.stderr
    return dict(np.load(file)), json.loads(done.stdout.splitlines()[-1])


def assert_same(arrays: dict, wanted: dict, few: float = 0.0) -> None:
    """Parameters, moments and reference agree to 1e-6, except for a share `few` of their numbers. These numbers,
    log-probabilities and metrics, which sum many numbers, agree to 2e-5."""
    compared = 0
    for name, x in wanted.items():
        if " whole " in name:
            ours, x = arrays[name.replace(" whole ", " divided ")].astype(float), x.astype(float)
            np.testing.assert_allclose(ours, x, rtol=1e-5, atol=2e-5, err_msg=name)
            assert "state" not in name or np.mean(np.abs(ours - x) > 1e-6 + 1e-5 * np.abs(x)) <= few, name
            compared += 1
        if "drawn by layer" in name:
            np.testing.assert_allclose(x.astype(float), wanted[name.replace(" by layer", "")].astype(float), atol=2e-5)
    assert compared > 50


@pytest.mark.parametrize("devices, names", [
    (4, "all"), *(pytest.param(n, "kept,lora", marks=pytest.mark.slow) for n in (1, 2, 4, 8))])
def test_divided_is_whole(devices, names, compiled, tmp_path):
    arrays, held = run(devices, names, compiled, tmp_path)
    assert_same(arrays, arrays)
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


@pytest.mark.slow
def test_an_adapter_divided_among_two_ends_on_a_busy_machine(base, compiled, tmp_path):
    """Twenty runs beside processes that occupy every core; a signal ends one more."""
    def begin(name: str, steps: int):
        return start("train", *TRAIN_FLAGS, f"--num_steps={steps}", "--trainable=lora", "--divide_state",
                     "--host_devices=2", f"--model={base}", f"--run_dir={tmp_path / name}", compiled=compiled)

    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() + 1)]
    try:
        for number in range(20):
            finish(begin(str(number), 12), expect=0, limit=300)
        signalled = begin("signalled", 10_000)
        wait_for(lambda: count_lines(tmp_path / "signalled" / "metrics.jsonl") >= 4, signalled)
        signalled.send_signal(signal.SIGTERM)
        assert "the same command continues" in finish(signalled, expect=143, limit=60).err
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_divided_among_many_is_whole_on_one(compiled, tmp_path):
    """Not to the last bit: more devices sum in another order, and Adam amplifies the rounding of small gradients."""
    wanted, _ = run(1, "kept", compiled, tmp_path)
    for devices in (2, 4, 8):
        assert_same(run(devices, "kept", compiled, tmp_path)[0], wanted, few=1e-4)


@pytest.mark.slow
def test_gradients_of_the_embedding_do_not_depend_on_micro_batches(compiled, tmp_path):
    """XLA has moved sums over devices out of a loop over micro-batches wrongly (openxla/xla, issue 49143)."""
    arrays, _ = run(4, "kept,micro", compiled, tmp_path)
    for leaf in ("embed", "head"):
        name = f"divided ['state'].params['{leaf}']"
        np.testing.assert_allclose(arrays[f"kept {name}"], arrays[f"micro {name}"], rtol=1e-5, atol=1e-6)
