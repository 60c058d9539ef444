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
    r"""`grade(rollouts) -> {"text", "reward", "correct", "timed_out", "graded_by"}`, arrays of B.

    The main process's verdict holds on all. A completion is graded without its prompt. The released one-shot code
    grades both together: a completion without a box then falls back on the empty `\boxed{}` of the instruction and is
    wrong all the same, so the verdicts are equal.
    """
    answer_format = loading.answer_format(config.answer_format, config.source)
    graded_by, reward = grading.describe(answer_format, config.grader), rewards.REWARDS[config.reward]

    def grade(rollouts: Rollouts) -> dict:
        texts = evaluation.texts_of(words, rollouts)
        asked = [problems[i] for i in rollouts.prompt_index]
        verdicts = grading.grade(texts, [problem.answer for problem in asked], answer_format, config.grader)
        numbers = parallel.broadcast(np.array(
            [[reward(problem, text, verdict), verdict.correct, verdict.timed_out]
             for problem, text, verdict in zip(asked, texts, verdicts)], np.float32))
        return {"text": np.array(texts, object), "reward": numbers[:, 0], "correct": numbers[:, 1],
                "timed_out": numbers[:, 2], "graded_by": np.full(len(texts), graded_by, object)}

    return grade
