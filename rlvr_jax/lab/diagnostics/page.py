"""The results of `diagnose` on a page: a table, what each row is and is read as, and a figure of the shares."""

import importlib.util
import pathlib
from typing import Optional

from rlvr_jax.evaluation.estimators import shown
from rlvr_jax.lab.diagnostics.table import DIAGNOSTICS, SHARE
from rlvr_jax.lab.elicit.when_page import draw_bars
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table

BASE = "base, T=1"  # the measure of the study of worlds that needs no trained model


def page(summary: dict, worth: dict, made_by: str) -> str:
    """diagnose.md. `worth` has, by the label of a row, {"auroc", "interval"}: how well it told teaching from switching
    on in the worlds where the truth is known. Empty: these worlds are not measured yet. `made_by` stands at the end."""
    flags, rows = summary["flags"], summary["rows"]
    cells = [[label, row["why"] or shown(row["value"], row["interval"]), row["unit"], f"{row['forward_tokens']:,}",
              *([judged(worth.get(label))] if worth else [])] for label, row in rows.items()]
    header = ["diagnostic", "value", "unit", "forward tokens", *(["AUROC in known worlds"] if worth else [])]
    known = ("AUROC in known worlds: .5 says nothing there, 1 tells taught from switched on, 0 does so upside down. "
             f"The base's accuracy alone has {judged(worth.get(BASE))} there (results/worlds.md).") if worth else (
        "What a high value is worth where the truth is known is not measured yet (results/worlds.json).")
    about = [f"- **{name}**{row.paper and f' ({row.paper})'}: {row.what} High is read as {row.high}."
             for name, row in DIAGNOSTICS.items() if any(each["diagnostic"] == name for each in rows.values())]
    return "\n\n".join([
        f"{flags['trained']} against {flags['base']}: greedy accuracy {summary['base']:.3f} and "
        f"{summary['trained']:.3f}, a gain of {summary['gain']:+.3f}, on {summary['n']} problems. 95 % intervals in "
        "brackets.", markdown_table(header, cells),
        f"Forward tokens are those of a row alone; rows share parts, and all together took "
        f"{summary['forward_tokens']:,}. {known}",
        "Each row below says what it measures, and as what papers read a high value: switched on, if the base could do "
        "it and rarely did, or taught, if it could not.", "\n".join(about), made_by]) + "\n"


def judged(worth: Optional[dict]) -> str:
    return shown(worth["auroc"], worth.get("interval")) if worth else "-"


def draw(summary: dict, path: pathlib.Path) -> None:
    """The shares of the gain with their intervals; nothing without any, or without matplotlib."""
    shares = {name: (row["value"], row["interval"]) for name, row in summary["rows"].items()
              if row["unit"] == SHARE and row["value"] is not None}
    if not shares or not importlib.util.find_spec("matplotlib"):
        return
    from matplotlib.figure import Figure  # optional

    sheet = Figure((6, 0.8 + 0.25 * len(shares)), layout="constrained")
    axes = sheet.subplots()
    draw_bars(axes, shares)
    axes.set(xlabel=SHARE)
    axes.grid(axis="x", linewidth=0.4)
    with files.naming(path):
        sheet.savefig(path, dpi=150)
