"""What rows of tables are made of that were added from outside the package: a digest of each stands with a run's flags.

It covers the source of a row's functions; what that names in its own file, such as helpers and constants, and not the
rest of the file; functions from other files of the same folder; numbers and arrays in the row. Comments do not count.
Where no source can be read, as of lines typed into Python, the compiled functions take its place.
"""

import ast
import dataclasses
import functools
import linecache
import os
import sys
import zlib
from types import CodeType, FunctionType
from typing import Iterator, Mapping

import jax
import numpy as np

from rlvr_jax.records import settings

PACKAGE = __name__.partition(".")[0] + "."


def source_lines(config) -> list[str]:
    """`# source of reward short=1a2b3c4d`, a comment in a flag file, for each row from outside that settings name."""
    found = []
    for leaf in settings(config):
        table = leaf.meta["choices"]() if callable(leaf.meta["choices"]) and not leaf.meta["free"] else {}
        for name in (part.partition(":")[0].strip() for part in str(leaf.value).split(",")):
            functions, row = [], table.get(name)
            digest = zlib.crc32("\n".join(_parts(row, functions)).encode())
            if row is not None and (any(map(_outside, functions)) or not _written_here(name, row)):
                found.append(f"# source of {leaf.name} {name}={digest:08x}")
    return found


def _outside(function: FunctionType) -> bool:
    return not (function.__module__ or "").startswith(PACKAGE)


def _written_here(name: str, row) -> bool:
    """Whether the package's source has the row; one from outside may be made of the package's functions, too."""
    homes = [module for key, module in [*sys.modules.items()] if key.startswith(PACKAGE)
             and any(isinstance(table, dict) and table.get(name) is row for table in vars(module).values())]
    return any(f'"{name}":' in line for module in homes for line in linecache.getlines(module.__file__))


def _parts(value, functions: list) -> Iterator[str]:
    """Texts that change with what a row is made of; its functions are added to `functions`, each once."""
    inside = ()
    if isinstance(value, FunctionType) and value not in functions:
        functions.append(value)
        yield from _source(value, functions) if _outside(value) else [f"{value.__module__}.{value.__qualname__}"]
        kept = [cell.cell_contents for cell in value.__closure__ or ()]
        inside = [value.__defaults__, *(x for x in kept if not isinstance(x, (dict, list)))]  # these may be caches
    elif isinstance(value, functools.partial):
        inside = [value.func, value.args, value.keywords]
    elif isinstance(value, (np.ndarray, np.generic, jax.Array)):
        yield f"{value.dtype} {value.shape} {zlib.crc32(np.asarray(value).tobytes())}"
    elif isinstance(value, (Mapping, tuple, list)):
        inside = value.items() if isinstance(value, Mapping) else value
    elif value is None or isinstance(value, (int, float, str)):
        yield repr(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = [vars(value)]
    else:  # what jax.jit makes has __wrapped__; of an object with __call__, its class counts
        yield getattr(value, "__name__", type(value).__name__)
        inside = [x for x in (getattr(value, "__wrapped__", None), getattr(type(value), "__call__", None))
                  if isinstance(x, FunctionType)]
    for part in inside:
        yield from _parts(part, functions)


def _source(function: FunctionType, functions: list) -> Iterator[str]:
    """The source of a function, and of the statements of its file that it needs, each once."""
    code, known = function.__code__, function.__globals__
    linecache.checkcache(code.co_filename)
    try:
        body = ast.parse("".join(linecache.getlines(code.co_filename, known))).body
    except SyntaxError:
        body = []
    taken = [top if isinstance(top, ast.ClassDef) else node for top in body for node in ast.walk(top)
             if isinstance(node, (ast.FunctionDef, ast.Lambda)) and getattr(node, "name", "<lambda>") == code.co_name
             and min(x.lineno for x in [node, *getattr(node, "decorator_list", ())]) == code.co_firstlineno]
    yield from map(ast.unparse, taken) if taken else [repr(_compiled(code))]
    todo = sorted(set().union(*map(_loads, taken)) if taken else code.co_names)
    for name in todo:  # which grows
        tops = [top for top in body if name in ({top.name} if hasattr(top, "name") else _names(top, ast.Store))]
        for top in (top for top in tops if top not in taken):
            taken.append(top)
            yield ast.unparse(top)
            todo += sorted(_loads(top) - set(todo))
        value = None if tops else known.get(name)
        if isinstance(value, (int, float, str)) or (isinstance(value, FunctionType) and os.path.dirname(
                value.__code__.co_filename) == os.path.dirname(code.co_filename)):
            yield from _parts(value, functions)


def _names(node: ast.AST, kind: type) -> set[str]:
    return {x.id for x in ast.walk(node) if isinstance(x, ast.Name) and isinstance(x.ctx, kind)}


def _loads(node: ast.AST) -> set[str]:
    """Names that a piece of source takes from around it."""
    return _names(node, ast.Load) - _names(node, ast.Store) - {x.arg for x in ast.walk(node) if isinstance(x, ast.arg)}


def _compiled(code: CodeType) -> list:
    consts = (sorted(map(repr, x)) if isinstance(x, frozenset) else x for x in code.co_consts)
    return [code.co_code, code.co_names, *(_compiled(x) if isinstance(x, CodeType) else x for x in consts)]
