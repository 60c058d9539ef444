"""A step's rollouts: sampled, graded, and dead groups replaced where that is asked for."""

import jax
import numpy as np

from rlvr_jax.config import TrainConfig
from rlvr_jax.metrics import timed
from rlvr_jax.objectives import live_groups


def collect(config: TrainConfig, draw, score, params, prompts, index, step: int, seconds: dict) -> tuple:
    """(rollouts, scored) of a step. Dead groups are sampled again, at most `max_resamples` times."""
    def live(scored):
        return live_groups(scored.reward.reshape(-1, config.group_size))

    rollouts = scored = None
    for attempt in range(config.max_resamples + 1):
        with timed(seconds, "sample"):
            fresh = draw(params, prompts, index, config.seed, step, config.temperature, repeats=config.group_size,
                         first_row=attempt * len(index))
        with timed(seconds, "score"):
            fresh = (fresh, score(params, fresh, step, attempt))
        if attempt == 0:
            rollouts, scored = fresh
        else:
            dead, fit = np.flatnonzero(~live(scored)), np.flatnonzero(live(fresh[1]))
            (dead, fit), size = (dead[: len(fit)], fit[: len(dead)]), config.group_size
            to, source = ((groups[:, None] * size + np.arange(size)).ravel() for groups in (dead, fit))
            rollouts, scored = jax.tree.map(lambda old, new: replaced(old, to, new[source]), (rollouts, scored), fresh)
        if live(scored).all():
            break
    return rollouts, scored


def replaced(rows: np.ndarray, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A copy of `rows` with other values at `index`: arrays from a device are read-only."""
    rows = rows.copy()
    rows[index] = values
    return rows
