"""The update: one optimiser step on one minibatch, written for one device and mapped over all devices.

An update takes a state and returns a new state. The loss is a sum divided by a divisor; both are added up over
micro-batches and devices before the division, so the loss does not depend on how rows are distributed. Supervised
training is the same update with the "reinforce" objective and every advantage 1.
"""

import functools
from typing import Callable, Optional

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from rlvr_jax import adapters, batches, model, objectives, parallel
from rlvr_jax.config import Config, flag
from rlvr_jax.errors import UserError
from rlvr_jax.logprobs import Scoring, completion_logprobs
from rlvr_jax.model import ModelConfig
from rlvr_jax.objectives import OBJECTIVES
from rlvr_jax.ops import ATTENTION
from rlvr_jax.records import MINIBATCH_ORDER, Batch, LearnerState


class OptimizerConfig(Config):
    """AdamW and its learning rate."""

    learning_rate: float = flag(1e-6, "peak learning rate of AdamW", minimum=0)
    warmup_steps: int = flag(0, "optimiser updates of linear warm-up from 0", minimum=0)
    schedule: str = flag("constant", "learning rate after the warm-up: constant, or falling to --final_lr_fraction of "
                         "the peak, linearly or as half a cosine", ["constant", "linear", "cosine"])
    decay_steps: int = flag(0, "optimiser updates until the schedule ends, warm-up included; 0: whole run", minimum=0)
    final_lr_fraction: float = flag(0.0, "final learning rate, as a fraction of the peak", minimum=0, maximum=1)
    adam_b1: float = flag(0.9, "decay of AdamW's first moment", minimum=0, below=1)
    adam_b2: float = flag(0.999, "decay of AdamW's second moment", minimum=0, below=1)
    first_moment_dtype: str = flag("float32", "dtype of AdamW's first moment; the second stays float32, since bfloat16 "
                                   "cannot represent a relative change of 1 - adam_b2", ["float32", "bfloat16"])
    weight_decay: float = flag(0.01, "decoupled weight decay, on all trained parameters", minimum=0)
    max_grad_norm: float = flag(1.0, "clip gradients to this global norm", above=0)


class UpdateConfig(Config):
    """How an update passes over its batch, and how it saves memory."""

    temperature: float = flag(1.0, "sampling temperature of rollouts; the loss divides logits by it, too", above=0)
    num_passes: int = flag(1, "times the update goes over a step's batch", minimum=1)
    num_minibatches: int = flag(1, "optimiser updates in each pass", minimum=1)
    grad_accumulation: int = flag(1, "micro-batches into which each device cuts a minibatch, to save memory; long "
                                  "completions are sorted by length, so that less padding is computed", minimum=1)
    remat: bool = flag(True, "recompute layers in the backward pass: less memory, and on large models faster")
    divide_state: bool = flag(False, "divide parameters, moments and reference among the devices, if one device cannot "
                              "hold them all; weights are gathered one layer at a time", free=True)
    attention: str = flag("auto", "implementation of attention for rows longer than 256 tokens and for decoded tokens: "
                          "plain JAX or a kernel; auto: plain, since no kernel was run on a chip", lambda: ATTENTION)
    max_logits: int = flag(2**25, "most logits (tokens x vocabulary) in memory at a time in the update", minimum=1)

    @property
    def updates_per_batch(self) -> int:
        return self.num_passes * self.num_minibatches


class LossConfig(Config):
    """The loss of an update, given the rewards."""

    objective: str = flag("one_shot", "advantages, loss and divisor of the update", lambda: OBJECTIVES)
    clip_low: Optional[float] = flag(None, "clip ratios at 1 - clip_low; unset: the objective's", minimum=0, maximum=1)
    clip_high: Optional[float] = flag(None, "clip ratios at 1 + clip_high; unset: the objective's", minimum=0)
    entropy_coef: Optional[float] = flag(None, "weight of the entropy bonus, negative to minimise entropy; unset: "
                                         "the objective's own", minimum=-10)
    kl_coef: float = flag(0.0, "weight of the k3 KL to the reference, the model the run started from", minimum=0)

    def resolve(self) -> objectives.Objective:
        """Returns the objective's row of `OBJECTIVES`, with clip_low, clip_high and entropy_coef replaced where set."""
        changes = {name: getattr(self, name) for name in ("clip_low", "clip_high", "entropy_coef")}
        return OBJECTIVES[self.objective]._replace(**{name: x for name, x in changes.items() if x is not None})


SUPERVISED = LossConfig("reinforce")  # with every advantage 1 this is cross-entropy


class ResetConfig(Config):
    """When the reference or the optimiser starts anew (ProRL, arXiv 2505.24864)."""

    reset: str = flag("both", "what a reset renews: the reference becomes the current policy, the "
                      "optimiser's moments become 0", ["both", "reference", "optimizer"])
    reset_every: int = flag(0, "steps between resets; 0: none", minimum=0)
    reset_patience: int = flag(0, "reset when greedy held-out accuracy has not had a new best in this many "
                               "evaluations since the last reset; 0: never", minimum=0)

    @property
    def ever(self) -> bool:
        return bool(self.reset_every or self.reset_patience)

    @property
    def resets_reference(self) -> bool:
        return self.ever and self.reset != "optimizer"


def clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """Like `optax.clip_by_global_norm(largest)`, also for gradients that are divided among devices."""
    def update(grads, state, params=None):
        norm = parallel.global_norm(grads)
        return jax.tree.map(lambda g: lax.select(norm < largest, g, g / norm * largest), grads), state
    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def learning_rates(config: OptimizerConfig, num_updates: int) -> optax.Schedule:
    """Returns the learning rate as a function of the update's number: linear warm-up, then `config.schedule`, which
    ends after `decay_steps` updates, or if that is 0 after the run's `num_updates`."""
    warmup, peak = config.warmup_steps, config.learning_rate
    decay_updates, fraction = max((config.decay_steps or num_updates) - warmup, 1), config.final_lr_fraction
    decay = {"constant": optax.constant_schedule(peak),
             "linear": optax.linear_schedule(peak, peak * fraction, decay_updates),
             "cosine": optax.cosine_decay_schedule(peak, decay_updates, fraction)}[config.schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup]) if warmup else decay


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns AdamW with the schedule `learning_rates`, on gradients clipped by their global norm. `config` is of a
    whole run: it has the records `optimizer`, `update` and `loop`."""
    settings, num_updates = config.optimizer, config.loop.num_steps * config.update.updates_per_batch
    return optax.chain(clip_by_global_norm(settings.max_grad_norm),
                       optax.adamw(learning_rates(settings, num_updates), settings.adam_b1, settings.adam_b2,
                                   weight_decay=settings.weight_decay, mu_dtype=settings.first_moment_dtype))


def init_state(params: model.Params, optimizer: optax.GradientTransformation, keep_reference: bool) -> LearnerState:
    copy = jax.tree.map(jnp.copy, params) if keep_reference else None  # one buffer cannot be donated twice
    return LearnerState(jnp.int32(0), params, optimizer.init(adapters.split(params)[0]), copy)


def reference(state: LearnerState) -> model.Params:
    """Returns the KL reference: the stored copy if there is one, else the parameters without their adapter."""
    return adapters.base_params(state.params) if state.ref_params is None else state.ref_params


def make_statistics(model_config: ModelConfig, config: UpdateConfig, count: int = 3,
                    axis_name: Optional[str] = None) -> Callable:
    """Returns `statistics(params, batch)` for M micro-batches: a tuple of the first `count` of log-probabilities,
    entropies, self-certainties, each f32[M,B,T] nats, 0 where padding was cut off. `axis_name`: see `make_update`."""
    how = Scoring(config.max_logits, attend=ATTENTION[config.attention].rows, self_certainty=count > 2)

    def statistics(params, batch: Batch):
        length = batch.completions.shape[-1]

        def score(micro: Batch, size: int):
            values = completion_logprobs(params, model_config, batches.truncate(micro, size), config.temperature, how)
            return tuple(jnp.pad(x, ((0, 0), (0, length - size))) for x in values[:count])

        branches = [functools.partial(score, size=size) for size in batches.bucket_lengths(length)]
        buckets_M = batches.choose_buckets(batch.completion_mask, axis_name)
        return lax.map(lambda x: lax.switch(x[1], branches, x[0]), (batch, buckets_M))  # x: a micro-batch, its bucket
    return statistics


def make_loss(model_config: ModelConfig, config: UpdateConfig, loss: LossConfig) -> Callable:
    """Returns `loss_sum(trained, frozen, micro, weights) -> (total, ({metric: sum}, gap_max))`, for a micro-batch, with
    parameters from `adapters.split`. `total` is the sum of weights * (policy term + kl_coef * k3 - entropy_coef *
    entropy), not yet divided; `gap_max` is the largest |old - sampler log-probability|. The KL is measured if there are
    `ref_logprobs`. `weights`, f32[B,T], default to the objective's; for truncated rows, pass those of whole rows."""
    objective, how = loss.resolve(), Scoring(config.max_logits, config.remat, ATTENTION[config.attention].rows)

    def loss_sum(trained, frozen, micro: Batch, weights: Optional[jax.Array] = None):
        logprobs, entropy = completion_logprobs(adapters.join(trained, frozen), model_config, micro,
                                                config.temperature, how)
        mask, current = micro.completion_mask, lax.stop_gradient(logprobs)
        fill = lambda x: jnp.where(mask, x, current)  # masked ratios are 1: an overflow would make the gradient 0 * inf
        old = current if micro.old_logprobs is None else fill(micro.old_logprobs)
        terms = objective.token_loss(logprobs, old, micro.advantages, mask, objective.clip_low, objective.clip_high)
        if objective.entropy_coef:
            terms -= objective.entropy_coef * entropy
        ratio = jnp.exp(objective.log_ratio(logprobs, old, mask) if objective.log_ratio else logprobs - old)
        is_clipped = (ratio < 1 - objective.clip_low) | (ratio > 1 + objective.clip_high)
        metrics = {"entropy": entropy, "clip_fraction": is_clipped}
        if micro.ref_logprobs is not None:
            metrics["kl"] = objectives.k3_kl(logprobs, fill(micro.ref_logprobs))
            if loss.kl_coef:
                terms += loss.kl_coef * metrics["kl"]
        if model_config.dtype == "float16":
            metrics["overflow"] = ~jnp.isfinite(logprobs)
        if micro.sampler_logprobs is not None:
            gap = old - fill(micro.sampler_logprobs)
            metrics |= {"logprob_gap_mean": jnp.abs(gap), "ratio_outside": jnp.abs(jnp.exp(gap) - 1) > 0.1}
        if weights is None:
            weights, _ = objective.normalise(mask.astype(jnp.float32))
        total = jnp.sum(jnp.where(mask, weights * terms, 0.0))
        sums = {name: jnp.sum(jnp.where(mask, x, 0.0)) for name, x in metrics.items()}
        gap_max = 0.0 if micro.sampler_logprobs is None else jnp.max(jnp.where(mask, jnp.abs(gap), 0.0))
        return total, (sums, gap_max)
    return loss_sum


def make_update(model_config: ModelConfig, config: UpdateConfig, loss: LossConfig,
                optimizer: optax.GradientTransformation, axis_name: Optional[str] = None) -> Callable:
    """Returns `update(state, batch, step) -> (state, metrics)` for one device, or for each device of the mapped axis
    `axis_name`. The batch's arrays have a leading axis of micro-batches, over which gradients are accumulated. The loss
    is the total of `make_loss` divided by the objective's divisor. `metrics` is {name: f32 scalar}."""
    objective, loss_sum = loss.resolve(), make_loss(model_config, config, loss)

    def update(state: LearnerState, batch: Batch, step):
        mask = batch.completion_mask.astype(jnp.float32)
        _, shares_MxB = jax.vmap(objective.normalise)(mask)  # each row's share of the divisor; the weights come below
        counts = jnp.sum(shares_MxB), jnp.sum(mask)  # this device's parts of the divisor and of the number of tokens
        trained, frozen = adapters.split(state.params)

        def gradients(micro: Batch, size: int):  # of a micro-batch whose completions all fit into `size` tokens
            weights, _ = objective.normalise(micro.completion_mask.astype(jnp.float32))  # before rows are truncated
            return jax.value_and_grad(loss_sum, has_aux=True)(trained, frozen, batches.truncate(micro, size),
                                                              weights[:, :size])

        branches = [functools.partial(gradients, size=size) for size in batches.bucket_lengths(mask.shape[-1])]

        def accumulate(totals, micro_and_bucket):
            micro, bucket = micro_and_bucket
            (total, (sums, gap_max)), grads = lax.switch(bucket, branches, micro)
            return jax.tree.map(jnp.add, totals, (total, sums, grads)), gap_max
        shapes = jax.eval_shape(branches[-1], jax.tree.map(lambda x: x[0], batch))
        (zero, (zero_sums, _)), zero_grads = jax.tree.map(jnp.zeros_like, shapes)  # `accumulate` starts from zeros
        buckets_M = batches.choose_buckets(batch.completion_mask, axis_name)
        totals, gap_max = lax.scan(accumulate, (zero, zero_sums, zero_grads), (batch, buckets_M))
        # An ordering barrier: sums over devices have to follow all gathers of weights, or devices could deadlock.
        totals, counts, gap_max = parallel.after_gathers((totals, counts, gap_max), state.params)
        (total, sums, grads), counts = parallel.psum((totals, counts), axis_name)
        divisor, num_tokens = (jnp.maximum(x, 1.0) for x in counts)
        grads = jax.tree.map(lambda g: g / divisor, grads)
        changes, opt_state = optimizer.update(grads, state.opt_state, trained)
        metrics = {"loss": total / divisor, "grad_norm": parallel.global_norm(grads)}
        metrics |= {name: x / num_tokens for name, x in sums.items()}
        if batch.sampler_logprobs is not None:
            metrics["logprob_gap_max"] = parallel.pmax(jnp.max(gap_max), axis_name)
        params = adapters.join(optax.apply_updates(trained, changes), frozen)
        return LearnerState(step, params, opt_state, state.ref_params), metrics
    return update


def micro_rows(config: UpdateConfig, rows: int, flags: str) -> int:
    """Returns how many of a step's `rows` each device has in a micro-batch. Raises UserError if they do not divide
    evenly; its message names the `flags` that set the rows, such as "--batch_size"."""
    parts, devices = config.num_minibatches * config.grad_accumulation, parallel.device_count()
    if rows % (parts * devices):
        raise UserError(f"{flags} = {rows} rows do not divide into --num_minibatches x --grad_accumulation x "
                        f"devices (--host_devices) = {parts} x {devices} equal parts")
    return rows // (parts * devices)


def map_update(model_config: ModelConfig, config: UpdateConfig, loss: LossConfig,
               optimizer: optax.GradientTransformation, seed: int) -> Callable:
    """Returns `update(state, batch, step) -> (state, metrics)`, which runs all passes and minibatches of a host batch
    on all devices. Minibatches are a function of (seed, step, pass). The state is on the devices (`place_state`) and is
    donated. `metrics` is {"train/NAME": float}: means over the updates, or maxima for names that end in _max."""
    device_update = make_update(model_config, config, loss, optimizer, parallel.AXIS)
    mapped = parallel.map_devices(device_update, donate_argnums=0)

    def update(state: LearnerState, batch: Batch, step: int):
        devices, collected = parallel.device_count(), []
        steps = parallel.place_rows(np.full(devices, step, np.int32))  # the step's number, for each device
        for number in range(config.num_passes):  # number of the pass
            for part in batches.minibatches(batch, config.num_minibatches, (seed, step, number, MINIBATCH_ORDER)):
                sharded, _ = batches.shard_batch(part, devices, config.grad_accumulation)
                state, metrics = mapped(state, parallel.place_rows(sharded), steps)
                collected.append(parallel.fetch_state(metrics))
        reduce = {name: np.max if name.endswith("_max") else np.mean for name in collected[0]}
        return state, {f"train/{name}": float(fn([m[name] for m in collected])) for name, fn in reduce.items()}
    return update


def map_statistics(model_config: ModelConfig, config: UpdateConfig, count: int = 3) -> Callable:
    """Returns `statistics(params, batch)`, which runs on all devices for a host batch. It returns a tuple of the first
    `count` of log-probabilities, entropies and self-certainties, each numpy f32[B,T] in nats, in the batch's order."""
    device_statistics = make_statistics(model_config, config, count, parallel.AXIS)
    mapped = parallel.map_devices(device_statistics)
    pieces = config.num_minibatches * config.grad_accumulation

    def statistics(params, batch: Batch) -> tuple[np.ndarray, ...]:
        sharded, positions = batches.shard_batch(batch, parallel.device_count(), pieces)
        values = parallel.fetch_rows(mapped(params, parallel.place_rows(sharded)))
        return tuple(x.reshape(-1, x.shape[-1])[positions] for x in values)
    return statistics
