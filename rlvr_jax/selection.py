"""Choosing the one example by how often the untrained model solves it."""

import dataclasses

import numpy as np

from rlvr_jax import arithmetic
from rlvr_jax.config import UserError
from rlvr_jax.problems import Problem


def choose_example(rows: list[dict], problems: list[Problem], pass_rate: float) -> Problem:
    """The problem whose pass rate is nearest `pass_rate`; what was seen of it goes into its `meta`.

    `rows` are completions of every problem (`evaluation.measure`). A problem that is never or always solved teaches
    nothing. On the synthetic task a right answer that is not a careful one is luck: where more than 0.5 % of the
    completions are lucky, training would reward the wrong style, so such problems come last.
    """
    right, lucky = np.zeros((2, len(problems)))
    for row in rows:
        style = arithmetic.style_of(row["completion"])
        right[row["problem"]] += row["correct"]
        lucky[row["problem"]] += row["correct"] and style is not None and style != "careful"
    count = len(rows) / len(problems)
    right, lucky = right / count, lucky / count
    teaches = (right > 0) & (right < 1)
    if not teaches.any():
        raise UserError("--example=auto found no problem that the model solves sometimes but not always among "
                        f"{len(problems)}; raise --example_pool or --temperature, or name one with --example=INDEX")
    best = int(np.argmin(np.abs(right - pass_rate) + 10.0 * (lucky > 0.005) + 100.0 * ~teaches))
    seen = {"index": best, "pass_rate": float(right[best]), "lucky": float(lucky[best])}
    return dataclasses.replace(problems[best], meta=problems[best].meta | seen)
