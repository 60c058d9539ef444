"""Errors that a script reports in one line, without a traceback."""


class UserError(Exception):
    """An error that the user can fix. Scripts print its message as one line and exit with code 1."""


class Interrupted(SystemExit):
    """Raised when a signal stops a command; run it again to continue. `exit_code` is 128 + the signal, as in shells."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code
