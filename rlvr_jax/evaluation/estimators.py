"""Estimates from graded completions: avg@k, pass@k and maj@k over problems, each with an interval."""

import functools
import itertools
import math
from typing import Callable, Optional

import numpy as np

from rlvr_jax.grading import mathematics

SUBSETS = 1000  # most subsets to average over; if there are more, this many are drawn at random
RESAMPLES = 2000  # resamples of a bootstrap
LEAST_GAP = 0.10  # for a smaller gap in accuracy between base and trained model, `recovered_share` is None


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Chance that k of the samples, drawn without replacement, hold a correct one (Chen et al., arXiv 2107.03374)."""
    return 1.0 - math.prod(1.0 - k / j for j in range(num_samples - num_correct + 1, num_samples + 1))


def powers_up_to(n: int) -> list[int]:
    """1, 2, 4, ... and `n` itself: the k for which pass@k is reported."""
    return sorted({2**i for i in range(n.bit_length())} | {n})


@functools.lru_cache
def subsets(n: int, k: int) -> np.ndarray:
    """Returns S subsets of k of n samples, f32[S,n], 1 for members: all, or SUBSETS random ones if there are more."""
    if math.comb(n, k) <= SUBSETS:
        members = np.array(list(itertools.combinations(range(n), k)))
    else:
        members = np.random.default_rng((n, k)).permuted(np.tile(np.arange(n), (SUBSETS, 1)), axis=1)[:, :k]
    subsets_SxN = np.zeros((len(members), n), np.float32)
    np.put_along_axis(subsets_SxN, members, 1, axis=1)
    return subsets_SxN


def maj_at_k(answers: list[str], correct: list[bool], k: int) -> float:
    """Chance that the most frequent answer of k samples, drawn without replacement, is right.
    Answers are compared as text (normalise them first). Empty ones have no vote; tied ones are equally likely to be
    chosen. An answer is right if its first sample was graded right. Exact if there are at most SUBSETS subsets."""
    choices = list(dict.fromkeys(filter(None, answers)))
    if not choices:
        return 0.0
    chosen_NxC = np.array([[answer == choice for choice in choices] for answer in answers], np.float32)
    votes_SxC = subsets(len(answers), k) @ chosen_NxC  # S subsets, C distinct answers
    right_C = np.array([correct[answers.index(choice)] for choice in choices], np.float64)
    wins_SxC = (votes_SxC == votes_SxC.max(-1, keepdims=True)) & (votes_SxC > 0)
    return float(np.mean(wins_SxC @ right_C / np.maximum(wins_SxC.sum(-1), 1)))


def bootstrap(values_P: np.ndarray, span: tuple[float, float] = (0.0, 1.0)) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values_P`, f[P], a value of each problem, by resampling the problems.
    Resamples of equal values are all alike, which says nothing of other problems. Then the share of problems with any
    other value within `span`, the range of a value, is taken as the upper end of Wilson's interval for none in P."""
    values_P = np.asarray(values_P, float)
    if np.ptp(values_P) or not np.isfinite(span).all():
        return bootstrap_statistic(lambda means: means, values_P)
    value, others = values_P[0], wilson(0.0, len(values_P))[1]
    return tuple(float(value + others * (end - value)) for end in span)


def bootstrap_statistic(statistic: Callable, *columns: np.ndarray, reduce: Callable = np.mean) -> tuple[float, float]:
    """95 % percentile interval of `statistic(*means)`, by a bootstrap over P problems. `means` are arrays f[R] of the
    means (or another `reduce`) of the columns f[P] in R resamples; all columns are resampled alike."""
    indices_RxP = np.random.default_rng(0).integers(0, len(columns[0]), (RESAMPLES, len(columns[0])))
    values_R = statistic(*(reduce(np.asarray(column)[indices_RxP], -1) for column in columns))
    return tuple(np.quantile(values_R, (0.025, 0.975)).tolist())


def bootstrap_difference(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of mean(after) - mean(before), each resampled over its own problems, unpaired."""
    rng = np.random.default_rng(0)
    means = [np.asarray(values, float)[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(-1)
             for values in (before, after)]
    return tuple(np.quantile(means[1] - means[0], (0.025, 0.975)).tolist())


def summarise_rows(rows: list[dict], num_samples: int) -> dict:
    """Returns the summary of one benchmark. Its rows (`measure.sample_and_grade`) come problem by problem,
    `num_samples` for each. "n" counts problems. "accuracy" is avg@`num_samples`; "accuracy_of_ended" is without
    truncated completions (None if all are). "pass@k" and "maj@k" map each k of `powers_up_to`, as text, to an estimate,
    and in "intervals" to its interval. Intervals are 95 %: Wilson's for a single sample, else a bootstrap over the
    problems. "timed_out" is a number of rows, "truncated" a share of them, and "num_tokens" a mean over them."""
    groups = [rows[i : i + num_samples] for i in range(0, len(rows), num_samples)]
    right = [[row["correct"] for row in group] for group in groups]
    answers = [[mathematics.normalise(row["extracted"] or "") for row in group] for group in groups]
    ks = powers_up_to(num_samples)
    curves = {"pass@k": {k: [pass_at_k(num_samples, sum(c), k) for c in right] for k in ks},
              "maj@k": {k: [maj_at_k(a, c, k) for a, c in zip(answers, right)] for k in ks}}  # a value of each problem

    def interval(values):
        return wilson(float(np.mean(values)), len(values)) if num_samples == 1 else bootstrap(values)

    def map_curves(fn):
        return {name: {str(k): fn(values) for k, values in curve.items()} for name, curve in curves.items()}

    accuracy_P, ended = np.mean(right, -1), [row["correct"] for row in rows if not row["truncated"]]
    return {"n": len(groups), "num_samples": num_samples, "accuracy": float(accuracy_P.mean()),
            "interval": interval(accuracy_P), "accuracy_of_ended": float(np.mean(ended)) if ended else None,
            **map_curves(lambda values: float(np.mean(values))), "intervals": map_curves(interval),
            "timed_out": sum(row["timed_out"] for row in rows),
            **{key: float(np.mean([row[key] for row in rows])) for key in ("truncated", "num_tokens")}}


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % confidence interval of a share of n independent trials, valid near 0 and 1 too (Wilson, 1927)."""
    z = 1.959964
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


def difference_interval(before: float, after: float, n: int) -> tuple[float, float]:
    """95 % confidence interval of after - before, two shares of n trials each (Newcombe, 1998, method 10).
    It assumes independent trials. If `before` and `after` are over the same problems, the interval is too wide, never
    too narrow, as long as problems solved before are more likely than others to be solved after."""
    (before_low, before_high), (after_low, after_high) = wilson(before, n), wilson(after, n)
    return (after - before - math.hypot(after - after_low, before_high - before),
            after - before + math.hypot(after_high - after, before - before_low))


def summarise_outcome(rows: list[dict], base: list[dict], trained: list[dict]) -> dict:
    """Returns "accuracy" and Wilson's "interval" of `rows`, a third model's, and what it closes of the gap between base
    and trained model, "recovered" and "recovered_interval" (`recovered_share`). Row i of each list is of problem i."""
    base_P, trained_P, right_P = (np.array([row["correct"] for row in each], float) for each in (base, trained, rows))
    accuracy = float(right_P.mean())
    recovered, recovered_interval = recovered_share(base_P, trained_P, right_P)
    return {"accuracy": accuracy, "interval": wilson(accuracy, len(rows)), "recovered": recovered,
            "recovered_interval": recovered_interval}


def recovered_share(base_P: np.ndarray, trained_P: np.ndarray, right_P: np.ndarray) -> tuple:
    """Returns the share of the accuracy gap between base and trained model that a third model closes, (right - base) /
    (trained - base), and its 95 % bootstrap interval (low, high). Each array f[P] has 1 for a problem that the model
    solves, `right_P` for the third. Returns (None, None) for a gap below LEAST_GAP: such a share is mostly chance."""
    base, trained, right = (np.mean(x) for x in (base_P, trained_P, right_P))
    if trained - base < LEAST_GAP - 1e-9:
        return None, None

    def ratios(bases, traineds, rights):
        apart = traineds > bases  # leaves out resamples without a gap
        return (rights - bases)[apart] / (traineds - bases)[apart]
    return float((right - base) / (trained - base)), bootstrap_statistic(ratios, base_P, trained_P, right_P)


def format_estimate(value: Optional[float], interval: Optional[tuple[float, float]] = None, sign: str = "") -> str:
    """Formats a value and its interval: "0.895 [0.748, 1.042]". Counts and values from 1,000 up have no decimals. If
    three decimals would all be 0, the form is "3.5e-07". None becomes "-". With `sign="+"` all numbers have a sign."""
    if value is None:
        return "-"
    numbers = (value, *(interval or ()))
    count = abs(value) > 1 and all(x == round(x) for x in numbers)
    small = 1e-12 < max(map(abs, numbers)) < 0.0005  # anything smaller is rounding error
    decimals = ".1e" if small else ".3f"
    form = sign + (",.0f" if count or abs(value) >= 1000 else decimals)
    return f"{value:{form}}" + (f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else "")
