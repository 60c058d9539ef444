"""Divides a host batch among minibatches, devices and micro-batches with little padding. Axis letters as in `model`."""

from typing import Callable, Iterator, Optional

import jax
import jax.numpy as jnp
import numpy as np

from rlvr_jax import parallel
from rlvr_jax.model import local_prompts
from rlvr_jax.records import Batch

LONG = 64  # rows of fewer tokens are not truncated, since their padding costs little


def minibatches(batch: Batch, num_minibatches: int, seed: tuple) -> Iterator[Batch]:
    """Yields `num_minibatches` equal random parts of the rows. `seed` alone decides, so all processes agree."""
    order = np.random.default_rng(seed).permutation(len(batch.prompt_index))
    if num_minibatches == 1:
        order.sort()  # one part needs no shuffling, and sorted rows keep their prompts together
    for part in np.split(order, num_minibatches):
        yield map_rows(batch, lambda x: x[part])


def map_rows(batch: Batch, change: Callable) -> Batch:
    """Returns the batch with `change(array)` for every array that has a row for each completion: all but `prompts`."""
    return jax.tree.map(change, batch.replace(prompts=None)).replace(prompts=batch.prompts)


def sort_by_length(batch: Batch, num_devices: int, num_micro: int) -> tuple[Batch, np.ndarray]:
    """Orders rows so that completions in a micro-batch have similar lengths and those of one prompt stay together.
    Returns (ordered batch, positions i[B]): the old row b is row positions[b] of the ordered batch."""
    rows, length = batch.completion_mask.shape
    if len(bucket_lengths(length)) == 1:
        return batch, np.arange(rows)
    lengths_B = np.max(np.where(batch.completion_mask, np.arange(length) + 1, 0), -1)
    longest_P = np.zeros(len(batch.prompts.lengths), int)
    np.maximum.at(longest_P, batch.prompt_index, lengths_B)
    order = np.lexsort((lengths_B, batch.prompt_index, longest_P[batch.prompt_index]))  # the last key counts most
    order = order.reshape(num_micro, num_devices, -1).swapaxes(0, 1).ravel()  # similar lengths across devices
    return map_rows(batch, lambda x: x[order]), np.argsort(order)


def shard_batch(batch: Batch, num_devices: int, num_micro: int) -> tuple[Batch, np.ndarray]:
    """Sorts a host batch by length and reshapes it to [devices, micro-batches, rows, ...]; a micro-batch has only the
    prompts of its rows. Returns (sharded batch, positions i[B]), the positions as from `sort_by_length`."""
    batch, positions = sort_by_length(batch, num_devices, num_micro)
    prompts, index = local_prompts(batch.prompts, batch.prompt_index, num_devices * num_micro)
    sharded = map_rows(batch.replace(prompt_index=index.ravel()), lambda x: np.asarray(x).reshape(
        num_devices, num_micro, -1, *x.shape[1:]))
    prompts = jax.tree.map(lambda x: x.reshape(num_devices, num_micro, *x.shape[1:]), prompts)
    return sharded.replace(prompts=prompts), positions


def bucket_lengths(length: int) -> list[int]:
    """Returns, in ascending order, the lengths to which micro-batches of `length` tokens may be truncated."""
    return [length // n for n in (8, 4, 2, 1)] if length >= LONG else [length]


def choose_buckets(mask_MxBxT: jax.Array, axis_name: Optional[str] = None) -> jax.Array:
    """Returns i32[M]: for each of M micro-batches, the index of the shortest of `bucket_lengths` that holds its
    completions on every device of the axis `axis_name` (None: one device)."""
    longest_M = jnp.max(jnp.where(mask_MxBxT, jnp.arange(mask_MxBxT.shape[-1]) + 1, 0), (1, 2))
    longest_M = parallel.pmax(longest_M, axis_name)
    return jnp.sum(longest_M[:, None] > jnp.array(bucket_lengths(mask_MxBxT.shape[-1]))[None, :-1], -1)


def truncate(batch: Batch, size: int) -> Batch:
    """Returns the batch with every array [B,T] truncated to its first `size` tokens; arrays [B] stay."""
    return map_rows(batch, lambda x: x[:, :size] if x.ndim > 1 else x)
