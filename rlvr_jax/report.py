"""The report of a run: one self-contained page, `report.html`, and its figures as PNG.

This file reads, counts and draws; `report.html.jinja` says it in words and asks for each panel by its metrics. The
page holds the figures as SVG that takes its colours from the light or dark theme.
"""

import io
import itertools
import json
import math
import pathlib
import re
import shlex
import statistics

import jinja2
import markupsafe

from rlvr_jax.config import UserError
from rlvr_jax.metrics import wilson

INK, RULE, BLUE, ORANGE, GREEN = "#000000", "#d0d7de", "#0072b2", "#d55e00", "#00785a"  # Okabe and Ito, green darker
THEME = {INK: "var(--ink)", RULE: "var(--rule)", BLUE: "var(--blue)", ORANGE: "var(--orange)", GREEN: "var(--green)"}
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "rlvr_jax", "font.size": 9, "legend.fontsize": 8, "axes.titlesize": 9,
         "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": RULE,
         "axes.titlelocation": "left", "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.5}
SATURATION = {"color": INK, "linewidth": 0.8, "linestyle": (0, (6, 3))}
MAX_ROLLOUTS, MAX_ROLLOUT_BYTES = 400, 2_000_000
UNSEEN = (*range(9), *range(11, 32), 127, *range(0x202A, 0x202F), *range(0x2066, 0x206A))  # controls, text direction


def read_jsonl(path: pathlib.Path) -> list[dict]:
    """The objects of a JSON-lines file by "step"; none if it is missing. Raises UserError naming the line."""
    rows = []
    for line_number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else (), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(f'{path}, line {line_number}: not a JSON object with an integer "step"; remove the line')
        rows.append(row)
    return sorted(rows, key=lambda row: row["step"])


def read_summary(path: pathlib.Path) -> dict:
    """summary.json, or {} while the run has not written it. Raises UserError if it is no JSON object."""
    try:
        return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a JSON object: remove it to report the run as unfinished") from error


def finite(x) -> bool:
    return isinstance(x, (int, float)) and math.isfinite(x)


def number(x) -> str:
    return "–" if not finite(x) else f"{x:,.0f}" if abs(x) >= 1000 or x == round(x) else f"{x:.3g}"


def series(metrics: list[dict], key: str) -> tuple[list, list]:
    """(steps, values) where `key` is a finite number."""
    points = [(row["step"], row[key]) for row in metrics if finite(row.get(key))]
    return [step for step, _ in points], [value for _, value in points]


def evaluations(metrics: list[dict], saturation_step) -> dict[str, dict]:
    """Those there are of {"base" | "saturation" | "peak" | "final": {"step", "greedy", "sampled", "n"}}.

    Saturation is the first evaluation at or after that step; the peak is the first of the best greedy ones.
    """
    evals = [{"step": row["step"], **{name: row.get("eval/" + name) for name in ("greedy", "sampled", "n")}}
             for row in metrics if finite(row.get("eval/greedy")) or finite(row.get("eval/sampled"))]
    table = {"base": next((e for e in evals if e["step"] == 0), None),
             "saturation": next((e for e in evals if finite(saturation_step) and e["step"] >= saturation_step), None),
             "peak": max((e for e in evals if finite(e["greedy"])), key=lambda e: e["greedy"], default=None),
             "final": next((e for e in reversed(evals) if e["step"] > 0), None)}
    return {name: entry for name, entry in table.items() if entry}


def draw_accuracy(axes, metrics: list[dict], base: dict, saturation_step):
    """Training against held-out accuracy, Wilson's band around greedy, the base dotted, the saturation step dashed."""
    for mode, color, line, mark in (("greedy", BLUE, "-", "o"), ("sampled", GREEN, "--", "s")):
        axes.plot(*series(metrics, "eval/" + mode), color, ls=line, marker=mark, ms=3.5, label="held-out " + mode)
        if finite(base.get(mode)):
            axes.axhline(base[mode], color=color, linewidth=1.2, linestyle=":", label="base " + mode)
    axes.plot(*series(metrics, "train/accuracy"), INK, linewidth=1, label="training", zorder=1.9)
    if saturation_step is not None:
        axes.axvline(saturation_step, label=f"saturated, step {saturation_step}", **SATURATION)
    bands = [(row["step"], *wilson(row["eval/greedy"], row["eval/n"])) for row in metrics
             if finite(row.get("eval/greedy")) and finite(row.get("eval/n"))]
    if bands:
        axes.fill_between(*zip(*bands), color=BLUE, alpha=0.13, linewidth=0)
    axes.set(xlabel="step", ylim=(0, 1.02), yticks=[0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.figure.legend(handles=[x for x in axes.lines if len(x.get_xdata())], loc="outside upper left", ncols=3)


def draw_lines(axes, metrics: list[dict], lines: dict[str, str], saturation_step):
    """A small multiple of `{label: metric}`."""
    for (label, key), (color, line) in zip(lines.items(), ((BLUE, "-"), (ORANGE, "--"), (GREEN, ":"))):
        steps, values = series(metrics, key)
        axes.plot(steps, values, color, ls=line, linewidth=1.3, ms=3, label=label,
                  marker="o" if key.startswith("eval/") or len(steps) == 1 else None)
        axes.set_yscale("log" if "gap" in key and any(values) else "linear")
    if axes.get_yscale() == "linear" and min(axes.dataLim.intervaly) >= 0:
        axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])
    if len(lines) > 1:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=len(lines), borderpad=0, columnspacing=1)
    if saturation_step is not None:
        axes.axvline(saturation_step, **SATURATION)


def svg(figure, name: str) -> markupsafe.Markup:
    """The figure as inline SVG in the page's colours, its identifiers made unique by `name`."""
    text, prefix = io.StringIO(), re.sub(r"\W+", "-", name.lower())
    figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    body = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text.getvalue()[text.getvalue().index("<svg") :])
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", body)
    for color, variable in THEME.items():
        body = body.replace(color, variable)
    return markupsafe.Markup(body.replace("<svg", f'<svg role="img" aria-label="{name} by step"', 1))


def evenly(items: list, count: int) -> list:
    """At most `count` of the items at even distances, the first and the last among them."""
    return items if len(items) <= count else [items[i * (len(items) - 1) // max(count - 1, 1)] for i in range(count)]


def group_rollouts(rollouts: list[dict]) -> list[tuple]:
    """[(step, all its rollouts, those to show)], at most MAX_ROLLOUTS shown, spread over the steps."""
    by_step = [(step, list(rows)) for step, rows in itertools.groupby(rollouts, lambda row: row["step"])]
    shown_steps = evenly(by_step, max(50, MAX_ROLLOUTS * len(by_step) // max(len(rollouts), 1)))
    return [(step, rows, evenly(rows, MAX_ROLLOUTS // len(shown_steps))) for step, rows in shown_steps]


def cut(text, room: int) -> str:
    """Text with its control characters visible and its middle left out if it would take over `room` bytes of HTML."""
    text = str(text).translate({c: f"\\u{c:04x}" for c in UNSEEN})
    size = len(markupsafe.escape(text).encode("utf-8", "replace"))
    if size <= room:
        return text
    gap = len(text) - len(text) * room // size
    start = 2 * (len(text) - gap) // 3
    return f"{text[:start]}\n[… {gap:,} characters left out, whole in rollouts.jsonl …]\n{text[start + gap :]}"


def write_report(run_dir: str) -> list[pathlib.Path]:
    """Writes report.html, curves.png and diagnostics.png into a run directory and returns their paths.

    Raises UserError if metrics.jsonl is missing, empty or corrupt, and without matplotlib.
    """
    try:
        from matplotlib import figure, rc_context  # optional
    except ImportError as error:
        raise UserError("the report draws with matplotlib: pip install 'rlvr_jax[plot]'") from error
    directory = pathlib.Path(run_dir)
    metrics, rollouts = read_jsonl(directory / "metrics.jsonl"), read_jsonl(directory / "rollouts.jsonl")
    if not metrics:
        raise UserError(f"{directory / 'metrics.jsonl'} is missing or empty: is --run_dir a run with a finished step?")
    summary, flags = read_summary(directory / "summary.json"), directory / "flags.txt"
    saturation_step, panels = summary.get("saturation_step"), {}
    table = evaluations(metrics, saturation_step)

    def panel(title, lines):
        if not any(series(metrics, key)[0] for key in lines.values()):
            return ""
        axes, panels[title] = figure.Figure((3.4, 2.0), layout="constrained").add_subplot(), lines
        draw_lines(axes, metrics, lines, saturation_step)
        return svg(axes.figure, title)

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": lambda x: f"{x:.1%}" if finite(x) else "–", "number": number, "cut": cut,
                            "median": statistics.median}
    template = environment.from_string(pathlib.Path(__file__).with_name("report.html.jinja").read_text("utf-8"))
    keys = list(dict.fromkeys(key for row in metrics for key in row))
    page, curves, diagnostics = (directory / name for name in ("report.html", "curves.png", "diagnostics.png"))
    with rc_context(STYLE):
        axes = figure.Figure((5.2, 3.4), layout="constrained").add_subplot()
        draw_accuracy(axes, metrics, table.get("base", {}), saturation_step)
        axes.figure.savefig(curves, dpi=200)
        html = template.render(
            name=directory.resolve().name, run_dir=directory, metrics=metrics, summary=summary, table=table, keys=keys,
            panel=panel, accuracy=svg(axes.figure, "Accuracy"), series=lambda key: series(metrics, key), finite=finite,
            seconds_by_phase={key[8:]: sum(series(metrics, key)[1]) for key in keys if key.startswith("seconds/")},
            flags=flags.read_text("utf-8", "replace") if flags.is_file() else "", wilson_interval=wilson,
            quote=shlex.quote, groups=group_rollouts(rollouts), num_rollouts=len(rollouts), max_bytes=MAX_ROLLOUT_BYTES)
        num_rows = max(1, math.ceil(len(panels) / 3))
        sheet = figure.Figure((10.2, 2.3 * num_rows), layout="constrained")
        for i, (title, lines) in enumerate(panels.items(), 1):
            draw_lines(sheet.add_subplot(num_rows, 3, i, title=title), metrics, lines, saturation_step)
        sheet.savefig(diagnostics, dpi=160)
    page.write_text(html, "utf-8", "replace")
    return [page, curves, diagnostics]
