"""The table of diagnostics: each is a function of a `Pair`, with what it measures and what a high value is read as.

P problems, E evaluations of a run, R resamples.
"""

import functools
import pathlib
from typing import Any, Callable, NamedTuple, Optional

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.estimators import RESAMPLES, bootstrap, pass_at_k
from rlvr_jax.lab.diagnostics import formulas
from rlvr_jax.lab.diagnostics.pair import SAMPLES, Pair, PairConfig, Undefined, check_gain
from rlvr_jax.lab.elicit.recovery import recovered
from rlvr_jax.lab.elicit.when import swapped_share
from rlvr_jax.runs import files


class Found(NamedTuple):
    """A value, its 95 % interval (None where it is exact, or of one run), and the parts of `Pair.tokens` it took."""

    value: float
    interval: Optional[tuple[float, float]] = None
    reads: tuple[str, ...] = ()
    more: dict = {}  # numbers beside it


class Diagnostic(NamedTuple):
    """A row, or one for each of its settings. `measure(pair, setting)` raises Undefined where there is no value."""

    measure: Callable[[Pair, Any], Found]
    what: str
    unit: str
    high: str  # what a high value is read as
    paper: str
    settings: Callable[[PairConfig], dict[str, Any]] = lambda config: {"": None}  # by the name that a row adds


# ----- from completions


def tries(pair: Pair, _) -> Found:
    size, rates = pair.config.num_samples, [rates_P for _, rates_P in pair.samples]
    k = formulas.most_tries(rates, size)
    if k is None:
        raise Undefined("undefined: guessing solves more than half of the problems at the first try", SAMPLES)
    solved = [np.array([pass_at_k(size, int(n), k) for n in right_PxN.sum(-1)]) for right_PxN, _ in pair.samples]
    columns = *solved, *(formulas.luck(rates_P, k) for rates_P in rates)

    def corrected(base, trained, base_luck, trained_luck):
        return formulas.beyond_luck(trained, trained_luck) - formulas.beyond_luck(base, base_luck)
    means = [float(column.mean()) for column in columns]
    return Found(corrected(*means), formulas.resampled(corrected, *columns), SAMPLES, {
        "k": k, "pass@k": means[:2], "luck": means[2:], "guess_rates": [float(rates_P.mean()) for rates_P in rates]})


def cover(pair: Pair, tau: float) -> Found:
    base_P, trained_P = (formulas.covered(*sampled, tau) for sampled in pair.samples)
    change_P = trained_P - base_P
    return Found(float(change_P.mean()), bootstrap(change_P), SAMPLES,
                 {"cover": [float(base_P.mean()), float(trained_P.mean())]})


def of_gain(pair: Pair, rows: list[dict], reads: tuple[str, ...], reverse: bool = False) -> Found:
    """The share of the gain that these rows recover, or in `reverse` lose."""
    right_P = np.array([row["correct"] for row in rows], float)
    share, (low, high) = recovered(*pair.right.values(), right_P)
    value, ends = (1 - share, (1 - high, 1 - low)) if reverse else (share, (low, high))
    return Found(value, ends, ("base", "trained", *reads), {"accuracy": float(right_P.mean())})


def swaps(kind: str, pair: Pair, setting: float) -> Found:
    check_gain(*pair.right.values())
    rows = pair.swapped[kind, setting]
    found = of_gain(pair, rows, (f"{kind} {setting:g}",), pair.gates[kind, setting].reverse)
    return found._replace(more=found.more | {"tokens_swapped": swapped_share(rows)})


def oracle_free(pair: Pair, _) -> Found:
    check_gain(*pair.right.values())
    rows, chosen = pair.steered
    found = of_gain(pair, rows, tuple(name for name in pair.tokens if name.startswith("hybrid")))
    return found._replace(more=found.more | chosen)


def perplexity(pair: Pair, kind: str) -> Found:
    changes = pair.surprises[kind]
    if not len(changes):
        raise Undefined("not measured: there is no such text")
    reads = (f"perplexity, {kind}", *(("base", "trained") if kind == "own" else ()))
    return Found(float(changes.mean()), bootstrap(changes), reads, {"n": len(changes)})


# ----- from weights, and from runs of training


def rank(pair: Pair, _) -> Found:
    if pair.weights["all"]["stable_rank"] is None:
        raise Undefined("undefined: no matrix changed")
    return Found(pair.weights["all"]["stable_rank"])


def finished(flag: str, name: str) -> dict:
    """summary.json of a run, RUN or RUN@STEP. UserError where it is not there, or measured nothing."""
    summary = files.read_json(pathlib.Path(name.partition("@")[0]) / "summary.json", missing={})
    if not summary.get("final"):
        raise UserError(f"--{flag}={name}: no directory of a finished run that measured on held-out problems")
    return summary


def frontier(pair: Pair, _) -> Found:
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
    return Found(value, tuple(np.nanquantile(again, (0.025, 0.975)).tolist()), (), {
        "points": sorted([int(size), float(x)] for size, x in zip(sizes, accuracies[1:]))})


def budget(pair: Pair, _) -> Found:
    if not pair.config.sft:
        raise Undefined("not measured: --sft names no run")
    curves = [read_curve("trained", pair.name), read_curve("sft", pair.config.sft)]
    check_gain(*curves[0][1][[0, -1]])
    rl_R, sft_R = formulas.tokens_to_half(*curves)
    if not sft_R[0] > 0:
        raise Undefined("undefined: the run of --sft " + (
            "has half of the gain before its first step" if sft_R[0] == 0 else "never reaches half of the gain"))
    ratios_R = rl_R / np.where(sft_R > 0, sft_R, np.nan)
    return Found(float(ratios_R[0]), tuple(np.nanquantile(ratios_R[1:], (0.025, 0.975)).tolist()), (), {
        "rl_tokens": float(rl_R[0]), "sft_tokens": float(sft_R[0])})


def read_curve(flag: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens trained on before each evaluation f64[E], whether each held-out problem was solved greedily f64[E,P])."""
    folder = pathlib.Path(name.partition("@")[0])
    metrics, heldout = (files.read_steps(folder / f"{log}.jsonl") for log in ("metrics", "heldout"))
    if not heldout:
        raise UserError(f"--{flag}={name}: no run directory with a heldout.jsonl, as runs with --heldout have it")
    tokens = [(row["step"], row.get("train/tokens", 0)) for row in metrics]
    return (np.array([sum(n for step, n in tokens if step <= row["step"]) for row in heldout], float),
            np.array([row["correct"] for row in heldout], float))


def saturation(pair: Pair, _) -> Found:
    step = files.read_json(pathlib.Path(pair.name.partition("@")[0]) / "summary.json", missing={}).get("saturation_step")
    if step is None:
        raise Undefined("not measured: --trained is no finished run of training, or none of its batches was 99 % right")
    return Found(float(step))


def percent(shares: tuple[float, ...]) -> dict[str, float]:
    return {f"{100 * share:g} %": share for share in shares}


SHARE = "share of the gain"
BY_SHARE = lambda config: percent(config.shares)
DIAGNOSTICS: dict[str, Diagnostic] = {
    "pass_at_k": Diagnostic(
        tries, "problems solved in k tries, trained minus base. Luck is taken out: a guess is an answer that the model "
        "gives to other problems; it is right with the chance g, and one of k with 1 - (1 - g)^k. k is --num_samples, or "
        "so far below it that guessing solves at most half of the problems.",
        "difference of shares", "taught: it solves what the base never does", "arXiv 2504.13837"),
    "cover": Diagnostic(
        cover, "Cover@tau, problems with a success rate of tau or more, trained minus base. Luck is taken out of each "
        "rate s, as (s - g) / (1 - g).",
        "difference of shares", "taught; with a small tau what can be solved at all, with a large one reliably",
        "arXiv 2510.08325", lambda config: percent(config.taus)),
    "forced_prefix": Diagnostic(
        functools.partial(swaps, "forced_prefix"), "the base goes on after so many first tokens of the trained model.",
        SHARE, "switched on, by how a solution opens", "arXiv 2509.06608", lambda config: {
            str(k): k for k in config.first}),
    "swap": Diagnostic(
        functools.partial(swaps, "swap"), "the base writes; at this share of tokens, those with the largest KL, the "
        "trained model's token is put in, where it is another.",
        SHARE, "switched on, at a few tokens", "arXiv 2603.22446", BY_SHARE),
    "reverse_swap": Diagnostic(
        functools.partial(swaps, "reverse_swap"), "the trained model writes, and the base's tokens are put in: the gain "
        "that is lost.",
        SHARE, "switched on, at a few tokens", "arXiv 2603.22446", BY_SHARE),
    "entropy_swap": Diagnostic(
        functools.partial(swaps, "entropy_swap"), "as swap, at the tokens where the base has the highest entropy.",
        SHARE, "switched on, by choices that the base left open", "arXiv 2605.06241", BY_SHARE),
    "hybrid": Diagnostic(
        oracle_free, "the base, steered by one vector at tokens that a gate predicts from the base's own activations.",
        SHARE, "switched on: the base knows how, training says when", "arXiv 2510.07364"),
    "frontier": Diagnostic(
        frontier, "how many trained numbers reach half of the gain, between the runs of --frontier.",
        "numbers", "taught: what takes many numbers is more than a switch", "arXiv 2505.18706"),
    "rank": Diagnostic(
        rank, "stable rank of the weight change, the mean over matrices.",
        "directions", "taught: the change has many directions", "arXiv 2605.21468"),
    "sparsity": Diagnostic(
        lambda pair, _: Found(1 - pair.weights["all"]["moved"]), "weights that changed by at most 1e-5 of their size.",
        "share of weights", "switched on, in a small subnetwork", "arXiv 2505.11711"),
    "budget": Diagnostic(
        budget, "tokens of training until held-out greedy accuracy has half of the gain, over those of the supervised run "
        "--sft until the same accuracy.", "ratio", "taught: rewards had to find what examples show", ""),
    "answer_perplexity": Diagnostic(
        perplexity, "log-perplexity of right solutions, trained minus base: the trained model's own, and the problems' "
        "reference solutions.",
        "nats a token", "no shortcut: spurious rewards make answers likelier, below 0", "arXiv 2601.11061",
        lambda config: {"own": "own", "reference": "reference"}),
    "prompt_perplexity": Diagnostic(
        lambda pair, _: perplexity(pair, "prompt"), "log-perplexity of the prompts, trained minus base.",
        "nats a token", "a shortcut: spurious rewards make prompts unlikelier", "arXiv 2601.11061"),
    "saturation": Diagnostic(
        saturation, "steps until a batch of training is 99 % right.",
        "steps", "taught: it generalises; what saturates fast memorises", "arXiv 2604.18574"),
}
