"""What graded completions say of a model: avg@k, pass@k and maj@k over problems, and how sure each of them is."""

import functools
import itertools
import math
from typing import Callable, Optional

import numpy as np

from rlvr_jax.grading import mathematics

SUBSETS = 1000  # where a problem's samples have more subsets of a size, as many are drawn
RESAMPLES = 2000  # of the bootstrap
LEAST_GAP = 0.10  # between base and trained model, below which no share of it is reported


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Chance that k of the samples, drawn without replacement, hold a correct one (Chen et al., arXiv 2107.03374)."""
    return 1.0 - math.prod(1.0 - k / j for j in range(num_samples - num_correct + 1, num_samples + 1))


@functools.lru_cache
def subsets(n: int, k: int) -> np.ndarray:
    """f32[S,n], 1 for the members of a subset of size k: all subsets, or SUBSETS random ones, the same every time."""
    if math.comb(n, k) <= SUBSETS:
        members = np.array(list(itertools.combinations(range(n), k)))
    else:
        members = np.random.default_rng((n, k)).permuted(np.tile(np.arange(n), (SUBSETS, 1)), axis=1)[:, :k]
    chosen = np.zeros((len(members), n), np.float32)
    np.put_along_axis(chosen, members, 1, axis=1)
    return chosen


def maj_at_k(answers: list[str], correct: list[bool], k: int) -> float:
    """Chance that the most frequent answer of k samples, drawn without replacement, is right.

    Answers are compared as text (normalise them first). An empty one has no vote, and answers that tie are equally
    likely to be taken. A text is as right as its first sample was graded. Exact up to SUBSETS subsets.
    """
    kinds = list(dict.fromkeys(filter(None, answers)))
    if not kinds:
        return 0.0
    votes_SxC = subsets(len(answers), k) @ np.array([[answer == kind for kind in kinds] for answer in answers],
                                                    np.float32)
    right_C = np.array([correct[answers.index(kind)] for kind in kinds], np.float64)
    ahead_SxC = (votes_SxC == votes_SxC.max(-1, keepdims=True)) & (votes_SxC > 0)
    return float(np.mean(ahead_SxC @ right_C / np.maximum(ahead_SxC.sum(-1), 1)))


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of a mean over problems; samples of one problem are not independent, problems are."""
    return resampled(lambda means: means, values)


def resampled(statistic: Callable, *columns: np.ndarray) -> tuple[float, float]:
    """95 % interval of a function of the means of arrays f[P], by a bootstrap over problems, the same for each."""
    places_RxP = np.random.default_rng(0).integers(0, len(columns[0]), (RESAMPLES, len(columns[0])))
    values_R = statistic(*(np.asarray(column)[places_RxP].mean(-1) for column in columns))
    return tuple(np.quantile(values_R, (0.025, 0.975)).tolist())


def bootstrap_difference(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of mean(after) - mean(before), each over problems of its own: they are not paired."""
    rng = np.random.default_rng(0)
    means = [np.asarray(values, float)[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(-1)
             for values in (before, after)]
    return tuple(np.quantile(means[1] - means[0], (0.025, 0.975)).tolist())


def summarise(rows: list[dict], num_samples: int) -> dict:
    """The numbers of one benchmark, from its rows in order (`evaluation.measure`), `num_samples` a problem.

    `accuracy` is avg@`num_samples`, `accuracy_of_ended` that of the completions which were not cut at the longest
    length; pass@k and maj@k are for k = 1, 2, 4, ... and `num_samples`. Intervals hold 95 %: Wilson's with one sample a
    problem, else of a bootstrap over problems.
    """
    groups = [rows[i : i + num_samples] for i in range(0, len(rows), num_samples)]
    right = [[row["correct"] for row in group] for group in groups]
    answers = [[mathematics.normalise(row["extracted"] or "") for row in group] for group in groups]
    ks = sorted({2**i for i in range(num_samples.bit_length())} | {num_samples})
    curves = {"pass@k": {k: [pass_at_k(num_samples, sum(c), k) for c in right] for k in ks},
              "maj@k": {k: [maj_at_k(a, c, k) for a, c in zip(answers, right)] for k in ks}}

    def interval(values):
        return wilson(float(np.mean(values)), len(values)) if num_samples == 1 else bootstrap(values)

    def each(fn):
        return {name: {str(k): fn(values) for k, values in curve.items()} for name, curve in curves.items()}

    shares, ended = np.mean(right, -1), [row["correct"] for row in rows if not row["truncated"]]
    return {"n": len(groups), "num_samples": num_samples, "accuracy": float(shares.mean()),
            "interval": interval(shares), "accuracy_of_ended": float(np.mean(ended)) if ended else None,
            **each(lambda values: float(np.mean(values))), "intervals": each(interval),
            "timed_out": sum(row["timed_out"] for row in rows),
            **{key: float(np.mean([row[key] for row in rows])) for key in ("truncated", "num_tokens")}}


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % confidence interval of a share of n trials, honest near 0 and 1 (Wilson, 1927)."""
    z = 1.959964
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


def difference(before: float, after: float, n: int) -> tuple[float, float]:
    """95 % confidence interval of after - before, two shares of n trials each (Newcombe, 1998, method 10).

    It takes the trials for different ones. Where both are of the same problems it is too wide, never too narrow, as
    long as a problem that was solved is likelier than others to be solved again.
    """
    (low, high), (lower, upper) = wilson(before, n), wilson(after, n)
    return (after - before - math.hypot(after - lower, high - before),
            after - before + math.hypot(upper - after, before - low))


def outcome(rows: list[dict], base: list[dict], trained: list[dict]) -> dict:
    """Of rows of the same problems: `accuracy` with Wilson's `interval`, and what is `recovered` of the gap."""
    base_P, trained_P, right_P = (np.array([row["correct"] for row in each], float) for each in (base, trained, rows))
    accuracy, (share, ends) = float(right_P.mean()), recovered(base_P, trained_P, right_P)
    return {"accuracy": accuracy, "interval": wilson(accuracy, len(rows)), "recovered": share,
            "recovered_interval": ends}


def recovered(base_P: np.ndarray, trained_P: np.ndarray, right_P: np.ndarray) -> tuple:
    """(share of the gap, its 95 % interval): (right - base) / (trained - base), the interval by a bootstrap over
    problems. Each array has 1 where a problem is solved.

    None, None where the gap is below LEAST_GAP: a ratio of small differences is mostly chance.
    """
    base, trained, right = (np.mean(x) for x in (base_P, trained_P, right_P))
    if trained - base < LEAST_GAP - 1e-9:
        return None, None

    def ratios(bases, traineds, rights):
        apart = traineds > bases
        return (rights - bases)[apart] / (traineds - bases)[apart]
    return float((right - base) / (trained - base)), resampled(ratios, base_P, trained_P, right_P)


def shown(value: Optional[float], interval: Optional[tuple[float, float]] = None, sign: str = "") -> str:
    """"0.895 [0.748, 1.042]"; a count, or what is 1,000 and more, without decimals; "3.5e-07" where three decimals would
    all be 0; a dash where there is no value."""
    if value is None:
        return "-"
    numbers = (value, *(interval or ()))
    count = abs(value) > 1 and all(x == round(x) for x in numbers)
    small = 1e-12 < max(map(abs, numbers)) < 0.0005  # below that it is rounding
    form = f"{sign},.0f" if count or abs(value) >= 1000 else f"{sign}.1e" if small else f"{sign}.3f"
    return f"{value:{form}}" + (f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else "")
