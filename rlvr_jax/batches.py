"""How a host batch is cut into minibatches, devices and micro-batches, with little padding. Axes as in `model`."""

from typing import Callable, Iterator

import jax
import numpy as np

from rlvr_jax.model import localise
from rlvr_jax.records import Batch

LONG = 64  # tokens from which on completions are expected to differ so much in length that padding costs


def minibatches(batch: Batch, num_minibatches: int, seed: tuple) -> Iterator[Batch]:
    """Random equal parts of the rows, drawn from `seed` on the host so that every process draws the same."""
    order = np.random.default_rng(seed).permutation(len(batch.prompt_index))
    if num_minibatches == 1:
        order.sort()  # one part needs no shuffling, and sorted rows keep their prompts together
    for part in np.split(order, num_minibatches):
        yield with_rows(batch, lambda x: x[part])


def with_rows(batch: Batch, change: Callable) -> Batch:
    """The batch with `change(array)` of every array that has a row for each completion; its prompts stay."""
    return jax.tree.map(change, batch.replace(prompts=None)).replace(prompts=batch.prompts)


def alike(batch: Batch, num_devices: int, num_micro: int) -> Batch:
    """The rows in another order: micro-batches, over all devices, are of like length. Groups stay together."""
    length = batch.completion_mask.shape[1]
    if len(buckets(length)) == 1:
        return batch
    lengths_B = np.max(np.where(batch.completion_mask, np.arange(length) + 1, 0), -1)
    longest_P = np.zeros(len(batch.prompts.lengths), int)
    np.maximum.at(longest_P, batch.prompt_index, lengths_B)
    order = np.lexsort((lengths_B, batch.prompt_index, longest_P[batch.prompt_index]))
    order = order.reshape(num_micro, num_devices, -1).swapaxes(0, 1).ravel()
    return with_rows(batch, lambda x: x[order])


def lay_out(batch: Batch, num_devices: int, num_micro: int) -> Batch:
    """Cuts a host batch into [devices, micro-batches, rows, ...], each piece with only the prompts its rows use."""
    prompts, index = localise(batch.prompts, batch.prompt_index, num_devices * num_micro)
    pieces = jax.tree.map(lambda x: np.asarray(x).reshape(num_devices * num_micro, -1, *x.shape[1:]),
                          batch.replace(prompts=None))
    return jax.tree.map(lambda x: x.reshape(num_devices, num_micro, *x.shape[1:]),
                        pieces.replace(prompts=prompts, prompt_index=index))


def buckets(length: int) -> list[int]:
    """The lengths to which a micro-batch is cut, the shortest that holds its completions: padding is not computed."""
    return [length // 4, length // 2, length] if length >= LONG else [length]


def first_tokens(batch: Batch, size: int) -> Batch:
    """The rows without what stands behind their first `size` tokens."""
    return with_rows(batch, lambda x: x[:, :size] if x.ndim > 1 else x)
