"""When, not how: at which tokens a trained model differs from its base, and whether those tokens alone are the gain.

Both models are run on the base's greedy completions and on the trained model's. Then the base writes again, and at some
of the places where they differ the trained model's token is taken (`swap.Gate`); at all of them that is its own text.
"""

import collections
import pathlib
from typing import Callable

import numpy as np

from rlvr_jax.config import Config, flag, nested
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.benchmarks import load_sets
from rlvr_jax.evaluation.completions import Folder, KeptConfig, sample_and_keep
from rlvr_jax.evaluation.estimators import summarise_outcome, format_estimate
from rlvr_jax.evaluation.measure import make_sampler
from rlvr_jax.lab.elicit.swap import Gate, swap_sample_fn
from rlvr_jax.lab.elicit.weight_difference import TOLERANCE, TOP, weight_difference
from rlvr_jax.pretrained import loading
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.sampler import Request

ENDS = {"base": Gate(first=0), "trained": Gate()}  # whose text it is
PAIRS = 12  # of tokens that are reported
POSITIONS = 8  # of each text that the table has; the figure has all


class WhenConfig(Config):
    """At which tokens a trained model differs from its base."""

    kept: KeptConfig = nested(KeptConfig(), out="directory for summary.json, when.md, when.png, and the completions")
    trained: str = flag("", "what was trained from --model, of the same shape: named as --model is")
    first: tuple[int, ...] = flag((1, 2, 4), "put the trained model's tokens in only among so many first ones",
                                  minimum=1)
    shares: tuple[float, ...] = flag((0.01, 0.05, 0.1), "put them in only at this share of tokens, those with the "
                                     "largest KL", above=0, maximum=1)


def when(config: WhenConfig) -> dict:
    """Compares --model with --trained; returns the summary, which summary.json of --out holds. when.md and when.png
    show it; `texts/` and `swapped/` keep the completions, from which the same command goes on."""
    if not (config.kept.out and config.trained):
        raise UserError("--out and --trained are required: a directory for the results, and what was trained from "
                        "--model")
    config = config.with_flags(**{name: loading.pin_step(config.as_flags()[name]) for name in ("model", "trained")})
    kept, out = config.kept, pathlib.Path(config.kept.out)
    base, trained = (loading.load_model(name, kept.choice.dtype, kept.choice.dtype)
                     for name in (kept.choice.model, config.trained))
    weights = weight_difference(base.params, trained.params)
    if base.tokenizer.to_json() != trained.tokenizer.to_json():
        raise UserError("--trained has another tokenizer than --model: name a model and what was trained from it")

    def written(name: str, gates: dict[str, Gate], more) -> dict[str, list[dict]]:
        folder = Folder(str(out / name), "when", config.with_flags(out=str(out / name)), kept.resume, name)
        return written_under(folder, kept, (base, trained), gates, more)

    texts = written("texts", ENDS, token_columns)
    gates = make_gates(config, texts["base"])
    every = texts | written("swapped", gates, swap_columns)
    summary = {"n": len(texts["base"]), "texts": {name: reading(rows, base.tokenizer) for name, rows in texts.items()},
               "swapped": {name: summarise_outcome(rows, texts["base"],
                                                   texts["trained"]) | {"tokens": swapped_share(rows)}
                           for name, rows in every.items()},
               "gates": {name: {"first": min(gate.first, kept.sampling.max_new_tokens), "least": gate.least,
                                "chance": gate.chance} for name, gate in gates.items()},
               "weights": weights, "flags": config.as_flags()}
    files.write_whole(out / "when.md", format_page(summary))
    files.write_figure(out / "when.png", lambda sheet: draw_figure(summary, sheet))
    files.write_json(out / "summary.json", summary)
    return summary


def written_under(folder: Folder, kept: KeptConfig, models: tuple[LanguageModel, LanguageModel], gates: dict[str, Gate],
                  more: Callable) -> dict[str, list[dict]]:
    """gate -> the rows of what (base, trained model) write under it, a greedy completion of each problem, kept in the
    folder with the columns of `more`."""
    base, trained = models
    sampler = make_sampler(base, kept.sampling, sample_fn=swap_sample_fn(list(gates.values())),
                      params={"base": base.params, "trained": trained.params})
    benchmarks = load_sets(kept, base, lambda stem: (len(gates), 0.0))
    parts = sample_and_keep(folder, sampler, benchmarks, Request(kept.seed, 0), kept.rows_per_call, more)
    rows = [row for part in parts.values() for row in part]
    return {gate: rows[i :: len(gates)] for i, gate in enumerate(gates)}


def swapped_share(rows: list[dict]) -> float:
    """Swapped tokens of all generated ones."""
    return sum(row["swapped"] for row in rows) / sum(row["num_tokens"] for row in rows)


def swap_columns(rollouts, texts, judged) -> list[dict]:
    """`swapped`: how many tokens of each completion were the trained model's."""
    counts = np.sum(rollouts.noted["swapped"] & rollouts.completion_mask, -1)
    return [{"swapped": int(n)} for n in counts[: len(texts)]]


def token_columns(rollouts, texts, judged) -> list[dict]:
    """Besides, for every token: the likeliest of `base` and of `trained`, as ids, and `kl`."""
    return [row | {name: rollouts.noted[name][i][rollouts.completion_mask[i]].tolist()
                   for name in ("base", "trained", "kl")}
            for i, row in enumerate(swap_columns(rollouts, texts, judged))]


def make_gates(config: WhenConfig, rows: list[dict]) -> dict[str, Gate]:
    """The gates by name. `rows` are the base's text, in whose tokens the largest KL are looked up. Of each --shares
    there is a control: as many swaps, at random ones of the places where the two differ."""
    kls, differ = (np.concatenate([column(row) for row in rows]) for column in (lambda row: row["kl"], differing))
    gates = {f"first {k}": Gate(first=k) for k in config.first}
    for share in config.shares:
        least = largest(kls, share)
        chance = float(np.sum(differ & (kls >= least)) / max(differ.sum(), 1))
        gates |= {f"largest KL, {100 * share:g} %": Gate(least=least),
                  f"at random, as many as {100 * share:g} %": Gate(chance=chance)}
    return gates


def largest(values_N: np.ndarray, share: float) -> float:
    """The value that this share of all, at least one, are not below."""
    return float(np.sort(values_N)[::-1][max(round(share * len(values_N)), 1) - 1])


def differing(row: dict) -> np.ndarray:
    """bool[T]: where the likeliest tokens of the two differ."""
    return np.array(row["base"]) != np.array(row["trained"])


def reading(rows: list[dict], tokenizer: Tokenizer) -> dict:
    """Of one text: the share of tokens `changed`, how many of these are first tokens (`first_of_changed`, None where
    nothing changed), the mean `kl`, `changed` and `kl` `by_position` from 1 on, with the number of `tokens` there, and
    the pairs of likeliest tokens that differ, [base's, trained's, count], the most frequent first.
    """
    lengths = np.array([len(row["kl"]) for row in rows])
    mask_NxT = np.arange(lengths.max())[None, :] < lengths[:, None]
    changed_NxT, kl_NxT = np.zeros(mask_NxT.shape), np.zeros(mask_NxT.shape)
    changed_NxT[mask_NxT] = np.concatenate([differing(row) for row in rows])
    kl_NxT[mask_NxT] = np.concatenate([row["kl"] for row in rows])
    counts_T = mask_NxT.sum(0)
    pairs = collections.Counter((a, b) for row in rows for a, b in zip(row["base"], row["trained"]) if a != b)
    return {"tokens": int(counts_T.sum()), "changed": float(changed_NxT.sum() / counts_T.sum()),
            "first_of_changed": float(changed_NxT[:, 0].sum() / changed_NxT.sum()) if changed_NxT.any() else None,
            "kl": float(kl_NxT.sum() / counts_T.sum()),
            "by_position": [{"tokens": int(n), "changed": float(x / n), "kl": float(kl / n)}
                            for n, x, kl in zip(counts_T, changed_NxT.sum(0), kl_NxT.sum(0))],
            "pairs": [[*(tokenizer.backend.decode([i], skip_special_tokens=False) for i in pair), count]
                      for pair, count in pairs.most_common(PAIRS)]}


# ----- showing


def format_page(summary: dict) -> str:
    """when.md: the texts, their first positions, the pairs, what swaps lead to, the weights."""
    texts, flags, whole = summary["texts"], summary["flags"], summary["weights"]["all"]
    names = [f"{flags['trained']} against {flags['model']}, {summary['n']} problems, greedy; KL(trained || base) in "
             "nats; 95 % intervals in brackets"]
    positions = markdown_table(["text", "tokens", "likeliest token differs", "KL"], [
        [f"the {name}'s" + (f", token {i}" if i else ""), part["tokens"], f"{part['changed']:.1%}", f"{part['kl']:.4f}"]
        for name, text in texts.items() for i, part in enumerate([text, *text["by_position"][:POSITIONS]])])
    pairs = markdown_table(["the base's token", "the trained model's", "times, in the base's text"],
                           [[f"`{a}`", f"`{b}`", n] for a, b, n in texts["base"]["pairs"]])
    swaps = markdown_table(["the trained model's token", "accuracy", "tokens swapped", "of the gap recovered"], [
        [{"base": "nowhere", "trained": "wherever they differ"}.get(name, name),
         format_estimate(gate["accuracy"], gate["interval"]), f"{gate['tokens']:.1%}",
         format_estimate(gate["recovered"], gate["recovered_interval"])] for name, gate in summary["swapped"].items()])
    kinds = collections.defaultdict(list)
    for name, tensor in summary["weights"]["tensors"].items():
        kinds["/".join(part for part in name.split("/") if not part.isdigit())].append(tensor)
    weights = markdown_table(
        ["weights", "moved", "stable rank of the change", *(f"in its top {k}" for k in TOP)],
        [["all", f"{whole['moved']:.1%}", *["-"] * (1 + len(TOP))]] + [
            [kind, f"{np.average([x['moved'] for x in group], weights=[x['size'] for x in group]):.1%}",
             *spectra([x["spectrum"] for x in group if x["spectrum"]])] for kind, group in kinds.items()])
    note = f"A weight has moved if it changed by more than {TOLERANCE:g} of its size; means over layers."
    return "\n\n".join([*names, positions, pairs, swaps, note, weights]) + "\n"


def spectra(matrices: list[dict]) -> list[str]:
    """Cells of the mean stable rank and shares; dashes where no matrix changed."""
    if not matrices:
        return ["-"] * (1 + len(TOP))
    return [f"{np.mean([matrix['stable_rank'] for matrix in matrices]):.1f}",
            *(f"{np.mean([matrix['top'][str(k)] for matrix in matrices]):.1%}" for k in TOP)]


def draw_figure(summary: dict, sheet) -> None:
    """KL by position in both texts, and accuracy under each gate, on a matplotlib Figure."""
    sheet.set_size_inches(8, 3.4)
    left, right = sheet.subplots(1, 2)
    for (name, text), colour in zip(summary["texts"].items(), ("#0072b2", "#d55e00")):
        kls = [part["kl"] for part in text["by_position"]]
        left.plot(range(1, len(kls) + 1), kls, "o-", color=colour, markersize=3, label=f"the {name}'s text")
    left.set(xlabel="token of the completion", ylabel="mean KL(trained || base), nats")
    left.legend(fontsize=8)
    draw_bars(right, {name: (gate["accuracy"], gate["interval"]) for name, gate in summary["swapped"].items()})
    right.set(xlabel="accuracy", xlim=(-0.03, 1.03))


def draw_bars(axes, found: dict[str, tuple]) -> None:
    """(value, interval) by name, one below the other."""
    values = np.array([value for value, _ in found.values()])
    ends = np.array([interval for _, interval in found.values()]).T
    axes.errorbar(values, range(len(found)), xerr=np.maximum([values - ends[0], ends[1] - values], 0), fmt="o",
                  color="#0072b2", capsize=3)
    axes.set(yticks=range(len(found)))
    axes.set_yticklabels(found, fontsize=8)
    axes.invert_yaxis()
