"""Studies: the same commands a user types, over several seeds, gathered into one table and one figure."""

import json
import pathlib
import platform
import subprocess
import sys

import jax

from rlvr_jax import metrics
from rlvr_jax.config import StudyConfig, UserError


def run(config: StudyConfig) -> pathlib.Path:
    """Runs a study and returns the Markdown file it wrote; JSON and a PNG lie beside it."""
    return STUDIES[config.study](config)


def one_shot(config: StudyConfig) -> pathlib.Path:
    """Does held-out accuracy rise from one example, and go on rising once that example is solved?"""
    runs = {}
    for seed in map(int, config.seeds):
        base, trained = (pathlib.Path(config.work_dir) / f"{name}{seed}" for name in ("base", "rl"))
        script("pretrain", "--flagfile=configs/tiny_base.flags", f"--seed={seed}", f"--run_dir={base}")
        script("train", "--flagfile=configs/tiny.flags", f"--seed={seed}", f"--model={base}", f"--run_dir={trained}")
        runs[seed] = {"rows": metrics.JsonLines(trained / "metrics.jsonl", 10**9).rows,
                      "summary": json.loads((trained / "summary.json").read_text())}
    header = ["seed", "problems", "base", "saturated at step", "at saturation", "peak", "end", "rise to end",
              "training accuracy"]
    lines = ["# One example, one update a step: the tiny tier", "", provenance(config), "",
             "Held-out accuracy, greedy / T=1, on problems of the test split, on which nothing was chosen.", "",
             "| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    ends = []
    for seed, found in runs.items():
        summary, after = found["summary"], found["summary"]["after_saturation"]
        def pair(pick):
            return " / ".join(f"{pick(mode):.3f}" for mode in ("greedy", "sampled"))
        ends.append([summary["final"][mode] for mode in ("greedy", "sampled")])
        cells = [seed, summary["final"]["n"], pair(lambda m: summary["base"][m]), summary["saturation_step"]]
        cells += [pair(lambda m: after[m][when]) if after else "-" for when in ("at_saturation", "peak", "end")]
        cells += [" / ".join(f"{after[m]['end'] - after[m]['at_saturation']:+.3f}" for m in ("greedy", "sampled"))
                  if after else "-", f"{summary['train_accuracy']:.3f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    means = [sum(column) / len(ends) for column in zip(*ends)]
    lines += ["", f"Mean at the end: greedy {means[0]:.3f}, T=1 {means[1]:.3f}, over {len(ends)} seeds."]
    out = pathlib.Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    draw_curves(runs, out / "one_shot.png")
    metrics.write_json(out / "one_shot.json", {str(seed): found["summary"] for seed, found in runs.items()})
    (out / "one_shot.md").write_text("\n".join(lines + ["", "![curves](one_shot.png)", ""]))
    return out / "one_shot.md"


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


STUDIES = {"one_shot": one_shot}
