"""Durations in words (a name that PyMARL's code imports)."""

from datetime import timedelta


def time_str(seconds: float) -> str:
    """3723.4 -> '1:02:03'."""
    return str(timedelta(seconds=round(seconds)))
