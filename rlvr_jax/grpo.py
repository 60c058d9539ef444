"""GRPO: sample, score, compare within groups, update. Read `train` and `grpo_step` first.

This module handles no text and no files, and prints nothing. Problems are token ids; `reward` scores the completions of
a step; `callbacks` run between steps and restore, evaluate, log, save, reset or stop. The loss is `learner.make_loss`.
A step has N groups of G completions, B = N*G in all, of T tokens. In a one-shot run all groups share one problem.
"""

from typing import Any, Callable, Iterable, NamedTuple, Optional

import jax
import numpy as np

from rlvr_jax import adapters, learner, parallel, sampler
from rlvr_jax.adapters import AdapterConfig
from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.learner import LossConfig, OptimizerConfig, ResetConfig, UpdateConfig, reference
from rlvr_jax.model import ModelConfig, Params
from rlvr_jax.objectives import live_groups
from rlvr_jax.ops import ATTENTION
from rlvr_jax.records import EPOCH_ORDER, Batch, LearnerState, LoopConfig, Prompts, Rollouts
from rlvr_jax.sampler import Decoding, Request, SamplingConfig


class GRPOConfig(Config):
    """One-example GRPO."""

    loop: LoopConfig = LoopConfig()
    sampling: SamplingConfig = SamplingConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    update: UpdateConfig = UpdateConfig()
    resets: ResetConfig = ResetConfig()
    adapter: AdapterConfig = AdapterConfig()
    num_prompts: int = flag(16, "groups per step, each normalised separately even if all share a problem", minimum=1)
    group_size: int = flag(8, "completions per group, compared with each other; with 1 nothing is compared", minimum=1)
    update_group_size: int = flag(0, "compare and learn from only the first this many completions of each group; "
                                  "the rest only feed the reward, for example TTRL's vote; 0: all", minimum=0)
    max_resamples: int = flag(0, "times to sample again to replace zero-variance groups (all rewards equal)", minimum=0)
    drop_dead_groups: bool = flag(False, "leave zero-variance groups out of the loss altogether, including the "
                                  "KL, the entropy bonus and the divisor")
    mask_truncated: bool = flag(False, "leave completions cut at max_new_tokens out of the loss; they still count in "
                                "their group's mean")
    sample_by_layer: bool = flag(False, "with --divide_state: gather the weights of one layer at a time while sampling")
    track_kl: bool = flag(True, "measure the KL even when kl_coef is 0; costs one more forward pass and, if all "
                          "parameters are trained, a copy of all parameters")

    @property
    def loss_group_size(self) -> int:
        """How many completions of each group are compared and learnt from."""
        return self.update_group_size or self.group_size

    @property
    def measure_kl(self) -> bool:
        return self.track_kl or self.loss.kl_coef > 0

    @property
    def keep_reference(self) -> bool:
        """Whether to store a copy of the reference model: without resets an adapter's frozen weights are that model."""
        return self.measure_kl and (self.adapter.trainable == "all" or self.resets.resets_reference)


class Policy(NamedTuple):
    """The model to train."""

    config: ModelConfig
    params: Optional[Params]  # None where programs are only compiled
    eos_ids: tuple[int, ...]  # any of these ends a completion


class Problems(NamedTuple):
    """The training set: P distinct prompts, and how often each occurs in an epoch."""

    prompts: Prompts
    copies: np.ndarray  # i[P]


class Programs(NamedTuple):
    """The three compiled functions of a step, each running on all devices."""

    sample: Callable  # (params, Prompts, prompt index i32[B], Request) -> Rollouts
    logprobs: Callable  # (params, Batch) -> f32[B,T], from `learner.map_statistics`
    update: Callable  # (state, Batch, step) -> (state, {"train/NAME": float}), from `learner.map_update`


class PromptBatch(NamedTuple):
    """The prompts of one step."""

    step: int
    prompts: Prompts
    index: np.ndarray  # i32[B], the prompt of each completion; those of a group are adjacent


class Targets(NamedTuple):
    """Tokens to learn from instead of the sampled ones, as in VeriFree (arXiv 2505.21493)."""

    completions: np.ndarray  # i32[B,T]
    mask: np.ndarray  # bool[B,T], true at the tokens of a completion
    fixed: np.ndarray  # bool[B,T]: true at tokens that have an advantage of their own
    advantages: np.ndarray  # f32[B,T], used only where `fixed` is true


class Scored(NamedTuple):
    """What a reward returns."""

    reward: np.ndarray  # f32[B]
    info: dict[str, np.ndarray] = {}  # name -> [B], extra columns for the callbacks, such as correctness
    targets: Optional[Targets] = None


class Record(NamedTuple):
    """Everything about one step, as passed to the callbacks."""

    prompt_batch: PromptBatch
    rollouts: Rollouts
    scored: Scored
    batch: Batch
    metrics: dict[str, float]


class Callbacks:
    """Hooks that `train` calls. These do nothing; pass a subclass, or any object with the same methods."""

    def restore(self, state: LearnerState) -> LearnerState:
        """Returns the state to start from, not yet placed on the devices: `state`, or a saved state."""
        return state

    def steps(self, state: LearnerState, num_steps: int) -> Iterable[int]:
        """Returns the step numbers to run, from 1. A resumed run starts later; any run may end early."""
        return range(1, num_steps + 1)

    def __call__(self, state: LearnerState, record: Any) -> LearnerState:
        """Called after each step; returns the state to continue with."""
        return state


def train(policy: Policy, problems: Problems, reward: Callable, config: GRPOConfig, callbacks=Callbacks(),
          programs: Optional[Programs] = None) -> LearnerState:
    """Trains the policy and returns the last state, on the devices (`parallel.fetch_state` copies a state to the host).
    `reward(rollouts, params, step, attempt) -> Scored` runs on the host; attempts count from 0 (`max_resamples`).
    If given, `programs` replace those of `compile_programs`."""
    programs = programs or compile_programs(policy, config)
    with parallel.init_device(config.update.divide_state):
        state = callbacks.restore(initial_state(policy, config))
    state = parallel.place_state(state, config.update.divide_state)
    del policy  # the state holds the parameters: frees one copy in host memory
    for step in callbacks.steps(state, config.loop.num_steps):
        state, record = grpo_step(programs, problems, reward, config, state, step)
        state = callbacks(state, record)
    return state


def grpo_step(programs, problems, reward, config, state, step):
    """Runs one step and returns (state, Record). All randomness of the step is a function of (seed, step)."""
    prompt_batch = curriculum(config, problems, step)
    rollouts, scored = sample_and_score(programs, reward, config, state.params, prompt_batch)
    batch = make_batch(config, prompt_batch.prompts, rollouts, scored)
    if config.measure_kl:
        batch = batch.replace(ref_logprobs=programs.logprobs(reference(state), batch))
    if config.update.updates_per_batch > 1:
        batch = batch.replace(old_logprobs=programs.logprobs(state.params, batch))
    state, metrics = programs.update(state, batch, step)
    return state, Record(prompt_batch, rollouts, scored, batch, metrics)


def check(config: GRPOConfig) -> int:
    """Returns how many rows a micro-batch has on each device. Raises UserError if group_size is not a multiple of
    update_group_size, or if the rows of a step do not divide among minibatches, micro-batches and devices."""
    if config.group_size % config.loss_group_size:
        raise UserError(f"--group_size={config.group_size} is not a multiple of --update_group_size="
                        f"{config.update_group_size}")
    size = "update_group_size" if config.update_group_size else "group_size"
    return learner.micro_rows(config.update, config.num_prompts * config.loss_group_size, f"--num_prompts x --{size}")


def compile_programs(policy: Policy, config: GRPOConfig) -> Programs:
    """Returns the three programs of a run, each compiled at its first call. Raises UserError where `check` does."""
    check(config)
    optimizer = learner.make_optimizer(config)
    decoding = Decoding(policy.eos_ids, config.sampling.max_new_tokens, config.sampling.num_slots,
                        by_layer=config.sample_by_layer, attend=ATTENTION[config.update.attention].cache)
    sample = sampler.make_sampler(policy.config, decoding)
    statistics = learner.map_statistics(policy.config, config.update, count=1)  # returns (log-probabilities,)
    update = learner.map_update(policy.config, config.update, config.loss, optimizer, config.loop.seed)
    return Programs(sample, lambda params, batch: statistics(params, batch)[0], update)


def initial_state(policy: Policy, config: GRPOConfig) -> LearnerState:
    """Returns the state before the first step, with the adapter to train, if any."""
    params = adapters.add(config.adapter, policy.params, config.loop.seed)
    optimizer = learner.make_optimizer(config)
    return learner.init_state(params, optimizer, config.keep_reference)


def curriculum(config: GRPOConfig, problems: Problems, step: int) -> PromptBatch:
    """Returns the prompts of a step, from shuffled epochs; a problem with k copies occurs k times in each epoch."""
    epoch = np.repeat(np.arange(len(problems.copies), dtype=np.int32), problems.copies)
    positions = (step - 1) * config.num_prompts + np.arange(config.num_prompts)  # counted from the run's first prompt
    orders = {e: np.random.default_rng((config.loop.seed, e, 0, EPOCH_ORDER)).permutation(epoch)
              for e in set(positions // len(epoch))}  # number of an epoch -> its problems in order
    index_N = [orders[position // len(epoch)][position % len(epoch)] for position in positions]
    return PromptBatch(step, problems.prompts, np.repeat(np.array(index_N, np.int32), config.group_size))


def sample_and_score(programs: Programs, reward: Callable, config: GRPOConfig, params,
                     prompt_batch: PromptBatch) -> tuple[Rollouts, Scored]:
    """Returns the rollouts to learn from and their rewards. The reward sees whole groups; only the first
    `loss_group_size` completions of each are returned. Up to `max_resamples` times, samples again and replaces
    zero-variance groups, whose rewards are all equal, by live groups of the new sample, whose rewards differ."""
    row_NxG = np.arange(len(prompt_batch.index)).reshape(-1, config.group_size)
    learnt_rows = row_NxG[:, : config.loss_group_size].ravel()  # only these rows of a sample are returned
    learnt_NxG = np.arange(len(learnt_rows)).reshape(-1, config.loss_group_size)  # their numbers in what is returned
    is_live = lambda scored: live_groups(scored.reward.reshape(learnt_NxG.shape))  # bool[N]

    def sample(attempt: int) -> tuple[Rollouts, Scored]:
        rollouts = programs.sample(params, prompt_batch.prompts, prompt_batch.index, Request(
            config.loop.seed, prompt_batch.step, config.update.temperature, repeats=config.group_size,
            first_row=attempt * len(prompt_batch.index)))  # new random keys for each attempt
        return jax.tree.map(lambda x: x[learnt_rows], (rollouts, reward(rollouts, params, prompt_batch.step, attempt)))

    rollouts, scored = sample(0)
    for attempt in range(1, config.max_resamples + 1):
        dead = np.flatnonzero(~is_live(scored))  # zero-variance groups
        if not len(dead):
            break
        new_rollouts, new_scored = sample(attempt)
        alive = np.flatnonzero(is_live(new_scored))[: len(dead)]
        source_NxG = learnt_NxG.copy()  # rows to keep, numbered through the old sample and on through the new one
        source_NxG[dead[: len(alive)]] = len(learnt_rows) + learnt_NxG[alive]  # live groups replace dead ones
        rollouts, scored = jax.tree.map(lambda old, new: np.concatenate([old, new])[source_NxG.ravel()],
                                        (rollouts, scored), (new_rollouts, new_scored))
    return rollouts, scored


def make_batch(config: GRPOConfig, prompts: Prompts, rollouts: Rollouts, scored: Scored) -> Batch:
    """Returns the rollouts, or `scored.targets` if given, with advantages. The mask is false in all completions that
    must not influence the update: zero-variance groups if `drop_dead_groups`, truncated ones if `mask_truncated`."""
    rewards_NxG = scored.reward.reshape(-1, config.loss_group_size)
    advantages_B = np.asarray(config.loss.resolve().advantages(rewards_NxG)).reshape(-1)
    influence_B = np.ones(len(advantages_B), bool)
    if config.drop_dead_groups:
        influence_B &= np.repeat(live_groups(rewards_NxG), config.loss_group_size)
    if config.mask_truncated:
        influence_B &= rollouts.ended
    batch = Batch(prompts, rollouts.prompt_index, rollouts.completions, rollouts.completion_mask, advantages_B,
                  rollouts.sampler_logprobs)
    if scored.targets:
        advantages_BxT = np.where(scored.targets.fixed, scored.targets.advantages, advantages_B[:, None])
        batch = batch.replace(completions=scored.targets.completions, completion_mask=scored.targets.mask,
                              advantages=advantages_BxT.astype(np.float32), sampler_logprobs=None)
    return batch.replace(completion_mask=batch.completion_mask & influence_B[:, None])
