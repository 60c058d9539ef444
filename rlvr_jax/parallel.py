"""Data parallelism with pmap. Only this module knows how arrays are laid out on devices.

All other modules see one batch and one state. `place_state` and `fetch_state` copy a state (or parameters) to the
devices and back; `place_rows` and `fetch_rows` do so for arrays whose rows are divided among devices. Every process has
the whole batch: each samples its share, and the shares are gathered. A state is replicated, or divided: then each
device holds an equal `Shard` of every matrix of parameters, moments and reference (ZeRO-3, arXiv 1910.02054).
`all_gather_parts` gathers shards where they are used, and gives each device its part of the summed gradients.
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
    """Raised by calls of functions mapped inside `compiling_for`; `args` is (pmapped function, its arguments)."""


@contextlib.contextmanager
def compiling_for(devices: list):
    """A context in which `map_devices` maps functions over `devices` that this machine need not have, such as those of
    `jax.experimental.topologies`. A call raises `NotRun`, whose pmapped function can be lowered and compiled."""
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
    """Returns `fn` mapped by pmap over all devices. Arguments and results have a leading axis of devices, `AXIS` in
    collectives. Results may reuse the memory of arguments `donate_argnums`. In `compiling_for`, calls raise NotRun."""
    mapped = jax.pmap(fn, axis_name=AXIS, donate_argnums=donate_argnums, devices=_TARGET.get())

    def refuse(*args):
        raise NotRun(mapped, args)
    return refuse if _TARGET.get() else mapped


def init_device(divide: bool):
    """A context for creating a state: in host memory if `divide`, since one device may not hold an undivided state."""
    return jax.default_device(jax.local_devices(backend="cpu")[0] if divide else None)


@flax.struct.dataclass
class Shard:
    """One device's part of a leaf: an equal piece of the second-last axis, which is the input axis of a matrix."""

    piece: jax.Array


def _is_shard(x) -> bool:
    return isinstance(x, Shard)


_map_with_shards = functools.partial(jax.tree.map, is_leaf=_is_shard)


def _shards(tree) -> list[Shard]:
    return [x for x in jax.tree.leaves(tree, is_leaf=_is_shard) if _is_shard(x)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(piece: jax.Array, held, sent, used) -> jax.Array:
    """Gathers the pieces of all devices: casts them from dtype `held` to `sent`, gathers, casts to `used`. Gradients
    are summed in `held`, since a sum in 16 bits would depend on whether the state is divided."""
    return jax.lax.all_gather(piece.astype(sent), AXIS, axis=piece.ndim - 2, tiled=True).astype(used)


def _scatter_gradient(held, sent, used, _, gradient: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.psum_scatter(gradient.astype(held), AXIS, scatter_dimension=gradient.ndim - 2, tiled=True),)


_gather.defvjp(lambda piece, *dtypes: (_gather(piece, *dtypes), None), _scatter_gradient)


def all_gather_parts(tree, dtype=None, but: str = "", reused: bool = False):
    """Returns the tree with every `Shard` gathered from all devices, in `dtype` if given; call it inside `map_devices`.
    If the tree is a dict, its entry `but` stays divided. With `reused`, for weights used more than once, values are
    rounded to `dtype` but returned in the shard's dtype, in which the gradients of all uses are then added up."""
    if but:
        return {name: x if name == but else all_gather_parts(x, dtype, reused=reused) for name, x in tree.items()}

    def gather(shard: Shard) -> jax.Array:
        held = shard.piece.dtype
        sent = dtype or held
        used = held if reused else sent
        return _gather(shard.piece, held, sent, used)
    return _map_with_shards(lambda x: gather(x) if _is_shard(x) else x, tree)


def after_gathers(tree, state):
    """Returns the tree. If the state is divided, makes each array depend on all others: otherwise a sum over devices
    could run before a gather of weights on one device and after it on another, a deadlock."""
    if not _shards(state):
        return tree
    ready = sum(jnp.ravel(x)[0] for x in jax.tree.leaves(tree))  # depends on every array
    return jax.tree.map(lambda x: jnp.where(jnp.isnan(ready), jnp.nan, x), tree)  # x, but only after `ready`


def psum(tree, axis_name: Optional[str] = AXIS):
    """Sums a tree over the devices of an axis (None: one device), except `Shard`s: their gradients are already sums."""
    if axis_name is None:
        return tree
    return _map_with_shards(lambda x: x if _is_shard(x) else jax.lax.psum(x, axis_name), tree)


def pmax(x, axis_name: Optional[str] = AXIS):
    """Returns the maximum over the devices of an axis; None stands for one device."""
    return x if axis_name is None else jax.lax.pmax(x, axis_name)


def global_norm(tree) -> jax.Array:
    """Returns the Euclidean norm of a whole tree, some of whose leaves may be `Shard`s (then inside `map_devices`)."""
    squared_sum = functools.partial(optax.tree.norm, squared=True)
    shards, leaves = _shards(tree), [x for x in jax.tree.leaves(tree, is_leaf=_is_shard) if not _is_shard(x)]
    return jnp.sqrt((squared_sum(leaves) + jax.lax.psum(squared_sum(shards), AXIS)) if shards else squared_sum(tree))


def divided_leaves(tree, count: int):
    """Returns a tree of bools, true for leaves to divide among `count` devices: all matrices whose input axis divides
    evenly, except the arrays of the entry "adapter" and the leaves that the update computes from them."""
    names = lambda path: [getattr(key, "key", None) for key in path]
    paths = [names(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    whole = {path[-1] for path in paths if "adapter" in path}  # names of leaves that stay undivided

    def is_divided(path, x) -> bool:
        ndim = x.ndim - ("layers" in names(path))  # the arrays of all layers are stacked along a first axis
        return whole.isdisjoint(names(path)) and ndim >= 2 and x.shape[-2] % count == 0
    return jax.tree_util.tree_map_with_path(is_divided, tree)


def place_state(tree, divide: bool = False):
    """Copies a tree to every device; with `divide`, each device gets a `Shard` of each of `divided_leaves`. The arrays'
    layout is that of results of `map_devices`: any other would make JAX trace the update again at step 2."""
    distribute, count = jax.pmap(lambda rows: rows, axis_name=AXIS), jax.device_count()
    replicate = jax.pmap(lambda mapped, x: x, axis_name=AXIS, in_axes=(0, None))  # pmap has to map an argument

    def place(x, divided: bool):
        if divided:
            return Shard(distribute(place_rows(np.stack(np.split(np.asarray(x), count, axis=-2)))))
        return replicate(jnp.zeros(jax.local_device_count()), x)
    return jax.tree.map(place, tree, divided_leaves(tree, count)) if divide else place(tree, False)


def fetch_state(tree):
    """Copies a placed tree to the host, as one numpy array for each leaf; divided leaves are joined."""
    def fetch(x):
        if not _is_shard(x):
            return np.asarray(x.addressable_shards[0].data)[0]
        pieces = x.piece if process_count() == 1 else multihost_utils.process_allgather(x.piece, tiled=True)
        return np.concatenate(np.asarray(pieces), axis=-2)
    return _map_with_shards(fetch, tree)


def size(tree) -> int:
    """Returns how many numbers one copy of a placed tree has."""
    # A Shard has the pieces of all devices of this process; the first axis of another leaf, a copy for each device.
    count = lambda x: x.piece.size * process_count() if _is_shard(x) else math.prod(x.shape[1:])
    return sum(jax.tree.leaves(_map_with_shards(count, tree)))


def place_rows(tree):
    """Returns this process's part of global host arrays [devices, ...]: one leading entry for each of its devices."""
    devices = device_count() // process_count()  # of this process
    first = process_index() * devices
    return jax.tree.map(lambda x: x[first : first + devices], tree)


def fetch_rows(tree):
    """Joins results of a mapped function, [rows, ...] per device, to numpy [devices * rows, ...] on all processes."""
    flat = lambda tree: jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)  # merges two axes
    rows = flat(tree)
    return rows if process_count() == 1 else flat(multihost_utils.process_allgather(rows))
