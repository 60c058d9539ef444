"""Grades a step's completions and computes their rewards: a weighted sum of rows of `REWARDS`."""

from typing import Callable

import numpy as np

from rlvr_jax import learner
from rlvr_jax.errors import UserError
from rlvr_jax.grpo import GRPOConfig, Scored
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.records import REWARD_DRAWS, Batch, Problem, Prompts, Rollouts
from rlvr_jax.rewards.context import PolicyScores, RewardContext
from rlvr_jax.rewards.rows import REWARDS, Reward, RewardConfig, step_accuracy
from rlvr_jax.runs import processes
from rlvr_jax.runs.flags import parse_weights
from rlvr_jax.tasks import answers


def parse_reward(text: str) -> list[tuple[str, Reward, float]]:
    """Parses --reward, such as "correct:1,format:0.1", into tuples (name, row of REWARDS, weight). Raises UserError for
    an unknown or repeated name and for a weight that is not a finite number."""
    pairs = parse_weights("reward", text, REWARDS)
    if len(dict(pairs)) < len(pairs):
        raise UserError(f"--reward={text}: give each reward once")
    rows = [(name, REWARDS[name], weight) for name, weight in pairs]
    return [(name, row if isinstance(row, Reward) else Reward(row), weight) for name, row, weight in rows]


def check_reward(config: RewardConfig, objective: str) -> None:
    """Raises UserError if a reward of --reward cannot be used with `objective`, if two have `Reward.targets`, and for
    `overlong` without its buffer."""
    rows = [row for _, row, _ in parse_reward(config.reward)]
    for reason in filter(None, (row.check(objective) for row in rows)):
        raise UserError(reason)
    if not config.overlong_buffer and "overlong" in [name for name, _, _ in parse_reward(config.reward)]:
        raise UserError("--reward=overlong is 0 without --overlong_buffer: also give that number of tokens")
    if sum(row.targets is not None for row in rows) > 1:
        raise UserError(f"--reward={config.reward}: two of these replace the tokens to learn; use only one of them")


def needs_votes(config: RewardConfig) -> bool:
    """Whether a reward needs the model's most frequent answers before training (`measure.majority_votes`)."""
    return any(row.prepare(config) for _, row, _ in parse_reward(config.reward))


def is_constant(config: RewardConfig) -> bool:
    """Whether every completion gets the same reward, so that nothing can be learnt from it."""
    return all(row.constant for _, row, _ in parse_reward(config.reward))


def score_row(name: str, row: Reward, context: RewardContext) -> np.ndarray:
    """Returns `row.score(context)`. UserError, naming the row, unless it is numeric, [B], and finite as float32."""
    count, returned = len(context.texts), row.score(context)
    try:
        paid = np.asarray(returned)
        shape, dtype = paid.shape, paid.dtype
    except ValueError as error:  # nested lists of different lengths
        shape, dtype = str(error), None
    if dtype is None or shape != (count,) or dtype.kind not in "biuf":
        what = f"an array of shape {shape} and type {dtype}"
    elif bad := np.flatnonzero(~(np.abs(paid) <= np.finfo(np.float32).max)).tolist():
        what = f"{paid[bad[0]]} for completion {bad[0]}, and {len(bad)} in all that are not finite as float32"
    else:
        return paid
    raise UserError(f"reward {name} must return {count} finite numbers, one per completion; it returned {what}")


def make_scorer(config: RewardConfig, grading: answers.GradingConfig, grpo: GRPOConfig, loaded: LanguageModel,
                problems: list[Problem], prompts: Prompts) -> Callable:
    r"""Returns `reward(rollouts, params, step, attempt=0) -> Scored`. `rollouts.prompt_index` points into `problems`
    and `prompts`, their token ids. `Scored.reward` is the weighted sum, f32[B]. `Scored.info` has arrays [B]: `text`,
    `graded_by`: texts; `correct`, `timed_out` (grading hit a limit): f32, 0 or 1; `reward/NAME`: f32, for each name in
    --reward; with --expert_steps `step_correct`: f32, 0 or 1. All processes use the main one's verdicts and rewards.

    A completion is graded without its prompt. The released one-shot code grades prompt and completion together, so the
    empty `\boxed{}` of the instruction is the answer of a completion without a box: wrong, as it is here."""
    criteria, rows = answers.criteria(problems, grading), parse_reward(config.reward)
    graded_by = np.array(answers.describe_graders(criteria), object)
    statistics = learner.map_statistics(loaded.config, grpo.update)

    def reward(rollouts: Rollouts, params, step: int, attempt: int = 0) -> Scored:
        texts = loaded.tokenizer.decode_rollouts(rollouts)
        own_criteria = [criteria[i] for i in rollouts.prompt_index]  # how each completion is graded
        verdicts = answers.verdicts(texts, own_criteria)
        flags = processes.broadcast(np.array([[v.correct, v.timed_out] for v in verdicts], np.float32))
        verdicts = [v._replace(correct=bool(right), timed_out=bool(late)) for v, (right, late) in zip(verdicts, flags)]
        batch = Batch(prompts, rollouts.prompt_index, rollouts.completions, rollouts.completion_mask,
                      advantages=np.zeros(len(texts), np.float32))  # not known yet, and not read
        context = RewardContext(
            config, formats=[each.answer_format for each in own_criteria], grader=grading.grader,
            problems=[problems[i] for i in rollouts.prompt_index], texts=texts, verdicts=verdicts, rollouts=rollouts,
            groups=np.arange(len(texts)) // grpo.group_size, key=(grpo.loop.seed, step, attempt, REWARD_DRAWS),
            policy=PolicyScores(statistics, loaded.tokenizer, params, batch))
        terms = {name: score_row(name, row, context) for name, row, _ in rows}
        with np.errstate(over="ignore"):
            paid = np.sum([weight * terms[name] for name, _, weight in rows], 0, dtype=np.float32)
        if not np.isfinite(paid).all():
            raise UserError(f"--reward={config.reward}: the weighted sum is too large for float32; lower the weights")
        paid = processes.broadcast(paid)
        info = {f"reward/{name}": np.asarray(term, np.float32) for name, term in terms.items()} | {
            "text": np.array(texts, object), "correct": flags[:, 0], "timed_out": flags[:, 1],
            "graded_by": graded_by[rollouts.prompt_index]}
        if all("step" in problem.meta for problem in problems):
            info["step_correct"] = step_accuracy(context)
        targets = None
        for _, row, weight in rows:
            if row.targets:  # of one row at most (`check_reward`)
                targets = row.targets(context)
                targets = targets._replace(advantages=np.float32(weight) * targets.advantages)
        return Scored(paid, info, targets)

    return reward
