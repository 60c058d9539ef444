"""How well stated confidences fit what was right: Brier score, ECE and AUROC over completions, and their picture.

N completions: q[N] confidences from 0 to 1, c[N] whether each was right. ECE alone is no evidence: whoever always
states the mean accuracy has an ECE of 0, and an AUROC of .5.
"""

from typing import Optional

import numpy as np

EDGES = np.linspace(0, 1, 11)  # of ten bins, each without its upper edge, but the last with it


def brier(q: np.ndarray, c: np.ndarray) -> float:
    """Mean squared distance of the confidence to what came out, 1 or 0: 0 is perfect, always saying .5 gives .25."""
    return float(np.mean((np.asarray(q, float) - c) ** 2))


def bin_of(q: np.ndarray) -> np.ndarray:
    """i[N] the bin of each confidence. Edges are floats as in RLCR's code: .3 is below the fourth, 3 * .1."""
    return np.minimum(np.digitize(q, EDGES) - 1, len(EDGES) - 2)


def bins(q: np.ndarray, c: np.ndarray) -> list[dict]:
    """`{"from", "to", "n", "confidence", "accuracy"}` of each of the ten bins; means are None where a bin is empty."""
    place, means = bin_of(q), lambda x, inside: float(np.mean(x[inside])) if inside.any() else None
    return [{"from": round(float(low), 1), "to": round(float(high), 1), "n": int(inside.sum()),
             "confidence": means(np.asarray(q, float), inside), "accuracy": means(np.asarray(c, float), inside)}
            for low, high, inside in zip(EDGES[:-1], EDGES[1:], place == np.arange(len(EDGES) - 1)[:, None])]


def ece(q: np.ndarray, c: np.ndarray) -> float:
    """Expected calibration error: distance of mean confidence and accuracy in a bin, averaged by the bins' sizes."""
    return sum(part["n"] * abs(part["confidence"] - part["accuracy"]) for part in bins(q, c) if part["n"]) / len(q)


def auroc(q: np.ndarray, c: np.ndarray) -> Optional[float]:
    """Chance that a right completion is surer than a wrong one, a tie counting half; None without both kinds."""
    import scipy.stats  # half a second, which every script would wait for

    c = np.asarray(c, bool)
    right, wrong = int(c.sum()), int((~c).sum())
    if not right or not wrong:
        return None
    return float((scipy.stats.rankdata(q)[c].sum() - right * (right + 1) / 2) / (right * wrong))


def stated(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """q[N], c[N] of those of the rows that state a confidence."""
    there = [row for row in rows if row.get("confidence") is not None]
    return np.array([row["confidence"] for row in there]), np.array([row["correct"] for row in there])


def scores(q: np.ndarray, c: np.ndarray) -> dict:
    return {"mean_confidence": float(q.mean()), "brier": brier(q, c), "ece": ece(q, c), "auroc": auroc(q, c)}


def calibration(rows: list[dict]) -> dict:
    """What `summary.json` says of rows of `evaluation.measure`; {} where none of them states a confidence. `n` is the
    number of those that do and `stated` their share of all; the other numbers are of these."""
    q, c = stated(rows)
    return {"n": len(q), "stated": len(q) / len(rows), "accuracy": float(c.mean()), **scores(q, c),
            "bins": bins(q, c)} if len(q) else {}


def controls(rows: list[dict], others: list[dict]) -> dict:
    """How well confidences fit that need no training, for rows that state one; `others` are of other problems.

    `constant` says the mean accuracy of the others everywhere. `post_hoc` replaces each stated confidence by isotonic
    regression of the others' verdicts on theirs: of all maps that do not fall, the one with the least Brier score
    there. Such a map changes no order (but for ties), so it improves ECE and Brier score and hardly AUROC.
    """
    import scipy.optimize

    (q, c), (other_q, other_c) = stated(rows), stated(others)
    values, place = np.unique(other_q, return_inverse=True)
    counts = np.bincount(place)
    levels = scipy.optimize.isotonic_regression(np.bincount(place, other_c) / counts, weights=counts).x
    return {"constant": scores(np.full(len(q), other_c.mean()), c), "post_hoc": scores(np.interp(q, values, levels), c)}


def line(result: dict) -> str:
    """A result of `calibration` in words, for table.md."""
    return (f"confidence: stated in {result['stated']:.1%} of completions, on average {result['mean_confidence']:.3f} "
            f"where {result['accuracy']:.3f} are correct; {score_line(result)}")


def score_line(result: dict) -> str:
    auroc = "-" if result["auroc"] is None else f"{result['auroc']:.3f}"
    return f"Brier {result['brier']:.3f}, ECE {result['ece']:.3f}, AUROC {auroc}"


def panels(sheet, results: dict[str, dict]) -> None:
    """A reliability diagram for each `calibration`, side by side on a matplotlib Figure. A dot is a bin, with its
    number of completions; on the diagonal, stated confidence is the share that was right."""
    sheet.set_size_inches(3.4 * len(results), 3.4)
    for axes, (name, result) in zip(sheet.subplots(1, len(results), squeeze=False)[0], results.items()):
        axes.plot([0, 1], [0, 1], color="#8c959f", linewidth=0.8, linestyle="--")
        there = [part for part in result["bins"] if part["n"]]
        axes.plot([part["confidence"] for part in there], [part["accuracy"] for part in there], "o-", color="#0072b2")
        for part in there:
            axes.annotate(part["n"], (part["confidence"], part["accuracy"]), xytext=(0, 5), fontsize=7, ha="center",
                          textcoords="offset points", annotation_clip=False)
        axes.set(title=f"{name}: ECE {result['ece']:.3f}", xlabel="stated confidence", ylabel="share that was right",
                 xlim=(-0.05, 1.05), ylim=(-0.05, 1.1))
