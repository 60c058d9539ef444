"""Checkpoints with orbax: one directory a step, written aside and renamed when complete.

A checkpoint holds plain arrays (one copy, whatever the number of devices) in three items: `params`, which is all that
using the model needs; `training`, the rest of the learner's state; `meta`, JSON with the model's configuration, its
tokenizer and the run's flags. Only the main process writes and reads; the others receive its arrays.
"""

import contextlib
import pathlib
from typing import Optional

import jax
import numpy as np
import orbax.checkpoint as ocp

from rlvr_jax import model, parallel
from rlvr_jax.config import ModelConfig, UserError
from rlvr_jax.learner import LearnerState


def open_manager(run_dir: str, keep_last: int = 1, keep_every: int = 0) -> ocp.CheckpointManager:
    """The checkpoints of a run: keeps the newest `keep_last` and every multiple of `keep_every` steps."""
    directory(run_dir).mkdir(parents=True, exist_ok=True)
    return _manager(run_dir, max_to_keep=max(keep_last, 1), keep_period=keep_every or None,
                    cleanup_tmp_directories=True)


def _manager(run_dir: str, **options) -> ocp.CheckpointManager:
    """A manager of this process alone: orbax waits for no other one."""
    me = parallel.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me},
                                               barrier_sync_key_prefix=f"process{me}")
    return ocp.CheckpointManager(directory(run_dir), options=ocp.CheckpointManagerOptions(
        create=False, multiprocessing_options=alone, **options))


def directory(run_dir: str) -> pathlib.Path:
    return pathlib.Path(run_dir).absolute() / "checkpoints"


def steps(run_dir: str) -> list[int]:
    """Steps with a complete checkpoint, oldest first. A half-written one has another name and does not count."""
    root = directory(run_dir)
    return sorted(int(d.name) for d in root.iterdir() if d.name.isdigit()) if root.is_dir() else []


def save(manager: ocp.CheckpointManager, state: LearnerState, meta: dict) -> None:
    """Starts writing a checkpoint of a state of numpy arrays; it lands in the background, whole or not at all.

    Raises UserError if this one, or the one before it, cannot be written.
    """
    rest = {"step": state.step, "opt_state": state.opt_state, "ref_params": state.ref_params}
    with _writing(manager):
        manager.save(int(state.step), args=ocp.args.Composite(
            params=ocp.args.StandardSave(state.params), training=ocp.args.StandardSave(rest),
            meta=ocp.args.JsonSave(meta)))


def wait(manager: ocp.CheckpointManager) -> None:
    """Until what was saved is on the disk. Raises UserError if it cannot be written."""
    with _writing(manager):
        manager.wait_until_finished()


def close(manager: ocp.CheckpointManager) -> None:
    try:
        wait(manager)
    finally:
        manager.close()


@contextlib.contextmanager
def _writing(manager: ocp.CheckpointManager):
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise many types for a full disk
        raise UserError(f"cannot write a checkpoint in {manager.directory}: {str(error).rsplit(': ', 1)[-1]}; make "
                        "room, and the same command continues from the checkpoint before it") from error


def restore_state(run_dir: str, step: int, like: LearnerState) -> LearnerState:
    """The state saved at `step`, as numpy arrays shaped like `like`. Raises UserError if it cannot be read whole."""
    rest = {"step": like.step, "opt_state": like.opt_state, "ref_params": like.ref_params}
    items = _restore(run_dir, step, {"params": ocp.args.StandardRestore(_blank(like.params)),
                                     "training": ocp.args.StandardRestore(_blank(rest))})
    return LearnerState(params=items["params"], **items["training"])


def restore_model(run_dir: str, step: Optional[int] = None) -> tuple[ModelConfig, model.Params, dict]:
    """(configuration, parameters as numpy, meta) of a run's checkpoint, the newest if `step` is None."""
    found = steps(run_dir)
    if not found:
        raise UserError(f"{run_dir} has no checkpoint; is it a run directory, and did the run reach its first save?")
    if step is not None and step not in found:
        raise UserError(f"{run_dir} has no checkpoint of step {step}; it has {', '.join(map(str, found))}")
    step = found[-1] if step is None else step
    meta = _restore(run_dir, step, {"meta": ocp.args.JsonRestore()})["meta"]
    config = ModelConfig.from_json(meta["model"])
    shapes = jax.eval_shape(lambda: model.init_params(jax.random.key(0), config))
    params = _restore(run_dir, step, {"params": ocp.args.StandardRestore(_blank(shapes))})["params"]
    return config, params, meta


def _blank(tree):
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)


def _restore(run_dir: str, step: int, items: dict):
    try:
        with _manager(run_dir, read_only=True) as manager:
            return manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # orbax and tensorstore raise many types for a damaged file
        others = [s for s in steps(run_dir) if s != step]
        rescue = f"; remove that directory to go back to step {others[-1]}" if others else ""
        raise UserError(f"cannot read checkpoint {directory(run_dir) / str(step)}: {type(error).__name__}: "
                        f"{str(error)[:200]}{rescue}") from error
