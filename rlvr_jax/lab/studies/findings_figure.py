"""The figure of the findings: a row for the primary rule of each study, placed here and drawn by its template.

Places along a row are in percent of its width, and letters are of the page, so that both can be read on any screen.
"""

import math
from typing import Optional

from rlvr_jax.lab.studies import records, rules

MARGIN = 3  # percent of the width, free at both ends
STEPS, STEPS_OF_TEN = 5, (1, 2, 5, 10)  # at most so many steps of an axis; the sizes of a step
NEAR = 2.4  # percent of the width: seeds that are nearer to each other are drawn one below the other
TOP, HEIGHT, DOT = 42, 12, 8  # pixels: where the seeds are drawn, and how far apart at most


def row(record: dict) -> Optional[dict]:
    """Where everything of a row is drawn; None for a study without a rule.

    `ticks` of the axis with their numbers, `zero`, the `predicted` range from side to side, the `bounds` in it and
    their `label`, `mean`, `interval` and each of the `seeds`, which are None or empty where there are none.
    """
    if not record["rules"]:
        return None
    rule = rules.primary(record["rules"])
    seeds = sorted(rules.values({"measured": rules.of_rule(rule, record["measures"])}))
    low, high = rule.get("within") or (rule.get("above", -math.inf), rule.get("below", math.inf))
    bounds = [x for x in (low, high) if math.isfinite(x)]
    ticks = axis(bounds, [*seeds, *(rule["interval"] or ())])

    def place(x):
        share = (x - ticks[0]) / (ticks[-1] - ticks[0])
        return round(MARGIN + (100 - 2 * MARGIN) * min(max(share, 0), 1), 2)

    predicted = [place(low) if low in bounds else 0, place(high) if high in bounds else 100]
    return {"ticks": [(place(x), number(x)) for x in ticks], "zero": place(0) if ticks[0] < 0 < ticks[-1] else None,
            "predicted": predicted, "bounds": [place(x) for x in bounds], "label": label(rule, predicted),
            "mean": None if rule["mean"] is None else place(rule["mean"]), "seeds": stacked(list(map(place, seeds))),
            "interval": rule["interval"] and [place(x) for x in rule["interval"]], "said": said(rule, seeds)}


def axis(bounds: list[float], measured: list[float]) -> list[float]:
    """The ticks of an axis with 0 and all of these numbers on it, and room beyond the bounds. Shares, of which one is
    above .4, have one axis from 0 to 1."""
    low, high = min([0, *bounds, *measured]), max([0, *bounds, *measured])
    if low == 0 and 0.4 < high <= 1:
        low, high = 0, 1
    rough = ((high - low) or 1) / STEPS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in STEPS_OF_TEN if size * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    first -= any(x <= (first + 1e-9) * step for x in bounds)
    last += any(x >= (last - 1e-9) * step for x in bounds)
    return [i * step for i in range(first, last + 1)]


def number(x: float) -> str:
    """As a reader writes it: 0.15, -0.3, 20,000."""
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}"


def label(rule: dict, predicted: list[float]) -> dict:
    """The prediction in words, at its number, where there is room: `x`, `anchor` and `text`."""
    start, end = predicted
    if "within" in rule:
        x, text = (start + end) / 2, " and ".join(map(number, rule["within"]))
        anchor = "start" if x < 30 else "end" if x > 70 else "middle"
        return {"x": {"start": start, "end": end, "middle": x}[anchor], "anchor": anchor, "text": f"between {text}"}
    above = "above" in rule
    x = start if above else end
    text = f"above {number(rule['above'])} →" if above else f"← below {number(rule['below'])}"
    return {"x": x, "anchor": "start" if x < 50 else "end", "text": text}


def stacked(places: list[float]) -> list[tuple[float, float]]:
    """(percent from the left, pixels from the top) of each seed; those that would lie on each other go down."""
    columns: list[list[float]] = []
    for x in places:
        if columns and x - columns[-1][0] < NEAR:
            columns[-1].append(x)
        else:
            columns.append([x])
    apart = min(DOT, HEIGHT / max(1, *(len(column) - 1 for column in columns))) if columns else DOT
    return [(x, round(TOP + i * apart, 2)) for column in columns for i, x in enumerate(column)]


def said(rule: dict, seeds: list[float]) -> str:
    """The row in words, for who does not see it."""
    return (f"Predicted: {rules.required(rule)}. Measured: {records.shown(rule)}; seeds: "
            + ", ".join(f"{x:.3g}" for x in seeds))
