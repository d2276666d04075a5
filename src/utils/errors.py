"""Errors that are the user's to mend."""


class UserError(Exception):
    """Something in the user's input or machine is wrong: `main.py` prints the message alone and exits with code 2.

    The message names the file, key or path, the value found there, and the remedy.
    """
