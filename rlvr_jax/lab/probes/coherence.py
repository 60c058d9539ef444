"""Coherence and validity (arXiv 2510.18176): are the steps sound, do they solve the problem, is the answer right?

Solutions that `traces.py` can parse, called traces, are judged exactly. In other texts, such as solutions of word
problems, only the equations are checked (`equations.py`). C, V and K are the three answers: coherent, valid, right.
"""

import collections
import itertools
from typing import NamedTuple, Optional

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.estimators import format_estimate
from rlvr_jax.lab.probes.equations import read_equations
from rlvr_jax.lab.probes.rows import COLUMNS, Result, draw_shares, estimate_share, format_share, problem_key
from rlvr_jax.lab.probes.traces import CLASSES, UNSOUND, Judgement, judge_trace, read_trace, read_value
from rlvr_jax.runs.markdown import markdown_table

NEEDS = ("prompt", "completion", "answer")  # columns that each row must have
CELLS = ["".join(cell) for cell in itertools.product("10", repeat=3)]  # the values of C, V, K: "111", "110", ..., "000"
# key of a share -> (label, traces that are counted, traces among which they are counted): `masks` of `summarise_traces`
SHARES = {"with_steps": ("show a step", "with steps", "all"), "coherent": ("coherent (C)", "coherent", "all"),
          "valid": ("valid (V)", "valid", "all"), "right": ("right (K)", "right", "all"),
          "coherent_of_shown": ("coherent, of those with steps", "coherent", "with steps"),
          "valid_of_shown": ("valid, of those with steps", "valid", "with steps"),
          "valid_if_coherent": ("valid, if coherent: P(V given C)", "valid", "coherent"),
          "right_if_both": ("right, if coherent and valid: P(K given C, V)", "right", "both")}
SIDES = ("before", "after")  # the two files that are compared: before and after training


class JudgedTrace(NamedTuple):
    """A row of completions.jsonl whose completion was parsed as a trace and judged."""

    row: dict
    steps: tuple[str, ...]  # the text of each step
    judgement: Judgement


def probe_coherence(rows_by_file: dict[str, list[dict]]) -> Result:
    """Summarises traces and other texts of each file, given as {name: rows}. Compares two files: before and after."""
    record, items, traces_by_file = {"files": {}}, [], []
    for name, rows in rows_by_file.items():
        judged = [(row, judge_row(row)) for row in rows]
        traces = [trace for _, trace in judged if trace]
        texts = [row for row, trace in judged if not trace]
        traces_by_file.append(traces)
        record["files"][name] = {"traces": summarise_traces(traces), "equations": summarise_equations(texts)}
        items += [{"file": name} | item for item in (*map(make_trace_item, traces), *map(make_text_item, texts))]
    if len(traces_by_file) == 2 and any(traces_by_file):
        record["before_after"] = split_by_correctness(*traces_by_file)
        record["length_matched"] = match_lengths(*traces_by_file)
    return Result(record, format_page(record), lambda sheet: draw_figure(record, sheet), items, {
        "coherent": "coherent", "valid": "valid", "right": "right", "correct": "right",
        "equations_hold": "all equations hold"})


def judge_row(row: dict) -> Optional[JudgedTrace]:
    """Judges the completion of a row; None if the prompt is neither an expression nor a chain (see `traces.py`)."""
    if not (parsed := read_trace(row["prompt"], row["completion"])):
        return None
    tree, trace = parsed
    return JudgedTrace(row, trace.texts, judge_trace(tree, read_value(row["answer"]), trace))


def make_trace_item(trace: JudgedTrace) -> dict:
    """Returns the item that the page shows: columns of the row, the judgement, and "steps", dicts with "text", "right"
    and "verdict". Errors at the end of the trace, if any, are shown as one more step, "at the end"."""
    steps = []
    for index, text in enumerate([*trace.steps, "at the end"]):
        errors = [f"{name}: {CLASSES[name]}" for name, position in trace.judgement.errors if position == index]
        steps.append({"text": text, "right": not errors, "verdict": "; ".join(errors) or "sound"})
    return {key: trace.row[key] for key in COLUMNS if key in trace.row} | trace.judgement._asdict() | {
        "steps": steps[:-1] if steps[-1]["right"] else steps}


def make_text_item(row: dict) -> dict:
    """Returns the item that the page shows: columns of the row, its equations as "steps", and, if there are any,
    "equations_hold", whether all of them hold at least when rounded."""
    verdicts = {(True, False): "holds", (False, True): "holds when rounded", (False, False): "does not hold"}
    steps = [{"text": equation.text, "right": equation.holds or equation.rounded,
              "verdict": verdicts[equation.holds, equation.rounded]} for equation in read_equations(row["completion"])]
    hold = {"equations_hold": all(step["right"] for step in steps)} if steps else {}
    return {key: row[key] for key in (*COLUMNS, "correct") if key in row} | hold | {"steps": steps}


def summarise_traces(traces: list[JudgedTrace]) -> dict:
    """Returns SHARES and counts of the traces of one file; {} without traces. "cells" counts traces by C, V and K.
    "errors" is {class: {number of the step, from 1: number of errors}}. "steps" is the mean number of steps,
    "wrong_steps_per_100" the percentage of steps with an error of UNSOUND (None without steps). "by_steps" has shares
    of coherent and valid traces by their number of steps, because short traces are more easily coherent."""
    if not traces:
        return {}
    coherent, valid, right = np.array([trace.judgement[:3] for trace in traces], bool).T
    sizes = np.array([len(trace.steps) for trace in traces])
    masks = {"all": sizes >= 0, "with steps": sizes > 0, "coherent": coherent, "valid": valid, "right": right,
             "both": coherent & valid}
    problems = [problem_key(trace.row) for trace in traces]
    shares = {key: estimate_share(masks[counted][masks[among]].tolist(),
                                  list(itertools.compress(problems, masks[among])))
              for key, (_, counted, among) in SHARES.items()}
    cells = collections.Counter("".join(str(int(x)) for x in trace.judgement[:3]) for trace in traces)
    errors: dict[str, dict] = {name: {} for name in CLASSES}
    counts = collections.Counter(error for trace in traces for error in trace.judgement.errors)
    for (name, position), count in sorted(counts.items()):
        errors[name][str(position + 1)] = count
    num_steps = int(sizes.sum())
    num_wrong = sum(len({place for name, place in trace.judgement.errors if name in UNSOUND}) for trace in traces)
    return {"n": len(traces), "cells": {cell: cells[cell] for cell in CELLS}, **shares,
            "steps": num_steps / len(traces), "wrong_steps_per_100": 100 * num_wrong / num_steps if num_steps else None,
            "errors": {name: by_step for name, by_step in errors.items() if by_step},
            "by_steps": {str(size): {"n": int(np.sum(sizes == size)), "coherent": float(coherent[sizes == size].mean()),
                                     "valid": float(valid[sizes == size].mean())} for size in np.unique(sizes)}}


def summarise_equations(rows: list[dict]) -> dict:
    """Summarises the equations in rows that are no traces: the shares of equations that "hold" exactly, and that hold
    only when "rounded"; and "with_any", the share of the n rows that have an equation. Returns {} without rows."""
    if not rows:
        return {}
    by_row = [read_equations(row["completion"]) for row in rows]
    problems = [problem_key(row) for row, found in zip(rows, by_row) for _ in found]  # the problem of each equation
    equations = list(itertools.chain(*by_row))
    return {"n": len(rows), "with_any": float(np.mean(list(map(bool, by_row)))), "equations": len(equations),
            "hold": estimate_share([equation.holds for equation in equations], problems),
            "rounded": estimate_share([equation.rounded for equation in equations], problems)}


def split_by_correctness(before: list[JudgedTrace], after: list[JudgedTrace]) -> dict:
    """Returns {group of pairs: {"n", "coherent_before", ..., "valid_after"}}. A pair is a trace before training and
    that after; its group says whether each answer is right: "01" is wrong before, right after. Raises UserError unless
    both files have the same problems in the same order, and the same number of completions of each."""
    prompts = [[(*problem_key(trace.row), trace.row.get("sample"), trace.row["prompt"]) for trace in side]
               for side in (before, after)]
    if prompts[0] != prompts[1]:
        raise UserError("the two files of --completions are not of the same problems in the same order, with as many "
                        "completions of each, so they cannot be compared; probe them one by one")
    split = {}
    for rights in itertools.product((False, True), repeat=2):
        pairs = [pair for pair in zip(before, after) if tuple(trace.judgement.right for trace in pair) == rights]
        problems = [problem_key(trace.row) for trace, _ in pairs]
        split["".join(str(int(right)) for right in rights)] = {"n": len(pairs)} | {
            f"{name}_{side}": estimate_share([getattr(pair[i].judgement, name) for pair in pairs], problems)
            for i, side in enumerate(SIDES) for name in ("coherent", "valid")}
    return split


def match_lengths(before: list[JudgedTrace], after: list[JudgedTrace]) -> dict:
    """Returns the shares of coherent and valid traces before and after, such as "coherent_before", at the same
    distribution of numbers of steps. A trace before training with s steps (s >= 0) has the weight n_after(s) /
    n_before(s), where n counts the traces with s steps. Traces with a number of steps that occurs on one side only are
    left out. "covered" is the share of the traces after training that remain; if it is 0, the other shares are None."""
    sizes = [collections.Counter(len(trace.steps) for trace in side) for side in (before, after)]
    weights = {"before": [sizes[1][len(trace.steps)] / sizes[0][len(trace.steps)] for trace in before],
               "after": [float(len(trace.steps) in sizes[0]) for trace in after]}
    covered = float(np.mean(weights["after"]))
    return {"covered": covered} | {
        f"{name}_{side}": float(np.average([getattr(trace.judgement, name) for trace in traces],
                                           weights=weights[side])) if covered else None
        for name in ("coherent", "valid") for side, traces in zip(SIDES, (before, after))}


def format_page(record: dict) -> str:
    """The Markdown page: shares, counts of C, V and K together, errors by step, before against after training, and
    equations."""
    files = {name: summary["traces"] for name, summary in record["files"].items() if summary["traces"]}
    blocks = ["Coherent: every step is sound in itself. Valid: the steps solve this problem. Right: so is the answer. "
              "95 % intervals in brackets.", *(format_traces(files) if files else ())]
    if split := record.get("before_after"):
        words = {"0": "wrong", "1": "right"}
        rows = [[words[group[0]], words[group[1]], pairs["n"],
                 *(format_share(pairs[key]) for key in pairs if key != "n")] for group, pairs in split.items()]
        matched = record["length_matched"]
        blocks += [markdown_table(["before", "after", "pairs", "C before", "V before", "C after", "V after"], rows),
                   "At equal lengths (traces before training are weighted so that their numbers of steps are as frequent "
                   f"as after it; {matched['covered']:.1%} of the traces after it have a number that occurs before it):",
                   markdown_table(["C before", "V before", "C after", "V after"], [
                       [format_estimate(matched[f"{name}_{side}"]) for side in SIDES
                        for name in ("coherent", "valid")]])]
    texts = {name: summary["equations"] for name, summary in record["files"].items() if summary["equations"]}
    if texts:
        blocks.append(markdown_table(
            ["texts of", "completions", "with an equation", "equations", "hold exactly", "hold when rounded"],
            [[name, file["n"], f"{file['with_any']:.1%}", file["equations"], format_share(file["hold"]),
              format_share(file["rounded"])] for name, file in texts.items()]))
    return "\n\n".join(blocks) + "\n"


def format_traces(files: dict[str, dict]) -> list[str]:
    """Markdown tables of `files`, {name: `summarise_traces`}: shares, cells, errors, shares by number of steps."""
    shares = [[label, *(format_share(file[key]) for file in files.values())] for key, (label, *_) in SHARES.items()]
    shares += [["steps in a trace", *(f"{file['steps']:.2f}" for file in files.values())],
               ["wrong steps in 100", *(format_estimate(file["wrong_steps_per_100"]) for file in files.values())]]
    cells = [[*("yes" if bit == "1" else "no" for bit in cell), *(file["cells"][cell] for file in files.values())]
             for cell in CELLS]
    errors = [[name, f"{label}: {CLASSES[label]}", sum(by_step.values()),
               ", ".join(f"{step}: {count}" for step, count in by_step.items())]
              for name, file in files.items() for label, by_step in file["errors"].items()]
    sizes = [[name, size, group["n"], f"{group['coherent']:.3f}", f"{group['valid']:.3f}"]
             for name, file in files.items() for size, group in file["by_steps"].items()]
    return [markdown_table(["traces", *files], shares), markdown_table(["C", "V", "K", *files], cells),
            markdown_table(["file", "error", "traces", "at step: how many"], errors),
            markdown_table(["file", "steps", "traces", "coherent", "valid"], sizes)]


def draw_figure(record: dict, sheet) -> None:
    """Draws shares of traces (left), and the share of traces with an error at each step, by class of error (right)."""
    files = {name: summary["traces"] for name, summary in record["files"].items() if summary["traces"]}
    sheet.set_size_inches(9, 3.6)
    left, right = sheet.subplots(1, 2)
    for n, (name, file) in enumerate(files.items()):
        draw_shares(left, [file[key] for key in ("coherent", "valid", "right", "valid_if_coherent")], 0.12 * n, name)
        for label, by_step in file["errors"].items():
            if label != "empty":  # an error of this class has no step
                right.plot([int(step) for step in by_step], [count / file["n"] for count in by_step.values()],
                           ["o-", "s--", "^:"][n % 3], color=f"C{list(CLASSES).index(label)}",
                           label=f"{label}, {name}")
    left.set(xticks=range(4), ylim=(-0.03, 1.03), ylabel="share of traces")
    left.set_xticklabels(["coherent", "valid", "right", "valid if\ncoherent"])
    right.set(xlabel="step", ylabel="share of traces with the error")
    for axes in (left, right):
        if axes.has_data():
            axes.legend(fontsize=6)
