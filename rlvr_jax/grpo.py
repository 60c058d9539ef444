"""GRPO: sample, score, compare within groups, update. Read `train` and `grpo_step` first.

There are no texts, files or printing here. Problems are token ids; `reward` scores a step's completions; `watch` is
called between steps, and may restore, evaluate, log, save, reset and stop. The loss is `learner.make_loss`.

N groups of a step, G completions of a group, B = N*G, T tokens; all groups of a one-shot run have the same problem.
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
    num_prompts: int = flag(16, "rows of a step, each its own group even where all are the one example", minimum=1)
    group_size: int = flag(8, "completions of a row, compared with each other; 1: nothing is compared", minimum=1)
    update_group_size: int = flag(0, "completions of each group, its first ones, that are compared and learnt from; "
                                  "of the others only the reward knows, as TTRL's votes; 0: all", minimum=0)
    max_resamples: int = flag(0, "times to sample again to replace dead groups, all rewards of which are equal",
                              minimum=0)
    drop_dead_groups: bool = flag(False, "leave groups without advantage out of the loss altogether: KL, entropy "
                                  "and divisor included")
    mask_truncated: bool = flag(False, "leave completions that were cut at max_new_tokens out of the loss, not out "
                                "of their group's mean")
    sample_by_layer: bool = flag(False, "with --divide_state: sample with one layer of weights gathered at a time")
    track_kl: bool = flag(True, "measure the KL even when kl_coef is 0: one more forward pass and, where all "
                          "parameters are trained, a copy of them")

    @property
    def loss_group_size(self) -> int:
        """Completions of a group that are compared and learnt from."""
        return self.update_group_size or self.group_size

    @property
    def measure_kl(self) -> bool:
        return self.track_kl or self.loss.kl_coef > 0

    @property
    def keep_reference(self) -> bool:
        """Whether a copy of the model at the start is kept. With an adapter, the frozen weights are that model."""
        return self.measure_kl and (self.adapter.trainable == "all" or self.resets.resets_reference)


class Policy(NamedTuple):
    """The model to train."""

    config: ModelConfig
    params: Optional[Params]
    eos_ids: tuple[int, ...]  # any of these ends a completion


class Problems(NamedTuple):
    """What is trained on: P distinct prompts, and how often each stands in an epoch."""

    prompts: Prompts
    copies: np.ndarray  # i[P]


class Programs(NamedTuple):
    """The three compiled functions, each over all devices."""

    sample: Callable  # (params, Prompts, i32[B] into them, Request) -> Rollouts
    logprobs: Callable  # (params, Batch) -> f32[B,T]: the first of `learner.map_statistics`
    update: Callable  # (state, Batch, step) -> (state, metrics): `learner.map_update`, with the loss


class PromptBatch(NamedTuple):
    """Which prompts a step samples completions of."""

    step: int
    prompts: Prompts
    index: np.ndarray  # i32[B] into the prompts; the G completions of a group stand together


class Targets(NamedTuple):
    """Tokens to learn from in place of those that were sampled, as VeriFree does."""

    completions: np.ndarray  # i32[B,T]
    mask: np.ndarray  # bool[B,T]
    fixed: np.ndarray  # bool[B,T]: tokens with an advantage of their own, in place of the completion's
    advantages: np.ndarray  # f32[B,T], read at these


class Scored(NamedTuple):
    """What a reward returns."""

    reward: np.ndarray  # f32[B]
    info: dict[str, np.ndarray] = {}  # name -> [B], whatever the watch wants to know, such as whether it is correct
    targets: Optional[Targets] = None


class Record(NamedTuple):
    """All of a step, as `watch` is handed it."""

    asked: PromptBatch
    rollouts: Rollouts
    scored: Scored
    batch: Batch
    metrics: dict[str, float]


class Callbacks:
    """The callbacks of a training. This `watch` does nothing; others have its methods."""

    def restore(self, state: LearnerState) -> LearnerState:
        """The state to begin with, on the host: the one given, or one that was saved."""
        return state

    def steps(self, state: LearnerState, num_steps: int) -> Iterable[int]:
        """The numbers of the steps to do, from 1. A watch that has resumed begins later, and may end early."""
        return range(1, num_steps + 1)

    def __call__(self, state: LearnerState, record: Any) -> LearnerState:
        """Called after each step; returns the state to go on with."""
        return state


def train(policy: Policy, problems: Problems, reward: Callable, config: GRPOConfig, callbacks=Callbacks(),
          programs: Optional[Programs] = None) -> LearnerState:
    """Trains the policy, and returns the last state, which lies on the devices (`parallel.fetch_state`).

    `reward(rollouts, params, step, attempt) -> Scored` runs on the host. All that touches a disk or a screen is in
    `watch`. Raises UserError for sizes that do not divide.
    """
    check(config)
    programs = programs or compile_programs(policy, config)
    with parallel.init_device(config.update.divide_state):
        state = callbacks.restore(initial_state(policy, config))
    state = parallel.place_state(state, config.update.divide_state)
    del policy  # the state has the parameters: a copy less in host memory
    for step in callbacks.steps(state, config.loop.num_steps):
        state, record = grpo_step(programs, problems, reward, config, state, step)
        state = callbacks(state, record)
    return state


def grpo_step(programs, problems, reward, config, state, step):
    """One step: (state, Record). What is random in it is a function of (seed, step) alone."""
    asked = curriculum(config, problems, step)
    rollouts, scored = sample_and_score(programs, reward, config, state.params, asked)
    batch = make_batch(config, asked.prompts, rollouts, scored)
    if config.measure_kl:
        batch = batch.replace(ref_logprobs=programs.logprobs(reference(state), batch))
    if config.update.updates_per_batch > 1:
        batch = batch.replace(old_logprobs=programs.logprobs(state.params, batch))
    state, metrics = programs.update(state, batch, step)
    return state, Record(asked, rollouts, scored, batch, metrics)


def check(config: GRPOConfig, devices: Optional[int] = None) -> int:
    """Rows of a micro-batch on one of the devices, by default all there are. Raises UserError where a group does not
    divide, or the rows that a step learns from do not among minibatches and devices."""
    if config.group_size % config.loss_group_size:
        raise UserError(f"--group_size={config.group_size} is not a multiple of --update_group_size="
                        f"{config.update_group_size}")
    flag = "update_group_size" if config.update_group_size else "group_size"
    return learner.micro_rows(config.update, config.num_prompts * config.loss_group_size,
                              devices or parallel.device_count(), f"--num_prompts x --{flag}")


def compile_programs(policy: Policy, config: GRPOConfig, devices: Optional[list] = None) -> Programs:
    """The three programs of a run, compiled at their first call. For devices that are not here `sample` and `update`
    have what can be compiled from shapes, `mapped`."""
    optimizer = make_optimizer(config)
    decoding = Decoding(policy.eos_ids, config.sampling.max_new_tokens, config.sampling.num_slots,
                        by_layer=config.sample_by_layer, attend=ATTENTION[config.update.attention].cache)
    sample = sampler.make_sampler(policy.config, decoding, devices=devices)
    statistics = learner.map_statistics(policy.config, config.update, 1, devices)
    update = learner.map_update(policy.config, config.update, config.loss, optimizer, config.loop.seed, devices)
    return Programs(sample, lambda params, batch: statistics(params, batch)[0], update)


def make_optimizer(config: GRPOConfig):
    return learner.make_optimizer(config.optimizer, config.loop.num_steps * config.update.updates_per_batch)


def initial_state(policy: Policy, config: GRPOConfig) -> LearnerState:
    """The state before the first step, with the adapter that is trained."""
    params = adapters.add(config.adapter, policy.params, config.loop.seed)
    return learner.init_state(params, make_optimizer(config), config.keep_reference)


def curriculum(config: GRPOConfig, problems: Problems, step: int) -> PromptBatch:
    """Which problem each completion of the step answers: shuffled epochs, in which a problem with k copies comes k
    times."""
    epoch = np.repeat(np.arange(len(problems.copies), dtype=np.int32), problems.copies)
    positions = (step - 1) * config.num_prompts + np.arange(config.num_prompts)
    orders = {e: np.random.default_rng((config.loop.seed, e, 0, EPOCH_ORDER)).permutation(epoch)
              for e in set(positions // len(epoch))}
    index_N = [orders[position // len(epoch)][position % len(epoch)] for position in positions]
    return PromptBatch(step, problems.prompts, np.repeat(np.array(index_N, np.int32), config.group_size))


def sample_and_score(programs: Programs, reward: Callable, config: GRPOConfig, params,
                     asked: PromptBatch) -> tuple[Rollouts, Scored]:
    """The rollouts that a step learns from, and their rewards. Dead groups are sampled again, at most `max_resamples`
    times. The reward sees all completions of a group, and what comes after it the first `loss_group_size` of each."""
    size = config.loss_group_size
    learnt = np.arange(len(asked.index)).reshape(-1, config.group_size)[:, :size].ravel()

    def live(scored):
        return live_groups(scored.reward.reshape(-1, size))

    rollouts = scored = None
    for attempt in range(config.max_resamples + 1):
        drawn = programs.sample(params, asked.prompts, asked.index, Request(
            config.loop.seed, asked.step, config.update.temperature, repeats=config.group_size,
            first_row=attempt * len(asked.index)))  # other random keys than the attempts before
        fresh = jax.tree.map(lambda x: x[learnt], (drawn, reward(drawn, params, asked.step, attempt)))
        if attempt == 0:
            rollouts, scored = fresh
        else:
            dead, alive = np.flatnonzero(~live(scored)), np.flatnonzero(live(fresh[1]))
            count = min(len(dead), len(alive))  # dead groups get the live groups of the new draw
            to, source = rows_of(dead[:count], size), rows_of(alive[:count], size)
            rollouts, scored = jax.tree.map(lambda old, new: replaced(old, to, new[source]), (rollouts, scored), fresh)
        if live(scored).all():
            break
    return rollouts, scored


def rows_of(groups: np.ndarray, size: int) -> np.ndarray:
    """The places of these groups' completions."""
    return (groups[:, None] * size + np.arange(size)).ravel()


def replaced(rows: np.ndarray, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A copy of `rows` with other values at `index`: arrays from a device are read-only."""
    rows = rows.copy()
    rows[index] = values
    return rows


def make_batch(config: GRPOConfig, prompts: Prompts, rollouts: Rollouts, scored: Scored) -> Batch:
    """The rollouts with their advantages. Completions that are to have no influence lose their mask: those of a dead
    group under `drop_dead_groups`, those that were cut under `mask_truncated`."""
    rewards_NxG = scored.reward.reshape(-1, config.loss_group_size)
    advantages_B = np.asarray(config.loss.resolved().advantages(rewards_NxG)).reshape(-1)
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
