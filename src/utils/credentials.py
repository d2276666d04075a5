"""The address of MongoDB, which may hold a password, and how nothing that is written ever shows one."""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from utils.errors import UserError

IN_URL = re.compile(r"(?<=://)[^\s\"'<>]*@")  # user and password in any URL
SHORTEST = 8  # a shorter password could be a word of the configuration, and is hidden only where it stands in a URL


def names_mongo() -> bool:
    """Whether the environment says where MongoDB is."""
    return bool(os.environ.get("MONGO_URL", "").strip() or os.environ.get("MONGO_URL_FILE"))


def mongo_url() -> str:
    """What the variable MONGO_URL holds, or the file that MONGO_URL_FILE names; empty without either.

    Raises:
        UserError: the file cannot be read, or is empty.
    """
    if url := os.environ.get("MONGO_URL", "").strip():
        return url
    name = os.environ.get("MONGO_URL_FILE", "")
    if not name:
        return ""
    try:
        url = Path(name).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"MONGO_URL_FILE={name!r} cannot be read ({error}); name a file that holds the URL") from None
    if not url:
        raise UserError(f"MONGO_URL_FILE={name!r} is empty; write the URL into it, or unset the variable")
    return url


def masked(url: str) -> str:
    """A URL without what may be secret: user, password and options."""
    scheme, mark, rest = url.rpartition("://")
    rest = rest.rpartition("@")[2].partition("?")[0]
    return f"{scheme}{mark}{'***@' if '@' in url else ''}{rest}"


def hide(value: Any) -> Any:
    """A text without passwords: those of URLs, and the one of MongoDB; in lists and dictionaries, each text so."""
    try:
        password = IN_URL.findall(mongo_url())
    except UserError:
        password = []
    needles = {form for one in password for form in _forms(one.removesuffix("@").partition(":")[2])}
    return _hide(value, sorted(needles, key=len, reverse=True))


def _forms(password: str) -> set[str]:
    """The password as it stands in the URL, and as it is."""
    return {form for form in (password, unquote(password)) if len(form) >= SHORTEST}


def _hide(value: Any, needles: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _hide(one, needles) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_hide(one, needles) for one in value]
    if isinstance(value, str):
        value = IN_URL.sub("***@", value)
        for needle in needles:
            value = value.replace(needle, "***")
    return value
