"""Every mention of pmap and replication: the rest of the program sees one batch and one state.

This module alone knows how arrays lie on devices. `place_state` and `fetch_state` take a state (or parameters) to the
devices and back, `place_rows` and `fetch_rows` what is divided among them. Batches are global on every process: each
process samples its share, the shares are gathered, and the main process's grades count. A state is whole on every
device, or divided: then each device holds an equal `Shard` of every matrix, of parameters, moments and reference alike
(ZeRO-3, arXiv 1910.02054). `all_gather_parts` gathers the shards where they are used; the gradient of a gather is
summed over the devices, and each device keeps its part of the sum.
"""

import contextlib
import contextvars
import functools
import math
from typing import Callable, Optional

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import process_count, process_index
from jax.experimental import multihost_utils

AXIS = "data"
_TARGET = contextvars.ContextVar("devices to compile for", default=None)


class NotRun(Exception):
    """Raised inside `compiling_for` instead of running a program: `args` are the pmapped function and its arguments."""


@contextlib.contextmanager
def compiling_for(devices: list):
    """A context for ahead-of-time compilation. Programs made in it are for `devices`, such as those of
    `jax.experimental.topologies`, which this machine need not have; calling one raises `NotRun`."""
    token = _TARGET.set(devices)
    try:
        yield
    finally:
        _TARGET.reset(token)


def device_count() -> int:
    return len(_TARGET.get() or jax.devices())


def first_device() -> jax.Device:
    return (_TARGET.get() or jax.devices())[0]


def map_devices(fn: Callable, donate_argnums=()) -> Callable:
    """`fn` on every device at once, over the leading axis of each argument, with collectives named by `AXIS`."""
    mapped = jax.pmap(fn, axis_name=AXIS, donate_argnums=donate_argnums, devices=_TARGET.get())

    def refuse(*args):
        raise NotRun(mapped, args)
    return refuse if _TARGET.get() else mapped


def init_device(divide: bool):
    """A context in which to make a state: in host memory if it will be divided, since no device may hold all of it."""
    return jax.default_device(jax.local_devices(backend="cpu")[0] if divide else None)


@flax.struct.dataclass
class Shard:
    """One device's part of a leaf: an equal piece along the last axis but one, which is the input axis of a matrix."""

    piece: jax.Array


def _is_shard(x) -> bool:
    return isinstance(x, Shard)


_map_with_shards = functools.partial(jax.tree.map, is_leaf=_is_shard)


def _shards(tree) -> list[Shard]:
    return [x for x in jax.tree.leaves(tree, is_leaf=_is_shard) if _is_shard(x)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(piece: jax.Array, held, sent, used) -> jax.Array:
    """The pieces of all devices, which hold them in the dtype `held`: sent in `sent`, returned in `used`. The gradient
    is summed in `held`: a sum in 16 bits would depend on whether the state is divided."""
    return jax.lax.all_gather(piece.astype(sent), AXIS, axis=piece.ndim - 2, tiled=True).astype(used)


def _scatter_gradient(held, sent, used, _, gradient: jax.Array) -> tuple[jax.Array]:
    return jax.lax.psum_scatter(gradient.astype(held), AXIS, scatter_dimension=gradient.ndim - 2, tiled=True),


_gather.defvjp(lambda piece, *dtypes: (_gather(piece, *dtypes), None), _scatter_gradient)


def all_gather_parts(tree, dtype=None, but: str = "", reused: bool = False):
    """Gathers every `Shard` of a tree from all devices, inside `map_devices`, in `dtype` if given; entry `but` stays
    divided. If `reused`, values are rounded to `dtype` but keep the shard's own, in which gradients of uses add up."""
    if but:
        return {name: x if name == but else all_gather_parts(x, dtype, reused=reused) for name, x in tree.items()}

    def gather(x):
        held = x.piece.dtype
        return _gather(x.piece, held, dtype or held, held if reused else dtype or held)
    return _map_with_shards(lambda x: gather(x) if _is_shard(x) else x, tree)


def after_gathers(tree, state):
    """The tree; if the state is divided, each of its arrays now depends on all others. Without that, a sum over devices
    that needs no gathered weights could run before a gather on one device and after it on another: a deadlock."""
    if not _shards(state):
        return tree
    ready = sum(jnp.ravel(x)[0] for x in jax.tree.leaves(tree))
    return jax.tree.map(lambda x: jnp.where(jnp.isnan(ready), jnp.nan, x), tree)


def psum(tree, axis_name: Optional[str] = AXIS):
    """Sums over the devices of an axis; None stands for one device. A `Shard` is a gradient that is summed already."""
    if axis_name is None:
        return tree
    return _map_with_shards(lambda x: x if _is_shard(x) else jax.lax.psum(x, axis_name), tree)


def pmax(x, axis_name: Optional[str] = AXIS):
    """The largest over the devices of an axis; None stands for one device."""
    return x if axis_name is None else jax.lax.pmax(x, axis_name)


def global_norm(tree) -> jax.Array:
    """The norm of all numbers of a tree whose leaves may be divided, inside `map_devices`."""
    squared_sum = functools.partial(optax.tree.norm, squared=True)
    shards, leaves = _shards(tree), jax.tree.leaves(_map_with_shards(lambda x: None if _is_shard(x) else x, tree))
    return jnp.sqrt(squared_sum(leaves) + jax.lax.psum(squared_sum(shards), AXIS) if shards else squared_sum(tree))


def divided_leaves(tree, count: int):
    """A tree of bools: which leaves are divided among `count` devices. These are the matrices whose input axis divides
    evenly, except the few numbers of the entry "adapter" and the leaves that the update computes from them."""
    def names(path) -> list:
        return [getattr(key, "key", None) for key in path]

    paths = [names(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    few = {path[-1] for path in paths if "adapter" in path}
    return jax.tree_util.tree_map_with_path(lambda path, x: few.isdisjoint(names(path)) and (
        x.ndim - ("layers" in names(path)) >= 2 and x.shape[-2] % count == 0), tree)


def place_state(tree, divide: bool = False):
    """A copy on every device, or with `divide` a `Shard` of each of `divided_leaves`. The layout is the one that
    `map_devices` returns: another one would cost a second trace at step two."""
    count, copies = jax.device_count(), jax.pmap(lambda _, x: x, axis_name=AXIS, in_axes=(0, None))
    pieces = jax.pmap(lambda x: x, axis_name=AXIS)

    def place(x, divided: bool):
        if divided:
            return Shard(pieces(place_rows(np.stack(np.split(np.asarray(x), count, axis=-2)))))
        return copies(jnp.zeros(jax.local_device_count()), x)
    return jax.tree.map(place, tree, divided_leaves(tree, count)) if divide else place(tree, False)


def fetch_state(tree):
    """A placed tree as numpy arrays, each leaf once and whole."""
    def fetch(x):
        if not _is_shard(x):
            return np.asarray(x.addressable_shards[0].data)[0]
        pieces = x.piece if process_count() == 1 else multihost_utils.process_allgather(x.piece, tiled=True)
        return np.concatenate(np.asarray(pieces), axis=-2)
    return _map_with_shards(fetch, tree)


def size(tree) -> int:
    """How many numbers one copy of a placed tree holds."""
    return sum(jax.tree.leaves(_map_with_shards(  # a piece counts the devices of this process alone
        lambda x: x.piece.size * process_count() if _is_shard(x) else math.prod(x.shape[1:]), tree)))


def place_rows(tree):
    """This process's part of global host arrays [devices, ...]: one leading entry for each of its devices."""
    share = device_count() // process_count()
    first = process_index() * share
    return jax.tree.map(lambda x: x[first : first + share], tree)


def fetch_rows(tree):
    """What `map_devices` returned on each device, [rows, ...], as one numpy array [devices * rows, ...] of all devices
    in order, the same on every process."""
    flat = lambda tree: jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)
    rows = flat(tree)
    return rows if process_count() == 1 else flat(multihost_utils.process_allgather(rows))
