"""The table of probes, and what each of them writes."""

import inspect
import pathlib
from typing import Callable, Sequence

from rlvr_jax.config import Config, flag, nested
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.benchmarks import EvaluateConfig, keep_benchmarks, load_benchmarks
from rlvr_jax.evaluation.completions import Folder
from rlvr_jax.lab.probes import boundary, calibration, coherence, contamination, memorisation, page, rows
from rlvr_jax.lab.probes.contamination import ContaminationConfig
from rlvr_jax.lab.probes.rows import Result
from rlvr_jax.pretrained import loading
from rlvr_jax.runs import files
from rlvr_jax.runs.flags import describe_command


class ProbeConfig(Config):
    """What training bought: a probe of kept completions, or of those of a model."""

    measured: EvaluateConfig = nested(EvaluateConfig(), out=(
        "directory for PROBE.html, .json, .md, .png and PROBE_items.jsonl, and for the completions that are sampled"))
    probe: str = flag("coherence", "what is asked", lambda: PROBES)
    completions: str = flag("", "JSONL files of completions that were kept, joined by commas; empty: those of "
                            "--model, sampled now")
    example: str = flag("", "memory: the trained problem, as a run directory whose example.json names it, or in "
                        "words; empty: the run in --model")
    fit_on: str = flag("", "calibration: a JSONL file of completions of other problems, such as the dev split's; on "
                       "it are made the constant and the post-hoc confidences that stand beside the stated ones")
    contamination: ContaminationConfig = ContaminationConfig()


def of_steps(config: ProbeConfig) -> Result:
    """Whether each step of a solution is sound, the steps solve the problem, and the answer is right. Two files of
    completions are compared."""
    return coherence.find(kept_rows(config, coherence.NEEDS))


def of_twins(config: ProbeConfig) -> Result:
    """Accuracy on near twins of the problem that a run was trained on."""
    return memorisation.find(kept_rows(config, memorisation.NEEDS, lambda loaded: memorisation.ask(
        config.measured, config.example, loaded)))


def of_tries(config: ProbeConfig) -> Result:
    """How many tries it takes: pass@k of each file against the first one's, and problems that one alone ever solves."""
    return boundary.find(kept_rows(config, boundary.NEEDS))


def of_confidences(config: ProbeConfig) -> Result:
    """How well stated confidences fit what was right: Brier score, ECE, AUROC, reliability diagram."""
    return calibration.find(kept_rows(config, calibration.NEEDS), config.fit_on)


def of_questions(config: ProbeConfig) -> Result:
    """Whether the model can go on with a question that it sees a part of, beside twins or a clean source."""
    return contamination.find(kept_rows(config, contamination.NEEDS, lambda loaded: contamination.ask(
        config.contamination, config.measured, loaded)), config.contamination.clean)


# --probe -> function of the flags
PROBES = {"coherence": of_steps, "memory": of_twins, "contamination": of_questions,
          "boundary": of_tries, "calibration": of_confidences}
# What the page filters items by: their key -> its name there. A probe that is not here is filtered by all keys whose
# values are true or false.
CHOICES = {
    "coherence": {"coherent": "coherent", "valid": "valid", "right": "right", "correct": "right",
                  "equations_hold": "all equations hold"},
    "memory": {"correct": "right", "benchmark": "what differs", "split": "split"},
    "contamination": {"exact": "exact", "correct": "right", "source": "problems", "fraction": "shown"},
    "boundary": {"solved_by": "solved by"},
    "calibration": {"correct": "right"}}


def kept_rows(config: ProbeConfig, needs: Sequence[str], ask: Callable | None = None) -> dict[str, list[dict]]:
    """The rows of every file in --completions, by a short name of the file; else those of the model, sampled now.

    `ask(loaded)` makes the benchmarks that are sampled, those of --problems without it. Their completions are kept in
    --out, and continued as an evaluation's are. Raises UserError for a file whose rows lack one of `needs`.
    """
    measured, kept = config.measured, config.measured.kept
    if bool(config.completions) == bool(kept.choice.model):
        raise UserError("give one of --completions, files of rows that were kept, and --model, which is sampled now")
    if config.completions:
        return rows.read_files(config.completions.split(","), needs, config.probe)
    loaded = loading.load_fixed(kept.choice)
    by_name = keep_benchmarks(measured, loaded, Folder(kept.out, "probe", config, kept.resume),
                              ask(loaded) if ask else load_benchmarks(measured, loaded))
    return {pathlib.Path(kept.choice.model).name: [row for part in by_name.values() for row in part]}


def probe(config: ProbeConfig) -> Result:
    """Runs one probe; writes NAME.json, NAME.md, NAME.html, NAME.png (with matplotlib) and NAME_items.jsonl into --out.
    The first three end with the command, the commit and the machine.
    """
    if not config.measured.kept.out:
        raise UserError("--out is required: the directory for what the probe finds")
    made_by = describe_command("probe", config, "probe")
    config = config.with_flags(model=loading.pinned(config.measured.kept.choice.model))
    result, stem = PROBES[config.probe](config), pathlib.Path(config.measured.kept.out) / config.probe
    stem.parent.mkdir(parents=True, exist_ok=True)
    files.write_lines(stem.with_name(f"{config.probe}_items.jsonl"), result.items)
    files.write_figure(stem.with_name(f"{config.probe}.png"), result.draw)
    files.write_whole(stem.with_name(f"{config.probe}.md"), f"{result.page}\n{made_by}\n")
    files.write_whole(stem.with_name(f"{config.probe}.html"), page.html(
        stem, title(config), inspect.getdoc(PROBES[config.probe]) or "", result,
        CHOICES.get(config.probe, {}), made_by))
    files.write_json(stem.with_name(f"{config.probe}.json"),
                     result.record | {"origin": made_by, "flags": config.as_flags()})
    return result


def title(config: ProbeConfig) -> str:
    """What the page is about: the probe, and whose completions, by the names of their files or folders."""
    paths = [pathlib.Path(path) for path in config.completions.split(",")]
    folders = len(paths) == 1 and paths[0].stem == "completions"  # the name that every evaluation gives
    names = [paths[0].parent.name] if folders else rows.short_names(config.completions.split(","))
    whose = f"the completions in {', '.join(names)}" if config.completions else (
        f"the model {pathlib.Path(config.measured.kept.choice.model).name}")
    return f"{config.probe.capitalize()} of {whose}"
