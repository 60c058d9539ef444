"""The formulas of diagnostics, on arrays alone: correcting for luck, and where a curve reaches a target.

P problems, N completions of each, K runs, E evaluations of a run, R resamples.
"""

import collections
from typing import Optional, Sequence

import numpy as np

from rlvr_jax.evaluation.estimators import RESAMPLES, powers_up_to

LUCK = 0.5  # the largest share of problems that guessing may solve where pass@k is corrected for luck


def guess_rates(answers_PxN: Sequence[Sequence[str]], right_PxN: np.ndarray, truths_P: Sequence[str]) -> np.ndarray:
    """Returns f64[P], the guess rate of each problem p: of all completions of *other* problems, the share whose answer
    would be right for p; 0 if p is the only problem. An answer is right for p if it equals the reference of p, in
    `truths_P`, or an answer to p that `right_PxN` marks as right. An empty answer never is. Answers are compared as
    text, so normalise them first."""
    counts = [collections.Counter(answers) for answers in answers_PxN]  # of each problem: how often it has each answer
    every = sum(counts, collections.Counter())
    num_others = every.total() - len(answers_PxN[0])
    right = [{truth, *(answer for answer, ok in zip(answers, rights) if ok)} - {""}
             for truth, answers, rights in zip(truths_P, answers_PxN, right_PxN)]
    return np.array([sum(every[a] - mine[a] for a in texts) / max(num_others, 1) for texts, mine in zip(right, counts)])


def luck(rates_P: np.ndarray, k: int) -> np.ndarray:
    """f64[P], the chance that one of k guesses solves each problem: 1 - (1 - g)^k, where g is its guess rate."""
    return 1 - (1 - rates_P) ** k


def beyond_luck(share, lucky):
    """The share x solved without luck, from `share` = x + (1 - x) * `lucky`, where `lucky` is what guessing solves."""
    return (share - lucky) / (1 - lucky)


def most_tries(rates: Sequence[np.ndarray], num_samples: int) -> Optional[int]:
    """The largest k, `num_samples` or a smaller power of two, for which k guesses solve at most a share LUCK of the
    problems for every model. `rates` has each model's `guess_rates`, f64[P]. None if one guess already solves more."""
    return max((k for k in powers_up_to(num_samples)
                if max(luck(rates_P, k).mean() for rates_P in rates) <= LUCK), default=None)


def covered(right_PxN: np.ndarray, rates_P: np.ndarray, tau: float) -> np.ndarray:
    """f64[P], 1 where (s - g) / (1 - g) is at least tau, else 0, where s is a problem's share of right completions and
    g its guess rate (arXiv 2510.08325)."""
    rates_P = np.minimum(rates_P, 1 - 1e-9)
    return (beyond_luck(np.mean(right_PxN, -1), rates_P) >= tau - 1e-9).astype(float)


def numbers_at(target: float, sizes_K: np.ndarray, accuracies_K: np.ndarray) -> float:
    """How many trained parameters (`sizes_K` of K runs) reach the target accuracy, interpolated over log size between
    the smallest run that reaches it and the next smaller run; NaN if no run does. Runs of equal size are averaged."""
    sizes_K, index = np.unique(sizes_K, return_inverse=True)
    means_K = np.bincount(index, accuracies_K) / np.bincount(index)
    reached = np.flatnonzero(means_K >= target - 1e-9)
    if not len(reached):
        return float("nan")
    if reached[0] == 0:
        return float(sizes_K[0])
    ends = slice(reached[0] - 1, reached[0] + 1)
    return float(np.exp(np.interp(target, means_K[ends], np.log(sizes_K[ends]))))


def tokens_to_half(run: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """Returns two arrays f64[1+R], for `run` and for `other`: the tokens trained on before the first evaluation whose
    accuracy reaches the target; NaN if none does. The target is halfway between the accuracies of the first and the
    last evaluation of `run`. Entry 0 is for all problems, each further entry for a bootstrap resample of them. A run is
    (f64[E], the tokens trained on before each evaluation; f64[E,P], 1 for each problem solved, else 0)."""
    def curve(right_ExP):  # accuracies f64[E,1+R]
        count = right_ExP.shape[1]
        samples = np.vstack([np.arange(count), np.random.default_rng(0).integers(0, count, (RESAMPLES, count))])
        return np.stack([right_P[samples].mean(-1) for right_P in right_ExP])
    curves = [curve(right_ExP) for _, right_ExP in (run, other)]
    targets = (curves[0][0] + curves[0][-1]) / 2  # f64[1+R]
    hits = [accuracies >= targets - 1e-9 for accuracies in curves]  # bool[E,1+R] each; argmax(0): the first True
    return [np.where(hit.any(0), tokens_E[hit.argmax(0)], np.nan) for hit, (tokens_E, _) in zip(hits, (run, other))]
