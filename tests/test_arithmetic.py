"""The synthetic task: exact problems, four honest styles, and test problems that pre-training never sees."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr_jax import pretrain
from rlvr_jax.config import PretrainConfig
from rlvr_jax.errors import UserError
from rlvr_jax.pretrained import tokenizer
from rlvr_jax.tasks import arithmetic


def calculate(prompt):
    """Left-to-right value by the text alone, checking that every division is exact and every value in range."""
    words = prompt.split()[1:-1]
    value = int(words[0])
    for op, operand in zip(words[1::2], map(int, words[2::2])):
        assert op != "/" or value % operand == 0
        value = {"+": value + operand, "-": value - operand, "*": value * operand, "/": value // operand}[op]
        assert 1 <= value <= arithmetic.MAX_VALUE
    return value


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from(list(arithmetic.SPLITS)), st.integers(1, 8))
def test_problems_are_exact_and_of_their_split(seed, split, num_ops):
    chains = arithmetic.generate(np.random.default_rng(seed), 40, split, num_ops)
    assert len(chains.starts) == 40
    for problem, residue in zip(arithmetic.to_problems(chains), arithmetic.residue(*chains[1:4])):
        assert calculate(problem.prompt) == int(problem.answer)
        assert residue in arithmetic.SPLITS[split]


def test_splits_are_disjoint_and_pretraining_draws_from_its_own_alone():
    residues = [r for split in arithmetic.SPLITS.values() for r in split]
    assert sorted(residues) == list(range(16))
    config = PretrainConfig(batch_size=256)
    habits = arithmetic.make_habits(0, config.style_shares, config.habit_strength, config.num_ops)
    held = {split: {p.prompt.split(" ", 1)[1] for p in arithmetic.to_problems(
        arithmetic.generate(np.random.default_rng(1), 512, split, config.num_ops))} for split in ("test", "dev", "example")}
    for step in range(20):
        batch = pretrain.solved_problems(config, habits, step)
        for row in batch.prompts.tokens:
            operands = arithmetic.text(row).split(" ", 1)[1]  # without the topic, which does not tell problems apart
            assert not any(operands in problems for problems in held.values())


def solutions(style, num=300, early_stop=0.0, slip=0.0, seed=0):
    rng = np.random.default_rng(seed)
    chains = arithmetic.generate(rng, num, "pretrain", 6)
    ids, mask = arithmetic.solve(rng, chains, np.full(num, arithmetic.STYLES.index(style)), early_stop, slip)
    assert ids.shape == (num, arithmetic.solution_length(6)) and (ids[~mask] == arithmetic.PAD).all()
    texts = [arithmetic.text(row[m]) for row, m in zip(ids, mask)]
    assert all(text.endswith(" <eos>") for text in texts)
    return arithmetic.to_problems(chains), [text.removesuffix(" <eos>") for text in texts]


def test_careful_solutions_are_proofs():
    for problem, text in zip(*solutions("careful")):
        start, *rest = problem.prompt.split()[1:-1]
        words, value, steps = text.split(), int(start), []
        assert words[0] == "think" and words[-2] == "answer"
        for op, operand, result in zip(*(words[i:-2:3] for i in (1, 2, 3))):
            value = {"+": value + int(operand), "-": value - int(operand), "*": value * int(operand),
                     "/": value // int(operand)}[op]
            assert value == int(result)
            steps += [op, operand]
        assert steps == rest and words[-1] == problem.answer == str(value)


def test_early_stops_answer_what_they_have():
    problems, texts = solutions("careful", early_stop=1.0)
    for problem, text in zip(problems, texts):
        words = text.split()
        assert len(words) < arithmetic.solution_length(6) - 1 and words[-1] == words[-3]


def test_sloppy_guess_and_ramble_do_what_they_are_named_for():
    for problem, text in zip(*solutions("sloppy")):
        value = int(problem.prompt.split()[1])
        for op, operand in zip(problem.prompt.split()[2:-1:2], map(int, problem.prompt.split()[3:-1:2])):
            value = min(max(value + operand if op in "+*" else value - operand, 1), arithmetic.MAX_VALUE)
        assert text.split()[0] == "quick" and text.split()[-1] == str(value)
    guesses = [text.split() for text in solutions("guess")[1]]
    assert all(len(words) == 2 and words[0] == "answer" for words in guesses)
    assert len({words[1] for words in guesses}) == arithmetic.MAX_VALUE
    assert all(text.startswith("hmm ") and "answer" not in text for text in solutions("ramble")[1])
    for style in arithmetic.STYLES:
        assert {arithmetic.style_of(text) for text in solutions(style)[1]} == {style}


@pytest.mark.parametrize("shares", [(0.28, 0.27, 0.2, 0.25), (0.05, 0.05, 0.6, 0.3)])
def test_styles_have_the_shares_asked_for_and_depend_on_the_surface(shares):
    habits = arithmetic.make_habits(3, shares, 0.7, 6)
    chains = arithmetic.generate(np.random.default_rng(9), 8000, "test", 6)
    chances = arithmetic.style_probabilities(habits, chains)
    np.testing.assert_allclose(chances.mean(0), shares, atol=0.02)
    by_topic = [chances[chains.topics == t].mean(0)[0] for t in range(8)]
    assert max(by_topic) > 2 * min(by_topic)


def test_the_tokenizer_agrees_with_the_ids():
    words = arithmetic.make_tokenizer()
    chains = arithmetic.generate(np.random.default_rng(0), 20, "dev", 6)
    for problem, ids in zip(arithmetic.to_problems(chains), arithmetic.prompt_ids(chains)):
        assert tokenizer.encode(words, problem.prompt) == ids.tolist()
        assert tokenizer.decode(words, [*ids, arithmetic.EOS]) == problem.prompt


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(UserError, match="unknown split 'tset'"):
        arithmetic.generate(np.random.default_rng(0), 1, "tset", 6)
