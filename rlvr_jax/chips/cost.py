"""Counts the FLOPs, bytes and kernels of one call of a compiled program on one device.

A loop body counts as often as it runs; XLA's own `cost_analysis` counts it once. FLOPs are those of the matrix products
in the jaxpr; bytes and kernels are counted in the text of the compiled program (HLO). A loop whose end depends on the
values it computes, such as the decoding loop, has no static trip count: the argument `rounds` lists the trip counts of
these loops in program order. A conditional costs the mean of its branches, weighted by the argument `weights`, if there
is a weight for each branch; otherwise it costs as much as its most expensive branch.
"""

import functools
import math
import re
from typing import Callable, NamedTuple, Optional

import numpy as np
from jax.interpreters import partial_eval

# Bytes of an element by its type. s8 is left out, so that workspaces of kernels, which have this type, do not count.
WIDTH = {"pred": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
# HLO instructions without a cost of their own.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "async-update",
        "async-done"}


class Cost(NamedTuple):
    """The cost of one call."""

    bytes: float = 0.0  # read from the device's main memory, plus bytes written to it
    kernels: float = 0.0  # number of kernels started; on a TPU, of instructions
    cycles: float = 0.0  # estimated by a TPU's compiler; 0 for other devices
    step_kernels: float = 0.0  # kernels of one round of the largest loop without a static trip count


class Line(NamedTuple):
    """An instruction of HLO."""

    name: str
    shape: str  # of the result, such as "f32[8,8]{1,0}"
    kind: str  # opcode
    operands: list[str]  # names of instructions
    rest: str  # the text after the opcode's opening bracket
    root: bool  # whether its result is that of the computation


def average_or_largest(costs: list, weights: list[float]):  # the cost of a conditional from those of its branches
    return sum(x * share for x, share in zip(costs, weights)) if len(costs) == len(weights) else max(costs, key=np.sum)


def flops(jaxpr, rounds: list[int], weights: list[float]) -> np.ndarray:
    """Returns f64[2]: FLOPs of matrix products with an operand in float32, and of the others; a multiply-add is two.

    Leaves out equations that no result depends on, as compilers do, such as the gradients of frozen weights. A Pallas
    kernel costs its body times the size of its grid, where a dynamic dimension counts as 1, and a loop without a trip
    count as one round. cuDNN's attention counts as two products forward and five backward.
    """
    total, rounds = np.zeros(2), iter(rounds)
    for eqn in partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0].eqns:
        kind, operands = eqn.primitive.name, [x.aval for x in eqn.invars[:2]]
        grid = eqn.params["grid_mapping"].grid if kind == "pallas_call" else None
        loops = (rounds, weights) if grid is None else ([], [])
        values = [x for value in eqn.params.values() for x in (value if isinstance(value, tuple) else (value,))]
        inner = [flops(body, *loops) for x in values if hasattr(body := getattr(x, "jaxpr", x), "eqns")]
        if kind == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            multiplications = eqn.outvars[0].aval.size * math.prod(operands[0].shape[i] for i in contracted)
        elif kind.startswith("dot_product_attention"):  # of queries [B,T,H,E] and keys [B,S,K,E]
            multiplications = operands[0].size * operands[1].shape[1] * (5 if "bwd" in kind else 2)
        else:
            times = (eqn.params["length"] if kind == "scan" else next(rounds, 1) if kind == "while" else
                     math.prod(x for x in grid or () if isinstance(x, int)))
            total += average_or_largest(inner, weights) if kind == "cond" else times * sum(inner)
            continue
        total[0 if any(x.dtype.itemsize >= 4 for x in operands) else 1] += 2.0 * multiplications
    return total


def parse_hlo(text: str) -> tuple[str, dict[str, dict[str, Line]]]:
    """Returns (name of the entry computation, {name of a computation: {name of an instruction: Line}})."""
    computations, entry, current = {}, "", {}
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif match := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)", line):
            root, name, shape, kind, rest = match.groups()
            current[name] = Line(name, shape, kind, re.findall(r"%([\w.\-]+)", rest.split(")")[0]), rest, bool(root))
    return entry, computations


def shape_bytes(shape: str) -> int:
    """Returns the bytes of a shape's arrays, without arrays outside the main memory, such as in a TPU's space S(1)."""
    return sum(WIDTH.get(kind, 0) * math.prod(map(int, filter(None, dims.split(","))))
               for kind, dims, layout in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?", shape)
               if not re.search(r"S\([1-9]", layout))


def array_shapes(shape: str) -> list[str]:
    """Returns the shape of each array, such as "f32[8]{0}", in the shape of a tuple of arrays."""
    return re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", shape)


def called_computations(line: Line, names: str) -> list[str]:
    """Names of the computations that an instruction calls, in attributes that match the regular expression `names`."""
    matches = re.findall(rf"\b(?:{names})=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", line.rest)
    return [name.strip(" %") for several, one in matches for name in (several or one).split(",")]


def passed_through(line: Line) -> Optional[tuple[set[int], set[int]]]:
    """Returns (indices of outputs, indices of operands) that a fusion on a TPU only passes on, for an asynchronous
    collective that runs meanwhile; None for an instruction that does not."""
    if line.kind != "fusion" or not re.search("async.collective", line.name + called_computations(line, "calls")[0]):
        return None
    return tuple({int(x) for x in re.findall(alias, line.rest)} for alias in (r"\{(\d+)\}: \(", r"\{\d*\}: \((\d+)"))


def find_root(computation: dict[str, Line]) -> Line:
    """The instruction whose result its computation returns."""
    return next(line for line in computation.values() if line.root)


def only_reshapes(computations: dict, line: Line, index: int) -> bool:
    """Whether an instruction returns operand `index` unchanged except for its shape."""
    if line.kind != "fusion":
        return line.kind == "bitcast"
    inner = computations[called_computations(line, "calls")[0]]
    last = find_root(inner)
    while last.kind == "bitcast":
        last = inner[last.operands[0]]
    return last.kind == "parameter" and last.rest.startswith(f"{index})")


def traffic(computations: dict) -> Callable:
    """Returns a function `bytes(computation, line)`: the bytes that an instruction reads and writes in one execution.

    If an array is only sliced, or updated in part, the bytes of that part count, inside fusions too. A TPU's
    asynchronous collective counts at the instruction that waits for its end.
    """
    def bytes_read(computation: dict, line: Line, index: int) -> int:
        whole, passed = shape_bytes(computation[line.operands[index]].shape), passed_through(line)
        if passed and (index in passed[1] or line.name.startswith("async-collective-start")):  # passed[1]: operands
            return 0
        if line.kind == "fusion":
            inner = computations[called_computations(line, "calls")[0]]
            operand = next(x.name for x in inner.values() if x.kind == "parameter" and x.rest.startswith(f"{index})"))
            return min(whole, bytes_of_uses(inner, operand))
        if line.kind == "slice-start":
            return shape_bytes(re.sub(r"S\(\d+\)", "", array_shapes(line.shape)[1]))  # [1] is the slice, in S(n)
        if index == 0 and line.kind in ("dynamic-slice", "slice", "gather"):
            return shape_bytes(line.shape)
        return 0 if line.kind.endswith("-done") or index == 0 and line.kind in (
            "dynamic-update-slice", "scatter") else whole

    def bytes_of_uses(computation: dict, name: str) -> int:
        return sum(bytes_of_uses(computation, line.name) if only_reshapes(computations, line, index) else
                   bytes_read(computation, line, index)
                   for line in computation.values() for index, operand in enumerate(line.operands) if operand == name)

    def bytes_written(computation: dict, line: Line) -> int:
        passed = passed_through(line)
        if passed and line.name.startswith("async-collective-start"):
            return 0  # counted at its -done
        if passed and not line.name.startswith("async-collective-done"):
            unwritten = passed[0]  # the outputs that are operands, handed on
            return sum(shape_bytes(x) for i, x in enumerate(array_shapes(line.shape)) if i not in unwritten)
        if line.kind == "fusion":
            inner = computations[called_computations(line, "calls")[0]]
            return min(shape_bytes(line.shape), bytes_written(inner, find_root(inner)))
        if line.kind in ("tuple", "bitcast"):
            return sum(bytes_written(computation, computation[name]) for name in line.operands)
        part = {"dynamic-update-slice": 1, "scatter": 2}.get(line.kind)  # index of the operand that is written
        return 0 if line.kind.endswith("-start") else shape_bytes(
            computation[line.operands[part]].shape if part else line.shape)

    return lambda computation, line: bytes_written(computation, line) + sum(
        bytes_read(computation, line, index) for index in range(len(line.operands)))


def trip_count(loop: Line, computations: dict) -> int:
    """How often a loop runs; 0 if that depends on values that the loop computes."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    lines = computations[called_computations(loop, "condition")[0]]
    end = find_root(lines)
    limit = [lines[name].rest for name in end.operands if lines[name].kind == "constant"]
    return int(limit[0].split(")")[0]) if limit and end.kind == "compare" and "direction=LT" in end.rest else 0


def parse_cost(text: str) -> Callable[[list[int], list[float]], Cost]:
    """Parses the HLO text of a compiled program and returns a function `(rounds, weights) -> Cost` of one call."""
    entry, computations = parse_hlo(text)
    moved_bytes = traffic(computations)

    @functools.cache
    def instruction_cost(parent: str, name: str) -> Cost:
        line = computations[parent][name]
        cycles = re.search(r'"estimated_cycles":"(\d+)"', line.rest)
        return Cost() if line.kind in FREE else Cost(
            moved_bytes(computations[parent], line), not line.kind.endswith("-done"), int(cycles[1]) if cycles else 0)

    def program_cost(rounds: list[int], weights: list[float]) -> Cost:
        rounds = iter(rounds)

        def computation_cost(name: str) -> Cost:
            total = Cost()
            for line in computations[name].values():
                names = {"while": "body|condition", "conditional": "(?:branch|true|false)_computations?",
                         "call": "to_apply", "async-start": "calls"}.get(line.kind)
                inner = [computation_cost(each) for each in called_computations(line, names)] if names else []
                if line.kind == "conditional":
                    cost = Cost(*(average_or_largest(costs, weights) for costs in zip(*inner)))
                elif inner:
                    known = trip_count(line, computations) if line.kind == "while" else 1
                    times = known or next(rounds, 1)
                    *fields, steps = zip(*inner)  # each field of Cost, with a number per computation; [1]: kernels
                    cost = Cost(*(times * sum(costs) for costs in fields), max(steps) if known else sum(fields[1]))
                else:
                    cost = instruction_cost(name, line.name)
                total = Cost(*map(sum, zip(total[:-1], cost[:-1])), max(total[-1], cost[-1]))
            return total
        return computation_cost(entry)
    return program_cost
