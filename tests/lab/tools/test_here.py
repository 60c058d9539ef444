"""What a machine is told of itself: its chip, the flag files that fit it, and the one that was made for it."""

import json

import jax
import pytest

from rlvr_jax.errors import UserError
from rlvr_jax.lab.tools import here
from rlvr_jax.lab.tools.chips import CHIPS

RECORD = {f"scripts.compile --flagfile=configs/{name}.flags --chip={chip}": {"chip": chip, "verdict": verdict}
          for name, chip, verdict in (("tiny", "T4", "fits: 0.10 of 14.9 GB"), ("chips/large_T4", "T4", "does not fit"),
                                      ("chips/small_T4", "T4", "fits: 5 of 14.9 GB"), ("chips/a_L4", "L4", "fits: 1"))}


@pytest.mark.parametrize("kind, count, name", [
    ("TPU v5 lite", 8, "v5e-8"), ("TPU v6 lite", 1, "v6e-1"), ("TPU v4", 4, "v4-8"), ("Tesla T4", 2, "T4"),
    ("NVIDIA H100 80GB HBM3", 8, "H100-8"), ("NVIDIA H100 80GB HBM3", 2, "H100"), ("cpu", 2, "")])
def test_a_chip_by_the_kind_that_jax_names(kind, count, name):
    assert here.chip(kind, count) == name and (not name or name in CHIPS)


def test_a_machine_is_told_what_fits_it(tmp_path, monkeypatch):
    record = tmp_path / "chips.json"
    record.write_text(json.dumps(RECORD))
    monkeypatch.setattr(here, "devices", lambda: ("Tesla T4", 1))
    assert here.told(record=record).splitlines() == [
        "this machine: Tesla T4, 1 device; here called T4", "- configs/tiny.flags: fits: 0.10 of 14.9 GB",
        "- configs/chips/large_T4.flags: does not fit", "- configs/chips/small_T4.flags: fits: 5 of 14.9 GB",
        "found by compiling, not by running on such a chip"]
    assert here.told(True, record) == "configs/chips/small_T4.flags"
    monkeypatch.setattr(here, "devices", lambda: ("TPU v9", 4))
    assert "nothing larger was compiled for this" in here.told(record=record)
    with pytest.raises(UserError, match=r"no flag file of configs/chips/ was made for this machine \(TPU v9\)"):
        here.told(True, record)


def test_this_machine_names_itself():
    assert here.devices()[0] == jax.devices()[0].device_kind
