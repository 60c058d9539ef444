"""The table of diagnostics: each is a function of a `Pair`, with what it measures and what a high value is read as.

P problems, E evaluations of a run, R resamples.
"""

import pathlib
from typing import Any, Callable, NamedTuple, Optional

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.estimators import RESAMPLES, bootstrap, pass_at_k, recovered_share, bootstrap_statistic
from rlvr_jax.lab.diagnostics import formulas
from rlvr_jax.lab.diagnostics.pair import DiagnoseConfig, Pair, Undefined, check_gain, percent
from rlvr_jax.lab.elicit.when import swapped_share
from rlvr_jax.runs import files


class Found(NamedTuple):
    """A value and its 95 % interval; None where the value is exact, or of a single run."""

    value: float
    interval: Optional[tuple[float, float]] = None
    more: dict = {}  # numbers beside it


class Diagnostic(NamedTuple):
    """A row, or one for each of its settings. `measure(pair, label, setting)` raises Undefined where there is no value.
    It takes the part of `Pair.tokens` that is called by its label, and those that `reads` names."""

    measure: Callable[[Pair, str, Any], Found]
    what: str
    unit: str
    high: str  # what a high value is read as
    paper: str
    reads: tuple[str, ...] = ()
    settings: Callable[[DiagnoseConfig], dict[str, Any]] = lambda config: {"": None}  # by what they add to the label


# ----- from completions


def tries(pair: Pair, *_) -> Found:
    size, rates = pair.config.num_samples, [rates_P for _, rates_P in pair.samples]
    k = formulas.most_tries(rates, size)
    if k is None:
        raise Undefined("undefined: guessing solves more than half of the problems at the first try")
    solved = [np.array([pass_at_k(size, int(n), k) for n in right_PxN.sum(-1)]) for right_PxN, _ in pair.samples]
    columns = *solved, *(formulas.luck(rates_P, k) for rates_P in rates)

    def corrected(base, trained, base_luck, trained_luck):
        return formulas.beyond_luck(trained, trained_luck) - formulas.beyond_luck(base, base_luck)
    means = [float(column.mean()) for column in columns]
    return Found(corrected(*means), bootstrap_statistic(corrected, *columns), {
        "k": k, "pass@k": means[:2], "luck": means[2:], "guess_rates": [float(rates_P.mean()) for rates_P in rates]})


def cover(pair: Pair, _, tau: float) -> Found:
    base_P, trained_P = (formulas.covered(*sampled, tau) for sampled in pair.samples)
    change_P = trained_P - base_P
    return Found(float(change_P.mean()), bootstrap(change_P), {
        "cover": [float(base_P.mean()), float(trained_P.mean())]})


def of_gain(pair: Pair, rows: list[dict], more: dict, reverse: bool = False) -> Found:
    """The share of the gain that these rows recover, or in `reverse` lose."""
    right_P = np.array([row["correct"] for row in rows], float)
    share, (low, high) = recovered_share(*pair.right, right_P)
    value, ends = (1 - share, (1 - high, 1 - low)) if reverse else (share, (low, high))
    return Found(value, ends, {"accuracy": float(right_P.mean())} | more)


def swaps(pair: Pair, label: str, _) -> Found:
    check_gain(*pair.right)
    rows = pair.swapped[label]
    return of_gain(pair, rows, {"tokens_swapped": swapped_share(rows)}, pair.gates[label].reverse)


def oracle_free(pair: Pair, *_) -> Found:
    check_gain(*pair.right)
    rows, chosen = pair.steered
    return of_gain(pair, rows, {"chosen": chosen})


def perplexity(pair: Pair, label: str, _) -> Found:
    changes = pair.surprises[label]
    if not len(changes):
        raise Undefined("not measured: there is no such text")
    return Found(float(changes.mean()), bootstrap(changes), {"n": len(changes)})


# ----- from weights, and from runs of training


def rank(pair: Pair, *_) -> Found:
    if pair.weights["all"]["stable_rank"] is None:
        raise Undefined("undefined: no matrix changed")
    return Found(pair.weights["all"]["stable_rank"])


def finished(flag: str, name: str) -> dict:
    """summary.json of a run, RUN or RUN@STEP. UserError where it is not there, or measured nothing."""
    summary = files.read_json(pathlib.Path(name.partition("@")[0]) / "summary.json", missing={})
    if not summary.get("final"):
        raise UserError(f"--{flag}={name}: no directory of a finished run that measured on held-out problems")
    return summary


def frontier(pair: Pair, *_) -> Found:
    names = list(filter(None, pair.config.frontier.split(",")))
    if not names:
        raise Undefined("not measured: --frontier names no runs with fewer trained numbers")
    runs = [finished("frontier", name) for name in names] + [finished("trained", pair.name)]
    sizes = np.array([run["trained"] for run in runs])
    ends = [runs[-1]["base"], *(run["final"] for run in runs)]
    check_gain(ends[0]["greedy"], ends[-1]["greedy"])
    counts, accuracies = (np.array([end[key] for end in ends]) for key in ("n", "greedy"))
    drawn = np.random.default_rng(0).binomial(counts, accuracies, (RESAMPLES, len(ends))) / counts
    value, *again = (formulas.numbers_at((row[0] + row[-1]) / 2, sizes, row[1:]) for row in (accuracies, *drawn))
    if np.isnan(value):
        raise Undefined("undefined: no run reaches half of the gain")
    return Found(value, tuple(np.nanquantile(again, (0.025, 0.975)).tolist()), {
        "points": sorted([int(size), float(x)] for size, x in zip(sizes, accuracies[1:]))})


def budget(pair: Pair, *_) -> Found:
    if not pair.config.sft:
        raise Undefined("not measured: --sft names no run")
    curves = [read_curve("trained", pair.name), read_curve("sft", pair.config.sft)]
    check_gain(*curves[0][1][[0, -1]])
    rl_R, sft_R = formulas.tokens_to_half(*curves)
    if not sft_R[0] > 0:
        raise Undefined("undefined: the run of --sft " + (
            "has half of the gain before its first step" if sft_R[0] == 0 else "never reaches half of the gain"))
    ratios_R = rl_R / np.where(sft_R > 0, sft_R, np.nan)
    return Found(float(ratios_R[0]), tuple(np.nanquantile(ratios_R[1:], (0.025, 0.975)).tolist()), {
        "rl_tokens": float(rl_R[0]), "sft_tokens": float(sft_R[0])})


def read_curve(flag: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens trained on before each evaluation f64[E], whether each held-out problem was solved greedily f64[E,P])."""
    folder = pathlib.Path(name.partition("@")[0])
    metrics, heldout = (files.read_steps(folder / f"{log}.jsonl", log == "metrics") for log in ("metrics", "heldout"))
    if not heldout:
        raise UserError(f"--{flag}={name}: no run directory with a heldout.jsonl, as runs with --heldout have it")
    tokens = [(row["step"], row.get("train/tokens", 0)) for row in metrics]
    return (np.array([sum(n for step, n in tokens if step <= row["step"]) for row in heldout], float),
            np.array([row["correct"] for row in heldout], float))


def saturation(pair: Pair, *_) -> Found:
    path = pathlib.Path(pair.name.partition("@")[0]) / "summary.json"
    step = files.read_json(path, missing={}).get("saturation_step")
    if step is None:
        raise Undefined("not measured: --trained is no finished run of training, or none of its batches was 99 % right")
    return Found(float(step))


SHARE, TEXTS, SAMPLES = "share of the gain", ("base", "trained"), ("samples",)
BY_SHARE = lambda config: percent(config.shares)
DIAGNOSTICS: dict[str, Diagnostic] = {
    "pass_at_k": Diagnostic(
        tries, "change in problems solved in k tries, less luck: what k of its answers to other problems would solve.",
        "difference of shares", "taught: it solves what the base never does", "arXiv:2504.13837", SAMPLES),
    "cover": Diagnostic(
        cover, "change in problems solved at a rate of at least this, less luck.", "difference of shares",
        "taught: at a small rate more is solved, at a large one more reliably", "arXiv:2510.08325", SAMPLES,
        lambda config: percent(config.taus)),
    "forced_prefix": Diagnostic(
        swaps, "the base continues so many first tokens of the trained model.", SHARE,
        "switched on by how it opens", "arXiv:2509.06608", TEXTS, lambda config: {str(k): k for k in config.first}),
    "swap": Diagnostic(
        swaps, "the base writes; at this share of tokens, those with the largest KL, it takes the trained model's.",
        SHARE, "switched on at a few tokens", "arXiv:2603.22446", TEXTS, BY_SHARE),
    "reverse_swap": Diagnostic(
        swaps, "the trained model writes and takes the base's there: the gain that is lost.", SHARE,
        "switched on at a few tokens", "arXiv:2603.22446", TEXTS, BY_SHARE),
    "entropy_swap": Diagnostic(
        swaps, "as swap, where the base's entropy is highest.", SHARE, "switched on by choices the base left open",
        "arXiv:2605.06241", TEXTS, BY_SHARE),
    "hybrid": Diagnostic(
        oracle_free, "the base, steered by one vector at tokens that a gate picks from its own activations.", SHARE,
        "switched on: the base knows how, training says when", "arXiv:2510.07364", (*TEXTS, "hybrid")),
    "frontier": Diagnostic(
        frontier, "trained parameters for half of the gain, interpolated between the runs of --frontier.", "numbers",
        "taught: a switch needs few", "arXiv:2505.18706"),
    "rank": Diagnostic(
        rank, "stable rank of weight changes, mean over matrices.", "directions", "taught: many", "arXiv:2605.21468"),
    "sparsity": Diagnostic(
        lambda pair, *_: Found(1 - pair.weights["all"]["moved"]), "weights that changed by at most 1e-5 of their size.",
        "share of weights", "switched on in a small subnetwork", "arXiv:2505.11711"),
    "budget": Diagnostic(
        budget, "training tokens until half of the gain, over those of the supervised run --sft to the same greedy "
        "accuracy.", "ratio", "taught: rewards had to find what examples show", ""),
    "answer_perplexity": Diagnostic(
        perplexity, "change in the log-perplexity of right solutions: the trained model's own, or the reference.",
        "nats a token", "no shortcut: spurious rewards make answers likelier", "arXiv:2601.11061", TEXTS,
        lambda config: dict.fromkeys(("own", "reference"))),
    "prompt_perplexity": Diagnostic(
        perplexity, "change in the log-perplexity of prompts.", "nats a token",
        "a shortcut: spurious rewards make prompts less likely", "arXiv:2601.11061"),
    "saturation": Diagnostic(
        saturation, "steps until a batch is 99 % right.", "steps", "taught: memorising is fast", "arXiv:2604.18574"),
}
