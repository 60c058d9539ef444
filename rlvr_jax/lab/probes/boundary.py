"""How many tries a model needs: compares pass@k of several models on the same problems (arXiv 2504.13837, 2505.24864).

The first file has completions of the base model, the last file those of the trained model, and files between them those
of checkpoints during training. A row is one completion. Axes: P problems, K values of k, the number of tries.
"""

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.estimators import bootstrap, format_estimate, pass_at_k, powers_up_to
from rlvr_jax.lab.probes.rows import Result, group_rows, problem_key
from rlvr_jax.runs.markdown import markdown_table

NEEDS = ("prompt", "correct")  # columns that each row must have
REGIMES = ("diminish", "plateau", "sustained", "none")  # what `classify_regime` may return
DIMINISH_AT = 128  # the k of pass@k that `classify_regime` compares for "diminish"


def probe_boundary(rows_by_file: dict[str, list[dict]]) -> Result:
    """Computes pass@k of each file, given as {name: rows}, with 95 % intervals over problems. Compares each later file
    with the first: paired differences, and the problems that only one of the two files solves. Raises UserError unless
    all files have the same problems in the same order, and the same number of completions of every problem."""
    groups = {name: group_rows(rows, lambda row: (*problem_key(row), row["prompt"]))
              for name, rows in rows_by_file.items()}  # {file: {(benchmark, number, prompt): rows of this problem}}
    problems = list(next(iter(groups.values())))  # of the first file: (benchmark, number, prompt) of each problem
    sizes = {len(rows) for by_problem in groups.values() for rows in by_problem.values()}
    if any(list(by_problem) != problems for by_problem in groups.values()) or len(sizes) != 1:
        raise UserError("--probe=boundary needs the same problems in one order, and as many completions, in all files")
    num_samples, ks = max(sizes), powers_up_to(max(sizes))
    num_right = {name: [sum(bool(row["correct"]) for row in rows) for rows in by_problem.values()]
                 for name, by_problem in groups.items()}  # the number of correct completions of each problem
    curves = {name: np.array([[pass_at_k(num_samples, count, k) for k in ks] for count in counts])
              for name, counts in num_right.items()}  # f64[P,K], pass@k of each problem
    base, *others = curves  # names of files
    record: dict = {"n": len(problems), "num_samples": num_samples, "files": {}}
    for name, values_PxK in curves.items():
        record["files"][name] = {"pass@k": {str(k): float(mean) for k, mean in zip(ks, values_PxK.mean(0))},
                                 "intervals": {str(k): bootstrap(values) for k, values in zip(ks, values_PxK.T)}}
        if name != base:
            record["files"][name] |= compare_with_base(ks, curves[base], values_PxK, problems)
    if others:
        record["regime"] = classify_regime(ks, list(curves.values()))
        record["regimes"] = {name: int(name == record["regime"]) for name in REGIMES}  # 0 or 1: studies take means
    items = []
    for i, key in enumerate(problems):
        right = {name: counts[i] for name, counts in num_right.items()}
        # An item shows one completion of each file: the first correct one, or the first one if none is correct.
        items.append({"prompt": key[2], "benchmark": key[0], "right": right, "of": num_samples,
                      "solved_by": ", ".join(name for name, count in right.items() if count) or "none",
                      "completions": {name: min(by_problem[key], key=lambda row: not row["correct"])["completion"]
                                      for name, by_problem in groups.items()}})
    return Result(record, format_page(record), lambda sheet: draw_figure(record, sheet), items,
                  {"solved_by": "solved by"})


def compare_with_base(ks: list[int], base_PxK: np.ndarray, trained_PxK: np.ndarray, problems: list) -> dict:
    """Compares pass@k of two models, each f64[P,K], at the same `ks`. `problems` has each problem's (benchmark, number,
    prompt). Returns the mean "difference" at each k, trained less base; "only_base" and "only_trained", prompts of the
    problems that only this model ever solves, and their "count"; "never", how many neither solves; and
    "base_reaches_pass@1_at", the smallest k at which mean pass@k of the base reaches the trained pass@1, or None."""
    base_P, trained_P = (values_PxK[:, -1] > 0 for values_PxK in (base_PxK, trained_PxK))  # true if ever solved
    reached = [k for k, mean in zip(ks, base_PxK.mean(0)) if mean >= trained_PxK[:, 0].mean() - 1e-9]
    alone = {"only_base": [problems[i][2] for i in np.flatnonzero(base_P & ~trained_P)],
             "only_trained": [problems[i][2] for i in np.flatnonzero(trained_P & ~base_P)]}
    return {"difference": {str(k): {"mean": float(changes_P.mean()), "interval": bootstrap(changes_P, (-1, 1))}
                           for k, changes_P in zip(ks, (trained_PxK - base_PxK).T)},
            "base_reaches_pass@1_at": reached[0] if reached else None, "never": int(np.sum(~base_P & ~trained_P)),
            **alone, "count": {name: len(prompts) for name, prompts in alone.items()}}


def classify_regime(ks: list[int], curves: list[np.ndarray]) -> str:
    """Returns one of REGIMES (ProRL, arXiv 2505.24864). `curves` has an f64[P,K] for each file: pass@k of each problem
    at each k of `ks`. The mean over problems rises or falls if the 95 % interval of the paired difference excludes 0.
    The first case that holds counts. `diminish`: pass@k falls from the first file to the last, where k is the largest
    of `ks` up to DIMINISH_AT. `sustained`: there are three files or more, and pass@1 rises from each to the next.
    `plateau`: pass@1 rises from the first file to the last. `none`: no other case holds."""
    def sign_of_change(before_P, after_P) -> int:  # 1: rises, -1: falls, 0: neither
        low, high = bootstrap(after_P - before_P, (-1, 1))
        return int(low > 0) - int(high < 0)

    column = max(i for i, k in enumerate(ks) if k <= DIMINISH_AT)
    if sign_of_change(curves[0][:, column], curves[-1][:, column]) < 0:
        return "diminish"
    if len(curves) > 2 and all(sign_of_change(before[:, 0], after[:, 0]) > 0
                               for before, after in zip(curves, curves[1:])):
        return "sustained"
    return "plateau" if sign_of_change(curves[0][:, 0], curves[-1][:, 0]) > 0 else "none"


def format_page(record: dict) -> str:
    """The Markdown page: pass@k of each file, and how each later file differs from the first, the base model's."""
    base, *others = record["files"]
    rows = [[name, *(format_estimate(mean, summary["intervals"][k]) for k, mean in summary["pass@k"].items())]
            for name, summary in record["files"].items()]
    text = (f"{record['n']} problems, {record['num_samples']} completions of each; 95 % intervals over problems.\n\n"
            + markdown_table(["of", *(f"pass@{k}" for k in record["files"][base]["pass@k"])], rows) + "\n")
    for name in others:
        summary = record["files"][name]
        reached_at = summary["base_reaches_pass@1_at"]
        text += (f"\n- {name}: {base} solves as many as {name} at its first try "
                 + (f"in {reached_at} tries" if reached_at else "in none of these numbers of tries")
                 + f"; in all tries {len(summary['only_trained'])} problems are solved by {name} alone, "
                 f"{len(summary['only_base'])} by {base} alone, {summary['never']} by neither.")
    return text + (f"\n- {base} to {others[-1]}: {record['regime']}.\n" if others else "")


def draw_figure(record: dict, sheet) -> None:
    """Draws pass@k against k on the matplotlib Figure `sheet`: for each file of `record` a line and 95 % interval."""
    sheet.set_size_inches(6, 3.8)
    axes = sheet.subplots()
    for name, summary in record["files"].items():
        ks = list(map(int, summary["pass@k"]))
        axes.plot(ks, list(summary["pass@k"].values()), "o-", markersize=3, label=name)
        low_K, high_K = np.array(list(summary["intervals"].values())).T
        axes.fill_between(ks, low_K, high_K, alpha=0.15)
    axes.set(xscale="log", xlabel="tries k", ylabel="problems solved in k tries, pass@k", ylim=(-0.03, 1.03))
    axes.legend(fontsize=7)
