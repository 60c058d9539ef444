"""What GRPO, pre-training and fine-tuning share: the callbacks that run a training loop in a run directory."""

import dataclasses
from typing import Any, Callable, Iterator

import jax
import jax.numpy as jnp

from rlvr_jax import grpo, learner, parallel
from rlvr_jax.model import ModelConfig
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.records import LearnerState
from rlvr_jax.runs import processes
from rlvr_jax.runs.log import add_seconds
from rlvr_jax.runs.run import Run
from rlvr_jax.runs.stopping import RESET, reset_due
from rlvr_jax.runs.summary import throughput


def map_reset(config: learner.ResetConfig) -> Callable:
    """Returns `reset(state) -> state`, which resets on all devices what `config.reset` names (ProRL, arXiv 2505.24864).
    The reference becomes the policy; the optimiser's moments and count of updates become 0, so the learning-rate
    schedule starts again. The policy stays bitwise equal. The state is donated."""
    def reset(state: LearnerState) -> LearnerState:
        if config.reset != "reference":
            state = state.replace(opt_state=jax.tree.map(jnp.zeros_like, state.opt_state))
        if config.resets_reference and state.ref_params is not None:
            state = state.replace(ref_params=jax.tree.map(jnp.copy, state.params))
        return state
    return parallel.map_devices(reset, donate_argnums=0)


@dataclasses.dataclass
class RunCallbacks(grpo.Callbacks):
    """Callbacks of `grpo.train` that restore, measure, log, save, reset and stop a run in an open run directory."""

    run: Run
    meta: dict  # stored in checkpoints, see `make_meta`
    describe: Callable  # record -> (row of metrics with its "step", rows of rollouts.jsonl)
    show: tuple[str, ...]  # names of the metrics in the progress bar
    heldout: Callable = lambda params, step: {}  # (params, step) -> eval/* metrics
    resets: learner.ResetConfig = learner.ResetConfig()
    after_save: Callable = lambda: None  # called after each checkpoint, and at the end
    seconds: dict = dataclasses.field(default_factory=dict)  # phase -> seconds in the current step

    def __post_init__(self):
        self.restore, self.reset = self.run.restore, map_reset(self.resets)

    def steps(self, state: LearnerState, num_steps: int) -> Iterator[int]:
        """Yields the steps to run. A new run whose log starts at step 0 first measures and logs the initial model."""
        if self.run.first == 0 and not self.run.resumed:
            with add_seconds(self.seconds, "eval"):
                row = {"step": 0} | self.heldout(state.params, 0)
            self.run.log(row | self.seconds)
            self.seconds.clear()
        yield from self.run.steps()

    def __call__(self, state: LearnerState, record: Any) -> LearnerState:
        """Evaluates, resets, logs and saves after a step, as far as due. Returns the state to continue with."""
        row, rollouts = self.describe(record)
        step = row["step"]
        if self.run.due(step, self.run.config.eval_every, row):
            with add_seconds(self.seconds, "eval"):
                row |= self.heldout(state.params, step)
        if self.resets.ever and processes.max_over_processes(  # the main process decides: only it has the log
                processes.is_main() and reset_due(self.resets, [*self.run.metrics.rows, row])):
            state, row[RESET] = self.reset(state), 1
        self.run.log(row | throughput(self.seconds, row), self.show, rollouts)
        self.seconds.clear()
        if self.run.save_due(step):
            self.run.save(state, self.meta)
            self.after_save()
        return state

    def finish(self, state: LearnerState) -> dict:
        """Saves the last step. The main process writes and returns summary.json, others return {} (`Run.finish`)."""
        self.after_save()
        return self.run.finish(state, self.meta)

    def time_calls(self, phase: str, function: Callable) -> Callable:
        """Returns the function wrapped, so that the seconds of each call are added to `phase` of the current step."""
        def call(*args):
            with add_seconds(self.seconds, phase):
                return function(*args)
        return call


def make_meta(config, model_config: ModelConfig, tokenizer: Tokenizer) -> dict:
    """Returns what a checkpoint stores beside arrays, fit for JSON: {"model": configuration, "tokenizer", "flags"}."""
    return {"model": model_config.to_json(), "tokenizer": tokenizer.to_json(), "flags": config.as_flags()}


SHOW = ("train/loss", "eval/greedy", "eval/sampled")  # metrics in the progress bar of supervised training


def train_supervised(callbacks: RunCallbacks, config, model_config: ModelConfig, make_params: Callable, data: Callable,
                     columns: Callable = lambda batch: {}) -> dict:
    """Trains on `data(step) -> Batch` and returns the content of summary.json. `config` is a PretrainConfig or a
    FinetuneConfig. `make_params()` returns the initial parameters, and `columns(batch)` more metrics of a step, {name:
    value}. `callbacks` receive a step's row of metrics where GRPO's would receive a `grpo.Record`."""
    divide = config.update.divide_state
    optimizer = learner.make_optimizer(config)
    update = learner.map_update(model_config, config.update, learner.SUPERVISED, optimizer, config.loop.seed)
    data, update = callbacks.time_calls("data", data), callbacks.time_calls("update", update)
    with parallel.init_device(divide):
        state = callbacks.restore(learner.init_state(make_params(), optimizer, keep_reference=False))
    state = parallel.place_state(state, divide)
    for step in callbacks.steps(state, config.loop.num_steps):
        batch = data(step)
        state, metrics = update(state, batch, step)
        state = callbacks(state, {"step": step} | columns(batch) | metrics)
    return callbacks.finish(state)
