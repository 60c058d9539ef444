"""The report of a run: one self-contained page, `report.html`, and its figures as PNG.
This module computes numbers, `figures.py` draws, and the template `report.html.jinja` has the text and calls `panel`.
"""

import itertools
import pathlib
import shlex
import statistics

import jinja2
import numpy as np

from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import estimators
from rlvr_jax.evaluation.estimators import difference_interval, wilson
from rlvr_jax.report import pages
from rlvr_jax.report.figures import STYLE, draw_accuracy, draw_lines, draw_sheet, finite, series, svg
from rlvr_jax.report.pages import cut, evenly
from rlvr_jax.runs.files import name_in_errors, read_json, read_steps, write_whole

MAX_ROLLOUTS, MAX_ROLLOUT_BYTES = 400, 2_000_000
MAX_UNSEEN, MAX_UNSEEN_STEPS, MAX_UNSEEN_BYTES = 40, 40, 1_500_000  # most held-out problems, evaluations, bytes
# (right at the first evaluation, right at the last) -> kind of a held-out problem
KINDS = {(0, 1): "newly solved", (1, 0): "lost", (1, 1): "right before and after", (0, 0): "wrong before and after"}


class ReportConfig(Config):
    """What to report on: one run, or all studies."""

    run_dir: str = flag("", "directory of the run to report on")
    parquet: bool = flag(False, "also write RUN/completions.parquet: the rows of rollouts.jsonl, in the columns of "
                                "TRL's log of completions")
    all: bool = flag(False, "write every page and figure of results again, from the records and configs/studies")
    results: str = flag("results", "with all: directory of the records, STUDY.json, and of the pages made from them")


def number(x) -> str:
    """Formats a number for the page; "–" if it is missing or not finite."""
    if not finite(x):
        return "–"
    return f"{x:,.0f}" if abs(x) >= 1000 or x == round(x) else f"{x:.3g}"


def evaluations(metrics: list[dict], saturation_step) -> dict[str, dict]:
    """{name: {"step", "greedy", "sampled", "n"}} of these evaluations, if they exist: "base" (step 0), "saturation"
    (first from `saturation_step` on), "peak" (first with the best greedy accuracy), "final" (last after step 0)."""
    evals = [{"step": row["step"], **{name: row.get("eval/" + name) for name in ("greedy", "sampled", "n")}}
             for row in metrics if finite(row.get("eval/greedy")) or finite(row.get("eval/sampled"))]
    table = {"base": next((e for e in evals if e["step"] == 0), None),
             "saturation": next((e for e in evals if finite(saturation_step) and e["step"] >= saturation_step), None),
             "peak": max((e for e in evals if finite(e["greedy"])), key=lambda e: e["greedy"], default=None),
             "final": next((e for e in reversed(evals) if e["step"] > 0), None)}
    return {name: entry for name, entry in table.items() if entry}


def group_rollouts(rollouts: list[dict]) -> list[tuple]:
    """[(step, all its rollouts, those to show)] for steps spread over the run; MAX_ROLLOUTS are shown at most."""
    by_step = [(step, list(rows)) for step, rows in itertools.groupby(rollouts, lambda row: row["step"])]
    shown_steps = evenly(by_step, max(50, MAX_ROLLOUTS * len(by_step) // max(len(rollouts), 1)))
    return [(step, rows, evenly(rows, MAX_ROLLOUTS // len(shown_steps))) for step, rows in shown_steps]


def read_heldout(path: pathlib.Path) -> list[dict]:
    """Reads heldout.jsonl: a row for each evaluation, with its "step" and lists with an entry for each problem, greedy
    "completions" and "correct"; in the first row also "prompts" and "answers". UserError if a list is not complete."""
    rows = read_steps(path, single=False)
    for row in rows:
        lists = [rows[0].get("prompts"), rows[0].get("answers"), row.get("completions"), row.get("correct")]
        if not all(isinstance(x, list) and len(x) == len(lists[0]) > 0 for x in lists):
            raise UserError(f"{path}, step {row['step']}: needs a completion and a verdict for each problem of the "
                            "first row; remove the file to report the run without it")
    return rows


def changes(table: dict, heldout: list[dict]) -> list[dict]:
    """Returns how greedy accuracy changed to the end: rows of "start", "change", "low", "high", "paired" and "overlap".
    "start" is "base" or "saturation" in `table` (`evaluations`). "low" to "high" is a 95 % interval of the change;
    it is "paired" by problem if `heldout` has both evaluations. "overlap": do both accuracies' intervals overlap?"""
    rows, right = [], {row["step"]: np.array(row["correct"], float) for row in heldout}  # {step: f64[P], 1 if correct}
    for start in ("base", "saturation"):
        before, after = table.get(start), table.get("final")
        ends = (before, after)
        if all(ends) and before["step"] < after["step"] and all(finite(e["greedy"]) and e["n"] for e in ends):
            paired = before["step"] in right and after["step"] in right
            low, high = (estimators.bootstrap(right[after["step"]] - right[before["step"]], (-1, 1)) if paired else
                         difference_interval(before["greedy"], after["greedy"], after["n"]))
            (_, end_of_lower), (start_of_upper, _) = sorted(wilson(end["greedy"], end["n"]) for end in ends)
            rows.append({"start": start, "change": after["greedy"] - before["greedy"], "low": low, "high": high,
                         "paired": paired, "overlap": start_of_upper <= end_of_lower})
    return rows


def unseen(heldout: list[dict], saturation_step) -> dict:
    """Returns what the page shows of held-out problems through training; {} if there are fewer than two evaluations.
    "counts": {kind: number of its problems}. "steps": the steps of the evaluations that can be viewed. "panes"
    and "saturation" are indices into "steps": of the evaluations to show side by side, and of the first at or after
    saturation (or None). "problems": at most MAX_UNSEEN, newly solved ones first, each with "kind", "number" (its index
    in heldout.jsonl), "prompt", "answer", "texts" (its distinct completions), and two lists with an entry for each
    step: "said" (index into "texts") and "right" (0 or 1)."""
    if len(heldout) < 2:
        return {}
    after = next((i for i, row in enumerate(heldout) if finite(saturation_step) and row["step"] >= saturation_step), 0)
    panes = sorted({0, after, len(heldout) - 1})  # `after`: first evaluation at or after saturation; 0 if none is
    shown = sorted({*evenly(list(range(len(heldout))), MAX_UNSEEN_STEPS - len(panes)), *panes})
    kinds = {kind: [] for kind in KINDS.values()}  # {kind: indices of its problems}
    for number, (first, last) in enumerate(zip(heldout[0]["correct"], heldout[-1]["correct"])):
        kinds[KINDS[bool(first), bool(last)]].append(number)
    length = max(statistics.fmean(len(text) for text in row["completions"]) for row in heldout)
    per_kind = max(1, min(MAX_UNSEEN // len(KINDS), int(MAX_UNSEEN_BYTES / (len(KINDS) * len(shown) * (length + 1)))))
    chosen = [(kind, number) for kind, numbers in kinds.items() for number in evenly(numbers, per_kind)]
    room = MAX_UNSEEN_BYTES // (len(chosen) * (len(shown) + 1))
    problems = []
    for kind, number in chosen:
        completions = [cut(heldout[i]["completions"][number], room, "heldout.jsonl") for i in shown]
        texts = list(dict.fromkeys(completions))
        problems.append({"kind": kind, "number": number,
                         "prompt": cut(heldout[0]["prompts"][number], room, "heldout.jsonl"),
                         "answer": cut(heldout[0]["answers"][number], 200, "heldout.jsonl"), "texts": texts,
                         "said": [texts.index(text) for text in completions],
                         "right": [int(heldout[i]["correct"][number]) for i in shown]})
    return {"counts": {kind: len(numbers) for kind, numbers in kinds.items()},
            "steps": [heldout[i]["step"] for i in shown], "panes": [shown.index(i) for i in panes],
            "saturation": shown.index(after) if after else None, "problems": problems}


def setup(flags: dict[str, str], example: dict, rollouts: list[dict], metrics: list[dict]) -> dict[str, str]:
    """{label: text} for the head of the report on a run of scripts.train: "Model", "Trained on", "Reward" and "Grader".
    {} for a run of another script. `flags` is {"--name": value}, and `example` the content of example.json, or {}."""
    if "--reward" not in flags:
        return {}
    prompts = {row["prompt"] for row in rollouts[:1000] if "prompt" in row}
    trained_on = (example.get("question") or flags.get("--question") or (prompts.pop() if len(prompts) == 1 else "")
                  or f"problem {flags.get('--example')} of {flags.get('--problems')}")
    if flags.get("--example") == "all" and not flags.get("--question"):
        trained_on = f"all problems of {flags.get('--problems')}"
    if finite(example.get("pass_rate")):
        trained_on += (f" (number {example.get('example')}, chosen because the base model solved it in "
                       f"{example['pass_rate']:.1%} of {example.get('num_samples')} attempts)")
    graders = [row["train/graded_by"] for row in metrics if "train/graded_by" in row]
    return {"Model": flags.get("--model", ""), "Trained on": trained_on, "Reward": flags["--reward"],
            "Grader": graders[-1] if graders else flags.get("--grader", "")}


def write_report(run_dir: str) -> list[pathlib.Path]:
    """Writes report.html, curves.png and diagnostics.png into a run directory and returns their paths. Raises UserError
    if metrics.jsonl is missing or empty, if a file of the run is corrupt, or if matplotlib is missing."""
    try:
        from matplotlib import figure, rc_context  # optional
    except ImportError as error:
        raise UserError("the report draws with matplotlib: pip install -e '.[plot]'") from error
    directory = pathlib.Path(run_dir)
    metrics, rollouts = read_steps(directory / "metrics.jsonl"), read_steps(directory / "rollouts.jsonl", False)
    if not metrics:
        raise UserError(f"{directory / 'metrics.jsonl'} is missing or empty: is --run_dir a run with a finished step?")
    summary, origin, example = (read_json(directory / f"{name}.json", {}, "remove it to report the run without it")
                                for name in ("summary", "origin", "example"))
    heldout, flag_file = read_heldout(directory / "heldout.jsonl"), directory / "flags.txt"
    flags = flag_file.read_text("utf-8", "replace") if flag_file.is_file() else ""
    named = dict(line.split("=", 1) for line in flags.splitlines() if "=" in line)
    saturation_step, panels = summary.get("saturation_step"), {}  # `panels`: {title: lines} of the panels on the page
    table = evaluations(metrics, saturation_step)

    def drawn(key):  # whether a row of the metrics has a finite number `key`
        return bool(series(metrics, key)[0])

    def panel(title, lines):  # SVG, or "" without data. lines: {label: (key of the metrics, what the caption says)}
        lines = {label: key for label, (key, _) in lines.items()}
        if not any(map(drawn, lines.values())):
            return ""
        axes, panels[title] = figure.Figure((3.4, 2.0), layout="constrained").add_subplot(), lines
        draw_lines(axes, metrics, lines, saturation_step)
        return svg(axes.figure, title)

    keys = list(dict.fromkeys(key for row in metrics for key in row))
    page, curves, diagnostics = (directory / name for name in ("report.html", "curves.png", "diagnostics.png"))
    with rc_context(STYLE):
        axes = figure.Figure((5.2, 3.4), layout="constrained").add_subplot()
        draw_accuracy(axes, metrics, table.get("base", {}), saturation_step)
        axes.figure.legend(handles=axes.lines, loc="outside upper left", ncols=3)
        _save(axes.figure, curves, 200)
        html = template(drawn).render(
            name=directory.resolve().name, run_dir=directory, metrics=metrics, summary=summary, table=table, keys=keys,
            panel=panel, accuracy=svg(axes.figure, "Accuracy"), series=lambda key: series(metrics, key), finite=finite,
            seconds_by_phase={key[8:]: sum(series(metrics, key)[1]) for key in keys if key.startswith("seconds/")},
            flags=flags, wilson_interval=wilson, quote=shlex.quote, groups=group_rollouts(rollouts),
            num_rollouts=len(rollouts), max_bytes=MAX_ROLLOUT_BYTES, changes=changes(table, heldout),
            unseen=unseen(heldout, saturation_step), starts=origin.get("starts", ()),
            setup=setup(named, example, rollouts, metrics))
        _save(draw_sheet(metrics, panels, saturation_step), diagnostics, 160)
    write_whole(page, html.encode("utf-8", "replace").decode())
    return [page, curves, diagnostics]


def write_parquet(run_dir: str) -> pathlib.Path:
    """Writes completions.parquet into a run directory, with a row for each row of rollouts.jsonl; returns its path.
    The columns are those of TRL's GRPOTrainer (step, prompt, completion, a column named after each reward, advantage),
    then the other keys of rollouts.jsonl, such as "correct". Raises UserError without logged rollouts or pyarrow."""
    try:
        import pyarrow  # optional
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("--parquet needs pyarrow: pip install -e '.[real]'") from error
    source, path = (pathlib.Path(run_dir) / name for name in ("rollouts.jsonl", "completions.parquet"))
    rows = read_steps(source, single=False)
    if not rows:
        raise UserError(f"{source} is missing or empty: --parquet needs a run with --log_rollouts above 0")
    rewards = [key for key in rows[0] if key.startswith("reward/")] or ["reward"]
    keys = ["step", "prompt", "completion", *rewards, "advantage", *rows[0]]
    columns = {}
    for key in keys:  # a name that occurs twice in `keys` gives one column, of the first key
        columns.setdefault(key.removeprefix("reward/"), [row.get(key) for row in rows])
    with name_in_errors(path):
        parquet.write_table(pyarrow.table(columns), path)
    return path


def template(drawn) -> jinja2.Template:
    """The template of the page. In the template, the test `key is drawn` calls `drawn(key)`."""
    environment = pages.environment(__file__)
    environment.filters |= {"percent": lambda x: f"{x:.1%}" if finite(x) else "–", "number": number,
                            "points": lambda x: f"{100 * x:+.1f}".replace("-", "−"), "median": statistics.median}
    environment.tests["drawn"] = drawn
    return environment.get_template("report.html.jinja")


def _save(figure, path: pathlib.Path, dpi: int) -> None:
    with name_in_errors(path):
        figure.savefig(path, dpi=dpi)
