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
    """origin.json of a directory; {} if it is missing or damaged."""
    with contextlib.suppress(UserError):
        return files.read_json(directory / "origin.json", missing={})
    return {}


def write(directory: pathlib.Path, command: str, **more) -> None:
    """Writes the command that writes this directory, such as "train", and `more`."""
    files.write_json(directory / "origin.json", {"command": command} | more)


def run_git(*command: str) -> str:
    """The output of git in the checkout that holds this program. Raises UserError where there is none."""
    here = pathlib.Path(__file__)
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}  # set by a hook

    def run(*command):
        return subprocess.run(["git", *command], cwd=here.parent, env=environ, capture_output=True, check=True).stdout
    try:
        run("ls-files", "--error-unmatch", here.name)  # fails for an environment inside another repository
        return run(*command).decode("utf-8", "replace")
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        raise UserError(f"{here.parent} is in no git checkout") from None


def commit() -> str:
    """The commit of the checkout that holds this program, with `-dirty` if files differ from it; else "unknown"."""
    try:
        return run_git("describe", "--always", "--dirty").strip()
    except UserError:
        return "unknown"


def machine() -> dict:
    """What a run's numbers depend on besides its flags: date, commit, versions and devices."""
    return {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "commit": commit(),
            "python": platform.python_version(), "jax": jax.__version__, "platform": platform.machine(),
            "device": jax.devices()[0].device_kind, "devices": parallel.device_count(),
            "processes": processes.process_count()}
