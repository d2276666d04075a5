"""The stand-in for StarCraft II: its rules and its faults alone, then the real SMAC, SMACv2 and pysc2 on it."""

import importlib
import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import fake_sc2

from envs import s2clientprotocol_compat

ROOT = Path(__file__).resolve().parents[2]
FAKE = ROOT / "tests/fake_sc2"


battle, connection, faults = fake_sc2("battle"), fake_sc2("connection"), fake_sc2("faults")
AGENT, ENEMY = battle.AGENT, battle.ENEMY
SMAC_MAPS = [name for name, (agents, _) in battle.MAPS.items() if agents]


# The rules of the battle


@pytest.fixture
def field():
    """An empty field."""
    return battle.Battle("32x32_flat", seed=0)


def put(field, kind: str, owner: int, x: float, y: float = 16):
    return field.create(field.types[owner][kind], owner, x, y)


def test_a_shot_takes_health_and_the_next_one_waits(field):
    marine, foe = put(field, "marine", AGENT, 10), put(field, "marauder", ENEMY, 15)
    foe.ready_at = 1000  # it does not shoot back
    field.order(marine.tag, target_tag=foe.tag)
    field.advance(1)
    assert foe.health == 125 - 6
    cooldown = marine.ready_at - field.frame
    assert 13.664 - 1 <= cooldown <= 13.664 + 2  # 0.61 s
    field.advance(int(cooldown))
    assert foe.health == 125 - 6
    field.advance(1)
    assert foe.health == 125 - 12


def test_the_shield_goes_first_and_recharges_after_ten_seconds(field):
    marine, stalker = put(field, "marine", AGENT, 10), put(field, "stalker", ENEMY, 15)
    stalker.ready_at = 1000
    stalker.shield = 4
    field.order(marine.tag, target_tag=stalker.tag)
    field.advance(1)
    assert (stalker.shield, stalker.health) == (0, 78)
    field.order(marine.tag)
    field.advance(224)
    assert stalker.shield == 0
    field.advance(10)
    assert stalker.shield == pytest.approx(10 * 2 / 22.4)
    field.advance(2000)
    assert (stalker.shield, stalker.health) == (80, 78)


def test_shots_reach_from_edge_to_edge(field):
    near, far = put(field, "marine", AGENT, 10), put(field, "marine", AGENT, 9.99)
    foe = put(field, "marine", ENEMY, 15.75)  # 5, and twice the radius of 0.375
    foe.ready_at = 1000
    for unit in (near, far):
        field.order(unit.tag, target_tag=foe.tag)
    field.advance(1)
    assert foe.health == 45 - 6
    assert (near.x, far.x) == (10, pytest.approx(9.99 + 3.15 / 22.4))  # the other one comes nearer


def test_walking_speed(field):
    marine, stalker = put(field, "marine", AGENT, 10), put(field, "stalker", AGENT, 10, 10)
    field.order(marine.tag, goal=(10, 18))
    field.order(stalker.tag, goal=(9, 10))
    field.advance(8)
    assert (marine.x, marine.y) == (10, pytest.approx(16 + 8 * 3.15 / 22.4))
    assert (stalker.x, stalker.y) == (9, 10)  # 4.13 would take it further than its goal
    field.advance(8)
    assert marine.y == 18


def test_nobody_leaves_the_field(field):
    marine = put(field, "marine", AGENT, 1, 40)
    assert (marine.x, marine.y) == (1, 31.5)
    field.order(marine.tag, goal=(-5, 40))
    field.advance(50)
    assert (marine.x, marine.y) == (0.5, 31.5)


def test_agents_do_only_what_they_are_told(field):
    marine, foe = put(field, "marine", AGENT, 10), put(field, "marine", ENEMY, 13)
    foe.ready_at = 1000
    field.advance(50)
    assert (marine.x, foe.health) == (10, 45)
    field.order(foe.tag, goal=(30, 16))  # not the client's
    field.order(999, goal=(30, 16))  # dead
    field.advance(50)
    assert foe.x == 13


def test_enemies_go_for_the_nearest_foe(field):
    put(field, "stalker", AGENT, 4)
    near = put(field, "stalker", AGENT, 12, 20)
    foe = put(field, "marine", ENEMY, 25)
    field.advance(8)
    assert foe.target is near
    assert foe.x < 25
    nearer = put(field, "stalker", AGENT, 20)
    field.advance(8)
    assert foe.target is nearer
    field.kill([nearer.tag])
    field.advance(1)
    assert foe.target is near


def test_enemies_shoot_half_as_often(field):
    stalker, foe = put(field, "stalker", AGENT, 10), put(field, "marine", ENEMY, 13)
    field.advance(1)
    assert stalker.shield == 80 - 6
    assert 2 * 13.664 - 1 <= foe.ready_at - field.frame <= 2 * 13.664 + 2


def test_medivacs_heal_while_their_energy_lasts(field):
    medivac, marine = put(field, "medivac", AGENT, 10), put(field, "marine", AGENT, 12)
    marine.health = 20
    field.order(medivac.tag, target_tag=marine.tag)
    field.advance(1)
    assert marine.health == pytest.approx(20 + 12.6 / 22.4)
    assert medivac.energy == pytest.approx(50 + 0.7875 / 22.4 - 12.6 / 22.4 / 3)
    field.advance(100)
    assert marine.health == 45
    marine.health, medivac.energy = 20, 1
    field.advance(20)
    assert marine.health == pytest.approx(20 + 3 * (1 + 20 * 0.7875 / 22.4))  # what was left, and what came back
    foe = put(field, "zealot", ENEMY, 12, 14)
    field.order(medivac.tag, target_tag=foe.tag)
    field.advance(1)
    assert foe.health == 100


def test_enemy_medivacs_choose_the_wounded(field):
    put(field, "zealot", AGENT, 1)
    medivac, other = put(field, "medivac", ENEMY, 25), put(field, "medivac", ENEMY, 26)
    well, wounded = put(field, "marine", ENEMY, 27), put(field, "spine_crawler", ENEMY, 31)
    other.health = 10  # flies, cannot be healed
    wounded.health = 100
    field.advance(8)
    assert medivac.target is wounded
    assert (well.health, wounded.health > 100) == (45, True)


def test_banelings_explode_among_their_foes(field):
    baneling = put(field, "baneling", AGENT, 10)
    near, far = put(field, "zergling", ENEMY, 10.5), put(field, "zergling", ENEMY, 14)
    friend = put(field, "zergling", AGENT, 10.5)
    for foe in (near, far):
        foe.ready_at = 1000
    field.order(baneling.tag, target_tag=near.tag)
    field.advance(1)
    assert (near.health, far.health, friend.health) == (15, 35, 35)
    assert baneling.tag not in field.units
    assert field.sides[AGENT] == [friend]


def test_the_last_frame_of_a_duel_kills_both(field):
    agent, foe = put(field, "marine", AGENT, 10), put(field, "marine", ENEMY, 12)
    agent.health = foe.health = 1
    field.order(agent.tag, target_tag=foe.tag)
    field.advance(1)
    assert field.units == {}


def test_an_empty_field_fills_again():
    field = battle.Battle("3m", seed=0)
    first = list(field.units)
    assert (field.battles, len(first)) == (1, 6)
    field.advance(10)
    field.kill([*first[:3], 999])
    assert field.decided
    field.kill(first)
    field.advance(2)
    assert field.units == {}
    assert not field.decided
    field.advance(1)
    assert (field.battles, field.age, len(field.units)) == (2, 0, 6)
    assert not set(first) & set(field.units)  # a tag never comes back


def test_the_field_of_smacv2_stays_empty(field):
    assert field.battles == 0
    marine = put(field, "marine", AGENT, 10)
    field.kill([marine.tag])
    field.advance(10)
    assert field.units == {}
    assert field.battles == 1
    put(field, "marine", AGENT, 10)
    assert (field.battles, field.age) == (2, 0)


def test_agents_have_unit_types_of_their_own():
    def types(name, owner):
        return sorted({unit.type for unit in battle.Battle(name, 0).units.values() if unit.owner == owner})

    assert types("MMM2", AGENT) == [1970, 1971, 1972]
    assert types("MMM2", ENEMY) == [48, 51, 54]
    assert types("bane_vs_bane", AGENT) == [1970, 1971]
    on_mmm = battle.Battle("MMM", 0).types[AGENT]
    assert sorted(on_mmm, key=on_mmm.get) == ["marauder", "marine", "medivac"]  # as SMAC numbers them
    in_smacv2 = battle.Battle("10gen_zerg", 0).types[AGENT]
    assert (in_smacv2["baneling"], in_smacv2["zergling"]) == (1970, 1978)
    assert battle.UNIT_TYPES == 1979


def test_an_unknown_unit_type_is_named(field):
    with pytest.raises(battle.UnknownError, match="unit type 1"):
        field.create(1, AGENT, 10, 10)


def test_the_seed_decides_the_battle():
    def play(seed):
        field = battle.Battle("8m", seed)
        field.advance(300)
        return [(unit.x, unit.y, unit.health) for unit in field.units.values()]

    assert play(1) == play(1) != play(2)


# The websocket


@pytest.mark.parametrize("size", [0, 1, 4, 7, 1000])
def test_unmasking(size):
    payload, mask = random.Random(size).randbytes(size), b"\x00\x81\xff\x10"
    assert connection.unmask(payload, mask) == bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


# When faults strike


def test_faults_are_read():
    assert faults.parse("") == {}
    assert faults.parse(" crash=0.05, drop=.01,die_at=7 ") == {"crash": 0.05, "drop": 0.01, "die_at": 7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crush=0.1", "'crush=0.1': no such fault; there are refuse, deaf, crash, hang, garbage, drop, die_at"),
        ("crash", "'crash': expected a probability"),
        ("crash=often", "'crash=often': expected a probability"),
        ("crash=nan", "expected a probability"),
        ("hang=1.5", "'hang=1.5': expected a probability from 0 to 1"),
        ("die_at=0", "'die_at=0': expected the number of a step request"),
        ("die_at=0.5", "'die_at=0.5': expected the number of a step request"),
        ("crash=0.1,crash=0.2", "crash stands twice"),
        ("crash=0.1,,hang=0.2", "'': no such fault"),
        ("crash=0.6,hang=0.6", "add up to more than 1"),
    ],
)
def test_bad_faults_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        faults.parse(text)


def strikes(text: str, battles: int, length: int = 60) -> list[str | None]:
    """What happens in each of so many battles of `length` steps of 8 frames."""
    saboteur = faults.Saboteur(faults.parse(text), random.Random(0))
    happened = []
    for number in range(1, battles + 1):
        states = (SimpleNamespace(battles=number, age=8 * step, decided=False) for step in range(1, length + 1))
        happened.append([fault for fault in map(saboteur.after_step, states) if fault])
    assert all(len(each) <= 1 for each in happened)
    return [each[0] if each else None for each in happened]


def test_a_battle_has_a_fault_as_often_as_commanded():
    happened = strikes("crash=0.3,hang=0.1", 2000)
    assert happened.count("crash") == pytest.approx(600, abs=100)  # five standard deviations
    assert happened.count("hang") == pytest.approx(200, abs=67)
    assert happened.count(None) == 2000 - happened.count("crash") - happened.count("hang")
    assert set(strikes("", 100)) == {None}
    assert set(strikes("garbage=0.7,drop=0.2,crash=0.1", 100)) == {"garbage", "drop", "crash"}


def test_a_fault_strikes_anywhere_in_the_first_twenty_steps():
    assert strikes("drop=1", 50, length=20) == ["drop"] * 50
    assert 0 < strikes("drop=1", 50, length=10).count("drop") < 50


def test_a_short_battle_is_not_spared():
    saboteur = faults.Saboteur({"crash": 1})
    saboteur.frame = faults.LATEST
    assert saboteur.after_step(SimpleNamespace(battles=1, age=1, decided=True)) == "crash"


def test_the_step_to_die_at_counts_over_all_battles():
    saboteur = faults.Saboteur({"die_at": 3})
    happened = [saboteur.after_step(SimpleNamespace(battles=step, age=8, decided=False)) for step in range(1, 5)]
    assert happened == [None, None, "crash", None]


def test_faults_of_the_start():
    assert faults.Saboteur({"refuse": 1, "deaf": 1}).at_start() == "refuse"
    assert faults.Saboteur({"deaf": 1}).at_start() == "deaf"
    assert faults.Saboteur({"crash": 1}).at_start() is None


# The game as a process, spoken to directly

needs_smac = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("smac", "pysc2", "s2clientprotocol", "websocket")),
    reason="SMAC is not installed (`bash install_sc2.sh` does it)",
)


class Client:
    """Starts a game and asks it."""

    def __init__(self, text: str):
        s2clientprotocol_compat.install()
        self.messages = importlib.import_module("s2clientprotocol.sc2api_pb2")
        self.websocket = importlib.import_module("websocket")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, FAKE, "-listen", "127.0.0.1", "-port", str(self.port), "-dataDir", "elsewhere"],
            env=os.environ | {faults.VARIABLE: text},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.stderr = self.process.stderr
        self.socket: Any = None

    def connect(self, timeout: float = 10) -> None:
        """Raises: ConnectionRefusedError: the process ended without listening."""
        while True:
            try:
                self.socket = self.websocket.create_connection(f"ws://127.0.0.1:{self.port}/sc2api", timeout=timeout)
                return
            except ConnectionRefusedError:
                if self.process.poll() is not None:
                    raise
                time.sleep(0.02)

    def ask(self, **request):
        """The answer to a request. After one second without any, the websocket's timeout is raised."""
        self.socket.settimeout(1)
        self.socket.send(self.messages.Request(**request).SerializeToString())
        return self.messages.Response.FromString(self.socket.recv())

    def join(self, name: str = "3m") -> None:
        self.connect()
        self.ask(create_game=self.messages.RequestCreateGame(local_map={"map_path": f"SMAC_Maps/{name}.SC2Map"}))
        assert self.ask(join_game=self.messages.RequestJoinGame()).status == self.messages.in_game

    def step(self, count: int = faults.LATEST):
        """By default so far that a fault of this battle happens."""
        return self.ask(step=self.messages.RequestStep(count=count))

    def said(self) -> str:
        """Ends the process. Returns what it has printed."""
        self.process.kill()
        return self.stderr.read()

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.process.kill()
        self.process.wait()
        self.stderr.close()


@pytest.fixture
def start():
    """Starts a game with the faults of a text."""
    clients = []

    def make(text: str = ""):
        clients.append(Client(text))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@needs_smac
def test_requests_without_smac(start):
    client = start()
    client.join()
    messages = client.messages
    units = client.ask(observation=messages.RequestObservation()).observation.observation.raw_data.units
    assert [(unit.owner, unit.health, unit.pos.x < 16) for unit in units] == [(1, 45, True)] * 3 + [(2, 45, False)] * 3
    assert client.step(5).step.simulation_loop == 5
    assert client.ask(restart_game=messages.RequestRestartGame()).status == messages.in_game
    assert client.ask(observation=messages.RequestObservation()).observation.observation.game_loop == 0
    assert len(client.ask(data=messages.RequestData()).data.units) == battle.UNIT_TYPES
    assert client.ask(leave_game=messages.RequestLeaveGame()).status == messages.launched
    assert client.ask(quit=messages.RequestQuit()).status == messages.quit
    assert client.process.wait(5) == 0


@needs_smac
def test_unknown_requests_are_named(start):
    client = start()
    client.join()
    messages = client.messages
    unknown_ability = {"actions": [{"action_raw": {"unit_command": {"ability_id": 5, "unit_tags": [1]}}}]}
    unknown_unit = {"debug": [{"create_unit": {"unit_type": 1, "owner": 1, "pos": {"x": 1, "y": 1}, "quantity": 1}}]}
    for request, name in (
        ({"replay_info": messages.RequestReplayInfo()}, "the request replay_info"),
        ({"action": messages.RequestAction(**unknown_ability)}, "the ability 5"),
        ({"debug": messages.RequestDebug(debug=[{"end_game": {}}])}, "the debug command end_game"),
        ({"debug": messages.RequestDebug(**unknown_unit)}, "unit type 1"),
    ):
        assert list(client.ask(**request).error) == [f"the stand-in game does not know {name}"]
    assert client.step().error == []


@needs_smac
def test_crash(start):
    client = start("crash=1")
    client.join()
    with pytest.raises((client.websocket.WebSocketConnectionClosedException, ConnectionError)):
        client.step()
    assert client.process.wait(5) == 139
    assert client.said() == "fake SC2: crashes (fault on command, FAKE_SC2_FAULTS)\n"


@needs_smac
def test_hang(start):
    client = start("hang=1")
    client.join()
    with pytest.raises(client.websocket.WebSocketTimeoutException):
        client.step()
    assert client.process.poll() is None
    assert client.said() == "fake SC2: hangs (fault on command, FAKE_SC2_FAULTS)\n"


@needs_smac
def test_garbage(start):
    client = start("garbage=1")
    client.join()
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    with pytest.raises(decode_error):
        client.step()
    assert client.step(1).step.simulation_loop == faults.LATEST + 1  # once a battle
    assert client.said() == "fake SC2: answers with garbage (fault on command, FAKE_SC2_FAULTS)\n"


@needs_smac
def test_drop(start):
    client = start("drop=1")
    client.join()
    with pytest.raises((client.websocket.WebSocketConnectionClosedException, ConnectionError)):
        client.step()
    time.sleep(0.1)
    assert client.process.poll() is None
    assert client.said() == "fake SC2: drops the connection (fault on command, FAKE_SC2_FAULTS)\n"


@needs_smac
def test_die_at(start):
    client = start("die_at=3")
    client.join()
    assert [client.step(8).step.simulation_loop for _ in range(2)] == [8, 16]
    with pytest.raises((client.websocket.WebSocketConnectionClosedException, ConnectionError)):
        client.step(8)
    assert client.process.wait(5) == 139


@needs_smac
def test_refuse(start):
    client = start("refuse=1")
    with pytest.raises(ConnectionRefusedError):
        client.connect()
    assert client.process.wait(5) == 1
    assert client.said() == "fake SC2: refuses to start (fault on command, FAKE_SC2_FAULTS)\n"


@needs_smac
def test_deaf(start):
    client = start("deaf=1")
    with pytest.raises((client.websocket.WebSocketTimeoutException, TimeoutError)):
        client.connect(timeout=0.5)
    assert client.process.poll() is None
    assert client.said() == "fake SC2: is deaf: it listens, but will not answer (fault on command, FAKE_SC2_FAULTS)\n"


@needs_smac
def test_a_bad_command_ends_the_game(start):
    client = start("crush=1")
    assert client.process.wait(10) == 2
    assert "FAKE_SC2_FAULTS: 'crush=1': no such fault" in client.said()


# Real SMAC, SMACv2 and pysc2


@pytest.fixture
def game(tmp_path, monkeypatch):
    """A folder that looks like StarCraft II with all maps."""
    monkeypatch.setenv("SC2PATH", str(fake_sc2("install").install(tmp_path, battle.MAPS)))


@pytest.fixture
def make_env(game, monkeypatch):
    """Builds SMAC's own environments, and closes them."""
    s2clientprotocol_compat.install()
    env_class = importlib.import_module("smac.env").StarCraft2Env
    # pysc2 tries to connect once a second; the stand-in starts faster.
    controller = importlib.import_module("pysc2.lib.remote_controller")
    monkeypatch.setattr(controller, "time", SimpleNamespace(sleep=lambda seconds, sleep=time.sleep: sleep(0.02)))
    envs = []

    def make(name: str):
        envs.append(env_class(map_name=name, seed=1))
        return envs[-1]

    yield make
    for env in envs:
        env.close()


def advance_and_fight(env) -> list[int]:
    """Attack or heal one in reach, else walk towards the enemies."""
    rows = [np.flatnonzero(row) for row in env.get_avail_actions()]
    return [int(row[-1] if row[-1] > 5 else 4 if 4 in row else row[0]) for row in rows]


@needs_smac
def test_every_map_of_smac_is_there():
    s2clientprotocol_compat.install()
    registry = importlib.import_module("smac.env.starcraft2.maps.smac_maps").get_smac_map_registry()
    sizes = {name: (params["n_agents"], params["n_enemies"]) for name, params in registry.items()}
    assert sizes == {name: tuple(sum(army.values()) for army in battle.MAPS[name]) for name in SMAC_MAPS}


@needs_smac
@pytest.mark.parametrize("name", SMAC_MAPS)
def test_smac_plays_an_episode(make_env, name):
    env = make_env(name)
    env.reset()
    total, terminated, info = 0.0, False, {}
    while not terminated:
        reward, terminated, info = env.step(advance_and_fight(env))
        total += reward
    assert info["dead_allies"] + info["dead_enemies"] > 0
    assert 0 < total < 25  # 20 for a battle won, and a little for shields that were shot down twice
    obs, state = env.reset()
    assert np.isfinite(obs).all()
    assert state.shape == (env.get_state_size(),)
    agents = [agent.unit_type for agent in env.agents.values()]
    assert sorted(set(agents)) == list(range(1970, 1970 + len(battle.MAPS[name][0])))


@needs_smac
def test_smac_starts_a_crashed_game_again(make_env, monkeypatch):
    monkeypatch.setenv(faults.VARIABLE, "die_at=3")
    env = make_env("3m")
    env.reset()
    assert [env.step(advance_and_fight(env))[1] for _ in range(2)] == [False, False]
    monkeypatch.delenv(faults.VARIABLE)
    assert env.step(advance_and_fight(env)) == (0, True, {})
    assert env.force_restarts == 1
    env.reset()
    assert env.step(advance_and_fight(env))[2] == {"battle_won": False, "dead_allies": 0, "dead_enemies": 0}


needs_smacv2 = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("smacv2", "pysc2", "s2clientprotocol")),
    reason="SMACv2 is not installed",
)

SMACV2 = """
import json
import numpy as np
from envs import s2clientprotocol_compat
s2clientprotocol_compat.install()
from smacv2.env import StarCraftCapabilityEnvWrapper

team = {
    "dist_type": "weighted_teams", "observe": True, "unit_types": ["marine", "marauder", "medivac"],
    "weights": [0.45, 0.45, 0.1], "exception_unit_types": ["medivac"],
}
places = {"dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": 32, "map_y": 32}
env = StarCraftCapabilityEnvWrapper(
    map_name="10gen_terran", conic_fov=True, use_unit_ranges=True,
    capability_config={"n_units": 5, "n_enemies": 6, "team_gen": team, "start_positions": places},
)
episodes = []
for _ in range(2):
    env.reset()
    types = sorted(unit.unit_type for unit in env.env.agents.values())
    terminated, info = False, {}
    while not terminated:
        rows = [np.flatnonzero(row) for row in env.get_avail_actions()]
        _, terminated, info = env.step([int(row[-1]) for row in rows])
    episodes.append({"types": types, "enemies": len(env.env.enemies), "info": info})
env.close()
print(json.dumps(episodes))
"""


@needs_smacv2
def test_smacv2_plays_episodes(game):
    """In a process of its own: SMAC and SMACv2 register maps of the same names with pysc2."""
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": path}
    result = subprocess.run([sys.executable, "-c", SMACV2], env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    for episode in json.loads(result.stdout.splitlines()[-1]):
        assert (len(episode["types"]), episode["enemies"]) == (5, 6)
        assert set(episode["types"]) <= {1973, 1974, 1975}  # marauder, marine, medivac among the nine
        assert "battle_won" in episode["info"]
