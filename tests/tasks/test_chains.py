"""Families of chains: exact problems, four honest styles, and test problems that pre-training never sees."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from rlvr_jax.errors import UserError
from rlvr_jax.tasks import arithmetic, boolean, chains
from rlvr_jax.tasks.chains import StyleConfig

from fixtures import RIGHT_STEPS, SLOPPY_STEPS, values_of

ALGEBRAS = {"arithmetic": arithmetic.ALGEBRA, "boolean": boolean.ALGEBRA, "arithmetic_digits": arithmetic.DIGITS}


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from(list(chains.SPLITS)), st.integers(1, 8), st.sampled_from(list(ALGEBRAS)))
def test_problems_are_exact_and_of_their_split(seed, split, num_ops, name):
    drawn = chains.generate(ALGEBRAS[name], np.random.default_rng(seed), 40, split, num_ops)
    assert len(drawn.starts) == 40
    for problem, residue in zip(chains.to_problems(ALGEBRAS[name], drawn), chains.residue(*drawn[1:4]), strict=True):
        values = values_of(problem.prompt, RIGHT_STEPS[name])
        assert values[-1] == problem.answer and set(values) <= set(ALGEBRAS[name].values)
        assert residue in chains.SPLITS[split]


def test_splits_share_no_residue():
    assert sorted(residue for split in chains.SPLITS.values() for residue in split) == list(range(16))


def solutions(name, style, num=300, **flags):
    """(problems, their solutions) in one style; by default without early stops and slips."""
    config, rng = StyleConfig(**{"early_stop": 0.0, "slip": 0.0} | flags), np.random.default_rng(0)
    drawn = chains.generate(ALGEBRAS[name], rng, num, "pretrain", 6)
    place = list(chains.STYLES.values()).index(style)
    texts = chains.solve(ALGEBRAS[name], rng, drawn, np.full(num, place), config)
    assert max(len(text.split()) for text in texts) < chains.lengths(6)[1]
    return chains.to_problems(ALGEBRAS[name], drawn), [text.split() for text in texts]


@pytest.mark.parametrize("name", ALGEBRAS)
def test_careful_solutions_are_proofs(name):
    for problem, words in zip(*solutions(name, "careful"), strict=True):
        steps = [word for words in zip(problem.prompt.split()[2:-1:2], problem.prompt.split()[3:-1:2],
                                       values_of(problem.prompt, RIGHT_STEPS[name])) for word in words]
        assert words == ["think", *steps, "answer", problem.answer]


@pytest.mark.parametrize("name", ALGEBRAS)
def test_early_stops_answer_what_they_have(name):
    for problem, words in zip(*solutions(name, "careful", early_stop=1.0), strict=True):
        assert len(words) < chains.lengths(6)[1] - 1 and words[-1] == words[-3]
        assert values_of(problem.prompt, RIGHT_STEPS[name])[: len(words) // 3 - 1] == words[3:-2:3]


@pytest.mark.parametrize("name", ALGEBRAS)
def test_sloppy_guess_and_ramble_do_what_they_are_named_for(name):
    for problem, words in zip(*solutions(name, "sloppy"), strict=True):
        values = values_of(problem.prompt, SLOPPY_STEPS[name])
        assert words == ["quick", *values, "answer", values[-1]]
    guesses = solutions(name, "guess", num=2000)[1]
    assert {len(words) for words in guesses} == {2} and {words[0] for words in guesses} == {"answer"}
    assert {words[1] for words in guesses} == set(ALGEBRAS[name].values)
    for words in solutions(name, "ramble")[1]:
        assert words[0] == "hmm" and len(words) > 2 and set(words[1:]) <= set(ALGEBRAS[name].ramble)


@pytest.mark.parametrize("name", ALGEBRAS)
def test_an_answer_cannot_be_guessed_and_the_sloppy_style_is_seldom_right(name):
    drawn = chains.generate(ALGEBRAS[name], np.random.default_rng(4), 4000, "dev", 6)
    problems = chains.to_problems(ALGEBRAS[name], drawn)
    _, counts = np.unique([problem.answer for problem in problems], return_counts=True)
    assert counts.max() / len(problems) < 0.15
    right = np.mean([values_of(problem.prompt, SLOPPY_STEPS[name])[-1] == problem.answer for problem in problems])
    assert right < 0.25


@pytest.mark.parametrize("name", ALGEBRAS)
@pytest.mark.parametrize("shares", [(0.28, 0.27, 0.2, 0.25), (0.05, 0.05, 0.6, 0.3)])
def test_styles_have_the_shares_asked_for_and_depend_on_the_surface(name, shares):
    drawn = chains.generate(ALGEBRAS[name], np.random.default_rng(9), 8000, "test", 6)
    chances = chains.make_habits(ALGEBRAS[name], StyleConfig(shares), seed=3, num_ops=6)(drawn)
    np.testing.assert_allclose(chances.mean(0), shares, atol=0.02)
    by_topic = [chances[drawn.topics == t].mean(0)[0] for t in range(8)]
    assert max(by_topic) > 1.5 * min(by_topic)


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(UserError, match="unknown split 'tset'"):
        chains.generate(arithmetic.ALGEBRA, np.random.default_rng(0), 1, "tset", 6)
