"""From a configuration record to a command: flags, `--help`, and errors as one line.

Every field of the record becomes the absl flag of the same name. `run(main, ConfigClass)` parses them, prepares JAX
before anything touches a device, and calls `main(config)`.
"""

import ast
import dataclasses
import importlib.metadata
import inspect
import math
import operator
import os
import pathlib
import re
import sys
import typing
import warnings
from typing import Callable, Optional

import absl.app
import absl.logging
from absl import flags

from rlvr_jax.config import MachineConfig, RunConfig
from rlvr_jax.errors import Interrupted, UserError
from rlvr_jax.runs import signals

JAX_WINDOW = (0, 10), (0, 11)  # the first and the last JAX that this runs on, as requirements.txt has them

flags.disclaim_key_flags()  # so that --help of a script lists the flags defined here as its own

# The bounds that `config.setting` takes: how they are written, and what has to hold of (value, bound).
BOUNDS = {"minimum": (">=", operator.ge), "above": (">", operator.gt),
          "maximum": ("<=", operator.le), "below": ("<", operator.lt)}
CACHE_BYTES = 500_000_000  # most that compiled programs take; JAX removes those that were unused for longest


class Number(flags.ArgumentParser):
    """Parses a finite number within bounds; with `many` a tuple of one or more, written with commas between them."""

    def __init__(self, kind: type, many: bool, bounds: dict):
        self.kind, self.many, self.bounds = kind, many, bounds
        noun = "whole number" if kind is int else "finite number"
        limits = " and ".join(f"{BOUNDS[name][0]} {bound}" for name, bound in bounds.items())
        self.syntactic_help = f"{noun}s {limits}, joined by commas" if many else f"a {noun} {limits}"

    def parse(self, argument):
        """The value of a flag, or of its default. Raises ValueError, which absl gives the flag's name."""
        parts = argument.split(",") if isinstance(argument, str) else argument if self.many else [argument]
        try:
            values = tuple(map(self.kind, parts))
        except ValueError:
            values = (math.nan,)
        right = all(math.isfinite(value) and BOUNDS[name][1](value, bound)
                    for value in values for name, bound in self.bounds.items())
        if not right or (len(values) > 1 and not self.many):
            raise ValueError(f"not {self.syntactic_help}")
        return values if self.many else values[0]


class Commas(flags.ArgumentSerializer):
    def serialize(self, value) -> str:
        return ",".join(map(str, value))


def define_flags(config_class) -> None:
    """One absl flag a field, with the field's default, help, choices and bounds."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind, meta = hints[field.name], field.metadata
        kind, many = float if kind == Optional[float] else kind, typing.get_origin(kind) is tuple
        rows = table_rows(meta["table"]) if meta["table"] else {}
        help = "; ".join([meta["help"], *(f"{name}: {means}" for name, means in rows.items() if means)])
        if (meta["choices"] or rows) and not meta["open"]:
            flags.DEFINE_enum(field.name, field.default, [*meta["choices"], *rows], help)
        elif kind in (int, float) or many:
            parser = Number(typing.get_args(kind)[0] if many else kind, many, meta["bounds"])
            flags.DEFINE(parser, field.name, field.default, meta["help"], serializer=Commas() if many else None)
        else:
            {bool: flags.DEFINE_bool, str: flags.DEFINE_string}[kind](field.name, field.default, help)
    flags.DEFINE_bool("traceback", False, "on an error, print where in the program it arose")


def table_rows(table: str) -> dict[str, str]:
    """The rows of a table of functions such as "learner.SCHEDULES", each with the first sentence of its docstring.

    Read from the source: an import would start JAX, and `--help` would take as long as a run. A script that has
    imported the table and added rows to it, before `run`, finds these too.
    """
    module, _, name = table.rpartition(".")
    path = pathlib.Path(__file__).parents[1] / "rlvr_jax" / (module.replace(".", "/") + ".py")
    body = ast.parse(path.read_text("utf-8")).body
    documented = {node.name: ast.get_docstring(node) or "" for node in body if isinstance(node, ast.FunctionDef)}
    assigned = {ast.unparse(getattr(node, "target", None) or node.targets[0]): node.value
                for node in body if isinstance(node, (ast.Assign, ast.AnnAssign))}
    rows = {key.value: documented.get(ast.unparse(row), "")
            for key, row in zip(assigned[name].keys, assigned[name].values)}
    added = getattr(sys.modules.get(f"rlvr_jax.{module}"), name, {})
    rows |= {key: inspect.isfunction(added[key]) and inspect.getdoc(added[key]) or "" for key in added
             if key not in rows}
    return {key: re.split(r"\.(?=\s|$)", " ".join(text.split()))[0] for key, text in rows.items()}


def parse_config(config_class):
    """The record that the parsed flags describe."""
    return config_class(**{field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(config_class)})


def check_jax(version: str) -> None:
    """Raises UserError for a JAX outside the window: an older one lacks functions that are called here."""
    first, last = JAX_WINDOW
    if not first <= tuple(int(part) for part in version.split(".")[:2]) <= last:
        raise UserError(f"JAX {version} is installed, and rlvr_jax runs on JAX {first[0]}.{first[1]} to "
                        f"{last[0]}.{last[1]}: pip install -e '.[plot]', on a TPU followed by \"jax[tpu]\", on an "
                        "NVIDIA GPU by \"jax[cuda12]\"")


def prepare_jax(config) -> None:
    """Settings that must come before the first computation. Raises UserError if JAX is too old or too new."""
    check_jax(importlib.metadata.version("jax"))
    import jax

    from rlvr_jax import parallel

    if not isinstance(config, MachineConfig):  # it leaves an accelerator to the run that may be using it
        return
    if config.host_devices > 1:
        jax.config.update("jax_num_cpu_devices", config.host_devices)
    keep_programs(config.compilation_cache)
    if isinstance(config, RunConfig) and config.coordinator_address:
        parallel.initialize(config.coordinator_address, config.num_processes, config.process_id)
    warning = parallel.unused_accelerator()
    if warning:
        print(f"warning: {warning}", file=sys.stderr)


def keep_programs(where: str) -> None:
    """Has JAX keep compiled programs in the folder that --compilation_cache says.

    The folder that "auto" stands for goes unused, without a word, where it cannot be written.
    """
    import jax

    if where in ("none", ""):
        jax.config.update("jax_enable_compilation_cache", False)
    elif where != "auto" or not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        try:
            folder = cache_folder() if where == "auto" else pathlib.Path(where)
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError):  # RuntimeError: there is no home directory
            if where != "auto":
                raise
            return
        if os.access(folder, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
            warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")  # a full disk


def cache_folder() -> pathlib.Path:
    """The folder of this program among what the user's programs can make again, by the platform's custom."""
    usual = pathlib.Path.home() / {"darwin": "Library/Caches", "win32": "AppData/Local"}.get(sys.platform, ".cache")
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or usual) / "rlvr_jax" / "jax"


def explain(error: BaseException) -> str:
    """One line for an error the user can act on."""
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return " ".join(str(error).split())


def parse_flags(argv: list[str]) -> list[str]:
    """What is left of the command line; a flag that cannot be parsed is an error like any other, and --help is none."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        said = explain(error).removeprefix("ERROR:: ")  # absl's own word, for a flag file that is not there
        print(f"error: {said}; --help lists the flags", file=sys.stderr)
        sys.exit(1)
    except SystemExit:  # absl exits 1 after printing the help
        sys.exit(0)


def run(main: Callable, config_class) -> None:
    """Entry point of a script. Exits 0, 1 on an error, 130 or 143 when a signal stopped a run that saved itself."""
    def guarded(argv):
        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}; flags are written --name=value")
            config = parse_config(config_class)
            if not flags.FLAGS.traceback:  # a failed save prints tracebacks in several threads before it is raised
                absl.logging.set_verbosity(absl.logging.FATAL)
                sys.unraisablehook = lambda _: None
            with signals.acknowledged(lambda: "stopping"):
                prepare_jax(config)
                main(config)
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            sys.exit(stop.exit_code)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except (UserError, OSError) as error:
            if flags.FLAGS.traceback:
                raise
            print(f"error: {explain(error)}", file=sys.stderr)
            sys.exit(1)

    define_flags(config_class)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    absl.app.run(guarded, flags_parser=parse_flags)
