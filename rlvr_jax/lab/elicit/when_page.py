"""The results of `when` on a page: tables, and a figure of two panels."""

import collections
import importlib.util
import pathlib

import numpy as np

from rlvr_jax.evaluation.estimators import shown
from rlvr_jax.lab.elicit.weight_difference import TOLERANCE, TOP
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table

POSITIONS = 8  # of each text that the table has; the figure has all


def page(summary: dict) -> str:
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
         shown(gate["accuracy"], gate["interval"]), f"{gate['tokens']:.1%}",
         shown(gate["recovered"], gate["recovered_interval"])] for name, gate in summary["swapped"].items()])
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


def draw(summary: dict, path: pathlib.Path) -> None:
    """KL by position in both texts, and accuracy under each gate; nothing without matplotlib."""
    if not importlib.util.find_spec("matplotlib"):
        return
    from matplotlib.figure import Figure  # optional

    sheet = Figure((8, 3.4), layout="constrained")
    left, right = sheet.subplots(1, 2)
    for (name, text), colour in zip(summary["texts"].items(), ("#0072b2", "#d55e00")):
        kls = [part["kl"] for part in text["by_position"]]
        left.plot(range(1, len(kls) + 1), kls, "o-", color=colour, markersize=3, label=f"the {name}'s text")
    left.set(xlabel="token of the completion", ylabel="mean KL(trained || base), nats")
    left.legend(fontsize=8)
    draw_bars(right, {name: (gate["accuracy"], gate["interval"]) for name, gate in summary["swapped"].items()})
    right.set(xlabel="accuracy", xlim=(-0.03, 1.03))
    with files.naming(path):
        sheet.savefig(path, dpi=150)


def draw_bars(axes, found: dict[str, tuple]) -> None:
    """(value, interval) by name, one below the other."""
    values = np.array([value for value, _ in found.values()])
    ends = np.array([interval for _, interval in found.values()]).T
    axes.errorbar(values, range(len(found)), xerr=np.maximum([values - ends[0], ends[1] - values], 0), fmt="o",
                  color="#0072b2", capsize=3)
    axes.set(yticks=range(len(found)))
    axes.set_yticklabels(found, fontsize=8)
    axes.invert_yaxis()
