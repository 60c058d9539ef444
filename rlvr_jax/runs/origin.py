"""origin.json of a directory: the command that wrote the directory, the commit and the machine."""

import contextlib
import datetime
import os
import pathlib
import platform
import subprocess

import jax

from rlvr_jax import parallel
from rlvr_jax.errors import UserError
from rlvr_jax.runs import files, processes


def read(directory: pathlib.Path) -> dict:
    """Returns the content of origin.json in a directory; {} if the file is missing or damaged."""
    with contextlib.suppress(UserError):
        return files.read_json(directory / "origin.json", missing={})
    return {}


def write(directory: pathlib.Path, command: str, **more) -> None:
    """Writes origin.json with the command that writes the directory, such as "train", and the entries `more`."""
    files.write_json(directory / "origin.json", {"command": command} | more)


def run_git(*command: str) -> str:
    """Runs git in the checkout that contains this file and returns the output. UserError if there is no checkout."""
    here = pathlib.Path(__file__)
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}  # git hooks set these

    def run(*command):
        return subprocess.run(["git", *command], cwd=here.parent, env=environ, capture_output=True, check=True).stdout
    try:
        run("ls-files", "--error-unmatch", here.name)  # fails for an installation inside another repository
        return run(*command).decode("utf-8", "replace")
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        raise UserError(f"{here.parent} is in no git checkout") from None


def commit() -> str:
    """Returns the commit of the checkout that contains this file, "COMMIT-dirty" if files changed, or "unknown"."""
    try:
        return run_git("describe", "--always", "--dirty").strip()
    except UserError:
        return "unknown"


def machine() -> dict:
    """Returns a record of what a run depends on besides its flags, such as {"commit": "1a2b3c4", "devices": 8}."""
    return {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "commit": commit(),
            "python": platform.python_version(), "jax": jax.__version__, "platform": platform.machine(),
            "device": jax.devices()[0].device_kind, "devices": parallel.device_count(),
            "processes": processes.process_count()}
