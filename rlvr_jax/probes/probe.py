"""The table of probes, and what each of them writes."""

import dataclasses
import importlib.util
import inspect
import json
import pathlib
import shlex

from rlvr_jax.config import ProbeConfig
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.benchmarks import load_benchmarks
from rlvr_jax.pretrained import loading
from rlvr_jax.probes import boundary, coherence, confidences, contamination, memory, page
from rlvr_jax.probes.rows import Found, kept_rows
from rlvr_jax.runs import files
from rlvr_jax.runs.flags import flag_lines
from rlvr_jax.runs.origin import machine


def of_steps(config: ProbeConfig) -> Found:
    """Whether each step of a solution is sound, the steps solve the problem, and the answer is right. Two files of
    completions are compared."""
    return coherence.find(kept_rows(config, load_benchmarks, coherence.NEEDS))


def of_twins(config: ProbeConfig) -> Found:
    """Accuracy on near twins of the problem that a run was trained on."""
    return memory.find(kept_rows(config, memory.ask, memory.NEEDS))


def of_tries(config: ProbeConfig) -> Found:
    """How many tries it takes: pass@k of each file against the first one's, and problems that one alone ever solves."""
    return boundary.find(kept_rows(config, load_benchmarks, boundary.NEEDS))


def of_confidences(config: ProbeConfig) -> Found:
    """How well stated confidences fit what was right: Brier score, ECE, AUROC, reliability diagram."""
    return confidences.find(kept_rows(config, load_benchmarks, confidences.NEEDS))


def of_questions(config: ProbeConfig) -> Found:
    """Whether the model can go on with a question that it sees a part of, beside twins or a clean source."""
    return contamination.find(kept_rows(config, contamination.ask, contamination.NEEDS), config.clean)


# --probe -> function of the flags. One that needs completions of its own says what it asks (`rows.kept_rows`).
PROBES = {"coherence": of_steps, "memory": of_twins, "contamination": of_questions,
          "boundary": of_tries, "calibration": of_confidences}
# By what the page lets one choose among items: their key -> what it is called there. A probe without a row has those
# that are true or false.
CHOICES = {
    "coherence": {"coherent": "coherent", "valid": "valid", "right": "right", "correct": "right",
                  "equations_hold": "all equations hold"},
    "memory": {"correct": "right", "benchmark": "what differs", "split": "split"},
    "contamination": {"exact": "exact", "correct": "right", "source": "problems", "fraction": "shown"},
    "boundary": {"solved_by": "solved by"},
    "calibration": {"correct": "right"}}


def probe(config: ProbeConfig) -> Found:
    """Runs one probe; writes NAME.json, NAME.md, NAME.html, NAME.png (with matplotlib) and NAME_items.jsonl into
    `config.out`. The first three say the command, the commit and the machine.
    """
    if not config.out:
        raise UserError("--out is required: the directory for what the probe finds")
    asked, config = config, dataclasses.replace(config, model=loading.pinned(config.model))
    found, out = PROBES[config.probe](config), pathlib.Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    files.write_whole(out / f"{config.probe}_items.jsonl", "".join(json.dumps(one) + "\n" for one in found.items))
    if importlib.util.find_spec("matplotlib"):
        from matplotlib.figure import Figure  # optional

        sheet = Figure(layout="constrained")
        found.draw(sheet)
        with files.naming(out / f"{config.probe}.png"):
            sheet.savefig(out / f"{config.probe}.png", dpi=150)
    made_by = origin(asked)
    files.write_whole(out / f"{config.probe}.md", f"{found.page}\n{made_by}\n")
    about, choices = inspect.getdoc(PROBES[config.probe]) or "", CHOICES.get(config.probe, {})
    files.write_whole(out / f"{config.probe}.html", page.html(config, found, about, choices, made_by))
    files.write_json(out / f"{config.probe}.json",
                     found.record | {"origin": made_by, "flags": dataclasses.asdict(config)})
    return found


def origin(config: ProbeConfig) -> str:
    """The command, with --probe and the flags that have not their default, and what its numbers depend on beside it."""
    defaults, made = flag_lines(dataclasses.replace(ProbeConfig(), probe="")), machine()
    flags = [line for line in flag_lines(config) if line not in defaults and not line.startswith("--out=")]
    return (f"`python -m scripts.probe {shlex.join(flags)}`, commit {made['commit']}, JAX {made['jax']} on "
            f"{made['device']} ({made['platform']}).")
