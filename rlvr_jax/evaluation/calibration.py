"""How well stated confidences fit correctness: Brier score, ECE and AUROC over completions, and a reliability diagram.

For N completions, `q` f[N] has the stated confidences, from 0 to 1, and `c` bool[N] whether each completion is right. A
low ECE alone proves nothing: always stating the mean accuracy gives an ECE of 0, but an AUROC of 0.5.
"""

from typing import Optional

import numpy as np

EDGES = np.linspace(0, 1, 11)  # of ten bins; a bin contains its lower edge, and the last bin also its upper edge


def brier(q: np.ndarray, c: np.ndarray) -> float:
    """Mean squared difference of confidence and outcome, 1 or 0. 0 is perfect; always stating 0.5 gives 0.25."""
    return float(np.mean((np.asarray(q, float) - c) ** 2))


def bin_indices(q: np.ndarray) -> np.ndarray:
    """Returns the bin of each confidence, i[N], 0 to 9. In floats, 3 * 0.1 > 0.3, so 0.3 is in bin 2, as in RLCR."""
    return np.minimum(np.digitize(q, EDGES) - 1, len(EDGES) - 2)


def reliability_bins(q: np.ndarray, c: np.ndarray) -> list[dict]:
    """Returns a dict for each bin: edges "from", "to"; count "n"; means "confidence", "accuracy" (None if empty)."""
    bin_N, columns = bin_indices(q), {"confidence": np.asarray(q, float), "accuracy": np.asarray(c, float)}
    return [{"from": round(float(low), 1), "to": round(float(high), 1), "n": int(np.sum(bin_N == i))}
            | {name: float(np.mean(x[bin_N == i])) if i in bin_N else None for name, x in columns.items()}
            for i, (low, high) in enumerate(zip(EDGES[:-1], EDGES[1:]))]


def ece(q: np.ndarray, c: np.ndarray) -> float:
    """Expected calibration error: |mean confidence - accuracy| in a bin, averaged over the bins, weighted by count."""
    filled_bins = [each for each in reliability_bins(q, c) if each["n"]]
    return sum(each["n"] * abs(each["confidence"] - each["accuracy"]) for each in filled_bins) / len(q)


def auroc(q: np.ndarray, c: np.ndarray) -> Optional[float]:
    """Chance that a right completion is more confident than a wrong one (ties: half); None if all or none are right."""
    import scipy.stats  # imported here because it takes half a second, for which every script would wait

    c = np.asarray(c, bool)
    right, wrong = int(c.sum()), int((~c).sum())  # numbers of completions
    if not right or not wrong:
        return None
    return float((scipy.stats.rankdata(q)[c].sum() - right * (right + 1) / 2) / (right * wrong))  # Mann-Whitney's U


def stated_confidences(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (q[N], c[N]) of the N rows that state a confidence; rows are those of `measure.sample_and_grade`."""
    stated = [row for row in rows if row.get("confidence") is not None]
    return np.array([row["confidence"] for row in stated]), np.array([row["correct"] for row in stated])


def score_confidences(q: np.ndarray, c: np.ndarray) -> dict:
    return {"mean_confidence": float(q.mean()), "brier": brier(q, c), "ece": ece(q, c), "auroc": auroc(q, c)}


def summarise_calibration(rows: list[dict]) -> dict:
    """Returns the "calibration" of summary.json; {} if no row states a confidence. "n" is the number of rows that state
    a confidence, "stated" their share of all `rows`; the other values are over these n rows."""
    q, c = stated_confidences(rows)
    if not len(q):
        return {}
    return {"n": len(q), "stated": len(q) / len(rows), "accuracy": float(c.mean()), **score_confidences(q, c),
            "bins": reliability_bins(q, c)}


def control_scores(rows: list[dict], others: list[dict]) -> dict:
    """Returns {"constant": scores, "post_hoc": scores}, the `score_confidences` of `rows` with other confidences.
    "constant" states in every row the accuracy of `others`, which are rows of other problems. "post_hoc" maps each
    stated confidence by isotonic regression: the nondecreasing function with the least Brier score on `others`. Such a
    function keeps the order of confidences (except for ties), so it improves ECE and Brier score but hardly AUROC."""
    import scipy.optimize

    (q, c), (other_q, other_c) = stated_confidences(rows), stated_confidences(others)
    values, inverse, counts = np.unique(other_q, return_inverse=True, return_counts=True)
    accuracies = np.bincount(inverse, other_c) / counts  # of each distinct confidence in `values`
    levels = scipy.optimize.isotonic_regression(accuracies, weights=counts).x
    return {"constant": score_confidences(np.full(len(q), other_c.mean()), c),
            "post_hoc": score_confidences(np.interp(q, values, levels), c)}


def format_calibration(summary: dict) -> str:
    """Returns `summary`, a result of `summarise_calibration`, in words, for table.md."""
    return (f"confidence: stated in {summary['stated']:.1%} of completions, on average "
            f"{summary['mean_confidence']:.3f} where {summary['accuracy']:.3f} are correct; {format_scores(summary)}")


def format_scores(scores: dict) -> str:
    auroc = "-" if scores["auroc"] is None else f"{scores['auroc']:.3f}"
    return f"Brier {scores['brier']:.3f}, ECE {scores['ece']:.3f}, AUROC {auroc}"


def draw_reliability(sheet, results: dict[str, dict]) -> None:
    """Draws a reliability diagram for each of `results`, {name: `summarise_calibration`}, on a matplotlib Figure. A dot
    is a bin, with its number of completions. On the diagonal, the mean confidence equals the share that was right."""
    sheet.set_size_inches(3.4 * len(results), 3.4)
    for axes, (name, result) in zip(sheet.subplots(1, len(results), squeeze=False)[0], results.items()):
        axes.plot([0, 1], [0, 1], color="#8c959f", linewidth=0.8, linestyle="--")
        filled = [each for each in result["bins"] if each["n"]]
        axes.plot([each["confidence"] for each in filled], [each["accuracy"] for each in filled], "o-", color="#0072b2")
        for each in filled:
            axes.annotate(each["n"], (each["confidence"], each["accuracy"]), xytext=(0, 5), fontsize=7, ha="center",
                          textcoords="offset points", annotation_clip=False)
        axes.set(title=f"{name}: ECE {result['ece']:.3f}", xlabel="stated confidence", ylabel="share that was right",
                 xlim=(-0.05, 1.05), ylim=(-0.05, 1.1))
