"""Assumed lengths of completions, and how often the loops and buckets of a run's programs run with them."""

from typing import Callable, NamedTuple, Optional

import numpy as np

from rlvr_jax import batches, model, sampler
from rlvr_jax.records import Batch

POWERS = 0.0, 1.5  # for `lengths`: all as long as the longest, and 40 % of it on average


class Load(NamedTuple):
    """How a program runs for completions of given lengths."""

    rounds: list[int]  # trip counts of its loops over tokens, in their order
    weights: list[float]  # how often it takes each bucket, of the cache or of micro-batches' lengths: shares of 1


def lengths(rows: int, longest: int, power: float) -> np.ndarray:
    """i[rows]: longest * u**power for u evenly spaced in (0, 1], shuffled with a fixed seed."""
    return np.random.default_rng(0).permutation(np.ceil(longest * ((np.arange(rows) + 1) / rows) ** power).astype(int))


def decoding(lengths_B: np.ndarray, slots: int, most: int, layout: model.Layout, attend: Optional[Callable]) -> Load:
    """Replays the queue of `sampler.decode` with completions of these lengths. The farthest slot selects the bucket of
    the cache that `model.decode_step` reads; with `attend`, a kernel, there is one bucket, and the kernel reads less of
    it than is counted."""
    slots = min(slots or len(lengths_B), len(lengths_B))
    steps, left, queue = np.zeros(slots, int), lengths_B[:slots].copy(), iter(lengths_B[slots:])
    plan, rounds, farthest = sampler.stages(slots, most, layout, attend), [], []
    for (size, window), (later, _) in zip(plan, [*plan[1:], (0, most)]):
        kept, begun = np.argsort(left == 0, kind="stable")[:size], len(farthest)
        steps, left = steps[kept], left[kept]
        while (busy := left > 0).sum() > (later if later < size else 0) and (far := max(steps)) < window:
            now = min(*left[busy], window - far)  # rounds until a slot or the stage ends
            farthest += range(far, far + now)
            steps, left = steps + now * busy, left - now * busy
            for i in np.flatnonzero(busy & (left == 0)):
                steps[i], left[i] = 0, next(queue, 0)
        rounds.append(len(farthest) - begun)
    buckets = [64 * 2**i for i in range(24) if not layout.grows and not attend and 64 * 2**i < most]
    counts = np.bincount(np.searchsorted(buckets, farthest, side="right"), minlength=len(buckets) + 1)
    return Load(rounds, list(counts / len(farthest)))


def learning(batch: Batch, devices: int, micro_batches: int) -> tuple[Batch, Load]:
    """The batch as `learner` divides it among devices, and the shares of its micro-batches truncated to each length."""
    made = batches.shard_batch(batches.sort_by_length(batch, devices, micro_batches)[0], devices, micro_batches)
    mask_MxBxT = made.completion_mask.swapaxes(0, 1).reshape(micro_batches, -1, batch.completion_mask.shape[-1])
    buckets_M = batches.choose_buckets(mask_MxBxT)
    count = len(batches.bucket_lengths(mask_MxBxT.shape[-1]))
    return made, Load([], list(np.bincount(buckets_M, minlength=count) / micro_batches))
