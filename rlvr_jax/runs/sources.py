"""Digests of table rows that were added from outside the package, kept with a run's flags.

A digest covers the source of the row's functions, where they have a file; the values of that file and the functions of
its folder that they name; and the values in the row."""

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
    """`# source of reward short=1a2b3c4d`, a comment in a flag file, for each row from outside that settings name."""
    found = []
    for leaf in flags_of(config):
        table = leaf.meta["choices"]() if callable(leaf.meta["choices"]) and not leaf.meta["free"] else {}
        for name in (part.partition(":")[0].strip() for part in str(leaf.value).split(",")):
            functions, row = [], table.get(name)
            digest = zlib.crc32("\n".join(_texts(row, functions)).encode())
            if row is not None and (functions or not _written_here(name, row)):
                found.append(f"# source of {leaf.name} {name}={digest:08x}")
    return found


def _written_here(name: str, row) -> bool:
    """Whether the package's source has the row; one from outside may be made of the package's functions, too."""
    homes = [module for key, module in [*sys.modules.items()] if key.startswith(PACKAGE)
             and any(isinstance(table, dict) and table.get(name) is row for table in vars(module).values())]
    return any(f'"{name}":' in line for module in homes for line in linecache.getlines(module.__file__))


def _texts(value, functions: list) -> Iterator[str]:
    """Texts that change with what a row is made of. Functions from outside are added to `functions`, each once."""
    value, parts = inspect.unwrap(value) if callable(value) else value, ()
    if isinstance(value, FunctionType) and not (value.__module__ or "").startswith(PACKAGE):
        if value not in functions:
            functions.append(value)
            with contextlib.suppress(OSError):
                yield inspect.getsource(value)
            kept = [cell.cell_contents for cell in value.__closure__ or ()]
            parts = [value.__defaults__, *kept, *_named(value)]
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
        yield from _texts(part, functions)


def _named(function: FunctionType) -> Iterator:
    def names(code: CodeType) -> set[str]:
        return set(code.co_names).union(*(names(x) for x in code.co_consts if isinstance(x, CodeType)))

    folder = os.path.dirname(function.__code__.co_filename)
    for name in sorted(names(function.__code__) & function.__globals__.keys()):
        value = inspect.unwrap(function.__globals__[name])
        code = getattr(value, "__code__", None)
        if isinstance(value, (int, float, str, tuple, list, dict, np.ndarray, jax.Array)) or (
                code and os.path.dirname(code.co_filename) == folder):
            yield value
