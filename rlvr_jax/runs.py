"""A run directory: its flags, logs and checkpoints, how it continues, and how it stops without losing anything."""

import contextlib
import dataclasses
import math
import pathlib
import signal
from typing import Iterator

import numpy as np

from rlvr_jax import checkpoint, metrics, parallel
from rlvr_jax.config import Interrupted, RunConfig, UserError
from rlvr_jax.learner import LearnerState

# Flags that may change between two starts of one run; any other would make it a different run.
FREE = {"run_dir", "num_steps", "resume", "save_every", "keep_last", "keep_every", "eval_every", "host_devices",
        "coordinator_address", "num_processes", "process_id", "compilation_cache", "log_rollouts"}


def flag_lines(config) -> list[str]:
    """The record as a flag file."""
    def text(value):
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    lines = [f"--{f.name}={text(getattr(config, f.name))}" for f in dataclasses.fields(config)
             if getattr(config, f.name) is not None]
    for line in lines:
        if len(line.splitlines()) > 1:
            raise UserError(f"{line.split('=')[0]} holds a line break, which a flag file cannot keep")
    return lines


class Run:
    """The files of one run, open for writing on the main process. Use as a context manager."""

    def __init__(self, config: RunConfig, command: str):
        if not config.run_dir:
            raise UserError("--run_dir is required: the directory that this run writes")
        self.config, self.command, self.signal, self.shown = config, command, 0, {}
        self.dir = pathlib.Path(config.run_dir)
        newest = max(checkpoint.steps(config.run_dir), default=0)
        newest = int(parallel.broadcast(np.int32(0 if config.resume == "never" else newest)))
        self.resumed = self.saved = newest  # the step to continue from; 0: from the start
        if config.resume == "must" and not self.resumed:
            raise UserError(f"--resume=must, but {config.run_dir} has no checkpoint")
        if config.resume == "never" and parallel.is_main() and self.dir.exists():
            number = next(i for i in range(1, 10**6) if not self.dir.with_name(f"{self.dir.name}.{i}").exists())
            self.dir.rename(self.dir.with_name(f"{self.dir.name}.{number}"))  # an earlier run is moved, not erased
        refusal = self._changed_flags() if self.resumed and parallel.is_main() else ""
        if parallel.largest(bool(refusal)):
            raise UserError(refusal or "the main process refuses to continue the run, and says why")

    def __enter__(self) -> "Run":
        self.closing = contextlib.ExitStack()
        if parallel.is_main():
            self.dir.mkdir(parents=True, exist_ok=True)
            metrics.write_whole(self.dir / "flags.txt", "\n".join(flag_lines(self.config)) + "\n")
            keep = self.resumed or -1
            self.metrics = metrics.JsonLines(self.dir / "metrics.jsonl", keep)
            self.rollouts = metrics.JsonLines(self.dir / "rollouts.jsonl", keep)
            self.manager = checkpoint.open_manager(self.config.run_dir, self.config.keep_last, self.config.keep_every)
            self.closing.callback(self.metrics.file.close)
            self.closing.callback(self.rollouts.file.close)
            self.closing.callback(checkpoint.close, self.manager)
        for number in (signal.SIGINT, signal.SIGTERM):
            self.closing.callback(signal.signal, number, signal.signal(number, self._on_signal))
        return self

    def __exit__(self, *error) -> None:
        self.closing.__exit__(*error)

    def _on_signal(self, number, _frame) -> None:
        if self.signal:  # the second one means it
            raise KeyboardInterrupt
        self.signal = number

    def _changed_flags(self) -> str:
        """Why the run cannot continue under this configuration; empty if it can."""
        old = dict(line.split("=", 1) for line in (self.dir / "flags.txt").read_text("utf-8").splitlines())
        new = dict(line.split("=", 1) for line in flag_lines(self.config))
        changed = [f"{name} (was {old.get(name, 'unset')})" for name in sorted(old.keys() | new.keys())
                   if old.get(name) != new.get(name) and name.removeprefix("--") not in FREE]
        return "" if not changed else (
            f"{self.dir} was started with other flags: {', '.join(changed)}; restore them, choose another "
            "--run_dir, or start over with --resume=never")

    def restore(self, fresh: LearnerState) -> LearnerState:
        """The newest checkpoint's state, or `fresh`, as numpy arrays, the same on every process."""
        if not self.resumed:
            return fresh
        main = parallel.is_main()
        return parallel.broadcast(checkpoint.restore_state(self.config.run_dir, self.resumed, fresh) if main else fresh)

    def steps(self) -> Iterator[int]:
        """The steps to do, with a progress bar; ends early, between steps, when a signal asks for it."""
        quiet = not parallel.is_main()
        with metrics.progress(self.config.num_steps, self.resumed, self.command, quiet) as self.bar:
            for step in range(self.resumed + 1, self.config.num_steps + 1):
                yield step
                self.bar.update()
                stop = parallel.largest(self.signal)
                if stop:  # only then is it stored: a signal may have come while this process waited for the others
                    self.signal = stop
                    return

    def log(self, row: dict, show: tuple = (), rollouts: list = ()) -> None:
        """Writes a step's metrics and a sample of its rollouts; `show` names the metrics for the progress bar.

        Raises UserError on a loss that is not finite. The state that had it, of the step before, may have been saved.
        """
        if parallel.is_main():
            for rollout in rollouts:
                self.rollouts.write(rollout)
            self.metrics.write(row)
            self.shown |= {key: row[key] for key in show if key in row}
            if row["step"]:
                self.bar.set_postfix_str(" ".join(f"{key.split('/')[-1]}={x:.3g}" for key, x in self.shown.items()),
                                         refresh=False)
        if not all(math.isfinite(row.get(key, 0.0)) for key in ("train/loss", "train/grad_norm")):
            if parallel.is_main():
                checkpoint.wait(self.manager)
            good = [step for step in checkpoint.steps(self.config.run_dir) if step < row["step"] - 1]
            raise UserError(f"the loss or its gradient is not finite at step {row['step']}; {self.dir} has "
                            + (f"good checkpoints of steps {', '.join(map(str, good))}" if good else
                               "no good checkpoint")
                            + "; start over with --resume=never and a lower --learning_rate or --max_grad_norm")

    def due(self, step: int, every: int) -> bool:
        """Whether something done every `every` steps, and at the end, falls on this step."""
        return step == self.config.num_steps or (every > 0 and step % every == 0)

    def save(self, state, meta: dict) -> None:
        """Checkpoints a replicated state, unless that step has been."""
        if parallel.is_main():
            state = parallel.unreplicate(state)
            if int(state.step) > self.saved:
                checkpoint.save(self.manager, state, meta)
                self.saved = int(state.step)

    def finish(self, state, meta: dict) -> dict:
        """Saves the last step; returns the summary of a finished run, raises Interrupted for one cut by a signal."""
        self.save(state, meta)
        step = int(parallel.unreplicate(state.step))
        if step < self.config.num_steps:
            raise Interrupted(f"{signal.Signals(self.signal).name}: saved step {step} in {self.dir}; the same command "
                              "continues", 128 + self.signal)
        if not parallel.is_main():
            return {}
        if self.resumed >= self.config.num_steps:
            print(f"{self.dir} is already at step {self.resumed}, and --num_steps={self.config.num_steps}: nothing "
                  "to do")
        summary = metrics.summarise(self.metrics.rows)
        metrics.write_json(self.dir / "summary.json", summary)
        return summary
