"""A run directory: its flags, logs and checkpoints, how it continues, and how it stops without losing anything."""

import contextlib
import json
import math
import pathlib
import signal
import sys
import time
from typing import Callable, Iterator, Optional

import numpy as np

from rlvr_jax import adapters, parallel
from rlvr_jax.config import Config, flag
from rlvr_jax.errors import Interrupted, UserError
from rlvr_jax.records import LearnerState
from rlvr_jax.runs import checkpoint, files, mirrors, origin, processes, signals, stopping
from rlvr_jax.runs.flags import changed_flags, claim, write_flags
from rlvr_jax.runs.log import JsonLines, compilations, numbers, progress
from rlvr_jax.runs.summary import summarise


class RunConfig(Config):
    """A run directory: where it is, how it continues, what it keeps, and when it ends."""

    run_dir: str = flag("", "directory of this run: flags, metrics, rollouts, checkpoints", free=True)
    resume: str = flag("auto", "continue from the newest checkpoint in run_dir: never (start over), auto (if there "
                       "is one), must (error if there is none)", ["never", "auto", "must"], free=True)
    save_every: int = flag(50, "checkpoint every this many steps, and at the end; 0: only at the end", minimum=0,
                           free=True)
    save_minutes: float = flag(15.0, "also checkpoint after a step that ends this many minutes or more after the "
                               "last checkpoint, or after the start; 0: never", minimum=0, free=True)
    keep_last: int = flag(2, "checkpoints to keep, newest first", minimum=1, free=True)
    keep_every: int = flag(0, "also keep the checkpoint of every multiple of this many steps; 0: none", minimum=0,
                           free=True)
    keep_best: str = flag("", "also keep the checkpoint whose step has the highest value of this metric, such as "
                          "eval/greedy; --model=DIR@best names it; empty: none", free=True)
    stop_when: str = flag("", "rules that end the run, joined by commas, such as train/entropy<0.01,train/kl>10; "
                          "or inert: as soon as there is nothing to learn from rewards (inert_steps)", free=True)
    stop_patience: int = flag(10, "rows in succession in which a rule of stop_when has to hold", minimum=1,
                              free=True)
    inert_steps: int = flag(20, "steps in succession in which all rewards of each group are equal, after which the "
                            "run counts as inert, and says so once", minimum=1, free=True)
    log_to: str = flag("", "programs that get a copy of metrics.jsonl, joined by commas; empty: none",
                       lambda: mirrors.MIRRORS, free=True, listed=True)
    tensorboard: bool = flag(False, "as tensorboard in log_to, by the flag that earlier runs have", free=True)
    eval_every: int = flag(10, "measure held-out accuracy every this many steps, and at both ends; 0: at the ends",
                           minimum=0, free=True)


LOGS = ("metrics", "rollouts", "heldout")  # .jsonl
BY_RULE = 1  # what stopped a run, where it is not a signal: SIGINT is 2


def _leave(kind, *_) -> None:
    if kind not in (None, Interrupted) and processes.is_main():  # the main process alone writes, and may fail alone
        processes.leave_within(10)


class Run:
    """The files of one run, open for writing on the main process. Use as a context manager.

    `flags` is the whole record of the command's settings, of which `config` is a part; `first` the step of the log's
    first row: 0 where the model is measured before it is trained.
    """

    def __init__(self, config: RunConfig, flags, num_steps: int, command: str, first: int = 0):
        if not config.run_dir:
            raise UserError("--run_dir is required: the directory that this run writes")
        self.config, self.flags, self.num_steps, self.command = config, flags, num_steps, command
        self.first, self.signal, self.stop, self.shown, self.chosen = first, 0, 0, {}, {}
        self.rules, self.looping, self.saved_at = stopping.parse(config.stop_when, config.inert_steps), False, 0.0
        self.watched = {rule.metric: "--stop_when" for rule in self.rules}
        self.watched |= {config.keep_best: "--keep_best"} if config.keep_best else {}
        for name, flag in self.watched.items():
            stopping.check_metric(flag, name)
        self.dir, self.held = pathlib.Path(config.run_dir), contextlib.ExitStack()
        self.log_to = ",".join(dict.fromkeys(filter(None, [config.log_to, "tensorboard" * config.tensorboard])))
        refusal = self._refusal() if processes.is_main() else ""
        if processes.max_over_processes(bool(refusal)):
            self.held.close()
            raise UserError(refusal or "the main process refuses to start the run, and says why")
        newest = max(checkpoint.steps(config.run_dir), default=0)
        self.resumed = self.saved = int(processes.broadcast(np.int32(newest)))  # where to continue; 0: from the start
        self.noted = self.resumed > 0 or not processes.is_main()

    def _refusal(self) -> str:
        """Why the run cannot start or go on; empty if it can, and then this process holds the directory."""
        config = self.config
        if config.resume == "must" and not checkpoint.steps(config.run_dir):
            return f"--resume=must, but {config.run_dir} has no checkpoint"
        with contextlib.ExitStack() as claiming:
            claiming.push(_leave)
            try:
                mirrors.parse(self.log_to)
                self.held.enter_context(claim(self.dir, "--run_dir", config.resume))
            except UserError as error:
                return str(error)
        try:
            return self._cannot_go_on(checkpoint.steps(config.run_dir))
        except UserError as error:  # a damaged file
            return str(error)

    def _cannot_go_on(self, saved: list[int]) -> str:
        """Why a run with checkpoints of these steps cannot go on: other flags, or something of it that is lost."""
        if not saved:
            lost = origin.read(self.dir).get("saved") or (self.dir / "summary.json").is_file()
            return "" if not lost else (
                f"{self.dir} has lost its checkpoints, and would begin anew over its logs: take {self.dir}/checkpoints "
                "from a copy, choose another --run_dir, or start over with --resume=never, which moves this run aside")
        rows = {name: files.read_log(self.dir / f"{name}.jsonl", saved[-1])[0] for name in LOGS}
        logged = {row.get("step") for row in rows["metrics"]}
        gap = next((step for step in range(self.first, saved[-1] + 1) if step not in logged), None)
        if changed := changed_flags(self.dir, self.flags, "--run_dir", self.command):
            return changed
        if gap is None:
            files.read_steps(self.dir / "metrics.jsonl", keep_step=saved[-1])
            for name, count in checkpoint.read_meta(self.config.run_dir, saved[-1]).get("rows", {}).items():
                if len(rows[name]) != count:
                    print(f"warning: {self.dir / name}.jsonl has {len(rows[name])} of the {count} rows that it had at "
                          f"step {saved[-1]}; the run goes on, and its pages show what is there", file=sys.stderr)
            return ""
        whole = [step for step in saved if step < gap]
        later = ", ".join(str(checkpoint.directory(self.config.run_dir) / str(step)) for step in saved if step >= gap)
        return (f"{self.dir / 'metrics.jsonl'} has no row of step {gap}, though there is a checkpoint of step "
                f"{saved[-1]}: take the file from a copy, or "
                + (f"go back to the checkpoint of step {whole[-1]} by moving away {later}" if whole else
                   "start over with --resume=never, which moves this run aside"))

    def __enter__(self) -> "Run":
        with contextlib.ExitStack() as opened:
            opened.push(_leave)
            opened.push(self.held)
            opened.enter_context(signals.acknowledged(
                lambda: "stopping after this step" if self.looping else "stopping"))
            if processes.is_main():
                self._open(opened)
            for number in (signal.SIGINT, signal.SIGTERM):
                opened.callback(signal.signal, number, signal.signal(number, self._on_signal))
            self.closing = opened.pop_all()
        return self

    def _open(self, opened: contextlib.ExitStack) -> None:
        config, keep = self.config, self.resumed or -1
        write_flags(self.dir / "flags.txt", self.flags)
        self.metrics, self.rollouts, self.heldout = (
            opened.enter_context(contextlib.closing(JsonLines(self.dir / f"{name}.jsonl", keep)))
            for name in LOGS)
        self._note_start()
        self.mirrors = [opened.enter_context(mirrors.MIRRORS[name](self.dir, self.metrics.rows))
                        for name in mirrors.parse(self.log_to)]
        self.compilations = opened.enter_context(compilations())
        self.manager = checkpoint.open_manager(config.run_dir, config.keep_last, config.keep_every, config.keep_best)
        opened.callback(self._note_saved)
        opened.callback(checkpoint.close, self.manager)

    def _note_start(self) -> None:
        """origin.json: the command, and the machine and commit of the first start and of each later one that has steps
        to do; code.diff, or code-STEP.diff of a later start: what differs from the commit."""
        starts = origin.read(self.dir).get("starts", []) if self.resumed else []
        if self.resumed < self.num_steps:
            start = {"step": self.resumed} | origin.machine()
            if start["commit"].endswith("-dirty"):
                start["diff"] = f"code-{self.resumed}.diff" if self.resumed else "code.diff"
                files.write_whole(self.dir / start["diff"], origin.git("diff", "HEAD", "--no-color", "--no-ext-diff"))
            origin.write(self.dir, self.command, starts=[*starts, start], saved=bool(self.resumed))

    def _note_saved(self) -> None:
        """Once a checkpoint is whole on the disk, origin.json says so: a run that loses it is not begun anew."""
        if not self.noted and checkpoint.steps(self.config.run_dir):
            self.noted = True
            origin.write(self.dir, **{"command": self.command} | origin.read(self.dir) | {"saved": True})

    def __exit__(self, *error) -> None:
        self.closing.__exit__(*error)
        if error[0] is KeyboardInterrupt and self.signal and not self.looping:
            raise Interrupted(f"{signal.Signals(self.signal).name}: stopped before the first step; the same command "
                              f"starts {self.dir} again", 128 + self.signal) from None

    def _on_signal(self, number, _frame) -> None:
        again, self.signal = self.signal, number
        if again or not self.looping:  # the second one means it; before the first step there is nothing to save
            raise KeyboardInterrupt

    def once(self, name: str, make: Callable[[], dict]) -> dict:
        """The record `make()`, which depends on (flags, seed) alone; a run that goes on finds it in NAME.json.
        Checkpoints keep its digest. Raises UserError where NAME.json is not the record that the run was begun with."""
        path, known, wanted = self.dir / f"{name}.json", {}, None
        if self.resumed and processes.is_main():
            with contextlib.suppress(UserError):  # not there, or damaged: make it again
                known = files.read_json(path)
            chosen = checkpoint.read_meta(self.config.run_dir, self.resumed).get("chosen", {})  # an old run has none
            wanted = chosen.get(name)
        known = json.loads(processes.broadcast_text(json.dumps(known)))
        made = known or make()
        self.chosen[name] = checkpoint.text_digest(made)
        if wanted not in (None, self.chosen[name]):
            raise UserError(f"{path} is not what this run was begun with: take the file from a copy, or remove it and "
                            "it is made again; --resume=never starts over, and moves this run aside")
        if not known and processes.is_main():
            files.write_json(path, made)
        return made

    def restore(self, fresh: LearnerState) -> LearnerState:
        """The newest checkpoint's state, or `fresh`, as numpy arrays, the same on every process."""
        if not self.resumed:
            return fresh
        main = processes.is_main()
        return processes.broadcast(checkpoint.restore_state(self.config.run_dir, self.resumed, fresh) if main else fresh)

    def steps(self) -> Iterator[int]:
        """The steps to do, with a progress bar; ends early, between steps, when a signal or a stop rule asks for it."""
        self.stop = processes.max_over_processes(self._ruled())  # a run that a rule has ended does not go on
        if self.stop or self.resumed >= self.num_steps:
            return
        if self.resumed and processes.is_main():
            print(f"{self.dir}: going on from step {self.resumed}")
        with progress(self.num_steps, self.resumed, self.command, not processes.is_main()) as self.bar:
            self.looping, self.saved_at = True, time.monotonic()
            for step in range(self.resumed + 1, self.num_steps + 1):
                yield step
                self._note_saved()
                self.bar.update()
                self.stop = processes.max_over_processes(self.signal or self._ruled())
                if self.stop:
                    return

    def _ruled(self, *fresh: dict) -> int:
        return BY_RULE if processes.is_main() and self._verdict(*fresh) else 0

    def _verdict(self, *fresh: dict) -> Optional[dict]:
        """What --stop_when says of the rows of the log, and of `fresh` ones after them."""
        return stopping.verdict(self.rules, self.config.stop_patience, [*self.metrics.rows, *fresh])

    def log(self, row: dict, show: tuple = (), rollouts: list = ()) -> None:
        """Writes a step's metrics and a sample of its rollouts; `show` names the metrics for the progress bar. Raises
        UserError on a loss or gradient that is not finite; the state that had it may have been saved before."""
        self._check_names(row)
        if processes.is_main():
            for rollout in rollouts:
                self.rollouts.write(rollout)
            self.metrics.write(row | self.compilations())
            for mirror in self.mirrors:
                mirror(self.metrics.rows[-1])
            self.shown |= {key: f"{row[key]:.2f}".removeprefix("0") for key in show if key in row}
            if row["step"]:
                self.bar.set_postfix_str(" ".join(f"{key.split('/')[-1]} {x}" for key, x in self.shown.items()),
                                         refresh=False)
        if not all(math.isfinite(row.get(key, 0.0)) for key in ("train/loss", "train/grad_norm")):
            over = (f" (float16 has no number for {row['train/overflow']:.1%} of the tokens: --dtype=bfloat16 or "
                    "float32 reaches further)") if row.get("train/overflow") else ""
            raise self._diverged(f"the loss or its gradient is not finite at step {row['step']}{over}", row["step"] - 2)

    def _diverged(self, what: str, last: int) -> UserError:
        """The error of a run that cannot go on; checkpoints up to step `last` are good."""
        if processes.is_main():
            checkpoint.wait(self.manager)
        good = [step for step in checkpoint.steps(self.config.run_dir) if step <= last]
        return UserError(f"{what}; {self.dir} has "
                         + (f"good checkpoints of steps {', '.join(map(str, good))}" if good else "no good checkpoint")
                         + "; start over with --resume=never and a lower --learning_rate or --max_grad_norm")

    def keep_heldout(self, step: int, rows: list[dict]) -> None:
        """Writes the greedy completions of an evaluation (`measure.sample_and_grade`) and, in the first row, the problems."""
        if processes.is_main():
            asked = {} if self.heldout.rows else {key + "s": [row[key] for row in rows] for key in ("prompt", "answer")}
            self.heldout.write({"step": step} | asked | {"completions": [row["completion"] for row in rows],
                                                         "correct": [int(row["correct"]) for row in rows]})
            del self.heldout.rows[1:]  # those of a long run would fill the memory

    def _check_names(self, row: dict) -> None:
        """Refuses a metric that the run does not measure, at the first row that has to have it."""
        evaluated = row["step"] == 0 or self.due(row["step"], self.config.eval_every)
        for name, flag in self.watched.items():
            if name not in row and (evaluated if name.startswith("eval/") else row["step"] > 0):
                raise UserError(f"{flag}: this run does not measure {name}; step {row['step']} has "
                                + (", ".join(sorted(row.keys() - {"step"})) or "no metric"))

    def due(self, step: int, every: int, row: Optional[dict] = None) -> bool:
        """Whether something done every `every` steps, and at the end, falls on this step. `row` is what is known of the
        step so far: by it a stop rule can make this step the end."""
        ends = bool(row and self.rules) and processes.max_over_processes(self._ruled(row)) > 0
        return ends or step == self.num_steps or (every > 0 and step % every == 0)

    def save_due(self, step: int) -> bool:
        """Whether a checkpoint falls on this step, by its number or by the main process's clock."""
        late = processes.is_main() and 0 < 60 * self.config.save_minutes <= time.monotonic() - self.saved_at
        return self.due(step, self.config.save_every) or processes.max_over_processes(late) > 0

    def save(self, state, meta: dict) -> None:
        """Checkpoints a placed state, unless that step has been. Raises UserError where it is not finite."""
        step = int(parallel.fetch_state(state.step))
        if step <= self.saved:
            return
        state = parallel.fetch_state(state)  # on every process: what is divided is gathered from all
        if processes.max_over_processes(not checkpoint.finite(state)):  # the processes stop together
            raise self._diverged(f"the parameters or Adam's moments are not finite after step {step}, which is not "
                                 "saved", step - 1)
        if processes.is_main():
            for log in (self.metrics, self.rollouts, self.heldout):  # a checkpoint without its rows cannot be continued
                files.sync(log.file)
            rows = {log.path.stem: log.count for log in (self.rollouts, self.heldout)}
            checkpoint.save(self.manager, state, meta | {"chosen": self.chosen, "rows": rows},
                            numbers(self.metrics.rows[-1]))
        self.saved, self.saved_at = step, time.monotonic()

    def finish(self, state, meta: dict) -> dict:
        """Saves the last step; returns the summary of a finished run, raises Interrupted for one cut by a signal."""
        self.save(state, meta)
        step = int(parallel.fetch_state(state.step))
        if step < self.num_steps and self.stop != BY_RULE:
            raise Interrupted(f"{signal.Signals(self.stop).name}: saved step {step} in {self.dir}; the same command "
                              "continues", 128 + self.stop)
        if not processes.is_main():
            return {}
        checkpoint.wait(self.manager)  # a summary says that there was a checkpoint
        summary, verdict = summarise(self.metrics.rows), self._verdict()
        summary["trained"] = parallel.size(adapters.split(state.params)[0])
        if verdict:
            summary["stopped_by"] = verdict
            print("{dir} ended by --stop_when at step {step}: {rule} in {patience} rows in succession, the last with "
                  "{value:.4g}; it goes on only under another --stop_when, --stop_patience or --inert_steps"
                  .format(dir=self.dir, **verdict))
        elif self.resumed >= self.num_steps:
            print(f"{self.dir} is already at step {self.resumed}, and --num_steps={self.num_steps}: nothing to do")
        files.write_json(self.dir / "summary.json", summary)
        return summary
