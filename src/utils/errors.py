"""Errors whose message alone is for the user: `main.py` prints one line, no traceback."""


class UserError(Exception):
    """Something in the user's input or machine is wrong. Exit code 2.

    The message names the file, key or path, the value found there, and the remedy.
    """


class RunFailure(Exception):
    """Training cannot go on, through no fault of the input. Exit code 1.

    The message says what happened, what was saved and where.
    """


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, and has written a checkpoint from which it can go on.

    Args:
        code: the exit code, 75 (EX_TEMPFAIL: try again) or 130 for Ctrl-C.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code
