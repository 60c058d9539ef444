"""Results of compiling training runs for chips (results/chips.json): their page, and the results for this machine."""

import json
import math
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
from typing import Iterator

from rlvr_jax.chips.published import CHIPS
from rlvr_jax.errors import UserError
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.training.train import TrainConfig

RECORD, FLAG_FILES = (pathlib.Path(__file__).parents[2] / name for name in ("results/chips.json", "configs"))
CACHED = 1e9  # bytes; caches may hold part of a smaller state, so that bytes over bandwidth is no lower bound
# `device_kind` of a JAX device -> name in CHIPS. To a TPU's name `chip_name` adds the number of cores, as in "v5e-8"; a
# device of a v4 or v5p has two cores. The kinds are from documentation, and were not checked on devices.
KINDS = {"TPU v4": "v4", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v5 lite": "v5e", "TPU v5e": "v5e",
         "TPU v6 lite": "v6e", "TPU v6e": "v6e", "Tesla T4": "T4", "NVIDIA L4": "L4",
         "NVIDIA A100-SXM4-40GB": "A100-40", "NVIDIA H100 80GB HBM3": "H100",
         "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX-PRO-6000"}
# For other GPUs: words of the `device_kind` -> a row of CHIPS with no more memory, if possible of their family. A run
# that fits the row should fit the GPU. Not used for GPUs of laptops or parts of a GPU (MIG), which have less memory.
SIMILAR = {"A100": "A100-40", "H100": "H100", "H200": "H100", "L40": "L4", "L40S": "L4", "A10": "L4", "A10G": "L4",
           "A6000": "L4", "RTX 3090": "L4", "RTX 4090": "L4", "RTX PRO 6000": "RTX-PRO-6000"}


def devices() -> tuple[str, int]:
    """Returns the `device_kind` of this machine's devices and their number. Asks a child process, so that this process
    does not occupy the devices. Raises UserError if JAX finds none."""
    program = "import jax, json; print(json.dumps([jax.devices()[0].device_kind, jax.device_count()]))"
    environ = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"JAX finds no devices here: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def chip_name(kind: str, count: int) -> str:
    """Returns the name in CHIPS, by KINDS or else SIMILAR, of `count` devices whose `device_kind` is `kind`; "" for an
    unknown kind. If CHIPS has no entry for this count, the result for GPUs is the name of one GPU, and for TPUs a name
    that is not in CHIPS, such as "v5e-4"."""
    similar = {} if re.search("Laptop|MIG", kind) else SIMILAR
    matches = (chip for words, chip in similar.items() if re.search(rf"\b{words}\b", kind))
    name = KINDS.get(kind) or next(matches, "")
    with_number = f"{name}-{count * 2 if name in ('v4', 'v5p') else count}"
    return with_number if name.startswith("v") or with_number in CHIPS else name  # "v": the name of a TPU


def describe_machine(flagfile_alone: bool = False, record: pathlib.Path = RECORD) -> str:
    """Returns text: this machine's devices, and the verdict of each flag file that was compiled for them. With
    `flagfile_alone`, returns only the path of a flag file in configs/chips/ that fits, or raises UserError."""
    kind, count = devices()
    name, results = chip_name(kind, count), files.read_json(record, missing={})
    verdicts = [(re.search(r"--flagfile=(\S+)", command)[1], result["verdict"]) for command, result in results.items()
                if result["chip"] == name]
    if flagfile_alone:
        fitting = [path for path, verdict in verdicts if "/chips/" in path and verdict.startswith("fits")]
        if not fitting:
            raise UserError(f"no flag file of configs/chips/ was made for this machine ({kind}) and fits it")
        return fitting[0]
    relation = f"here called {name}" if kind in KINDS else f"compiled as {name}, which has no more memory"
    called = f"; {relation}" if name else ""
    first = f"this machine: {kind}, {count} device{'s' if count > 1 else ''}{called}"
    last = ("found by compiling, not by running on such a chip" if verdicts else
            "configs/tiny.flags runs on anything; nothing larger was compiled for this machine")
    return "\n".join([first, *(f"- {path}: {verdict}" for path, verdict in verdicts), last])


# ----- the page: results of the commands at the heads of configs/*.flags


def commands() -> Iterator[str]:
    """Yields the scripts.compile commands in the comments of flag files, one for each chip of --chip."""
    for path in sorted(FLAG_FILES.rglob("*.flags")):
        head = "".join(re.findall(r"^#(.*\n)", path.read_text("utf-8"), re.M)).replace("\\\n", " ")
        for line in re.findall(r"python -m (scripts\.compile .*)", head):
            words = shlex.split(line)
            chips = next(word.removeprefix("--chip=") for word in words if word.startswith("--chip="))
            others = [word for word in words if not word.startswith("--chip=")]
            yield from (shlex.join([*others, f"--chip={name}"]) for name in chips.split(","))


def write_page(page: pathlib.Path) -> str:
    """Runs each of `commands` that has no result in the .json file beside the page, and rewrites that file and the page
    after each. Returns text to print: the path of the page, and the commands that gave no result."""
    record = page.with_suffix(".json")
    earlier = files.read_json(record, missing={})
    results = {command: earlier.get(command) for command in commands()}
    for command, result in results.items():
        if not result:
            with tempfile.TemporaryDirectory() as folder:
                out = pathlib.Path(folder) / "found.json"
                subprocess.run([sys.executable, "-m", *shlex.split(command), f"--out={out}"])
                results[command], = files.read_json(out, missing={"chips": [None]})["chips"]  # [record or None]
        done = {command: result for command, result in results.items() if result}
        files.write_json(record, done)
        files.write_whole(page, format_page(done))
    return "\n".join([str(page), *(f"no result: {command}" for command, result in results.items() if not result)])


def num_steps(command: str) -> int:
    """Returns --num_steps of a command with its flag files replaced by their flags: the last one, else the default."""
    while named := re.search(r"--flagfile=(\S+)", command):
        flags = re.findall(r"^--.*", (FLAG_FILES.parent / named[1]).read_text("utf-8"), re.M)
        command = command.replace(named[0], " ".join(flags))
    return int(re.findall(r"--num_steps=(\d+)", f"--num_steps={TrainConfig().as_flags()['num_steps']} {command}")[-1])


def format_bound(result: dict, which: str) -> str:
    """Returns text such as "4.8 compute, 12.5": a call's least seconds, what limits it, seconds by estimated cycles."""
    program, bandwidth = result["programs"][which], CHIPS[result["chip"]].bandwidth
    limit = "memory" if math.isclose(program["bytes"] / bandwidth, program["best"]) else "compute"
    return f"{program['best']:,.1f} {limit}" + (f", {program['by_cycles']:,.1f}" if program["by_cycles"] else "")


PAGE = """\
# Training runs compiled for chips that were not there

`python -m scripts.compile --page=results/chips.md` makes this page from the commands at the heads of the flag files.
Nothing was run on a chip. [chips.json](chips.json) has each program's FLOPs, bytes, kernels and memory. Compilers: {}.

GB: the largest peak of a program on one device, with all that stays there (`start`: an undivided state is there twice).
Hours of the run and seconds of a call are lower bounds for completions of full length: FLOPs over the published peak
(`compute`) or bytes over the published bandwidth (`memory`), whichever takes longer, without communication and
evaluations. At 40 %: lengths are the longest times u^1.5, u evenly spaced in (0, 1]. A TPU's second number is libtpu's
estimate by cycles.

{}

A state below {:g} GB has no times: kernels read from caches, so that bytes bound nothing. It fits (GB at the peak): {}.
"""


def format_page(results: dict[str, dict]) -> str:
    """Returns the page for {command: its record}: whether each run fits on its chip, and how long it takes at least."""
    rows, small = [], {}
    for command, result in results.items():
        peak, largest = max((program["peak"] or 0, which) for which, program in result["programs"].items())
        name, fits = re.search(r"--flagfile=configs/(\S+)\.flags", command)[1], result["verdict"].startswith("fits")
        steps, bounded = num_steps(command), result["step"] and result["state"] >= CACHED
        if fits and result["state"] < CACHED:
            small.setdefault(name, []).append(f"{result['chip']} {peak / 1e9:.2f}")
            continue
        hours = [f"{steps * result[key] / 3600:,.1f}" if bounded else "" for key in ("step", "step_at_40")]
        rows.append([name, result["chip"], "yes" if fits else result["verdict"].partition("; could fit")[0],
                     f"{peak / 1e9:.2f} of {result['usable'] / 1e9:.1f}, {largest}", steps, *hours,
                     *(format_bound(result, which) if bounded else "" for which in ("sampling", "update"))])
    table = markdown_table([
        "flag file", "chip", "fits", "GB", "steps", "hours", "at 40 %", "sampling, s", "update, s"], rows)
    return PAGE.format("; ".join(dict.fromkeys(result["compiler"] for result in results.values())), table, CACHED / 1e9,
                       "; ".join(f"{name} on {', '.join(chips)}" for name, chips in small.items()) or "none")
