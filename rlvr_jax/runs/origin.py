"""What made a run: the commit, and the machine."""

import datetime
import os
import pathlib
import platform
import subprocess

import jax

from rlvr_jax import parallel


def commit() -> str:
    """The commit of the checkout that holds this program, `-dirty` if files differ from it; else "unknown"."""
    here = pathlib.Path(__file__)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}  # a hook's repository

    def git(*command) -> str:
        return subprocess.run(["git", *command], cwd=here.parent, env=clean, capture_output=True, text=True,
                              check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # installed into an environment inside another repository
        return git("describe", "--always", "--dirty")
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return "unknown"


def machine() -> dict:
    """What a run's numbers depend on beside its flags: date, commit, versions and devices."""
    return {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "commit": commit(),
            "python": platform.python_version(), "jax": jax.__version__, "platform": platform.machine(),
            "device": jax.devices()[0].device_kind, "devices": parallel.device_count(),
            "processes": parallel.process_count()}
