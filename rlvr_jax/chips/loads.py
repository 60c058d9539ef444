"""Assumed lengths of completions, and how often each loop and branch of a run's programs then runs."""

from typing import Callable, NamedTuple, Optional

import numpy as np

from rlvr_jax import batches, model, sampler
from rlvr_jax.records import Batch

POWERS = 0.0, 1.5  # `power` in `lengths`: all completions have the maximum length, or 40 % of it on average


class Load(NamedTuple):
    """How a program runs for given completions. A bucket is a length for which the program has a compiled branch."""

    rounds: list[int]  # trip counts of its decoding loops, in program order; [] for learning, which has none
    weights: list[float]  # of each bucket: the share of decoding rounds, or of micro-batches, that run its branch


def lengths(rows: int, longest: int, power: float) -> np.ndarray:
    """Returns lengths in tokens, i64[rows]: longest * u**power, rounded up, for u evenly spaced in (0, 1]; shuffled."""
    return np.random.default_rng(0).permutation(np.ceil(longest * ((np.arange(rows) + 1) / rows) ** power).astype(int))


def decoding(lengths_B: np.ndarray, slots: int, most: int, layout: model.Layout, attend: Optional[Callable]) -> Load:
    """Returns the Load of sampling completions of `lengths_B` tokens, at most `most`, in this many `slots` (0: as many
    as completions), by replaying the loops of `sampler.decode`. In each round the slot with the most tokens decides how
    much of the cache, which bucket, is read. With a kernel `attend` the whole cache counts as read, as one bucket."""
    slots = min(slots or len(lengths_B), len(lengths_B))
    steps, left = np.zeros(slots, int), lengths_B[:slots].copy()  # tokens of each slot's completion: sampled, to come
    queue, plan = iter(lengths_B[slots:]), sampler.stages(slots, most, layout, attend)
    rounds, farthest = [], []  # rounds of each loop; the largest of `steps` in each round
    for (size, window), (next_size, _) in zip(plan, [*plan[1:], (0, most)]):
        stop_at = next_size if next_size < size else 0  # busy slots for which the next, smaller loop has room
        busiest, first_round = np.argsort(left == 0, kind="stable")[:size], len(farthest)
        steps, left = steps[busiest], left[busiest]
        while (left > 0).sum() > stop_at and max(steps) < window:
            busy, position = left > 0, max(steps)
            jump = min(*left[busy], window - position)  # rounds until a completion or the loop ends
            farthest += range(position, position + jump)
            steps, left = steps + jump * busy, left - jump * busy
            for i in np.flatnonzero(busy & (left == 0)):  # free slots take the next completions in the order of slots
                steps[i], left[i] = 0, next(queue, 0)
        rounds.append(len(farthest) - first_round)
    ends = [] if layout.grows or attend else [64 * 2**i for i in range(24) if 64 * 2**i < most]  # of buckets
    counts = np.bincount(np.searchsorted(ends, farthest, side="right"), minlength=len(ends) + 1)
    return Load(rounds, list(counts / len(farthest)))


def learning(batch: Batch, devices: int, micro_batches: int) -> Load:
    """Returns the Load of learning from a batch that is sorted, divided and truncated as in `learner`."""
    sharded, _ = batches.shard_batch(batch, devices, micro_batches)
    most = batch.completion_mask.shape[-1]
    buckets_M = batches.choose_buckets(sharded.completion_mask.swapaxes(0, 1).reshape(micro_batches, -1, most))
    return Load([], list(np.bincount(buckets_M, minlength=len(batches.bucket_lengths(most))) / micro_batches))
