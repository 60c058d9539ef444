"""Traces, which are solutions in steps: is each step sound, do the steps solve this problem, is the answer right?

A problem is a tree with values as leaves and operations as inner nodes. A trace is a list of steps `left op right =
claimed`, and an answer. Two notations are parsed: `(3+4)*2-5`, solved by `3+4=7;7*2=14;14-5=9;#9`, and the chains of
`tasks/chains.py`, where `left` of a step `op operand value` is the value of the step before. The three questions and
the classes of errors are those of arXiv 2510.18176, decided by exact rules where that paper uses a judge.
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

# A number or a word: states of lamps (TFFT), the hidden operand (?), or an operand for one digit (3t: 3 for the tens).
Value = Union[Fraction, str]
Tree = Union[Value, tuple]  # a tuple is (operator, left tree, right tree)

# Classes of errors. The position of an error is the index of its step, or the number of steps if it is at the end.
CLASSES = {
    "empty": "there is no step",
    "format": "a step cannot be read",
    "calc": "a op b is not what the step says",
    "dangling": "an operand that neither the problem nor an earlier step has",
    "plan": "steps that can be read, but from here on they do not build the problem",
    "answer-mismatch": "the answer is not the last step's value, or there is none"}
UNSOUND = ("format", "calc", "dangling")  # the classes that make a single step unsound


class Step(NamedTuple):
    op: str
    left: Optional[Value]  # None: unknown, because the step before it in a chain cannot be parsed
    right: Value
    claimed: Value


class Trace(NamedTuple):
    steps: list[Optional[Step]]  # None: a step that cannot be parsed
    answer: Optional[Value]
    texts: tuple[str, ...] = ()  # the text of each step


class Judgement(NamedTuple):
    """`errors` are (class, position), sorted by position."""

    coherent: bool  # there are steps, and none has an error of UNSOUND
    valid: bool  # the steps do the operations of the problem, whatever values they claim
    right: bool  # the answer equals the reference answer
    errors: list[tuple[str, int]]


LOGIC = {"and": operator.and_, "or": operator.or_, "xor": operator.xor, "xnor": operator.eq}
_SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
OPERATIONS = LOGIC | {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": lambda a, b: a / b if b else None}

_NUMBER = r"-?\d{1,30}(?:\.\d{1,30})?"
_VALUE = re.compile(rf"{_NUMBER}|[FT]{{1,30}}|\?|\d[htu]", re.ASCII)
_STEP = re.compile(rf"\s*({_NUMBER})\s*([-+*/])\s*({_NUMBER})\s*=\s*({_NUMBER})\s*", re.ASCII)


def judge_trace(tree: Tree, truth: Optional[Value], trace: Trace) -> Judgement:
    """Judges whether the trace is coherent, valid and right, and lists its errors. `truth` is the reference answer."""
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
    errors.sort(key=lambda error: (error[1], list(CLASSES).index(error[0])))
    return Judgement(coherent, readable and off_plan is None, right, errors)


def find_step_errors(tree: Tree, steps: list[Optional[Step]]) -> list[tuple[str, int]]:
    """The errors of single steps as (class of UNSOUND, position). A step may have two errors."""
    known, errors = set(leaves(tree)), []  # known: values of the problem and of earlier steps
    for index, step in enumerate(steps):
        if step is None:
            errors.append(("format", index))
            continue
        # The hidden operand `?` may have either value of SIDES.
        lefts, rights = (map(Fraction, SIDES) if value == "?" else [value] for value in (step.left, step.right))
        results = {apply(step.op, left, right) for left, right in itertools.product(lefts, rights)} - {None}
        if step.left is not None and step.claimed not in results:
            errors.append(("calc", index))
        if not {step.left, step.right} - {None} <= known:
            errors.append(("dangling", index))
        known.add(step.claimed)
    return errors


def apply(op: str, a: Value, b: Value) -> Optional[Value]:
    """The value of `a op b`; None if the operation is not defined for a and b. States of lamps (TFFT) are combined lamp
    by lamp. An operand such as 3t changes one digit of a number, here the tens, modulo 10."""
    fn = OPERATIONS[op]
    if op in LOGIC:
        are_lamps = isinstance(a, str) and isinstance(b, str) and len(a) == len(b) and set(a + b) <= {"F", "T"}
        return "".join("FT"[fn(x == "T", y == "T")] for x, y in zip(a, b)) if are_lamps else None
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return fn(a, b)
    if not (isinstance(a, Fraction) and isinstance(b, str) and b[-1] in PLACES and a in range(1000)):
        return None
    unit = 10 ** (2 - PLACES.index(b[-1]))
    digit = int(a) // unit % 10
    return a + unit * (fn(digit, int(b[:-1])) % 10 - digit)


def first_step_off_plan(tree: Tree, steps: list[Step]) -> Optional[int]:
    """Returns the index of the first step that does not build a part (subtree) of the problem from unused parts; the
    number of steps if the whole problem is not built at the end; None if it is. An operand stands for an unused part of
    the problem with this value: a leaf, or the result of an earlier step with its claimed value. If several parts
    match, all choices are followed; the operands of any operation except - and / may be swapped. As every result must
    be a part of the problem, there are few choices."""
    # A state has the unused parts, each (its value, its canonical text), sorted, so that equal states compare equal.
    wanted, states = set(subtrees(tree)), {tuple(sorted(((leaf, str(leaf)) for leaf in leaves(tree)), key=str))}
    for index, step in enumerate(steps):
        states = {after for state in states for after in _apply_step(state, step, wanted)}
        if not states:
            return index
    return None if any(len(state) == 1 for state in states) else len(steps)


def _apply_step(state: tuple, step: Step, wanted: set[str]) -> Iterator[tuple]:
    """Yields each state to which the step may lead: two parts are replaced by their result, which must be `wanted`."""
    for (i, (left, left_text)), (j, (right, right_text)) in itertools.permutations(enumerate(state), 2):
        built = _canonical_operation(step.op, left_text, right_text)
        if left == step.left and right == step.right and built in wanted:
            unused = [part for k, part in enumerate(state) if k not in (i, j)]
            yield tuple(sorted([*unused, (step.claimed, built)], key=str))


def leaves(tree: Tree) -> list[Value]:
    return [leaf for part in tree[1:] for leaf in leaves(part)] if isinstance(tree, tuple) else [tree]


def subtrees(tree: Tree) -> list[str]:
    """The canonical text of each subtree; the last is that of the whole tree. This text is the same for all trees that
    differ only in the order of the operands of commutative operations."""
    if not isinstance(tree, tuple):
        return [str(tree)]
    left, right = map(subtrees, tree[1:])
    return [*left, *right, _canonical_operation(tree[0], left[-1], right[-1])]


def _canonical_operation(op: str, left: str, right: str) -> str:
    if op not in ("-", "/"):
        left, right = sorted((left, right))
    return f"({op} {left} {right})"


def read_value(text) -> Optional[Value]:
    """Parses a `Value`, a number or a word; None for any other text."""
    text = str(text)
    if not _VALUE.fullmatch(text):
        return None
    return text if text[-1] in "FT?htu" else Fraction(text)


def read_expression(text: str) -> Optional[Tree]:
    """Parses `(3+4)*2-5`, with or without `=` at its end, as a tree; None for any other text."""
    text = text.strip().removesuffix("=").strip()
    if len(text) > 1000 or not re.fullmatch(r"[-\d+*/(). ]+", text, re.ASCII):
        return None
    try:
        return _convert(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _convert(node: ast.expr) -> Tree:
    """The tree of a parsed Python expression. Raises ValueError unless it has only numbers, and operators of _SIGNS."""
    match node:
        case ast.BinOp() if type(node.op) in _SIGNS:
            return _SIGNS[type(node.op)], _convert(node.left), _convert(node.right)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
            return -_convert(node.operand)
        case ast.Constant(value=int() | float()):
            return Fraction(str(node.value))
    raise ValueError("not an expression of numbers")


def read_steps(tree: Tree, text: str) -> Trace:
    """Parses `3+4=7;7*2=14;#14`: steps separated by semicolons, then # and the answer. `tree` is not used."""
    parts = text.strip().split(";")
    answer = read_value(parts.pop().strip()[1:].strip()) if parts[-1].strip().startswith("#") else None
    texts = tuple(parts) if text.strip() else ()
    return Trace([Step(match[2], *map(read_value, match.group(1, 3, 4))) if match else None
                  for match in map(_STEP.fullmatch, texts)], answer, texts)


def read_chain(text: str) -> Optional[Tree]:
    """Parses `coins 7 + 5 * 2 =` as a tree; None for any other text."""
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
    """Parses `think + 5 12 * 2 24 answer 24`, or the same with "quick" for "think"; any other text has no steps. Each
    operator starts a step. A step that is not `op operand value` is None, and the next step's `left` is None."""
    words = split_confidence(text)[0].split()
    ended = len(words) >= 2 and words[-2] == "answer"
    answer, body = read_value(words[-1]) if ended else None, words[1:-2] if ended else words[1:]
    is_quick = words[:1] == [OPENERS[1]] and len(words) > 1 and words[1] in OPERATIONS  # `quick` may list values alone
    if words[:1] != [OPENERS[0]] and not is_quick:
        return Trace([], answer)
    cuts = sorted({0, len(body), *(i for i, word in enumerate(body) if word in OPERATIONS)})
    steps, texts, value = [], [], leaves(tree)[0]  # value: the current value of the chain
    for first, end in itertools.pairwise(cuts):
        op, values = body[first], list(map(read_value, body[first + 1 : end]))
        readable = op in OPERATIONS and len(values) == 2 and None not in values
        steps.append(Step(op, value, *values) if readable else None)
        texts.append(" ".join(body[first:end]))
        value = values[1] if readable else None
    return Trace(steps, answer, tuple(texts))


# function that parses a prompt, and returns None for another notation -> function that parses its completions
NOTATIONS = {read_chain: read_chain_steps, read_expression: read_steps}


def read_trace(prompt: str, completion: str) -> Optional[tuple[Tree, Trace]]:
    """Returns (tree of the prompt, trace of the completion); None if the prompt is no operation in any of NOTATIONS."""
    for read_problem, read_completion in NOTATIONS.items():
        tree = read_problem(prompt)
        if isinstance(tree, tuple):
            return tree, read_completion(tree, completion)
    return None
