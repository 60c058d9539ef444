"""What wrote a directory: the command, the commit and the machine, in origin.json."""

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
    """origin.json of a directory; {} where it is not there, or damaged."""
    with contextlib.suppress(UserError):
        return files.read_json(directory / "origin.json", missing={})
    return {}


def write(directory: pathlib.Path, command: str, **more) -> None:
    """Writes which of `scripts` writes this directory, "train", and what else is known."""
    files.write_json(directory / "origin.json", {"command": command} | more)


def git(*command: str) -> str:
    """What git says in the checkout that holds this program; UserError where there is none."""
    here = pathlib.Path(__file__)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}  # a hook's repository

    def said(*command):
        return subprocess.run(["git", *command], cwd=here.parent, env=clean, capture_output=True, check=True).stdout
    try:
        said("ls-files", "--error-unmatch", here.name)  # installed into an environment inside another repository
        return said(*command).decode("utf-8", "replace")
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        raise UserError(f"{here.parent} is in no git checkout") from None


def commit() -> str:
    """The commit of the checkout that holds this program, `-dirty` if files differ from it; else "unknown"."""
    try:
        return git("describe", "--always", "--dirty").strip()
    except UserError:
        return "unknown"


def machine() -> dict:
    """What a run's numbers depend on beside its flags: date, commit, versions and devices."""
    return {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "commit": commit(),
            "python": platform.python_version(), "jax": jax.__version__, "platform": platform.machine(),
            "device": jax.devices()[0].device_kind, "devices": parallel.device_count(),
            "processes": processes.process_count()}
