"""All diagnostics of one base and what was trained from it, in a table, a page and summary.json."""

import dataclasses
import pathlib
from typing import Any

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.estimators import shown
from rlvr_jax.lab.diagnostics.pair import DiagnoseConfig, Pair, Undefined
from rlvr_jax.lab.diagnostics.table import DIAGNOSTICS, SHARE, Found
from rlvr_jax.lab.elicit.weight_difference import weight_difference
from rlvr_jax.lab.elicit.when import draw_bars
from rlvr_jax.pretrained import loading
from rlvr_jax.runs import files
from rlvr_jax.runs.flags import describe_command
from rlvr_jax.runs.markdown import markdown_table


def diagnose(config: DiagnoseConfig) -> dict:
    """Measures --trained against --base; returns what summary.json of --out then holds, and diagnose.md shows.

    Completions are kept below --out, from which the same command goes on. Raises UserError where a model, its shape,
    its tokenizer, or a run of --frontier or --sft does not fit.
    """
    names = list(filter(None, config.diagnostics.split(","))) or list(DIAGNOSTICS)
    if unknown := [name for name in names if name not in DIAGNOSTICS]:
        raise UserError(f"--diagnostics: there is no {unknown[0]}; the rows are {', '.join(DIAGNOSTICS)}")
    pair = load(config)
    asked = {f"{name}, {added}" if added else name: (name, setting) for name in names
             for added, setting in DIAGNOSTICS[name].settings(config).items()}
    cheap = sorted(asked, key=lambda label: bool(DIAGNOSTICS[asked[label][0]].reads))  # wrong flags are told soon
    found = {label: row(pair, label, *asked[label]) for label in cheap}
    found = {label: found[label] for label in asked}
    base, trained = (float(right_P.mean()) for right_P in pair.right)
    summary = {"n": len(pair.right[0]), "base": base, "trained": trained, "gain": trained - base,
               "rows": found, "forward_tokens": sum(pair.tokens.values()), "parts": pair.tokens,
               "flags": pair.config.as_flags()}
    out = pathlib.Path(pair.kept.out)
    files.write_whole(out / "diagnose.md", format_page(summary, describe_command("diagnose", config)))
    if shares := {label: (row["value"], row["interval"]) for label, row in found.items()
                  if row["unit"] == SHARE and row["value"] is not None}:
        files.write_figure(out / "diagnose.png", lambda sheet: draw_shares(shares, sheet))
    files.write_json(out / "summary.json", summary)
    return summary


def row(pair: Pair, label: str, name: str, setting: Any) -> dict:
    """What summary.json says of a value. `forward_tokens` is what it takes alone: rows share parts."""
    kind = DIAGNOSTICS[name]
    try:
        found, why = kind.measure(pair, label, setting), ""
    except Undefined as error:
        found, why = Found(None), str(error)
    taken = sum(n for part, n in pair.tokens.items() if part == label or part.split(", ")[0] in kind.reads)
    return {"diagnostic": name, "value": found.value, "interval": found.interval, "why": why, "unit": kind.unit,
            "forward_tokens": taken, "more": found.more}


def load(config: DiagnoseConfig) -> Pair:
    """Both models, compared. Raises UserError, with the flag that it is about."""
    steering = config.hybrid.steering
    if not (config.base and steering.trained and steering.kept.out):
        raise UserError("--base, --trained and --out are required: a model, what was trained from it, and a directory "
                        "for the results")
    config = config.with_flags(base=loading.pinned(config.base), trained=loading.pinned(steering.trained))
    steering = config.hybrid.steering
    dtype = steering.kept.choice.dtype
    base, trained = (about(flag, loading.load_model, name, dtype, dtype) for flag, name in
                     (("--base", config.base), ("--trained", steering.trained)))
    trained = dataclasses.replace(trained, config=dataclasses.replace(trained.config,
                                                                      max_seq_len=base.config.max_seq_len))
    for what, same in (("shape", trained.config == base.config),
                       ("tokenizer", trained.tokenizer.to_json() == base.tokenizer.to_json())):
        if not same:
            raise UserError(f"--trained={steering.trained} has another {what} than --base={config.base}; take a model "
                            "that was trained from it")
    weights = about("--trained", weight_difference, base.params, trained.params)
    return Pair(config, base, trained, weights)


def about(flag: str, function, *given):
    """function(*given), whose errors speak of --model: here that is another flag."""
    try:
        return function(*given)
    except UserError as error:
        raise UserError(str(error).replace("--model", flag)) from None


# ----- showing


def format_page(summary: dict, made_by: str) -> str:
    """diagnose.md; `made_by` stands at the end."""
    flags, rows = summary["flags"], summary["rows"]
    cells = [[label, row["why"] or shown(row["value"], row["interval"]), f"{row['forward_tokens']:,}"]
             for label, row in rows.items()]
    about = [f"- **{name}** ({row.unit}{row.paper and f', {row.paper}'}): {row.what} High means {row.high}."
             for name, row in DIAGNOSTICS.items() if (name, "") in {(x["diagnostic"], x["why"]) for x in rows.values()}]
    return "\n\n".join([
        f"{flags['trained']} against {flags['base']}: greedy accuracy {summary['base']:.3f} and "
        f"{summary['trained']:.3f}, a gain of {summary['gain']:+.3f}, on {summary['n']} problems. 95 % intervals in "
        "brackets. Forward tokens are those of a row alone; rows share parts, and all together took "
        f"{summary['forward_tokens']:,}.", markdown_table(["diagnostic", "value", "forward tokens"], cells),
        "What a row measures, its unit, and what papers take a high value to mean: taught, or switched on if the base "
        "could do it and rarely did.", "\n".join(about), made_by]) + "\n"


def draw_shares(shares: dict[str, tuple], sheet) -> None:
    """Shares of the gain with their intervals, by the label of a row, on a matplotlib Figure."""
    sheet.set_size_inches(6, 0.8 + 0.25 * len(shares))
    axes = sheet.subplots()
    draw_bars(axes, shares)
    axes.set(xlabel=SHARE)
    axes.grid(axis="x", linewidth=0.4)
