"""Counts the FLOPs, bytes and kernels of one call of a compiled program on one device.

A loop body counts as often as it runs; XLA's own `cost_analysis` counts it once. FLOPs are those of the matrix products
in the jaxpr; bytes and kernels are counted in the text of the compiled program (HLO). A loop whose end depends on the
values it computes, such as the decoding loop, has no static trip count: the argument `rounds` has these trip counts in
program order, inner loops before the loop around them; 1 if it has no more. A conditional costs the mean of its
branches, weighted by the argument `weights`, if there is a weight for each; else as much as its most expensive branch.
"""

import math
import re
from typing import Callable, Iterable, Iterator, NamedTuple

import numpy as np
from jax.interpreters import partial_eval

# Element type -> bytes. s8 is left out, so that the workspaces of kernels, which have this type, do not count.
WIDTH = {"pred": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
# HLO instructions without a cost of their own.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "async-update",
        "async-done"}
# Opcode of an instruction that runs other computations -> its attributes that name them.
CALLS = {"fusion": "calls", "while": "condition|body", "conditional": "(?:branch|true|false)_computations?",
         "call": "to_apply", "async-start": "calls"}


class Cost(NamedTuple):
    """The cost of one call."""

    bytes: float = 0.0  # read from the device's main memory, plus bytes written to it
    kernels: float = 0.0  # number of kernels started; on a TPU, of instructions
    cycles: float = 0.0  # estimated by a TPU's compiler; 0 for other devices
    step_kernels: float = 0.0  # kernels of one round of the largest loop without a static trip count


def average_or_largest(costs: list, weights: list[float]):  # the cost of a conditional from those of its branches
    return sum(x * share for x, share in zip(costs, weights)) if len(costs) == len(weights) else max(costs, key=np.sum)


def flops(jaxpr, rounds: Iterable[int], weights: list[float]) -> np.ndarray:
    """Returns f64[2]: FLOPs of the matrix products with an operand in float32, and of all others; a multiply-add is 2.

    Leaves out equations that no result depends on, as compilers do, such as the gradients of frozen weights. A Pallas
    kernel costs its body times the size of its grid, where a dynamic dimension counts as 1; a loop in it without
    a trip count is one round. cuDNN's attention counts as two products forward and five backward.
    """
    total, rounds = np.zeros(2), iter(rounds)  # recursive calls share the iterator: iter(iterator) is the iterator
    for eqn in partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0].eqns:
        kind, operands = eqn.primitive.name, [x.aval for x in eqn.invars[:2]]
        grid = eqn.params["grid_mapping"].grid if kind == "pallas_call" else None
        loops = (rounds, weights) if grid is None else ([], [])
        values = [x for value in eqn.params.values() for x in (value if isinstance(value, tuple) else (value,))]
        bodies = [x for x in (getattr(value, "jaxpr", value) for value in values) if hasattr(x, "eqns")]  # jaxprs
        inner = [flops(body, *loops) for body in bodies]  # inner loops take their trip counts first
        times = eqn.params["length"] if kind == "scan" else math.prod(x for x in grid or () if isinstance(x, int))
        if kind == "while":
            times = next(rounds, 1)
        if kind == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]  # axes of the first operand
            multiplications = eqn.outvars[0].aval.size * math.prod(operands[0].shape[i] for i in contracted)
        elif kind.startswith("dot_product_attention"):  # of queries [B,T,H,E] and keys [B,S,K,E]
            multiplications = operands[0].size * operands[1].shape[1] * (5 if "bwd" in kind else 2)
        else:
            total += average_or_largest(inner, weights) if kind == "cond" else times * sum(inner)
            continue
        total[0 if any(x.dtype.itemsize >= 4 for x in operands) else 1] += 2.0 * multiplications
    return total


# ----- HLO


class Line(NamedTuple):
    """An instruction of HLO. A computation is a dict {name of an instruction: Line} in program order."""

    name: str
    shape: str  # of the result, such as "f32[8,8]{1,0}", or a tuple of them
    kind: str  # opcode
    operands: list[str]  # names of instructions
    called: list[dict]  # the computations that it runs, see `CALLS`
    rest: str  # the text after the opcode's opening bracket
    root: bool  # whether its result is that of the computation

    @property
    def bytes(self) -> int:
        return sum(array_bytes(self.shape))


def array_bytes(shape: str) -> list[int]:
    """Returns the bytes of each array in `Line.shape`: 0 for one outside main memory, such as in a TPU's space S(1)."""
    return [0 if re.search(r"S\([1-9]", layout) else
            WIDTH.get(kind, 0) * math.prod(map(int, filter(None, dims.split(","))))
            for kind, dims, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape)]


def parse_hlo(text: str) -> dict[str, Line]:
    """Returns the entry computation of a program's text, in which each computation follows all those that it calls."""
    computations, current = {}, {}
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            current = computations["ENTRY" if head[1] else head[2]] = {}
        elif match := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)", line):
            root, name, shape, kind, rest = match.groups()
            operands = re.findall(r"%([\w.\-]+)", rest.split(")")[0])
            attributes = re.findall(rf"\b(?:{CALLS[kind]})=(\{{[^}}]*\}}|[%\w.\-]+)", rest) if kind in CALLS else []
            called = [computations[callee] for callee in re.findall(r"[\w.\-]+", " ".join(attributes))]
            current[name] = Line(name, shape, kind, operands, called, rest, bool(root))
    return computations["ENTRY"]


def find_root(computation: dict[str, Line]) -> Line:
    """Returns the instruction whose result the computation returns."""
    return next(line for line in computation.values() if line.root)


def passed_through(line: Line) -> tuple[set[int], set[int]]:
    """Returns (indices of outputs, indices of operands) of the arrays that a TPU's fusion returns as it got them, since
    they belong to an asynchronous collective that runs meanwhile. Both are empty for all other instructions."""
    names = line.name + "".join(re.findall(r"calls=\S+", line.rest))
    aliases = line.rest if line.kind == "fusion" and re.search("async.collective", names) else ""
    outputs, operands = re.findall(r"\{(\d+)\}: \(", aliases), re.findall(r"\{\d*\}: \((\d+)", aliases)
    return set(map(int, outputs)), set(map(int, operands))  # parsed from text such as "{output}: (operand, {})"


def only_reshapes(line: Line, index: int) -> bool:
    """Returns whether an instruction returns operand `index` unchanged except for its shape."""
    if line.kind != "fusion":
        return line.kind == "bitcast"
    last = find_root(line.called[0])
    while last.kind == "bitcast":
        last = line.called[0][last.operands[0]]
    return last.kind == "parameter" and last.rest.startswith(f"{index})")  # written as "parameter(index)"


def bytes_read(computation: dict, line: Line, index: int) -> int:
    """Returns the bytes of operand `index` that an instruction reads. If an array is only sliced, the bytes of the
    slice count, inside fusions too."""
    whole, (_, passed_operands) = computation[line.operands[index]].bytes, passed_through(line)
    if index in passed_operands:
        return 0
    if line.kind == "fusion":
        inner = line.called[0]
        operand = next(x.name for x in inner.values() if x.kind == "parameter" and x.rest.startswith(f"{index})"))
        return min(whole, bytes_of_uses(inner, operand))
    if line.kind == "slice-start":
        return array_bytes(re.sub(r"S\(\d+\)", "", line.shape))[1]  # shape: ((operand), slice in S(n), ...)
    if index == 0 and line.kind in ("dynamic-slice", "slice", "gather"):
        return line.bytes
    is_base = index == 0 and line.kind in ("dynamic-update-slice", "scatter")  # stays in place
    return 0 if is_base or line.kind.endswith("-done") else whole


def bytes_of_uses(computation: dict, name: str) -> int:
    """Returns the bytes of an instruction's result that the computation reads."""
    return sum(bytes_of_uses(computation, line.name) if only_reshapes(line, index) else
               bytes_read(computation, line, index)
               for line in computation.values() for index, operand in enumerate(line.operands) if operand == name)


def bytes_written(computation: dict, line: Line) -> int:
    """Returns the bytes that an instruction writes. If an array is updated in part, the bytes of that part count."""
    passed_outputs, _ = passed_through(line)
    if passed_outputs and not line.name.startswith("async-collective-done"):
        return sum(x for i, x in enumerate(array_bytes(line.shape)) if i not in passed_outputs)
    if line.kind == "fusion":
        inner = line.called[0]
        return min(line.bytes, bytes_written(inner, find_root(inner)))
    if line.kind in ("tuple", "bitcast"):
        return sum(bytes_written(computation, computation[name]) for name in line.operands)
    part = {"dynamic-update-slice": 1, "scatter": 2}.get(line.kind)  # index of the operand that is written
    written = computation[line.operands[part]] if part else line
    return 0 if line.kind.endswith("-start") else written.bytes  # what "-start" begins counts at its "-done"


def instruction_cost(computation: dict, line: Line) -> Cost:
    """Returns the cost of running an instruction once: a fusion, or one that calls no other computation. The bytes of a
    TPU's asynchronous collective count at the instruction that waits for its end."""
    moved = 0 if line.name.startswith("async-collective-start") else bytes_written(computation, line) + sum(
        bytes_read(computation, line, index) for index in range(len(line.operands)))
    cycles = re.search(r'"estimated_cycles":"(\d+)"', line.rest)
    return Cost(moved, not line.kind.endswith("-done"), int(cycles[1]) if cycles else 0)


def trip_count(loop: Line) -> int:
    """Returns how often a loop runs; 0 if that depends on values that the loop computes."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = loop.called[0]
    end = find_root(condition)  # of a counted loop: compare(counter, constant(limit)), direction=LT
    limit = [condition[name].rest for name in end.operands if condition[name].kind == "constant"]
    return int(limit[0].split(")")[0]) if limit and end.kind == "compare" and "direction=LT" in end.rest else 0


def computation_cost(computation: dict[str, Line], rounds: Iterator[int], weights: list[float]) -> Cost:
    """Returns the Cost of running a computation once. Loops without a static trip count take theirs from `rounds`."""
    total = Cost()
    for line in computation.values():
        inner = [computation_cost(called, rounds, weights) for called in line.called if line.kind != "fusion"]
        if line.kind == "conditional":
            cost = Cost(*(average_or_largest(costs, weights) for costs in zip(*inner)))
        elif inner:
            known = trip_count(line) if line.kind == "while" else 1
            times = known or next(rounds, 1)
            moved, kernels, cycles, step_kernels = zip(*inner)  # the fields of Cost, a number for each computation
            products = [times * sum(costs) for costs in (moved, kernels, cycles)]
            cost = Cost(*products, max(step_kernels) if known else sum(kernels))
        else:
            cost = Cost() if line.kind in FREE else instruction_cost(computation, line)
        total = Cost(total.bytes + cost.bytes, total.kernels + cost.kernels, total.cycles + cost.cycles,
                     max(total.step_kernels, cost.step_kernels))
    return total


def parse_cost(text: str) -> Callable[[list[int], list[float]], Cost]:
    """Parses the HLO text of a compiled program and returns a function `(rounds, weights) -> Cost` of one call."""
    entry = parse_hlo(text)
    return lambda rounds, weights: computation_cost(entry, iter(rounds), weights)
