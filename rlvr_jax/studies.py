"""Studies: the same commands a user types, over several seeds, gathered into one table and one figure."""

import pathlib
import platform
import subprocess
import sys
from typing import Callable, NamedTuple

import jax

from rlvr_jax import metrics, report
from rlvr_jax.config import StudyConfig, UserError

MODES = ("greedy", "sampled")


class Study(NamedTuple):
    """What is run, and what is made of its records, which are a run directory's rows and summary by name."""

    run: Callable[[StudyConfig], dict[str, dict]]
    table: Callable[[dict[str, dict], str], list[str]]  # of the summaries and where they come from
    draw: Callable[[dict[str, dict], pathlib.Path], None]


def run(config: StudyConfig) -> pathlib.Path:
    """Runs a study and returns the Markdown file it wrote; JSON and a PNG lie beside it."""
    study, out = STUDIES[config.study], pathlib.Path(config.out)
    records = study.run(config)
    out.mkdir(parents=True, exist_ok=True)
    study.draw(records, out / f"{config.study}.png")
    metrics.write_json(out / f"{config.study}.json", {seed: record["summary"] for seed, record in records.items()})
    lines = study.table({seed: record["summary"] for seed, record in records.items()}, provenance(config))
    metrics.write_whole(out / f"{config.study}.md", "\n".join([*lines, "", f"![curves]({config.study}.png)", ""]))
    return out / f"{config.study}.md"


def run_one_shot(config: StudyConfig) -> dict[str, dict]:
    """A base, its example and GRPO for each seed: `{seed: {"rows": of metrics.jsonl, "summary"}}`."""
    records = {}
    for seed in map(int, config.seeds):
        base, trained = (pathlib.Path(config.work_dir) / f"{name}{seed}" for name in ("base", "rl"))
        script("pretrain", "--flagfile=configs/tiny_base.flags", f"--seed={seed}", f"--run_dir={base}")
        script("train", "--flagfile=configs/tiny.flags", f"--seed={seed}", f"--model={base}", f"--run_dir={trained}")
        records[str(seed)] = {"rows": report.read_jsonl(trained / "metrics.jsonl"),
                              "summary": report.read_summary(trained / "summary.json")}
    return records


def one_shot_table(summaries: dict[str, dict], origin: str) -> list[str]:
    """Lines of Markdown: does held-out accuracy rise from one example, and go on rising once that example is solved?"""
    header = ["seed", "problems", "base", "saturated at step", "at saturation", "peak", "end", "rise to end",
              "training accuracy"]
    ends = [[summary["final"][mode] for mode in MODES] for summary in summaries.values()]
    means = [sum(column) / len(ends) for column in zip(*ends)]
    return ["# One example, one update a step: the tiny tier", "", origin, "",
            "Held-out accuracy, greedy / T=1, on problems of the test split, on which nothing was chosen.", "",
            "| " + " | ".join(header) + " |", "|---" * len(header) + "|",
            *("| " + " | ".join([seed, *one_shot_cells(summary)]) + " |" for seed, summary in summaries.items()), "",
            f"Mean at the end: greedy {means[0]:.3f}, T=1 {means[1]:.3f}, over {len(ends)} seeds."]


def one_shot_cells(summary: dict) -> list[str]:
    """A run's row of the table, after its seed; "-" where the example was never solved."""
    def pair(pick, form=".3f"):
        return " / ".join(format(pick(mode), form) for mode in MODES)

    after = summary["after_saturation"]
    curve = [pair(lambda mode: after[mode][when]) for when in ("at_saturation", "peak", "end")] if after else ["-"] * 3
    rise = pair(lambda mode: after[mode]["end"] - after[mode]["at_saturation"], "+.3f") if after else "-"
    return [str(summary["final"]["n"]), pair(lambda mode: summary["base"][mode]), str(summary["saturation_step"]),
            *curve, rise, f"{summary['train_accuracy']:.3f}"]


def script(name: str, *flags: str) -> None:
    """Runs one of our scripts as a user would, its progress shown; raises UserError if it fails."""
    if subprocess.run([sys.executable, "-m", f"scripts.{name}", *flags], check=False).returncode:
        raise UserError(f"python -m scripts.{name} {' '.join(flags)} failed; its message is above")


def provenance(config: StudyConfig) -> str:
    """Command, commit, hardware and version behind a figure."""
    seeds = ",".join(str(int(seed)) for seed in config.seeds)
    return (f"`python -m scripts.study --study={config.study} --seeds={seeds}`, commit {metrics.commit()}, "
            f"JAX {jax.__version__} on {jax.devices()[0].device_kind} ({platform.machine()}).")


def draw_curves(runs: dict, path: pathlib.Path) -> None:
    """One panel a seed: training accuracy, held-out accuracy greedy and T=1, the saturation step marked."""
    from matplotlib.figure import Figure

    figure = Figure((4 * len(runs), 3.2), layout="constrained")
    for axes, (seed, found) in zip(figure.subplots(1, len(runs), sharey=True, squeeze=False)[0], runs.items()):
        for key, label, style in (("train/accuracy", "training", "k-"), ("eval/greedy", "held-out greedy", "C0.-"),
                                  ("eval/sampled", "held-out T=1", "C1.-")):
            points = [(row["step"], row[key]) for row in found["rows"] if row.get(key) is not None]
            axes.plot(*zip(*points), style, label=label, linewidth=1)
        if found["summary"]["saturation_step"]:
            axes.axvline(found["summary"]["saturation_step"], color="gray", linestyle="--", linewidth=0.8)
        axes.set(title=f"seed {seed}", xlabel="step", ylim=(0, 1.02))
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)


STUDIES = {"one_shot": Study(run_one_shot, one_shot_table, draw_curves)}
