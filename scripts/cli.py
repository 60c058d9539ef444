"""Turns a function and a configuration class into a command with flags, `--help` and errors of one line.

`run(main, "rlvr_jax.training.train.TrainConfig")` defines an absl flag for each field of the configuration, parses the
command line, prepares JAX before anything touches a device, and calls `main(config)`.
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

from rlvr_jax.config import describe_range, flags_of, number_type, refusal
from rlvr_jax.errors import Interrupted, UserError

JAX_WINDOW = (0, 10), (0, 12)  # (major, minor) of the oldest and the newest supported JAX, as in requirements.txt
LONGEST_NAME = 99  # characters of the longest flag name that `parse_words` accepts
FEW_FLAGS = 30  # --help of a command with more flags shows only its FIRST_FLAGS
FIRST_FLAGS = ("base", "trained", "model", "probe", "method", "completions", "examples", "task_shares", "chip", "shape",
               "problems", "example", "reward", "learning_rate", "num_steps", "num_prompts", "group_size",
               "max_new_tokens", "temperature", "heldout", "run_dir", "out")
CACHE_BYTES = 500_000_000  # size limit of the cache of compiled programs; JAX removes the least recently used


def define_flags(config_class, known: flags.FlagValues = flags.FLAGS) -> None:
    """Adds an absl flag to `known` for each flag of the configuration, with its bounds and choices, and --traceback."""
    for name, kind, default, meta in flags_of(config_class):
        table = meta["choices"]() if callable(meta["choices"]) else meta["choices"]
        help = "; ".join([meta["help"], *(f"{row}: {text}" for row in table if (text := describe_row(table, row)))])
        if number_type(kind):
            help = f"{help} ({describe_range(kind, meta['bounds'])})"
        if table and not meta["listed"]:
            flags.DEFINE_enum(name, default, [*table], help, known)
        elif typing.get_origin(kind) is tuple:
            flags.DEFINE_string(name, ",".join(map(str, default)), help, known)
        else:
            define = {bool: flags.DEFINE_bool, str: flags.DEFINE_string, int: flags.DEFINE_integer,
                      float: flags.DEFINE_float, Optional[float]: flags.DEFINE_float}[kind]
            define(name, default, help, flag_values=known)
        if number_type(kind):
            flags.register_validator(name, functools.partial(is_allowed, kind=kind, default=default, meta=meta),
                                     f"not {describe_range(kind, meta['bounds'])}", known)
    flags.DEFINE_bool("traceback", False, "on an error, print where in the program it arose", known)


def convert_value(kind, value):
    """Converts the value of an absl flag to the type `kind` of the field: for a tuple, "1,2" becomes (1, 2). Raises
    ValueError for a text that is not a list of numbers."""
    if typing.get_origin(kind) is not tuple:
        return value
    return tuple(map(typing.get_args(kind)[0], value.split(","))) if value else ()


def is_allowed(value, kind, default, meta: Mapping) -> bool:
    """Whether the value of a flag, a number or a text such as "1,2", is within the bounds in `meta` (`config.flag`). A
    flag without a value, None or "", is allowed only if its default, None or (), is none either."""
    try:
        value = convert_value(kind, value)
    except ValueError:
        return False
    return value == default if value in (None, ()) else not refusal(kind, meta, value)


def describe_row(table, row: str) -> str:
    """Returns how --help explains the entry `row` of a table of choices: if the entry is a function, or has a function
    `score`, by the first sentence of the function's docstring; if it is another tuple, such as an objective, by the
    names of its functions; otherwise ""."""
    value = table[row] if isinstance(table, Mapping) else None
    if isinstance(value, tuple) and not hasattr(value, "score"):
        return ", ".join(part.__name__.replace("_", " ") for part in value if callable(part))
    function = value if inspect.isfunction(value) else getattr(value, "score", None)
    text = " ".join((inspect.getdoc(function) or "").split()) if inspect.isfunction(function) else ""
    return re.split(r"\.(?=\s|$)", text)[0]


def short_help(about: str, config_class, script: str) -> str:
    """Returns what --help prints: `about`, the script's docstring, and those flags that are in FIRST_FLAGS."""
    helps = {leaf.name: leaf.meta["help"] for leaf in flags_of(config_class)}
    lines = [flags.text_wrap(f"--{name}: {helps[name]}", indent="      ", firstline_indent="  ")
             for name in FIRST_FLAGS if name in helps]
    return "\n".join([about.strip(), "", *lines, "", "  --flagfile: file of flags, a line each", "",
                      f"All {len(helps) + 2} flags, with defaults: python {script} --helpfull"])


def help_text(about: str, config_class, known: flags.FlagValues = flags.FLAGS) -> str:
    """Returns what --helpfull prints: `about`, the script's docstring, and all flags, grouped by configuration."""
    defined = config_class().as_flags()

    def describe_flag(name: str) -> str:
        flag = known[name]
        default = str(flag.default).lower() if flag.boolean else flag.default
        text = f"--{name}" if default in (None, "") else f"--{name}={default}"
        return flags.text_wrap(f"{text}: {flag.help}", indent="      ", firstline_indent="  ")

    def describe_config(config) -> list[str]:
        own, nested = [], []
        for field in dataclasses.fields(config):
            if dataclasses.is_dataclass(value := getattr(config, field.name)):
                nested += describe_config(value)
            elif field.name in defined:
                own.append(describe_flag(field.name))
        heading = ["", " ".join(inspect.getdoc(config).split())] if own else []
        return heading + own + nested

    return "\n".join([about.strip(), *describe_config(config_class()), "", "Every command.",
                      "  --flagfile: file of flags, a line each", f"  --traceback=false: {known['traceback'].help}"])


def parse_config(config_class, known: flags.FlagValues = flags.FLAGS):
    """Returns a configuration with the values of the parsed flags."""
    return config_class.from_flags(**{leaf.name: convert_value(leaf.kind, known[leaf.name].value)
                                      for leaf in flags_of(config_class)})


def config_class_of(script: str) -> type:
    """Returns the configuration class of `python -m scripts.SCRIPT`. Raises UserError if there is no such script."""
    path = pathlib.Path(__file__).with_name(f"{script}.py")
    name = path in path.parent.glob("*.py") and re.search(r'cli\.run\(main, "([\w.]+)"\)', path.read_text("utf-8"))
    if not name:
        raise UserError(f"there is no script {script}")
    return import_config_class(name[1])


def check_command(line: str) -> None:
    """Raises UserError unless `python -m scripts.LINE` is a script with valid flags. Does not run the command."""
    script, *words = shlex.split(line)
    hint = ""
    try:
        known, config_class = flags.FlagValues(), config_class_of(script)
        hint = f"; python -m scripts.{script} --help lists the flags"
        define_flags(config_class, known)
        rest = parse_words([script, *words], known)[1:]
        parse_config(config_class, known)
    except (flags.Error, UserError) as error:
        raise UserError(f"python -m scripts.{line}: {one_line(error)}{hint}") from None
    if rest:
        raise UserError(f"python -m scripts.{line}: unexpected argument {rest[0]!r}; flags are written --name=value")


def import_config_class(name: str) -> type:
    """Imports a class by its dotted name. Before that, raises UserError if JAX's version is outside JAX_WINDOW."""
    check_jax(importlib.metadata.version("jax"))
    return import_name(name)


def import_name(name: str):
    """Imports and returns the value of a dotted name such as "rlvr_jax.errors.UserError"."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def check_jax(version: str) -> None:
    """Raises UserError if `version`, written like "0.10.0", is outside JAX_WINDOW."""
    first, last = JAX_WINDOW
    if not first <= tuple(int(part) for part in version.split(".")[:2]) <= last:
        raise UserError(f"JAX {version} is installed, and rlvr_jax runs on JAX {first[0]}.{first[1]} to "
                        f"{last[0]}.{last[1]}: pip install -e '.[plot]', on a TPU followed by \"jax[tpu]\", on an "
                        "NVIDIA GPU by \"jax[cuda12]\"")


def prepare_jax(config) -> None:
    """Applies the flags that JAX needs before its first computation, and warns of an unused accelerator. Does nothing
    if the command has no flag host_devices: such a command needs no device, and another run may be using it."""
    import jax

    from rlvr_jax.runs import machine, processes

    values = config.as_flags()
    if "host_devices" not in values:
        return
    machine.prepare_gpu()
    if values["host_devices"] > 1:
        jax.config.update("jax_num_cpu_devices", values["host_devices"])
    cache_programs(values["compilation_cache"])
    if values.get("coordinator_address"):
        processes.initialize(*(values[name] for name in ("coordinator_address", "num_processes", "process_id")))
    if warning := machine.unused_accelerator():
        print(f"warning: {warning}", file=sys.stderr)


def cache_programs(where: str) -> None:
    """Makes JAX cache compiled programs in `where`, a value of --compilation_cache: a folder, "auto" (the usual folder)
    or "none". Raises OSError if a named folder cannot be created. A folder without write permission is not used."""
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
            warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")  # on a full disk


def cache_folder() -> pathlib.Path:
    """Returns the folder rlvr_jax/jax in $XDG_CACHE_HOME or, if that is not set, in the platform's cache folder."""
    usual = pathlib.Path.home() / {"darwin": "Library/Caches", "win32": "AppData/Local"}.get(sys.platform, ".cache")
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or usual) / "rlvr_jax" / "jax"


def one_line(error: BaseException) -> str:
    """Returns the message of an error as one line; the message of an OSError begins with the file's name."""
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return " ".join(str(error).split())


def parse_words(words: list[str], known: flags.FlagValues) -> list[str]:
    """Parses a command line into `known`; returns the words that are not flags, with the program's name. Raises
    flags.Error for a wrong flag, and for a name longer than LONGEST_NAME, for which absl's search for similar names
    would take much memory or overflow the stack."""
    try:
        for word in known(words, known_only=True)[1:]:
            if word.startswith("-") and len(word.partition("=")[0]) > LONGEST_NAME:
                raise flags.Error(f"no flag has so long a name as {word[:20]!r}")
        return known(words)
    except ValueError as error:  # of --noNAME=VALUE
        raise flags.Error(str(error)) from error


def parse_flags(config_class, argv: list[str]) -> list[str]:
    """Parses this process's command line; returns the program's name and the words that are not flags. For --help and
    --helpfull, prints the help and exits with code 0; for a wrong flag, prints one line and exits with code 1."""
    about, path = sys.modules["__main__"].__doc__ or "", pathlib.Path(argv[0])
    short = {"--help", "-help", "-h", "-?"} & set(argv[1:])
    if short or {"--helpfull", "-helpfull"} & set(argv[1:]):
        is_short = short and len(config_class().as_flags()) > FEW_FLAGS
        script = f"-m scripts.{path.stem}" if path.parent.name == "scripts" else argv[0]
        print(short_help(about, config_class, script) if is_short else help_text(about, config_class))
        sys.exit(0)
    try:
        return parse_words(argv, flags.FLAGS)
    except flags.Error as error:
        text = one_line(error).removeprefix("ERROR:: ")  # absl writes this before a missing flag file
        print(f"error: {text}; --help lists the flags", file=sys.stderr)
        sys.exit(1)
    except SystemExit:  # absl exits with 1 after --helpfull and its other help flags
        sys.exit(0)


def print_result(function: str, describe: Callable = lambda config, result: result) -> Callable:
    """Returns the `main(config)` of a script: it calls the function with the dotted name `function` and prints the text
    `describe(config, result)` unless that is empty. Only `main` imports the function, so that --help is quick."""
    def main(config) -> None:
        if text := describe(config, import_name(function)(config)):
            print(text)
    return main


def print_page(function: str, page: str, result: str = "summary.json") -> Callable:
    """Like `print_result`, for a function that writes the files `page` and `result` into the folder --out: prints the
    text of `page` and the path of `result`. A flag in braces, as in "{probe}.md", is replaced by its value."""
    def describe(config, _) -> str:
        values = config.as_flags()
        text = pathlib.Path(values["out"], page.format(**values)).read_text("utf-8")
        return f"{text}\n{values['out']}/{result.format(**values)}"
    return print_result(function, describe)


def run(main: Callable, config_name: str) -> None:
    """Runs a script: `main(config)` with a configuration of the class with the dotted name `config_name`. Exits with
    code 0, with 1 and one line after an error, and with 130 (Ctrl-C) or 143 (SIGTERM) if a signal stopped it."""
    def run_main(argv):
        from rlvr_jax.runs import signals

        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}; flags are written --name=value")
            if not flags.FLAGS.traceback:  # orbax's threads print tracebacks of a failed save before it is raised
                absl.logging.set_verbosity(absl.logging.FATAL)
                sys.unraisablehook = lambda _: None
            with signals.acknowledge_signals(lambda: "stopping"):
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
            print(f"error: {one_line(error)}", file=sys.stderr)
            sys.exit(1)

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        config_class = import_config_class(config_name)
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        sys.exit(f"error: {error}")
    define_flags(config_class)
    absl.app.run(run_main, flags_parser=functools.partial(parse_flags, config_class))
