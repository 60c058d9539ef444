"""The figure of a study: curves over the steps of its runs, and its measures with every seed and the interval."""

import pathlib
from typing import Optional

from rlvr_jax.runs import files
from rlvr_jax.studies import report

COLORS = ("#0072b2", "#d55e00", "#00785a", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8c564b")  # Okabe and Ito


def run_dir(study: dict, cell: dict) -> Optional[pathlib.Path]:
    """The run whose curves are drawn for one arm and seed; None where the study names none."""
    run = study.get("figure", {}).get("run")
    return pathlib.Path(cell["work"]) / run.format(**cell) if run else None


def write(study: dict, cells: dict, measured: dict, path: pathlib.Path) -> None:
    """One panel a metric, with a thin line a seed, and one of the measures; an arm has one colour in all of them."""
    from matplotlib import rc_context  # optional
    from matplotlib.figure import Figure

    figure = study.get("figure", {})
    curves, measures = figure.get("curves", []), figure.get("measures", list(study["measures"]))
    colors = {arm: COLORS[i % len(COLORS)] for i, arm in enumerate(study["arms"])}
    columns = min(len(curves) + 1, 4)
    rows = -(-(len(curves) + 1) // columns)
    with rc_context(report.STYLE):
        sheet = Figure((3.4 * columns, 2.8 * rows + 0.4), layout="constrained")
        panels = sheet.subplots(rows, columns, squeeze=False).ravel()
        for axes, metric in zip(panels, curves):
            for (arm, _), cell in cells.items():
                run = run_dir(study, cell)
                points = report.series(files.read_steps(run / "metrics.jsonl"), metric) if run else ([], [])
                if points[0]:
                    axes.plot(*points, color=colors[arm], linewidth=1, alpha=0.8,
                              marker="o" if len(points[0]) == 1 else "")
            axes.set(title=metric, xlabel="step")
        draw_measures(panels[len(curves)], measured, measures, colors, study.get("control"))
        for axes in panels[len(curves) + 1 :]:
            axes.set_axis_off()
        handles = [sheet.axes[len(curves)].plot([], [], color=color, marker="o", label=arm)[0]
                   for arm, color in colors.items()]
        sheet.legend(handles=handles, loc="outside upper left", ncols=max(2, 2 * columns))
        sheet.savefig(path, dpi=150)


def draw_measures(axes, measured: dict, measures: list[str], colors: dict, control: Optional[str]) -> None:
    """Means with their 95 % intervals, the seeds beside them as small dots, the control as a dashed line."""
    width = 0.8 / len(measured)
    for i, (arm, values) in enumerate(measured.items()):
        for x, name in enumerate(measures):
            place, one = x + (i - (len(measured) - 1) / 2) * width, values[name]
            if one["mean"] is None:
                continue
            low, high = one["interval"] or (one["mean"], one["mean"])
            axes.errorbar(place, one["mean"], [[one["mean"] - low], [high - one["mean"]]], color=colors[arm], fmt="o",
                          ms=5, capsize=3)
            there = [value for value in one["seeds"] if value is not None]
            axes.plot([place + 0.25 * width] * len(there), there, ".", color=colors[arm], ms=4, alpha=0.6)
            if arm == control:
                axes.hlines(one["mean"], x - 0.45, x + 0.45, color=colors[arm], linestyle="--", linewidth=0.8)
    axes.set_xticks(range(len(measures)), [name.replace(", ", ",\n") for name in measures])
    axes.set(title="mean, 95 % interval, seeds", xlim=(-0.6, len(measures) - 0.4))
