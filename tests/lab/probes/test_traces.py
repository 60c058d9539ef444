"""The parser of traces: the sheet's vectors, chains with an error of each class, garbage."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from rlvr_jax.lab.probes import traces
from rlvr_jax.tasks import chains, families

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
        found = judge_text("coins 3 + 4 * 2 - 5 =", "9", text)
        assert (format_bits(found), found.errors) == (expected, errors), text


@pytest.mark.parametrize("text, expected, errors", [
    ("think and TTFT TFFT xor FFTT TFTF answer TFTF", "111", []),
    ("think and TTFT TTFT xor FFTT TTTF answer TTTF", "010", [("calc", 0)]),
    ("think xor FFTT TFTF and TTFT TFFF answer TFFF", "100", [("plan", 0)]),
    ("think and TTFT TFFT xor TTTT FTTF answer TFTF", "001", [("dangling", 1), ("plan", 1), ("answer-mismatch", 2)]),
    ("think and TTFT TFFT xor TFTF answer TFTF", "001", [("format", 1)])])
def test_errors_in_a_boolean_chain_are_classed_alike(text, expected, errors):
    found = judge_text("gate TFFT and TTFT xor FFTT =", "TFTF", text)
    assert (format_bits(found), found.errors) == (expected, errors)


def test_a_hidden_operand_may_be_either_side():
    for value, expected in (("14", "111"), ("7", "110"), ("8", "010")):
        text = f"think + 4 7 * ? {value} answer {value} sure 0.5"
        assert format_bits(judge_text("coins 3 + 4 * ? =", "14", text)) == expected


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


def test_thousands_of_steps_are_judged_at_once():
    for text in ("3+4=7;" * 20_000, "think" + " + 4 7" * 20_000, "9" * 10**6, "(" * 10**5):
        for prompt in ("(3+4)*2-5", "coins 3 + 4 * 2 - 5 =", text):
            assert judge_text(prompt, "9", text) is None or not judge_text(prompt, "9", text).valid
