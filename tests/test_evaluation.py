"""Estimators of an evaluation against values computed by counting."""

import itertools
import math

import numpy as np
import pytest

from rlvr_jax import evaluation


@pytest.mark.parametrize("n, c, k, expected", [(8, 2, 1, 0.25), (8, 2, 4, 0.785714), (8, 2, 7, 1), (16, 1, 8, 0.5),
                                               (256, 3, 64, 0.579782), (8, 0, 8, 0)])
def test_pass_at_k_of_the_sheet(n, c, k, expected):
    assert evaluation.pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n, c, k", list(itertools.product([6], range(7), range(1, 7))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n, c, k):
    subsets = list(itertools.combinations(range(n), k))
    assert evaluation.pass_at_k(n, c, k) == pytest.approx(np.mean([min(s) < c for s in subsets]))


def test_a_summary_averages_over_problems():
    rows = [{"correct": i < c, "truncated": False, "num_tokens": 3} for c in (0, 2, 8) for i in range(8)]
    found = evaluation.summarise(rows, 8)
    assert found["accuracy"] == pytest.approx(10 / 24) and found["n"] == 3
    assert found["pass@k"]["4"] == pytest.approx((0 + 1 - math.comb(6, 4) / math.comb(8, 4) + 1) / 3)
    low, high = found["interval"]
    assert low < 10 / 24 < high
