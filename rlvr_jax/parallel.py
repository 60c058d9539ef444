"""Every mention of pmap, replication and processes: the rest of the program sees one batch and one state.

Arrays that leave here carry a leading axis of this process's devices. Batches are global on every process (each
samples its share, then the shares are gathered and the main process's grades hold), and a process feeds its own slice.
"""

import glob
import math
import os
import shutil
import threading
from typing import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

AXIS = "data"
# What a machine with an accelerator has, and the extra of the package jax that makes JAX use it. /dev/vfio/vfio and
# /dev/accel/ (chips of laptops) are on machines without a TPU, too.
SIGNS = {"a TPU": ("tpu", ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")),
         "an NVIDIA GPU": ("cuda12", ("/dev/nvidia[0-9]*", "/dev/dxg"))}
HEARTBEAT = 30  # seconds without a sign of life after which the processes give another one up; JAX's own is 100


def initialize(coordinator_address: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the processes of one run. Call before anything touches a device; no address means a single process."""
    if coordinator_address == "auto":  # TPU pods, Slurm and others that JAX recognises
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
    elif coordinator_address:
        jax.distributed.initialize(coordinator_address, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT)


def platforms() -> set[str]:
    """The kinds of the devices that JAX uses, such as {"cpu"}; JAX takes hold of them here at the latest."""
    return {device.platform for device in jax.devices()}


def unused_accelerator(platforms=platforms, find=glob.glob, which=shutil.which) -> str:
    """One line about an accelerator that this machine seems to have and JAX does not use; "" where all is well.

    JAX without the plugin of the machine computes on the CPU and does not say so; with JAX_PLATFORMS=cpu that is meant.
    `platforms`, `find` and `which` ask JAX, the file system and the PATH; tests hand in their own answers.
    """
    signs = {kind: [name for pattern in patterns for name in find(pattern)] for kind, (_, patterns) in SIGNS.items()}
    if which("nvidia-smi"):
        signs["an NVIDIA GPU"].append("nvidia-smi")
    kind = next((kind for kind, names in signs.items() if names), "")
    if not kind or jax.config.jax_platforms == "cpu" or platforms() != {"cpu"}:
        return ""
    return (f"this machine seems to have {kind} ({signs[kind][0]}), but JAX finds none: EVERYTHING RUNS ON THE CPU. "
            f"pip install -e '.[plot]' \"jax[{SIGNS[kind][0]}]\"; if the CPU is meant, JAX_PLATFORMS=cpu")


def leave_within(seconds: float) -> None:
    """Ends this process by then, for one that failed alone: JAX would have it wait minutes for those that wait for it.

    They end when they see it gone. Where all fail alike they meet before that, and each leaves with its own message.
    """
    if jax.process_count() > 1:
        timer = threading.Timer(seconds, os._exit, [1])
        timer.daemon = True
        timer.start()


def process_index() -> int:
    return jax.process_index()


def process_count() -> int:
    return jax.process_count()


def is_main() -> bool:
    """True on the one process that writes files and prints."""
    return process_index() == 0


def device_count() -> int:
    return jax.device_count()


def map_devices(fn: Callable, donate_argnums=()) -> Callable:
    """`fn` on every device at once, over the leading axis of each argument, with collectives named by `AXIS`."""
    return jax.pmap(fn, axis_name=AXIS, donate_argnums=donate_argnums)


def psum(x):
    """Sum over all devices, inside `map_devices`."""
    return jax.lax.psum(x, AXIS)


def pmax(x):
    """The largest over all devices, inside `map_devices`."""
    return jax.lax.pmax(x, AXIS)


def replicate(tree):
    """One copy a device, laid out as `map_devices` returns it: anything else costs a second trace at step two."""
    copies = jax.pmap(lambda _, x: x, axis_name=AXIS, in_axes=(0, None))
    return copies(jnp.zeros(jax.local_device_count()), tree)


def unreplicate(tree):
    """The first local device's copy, as numpy arrays."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)


def size(tree) -> int:
    """How many numbers one copy of a replicated tree holds."""
    return sum(math.prod(x.shape[1:]) for x in jax.tree.leaves(tree))


def local_slice(rows: int) -> slice:
    """This process's share of `rows` global rows."""
    share = rows // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def shard(tree):
    """This process's part of global arrays [devices, ...], one leading entry for each of its devices."""
    return jax.tree.map(lambda x: x[local_slice(len(x))], tree)


def gather_rows(tree):
    """Numpy arrays of this process's rows (equally many on each) to all rows in order, the same on every process."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), multihost_utils.process_allgather(tree))


def broadcast(tree):
    """The main process's numpy arrays (or numbers) on every process."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def broadcast_text(text: str) -> str:
    """The main process's text on every process."""
    data = np.frombuffer(text.encode(), np.uint8)
    room = np.zeros(largest(len(data)), np.uint8)
    room[: len(data)] = data
    size = int(broadcast(np.int32(len(data))))
    return bytes(broadcast(room)[:size]).decode()


def largest(number: int) -> int:
    """The largest of the processes' numbers, on every process: how one of them tells the others to stop."""
    return number if jax.process_count() == 1 else int(np.max(multihost_utils.process_allgather(np.int32(number))))
