"""Checkpoints with orbax: one directory a step, written aside and renamed when complete.

A checkpoint holds plain arrays (one copy, whatever the number of devices): `params`, which is all that using the model
needs, and `training`, the rest of the learner's state; and as JSON `meta`, the model's configuration, its tokenizer and
the run's flags, and `metrics`, those of its step. Only the main process writes and reads; the others get its arrays.

`meta["digests"]` has a CRC-32 of each array, by its path such as "params/embed", and of the rest of `meta`. They are
compared wherever a checkpoint is read; one that was saved before there were digests is read without. To make them takes
a second for each 4 GB on one core, and arrays are divided among the cores. `meta["step"]` is the directory's name.
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


REMOVED = "removed"  # a checkpoint goes there by one renaming, so that a kill leaves no half of it among the others


@functools.cache
def orbax():
    """orbax.checkpoint, imported at its first use: a command that fails before does not wait for it. Managers of
    checkpoints, in what follows, are its `CheckpointManager`."""
    import orbax.checkpoint

    return orbax.checkpoint


def open_manager(run_dir: str, keep_last: int = 1, keep_every: int = 0, keep_best: str = ""):
    """The checkpoints of a run: the newest `keep_last`, every multiple of `keep_every` steps, and the one with the
    highest metric `keep_best` (of equals the newest; where none has it, the newest).

    Raises UserError where the metrics of a checkpoint cannot be read.
    """
    def rank(metrics: dict) -> float:
        return metrics.get(keep_best, -math.inf)

    rules = orbax().checkpoint_managers
    wanted = [rules.LatestN(keep_last), rules.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)]
    wanted += [rules.EveryNSteps(keep_every)] if keep_every else []
    directory(run_dir).mkdir(parents=True, exist_ok=True)
    _metrics(run_dir)  # which a manager reads at some later time, and without naming them
    return orbax().CheckpointManager(directory(run_dir), options=orbax().CheckpointManagerOptions(
        create=False, multiprocessing_options=_alone(), best_fn=rank, todelete_subdir=REMOVED,
        preservation_policy=rules.AnyPreservationPolicy(wanted), cleanup_tmp_directories=True))


def _alone():
    """What has orbax wait for no other process than this one."""
    me = processes.process_index()
    return orbax().options.MultiprocessingOptions(primary_host=me, active_processes={me},
                                                  barrier_sync_key_prefix=f"process{me}")


def directory(run_dir: str) -> pathlib.Path:
    return pathlib.Path(run_dir).absolute() / "checkpoints"


def steps(run_dir: str) -> list[int]:
    """Steps with a complete checkpoint, oldest first. A half-written one has another name and does not count."""
    root = directory(run_dir)
    return sorted(int(d.name) for d in root.iterdir() if d.name.isdigit()) if root.is_dir() else []


def save(manager, state: LearnerState, meta: dict, metrics: dict) -> None:
    """Starts writing a checkpoint of a state of numpy arrays; it lands in the background, whole or not at all. Raises
    UserError if this one, or the one before it, cannot be written."""
    meta = meta | {"step": int(state.step)}
    meta |= {"digests": digests(_items(state, lambda tree: tree)) | {"meta": text_digest(meta)}}
    wait(manager)  # REMOVED is emptied while nothing is moved there
    with _writing(manager):
        manager.save(int(state.step), metrics=metrics, args=orbax().args.Composite(
            **_items(state, orbax().args.StandardSave), meta=orbax().args.JsonSave(meta)))


def _items(state: LearnerState, how) -> dict:
    rest = {"step": state.step, "opt_state": state.opt_state, "ref_params": state.ref_params}
    return {"params": how(state.params), "training": how(rest)}


def wait(manager) -> None:
    """Until what was saved is on the disk, and what it replaces is not. Raises UserError if it cannot be written."""
    with _writing(manager):
        manager.wait_until_finished()
    shutil.rmtree(pathlib.Path(manager.directory, REMOVED), ignore_errors=True)


def close(manager) -> None:
    try:
        wait(manager)
    finally:
        manager.close()


@contextlib.contextmanager
def _writing(manager):
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise many types for a full disk
        raise UserError(f"cannot write a checkpoint in {manager.directory}: {str(error).rsplit(': ', 1)[-1]}; make "
                        "room, and the same command continues from the checkpoint before it") from error


def digests(items: dict) -> dict[str, int]:
    """The CRC-32 of each array in a tree of host arrays, its type and shape included, by its path."""
    def digest(leaf) -> int:
        array = np.ascontiguousarray(leaf)
        return zlib.crc32(array.reshape(-1).view(np.uint8), zlib.crc32(f"{array.dtype} {np.shape(leaf)}".encode()))

    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(items))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # zlib lets other threads run meanwhile
        return dict(zip(names, pool.map(digest, leaves)))


def text_digest(record: dict) -> int:
    """The CRC-32 of a record as JSON."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def finite(tree) -> bool:
    """Whether no number in a tree of host arrays is NaN or infinite."""
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


def restore_state(run_dir: str, step: int, like: LearnerState) -> LearnerState:
    """The state saved at `step`, as numpy arrays shaped like `like`. Raises UserError if it cannot be read whole, is
    not as it was saved, or is not finite."""
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    items = _restore(run_dir, step, meta=orbax().args.JsonRestore(), **_items(blank, orbax().args.StandardRestore))
    _check(run_dir, step, items)
    return LearnerState(params=items["params"], **items["training"])


def restore_model(run_dir: str, which: str = "") -> tuple[model.ModelConfig, model.Params, dict]:
    """(configuration, parameters as numpy, meta) of a run's checkpoint: a step, "best", or "" for the newest. Raises
    UserError if there is none, it cannot be read whole, is not as it was saved, or has parameters not finite."""
    saved = steps(run_dir)
    if not saved:
        raise UserError(f"{run_dir} has no checkpoint; is it a run directory, and did the run reach its first save?")
    step = best_step(run_dir) if which == "best" else int(which or saved[-1])
    if step not in saved:
        raise UserError(f"{run_dir} has no checkpoint of step {step}; it has {', '.join(map(str, saved))}")
    items = _restore(run_dir, step, meta=orbax().args.JsonRestore(), params=orbax().args.StandardRestore())
    _check(run_dir, step, items)
    with _reading(run_dir, step):
        return model.ModelConfig.from_json(items["meta"]["model"]), items["params"], items["meta"]


def read_meta(run_dir: str, step: int) -> dict:
    """`meta` of a checkpoint. Raises UserError if it cannot be read, or is not as it was saved."""
    items = _restore(run_dir, step, meta=orbax().args.JsonRestore())
    _check(run_dir, step, items)
    return items["meta"]


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
    found = {}
    for step in steps(run_dir):
        with _reading(run_dir, step):
            read = json.loads((directory(run_dir) / str(step) / "metrics" / "metrics").read_text("utf-8"))
            found[step] = {name: float(value) for name, value in read.items()}
    return found


def _restore(run_dir: str, step: int, **items):
    alone = _alone()
    handler = orbax().CompositeCheckpointHandler(composite_options=orbax().CompositeOptions(alone))
    with _reading(run_dir, step), orbax().Checkpointer(handler, multiprocessing_options=alone) as reader:
        return reader.restore(directory(run_dir) / str(step), args=orbax().args.Composite(**items))


@contextlib.contextmanager
def _reading(run_dir: str, step: int):
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise many types for a damaged file
        raise UserError(f"cannot read checkpoint {directory(run_dir) / str(step)}: {type(error).__name__}: "
                        f"{str(error)[:200]}{_rescue(run_dir, step)}") from error


def _check(run_dir: str, step: int, items: dict) -> None:
    """Raises UserError where what was read of a checkpoint, its `meta` included, is not what was saved at that step."""
    def refuse(what: str):
        raise UserError(f"checkpoint {directory(run_dir) / str(step)} {what}{_rescue(run_dir, step)}")

    meta, arrays = items["meta"], {name: tree for name, tree in items.items() if name != "meta"}
    if not isinstance(meta, dict):
        refuse(f"is damaged: its meta is no record, but a {type(meta).__name__}")
    rest = {name: value for name, value in meta.items() if name != "digests"}
    saved = meta.get("digests", {})
    read = {"meta": text_digest(rest)} | (digests(arrays) if arrays else {})
    if saved and (other := [name for name, digest in read.items() if saved.get(name) != digest]):
        refuse(f"is damaged: {other[0]} is not as it was saved")
    for held in (meta.get("step", step), int(items.get("training", {}).get("step", step))):
        if held != step:
            refuse(f"is that of step {held}: give the directory this name again")
    if not finite(arrays):
        refuse("holds numbers that are not finite (NaN or infinite)")


def _rescue(run_dir: str, step: int) -> str:
    others = [s for s in steps(run_dir) if s != step]
    return f"; use {run_dir}@{others[-1]}, or remove that directory to go back to step {others[-1]}" if others else ""
