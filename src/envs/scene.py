"""What there is to see of an environment now, for whoever draws it. Loads nothing: worker processes import it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Piece:
    """Something that stands on a field."""

    kind: str  # agent, enemy or prey
    x: float
    y: float
    label: str = ""
    size: float = 0.4  # its radius, in the field's units
    health: float | None = None  # share that is left; None: it has none


@dataclass(frozen=True)
class Field:
    """Pieces on a plane. What has left it is None."""

    width: float
    height: float
    agents: tuple[Piece | None, ...]  # N
    others: tuple[Piece | None, ...]
    actions: tuple[str, ...]  # A names
    moves: Mapping[int, tuple[float, float]] = field(default_factory=dict)  # actions that lead somewhere: which way
    targets: Mapping[int, int] = field(default_factory=dict)  # actions that are aimed at one of the others: at which
    is_grid: bool = False  # pieces stand in cells, (0, 0) the uppermost left


@dataclass(frozen=True, eq=False)  # eq=False: arrays do not compare to one truth value
class Payoffs:
    """A matrix game: what the team gets for joint actions now."""

    table: np.ndarray  # (A, ..., A) with N axes
    actions: tuple[str, ...]  # A names
    title: str


@dataclass(frozen=True, eq=False)
class Image:
    """A picture that the environment has drawn itself."""

    pixels: np.ndarray  # (height, width, 3) uint8
    actions: tuple[str, ...]  # A names


Scene = Field | Payoffs | Image
