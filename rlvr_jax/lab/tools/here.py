"""Which of the chips this machine has, and what was found as programs were compiled for that (results/chips.json)."""

import json
import os
import pathlib
import re
import subprocess
import sys

from rlvr_jax.errors import UserError
from rlvr_jax.lab.tools.chips import CHIPS
from rlvr_jax.runs import files

RECORD = pathlib.Path(__file__).parents[3] / "results" / "chips.json"
# How JAX names their kinds -> how CHIPS names them, a TPU before its number of cores (two a device of a v4 or v5p). Of
# these no device was seen here.
KINDS = {"TPU v4": "v4", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v6 lite": "v6e",
         "TPU v6e": "v6e", "Tesla T4": "T4", "NVIDIA L4": "L4", "NVIDIA A100-SXM4-40GB": "A100-40",
         "NVIDIA H100 80GB HBM3": "H100", "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX-PRO-6000"}


def devices() -> tuple[str, int]:
    """The kind of this machine's devices and their number, asked in a process of its own: this leaves them alone."""
    program = "import jax, json; print(json.dumps([jax.devices()[0].device_kind, jax.device_count()]))"
    environ = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"JAX finds no devices here: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def chip(kind: str, count: int) -> str:
    """The row of CHIPS that these devices are; of a GPU that is one device where so many have none; empty for others."""
    name = KINDS.get(kind, "")
    counted = f"{name}-{count * 2 if name in ('v4', 'v5p') else count}"
    return counted if name.startswith("v") or counted in CHIPS else name


def told(flagfile_alone: bool = False, record: pathlib.Path = RECORD) -> str:
    """What this machine is and what fits it, a line a flag file; or the file made for it alone. UserError if none is."""
    (kind, count), known = devices(), files.read_json(record, missing={})
    name = chip(kind, count)
    found = [(re.search(r"--flagfile=(\S+)", command)[1], one) for command, one in known.items() if one["chip"] == name]
    made = [path for path, one in found if "/chips/" in path and one["verdict"].startswith("fits")]
    if flagfile_alone:
        if not made:
            raise UserError(f"no flag file of configs/chips/ was made for this machine ({kind}) and fits it")
        return made[0]
    lines = [f"this machine: {kind}, {count} device{'s' * (count > 1)}" + (f"; here called {name}" if name else "")]
    lines += [f"- {path}: {one['verdict']}" for path, one in found]
    return "\n".join(lines + ["the tiny tier runs on anything; nothing larger was compiled for this"] * (not found)
                     + ["found by compiling, not by running on such a chip"] * bool(found))
