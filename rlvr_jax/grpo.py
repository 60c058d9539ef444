"""The loop: sample, score, advantage, update, log. Read `train` first."""

import dataclasses
import functools

import jax
import numpy as np

from rlvr_jax import adapters, advice, learner, parallel, rewards, sampler
from rlvr_jax.config import TrainConfig
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.measure import example_place, make_heldout, votes
from rlvr_jax.objectives import OBJECTIVES, live_groups
from rlvr_jax.pretrained import loading
from rlvr_jax.rewards import make_scorer
from rlvr_jax.runs.log import timed
from rlvr_jax.runs.run import Run
from rlvr_jax.runs.stopping import RESET, reset_due
from rlvr_jax.runs.summary import describe, rollout_rows, throughput
from rlvr_jax.tasks.history import record, write_history
from rlvr_jax.tasks.pool import curriculum, training_problems

SHOW = ("train/accuracy", "train/entropy", "eval/greedy", "eval/sampled")


def train(config: TrainConfig) -> dict:
    """Runs GRPO from `config.model` and returns the summary, which `run_dir/summary.json` holds too."""
    loaded = loading.load_model(config.model, config.dtype)
    check(config)
    advice.warn(advice.on_flags(config))
    loaded = dataclasses.replace(loaded, params=adapters.add(config, loaded.params))
    sample = sampler.make_sampler(loaded.config, eos_ids=loaded.tokenizer.eos_ids, max_new_tokens=config.max_new_tokens,
                                  num_slots=config.num_slots)
    optimizer = learner.make_optimizer(config)
    update, reset = learner.map_update(loaded.config, config, optimizer), learner.map_reset(config)
    logprobs = learner.map_logprobs(loaded.config, config)
    meta = {"model": loaded.config.to_json(), "tokenizer": loaded.tokenizer.to_json(),
            "flags": dataclasses.asdict(config)}

    with Run(config, "train") as run:
        problems, prompts = training_problems(
            config, loaded, functools.partial(example_place, config, loaded, sample),
            functools.partial(votes, config, loaded, sample) if rewards.needs_votes(config) else None, run.once)
        advice.warn(advice.on_answers(config, problems))
        heldout = make_heldout(config, loaded, sample, problems, run.keep_heldout)
        score = make_scorer(config, loaded, problems, prompts)
        state = parallel.place_state(run.restore(learner.init_state(
            loaded.params, optimizer, keep_reference=config.keep_reference)))
        loaded = dataclasses.replace(loaded, params=None)  # the state has its own: a copy less in host memory
        if not run.resumed:
            run.log({"step": 0} | heldout(state.params, 0))
        for step in run.steps():
            seconds = {}
            index = curriculum(config, problems, step)
            rollouts, scored = collect(config, sample, score, state.params, prompts, index, step, seconds)
            with timed(seconds, "update"):
                batch = with_advantages(config, prompts, rollouts, scored)
                if step == 1:
                    advice.warn(advice.on_first_step(config, rollouts, scored.reward, batch.advantages))
                if config.measure_kl:
                    batch = batch.replace(ref_logprobs=logprobs(learner.reference(state), batch))
                if config.num_passes * config.num_minibatches > 1:
                    batch = batch.replace(old_logprobs=logprobs(state.params, batch))
                state, updated = update(state, batch, step)
            row = {"step": step} | describe(rollouts, scored, config.group_size) | updated
            row |= record(config, problems, index, scored.correct)
            if run.due(step, config.eval_every, row):
                with timed(seconds, "eval"):
                    row |= heldout(state.params, step)
            if parallel.largest(parallel.is_main() and reset_due(config, [*run.metrics.rows, row])):
                state, row[RESET] = reset(state), 1
            run.log(row | throughput(seconds, rollouts), SHOW,
                    rollout_rows(config, step, problems, rollouts, scored, batch.advantages))
            if run.due(step, config.save_every):
                run.save(state, meta)
                write_history(config, run, problems)
        write_history(config, run, problems)
        return run.finish(state, meta)


def check(config: TrainConfig) -> None:
    """Refuses settings that cannot work together before anything is computed."""
    learner.micro_rows(config, config.num_prompts * config.group_size, parallel.device_count())
    if "verifier_free" in rewards.parse(config.reward) and config.objective not in ("rloo", "reinforce"):
        raise UserError(f"--reward=verifier_free weights the reference answer's tokens, which --objective="
                        f"{config.objective} would clip or scale: take --objective=rloo")
    if config.record_history and config.max_resamples:
        raise UserError("--record_history needs --max_resamples=0: resampling swaps problems within a step")


def with_advantages(config: TrainConfig, prompts, rollouts: sampler.Rollouts, scored: rewards.Scored) -> learner.Batch:
    """The rollouts as a batch. Rows that are to have no influence lose their mask: those of a dead group under
    `drop_dead_groups`, those that were cut under `mask_truncated`."""
    rewards_NxG = scored.reward.reshape(-1, config.group_size)
    advantages_B = np.asarray(OBJECTIVES[config.objective].advantages(rewards_NxG)).reshape(-1)
    influence_B = np.ones(len(advantages_B), bool)
    if config.drop_dead_groups:
        influence_B &= np.repeat(live_groups(rewards_NxG), config.group_size)
    if config.mask_truncated:
        influence_B &= rollouts.ended
    batch = learner.Batch(prompts, rollouts.prompt_index, rollouts.completions, rollouts.completion_mask, advantages_B,
                          rollouts.sampler_logprobs)
    batch = batch if scored.references is None else with_references(batch, scored.references)
    return batch.replace(completion_mask=batch.completion_mask & influence_B[:, None])


def with_references(batch: learner.Batch, references: rewards.References) -> learner.Batch:
    """The batch with each completion's answer replaced by the reference answer, whose tokens' gradient has its
    probability for a weight, the reasoning's tokens their advantage (VeriFree, arXiv 2505.21493, equation 4)."""
    advantages_BxT = np.where(references.answer, references.probability[:, None], batch.advantages[:, None])
    return batch.replace(completions=references.completions, completion_mask=references.mask,
                         advantages=advantages_BxT.astype(np.float32), sampler_logprobs=None)


def collect(config: TrainConfig, sample, score, params, prompts, index, step: int, seconds: dict) -> tuple:
    """(rollouts, scored) of a step. Dead groups are sampled again, at most `max_resamples` times."""
    def live(scored):
        return live_groups(scored.reward.reshape(-1, config.group_size))

    rollouts = scored = None
    for attempt in range(config.max_resamples + 1):
        with timed(seconds, "sample"):
            fresh = sample(params, prompts, index, config.seed, step, config.temperature, repeats=config.group_size,
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
