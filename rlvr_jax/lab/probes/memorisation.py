"""Memorisation: accuracy on near twins of the problem that a run was trained on, by what differs from it.

A run that only memorised the problem would fail on its twins; one that learnt a method would solve them. Twins of a
chain (`tasks/chains.py`) are drawn by KINDS. Beside them are the example itself and unseen problems of its family.
Pre-training may have met a twin, since 13 of 16 chains are in its split: probe the base of the run, too.
"""

import functools
import pathlib
from typing import Callable, NamedTuple, Optional

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.benchmarks import EvaluateConfig, make_benchmark
from rlvr_jax.evaluation.measure import Benchmark
from rlvr_jax.lab.probes.rows import COLUMNS, Result, draw_shares, items_of, problem_of, share, share_cell
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.records import Problem
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.tasks import arithmetic, boolean, chains
from rlvr_jax.tasks.chains import Algebra
from rlvr_jax.tasks.families import FAMILIES
from rlvr_jax.tasks.prompts import ProblemSource, PromptConfig, load_problems

NEEDS = ("prompt", "correct", "benchmark", "split")
ALGEBRAS = {"arithmetic": arithmetic.ALGEBRA, "boolean": boolean.ALGEBRA}
TRIES, MOST = 4000, 64  # draws for the twins of one kind, and most twins of a kind where --max_problems is 0


class Chain(NamedTuple):
    """One problem. Operators by their place in the algebra, operands and start by their numbers."""

    topic: int
    start: int
    ops: tuple[int, ...]
    operands: tuple[int, ...]


# ----- twins


def other_topic(rng: np.random.Generator, algebra: Algebra, chain: Chain) -> Chain:
    """The same chain about something else: the words differ, the solution does not."""
    return chain._replace(topic=int(rng.integers(len(algebra.topics))))


def other_start(rng: np.random.Generator, algebra: Algebra, chain: Chain) -> Chain:
    return chain._replace(start=int(algebra.draw_values(rng, 1)[0]))


def other_operands(count: int, rng: np.random.Generator, algebra: Algebra, chain: Chain) -> Chain:
    """`count` operands may be others; all, where the chain has fewer."""
    operands = list(chain.operands)
    for place in rng.permutation(len(operands))[:count]:
        choices = [b for b in range(algebra.results.shape[-1]) if b != operands[place]]
        operands[place] = int(rng.choice(choices))
    return chain._replace(operands=tuple(operands))


def other_operator(rng: np.random.Generator, algebra: Algebra, chain: Chain) -> Chain:
    ops = list(chain.ops)
    ops[rng.integers(len(ops))] = int(rng.integers(len(algebra.ops)))
    return chain._replace(ops=tuple(ops))


def one_step_longer(rng: np.random.Generator, algebra: Algebra, chain: Chain) -> Chain:
    return chain._replace(ops=(*chain.ops, int(rng.integers(len(algebra.ops)))),
                          operands=(*chain.operands, int(rng.integers(algebra.results.shape[-1]))))


KINDS: dict[str, Callable] = {
    "other topic": other_topic, "one operator": other_operator, "one operand": functools.partial(other_operands, 1),
    "two operands": functools.partial(other_operands, 2), "three operands": functools.partial(other_operands, 3),
    "other start": other_start, "one step longer": one_step_longer}
EXAMPLE, UNSEEN = "the example", "unseen"


def twins(kind: str, rng: np.random.Generator, algebra: Algebra, chain: Chain, most: int) -> list[Chain]:
    """At most `most` different twins of a kind, all of which can be solved; the chain is not among them."""
    made: dict[Chain, None] = {}
    for _ in range(TRIES):
        twin = KINDS[kind](rng, algebra, chain)
        if twin != chain and solved(algebra, twin):
            made[twin] = None
        if len(made) == most:
            break
    return list(made)


def solved(algebra: Algebra, chain: Chain) -> Optional[list[int]]:
    """The value after each operation; None where one is not allowed."""
    values = [chain.start]
    for op, operand in zip(chain.ops, chain.operands):
        values.append(int(algebra.results[values[-1], op, operand]))
        if values[-1] < 0:
            return None
    return values[1:]


def parse(question: str) -> tuple[str, Chain]:
    """(family, chain) of a question such as `coins 7 + 5 * 2 =`. Raises UserError for any other."""
    words = question.split()
    for family, algebra in ALGEBRAS.items():
        try:
            operands = (algebra.values.index(word) + algebra.lowest for word in words[1:-1:2])
            chain = Chain(algebra.topics.index(words[0]), next(operands), tuple(map(algebra.ops.index, words[2:-1:2])),
                          tuple(operands))
        except (ValueError, IndexError, StopIteration):
            continue
        if (words[-1] == "=" and len(words) == 2 * len(chain.ops) + 3 > 3
                and max(chain.operands) < algebra.results.shape[-1] and solved(algebra, chain) is not None):
            return family, chain
    raise UserError(f"--probe=memory makes twins of chains of {', '.join(ALGEBRAS)}; {question[:80]!r} is none that "
                    "has a solution")


def to_problems(algebra: Algebra, made: list[Chain]) -> list[Problem]:
    """Chains of one length as problems; meta["split"] is the split of the family that a chain is in."""
    drawn = chains.Chains(*map(np.array, zip(*made)), np.array([solved(algebra, chain) for chain in made]))
    split_of = {number: name for name, numbers in chains.SPLITS.items() for number in numbers}
    problems = chains.to_problems(algebra, drawn)
    for problem, number in zip(problems, chains.residue(drawn.starts, drawn.ops, drawn.operands)):
        problem.meta["split"] = split_of[int(number)]
    return problems


# ----- asking


def ask(config: EvaluateConfig, example: str, loaded: LanguageModel) -> list[Benchmark]:
    """The example, its twins of each kind, and unseen problems. Twins that are longer than the window are left out."""
    kept = config.kept
    family, chain = parse(trained_question(example, kept.choice.model))
    algebra, rng, most = ALGEBRAS[family], np.random.default_rng(kept.seed), kept.max_problems or MOST
    sets = {EXAMPLE: to_problems(algebra, [chain])}
    for kind in KINDS:
        made = twins(kind, rng, algebra, chain, most)
        sets |= {kind: to_problems(algebra, made)} if made else {}
    if (kind := "one step longer") in sets and not fits(
            sets[kind], loaded, len(chain.ops) + 1, kept.sampling.max_new_tokens):
        del sets[kind]
    source = ProblemSource(family, PromptConfig(num_ops=len(chain.ops)))
    sets[UNSEEN] = load_problems(source, loaded.tokenizer, kept.heldout_split, most)
    for problem in sets[UNSEEN]:
        problem.meta["split"] = kept.heldout_split
    if kept.grading.answer_format == "auto":  # twins are made here, and have no family to look it up
        kept = kept.with_flags(answer_format=FAMILIES[family].answer_format)
    benchmarks = [make_benchmark(kept, loaded, name, problems, config.num_samples, config.temperature)
                  for name, problems in sets.items()]
    return [benchmark._replace(judge=with_split(benchmark.judge)) for benchmark in benchmarks]


def with_split(judge: Callable) -> Callable:
    """The `judge` of a benchmark, which also notes the split of each problem."""
    return lambda texts, problems: [verdict | {"split": problem.meta["split"]}
                                    for verdict, problem in zip(judge(texts, problems), problems)]


def fits(problems: list[Problem], loaded: LanguageModel, num_ops: int, max_new_tokens: int) -> bool:
    """Whether prompts and careful solutions of this many operations fit in the window and in --max_new_tokens."""
    longest = max(len(loaded.tokenizer.encode(problem.prompt)) for problem in problems)
    return longest + max_new_tokens <= loaded.config.max_seq_len and chains.lengths(num_ops)[1] <= max_new_tokens


def trained_question(example: str, model: str) -> str:
    """The question in --example, or the one in the example.json of the run that it or --model names."""
    if " " in example:
        return example
    directory = pathlib.Path((example or model).partition("@")[0])
    if not (directory / "example.json").is_file():
        raise UserError(f"{directory} has no example.json, which a run of scripts.train with --example=auto writes: "
                        "--example takes such a run, or the problem itself in words")
    return str(files.read_json(directory / "example.json").get("question", ""))


# ----- finding


def find(rows_by_file: dict[str, list[dict]]) -> Result:
    """Accuracy on each kind of twins, of all and of those that are not in pre-training's split, for each file."""
    record = {"files": {name: {kind: summary([row for row in rows if row["benchmark"] == kind])
                               for kind in (EXAMPLE, *KINDS, UNSEEN) if any(row["benchmark"] == kind for row in rows)}
                        for name, rows in rows_by_file.items()}}
    items = items_of(rows_by_file, (*COLUMNS, "correct", "split"))
    return Result(record, format_page(record), lambda sheet: draw_figure(record, sheet), items)


def summary(rows: list[dict]) -> dict:
    fresh = [row for row in rows if row["split"] != "pretrain"]
    return {"problems": len({problem_of(row) for row in rows})} | {
        name: share([row["correct"] for row in part], list(map(problem_of, part)))
        for name, part in (("accuracy", rows), ("not_in_pretraining", fresh))}


def kinds_of(record: dict) -> list[str]:
    return [kind for kind in (EXAMPLE, *KINDS, UNSEEN) if any(kind in kinds for kinds in record["files"].values())]


def format_page(record: dict) -> str:
    rows = [[kind, name, kinds[kind]["problems"],
             *(share_cell(kinds[kind][key]) for key in ("accuracy", "not_in_pretraining"))]
            for kind in kinds_of(record) for name, kinds in record["files"].items() if kind in kinds]
    missing = [kind for kind in KINDS if kind not in kinds_of(record)]
    note = "Accuracy on the trained example, on its twins, and on unseen problems of its family."
    left = f" Left out, for want of such twins or of room in the window: {', '.join(missing)}." if missing else ""
    return note + left + "\n\n" + markdown_table(
        ["what differs", "of", "problems", "accuracy", "of those not in pre-training's split"], rows) + "\n"


def draw_figure(record: dict, sheet) -> None:
    """Accuracy on each kind of twins, with its interval."""
    sheet.set_size_inches(7, 3.6)
    axes, kinds = sheet.subplots(), kinds_of(record)
    for n, (name, by_kind) in enumerate(record["files"].items()):
        draw_shares(axes, [by_kind.get(kind, {}).get("accuracy") for kind in kinds], 0.15 * n, name)
    axes.set(xticks=range(len(kinds)), ylabel="accuracy", ylim=(-0.03, 1.03))
    axes.set_xticklabels(kinds, rotation=25, ha="right", fontsize=8)
    axes.legend(fontsize=7)
