"""Metrics as JSON lines, a progress line, and the summary drawn from both ends of the log."""

import contextlib
import datetime
import json
import math
import os
import pathlib
import platform
import shutil
import subprocess
import time
from typing import Callable, Iterator, Optional

import jax
import numpy as np
import tqdm

from rlvr_jax.objectives import live_groups

# Progress: steps, <time left, what is measured, and a bar of the columns that are left.
LINE = "{desc}: {n_fmt}/{total_fmt} <{remaining}{postfix} |{bar}|"
COMPILING = "{desc}: {n_fmt}/{total_fmt} compiling…"
SATURATED = 0.99  # a batch with this training accuracy counts as saturated


class JsonLines:
    """An append-only file of one JSON object a line. Lines reach the file as they are written."""

    def __init__(self, path: pathlib.Path, keep_step: float):
        """Opens the file and cuts it after its last row whose `step`, 0 where it has none, is at most `keep_step`."""
        self.rows, size = [], 0
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    row = json.loads(line)
                except ValueError:  # the line a killed process was writing
                    break
                if row.get("step", 0) > keep_step or not line.endswith(b"\n"):
                    break
                self.rows.append(row)
                size += len(line)
            os.truncate(path, size)
        self.path, self.file = path, open(path, "ab", buffering=0)  # what a full disk refused is not kept for later

    def write(self, row: dict) -> None:
        clean = {key: _plain(value) for key, value in row.items()}
        self.rows.append(clean)
        line = (json.dumps(clean, ensure_ascii=False) + "\n").encode()
        with naming(self.path):
            while line:
                line = line[self.file.write(line):]

    def close(self) -> None:
        self.file.close()


def _plain(value):
    """JSON has no NaN, and no numpy numbers."""
    if isinstance(value, (np.generic, float)):
        value = value.item() if isinstance(value, np.generic) else value
        return None if isinstance(value, float) and not math.isfinite(value) else value
    return value


@contextlib.contextmanager
def tensorboard(directory: pathlib.Path, rows: list) -> Iterator[Callable[[dict], None]]:
    """`write(row)` to a mirror of the log for TensorBoard, which is made anew from `rows`: no step is there twice."""
    from tensorboardX import event_file_writer  # optional; its SummaryWriter's thread hangs on a full disk
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary

    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    writer = event_file_writer.EventsWriter(str(directory / "events"))

    def write(row: dict) -> None:
        values = [Summary.Value(tag=key, simple_value=value) for key, value in numbers(row).items()]
        with naming(directory):
            writer.write_event(Event(step=row["step"], wall_time=time.time(), summary=Summary(value=values)))
            writer.flush()

    try:  # a TensorBoard that is open drops what it has read of this directory
        writer.write_event(Event(step=0, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)))
        for row in rows:
            write(row)
        yield write
    finally:
        with naming(directory):
            writer.close()


def numbers(row: dict) -> dict:
    """The metrics of a row: all that is a number, without the step."""
    return {key: value for key, value in row.items() if isinstance(value, (int, float)) and key != "step"}


@contextlib.contextmanager
def compilations() -> Iterator[Callable[[], int]]:
    """`taken()`: programs built since it was last asked, compiled or from a cache. After the first steps, none."""
    built = []

    def listen(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            built.append(duration)

    def taken() -> int:
        count = len(built)
        built.clear()
        return count

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield taken
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


class Progress(tqdm.tqdm):
    """A line with an ETA, from the second update on: the first one takes the compilation with it."""

    def update(self, n: float = 1) -> None:
        if self.disable or self.bar_format == LINE:
            super().update(n)
        else:
            self.n += n
            self.initial, self.bar_format = self.n, LINE  # the rate is that of what comes after `initial`
            self.last_print_n, self.last_print_t = self.n, self._time()
            self.refresh()


def progress(total: int, start: int = 0, what: str = "", quiet: bool = False, unit: str = "step") -> Progress:
    """A line of progress; on a file instead of a terminal it is repeated twice a minute."""
    return Progress(total=total, initial=start, desc=what, unit=unit, dynamic_ncols=True, disable=quiet, smoothing=0.1,
                    mininterval=0.2 if os.isatty(2) else 30.0, bar_format=COMPILING if start < total else LINE)


@contextlib.contextmanager
def timed(seconds: dict, phase: str):
    """Adds the wall-clock seconds of the block to `seconds["seconds/PHASE"]`."""
    start, key = time.perf_counter(), f"seconds/{phase}"
    yield
    seconds[key] = seconds.get(key, 0.0) + time.perf_counter() - start


def throughput(seconds: dict, rollouts) -> dict:
    """Seconds by phase, and completion tokens a second of sampling and of the update."""
    tokens = int(np.sum(rollouts.completion_mask))
    rates = {f"{phase}/tokens_per_second": tokens / seconds[f"seconds/{phase}"] for phase in ("sample", "update")}
    return rates | seconds


def describe(rollouts, scored, group_size: int) -> dict:
    """What a step's rollouts looked like, from host arrays: rewards, live groups, lengths, repetition."""
    reward, correct = scored.reward, scored.correct > 0
    lengths, groups = rollouts.completion_mask.sum(-1), reward.reshape(-1, group_size)
    return {"train/graded_by": scored.graded_by[0], "train/grader_timeouts": int(scored.timed_out.sum()),
            "train/accuracy": correct.mean(), "train/reward_mean": reward.mean(), "train/reward_std": reward.std(),
            "train/live_groups": live_groups(groups).mean(), "train/completion_length": lengths.mean(),
            "train/length_correct": lengths[correct].mean() if correct.any() else math.nan,
            "train/length_wrong": lengths[~correct].mean() if not correct.all() else math.nan,
            "train/truncated": 1.0 - rollouts.ended.mean(),
            "train/repetition": repetition(rollouts.completions, rollouts.completion_mask)}


def repetition(completions: np.ndarray, mask: np.ndarray, n: int = 4) -> float:
    """Share of n-grams that occurred before in the same completion; near 1 when a policy degenerates into loops.

    Rows of `mask` are true up to a completion's end. N-grams are compared by a 64-bit hash of row and tokens.
    """
    width = max(completions.shape[1] - n + 1, 0)
    factors = np.random.default_rng(0).integers(1, 2**63, n + 1, np.uint64)
    hashes = factors[n] * np.arange(len(completions), dtype=np.uint64)[:, None]
    for i in range(n):
        hashes = hashes + factors[i] * completions[:, i : i + width].astype(np.uint64)
    hashes = np.sort(hashes[mask[:, n - 1 :]])
    return float(np.sum(hashes[1:] == hashes[:-1]) / max(len(hashes), 1))


def rollout_rows(config, step: int, problems: list, rollouts, scored, advantages) -> list[dict]:
    """At most `log_rollouts` of a step's rollouts as rows of rollouts.jsonl: whole groups at even distances, or a part
    of the first one. `group` is the group's place in the step, `group_mean` the mean reward of all its rollouts."""
    found, size = [], config.group_size
    means = scored.reward.reshape(-1, size).mean(-1)
    groups = np.linspace(0, len(means) - 1, min(max(config.log_rollouts // size, 1), len(means))).astype(int)
    for i in (groups[:, None] * size + np.arange(size)).ravel()[: config.log_rollouts]:
        problem, group = problems[rollouts.prompt_index[i]], i // size
        found.append({"step": step, "group": int(group), "prompt": problem.prompt, "answer": problem.answer,
                      "completion": scored.text[i], "reward": scored.reward[i],
                      "correct": bool(scored.correct[i]), "advantage": np.mean(advantages[i]), "group_mean": means[group],
                      "graded_by": scored.graded_by[i],
                      "truncated": not rollouts.ended[i], "num_tokens": int(rollouts.completion_mask[i].sum())})
    return found


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % confidence interval of a share of n trials, honest near 0 and 1 (Wilson, 1927)."""
    z = 1.959964
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


def difference(before: float, after: float, n: int) -> tuple[float, float]:
    """95 % confidence interval of after - before, two shares of n trials each (Newcombe, 1998, method 10).

    It takes the trials for different ones. Where both are of the same problems it is too wide, never too narrow, as
    long as a problem that was solved is likelier than others to be solved again.
    """
    (low, high), (lower, upper) = wilson(before, n), wilson(after, n)
    return (after - before - math.hypot(after - lower, high - before),
            after - before + math.hypot(upper - after, before - low))


def evaluation(row: dict) -> dict:
    """The eval/* entries of a row of metrics, without the prefix."""
    return {key[5:]: value for key, value in row.items() if key.startswith("eval/")}


def saturation_step(rows: list) -> Optional[int]:
    """First step whose rollouts were at least 99 % correct; None if there was none."""
    return next((row["step"] for row in rows if (row.get("train/accuracy") or 0) >= SATURATED), None)


def summarise(rows: list) -> dict:
    """The summary of a run of training, documented in the README."""
    evaluated = [row for row in rows if evaluation(row)]
    saturated = saturation_step(rows)
    after = [row for row in evaluated if saturated is not None and row["step"] >= saturated]
    phases = sorted({key for row in rows for key in row if key.startswith("seconds/")})
    curve = {name: {"at_saturation": after[0][key], "peak": max(row[key] for row in after), "end": after[-1][key]}
             for name, key in (("greedy", "eval/greedy"), ("sampled", "eval/sampled")) if after}
    base, final = (evaluation(evaluated[end]) if evaluated else {} for end in (0, -1))
    return {"base": base, "final": final,
            "train_accuracy": rows[-1].get("train/accuracy"), "saturation_step": saturated, "steps": rows[-1]["step"],
            "graded_by": rows[-1].get("train/graded_by"), "after_saturation": curve,
            "seconds": {key[8:]: round(sum(row.get(key) or 0 for row in rows), 2) for key in phases}}


def markdown_table(header: list, rows: list[list]) -> str:
    """A table of Markdown; a line break within a cell would end it, so there is none."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(" ".join(str(cell).split()) for cell in line) + " |" for line in lines)


def commit() -> str:
    """The commit of the checkout that holds this program, `-dirty` if files differ from it; else "unknown"."""
    here = pathlib.Path(__file__)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}  # a hook's repository

    def git(*command) -> str:
        return subprocess.run(["git", *command], cwd=here.parent, env=clean, capture_output=True, text=True,
                              check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # installed into an environment inside another repository
        return git("describe", "--always", "--dirty")
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return "unknown"


def machine() -> dict:
    """What a run's numbers depend on beside its flags: date, commit, versions and devices."""
    return {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "commit": commit(),
            "python": platform.python_version(), "jax": jax.__version__, "platform": platform.machine(),
            "device": jax.devices()[0].device_kind, "devices": jax.device_count(), "processes": jax.process_count()}


def write_json(path: pathlib.Path, content: dict) -> None:
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_whole(path: pathlib.Path, text: str) -> None:
    """Replaces the file at once: a reader, or a process that is killed, never leaves half of it."""
    aside = path.with_name(path.name + ".part")
    with naming(path):
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)


@contextlib.contextmanager
def naming(path: pathlib.Path):
    """Adds the file to an error of the disk: Python names it on opening, not on writing."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
