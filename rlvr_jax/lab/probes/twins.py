"""Twins of the problems of a benchmark, which no model can have met: a control for the probe of contamination.

Unlike the problems of another benchmark, twins are as easy to guess as the originals. TWINS is a table of functions of
(rng, problem) that return a twin, or None for a problem without one.
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

MAX_DRAWS = 200  # until a twin differs from the problem


def reorder_sentences(rng: np.random.Generator, problem: Problem) -> Optional[Problem]:
    """The sentences in another order, with the same answer; None for a single sentence."""
    sentences = re.split(r"(?<=[.!?])\s+", problem.question.strip())
    for _ in range(MAX_DRAWS if len(set(sentences)) > 1 else 0):
        text = " ".join(sentences[i] for i in rng.permutation(len(sentences)))
        if text.split() != problem.question.split():
            return with_question(problem, text)
    return None


def renumber(rng: np.random.Generator, problem: Problem) -> Optional[Problem]:
    """Other numbers. A chain or a calculation is solved anew; the answer of any other text is unknown, so it is ""."""
    if tree := problem.meta.get("tree"):
        twin = calculation.make_problem(calculation.renumber(rng, tree), problem.meta["index"])
        return None if twin.question == problem.question else with_question(
            problem, twin.question, twin.answer, twin.meta)
    try:
        family, chain = memorisation.parse_chain(problem.question)
    except UserError:
        text = redraw_digits(rng, problem.question)
        return with_question(problem, text, "") if text != problem.question else None
    algebra = memorisation.ALGEBRAS[family]
    for _ in range(MAX_DRAWS):
        if (redrawn := redraw_numbers(rng, algebra, chain)) not in (None, chain):
            twin, = memorisation.to_problems(algebra, [redrawn])
            return with_question(problem, twin.question, twin.answer)
    return None


def redraw_numbers(rng: np.random.Generator, algebra: Algebra, chain: Chain) -> Optional[Chain]:
    """The chain with a random start and, step by step, random operands among those allowed; None if none is."""
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
    """Replaces each run of digits by another of its length that does not begin with 0; equal runs stay equal."""
    redrawn = {}
    for run in re.findall(r"[0-9]+", text):
        redrawn.setdefault(run, run)
        while redrawn[run] == run:
            redrawn[run] = str(rng.integers(1, 10)) + "".join(map(str, rng.integers(0, 10, len(run) - 1)))
    return re.sub(r"[0-9]+", lambda run: redrawn[run[0]], text)


def with_question(problem: Problem, text: str, answer: Optional[str] = None, meta: Optional[dict] = None) -> Problem:
    """The problem with another question, and with the answer and the additional metadata if given."""
    return dataclasses.replace(problem, question=text, prompt=text, meta=problem.meta | (meta or {}),
                               answer=problem.answer if answer is None else answer)


# --twins -> function of (rng, problem)
TWINS: dict[str, Callable] = {"reordered": reorder_sentences, "renumbered": renumber}


def make_twins(names: str, problems: list[Problem], seed: int) -> dict[str, dict[int, Problem]]:
    """For each of `names`, joined by commas: twins by the place of their problem. A twin depends on the seed and that
    place alone; one that reads like a problem of the benchmark is left out.

    Raises UserError for a name that is no row of TWINS, or comes twice.
    """
    kinds = names.split(",") if names else []
    if len(set(kinds)) < len(kinds) or set(kinds) - TWINS.keys():
        raise UserError(f"--twins={names}: give some of {', '.join(TWINS)}, each once, joined by commas")
    known = {" ".join(problem.question.split()) for problem in problems}
    twins = {kind: {place: TWINS[kind](np.random.default_rng((seed, place)), problem)
                    for place, problem in enumerate(problems)} for kind in kinds}
    return {kind: {place: twin for place, twin in by_place.items()
                   if twin and " ".join(twin.question.split()) not in known} for kind, by_place in twins.items()}
