"""One-line warnings about runs that cannot learn, before or after their first step, each with the flag to change."""

import sys

import numpy as np
import tqdm

from rlvr_jax.grading.extract import state_answer
from rlvr_jax.grpo import GRPOConfig, Record
from rlvr_jax.records import Problem
from rlvr_jax.runs import processes
from rlvr_jax.tasks import answers, families
from rlvr_jax.tasks.prompts import ProblemSource


def warn(text: str) -> None:
    """Prints a warning of one line on stderr, on the main process only; prints nothing for an empty text."""
    if text and processes.is_main():
        tqdm.tqdm.write(f"warning: {text}", file=sys.stderr)  # leaves the progress bar intact


def on_flags(config: GRPOConfig, reward: str, constant: bool) -> str:
    """Returns a warning if a run with these flags has no gradient, or learns from rewards without comparing them;
    otherwise "". `reward` is --reward, and `constant` says whether all completions get the same reward."""
    objective = config.loss.resolve()
    if objective.entropy_coef:
        return ""
    if constant:  # the gradient of the KL is 0 at the reference, where the run starts
        return f"--reward={reward} with --entropy_coef=0 leaves nothing to learn from; change one of them"
    if config.loss_group_size > 1:
        return ""
    flag = "update_group_size" if config.update_group_size else "group_size"
    if np.any(objective.advantages(np.ones((1, 1), np.float32))):  # the advantage in a group of one is not 0
        return (f"--{flag}=1 under --objective={config.loss.objective}: nothing is compared, so the advantage is the "
                f"raw reward, as in the released code, and train/live_groups is 1; raise --{flag} to compare")
    return (f"--{flag}=1 under --objective={config.loss.objective}: every advantage is 0, the distance to the group's "
            f"mean, so the reward teaches nothing; raise --{flag}, or use --objective=one_shot")


def on_base_model(flags: dict, source: ProblemSource) -> str:
    """Returns a warning if problems of `source` have more or fewer operations than those that the model was trained on;
    otherwise "". `flags` are those of the run that trained the model, {} if there was none."""
    before, now = flags.get("num_ops"), source.prompt.num_ops
    if before in (None, now) or not set(source.problems.split(",")) & set(families.FAMILIES):
        return ""
    return f"--model was trained on problems of {before} operations, and these have {now}; use --num_ops={before}"


def on_answers(config: answers.GradingConfig, problems: list[Problem]) -> str:
    """Returns a warning if reference answers would be graded as wrong even in a completion that states only the answer;
    otherwise "". Raises UserError for a grader that is not installed."""
    criteria = [criterion._replace(answer_format="boxed") if criterion.grader == "original" else criterion
                for criterion in answers.criteria(problems, config)]  # the grader "original" always reads a box
    answers.describe_graders(criteria)
    texts = [state_answer(criterion.answer_format, problem.answer) for criterion, problem in zip(criteria, problems)]
    rejected = [(problem.answer, criterion, verdict) for problem, criterion, verdict
                in zip(problems, criteria, answers.verdicts(texts, criteria)) if not verdict.correct]
    if not rejected:
        return ""
    (answer, criterion, verdict), count = rejected[0], len(problems)
    other = "lenient" if criterion.answer_format == "boxed" else "boxed"
    which = f"the answer {answer!r}" if count == 1 else f"{len(rejected)} of {count} answers, such as {answer!r}"
    retried, = answers.verdicts([state_answer(other, answer)], [criterion._replace(answer_format=other)])
    remedy = f"try --answer_format={other}" if retried.correct else "correct it in the problems"
    return (f"--answer_format={criterion.answer_format} with --grader={criterion.grader} never accepts {which} (from a "
            f"completion that states it, {verdict.extracted!r} is read); {remedy}")


def on_first_step(record: Record) -> str:
    """Returns a warning if the first step taught nothing: all rewards are equal and all advantages 0; otherwise ""."""
    rewards_B, rollouts = record.scored.reward, record.rollouts
    if len(set(rewards_B.tolist())) > 1 or np.any(record.batch.advantages):
        return ""
    if rewards_B[0] > 0:
        return (f"all {len(rewards_B)} completions of step 1 have the full reward, and teach nothing; choose a harder "
                "--example (auto looks for one), or raise --temperature")
    cut = np.mean(~np.asarray(rollouts.ended))
    return (f"none of the {len(rewards_B)} completions of step 1 has a reward, so none teaches anything ({cut:.0%} of "
            f"them were cut at --max_new_tokens={rollouts.completions.shape[1]}); check --answer_format (for a file's "
            "problems, auto expects a box), --instruction and --max_new_tokens, or choose an easier --example (auto "
            "looks for one)")


def on_equal_rewards(rows: list[dict], record: Record, steps: int) -> str:
    """Returns a warning in the step in which the rewards of each group have been equal for `steps` steps; "" in earlier
    and later steps. `rows` are the metrics of all steps up to this one, `record` this step's rollouts and rewards."""
    # For the last `steps` + 1 steps, the share of groups whose rewards are not all equal.
    live = [row["train/live_groups"] for row in rows if "train/live_groups" in row][-steps - 1:]
    is_inert = len(live) >= steps and not any(live[-steps:])
    was_inert = len(live) > steps and not live[0]  # then an earlier step has warned
    if not is_inert or was_inert:
        return ""
    terms = {name.partition("/")[2]: paid for name, paid in record.scored.info.items() if name.startswith("reward/")}
    ranges = ", ".join(f"{name} pays every completion {paid[0]:g}" if np.all(paid == paid[0]) else
                       f"{name} pays {paid.min():g} to {paid.max():g}" for name, paid in terms.items())
    return (f"all rewards of each group have been equal for {steps} steps, so nothing is learnt from them (step "
            f"{record.prompt_batch.step}: {ranges}); choose another --example, or raise --temperature. "
            "--stop_when=inert ends such a run")
