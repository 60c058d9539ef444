"""Checkpoints, written with orbax: one directory per step, under a temporary name until the checkpoint is complete.

A checkpoint holds one copy of the arrays, whatever the number of devices: `params`, the model's parameters, and
`training`, the step, the optimiser's state and the KL reference. It also has two JSON records: `meta`, with the model's
configuration, its tokenizer, the run's flags and the step; and `metrics`, {name: number}, the metrics of the step. Only
the main process writes checkpoints, and reads one to resume; `Run.restore` sends its arrays to the other processes.

`meta["digests"]` maps the path of each array, such as "params/embed", to a CRC-32, and "meta" to the CRC-32 of the
other entries of `meta`. Reading a checkpoint checks these digests (checkpoints of earlier versions have none), because
orbax restores arrays with flipped bits without an error."""

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

REMOVED = "removed"  # orbax moves a checkpoint to this folder before deleting it, so that a kill leaves no half of it


@functools.cache
def orbax():
    """Returns the module orbax.checkpoint. Only the first call imports this slow module, so that a command that fails
    early does not wait for the import. Every `manager` in this file is an orbax `CheckpointManager`."""
    import orbax.checkpoint

    return orbax.checkpoint


def open_manager(run_dir: str, keep_last: int = 1, keep_every: int = 0, keep_best: str = ""):
    """Returns the manager of a run's checkpoints, and deletes half-written checkpoints. The manager keeps the newest
    `keep_last` checkpoints, those at multiples of `keep_every` steps (0: none), and the one with the highest value of
    the metric named `keep_best` (of equal values the newest; if no checkpoint has the metric, the newest of all). It
    deletes all other checkpoints. Raises UserError if the metrics of a checkpoint cannot be read."""
    def rank(metrics: dict) -> float:
        return metrics.get(keep_best, -math.inf)

    rules = orbax().checkpoint_managers
    policies = [rules.LatestN(keep_last), rules.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)]
    policies += [rules.EveryNSteps(keep_every)] if keep_every else []
    directory(run_dir).mkdir(parents=True, exist_ok=True)
    _metrics(run_dir)  # raises an error that names a damaged checkpoint; the manager's own error would not
    return orbax().CheckpointManager(directory(run_dir), options=orbax().CheckpointManagerOptions(
        create=False, multiprocessing_options=_this_process(), best_fn=rank, todelete_subdir=REMOVED,
        preservation_policy=rules.AnyPreservationPolicy(policies), cleanup_tmp_directories=True))


def _this_process():
    """Returns orbax's multiprocessing options for this process alone: orbax then waits for no other process."""
    index = processes.process_index()
    return orbax().options.MultiprocessingOptions(primary_host=index, active_processes={index},
                                                  barrier_sync_key_prefix=f"process{index}")


def directory(run_dir: str) -> pathlib.Path:
    return pathlib.Path(run_dir).absolute() / "checkpoints"


def steps(run_dir: str) -> list[int]:
    """The steps of the complete checkpoints, in ascending order; half-written checkpoints are left out."""
    root = directory(run_dir)
    return sorted(int(d.name) for d in root.iterdir() if d.name.isdigit()) if root.is_dir() else []


def save(manager, state: LearnerState, meta: dict, metrics: dict) -> None:
    """Starts to save a state of numpy arrays, `meta` with "step" and "digests" added, and `metrics`; orbax completes
    the checkpoint in the background. Raises UserError if this checkpoint or the previous one cannot be written."""
    meta = meta | {"step": int(state.step)}
    meta |= {"digests": array_digests(_items(state, lambda tree: tree)) | {"meta": text_digest(meta)}}
    wait(manager)  # empties REMOVED now, since during the save orbax may be moving a checkpoint there
    with _name_in_write_errors(manager):
        manager.save(int(state.step), metrics=metrics, args=orbax().args.Composite(
            **_items(state, orbax().args.StandardSave), meta=orbax().args.JsonSave(meta)))


def _items(state: LearnerState, convert) -> dict:
    """Returns {"params": tree, "training": tree}, the arrays of a checkpoint, each tree passed through `convert`."""
    training = {"step": state.step, "opt_state": state.opt_state, "ref_params": state.ref_params}
    return {"params": convert(state.params), "training": convert(training)}


def wait(manager) -> None:
    """Waits until the last checkpoint is written, and older ones are deleted as needed. UserError if writing fails."""
    with _name_in_write_errors(manager):
        manager.wait_until_finished()
    shutil.rmtree(pathlib.Path(manager.directory, REMOVED), ignore_errors=True)


@contextlib.contextmanager
def _name_in_write_errors(manager):
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise many types for a full disk
        raise UserError(f"cannot write a checkpoint in {manager.directory}: {str(error).rsplit(': ', 1)[-1]}; make "
                        "room, and the same command continues from the checkpoint before it") from error


def array_digests(items: dict) -> dict[str, int]:
    """Returns {path such as "params/embed": CRC-32} for a tree of host arrays. The CRC-32 covers an array's dtype,
    shape and bytes. One core takes a second for 4 GB; threads divide the arrays among all cores."""
    def digest(leaf) -> int:
        array = np.ascontiguousarray(leaf)  # makes a scalar an array of shape (1,)
        head = zlib.crc32(f"{array.dtype} {np.shape(leaf)}".encode())
        return zlib.crc32(array.reshape(-1).view(np.uint8), head)  # continues the CRC-32 `head`

    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(items))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # zlib releases the interpreter's lock
        return dict(zip(names, pool.map(digest, leaves)))


def text_digest(record: dict) -> int:
    """Returns the CRC-32 of a record as JSON with sorted keys."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def is_finite(tree) -> bool:
    """Whether all numbers in a tree of host arrays are finite, neither NaN nor infinite."""
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


def restore_state(run_dir: str, step: int, like: LearnerState) -> LearnerState:
    """Returns the state that was saved at `step` as numpy arrays with the shapes and dtypes of `like`. Raises UserError
    if the checkpoint cannot be read, was changed since it was saved, or holds a number that is not finite."""
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    items = _restore(run_dir, step, **_items(blank, orbax().args.StandardRestore))
    return LearnerState(params=items["params"], **items["training"])


def restore_model(run_dir: str, which: str = "") -> tuple[model.ModelConfig, model.Params, dict]:
    """Returns (configuration, parameters as numpy arrays, meta) of a run's checkpoint. `which` is a step such as "50",
    "best" (`best_step`), or "" for the newest. Raises UserError if the run has no such checkpoint, or if the checkpoint
    cannot be read, was changed since it was saved, or holds a number that is not finite."""
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
    """Returns `meta` of the checkpoint at `step`. Raises UserError if it cannot be read or was changed after saving."""
    return _restore(run_dir, step)["meta"]


def best_step(run_dir: str) -> int:
    """Returns the step whose checkpoint has the highest value of the metric that the run's --keep_best names; of equal
    values the newest. Raises UserError if no checkpoint has this metric."""
    saved = steps(run_dir)
    name = read_meta(run_dir, saved[-1]).get("flags", {}).get("keep_best")
    values = {step: metrics.get(name, -math.inf) for step, metrics in reversed(_metrics(run_dir).items())}
    if max(values.values(), default=-math.inf) == -math.inf:
        why = f"its --keep_best={name} names no metric of a checkpoint" if name else "it was made without --keep_best"
        raise UserError(f"{run_dir}@best: {why}; name a step: {', '.join(map(str, saved))}")
    return max(values, key=values.get)  # the first maximum, and so the newest, as `values` starts with the newest


def _metrics(run_dir: str) -> dict[int, dict[str, float]]:
    """{step: {name: value}}: the metrics of each checkpoint, in ascending order of steps."""
    by_step = {}
    for step in steps(run_dir):
        with _name_in_read_errors(run_dir, step):
            metrics = json.loads((directory(run_dir) / str(step) / "metrics" / "metrics").read_text("utf-8"))
            by_step[step] = {name: float(value) for name, value in metrics.items()}
    return by_step


def _restore(run_dir: str, step: int, **items) -> dict:
    """Reads and checks (`_check`) {"meta": record, NAME: tree}; `items` has orbax's arguments to read each NAME."""
    content = _read(run_dir, step, meta=orbax().args.JsonRestore(), **items)
    _check(run_dir, step, content["meta"], {name: content[name] for name in items})
    return content


def _read(run_dir: str, step: int, **items):
    """Reads `items`, {NAME: orbax's arguments}, without checking them."""
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
    """Raises UserError unless `meta` and `arrays`, {item: tree}, are what was saved at `step`, and are finite."""
    def refuse(what: str):
        raise UserError(f"checkpoint {directory(run_dir) / str(step)} {what}{_advice(run_dir, step)}")

    if not isinstance(meta, dict):
        refuse(f"is damaged: its meta is no record, but a {type(meta).__name__}")
    saved_digests = meta.get("digests", {})
    other_entries = {name: value for name, value in meta.items() if name != "digests"}
    digests = {"meta": text_digest(other_entries)} | (array_digests(arrays) if arrays else {})
    changed = [name for name, digest in digests.items() if saved_digests and saved_digests.get(name) != digest]
    if changed:
        refuse(f"is damaged: {changed[0]} is not as it was saved")
    for actual in (meta.get("step", step), int(arrays.get("training", {}).get("step", step))):
        if actual != step:
            refuse(f"is that of step {actual}: rename its directory to {actual}")
    if not is_finite(arrays):
        refuse("holds numbers that are not finite (NaN or infinite)")


def _advice(run_dir: str, step: int) -> str:
    """The end of an error message on the checkpoint at `step`: which other checkpoint to use, if there is one."""
    others = [s for s in steps(run_dir) if s != step]
    return f"; use {run_dir}@{others[-1]}, or remove that directory to go back to step {others[-1]}" if others else ""
