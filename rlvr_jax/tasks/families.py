"""Families of synthetic problems, each solved in several styles: what `--problems` and `--task_shares` name.

A family is a row of FAMILIES, added from outside as well; what it says, it says in text. N problems, S styles.
"""

import dataclasses
import functools
import math
from typing import Callable, Iterable, Optional

import numpy as np
import tokenizers

from rlvr_jax.errors import UserError
from rlvr_jax.pretrained.tokenizer import Tokenizer
from rlvr_jax.records import Problem
from rlvr_jax.runs.flags import parse_weights
from rlvr_jax.tasks import arithmetic, boolean, chains, wager, worlds


@dataclasses.dataclass(frozen=True)
class Family:
    """`generate` draws problems in whatever form the three functions after it read."""

    vocabulary: tuple[str, ...]  # its tokens: words, one space apart, "<pad>", "<eos>" first; "##7" continues a word
    styles: dict[str, str]  # a solution's first word -> its style; the first style is the careful one
    lengths: Callable[[int], tuple[int, int]]  # num_ops -> most tokens of a prompt, and of a solution with its <eos>
    generate: Callable  # (rng, N, split, num_ops) -> drawn; splits pretrain, example, dev and test share no problem
    to_problems: Callable[..., list[Problem]]  # drawn -> N problems; meta["index"] tells them apart
    solve: Callable[..., list[str]]  # (rng, drawn, styles i[N], StyleConfig) -> N solutions
    habits: Callable  # (StyleConfig, seed, num_ops) -> function of drawn: f[N,S], chance of each style, 1 in each row
    answer_format: str = "answer"  # row of grading.extract.EXTRACTORS
    shares: tuple[float, ...] = (0.28, 0.27, 0.2, 0.25)  # of solutions in each style; --style_shares gives others

    def habits_of(self, config: chains.StyleConfig, seed: int, num_ops: int) -> Callable:
        """`habits`, with the family's own shares where the configuration has none."""
        shares = config.style_shares or self.shares
        return self.habits(dataclasses.replace(config, style_shares=shares), seed, num_ops)


def chain_family(algebra: chains.Algebra) -> Family:
    """The family of chains with this algebra."""
    bind = lambda function: functools.partial(function, algebra)
    return Family(algebra.vocabulary, chains.STYLES, chains.lengths, bind(chains.generate), bind(chains.to_problems),
                  bind(chains.solve),
                  lambda *config: functools.partial(chains.style_probabilities, chains.make_habits(algebra, *config)))


FAMILIES: dict[str, Family] = {
    "arithmetic": chain_family(arithmetic.ALGEBRA), "boolean": chain_family(boolean.ALGEBRA),
    "arithmetic_digits": dataclasses.replace(chain_family(arithmetic.DIGITS), lengths=arithmetic.digits_lengths),
    "wager": dataclasses.replace(
        chain_family(wager.ALGEBRA), lengths=wager.lengths, generate=wager.generate, solve=wager.solve)}

S1 = dataclasses.replace(chain_family(worlds.ALGEBRA), lengths=worlds.lengths, styles=worlds.STYLES, shares=(0.28, 0.72),
                         solve=worlds.solve_marked)
STEPS = dataclasses.replace(S1, styles={chains.OPENERS[0]: "steps"}, shares=(1.0,))
FAMILIES |= {
    "s1": S1, "s2": dataclasses.replace(STEPS, solve=worlds.solve_s2),
    "s3": dataclasses.replace(S1, styles=worlds.STYLES_S3, shares=(0.2, 0.4, 0.4)),
    "c": dataclasses.replace(STEPS, generate=worlds.generate_c, solve=worlds.solve_c),
    "t": dataclasses.replace(STEPS, generate=worlds.generate_t, solve=worlds.solve_t),
    "n": dataclasses.replace(S1, shares=(1e-9, 1))}


def draw_problems(name: str, rng: np.random.Generator, count: int, split: str, num_ops: int) -> list[Problem]:
    """`count` random problems of a split; their meta["task"] is the family's name. UserError for a family's fault."""
    family = FAMILIES[name]
    problems = family.to_problems(family.generate(rng, count, split, num_ops))
    if wrong := find_fault(name, num_ops, problems, count):
        raise UserError(f"family {name}: {wrong}")
    return [dataclasses.replace(problem, meta=problem.meta | {"task": name}) for problem in problems]


def refuse_faulty_solutions(name: str, config: chains.StyleConfig, num_ops: int, habits: Callable) -> None:
    """Raises UserError where the solutions of 64 problems, in every style, or the chances of these show a fault."""
    family, count = FAMILIES[name], 64
    drawn = family.generate(np.random.default_rng(0), count, "pretrain", num_ops)
    solutions = family.solve(np.random.default_rng(0), drawn, np.arange(count) % len(family.styles), config)
    if wrong := find_fault(name, num_ops, family.to_problems(drawn), count, solutions, np.asarray(habits(drawn))):
        raise UserError(f"family {name}: {wrong}")


def find_fault(name: str, num_ops: int, problems: list[Problem], count: int, solutions: Optional[list[str]] = None,
          chances: Optional[np.ndarray] = None) -> str:
    """What is wrong with a family, as `count` of its problems show it; empty if nothing is. `solutions` of these
    problems and `chances`, f[count,S] of their styles, are judged where it is pre-trained on."""
    family = FAMILIES[name]
    if tuple(family.vocabulary[:2]) != ("<pad>", "<eos>") or len(set(family.vocabulary)) < len(family.vocabulary):
        return 'its vocabulary has to begin with "<pad>", "<eos>", and to have each word once'
    if not family.styles:
        return "it has no styles: give each its opening word, the careful style first"
    for what, made in (("to_problems", problems), ("solve", solutions)):
        if made is not None and len(made) != count:
            return f"{what} gave {len(made)} where {count} problems were asked for; generate has to draw as many"
    if len({problem.meta.get("index") for problem in problems} - {None}) < count:
        return 'to_problems has to give each problem a meta["index"] of its own'
    words = make_tokenizer([name])
    longest = family.lengths(num_ops)
    for what, texts, most in (("prompt", [problem.prompt for problem in problems], longest[0]),
                              ("solution", [f"{text} <eos>" for text in solutions or ()], longest[1])):
        for text in texts:
            if unknown := words.lacks(text.split()):
                return f"{unknown[0]!r}, in the {what} {text!r}, is not in its vocabulary"
            if (length := len(words.encode(text))) > most:
                return f"the {what} {text!r} has {length} tokens, and lengths({num_ops}) allows {most}"
    if chances is not None and (chances.shape != (count, len(family.styles)) or not (chances >= 0).all()
                                or not np.allclose(chances.sum(-1), 1)):
        return (f"habits has to give {count} x {len(family.styles)} chances, of which each row sums to 1; it gave "
                + (f"the shape {chances.shape}" if chances.ndim != 2 or chances.shape[1] != len(family.styles) else
                   f"a row with the sum {chances.sum(-1)[0]:.4g}"))
    return ""


def family_of(problem: Problem) -> Optional[Family]:
    """The family that a problem is of; None for one from a file."""
    return FAMILIES.get(problem.meta.get("task"))


def style_of(problem: Problem, completion: str) -> Optional[str]:
    """The style a completion of the problem opens with; None for any other, and for problems from a file."""
    family = family_of(problem)
    return family and family.styles.get(completion.split(" ", 1)[0])


def is_careless(problem: Problem, completion: str) -> bool:
    """Whether it has a style that is right by luck alone: any of the family's but the first."""
    style = style_of(problem, completion)
    return style is not None and style != next(iter(family_of(problem).styles.values()))


def parse_shares(text: str) -> dict[str, float]:
    """`"arithmetic:0.5,boolean:0.5"` as shares by name, which sum to 1; a name alone has share 1. Raises UserError for
    an unknown or repeated name, and for shares that are not above 0 or do not sum to 1."""
    pairs = parse_weights("task_shares", text, FAMILIES)
    shares = dict(pairs)
    if len(shares) < len(pairs) or min(shares.values()) <= 0 or not math.isclose(sum(shares.values()), 1, abs_tol=1e-3):
        raise UserError(f"--task_shares={text}: give each family once, with shares above 0 that sum to 1 (they sum to "
                        f"{sum(shares.values()):g})")
    return shares


def divide(shares: dict[str, float], total: int) -> dict[str, int]:
    """`total` things by the shares, rounded; families that get none are left out."""
    ends = np.round(np.cumsum(list(shares.values())) / sum(shares.values()) * total).astype(int)
    return {name: int(count) for name, count in zip(shares, np.diff(ends, prepend=0)) if count}


def make_tokenizer(names: Iterable[str]) -> Tokenizer:
    """The families' words, each once and in their order, as one tokenizer; a word that is none of them is put together
    of one and the pieces that continue it, where a family has such pieces."""
    words = dict.fromkeys(word for name in names for word in FAMILIES[name].vocabulary)
    ids, pieces = {word: i for i, word in enumerate(words)}, any(word.startswith("##") for word in words)
    kind = tokenizers.models.WordPiece if pieces else tokenizers.models.WordLevel
    backend = tokenizers.Tokenizer(kind(ids, unk_token="<pad>"))
    if pieces:
        backend.decoder = tokenizers.decoders.WordPiece(cleanup=False)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<pad>", "<eos>"])
    return Tokenizer(backend, (ids["<eos>"],), ids["<pad>"], None, {"eos_token": "<eos>", "pad_token": "<pad>"})
