"""What a script says in one line, without a traceback."""


class UserError(Exception):
    """Something the user can fix. Scripts print the message as one line and exit 1, without a traceback."""


class Interrupted(Exception):
    """A run saved itself and stopped because of a signal; `exit_code` is 128 + its number, as shells have it."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code
