"""The results of `diagnose` on a page: a table, what each row is and is read as, and a figure of the shares."""

import importlib.util
import pathlib
from typing import Optional

import numpy as np

from rlvr_jax.evaluation.estimators import shown
from rlvr_jax.lab.diagnostics.table import DIAGNOSTICS, SHARE
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table


def page(summary: dict, worth: Optional[dict]) -> str:
    """diagnose.md. `worth` has, by the name of a row, {"auroc", "interval"}: how well it told switching on from teaching
    in the worlds where the truth is known. None: these worlds are not measured yet."""
    flags, rows = summary["flags"], summary["rows"]
    cells = [[name, shown(row["value"], row["interval"]) if row["value"] is not None else row["why"], row["unit"],
              f"{row['forward_tokens']:,}", *([judged(worth.get(name))] if worth else [])] for name, row in rows.items()]
    header = ["diagnostic", "value", "unit", "forward tokens", *(["AUROC in known worlds"] if worth else [])]
    known = "AUROC in known worlds: .5 says nothing there, 1 tells taught from switched on, 0 does so upside down." if (
        worth) else "What a high value is worth where the truth is known is not measured yet (results/worlds.json)."
    about = [f"- **{name}**{row.paper and f' ({row.paper})'}: {row.what} High is read as {row.high}."
             for name, row in DIAGNOSTICS.items() if name in {each["diagnostic"] for each in rows.values()}]
    return "\n\n".join([
        f"{flags['trained']} against {flags['base']}: greedy accuracy {summary['base']:.3f} and "
        f"{summary['trained']:.3f}, a gain of {summary['gain']:+.3f}, on {summary['n']} problems. 95 % intervals in "
        "brackets.", markdown_table(header, cells),
        f"Forward tokens are those of a row alone; rows share parts, and all together took "
        f"{summary['forward_tokens']:,}. {known}",
        "Each row below says what it measures, and as what papers read a high value: switched on, if the base could do "
        "it and rarely did, or taught, if it could not.", "\n".join(about)]) + "\n"


def judged(worth: Optional[dict]) -> str:
    return shown(worth["auroc"], worth.get("interval")) if worth else "-"


def draw(summary: dict, path: pathlib.Path) -> None:
    """The shares of the gain with their intervals; nothing without any, or without matplotlib."""
    shares = {name: row for name, row in summary["rows"].items() if row["unit"] == SHARE and row["value"] is not None}
    if not shares or not importlib.util.find_spec("matplotlib"):
        return
    from matplotlib.figure import Figure  # optional

    sheet = Figure((6, 0.8 + 0.25 * len(shares)), layout="constrained")
    axes = sheet.subplots()
    values = np.array([row["value"] for row in shares.values()])
    ends = np.array([row["interval"] for row in shares.values()]).T
    axes.errorbar(values, range(len(shares)), xerr=np.maximum([values - ends[0], ends[1] - values], 0), fmt="o",
                  color="#0072b2", capsize=3)
    for x in (0, 1):
        axes.axvline(x, color="#8c959f", linewidth=0.8, linestyle="--")
    axes.set(yticks=range(len(shares)), xlabel=SHARE)
    axes.set_yticklabels(shares, fontsize=8)
    axes.invert_yaxis()
    with files.naming(path):
        sheet.savefig(path, dpi=150)
