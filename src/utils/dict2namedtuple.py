"""A dictionary as a named tuple (a name that PyMARL's code imports)."""

from collections import namedtuple


def convert(dictionary: dict):
    """{'a': 1} -> GenericDict(a=1)."""
    return namedtuple("GenericDict", dictionary.keys())(**dictionary)
