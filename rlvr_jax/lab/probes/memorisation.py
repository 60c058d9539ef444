"""Memorisation: accuracy on near twins of the problem that a run was trained on, by what differs from that problem.

A run that only memorised the problem would fail on its twins; a run that learnt a method would solve them. The problem
is a chain of operations (`tasks/chains.py`). Its twins, of all KINDS, are compared with the problem itself and unseen
problems of its family. Pre-training may have seen a twin (its split has 13 of 16 chains): probe the base model, too.
"""

import functools
import operator
import pathlib
from typing import Callable, NamedTuple, Optional

import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.benchmarks import PROTOCOLS, EvaluateConfig, check_sampling, make_benchmark
from rlvr_jax.evaluation.measure import Benchmark
from rlvr_jax.lab.probes.rows import (
    COLUMNS, Result, draw_shares, estimate_share, format_share, group_rows, make_items, problem_key)
from rlvr_jax.pretrained.language_model import LanguageModel
from rlvr_jax.records import Problem
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.tasks import arithmetic, boolean, chains
from rlvr_jax.tasks.families import FAMILIES
from rlvr_jax.tasks.prompts import ProblemSource, PromptConfig, load_problems

NEEDS = ("prompt", "correct", "benchmark", "split")  # columns that each row must have
ALGEBRAS = {"arithmetic": arithmetic.ALGEBRA, "boolean": boolean.ALGEBRA}  # family -> its values, words and operations
MAX_DRAWS, MAX_TWINS = 4000, 64  # most draws of a kind, most twins of a kind; --max_problems replaces MAX_TWINS


class Chain(NamedTuple):
    """One chain: topic and operators are indices of `Algebra.topics` and `ops`; start and operands are numbers."""

    topic: int
    start: int
    ops: tuple[int, ...]
    operands: tuple[int, ...]


def change_operands(count: int, rng: np.random.Generator, algebra: chains.Algebra, chain: Chain) -> Chain:
    """Replaces `count` random operands, or all if the chain has fewer, by other random operands."""
    operands = list(chain.operands)
    for i in rng.permutation(len(operands))[:count]:
        operands[i] = int(rng.choice([other for other in range(algebra.results.shape[-1]) if other != operands[i]]))
    return chain._replace(operands=tuple(operands))


def change_operator(rng: np.random.Generator, algebra: chains.Algebra, chain: Chain) -> Chain:
    ops = list(chain.ops)
    ops[rng.integers(len(ops))] = int(rng.integers(len(algebra.ops)))
    return chain._replace(ops=tuple(ops))


KINDS: dict[str, Callable] = {  # kind of twins: what differs -> function of (rng, algebra, chain) that draws one
    "other topic": lambda rng, algebra, chain: chain._replace(topic=int(rng.integers(len(algebra.topics)))),
    "one operator": change_operator, "one operand": functools.partial(change_operands, 1),
    "two operands": functools.partial(change_operands, 2), "three operands": functools.partial(change_operands, 3),
    "other start": lambda rng, algebra, chain: chain._replace(start=int(algebra.draw_values(rng, 1)[0])),
    "one step longer": lambda rng, algebra, chain: chain._replace(
        ops=(*chain.ops, int(rng.integers(len(algebra.ops)))),
        operands=(*chain.operands, int(rng.integers(algebra.results.shape[-1]))))}
EXAMPLE, UNSEEN = "the example", "unseen"
ORDER = (EXAMPLE, *KINDS, UNSEEN)  # order of the rows on the page


def draw_twins(kind: str, rng: np.random.Generator, algebra: chains.Algebra, chain: Chain, most: int) -> list[Chain]:
    """Draws at most `most` different twins of the chain, of one of KINDS. Each has a solution and is not the chain."""
    twins: dict[Chain, None] = {}
    for _ in range(MAX_DRAWS):
        twin = KINDS[kind](rng, algebra, chain)
        if twin != chain and solve_chain(algebra, twin):
            twins[twin] = None
        if len(twins) == most:
            break
    return list(twins)


def solve_chain(algebra: chains.Algebra, chain: Chain) -> Optional[list[int]]:
    """Returns the chain's value after each operation; None if an operation is not allowed."""
    values = [chain.start]
    for op, operand in zip(chain.ops, chain.operands):
        values.append(int(algebra.results[values[-1], op, operand]))
        if values[-1] < 0:
            return None
    return values[1:]


def parse_chain(question: str) -> tuple[str, Chain]:
    """Returns (family, chain) for a question such as `coins 7 + 5 * 2 =`. Raises UserError for any other question."""
    words = question.split()  # topic, start, then an operator and an operand for each operation, "="
    for family, algebra in ALGEBRAS.items():
        try:
            start, *operands = (algebra.values.index(word) + algebra.lowest for word in words[1:-1:2])
            chain = Chain(algebra.topics.index(words[0]), start, tuple(map(algebra.ops.index, words[2:-1:2])),
                          tuple(operands))
        except (ValueError, IndexError):
            continue
        is_whole = words[-1] == "=" and len(words) == 3 + 2 * len(chain.ops)
        num_operands = algebra.results.shape[-1]  # results[value, op, operand]: operands are numbers below this
        if is_whole and operands and max(operands) < num_operands and solve_chain(algebra, chain) is not None:
            return family, chain
    raise UserError(f"--probe=memory makes twins of chains of {', '.join(ALGEBRAS)}, such as coins 7 + 5 * 2 =; "
                    f"{question[:80]!r} is no such chain, or has no solution")


def to_problems(algebra: chains.Algebra, twins: list[Chain]) -> list[Problem]:
    """Makes a problem of each of `twins`, which have equally many operations; meta["split"] is the split of a chain."""
    topics, starts, ops, operands = map(np.array, zip(*twins))  # the fields of Chain, of all twins
    results = np.array([solve_chain(algebra, chain) for chain in twins])
    split_of = {residue: name for name, residues in chains.SPLITS.items() for residue in residues}
    problems = chains.to_problems(algebra, chains.Chains(topics, starts, ops, operands, results))
    for problem, residue in zip(problems, chains.residue(starts, ops, operands)):
        problem.meta["split"] = split_of[int(residue)]
    return problems


def make_benchmarks(config: EvaluateConfig, example: str, loaded: LanguageModel) -> list[Benchmark]:
    """Returns benchmarks of the trained problem (`trained_question`), of its twins of each kind, and of unseen ones of
    its family. Leaves out kinds without twins, and "one step longer" if its problems or solutions are too long. Raises
    UserError for --protocol and --cut, which are for benchmarks, and if flags conflict."""
    check_sampling(config)
    if config.protocol in PROTOCOLS or config.cut:
        raise UserError("--probe=memory samples by --num_samples and --temperature: leave out --protocol and --cut")
    kept = config.kept
    family, chain = parse_chain(trained_question(example, kept.choice.model))
    algebra, rng, max_twins = ALGEBRAS[family], np.random.default_rng(kept.seed), kept.max_problems or MAX_TWINS
    chains_by_kind = {EXAMPLE: [chain]} | {kind: draw_twins(kind, rng, algebra, chain, max_twins) for kind in KINDS}
    sets = {kind: to_problems(algebra, its_chains) for kind, its_chains in chains_by_kind.items() if its_chains}
    longer = sets.get("one step longer")
    if longer and not fits_window(longer, loaded, len(chain.ops) + 1, kept.sampling.max_new_tokens):
        del sets["one step longer"]
    source = ProblemSource(family, PromptConfig(num_ops=len(chain.ops)))
    sets[UNSEEN] = load_problems(source, loaded.tokenizer, kept.heldout_split, max_twins)
    for problem in sets[UNSEEN]:
        problem.meta["split"] = kept.heldout_split
    if kept.grading.answer_format == "auto":  # "auto" looks up meta["task"], which twins do not have
        kept = kept.with_flags(answer_format=FAMILIES[family].answer_format)
    return [make_benchmark(kept, loaded, name, problems, config.num_samples, config.temperature)
            ._replace(columns=("split",)) for name, problems in sets.items()]


def fits_window(problems: list[Problem], loaded: LanguageModel, num_ops: int, max_new_tokens: int) -> bool:
    """Whether each prompt plus `max_new_tokens` fits the window, and whether these suffice for `num_ops` operations."""
    longest = max(len(loaded.tokenizer.encode(problem.prompt)) for problem in problems)
    _, solution_length = chains.lengths(num_ops)
    return longest + max_new_tokens <= loaded.config.max_seq_len and solution_length <= max_new_tokens


def trained_question(example: str, model: str) -> str:
    """Returns `example` itself if it has a space, because it is then a question; otherwise the question in example.json
    of the run directory `example` or, if `example` is empty, `model`. Raises UserError if there is no such file."""
    if " " in example:
        return example
    directory = pathlib.Path((example or model).partition("@")[0])
    if not (directory / "example.json").is_file():
        raise UserError(f"{directory} has no example.json, which a run of scripts.train with --example=auto writes: "
                        "--example takes such a run, or the problem itself in words")
    return str(files.read_json(directory / "example.json").get("question", ""))


def probe_memorisation(rows_by_file: dict[str, list[dict]]) -> Result:
    """Computes the accuracy of each file's completions, for each benchmark of ORDER that the file has: over all
    problems, and over those outside pre-training's split. `rows_by_file` is {name of a file: its rows}."""
    record: dict[str, dict] = {"files": {}}
    for name, rows in rows_by_file.items():
        by_kind = group_rows(rows, operator.itemgetter("benchmark"))
        record["files"][name] = {kind: summarise_kind(by_kind[kind]) for kind in ORDER if kind in by_kind}
    kinds = [kind for kind in ORDER if any(kind in by_kind for by_kind in record["files"].values())]
    return Result(record, format_page(record, kinds), draw=lambda sheet: draw_figure(record, kinds, sheet),
                  items=make_items(rows_by_file, (*COLUMNS, "correct", "split")),
                  filters={"correct": "right", "benchmark": "what differs", "split": "split"})


def summarise_kind(rows: list[dict]) -> dict:
    """Returns the number of "problems"; the "accuracy" over all rows, as `estimate_share` gives it; and
    "not_in_pretraining", the accuracy over the rows outside pre-training's split."""
    fresh = [row for row in rows if row["split"] != "pretrain"]
    return {"problems": len({problem_key(row) for row in rows})} | {
        key: estimate_share([row["correct"] for row in counted], list(map(problem_key, counted)))
        for key, counted in (("accuracy", rows), ("not_in_pretraining", fresh))}


def format_page(record: dict, kinds: list[str]) -> str:
    """The Markdown page: the accuracies of each file on each of `kinds`, the benchmarks that at least one file has."""
    rows = [[kind, name, by_kind[kind]["problems"],
             *(format_share(by_kind[kind][key]) for key in ("accuracy", "not_in_pretraining"))]
            for kind in kinds for name, by_kind in record["files"].items() if kind in by_kind]
    missing = [kind for kind in KINDS if kind not in kinds]
    note = "Accuracy on the trained example, on its twins, and on unseen problems of its family."
    left_out = f" Left out, for want of such twins or of room in the window: {', '.join(missing)}." if missing else ""
    return note + left_out + "\n\n" + markdown_table(
        ["what differs", "of", "problems", "accuracy", "of those not in pre-training's split"], rows) + "\n"


def draw_figure(record: dict, kinds: list[str], sheet) -> None:
    """Draws the accuracy of each file, with its 95 % interval, on each of `kinds`, on the matplotlib Figure `sheet`."""
    sheet.set_size_inches(7, 3.6)
    axes = sheet.subplots()
    for n, (name, by_kind) in enumerate(record["files"].items()):
        draw_shares(axes, [by_kind.get(kind, {}).get("accuracy") for kind in kinds], 0.15 * n, name)
    axes.set(xticks=range(len(kinds)), ylabel="accuracy", ylim=(-0.03, 1.03))
    axes.set_xticklabels(kinds, rotation=25, ha="right", fontsize=8)
    axes.legend(fontsize=7)
