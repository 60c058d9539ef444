"""Memory against method: accuracy on near twins of the problem that a run was trained on, by how far they are from it.

Twins of a chain (`tasks/chains.py`) are drawn by KINDS. Beside them stand the example itself and unseen problems of
its family. Pre-training may have met a twin, since 13 of 16 chains are in its split: ask the base of the run, too.
"""

import functools
import pathlib
from typing import Callable, NamedTuple, Optional

import numpy as np

from rlvr_jax.config import ProbeConfig
from rlvr_jax.errors import UserError
from rlvr_jax.evaluation.completions import Asked
from rlvr_jax.evaluation.measure import by_answer
from rlvr_jax.pretrained import loading
from rlvr_jax.probes.rows import Found, owner, said, share
from rlvr_jax.runs import files
from rlvr_jax.runs.markdown import markdown_table
from rlvr_jax.tasks import arithmetic, boolean, chains
from rlvr_jax.tasks.chains import Rules
from rlvr_jax.tasks.families import FAMILIES
from rlvr_jax.tasks.problems import Problem
from rlvr_jax.tasks.prompts import encode_prompts, load_problems

NEEDS = ("prompt", "correct", "benchmark", "split")
RULES = {"arithmetic": arithmetic.RULES, "boolean": boolean.RULES}
TRIES, MOST = 4000, 64  # draws for the twins of one kind, and twins that are kept where --max_problems does not say


class Chain(NamedTuple):
    """One problem. Operators by their place in the rules, operands and start by their numbers."""

    topic: int
    start: int
    ops: tuple[int, ...]
    operands: tuple[int, ...]


# ----- twins


def other_topic(rng: np.random.Generator, rules: Rules, chain: Chain) -> Chain:
    """The same chain about something else: the words differ, the solution does not."""
    return chain._replace(topic=int(rng.integers(len(rules.topics))))


def other_start(rng: np.random.Generator, rules: Rules, chain: Chain) -> Chain:
    return chain._replace(start=int(rules.draw_values(rng, 1)[0]))


def other_operands(count: int, rng: np.random.Generator, rules: Rules, chain: Chain) -> Chain:
    """`count` operands may be others; all, where the chain has fewer."""
    operands = list(chain.operands)
    for place in rng.permutation(len(operands))[:count]:
        choices = [b for b in range(rules.results.shape[-1]) if b != operands[place]]
        operands[place] = int(rng.choice(choices))
    return chain._replace(operands=tuple(operands))


def other_operator(rng: np.random.Generator, rules: Rules, chain: Chain) -> Chain:
    ops = list(chain.ops)
    ops[rng.integers(len(ops))] = int(rng.integers(len(rules.ops)))
    return chain._replace(ops=tuple(ops))


def one_step_longer(rng: np.random.Generator, rules: Rules, chain: Chain) -> Chain:
    return chain._replace(ops=(*chain.ops, int(rng.integers(len(rules.ops)))),
                          operands=(*chain.operands, int(rng.integers(rules.results.shape[-1]))))


KINDS: dict[str, Callable] = {
    "other topic": other_topic, "one operator": other_operator, "one operand": functools.partial(other_operands, 1),
    "two operands": functools.partial(other_operands, 2), "three operands": functools.partial(other_operands, 3),
    "other start": other_start, "one step longer": one_step_longer}
EXAMPLE, UNSEEN = "the example", "unseen"


def twins(kind: str, rng: np.random.Generator, rules: Rules, chain: Chain, most: int) -> list[Chain]:
    """At most `most` different twins of a kind, all of which can be solved; the chain is not among them."""
    made: dict[Chain, None] = {}
    for _ in range(TRIES):
        twin = KINDS[kind](rng, rules, chain)
        if twin != chain and solved(rules, twin):
            made[twin] = None
        if len(made) == most:
            break
    return list(made)


def solved(rules: Rules, chain: Chain) -> Optional[list[int]]:
    """The value after each operation; None where one is not allowed."""
    values = [chain.start]
    for op, operand in zip(chain.ops, chain.operands):
        values.append(int(rules.results[values[-1], op, operand]))
        if values[-1] < 0:
            return None
    return values[1:]


def parse(question: str) -> tuple[str, Chain]:
    """(family, chain) of a question such as `coins 7 + 5 * 2 =`. Raises UserError for any other."""
    words = question.split()
    for family, rules in RULES.items():
        try:
            operands = (rules.values.index(word) + rules.lowest for word in words[1:-1:2])
            chain = Chain(rules.topics.index(words[0]), next(operands), tuple(map(rules.ops.index, words[2:-1:2])),
                          tuple(operands))
        except (ValueError, IndexError, StopIteration):
            continue
        if words[-1] == "=" and len(words) == 2 * len(chain.ops) + 3 > 3 and solvable(rules, chain):
            return family, chain
    raise UserError(f"--probe=memory makes twins of chains of {', '.join(RULES)}; {question[:80]!r} is none that has a "
                    "solution")


def solvable(rules: Rules, chain: Chain) -> bool:
    return max(chain.operands) < rules.results.shape[-1] and solved(rules, chain) is not None


def to_problems(rules: Rules, made: list[Chain]) -> list[Problem]:
    """Chains of one length as problems; meta["split"] is the one that a chain is in."""
    drawn = chains.Chains(*(np.array(column) for column in zip(*made)), np.array([solved(rules, one) for one in made]))
    split_of = {number: name for name, numbers in chains.SPLITS.items() for number in numbers}
    problems = chains.to_problems(rules, drawn)
    for problem, number in zip(problems, chains.residue(drawn.starts, drawn.ops, drawn.operands)):
        problem.meta["split"] = split_of[int(number)]
    return problems


# ----- asking


def ask(config: ProbeConfig, loaded: loading.LanguageModel) -> list[Asked]:
    """The example, its twins of each kind, and unseen problems. Twins that are longer than the window are left out."""
    family, chain = parse(trained_question(config))
    rules, rng, most = RULES[family], np.random.default_rng(config.seed), config.max_problems or MOST
    sets = {EXAMPLE: to_problems(rules, [chain])}
    for kind in KINDS:
        made = twins(kind, rng, rules, chain, most)
        sets |= {kind: to_problems(rules, made)} if made else {}
    unseen = load_problems(family, loaded.tokenizer, count=most, split=config.heldout_split, num_ops=len(chain.ops))
    for problem in unseen:
        problem.meta["split"] = config.heldout_split
    own = FAMILIES[family].answer_format  # twins are made here, and so know no family
    answer = by_answer(own if config.answer_format == "auto" else config.answer_format, config.grader)

    def judge(texts: list[str], problems: list[Problem]) -> list[dict]:
        return [verdict | {"split": problem.meta["split"]}
                for verdict, problem in zip(answer(texts, problems), problems)]

    return [Asked(name, problems, encode_prompts(loaded.tokenizer, problems, loaded.config, config.max_new_tokens),
                  config.num_samples, config.temperature, judge)
            for name, problems in (sets | {UNSEEN: unseen}).items()
            if name != "one step longer" or fits(config, loaded, problems, len(chain.ops) + 1)]


def fits(config: ProbeConfig, loaded: loading.LanguageModel, problems: list[Problem], num_ops: int) -> bool:
    """Whether prompts and careful solutions of this many operations fit in the window and in --max_new_tokens."""
    longest = max(len(loaded.tokenizer.encode(problem.prompt)) for problem in problems)
    return (longest + config.max_new_tokens <= loaded.config.max_seq_len
            and chains.lengths(num_ops)[1] <= config.max_new_tokens)


def trained_question(config: ProbeConfig) -> str:
    """The question in --example, or the one in the example.json of the run that it or --model names."""
    if " " in config.example:
        return config.example
    directory = pathlib.Path((config.example or config.model).partition("@")[0])
    if not (directory / "example.json").is_file():
        raise UserError(f"{directory} has no example.json, which a run of scripts.train with --example=auto writes: "
                        "--example takes such a run, or the problem itself in words")
    return str(files.read_json(directory / "example.json").get("question", ""))


# ----- finding


def find(kept: dict[str, list[dict]]) -> Found:
    """Accuracy on each kind of twins, of all and of those that are not in pre-training's split, for each file."""
    record = {"files": {name: {kind: summary([row for row in rows if row["benchmark"] == kind])
                               for kind in (EXAMPLE, *KINDS, UNSEEN) if any(row["benchmark"] == kind for row in rows)}
                        for name, rows in kept.items()}}
    keys = ("benchmark", "problem", "sample", "prompt", "answer", "completion", "correct", "split")
    items = [{"file": name} | {key: row[key] for key in keys if key in row} for name, rows in kept.items()
             for row in rows]
    return Found(record, page(record), lambda sheet: draw(record, sheet), items)


def summary(rows: list[dict]) -> dict:
    fresh = [row for row in rows if row["split"] != "pretrain"]
    return {"problems": len({owner(row) for row in rows})} | {
        name: share([row["correct"] for row in own], list(map(owner, own)))
        for name, own in (("accuracy", rows), ("not_in_pretraining", fresh))}


def kinds_of(record: dict) -> list[str]:
    return [kind for kind in (EXAMPLE, *KINDS, UNSEEN) if any(kind in one for one in record["files"].values())]


def page(record: dict) -> str:
    rows = [[kind, name, one[kind]["problems"], said(one[kind]["accuracy"]), said(one[kind]["not_in_pretraining"])]
            for kind in kinds_of(record) for name, one in record["files"].items() if kind in one]
    missing = [kind for kind in KINDS if kind not in kinds_of(record)]
    note = "Accuracy on the trained example, on its twins, and on unseen problems of its family."
    left = f" Left out, for want of such twins or of room in the window: {', '.join(missing)}." if missing else ""
    return note + left + "\n\n" + markdown_table(
        ["what differs", "of", "problems", "accuracy", "of those not in pre-training's split"], rows) + "\n"


def draw(record: dict, sheet) -> None:
    """Accuracy on each kind, the nearest twins on the left."""
    sheet.set_size_inches(7, 3.6)
    axes, kinds = sheet.subplots(), kinds_of(record)
    for n, (name, one) in enumerate(record["files"].items()):
        there = [(x, one[kind]["accuracy"]) for x, kind in enumerate(kinds) if kind in one]
        values = np.array([found["value"] for _, found in there])
        ends = np.array([found["interval"] for _, found in there]).T
        axes.errorbar([x + 0.15 * n for x, _ in there], values, np.maximum([values - ends[0], ends[1] - values], 0),
                      fmt="o", capsize=3, label=name)
    axes.set(xticks=range(len(kinds)), ylabel="accuracy", ylim=(-0.03, 1.03))
    axes.set_xticklabels(kinds, rotation=25, ha="right", fontsize=8)
    axes.legend(fontsize=7)
