"""What is installed: the window of JAX versions, and an accelerator that JAX does not use."""

import glob
import re

import jax
import pytest
from packaging.requirements import Requirement

from rlvr_jax.errors import UserError
from rlvr_jax.runs import machine
from scripts import cli

from fixtures import ROOT, record_of

FILES = {"/dev/accel[0-9]*": ["/dev/accel0"], "/dev/vfio/[0-9]*": ["/dev/vfio/3"],
         "/dev/nvidia[0-9]*": ["/dev/nvidia0"], "/dev/dxg": ["/dev/dxg"]}


def warning(files=(), smi=None, platforms=("cpu",)):
    return machine.unused_accelerator(
        lambda: set(platforms), lambda pattern: FILES[pattern] if pattern in files else [], lambda name: smi)


@pytest.mark.parametrize("version", ["0.7.2", "0.9.2", "0.13.0", "1.0.0"])
def test_no_script_starts_on_a_jax_outside_the_window(monkeypatch, version):
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"jax": version}[name])
    with pytest.raises(UserError, match=rf"JAX {re.escape(version)} is installed, .* runs on JAX 0.10 to 0.12: pip"):
        cli.import_config_class("rlvr_jax.runs.machine.MachineConfig")


def allowed(name, version, python) -> bool:
    """Whether requirements.txt lets pip install this version on that Python."""
    lines = [Requirement(line) for line in (ROOT / "requirements.txt").read_text().splitlines()
             if line.startswith(name)]
    holding = [line for line in lines if not line.marker or line.marker.evaluate({"python_version": python})]
    return all(line.specifier.contains(version) for line in holding) and len(holding) == 1


@pytest.mark.parametrize("python, jax_version, flax_version, fits", [
    ("3.11", "0.10.2", "0.12.8", True), ("3.12", "0.11.2", "0.12.12", True), ("3.13", "0.11.2", "0.12.10", True),
    # With these, `import flax.nnx` raises an AttributeError of jax.experimental.hijax.
    ("3.12", "0.11.1", "0.12.8", False), ("3.13", "0.11.2", "0.12.8", False), ("3.13", "0.11.2", "0.12.9", False),
    ("3.12", "0.7.2", "0.11.2", False), ("3.13", "0.12.0.1", "0.12.12", True), ("3.11", "0.12.0.1", "0.12.12", False)])
def test_pip_installs_pairs_of_jax_and_flax_that_import(python, jax_version, flax_version, fits):
    assert (allowed("jax", jax_version, python) and allowed("flax", flax_version, python)) == fits
    if fits:
        cli.check_jax(jax_version)


@pytest.mark.parametrize("given, says", [
    ({"files": ["/dev/accel[0-9]*"]}, 'a TPU (/dev/accel0), .*"jax[tpu]"'),
    ({"files": ["/dev/vfio/[0-9]*"]}, 'a TPU (/dev/vfio/3), .*"jax[tpu]"'),
    ({"files": ["/dev/nvidia[0-9]*"]}, 'an NVIDIA GPU (/dev/nvidia0), .*"jax[cuda12]"'),
    ({"files": ["/dev/dxg"]}, 'an NVIDIA GPU (/dev/dxg), .*"jax[cuda12]"'),
    ({"smi": "/usr/bin/nvidia-smi"}, 'an NVIDIA GPU (nvidia-smi), .*"jax[cuda12]"')])
def test_an_accelerator_that_jax_does_not_use_is_named_with_what_to_install(given, says):
    line = warning(**given)
    assert re.search(re.escape(says).replace(r"\.\*", ".*"), line) and "ON THE CPU" in line and "\n" not in line
    for platform in ("tpu", "gpu"):
        assert warning(**given, platforms=[platform]) == ""


def test_nothing_is_said_where_there_is_no_accelerator_or_the_cpu_is_asked_for():
    def unasked():
        raise AssertionError("JAX must not take hold of devices to say nothing")

    assert machine.unused_accelerator(unasked, lambda pattern: [], lambda name: None) == ""
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", "cpu")
        assert warning(files=FILES, smi="/usr/bin/nvidia-smi") == ""
    finally:
        jax.config.update("jax_platforms", before)


def test_a_chip_of_a_laptop_and_an_empty_vfio_are_no_tpu(tmp_path):
    """Linux has /dev/accel/accel0 for laptops' neural processors, and /dev/vfio/vfio wherever the module is loaded."""
    for name in ("accel/accel0", "vfio/vfio"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()

    def find(pattern):
        return glob.glob(pattern.replace("/dev", str(tmp_path)))

    assert machine.unused_accelerator(lambda: {"cpu"}, find, lambda name: None) == ""
    (tmp_path / "accel0").touch()
    assert "a TPU" in machine.unused_accelerator(lambda: {"cpu"}, find, lambda name: None)


def test_a_script_that_computes_warns_as_it_starts_and_others_leave_the_device_alone(monkeypatch, capsys):
    monkeypatch.setattr(machine, "unused_accelerator", lambda: "an idle chip")
    cli.prepare_jax(machine.MachineConfig())
    assert capsys.readouterr().err == "warning: an idle chip\n"
    for script in ("report", "grade", "select_example"):
        cli.prepare_jax(record_of(script)())
    assert capsys.readouterr().err == ""


def test_weights_stay_apart_where_there_is_an_nvidia_gpu():
    environ = {"XLA_FLAGS": "--xla_dump_to=here"}
    machine.prepare_gpu(environ, lambda name: None)
    assert environ == {"XLA_FLAGS": "--xla_dump_to=here"}
    machine.prepare_gpu(environ, {"nvidia-smi": "/usr/bin/nvidia-smi"}.get)
    assert environ["XLA_FLAGS"].split() == ["--xla_gpu_dot_merger_threshold_mb=0", "--xla_dump_to=here"]  # last wins
