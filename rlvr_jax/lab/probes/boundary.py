"""The boundary of what a model can solve: pass@k of several models on the same problems (arXiv 2504.13837, 2505.24864).

The first file is of the base, the last of the trained model, the others of checkpoints. P problems, K numbers of tries.
"""

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.estimators import bootstrap, pass_at_k, shown
from rlvr_jax.lab.probes.rows import Result, problem_of
from rlvr_jax.runs.markdown import markdown_table

NEEDS = ("prompt", "correct")
REGIMES = ("diminish", "plateau", "sustained", "none")
DIMINISH_AT = 128  # tries at which fewer solved problems are called diminished


def find(rows_by_file: dict[str, list[dict]]) -> Result:
    """Curves, differences to the first file with 95 % intervals over problems, and which problems only one solves.
    Raises UserError where the files are not of the same problems, with the same number of completions each."""
    grouped = {name: by_problem(rows) for name, rows in rows_by_file.items()}
    problems = list(next(iter(grouped.values())))
    counts = {len(right) for rights in grouped.values() for right in rights.values()}
    if any(list(rights) != problems for rights in grouped.values()) or len(counts) != 1:
        raise UserError("--probe=boundary compares files of the same problems, with as many completions of each")
    size = counts.pop()
    ks = sorted({2**i for i in range(size.bit_length())} | {size})
    curves = {name: np.array([[pass_at_k(size, sum(right), k) for k in ks] for right in rights.values()])
              for name, rights in grouped.items()}  # [P,K]
    base, last = (list(curves)[i] for i in (0, -1))
    record = {"n": len(problems), "num_samples": size, "files": {
        name: {"pass@k": {str(k): float(mean) for k, mean in zip(ks, values_PxK.mean(0))},
               "intervals": {str(k): bootstrap(values) for k, values in zip(ks, values_PxK.T)}}
        | ({} if name == base else against(ks, curves[base], values_PxK, problems))
        for name, values_PxK in curves.items()}}
    if len(curves) > 1:
        record["regime"] = regime(ks, list(curves.values()))
        record["regimes"] = {name: int(name == record["regime"]) for name in REGIMES}  # to be averaged over seeds
    texts = {name: examples(rows) for name, rows in rows_by_file.items()}
    items = [{"prompt": key[2], "benchmark": key[0], "right": {name: sum(file[key]) for name, file in grouped.items()},
              "of": size, "solved_by": ", ".join(name for name, file in grouped.items() if any(file[key])) or "none",
              "completions": {name: file[key] for name, file in texts.items() if key in file}} for key in problems]
    return Result(record, format_page(record, base, last), lambda sheet: draw_figure(record, sheet), items)


def by_problem(rows: list[dict]) -> dict[tuple, list[bool]]:
    """(benchmark, number, prompt) -> whether each of the problem's completions is right."""
    right: dict[tuple, list[bool]] = {}
    for row in rows:
        right.setdefault((*problem_of(row), row["prompt"]), []).append(bool(row["correct"]))
    return right


def examples(rows: list[dict]) -> dict[tuple, str]:
    """A completion of each problem, by the same keys: the first right one, or the first; {} if rows have none."""
    made: dict[tuple, str] = {}
    for row in sorted(rows, key=lambda row: not row["correct"]):
        if "completion" in row:
            made.setdefault((*problem_of(row), row["prompt"]), row["completion"])
    return made


def against(ks: list[int], base_PxK: np.ndarray, mine_PxK: np.ndarray, problems: list) -> dict:
    """A trained model beside the base: paired differences, problems that one alone solves in all its tries, and the
    fewest tries (a power of two, or all) at which the base solves as many as the trained model at the first."""
    ever = [values_PxK[:, -1] > 0 for values_PxK in (base_PxK, mine_PxK)]
    reached = [k for k, mean in zip(ks, base_PxK.mean(0)) if mean >= mine_PxK[:, 0].mean() - 1e-9]
    alone = {"only_base": [problems[i][2] for i in np.flatnonzero(ever[0] & ~ever[1])],
             "only_trained": [problems[i][2] for i in np.flatnonzero(ever[1] & ~ever[0])]}
    return {"difference": {str(k): {"mean": float(values.mean()), "interval": bootstrap(values)}
                           for k, values in zip(ks, (mine_PxK - base_PxK).T)},
            "base_reaches_pass@1_at": reached[0] if reached else None,
            "never": int(np.sum(~ever[0] & ~ever[1])), **alone,
            "count": {name: len(prompts) for name, prompts in alone.items()}}


def regime(ks: list[int], curves: list[np.ndarray]) -> str:
    """The row of REGIMES, as in ProRL, by whether intervals of paired differences exclude 0.

    `diminish`: solved by fewer in DIMINISH_AT tries (or in all, if there are fewer) than the base. `sustained`: pass@1
    rises from each file to the next, of three or more. `plateau`: it rises, and no further after the first of them.
    `none`: no difference is certain.
    """
    def sure(before_P, after_P) -> int:
        low, high = bootstrap(after_P - before_P)
        return 1 if low > 0 else -1 if high < 0 else 0

    many = max(i for i, k in enumerate(ks) if k <= DIMINISH_AT)
    if sure(curves[0][:, many], curves[-1][:, many]) < 0:
        return "diminish"
    rises = [sure(before[:, 0], after[:, 0]) > 0 for before, after in zip(curves, curves[1:])]
    if len(rises) > 1 and all(rises):
        return "sustained"
    return "plateau" if sure(curves[0][:, 0], curves[-1][:, 0]) > 0 else "none"


def format_page(record: dict, base: str, last: str) -> str:
    ks = list(record["files"][base]["pass@k"])
    rows = [[name, *(shown(summary["pass@k"][k], summary["intervals"][k]) for k in ks)]
            for name, summary in record["files"].items()]
    text = (f"{record['n']} problems, {record['num_samples']} completions of each; 95 % intervals over problems.\n\n"
            + markdown_table(["of", *(f"pass@{k}" for k in ks)], rows) + "\n")
    for name, summary in record["files"].items():
        if "difference" in summary:
            at = summary["base_reaches_pass@1_at"]
            text += (f"\n- {name}: {base} solves as many as {name} at its first try "
                     + (f"in {at} tries" if at else "in none of these numbers of tries")
                     + f"; in all tries {len(summary['only_trained'])} problems are solved by {name} alone, "
                     f"{len(summary['only_base'])} by {base} alone, {summary['never']} by neither.")
    return text + (f"\n- {base} to {last}: {record['regime']}.\n" if "regime" in record else "")


def draw_figure(record: dict, sheet) -> None:
    """pass@k against k."""
    sheet.set_size_inches(6, 3.8)
    axes = sheet.subplots()
    for name, summary in record["files"].items():
        ks = list(map(int, summary["pass@k"]))
        axes.plot(ks, list(summary["pass@k"].values()), "o-", markersize=3, label=name)
        axes.fill_between(ks, *np.array(list(summary["intervals"].values())).T, alpha=0.15)
    axes.set(xscale="log", xlabel="tries k", ylabel="problems solved in k tries, pass@k", ylim=(-0.03, 1.03))
    axes.legend(fontsize=7)
