"""A run directory around a step function: what GRPO, pre-training and fine-tuning share."""

import dataclasses
from typing import Any, Callable, Iterator, NamedTuple

from rlvr_jax import grpo, parallel
from rlvr_jax.learner import ResetConfig, map_reset
from rlvr_jax.records import Batch, LearnerState
from rlvr_jax.runs.log import add_seconds
from rlvr_jax.runs.run import Run
from rlvr_jax.runs.stopping import RESET, reset_due
from rlvr_jax.runs.summary import throughput


@dataclasses.dataclass
class RunCallbacks(grpo.Callbacks):
    """The `callbacks` of a run directory: restore, measure, log, save, reset and stop. In use, `run` is open."""

    run: Run
    meta: dict  # of checkpoints
    describe: Callable  # record -> (row of metrics, rows of rollouts.jsonl)
    show: tuple[str, ...]  # metrics of the progress bar
    heldout: Callable = lambda params, step: {}  # -> eval/* metrics
    resets: ResetConfig = ResetConfig()
    saved: Callable = lambda: None  # called after a checkpoint
    seconds: dict = dataclasses.field(default_factory=dict)  # of the step, by phase

    def __post_init__(self):
        self.reset = map_reset(self.resets)

    def restore(self, state: LearnerState) -> LearnerState:
        return self.run.restore(state)

    def steps(self, state: LearnerState, num_steps: int) -> Iterator[int]:
        if self.run.first == 0 and not self.run.resumed:
            with add_seconds(self.seconds, "eval"):
                row = {"step": 0} | self.heldout(state.params, 0)
            self.run.log(row | self.seconds)
            self.seconds.clear()
        yield from self.run.steps()

    def __call__(self, state: LearnerState, record: Any) -> LearnerState:
        row, rollouts = self.describe(record)
        step = row["step"]
        if self.run.due(step, self.run.config.eval_every, row):
            with add_seconds(self.seconds, "eval"):
                row |= self.heldout(state.params, step)
        if self.resets.ever and parallel.largest(
                parallel.is_main() and reset_due(self.resets, [*self.run.metrics.rows, row])):
            state, row[RESET] = self.reset(state), 1
        self.run.log(row | throughput(self.seconds, row), self.show, rollouts)
        self.seconds.clear()
        if self.run.save_due(step):
            self.run.save(state, self.meta)
            self.saved()
        return state

    def finish(self, state: LearnerState) -> dict:
        """Saves the last step; returns the summary (`Run.finish`)."""
        self.saved()
        return self.run.finish(state, self.meta)

    def timed(self, phase: str, function: Callable) -> Callable:
        """The function, its seconds counted to a phase of the step."""
        def call(*args):
            with add_seconds(self.seconds, phase):
                return function(*args)
        return call


class Learnt(NamedTuple):
    """A step of supervised training, as passed to the callbacks."""

    step: int
    batch: Batch
    metrics: dict[str, float]


def supervise(state: LearnerState, data: Callable, update: Callable, callbacks: RunCallbacks, num_steps: int,
              divide: bool) -> LearnerState:
    """Learns from `data(step) -> Batch`, step after step; returns the last state, on the devices."""
    data, update = callbacks.timed("data", data), callbacks.timed("update", update)
    state = parallel.place_state(callbacks.restore(state), divide)
    for step in callbacks.steps(state, num_steps):
        batch = data(step)
        state, metrics = update(state, batch, step)
        state = callbacks(state, Learnt(step, batch, metrics))
    return state
