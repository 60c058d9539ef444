"""The share of a trained model's gain over its base that another way of decoding the base recovers."""

import numpy as np

from rlvr_jax.evaluation.estimators import RESAMPLES, wilson

LEAST_GAP = 0.10  # between base and trained model, below which no share of it is reported


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
    places = np.random.default_rng(0).integers(0, len(base_P), (RESAMPLES, len(base_P)))
    bases, traineds, rights = (x[places].mean(-1) for x in (base_P, trained_P, right_P))
    apart = traineds > bases
    ratios = (rights - bases)[apart] / (traineds - bases)[apart]
    return float((right - base) / (trained - base)), tuple(np.quantile(ratios, (0.025, 0.975)).tolist())
