"""Configurations: frozen dataclasses whose fields become the flags of a command.

A class derives from `Config` and has fields made by `flag`, and other configurations (`nested`). Its flags are flat:
`TrainConfig.from_flags(num_steps=10)` is what `--num_steps=10` makes, wherever in it that field stands.
"""

import dataclasses
import math
import numbers
import operator
import typing
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Optional

from rlvr_jax.errors import UserError


def flag(default, help: str, choices: Iterable | Callable = (), free: bool = False, listed: bool = False, **bounds):
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


def nested(default, **helps: Optional[str]):
    """A field that holds another configuration, with the defaults of this one and other help texts for the flags named.

    One whose help is None is no flag here: its value is the default, or what the program puts there.
    """
    return dataclasses.field(default=default, metadata=helps)


# Bounds that `flag` takes: how they are written, and what has to hold of (value, bound).
BOUNDS = {"minimum": (">=", operator.ge), "above": (">", operator.gt),
          "maximum": ("<=", operator.le), "below": ("<", operator.lt)}


def number_type(kind) -> Any:
    """int or float, of a flag that is one, may be one, or has several; None for any other."""
    return next((x for x in (kind, *typing.get_args(kind)) if x in (int, float)), None)


def describe_range(kind, bounds: Mapping) -> str:
    """Which numbers a flag may be, such as "a whole number >= 1"."""
    limits = " and ".join(f"{BOUNDS[bound][0]} {x}" for bound, x in bounds.items())
    noun = "whole number" if number_type(kind) is int else "finite number"
    return f"{noun}s {limits}, joined by commas" if typing.get_origin(kind) is tuple else f"a {noun} {limits}"


def refusal(kind, meta: Mapping, value) -> str:
    """Why a flag cannot have a value, such as "not a whole number >= 1"; empty if it can."""
    number, several = number_type(kind), typing.get_origin(kind) is tuple
    if number is None:
        table = meta["choices"]() if callable(meta["choices"]) else meta["choices"]
        if type(value) is not kind:
            return "not True or False" if kind is bool else "not a text"
        return "" if meta["listed"] or not table or value in table else f"not one of {', '.join(table)}"
    wanted, bounds = numbers.Integral if number is int else numbers.Real, meta["bounds"]
    right = isinstance(value, tuple) == several and all(
        isinstance(x, wanted) and not isinstance(x, bool) and math.isfinite(x)
        and all(BOUNDS[name][1](x, bound) for name, bound in bounds.items()) for x in (value if several else (value,)))
    return "" if right else "not " + describe_range(kind, bounds)


class Flag(NamedTuple):
    """A field of a configuration, or of one nested in it, that is a flag."""

    name: str
    kind: Any  # its type
    value: Any
    meta: Mapping  # what `flag` was given


@typing.dataclass_transform(frozen_default=True)
class Config:
    """A frozen dataclass whose fields become flags. Making one raises UserError for a value that its flag would refuse.

    A default is not judged, as tables of choices may stand further down in their file.
    """

    def __init_subclass__(cls):
        dataclasses.dataclass(frozen=True)(cls)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if "bounds" in field.metadata and value != field.default:
                wrong = refusal(typing.get_type_hints(type(self))[field.name], field.metadata, value)
                if wrong:
                    raise UserError(f"{field.name}={value!r}: {wrong}")

    @classmethod
    def from_flags(cls, **values):
        """The defaults with other values of the flags named. TypeError for an unknown name."""
        return cls().with_flags(**values)

    def with_flags(self, /, **values):
        """A copy with other values of the flags named. TypeError for an unknown name."""
        fields = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Config):
                inner = {name: values.pop(name) for name in value.as_flags() if name in values}
                fields |= {field.name: value.with_flags(**inner)} if inner else {}
            elif field.name in values:
                fields[field.name] = values.pop(field.name)
        if values:
            raise TypeError(f"{type(self).__name__} has no flag {', '.join(values)}")
        return dataclasses.replace(self, **fields)

    def as_flags(self) -> dict:
        """`{flag name: value}`."""
        return {one.name: one.value for one in flags_of(self)}


def flags_of(config) -> list[Flag]:
    """The flags of a configuration, or of a class of them with its defaults; those of nested ones in their place."""
    config, leaves = config() if isinstance(config, type) else config, []
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Config):
            leaves += [leaf._replace(meta=leaf.meta | {"help": field.metadata.get(leaf.name, leaf.meta["help"])})
                       for leaf in flags_of(value) if field.metadata.get(leaf.name, "") is not None]
        else:
            leaves.append(Flag(field.name, hints[field.name], value, dict(field.metadata)))
    return leaves
