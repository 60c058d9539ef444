"""The table of probes, and the files that a probe writes."""

import functools
import inspect
import pathlib
from typing import Callable, Sequence

from rlvr_jax.config import Config, flag, nested
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.benchmarks import EvaluateConfig, load_benchmarks, sample_benchmarks
from rlvr_jax.evaluation.completions import Folder
from rlvr_jax.lab.probes import boundary, calibration, coherence, contamination, memorisation, page, rows
from rlvr_jax.lab.probes.contamination import ContaminationConfig
from rlvr_jax.pretrained import loading
from rlvr_jax.runs import files
from rlvr_jax.runs.flags import describe_command


class ProbeConfig(Config):
    """A probe of what training changed, on saved completions or on those of a model."""

    measured: EvaluateConfig = nested(EvaluateConfig(), out=(
        "directory for PROBE.html, .json, .md, .png and PROBE_items.jsonl, and for the completions that are sampled"))
    probe: str = flag("coherence", "the question to answer", lambda: PROBES)
    completions: str = flag("", "JSONL files of saved completions, joined by commas; empty: sample those of --model "
                            "now")
    example: str = flag("", "memory: the text of the problem that the run was trained on, or a run directory with "
                        "an example.json; empty: the run in --model")
    fit_on: str = flag("", "calibration: a JSONL file of completions of other problems, such as the dev split's; "
                       "fits two controls on them, a constant confidence and post-hoc calibrated confidences")
    contamination: ContaminationConfig = ContaminationConfig()


def coherence_of_steps(config: ProbeConfig) -> rows.Result:
    """Whether each step of a solution is sound, the steps solve the problem, and the answer is right. Two files of
    completions are compared."""
    return coherence.probe_coherence(load_rows(config, coherence.NEEDS))


def accuracy_on_twins(config: ProbeConfig) -> rows.Result:
    """Accuracy on near twins of the problem that a run was trained on."""
    make_benchmarks = functools.partial(memorisation.make_benchmarks, config.measured, config.example)
    return memorisation.probe_memorisation(load_rows(config, memorisation.NEEDS, make_benchmarks))


def boundary_of_tries(config: ProbeConfig) -> rows.Result:
    """How many tries a model needs: pass@k of each file against the first, and what only one of the two solves."""
    return boundary.probe_boundary(load_rows(config, boundary.NEEDS))


def calibration_of_confidences(config: ProbeConfig) -> rows.Result:
    """How well stated confidences match correctness: Brier score, ECE, AUROC, reliability diagram."""
    return calibration.probe_calibration(load_rows(config, calibration.NEEDS), config.fit_on)


def contamination_of_questions(config: ProbeConfig) -> rows.Result:
    """Whether the model can continue a question from its first part, compared with twins or a clean source."""
    make_benchmarks = functools.partial(contamination.make_benchmarks, config.contamination, config.measured)
    rows_by_file = load_rows(config, contamination.NEEDS, make_benchmarks)
    return contamination.probe_contamination(rows_by_file, config.contamination.clean)


# --probe -> function of the ProbeConfig; its docstring introduces the HTML page
PROBES = {"coherence": coherence_of_steps, "memory": accuracy_on_twins, "contamination": contamination_of_questions,
          "boundary": boundary_of_tries, "calibration": calibration_of_confidences}


def load_rows(config: ProbeConfig, needs: Sequence[str], make_benchmarks: Callable | None = None) -> dict[str, list]:
    """Returns {short name of a file: its rows} for the files in --completions. Without --completions, samples
    completions of --model, saves them in --out as an evaluation does, and returns {name of the model: rows}. The
    problems are those of the benchmarks `make_benchmarks(model)` or, if this function is None, --problems. Raises
    UserError unless just one of --completions and --model is given, and for a row that lacks a column of `needs`."""
    measured, kept = config.measured, config.measured.kept
    if bool(config.completions) == bool(kept.choice.model):
        raise UserError("give one of --completions (files of saved rows) and --model (sampled now), not both")
    if config.completions:
        return rows.read_files(config.completions.split(","), needs, config.probe)
    loaded = loading.load_fixed(kept.choice)
    benchmarks = make_benchmarks(loaded) if make_benchmarks else load_benchmarks(measured, loaded)
    by_name = sample_benchmarks(measured, loaded, Folder(kept.out, "probe", config, kept.resume), benchmarks)
    return {pathlib.Path(kept.choice.model).name: [row for of_one in by_name.values() for row in of_one]}


def run_probe(config: ProbeConfig) -> rows.Result:
    """Runs --probe=NAME; writes NAME.json, NAME.md, NAME.html, NAME.png (with matplotlib) and NAME_items.jsonl in OUT.
    The JSON, Markdown and HTML files have the command, the commit and the machine. Raises UserError without --out."""
    if not config.measured.kept.out:
        raise UserError("--out is required: the directory for what the probe finds")
    made_by, name = describe_command("probe", config, always="probe"), config.probe
    config = config.with_flags(model=loading.pin_step(config.measured.kept.choice.model))
    result, stem = PROBES[name](config), pathlib.Path(config.measured.kept.out) / name
    stem.parent.mkdir(parents=True, exist_ok=True)
    files.write_lines(stem.with_name(f"{name}_items.jsonl"), result.items)
    files.write_figure(stem.with_name(f"{name}.png"), result.draw)
    files.write_whole(stem.with_name(f"{name}.md"), f"{result.page}\n{made_by}\n")
    files.write_whole(stem.with_name(f"{name}.html"), page.render_page(
        stem, page_title(config), inspect.getdoc(PROBES[name]) or "", result, made_by))
    files.write_json(stem.with_name(f"{name}.json"), result.record | {"origin": made_by, "flags": config.as_flags()})
    return result


def page_title(config: ProbeConfig) -> str:
    """The title of the page: the probe, and the name of the model or of the files or folders of completions."""
    if not config.completions:
        return f"{config.probe.capitalize()} of the model {pathlib.Path(config.measured.kept.choice.model).name}"
    paths = [pathlib.Path(path) for path in config.completions.split(",")]
    by_folder = len(paths) == 1 and paths[0].stem == "completions"  # every evaluation writes a file of this name
    names = [paths[0].parent.name] if by_folder else rows.short_names(config.completions.split(","))
    return f"{config.probe.capitalize()} of the completions in {', '.join(names)}"
