"""Studies: the same commands a user types, over several seeds, gathered into one table and one figure."""

import dataclasses
import pathlib
import platform
import subprocess
import sys
from typing import Callable, NamedTuple

import jax
import numpy as np

from rlvr_jax import estimators, metrics, regrading, report
from rlvr_jax.config import StudyConfig, UserError

MODES = ("greedy", "sampled")
# The study of a language model: its example, what is measured, and what each arm is paid for. All arms are asked alike.
EXAMPLE = ("mawps_singleop.jsonl", 16)
BENCHMARKS = ("gsm8k", "svamp", "mawps_addsub")
BOX = r"Put the final answer within \boxed{}."
ARMS = {"correct": ("--reward=correct", "--answer_format=last_number"),
        "format": ("--reward=format", "--answer_format=boxed")}


class Study(NamedTuple):
    """What is run, and what is made of its records, which are a run directory's rows and summary by name."""

    run: Callable[[StudyConfig], dict[str, dict]]
    table: Callable[[dict[str, dict], str], list[str]]  # of the summaries and where they come from
    draw: Callable[[dict[str, dict], pathlib.Path], None]


def run(config: StudyConfig) -> pathlib.Path:
    """Runs a study and returns the Markdown file it wrote; JSON and a PNG lie beside it."""
    study, out = STUDIES[config.study], pathlib.Path(config.out)
    config = dataclasses.replace(config, work_dir=config.work_dir or f"runs/{config.study}")
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
    saturated = "never" if summary["saturation_step"] is None else str(summary["saturation_step"])
    return [str(summary["final"]["n"]), pair(lambda mode: summary["base"][mode]), saturated,
            *curve, rise, f"{summary['train_accuracy']:.3f}"]


def run_smollm2(config: StudyConfig) -> dict[str, dict]:
    """The model as it is, and after GRPO on one example in each of ARMS: `{arm: {"rows", "summary": benchmark -> what
    scripts.evaluate says, with the paired difference to the base}}`. One seed: no claim about learning."""
    if not config.data:
        raise UserError("--data is required: the directory with gsm8k.jsonl, svamp.jsonl and mawps_*.jsonl")
    work, data, records, base = pathlib.Path(config.work_dir), pathlib.Path(config.data), {}, None
    asked = ("--flagfile=configs/smollm2.flags", f"--seed={int(config.seeds[0])}")
    for arm in ("base", *ARMS):
        model = "smollm2" if arm == "base" else str(work / arm)
        if arm != "base":
            script("train", *asked, f"--problems={data / EXAMPLE[0]}", f"--example={EXAMPLE[1]}", *ARMS[arm],
                   f"--run_dir={model}")
        files = ",".join(str(data / f"{name}.jsonl") for name in BENCHMARKS)
        script("evaluate", f"--model={model}", f"--problems={files}", "--prompt_style=chat", f"--instruction={BOX}",
               "--max_problems=200", "--max_new_tokens=128", "--rows_per_call=200", f"--out={work / ('eval_' + arm)}")
        summary = report.read_summary(work / f"eval_{arm}" / "summary.json")["benchmarks"]
        answered = regrading.read_completions(str(work / f"eval_{arm}" / "completions.jsonl"))
        right = {name: np.array([row["correct"] for row in answered if row["benchmark"] == name], float)
                 for name in BENCHMARKS}
        base = base or right
        for name in BENCHMARKS:
            gain = right[name] - base[name]
            summary[name] |= {"gain": float(gain.mean()), "gain_interval": estimators.bootstrap(gain)}
        rows = report.read_jsonl(work / arm / "metrics.jsonl") if arm != "base" else []
        records[arm] = {"rows": rows, "summary": {"benchmarks": summary, "training": training_ends(rows)}}
    return records


def training_ends(rows: list[dict]) -> dict:
    """Steps, and means over the first and the last five of them, of what a run was paid and how it spoke."""
    rows = [row for row in rows if row["step"] > 0]
    return {"steps": len(rows)} | {
        key: [float(np.mean([row["train/" + key] for row in part])) for part in (rows[:5], rows[-5:])]
        for key in ("reward_mean", "accuracy", "completion_length", "entropy") if rows}


def smollm2_table(summaries: dict[str, dict], origin: str) -> list[str]:
    """Lines of Markdown: accuracy of each arm on each benchmark, and what happened in training."""
    header = ["arm", *(f"{name}, gain over base" for name in BENCHMARKS), "truncated"]
    lines = ["# One word problem, a language model of 135 M parameters", "", origin, "",
             "Greedy accuracy with 95 % intervals (Wilson), and the paired difference to the base (bootstrap over "
             "problems). One seed and few steps: it says what these runs did, not what the method does.", "",
             "| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for arm, summary in summaries.items():
        found = [summary["benchmarks"][name] for name in BENCHMARKS]
        cells = [f"{one['accuracy']:.3f} [{one['interval'][0]:.3f}, {one['interval'][1]:.3f}]" + (
            "" if arm == "base" else ", {:+.3f} [{:+.3f}, {:+.3f}]".format(one["gain"], *one["gain_interval"]))
            for one in found]
        lines.append("| " + " | ".join([arm, *cells, f"{np.mean([one['truncated'] for one in found]):.1%}"]) + " |")
    lines += ["", f"{found[0]['n']} problems each, graded by {found[0]['graded_by']}.", "",
              "| trained | steps | reward | accuracy on the example | tokens | entropy |", "|---|---|---|---|---|---|"]
    for arm in ARMS:
        ends = summaries[arm]["training"]
        cells = [f"{ends[key][0]:.3g} -> {ends[key][1]:.3g}"
                 for key in ("reward_mean", "accuracy", "completion_length", "entropy")]
        lines.append("| " + " | ".join([f"{arm}: `{' '.join(ARMS[arm])}`", str(ends["steps"]), *cells]) + " |")
    return [*lines, "", "Means over the first and the last five steps."]


def draw_smollm2(records: dict, path: pathlib.Path) -> None:
    """Reward of each arm over its steps, and accuracy on each benchmark."""
    from matplotlib.figure import Figure

    figure = Figure((9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for arm in ARMS:
        rows = [row for row in records[arm]["rows"] if row["step"] > 0]
        left.plot([row["step"] for row in rows], [row["train/reward_mean"] for row in rows], label=f"paid for {arm}")
    left.set(xlabel="step", ylabel="mean reward", ylim=(-0.02, 1.02))
    left.legend(frameon=False)
    for i, (arm, record) in enumerate(records.items()):
        found = [record["summary"]["benchmarks"][name] for name in BENCHMARKS]
        heights, (low, high) = [one["accuracy"] for one in found], zip(*(one["interval"] for one in found))
        right.bar(np.arange(len(found)) + 0.27 * (i - 1), heights, 0.25, label=arm,
                  yerr=[np.subtract(heights, low), np.subtract(high, heights)])
    right.set_xticks(range(len(BENCHMARKS)), BENCHMARKS)
    right.set(ylabel="greedy accuracy")
    right.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=120)


def script(name: str, *flags: str) -> None:
    """Runs one of our scripts as a user would, its progress shown; raises UserError if it fails."""
    if subprocess.run([sys.executable, "-m", f"scripts.{name}", *flags], check=False).returncode:
        raise UserError(f"python -m scripts.{name} {' '.join(flags)} failed; its message is above")


def provenance(config: StudyConfig) -> str:
    """Command, commit, hardware and version behind a figure."""
    seeds = ",".join(str(int(seed)) for seed in config.seeds)
    data = " --data=DIR" if config.data else ""
    return (f"`python -m scripts.study --study={config.study} --seeds={seeds}{data}`, commit {metrics.commit()}, "
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


STUDIES = {"one_shot": Study(run_one_shot, one_shot_table, draw_curves),
           "smollm2": Study(run_smollm2, smollm2_table, draw_smollm2)}
