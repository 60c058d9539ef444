"""Coherence against validity (arXiv 2510.18176): are the steps sound, do they solve the problem, is the answer right?

On problems that `traces.py` reads the three are decided exactly. Of other texts, such as solutions of word problems,
the equations are checked (`equations.py`). C, V, K: coherent, valid, right.
"""

import collections
import itertools
import operator
from typing import NamedTuple, Optional

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.estimators import shown
from rlvr_jax.lab.probes.equations import equations
from rlvr_jax.lab.probes.rows import COLUMNS, Result, draw_shares, problem_of, share, share_cell
from rlvr_jax.lab.probes.traces import CLASSES, UNSOUND, Judgement, judge, read, read_value
from rlvr_jax.runs.markdown import markdown_table

NEEDS = ("prompt", "completion", "answer")
CELLS = ["".join(cell) for cell in itertools.product("10", repeat=3)]  # of C, V, K


class Judged(NamedTuple):
    """A row whose completion is read as a trace."""

    row: dict
    texts: tuple[str, ...]  # of the steps
    judgement: Judgement

    @property
    def steps(self) -> int:
        return len(self.texts)

    @property
    def cell(self) -> str:
        return "".join(str(int(x)) for x in self.judgement[:3])


def find(rows_by_file: dict[str, list[dict]]) -> Result:
    """Counts of each file, by its name. Two files of the same problems are compared, before and after training."""
    traces = {name: [trace for row in rows if (trace := judged(row))] for name, rows in rows_by_file.items()}
    record = {"files": {name: {"traces": summary(traces[name]), "equations": checked(rows, traces[name])}
                        for name, rows in rows_by_file.items()}}
    if len(rows_by_file) == 2 and any(traces.values()):
        record["before_after"] = before_after(*traces.values())
        record["length_matched"] = length_matched(*traces.values())
    items = [{"file": name} | made for name, rows in rows_by_file.items()
             for made in [*map(item, traces[name]), *map(text_item, texts(rows, traces[name]))]]
    return Result(record, format_page(record), lambda sheet: draw_figure(record, sheet), items)


def judged(row: dict) -> Optional[Judged]:
    """The row with its judgement; None if its problem is not one that `traces.read` knows."""
    if not (problem := read(row["prompt"], row["completion"])):
        return None
    tree, trace = problem
    return Judged(row, trace.texts, judge(tree, read_value(row["answer"]), trace))


def item(trace: Judged) -> dict:
    """The row with its judgement, and each step with what is wrong with it; what is missing is a step "at the end"."""
    steps = [{"text": text, "right": not wrong, "verdict": "; ".join(wrong) or "sound"}
             for place, text in enumerate([*trace.texts, "at the end"])
             for wrong in [[f"{name}: {CLASSES[name]}" for name, at in trace.judgement.errors if at == place]]]
    return shown_row(trace.row) | trace.judgement._asdict() | {"steps": steps[:-1] if steps[-1]["right"] else steps}


def text_item(row: dict) -> dict:
    """The row with the equations of its text for steps."""
    steps = [{"text": x.text, "right": x.holds or x.rounded,
              "verdict": "holds" if x.holds else "holds when rounded" if x.rounded else "does not hold"}
             for x in equations(row["completion"])]
    hold = {"equations_hold": all(step["right"] for step in steps)} if steps else {}
    return shown_row(row) | ({"correct": row["correct"]} if "correct" in row else {}) | hold | {"steps": steps}


def shown_row(row: dict) -> dict:
    """What an item has of its row."""
    return {key: row[key] for key in COLUMNS if key in row}


def texts(rows: list[dict], traces: list[Judged]) -> list[dict]:
    """The rows whose problems are not read as traces."""
    read = {id(trace.row) for trace in traces}
    return [row for row in rows if id(row) not in read]


# ----- counting


def summary(traces: list[Judged]) -> dict:
    """Counts and shares of the traces of one file; {} without any.

    `with_steps` is the share that shows a step at all; shares of coherent and valid are given of all traces and of
    these. `errors` counts classes by position, `by_steps` traces by their length: a short one is easily coherent.
    """
    if not traces:
        return {}

    def of(hit, among=lambda trace: True):
        chosen = [trace for trace in traces if among(trace)]
        return share([bool(hit(trace)) for trace in chosen], [problem_of(trace.row) for trace in chosen])

    shows, coherent, valid, right = map(operator.attrgetter, (
        "steps", "judgement.coherent", "judgement.valid", "judgement.right"))
    cells, errors = collections.Counter(trace.cell for trace in traces), collections.defaultdict(collections.Counter)
    for trace in traces:
        for name, place in trace.judgement.errors:
            errors[name][str(place + 1)] += 1
    total = sum(trace.steps for trace in traces)
    wrong = sum(len({place for name, place in trace.judgement.errors if name in UNSOUND}) for trace in traces)
    lengths = {trace.steps: [other for other in traces if other.steps == trace.steps] for trace in traces}
    return {"n": len(traces), "cells": {cell: cells[cell] for cell in CELLS}, "with_steps": of(shows),
            "coherent": of(coherent), "valid": of(valid), "right": of(right),
            "coherent_of_shown": of(coherent, shows), "valid_of_shown": of(valid, shows),
            "valid_if_coherent": of(valid, coherent),
            "right_if_both": of(right, lambda trace: coherent(trace) and valid(trace)),
            "steps": total / len(traces), "wrong_steps_per_100": 100 * wrong / total if total else None,
            "errors": {name: dict(sorted(errors[name].items(), key=lambda pair: int(pair[0])))
                       for name in CLASSES if name in errors},
            "by_steps": {str(size): {"n": len(alike), "coherent": float(np.mean(list(map(coherent, alike)))),
                                     "valid": float(np.mean(list(map(valid, alike))))}
                         for size, alike in sorted(lengths.items())}}


def checked(rows: list[dict], traces: list[Judged]) -> dict:
    """The equations in the texts of problems that are not read as traces; {} where all of them are."""
    others = texts(rows, traces)
    if not others:
        return {}
    by_row = [equations(row["completion"]) for row in others]
    every = [equation for part in by_row for equation in part]
    problems = [problem_of(row) for row, part in zip(others, by_row) for _ in part]
    return {"n": len(others), "with_any": float(np.mean(list(map(bool, by_row)))), "equations": len(every),
            "hold": share([equation.holds for equation in every], problems),
            "rounded": share([equation.rounded for equation in every], problems)}


def before_after(before: list[Judged], after: list[Judged]) -> dict:
    """Coherence and validity on both sides, split by whether each side was right: "01" was wrong and is right. Raises
    UserError unless the two are completions of the same problems, as many of each, in one order."""
    prompts = [[(*problem_of(trace.row), trace.row.get("sample"), trace.row["prompt"]) for trace in side]
               for side in (before, after)]
    if prompts[0] != prompts[1]:
        raise UserError("the two files of --completions are not of the same problems in the same order, as many "
                        "completions of each; probe them one by one")
    made = {}
    for cell in ("00", "01", "10", "11"):
        pairs = [pair for pair in zip(before, after)
                 if "".join(str(int(trace.judgement.right)) for trace in pair) == cell]
        made[cell] = {"n": len(pairs)} | {
            f"{name}_{side}": share([getattr(pair[k].judgement, name) for pair in pairs],
                                    [problem_of(pair[k].row) for pair in pairs])
            for k, side in enumerate(("before", "after")) for name in ("coherent", "valid")}
    return made


def length_matched(before: list[Judged], after: list[Judged]) -> dict:
    """Coherence and validity on both sides at the same lengths: what of a difference is not one of lengths.

    Each trace before weighs as many traces after as there are, for one before, with its number of steps (none counts as
    0). Lengths of one side alone are left out; `covered` is the share of the traces after that stay. None without any.
    """
    sizes = [collections.Counter(trace.steps for trace in side) for side in (before, after)]
    weights = {"before": [sizes[1][trace.steps] / sizes[0][trace.steps] for trace in before],
               "after": [float(trace.steps in sizes[0]) for trace in after]}
    made = {"covered": float(np.mean(weights["after"]))}
    for name in ("coherent", "valid"):
        for side, traces in (("before", before), ("after", after)):
            hits = [getattr(trace.judgement, name) for trace in traces]
            made[f"{name}_{side}"] = float(np.average(hits, weights=weights[side])) if made["covered"] else None
    return made


# ----- showing


SHOWN = {"with_steps": "show a step", "coherent": "coherent (C)", "valid": "valid (V)", "right": "right (K)",
         "coherent_of_shown": "coherent, of those with steps", "valid_of_shown": "valid, of those with steps",
         "valid_if_coherent": "valid, if coherent: P(V given C)",
         "right_if_both": "right, if coherent and valid: P(K given C, V)"}


def format_page(record: dict) -> str:
    """Markdown: the shares, the eight cells, the errors by position, the split, the equations."""
    files = {name: both["traces"] for name, both in record["files"].items() if both["traces"]}
    blocks = ["Coherent: every step is sound in itself. Valid: the steps solve this problem. Right: so is the answer. "
              "95 % intervals in brackets."]
    if files:
        rows = [[label, *(share_cell(file[key]) for file in files.values())] for key, label in SHOWN.items()]
        rows += [["steps in a trace", *(f"{file['steps']:.2f}" for file in files.values())],
                 ["wrong steps in 100", *(shown(file["wrong_steps_per_100"]) for file in files.values())]]
        cells = [[*("yes" if bit == "1" else "no" for bit in cell), *(file["cells"][cell] for file in files.values())]
                 for cell in CELLS]
        wrong = [[name, f"{label}: {means}", sum(places.values()), ", ".join(f"{at}: {n}" for at, n in places.items())]
                 for name, file in files.items() for label, means in CLASSES.items()
                 if (places := file["errors"].get(label))]
        sizes = [[name, size, at["n"], f"{at['coherent']:.3f}", f"{at['valid']:.3f}"]
                 for name, file in files.items() for size, at in file["by_steps"].items()]
        blocks += [markdown_table(["traces", *files], rows), markdown_table(["C", "V", "K", *files], cells),
                   markdown_table(["file", "error", "traces", "at step: how many"], wrong),
                   markdown_table(["file", "steps", "traces", "coherent", "valid"], sizes)]
    if split := record.get("before_after"):
        answer = ("wrong", "right")
        rows = [[answer[int(cell[0])], answer[int(cell[1])], pairs["n"],
                 *(share_cell(pairs[key]) for key in list(pairs)[1:])] for cell, pairs in split.items()]
        matched = record["length_matched"]
        blocks += [markdown_table(["before", "after", "pairs", "C before", "V before", "C after", "V after"], rows),
                   "At the same lengths (a trace before weighs as its number of steps is frequent after; "
                   f"{matched['covered']:.1%} of the traces after have a length that is there before):",
                   markdown_table(["C before", "V before", "C after", "V after"], [
                       [shown(matched[f"{name}_{side}"]) for side in ("before", "after")
                        for name in ("coherent", "valid")]])]
    texts = [[name, file["n"], f"{file['with_any']:.1%}", file["equations"], share_cell(file["hold"]),
              share_cell(file["rounded"])] for name, both in record["files"].items() if (file := both["equations"])]
    if texts:
        blocks.append(markdown_table(["texts of", "completions", "with an equation", "equations", "hold exactly",
                                      "hold when rounded"], texts))
    return "\n\n".join(blocks) + "\n"


def draw_figure(record: dict, sheet) -> None:
    """Left: the shares. Right: the share of traces with an error at each step, by class. Both blank without traces."""
    files = {name: both["traces"] for name, both in record["files"].items() if both["traces"]}
    sheet.set_size_inches(9, 3.6)
    left, right = sheet.subplots(1, 2)
    keys = ["coherent", "valid", "right", "valid_if_coherent"]
    for n, (name, file) in enumerate(files.items()):
        draw_shares(left, [file[key] for key in keys], 0.12 * n, name)
        for label, places in file["errors"].items():
            if label == "empty":  # it is at no step
                continue
            right.plot([int(at) for at in places], [count / file["n"] for count in places.values()],
                       ["o-", "s--", "^:"][n % 3], color=f"C{list(CLASSES).index(label)}", label=f"{label}, {name}")
    left.set(xticks=range(4), ylim=(-0.03, 1.03), ylabel="share of traces")
    left.set_xticklabels(["coherent", "valid", "right", "valid if\ncoherent"])
    right.set(xlabel="step", ylabel="share of traces with the error")
    for axes in (left, right):
        if axes.has_data():
            axes.legend(fontsize=6)
