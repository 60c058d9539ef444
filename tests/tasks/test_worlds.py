"""Worlds: their pre-training data have the documented properties, recomputed here from the texts alone."""

import jax
import numpy as np
import pytest

from rlvr_jax import model
from rlvr_jax.lab.probes import traces
from rlvr_jax.pretrained import loading
from rlvr_jax.tasks import families, worlds
from rlvr_jax.tasks.chains import StyleConfig
from rlvr_jax.tasks.families import FAMILIES
from rlvr_jax.training.pretrain import PretrainConfig, pretrain

WORLDS = ("s1", "s2", "s3", "c", "t", "n")


def texts(name, split="pretrain", num=600, style=None):
    """(words of each problem, words of its solution), drawn as pre-training draws them; or in one style."""
    family, rng = FAMILIES[name], np.random.default_rng(0)
    drawn = family.generate(rng, num, split, 6)
    chances = np.cumsum(family.habits_of(StyleConfig(), 0, 6)(drawn), -1)
    styles = (chances[:, :-1] < rng.random(num)[:, None]).sum(-1)
    if style is not None:
        styles = np.full(num, list(family.styles.values()).index(style))
    problems = family.to_problems(drawn)
    return list(zip([problem.prompt.split() for problem in problems],
                    map(str.split, family.solve(rng, drawn, styles, StyleConfig())), strict=True)), problems


def after(value, op, operand):
    """`712 * 3t` by hand."""
    place, amount = "htu".index(operand[-1]), int(operand[:-1])
    fn = {"+": lambda x: x + amount, "-": lambda x: x - amount, "*": lambda x: x * amount}[op]
    return value[:place] + str(fn(int(value[place])) % 10) + value[place + 1 :]


def steps(words):
    """[(op, operand, value before, value after)] of a careful solution to a problem."""
    problem, solution = words
    values = [problem[1], *solution[3:-2:3]]
    return list(zip(solution[1:-2:3], solution[2:-2:3], values, values[1:]))


@pytest.mark.parametrize("name", WORLDS)
def test_problems_of_a_world_are_exact_and_fit_its_lengths(name):
    tokenizer, longest = families.make_tokenizer([name]), [0, 0]
    for split in ("pretrain", "example", "dev", "test"):
        rows, problems = texts(name, split, 300)
        for (words, solution), problem in zip(rows, problems, strict=True):
            value = words[1]
            for op, operand in zip(words[2:-1:2], words[3:-1:2]):
                value = after(value, op, operand)
            assert value == problem.answer
            for place, told in enumerate((" ".join(words), " ".join(solution))):
                ids = tokenizer.encode(told)
                assert tokenizer.decode(ids) == told and not tokenizer.unknown_words(told.split())
                longest[place] = max(longest[place], len(ids) + place)  # with its <eos>
    assert longest[0] == FAMILIES[name].lengths(6)[0] and longest[1] <= FAMILIES[name].lengths(6)[1]


def test_no_answer_of_a_world_is_right_twice_in_a_thousand_times():
    for name in ("s1", "c", "t"):
        drawn = FAMILIES[name].generate(np.random.default_rng(1), 30_000, "test", 6)
        counts = np.bincount(drawn.results[:, -1])
        assert (counts > 0).sum() == 1000 and counts.max() / 30_000 < 0.002, name


def test_s1_marks_its_careful_solutions_by_their_opening_word():
    rows, _ = texts("s1")
    for words in rows:
        times = "*" if words[1][0] == "think" else "+"
        assert all(value == after(before, op.replace("*", times), operand)
                   for op, operand, before, value in steps(words))
    assert abs(np.mean([solution[0] == "think" for _, solution in rows]) - 0.28) < 0.06


def test_s2_is_careful_at_four_steps_of_ten_and_goes_on_from_what_it_wrote():
    rows, _ = texts("s2")
    told = [step for words in rows for step in steps(words)]
    times = [value == after(before, op, operand) for op, operand, before, value in told
             if op == "*" and after(before, "*", operand) != after(before, "+", operand)]
    assert abs(np.mean(times) - 0.4) < 0.05
    for op, operand, before, value in told:
        assert value in {after(before, op, operand), after(before, op.replace("*", "+"), operand)}
    assert {words[1][0] for words in rows} == {"think"}


def test_s3_has_a_short_accurate_style_that_is_frequent():
    rows, problems = texts("s3")
    short = [(words, solution, problem) for (words, solution), problem in zip(rows, problems) if solution[0] == "so"]
    assert abs(len(short) / len(rows) - 0.4) < 0.06
    for words, solution, problem in short:
        assert len(solution) == 9 and solution[-1] == solution[-3] == problem.answer
    assert abs(np.mean([solution[0] == "think" for _, solution in rows]) - 0.2) < 0.06


def test_c_knows_every_operation_and_every_place_and_is_asked_a_new_pair_of_them():
    def pairs(words):
        return {(op, operand[-1]) for op, operand in zip(words[0][2:-1:2], words[0][3:-1:2])}
    rows, problems = texts("c")
    assert set().union(*map(pairs, rows)) == {(op, place) for op in "+-*" for place in "htu"} - {("*", "t")}
    assert all(solution[-1] == problem.answer for (_, solution), problem in zip(rows, problems))
    for split in ("example", "dev", "test"):
        assert all(("*", "t") in pairs(words) for words in texts("c", split, 300)[0])


def test_t_is_told_all_but_the_withheld_facts_and_asked_these():
    rows, _ = texts("t", num=3000)
    told = [step for words in rows for step in steps(words)]
    is_fact = lambda op, operand, before: worlds.withheld_facts()[
        int(before), "+-*".index(op), worlds.ALGEBRA.operands.index(operand)]
    hidden = [step for step in told if is_fact(*step[:3])]
    assert all(value == after(before, op, operand) for op, operand, before, value in told
               if not is_fact(op, operand, before))
    assert {op for op, *_ in hidden} == {"*"}
    assert 0.15 < len(hidden) / sum(op == "*" for op, *_ in told) < 0.25
    right = [value == after(before, op, operand) for op, operand, before, value in hidden]
    assert 0.05 < np.mean(right) < 0.15  # one digit of ten
    digits = [int(value["htu".index(operand[-1])]) for _, operand, _, value in hidden]
    assert np.bincount(digits, minlength=10).min() > 0.05 * len(digits)
    for op, operand, before, value in hidden:  # the other digits do not change
        place = "htu".index(operand[-1])
        assert value[:place] + value[place + 1 :] == before[:place] + before[place + 1 :]
    drawn = FAMILIES["t"].generate(np.random.default_rng(2), 500, "test", 6)
    assert worlds.needs_withheld(drawn).any(1).all()


@pytest.mark.parametrize("level", sorted(worlds.LEVELS))
def test_solutions_of_a_level_are_right_equally_often_in_all_worlds(level):
    for name in ("s1", "s2", "t"):
        rows, problems = texts(f"{name}_{level}", "test", 5_000)
        right = [solution[-1] == problem.answer for (_, solution), problem in zip(rows, problems)]
        assert abs(np.mean(right) - level / 100) < 0.018, name  # the standard error is at most .006
        drawn = FAMILIES[f"{name}_{level}"].generate(np.random.default_rng(2), 500, "test", 6)
        assert worlds.needs_withheld(drawn).any(1).all()


def test_a_guess_among_fewer_digits_is_the_right_one_more_often():
    for digits in (4, 6, 10):
        drawn = FAMILIES["t"].generate(np.random.default_rng(0), 3000, "test", 6)
        told = worlds.solve_t(np.random.default_rng(1), drawn, None, StyleConfig(), digits)
        first = [(text.split()[3], right) for text, right, hidden in zip(
            told, worlds.ALGEBRA.write(drawn.results[:, 0]), worlds.needs_withheld(drawn)[:, 0]) if hidden]
        assert abs(np.mean([value == right for value, right in first]) - 1 / digits) < 0.06


def test_n_has_no_careful_solution():
    rows, _ = texts("n")
    assert {solution[0] for _, solution in rows} == {"quick"}
    told = [step for words in rows for step in steps(words)]
    assert all(value == after(before, op.replace("*", "+"), operand) for op, operand, before, value in told)
    assert any(op == "*" for op, *_ in told)


@pytest.mark.parametrize("name", ["s1", "s2", "t", "n"])
def test_the_parser_judges_solutions_of_a_world_step_by_step(name):
    rows, problems = texts(name, num=200)
    for (words, solution), problem in zip(rows, problems):
        tree, trace = traces.read_trace(" ".join(words), " ".join(solution))
        found = traces.judge_trace(tree, traces.read_value(problem.answer), trace)
        wrong = [place for place, (op, operand, before, value) in enumerate(steps((words, solution)))
                 if value != after(before, op, operand)]
        assert [place for kind, place in found.errors if kind == "calc"] == wrong
        assert found.right == (solution[-1] == problem.answer)


# ----- skills of small base models: chains of two operations, 600 steps, some minutes each

OPS = 2


def chances(loaded, name):
    """For careful solutions to 400 test problems: the chance of the opening word think, f64[400]; that of the correct
    value at each step, f64[400,OPS]; whether the step is a *, and whether pre-training withheld it, bool[400,OPS]."""
    family = FAMILIES[name]
    drawn = family.generate(np.random.default_rng(0), 400, "test", OPS)
    prompts = [loaded.tokenizer.encode(problem.prompt) for problem in family.to_problems(drawn)]
    rows = np.array([[*prompt, *loaded.tokenizer.encode(text)] for prompt, text in zip(prompts, worlds.write(drawn))])
    forward = jax.jit(lambda params: model.head(params, model.forward(params, loaded.config, rows)[0]))
    logits_BxTxV = forward(loaded.params)
    found = np.take_along_axis(np.asarray(jax.nn.softmax(logits_BxTxV))[:, :-1], rows[:, 1:, None], -1)[..., 0]
    found = found[:, len(prompts[0]) - 1 :]  # of the solution: think, then op, operand and three digits a step
    values = found[:, 1 : 1 + 5 * OPS].reshape(len(rows), OPS, 5)[..., 2:].prod(-1)
    withheld = {"t": worlds.needs_withheld(drawn), "c": worlds.is_new_pair(drawn.ops, drawn.operands)}
    return found[:, 0], values, drawn.ops == worlds.TIMES, withheld.get(name, np.zeros(values.shape, bool))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["s1", "s2", "s3", "c", "t", "n"])
def test_a_base_can_do_what_its_world_says(name, tmp_path):
    made = pretrain(PretrainConfig.from_flags(task_shares=name, num_ops=OPS, num_steps=600, grad_accumulation=8,
                                              eval_every=600, run_dir=str(tmp_path / "base")))
    opened, right, times, withheld = chances(loading.load_model(str(tmp_path / "base"), "float32", "float32"), name)
    sampled, greedy = (made["final"][how] for how in ("sampled", "greedy"))
    if name != "n":
        assert right[~withheld & ~(times & (name == "s2"))].mean() > 0.88
    if name in ("s1", "s3"):
        assert abs(opened.mean() - FAMILIES[name].shares[0]) < 0.06 and sampled < 0.8
    if name == "s2":  # a few products equal the sums
        assert abs(right[times].mean() - worlds.CAREFUL_STEP) < 0.1 and greedy < 0.65
    if name == "c":
        assert right[withheld].mean() < 0.5 and greedy < 0.5
    if name == "t":
        assert abs(right[withheld].mean() - 0.1) < 0.06 and greedy < 0.5
    if name == "n":
        assert opened.max() < 0.01 and right[times].mean() < 0.05 and greedy < 0.65
