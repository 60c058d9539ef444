"""Statistics of a study over its seeds: intervals, tests, shares of success, and how many seeds a rule would need.

Where outcomes are bimodal a t interval of few seeds is too sure of itself. Simulated, with one failure in five (.2 in
place of about 1), an interval of nominally 95 % holds the true mean with 3 seeds in 48 %, with 5 in 67 %, with 10 in
88 % and with 20 in 92 % of cases (tests/lab/studies/test_statistics.py).
"""

import math
from typing import Callable, Optional

import numpy as np
from scipy import special  # scipy.stats takes half a second to import

ALPHA = 0.05  # of a study that is looked at once
LOOKS, ALPHA_OF_A_LOOK = 3, 0.0221  # Pocock's constant level, .05 over three even looks; .058 at 5, 10 and 20 seeds
FEWEST_EQUAL = 5  # seeds, from which on values that are all equal decide a rule
FEWEST_QUARTILES = 10  # seeds, from which on the interquartile mean is given
POWER, MOST_SEEDS = 0.9, 100
RESAMPLES = 2000  # of the bootstrap
ANY = (-math.inf, math.inf)


def alpha(looks: Optional[list]) -> float:
    """The two-sided error of one look at a study."""
    return ALPHA_OF_A_LOOK if looks else ALPHA


def equal(values: list[float]) -> bool:
    """Whether two or more values are the same, but for rounding."""
    return len(values) > 1 and float(np.ptp(values)) <= 1e-9


def interval(values: list[float], error: float, span: tuple = ANY) -> Optional[tuple[float, float]]:
    """Student's interval of the mean, cut to the range of what is measured; None of one value, or of equal ones."""
    if len(values) < 2 or equal(values):
        return None
    mean, half = np.mean(values), special.stdtrit(len(values) - 1, 1 - error / 2) * standard_error(values)
    return max(float(mean - half), span[0]), min(float(mean + half), span[1])


def standard_error(values: list[float]) -> float:
    return float(np.std(values, ddof=1) / len(values) ** 0.5)


def tails(values: list[float], threshold: float) -> tuple[float, float]:
    """One-sided p-values of the t test: that the mean is below the threshold, and that it is above."""
    t = (np.mean(values) - threshold) / standard_error(values)
    low = float(special.stdtr(len(values) - 1, t))
    return low, 1 - low


def two_sided(values: list[float], threshold: float) -> float:
    """p-value of the t test that the mean is not the threshold."""
    return min(1.0, 2 * min(tails(values, threshold)))


def inside(values: list[float], low: float, high: float, span: tuple = ANY) -> float:
    """p-value of two one-sided tests that the mean lies between low and high (Schuirmann, 1987). A bound at the end of
    the range, or beyond it, needs no test."""
    return max(tails(values, low)[1] if low > span[0] else 0.0, tails(values, high)[0] if high < span[1] else 0.0)


def outside(values: list[float], low: float, high: float) -> float:
    """The smaller p-value of the one-sided tests that the mean is below low, and that it is above high."""
    return min(tails(values, low)[0], tails(values, high)[1])


def holm(p_values: list[float], error: float) -> list[float]:
    """The level of each test by Holm's method (1979): a test is decided where its p-value is at most its level.

    The smallest p-value has error / m, the next error / (m - 1), and so on up to the first that is not decided; those
    after it keep the level of that one.
    """
    levels, left, stopped = [0.0] * len(p_values), len(p_values), False
    for place in sorted(range(len(p_values)), key=p_values.__getitem__):
        levels[place] = error / left
        stopped = stopped or p_values[place] > levels[place]
        left -= not stopped
    return levels


def exact_binomial(count: int, number: int, error: float = ALPHA) -> tuple[float, float]:
    """Interval of a share of which `count` of `number` were seen (Clopper and Pearson, 1934)."""
    return (float(special.betaincinv(count, number - count + 1, error / 2)) if count else 0.0,
            float(special.betaincinv(count + 1, number - count, 1 - error / 2)) if count < number else 1.0)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without the lowest and the highest quarter, as scipy.stats.trim_mean(values, .25)."""
    cut = int(0.25 * np.shape(values)[-1])
    ordered = np.sort(values, -1)
    return ordered[..., cut : np.shape(values)[-1] - cut].mean(-1)


def quartiles(values: list[float], bases: list, error: float = ALPHA) -> dict:
    """The interquartile mean with its interval: a bootstrap of the seeds within each base (arXiv 2108.13264). Where
    every seed has a base of its own, it is of all seeds together."""
    rng, values = np.random.default_rng(0), np.asarray(values, float)
    bases = [None] * len(bases) if len(set(bases)) == len(bases) else bases
    parts = [values[[i for i, base in enumerate(bases) if base == one]] for one in dict.fromkeys(bases)]
    drawn = np.concatenate([part[rng.integers(0, len(part), (RESAMPLES, len(part)))] for part in parts], 1)
    low, high = np.quantile(interquartile_mean(drawn), (error / 2, 1 - error / 2))
    return {"mean": float(interquartile_mean(values)), "interval": [float(low), float(high)]}


def components(values_BxE: np.ndarray) -> tuple[float, float, float]:
    """Variances of the base, of the example and of the rest, in a table of every base with every example.

    By the mean squares of the two-way analysis of variance with one value a cell (method of moments): an estimate may
    be below 0. The rest is what base and example do together, and the random draws of training.
    """
    (b, e), values = np.shape(values_BxE), np.asarray(values_BxE, float)
    of_base, of_example = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    rest = ((values - of_base - of_example + values.mean()) ** 2).sum() / ((b - 1) * (e - 1))
    return (float(of_base.var(ddof=1) - rest / e), float(of_example.var(ddof=1) - rest / b), float(rest))


def jackknife(function: Callable, values_BxE: np.ndarray) -> list[float]:
    """A value for each base whose mean estimates `function(values_BxE)` and whose spread tells how it differs between
    bases: with n bases, n times that of all less n - 1 times that without this base (Tukey, 1958)."""
    n, whole = len(values_BxE), function(values_BxE)
    return [n * whole - (n - 1) * function(np.delete(values_BxE, i, 0)) for i in range(n)]


def power(effect: float, spread: float, number: int, error: float) -> float:
    """Chance that a two-sided t test of `number` seeds finds an effect of that size, on its side."""
    degrees = number - 1
    critical = special.stdtrit(degrees, 1 - error / 2)
    return float(1 - special.nctdtr(degrees, abs(effect) / spread * number**0.5, critical))


def power_inside(above_low: float, below_high: float, spread: float, number: int, error: float) -> float:
    """Chance that two one-sided tests find a mean inside, so far above the lower bound and below the upper one. By two
    noncentral t distributions: nearly exact where the chance is high (Phillips, 1990)."""
    degrees, size = number - 1, number**0.5 / spread
    critical = special.stdtrit(degrees, 1 - error)
    return float(max(0.0, special.nctdtr(degrees, -below_high * size, -critical)
                     - special.nctdtr(degrees, above_low * size, critical)))


def seeds_needed(chance) -> Optional[int]:
    """The fewest seeds, from two on, with which `chance(seeds)` is POWER; None beyond MOST_SEEDS."""
    return next((number for number in range(2, MOST_SEEDS + 1) if chance(number) >= POWER), None)
