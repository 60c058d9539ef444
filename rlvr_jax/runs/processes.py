"""The processes of one run: how they connect, which of them writes files, and how they exchange values."""

import contextlib
import os
import threading
from typing import Iterator

import jax
import numpy as np
from jax import process_count, process_index
from jax.experimental import multihost_utils

from rlvr_jax.errors import Interrupted, UserError

HEARTBEAT = 30  # seconds without a heartbeat after which JAX takes a process for dead; JAX's default is 100
SENT = 2**26  # bytes of the pieces in which `broadcast` sends an array


def initialize(coordinator_address: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Connects the processes of one run. Call this before anything uses a device. The address is host:port, "auto" for
    JAX to detect all three arguments, or "" for a run of one process: then this does nothing. UserError if they do not
    fit."""
    if not coordinator_address and (num_processes > 1 or process_id > 0):
        raise UserError("--num_processes and --process_id need --coordinator_address: HOST:PORT of process 0")
    if coordinator_address == "auto":  # TPU pods, Slurm and others that JAX recognises
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
    elif coordinator_address:
        try:
            jax.distributed.initialize(coordinator_address, num_processes, process_id,
                                       heartbeat_timeout_seconds=HEARTBEAT)
        except (ValueError, IndexError) as error:
            raise UserError(f"--coordinator_address={coordinator_address} --num_processes={num_processes} --process_id="
                            f"{process_id}: give HOST:PORT, how many processes there are, and which this one is, from "
                            "0") from error


@contextlib.contextmanager
def leave_after_error() -> Iterator[None]:
    """Makes the main process, which may fail alone since only it writes files, exit within ten seconds of an error in
    the block, if need be by `os._exit(1)`. Otherwise JAX would wait minutes for the other processes, which stop once
    its heartbeats are missing. If all processes fail alike, they reach JAX's shutdown barrier before that, and exit
    with their own messages. After `Interrupted` there is no limit: a signal stops all processes."""
    try:
        yield
    except BaseException as error:
        if process_count() > 1 and is_main() and not isinstance(error, Interrupted):
            timer = threading.Timer(10, os._exit, [1])
            timer.daemon = True
            timer.start()
        raise


def is_main() -> bool:
    """True on the one process that writes files and prints."""
    return process_index() == 0


def broadcast(tree):
    """Returns the main process's tree of numpy arrays or numbers on every process; all must call this, with the same
    shapes. The arrays pass through the devices in pieces of `SENT` bytes: a state can be too large for one device."""
    def receive(x) -> np.ndarray:
        flat = np.asarray(x).reshape(-1)
        pieces = np.array_split(flat, max(1, -(-flat.nbytes // SENT)))
        return np.concatenate([multihost_utils.broadcast_one_to_all(piece) for piece in pieces]).reshape(np.shape(x))
    return tree if process_count() == 1 else jax.tree.map(receive, tree)


def broadcast_text(text: str) -> str:
    """Returns the main process's text on every process. The text must not contain NUL, which pads it."""
    encoded = text.encode()
    padded = np.frombuffer(encoded.ljust(max_over_processes(len(encoded)), b"\0"), np.uint8)  # the same size everywhere
    return bytes(broadcast(padded)).rstrip(b"\0").decode()


def max_over_processes(number: int) -> int:
    """Returns the largest `number` of all processes (int32) on every process, so that one process can stop all."""
    return number if process_count() == 1 else int(np.max(multihost_utils.process_allgather(np.int32(number))))
