"""What a run plays, in words. The doctor reads this file with any Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAP_KEYS = ("map_name", "key", "game")  # of env_args: what environments call their map


def map_of(env_args: Mapping[str, Any]) -> Any:
    """The map that is played; None where an environment has none."""
    return next((env_args[key] for key in MAP_KEYS if env_args.get(key)), None)


def env_title(env: str, env_args: Mapping[str, Any]) -> str:
    """Such as "smax 3m"."""
    name = map_of(env_args)
    return f"{env} {name}" if name else env
