"""Ctrl-C and SIGTERM are answered at once, though Python acts on them only when a computation returns."""

import contextlib
import os
import signal
import socket
import threading
from typing import Callable, Iterator

GRACE = 2.0  # seconds that a process has to end by itself after the second signal


@contextlib.contextmanager
def acknowledged(answer: Callable[[], str]) -> Iterator[None]:
    """Prints `answer()` at the first SIGINT or SIGTERM that Python handles, also while the main thread compiles.

    What the signal does is up to its handler; but from the second on, the process ends within `GRACE` seconds unless
    this block does. For the main thread only, as all of Python's signals.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    listener = threading.Thread(target=_listen, args=(receiver, answer), daemon=True)
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        sender.close()
        listener.join()
        receiver.close()


def _listen(receiver: socket.socket, answer: Callable[[], str]) -> None:
    """Reads a byte for each signal, its number, until the other end is closed."""
    first = _next(receiver)
    if first:
        with contextlib.suppress(OSError):  # standard error may be gone; a handler of Python's could not use print
            os.write(2, f"\n{signal.Signals(first).name}: {answer()}; Ctrl-C again to stop at once\n".encode())
        if second := _next(receiver):
            end = threading.Timer(GRACE, os._exit, [128 + second])
            end.start()
            while _next(receiver):
                pass
            end.cancel()


def _next(receiver: socket.socket) -> int:
    """The next SIGINT or SIGTERM; 0 if there will be none."""
    while received := receiver.recv(1):
        if received[0] in (signal.SIGINT, signal.SIGTERM):
            return received[0]
    return 0
