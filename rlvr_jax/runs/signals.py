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
    numbers = (byte[0] for byte in iter(lambda: receiver.recv(1), b"") if byte[0] in (signal.SIGINT, signal.SIGTERM))
    if first := next(numbers, None):  # None: the block ended, which closes the sending socket
        with contextlib.suppress(OSError):  # stderr may be closed
            os.write(2, f"\n{signal.Signals(first).name}: {answer()}; Ctrl-C again to stop at once\n".encode())
    if second := next(numbers, None):
        end = threading.Timer(GRACE, os._exit, [128 + second])
        end.start()
        for _ in numbers:  # wait until the block ends
            pass
        end.cancel()
