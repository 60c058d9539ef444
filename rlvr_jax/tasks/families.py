"""Families of synthetic problems, each solved in several styles. `--problems` and `--task_shares` take their names.

A family is a row of FAMILIES; other modules can add rows. Problems and solutions are text. Axes: N problems, S styles.
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
    """How a family draws and solves problems. In the comments, `drawn` is what `generate` returns: any type will do."""

    vocabulary: tuple[str, ...]  # tokens, "<pad>" and "<eos>" first: words, and pieces such as "##7" that continue one
    styles: dict[str, str]  # first word of a solution -> style; the first style is the careful one
    lengths: Callable[[int], tuple[int, int]]  # num_ops -> (most tokens of a prompt, and of a solution with <eos>)
    generate: Callable  # (rng, N, split, num_ops) -> drawn; splits pretrain, example, dev and test share no problem
    to_problems: Callable[..., list[Problem]]  # drawn -> N problems, each with its own meta["index"]
    solve: Callable[..., list[str]]  # (rng, drawn, styles i[N], StyleConfig) -> N solutions
    habits: Callable  # (StyleConfig, seed, num_ops) -> function from drawn to f[N,S], probabilities of the styles
    answer_format: str = "answer"  # row of grading.extract.EXTRACTORS
    shares: tuple[float, ...] = (0.28, 0.27, 0.2, 0.25)  # of the styles, unless --style_shares is set

    def habits_of(self, config: chains.StyleConfig, seed: int, num_ops: int) -> Callable:
        """Returns what `habits` returns for `config`, with the family's `shares` if `config.style_shares` is empty."""
        shares = config.style_shares or self.shares
        return self.habits(dataclasses.replace(config, style_shares=shares), seed, num_ops)


def chain_family(algebra: chains.Algebra, draw: Callable = chains.draw_chains, **fields) -> Family:
    """Returns a family of chains (`chains.py`) over `algebra`, drawn by `draw`. `fields` replace fields of `Family`."""
    bind = lambda function, **keywords: functools.partial(function, algebra, **keywords)
    family = Family(algebra.vocabulary, chains.STYLES, chains.lengths, bind(chains.generate, draw=draw),
                    bind(chains.to_problems), bind(chains.solve), bind(chains.make_habits))
    return dataclasses.replace(family, **fields)


def world(**fields) -> Family:
    """Returns the family s1 of `worlds.py`, changed by `fields`, which are keyword arguments of `chain_family`."""
    return chain_family(worlds.ALGEBRA, **{
        "lengths": functools.partial(chains.lengths, value_tokens=worlds.VALUE_TOKENS), "styles": worlds.STYLES,
        "solve": worlds.solve_marked, "shares": (0.28, 0.72)} | fields)


def at_level(kind: str, level: int) -> Family:
    """Returns the family `kind`, s1, s2 or t, with the problems of t, at a level of `worlds.LEVELS`."""
    share, careful, digits = worlds.LEVELS[level]
    fields = {"s1": {"shares": (share, 1 - share)},
              "s2": STEPS | {"solve": functools.partial(worlds.solve_s2, careful=careful)},
              "t": STEPS | {"solve": functools.partial(worlds.solve_t, digits=digits)}}
    return world(draw=worlds.draw_t, **fields[kind])


STEPS = {"styles": {chains.OPENERS[0]: "steps"}, "shares": (1.0,)}  # fields of a family with a single style
FAMILIES: dict[str, Family] = {
    "arithmetic": chain_family(arithmetic.ALGEBRA), "boolean": chain_family(boolean.ALGEBRA),
    "arithmetic_digits": chain_family(arithmetic.DIGITS, lengths=functools.partial(chains.lengths, value_tokens=2)),
    "wager": chain_family(wager.ALGEBRA, wager.draw_chains, lengths=functools.partial(chains.lengths, ending=2),
                          solve=wager.solve),
    "s1": world(), "s2": world(**STEPS, solve=worlds.solve_s2),
    "s3": world(styles=worlds.STYLES_S3, shares=(0.2, 0.4, 0.4)),
    "c": world(**STEPS, draw=worlds.draw_c, solve=worlds.solve_c),
    "t": world(**STEPS, draw=worlds.draw_t, solve=worlds.solve_t),
    "n": world(shares=(1e-9, 1)),
    "s1_9": at_level("s1", 9), "s2_9": at_level("s2", 9), "t_9": at_level("t", 9),
    "s1_15": at_level("s1", 15), "s2_15": at_level("s2", 15), "t_15": at_level("t", 15),
    "s1_23": at_level("s1", 23), "s2_23": at_level("s2", 23), "t_23": at_level("t", 23)}


def draw_problems(name: str, rng: np.random.Generator, count: int, split: str, num_ops: int) -> list[Problem]:
    """Returns `count` random problems of the family `name` (in meta["task"]). UserError for a faulty family."""
    family, fault = FAMILIES[name], ""
    problems = family.to_problems(family.generate(rng, count, split, num_ops))
    if tuple(family.vocabulary[:2]) != ("<pad>", "<eos>") or len(set(family.vocabulary)) < len(family.vocabulary):
        fault = 'its vocabulary has to start with "<pad>", "<eos>", and to have each word once'
    elif not family.styles:
        fault = "it has no styles: map opening words to styles, the careful one first"
    elif len(problems) != count:
        fault = f"to_problems returned {len(problems)} instead of {count}; generate has to draw that many problems"
    elif len({problem.meta.get("index") for problem in problems} - {None}) < count:
        fault = 'to_problems has to give each problem its own meta["index"]'
    if fault:
        raise UserError(f"family {name}: {fault}")
    check_texts(name, num_ops, "prompt", [problem.prompt for problem in problems], family.lengths(num_ops)[0])
    return [dataclasses.replace(problem, meta=problem.meta | {"task": name}) for problem in problems]


def check_texts(name: str, num_ops: int, what: str, texts: list[str], longest: int) -> None:
    """Raises UserError if one of `texts` has a word outside the vocabulary of the family `name`, or more than `longest`
    tokens. For the message, `what` is "prompt" or "solution", and `num_ops` the number of operations."""
    tokenizer = make_tokenizer([name])
    for text in texts:
        if unknown := tokenizer.unknown_words(text.split()):
            raise UserError(f"family {name}: {unknown[0]!r}, in the {what} {text!r}, is not in its vocabulary")
        if (length := len(tokenizer.encode(text))) > longest:
            raise UserError(f"family {name}: the {what} {text!r} has {length} tokens, and lengths({num_ops}) allows "
                            f"{longest}")


def check_solutions(name: str, config: chains.StyleConfig, num_ops: int, habits: Callable) -> None:
    """Raises UserError if `solve` does not write solutions to 64 problems in the family's words and within its lengths,
    or if `habits`, a function that `habits_of` returned, does not return probabilities f[64,S] for them."""
    family, count = FAMILIES[name], 64
    drawn = family.generate(np.random.default_rng(0), count, "pretrain", num_ops)
    solutions = family.solve(np.random.default_rng(0), drawn, np.arange(count) % len(family.styles), config)
    if len(solutions) != count:
        raise UserError(f"family {name}: solve returned {len(solutions)} solutions to {count} problems")
    check_texts(name, num_ops, "solution", [f"{text} <eos>" for text in solutions], family.lengths(num_ops)[1])
    chances, shape = np.asarray(habits(drawn)), (count, len(family.styles))
    if chances.shape != shape or not (chances >= 0).all() or not np.allclose(chances.sum(-1), 1):
        raise UserError(f"family {name}: habits has to return chances of shape {shape}, whose rows sum to 1; it "
                        f"returned the shape {chances.shape} and a first row that sums to {np.sum(chances[:1]):.4g}")


def family_of(problem: Problem) -> Optional[Family]:
    """The family that a problem was drawn from; None for a problem from another source."""
    return FAMILIES.get(problem.meta.get("task"))


def style_of(problem: Problem, completion: str) -> Optional[str]:
    """The style of the problem's family that opens with the completion's first word; None without family or style."""
    family = family_of(problem)
    return None if family is None else family.styles.get(completion.split(" ", 1)[0])


def is_careless(problem: Problem, completion: str) -> bool:
    """Whether a completion is in a style other than the family's careful one, so that a right answer counts as luck."""
    style = style_of(problem, completion)
    return style is not None and style != list(family_of(problem).styles.values())[0]  # the first is the careful one


def parse_shares(text: str) -> dict[str, float]:
    """Parses `"arithmetic:0.5,boolean:0.5"` into {name: share}; a name alone has share 1. Raises UserError for an
    unknown or repeated name, for a share that is not positive, and for shares that do not sum to 1."""
    pairs = parse_weights("task_shares", text, FAMILIES)  # [(name, share), ...]
    shares = dict(pairs)
    if len(shares) < len(pairs) or min(shares.values()) <= 0 or not math.isclose(sum(shares.values()), 1, abs_tol=1e-3):
        raise UserError(f"--task_shares={text}: give each family once, with shares above 0 that sum to 1 (they sum to "
                        f"{sum(shares.values()):g})")
    return shares


def divide(shares: dict[str, float], total: int) -> dict[str, int]:
    """Splits `total` into {name: count}, in proportion to the shares, rounded. Names with a count of 0 are left out."""
    ends = np.round(np.cumsum(list(shares.values())) / sum(shares.values()) * total).astype(int)
    return {name: int(count) for name, count in zip(shares, np.diff(ends, prepend=0)) if count}


def make_tokenizer(names: Iterable[str]) -> Tokenizer:
    """Returns one tokenizer for all named families. Its vocabulary is theirs, in order of first appearance. If it has
    pieces such as "##7", a word may be a token followed by pieces; otherwise each word is one token."""
    words = dict.fromkeys(word for name in names for word in FAMILIES[name].vocabulary)
    ids, has_pieces = {word: i for i, word in enumerate(words)}, any(word.startswith("##") for word in words)
    kind = tokenizers.models.WordPiece if has_pieces else tokenizers.models.WordLevel
    backend = tokenizers.Tokenizer(kind(ids, unk_token="<pad>"))
    if has_pieces:
        backend.decoder = tokenizers.decoders.WordPiece(cleanup=False)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<pad>", "<eos>"])
    return Tokenizer(backend, (ids["<eos>"],), ids["<pad>"], None, {"eos_token": "<eos>", "pad_token": "<pad>"})
