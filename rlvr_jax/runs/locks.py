"""Lets one process at a time write a directory."""

import os
import pathlib
import socket
import sys
from typing import IO

from rlvr_jax.errors import UserError
from rlvr_jax.runs import files

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = "lock.txt"


def lock(directory: pathlib.Path, flag: str, wait: bool = False) -> IO:
    """Creates the directory if need be, locks it, and returns the open file lock.txt, which names this process.

    The lock lasts until the file is closed or the process ends, even by a kill. On a shared disk the lock also excludes
    processes of other hosts. If another process holds the lock, raises UserError naming that process and `flag`, whose
    value is the directory; with `wait`, waits for that process instead. Where the system has no such locks, prints a
    warning. (The package filelock, before its version 4, erases the name of the holder.)"""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{flag}={directory} is a file: name a directory, which need not exist")
    directory.mkdir(parents=True, exist_ok=True)
    file = open(directory / NAME, "a+", encoding="utf-8")  # "w" would erase the name of another holder
    try:
        if fcntl is None:
            raise OSError("this system has no locks for files")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        busy = f"{directory} is being written by {file.read().strip() or 'another process'}"
        if not wait:
            file.close()
            raise UserError(f"{busy}; wait for it, or choose another {flag}") from None
        print(f"{busy}: waiting for it", file=sys.stderr, flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        print(f"{directory} cannot be locked ({error.strerror or error}): take care to start nothing else on it",
              file=sys.stderr)
    with files.name_in_errors(directory / NAME):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    return file
