"""From a configuration record to a command: flags, `--help`, and errors as one line.

Every field of the record becomes the absl flag of the same name. `run(main, ConfigClass)` parses them, prepares JAX
before anything touches a device, and calls `main(config)`.
"""

import dataclasses
import os
import sys
import typing
from typing import Callable, Optional

import absl.app
import absl.logging
from absl import flags

from rlvr_jax.config import Interrupted, UserError

flags.disclaim_key_flags()  # so that --help of a script lists the flags defined here as its own


def define_flags(config_class) -> None:
    """One absl flag a field, with the field's default, help and choices."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind, meta = hints[field.name], field.metadata
        kind = float if kind == Optional[float] else kind
        if meta["choices"]:
            flags.DEFINE_enum(field.name, field.default, meta["choices"], meta["help"])
        elif typing.get_origin(kind) is tuple:
            flags.DEFINE_list(field.name, [str(x) for x in field.default], meta["help"])
        elif kind is int:
            flags.DEFINE_integer(field.name, field.default, meta["help"], lower_bound=meta["minimum"])
        else:
            define = {bool: flags.DEFINE_bool, float: flags.DEFINE_float, str: flags.DEFINE_string}[kind]
            define(field.name, field.default, meta["help"])
    flags.DEFINE_bool("traceback", False, "on an error, print where in the program it arose")


def parse_config(config_class):
    """The record that the parsed flags describe. Raises UserError for a value that a field cannot hold."""
    values, hints = {}, typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        value = flags.FLAGS[field.name].value
        if isinstance(value, list):
            try:
                value = tuple(map(typing.get_args(hints[field.name])[0], value))
            except ValueError:
                raise UserError(f"--{field.name}={','.join(value)} is not a list of numbers") from None
        values[field.name] = value
    return config_class(**values)


def prepare_jax(config) -> None:
    """Settings that must come before the first computation."""
    import jax

    from rlvr_jax import parallel

    if getattr(config, "host_devices", 1) > 1:
        jax.config.update("jax_num_cpu_devices", config.host_devices)
    if getattr(config, "compilation_cache", ""):
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    if getattr(config, "coordinator_address", ""):
        parallel.initialize(config.coordinator_address, config.num_processes, config.process_id)


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
        print(f"error: {explain(error)}; --help lists the flags", file=sys.stderr)
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
