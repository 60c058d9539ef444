"""The table of diagnostics, each a function of a `Pair`, and the command that measures them and writes their page.

P problems, E evaluations of a run, R resamples.
"""

import math
import pathlib
from typing import Any, Callable, NamedTuple, Optional

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.estimators import (
    RESAMPLES, bootstrap, bootstrap_statistic, format_estimate, pass_at_k, recovered_share)
from rlvr_jax.lab.diagnostics import formulas
from rlvr_jax.lab.diagnostics.pair import DiagnoseConfig, Pair, Undefined, check_gain, label_shares, load_pair
from rlvr_jax.lab.elicit.comparison import share_of_tokens
from rlvr_jax.lab.elicit.when import draw_intervals
from rlvr_jax.runs import files
from rlvr_jax.runs.flags import describe_command
from rlvr_jax.runs.markdown import markdown_table


class Estimate(NamedTuple):
    """The value of a diagnostic, and its 95 % interval."""

    value: Optional[float]  # None if it is undefined or was not measured
    interval: Optional[tuple[float, float]] = None  # None for an exact value, and for one measured on a single run
    more: dict = {}  # further numbers, for "more" of the row in summary.json


class Diagnostic(NamedTuple):
    """How to measure one row of the results or, if there are several settings, a row for each, such as "swap, 5 %". The
    text before the comma names the diagnostic, the text after it the setting; both together are the row's label."""

    measure: Callable[[Pair, str, Any], Estimate]  # (pair, label, setting); raises Undefined if it has no value
    what: str  # what is measured, as a sentence of the page
    unit: str
    high: str  # what papers take a high value to mean
    paper: str
    reads: tuple[str, ...] = ()  # work shared with other rows: keys of `Pair.tokens`, or what they have before a comma
    settings: Callable[[DiagnoseConfig], dict[str, Any]] = lambda config: {"": None}  # suffix of the label -> setting


# The functions called measure_... are values of `Diagnostic.measure`: DIAGNOSTICS says what each measures.
def measure_pass_at_k(pair: Pair, *_) -> Estimate:
    def change_beyond_luck(base, trained, base_luck, trained_luck):  # the change in (pass@k - luck) / (1 - luck)
        return formulas.beyond_luck(trained, trained_luck) - formulas.beyond_luck(base, base_luck)

    # A guess is one of the model's answers to other problems; guess rates, f64[P], say how often a guess is right. k is
    # num_samples or a smaller power of two: the largest for which k guesses solve at most half of the problems.
    num_samples, guess_rates = pair.config.num_samples, [rates_P for _, rates_P in pair.samples]
    k = formulas.most_tries(guess_rates, num_samples)
    if k is None:
        raise Undefined("undefined: guessing solves more than half of the problems at the first try")
    # pass@k, and the chance that one of k guesses is right: f64[P] each, of the base and of the trained model
    solved = [np.array([pass_at_k(num_samples, int(n), k) for n in right_PxN.sum(-1)]) for right_PxN, _ in pair.samples]
    lucky = [formulas.luck(rates_P, k) for rates_P in guess_rates]
    means = [float(column.mean()) for column in (*solved, *lucky)]
    return Estimate(change_beyond_luck(*means), bootstrap_statistic(change_beyond_luck, *solved, *lucky), {
        "k": k, "pass@k": means[:2], "luck": means[2:], "guess_rates": [float(rates.mean()) for rates in guess_rates]})


def measure_cover(pair: Pair, _, tau: float) -> Estimate:
    base_P, trained_P = (formulas.covered(*sampled, tau) for sampled in pair.samples)
    change_P = trained_P - base_P
    return Estimate(float(change_P.mean()), bootstrap(change_P, (-1, 1)), {
        "cover": [float(base_P.mean()), float(trained_P.mean())]})


def share_of_gain(pair: Pair, rows: list[dict], more: dict, reverse: bool = False) -> Estimate:
    """The share of the gain that completions `rows` recover or, with `reverse`, lose; their accuracy, and `more`."""
    right_P = np.array([row["correct"] for row in rows], float)
    share, (low, high) = recovered_share(*pair.solved, right_P)
    if reverse:
        share, low, high = 1 - share, 1 - high, 1 - low
    return Estimate(share, (low, high), {"accuracy": float(right_P.mean())} | more)


def measure_swap(pair: Pair, label: str, _) -> Estimate:
    """One model writes the completions, with the other model's token wherever the gate of `label` says so. If the base
    model writes: the share of the gain recovered. If the trained model writes (`reverse`): the share lost."""
    check_gain(*pair.solved)
    rows, reverse = pair.swapped[label], pair.gates[label].reverse
    return share_of_gain(pair, rows, {"tokens_swapped": share_of_tokens(rows, "swapped")}, reverse)


def measure_hybrid(pair: Pair, *_) -> Estimate:
    check_gain(*pair.solved)
    rows, chosen = pair.steered
    return share_of_gain(pair, rows, {"chosen": chosen})


def measure_perplexity(pair: Pair, label: str, _) -> Estimate:
    changes = pair.perplexity_changes[label]
    if not len(changes):
        raise Undefined("not measured: there is no such text")
    return Estimate(float(changes.mean()), bootstrap(changes, (-np.inf, np.inf)), {"n": len(changes)})


def measure_rank(pair: Pair, *_) -> Estimate:
    if pair.weights["all"]["stable_rank"] is None:
        raise Undefined("undefined: no matrix changed")
    return Estimate(pair.weights["all"]["stable_rank"])


def measure_frontier(pair: Pair, *_) -> Estimate:
    names = list(filter(None, pair.config.frontier.split(",")))
    if not names:
        raise Undefined("not measured: --frontier names no runs with fewer trained numbers")
    runs = []  # summaries, that of --trained last
    for flag, name in [("frontier", name) for name in names] + [("trained", pair.trained_name)]:
        runs.append(files.read_json(pathlib.Path(name.partition("@")[0]) / "summary.json", missing={}))
        if not runs[-1].get("final"):
            raise UserError(f"--{flag}={name}: no directory of a finished run that measured on held-out problems")
        if named_step(name) < runs[-1].get("steps", 0):
            raise Undefined(f"not measured: {name} is a step before the run's end, and summary.json has only the end")
    sizes = np.array([run["trained"] for run in runs])  # how many parameters each run trained
    measured = [runs[-1]["base"], *(run["final"] for run in runs)]  # the base model, then the runs
    check_gain(measured[0]["greedy"], measured[-1]["greedy"])
    counts, accuracies = (np.array([each[key] for each in measured]) for key in ("n", "greedy"))
    resamples = np.random.default_rng(0).binomial(counts, accuracies, (RESAMPLES, len(measured))) / counts
    value, *resampled = (formulas.numbers_at((base + trained) / 2, sizes, np.array([*others, trained]))
                         for base, *others, trained in (accuracies, *resamples))
    if np.isnan(value):
        raise Undefined("undefined: no run reaches half of the gain")
    return Estimate(value, tuple(np.nanquantile(resampled, (0.025, 0.975)).tolist()), {
        "points": sorted([int(size), float(x)] for size, x in zip(sizes, accuracies[1:]))})


def named_step(name: str) -> float:
    """The step of a model's name `DIR@STEP`; infinity for `DIR`."""
    step = name.partition("@")[2]
    return int(step) if step.isdecimal() else math.inf


def measure_budget(pair: Pair, *_) -> Estimate:
    if not pair.config.sft:
        raise Undefined("not measured: --sft names no run")
    curves = [read_curve("trained", pair.trained_name), read_curve("sft", pair.config.sft)]
    _, solved_ExP = curves[0]
    check_gain(solved_ExP[0], solved_ExP[-1])
    rl_R, sft_R = formulas.tokens_to_half(*curves)  # entry 0 is the value, the other entries are resamples
    if not sft_R[0] > 0:
        raise Undefined("undefined: the run of --sft " + (
            "has half of the gain before its first step" if sft_R[0] == 0 else "never reaches half of the gain"))
    ratios_R = rl_R / np.where(sft_R > 0, sft_R, np.nan)
    ratios_R = np.where(np.isnan(sft_R), 0, ratios_R)  # where fine-tuning never gets there
    return Estimate(float(ratios_R[0]), tuple(np.nanquantile(ratios_R[1:], (0.025, 0.975)).tolist()), {
        "rl_tokens": float(rl_R[0]), "sft_tokens": float(sft_R[0])})


def read_curve(flag: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (f64[E], tokens that run `name` trained on before each evaluation, to the step that it names; f64[E,P],
    1 for each held-out problem solved greedily, else 0). UserError, naming `flag`, if there is no heldout.jsonl."""
    folder = pathlib.Path(name.partition("@")[0])
    metrics = files.read_steps(folder / "metrics.jsonl")
    heldout = [row for row in files.read_steps(folder / "heldout.jsonl", single=False)
               if row["step"] <= named_step(name)]
    if not heldout:
        raise UserError(f"--{flag}={name}: no run directory with a heldout.jsonl, which runs with --heldout write")
    tokens = [(row["step"], row.get("train/tokens", 0)) for row in metrics]
    return (np.array([sum(n for step, n in tokens if step <= row["step"]) for row in heldout], float),
            np.array([row["correct"] for row in heldout], float))


def measure_saturation(pair: Pair, *_) -> Estimate:
    step = files.read_json(pair.trained_run / "summary.json", missing={}).get("saturation_step")
    if step is None or step > named_step(pair.trained_name):
        raise Undefined("not measured: --trained is no finished run of training, or none of its batches was 99 % right")
    return Estimate(float(step))


SHARE, TEXTS, SAMPLES = "share of the gain", ("base", "trained"), ("samples",)  # a unit; values of `Diagnostic.reads`
BY_SHARE = lambda config: label_shares(config.shares)  # a value of `Diagnostic.settings`
DIAGNOSTICS: dict[str, Diagnostic] = {
    "pass_at_k": Diagnostic(
        measure_pass_at_k, "change in problems solved in k tries, less luck: what k of its answers to other problems "
        "would solve.", "difference of shares", "taught: it solves what the base model never does", "arXiv:2504.13837",
        SAMPLES),
    "cover": Diagnostic(
        measure_cover, "change in problems solved at a rate of at least tau, beyond luck.", "difference of shares",
        "taught: at a small rate more is solved, at a large one more reliably", "arXiv:2510.08325", SAMPLES,
        lambda config: label_shares(config.taus)),
    "forced_prefix": Diagnostic(
        measure_swap, "the base model continues this many first tokens of the trained model.", SHARE,
        "switched on by its first words", "arXiv:2509.06608", TEXTS, lambda config: {str(k): k for k in config.first}),
    "swap": Diagnostic(
        measure_swap, "the base model writes and takes the trained model's token at this share of tokens, those with "
        "the largest KL.", SHARE, "switched on at a few tokens", "arXiv:2603.22446", TEXTS, BY_SHARE),
    "reverse_swap": Diagnostic(
        measure_swap, "the trained model writes and takes the base model's token there: the share of the gain that is "
        "lost.", SHARE, "switched on at a few tokens", "arXiv:2603.22446", TEXTS, BY_SHARE),
    "entropy_swap": Diagnostic(measure_swap, "as swap, where the base model's entropy is highest.", SHARE,
                               "switched on by choices the base model left open", "arXiv:2605.06241", TEXTS, BY_SHARE),
    "hybrid": Diagnostic(
        measure_hybrid, "the base model, steered by one vector at tokens that a gate picks from its own activations.",
        SHARE, "switched on: the base model knows how, training says when", "arXiv:2510.07364", (*TEXTS, "hybrid")),
    "frontier": Diagnostic(
        measure_frontier, "trained parameters for half of the gain, interpolated between the runs of --frontier.",
        "numbers", "taught: a switch needs few", "arXiv:2505.18706"),
    "rank": Diagnostic(measure_rank, "stable rank of weight changes, mean over matrices.", "directions", "taught: many",
                       "arXiv:2605.21468"),
    "sparsity": Diagnostic(
        lambda pair, *_: Estimate(1 - pair.weights["all"]["moved"]), "weights that changed by at most 1e-5 of their "
        "size.", "share of weights", "switched on in a small subnetwork", "arXiv:2505.11711"),
    "budget": Diagnostic(
        measure_budget, "training tokens until half of the gain, divided by those of the supervised run --sft to the "
        "same greedy accuracy.", "ratio", "taught: rewards had to find what examples show", ""),
    "answer_perplexity": Diagnostic(
        measure_perplexity, "change in the log-perplexity of right solutions: the trained model's own, or the "
        "reference.", "nats a token", "no shortcut: spurious rewards make answers likelier", "arXiv:2601.11061", TEXTS,
        lambda config: dict.fromkeys(("own", "reference"))),
    "prompt_perplexity": Diagnostic(measure_perplexity, "change in the log-perplexity of prompts.", "nats a token",
                                    "a shortcut: spurious rewards make prompts less likely", "arXiv:2601.11061"),
    "saturation": Diagnostic(measure_saturation, "steps until a batch is 99 % right.", "steps",
                             "taught: memorising is fast", "arXiv:2604.18574"),
}


def diagnose(config: DiagnoseConfig) -> dict:
    """Compares --trained with --base by --diagnostics, each with all its settings. Returns the summary. Writes it to
    summary.json in --out, beside diagnose.md, diagnose.png and the completions, from which the same command resumes.
    Raises UserError for an unknown diagnostic, for models that do not match, and for runs without the files needed."""
    names = list(filter(None, config.diagnostics.split(","))) or list(DIAGNOSTICS)
    if unknown := [name for name in names if name not in DIAGNOSTICS]:
        raise UserError(f"--diagnostics: there is no {unknown[0]}; the rows are {', '.join(DIAGNOSTICS)}")
    pair = load_pair(config)
    planned = {}  # label of a row -> (diagnostic, setting)
    for name in names:
        for suffix, setting in DIAGNOSTICS[name].settings(config).items():
            planned[f"{name}, {suffix}" if suffix else name] = name, setting
    # Rows that need no completions come first, so that errors in flags are raised before anything is sampled.
    cheap_first = sorted(planned, key=lambda label: bool(DIAGNOSTICS[planned[label][0]].reads))
    rows = {label: measure_row(pair, label, *planned[label]) for label in cheap_first}
    rows = {label: rows[label] for label in planned}
    base, trained = (float(solved_P.mean()) for solved_P in pair.solved)
    summary = {"n": len(pair.solved[0]), "base": base, "trained": trained, "gain": trained - base,
               "rows": rows, "forward_tokens": sum(pair.tokens.values()), "parts": pair.tokens,
               "flags": pair.config.as_flags()}
    out = pathlib.Path(pair.kept.out)
    files.write_whole(out / "diagnose.md", format_page(summary, describe_command("diagnose", config)))
    if shares := {label: (row["value"], row["interval"]) for label, row in rows.items()
                  if row["unit"] == SHARE and row["value"] is not None}:
        files.write_figure(out / "diagnose.png", lambda sheet: draw_shares(shares, sheet))
    files.write_json(out / "summary.json", summary)
    return summary


def measure_row(pair: Pair, label: str, name: str, setting: Any) -> dict:
    """Measures diagnostic `name` with `setting`; returns the row `label` of summary.json. `why` is the reason if there
    is no value, else "". `forward_tokens` is what the row alone costs; rows may share work."""
    diagnostic = DIAGNOSTICS[name]
    try:
        estimate, why = diagnostic.measure(pair, label, setting), ""
    except Undefined as error:
        estimate, why = Estimate(None), str(error)
    cost = sum(n for part, n in pair.tokens.items() if part == label or part.split(", ")[0] in diagnostic.reads)
    return {"diagnostic": name, "value": estimate.value, "interval": estimate.interval, "why": why,
            "unit": diagnostic.unit, "forward_tokens": cost, "more": estimate.more}


def format_page(summary: dict, made_by: str) -> str:
    """Returns the text of diagnose.md. Its last line is `made_by`, the command that wrote the page."""
    flags, rows = summary["flags"], summary["rows"]
    cells = [[label, row["why"] or format_estimate(row["value"], row["interval"]), f"{row['forward_tokens']:,}"]
             for label, row in rows.items()]
    measured = {row["diagnostic"] for row in rows.values() if not row["why"]}
    legend = [f"- **{name}** ({row.unit}{row.paper and f', {row.paper}'}): {row.what} High means {row.high}."
              for name, row in DIAGNOSTICS.items() if name in measured]
    return "\n\n".join([
        f"{flags['trained']} against {flags['base']}: greedy accuracy {summary['base']:.3f} and "
        f"{summary['trained']:.3f}, a gain of {summary['gain']:+.3f}, on {summary['n']} problems. 95 % intervals in "
        "brackets. Forward tokens are those of a row alone; rows share parts, and all together took "
        f"{summary['forward_tokens']:,}.", markdown_table(["diagnostic", "value", "forward tokens"], cells),
        "What a row measures, its unit, and what papers take a high value to mean: taught, or switched on if the base "
        "model could do it and rarely did.", "\n".join(legend), made_by]) + "\n"


def draw_shares(shares: dict[str, tuple], sheet) -> None:
    """Draws `shares`, {label of a row: (share of the gain, its interval)}, on a matplotlib Figure."""
    sheet.set_size_inches(6, 0.8 + 0.25 * len(shares))
    axes = sheet.subplots()
    draw_intervals(axes, shares)
    axes.set(xlabel=SHARE)
    axes.grid(axis="x", linewidth=0.4)
