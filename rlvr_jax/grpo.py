"""The loop: sample, score, advantage, update, log. Read `train` first."""

import dataclasses
from typing import Callable

import numpy as np

from rlvr_jax import evaluation, learner, loading, metrics, parallel, sampler, selection, tokenizer
from rlvr_jax.config import TrainConfig, UserError
from rlvr_jax.metrics import timed
from rlvr_jax.objectives import OBJECTIVES
from rlvr_jax.rollouts import collect, make_grader
from rlvr_jax.runs import Run

SHOW = ("train/accuracy", "train/entropy", "eval/greedy", "eval/sampled")


def train(config: TrainConfig) -> dict:
    """Runs GRPO from `config.model` and returns the summary, which `run_dir/summary.json` holds too."""
    start = loading.load_model(config.model, config.dtype)
    check(config)
    draw = sampler.make_sampler(start.config, eos_ids=start.tokenizer.eos_ids, max_new_tokens=config.max_new_tokens,
                                num_slots=config.num_slots)
    optimizer = learner.make_optimizer(config)
    update, logprobs = learner.map_update(start.config, config, optimizer), learner.map_logprobs(start.config, config)
    meta = {"model": start.config.to_json(), "tokenizer": tokenizer.to_json(start.tokenizer),
            "flags": dataclasses.asdict(config)}

    with Run(config, "train") as run:
        problems, prompts = training_problems(config, start, draw)
        heldout, grade = make_heldout(config, start, draw, problems), make_grader(config, start.tokenizer, problems)
        fresh = learner.init_state(start.params, optimizer, keep_reference=config.track_kl or config.kl_coef > 0)
        state = parallel.replicate(run.restore(fresh))
        if not run.resumed:
            run.log({"step": 0} | heldout(state.params, 0))
        for step in run.steps():
            seconds = {}
            index = curriculum(config, len(problems), step)
            rollouts, scored = collect(config, draw, grade, state.params, prompts, index, step, seconds)
            with timed(seconds, "update"):
                batch = with_advantages(config, prompts, rollouts, scored["reward"])
                if state.ref_params is not None:
                    batch = batch.replace(ref_logprobs=logprobs(state.ref_params, batch))
                if config.num_passes * config.num_minibatches > 1:
                    batch = batch.replace(old_logprobs=logprobs(state.params, batch))
                state, updated = update(state, batch, step)
            row = {"step": step} | metrics.describe(rollouts, scored, config.group_size) | updated
            if run.due(step, config.eval_every):
                with timed(seconds, "eval"):
                    row |= heldout(state.params, step)
            run.log(row | metrics.throughput(seconds, rollouts), SHOW,
                    metrics.rollout_rows(config.log_rollouts, step, problems, rollouts, scored, batch.advantages))
            if run.due(step, config.save_every):
                run.save(state, meta)
        return run.finish(state, meta)


def check(config: TrainConfig) -> None:
    """Refuses settings that cannot work together before anything is computed."""
    rows, parts = config.num_prompts * config.group_size, config.num_minibatches * config.grad_accumulation
    if rows % (parts * parallel.device_count()):
        raise UserError(f"--num_prompts x --group_size = {rows} completions do not divide into --num_minibatches x "
                        f"--grad_accumulation x devices = {parts} x {parallel.device_count()} equal parts")
    if config.temperature <= 0:
        raise UserError(f"--temperature={config.temperature}: training samples at a temperature above 0")


def training_problems(config: TrainConfig, start: loading.LanguageModel, draw: Callable) -> tuple:
    """(problems, prompts): the one example, or all of them."""
    count = config.example_pool if config.example == "auto" or config.problems == "arithmetic" else 0
    pool = loading.load_problems(config.problems, start.tokenizer, count=count, split="example", num_ops=config.num_ops,
                                 prompt_style=config.prompt_style, instruction=config.instruction, seed=config.seed)
    encode = lambda found: loading.encode_prompts(start.tokenizer, found, start.config, config.max_new_tokens,
                                                  config.max_prompt_tokens)
    if config.example == "auto":
        rows = evaluation.measure(
            draw, parallel.replicate(start.params), start.tokenizer, pool, encode(pool), temperature=config.temperature,
            num_samples=64, answer_format=loading.answer_format(config.answer_format, config.problems),
            seed=config.seed, step=0, stream=sampler.CHOOSE, rows_per_call=2048)
        pool = [selection.choose_example(rows, pool, config.example_pass_rate)]
    elif config.example != "all":
        if not config.example.isdigit() or int(config.example) >= len(pool):
            raise UserError(f"--example={config.example}: {config.problems} has problems 0 to {len(pool) - 1}; "
                            "or auto, or all")
        pool = [pool[int(config.example)]]
    return pool, encode(pool)


def curriculum(config: TrainConfig, num_problems: int, step: int) -> np.ndarray:
    """Which problem each of the step's completions answers: passes over all problems, each in a fresh order."""
    places = (step - 1) * config.num_prompts + np.arange(config.num_prompts)
    epochs = {e: np.random.default_rng((config.seed, e)).permutation(num_problems) for e in set(places // num_problems)}
    rows = [epochs[place // num_problems][place % num_problems] for place in places]
    return np.repeat(np.array(rows, np.int32), config.group_size)


def with_advantages(config: TrainConfig, prompts, rollouts: sampler.Rollouts, rewards_B: np.ndarray) -> learner.Batch:
    """The rollouts as a batch; under `drop_dead_groups` rows without advantage lose their mask, so all influence."""
    rewards_NxG = rewards_B.reshape(-1, config.group_size)
    advantages_B = np.asarray(OBJECTIVES[config.objective].advantages(rewards_NxG)).reshape(-1)
    mask = rollouts.completion_mask
    if config.drop_dead_groups:
        mask = mask & (advantages_B != 0)[:, None]
    return learner.Batch(prompts, rollouts.prompt_index, rollouts.completions, mask, advantages_B,
                         rollouts.sampler_logprobs)


def make_heldout(config: TrainConfig, start: loading.LanguageModel, draw: Callable, trained: list) -> Callable:
    """`heldout(params, step)`: greedy and T=1 accuracy on problems that are not trained on, as eval/* metrics."""
    source = config.heldout or ("arithmetic" if config.problems == "arithmetic" else "none")
    if source == "none":
        return lambda params, step: {}
    found = loading.load_problems(source, start.tokenizer, count=config.eval_size, split=config.heldout_split,
                                  num_ops=config.num_ops, prompt_style=config.prompt_style,
                                  instruction=config.instruction)
    found = [problem for problem in found if problem.prompt not in {p.prompt for p in trained}]
    if not found:
        raise UserError(f"--heldout={source} leaves no problem that is not trained on; name another file, or none")
    prompts = loading.encode_prompts(start.tokenizer, found, start.config, config.max_new_tokens,
                                     config.max_prompt_tokens)
    return lambda params, step: evaluation.heldout(
        draw, params, start.tokenizer, found, prompts, seed=config.seed, step=step,
        answer_format=loading.answer_format(config.answer_format, source), synthetic=source == "arithmetic")
