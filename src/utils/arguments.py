"""The command lines of the programs beside `main.py`."""

import argparse
import os
import sys
from typing import NoReturn

from utils.errors import UserError


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line as everything else is said: in one line, by a `UserError`."""

    def __init__(self):
        super().__init__(add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message}; see --help")


def say(text: str) -> None:
    """Print what a program has found. Who reads it through a pipe may have seen enough before its end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python must not write the rest at its end
