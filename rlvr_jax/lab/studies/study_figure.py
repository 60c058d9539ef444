"""The figure of a study: curves over the steps of its runs, and its measures with every seed and the interval.

A study's [figure] may have: `run`, the run whose `curves`, names of metrics, are drawn; `measures` (without it all);
`x`, a measure or a list of them, to draw each of `measures` against; `log_x`, true or a list of those on a logarithmic
axis; `controls`, arms drawn hollow (without it the study's `control`).

Up to FEW arms differ in colour and stand in a legend above. More differ in colour, marker and line, and a dot plot on
the left has their names: it is the legend of the other panels. Arms that are AUROCs (`design.contrasts`) have a panel
each, with a row for each of `measures`, which stand in no other panel then.
"""

import pathlib
import textwrap
from typing import Callable, NamedTuple, Optional

from rlvr_jax.lab.studies import design, figures, records, statistics
from rlvr_jax.runs import files

COLORS = ("#0072b2", "#d55e00", "#00785a", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8c564b")  # Okabe and Ito
MARKERS, LINES = ("o", "s", "^", "D"), ("-", "--", ":", "-.")
ACROSS = 4  # measures side by side
FEW = len(COLORS)


class Look(NamedTuple):
    """How an arm is drawn, the same in every panel."""

    color: str
    marker: str
    line: str
    fill: str  # "full" or "none"


def listed(value) -> list:
    return value if isinstance(value, list) else [value]


def fault(study: dict) -> str:
    """Which measure or arm [figure] names that the study has not; empty if there is none."""
    figure = study.get("figure", {})
    log_x = figure.get("log_x", [])
    for key, names, known in (("measures", figure.get("measures", []), "measures"),
                              ("x", figure.get("x", []), "measures"),
                              ("log_x", [] if isinstance(log_x, bool) else log_x, "measures"),
                              ("controls", figure.get("controls", []), "arms")):
        for name in listed(names):
            if name not in study[known]:
                return f"[figure] {key}: {name!r} is none of the {known}: {', '.join(study[known])}"
    return ""


def drawn(study: dict, measured: dict) -> str:
    """What a point, its line and its small dots are, in words: the interval has the level of the study's looks. With
    one seed it is over problems, at 95 %."""
    seeds = max(len(measure["seeds"]) for measures in measured.values() for measure in measures.values())
    error = statistics.alpha(study.get("looks")) if seeds > 1 else statistics.ALPHA
    return f"mean, {records.percent(1 - error)} interval{' over problems' * (seeds == 1)}, seeds"


def run_dir(study: dict, cell: dict) -> Optional[pathlib.Path]:
    """The run whose curves are drawn for one arm and seed; None where the study names none."""
    run = study.get("figure", {}).get("run")
    return pathlib.Path(cell["work"]) / run.format(**cell) if run else None


def looks(study: dict) -> dict[str, Look]:
    """A look for each arm, no two the same up to 32."""
    controls = study.get("figure", {}).get("controls", [study.get("control")])
    return {arm: Look(COLORS[i % FEW], MARKERS[i // FEW % len(MARKERS)], LINES[i // FEW % len(LINES)],
                      "none" if arm in listed(controls) else "full") for i, arm in enumerate(study["arms"])}


def write(study: dict, cells: dict, measured: dict, path: pathlib.Path) -> None:
    """Draws the figure into a PNG."""
    from matplotlib import rc_context  # optional

    with rc_context(figures.STYLE):
        draw(study, cells, measured).savefig(path, dpi=150)


def draw(study: dict, cells: dict, measured: dict):
    """A matplotlib Figure: a panel for each curve, the measures, and a panel for each measure against an x."""
    from matplotlib.figure import Figure  # optional

    figure, areas = study.get("figure", {}), list(design.contrasts(study))
    look = {arm: style for arm, style in looks(study).items() if arm not in areas}
    curves, measures = figure.get("curves", []), figure.get("measures", list(study["measures"]))
    pairs = [(x, y) for x in listed(figure.get("x", [])) for y in measures]
    few = len(look) <= FEW and (bool(areas) or len(measures) <= ACROSS)  # names stay apart
    log_x = figure.get("log_x", [])
    count = len(curves) + (len(areas) or few) + len(pairs)
    rows = -(-count // (4 if few else 2))
    columns = -(-count // max(rows, 1))
    names = 0 if few else 0.4 + 0.065 * max(map(len, look)) + 2.2 * min(len(measures), ACROSS)  # inches
    in_legend = max(1, int(3.4 * columns / (0.6 + 0.065 * max(map(len, look)))))  # names that fit side by side
    height = 2.8 * rows + 0.2 + 0.2 * -(-len(look) // in_legend) if few else max(
        2.8 * rows, (0.22 * len(look) + 0.9) * -(-len(measures) // ACROSS))
    sheet = grid = Figure((names + 3.4 * columns, height), layout="constrained")
    if not few:
        side, grid = sheet.subfigures(1, 2, width_ratios=[names, 3.4 * columns]) if count else (sheet, None)
        draw_dots(side, {arm: measured[arm] for arm in look}, measures, look, study.get("control"))
        side.supxlabel(drawn(study, measured), fontsize="small")
    panels = iter(grid.subplots(rows, columns, squeeze=False).ravel() if count else ())
    for metric in curves:
        draw_curve(next(panels), study, cells, metric, look)
    for arm in areas:
        draw_areas(next(panels), arm, measured[arm], measures)
    if few and not areas:
        axes = next(panels)
        draw_measures(axes, measured, measures, look, study.get("control"))
        axes.set(title=drawn(study, measured))
    if few:
        draw_legend(sheet, look, in_legend)
    for x, y in pairs:
        draw_against(next(panels), measured, x, y, look, log_x is True or x in listed(log_x))
    for axes in panels:
        axes.set_axis_off()
    return sheet


def draw_legend(sheet, look: dict[str, Look], columns: int) -> None:
    """The arms, above the panels."""
    from matplotlib.lines import Line2D  # optional

    handles = [Line2D([], [], color=style.color, marker=style.marker, ls=style.line, fillstyle=style.fill, label=arm)
               for arm, style in look.items()]
    sheet.legend(handles=handles, loc="outside upper left", ncols=min(columns, len(look)))


def draw_curve(axes, study: dict, cells: dict, metric: str, look: dict[str, Look]) -> None:
    """One metric over the steps: a thin line for each arm and seed, and the mean of an arm's seeds where they are
    several, up to where the first of them ends."""
    by_arm = {}
    for (arm, _), cell in cells.items():
        run = run_dir(study, cell)
        if run and (run / "metrics.jsonl").is_file():
            points = figures.series(files.read_steps(run / "metrics.jsonl"), metric)
            by_arm.setdefault(arm, []).extend([points] if points[0] else [])
    for arm, runs in by_arm.items():
        for points in runs:
            axes.plot(*points, color=look[arm].color, ls=look[arm].line, linewidth=1,
                      alpha=0.25 if len(runs) > 1 else 0.8, marker="o" if len(points[0]) == 1 else "")
        if len(runs) > 1:
            steps = sorted(set.intersection(*(set(steps) for steps, _ in runs)))
            means = [sum(dict(zip(*points))[step] for points in runs) / len(runs) for step in steps]
            axes.plot(steps, means, color=look[arm].color, ls=look[arm].line, linewidth=1.8)
    axes.set(title=metric, xlabel="step")


def reach(measure: dict) -> list[list[float]]:
    """How far the interval of a measure goes below and above its mean, as matplotlib wants it."""
    low, high = measure["interval"] or (measure["mean"], measure["mean"])
    return [[max(measure["mean"] - low, 0)], [max(high - measure["mean"], 0)]]


def draw_point(axes, x: float, y: float, look: Look, size: float = 5, **errors) -> None:
    """A mean with its interval, as the arm looks."""
    axes.errorbar(x, y, **errors, color=look.color, marker=look.marker, fillstyle=look.fill, ls="", ms=size, capsize=2,
                  elinewidth=1.2)


def draw_measures(axes, measured: dict, measures: list[str], look: dict[str, Look], control: Optional[str]) -> None:
    """Means with their intervals, the seeds beside them as small dots, the control as a dashed line."""
    width = 0.8 / len(measured)
    for i, (arm, values) in enumerate(measured.items()):
        for x, name in enumerate(measures):
            place, measure = x + (i - (len(measured) - 1) / 2) * width, values[name]
            if measure["mean"] is None:
                continue
            draw_point(axes, place, measure["mean"], look[arm], yerr=reach(measure))
            seeds = [value for value in measure["seeds"] if value is not None]
            axes.plot([place + 0.25 * width] * len(seeds), seeds, ".", color=look[arm].color, ms=4, alpha=0.6)
            if arm == control:
                axes.hlines(measure["mean"], x - 0.45, x + 0.45, color=look[arm].color, linestyle="--", linewidth=0.8)
    axes.set_xticks(range(len(measures)), [name.replace(", ", ",\n") for name in measures])
    keep_to_shares(measured, measures, axes.set_ylim)
    axes.set(xlim=(-0.6, len(measures) - 0.4))


def draw_dots(side, measured: dict, measures: list[str], look: dict[str, Look], control: Optional[str]) -> None:
    """A row for each arm, a panel for each measure: the mean with its interval, and the seeds below as small dots. The
    line of a row is that of the arm's curves."""
    across = min(len(measures), ACROSS)
    panels = side.subplots(-(-len(measures) // across), across, sharey=True, squeeze=False).ravel()
    for axes in panels[len(measures):]:
        axes.set_axis_off()
    for axes, name in zip(panels, measures):
        for row, (arm, values) in enumerate(measured.items()):
            measure = values[name]
            axes.axhline(row, color=look[arm].color, ls=look[arm].line, linewidth=0.7, alpha=0.4)
            if measure["mean"] is None:
                continue
            draw_point(axes, measure["mean"], row, look[arm], xerr=reach(measure))
            seeds = [value for value in measure["seeds"] if value is not None]
            axes.plot(seeds, [row + 0.3] * len(seeds), ".", color=look[arm].color, ms=4, alpha=0.6)
            if arm == control:
                axes.axvline(measure["mean"], color=look[arm].color, linestyle="--", linewidth=0.8)
        keep_to_shares(measured, [name], axes.set_xlim)
        axes.grid(False, axis="y")
        axes.set(title=narrow(name))
    panels[0].set_yticks(range(len(measured)), list(measured))
    panels[0].set_ylim(len(measured) - 0.4, -0.6)


def draw_areas(axes, arm: str, values: dict, measures: list[str]) -> None:
    """AUROCs with their intervals, a row for each measure; .5, which says nothing, is a dashed line."""
    axes.axvline(0.5, color="gray", linestyle="--", linewidth=0.8)
    for row, name in enumerate(measures):
        if values[name]["mean"] is not None:
            draw_point(axes, values[name]["mean"], row, Look(COLORS[0], "o", "-", "full"), xerr=reach(values[name]))
    axes.set_yticks(range(len(measures)), measures, fontsize="small")
    axes.set(title=f"AUROC, {arm}", xlim=(-0.03, 1.03), ylim=(len(measures) - 0.4, -0.6))


def keep_to_shares(measured: dict, names: list[str], set_limits: Callable) -> None:
    """Limits an axis to 0..1 where every seed of the measures lies there: an interval over few seeds may go beyond."""
    seeds = [seed for values in measured.values() for name in names for seed in values[name]["seeds"]
             if seed is not None]
    if seeds and 0 <= min(seeds) and max(seeds) <= 1:
        set_limits(-0.03, 1.03)


def narrow(name: str) -> str:
    """A measure's name on lines of at most 24 characters, broken after its commas too."""
    return "\n".join(line for part in name.replace(", ", ",\n").splitlines() for line in textwrap.wrap(part, 24))


def draw_against(axes, measured: dict, x: str, y: str, look: dict[str, Look], log_x: bool) -> None:
    """A point for each arm, its mean of `y` over its mean of `x` with both intervals, and its seeds as small dots. An
    arm without one of the two is left out. A logarithmic axis is linear below 1 where an arm has a 0."""
    from matplotlib.ticker import LogLocator  # optional

    drawn = []
    for arm, values in measured.items():
        pairs = [pair for pair in zip(values[x]["seeds"], values[y]["seeds"]) if None not in pair]
        if pairs:
            draw_point(axes, values[x]["mean"], values[y]["mean"], look[arm], size=6, xerr=reach(values[x]),
                       yerr=reach(values[y]))
            axes.plot(*zip(*pairs), ".", color=look[arm].color, ms=4, alpha=0.6)
            drawn += [x_value for x_value, _ in pairs]
    if log_x and drawn:
        axes.set_xscale("log") if min(drawn) > 0 else axes.set_xscale("symlog", linthresh=1)
        if 0 < max(drawn) < 1000 * min(drawn):  # by powers of ten alone there would be a number or two
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
    for measure, limit in ((x, axes.set_xlim), (y, axes.set_ylim)):
        keep_to_shares(measured, [measure], limit)
    hollow = "; hollow: a control" * any(style.fill == "none" for style in look.values())
    axes.set(title=f"{y}{hollow}", xlabel=x)
