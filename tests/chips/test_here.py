"""The record of compiled chips: its page, and what a machine learns of its own chip and of flag files for it."""

import json
import pathlib

import jax
import pytest

from rlvr_jax.chips import compile, here
from rlvr_jax.chips.compile import CompileConfig
from rlvr_jax.chips.published import CHIPS
from rlvr_jax.errors import UserError

RECORD = {f"scripts.compile --flagfile=configs/{name}.flags --chip={chip}": {"chip": chip, "verdict": verdict}
          for name, chip, verdict in (("tiny", "T4", "fits: 0.10 of 14.9 GB"), ("chips/large_T4", "T4", "does not fit"),
                                      ("chips/small_T4", "T4", "fits: 5 of 14.9 GB"), ("chips/a_L4", "L4", "fits: 1"))}


@pytest.mark.parametrize("kind, count, name", [
    ("TPU v5 lite", 8, "v5e-8"), ("TPU v6 lite", 1, "v6e-1"), ("TPU v4", 4, "v4-8"), ("Tesla T4", 2, "T4"),
    ("NVIDIA H100 80GB HBM3", 8, "H100-8"), ("NVIDIA H100 80GB HBM3", 2, "H100"), ("cpu", 2, ""),
    ("NVIDIA A100 80GB PCIe", 1, "A100-40"), ("NVIDIA A100-PCIE-40GB", 1, "A100-40"), ("NVIDIA H100 PCIe", 8, "H100-8"),
    ("NVIDIA H200", 1, "H100"), ("NVIDIA L40S", 1, "L4"), ("NVIDIA RTX A6000", 1, "L4"),
    ("NVIDIA GeForce RTX 3090", 1, "L4"), ("NVIDIA GeForce RTX 4090", 1, "L4"),
    ("NVIDIA A10G", 1, "L4"), ("NVIDIA GeForce RTX 4090 Laptop GPU", 1, ""), ("NVIDIA RTX A1000", 1, ""),
    ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 1, "")])
def test_a_chip_by_the_kind_that_jax_names(kind, count, name):
    assert here.chip_name(kind, count) == name and (not name or name in CHIPS)


def test_a_machine_is_told_what_fits_it(tmp_path, monkeypatch):
    record = tmp_path / "chips.json"
    record.write_text(json.dumps(RECORD))
    monkeypatch.setattr(here, "devices", lambda: ("Tesla T4", 1))
    assert here.describe_machine(record=record).splitlines() == [
        "this machine: Tesla T4, 1 device; here called T4", "- configs/tiny.flags: fits: 0.10 of 14.9 GB",
        "- configs/chips/large_T4.flags: does not fit", "- configs/chips/small_T4.flags: fits: 5 of 14.9 GB",
        "found by compiling, not by running on such a chip"]
    assert here.describe_machine(True, record) == "configs/chips/small_T4.flags"
    monkeypatch.setattr(here, "devices", lambda: ("NVIDIA GeForce RTX 4090", 1))
    assert here.describe_machine(record=record).splitlines()[:2] == [
        "this machine: NVIDIA GeForce RTX 4090, 1 device; compiled as L4, which has no more memory",
        "- configs/chips/a_L4.flags: fits: 1"]
    monkeypatch.setattr(here, "devices", lambda: ("TPU v9", 4))
    assert "nothing larger was compiled for this" in here.describe_machine(record=record)
    with pytest.raises(UserError, match=r"no flag file of configs/chips/ was made for this machine \(TPU v9\)"):
        here.describe_machine(True, record)


def test_this_machine_names_itself():
    assert here.devices()[0] == jax.devices()[0].device_kind


def test_the_page_has_what_each_command_at_the_head_of_a_flag_file_found(monkeypatch, tmp_path):
    """One command for each chip, in the order of the files; commands with a result in the record do not run again."""
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "a.flags").write_text("# Words.\n#   python -m scripts.compile --chip=v5e-1,H100,T4 "
                                     "--flagfile=configs/a.flags \\\n#     --fit\n--flagfile=configs/b.flags\n")
    (configs / "b.flags").write_text("#   python -m scripts.train --flagfile=configs/b.flags\n--num_steps=72\n")
    monkeypatch.setattr(here, "FLAG_FILES", configs)
    lines = [f"scripts.compile --flagfile=configs/a.flags --fit --chip={name}" for name in ("v5e-1", "H100", "T4")]
    assert list(here.commands()) == lines
    page, ran = tmp_path / "chips.md", []

    def run(words):
        name, out = words[-2].removeprefix("--chip="), words[-1].removeprefix("--out=")
        ran.append(name)
        call = {"peak": 2e9, "best": 1.0, "bytes": CHIPS[name].bandwidth, "by_cycles": 0.0}
        one = {"chip": name, "compiler": "c", "usable": 16e9, "state": 2e9 if name == "H100" else 2e6, "step": 1250.0,
               "step_at_40": 50.0, "verdict": "does not fit: update" if name == "v5e-1" else "fits", "programs": {
                   "sampling": call, "update": call | {"peak": None, "best": 1249.0, "by_cycles": 1999.6}}}
        pathlib.Path(out).write_text(json.dumps({"chips": [one]}))

    monkeypatch.setattr(here.subprocess, "run", run)
    assert compile.run(CompileConfig.from_flags(page=str(page))) == str(page)
    written = page.read_text()
    assert ("| a | v5e-1 | does not fit: update | 2.00 of 16.0, sampling | 72 |  |  |  |  |\n"  # small: no bound
            "| a | H100 | yes | 2.00 of 16.0, sampling | 72 | 25.0 | 1.0 | 1.0 memory | 1,249.0 compute, 1,999.6 |\n"
            "\nA state below 1 GB") in written  # 72 steps of 1,250 s are 25 hours
    assert written.endswith("It fits (GB at the peak): a on T4 2.00.\n")
    record = json.loads((tmp_path / "chips.json").read_text())
    del record[lines[0]]
    (tmp_path / "chips.json").write_text(json.dumps(record | {"scripts.compile --gone": {}}))
    compile.run(CompileConfig.from_flags(page=str(page)))
    assert ran == ["v5e-1", "H100", "T4", "v5e-1"] and list(json.loads((tmp_path / "chips.json").read_text())) == lines
    assert page.read_text() == written
