"""The processes of one run: how they join, which of them writes, and what they tell each other."""

import os
import threading

import jax
import numpy as np
from jax import process_count, process_index
from jax.experimental import multihost_utils

HEARTBEAT = 30  # seconds without a sign of life after which the processes give another one up; JAX's default is 100
SENT = 2**26  # bytes that `broadcast` puts on a device at once


def initialize(coordinator_address: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the processes of one run. Call before anything touches a device; no address means a single process."""
    if coordinator_address == "auto":  # TPU pods, Slurm and others that JAX recognises
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
    elif coordinator_address:
        jax.distributed.initialize(coordinator_address, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT)


def leave_within(seconds: float) -> None:
    """Ends this process by then, after it has failed alone: JAX would keep it waiting for the others for minutes. They
    end when they see it gone. If all fail alike they meet earlier, and each ends with its own message."""
    if process_count() > 1:
        timer = threading.Timer(seconds, os._exit, [1])
        timer.daemon = True
        timer.start()


def is_main() -> bool:
    """True on the one process that writes files and prints."""
    return process_index() == 0


def broadcast(tree):
    """The main process's numpy arrays (or numbers) on every process. They travel through the devices, `SENT` bytes at a
    time, as no device may have room for all of a divided state."""
    def receive(x) -> np.ndarray:
        flat = np.asarray(x).reshape(-1)
        pieces = np.array_split(flat, max(1, -(-flat.nbytes // SENT)))
        return np.concatenate([multihost_utils.broadcast_one_to_all(piece) for piece in pieces]).reshape(np.shape(x))
    return tree if process_count() == 1 else jax.tree.map(receive, tree)


def broadcast_text(text: str) -> str:
    """The main process's text, which has no NUL, on every process."""
    room = np.frombuffer(text.encode().ljust(max_over_processes(len(text.encode())), b"\0"), np.uint8)
    return bytes(broadcast(room)).rstrip(b"\0").decode()


def max_over_processes(number: int) -> int:
    """The largest of the processes' numbers, on every process: how one of them tells the others to stop."""
    return number if process_count() == 1 else int(np.max(multihost_utils.process_allgather(np.int32(number))))
