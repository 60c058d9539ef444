"""Traces in steps: is each step sound, do the steps solve this problem, is the answer right?

A problem is a tree: values are its leaves, operations its nodes. A trace is steps `left op right = claimed`, and an
answer. Two notations are read into that form: `(3+4)*2-5` with `3+4=7;7*2=14;14-5=9;#9`, and the chains of
`tasks/chains.py`, whose tree leans to the left: a step `op operand value` continues from the value before it. The three
questions and the classes of errors replace the judge of arXiv 2510.18176 by exact rules.
"""

import ast
import itertools
import operator
import re
from fractions import Fraction
from typing import Iterator, NamedTuple, Optional, Union

from rlvr_jax.grading.stated_confidence import split_confidence
from rlvr_jax.tasks.chains import OPENERS
from rlvr_jax.tasks.wager import SIDES
from rlvr_jax.tasks.worlds import PLACES

# A number or a word: four lamps such as TFFT, the hidden operand ?, or an operand for one digit such as 3t.
Value = Union[Fraction, str]
Tree = Union[Value, tuple]  # a tuple is (op, left, right)

# What can be wrong. Positions count steps from 0; `plan` and `answer-mismatch` may stand after the last step.
CLASSES = {
    "empty": "there is no step",
    "format": "a step cannot be read",
    "calc": "a op b is not what the step says",
    "dangling": "an operand that neither the problem nor an earlier step has",
    "plan": "steps that can be read, but from here on they do not build the problem",
    "answer-mismatch": "the answer is not the last step's value, or there is none"}
UNSOUND = ("format", "calc", "dangling")  # the classes of single steps


class Step(NamedTuple):
    op: str
    left: Optional[Value]  # None after a step that cannot be read
    right: Value
    claimed: Value


class Trace(NamedTuple):
    steps: list[Optional[Step]]  # None: it cannot be read
    answer: Optional[Value]
    texts: tuple[str, ...] = ()  # each step as it is written


class Judgement(NamedTuple):
    """`errors` are (class, position), in the order of the steps."""

    coherent: bool  # there is a step, and none is wrong in itself (UNSOUND)
    valid: bool  # the steps build the problem, whatever values they claim
    right: bool  # the answer is the problem's
    errors: list[tuple[str, int]]


ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": lambda a, b: a / b if b else None}
LOGIC = {"and": operator.and_, "or": operator.or_, "xor": operator.xor, "xnor": operator.eq}
OPERATIONS = ARITHMETIC | LOGIC

_NUMBER = r"-?\d{1,30}(?:\.\d{1,30})?"
_VALUE = re.compile(rf"{_NUMBER}|[FT]{{1,30}}|\?|\d[htu]", re.ASCII)
_STEP = re.compile(rf"\s*({_NUMBER})\s*([-+*/])\s*({_NUMBER})\s*=\s*({_NUMBER})\s*", re.ASCII)


# ----- judging


def judge_trace(tree: Tree, truth: Optional[Value], trace: Trace) -> Judgement:
    """Whether the trace is coherent, valid and right, each independently of the others, and what is wrong where."""
    right = trace.answer is not None and trace.answer == truth
    if not trace.steps:
        return Judgement(False, False, right, [("empty", 0)])
    errors = find_step_errors(tree, trace.steps)
    coherent, readable, last = not errors, None not in trace.steps, trace.steps[-1]
    off_plan = first_step_off_plan(tree, trace.steps) if readable else None
    if off_plan is not None:
        errors.append(("plan", off_plan))
    if trace.answer is None or (last and trace.answer != last.claimed):
        errors.append(("answer-mismatch", len(trace.steps)))
    order = list(CLASSES)
    return Judgement(coherent, readable and off_plan is None, right,
                     sorted(errors, key=lambda error: (error[1], order.index(error[0]))))


def find_step_errors(tree: Tree, steps: list[Optional[Step]]) -> list[tuple[str, int]]:
    """The errors of single steps, (class of UNSOUND, position). A step may have two."""
    known, errors = set(leaves(tree)), []
    for place, step in enumerate(steps):
        if step is None:
            errors.append(("format", place))
            continue
        # A hidden operand may be either of SIDES.
        operands = (map(Fraction, SIDES) if value == "?" else [value] for value in (step.left, step.right))
        results = {apply(step.op, a, b) for a, b in itertools.product(*operands)} - {None}
        if step.left is not None and step.claimed not in results:
            errors.append(("calc", place))
        if not {step.left, step.right} - {None} <= known:
            errors.append(("dangling", place))
        known.add(step.claimed)
    return errors


def apply(op: str, a: Value, b: Value) -> Optional[Value]:
    """The value of `a op b`; None if it has none. Lamps are combined one by one; an operand such as 3t changes one
    digit of a number, modulo 10."""
    fn = OPERATIONS[op]
    if op in LOGIC:
        lamps = isinstance(a, str) and isinstance(b, str) and len(a) == len(b) and set(a + b) <= {"F", "T"}
        return "".join("FT"[fn(x == "T", y == "T")] for x, y in zip(a, b)) if lamps else None
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return fn(a, b)
    if not (isinstance(a, Fraction) and isinstance(b, str) and b[-1] in PLACES and a in range(1000)):
        return None
    unit = 10 ** (2 - PLACES.index(b[-1]))
    digit = int(a) // unit % 10
    return a + unit * (fn(digit, int(b[:-1])) % 10 - digit)


def first_step_off_plan(tree: Tree, steps: list[Step]) -> Optional[int]:
    """The first step after which the problem can no longer be built; the number of steps if some are missing; None if
    they build it.

    An operand stands for any part of the problem with this value, as the problem or an earlier step claims it, and each
    part is used once. If several parts match, all choices are followed; + and * may be turned round. Only parts of the
    problem are built, so there are few choices, whatever the steps say.
    """
    wanted, states = set(subtrees(tree)), {_state((leaf, canonical_text(leaf)) for leaf in leaves(tree))}
    for place, step in enumerate(steps):
        states = {after for state in states for after in _apply_step(state, step, wanted)}
        if not states:
            return place
    return None if any(len(state) == 1 for state in states) else len(steps)


def _state(parts) -> tuple:
    """Parts that are left to use, each (its claimed value, how it was built), in a fixed order."""
    return tuple(sorted(parts, key=lambda part: (part[1], str(part[0]))))


def _apply_step(state: tuple, step: Step, wanted: set[str]) -> Iterator[tuple]:
    """The states that the step may lead to."""
    for (i, left), (j, right) in itertools.permutations(enumerate(state), 2):
        built = _canonical_operation(step.op, left[1], right[1])
        if left[0] == step.left and right[0] == step.right and built in wanted:
            yield _state([*(part for k, part in enumerate(state) if k not in (i, j)), (step.claimed, built)])


def leaves(tree: Tree) -> list[Value]:
    return [leaf for part in tree[1:] for leaf in leaves(part)] if isinstance(tree, tuple) else [tree]


def subtrees(tree: Tree) -> list[str]:
    """The canonical text of each part of the tree, including itself and its leaves."""
    below = [text for part in tree[1:] for text in subtrees(part)] if isinstance(tree, tuple) else []
    return [*below, canonical_text(tree)]


def canonical_text(tree: Tree) -> str:
    """One text for all trees that differ only in the order of the parts of operations that commute."""
    return _canonical_operation(tree[0], *map(canonical_text, tree[1:])) if isinstance(tree, tuple) else str(tree)


def _canonical_operation(op: str, left: str, right: str) -> str:
    return "({} {} {})".format(op, *((left, right) if op in ("-", "/") else sorted((left, right))))


# ----- reading


def read_value(text) -> Optional[Value]:
    """A number or a word that stands for a value; None for anything else."""
    text = str(text)
    if not _VALUE.fullmatch(text):
        return None
    return text if text[-1] in "FT?htu" else Fraction(text)


def read_expression(text: str) -> Optional[Tree]:
    """The tree of `(3+4)*2-5`, with or without `=` at its end; None for anything else."""
    text = text.strip().removesuffix("=").strip()
    if len(text) > 1000 or not re.fullmatch(r"[-\d+*/(). ]+", text, re.ASCII):
        return None
    try:
        return _convert(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


_SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def _convert(node: ast.expr) -> Tree:
    match node:
        case ast.BinOp() if type(node.op) in _SIGNS:
            return _SIGNS[type(node.op)], _convert(node.left), _convert(node.right)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
            return -_convert(node.operand)
        case ast.Constant(value=int() | float()):
            return Fraction(str(node.value))
    raise ValueError("not an expression of numbers")


def read_steps(tree: Tree, text: str) -> Trace:
    """Reads `3+4=7;7*2=14;#14`: steps separated by semicolons, and the answer at the end, after a #."""
    parts = text.strip().split(";")
    answer = read_value(parts.pop().strip()[1:].strip()) if parts[-1].strip().startswith("#") else None
    texts = tuple(parts) if text.strip() else ()
    return Trace([match and Step(match[2], read_value(match[1]), *map(read_value, match.group(3, 4)))
                  for match in map(_STEP.fullmatch, texts)], answer, texts)


def read_chain(text: str) -> Optional[Tree]:
    """The tree of `coins 7 + 5 * 2 =`; None for anything else."""
    words = text.split()
    if len(words) < 5 or len(words) % 2 == 0 or words[-1] != "=" or read_value(words[0]) is not None:
        return None
    tree = read_value(words[1])
    for op, operand in zip(words[2:-1:2], map(read_value, words[3:-1:2])):
        if op not in OPERATIONS or None in (tree, operand):
            return None
        tree = op, tree, operand
    return tree


def read_chain_steps(tree: Tree, text: str) -> Trace:
    """Reads `think + 5 12 * 2 24 answer 24`, or the same after "quick"; a text with another opening has no steps. A
    step starts at its operation. After one that is not `op operand value`, the next may start from any value."""
    words = split_confidence(text)[0].split()
    ended = len(words) >= 2 and words[-2] == "answer"
    answer, body = read_value(words[-1]) if ended else None, words[1:-2] if ended else words[1:]
    if words[:1] != [OPENERS[0]] and not (words[:1] == [OPENERS[1]] and {*words[1:2]} & OPERATIONS.keys()):
        return Trace([], answer)
    starts = [i for i, word in enumerate(body) if word in OPERATIONS]
    cuts = sorted({0, *starts, len(body)}) if body else []
    steps, texts, value = [], [], leaves(tree)[0]
    for first, end in itertools.pairwise(cuts):
        op, values = body[first], list(map(read_value, body[first + 1 : end]))
        readable = op in OPERATIONS and len(values) == 2 and None not in values
        steps.append(Step(op, value, *values) if readable else None)
        texts.append(" ".join(body[first:end]))
        value = values[1] if readable else None
    return Trace(steps, answer, tuple(texts))


# reader of a prompt, None for a prompt in another notation -> reader of its completions
NOTATIONS = {read_chain: read_chain_steps, read_expression: read_steps}


def read_trace(prompt: str, completion: str) -> Optional[tuple[Tree, Trace]]:
    """The problem's tree and the completion's steps; None for a problem in none of the NOTATIONS."""
    for read_problem, read_completion in NOTATIONS.items():
        if isinstance(tree := read_problem(prompt), tuple):
            return tree, read_completion(tree, completion)
    return None
