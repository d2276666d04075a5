"""Faults of the stand-in game on command, so that whoever supervises games can be tested against every kind.

The environment variable `FAKE_SC2_FAULTS` holds them, such as `crash=0.05,hang=0.01`:

    refuse=P     the process ends before it listens
    deaf=P       it listens, but never answers the websocket handshake
    crash=P      it ends abruptly, with exit code 139
    hang=P       it stops answering, but lives on
    garbage=P    it answers once with bytes that are no message of the protocol
    drop=P       it closes the connection, but lives on for a while
    die_at=N     it crashes at its step request number N, counted from 1

P is a probability, for `refuse` and `deaf` of each start, for the others of each battle. A battle has at most one
fault. It strikes in place of the answer to the step request that reaches a random frame or decides the battle; a battle
that the client cuts before is spared. Chance is the operating system's, so that games of one seed fail differently.
"""

import math
import os
import random
import sys
import time
from typing import NoReturn

VARIABLE = "FAKE_SC2_FAULTS"
AT_START = ("refuse", "deaf")
IN_BATTLE = ("crash", "hang", "garbage", "drop")
LATEST = 160  # frame of a battle at which a fault strikes at the latest: 20 of SMAC's steps, few battles are shorter
CRASHED = 139  # what a shell reports after a segmentation fault
GARBAGE = b"\xff" * 16  # no field of a protobuf message starts with ten bytes above 127
# How long a fault lasts that ends only when somebody kills the process. It does end, lest a forgotten process stay.
HANGS = 900  # seconds, far more than the 360 that pysc2 waits for an answer
LINGERS = 60


def parse(text: str) -> dict[str, float]:
    """Read the value of the environment variable. Faults that it does not name have probability 0.

    Raises:
        ValueError: an unknown or repeated name, a number out of range, or faults of a battle with a sum above 1.
    """
    faults: dict[str, float] = {}
    for item in text.split(",") if text.strip() else []:
        item = item.strip()
        name, _, value = item.partition("=")
        if name not in (*AT_START, *IN_BATTLE, "die_at"):
            raise ValueError(f"{item!r}: no such fault; there are {', '.join((*AT_START, *IN_BATTLE, 'die_at'))}")
        if name in faults:
            raise ValueError(f"{name} stands twice")
        faults[name] = _step_number(item, value) if name == "die_at" else _probability(item, value)
    if math.fsum(faults.get(name, 0) for name in IN_BATTLE) > 1:
        raise ValueError(f"the probabilities of {', '.join(IN_BATTLE)} add up to more than 1")
    return faults


def _step_number(item: str, value: str) -> int:
    if not value.isdecimal() or int(value) == 0:
        raise ValueError(f"{item!r}: expected the number of a step request, counted from 1")
    return int(value)


def _probability(item: str, value: str) -> float:
    try:
        probability = float(value)
    except ValueError:
        probability = -1
    if not 0 <= probability <= 1:
        raise ValueError(f"{item!r}: expected a probability from 0 to 1")
    return probability


class Saboteur:
    """Decides when which fault happens.

    Args:
        faults: what `parse` returns.
        source: of random numbers.
    """

    def __init__(self, faults: dict[str, float], source: random.Random | None = None):
        self.faults = faults
        self.random = source or random.SystemRandom()
        self.steps = 0
        self.battles = 0
        self.fault: str | None = None  # in store for the present battle
        self.frame = 0  # of the battle, from which on it is due

    def at_start(self) -> str | None:
        """The fault of this start, if any."""
        for name in AT_START:
            if self.random.random() < self.faults.get(name, 0):
                return name
        return None

    def after_step(self, battle) -> str | None:
        """The fault that strikes now, in place of the answer to a step request, if any."""
        self.steps += 1
        if self.steps == self.faults.get("die_at"):
            return "crash"
        if battle.battles != self.battles:
            self.battles = battle.battles
            self._draw()
        if self.fault is not None and (battle.age >= self.frame or battle.decided):
            fault, self.fault = self.fault, None
            return fault
        return None

    def _draw(self) -> None:
        chances = [self.faults.get(name, 0) for name in IN_BATTLE]
        (self.fault,) = self.random.choices((*IN_BATTLE, None), (*chances, 1 - math.fsum(chances)))
        self.frame = self.random.randint(1, LATEST)


def refuse() -> NoReturn:
    announce("refuses to start")
    sys.exit(1)


def be_deaf() -> NoReturn:
    announce("is deaf: it listens, but will not answer")
    time.sleep(HANGS)
    sys.exit(1)


def strike_in_battle(fault: str, connection) -> None:
    """Do what one of the faults `IN_BATTLE` says. Only `garbage` returns."""
    if fault == "crash":
        announce("crashes")
        os._exit(CRASHED)
    elif fault == "hang":
        announce("hangs")
        time.sleep(HANGS)
        sys.exit(1)
    elif fault == "garbage":
        announce("answers with garbage")
        connection.send(GARBAGE)
    elif fault == "drop":
        announce("drops the connection")
        connection.close()
        time.sleep(LINGERS)
        sys.exit(1)


def announce(text: str) -> None:
    """One line, so that a supervisor can show it as the last that the game said."""
    print(f"fake SC2: {text} (fault on command, {VARIABLE})", file=sys.stderr, flush=True)
