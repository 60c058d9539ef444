"""Every mention of pmap, replication and processes: the rest of the program sees one batch and one state.

How arrays lie on devices is known here alone. `place_state` and `fetch_state` take a state (or parameters) to the
devices and back, `place_rows` and `fetch_rows` what is divided among them. Batches are global on every process: each
samples its share, the shares are gathered, and the main process's grades hold.
"""

import math
import os
import threading
from typing import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

AXIS = "data"
HEARTBEAT = 30  # seconds without a sign of life after which the processes give another one up; JAX's own is 100


def initialize(coordinator_address: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the processes of one run. Call before anything touches a device; no address means a single process."""
    if coordinator_address == "auto":  # TPU pods, Slurm and others that JAX recognises
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
    elif coordinator_address:
        jax.distributed.initialize(coordinator_address, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT)


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


def place_state(tree):
    """A copy on every device, laid out as `map_devices` returns it: anything else costs a second trace at step two."""
    copies = jax.pmap(lambda _, x: x, axis_name=AXIS, in_axes=(0, None))
    return copies(jnp.zeros(jax.local_device_count()), tree)


def fetch_state(tree):
    """Numpy arrays of what is the same on every device."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)


def size(tree) -> int:
    """How many numbers one copy of a placed state holds."""
    return sum(math.prod(x.shape[1:]) for x in jax.tree.leaves(tree))


def place_rows(tree):
    """This process's part of global host arrays [devices, ...], one leading entry for each of its devices."""
    share, first = jax.local_device_count(), jax.process_index() * jax.local_device_count()
    return jax.tree.map(lambda x: x[first : first + share], tree)


def fetch_rows(tree):
    """What `map_devices` returned for each device, [rows, ...], as one numpy array [devices * rows, ...] of all of
    them in order, the same on every process."""
    tree = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)
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
