"""A crude battle of marines for SMAC to play: they walk, shoot and die, and an emptied field starts the next battle.

The agents' units have owner 1 and do only what they are told; those of owner 2 walk to the nearest foe and shoot.
"""

import math
import random
from dataclasses import dataclass

MAPS = {"3m": (3, 3), "5m_vs_6m": (5, 6)}  # allies, enemies
SIZE = 32  # width and height of the field
HEALTH = 45
DAMAGE = 6
REACH = 5.75  # distance between the centres of two marines at which they can shoot
COOLDOWN = {1: 13.6, 2: 27.2}  # by owner, frames between two shots; slow enemies let a simple player win
SPEED = 3.15 / 22.4  # distance walked in a frame
RADIUS = 0.375
RESPAWN = 2  # frames between the last death and the next battle
UNIT_TYPES = {1: 1970, 2: 48}  # by owner: SMAC's maps give the agents a unit type of their own


@dataclass
class Marine:
    tag: int
    owner: int
    x: float
    y: float
    health: float = HEALTH
    cooldown: float = 0.0
    target: tuple[float, float] | int | None = None  # a point to walk to, or the tag of a unit to attack


class Battle:
    """Two groups of marines on one field."""

    def __init__(self, map_name: str, seed: int | None):
        self.sizes = MAPS[map_name]
        self.random = random.Random(seed)
        self.frame = 0
        self.respawn_at: int | None = None
        self.next_tag = 1
        self.units: dict[int, Marine] = {}
        self._spawn()

    def order(self, tag: int, target) -> None:
        """Give one of the agents' units its target; the dead ignore it."""
        if tag in self.units and self.units[tag].owner == 1:
            self.units[tag].target = target

    def kill(self, tags) -> None:
        for tag in tags:
            self.units.pop(tag, None)
        self._respawn_if_empty()

    def advance(self, frames: int) -> None:
        for _ in range(frames):
            self.frame += 1
            if self.frame == self.respawn_at:
                self._spawn()
            for unit in self.units.values():
                self._act(unit)
            self.units = {tag: unit for tag, unit in self.units.items() if unit.health > 0}
            self._respawn_if_empty()

    def _spawn(self) -> None:
        self.respawn_at = None
        for owner, size in zip((1, 2), self.sizes, strict=True):
            for index in range(size):
                x = (11 if owner == 1 else 21) + self.random.uniform(-1, 1)
                y = SIZE / 2 + index - size / 2 + self.random.uniform(-0.3, 0.3)
                self.units[self.next_tag] = Marine(self.next_tag, owner, x, y)
                self.next_tag += 1

    def _respawn_if_empty(self) -> None:
        if not self.units and self.respawn_at is None:
            self.respawn_at = self.frame + RESPAWN

    def _act(self, unit: Marine) -> None:
        unit.cooldown = max(0.0, unit.cooldown - 1)
        if unit.owner == 2:
            foes = [foe for foe in self.units.values() if foe.owner == 1]
            unit.target = min(foes, key=lambda foe: _distance(unit, foe.x, foe.y)).tag if foes else None
        if isinstance(unit.target, tuple):
            self._walk(unit, *unit.target)
        elif unit.target in self.units:
            self._attack(unit, self.units[unit.target])

    def _attack(self, unit: Marine, foe: Marine) -> None:
        if _distance(unit, foe.x, foe.y) > REACH:
            self._walk(unit, foe.x, foe.y)
        elif unit.cooldown == 0:
            unit.cooldown = COOLDOWN[unit.owner] + self.random.uniform(-1, 2)
            foe.health -= DAMAGE

    @staticmethod
    def _walk(unit: Marine, x: float, y: float) -> None:
        distance = _distance(unit, x, y)
        stride = min(1.0, SPEED / distance) if distance else 0.0
        unit.x = min(max(unit.x + stride * (x - unit.x), 0.5), SIZE - 0.5)
        unit.y = min(max(unit.y + stride * (y - unit.y), 0.5), SIZE - 0.5)


def _distance(unit: Marine, x: float, y: float) -> float:
    return math.hypot(unit.x - x, unit.y - y)
