"""Statistics of a study over its seeds: intervals, tests, shares of seeds, and how many seeds a rule would need.

If outcomes are bimodal, a t interval over few seeds is too narrow. In a simulation with one failure in five (.2, where
others have about 1), a nominal 95 % interval contained the true mean in 48 % of cases with 3 seeds, in 67 % with 5, in
88 % with 10 and in 92 % with 20 (tests/lab/studies/test_statistics.py). The sign test has no such flaw.
"""

import math
from typing import Callable, Optional

import numpy as np
from scipy import stats

ALPHA = 0.05  # two-sided error of intervals, and of the tests of a study with one analysis
# Number of planned analyses; Pocock's level of each. The error of all is .05 if evenly spaced, .058 at 5, 10, 20 seeds.
LOOKS, ALPHA_OF_A_LOOK = 3, 0.0221
FEWEST_EQUAL = 5  # fewest seeds that decide a rule if all values are equal
POWER, MOST_SEEDS = 0.9, 100  # for `seeds_needed`: required chance that a test is decided; most seeds considered
ANY = (-math.inf, math.inf)  # the range of a measure without bounds


def equal(values: list[float]) -> bool:
    """Whether there are two or more values, and all are equal, up to rounding."""
    return len(values) > 1 and float(np.ptp(values)) <= 1e-9


def interval(values: list[float], span: tuple = ANY) -> Optional[tuple[float, float]]:
    """Student's 95 % interval of the mean, cut to the range `span`; None for fewer than two values, or equal values."""
    if len(values) < 2 or equal(values):
        return None
    low, high = stats.t.interval(1 - ALPHA, len(values) - 1, np.mean(values), stats.sem(values))
    return max(float(low), span[0]), min(float(high), span[1])


def t_test(values: list[float], threshold: float, side: str = "two-sided") -> float:
    """p-value of the t test that the mean is the threshold; "greater" or "less" is the one-sided alternative."""
    return float(stats.ttest_1samp(values, threshold, alternative=side).pvalue)


def inside(values: list[float], low: float, high: float, span: tuple = ANY) -> float:
    """p-value of an equivalence test, two one-sided t tests, that the mean is between low and high (Schuirmann, 1987).
    A bound at or beyond an end of the range `span` needs no test."""
    return max(t_test(values, low, "greater") if low > span[0] else 0.0,
               t_test(values, high, "less") if high < span[1] else 0.0)


def outside(values: list[float], low: float, high: float) -> float:
    """The smaller p-value of the one-sided t tests that the mean is below low, and that it is above high."""
    return min(t_test(values, low, "less"), t_test(values, high, "greater"))


def holm(p_values: list[float], error: float) -> list[float]:
    """The level of each test by Holm's method (1979). A test is decided if its p-value is at most its level. The test
    with the smallest p-value has the level error / m, the next error / (m - 1), and so on up to the first that is not
    decided; all tests after that one have its level."""
    levels, left, stopped = [0.0] * len(p_values), len(p_values), False
    for i in sorted(range(len(p_values)), key=p_values.__getitem__):
        levels[i] = error / left
        stopped = stopped or p_values[i] > levels[i]
        left = left if stopped else left - 1
    return levels


def exact_binomial(count: int, number: int) -> tuple[float, float]:
    """Exact 95 % interval of a share, with `count` hits in `number` trials (Clopper and Pearson, 1934)."""
    return tuple(map(float, stats.binomtest(count, number).proportion_ci(1 - ALPHA, "exact")))


def sign_test(count: int, number: int) -> float:
    """Two-sided exact p-value of the hypothesis that half of all seeds have what `count` of these `number` have."""
    return float(stats.binomtest(count, number).pvalue)


def components(values_BxE: np.ndarray) -> tuple[float, float, float]:
    """Variances of base models, of examples and of the rest, from f[B,E], a value for each base model and example.
    Computed from the mean squares of a two-way analysis of variance (method of moments), so an estimate may be
    negative. The rest is the interaction of base model and example, and the randomness of training."""
    (b, e), values = np.shape(values_BxE), np.asarray(values_BxE, float)
    of_base, of_example = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    rest = ((values - of_base - of_example + values.mean()) ** 2).sum() / ((b - 1) * (e - 1))
    return (float(of_base.var(ddof=1) - rest / e), float(of_example.var(ddof=1) - rest / b), float(rest))


def jackknife(function: Callable, values_BxE: np.ndarray) -> list[float]:
    """Pseudo-values, one for each of n base models (Tukey, 1958): n times `function` of all rows, minus n - 1 times
    `function` of those without this model. Their mean, with its standard error, estimates `function(values_BxE)`."""
    n, whole = len(values_BxE), function(values_BxE)
    return [n * whole - (n - 1) * function(np.delete(values_BxE, i, 0)) for i in range(n)]


def power(effect: float, spread: float, number: np.ndarray, error: float) -> np.ndarray:
    """Chance f64[N] that a two-sided t test at level `error` finds the sign of `effect`, the mean less the threshold,
    with `number`, i[N], seeds of standard deviation `spread`."""
    return stats.nct.sf(stats.t.isf(error / 2, number - 1), number - 1, abs(effect) / spread * number**0.5)


def sign_power(share: float, number: np.ndarray, error: float) -> np.ndarray:
    """Chance f64[N] that a two-sided sign test at level `error` of `number`, i[N], seeds is decided, if the true share
    of seeds on one side is `share`."""
    return stats.binom.sf(stats.binom.isf(error / 2, number, 0.5), number, max(share, 1 - share))


def seeds_needed(chance: Callable[[np.ndarray], np.ndarray]) -> Optional[int]:
    """The fewest seeds, from 2 to MOST_SEEDS, for which `chance`, i[N] -> f64[N], is at least POWER; else None."""
    numbers = np.arange(2, MOST_SEEDS + 1)
    return next((int(number) for number in numbers[chance(numbers) >= POWER]), None)
