"""Configurations: frozen dataclasses whose fields become the flags of a command.

A class derives from `Config`; its fields are made by `flag`, or hold other configurations (`nested`). Flags are flat:
`TrainConfig.from_flags(num_steps=10)` is what `--num_steps=10` makes, however deeply that field is nested.
"""

import dataclasses
import math
import numbers
import operator
import typing
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Optional

from rlvr_jax.errors import UserError

# Bounds that `flag` takes: how they are written, and the comparison of (value, bound) that must hold.
BOUNDS = {"minimum": (">=", operator.ge), "above": (">", operator.gt),
          "maximum": ("<=", operator.le), "below": ("<", operator.lt)}


def flag(default, help: str, choices: Iterable | Callable = (), free: bool = False, listed: bool = False, **bounds):
    """A field that becomes the flag of the same name.

    `choices` are the texts it may have, or a function that returns a table, name -> function, of which it may name a
    row; `--help` explains each row by the first sentence of its docstring. If `listed`, any text that names rows is
    allowed, such as a weighted sum. `bounds` are `BOUNDS` of a number, or of each number of a tuple. A `free` flag may
    change when a run is resumed; changing any other would make it a different run.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "free": free,
                                                        "listed": listed, "bounds": bounds})


def nested(default, **helps: Optional[str]):
    """A field that holds another configuration, by default this one. `helps` replace help texts of its flags; one whose
    help is None is no flag here: the program sets it, or it keeps its default."""
    return dataclasses.field(default=default, metadata=helps)


def number_type(kind) -> Any:
    """int or float, if a flag of this type is a number, may be one or has several; None for any other."""
    return next((x for x in (kind, *typing.get_args(kind)) if x in (int, float)), None)


def describe_range(kind, bounds: Mapping) -> str:
    """Which numbers a flag may be, such as "a whole number >= 1"."""
    limits = " and ".join(f"{BOUNDS[bound][0]} {x}" for bound, x in bounds.items())
    noun = "whole number" if number_type(kind) is int else "finite number"
    return f"{noun}s {limits}, joined by commas" if typing.get_origin(kind) is tuple else f"a {noun} {limits}"


def refusal(kind, meta: Mapping, value) -> str:
    """Why a flag cannot have a value, such as "not a whole number >= 1"; empty if it can."""
    number, several, bounds = number_type(kind), typing.get_origin(kind) is tuple, meta["bounds"]
    if number is None and type(value) is not kind:
        return "not True or False" if kind is bool else "not a text"
    if number is None:
        table = meta["choices"]() if callable(meta["choices"]) else meta["choices"]
        return "" if meta["listed"] or not table or value in table else f"not one of {', '.join(table)}"
    right = isinstance(value, tuple) == several and all(
        isinstance(x, numbers.Integral if number is int else numbers.Real) and not isinstance(x, bool)
        and math.isfinite(x) and all(BOUNDS[name][1](x, bound) for name, bound in bounds.items())
        for x in (value if several else (value,)))
    return "" if right else "not " + describe_range(kind, bounds)


class Flag(NamedTuple):
    """A flag of a configuration or of one nested in it."""

    name: str
    kind: Any  # its type
    value: Any
    meta: Mapping  # the arguments of `flag`


@typing.dataclass_transform(frozen_default=True)
class Config:
    """A frozen dataclass whose fields become flags. Making one raises UserError for a value that its flag refuses;
    defaults are not checked, since a table of choices may be defined after the class."""

    def __init_subclass__(cls):
        dataclasses.dataclass(frozen=True)(cls)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, meta = getattr(self, field.name), field.metadata
            if "bounds" in meta and value != field.default and (reason := refusal(field.type, meta, value)):
                raise UserError(f"{field.name}={value!r}: {reason}")

    @classmethod
    def from_flags(cls, **values):
        """The defaults, with these values of flags. TypeError for an unknown name."""
        return cls().with_flags(**values)

    def with_flags(self, /, **values):
        """A copy with these values of flags. TypeError for an unknown name."""
        fields = {}
        for name, value in vars(self).items():
            if isinstance(value, Config):
                fields[name] = value.with_flags(**{key: values.pop(key) for key in value.as_flags() if key in values})
            elif name in values:
                fields[name] = values.pop(name)
        if values:
            raise TypeError(f"{type(self).__name__} has no flag {', '.join(values)}")
        return dataclasses.replace(self, **fields)

    def as_flags(self) -> dict:
        return {leaf.name: leaf.value for leaf in flags_of(self)}


def flags_of(config) -> list[Flag]:
    """The flags of a configuration, or of a class with its defaults; those of nested ones are in their places."""
    config, leaves = config() if isinstance(config, type) else config, []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Config):
            leaves += [leaf._replace(meta=leaf.meta | {"help": field.metadata.get(leaf.name, leaf.meta["help"])})
                       for leaf in flags_of(value) if field.metadata.get(leaf.name, "") is not None]
        else:
            leaves.append(Flag(field.name, field.type, value, dict(field.metadata)))
    return leaves
