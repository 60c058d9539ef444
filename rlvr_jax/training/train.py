"""GRPO in a run directory: problems, a reward and callbacks for `grpo.train`."""

import dataclasses
import functools
from typing import Callable

import jax
import numpy as np

from rlvr_jax import adapters, grpo, parallel
from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import measure
from rlvr_jax.evaluation.measure import Heldout, HeldoutConfig, Sampler
from rlvr_jax.grpo import GRPOConfig, Policy, Problems, Programs, Record
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.pretrained.loading import ModelChoice, load_model
from rlvr_jax.records import Problem, Prompts
from rlvr_jax.rewards import score
from rlvr_jax.rewards.rows import RewardConfig
from rlvr_jax.runs import machine
from rlvr_jax.runs.machine import MachineConfig, ProcessConfig
from rlvr_jax.runs.run import Run, RunConfig
from rlvr_jax.runs.summary import describe_step, rollout_rows
from rlvr_jax.sampler import Request
from rlvr_jax.tasks.answers import GradingConfig
from rlvr_jax.tasks.families import FAMILIES
from rlvr_jax.tasks.history import group_accuracies, write_history
from rlvr_jax.tasks.pool import PoolConfig, choose_example, load_pool, training_problems
from rlvr_jax.tasks.prompts import ProblemSource, encode_prompts
from rlvr_jax.training import advice, kernels
from rlvr_jax.training.driver import RunCallbacks

SHOW = ("train/accuracy", "train/entropy", "eval/greedy", "eval/sampled")


class TrainConfig(Config):
    """One-example GRPO in a run directory."""

    run: RunConfig = RunConfig()
    machine: MachineConfig = MachineConfig()
    processes: ProcessConfig = ProcessConfig()
    choice: ModelChoice = ModelChoice()
    grpo: GRPOConfig = GRPOConfig()
    source: ProblemSource = ProblemSource()
    pool: PoolConfig = PoolConfig()
    grading: GradingConfig = GradingConfig()
    rewards: RewardConfig = RewardConfig()
    measured: HeldoutConfig = HeldoutConfig()
    heldout: str = flag("", "problems to measure on, never trained on: as --problems, or none; empty: the families "
                        "that are trained on, else none. eval_size is divided evenly among several",
                        lambda: FAMILIES, listed=True)
    log_rollouts: int = flag(8, "rollouts of each step to write to rollouts.jsonl: whole groups, or a part of one",
                             minimum=0, free=True)
    record_history: bool = flag(False, "keep each problem's accuracy in each pass over the problems, and write it "
                                "to history.json for scripts.select_example")


def train(config: TrainConfig) -> dict:
    """Runs GRPO from --model and returns the summary, which `run_dir/summary.json` holds too."""
    loaded, loop = load_model(config.choice.model, config.choice.dtype), config.grpo.loop
    check(config)
    config = divided_where_it_must_be(config, loaded)
    advice.warn(advice.on_flags(config.grpo, config.rewards.reward, score.is_constant(config.rewards)))
    advice.warn("" if config.pool.question else advice.on_base(loaded.flags, config.source))
    eos_ids = loaded.tokenizer.eos_ids
    programs = grpo.compile_programs(Policy(loaded.config, None, eos_ids), config.grpo)
    meta = {"model": loaded.config.to_json(), "tokenizer": loaded.tokenizer.to_json(), "flags": config.as_flags()}
    with Run(config.run, config, loop.num_steps, "train") as run:
        problems = find_problems(config, loaded, programs, run.make_once)
        prompts = encode(config, loaded, problems)  # first: what grades them is worth installing for these alone
        advice.warn(advice.on_answers(config.grading, problems))
        params, loaded = [loaded.params], dataclasses.replace(loaded, params=None)  # for `grpo.train` to let go of
        reward = score.make_scorer(config.rewards, config.grading, config.grpo, loaded, problems, prompts)
        logged = run.metrics.rows if parallel.is_main() else []
        callbacks = RunCallbacks(run, meta, functools.partial(rows_of, config, problems, logged), SHOW,
                         heldout_of(config, loaded, programs, problems, run), resets=config.grpo.resets,
                         saved=functools.partial(save_history, config, run, problems))
        state = grpo.train(Policy(loaded.config, params.pop(), eos_ids),
                           Problems(prompts, np.array([problem.copies for problem in problems])),
                           callbacks.timed("score", reward), config.grpo, callbacks, clocked(programs, callbacks))
        return callbacks.finish(state)


def check(config: TrainConfig) -> None:
    """Refuses settings that cannot work together before anything is computed."""
    grpo.check(config.grpo)
    kernels.check(config.grpo.update.attention, config.choice.dtype)
    score.check(config.rewards, config.grpo.loss.objective)
    if config.record_history and config.grpo.max_resamples:
        raise UserError("--record_history needs --max_resamples=0: resampling swaps problems within a step")


def divided_where_it_must_be(config: TrainConfig, loaded: LanguageModel) -> TrainConfig:
    """The settings, with the state divided among several devices none of which could hold it whole. A state is made on
    one of them and then copied to all, so that it is there twice for a moment."""
    limit = machine.memory_limit()
    if config.grpo.update.divide_state or not limit or parallel.device_count() == 1:
        return config
    state = jax.eval_shape(lambda params: grpo.initial_state(Policy(loaded.config, params, ()), config.grpo),
                           loaded.params)
    needed = 2 * machine.num_bytes(state)
    if needed <= limit:
        return config
    advice.warn(f"as it is placed, the state would take {needed / 1e9:.1f} GB of each device, which has "
                f"{limit / 1e9:.1f} GB: it is divided among the devices, as --divide_state does")
    return config.with_flags(divide_state=True)


def clocked(programs: Programs, callbacks: RunCallbacks) -> Programs:
    """The programs, their seconds counted to the step's phases."""
    return Programs(callbacks.timed("sample", programs.sample), callbacks.timed("update", programs.logprobs),
                    callbacks.timed("update", programs.update))


def encode(config: TrainConfig, loaded: LanguageModel, problems: list[Problem]) -> Prompts:
    return encode_prompts(loaded.tokenizer, problems, loaded.config, config.grpo.sampling.max_new_tokens,
                          config.source.prompt.max_prompt_tokens)


def find_problems(config: TrainConfig, loaded: LanguageModel, programs: Programs, once: Callable) -> list[Problem]:
    """What is trained on. For example=auto and for votes, the model answers before training, once a run."""
    seed, temperature = config.grpo.loop.seed, config.grpo.update.temperature

    def answered(pool: list[Problem]) -> list[dict]:
        by = Sampler(programs.sample, parallel.place_state(adapters.add(config.grpo.adapter, loaded.params, seed)),
                     loaded.tokenizer)
        return measure.before_training(by, pool, encode(config, loaded, pool), config.grading,
                                       Request(seed, 0, temperature))

    def choose(pool: list[Problem]) -> dict:
        encode(config, loaded, pool)  # or says which words the model lacks
        advice.warn(advice.on_answers(config.grading, pool))
        rows = answered(pool)
        place = choose_example(rows, pool, config.pool.example_pass_rate,
                               config.pool.example == "auto_by_style")
        right = [row["correct"] for row in rows if row["problem"] == place]
        return {"example": place, "question": pool[place].question, "answer": pool[place].answer,
                "pass_rate": float(np.mean(right)), "num_samples": len(right)}

    def vote(pool: list[Problem]) -> list[dict]:
        return measure.votes(answered(pool), len(pool))

    voting = config.pool.only_wrong_majority or score.needs_votes(config.rewards)
    pool = load_pool(config.pool, config.source, loaded.tokenizer, seed)
    return training_problems(config.pool, config.source.problems, pool, choose, vote if voting else None, once)


def heldout_of(config: TrainConfig, loaded: LanguageModel, programs: Programs, problems: list[Problem],
               run: Run) -> Callable:
    """`measure.make_heldout`: held-out problems are graded as `scripts.evaluate` grades by default. Where the reward
    wants a box, or another grader, these do not."""
    trained_on = "question" if config.pool.question else config.source.problems
    source = ProblemSource(measure.heldout_names(config.heldout, trained_on), config.source.prompt)
    asked = Heldout(source, config.measured, config.grading.answer_format, config.grpo.loop.seed,
                    config.grpo.sampling.max_new_tokens)
    return measure.make_heldout(asked, loaded, programs.sample, {problem.prompt for problem in problems},
                                run.keep_heldout)


def rows_of(config: TrainConfig, problems: list[Problem], logged: list[dict],
            record: Record) -> tuple[dict, list[dict]]:
    """The metrics of a step, and its rows of rollouts.jsonl; `logged` are the metrics of the steps before."""
    size = config.grpo.loss_group_size
    row = {"step": record.prompt_batch.step} | describe_step(record.rollouts, record.scored, size)
    if not score.is_constant(config.rewards):
        advice.warn(advice.on_first_step(record) if record.prompt_batch.step == 1 else "")
        advice.warn(advice.on_inert([*logged, row], record, config.run.inert_steps))
    if config.record_history:
        row["train/group_accuracies"] = group_accuracies(problems, record.rollouts.prompt_index,
                                                         record.scored.info["correct"], size)
    return row | record.metrics, rollout_rows(problems, record, size, config.log_rollouts)


def save_history(config: TrainConfig, run: Run, problems: list[Problem]) -> None:
    if config.record_history and parallel.is_main():
        write_history(run.dir, run.metrics.rows, problems)
