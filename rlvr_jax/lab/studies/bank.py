"""The cache of base models: a base model that several studies start from is made once and has a name of its own.

In a study's commands, `--run_dir={bank}` marks the command that makes a base model, and {bank} in later commands is its
directory. The directory is named by a hash of the command, of the code that the command depends on, and of the version
of JAX, so that changed code makes another base model.
"""

import ast
import functools
import hashlib
import pathlib
import re
import shlex
from typing import Callable, Iterator, Optional

import jax
import numpy as np

from rlvr_jax.errors import UserError
from rlvr_jax.runs import checkpoint, files, locks, origin

ROOT = pathlib.Path(__file__).parents[3]  # the folder of rlvr_jax/ and scripts/
MAKES = "--run_dir={bank}"  # marks the command that makes a base model
NOTE = "bank.json"  # file in the directory of a finished base model


def place(bank: str, command: str) -> pathlib.Path:
    """The directory, BANK/SCRIPT-HASH, of the base model that a command makes, in the cache `bank`. All {names} in the
    command have to be filled in already, except {bank}. Raises UserError if the command's script does not exist."""
    script, *words = words_of(command)
    if script not in {path.stem for path in (ROOT / "scripts").glob("*.py")}:
        raise UserError(f"{command}: there is no script {script}")
    text = "\n".join([script, *written_out(words), code(script), jax.__version__])
    return pathlib.Path(bank) / f"{script}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def words_of(command: str) -> list[str]:
    """Splits a command into words as a shell does. Raises UserError if it is no valid shell command."""
    try:
        return shlex.split(command)
    except ValueError as error:
        raise UserError(f"{command}: {error}") from None


def written_out(words: list[str]) -> Iterator[str]:
    """Yields the words of a command, with a file's lines in place of --flagfile=FILE; UserError if FILE is missing."""
    for word in words:
        if not word.startswith("--flagfile="):
            yield word
            continue
        try:
            lines = pathlib.Path(word.split("=", 1)[1]).read_text("utf-8").splitlines()
        except OSError as error:
            raise UserError(f"{word}: {error.strerror}; name a file of configs/") from None
        yield from written_out([line.strip() for line in lines if line.strip() and not line.strip().startswith("#")])


@functools.cache
def code(script: str) -> str:
    """A hash of the code of the script and of all modules of this project that it imports, directly or indirectly.
    Comments, docstrings and the layout of the lines do not change the hash."""
    paths = {ROOT / "scripts" / f"{script}.py"}
    unread = set(paths)
    while unread:
        new = imported(unread.pop()) - paths
        paths, unread = paths | new, unread | new
    sha = hashlib.sha256()
    for path in sorted(paths):
        sha.update(str(path.relative_to(ROOT)).encode() + b"\n" + bare(ast.parse(path.read_text("utf-8"))).encode())
    return sha.hexdigest()


def imported(path: pathlib.Path) -> set[pathlib.Path]:
    """The files of this project that the file at `path` imports. A string such as "rlvr_jax.training.train.train", by
    which a script names the function that it calls, counts as an import of the module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and re.fullmatch(r"rlvr_jax(\.\w+)+", str(node.value)):
            names.add(node.value.rpartition(".")[0])
    paths = {ROOT.joinpath(*name.split(".")).with_suffix(".py") for name in names}
    return {path for path in paths if path.is_file()}


def bare(tree: ast.Module) -> str:
    """The syntax tree as text, without docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def made_by(line: str, bank: str) -> Optional[pathlib.Path]:
    """The --run_dir of the command `line` if the command makes a base model in the cache `bank`; otherwise None."""
    run_dirs = [pathlib.Path(word.split("=", 1)[1]) for word in words_of(line) if word.startswith("--run_dir=")]
    return run_dirs[0] if bank and run_dirs and run_dirs[0].parent == pathlib.Path(bank) else None


def note(base: pathlib.Path) -> dict:
    """The file NOTE of the base model in `base`: the texts {"command", "commit", "digest"}; {} if it is unfinished."""
    return files.read_json(base / NOTE, missing={}, remedy=f"remove {base}, and the base model is made again")


def make(base: pathlib.Path, line: str, run: Callable) -> None:
    """Makes the base model in the directory `base` unless it is finished. Waits while another study makes this model.
    `run(line, holding)` has to run the command `line` as a process that inherits the open lock file `holding`: then the
    process holds the lock, too, and if the study is killed while it goes on, the next study waits for it.
    """
    with locks.lock(base.with_name(base.name + ".lock"), "--bank", wait=True) as holding:
        if not note(base):
            run(line, holding)
            files.write_json(base / NOTE, {"command": line, "commit": origin.commit(), "digest": digest(base)})


def digest(base: pathlib.Path) -> str:
    """A hash of the names and values of the parameters in the base model's newest checkpoint: 16 hex digits."""
    _, params, _ = checkpoint.restore_model(str(base))  # (model configuration, parameters, information on the run)
    leaves = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    sha = hashlib.sha256()
    for name, leaf in sorted(leaves, key=lambda pair: pair[0]):
        sha.update(name.encode() + np.asarray(leaf).tobytes())
    return sha.hexdigest()[:16]
