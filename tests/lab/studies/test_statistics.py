"""Statistics of a study against scipy.stats, formulas written out here and published values."""

import math

import numpy as np
import pytest
from scipy import stats

from rlvr_jax.lab.studies import rules, statistics

SEEDS = [.31, .52, .44, .47, .29]


def test_the_interval_is_students_and_stays_in_the_range():
    half = 2.776445 * np.std(SEEDS, ddof=1) / 5**.5  # t(0.975; 4), from a table
    np.testing.assert_allclose(statistics.interval(SEEDS), (np.mean(SEEDS) - half, np.mean(SEEDS) + half), rtol=1e-6)
    latent = [.986, .41, 1.0]  # unlimited it would be [-.038, 1.635]
    np.testing.assert_allclose(statistics.interval(latent), [-.038, 1.635], atol=1e-3)
    assert statistics.interval(latent, (0, 1)) == (0, 1)


@pytest.mark.parametrize("values, equal", [
    ([.5], False), ([.5, .5, .5 + 1e-12], True), ([.5, .501], False), ([], False)])
def test_one_value_and_equal_ones_have_no_interval(values, equal):
    assert statistics.equal(values) == equal
    assert (statistics.interval(values) is None) == (equal or len(values) < 2)


@pytest.mark.parametrize("low, high", [(.2, .7), (.35, .45), (.7, .9), (.25, .6)])
def test_inside_and_its_interval_say_the_same(low, high):
    """Two one-sided tests at 2.5 % and the 95 % interval are one thing (Schuirmann, 1987)."""
    bottom, top = statistics.interval(SEEDS)
    assert (statistics.inside(SEEDS, low, high) <= .025) == (low <= bottom and top <= high)
    assert (statistics.outside(SEEDS, low, high) <= .025) == (top < low or bottom > high)
    assert statistics.inside(SEEDS, low, high, (0, high)) == statistics.t_test(SEEDS, low, "greater")


@pytest.mark.parametrize("p_values, decided", [
    ([.01, .04, .03, .005], [True, False, False, True]),  # the example of Wikipedia, of m = 4 at 5 %
    ([.01, .02, .03], [True, True, True]), ([.02, .02, .02], [False, False, False]), ([], [])])
def test_holm_decides_what_it_decides_step_by_step(p_values, decided):
    levels = statistics.holm(p_values, .05)
    assert [p <= level for p, level in zip(p_values, levels)] == decided
    if len(p_values) == 4:  # they stay where it stops
        np.testing.assert_allclose(levels, [.05 / 3, .05 / 2, .05 / 2, .05 / 4])


def test_shares_of_seeds_have_exact_intervals_and_tests():
    """n of n has the lower end (.05 / 2)^(1 / n); of ten coins nine or more fall alike in 22 of 1,024 cases."""
    for number, low in ((3, .292), (10, .692)):
        found, top = statistics.exact_binomial(number, number)
        assert found == pytest.approx(.025 ** (1 / number)) == pytest.approx(low, abs=1e-3) and top == 1
    low, high = statistics.exact_binomial(7, 10)  # each end makes what was seen, or more of it, 2.5 % likely
    tails = [sum(math.comb(10, k) * p**k * (1 - p) ** (10 - k) for k in ks)
             for p, ks in ((low, range(7, 11)), (high, range(8)))]
    assert tails == pytest.approx([.025, .025])
    assert statistics.sign_test(9, 10) == statistics.sign_test(1, 10) == pytest.approx(22 / 1024)


# ----- power, and the level of planned analyses

@pytest.mark.parametrize("effect, seeds", [(.5, 44), (.8, 19), (1.0, 13), (3.0, 4), (.1, None)])
def test_the_seeds_needed_are_the_fewest_with_a_power_of_90_percent(effect, seeds):
    assert statistics.seeds_needed(lambda number: statistics.power(effect, 1, number, .05)) == seeds
    if seeds:  # none is given past a hundred
        few, enough = (stats.nct.sf(stats.t.ppf(.975, n - 1), n - 1, effect * n**.5) for n in (seeds - 1, seeds))
        assert few < .9 <= enough


@pytest.mark.parametrize("number", [8, 15])
def test_the_power_of_a_rule_is_that_of_simulated_tests(number):
    seeds = np.array([-.05, .07])  # mean .01
    spread, error = np.std(seeds, ddof=1), .1
    drawn = np.random.default_rng(0).normal(.01, spread, (4000, number))
    half = stats.t.ppf(1 - error, number - 1) * drawn.std(1, ddof=1) / number**.5
    held = np.mean((drawn.mean(1) - half > -.12) & (drawn.mean(1) + half < .14))
    assert rules.decided({"within": [-.12, .14]}, seeds, number, error) == pytest.approx(held, abs=.02)
    counts = np.random.default_rng(0).binomial(number, .8, 4000)
    held = np.mean([statistics.sign_test(count, number) <= .05 and count > number / 2 for count in counts])
    assert statistics.sign_power(.8, number, .05) == pytest.approx(held, abs=.02)


def test_three_even_looks_together_err_in_5_percent():
    """Pocock's level (1977)."""
    z = stats.norm.ppf(1 - statistics.ALPHA_OF_A_LOOK / 2)
    even = [[math.sqrt(min(a, b) / max(a, b)) for a in (1, 2, 3)] for b in (1, 2, 3)]
    inside = stats.multivariate_normal.cdf([z] * 3, cov=even, lower_limit=[-z] * 3)
    assert 1 - inside == pytest.approx(.05, abs=5e-4)


def test_the_variances_of_base_example_and_rest_are_those_of_the_analysis_of_variance():
    """Against sums of squares by hand, and on tables in which one of the three is all there is."""
    base, example = np.array([1., 2., 4., 9.])[:, None], np.array([3., 5., 10.])[None]
    zeros = np.zeros((4, 3))
    np.testing.assert_allclose(statistics.components(zeros + base), (np.var(base, ddof=1), 0, 0), atol=1e-12)
    np.testing.assert_allclose(statistics.components(zeros + example), (0, np.var(example, ddof=1), 0), atol=1e-12)
    x = np.array([[.1, .5, .3], [.2, .4, .9], [.8, .7, .95], [.3, .2, .1]])
    total, rows, columns = 12, x.sum(1), x.sum(0)
    correction = x.sum() ** 2 / total
    of_base, of_example = (rows**2).sum() / 3 - correction, (columns**2).sum() / 4 - correction
    rest = ((x**2).sum() - correction - of_base - of_example) / 6
    np.testing.assert_allclose(statistics.components(x), ((of_base / 3 - rest) / 3, (of_example / 2 - rest) / 4, rest))


def test_the_jackknife_of_a_mean_is_the_values_and_of_a_variance_has_its_mean():
    x = np.array([[1.], [4.], [6.], [11.]])
    np.testing.assert_allclose(statistics.jackknife(np.mean, x), x[:, 0])
    pseudo = statistics.jackknife(lambda values: np.var(values, ddof=1), x)
    np.testing.assert_allclose(np.mean(pseudo), np.var(x, ddof=1))  # unbiased stays unbiased
