"""A run directory: its flags, logs and checkpoints, how a run continues, and how it stops without losing anything."""

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
from rlvr_jax.runs.log import JsonLines, count_compilations, numeric_metrics, progress
from rlvr_jax.runs.summary import summarise


class RunConfig(Config):
    """The run directory: where it is, how the run continues, which checkpoints it keeps, and when it ends."""

    run_dir: str = flag("", "directory of this run: flags, metrics, rollouts, checkpoints", free=True)
    resume: str = flag("auto", "continue from the newest checkpoint in run_dir: never (start over), auto (if there "
                       "is one), must (error if there is none)", ["never", "auto", "must"], free=True)
    save_every: int = flag(50, "checkpoint every this many steps, and at the end; 0: only at the end", minimum=0,
                           free=True)
    save_minutes: float = flag(15.0, "also checkpoint after a step that ends this many minutes or more after the "
                               "last checkpoint, or after the start; 0: never", minimum=0, free=True)
    keep_last: int = flag(2, "number of newest checkpoints to keep", minimum=1, free=True)
    keep_every: int = flag(0, "also keep the checkpoint of every multiple of this many steps; 0: none", minimum=0,
                           free=True)
    keep_best: str = flag("", "also keep the checkpoint whose step has the highest value of this metric, such as "
                          "eval/greedy; --model=DIR@best names it; empty: none", free=True)
    stop_when: str = flag("", "rules that end the run, joined by commas, such as train/entropy<0.01,train/kl>10; "
                          "the rule inert: inert_steps steps with nothing but zero-variance groups", free=True)
    stop_patience: int = flag(10, "successive log rows in which a rule of stop_when has to hold", minimum=1, free=True)
    inert_steps: int = flag(20, "successive steps with nothing but zero-variance groups, after which the run counts as "
                            "inert, and prints a warning once", minimum=1, free=True)
    log_to: str = flag("", "programs that get a copy of metrics.jsonl, joined by commas; empty: none",
                       lambda: mirrors.MIRRORS, free=True, listed=True)
    tensorboard: bool = flag(False, "the same as --log_to=tensorboard, for commands of earlier versions", free=True)
    eval_every: int = flag(10, "measure held-out accuracy every this many steps, after the last, and (not in "
                           "pretrain) before the first; 0: only before and after", minimum=0, free=True)


LOGS = ("metrics", "rollouts", "heldout")  # NAME.jsonl in the run directory
BY_RULE = 1  # `Run.stop` if a stop rule ended the run; no signal that ends a run has this number (SIGINT is 2)


class Run:
    """The files of one run, open for writing on the main process. Use it as a context manager. `flags` is the whole
    configuration of scripts.COMMAND, which contains `config`. `first` is the first step that the log has: 0 if the
    model is measured before training, else 1. UserError if the run cannot start or continue."""

    def __init__(self, config: RunConfig, flags, num_steps: int, command: str, first: int = 0):
        if not config.run_dir:
            raise UserError("--run_dir is required: the directory that this run writes")
        self.config, self.flags, self.num_steps, self.command, self.first = config, flags, num_steps, command, first
        self.dir = pathlib.Path(config.run_dir)
        self.rules = stopping.parse_rules(config.stop_when, config.inert_steps)
        needed = [(rule.metric, "--stop_when") for rule in self.rules] + [(config.keep_best, "--keep_best")]
        self.needed_metrics = {metric: source for metric, source in needed if metric}
        for metric, source in self.needed_metrics.items():
            stopping.check_metric(source, metric)
        names = [config.log_to, "tensorboard" if config.tensorboard else ""]
        self.log_to = ",".join(dict.fromkeys(filter(None, names)))
        self.signal, self.stop = 0, 0  # last signal received; why training ended early: BY_RULE or that signal
        self.looping, self.saved_at = False, 0.0  # whether training has begun; time of the last checkpoint
        self.shown, self.record_digests = {}, {}  # texts of the progress bar; digests of `make_once`'s records
        self.lock = contextlib.ExitStack()
        refusal = self._reason_not_to_start() if processes.is_main() else ""
        if processes.max_over_processes(bool(refusal)):
            self.lock.close()
            raise UserError(refusal or "the main process refuses to start the run, and says why")
        newest = max(checkpoint.steps(config.run_dir), default=0)
        # The step that this run continues from, 0 for none; the step of the newest checkpoint.
        self.resumed = self.saved = int(processes.broadcast(np.int32(newest)))
        self.noted = self.resumed > 0 or not processes.is_main()  # nothing is left for `_note_saved` to do

    def _reason_not_to_start(self) -> str:
        """Returns why the run cannot start or continue. Returns "" if it can; `self.lock` then holds the lock."""
        if self.config.resume == "must" and not checkpoint.steps(self.config.run_dir):
            return f"--resume=must, but {self.config.run_dir} has no checkpoint"
        with processes.leave_after_error():
            try:
                mirrors.parse_mirrors(self.log_to)
                self.lock.enter_context(claim(self.dir, "--run_dir", self.config.resume))
                return self._reason_not_to_continue(checkpoint.steps(self.config.run_dir))
            except UserError as error:  # a wrong name, a directory in use, or a damaged file
                return str(error)

    def _reason_not_to_continue(self, saved: list[int]) -> str:
        """Returns why a run with checkpoints at the steps `saved` (none: a new run) cannot continue; "" if it can."""
        if not saved:
            lost = origin.read(self.dir).get("saved") or (self.dir / "summary.json").is_file()
            return "" if not lost else (
                f"{self.dir} has lost its checkpoints, and would start over and overwrite its logs: take "
                f"{self.dir}/checkpoints from a copy, choose another --run_dir, or start over with --resume=never, "
                "which moves this run aside")
        rows = {name: files.read_log(self.dir / f"{name}.jsonl", saved[-1])[0] for name in LOGS}
        logged = {row.get("step") for row in rows["metrics"]}
        gap = next((step for step in range(self.first, saved[-1] + 1) if step not in logged), None)
        if changed := changed_flags(self.dir, self.flags, "--run_dir", self.command):
            return changed
        if gap is None:
            files.read_steps(self.dir / "metrics.jsonl", keep_step=saved[-1])  # UserError if steps are lost or doubled
            for name, count in checkpoint.read_meta(self.config.run_dir, saved[-1]).get("rows", {}).items():
                if len(rows[name]) != count:
                    print(f"warning: {self.dir / name}.jsonl has {len(rows[name])} of the {count} rows that it had at "
                          f"step {saved[-1]}; the run continues, and its pages show what is there", file=sys.stderr)
            return ""
        usable = [step for step in saved if step < gap]
        later = ", ".join(str(checkpoint.directory(self.config.run_dir) / str(step)) for step in saved if step >= gap)
        return (f"{self.dir / 'metrics.jsonl'} has no row of step {gap}, though there is a checkpoint of step "
                f"{saved[-1]}: take the file from a copy, or "
                + (f"go back to the checkpoint of step {usable[-1]} by moving away {later}" if usable else
                   "start over with --resume=never, which moves this run aside"))

    def __enter__(self) -> "Run":
        with contextlib.ExitStack() as opened:
            opened.enter_context(processes.leave_after_error())
            opened.push(self.lock)
            opened.enter_context(signals.acknowledge_signals(
                lambda: "stopping after this step" if self.looping else "stopping"))
            if processes.is_main():
                self._open(opened)
            for number in (signal.SIGINT, signal.SIGTERM):
                earlier_handler = signal.signal(number, self._on_signal)
                opened.callback(signal.signal, number, earlier_handler)  # sets it again at exit
            self.closing = opened.pop_all()  # what `__exit__` closes
        return self

    def _open(self, opened: contextlib.ExitStack) -> None:
        """Opens the run's files on the main process. `opened` closes them in reverse order, the checkpoints first."""
        config, keep = self.config, self.resumed or -1  # -1 drops all rows, since step 0 has a row too
        write_flags(self.dir / "flags.txt", self.flags)
        logs = (contextlib.closing(JsonLines(self.dir / f"{name}.jsonl", keep)) for name in LOGS)
        self.metrics, self.rollouts, self.heldout = map(opened.enter_context, logs)
        self._note_start()
        self.mirrors = [opened.enter_context(mirrors.MIRRORS[name](self.dir, self.metrics.rows))
                        for name in mirrors.parse_mirrors(self.log_to)]
        self.take_compilations = opened.enter_context(count_compilations())
        self.manager = checkpoint.open_manager(config.run_dir, config.keep_last, config.keep_every, config.keep_best)
        opened.callback(self._note_saved)
        opened.callback(self.manager.close)
        opened.callback(checkpoint.wait, self.manager)

    def _note_start(self) -> None:
        """Adds this start to origin.json, unless all steps are done. If the checkout differs from its commit, writes
        the difference to code.diff, or to code-STEP.diff for a run that continues from STEP."""
        starts = origin.read(self.dir).get("starts", []) if self.resumed else []
        if self.resumed < self.num_steps:
            start = {"step": self.resumed} | origin.machine()
            if start["commit"].endswith("-dirty"):
                start["diff"] = f"code-{self.resumed}.diff" if self.resumed else "code.diff"
                diff = origin.run_git("diff", "HEAD", "--no-color", "--no-ext-diff")
                files.write_whole(self.dir / start["diff"], diff)
            origin.write(self.dir, self.command, starts=[*starts, start], saved=bool(self.resumed))

    def _note_saved(self) -> None:
        """Records in origin.json that a checkpoint exists: a run that then loses all its checkpoints is refused."""
        if not self.noted and checkpoint.steps(self.config.run_dir):
            self.noted = True
            origin.write(self.dir, **{"command": self.command} | origin.read(self.dir) | {"saved": True})

    def __exit__(self, *error) -> None:
        self.closing.__exit__(*error)
        if error[0] is KeyboardInterrupt and self.signal and not self.looping:
            raise Interrupted(f"{signal.Signals(self.signal).name}: stopped before the first step; the same command "
                              f"starts {self.dir} again", 128 + self.signal) from None

    def _on_signal(self, number, _frame) -> None:
        earlier, self.signal = self.signal, number
        if earlier or not self.looping:  # stop without saving: at a second signal, or if there is nothing to save yet
            raise KeyboardInterrupt

    def make_once(self, name: str, make: Callable[[], dict]) -> dict:
        """Returns a record that a run makes once: new runs call `make()` and write NAME.json, resumed runs read it.
        If the file is lost, `make()` is called again, so it may depend on flags and seed only. Raises UserError if the
        record differs from the one whose digest the checkpoint has."""
        path, record, digest = self.dir / f"{name}.json", {}, None
        if self.resumed and processes.is_main():
            with contextlib.suppress(UserError):  # a missing or damaged file is made again
                record = files.read_json(path)
            meta = checkpoint.read_meta(self.config.run_dir, self.resumed)
            digest = meta.get("chosen", {}).get(name)  # None if an earlier version saved the checkpoint
        record = json.loads(processes.broadcast_text(json.dumps(record)))
        is_new = not record
        record = record or make()
        self.record_digests[name] = checkpoint.text_digest(record)
        if digest not in (None, self.record_digests[name]):
            raise UserError(f"{path} is not what this run was started with: take the file from a copy, or remove it "
                            "to have it made again; --resume=never starts over, and moves this run aside")
        if is_new and processes.is_main():
            files.write_json(path, record)
        return record

    def restore(self, fresh: LearnerState) -> LearnerState:
        """Returns the state of the newest checkpoint as numpy arrays on every process; `fresh` if there is none."""
        if not self.resumed:
            return fresh
        state = checkpoint.restore_state(self.config.run_dir, self.resumed, fresh) if processes.is_main() else fresh
        return processes.broadcast(state)

    def steps(self) -> Iterator[int]:
        """Yields the numbers of the remaining steps and shows a progress bar. Ends early, and sets `self.stop`, after a
        step in which a signal arrived or a rule of --stop_when holds. A run that a rule has ended has no more steps."""
        self.stop = processes.max_over_processes(BY_RULE if self._verdict() else 0)
        if self.stop or self.resumed >= self.num_steps:
            return
        if self.resumed and processes.is_main():
            print(f"{self.dir}: continuing from step {self.resumed}")
        with progress(self.num_steps, self.resumed, self.command, not processes.is_main()) as self.bar:
            self.looping, self.saved_at = True, time.monotonic()
            for step in range(self.resumed + 1, self.num_steps + 1):
                yield step
                self._note_saved()
                self.bar.update()
                self.stop = processes.max_over_processes(self.signal or (BY_RULE if self._verdict() else 0))
                if self.stop:
                    return

    def _verdict(self, *new_rows: dict) -> Optional[dict]:
        """Returns which rule of --stop_when ends the run (`stopping.verdict`), given the log's rows and `new_rows`.
        None if no rule does, and on all processes but the main one, which alone has the log."""
        rows = [*self.metrics.rows, *new_rows] if processes.is_main() else []
        return stopping.verdict(self.rules, self.config.stop_patience, rows)

    def log(self, row: dict, show: tuple = (), rollouts: list = ()) -> None:
        """Writes `row`, {name: metric} of a step, to metrics.jsonl and the rows `rollouts` to rollouts.jsonl; the
        progress bar shows the metrics named in `show`. Raises UserError if a metric of --stop_when or --keep_best is
        missing, or the loss or its gradient is not finite: the parameters before the step may be bad already."""
        self._check_names(row)
        if processes.is_main():
            for rollout in rollouts:
                self.rollouts.write(rollout)
            self.metrics.write(row | self.take_compilations())
            for mirror in self.mirrors:
                mirror(self.metrics.rows[-1])
            self.shown |= {key: f"{row[key]:.2f}".removeprefix("0") for key in show if key in row}  # as .75
            if row["step"]:
                self.bar.set_postfix_str(" ".join(f"{key.split('/')[-1]} {text}" for key, text in self.shown.items()),
                                         refresh=False)
        if not all(math.isfinite(row.get(key, 0.0)) for key in ("train/loss", "train/grad_norm")):
            hint = (f" (float16 has no number for {row['train/overflow']:.1%} of the tokens: --dtype=bfloat16 or "
                    "float32 reaches further)") if row.get("train/overflow") else ""
            raise self._divergence(f"the loss or its gradient is not finite at step {row['step']}{hint}",
                                   row["step"] - 2)

    def _divergence(self, what: str, last_good: int) -> UserError:
        """Returns the error of a run that diverged; `what` says how. Checkpoints up to step `last_good` are good."""
        if processes.is_main():
            checkpoint.wait(self.manager)
        good = [step for step in checkpoint.steps(self.config.run_dir) if step <= last_good]
        return UserError(f"{what}; {self.dir} has "
                         + (f"good checkpoints of steps {', '.join(map(str, good))}" if good else "no good checkpoint")
                         + "; start over with --resume=never and a lower --learning_rate or --max_grad_norm")

    def keep_heldout(self, step: int, rows: list[dict]) -> None:
        """Writes an evaluation as one row of heldout.jsonl. `rows` has a dict for each problem: its "prompt", "answer",
        "completion" and "correct". Prompts and answers are written only in the first row of the file."""
        if processes.is_main():
            column = lambda key: [row[key] for row in rows]
            is_first = not self.heldout.rows
            problems = {"prompts": column("prompt"), "answers": column("answer")} if is_first else {}
            self.heldout.write({"step": step} | problems | {"completions": column("completion"),
                                                            "correct": [int(x) for x in column("correct")]})
            del self.heldout.rows[1:]  # from memory, not from the file: all rows of a long run would be too many

    def _check_names(self, row: dict) -> None:
        """Raises UserError if this row lacks a metric that --stop_when or --keep_best needs."""
        evaluated = row["step"] == 0 or self.due(row["step"], self.config.eval_every)
        for name, source in self.needed_metrics.items():
            if name not in row and (evaluated if name.startswith("eval/") else row["step"] > 0):
                raise UserError(f"{source}: this run does not measure {name}; step {row['step']} has "
                                + (", ".join(sorted(row.keys() - {"step"})) or "no metric"))

    def due(self, step: int, every: int, row: Optional[dict] = None) -> bool:
        """Whether to act after this step, for an action that recurs every `every` steps (0: never) and at the end. The
        end is the last step or, which is checked only if `row` has the step's metrics, one where a stop rule fires."""
        stops = bool(row and self.rules) and processes.max_over_processes(self._verdict(row) is not None) > 0
        return stops or step == self.num_steps or (every > 0 and step % every == 0)

    def save_due(self, step: int) -> bool:
        """Whether a checkpoint is due after this step, by its number or by the main process's clock."""
        late = processes.is_main() and 0 < 60 * self.config.save_minutes <= time.monotonic() - self.saved_at
        return self.due(step, self.config.save_every) or processes.max_over_processes(late) > 0

    def save(self, state, meta: dict) -> None:
        """Writes a checkpoint of a state on devices, if its step has none yet. UserError if a number is not finite."""
        step = int(parallel.fetch_state(state.step))
        if step <= self.saved:
            return
        state = parallel.fetch_state(state)  # every process takes part in gathering a divided state
        if processes.max_over_processes(not checkpoint.is_finite(state)):  # all processes stop together
            raise self._divergence(f"the parameters or Adam's moments are not finite after step {step}, which is not "
                                   "saved", step - 1)
        if processes.is_main():
            for log in (self.metrics, self.rollouts, self.heldout):  # the checkpoint relies on their rows
                files.sync(log.file)
            rows = {log.path.stem: log.count for log in (self.rollouts, self.heldout)}
            checkpoint.save(self.manager, state, meta | {"chosen": self.record_digests, "rows": rows},
                            numeric_metrics(self.metrics.rows[-1]))
        self.saved, self.saved_at = step, time.monotonic()

    def finish(self, state, meta: dict) -> dict:
        """Saves a checkpoint. The main process writes summary.json and returns its content; other processes return {}.
        Raises Interrupted if a signal stopped the run before the last step."""
        self.save(state, meta)
        step = int(parallel.fetch_state(state.step))
        if step < self.num_steps and self.stop != BY_RULE:
            raise Interrupted(f"{signal.Signals(self.stop).name}: saved step {step} in {self.dir}; the same command "
                              "continues", 128 + self.stop)
        if not processes.is_main():
            return {}
        checkpoint.wait(self.manager)  # summary.json implies a checkpoint, so the checkpoint has to be complete first
        summary, verdict = summarise(self.metrics.rows), self._verdict()
        summary["trained"] = parallel.size(adapters.split(state.params)[0])  # number of trained parameters
        if verdict:
            summary["stopped_by"] = verdict
            print("{dir} ended by --stop_when at step {step}: {rule} in {patience} successive rows, last with "
                  "{value:.4g}; only with another --stop_when, --stop_patience or --inert_steps does it continue"
                  .format(dir=self.dir, **verdict))
        elif self.resumed >= self.num_steps:
            print(f"{self.dir} is already at step {self.resumed}, and --num_steps={self.num_steps}: nothing to do")
        files.write_json(self.dir / "summary.json", summary)
        return summary
