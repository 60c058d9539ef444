"""The update: one optimiser step on one minibatch, written for one device and mapped over all of them.

State is a pytree in and a pytree out. Sums and their divisors are added over micro-batches and devices and divided
once, so the result does not depend on how rows are spread. Supervised training is the same update with the
"reinforce" objective and every advantage 1.
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
    """AdamW, and its learning rate."""

    learning_rate: float = flag(1e-6, "peak learning rate of AdamW", minimum=0)
    warmup_steps: int = flag(0, "optimiser updates of linear warm-up from 0", minimum=0)
    schedule: str = flag("constant", "learning rate after the warm-up", lambda: SCHEDULES)
    decay_steps: int = flag(0, "optimiser updates until the schedule ends, warm-up included; 0: the whole run",
                            minimum=0)
    final_lr_fraction: float = flag(0.0, "learning rate at the end of the schedule, as a fraction of the peak",
                                    minimum=0, maximum=1)
    adam_b1: float = flag(0.9, "decay of AdamW's first moment", minimum=0, below=1)
    adam_b2: float = flag(0.999, "decay of AdamW's second moment", minimum=0, below=1)
    first_moment_dtype: str = flag("float32", "of AdamW's first moment; the second stays float32, since bfloat16 "
                                   "does not resolve a change of 1 - adam_b2", ["float32", "bfloat16"])
    weight_decay: float = flag(0.01, "decoupled weight decay, on all parameters", minimum=0)
    max_grad_norm: float = flag(1.0, "clip gradients to this global norm", above=0)


class UpdateConfig(Config):
    """How an update goes over its batch, and what it holds in memory."""

    temperature: float = flag(1.0, "sampling temperature of the rollouts, and of every log-probability", above=0)
    num_passes: int = flag(1, "times the update goes over a step's batch", minimum=1)
    num_minibatches: int = flag(1, "optimiser updates of a pass", minimum=1)
    grad_accumulation: int = flag(1, "micro-batches a minibatch is cut into on each device, to save memory; "
                                  "long completions are sorted into them by length, so that less padding is "
                                  "computed", minimum=1)
    remat: bool = flag(True, "recompute layers in the backward pass: less memory, and on large models faster")
    divide_state: bool = flag(False, "divide parameters, moments and reference among the devices, where they would "
                              "not fit whole on each; gathered a layer at a time", free=True)
    attention: str = flag("auto", "how rows of more than 256 tokens attend, and tokens that are decoded: in plain "
                          "JAX, or by a kernel; auto: plain, until a kernel has been checked on the chip",
                          lambda: ATTENTION)
    max_logits: int = flag(2**25, "most logits (tokens x vocabulary) held at once in the update", minimum=1)

    @property
    def updates_per_batch(self) -> int:
        return self.num_passes * self.num_minibatches


class LossConfig(Config):
    """What the update maximises, given the rewards."""

    objective: str = flag("one_shot", "advantages, loss and divisor of the update", lambda: OBJECTIVES)
    clip_low: Optional[float] = flag(None, "lower clip of the ratio, 1 - clip_low; unset: the objective's own",
                                     minimum=0, maximum=1)
    clip_high: Optional[float] = flag(None, "upper clip of the ratio, 1 + clip_high; unset: the objective's own",
                                      minimum=0)
    entropy_coef: Optional[float] = flag(None, "weight of the entropy bonus, negative to minimise entropy; unset: "
                                         "the objective's own", minimum=-10)
    kl_coef: float = flag(0.0, "weight of the k3 KL to the reference, the model the run started from", minimum=0)

    def resolved(self) -> objectives.Objective:
        """The row of the table, with the clip range and entropy weight that are set here in place of its own."""
        given = {name: getattr(self, name) for name in ("clip_low", "clip_high", "entropy_coef")}
        return OBJECTIVES[self.objective]._replace(**{name: x for name, x in given.items() if x is not None})


SUPERVISED = LossConfig("reinforce")  # with every advantage 1 this is cross-entropy


class ResetConfig(Config):
    """When the reference or the optimiser starts anew (ProRL, arXiv 2505.24864)."""

    reset: str = flag("both", "what a reset clears: the reference becomes the policy of that moment, the "
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


def constant(peak: float, updates: int, fraction: float) -> optax.Schedule:
    """The peak throughout."""
    return optax.constant_schedule(peak)


def linear(peak: float, updates: int, fraction: float) -> optax.Schedule:
    """A straight line from the peak to `final_lr_fraction` of it."""
    return optax.linear_schedule(peak, peak * fraction, updates)


def cosine(peak: float, updates: int, fraction: float) -> optax.Schedule:
    """Half a cosine from the peak to `final_lr_fraction` of it."""
    return optax.cosine_decay_schedule(peak, updates, fraction)


SCHEDULES = {"constant": constant, "linear": linear, "cosine": cosine}


def global_norm(tree) -> jax.Array:
    """The norm of all numbers of a tree, whose leaves may be divided among devices."""
    return jnp.sqrt(parallel.global_sum(lambda leaves: optax.tree.norm(leaves, squared=True), tree))


def clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """As optax has it, of gradients that may be divided."""
    def update(grads, state, params=None):
        norm = global_norm(grads)
        return jax.tree.map(lambda g: lax.select(norm < largest, g, g / norm * largest), grads), state
    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(config: OptimizerConfig, num_updates: int) -> optax.GradientTransformation:
    """AdamW after clipping by global norm; warm-up, then `config.schedule` down to `final_lr_fraction` at the end:
    after `decay_steps` updates, or after the run's `num_updates`."""
    warmup, peak = config.warmup_steps, config.learning_rate
    decay_updates = max((config.decay_steps or num_updates) - warmup, 1)
    decay = SCHEDULES[config.schedule](peak, decay_updates, config.final_lr_fraction)
    schedule = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup]) if warmup else decay
    return optax.chain(clip_by_global_norm(config.max_grad_norm),
                       optax.adamw(schedule, config.adam_b1, config.adam_b2, weight_decay=config.weight_decay,
                                   mu_dtype=config.first_moment_dtype))


def init_state(params: model.Params, optimizer: optax.GradientTransformation, keep_reference: bool) -> LearnerState:
    copy = jax.tree.map(jnp.copy, params) if keep_reference else None  # donation must not see one buffer twice
    return LearnerState(jnp.int32(0), params, optimizer.init(adapters.split(params)[0]), copy)


def map_reset(config: ResetConfig) -> Callable:
    """`reset(state) -> state` on all devices: a new start for what `config.reset` names (ProRL, arXiv 2505.24864).

    The reference becomes the policy, so that the KL to it is 0; the optimiser's moments and its count of updates
    become 0, and with the count its schedule starts again. The policy stays bitwise. The state is donated.
    """
    def reset(state: LearnerState) -> LearnerState:
        if config.reset != "reference":
            state = state.replace(opt_state=jax.tree.map(jnp.zeros_like, state.opt_state))
        if config.resets_reference and state.ref_params is not None:
            state = state.replace(ref_params=jax.tree.map(jnp.copy, state.params))
        return state
    return parallel.map_devices(reset, donate_argnums=0)


def reference(state: LearnerState) -> model.Params:
    """The model that the KL is measured to: the copy kept, or the same parameters with the adapter off."""
    return adapters.base_params(state.params) if state.ref_params is None else state.ref_params


def make_statistics(model_config: ModelConfig, config: UpdateConfig, count: int = 3) -> Callable:
    """`(params, batch [micro-batches, ...])` to the first `count` of (logprobs, entropies, self-certainty), each
    f32[micro-batches,B,T] nats, 0 where padding is cut off: of the old, the reference and the rewarded policy."""
    how = Scoring(config.max_logits, False, ATTENTION[config.attention].rows, count > 2)

    def statistics(params, batch: Batch, pmax: Callable = lambda x: x):
        length = batch.completions.shape[-1]

        def first(micro: Batch, size: int):
            micro = batches.truncate(micro, size)
            values = completion_logprobs(params, model_config, micro, config.temperature, how)[:count]
            return tuple(jnp.pad(x, ((0, 0), (0, length - size))) for x in values)

        branches = [functools.partial(first, size=size) for size in batches.bucket_lengths(length)]
        return lax.map(lambda given: lax.switch(given[1], branches, given[0]),
                       (batch, batches.choose_buckets(batch.completion_mask, pmax)))
    return statistics


def make_loss(model_config: ModelConfig, config: UpdateConfig, loss: LossConfig) -> Callable:
    """`loss_sum(trained, frozen, micro-batch) -> (sum, (sums of what is measured, largest gap))`, over its tokens.

    The loss is sum of weights * (policy term + kl_coef * k3 - entropy_coef * entropy), before its divisor. The KL is
    measured where the batch has `ref_logprobs`. `weights`, f32[B,T], are those of the whole row where it was cut.
    """
    objective, how = loss.resolved(), Scoring(config.max_logits, config.remat, ATTENTION[config.attention].rows)
    clip_low, clip_high, entropy_coef = objective.clip_low, objective.clip_high, objective.entropy_coef

    def loss_sum(trained, frozen, micro: Batch, weights: Optional[jax.Array] = None):
        logprobs, entropy = completion_logprobs(adapters.join(trained, frozen), model_config, micro,
                                                config.temperature, how)
        mask, current = micro.completion_mask, lax.stop_gradient(logprobs)

        def masked(given):  # an overflow at a masked token would reach the gradient as 0 * inf: make its ratio 1
            return jnp.where(mask, given, current)

        old = current if micro.old_logprobs is None else masked(micro.old_logprobs)
        terms = objective.token_loss(logprobs, old, micro.advantages, mask, clip_low, clip_high)
        if entropy_coef:
            terms -= entropy_coef * entropy
        ratio = jnp.exp(objective.log_ratio(logprobs, old, mask) if objective.log_ratio else logprobs - old)
        sums = {"entropy": entropy, "clip_fraction": (ratio < 1 - clip_low) | (ratio > 1 + clip_high)}
        if micro.ref_logprobs is not None:
            kl = objectives.k3_kl(logprobs, masked(micro.ref_logprobs))
            sums["kl"] = kl
            if loss.kl_coef:
                terms += loss.kl_coef * kl
        if model_config.dtype == "float16":
            sums["overflow"] = ~jnp.isfinite(logprobs)
        if micro.sampler_logprobs is not None:
            gap = old - masked(micro.sampler_logprobs)
            sums |= {"logprob_gap_mean": jnp.abs(gap), "ratio_outside": jnp.abs(jnp.exp(gap) - 1) > 0.1}
        weights = objective.normalise(mask.astype(jnp.float32))[0] if weights is None else weights
        total = jnp.sum(jnp.where(mask, weights * terms, 0.0))
        sums = {name: jnp.sum(jnp.where(mask, x, 0.0)) for name, x in sums.items()}
        largest = 0.0 if micro.sampler_logprobs is None else jnp.max(jnp.where(mask, jnp.abs(gap), 0.0))
        return total, (sums, largest)

    return loss_sum


def make_update(model_config: ModelConfig, config: UpdateConfig, loss: LossConfig,
                optimizer: optax.GradientTransformation) -> Callable:
    """`update(state, batch, step, psum, pmax) -> (state, metrics)`.

    `psum` sums over devices and `pmax` takes the largest of them (under plain jit each is the identity).

    The batch's arrays carry a leading axis of micro-batches, whose gradients are accumulated. The loss is the sum of
    `make_loss` over the normaliser's divisor.
    """
    objective, loss_sum = loss.resolved(), make_loss(model_config, config, loss)

    def update(state: LearnerState, batch: Batch, step, psum: Callable = lambda x: x, pmax: Callable = lambda x: x):
        mask = batch.completion_mask.astype(jnp.float32)
        counts = (jnp.sum(jax.vmap(objective.normalise)(mask)[1]), jnp.sum(mask))
        trained, frozen = adapters.split(state.params)

        def gradients(micro: Batch, size: int):
            weights, _ = objective.normalise(micro.completion_mask.astype(jnp.float32))
            return jax.value_and_grad(loss_sum, has_aux=True)(trained, frozen, batches.truncate(micro, size),
                                                              weights[:, :size])

        def accumulate(totals, given):
            micro, bucket = given
            (total, (sums, largest)), grads = lax.switch(bucket, branches, micro)
            return jax.tree.map(jnp.add, totals, (total, sums, grads)), largest

        branches = [functools.partial(gradients, size=size) for size in batches.bucket_lengths(mask.shape[-1])]
        shapes = jax.eval_shape(branches[-1], jax.tree.map(lambda x: x[0], batch))
        (total, (sums, _)), grads = jax.tree.map(jnp.zeros_like, shapes)
        totals, largest = lax.scan(accumulate, (total, sums, grads),
                                   (batch, batches.choose_buckets(batch.completion_mask, pmax)))
        totals, counts, largest = parallel.after_gathers((totals, counts, largest), state.params)
        (total, sums, grads), counts = psum((totals, counts))
        divisor, num_tokens = (jnp.maximum(x, 1.0) for x in counts)
        grads = jax.tree.map(lambda g: g / divisor, grads)
        changes, opt_state = optimizer.update(grads, state.opt_state, trained)
        metrics = {"loss": total / divisor, "grad_norm": global_norm(grads)}
        metrics |= {name: x / num_tokens for name, x in sums.items()}
        if batch.sampler_logprobs is not None:
            metrics["logprob_gap_max"] = pmax(jnp.max(largest))
        params = adapters.join(optax.apply_updates(trained, changes), frozen)
        return LearnerState(step, params, opt_state, state.ref_params), metrics

    return update


def micro_rows(config: UpdateConfig, rows: int, devices: int, flags: str) -> int:
    """Rows of a micro-batch on one device, of `rows` in a step. UserError, naming the flags, if they do not divide."""
    parts = config.num_minibatches * config.grad_accumulation
    if rows % (parts * devices):
        raise UserError(f"{flags} = {rows} rows do not divide into --num_minibatches x --grad_accumulation x "
                        f"devices (--host_devices) = {parts} x {devices} equal parts")
    return rows // (parts * devices)


def map_update(model_config: ModelConfig, config: UpdateConfig, loss: LossConfig,
               optimizer: optax.GradientTransformation, seed: int, devices: Optional[list] = None) -> Callable:
    """`update(state, batch, step) -> (state, metrics)` on all devices: every pass and minibatch of a host batch.

    Minibatches are drawn from (seed, step, pass). The state is placed (`parallel.place_state`) and donated. Metrics are
    floats named train/*, means over the updates.
    """
    one_device = make_update(model_config, config, loss, optimizer)
    mapped = parallel.map_devices(lambda *args: one_device(*args, parallel.psum, parallel.pmax), 0, devices)

    def update(state: LearnerState, batch: Batch, step: int):
        devices, collected = parallel.device_count(), []
        steps = parallel.place_rows(np.full(devices, step, np.int32))
        for number in range(config.num_passes):
            for part in batches.minibatches(batch, config.num_minibatches, (seed, step, number, MINIBATCH_ORDER)):
                part, _ = batches.sort_by_length(part, devices, config.grad_accumulation)
                rows = parallel.place_rows(batches.shard_batch(part, devices, config.grad_accumulation))
                state, metrics = mapped(state, rows, steps)
                collected.append(parallel.fetch_state(metrics))
        reduce = {name: np.max if name.endswith("_max") else np.mean for name in collected[0]}
        return state, {f"train/{name}": float(fn([m[name] for m in collected])) for name, fn in reduce.items()}

    update.mapped = mapped  # what is compiled for devices that are not here
    return update


def map_statistics(model_config: ModelConfig, config: UpdateConfig, count: int = 3,
                   devices: Optional[list] = None) -> Callable:
    """`statistics(params, batch)`: as `make_statistics`, of a host batch on all devices, f32[B,T] each on the host."""
    one_device = make_statistics(model_config, config, count)
    mapped = parallel.map_devices(lambda *args: one_device(*args, parallel.pmax), (), devices)
    pieces = config.num_minibatches * config.grad_accumulation

    def statistics(params, batch: Batch) -> tuple[np.ndarray, ...]:
        batch, places = batches.sort_by_length(batch, parallel.device_count(), pieces)
        rows = parallel.place_rows(batches.shard_batch(batch, parallel.device_count(), pieces))
        return tuple(x.reshape(-1, x.shape[-1])[places] for x in parallel.fetch_rows(mapped(params, rows)))

    statistics.mapped = mapped
    return statistics
