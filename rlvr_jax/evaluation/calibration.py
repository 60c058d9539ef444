"""How well stated confidences fit correctness: Brier score, ECE and AUROC over completions, and a reliability diagram.

N completions: q[N] confidences from 0 to 1, c[N] whether each was right. ECE alone proves nothing: always stating the
mean accuracy gives an ECE of 0, and an AUROC of .5.
"""

from typing import Optional

import numpy as np

EDGES = np.linspace(0, 1, 11)  # of ten bins; a bin contains its lower edge, and the last one both


def brier(q: np.ndarray, c: np.ndarray) -> float:
    """Mean squared distance of the confidence to the outcome, 1 or 0: 0 is perfect, always stating .5 gives .25."""
    return float(np.mean((np.asarray(q, float) - c) ** 2))


def bin_indices(q: np.ndarray) -> np.ndarray:
    """i[N] the bin of each confidence. Edges are floats as in RLCR's code: .3 is below the fourth, 3 * .1."""
    return np.minimum(np.digitize(q, EDGES) - 1, len(EDGES) - 2)


def reliability_bins(q: np.ndarray, c: np.ndarray) -> list[dict]:
    """`{"from", "to", "n", "confidence", "accuracy"}` of each of the ten bins; an empty bin has None for both means."""
    place, columns = bin_indices(q), {"confidence": np.asarray(q, float), "accuracy": np.asarray(c, float)}
    return [{"from": round(float(low), 1), "to": round(float(high), 1), "n": int(np.sum(place == i))}
            | {name: float(np.mean(x[place == i])) if (place == i).any() else None for name, x in columns.items()}
            for i, (low, high) in enumerate(zip(EDGES[:-1], EDGES[1:]))]


def ece(q: np.ndarray, c: np.ndarray) -> float:
    """Expected calibration error: distance of mean confidence and accuracy in a bin, averaged by the bins' sizes."""
    return sum(part["n"] * abs(part["confidence"] - part["accuracy"])
               for part in reliability_bins(q, c) if part["n"]) / len(q)


def auroc(q: np.ndarray, c: np.ndarray) -> Optional[float]:
    """Chance that a right completion has a higher confidence than a wrong one, counting ties half; None without
    both kinds."""
    import scipy.stats  # takes half a second, which every script would wait for

    c = np.asarray(c, bool)
    right, wrong = int(c.sum()), int((~c).sum())
    if not right or not wrong:
        return None
    return float((scipy.stats.rankdata(q)[c].sum() - right * (right + 1) / 2) / (right * wrong))


def stated_confidences(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """q[N], c[N] of the rows that state a confidence."""
    stated = [row for row in rows if row.get("confidence") is not None]
    return np.array([row["confidence"] for row in stated]), np.array([row["correct"] for row in stated])


def score_confidences(q: np.ndarray, c: np.ndarray) -> dict:
    return {"mean_confidence": float(q.mean()), "brier": brier(q, c), "ece": ece(q, c), "auroc": auroc(q, c)}


def summarise_calibration(rows: list[dict]) -> dict:
    """What `summary.json` says of rows of `measure.sample_and_grade`; {} if none of them states a confidence. `n` is
    the number of those that do and `stated` their share; the other numbers are over these."""
    q, c = stated_confidences(rows)
    return {"n": len(q), "stated": len(q) / len(rows), "accuracy": float(c.mean()), **score_confidences(q, c),
            "bins": reliability_bins(q, c)} if len(q) else {}


def control_scores(rows: list[dict], others: list[dict]) -> dict:
    """How well two confidences fit `rows` that need no training; they are made from `others`, rows of other problems.

    `constant` states the mean accuracy of the others everywhere. `post_hoc` replaces each stated confidence by isotonic
    regression of the others' correctness on theirs: the nondecreasing map with the least Brier score there. Such a map
    changes no order (except by ties), so it improves ECE and Brier score but hardly AUROC.
    """
    import scipy.optimize

    (q, c), (other_q, other_c) = stated_confidences(rows), stated_confidences(others)
    values, place = np.unique(other_q, return_inverse=True)
    counts = np.bincount(place)
    levels = scipy.optimize.isotonic_regression(np.bincount(place, other_c) / counts, weights=counts).x
    return {"constant": score_confidences(np.full(len(q), other_c.mean()), c),
            "post_hoc": score_confidences(np.interp(q, values, levels), c)}


def format_calibration(summary: dict) -> str:
    """A result of `summarise_calibration` in words, for table.md."""
    return (f"confidence: stated in {summary['stated']:.1%} of completions, on average "
            f"{summary['mean_confidence']:.3f} where {summary['accuracy']:.3f} are correct; {format_scores(summary)}")


def format_scores(scores: dict) -> str:
    auroc = "-" if scores["auroc"] is None else f"{scores['auroc']:.3f}"
    return f"Brier {scores['brier']:.3f}, ECE {scores['ece']:.3f}, AUROC {auroc}"


def draw_reliability(sheet, results: dict[str, dict]) -> None:
    """A reliability diagram for each calibration, side by side on a matplotlib Figure. A dot is a bin, with its number
    of completions; on the diagonal, the stated confidence is the share that was right."""
    sheet.set_size_inches(3.4 * len(results), 3.4)
    for axes, (name, result) in zip(sheet.subplots(1, len(results), squeeze=False)[0], results.items()):
        axes.plot([0, 1], [0, 1], color="#8c959f", linewidth=0.8, linestyle="--")
        filled = [part for part in result["bins"] if part["n"]]
        axes.plot([part["confidence"] for part in filled], [part["accuracy"] for part in filled], "o-", color="#0072b2")
        for part in filled:
            axes.annotate(part["n"], (part["confidence"], part["accuracy"]), xytext=(0, 5), fontsize=7, ha="center",
                          textcoords="offset points", annotation_clip=False)
        axes.set(title=f"{name}: ECE {result['ece']:.3f}", xlabel="stated confidence", ylabel="share that was right",
                 xlim=(-0.05, 1.05), ylim=(-0.05, 1.1))
