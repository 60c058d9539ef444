"""Acknowledges Ctrl-C and SIGTERM at once, although Python handles them only when a computation returns."""

import contextlib
import os
import signal
import socket
import threading
from typing import Callable, Iterator

GRACE = 2.0  # seconds that a process has to end by itself after the second signal


@contextlib.contextmanager
def acknowledge_signals(answer: Callable[[], str]) -> Iterator[None]:
    """Prints `answer()` at the first SIGINT or SIGTERM that Python handles, even while the main thread compiles.

    The signal's handler decides what it does. After a second signal, the process ends within `GRACE` seconds unless the
    block ends first. Use it in the main thread only, which alone receives Python's signals.
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
    """Reads the number of each signal, a byte, until the other end is closed."""
    numbers = (byte[0] for byte in iter(lambda: receiver.recv(1), b"") if byte[0] in (signal.SIGINT, signal.SIGTERM))
    for first in numbers:
        with contextlib.suppress(OSError):  # standard error may be closed; a signal handler of Python's could not print
            os.write(2, f"\n{signal.Signals(first).name}: {answer()}; Ctrl-C again to stop at once\n".encode())
        for second in numbers:
            end = threading.Timer(GRACE, os._exit, [128 + second])
            end.start()
            for _ in numbers:  # until the block ends
                pass
            end.cancel()
