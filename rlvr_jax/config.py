"""Configurations: frozen dataclasses whose fields become the flags of a command.

A configuration class derives from `Config`. Each field is a flag (`flag`) or another configuration (`nested`). Flags
are named without the nesting: `TrainConfig.from_flags(num_steps=10)` is the configuration of `--num_steps=10`.
"""

import dataclasses
import math
import numbers
import operator
import typing
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Optional

from rlvr_jax.errors import UserError

# Keyword of `flag` -> (sign of the bound in help texts, comparison that must hold for (value, bound)).
BOUNDS = {"minimum": (">=", operator.ge), "above": (">", operator.gt),
          "maximum": ("<=", operator.le), "below": ("<", operator.lt)}


def flag(default, help: str, choices: Iterable | Callable = (), free: bool = False, listed: bool = False, **bounds):
    """Returns a dataclass field that becomes the flag of the same name. `choices` are the allowed texts, or a function
    that returns a table {text: row}; `--help` explains each row by the first sentence of its docstring. If `listed`,
    any text is allowed, as it may combine rows, like a weighted sum. `bounds` (keys of `BOUNDS`) limit a number, or all
    of a tuple. A resumed run may change a `free` flag; a change of any other flag would make it another run."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "free": free,
                                                        "listed": listed, "bounds": bounds})


def nested(default, **helps: Optional[str]):
    """Returns a field that holds another configuration, by default `default`. `helps` {flag: text} replaces help texts
    of its flags. A flag whose text is None is not offered on the command line; only the program can set it."""
    return dataclasses.field(default=default, metadata=helps)


def number_type(kind) -> Any:
    """Returns int or float for a flag of type `int`, `Optional[int]`, `tuple[int, ...]` or likewise; otherwise None."""
    return next((x for x in (kind, *typing.get_args(kind)) if x in (int, float)), None)


def describe_range(kind, bounds: Mapping) -> str:
    """Describes the numbers that a flag of type `kind` with these `bounds` may have, such as "a whole number >= 1"."""
    limits = " and ".join(f"{BOUNDS[bound][0]} {x}" for bound, x in bounds.items())
    noun = "whole number" if number_type(kind) is int else "finite number"
    return f"{noun}s {limits}, joined by commas" if typing.get_origin(kind) is tuple else f"a {noun} {limits}"


def refusal(kind, meta: Mapping, value) -> str:
    """Returns why a flag of this type and `meta` (see `Flag`) cannot be `value`, such as "not a text"; "" if it can."""
    number, is_tuple, bounds = number_type(kind), typing.get_origin(kind) is tuple, meta["bounds"]
    if number is None and type(value) is not kind:
        return "not True or False" if kind is bool else "not a text"
    if number is None:
        table = meta["choices"]() if callable(meta["choices"]) else meta["choices"]
        return "" if meta["listed"] or not table or value in table else f"not one of {', '.join(table)}"

    def is_valid(x) -> bool:
        return (isinstance(x, numbers.Integral if number is int else numbers.Real) and not isinstance(x, bool)
                and math.isfinite(x) and all(BOUNDS[name][1](x, bound) for name, bound in bounds.items()))
    valid = isinstance(value, tuple) == is_tuple and all(map(is_valid, value if is_tuple else [value]))
    return "" if valid else "not " + describe_range(kind, bounds)


class Flag(NamedTuple):
    """A flag of a configuration, or of a configuration nested in it."""

    name: str
    kind: Any  # the type of its value, such as int or tuple[int, ...]
    value: Any  # its value in that configuration
    meta: Mapping  # the arguments of `flag`


@typing.dataclass_transform(frozen_default=True)
class Config:
    """A frozen dataclass whose fields become flags. The constructor raises UserError for a value that a flag cannot
    have. It does not check defaults, since a table of choices may be defined after the class."""

    def __init_subclass__(cls):
        dataclasses.dataclass(frozen=True)(cls)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, meta = getattr(self, field.name), field.metadata  # without "bounds" it is a nested configuration
            if "bounds" in meta and value != field.default and (reason := refusal(field.type, meta, value)):
                raise UserError(f"{field.name}={value!r}: {reason}")

    @classmethod
    def from_flags(cls, **values):
        """Returns the defaults with these flags changed. Raises TypeError for an unknown flag."""
        return cls().with_flags(**values)

    def with_flags(self, /, **values):
        """Returns a copy with these flags changed. Raises TypeError for an unknown flag."""
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
    """Lists the flags of a configuration (or class: with its defaults) and of configurations nested in it, in order."""
    leaves = []
    for field in dataclasses.fields(config):  # as attributes of a class, fields have their defaults
        value, helps = getattr(config, field.name), field.metadata  # `helps` of a nested field: {flag: help text}
        if isinstance(value, Config):
            leaves += [leaf._replace(meta=leaf.meta | {"help": helps.get(leaf.name, leaf.meta["help"])})
                       for leaf in flags_of(value) if helps.get(leaf.name, "") is not None]  # None: hidden
        else:
            leaves.append(Flag(field.name, field.type, value, dict(field.metadata)))
    return leaves
