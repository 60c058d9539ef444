"""Twins of the problems of a benchmark, which no model can have seen: a control for the contamination probe.

Twins are written like the originals, which problems of another benchmark are not.
"""

import dataclasses
import re
from typing import Callable, Optional

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.lab.probes import memorisation
from rlvr_jax.lab.probes.memorisation import Chain
from rlvr_jax.records import Problem
from rlvr_jax.tasks import calculation, chains

MAX_DRAWS = 200  # attempts to draw a twin that differs from the problem


def reorder_sentences(rng: np.random.Generator, problem: Problem) -> Optional[Problem]:
    """The problem with its sentences in another order and the same answer; None without two different sentences."""
    sentences = re.split(r"(?<=[.!?])\s+", problem.question.strip())
    num_draws = MAX_DRAWS if len(set(sentences)) > 1 else 0
    for _ in range(num_draws):
        text = " ".join(sentences[i] for i in rng.permutation(len(sentences)))
        if text.split() != problem.question.split():
            return with_question(problem, text)
    return None


def renumber(rng: np.random.Generator, problem: Problem) -> Optional[Problem]:
    """The problem with other numbers, or None. Chains and calculations are solved again; others get the answer ""."""
    if tree := problem.meta.get("tree"):  # only a calculation has a tree
        twin = calculation.make_problem(calculation.renumber(rng, tree), problem.meta["index"])
        return with_question(problem, twin.question, answer=twin.answer, meta=problem.meta | twin.meta)
    try:
        family, chain = memorisation.parse_chain(problem.question)
    except UserError:
        return with_question(problem, redraw_digits(rng, problem.question), answer="")
    algebra = memorisation.ALGEBRAS[family]
    for _ in range(MAX_DRAWS):
        redrawn = redraw_numbers(rng, algebra, chain)
        if redrawn not in (None, chain):
            [twin] = memorisation.to_problems(algebra, [redrawn])
            return with_question(problem, twin.question, answer=twin.answer)
    return None


def redraw_numbers(rng: np.random.Generator, algebra: chains.Algebra, chain: Chain) -> Optional[Chain]:
    """The chain with a random start and random operands, each allowed at its step; None if a step allows no operand."""
    start = value = int(algebra.draw_values(rng, 1)[0])
    operands = []
    for op in chain.ops:
        allowed = np.flatnonzero(algebra.results[value, op] >= 0)
        if not len(allowed):
            return None
        operands.append(int(rng.choice(allowed)))
        value = int(algebra.results[value, op, operands[-1]])
    return chain._replace(start=start, operands=tuple(operands))


def redraw_digits(rng: np.random.Generator, text: str) -> str:
    """Replaces each run of digits by another of its length that does not start with 0; equal runs stay equal."""
    redrawn = {}
    for run in re.findall(r"[0-9]+", text):
        redrawn.setdefault(run, run)
        while redrawn[run] == run:
            redrawn[run] = str(rng.integers(1, 10)) + "".join(map(str, rng.integers(0, 10, len(run) - 1)))
    return re.sub(r"[0-9]+", lambda run: redrawn[run[0]], text)


def with_question(problem: Problem, text: str, **changes) -> Problem:
    """The problem with `text` as its question and its prompt, and with `changes`, values of other fields."""
    return dataclasses.replace(problem, question=text, prompt=text, **changes)


# --twins -> function of (rng, problem) that returns a twin, which may be equal to the problem, or None
TWINS: dict[str, Callable] = {"reordered": reorder_sentences, "renumbered": renumber}


def make_twins(names: str, problems: list[Problem], seed: int) -> dict[str, dict[int, Problem]]:
    """Returns {kind: {index of a problem: its twin}} for the kinds in `names`, joined by commas. A twin depends only on
    its problem, the index and the seed. Twins whose question is one of `problems`, except for spaces, are left out.
    Raises UserError for a name that is not in TWINS or that is given twice."""
    kinds = names.split(",") if names else []
    if len(set(kinds)) < len(kinds) or set(kinds) - TWINS.keys():
        raise UserError(f"--twins={names}: give some of {', '.join(TWINS)}, each once, joined by commas")
    known = {" ".join(problem.question.split()) for problem in problems}
    twins = {kind: {i: TWINS[kind](np.random.default_rng((seed, i)), problem) for i, problem in enumerate(problems)}
             for kind in kinds}
    return {kind: {i: twin for i, twin in by_index.items() if twin and " ".join(twin.question.split()) not in known}
            for kind, by_index in twins.items()}
