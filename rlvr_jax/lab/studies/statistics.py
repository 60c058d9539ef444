"""Statistics of a study over its seeds: intervals, tests, shares of seeds, and how many seeds a rule would need.

Where outcomes are bimodal a t interval of few seeds is too narrow. Simulated, with one failure in five (.2 in place of
about 1), a nominal 95 % interval holds the true mean with 3 seeds in 48 %, with 5 in 67 %, with 10 in 88 % and with 20
in 92 % of cases (tests/lab/studies/test_statistics.py). The sign test has no such flaw.
"""

import math
from typing import Callable, Optional

import numpy as np
from scipy import stats

ALPHA = 0.05  # two-sided error of what is shown, and of a study that is analysed once
LOOKS, ALPHA_OF_A_LOOK = 3, 0.0221  # Pocock's constant level, .05 over three even looks; .058 at 5, 10 and 20 seeds
FEWEST_EQUAL = 5  # seeds, from which on values that are all equal decide a rule
POWER, MOST_SEEDS = 0.9, 100
ANY = (-math.inf, math.inf)


def equal(values: list[float]) -> bool:
    """Whether two or more values are the same, but for rounding."""
    return len(values) > 1 and float(np.ptp(values)) <= 1e-9


def interval(values: list[float], span: tuple = ANY) -> Optional[tuple[float, float]]:
    """Student's 95 % interval of the mean, cut to the range of the measure; None of one value, or of equal ones."""
    if len(values) < 2 or equal(values):
        return None
    low, high = stats.t.interval(1 - ALPHA, len(values) - 1, np.mean(values), stats.sem(values))
    return max(float(low), span[0]), min(float(high), span[1])


def t_test(values: list[float], threshold: float, side: str = "two-sided") -> float:
    """p-value that the mean is the threshold; "greater" and "less" name a one-sided alternative."""
    return float(stats.ttest_1samp(values, threshold, alternative=side).pvalue)


def inside(values: list[float], low: float, high: float, span: tuple = ANY) -> float:
    """p-value of two one-sided tests that the mean lies between low and high (Schuirmann, 1987). A bound at the end of
    the range, or beyond it, needs no test."""
    return max(t_test(values, low, "greater") if low > span[0] else 0.0,
               t_test(values, high, "less") if high < span[1] else 0.0)


def outside(values: list[float], low: float, high: float) -> float:
    """The smaller p-value of the one-sided tests that the mean is below low, and that it is above high."""
    return min(t_test(values, low, "less"), t_test(values, high, "greater"))


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


def exact_binomial(count: int, number: int) -> tuple[float, float]:
    """95 % interval of a share of which `count` of `number` were seen (Clopper and Pearson, 1934)."""
    return tuple(map(float, stats.binomtest(count, number).proportion_ci(1 - ALPHA, "exact")))


def sign_test(count: int, number: int) -> float:
    """Two-sided exact p-value that half of all seeds are like these `count` of `number`."""
    return float(stats.binomtest(count, number).pvalue)


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


def power(effect: float, spread: float, number: np.ndarray, error: float) -> np.ndarray:
    """Chance that a two-sided t test of `number` seeds finds an effect of that size, on its side."""
    return stats.nct.sf(stats.t.isf(error / 2, number - 1), number - 1, abs(effect) / spread * number**0.5)


def sign_power(share: float, number: np.ndarray, error: float) -> np.ndarray:
    """Chance that the sign test of `number` seeds is decided, where so large a share of all lies on one side."""
    return stats.binom.sf(stats.binom.isf(error / 2, number, 0.5), number, max(share, 1 - share))


def seeds_needed(chance: Callable[[np.ndarray], np.ndarray]) -> Optional[int]:
    """The fewest seeds, from two on, with which `chance(seeds)` is POWER; None beyond MOST_SEEDS."""
    numbers = np.arange(2, MOST_SEEDS + 1)
    return next((int(number) for number in numbers[chance(numbers) >= POWER]), None)
