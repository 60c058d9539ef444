"""Training runs that cannot learn, told beforehand or after the first step: one line each, with the flag to change."""

import sys

import numpy as np
import tqdm

from rlvr_jax import parallel
from rlvr_jax.config import TrainConfig
from rlvr_jax.grading.extract import state
from rlvr_jax.objectives import OBJECTIVES
from rlvr_jax.tasks import answers
from rlvr_jax.tasks.problems import Problem


def warn(text: str) -> None:
    """One line on stderr, of the main process alone; nothing for an empty text."""
    if text and parallel.is_main():
        tqdm.tqdm.write(f"warning: {text}", file=sys.stderr)  # which keeps a progress bar whole


def on_flags(config: TrainConfig) -> str:
    """Why no step of a run with these flags has a gradient to learn from; empty if one may."""
    objective = OBJECTIVES[config.objective]
    if objective.entropy_coef if config.entropy_coef is None else config.entropy_coef:
        return ""
    if config.reward == "none":  # the gradient of the KL is 0 at the reference, where the run starts
        return "--reward=none with --entropy_coef=0 leaves nothing to learn from; give one of them another value"
    if config.group_size == 1 and not np.any(objective.advantages(np.ones((1, 1), np.float32))):
        return (f"--group_size=1 under --objective={config.objective}: an advantage is the distance to the group's "
                "mean, so each is 0 and the reward teaches nothing; raise --group_size, or take --objective=one_shot")
    return ""


def on_answers(config: TrainConfig, problems: list[Problem]) -> str:
    """Which reference answers would be graded wrong even in a completion that says nothing else; empty if none."""
    rules = [rule._replace(answer_format="boxed") if rule.grader == "original" else rule  # where that one always looks
             for rule in answers.rules(problems, config.answer_format, config.grader)]
    answers.described(rules)
    said = [state(rule.answer_format, problem.answer) for rule, problem in zip(rules, problems)]
    unread = [(problem.answer, rule, verdict)
              for problem, rule, verdict in zip(problems, rules, answers.verdicts(said, rules)) if not verdict.correct]
    if not unread:
        return ""
    (answer, rule, verdict), count = unread[0], len(problems)
    other = "lenient" if rule.answer_format == "boxed" else "boxed"
    which = f"the answer {answer!r}" if count == 1 else f"{len(unread)} of {count} answers, such as {answer!r}"
    found, = answers.verdicts([state(other, answer)], [rule._replace(answer_format=other)])
    remedy = f"try --answer_format={other}" if found.correct else "correct that in the problems"
    return (f"--answer_format={rule.answer_format} with --grader={rule.grader} never finds {which} right (where it is "
            f"stated, {verdict.extracted!r} is read); {remedy}")


def on_first_step(config: TrainConfig, rollouts, rewards_B: np.ndarray, advantages_B: np.ndarray) -> str:
    """Why the first step taught nothing where all its rewards f32[B] are alike; empty if it did, or was not to."""
    if config.reward == "none" or len(set(rewards_B.tolist())) > 1 or np.any(advantages_B):
        return ""
    if rewards_B[0] > 0:
        return (f"all {len(rewards_B)} completions of step 1 have the full reward, and teach nothing; choose a harder "
                "--example (auto looks for one), or raise --temperature")
    cut = np.mean(~np.asarray(rollouts.ended))
    return (f"none of the {len(rewards_B)} completions of step 1 has a reward, and none teaches anything ({cut:.0%} of "
            f"them were cut at --max_new_tokens={config.max_new_tokens}); choose an easier --example (auto looks for "
            "one), or check --answer_format, --instruction and --max_new_tokens")
