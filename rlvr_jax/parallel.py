"""Every mention of pmap, replication and processes: the rest of the program sees one batch and one state.

How arrays lie on devices is known here alone. `place_state` and `fetch_state` take a state (or parameters) to the
devices and back, `place_rows` and `fetch_rows` what is divided among them. Batches are global on every process: each
samples its share, the shares are gathered, and the main process's grades hold.

A state is whole on every device, or divided: then each holds an equal `Shard` of every matrix, of parameters, moments
and reference alike (ZeRO-3, arXiv 1910.02054). `all_gather_parts` gathers parts where they are computed with; the
gradient of that adds up what the devices found, and leaves each its part of the sum.
"""

import functools
import math
import os
import threading
from typing import Callable, Optional

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

AXIS = "data"
HEARTBEAT = 30  # seconds without a sign of life after which the processes give another one up; JAX's own is 100
SENT = 2**26  # bytes that `broadcast` puts on a device at once


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


def map_devices(fn: Callable, donate_argnums=(), devices: Optional[list] = None) -> Callable:
    """`fn` on every device at once, over the leading axis of each argument, with collectives named by `AXIS`. For
    `devices` that are not here, those of `jax.experimental.topologies`, it can be compiled."""
    return jax.pmap(fn, axis_name=AXIS, donate_argnums=donate_argnums, devices=devices)


def init_device(divide: bool):
    """A context for making a state: one that is to be divided is made in the host's memory, as no device may hold it."""
    return jax.default_device(jax.local_devices(backend="cpu")[0] if divide else None)


@flax.struct.dataclass
class Shard:
    """One device's part of a leaf: of equal pieces along the last axis but one, where a matrix has its inputs."""

    piece: jax.Array


def _over_parts(fn: Callable, tree):
    return jax.tree.map(fn, tree, is_leaf=lambda x: isinstance(x, Shard))


def _parts(tree) -> list:
    return [x for x in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Shard)) if isinstance(x, Shard)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gathered(piece: jax.Array, held, sent, used) -> jax.Array:
    """The pieces of all devices: `held` in one dtype, `sent` in another, returned in the one that they are `used` in.
    Their gradient is summed as they are held: a sum of 16 bits would depend on whether the state is divided."""
    return jax.lax.all_gather(piece.astype(sent), AXIS, axis=piece.ndim - 2, tiled=True).astype(used)


def _summed(held, sent, used, _, gradient: jax.Array) -> tuple[jax.Array]:
    return jax.lax.psum_scatter(gradient.astype(held), AXIS, scatter_dimension=gradient.ndim - 2, tiled=True),


_gathered.defvjp(lambda piece, *dtypes: (_gathered(piece, *dtypes), None), _summed)


def all_gather_parts(tree, dtype=None, but: str = "", reused: bool = False):
    """Gathers each `Shard` from all devices, inside `map_devices`, in `dtype` if one is given; not those of entry `but`.
    What is `reused` has only values of that dtype, and the dtype of its part: gradients of its uses add up in that."""
    if but:
        return {name: x if name == but else all_gather_parts(x, dtype, reused=reused) for name, x in tree.items()}

    def gathered(x):
        held = x.piece.dtype
        return _gathered(x.piece, held, dtype or held, held if reused else dtype or held)
    return _over_parts(lambda x: gathered(x) if isinstance(x, Shard) else x, tree)


def after_gathers(tree, state):
    """The tree; where the state is divided, each of its arrays is made to depend on all others. Else a sum that needs
    no gathered weights could run before a gather on one device and after it on another, and each may wait for ever."""
    if not _parts(state):
        return tree
    ready = sum(jnp.ravel(x)[0] for x in jax.tree.leaves(tree))  # not a number where a gradient is none, either
    return jax.tree.map(lambda x: jnp.where(ready == ready, x, jnp.nan), tree)


def psum(tree):
    """Sums over all devices, inside `map_devices`. A `Shard` is a gradient that `all_gather_parts` has summed already."""
    return _over_parts(lambda x: x if isinstance(x, Shard) else jax.lax.psum(x, AXIS), tree)


def global_sum(fn: Callable, tree) -> jax.Array:
    """`fn(tree)`, a sum over all numbers of the tree, where leaves may be divided, inside `map_devices`."""
    parts, leaves = _parts(tree), jax.tree.leaves(_over_parts(lambda x: None if isinstance(x, Shard) else x, tree))
    return fn(leaves) + jax.lax.psum(fn(parts), AXIS) if parts else fn(tree)


def pmax(x):
    """The largest over all devices, inside `map_devices`."""
    return jax.lax.pmax(x, AXIS)


def _divided(tree, count: int):
    """Which leaves are divided: matrices that do so evenly. The entries of "adapter", which are few, and the leaves of
    their names, which the update makes of them, are whole."""
    def names(path) -> list:
        return [getattr(key, "key", None) for key in path]

    paths = [names(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    few = {path[-1] for path in paths if "adapter" in path}
    return jax.tree_util.tree_map_with_path(lambda path, x: few.isdisjoint(names(path)) and (
        x.ndim - ("layers" in names(path)) >= 2 and x.shape[-2] % count == 0), tree)


def placed_shapes(tree, count: int, divide: bool):
    """The shapes of what `place_state` makes of a tree of shapes on that many devices."""
    def placed(x, part):
        shape = [count, *x.shape]
        if divide and part:
            shape[-2] //= count
        return (Shard if divide and part else lambda leaf: leaf)(jax.ShapeDtypeStruct(shape, x.dtype))
    return jax.tree.map(placed, tree, _divided(tree, count))


def place_state(tree, divide: bool = False):
    """A copy on every device, or its part, laid out as `map_devices` returns it: anything else costs a second trace at
    step two. Matrices that do not divide evenly, vectors, and numbers that stand for an adapter are whole on each."""
    count, copies = jax.device_count(), jax.pmap(lambda _, x: x, axis_name=AXIS, in_axes=(0, None))
    pieces = jax.pmap(lambda x: x, axis_name=AXIS)

    def placed(x, part):
        if part:
            return Shard(pieces(place_rows(np.stack(np.split(np.asarray(x), count, axis=-2)))))
        return copies(jnp.zeros(jax.local_device_count()), x)
    return (jax.tree.map(placed, tree, _divided(tree, count)) if divide else
            copies(jnp.zeros(jax.local_device_count()), tree))


def fetch_state(tree):
    """Numpy arrays of what is the same on every device, and whole ones of what is divided."""
    def fetched(x):
        if not isinstance(x, Shard):
            return np.asarray(x.addressable_shards[0].data)[0]
        pieces = x.piece if jax.process_count() == 1 else multihost_utils.process_allgather(x.piece, tiled=True)
        return np.concatenate(np.asarray(pieces), axis=-2)
    return _over_parts(fetched, tree)


def size(tree) -> int:
    """How many numbers one copy of a placed state holds."""
    return sum(jax.tree.leaves(_over_parts(  # the size of a piece is that of this process's devices
        lambda x: x.piece.size * jax.process_count() if isinstance(x, Shard) else math.prod(x.shape[1:]), tree)))


def place_rows(tree):
    """This process's part of global host arrays [devices, ...], one leading entry for each of its devices."""
    share, first = jax.local_device_count(), jax.process_index() * jax.local_device_count()
    return jax.tree.map(lambda x: x[first : first + share], tree)


def fetch_rows(tree):
    """What `map_devices` returned for each device, [rows, ...], as one numpy array [devices * rows, ...] of all of
    them in order, the same on every process."""
    flat = lambda tree: jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)
    rows = flat(tree)
    return rows if jax.process_count() == 1 else flat(multihost_utils.process_allgather(rows))


def broadcast(tree):
    """The main process's numpy arrays (or numbers) on every process.

    They go through the devices, `SENT` bytes at a time: no device may have room for all of a state that is divided.
    """
    def arrived(x) -> np.ndarray:
        flat = np.asarray(x).reshape(-1)
        pieces = np.array_split(flat, max(1, -(-flat.nbytes // SENT)))
        return np.concatenate([multihost_utils.broadcast_one_to_all(piece) for piece in pieces]).reshape(np.shape(x))
    return tree if jax.process_count() == 1 else jax.tree.map(arrived, tree)


def broadcast_text(text: str) -> str:
    """The main process's text, which has no NUL, on every process."""
    room = np.frombuffer(text.encode().ljust(max_over_processes(len(text.encode())), b"\0"), np.uint8)
    return bytes(broadcast(room)).rstrip(b"\0").decode()


def max_over_processes(number: int) -> int:
    """The largest of the processes' numbers, on every process: how one of them tells the others to stop."""
    return number if jax.process_count() == 1 else int(np.max(multihost_utils.process_allgather(np.int32(number))))
