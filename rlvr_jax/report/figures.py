"""Draws the figures of a run from the rows of metrics.jsonl: one of accuracy, and small panels of other metrics.
Figures are drawn in black on white; `svg` replaces these colours by CSS variables of the page, for light or dark."""

import io
import math
import re

import markupsafe

from rlvr_jax.evaluation.estimators import wilson

INK, QUIET, RULE = "#000000", "#8c959f", "#d0d7de"  # colours of text, undecided findings, grid lines
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#00785a"  # the palette of Okabe and Ito, with a darker green
THEME = {INK: "var(--ink)", RULE: "var(--rule)", BLUE: "var(--blue)", ORANGE: "var(--orange)", GREEN: "var(--green)"}
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "rlvr_jax", "font.size": 9, "legend.fontsize": 8, "axes.titlesize": 9,
         "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": RULE,
         "axes.titlelocation": "left", "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.5}
SATURATION = {"color": INK, "linewidth": 0.8, "linestyle": (0, (6, 3))}


def finite(x) -> bool:
    return isinstance(x, (int, float)) and math.isfinite(x)


def series(metrics: list[dict], key: str) -> tuple[list, list]:
    """(steps, values) of the rows whose `key` is a finite number."""
    points = [(row["step"], row[key]) for row in metrics if finite(row.get(key))]
    return [step for step, _ in points], [value for _, value in points]


def draw_accuracy(axes, metrics: list[dict], base: dict, saturation_step):
    """Draws training and held-out accuracy by step, with Wilson's 95 % band around greedy accuracy. The base model's
    accuracies, `base` {"greedy", "sampled"}, are dotted lines. At `saturation_step`, unless None, is a dashed line."""
    for mode, color, line, mark in (("greedy", BLUE, "-", "o"), ("sampled", GREEN, "--", "s")):
        if series(metrics, "eval/" + mode)[0]:
            axes.plot(*series(metrics, "eval/" + mode), color, ls=line, marker=mark, ms=3.5, label="held-out " + mode)
        if finite(base.get(mode)):
            axes.axhline(base[mode], color=color, linewidth=1.2, linestyle=":", label="base " + mode)
    if series(metrics, "train/accuracy")[0]:
        axes.plot(*series(metrics, "train/accuracy"), INK, linewidth=1, label="training", zorder=1.9)
    if saturation_step is not None:
        axes.axvline(saturation_step, label=f"saturated, step {saturation_step}", **SATURATION)
    bands = [(row["step"], *wilson(row["eval/greedy"], row["eval/n"])) for row in metrics
             if finite(row.get("eval/greedy")) and finite(row.get("eval/n"))]
    if bands:
        axes.fill_between(*zip(*bands), color=BLUE, alpha=0.13, linewidth=0)
    axes.set(xlabel="step", ylim=(0, 1.02), yticks=[0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter("{x:.0%}")


def draw_lines(axes, metrics: list[dict], lines: dict[str, str], saturation_step):
    """Draws up to three metrics by step, `lines` {label: key of a row}, and a dashed line at `saturation_step`."""
    for (label, key), (color, line) in zip(lines.items(), ((BLUE, "-"), (ORANGE, "--"), (GREEN, ":"))):
        steps, values = series(metrics, key)
        if steps:
            axes.plot(steps, values, color, ls=line, linewidth=1.3, ms=3, label=label,
                      marker="o" if key.startswith("eval/") or len(steps) == 1 else None)
        if "gap" in key and any(values):
            axes.set_yscale("log")
    if axes.get_yscale() == "linear" and min(axes.dataLim.intervaly) >= 0:
        axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])
    if len(lines) > 1:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=len(lines), borderpad=0, columnspacing=1)
    if saturation_step is not None:
        axes.axvline(saturation_step, **SATURATION)


def draw_sheet(metrics: list[dict], panels: dict[str, dict[str, str]], saturation_step):
    """Returns a Figure of small panels, three in a row: `panels` is {title: {label of a line: key of the metric}}."""
    from matplotlib import figure  # optional

    num_rows = max(1, math.ceil(len(panels) / 3))
    sheet = figure.Figure((10.2, 2.3 * num_rows), layout="constrained")
    for i, (title, lines) in enumerate(panels.items(), 1):
        draw_lines(sheet.add_subplot(num_rows, 3, i, title=title), metrics, lines, saturation_step)
    return sheet


def svg(figure, name: str, says: str = "") -> markupsafe.Markup:
    """The figure as inline SVG in the page's colours. `name` prefixes its ids, which makes them unique on the page.
    `says` describes the drawing to screen readers; if it is empty, the description is "NAME by step"."""
    text, prefix = io.StringIO(), re.sub(r"\W+", "-", name.lower())
    figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    body = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text.getvalue()[text.getvalue().index("<svg") :])
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", body)
    for color, variable in THEME.items():
        body = body.replace(color, variable)
    says = markupsafe.escape(says or f"{name} by step")
    return markupsafe.Markup(body.replace("<svg", f'<svg role="img" aria-label="{says}"', 1))
