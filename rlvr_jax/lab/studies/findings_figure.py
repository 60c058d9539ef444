"""The drawing of the findings, with a row for the primary rule of each study: as SVG for index.html, and as a PNG."""

import math
import pathlib
import textwrap

import markupsafe

from rlvr_jax.lab.studies import records, rules
from rlvr_jax.report import figures

COLORS = {"agree": figures.GREEN, "disagree": figures.ORANGE, "undecided": figures.QUIET}
SIGNS = {"agree": "✓", "disagree": "✗", "undecided": "?"}


def strip(axes, record: dict) -> None:
    """Draws a study's primary rule, its main prediction. Predicted values are shaded, up to a line at each bound. The
    large dot is the mean with its 95 % interval or, if the rule says where most seeds lie, the median. The small dots
    are base models if seeds share them, else seeds."""
    rule = rules.primary(record["rules"])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    measured = rules.of_rule(rule, record["measures"])
    dots = sorted(measured.get("of_bases") or [x for x in measured.get("seeds", ()) if x is not None])
    bounds, color = rules.bounds_of(rule), COLORS[record["verdict"]]
    interval = rule["interval"] if not rules.is_of_most(rule) else None
    centre = rule.get("median", rule["mean"]) if dots else None
    finite = [x for x in bounds if math.isfinite(x)]
    shown = [0, *finite, *dots, *(interval or ())]
    margin = 0.06 * ((max(shown) - min(shown)) or 1)
    left, right = min(shown) - margin, max(shown) + margin
    for x in finite:
        axes.axvline(x, color=figures.BLUE, linewidth=1.2)
    axes.axvspan(max(bounds[0], left), min(bounds[1], right), color=figures.BLUE, alpha=0.12, linewidth=0)
    level = 0
    for i, x in enumerate(dots):  # a dot that would cover the previous dot is drawn lower
        level = (level + 1) % 4 if i and x - dots[i - 1] < margin / 4 else 0
        axes.plot(x, -0.2 - 0.22 * level, "o", ms=3, color=figures.INK, alpha=0.6, mew=0)
    if interval:
        axes.plot(interval, [0.45, 0.45], "|-", color=color, linewidth=1.8, ms=6)
    if centre is not None:
        axes.plot(centre, 0.45, "o", ms=6, color=color, mfc="none" if record["verdict"] == "undecided" else color)
    axes.set(xlim=(left, right), ylim=(-1, 1))
    axes.locator_params(axis="x", nbins=6)


def svg(record: dict) -> markupsafe.Markup:
    """The drawing of `strip` as SVG for an HTML page, with a text that says the same for screen readers."""
    from matplotlib import figure, rc_context  # optional

    with rc_context(figures.STYLE):
        axes = figure.Figure((3.6, 0.72), layout="constrained").add_subplot()
        strip(axes, record)
        rule = rules.primary(record["rules"])
        says = f"Predicted: {rules.required(rule)}. Measured: {records.shown(rule)}"
        return figures.svg(axes.figure, record["study"], says)


def picture(found: list[dict], path: pathlib.Path) -> None:
    """Writes the PNG `path` with a row for each record: prediction, drawing of `strip`, verdict and measured value."""
    from matplotlib import figure, rc_context  # optional

    with rc_context(figures.STYLE):
        sheet = figure.Figure((9.6, 0.72 * len(found) + 0.4))
        for i, record in enumerate(found):
            rule, verdict, inch = rules.primary(record["rules"]), record["verdict"], 1 / (0.72 * len(found) + 0.4)
            row = 1 - (0.72 * i + 0.55) * inch  # lower edge of the drawing; it and `inch` are shares of the height
            strip(sheet.add_axes((0.35, row, 0.37, 0.42 * inch)), record)
            at = {"y": row + 0.2 * inch, "va": "center"}
            sheet.text(0.01, s=f"{record['study']}\n" + textwrap.fill(rule["says"], 46, max_lines=3), **at)
            outcome = f"{SIGNS[verdict]} {records.VERDICTS[verdict]}\n"
            sheet.text(0.75, s=outcome + textwrap.fill(records.shown(rule), 36),
                       **at, color=COLORS[verdict] if verdict != "undecided" else figures.INK)
        sheet.savefig(path, dpi=110)
