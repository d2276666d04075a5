"""A crude battle for SMAC to play: units of two sides walk, shoot, heal and die, and an emptied field fills again.

The agents' units have owner 1 and do only what they are told; those of owner 2 go for the nearest foe. Nobody stands in
anybody's way, and armour, bonus damage and the difference between ground and air are left out. This module needs no
package, and its inner loop is written for speed: training runs on it when throughput is measured.
"""

import math
import random
from dataclasses import dataclass

SIZE = 32  # width and height of the field
SECOND = 22.4  # frames
AGENT, ENEMY = 1, 2  # owners
SLOWNESS = {AGENT: 1, ENEMY: 2}  # factor of the cooldown; slow enemies let a simple player win
RETARGET = 8  # frames after which an enemy looks for the nearest foe again
RESPAWN = 3  # frames from the last death to the next battle; more than two, in which SMACv2 expects an empty field
SHIELD_DELAY = 10 * SECOND  # frames without a hit after which shields recharge
SHIELD_RATE = 2 / SECOND
HEAL_RATE = 12.6 / SECOND
HEALTH_PER_ENERGY = 3
MAX_ENERGY = 200
START_ENERGY = 50
ENERGY_RATE = 0.7875 / SECOND
WIDTH = 8  # units of an army side by side; the others stand behind


@dataclass(frozen=True)
class Kind:
    """What all units of one kind have in common. Distances count from edge to edge, times in seconds."""

    number: int  # the game's own unit type
    health: float
    range: float
    speed: float
    radius: float
    damage: float = 0
    cooldown: float = 0
    shield: float = 0
    splash: float = 0  # every foe within this distance of the target is hit too
    explodes: bool = False  # dies of its own attack
    heals: bool = False  # heals friends instead of shooting foes


KINDS = {
    "baneling": Kind(9, 30, 0.25, 3.5, 0.375, damage=20, cooldown=0.83, splash=2.2, explodes=True),
    "colossus": Kind(4, 200, 7, 3.15, 1, damage=20, cooldown=1.07, shield=150, splash=1),
    "hydralisk": Kind(107, 90, 5, 3.15, 0.625, damage=12, cooldown=0.59),
    "marauder": Kind(51, 125, 6, 3.15, 0.5625, damage=10, cooldown=1.07),
    "marine": Kind(48, 45, 5, 3.15, 0.375, damage=6, cooldown=0.61),
    "medivac": Kind(54, 150, 4, 3.5, 0.75, heals=True),
    "spine_crawler": Kind(98, 300, 7, 0, 1.125, damage=25, cooldown=1.32),
    "stalker": Kind(74, 80, 6, 4.13, 0.625, damage=13, cooldown=1.34, shield=80),
    "zealot": Kind(73, 100, 0.1, 3.15, 0.5, damage=16, cooldown=0.86, shield=50),
    "zergling": Kind(105, 35, 0.1, 4.13, 0.375, damage=5, cooldown=0.5),
}

Army = dict[str, int]  # number of units of each kind

MAPS: dict[str, tuple[Army, Army]] = {  # the agents' units and the enemies
    "3m": ({"marine": 3}, {"marine": 3}),
    "8m": ({"marine": 8}, {"marine": 8}),
    "25m": ({"marine": 25}, {"marine": 25}),
    "5m_vs_6m": ({"marine": 5}, {"marine": 6}),
    "8m_vs_9m": ({"marine": 8}, {"marine": 9}),
    "10m_vs_11m": ({"marine": 10}, {"marine": 11}),
    "27m_vs_30m": ({"marine": 27}, {"marine": 30}),
    "MMM": ({"marauder": 2, "marine": 7, "medivac": 1}, {"marauder": 2, "marine": 7, "medivac": 1}),
    "MMM2": ({"marauder": 2, "marine": 7, "medivac": 1}, {"marauder": 3, "marine": 8, "medivac": 1}),
    "2s3z": ({"stalker": 2, "zealot": 3}, {"stalker": 2, "zealot": 3}),
    "3s5z": ({"stalker": 3, "zealot": 5}, {"stalker": 3, "zealot": 5}),
    "3s5z_vs_3s6z": ({"stalker": 3, "zealot": 5}, {"stalker": 3, "zealot": 6}),
    "1c3s5z": ({"colossus": 1, "stalker": 3, "zealot": 5}, {"colossus": 1, "stalker": 3, "zealot": 5}),
    "3s_vs_3z": ({"stalker": 3}, {"zealot": 3}),
    "3s_vs_4z": ({"stalker": 3}, {"zealot": 4}),
    "3s_vs_5z": ({"stalker": 3}, {"zealot": 5}),
    "2m_vs_1z": ({"marine": 2}, {"zealot": 1}),
    "2s_vs_1sc": ({"stalker": 2}, {"spine_crawler": 1}),
    "6h_vs_8z": ({"hydralisk": 6}, {"zealot": 8}),
    "corridor": ({"zealot": 6}, {"zergling": 24}),
    "so_many_baneling": ({"zealot": 7}, {"baneling": 32}),
    "bane_vs_bane": ({"baneling": 4, "zergling": 20}, {"baneling": 4, "zergling": 20}),
    "2c_vs_64zg": ({"colossus": 2}, {"zergling": 64}),
    # SMACv2 fills these itself. Its three maps 10gen_* are one file, 32x32_flat; they had a file each at first.
    "32x32_flat": ({}, {}),
    "10gen_terran": ({}, {}),
    "10gen_protoss": ({}, {}),
    "10gen_zerg": ({}, {}),
}

# SMAC's maps give the agents unit types of their own, numbered from here in the alphabetical order of the kinds: those
# on the map in SMAC's, all that agents can be in SMACv2's. SMACv2 takes them for the last ones that the game has.
FIRST_AGENT_TYPE = 1970
AGENT_KINDS = sorted(KINDS.keys() - {"spine_crawler"})
UNIT_TYPES = FIRST_AGENT_TYPE + len(AGENT_KINDS)


class UnknownError(Exception):
    """The client asked for something that this game does not have."""


@dataclass(slots=True, eq=False)
class Unit:
    tag: int
    owner: int
    type: int  # as the client sees it
    kind: Kind
    x: float
    y: float
    health: float
    shield: float
    energy: float
    ready_at: float = 0  # frame from which on it can shoot
    hit_at: float = -math.inf  # frame of the last hit
    goal: tuple[float, float] | None = None  # a point to walk to
    target: "Unit | None" = None  # a unit to attack or heal
    reach_squared: float = 0  # of the distance between the two centres


class Battle:
    """Two groups of units on one field, one battle after another.

    Args:
        map_name: a key of `MAPS`.
        seed: of the places and cooldowns.
    """

    def __init__(self, map_name: str, seed: int | None):
        self.armies = dict(zip((AGENT, ENEMY), MAPS[map_name], strict=True))
        agent_kinds = sorted(self.armies[AGENT]) or AGENT_KINDS
        self.types = {
            AGENT: {name: FIRST_AGENT_TYPE + index for index, name in enumerate(agent_kinds)},
            ENEMY: {name: kind.number for name, kind in KINDS.items()},
        }
        self.kinds = {number: KINDS[name] for types in self.types.values() for name, number in types.items()}
        self.random = random.Random(seed)
        self.frame = 0
        self.battles = 0  # begun so far
        self.began_at = 0
        self.respawn_at: int | None = None
        self.next_tag = 1
        self.units: dict[int, Unit] = {}
        self.sides: dict[int, list[Unit]] = {AGENT: [], ENEMY: []}
        self.someone_died = False
        self._spawn()

    @property
    def age(self) -> int:
        """Frames since the present battle began."""
        return self.frame - self.began_at

    @property
    def decided(self) -> bool:
        """Whether one side stands alone on the field."""
        return bool(self.sides[AGENT]) != bool(self.sides[ENEMY])

    def create(self, type_number: int, owner: int, x: float, y: float) -> Unit:
        """Put a unit on the field, or at its edge if the place lies outside.

        Raises:
            UnknownError: there is no such unit type.
        """
        if type_number not in self.kinds:
            raise UnknownError(f"unit type {type_number}")
        if not self.units:
            self.battles += 1
            self.began_at = self.frame
        kind = self.kinds[type_number]
        energy = START_ENERGY if kind.heals else 0
        unit = Unit(self.next_tag, owner, type_number, kind, _within(x), _within(y), kind.health, kind.shield, energy)
        self.next_tag += 1
        self.units[unit.tag] = unit
        self.sides[owner].append(unit)
        return unit

    def order(self, tag: int, goal: tuple[float, float] | None = None, target_tag: int = 0) -> None:
        """Send one of the agents' units to a point or at a unit, or let it stand; the dead do not hear it."""
        unit = self.units.get(tag)
        if unit is not None and unit.owner == AGENT:
            unit.goal = goal
            _aim(unit, self.units.get(target_tag))

    def kill(self, tags) -> None:
        for tag in tags:
            if tag in self.units:
                self.units[tag].health = 0
        self._bury()

    def advance(self, frames: int) -> None:
        for _ in range(frames):
            self.frame += 1
            if self.frame == self.respawn_at:
                self._spawn()
            for unit in self.units.values():
                self._act(unit)
            if self.someone_died:  # only now, so that who acts first gains nothing
                self._bury()

    def _spawn(self) -> None:
        self.respawn_at = None
        for owner, army in self.armies.items():
            names = [name for name, count in army.items() for _ in range(count)]
            back = -1 if owner == AGENT else 1
            for index, name in enumerate(names):
                row, place = divmod(index, WIDTH)
                x = SIZE / 2 + back * (5 + row) + self.random.uniform(-1, 1)
                y = SIZE / 2 + place - min(len(names), WIDTH) / 2 + self.random.uniform(-0.3, 0.3)
                self.create(self.types[owner][name], owner, x, y)

    def _bury(self) -> None:
        self.someone_died = False
        self.units = {tag: unit for tag, unit in self.units.items() if unit.health > 0}
        for owner, side in self.sides.items():
            self.sides[owner] = [unit for unit in side if unit.health > 0]
        if not self.units and self.respawn_at is None and self.armies[AGENT]:
            self.respawn_at = self.frame + RESPAWN

    def _act(self, unit: Unit) -> None:
        kind = unit.kind
        if unit.shield < kind.shield and self.frame - unit.hit_at > SHIELD_DELAY:
            unit.shield = min(kind.shield, unit.shield + SHIELD_RATE)
        if kind.heals:
            unit.energy = min(MAX_ENERGY, unit.energy + ENERGY_RATE)
        target = unit.target
        # The tag spreads the enemies' searches over the frames.
        if unit.owner == ENEMY and (target is None or target.health <= 0 or (self.frame + unit.tag) % RETARGET == 0):
            _aim(unit, self._find_target(unit))
            target = unit.target
        if target is None:
            if unit.goal is not None:
                _walk(unit, *unit.goal)
        elif target.health <= 0:
            unit.target = None
        else:
            dx = target.x - unit.x
            dy = target.y - unit.y
            if dx * dx + dy * dy > unit.reach_squared:
                _walk(unit, target.x, target.y)
            elif kind.heals:
                _heal(unit, target)
            elif self.frame >= unit.ready_at:
                self._shoot(unit, target)

    def _find_target(self, unit: Unit) -> Unit | None:
        """An enemy's choice: the nearest foe, or for a healer the nearest friend that is hurt and no healer itself."""
        if unit.kind.heals:
            candidates = [friend for friend in self.sides[ENEMY] if friend.health < friend.kind.health]
            candidates = [friend for friend in candidates if not friend.kind.heals]
        else:
            candidates = self.sides[AGENT]
        nearest, least = None, math.inf
        for candidate in candidates:
            dx = candidate.x - unit.x
            dy = candidate.y - unit.y
            squared = dx * dx + dy * dy
            if squared < least:
                nearest, least = candidate, squared
        return nearest

    def _shoot(self, unit: Unit, target: Unit) -> None:
        kind = unit.kind
        unit.ready_at = self.frame + SLOWNESS[unit.owner] * SECOND * kind.cooldown + self.random.uniform(-1, 2)
        if kind.splash:
            for neighbour in self.sides[target.owner]:
                if math.hypot(neighbour.x - target.x, neighbour.y - target.y) <= kind.splash:
                    self._hurt(neighbour, kind.damage)
        else:
            self._hurt(target, kind.damage)
        if kind.explodes:
            unit.health = 0
            self.someone_died = True

    def _hurt(self, unit: Unit, damage: float) -> None:
        """The shield goes first."""
        absorbed = min(unit.shield, damage)
        unit.shield -= absorbed
        unit.health -= damage - absorbed
        unit.hit_at = self.frame
        if unit.health <= 0:
            self.someone_died = True


def _aim(unit: Unit, target: Unit | None) -> None:
    unit.target = target
    if target is not None:
        unit.reach_squared = (unit.kind.range + unit.kind.radius + target.kind.radius) ** 2


def _heal(unit: Unit, friend: Unit) -> None:
    healed = min(HEAL_RATE, friend.kind.health - friend.health, HEALTH_PER_ENERGY * unit.energy)
    friend.health += healed
    unit.energy -= healed / HEALTH_PER_ENERGY


def _walk(unit: Unit, x: float, y: float) -> None:
    dx = x - unit.x
    dy = y - unit.y
    distance = math.hypot(dx, dy)
    stride = unit.kind.speed / SECOND
    part = stride / distance if distance > stride else 1
    unit.x = _within(unit.x + part * dx)
    unit.y = _within(unit.y + part * dy)


def _within(coordinate: float) -> float:
    return min(max(coordinate, 0.5), SIZE - 0.5)
