"""GRPO in a run directory: the problems, reward and callbacks for `grpo.train`."""

import dataclasses
import functools
from typing import Callable

import jax
import numpy as np

from rlvr_jax import adapters, grpo, parallel
from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation import measure
from rlvr_jax.grpo import GRPOConfig, Policy, Problems, Programs, Record
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.pretrained.loading import ModelChoice, load_model
from rlvr_jax.records import Problem, Prompts
from rlvr_jax.rewards import score
from rlvr_jax.rewards.rows import RewardConfig
from rlvr_jax.runs import files, machine, processes
from rlvr_jax.runs.machine import MachineConfig, ProcessConfig
from rlvr_jax.runs.run import Run, RunConfig
from rlvr_jax.runs.summary import describe_step, rollout_rows
from rlvr_jax.sampler import Request
from rlvr_jax.tasks.answers import GradingConfig
from rlvr_jax.tasks import families, history
from rlvr_jax.tasks.pool import PoolConfig, choose_example, load_pool, training_problems
from rlvr_jax.tasks.prompts import ProblemSource, encode_prompts
from rlvr_jax.training import advice, kernels
from rlvr_jax.training.driver import RunCallbacks, make_meta

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
    measured: measure.HeldoutConfig = measure.HeldoutConfig()
    heldout: str = flag("", "problems to measure on: names as in --problems, or none; empty: the families trained on, "
                        "else none. Training problems are left out; several names share eval_size evenly",
                        lambda: families.FAMILIES, listed=True)
    log_rollouts: int = flag(8, "rollouts of each step to write to rollouts.jsonl: whole groups, or part of one",
                             minimum=0, free=True)
    record_history: bool = flag(False, "write each problem's accuracy in each pass over the problems to "
                                "history.json, for scripts.select_example")


def train(config: TrainConfig) -> dict:
    """Runs GRPO from --model and returns the summary, which is also `run_dir/summary.json`."""
    loaded, loop = load_model(config.choice.model, config.choice.dtype), config.grpo.loop
    check_config(config)
    config = divide_if_needed(config, loaded)
    advice.warn(advice.on_flags(config.grpo, config.rewards.reward, score.is_constant(config.rewards)))
    advice.warn("" if config.pool.question else advice.on_base_model(loaded.flags, config.source))
    eos_ids = loaded.tokenizer.eos_ids
    programs = grpo.compile_programs(Policy(loaded.config, None, eos_ids), config.grpo)
    with Run(config.run, config, loop.num_steps, "train") as run:
        problems = select_problems(config, loaded, programs, run.make_once)
        prompts = encode_problems(config, loaded, problems)  # first: reports unknown words before a missing grader
        advice.warn(advice.on_answers(config.grading, problems))
        # `grpo.train` takes the parameters out of this list, so that the host keeps no copy of them.
        params, loaded = [loaded.params], dataclasses.replace(loaded, params=None)
        reward = score.make_scorer(config.rewards, config.grading, config.grpo, loaded, problems, prompts)
        logged = run.metrics.rows if processes.is_main() else []  # grows with each step

        def save_history():
            if config.record_history and processes.is_main():
                files.write_json(run.dir / history.HISTORY, history.build_history(logged, problems))

        callbacks = RunCallbacks(
            run, make_meta(config, loaded.config, loaded.tokenizer),
            functools.partial(make_rows, config, problems, logged), SHOW,
            make_heldout(config, loaded, programs, problems, run), config.grpo.resets, save_history)
        programs = Programs(callbacks.time_calls("sample", programs.sample),
                            callbacks.time_calls("update", programs.logprobs),
                            callbacks.time_calls("update", programs.update))
        state = grpo.train(Policy(loaded.config, params.pop(), eos_ids),
                           Problems(prompts, np.array([problem.copies for problem in problems])),
                           callbacks.time_calls("score", reward), config.grpo, callbacks, programs)
        return callbacks.finish(state)


def check_config(config: TrainConfig) -> None:
    """Raises UserError for flags that cannot work together, before anything is computed."""
    grpo.check(config.grpo)
    kernels.check_kernel(config.grpo.update.attention, config.choice.dtype)
    score.check_reward(config.rewards, config.grpo.loss.objective)
    adapter, unused, resets = config.grpo.adapter, adapters.AdapterConfig(), config.grpo.resets
    if adapter.trainable in ("vector", "first_vector") and (adapter.adapter_rank, adapter.adapter_alpha) != (
            unused.adapter_rank, unused.adapter_alpha):
        raise UserError("--adapter_rank and --adapter_alpha need --trainable=lora: leave them out")
    if resets.reset_patience and config.heldout == "none":
        raise UserError("--reset_patience counts evaluations, and --heldout=none makes none: leave one of them out")
    if resets.ever and resets.reset == "reference" and not config.grpo.measure_kl:
        raise UserError("--reset=reference has no reference to renew: --kl_coef and --track_kl are off")
    if config.record_history and config.grpo.max_resamples:
        raise UserError("--record_history needs --max_resamples=0: resampling swaps problems within a step")


def divide_if_needed(config: TrainConfig, loaded: LanguageModel) -> TrainConfig:
    """Returns `config`, with `divide_state` set (and a warning printed) if a device could not hold the state twice.
    The state is created on one device and then copied to all devices, so that device briefly holds two copies."""
    limit = machine.memory_limit()
    if config.grpo.update.divide_state or not limit or parallel.device_count() == 1:
        return config
    state = jax.eval_shape(lambda params: grpo.initial_state(Policy(loaded.config, params, ()), config.grpo),
                           loaded.params)
    needed = 2 * machine.num_bytes(state)
    if needed <= limit:
        return config
    advice.warn(f"placing the state would take {needed / 1e9:.1f} GB on each device, which has {limit / 1e9:.1f} GB: "
                "it is divided among the devices, as --divide_state does")
    return config.with_flags(divide_state=True)


def encode_problems(config: TrainConfig, loaded: LanguageModel, problems: list[Problem]) -> Prompts:
    return encode_prompts(loaded.tokenizer, problems, loaded.config, config.grpo.sampling.max_new_tokens,
                          config.source.prompt.max_prompt_tokens)


def select_problems(config: TrainConfig, loaded: LanguageModel, programs: Programs, once: Callable) -> list[Problem]:
    """Returns the problems to train on. With --example=auto, or if a flag needs the model's most frequent answers
    (votes), the model first answers the problems. `once` (`Run.make_once`) keeps choice and votes for a resumed run."""
    seed, temperature = config.grpo.loop.seed, config.grpo.update.temperature

    def sample_answers(pool: list[Problem]) -> list[dict]:
        params = parallel.place_state(adapters.add(config.grpo.adapter, loaded.params, seed),
                                      config.grpo.update.divide_state)
        sampler = measure.Sampler(programs.sample, params, loaded.tokenizer)
        return measure.sample_before_training(sampler, pool, encode_problems(config, loaded, pool), config.grading,
                                              Request(seed, 0, temperature))

    def choose(pool: list[Problem]) -> dict:
        encode_problems(config, loaded, pool)  # raises UserError for unknown words
        advice.warn(advice.on_answers(config.grading, pool))
        rows = sample_answers(pool)
        index = choose_example(rows, pool, config.pool.example_pass_rate, config.pool.example == "auto_by_style")
        correct = [row["correct"] for row in rows if row["problem"] == index]
        return {"example": index, "question": pool[index].question, "answer": pool[index].answer,
                "pass_rate": float(np.mean(correct)), "num_samples": len(correct)}

    def vote(pool: list[Problem]) -> list[dict]:
        return measure.majority_votes(sample_answers(pool), len(pool))

    voting = config.pool.only_wrong_majority or score.needs_votes(config.rewards)
    pool = load_pool(config.pool, config.source, loaded.tokenizer, seed)
    return training_problems(config.pool, config.source.problems, pool, choose, vote if voting else None, once)


def make_heldout(config: TrainConfig, loaded: LanguageModel, programs: Programs, problems: list[Problem],
                 run: Run) -> Callable:
    """Returns `evaluate(params, step) -> {"eval/NAME": value}` for held-out problems, whose prompts are not in
    `problems` (`measure.make_heldout`). Answers are found by --answer_format (auto: as in the problem's family, else
    lenient) and compared as mathematics or by the problem's own verifier, whatever --grader says."""
    # "question" names no source to draw from: with --question, nothing is measured unless --heldout names a source
    trained_on = "question" if config.pool.question else config.source.problems
    source = ProblemSource(measure.heldout_names(config.heldout, trained_on), config.source.prompt)
    heldout = measure.Heldout(source, config.measured, config.grading.answer_format, config.grpo.loop.seed,
                              config.grpo.sampling.max_new_tokens)
    # With --expert_steps a prompt is longer than that of its problem, which has the same question.
    seen = {text for problem in problems for text in (problem.prompt, problem.question)}
    return measure.make_heldout(heldout, loaded, programs.sample, seen, run.keep_heldout)


def make_rows(config: TrainConfig, problems: list[Problem], logged: list[dict],
              record: Record) -> tuple[dict, list[dict]]:
    """Returns a step's row of metrics and its rows of rollouts.jsonl. Prints a warning if the rewards teach nothing.
    `logged` are the rows of metrics of earlier steps."""
    size = config.grpo.loss_group_size
    row = {"step": record.prompt_batch.step} | describe_step(record.rollouts, record.scored, size)
    if not score.is_constant(config.rewards):
        advice.warn(advice.on_first_step(record) if record.prompt_batch.step == 1 else "")
        advice.warn(advice.on_equal_rewards([*logged, row], record, config.run.inert_steps))
    if config.record_history:
        row["train/group_accuracies"] = history.group_accuracies(problems, record.rollouts.prompt_index,
                                                                 record.scored.info["correct"], size)
    return row | record.metrics, rollout_rows(problems, record, size, config.log_rollouts)
