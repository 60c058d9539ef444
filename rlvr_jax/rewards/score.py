"""A step's completions graded and paid for: rows of the table of rewards, in a weighted sum."""

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


def parse(text: str) -> list[tuple[str, Reward, float]]:
    """Names, rows and weights of a sum such as "correct:1,format:0.1". UserError for a name that is none, or twice."""
    pairs = parse_weights("reward", text, REWARDS)
    if len(dict(pairs)) < len(pairs):
        raise UserError(f"--reward={text}: give each reward once")
    rows = [(name, REWARDS[name], weight) for name, weight in pairs]
    return [(name, row if isinstance(row, Reward) else Reward(row), weight) for name, row, weight in rows]


def check(config: RewardConfig, objective: str) -> None:
    """Raises UserError where a reward does not go with the objective, or two want to replace the sampled tokens."""
    rows = [row for _, row, _ in parse(config.reward)]
    for reason in filter(None, (row.check(objective) for row in rows)):
        raise UserError(reason)
    if sum(row.targets is not None for row in rows) > 1:
        raise UserError(f"--reward={config.reward}: two of these replace the tokens to learn from; take one of them")


def needs_votes(config: RewardConfig) -> bool:
    """Whether a reward needs the model's answers before training (`measure.votes`)."""
    return any(row.prepare(config) for _, row, _ in parse(config.reward))


def is_constant(config: RewardConfig) -> bool:
    """Whether every completion is paid the same, so that nothing can be learnt from the reward."""
    return all(row.constant for _, row, _ in parse(config.reward))


def score_row(name: str, row: Reward, seen: RewardContext) -> np.ndarray:
    """What a reward pays: B real numbers [B]. Raises UserError, naming it, where it gives anything else."""
    count = len(seen.texts)
    try:
        paid = np.asarray(row.score(seen))
        shape, kind = paid.shape, paid.dtype
    except ValueError as error:  # a list of lists of several lengths
        shape, kind = str(error), None
    if kind is None or shape != (count,) or kind.kind not in "biuf":
        what = f"an array of shape {shape} and type {kind}"
    elif wrong := np.flatnonzero(~(np.abs(paid) <= np.finfo(np.float32).max)).tolist():
        what = f"{paid[wrong[0]]} for completion {wrong[0]}, and in all {len(wrong)} that are not finite as float32"
    else:
        return paid
    raise UserError(f"reward {name} must give {count} finite numbers, one for each completion; it gave {what}")


def make_scorer(config: RewardConfig, grading: answers.GradingConfig, grpo: GRPOConfig, loaded: LanguageModel,
                problems: list[Problem], prompts: Prompts) -> Callable:
    r"""`reward(rollouts, params, step, attempt=0) -> Scored`, whose info has `text`, `correct`, `timed_out` (f32, 0 or
    1; the latter where a limit ended the grading) and `graded_by` of each completion, and what each row of --reward
    pays it, such as `reward/format`; with --expert_steps also `step_correct`, f32.

    The main process's verdicts and rewards hold on all. A completion is graded without its prompt. The released
    one-shot code grades both together: a completion without a box then falls back on the empty `\boxed{}` of the
    instruction and is wrong all the same, so the verdicts are equal.
    """
    criteria, rows = answers.criteria(problems, grading), parse(config.reward)
    graded_by = np.array(answers.described(criteria), object)
    statistics = learner.map_statistics(loaded.config, grpo.update)

    def reward(rollouts: Rollouts, params, step: int, attempt: int = 0) -> Scored:
        texts = loaded.tokenizer.decode_rollouts(rollouts)
        asked = [problems[i] for i in rollouts.prompt_index]
        verdicts = answers.verdicts(texts, [criteria[i] for i in rollouts.prompt_index])
        flags = processes.broadcast(np.array([[v.correct, v.timed_out] for v in verdicts], np.float32))
        verdicts = [v._replace(correct=bool(right), timed_out=bool(late)) for v, (right, late) in zip(verdicts, flags)]
        batch = Batch(prompts, rollouts.prompt_index, rollouts.completions, rollouts.completion_mask,
                      np.zeros(len(texts), np.float32))
        formats = [criteria[i].answer_format for i in rollouts.prompt_index]
        seen = RewardContext(config, formats, grading.grader, asked, texts, verdicts, rollouts,
                             np.arange(len(texts)) // grpo.group_size, (grpo.loop.seed, step, attempt, REWARD_DRAWS),
                             PolicyScores(statistics, loaded.tokenizer, params, batch))
        terms = {name: score_row(name, row, seen) for name, row, _ in rows}
        with np.errstate(over="ignore"):
            paid = np.sum([weight * terms[name] for name, _, weight in rows], 0, dtype=np.float32)
        if not np.isfinite(paid).all():
            raise UserError(f"--reward={config.reward}: the weighted sum is too large for float32; lower the weights")
        paid = processes.broadcast(paid)
        info = {f"reward/{name}": np.asarray(term, np.float32) for name, term in terms.items()} | {
            "text": np.array(texts, object), "correct": flags[:, 0], "timed_out": flags[:, 1],
                "graded_by": graded_by[rollouts.prompt_index]}
        if all("step" in problem.meta for problem in problems):
            info["step_correct"] = step_accuracy(seen)
        targets = next((row.targets(seen) for _, row, _ in rows if row.targets), None)
        return Scored(paid, info, targets)

    return reward
