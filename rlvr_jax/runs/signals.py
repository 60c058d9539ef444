"""Acknowledges Ctrl-C and SIGTERM immediately, although Python handles a signal only after the current call of JAX."""

import contextlib
import os
import signal
import socket
import threading
from typing import Callable, Iterator

GRACE = 2.0  # seconds that a process has to end by itself after the second signal


@contextlib.contextmanager
def acknowledge_signals(answer: Callable[[], str]) -> Iterator[None]:
    """Prints `answer()` to stderr at the first SIGINT or SIGTERM in the block, even while the main thread compiles. The
    signal must have a Python handler, which decides what the signal does. If the block does not end within `GRACE`
    seconds after a second signal, the process exits with 128 + the signal's number. For the main thread only."""
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
    """Answers the first signal and limits the time after the second. Python writes a signal's number to the socket."""
    count, limit = 0, None
    while byte := receiver.recv(1):  # b"" once the block has ended, which closes the sending socket
        if byte[0] in (signal.SIGINT, signal.SIGTERM):
            count += 1
            if count == 1:
                with contextlib.suppress(OSError):  # stderr may be closed
                    name = signal.Signals(byte[0]).name
                    os.write(2, f"\n{name}: {answer()}; Ctrl-C again to stop at once\n".encode())
            elif count == 2:
                limit = threading.Timer(GRACE, os._exit, [128 + byte[0]])
                limit.start()
    if limit:
        limit.cancel()
