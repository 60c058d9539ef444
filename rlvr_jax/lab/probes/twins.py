"""Twins of the problems of a benchmark, which no model can have met: a control for the probe of contamination.

Unlike the problems of another benchmark, twins are as easy to guess as the originals. TWINS is a table of ways to make
one: functions of (rng, problem) that return the twin, or None where the problem has none.
"""

import dataclasses
import re
from typing import Callable, Optional

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.lab.probes import memorisation
from rlvr_jax.lab.probes.memorisation import Chain
from rlvr_jax.records import Problem
from rlvr_jax.tasks import calculation
from rlvr_jax.tasks.chains import Algebra

TRIES = 200  # draws for a twin that differs


def reordered(rng: np.random.Generator, problem: Problem) -> Optional[Problem]:
    """The sentences in another order, with the same answer; no twin of a single sentence."""
    sentences = re.split(r"(?<=[.!?])\s+", problem.question.strip())
    for _ in range(TRIES if len(set(sentences)) > 1 else 0):
        text = " ".join(sentences[i] for i in rng.permutation(len(sentences)))
        if text.split() != problem.question.split():
            return with_question(problem, text)
    return None


def renumbered(rng: np.random.Generator, problem: Problem) -> Optional[Problem]:
    """Other numbers: a chain or a calculation is solved anew; of other texts the answer is not known, and is ""."""
    if tree := problem.meta.get("tree"):
        made = calculation.make_problem(calculation.renumber(rng, tree), problem.meta["index"])
        return with_question(problem, made.question, made.answer,
                             made.meta) if made.question != problem.question else None
    try:
        family, chain = memorisation.parse(problem.question)
    except UserError:
        text = other_digits(rng, problem.question)
        return with_question(problem, text, "") if text != problem.question else None
    algebra = memorisation.ALGEBRAS[family]
    for _ in range(TRIES):
        if (twin := other_numbers(rng, algebra, chain)) not in (None, chain):
            made, = memorisation.to_problems(algebra, [twin])
            return with_question(problem, made.question, made.answer)
    return None


def other_numbers(rng: np.random.Generator, algebra: Algebra, chain: Chain) -> Optional[Chain]:
    """The chain with another start and, step by step, operands drawn from those allowed; None where none is."""
    start = value = int(algebra.draw_values(rng, 1)[0])
    operands = []
    for op in chain.ops:
        allowed = np.flatnonzero(algebra.results[value, op] >= 0)
        if not len(allowed):
            return None
        operands.append(int(rng.choice(allowed)))
        value = int(algebra.results[value, op, operands[-1]])
    return chain._replace(start=start, operands=tuple(operands))


def other_digits(rng: np.random.Generator, text: str) -> str:
    """Each run of digits as another one of the same length, which does not begin with 0; equal runs stay equal."""
    made = {}
    for run in re.findall(r"[0-9]+", text):
        made.setdefault(run, run)
        while made[run] == run:
            made[run] = str(rng.integers(1, 10)) + "".join(map(str, rng.integers(0, 10, len(run) - 1)))
    return re.sub(r"[0-9]+", lambda run: made[run[0]], text)


def with_question(problem: Problem, text: str, answer: Optional[str] = None, meta: Optional[dict] = None) -> Problem:
    """The problem with another question, and with another answer and more metadata where they are given."""
    return dataclasses.replace(problem, question=text, prompt=text, meta=problem.meta | (meta or {}),
                               answer=problem.answer if answer is None else answer)


# --twins -> function of (rng, problem)
TWINS: dict[str, Callable] = {"reordered": reordered, "renumbered": renumbered}


def make(names: str, problems: list[Problem], seed: int) -> dict[str, dict[int, Problem]]:
    """For each of the `names`, joined by commas, the twins by the place of the problem that they are of.

    A twin depends on the seed and on that place alone. One that reads as a problem of the benchmark does is left out.
    Raises UserError for a name that is no row of TWINS, or comes twice.
    """
    kinds = names.split(",") if names else []
    if len(set(kinds)) < len(kinds) or set(kinds) - TWINS.keys():
        raise UserError(f"--twins={names}: give some of {', '.join(TWINS)}, each once, joined by commas")
    known = {" ".join(problem.question.split()) for problem in problems}
    made = {kind: {place: TWINS[kind](np.random.default_rng((seed, place)), problem)
                   for place, problem in enumerate(problems)} for kind in kinds}
    return {kind: {place: twin for place, twin in by_place.items()
                   if twin and " ".join(twin.question.split()) not in known} for kind, by_place in made.items()}
