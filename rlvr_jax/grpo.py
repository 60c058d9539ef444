"""The loop: sample, score, advantage, update, log. Read `train` first."""

import dataclasses
from typing import Callable, Optional

import numpy as np

from rlvr_jax import (adapters, advice, evaluation, families, learner, loading, metrics, parallel, rewards, sampler,
                      tokenizer)
from rlvr_jax.config import TrainConfig, UserError
from rlvr_jax.metrics import timed
from rlvr_jax.objectives import OBJECTIVES, live_groups
from rlvr_jax.pool import curriculum, record, training_problems, write_history
from rlvr_jax.rewards import make_scorer
from rlvr_jax.rollouts import collect
from rlvr_jax.runs import Run

SHOW = ("train/accuracy", "train/entropy", "eval/greedy", "eval/sampled")


def train(config: TrainConfig) -> dict:
    """Runs GRPO from `config.model` and returns the summary, which `run_dir/summary.json` holds too."""
    start = loading.load_model(config.model, config.dtype)
    check(config)
    advice.warn(advice.on_flags(config))
    start = dataclasses.replace(start, params=adapters.add(config, start.params))
    draw = sampler.make_sampler(start.config, eos_ids=start.tokenizer.eos_ids, max_new_tokens=config.max_new_tokens,
                                num_slots=config.num_slots)
    optimizer = learner.make_optimizer(config)
    update, logprobs = learner.map_update(start.config, config, optimizer), learner.map_logprobs(start.config, config)
    meta = {"model": start.config.to_json(), "tokenizer": tokenizer.to_json(start.tokenizer),
            "flags": dataclasses.asdict(config)}

    with Run(config, "train") as run:
        problems, prompts = training_problems(config, start, draw, run.once)
        advice.warn(advice.on_answers(config, problems))
        heldout = make_heldout(config, start, draw, problems, run.keep_heldout)
        score = make_scorer(config, start, problems, prompts)
        state = parallel.replicate(run.restore(learner.init_state(
            start.params, optimizer, keep_reference=config.keep_reference)))
        start = dataclasses.replace(start, params=None)  # the state has its own: a copy less in host memory
        if not run.resumed:
            run.log({"step": 0} | heldout(state.params, 0))
        for step in run.steps():
            seconds = {}
            index = curriculum(config, problems, step)
            rollouts, scored = collect(config, draw, score, state.params, prompts, index, step, seconds)
            with timed(seconds, "update"):
                batch = with_advantages(config, prompts, rollouts, scored.reward)
                if step == 1:
                    advice.warn(advice.on_first_step(config, rollouts, scored.reward, batch.advantages))
                if config.measure_kl:
                    batch = batch.replace(ref_logprobs=logprobs(learner.reference(state), batch))
                if config.num_passes * config.num_minibatches > 1:
                    batch = batch.replace(old_logprobs=logprobs(state.params, batch))
                state, updated = update(state, batch, step)
            row = {"step": step} | metrics.describe(rollouts, scored, config.group_size) | updated
            row |= record(config, problems, index, scored.correct)
            if run.due(step, config.eval_every, row):
                with timed(seconds, "eval"):
                    row |= heldout(state.params, step)
            run.log(row | metrics.throughput(seconds, rollouts), SHOW,
                    metrics.rollout_rows(config, step, problems, rollouts, scored, batch.advantages))
            if run.due(step, config.save_every):
                run.save(state, meta)
                write_history(config, run, problems)
        write_history(config, run, problems)
        return run.finish(state, meta)


def check(config: TrainConfig) -> None:
    """Refuses settings that cannot work together before anything is computed."""
    rows, parts = config.num_prompts * config.group_size, config.num_minibatches * config.grad_accumulation
    if rows % (parts * parallel.device_count()):
        raise UserError(f"--num_prompts x --group_size = {rows} completions do not divide into --num_minibatches x "
                        f"--grad_accumulation x devices = {parts} x {parallel.device_count()} equal parts")
    rewards.parse(config.reward)
    if config.record_history and config.max_resamples:
        raise UserError("--record_history needs --max_resamples=0: resampling swaps problems within a step")


def with_advantages(config: TrainConfig, prompts, rollouts: sampler.Rollouts, rewards_B: np.ndarray) -> learner.Batch:
    """The rollouts as a batch; under `drop_dead_groups` rows of a dead group lose their mask, so all influence."""
    rewards_NxG = rewards_B.reshape(-1, config.group_size)
    advantages_B = np.asarray(OBJECTIVES[config.objective].advantages(rewards_NxG)).reshape(-1)
    mask = rollouts.completion_mask
    if config.drop_dead_groups:
        mask = mask & np.repeat(live_groups(rewards_NxG), config.group_size)[:, None]
    return learner.Batch(prompts, rollouts.prompt_index, rollouts.completions, mask, advantages_B,
                         rollouts.sampler_logprobs)


def make_heldout(config: TrainConfig, start: loading.LanguageModel, draw: Callable, trained: list,
                 keep: Optional[Callable] = None) -> Callable:
    """`heldout(params, step)`: greedy and T=1 accuracy on problems that are not trained on, as eval/* metrics.

    `keep(step, rows)` is handed the greedy completions. Graded as `scripts.evaluate` does by default: where the reward
    wants a box, or another grader, these do not.
    """
    source = config.heldout or (config.source if config.source in families.FAMILIES else "none")
    if source == "none":
        return lambda params, step: {}
    found = loading.load_problems(source, start.tokenizer, count=config.eval_size, split=config.heldout_split,
                                  num_ops=config.num_ops, prompt_style=config.prompt_style,
                                  instruction=config.instruction, ignore_columns=config.ignore_columns)
    found = [problem for problem in found if problem.prompt not in {p.prompt for p in trained}]
    if not found:
        raise UserError(f"--heldout={source} leaves no problem that is not trained on; name another file, or none")
    prompts = loading.encode_prompts(start.tokenizer, found, start.config, config.max_new_tokens,
                                     config.max_prompt_tokens)
    return lambda params, step: evaluation.heldout(
        draw, params, start.tokenizer, found, prompts, seed=config.seed, step=step,
        answer_format=loading.answer_format(config.answer_format, source, "lenient"), keep=keep)
