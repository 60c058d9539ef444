"""From a record of settings to a command: flags, `--help`, and errors as one line.

Every setting becomes the absl flag of the same name. `run(main, "rlvr_jax.training.train.TrainConfig")` parses them,
prepares JAX before anything touches a device, and calls `main(config)`.
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import inspect
import os
import pathlib
import re
import shlex
import sys
import typing
import warnings
from typing import Callable, Mapping, Optional

import absl.app
import absl.logging
from absl import flags

from rlvr_jax.errors import Interrupted, UserError

JAX_WINDOW = (0, 10), (0, 12)  # the first and the last JAX that this runs on, as requirements.txt has them

LONGEST_NAME = 99  # characters of a flag's name that are looked up
CACHE_BYTES = 500_000_000  # most that compiled programs take; JAX removes those that were unused for longest


def define_flags(config_class, known: flags.FlagValues = flags.FLAGS) -> None:
    """One absl flag a setting, with its default, help, choices and bounds, added to those that are `known`."""
    from rlvr_jax.config import describe_range, flags_of, number_type  # JAX comes with it

    for name, kind, default, meta in flags_of(config_class):
        table = meta["choices"]() if callable(meta["choices"]) else meta["choices"]
        help = "; ".join([meta["help"], *(f"{row}: {means}" for row in table if (means := explained(table, row)))])
        number = number_type(kind)
        kind = float if kind == Optional[float] else kind
        if number:
            help = f"{help} ({describe_range(kind, meta['bounds'])})"
        if table and not meta["listed"]:
            flags.DEFINE_enum(name, default, [*table], help, known)
        elif typing.get_origin(kind) is tuple:
            flags.DEFINE_string(name, ",".join(map(str, default)), help, known)
        else:
            {bool: flags.DEFINE_bool, str: flags.DEFINE_string, int: flags.DEFINE_integer,
             float: flags.DEFINE_float}[kind](name, default, help, flag_values=known)
        if number:
            flags.register_validator(name, functools.partial(
                within, number=number, meta=meta, optional=default in (None, ())),
                f"not {describe_range(kind, meta['bounds'])}", known)
    flags.DEFINE_bool("traceback", False, "on an error, print where in the program it arose", known)


def within(value, number: type, meta: Mapping, optional: bool) -> bool:
    """Whether a flag's value is a number of that type that the setting may have, or a text of such with commas between.
    `optional`: whether there may be none, as where the default is unset or empty."""
    from rlvr_jax.config import refusal

    parts = [] if value in (None, "") else value.split(",") if isinstance(value, str) else [value]
    try:
        values = list(map(number, parts))
    except ValueError:
        return False
    return (optional or len(values) > 0) and not any(refusal(number, meta, x) for x in values)


def explained(table, row: str) -> str:
    """The first sentence of the docstring of a row, where that is a function or a record with a `score`; the names of
    the functions that another record is made of."""
    value = table[row] if isinstance(table, Mapping) else None
    if isinstance(value, tuple) and not hasattr(value, "score"):  # of functions, as an objective is
        return ", ".join(part.__name__.replace("_", " ") for part in value if callable(part))
    function = value if inspect.isfunction(value) else getattr(value, "score", None)
    text = " ".join((inspect.getdoc(function) or "").split()) if inspect.isfunction(function) else ""
    return re.split(r"\.(?=\s|$)", text)[0]


def help_text(about: str, config_class, known: flags.FlagValues = flags.FLAGS) -> str:
    """What --help prints: the script's docstring, then the flags, those of each record under what it says of itself."""
    from rlvr_jax.config import flags_of

    defined = [leaf.name for leaf in flags_of(config_class)]

    def section(says: str, names: list[str]) -> list[str]:
        lines = ["", says] if set(names) & set(defined) else []
        for flag in (known[name] for name in names if name in defined):
            default = str(flag.default).lower() if flag.boolean else flag.default
            written = f"--{flag.name}" if default in (None, "") else f"--{flag.name}={default}"
            lines.append(flags.text_wrap(f"{written}: {flag.help}", indent="      ", firstline_indent="  "))
        return lines

    def sections(record) -> list[str]:
        nested = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
        own = [name for name, value in nested.items() if not dataclasses.is_dataclass(value)]
        return sum((sections(value) for value in nested.values() if dataclasses.is_dataclass(value)),
                   section(" ".join(inspect.getdoc(record).split()), own))

    always = ["", "Every command.", "  --flagfile: file of flags, a line each",
              f"  --traceback=false: {known['traceback'].help}"]
    return "\n".join([about.strip(), *sections(config_class()), *always])


def parse_config(config_class, known: flags.FlagValues = flags.FLAGS):
    """The record that the parsed flags describe."""
    from rlvr_jax.config import flags_of

    def read(name, kind):
        value = known[name].value
        if typing.get_origin(kind) is not tuple:
            return value
        return tuple(map(typing.get_args(kind)[0], value.split(","))) if value else ()
    return config_class.from_flags(**{leaf.name: read(leaf.name, leaf.kind)
                                      for leaf in flags_of(config_class)})


def check_command(line: str) -> None:
    """Raises UserError unless `python -m scripts.LINE` is a command whose flags are known and have values that they
    may have. The command is not run."""
    script, *words = shlex.split(line)
    path = pathlib.Path(__file__).with_name(f"{script}.py")
    found = path.is_file() and re.search(r'cli\.run\(main, "([\w.]+)"\)', path.read_text("utf-8"))
    if not found:
        raise UserError(f"python -m scripts.{line}: there is no script {script}")
    known, config_class = flags.FlagValues(), record_class(found[1])
    define_flags(config_class, known)
    try:
        rest = parsed([script, *words], known)[1:]
        parse_config(config_class, known)
    except (flags.Error, UserError) as error:
        raise UserError(f"python -m scripts.{line}: {explain(error)}; python -m scripts.{script} --help lists the "
                        "flags") from None
    if rest:
        raise UserError(f"python -m scripts.{line}: unexpected argument {rest[0]!r}; flags are written --name=value")


def record_class(name: str) -> type:
    """The class of that name; its import loads JAX. Raises UserError for a JAX that is too old or too new."""
    check_jax(importlib.metadata.version("jax"))
    return named(name)


def named(name: str):
    """What a module has under a name, "rlvr_jax.errors.UserError"."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def check_jax(version: str) -> None:
    """Raises UserError for a JAX outside the window: an older one lacks functions that are called here."""
    first, last = JAX_WINDOW
    if not first <= tuple(int(part) for part in version.split(".")[:2]) <= last:
        raise UserError(f"JAX {version} is installed, and rlvr_jax runs on JAX {first[0]}.{first[1]} to "
                        f"{last[0]}.{last[1]}: pip install -e '.[plot]', on a TPU followed by \"jax[tpu]\", on an "
                        "NVIDIA GPU by \"jax[cuda12]\"")


def prepare_jax(config) -> None:
    """Settings that must come before the first computation."""
    import jax

    from rlvr_jax.runs import machine, processes

    values = config.as_flags()
    if "host_devices" not in values:  # such a command leaves an accelerator to the run that may be using it
        return
    machine.prepare_gpu()
    if values["host_devices"] > 1:
        jax.config.update("jax_num_cpu_devices", values["host_devices"])
    keep_programs(values["compilation_cache"])
    if values.get("coordinator_address"):
        processes.initialize(*(values[name] for name in ("coordinator_address", "num_processes", "process_id")))
    warning = machine.unused_accelerator()
    if warning:
        print(f"warning: {warning}", file=sys.stderr)


def keep_programs(where: str) -> None:
    """Has JAX keep compiled programs in the folder that --compilation_cache says. The folder that "auto" stands for
    goes unused, without a word, where it cannot be written."""
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


def parsed(argv: list[str], known: flags.FlagValues) -> list[str]:
    """What the flags leave of a command line. A name too long for any flag is refused before absl, which looks for names
    like an unknown one, takes memory, or its whole stack, for it."""
    for word in known(argv, known_only=True)[1:]:
        if word.startswith("-") and len(word.partition("=")[0]) > LONGEST_NAME:
            raise flags.Error(f"no flag has so long a name as {word[:20]!r}")
    return known(argv)


def parse_flags(config_class, argv: list[str]) -> list[str]:
    """What is left of the command line; a flag that cannot be parsed is an error like any other, and --help is none."""
    if {"--help", "-help", "-h", "-?"} & set(argv[1:]):
        print(help_text(sys.modules["__main__"].__doc__, config_class))
        sys.exit(0)
    try:
        return parsed(argv, flags.FLAGS)
    except flags.Error as error:
        said = explain(error).removeprefix("ERROR:: ")  # absl's own word, for a flag file that is not there
        print(f"error: {said}; --help lists the flags", file=sys.stderr)
        sys.exit(1)
    except SystemExit:  # absl exits 1 after printing --helpfull and others of its own
        sys.exit(0)


def print_page(function: str, name: str, result: str = "summary.json") -> Callable:
    """The `main` of a script that calls a function of the package and prints a page that it has written into --out. The
    path of the result follows. Both names may hold flags, as "{probe}.md" does."""
    def main(config) -> None:
        values = config.as_flags()
        named(function)(config)
        print(pathlib.Path(values["out"], name.format(**values)).read_text("utf-8")
              + f"\n{values['out']}/{result.format(**values)}")
    return main


def run(main: Callable, record: str) -> None:
    """Entry point of a script; `record` names its settings (`record_class`). Exits 0, 1 on an error, 130 or 143 when a
    signal stopped a run that saved itself."""
    def guarded(argv):
        from rlvr_jax.runs import signals

        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}; flags are written --name=value")
            if not flags.FLAGS.traceback:  # a failed save prints tracebacks in several threads before it is raised
                absl.logging.set_verbosity(absl.logging.FATAL)
                sys.unraisablehook = lambda _: None
            with signals.acknowledged(lambda: "stopping"):
                config = parse_config(config_class)
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

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        config_class = record_class(record)
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        sys.exit(f"error: {error}")
    define_flags(config_class)
    absl.app.run(guarded, flags_parser=functools.partial(parse_flags, config_class))
