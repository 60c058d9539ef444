"""Digests of entries that a user's code adds to this package's tables of choices, such as a reward to REWARDS. Such an
entry is called a row from outside. A run writes the digests to flags.txt, and refuses to continue if a row was edited.

A digest covers the source of the row's functions, the globals of their file that they use, functions from the same
folder that they call, and the values in the row."""

import contextlib
import dataclasses
import functools
import inspect
import linecache
import os
import sys
import zlib
from types import CodeType, FunctionType
from typing import Iterator, Mapping

import jax
import numpy as np

from rlvr_jax.config import flags_of

PACKAGE = __name__.partition(".")[0] + "."


def source_lines(config) -> list[str]:
    """Returns a comment, such as `# source of reward short=1a2b3c4d`, for each row from outside that a flag names."""
    lines = []
    for leaf in flags_of(config):
        table = leaf.meta["choices"]() if callable(leaf.meta["choices"]) and not leaf.meta["free"] else {}
        for name in (part.partition(":")[0].strip() for part in str(leaf.value).split(",")):
            functions, row = [], table.get(name)
            digest = zlib.crc32("\n".join(_walk(row, functions)).encode())  # `_walk` also fills `functions`
            if row is not None and (functions or not _is_in_package(name, row)):
                lines.append(f"# source of {leaf.name} {name}={digest:08x}")
    return lines


def _is_in_package(name: str, row) -> bool:
    """Whether a module of this package defines the row: has it in a table, and `"NAME":` in its source. (The row's
    functions do not tell, because a user's row may consist of this package's functions.)"""
    modules = [module for key, module in [*sys.modules.items()] if key.startswith(PACKAGE)
               and any(isinstance(table, dict) and table.get(name) is row for table in vars(module).values())]
    return any(f'"{name}":' in line for module in modules for line in linecache.getlines(module.__file__))


def _walk(value, functions: list) -> Iterator[str]:
    """Yields strings that change if any part of `value` does. Appends functions from outside to `functions`."""
    value = inspect.unwrap(value) if callable(value) else value
    parts = ()  # values to walk through next
    if isinstance(value, FunctionType) and not (value.__module__ or "").startswith(PACKAGE):
        if value not in functions:
            functions.append(value)
            with contextlib.suppress(OSError):  # a function without a file
                yield inspect.getsource(value)
            closure = [cell.cell_contents for cell in value.__closure__ or ()]
            parts = [value.__defaults__, *closure, *_used_globals(value)]
    elif isinstance(value, (type, FunctionType)):
        yield f"{value.__module__}.{value.__qualname__}"
        outside = isinstance(value, type) and not value.__module__.startswith((PACKAGE, "builtins"))
        parts = [x for x in vars(value).values() if isinstance(x, FunctionType)] if outside else ()
    elif isinstance(value, functools.partial):
        parts = [value.func, value.args, value.keywords]
    elif isinstance(value, (np.ndarray, np.generic, jax.Array)):
        yield f"{value.dtype} {value.shape} {zlib.crc32(np.asarray(value).tobytes())}"
    elif isinstance(value, (Mapping, tuple, list)):
        parts = value.items() if isinstance(value, Mapping) else value
    elif value is None or isinstance(value, (int, float, str)):
        yield repr(value)
    else:
        parts = [type(value), vars(value) if dataclasses.is_dataclass(value) else None]
    for part in parts:
        yield from _walk(part, functions)


def _used_globals(function: FunctionType) -> Iterator:
    """Yields globals that a function and its nested functions use: constants, arrays, functions of the same folder."""
    def names(code: CodeType) -> set[str]:
        return set(code.co_names).union(*(names(x) for x in code.co_consts if isinstance(x, CodeType)))

    folder = os.path.dirname(function.__code__.co_filename)
    for name in sorted(names(function.__code__) & function.__globals__.keys()):
        value = inspect.unwrap(function.__globals__[name])
        code = getattr(value, "__code__", None)
        if isinstance(value, (int, float, str, tuple, list, dict, np.ndarray, jax.Array)) or (
                code and os.path.dirname(code.co_filename) == folder):
            yield value
