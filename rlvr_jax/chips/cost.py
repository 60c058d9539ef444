"""What a call of a compiled program costs one device, counted through its loops, whose bodies compilers count once.

FLOPs are those of matrix products in what was traced. Bytes and kernels are counted in what was compiled, in its text
(HLO). Loops that end by what they compute, as those of decoding do, are gone round as often as `rounds` says, one
after the other. Of a choice the largest counts, or the mean by `weights`, where there are as many.
"""

import functools
import math
import re
from typing import Callable, NamedTuple, Optional

import numpy as np
from jax.interpreters import partial_eval

WIDTH = {"pred": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}  # no workspace, s8
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "async-update",
        "async-done"}


class Cost(NamedTuple):
    """Of one call."""

    bytes: float = 0.0  # read from the device's memory and written to it
    kernels: float = 0.0  # started; on a TPU instructions
    cycles: float = 0.0  # by a TPU's compiler's own estimates
    step_kernels: float = 0.0  # of one round of a loop that ends by what it computes, the largest


class Line(NamedTuple):
    """An instruction of HLO."""

    name: str
    shape: str
    kind: str
    operands: list[str]
    rest: str
    root: bool  # what its computation returns


def average_or_largest(costs: list, weights: list[float]):
    return sum(x * share for x, share in zip(costs, weights)) if len(costs) == len(weights) else max(costs, key=np.sum)


def flops(jaxpr, rounds: list[int], weights: list[float]) -> np.ndarray:
    """Two for each product of numbers in a matrix product: f64[2], of products with an operand in float32, of others.

    What no result needs does not count, such as gradients of frozen weights: compilers leave it out. A kernel takes
    what its body does at every place of its grid; sizes of a grid that are not known before count once, as do loops
    of a kernel that end by what they compute. cuDNN's attention is two products, backward five.
    """
    total, rounds = np.zeros(2), iter(rounds)
    for eqn in partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0].eqns:
        kind, operands = eqn.primitive.name, [x.aval for x in eqn.invars[:2]]
        grid = eqn.params["grid_mapping"].grid if kind == "pallas_call" else None
        told = (rounds, weights) if grid is None else ([], [])
        values = [x for value in eqn.params.values() for x in (value if isinstance(value, tuple) else (value,))]
        inner = [flops(found, *told) for x in values if hasattr(found := getattr(x, "jaxpr", x), "eqns")]
        if kind == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            products = eqn.outvars[0].aval.size * math.prod(operands[0].shape[i] for i in contracted)
        elif kind.startswith("dot_product_attention"):  # of queries [B,T,H,E] and keys [B,S,K,E]
            products = operands[0].size * operands[1].shape[1] * (5 if "bwd" in kind else 2)
        else:
            times = (eqn.params["length"] if kind == "scan" else next(rounds, 1) if kind == "while" else
                     math.prod(x for x in grid or () if isinstance(x, int)))
            total += average_or_largest(inner, weights) if kind == "cond" else times * sum(inner)
            continue
        total[0 if any(x.dtype.itemsize >= 4 for x in operands) else 1] += 2.0 * products
    return total


def parse(text: str) -> tuple[str, dict[str, dict[str, Line]]]:
    """(name of the entry, the lines of each computation by name)."""
    computations, entry, current = {}, "", {}
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)", line):
            root, name, shape, kind, rest = found.groups()
            current[name] = Line(name, shape, kind, re.findall(r"%([\w.\-]+)", rest.split(")")[0]), rest, bool(root))
    return entry, computations


def size(shape: str) -> int:
    """Bytes of the arrays of a shape, but for those in another memory than the device's, such as a TPU's S(1)."""
    return sum(WIDTH.get(kind, 0) * math.prod(map(int, filter(None, dims.split(","))))
               for kind, dims, layout in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?", shape)
               if not re.search(r"S\([1-9]", layout))


def arrays(shape: str) -> list[str]:
    return re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", shape)


def called(line: Line, names: str) -> list[str]:
    """The computations that it names under these attributes, a pattern."""
    found = re.findall(rf"\b(?:{names})=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", line.rest)
    return [name.strip(" %") for several, one in found for name in (several or one).split(",")]


def under_way(line: Line) -> Optional[tuple[set[int], set[int]]]:
    """(outputs, operands) that a fusion of a TPU only hands on, as a collective goes on beside it; None of others."""
    if line.kind != "fusion" or not re.search("async.collective", line.name + called(line, "calls")[0]):
        return None
    return tuple({int(x) for x in re.findall(place, line.rest)} for place in (r"\{(\d+)\}: \(", r"\{\d*\}: \((\d+)"))


def traffic(computations: dict) -> Callable:
    """The bytes that a line of a computation moves. Of an array that is sliced, or written in part, only the parts do,
    in a fusion as well. What a collective moves that goes on beside others counts when it is done."""
    def root(where: dict) -> Line:
        return next(line for line in where.values() if line.root)

    def same(line: Line, place: int) -> bool:  # whether it gives an operand back under another shape
        if line.kind != "fusion":
            return line.kind == "bitcast"
        inner = computations[called(line, "calls")[0]]
        last = root(inner)
        while last.kind == "bitcast":
            last = inner[last.operands[0]]
        return last.kind == "parameter" and last.rest.startswith(f"{place})")

    def read(where: dict, line: Line, place: int) -> int:
        whole, handed = size(where[line.operands[place]].shape), under_way(line)
        if handed and (place in handed[1] or line.name.startswith("async-collective-start")):
            return 0
        if line.kind == "fusion":
            inner = computations[called(line, "calls")[0]]
            return min(whole, uses(inner, next(x.name for x in inner.values()
                                               if x.kind == "parameter" and x.rest.startswith(f"{place})"))))
        if line.kind == "slice-start":
            return size(re.sub(r"S\(\d+\)", "", arrays(line.shape)[1]))
        if place == 0 and line.kind in ("dynamic-slice", "slice", "gather"):
            return size(line.shape)
        return 0 if line.kind.endswith("-done") or place == 0 and line.kind in (
            "dynamic-update-slice", "scatter") else whole

    def uses(where: dict, name: str) -> int:
        return sum(uses(where, line.name) if same(line, place) else read(where, line, place)
                   for line in where.values() for place, operand in enumerate(line.operands) if operand == name)

    def written(where: dict, line: Line) -> int:
        handed = under_way(line)
        if handed and not line.name.startswith("async-collective-done"):
            return sum(size(x) for i, x in enumerate(arrays(line.shape)) if i not in handed[0]
                       and not line.name.startswith("async-collective-start"))
        if line.kind == "fusion":
            inner = computations[called(line, "calls")[0]]
            return min(size(line.shape), written(inner, root(inner)))
        if line.kind in ("tuple", "bitcast"):
            return sum(written(where, where[name]) for name in line.operands)
        part = {"dynamic-update-slice": 1, "scatter": 2}.get(line.kind)
        return 0 if line.kind.endswith("-start") else size(where[line.operands[part]].shape if part else line.shape)

    return lambda where, line: written(where, line) + sum(read(where, line, i) for i in range(len(line.operands)))


def known_rounds(loop: Line, computations: dict) -> int:
    """How often a loop is gone round, 0 where that depends on what it computes."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    lines = computations[called(loop, "condition")[0]]
    end = next(line for line in lines.values() if line.root)
    limit = [lines[name].rest for name in end.operands if lines[name].kind == "constant"]
    return int(limit[0].split(")")[0]) if limit and end.kind == "compare" and "direction=LT" in end.rest else 0


def counted(text: str) -> Callable[[list[int], list[float]], Cost]:
    """The cost of a program by (rounds, weights), given as the text of what was compiled."""
    entry, computations = parse(text)
    moved = traffic(computations)

    @functools.cache
    def leaf(where: str, name: str) -> Cost:
        line = computations[where][name]
        cycles = re.search(r'"estimated_cycles":"(\d+)"', line.rest)
        return Cost() if line.kind in FREE else Cost(moved(computations[where], line), not line.kind.endswith("-done"),
                                                     int(cycles[1]) if cycles else 0)

    def whole(rounds: list[int], weights: list[float]) -> Cost:
        rounds = iter(rounds)

        def of(where: str) -> Cost:
            total = Cost()
            for line in computations[where].values():
                names = {"while": "body|condition", "conditional": "(?:branch|true|false)_computations?",
                         "call": "to_apply", "async-start": "calls"}.get(line.kind)
                inner = [of(each) for each in called(line, names)] if names else []
                if line.kind == "conditional":
                    now = Cost(*(average_or_largest(costs, weights) for costs in zip(*inner)))
                elif inner:
                    known = known_rounds(line, computations) if line.kind == "while" else 1
                    times, (*sums, steps) = known or next(rounds, 1), zip(*inner)
                    now = Cost(*(times * sum(costs) for costs in sums), max(steps) if known else sum(sums[1]))
                else:
                    now = leaf(where, line.name)
                total = Cost(*map(sum, zip(total[:-1], now[:-1])), max(total[-1], now[-1]))
            return total
        return of(entry)
    return whole
