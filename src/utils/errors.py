"""Errors whose message alone is for the user: `main.py` prints one line, no traceback."""


class UserError(Exception):
    """Something in the user's input or machine is wrong. Exit code 2.

    The message names the file, key or path, the value found there, and the remedy.
    """


class RunFailure(Exception):
    """Training cannot go on, through no fault of the input. Exit code 1.

    The message says what happened, what was saved and where.
    """
