"""The command lines of the programs beside `main.py`."""

import argparse
from typing import NoReturn

from utils.errors import UserError


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line as everything else is said: in one line, by a `UserError`."""

    def __init__(self):
        super().__init__(add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message}; see --help")
