"""Warnings of training runs that cannot learn, before or after the first step: a line each, with the flag to change."""

import sys

import numpy as np
import tqdm

from rlvr_jax.grading.extract import state
from rlvr_jax.grpo import GRPOConfig, Record
from rlvr_jax.records import Problem
from rlvr_jax.runs import processes
from rlvr_jax.tasks import answers
from rlvr_jax.tasks.answers import GradingConfig
from rlvr_jax.tasks.families import FAMILIES
from rlvr_jax.tasks.prompts import ProblemSource


def warn(text: str) -> None:
    """One line on stderr, of the main process alone; nothing for an empty text."""
    if text and processes.is_main():
        tqdm.tqdm.write(f"warning: {text}", file=sys.stderr)  # which keeps a progress bar whole


def on_flags(config: GRPOConfig, reward: str, constant: bool) -> str:
    """Why no step of a run with these flags has a gradient to learn from, or learns from rewards that are not compared;
    empty where neither is so. `constant`: whether the reward pays every completion the same."""
    objective = config.loss.resolve()
    if objective.entropy_coef:
        return ""
    if constant:  # the gradient of the KL is 0 at the reference, where the run starts
        return f"--reward={reward} with --entropy_coef=0 leaves nothing to learn from; give one of them another value"
    if config.loss_group_size == 1:
        flag = "update_group_size" if config.update_group_size else "group_size"
        if np.any(objective.advantages(np.ones((1, 1), np.float32))):
            return (f"--{flag}=1 under --objective={config.loss.objective}: nothing is compared, and the advantage is "
                    f"the bare reward, as in the released code; train/live_groups is then 1. Raise --{flag} to compare")
        return (f"--{flag}=1 under --objective={config.loss.objective}: an advantage is the distance to the group's "
                f"mean, so each is 0 and the reward teaches nothing; raise --{flag}, or take --objective=one_shot")
    return ""


def on_base(flags: dict, source: ProblemSource) -> str:
    """What of the problems differs from those that the run with these flags, which saved the model, was trained on."""
    before, now = flags.get("num_ops"), source.prompt.num_ops
    if before in (None, now) or not set(source.problems.split(",")) & set(FAMILIES):
        return ""
    return (f"--model was trained on problems of {before} operations, and these have {now}; --num_ops={before} is as "
            "there")


def on_answers(config: GradingConfig, problems: list[Problem]) -> str:
    """Which reference answers would be graded wrong even in a completion of nothing else; empty if none."""
    criteria = [by._replace(answer_format="boxed") if by.grader == "original" else by  # where that one always looks
                for by in answers.criteria(problems, config)]
    answers.described(criteria)
    texts = [state(by.answer_format, problem.answer) for by, problem in zip(criteria, problems)]
    unread = [(problem.answer, by, verdict) for problem, by, verdict
              in zip(problems, criteria, answers.verdicts(texts, criteria)) if not verdict.correct]
    if not unread:
        return ""
    (answer, by, verdict), count = unread[0], len(problems)
    other = "lenient" if by.answer_format == "boxed" else "boxed"
    which = f"the answer {answer!r}" if count == 1 else f"{len(unread)} of {count} answers, such as {answer!r}"
    again, = answers.verdicts([state(other, answer)], [by._replace(answer_format=other)])
    remedy = f"try --answer_format={other}" if again.correct else "correct that in the problems"
    return (f"--answer_format={by.answer_format} with --grader={by.grader} never finds {which} right (where it is "
            f"stated, {verdict.extracted!r} is read); {remedy}")


def on_first_step(record: Record) -> str:
    """Why the first step taught nothing where all its rewards are alike; empty if it did."""
    rewards_B, rollouts = record.scored.reward, record.rollouts
    if len(set(rewards_B.tolist())) > 1 or np.any(record.batch.advantages):
        return ""
    if rewards_B[0] > 0:
        return (f"all {len(rewards_B)} completions of step 1 have the full reward, and teach nothing; choose a harder "
                "--example (auto looks for one), or raise --temperature")
    cut = np.mean(~np.asarray(rollouts.ended))
    return (f"none of the {len(rewards_B)} completions of step 1 has a reward, and none teaches anything ({cut:.0%} of "
            f"them were cut at --max_new_tokens={rollouts.completions.shape[1]}); check --answer_format (of a file's "
            "problems auto wants a box), --instruction and --max_new_tokens, or choose an easier --example (auto looks "
            "for one)")


def on_inert(rows: list[dict], record: Record, steps: int) -> str:
    """What the rewards were, where those of each group have been equal for just so many steps; empty where they have
    not, or for longer. `rows` are metrics up to this step's."""
    live = [row["train/live_groups"] for row in rows if "train/live_groups" in row][-steps - 1:]
    if any(live[-steps:]) or len(live) < steps or (len(live) > steps and not live[0]):
        return ""
    terms = {name.partition("/")[2]: paid for name, paid in record.scored.info.items() if name.startswith("reward/")}
    said = ", ".join(f"{name} pays every completion {paid[0]:g}" if np.all(paid == paid[0]) else
                     f"{name} pays {paid.min():g} to {paid.max():g}" for name, paid in terms.items())
    return (f"all rewards of each group have been equal for {steps} steps, and nothing is learnt from them (step "
            f"{record.prompt_batch.step}: {said}); choose another --example, or raise --temperature. --stop_when=inert ends "
            "such a run")
