"""What a call of a compiled program costs, counted through its loops: operations, bytes of memory, kernels.

The compiler's own count has a loop's body once. Operations are counted in what was traced, bytes and kernels in what
was compiled (HLO as text). A loop that ends by what it computes runs as often as the caller says: decoding.
"""

import math
import re
from typing import Callable, NamedTuple

import jax

WIDTH = {"pred": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
        "opt-barrier", "async-update", "async-done"}


class Cost(NamedTuple):
    """Of one call, on one device."""

    bytes: float  # read from and written to the device's memory
    kernels: float  # that are started, in a GPU's words; instructions of a TPU
    step_kernels: float = 0  # in one round of the loop whose rounds the compiler does not know


def branch(costs: list, weights: list[float]):
    """The cost of a choice: the mean by weights, where there are as many, else the largest."""
    return sum(map(float.__mul__, costs, weights)) if len(costs) == len(weights) else max(costs, default=0.0)


def flops(jaxpr, steps: int, weights: list[float]) -> float:
    """Operations of the matrix products in a traced program, two for each product of numbers, on one device."""
    total = 0.0
    for eqn in jaxpr.eqns:
        inner = [flops(getattr(x, "jaxpr", x), steps, weights) for value in eqn.params.values()
                 for x in (value if isinstance(value, (tuple, list)) else [value]) if hasattr(x, "eqns")
                 or hasattr(getattr(x, "jaxpr", None), "eqns")]
        name = eqn.primitive.name
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2.0 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
        elif name == "cond":
            total += branch(inner, weights)
        else:
            total += sum(inner) * (eqn.params["length"] if name == "scan" else steps if name == "while" else 1)
    return total


class Instruction(NamedTuple):
    """A line of HLO."""

    name: str
    shape: str
    kind: str
    operands: list[str]
    rest: str
    root: bool  # what its computation returns


def parse(text: str) -> tuple[str, dict[str, dict[str, Instruction]]]:
    """(name of the entry, the instructions of each computation by name)."""
    computations, entry, current = {}, "", {}
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)", line):
            root, name, shape, kind, rest = found.groups()
            operands = re.findall(r"%([\w.\-]+)", rest.split(")")[0])
            current[name] = Instruction(name, shape, kind, operands, rest, bool(root))
    return entry, computations


def size(shape: str) -> int:
    """Bytes of the arrays in a shape, without those in a TPU's fast memory, S(1), and a library's workspace, s8."""
    arrays = re.findall(r"\b([a-z]+\d+|pred)\[([\d,]*)\](\{[^}]*\})?", shape)
    return sum(WIDTH.get(kind, 0) * math.prod(int(n) for n in dims.split(",") if n)
               for kind, dims, layout in arrays if not re.search(r"S\([1-9]", layout))


def called(instruction: Instruction, *names: str) -> list[str]:
    """The computations that an instruction names under these attributes."""
    lists = re.findall(rf"\b(?:{'|'.join(names)})=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", instruction.rest)
    return [name.strip().lstrip("%") for several, one in lists for name in (several or one).split(",")]


def returned(computation: dict[str, Instruction]) -> Instruction:
    return next(i for i in computation.values() if i.root)


def reader(computations: dict) -> tuple[Callable, Callable]:
    """(bytes that an instruction reads of its operand, bytes that it writes). Of an array that is only sliced, or
    written to in part, those parts count, within a fusion as well."""
    def read(where: dict, i: Instruction, place: int) -> int:
        whole = size(where[i.operands[place]].shape) if i.operands[place] in where else 0
        if i.kind == "fusion":
            inner = computations[called(i, "calls")[0]]
            parameter, = [p for p in inner.values() if p.kind == "parameter" and p.rest.startswith(f"{place})")]
            return min(whole, uses(inner, parameter))
        if i.kind in ("dynamic-slice", "slice", "gather") and place == 0:
            return size(i.shape)
        return 0 if i.kind in ("dynamic-update-slice", "scatter") and place == 0 or i.kind.endswith("-done") else whole

    def uses(where: dict, of: Instruction) -> int:
        users = [(i, place) for i in where.values() for place, name in enumerate(i.operands) if name == of.name]
        return sum(uses(where, i) if i.kind == "bitcast" else read(where, i, place) for i, place in users)

    def written(where: dict, i: Instruction) -> int:
        if i.kind == "fusion":
            inner = computations[called(i, "calls")[0]]
            return min(size(i.shape), written(inner, returned(inner)))
        if i.kind in ("dynamic-update-slice", "scatter"):
            return size(where[i.operands[1 + (i.kind == "scatter")]].shape)
        if i.kind in ("tuple", "bitcast"):
            return sum(written(where, where[name]) for name in i.operands)
        return 0 if i.kind.endswith("-start") else size(i.shape)
    return read, written


def counted(text: str, steps: int, weights: list[float]) -> Cost:
    """The cost of a compiled program, where loops of unknown length go round `steps` times."""
    entry, computations = parse(text)
    read, written = reader(computations)

    def of(name: str) -> Cost:
        where, total, started, in_step = computations[name], 0.0, 0.0, 0.0
        for i in where.values():
            inner = [of(each) for each in called(i, "body", "condition", "branch_computations", "true_computation",
                                                 "false_computation")]
            if i.kind in ("call", "async-start"):
                inner = [of(each) for each in called(i, "to_apply", "calls")]
            times = 1
            if i.kind == "while":
                known = rounds(i, computations)
                times = known or steps
                in_step = max(in_step, 0 if known else sum(cost.kernels for cost in inner))
            if i.kind == "conditional":
                total += branch([cost.bytes for cost in inner], weights)
                started += branch([cost.kernels for cost in inner], weights)
            elif inner:
                total += times * sum(cost.bytes for cost in inner)
                started += times * sum(cost.kernels for cost in inner)
            elif i.kind not in FREE:
                total += written(where, i) + sum(read(where, i, place) for place in range(len(i.operands)))
                started += not i.kind.endswith("-done")
            in_step = max([in_step, *(cost.step_kernels for cost in inner)])
        return Cost(total, started, in_step)
    return of(entry)


def rounds(loop: Instruction, computations: dict) -> int:
    """How often a loop is gone round, 0 where that depends on what it computes."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = computations[called(loop, "condition")[0]]
    root = returned(condition)
    limits = [condition[name].rest for name in root.operands if condition[name].kind == "constant"]
    return int(limits[0].split(")")[0]) if root.kind == "compare" and "direction=LT" in root.rest and limits else 0
