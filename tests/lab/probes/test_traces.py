"""The parser of traces: the sheet's vectors, a thousand traces with planted errors, garbage."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from rlvr_jax.lab.probes import traces
from rlvr_jax.tasks import arithmetic, boolean, chains, families

SHEET = [  # of methods.md, section 8: problem (3+4)*2-5, answer 9
    ("3+4=7;7*2=14;14-5=9;#9", "111", []), ("4+3=7;2*7=14;14-5=9;#9", "111", []),
    ("3+4=7;7*2=15;15-5=10;#10", "010", [("calc", 1)]), ("3*2=6;6+4=10;10-5=5;#5", "100", [("plan", 0)]),
    ("4+3=7;7+2=9;#9", "101", [("plan", 1)]), ("3+4=8;8*2=16;16-5=9;#9", "011", [("calc", 0), ("calc", 2)]),
    ("3+4=7;7*2=14;14-5=9;#8", "110", [("answer-mismatch", 3)]),
    ("3+4=7;9-0=9;#9", "001", [("dangling", 1), ("plan", 1)])]


def judge_text(prompt, answer, completion):
    """The judgement; None for a problem that cannot be read."""
    if problem := traces.read_trace(prompt, completion):
        tree, trace = problem
        return traces.judge_trace(tree, traces.read_value(answer), trace)
    return None


def format_bits(judgement) -> str:
    return "".join(str(int(x)) for x in judgement[:3])


@pytest.mark.parametrize("trace, expected, errors", SHEET)
def test_the_vectors_of_the_sheet(trace, expected, errors):
    found = judge_text("(3+4)*2-5", "9", trace)
    assert format_bits(found) == expected and found.errors == errors


@pytest.mark.parametrize("problem, trace, expected", [
    ("2*3+2*3", "2*3=6;2*3=6;6+6=12;#12", "111"),  # each part is used once
    ("2*3+2*3", "2*3=6;6+6=12;#12", "101"),
    ("(1+5)*(2+4)-6", "1+5=6;2+4=6;6*6=36;36-6=30;#30", "111"),  # either 6 may be meant
    ("(1+5)*(2+4)-6", "1+5=6;2+4=6;6-6=0;0*6=0;#0", "100"), ("(8-2)-(9-3)", "9-3=6;8-2=6;6-6=0;#0", "111"),
    ("8-2", "2-8=-6;#-6", "100"), ("8/2", "2/8=0.25;#0.25", "100"),  # - and / do not commute
    ("7/2+1", "7/2=3.5;3.5+1=4.5;#4.5", "111"), ("7/2+1", "7/2=3;3+1=4;#4", "010"), ("3/0+1", "3/0=0;0+1=1;#1", "010")])
def test_parts_are_used_once_and_all_ways_are_followed(problem, trace, expected):
    truth = {"2*3+2*3": "12", "(1+5)*(2+4)-6": "30", "(8-2)-(9-3)": "0", "8-2": "6", "8/2": "4", "7/2+1": "4.5"}
    assert format_bits(judge_text(problem, truth.get(problem, "none"), trace)) == expected


def test_chains_are_read_by_the_same_parser():
    def found(text):
        return judge_text("coins 3 + 4 * 2 - 5 =", "9", text)

    for text, expected, errors in [
            ("think + 4 7 * 2 14 - 5 9 answer 9", "111", []),
            ("think + 4 7 * 2 15 - 5 10 answer 10", "010", [("calc", 1)]),
            ("think * 2 6 + 4 10 - 5 5 answer 5", "100", [("plan", 0)]),
            ("think + 4 7 * 2 14 answer 14", "100", [("plan", 2)]),  # it stops early
            ("think + 4 7 * 2 14 - 5 9 - 5 4 answer 4", "100", [("plan", 3)]),  # a step too many
            ("think + 4 7 + 9 16 answer 9", "001", [("dangling", 1), ("plan", 1), ("answer-mismatch", 2)]),
            ("think + 4 7 * 14 - 5 9 answer 9", "001", [("format", 1)]),
            ("think + 4 7 * 2 14 - 5 9", "110", [("answer-mismatch", 3)]),
            ("quick + 4 7 * 2 9 - 5 4 answer 4", "010", [("calc", 1)]),  # sloppy, in steps
            ("answer 9", "001", [("empty", 0)]), ("quick 7 9 4 answer 4", "000", [("empty", 0)]),
            ("quick", "000", [("empty", 0)]), ("", "000", [("empty", 0)]), ("think", "000", [("empty", 0)])]:
        assert (format_bits(found(text)), found(text).errors) == (expected, errors), text


def test_a_hidden_operand_may_be_either_side():
    for value, expected in (("14", "111"), ("7", "110"), ("8", "010")):
        text = f"think + 4 7 * ? {value} answer {value} sure 0.5"
        assert format_bits(judge_text("coins 3 + 4 * ? =", "14", text)) == expected


# ----- planted errors

def draw_other(rng, values, unlike):
    return str(rng.choice([value for value in values if value not in unlike]))


def result_of(algebra, value, op, operand):
    """The word of the result; None where the operation is not allowed."""
    number = algebra.results[algebra.values.index(value) + algebra.lowest, algebra.ops.index(op),
                             algebra.values.index(operand) + algebra.lowest]
    return str(algebra.write(number)) if number >= 0 else None


def plant(kind, rng, algebra, prompt, steps):
    """(steps with one error, answer word or None, {(class, position)}) from right steps [[op, operand, value]]; None
    where the error cannot be planted."""
    steps, place, words = [list(step) for step in steps], int(rng.integers(len(steps))), prompt.split()
    step, answer, end = steps[place], steps[-1][2], len(steps)
    if kind == "none":
        return steps, answer, set()
    if kind == "format":
        broken = [step[:1], step[:2], [*step, answer], [step[0], "maybe", answer]]
        steps[place] = broken[rng.integers(len(broken))]
        return steps, answer, {(kind, place)}
    if kind == "calc":
        step[2] = draw_other(rng, algebra.values, {step[2]})
        for before, after in itertools.pairwise(steps[place:]):  # the steps after it are right, given the wrong value
            after[2] = result_of(algebra, before[2], *after[:2])
            if after[2] is None:
                return None
        return steps, steps[-1][2], {(kind, place)}
    if kind == "dangling":
        before = steps[place - 1][2] if place else words[1]
        seen = {words[1], *(word for earlier in steps[: place + 1] for word in earlier[1:]), *words[3:-1:2]}
        operands = algebra.values[: algebra.results.shape[-1] - algebra.lowest]
        values = {b: value for b in operands if b not in seen and (value := result_of(algebra, before, step[0], b))}
        if not values:
            return None
        operand = str(rng.choice(list(values)))
        return [*steps[:place], [step[0], operand, values[operand]]], values[operand], {(kind, place), ("plan", place)}
    if kind == "plan" and rng.random() < 0.5 and end > 1:  # it stops early
        cut = int(rng.integers(1, end))
        return steps[:cut], steps[cut - 1][2], {(kind, cut)}
    if kind == "plan":  # it does the last step twice
        value = result_of(algebra, answer, *steps[-1][:2])
        return value and ([*steps, [*steps[-1][:2], value]], value, {(kind, end)})
    wrong = draw_other(rng, algebra.values, {answer})
    return steps, wrong if rng.random() < 0.7 else None, {(kind, end)}


def test_a_thousand_planted_errors_are_each_classed_right():
    rng, counts = np.random.default_rng(3), collections.Counter()
    kinds = ("none", "format", "calc", "dangling", "plan", "answer-mismatch")
    while sum(counts.values()) < 1000:
        algebra = (arithmetic.ALGEBRA, boolean.ALGEBRA)[rng.integers(2)]
        kind, num_ops = kinds[rng.integers(len(kinds))], int(rng.integers(1, 7))
        problem = chains.to_problems(algebra, chains.generate(algebra, rng, 1, "test", num_ops))[0]
        made = plant(kind, rng, algebra, problem.prompt, [step.split() for step in problem.meta["steps"][1:-1]])
        if made is None:
            continue
        steps, answer, errors = made
        text = " ".join(["think", *(word for step in steps for word in step), *(["answer", answer] if answer else [])])
        found = judge_text(problem.prompt, problem.answer, text)
        assert set(found.errors) == errors, (kind, problem.prompt, text)
        classes = {name for name, _ in errors}
        assert found.coherent == (not classes & {"format", "calc", "dangling"})
        assert found.valid == (not classes & {"format", "plan"}) and found.right == (answer == problem.answer)
        counts[kind] += 1
    assert min(counts.values()) > 100


@pytest.mark.parametrize("family", ["arithmetic", "boolean", "wager"])
def test_what_a_family_calls_careful_is_a_proof(family):
    """As pre-training writes it, when it does not stop early."""
    rng, own = np.random.default_rng(0), families.FAMILIES[family]
    drawn = own.generate(rng, 50, "test", 4)
    texts = own.solve(rng, drawn, np.zeros(50, int), chains.StyleConfig(early_stop=0.0))
    for problem, text in zip(own.to_problems(drawn), texts):
        assert judge_text(problem.prompt, problem.answer, text) == (True, True, True, [])


# ----- garbage

WORDS = st.lists(st.sampled_from(
    "think quick answer + - * / and xor 3 4 7 TFFT FFTT ? = ; # sure 0.5 -1 3+4=7; 7*2=14; #9 (".split()), max_size=30)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=60), WORDS.map(" ".join), WORDS.map("".join)))
def test_garbage_is_judged_and_never_crashes(text):
    for prompt in ("(3+4)*2-5", "coins 3 + 4 * 2 - 5 =", "gate TFFT and TTFT xor FFTT =", text):
        found = judge_text(prompt, text, text)
        assert found is None or (found.coherent or found.errors) and set(dict(found.errors)) <= set(traces.CLASSES)


def test_a_megabyte_of_steps_is_judged_at_once():
    for text in ("3+4=7;" * 10**5, "think" + " + 4 7" * 10**5, "9" * 10**6, "(" * 10**5):
        for prompt in ("(3+4)*2-5", "coins 3 + 4 * 2 - 5 =", text):
            assert judge_text(prompt, "9", text) is None or not judge_text(prompt, "9", text).valid
