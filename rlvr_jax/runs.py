"""A run directory: its flags, logs and checkpoints, how it continues, and how it stops without losing anything."""

import contextlib
import dataclasses
import importlib.util
import json
import math
import pathlib
import signal
from typing import Callable, Iterator, Optional

import numpy as np

from rlvr_jax import checkpoint, metrics, parallel, stopping
from rlvr_jax.config import Interrupted, RunConfig, UserError
from rlvr_jax.learner import LearnerState

# Flags that may change between two starts of one run; any other would make it a different run.
FREE = {"run_dir", "num_steps", "resume", "save_every", "keep_last", "keep_every", "eval_every", "host_devices",
        "coordinator_address", "num_processes", "process_id", "compilation_cache", "log_rollouts",
        "keep_best", "stop_when", "stop_patience", "tensorboard"}
BY_RULE = 1  # what stopped a run, where it is not a signal: SIGINT is 2


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


def changed_flags(directory: pathlib.Path, config, free: set, flag: str) -> str:
    """Why what is in `directory`, named by `flag`, cannot be continued under this configuration; empty if it can."""
    kept = (directory / "flags.txt").read_text("utf-8").splitlines()
    old = _values([*flag_lines(type(config)()), *kept])  # a flag that is newer than the run had its default
    new = _values(flag_lines(config))
    changed = [name for name in sorted(old.keys() | new.keys())
               if old.get(name) != new.get(name) and name.removeprefix("--") not in free]
    advice = "restore them"
    if changed == ["--decay_steps"] and config.decay_steps == 0:
        advice = f"--num_steps={config.num_steps} moves the end of its schedule: add --decay_steps={old[changed[0]]}"
    was = ", ".join(f"{name} (was {old.get(name, 'unset')})" for name in changed)
    return "" if not changed else (f"{directory} was started with other flags: {was}; {advice}, choose another {flag}, "
                                   "or start over with --resume=never")


def _values(lines: list[str]) -> dict[str, str]:
    """Flags by name; --decay_steps=0, a schedule that ends with the run, as the number of updates it stands for."""
    values = dict(line.split("=", 1) for line in lines)
    if values.get("--decay_steps") == "0" and values["--schedule"] != "constant":
        values["--decay_steps"] = str(math.prod(int(values["--" + name]) for name in
                                                ("num_steps", "num_passes", "num_minibatches")))
    return values


def set_aside(directory: pathlib.Path) -> None:
    """Makes room for a new run: an earlier one is moved, not erased."""
    if directory.exists():
        number = next(i for i in range(1, 10**6) if not directory.with_name(f"{directory.name}.{i}").exists())
        directory.rename(directory.with_name(f"{directory.name}.{number}"))


def _leave(kind, *_) -> None:
    if kind not in (None, Interrupted) and parallel.is_main():  # the main process alone writes, and may fail alone
        parallel.leave_within(10)


class Run:
    """The files of one run, open for writing on the main process. Use as a context manager."""

    def __init__(self, config: RunConfig, command: str):
        if not config.run_dir:
            raise UserError("--run_dir is required: the directory that this run writes")
        self.config, self.command, self.signal, self.stop, self.shown = config, command, 0, 0, {}
        self.rules = stopping.parse(config.stop_when)
        self.dir = pathlib.Path(config.run_dir)
        newest = max(checkpoint.steps(config.run_dir), default=0)
        newest = int(parallel.broadcast(np.int32(0 if config.resume == "never" else newest)))
        self.resumed = self.saved = newest  # the step to continue from; 0: from the start
        if config.resume == "must" and not self.resumed:
            raise UserError(f"--resume=must, but {config.run_dir} has no checkpoint")
        refusal = self._refusal() if parallel.is_main() else ""
        if parallel.largest(bool(refusal)):
            raise UserError(refusal or "the main process refuses to start the run, and says why")
        if config.resume == "never" and parallel.is_main():
            set_aside(self.dir)

    def _refusal(self) -> str:
        """Why the run cannot start or go on; empty if it can."""
        if self.config.tensorboard and importlib.util.find_spec("tensorboardX") is None:
            return "--tensorboard needs tensorboardX: pip install 'rlvr_jax[tensorboard]'"
        return changed_flags(self.dir, self.config, FREE, "--run_dir") if self.resumed else ""

    def __enter__(self) -> "Run":
        with contextlib.ExitStack() as opened:
            opened.push(_leave)
            if parallel.is_main():
                self._open(opened)
            for number in (signal.SIGINT, signal.SIGTERM):
                opened.callback(signal.signal, number, signal.signal(number, self._on_signal))
            self.closing = opened.pop_all()
        return self

    def _open(self, opened: contextlib.ExitStack) -> None:
        config, keep = self.config, self.resumed or -1
        self.dir.mkdir(parents=True, exist_ok=True)
        metrics.write_whole(self.dir / "flags.txt", "\n".join(flag_lines(config)) + "\n")
        self.metrics = opened.enter_context(contextlib.closing(metrics.JsonLines(self.dir / "metrics.jsonl", keep)))
        self.rollouts = opened.enter_context(contextlib.closing(metrics.JsonLines(self.dir / "rollouts.jsonl", keep)))
        self.mirrors = [opened.enter_context(metrics.tensorboard(self.dir / "tensorboard", self.metrics.rows))
                        ] if config.tensorboard else []
        self.compilations = opened.enter_context(metrics.compilations())
        self.manager = checkpoint.open_manager(config.run_dir, config.keep_last, config.keep_every, config.keep_best)
        opened.callback(checkpoint.close, self.manager)

    def __exit__(self, *error) -> None:
        self.closing.__exit__(*error)

    def _on_signal(self, number, _frame) -> None:
        if self.signal:  # the second one means it
            raise KeyboardInterrupt
        self.signal = number

    def once(self, name: str, choose: Callable[[], int]) -> int:
        """`choose()`, a number from 0 that depends on (flags, seed) alone; a run that goes on finds it in NAME.json."""
        path, known = self.dir / f"{name}.json", -1
        if self.resumed and parallel.is_main():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not there, or damaged: choose again
                known = json.loads(path.read_text("utf-8"))[name]
        known = int(parallel.broadcast(np.int32(known)))
        if known < 0:
            known = choose()
            if parallel.is_main():
                metrics.write_json(path, {name: known})
        return known

    def restore(self, fresh: LearnerState) -> LearnerState:
        """The newest checkpoint's state, or `fresh`, as numpy arrays, the same on every process."""
        if not self.resumed:
            return fresh
        main = parallel.is_main()
        return parallel.broadcast(checkpoint.restore_state(self.config.run_dir, self.resumed, fresh) if main else fresh)

    def steps(self) -> Iterator[int]:
        """The steps to do, with a progress bar; ends early, between steps, when a signal or a stop rule asks for it."""
        quiet = not parallel.is_main()
        with metrics.progress(self.config.num_steps, self.resumed, self.command, quiet) as self.bar:
            self.stop = parallel.largest(self._ruled())  # a run that a rule has ended does not go on
            for step in range(self.resumed + 1, self.config.num_steps + 1):
                if self.stop:
                    return
                yield step
                self.bar.update()
                self.stop = parallel.largest(self.signal or self._ruled())

    def _ruled(self) -> int:
        return BY_RULE if parallel.is_main() and self._verdict() else 0

    def _verdict(self) -> Optional[dict]:
        return stopping.verdict(self.rules, self.config.stop_patience, self.metrics.rows)

    def log(self, row: dict, show: tuple = (), rollouts: list = ()) -> None:
        """Writes a step's metrics and a sample of its rollouts; `show` names the metrics for the progress bar.

        Raises UserError on a loss that is not finite. The state that had it, of the step before, may have been saved.
        """
        self._check_names(row)
        if parallel.is_main():
            for rollout in rollouts:
                self.rollouts.write(rollout)
            self.metrics.write(row | {"compilations": self.compilations()})
            for mirror in self.mirrors:
                mirror(self.metrics.rows[-1])
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

    def _check_names(self, row: dict) -> None:
        """Refuses a metric that the run does not measure, at the first row that has to have it."""
        evaluated = row["step"] == 0 or self.due(row["step"], self.config.eval_every)
        wanted = {rule.metric: "--stop_when" for rule in self.rules} | {self.config.keep_best: "--keep_best"}
        for name, flag in wanted.items():
            if name and name not in row and (evaluated if name.startswith("eval/") else row["step"] > 0):
                raise UserError(f"{flag}: this run does not measure {name}; step {row['step']} has "
                                + (", ".join(sorted(row.keys() - {"step"})) or "no metric"))

    def due(self, step: int, every: int) -> bool:
        """Whether something done every `every` steps, and at the end, falls on this step."""
        return step == self.config.num_steps or (every > 0 and step % every == 0)

    def save(self, state, meta: dict) -> None:
        """Checkpoints a replicated state, unless that step has been."""
        if parallel.is_main():
            state = parallel.unreplicate(state)
            if int(state.step) > self.saved:
                checkpoint.save(self.manager, state, meta, metrics.numbers(self.metrics.rows[-1]))
                self.saved = int(state.step)

    def finish(self, state, meta: dict) -> dict:
        """Saves the last step; returns the summary of a finished run, raises Interrupted for one cut by a signal."""
        self.save(state, meta)
        step = int(parallel.unreplicate(state.step))
        if step < self.config.num_steps and self.stop != BY_RULE:
            raise Interrupted(f"{signal.Signals(self.stop).name}: saved step {step} in {self.dir}; the same command "
                              "continues", 128 + self.stop)
        if not parallel.is_main():
            return {}
        summary, verdict = metrics.summarise(self.metrics.rows), self._verdict()
        if verdict:
            summary["stopped_by"] = verdict
            print("{dir} ended by --stop_when at step {step}: {rule} in {patience} rows in succession, the last with "
                  "{value:.4g}; it goes on only under another --stop_when or --stop_patience"
                  .format(dir=self.dir, **verdict))
        elif self.resumed >= self.config.num_steps:
            print(f"{self.dir} is already at step {self.resumed}, and --num_steps={self.config.num_steps}: nothing "
                  "to do")
        metrics.write_json(self.dir / "summary.json", summary)
        return summary
