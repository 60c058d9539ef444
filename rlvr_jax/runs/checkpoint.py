"""Checkpoints with orbax: one directory a step, written under a temporary name and renamed when complete.

A checkpoint holds plain arrays, one copy whatever the number of devices: `params`, all that using the model needs, and
`training`, the rest of the learner's state. Two JSON records stand beside them: `meta`, with the model's configuration,
its tokenizer, the run's flags and the step, and `metrics`, those of the step. The main process alone reads and
writes; the others receive its arrays.

`meta["digests"]` has a CRC-32 of each array, by its path such as "params/embed", and of the rest of `meta`; each reader
compares them, unless the checkpoint is from a version without. orbax itself restores arrays with flipped bits silently.
"""

import concurrent.futures
import contextlib
import functools
import json
import math
import os
import pathlib
import shutil
import zlib

import jax
import numpy as np

from rlvr_jax import model
from rlvr_jax.errors import UserError
from rlvr_jax.records import LearnerState
from rlvr_jax.runs import processes

REMOVED = "removed"  # orbax moves a checkpoint here before deleting it, so that a kill leaves no half of it


@functools.cache
def orbax():
    """orbax.checkpoint, imported at its first use, so that a command that fails early does not wait for it. A `manager`
    in this file is its `CheckpointManager`."""
    import orbax.checkpoint

    return orbax.checkpoint


def open_manager(run_dir: str, keep_last: int = 1, keep_every: int = 0, keep_best: str = ""):
    """The manager of a run's checkpoints. It keeps the newest `keep_last`, every multiple of `keep_every` steps, and
    the one with the highest metric `keep_best` (the newest of equals; the newest of all if none has the metric).

    Raises UserError if the metrics of a checkpoint cannot be read.
    """
    def rank(metrics: dict) -> float:
        return metrics.get(keep_best, -math.inf)

    rules = orbax().checkpoint_managers
    kept = [rules.LatestN(keep_last), rules.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)]
    kept += [rules.EveryNSteps(keep_every)] if keep_every else []
    directory(run_dir).mkdir(parents=True, exist_ok=True)
    _metrics(run_dir)  # the manager would read them later, and not name a damaged file
    return orbax().CheckpointManager(directory(run_dir), options=orbax().CheckpointManagerOptions(
        create=False, multiprocessing_options=_this_process(), best_fn=rank, todelete_subdir=REMOVED,
        preservation_policy=rules.AnyPreservationPolicy(kept), cleanup_tmp_directories=True))


def _this_process():
    """Options with which orbax waits for no other process."""
    index = processes.process_index()
    return orbax().options.MultiprocessingOptions(primary_host=index, active_processes={index},
                                                  barrier_sync_key_prefix=f"process{index}")


def directory(run_dir: str) -> pathlib.Path:
    return pathlib.Path(run_dir).absolute() / "checkpoints"


def steps(run_dir: str) -> list[int]:
    """The steps with a complete checkpoint, oldest first; a half-written one has a temporary name."""
    root = directory(run_dir)
    return sorted(int(d.name) for d in root.iterdir() if d.name.isdigit()) if root.is_dir() else []


def save(manager, state: LearnerState, meta: dict, metrics: dict) -> None:
    """Starts writing a checkpoint of a state of numpy arrays; it lands in the background, whole or not at all. Raises
    UserError if this one, or the one before it, cannot be written."""
    meta = meta | {"step": int(state.step)}
    meta |= {"digests": array_digests(_items(state, lambda tree: tree)) | {"meta": text_digest(meta)}}
    wait(manager)  # otherwise it could empty REMOVED while orbax moves a checkpoint there
    with _name_in_write_errors(manager):
        manager.save(int(state.step), metrics=metrics, args=orbax().args.Composite(
            **_items(state, orbax().args.StandardSave), meta=orbax().args.JsonSave(meta)))


def _items(state: LearnerState, convert) -> dict:
    rest = {"step": state.step, "opt_state": state.opt_state, "ref_params": state.ref_params}
    return {"params": convert(state.params), "training": convert(rest)}


def wait(manager) -> None:
    """Returns once what was saved is on the disk and what it replaces is deleted. UserError if it cannot be written."""
    with _name_in_write_errors(manager):
        manager.wait_until_finished()
    shutil.rmtree(pathlib.Path(manager.directory, REMOVED), ignore_errors=True)


def close(manager) -> None:
    try:
        wait(manager)
    finally:
        manager.close()


@contextlib.contextmanager
def _name_in_write_errors(manager):
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise many types for a full disk
        raise UserError(f"cannot write a checkpoint in {manager.directory}: {str(error).rsplit(': ', 1)[-1]}; make "
                        "room, and the same command continues from the checkpoint before it") from error


def array_digests(items: dict) -> dict[str, int]:
    """The CRC-32 of each host array in a tree, of its bytes, type and shape, by its path. Takes a second for each 4 GB
    on one core, and divides the arrays among the cores."""
    def digest(leaf) -> int:
        array = np.ascontiguousarray(leaf)
        return zlib.crc32(array.reshape(-1).view(np.uint8), zlib.crc32(f"{array.dtype} {np.shape(leaf)}".encode()))

    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(items))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # zlib releases the interpreter's lock
        return dict(zip(names, pool.map(digest, leaves)))


def text_digest(record: dict) -> int:
    """The CRC-32 of a record as JSON."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def is_finite(tree) -> bool:
    """Whether no number in a tree of host arrays is NaN or infinite."""
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


def restore_state(run_dir: str, step: int, like: LearnerState) -> LearnerState:
    """The state saved at `step`, as numpy arrays shaped like `like`. Raises UserError if it cannot be read, was changed
    since it was saved, or is not finite."""
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    items = _restore(run_dir, step, **_items(blank, orbax().args.StandardRestore))
    return LearnerState(params=items["params"], **items["training"])


def restore_model(run_dir: str, which: str = "") -> tuple[model.ModelConfig, model.Params, dict]:
    """(configuration, parameters as numpy arrays, meta) of a run's checkpoint: of a step, "best", or "" for the newest.
    Raises UserError if there is none, it cannot be read, was changed since it was saved, or is not finite."""
    saved = steps(run_dir)
    if not saved:
        raise UserError(f"{run_dir} has no checkpoint; is it a run directory, and did the run reach its first save?")
    step = best_step(run_dir) if which == "best" else int(which or saved[-1])
    if step not in saved:
        raise UserError(f"{run_dir} has no checkpoint of step {step}; it has {', '.join(map(str, saved))}")
    items = _restore(run_dir, step, params=orbax().args.StandardRestore())
    with _name_in_read_errors(run_dir, step):
        return model.ModelConfig.from_json(items["meta"]["model"]), items["params"], items["meta"]


def read_meta(run_dir: str, step: int) -> dict:
    """`meta` of a checkpoint. Raises UserError if it cannot be read, or was changed since it was saved."""
    return _restore(run_dir, step)["meta"]


def best_step(run_dir: str) -> int:
    """The step with the highest metric that --keep_best names, the newest of equals. UserError if none has it."""
    saved = steps(run_dir)
    name = read_meta(run_dir, saved[-1]).get("flags", {}).get("keep_best")
    values = {step: metrics.get(name, -math.inf) for step, metrics in reversed(_metrics(run_dir).items())}
    if max(values.values(), default=-math.inf) == -math.inf:
        why = f"its --keep_best={name} names no metric of a checkpoint" if name else "it was made without --keep_best"
        raise UserError(f"{run_dir}@best: {why}; name a step: {', '.join(map(str, saved))}")
    return max(values, key=values.get)


def _metrics(run_dir: str) -> dict[int, dict[str, float]]:
    """The metrics of each checkpoint, by step, the oldest first."""
    by_step = {}
    for step in steps(run_dir):
        with _name_in_read_errors(run_dir, step):
            metrics = json.loads((directory(run_dir) / str(step) / "metrics" / "metrics").read_text("utf-8"))
            by_step[step] = {name: float(value) for name, value in metrics.items()}
    return by_step


def _restore(run_dir: str, step: int, **items) -> dict:
    """`meta` and the items named, checked. Raises UserError where they cannot be read, or are not what was saved."""
    read = _read(run_dir, step, meta=orbax().args.JsonRestore(), **items)
    _check(run_dir, step, read["meta"], {name: read[name] for name in items})
    return read


def _read(run_dir: str, step: int, **items):
    options = _this_process()
    handler = orbax().CompositeCheckpointHandler(composite_options=orbax().CompositeOptions(options))
    with (_name_in_read_errors(run_dir, step),
          orbax().Checkpointer(handler, multiprocessing_options=options) as reader):
        return reader.restore(directory(run_dir) / str(step), args=orbax().args.Composite(**items))


@contextlib.contextmanager
def _name_in_read_errors(run_dir: str, step: int):
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise many types for a damaged file
        raise UserError(f"cannot read checkpoint {directory(run_dir) / str(step)}: {type(error).__name__}: "
                        f"{str(error)[:200]}{_advice(run_dir, step)}") from error


def _check(run_dir: str, step: int, meta, arrays: dict) -> None:
    """Raises UserError where `meta` or the arrays are not what was saved at that step, or are not finite."""
    def refuse(what: str):
        raise UserError(f"checkpoint {directory(run_dir) / str(step)} {what}{_advice(run_dir, step)}")

    if not isinstance(meta, dict):
        refuse(f"is damaged: its meta is no record, but a {type(meta).__name__}")
    saved = meta.get("digests", {})
    rest = {name: value for name, value in meta.items() if name != "digests"}
    digests = {"meta": text_digest(rest)} | (array_digests(arrays) if arrays else {})
    if saved and (changed := [name for name, digest in digests.items() if saved.get(name) != digest]):
        refuse(f"is damaged: {changed[0]} is not as it was saved")
    for actual in (meta.get("step", step), int(arrays.get("training", {}).get("step", step))):
        if actual != step:
            refuse(f"is that of step {actual}: rename its directory to {actual}")
    if not is_finite(arrays):
        refuse("holds numbers that are not finite (NaN or infinite)")


def _advice(run_dir: str, step: int) -> str:
    others = [s for s in steps(run_dir) if s != step]
    return f"; use {run_dir}@{others[-1]}, or remove that directory to go back to step {others[-1]}" if others else ""
