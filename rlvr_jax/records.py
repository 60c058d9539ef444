"""The records that the parts of the program exchange, and settings: frozen dataclasses whose fields become flags.

B completions, P distinct prompts, S prompt positions, T tokens of a completion. Arrays of `Prompts` and `Batch` are
numpy on the host, and JAX arrays on a device.
"""

import dataclasses
import math
import numbers
import operator
import typing
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Optional

import flax.struct
import jax

from rlvr_jax.errors import UserError


# What NumPy draws on the host has a seed of four words, (seed, two counters, one of these): a missing word counts as 0,
# so that (seed, epoch) and (seed, step, 0) would be one stream.
EPOCH_ORDER, MINIBATCH_ORDER, REWARD_DRAWS = range(3)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question, its reference answer, and the exact text that the model continues."""

    question: str
    answer: str
    prompt: str
    meta: dict = dataclasses.field(default_factory=dict)
    copies: int = 1  # how often the file has it; in training each copy is a group


@flax.struct.dataclass
class Prompts:
    """Distinct prompts, right-padded to one width."""

    tokens: jax.Array  # i32[P,S]
    lengths: jax.Array  # i32[P], at least 1


@flax.struct.dataclass
class Rollouts:
    """Completions as sampled. The mask, not a token id, says what belongs to a completion."""

    prompt_index: jax.Array  # i32[B]
    completions: jax.Array  # i32[B,T], 0 after the end
    completion_mask: jax.Array  # bool[B,T], true up to and including the first end-of-text token
    sampler_logprobs: jax.Array  # f32[B,T] nats, under the distribution drawn from (at temperature 0: the model's own)
    ended: jax.Array  # bool[B], false if `max_new_tokens` cut the completion
    noted: Optional[dict] = None  # name -> [B] or [B,T], what hooks of the sampler recorded besides


@flax.struct.dataclass
class Batch:
    """Rows to learn from, on the host as numpy; on a device with a leading axis of micro-batches."""

    prompts: Prompts
    prompt_index: jax.Array  # i32[B] into prompts
    completions: jax.Array  # i32[B,T]
    completion_mask: jax.Array  # bool[B,T], false also on rows that are to have no influence
    advantages: jax.Array  # f32[B] of a completion's every token, or f32[B,T]
    sampler_logprobs: Optional[jax.Array] = None  # f32[B,T], None for data that no sampler drew
    old_logprobs: Optional[jax.Array] = None  # f32[B,T], None when the first update is the only one: the ratio is 1
    ref_logprobs: Optional[jax.Array] = None  # f32[B,T], None where no KL is measured


@flax.struct.dataclass
class LearnerState:
    """Everything training changes."""

    step: jax.Array  # i32[] batches learnt from, each in one or more optimiser updates
    params: dict  # f32; an update changes no bit of those that are not trained
    opt_state: Any  # optax state of the trained parameters alone
    ref_params: Optional[dict]  # the reference of the KL, if it is measured, where a copy is kept


# ----- settings: a record holds fields made by `setting`, and other records; `flat` lists its fields by flag name


def setting(default, help: str, choices: Iterable | Callable = (), free: bool = False, listed: bool = False, **bounds):
    """A field that becomes the flag of the same name.

    Args:
      choices: the texts it may have; or a function that returns a table, name -> function, whose names these are. It is
        called when flags are made, so rows that were added to the table count. `--help` explains each row by the first
        sentence of its docstring.
      free: may change between two starts of one run. Any other change would make it a different run.
      listed: any text that names rows of the table is allowed, such as a weighted sum.
      bounds: of a number, or of each number of a tuple: `minimum` and `maximum` are allowed values, `above` and `below`
        are not.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "free": free,
                                                        "listed": listed, "bounds": bounds})


# Bounds that `setting` takes: how they are written, and what has to hold of (value, bound).
BOUNDS = {"minimum": (">=", operator.ge), "above": (">", operator.gt),
          "maximum": ("<=", operator.le), "below": ("<", operator.lt)}


def number_of(kind) -> Any:
    """int or float, of a setting that is one, may be one, or has several; None for any other."""
    return next((x for x in (kind, *typing.get_args(kind)) if x in (int, float)), None)


def allowed(kind, bounds: Mapping) -> str:
    """Which numbers a setting may be, such as "a whole number >= 1"."""
    limits = " and ".join(f"{BOUNDS[bound][0]} {x}" for bound, x in bounds.items())
    noun = "whole number" if number_of(kind) is int else "finite number"
    return f"{noun}s {limits}, joined by commas" if typing.get_origin(kind) is tuple else f"a {noun} {limits}"


def refusal(kind, meta: Mapping, value) -> str:
    """Why a setting cannot have a value, such as "not a whole number >= 1"; empty if it can."""
    number, several = number_of(kind), typing.get_origin(kind) is tuple
    if number is None:
        table = meta["choices"]() if callable(meta["choices"]) else meta["choices"]
        if type(value) is not kind:
            return "not True or False" if kind is bool else "not a text"
        return "" if meta["listed"] or not table or value in table else f"not one of {', '.join(table)}"
    wanted, bounds = numbers.Integral if number is int else numbers.Real, meta["bounds"]
    right = isinstance(value, tuple) == several and all(
        isinstance(x, wanted) and not isinstance(x, bool) and math.isfinite(x)
        and all(BOUNDS[name][1](x, bound) for name, bound in bounds.items()) for x in (value if several else (value,)))
    return "" if right else "not " + allowed(kind, bounds)


@typing.dataclass_transform(frozen_default=True)
def checked(cls):
    """A record of settings: a frozen dataclass. Making one raises UserError for a value that its flag would refuse.

    A default is not judged, as tables of choices may stand further down in their file.
    """
    def check(record) -> None:
        for field in dataclasses.fields(record):
            value = getattr(record, field.name)
            if "bounds" in field.metadata and value != field.default:
                wrong = refusal(typing.get_type_hints(cls)[field.name], field.metadata, value)
                if wrong:
                    raise UserError(f"{field.name}={value!r}: {wrong}")

    cls.__post_init__ = check
    return dataclasses.dataclass(frozen=True)(cls)


def part(default, **helps: Optional[str]):
    """A field that holds another record, with the defaults of this one and other help texts for the settings named.

    One whose help is None is no flag here: its value is the default, or what the program puts there.
    """
    return dataclasses.field(default=default, metadata=helps)


class Setting(NamedTuple):
    """A leaf of a record of settings."""

    name: str
    kind: Any  # its type
    value: Any
    meta: Mapping  # what `setting` was given


def settings(record) -> list[Setting]:
    """The leaves of a record, or of a class of records with its defaults, those of nested records in their place."""
    record, leaves = record() if isinstance(record, type) else record, []
    hints = typing.get_type_hints(type(record))
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if dataclasses.is_dataclass(value):
            leaves += [leaf._replace(meta=leaf.meta | {"help": field.metadata.get(leaf.name, leaf.meta["help"])})
                       for leaf in settings(value) if field.metadata.get(leaf.name, "") is not None]
        else:
            leaves.append(Setting(field.name, hints[field.name], value, dict(field.metadata)))
    return leaves


def flat(record) -> dict:
    """`{flag name: value}` of a record of settings."""
    return {leaf.name: leaf.value for leaf in settings(record)}


def replace(record, /, **values):
    """The record with other values of its settings, which are named as flags are. TypeError for an unknown name."""
    fields = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if dataclasses.is_dataclass(value):
            inner = {name: values.pop(name) for name in flat(value) if name in values}
            fields |= {field.name: replace(value, **inner)} if inner else {}
        elif field.name in values:
            fields[field.name] = values.pop(field.name)
    if values:
        raise TypeError(f"{type(record).__name__} has no setting {', '.join(values)}")
    return dataclasses.replace(record, **fields)


def build(kind: type, /, **values):
    """A record of that class: `build(TrainConfig, num_steps=10)` is what `--num_steps=10` makes."""
    return replace(kind(), **values)


@checked
class LoopConfig:
    """How long a training is, and what its random choices depend on."""

    seed: int = setting(0, "seed of every random choice; a run is a function of (flags, seed, step)",
                        minimum=0, maximum=2**31 - 1)
    num_steps: int = setting(150, "updates to make", minimum=1, free=True)
