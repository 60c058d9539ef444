"""Errors that a script reports in one line, without a traceback."""


class UserError(Exception):
    """Something the user can fix. Scripts print the message as one line and exit with code 1."""


class Interrupted(SystemExit):
    """A signal stopped a run, which has saved itself; `exit_code` is 128 + the signal's number, as in shells.

    It is a SystemExit: your own program, if it does not catch it, ends with the message and without a traceback.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code
