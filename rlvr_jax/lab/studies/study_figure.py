"""The figure of a study, from its record: a row for each arm with every seed and the 95 % interval, and curves.

The table [figure] in a study's file may have these keys. `measures`: each gets a panel with a row for every arm. `x`:
measures against which each of `measures` is drawn. `log_x`: true, or those of `x` with a logarithmic axis. `curves`:
metrics to draw by step, from the run directory `run`. `arrows`: measures [x, x after, y, y after]; each arm gets an
arrow between the two points. `controls`: arms drawn hollow, by default the study's `control`. `labels`: {name =
"words"} of axes; those in labels.toml hold for all studies. The table `shown` in the file chooses the arms.
"""

import pathlib
import textwrap
import tomllib
from typing import NamedTuple

import numpy as np

from rlvr_jax.lab.studies import records, statistics
from rlvr_jax.report import figures

COLORS = ("#0072b2", "#d55e00", "#00785a", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8c564b")  # Okabe and Ito
MARKERS, LINES = ("o", "s", "^", "D"), ("-", "--", ":", "-.")
KINDS = dict.fromkeys(("measures", "x", "curves", "controls", "arrows"), list) | {
    "log_x": (bool, list), "run": str, "labels": dict}  # keys of [figure] -> types
MOST_PANELS = 3
LABELS = tomllib.loads(pathlib.Path(__file__).with_name("labels.toml").read_text("utf-8"))


class Look(NamedTuple):
    """How an arm is drawn, the same in every panel."""

    color: str
    marker: str
    line: str
    fill: str  # "full" or "none"


def fault(study: dict) -> str:
    """A message on what is wrong with [figure], `table` or `shown` of a study's file; "" if nothing is wrong."""
    figure, shown = study.get("figure", {}), study.get("shown", {})
    wrong = [key for key, value in figure.items() if not isinstance(value, KINDS.get(key, ()))]
    if not wrong:
        wrong = ["arrows"] * (len(figure.get("arrows", [""] * 4)) != 4)
    if wrong:
        return f"[figure] {wrong[0]} is not as it should be; docs/studies.md has {', '.join(KINDS)}"
    most = {"arms": records.MOST_ARMS, "measures": records.MOST_MEASURES}
    if not all(isinstance(names, list) and len(names) <= most.get(key, -1) for key, names in shown.items()):
        return 'shown: write shown = {arms = ["a"], measures = ["b"]}, at most 12 arms and 4 measures'
    lists = [*((f"[figure] {key}", names, "arms" if key == "controls" else "measures")
               for key, names in figure.items() if isinstance(names, list) and key != "curves"),
             ("table", study.get("table", []), "measures"),  # (key, its list of names, what the names have to be)
             *((f"shown: {key}", names, key) for key, names in shown.items())]
    unknown = [f"{key}: {name!r} is none of the {kind}: {', '.join(study[kind])}" for key, names, kind in lists
               for name in names if str(name) not in study[kind]]
    return unknown[0] if unknown else ""


def looks(arms: list[str], controls: list[str]) -> dict[str, Look]:
    """How each arm is drawn, `{arm: Look}`; arms in `controls` are hollow. Up to 32 arms all look different."""
    return {arm: Look(COLORS[i % 8], MARKERS[i // 8 % 4], LINES[i // 8 % 4], "none" if arm in controls else "full")
            for i, arm in enumerate(arms)}


def write(record: dict, path: pathlib.Path) -> None:
    """Draws the figure of a record and writes it as a PNG."""
    from matplotlib import rc_context  # optional

    with rc_context(figures.STYLE):
        draw_figure(record).savefig(path, dpi=150)


def draw_figure(record: dict):
    """Returns a matplotlib Figure of at most MOST_PANELS panels, side by side."""
    from matplotlib.figure import Figure  # optional

    figure = record.get("figure", {})
    measures = figure.get("measures", records.choose_columns(record)[1])
    arms = record.get("shown", {}).get("arms") or list(record["measures"])
    look = looks(arms, figure.get("controls", [record.get("control")]))
    pairs = [(x, y) for x in figure.get("x", []) for y in measures][: MOST_PANELS - 1]
    recorded = {metric for units in record.get("curves", {}).values() for curves in units.values() for metric in curves}
    metrics = [metric for metric in figure.get("curves", []) if metric in recorded]
    arrows = [figure["arrows"]] if "arrows" in figure else []
    metrics = metrics[: MOST_PANELS - 1 - len(pairs) - len(arrows)]
    if not (measures or metrics or arrows):  # a figure of curves, and none in the record
        measures = records.choose_columns(record)[1]
    dots = measures[: MOST_PANELS - len(pairs) - len(arrows) - len(metrics)]
    # For each panel: the function that draws it, and its arguments after (axes, record).
    panels = [*((draw_dots, name, look) for name in dots), *((draw_curve, metric, look) for metric in metrics),
              *((draw_against, *pair, look) for pair in pairs), *((draw_arrows, names, look) for names in arrows)]
    sheet = Figure((0.4 + 0.065 * max(map(len, arms)) + 3.2 * len(panels), max(2.8, 0.23 * len(arms) + 1)),
                   layout="constrained")
    for i, (axes, (draw, *arguments)) in enumerate(zip(sheet.subplots(1, len(panels), squeeze=False)[0], panels)):
        draw(axes, record, *arguments)
        axes.tick_params(labelleft=draw is not draw_dots or not i)  # the names of arms only beside the first panel
    over = " over problems" if record.get("over") == "problems" or len(record["seeds"]) == 1 else ""
    hollow = "; hollow and dashed: control" if any(style.fill == "none" for style in look.values()) else ""
    key = f"a small dot a seed; mean with 95 % interval{over}{hollow}" if len(panels) > len(metrics) else (
        "faint lines: one seed each; thick line: their mean")
    sheet.supxlabel(key, fontsize="small", color=figures.INK)
    return sheet


def label(record: dict, name: str) -> str:
    """The label of a measure's axis: from `labels` of [figure], else from LABELS, else the name. A text without line
    breaks gets lines of at most 40 characters."""
    words = (LABELS | record.get("figure", {}).get("labels", {})).get(name, name)
    return words if "\n" in words else "\n".join(textwrap.wrap(words, 40))


def reach(measure: dict) -> list[list[float]]:
    """Distances from a measure's mean to the ends of its interval, [[below], [above]], as in matplotlib's `xerr`."""
    low, high = measure["interval"] or (measure["mean"], measure["mean"])
    return [[max(measure["mean"] - low, 0)], [max(high - measure["mean"], 0)]]


def draw_point(axes, x: float, y: float, look: Look, **errors) -> None:
    """Draws a mean in the colour, marker and fill of an arm. `errors` are results of `reach` as `xerr` or `yerr`."""
    axes.errorbar(x, y, **errors, color=look.color, marker=look.marker, fillstyle=look.fill, ls="", ms=5, capsize=2,
                  elinewidth=1.2)


def draw_dots(axes, record: dict, name: str, look: dict[str, Look]) -> None:
    """Draws the measure `name` in a row for each arm: the mean with its interval, and the seeds below as small dots.
    The control's mean is a dashed line. The arms' names have the colours that the arms have in all panels."""
    for row, arm in enumerate(look):
        measure, color = record["measures"][arm][name], look[arm].color
        axes.axhline(row, color=color, ls=look[arm].line, linewidth=0.7, alpha=0.4)
        if measure["mean"] is None:
            continue
        draw_point(axes, measure["mean"], row, look[arm], xerr=reach(measure))
        seeds = [value for value in measure["seeds"] if value is not None]
        axes.plot(seeds, [row + 0.3] * len(seeds), ".", color=color, ms=4, alpha=0.6)
        if arm == record.get("control"):
            axes.axvline(measure["mean"], color=color, linestyle="--", linewidth=0.8)
    axes.grid(False, axis="y")
    axes.ticklabel_format(axis="x", scilimits=(-3, 5))
    axes.set_yticks(range(len(look)), list(look))
    for text, style in zip(axes.get_yticklabels(), look.values()):
        text.set_color(style.color)
    axes.set(xlabel=label(record, name), ylim=(len(look) - 0.4, -0.6))
    keep_to_shares(axes, "x")


def draw_curve(axes, record: dict, metric: str, look: dict[str, Look]) -> None:
    """Draws a metric over the steps: a faint line for each seed, and an arm's mean at the steps of all its seeds."""
    for arm, style in look.items():
        # {step: value} for each unit; record["curves"] is {arm: {unit: {metric: [steps, values]}}}
        runs = [dict(zip(*unit[metric])) for unit in record["curves"].get(arm, {}).values() if metric in unit]
        for run in runs if len(runs) > 1 else ():
            axes.plot(*zip(*run.items()), color=style.color, ls=style.line, linewidth=1, alpha=0.25)
        steps = sorted(set.intersection(*map(set, runs))) if runs else []
        axes.plot(steps, [sum(run[step] for run in runs) / len(runs) for step in steps], color=style.color,
                  ls=style.line, linewidth=1.8, marker="o" if len(steps) == 1 else "")
    axes.set(xlabel="step", title=label(record, metric))
    keep_to_shares(axes, "y")


def draw_against(axes, record: dict, x: str, y: str, look: dict[str, Look]) -> None:
    """Draws a point for each arm, its mean of measure `y` against that of `x` with both intervals, and its seeds as
    small dots. An arm without a seed that has both is left out. A logarithmic axis is linear below 1 if one is 0."""
    from matplotlib.ticker import LogLocator  # optional

    drawn = []
    for arm, style in look.items():
        values = record["measures"][arm]
        pairs = [pair for pair in zip(values[x]["seeds"], values[y]["seeds"]) if None not in pair]
        if pairs:
            draw_point(axes, values[x]["mean"], values[y]["mean"], style, xerr=reach(values[x]), yerr=reach(values[y]))
            axes.plot(*zip(*pairs), ".", color=style.color, ms=4, alpha=0.6)
            drawn += [x_value for x_value, _ in pairs]
    log_x = record["figure"].get("log_x", [])
    if drawn and (log_x is True or log_x and x in log_x):
        axes.set_xscale("log") if min(drawn) > 0 else axes.set_xscale("symlog", linthresh=1)
        if 0 < max(drawn) < 1000 * min(drawn):  # ticks at powers of ten alone would be one or two
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
    axes.set(xlabel=label(record, x), title=label(record, y))
    keep_to_shares(axes, "xy" if axes.get_xscale() == "linear" else "y")


def draw_arrows(axes, record: dict, names: list[str], look: dict[str, Look]) -> None:
    """Draws an arrow for each arm that has a mean of all four measures `names`: x, x after, y, y after. The arrow goes
    from the means (x, y) to the means (x after, y after), whose intervals are drawn."""
    for arm, style in look.items():
        x0, x1, y0, y1 = (record["measures"][arm][name] for name in names)
        tail, head = (x0["mean"], y0["mean"]), (x1["mean"], y1["mean"])
        if None not in tail + head:
            axes.annotate("", head, tail, arrowprops={"arrowstyle": "->", "color": style.color, "shrinkB": 4})
            draw_point(axes, *head, style, xerr=reach(x1), yerr=reach(y1))
            axes.plot(*tail, ".", color=style.color, ms=4)
    axes.set(xlabel=label(record, names[1]), title=label(record, names[3]))
    keep_to_shares(axes, "xy")


def keep_to_shares(axes, sides: str) -> None:
    """Sets the axes `sides`, "x", "y" or "xy", to the range from 0 to 1 if all data are in it and reach .4, so that
    panels of shares look alike."""
    for side in sides:
        low, high = getattr(axes.dataLim, f"interval{side}")
        if 0 <= low and 0.4 <= high <= 1:
            getattr(axes, f"set_{side}lim")(-0.03, 1.03)
