"""A step's rollouts: sampled, graded, and dead groups replaced where that is asked for."""

from typing import Callable

import jax
import numpy as np

from rlvr_jax import evaluation, grading, loading, parallel, rewards
from rlvr_jax.config import TrainConfig
from rlvr_jax.metrics import timed
from rlvr_jax.problems import Problem
from rlvr_jax.sampler import Rollouts
from rlvr_jax.tokenizer import Tokenizer


def collect(config: TrainConfig, draw, grade, params, prompts, index, step: int, seconds: dict) -> tuple:
    """(rollouts, scored) of a step. Dead groups are sampled again, at most `max_resamples` times."""
    rollouts = scored = None
    for attempt in range(config.max_resamples + 1):
        with timed(seconds, "sample"):
            fresh = draw(params, prompts, index, config.seed, step, config.temperature, repeats=config.group_size,
                         first_row=attempt * len(index))
        with timed(seconds, "score"):
            fresh = (fresh, grade(fresh))
        if attempt == 0:
            rollouts, scored = fresh
        else:
            dead, live = np.flatnonzero(~live_groups(config, scored)), np.flatnonzero(live_groups(config, fresh[1]))
            (dead, live), size = (dead[: len(live)], live[: len(dead)]), config.group_size
            to, source = ((groups[:, None] * size + np.arange(size)).ravel() for groups in (dead, live))
            rollouts, scored = jax.tree.map(lambda old, new: replaced(old, to, new[source]), (rollouts, scored), fresh)
        if live_groups(config, scored).all():
            break
    return rollouts, scored


def replaced(rows: np.ndarray, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A copy of `rows` with other values at `index`: arrays from a device are read-only."""
    rows = rows.copy()
    rows[index] = values
    return rows


def live_groups(config: TrainConfig, scored: dict) -> np.ndarray:
    """bool[N]: groups whose rewards differ, the only ones with an advantage."""
    rewards_NxG = scored["reward"].reshape(-1, config.group_size)
    return (rewards_NxG != rewards_NxG[:, :1]).any(-1) | (config.group_size == 1)


def make_grader(config: TrainConfig, words: Tokenizer, problems: list[Problem]) -> Callable:
    """`grade(rollouts) -> {"text", "reward", "correct"}`, arrays of B; the main process's verdict holds on all."""
    answer_format = loading.answer_format(config.answer_format, config.problems)

    def grade(rollouts: Rollouts) -> dict:
        texts = evaluation.texts_of(words, rollouts)
        numbers = parallel.broadcast(np.array(
            [[rewards.REWARDS[config.reward](problems[i], text, answer_format),
              grading.correct(text, problems[i].answer, answer_format)]
             for i, text in zip(rollouts.prompt_index, texts)], np.float32))
        return {"text": np.array(texts, object), "reward": numbers[:, 0], "correct": numbers[:, 1]}

    return grade
