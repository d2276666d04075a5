"""StarCraft II through SMAC: clear messages without the game, and whole episodes of real SMAC on a stand-in game."""

import importlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from google.protobuf import descriptor_pb2
from helpers import fake_sc2

from envs import s2clientprotocol_compat, sc2
from envs.multiagentenv import EnvCrash
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ENV_ARGS = yaml.safe_load((ROOT / "src/config/envs/sc2.yaml").read_text())["env_args"]


@pytest.fixture
def game(tmp_path, monkeypatch):
    """A folder that looks like StarCraft II with the maps 3m and 5m_vs_6m, and starts the stand-in game."""
    folder = fake_sc2("install").install(tmp_path / "StarCraftII", maps=("3m", "5m_vs_6m"))
    monkeypatch.setenv("SC2PATH", str(folder))
    return folder


class ScriptedSmac:
    """In place of SMAC's class where the package is not needed: returns what a test wrote down."""

    n_agents, episode_limit, battles_game = 3, 60, 0
    _sc2_proc = None
    fails = None

    def __init__(self, map_name="8m", difficulty="7", step_mul=8):
        self.difficulty = difficulty
        self.result = (0, False, {})

    def step(self, actions):
        if self.fails == "as SMAC notices it":
            try:
                raise NoAnswer("no answer")
            except NoAnswer:
                self.full_restart()
                return 0, True, {}
        if self.fails:
            raise NoAnswer("no answer")
        return self.result

    reset = step

    def full_restart(self):
        raise AssertionError("the adapter takes its place")

    def close(self):
        raise NoAnswer("the game is gone")


class NoAnswer(Exception):
    """In place of what pysc2 raises."""


@pytest.fixture
def scripted(game, monkeypatch):
    """The adapter over `ScriptedSmac`."""
    files = {name: f"SMAC_Maps/{name}.SC2Map" for name in ("3m", "8m", "5m_vs_6m")}
    arguments = ("map_name", "difficulty", "step_mul")
    monkeypatch.setattr(sc2, "load_smac", lambda: sc2.Smac(ScriptedSmac, arguments, files, (NoAnswer,)))
    return sc2.StarCraft2Env


# Messages without the game


def message(**env_args) -> str:
    with pytest.raises(UserError) as error:
        sc2.StarCraft2Env(**env_args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_without_the_game_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SC2PATH", str(tmp_path))
    (tmp_path / "Versions/Base75689").mkdir(parents=True)  # a version without its binary
    text = message(**ENV_ARGS)
    assert f"{tmp_path} (from SC2PATH)" in text
    assert "Versions/Base*/SC2_x64" in text
    assert "install_sc2.sh" in text
    assert "--env-config=smax" in text


def test_without_sc2path_the_default_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("SC2PATH", raising=False)
    monkeypatch.setattr(sc2, "DEFAULT_GAME", tmp_path / "nothing")
    assert f"{tmp_path / 'nothing'} (the default, as SC2PATH is not set)" in message(**ENV_ARGS)
    assert sc2.DEFAULT_GAME.name == "nothing"
    assert "SC2PATH" not in sc2.os.environ  # so that the message stays true the next time


def test_the_default_folder_becomes_sc2path(game, monkeypatch):
    monkeypatch.setenv("SC2PATH", "")
    monkeypatch.setattr(sc2, "DEFAULT_GAME", game)
    assert sc2.find_game() == game
    assert sc2.os.environ["SC2PATH"] == str(game)


def test_a_missing_package_is_named(game, monkeypatch):
    monkeypatch.setitem(sys.modules, "smac", None)
    text = message(**ENV_ARGS)
    assert "package smac (StarCraft Multi-Agent Challenge) is not installed" in text
    assert "install_sc2.sh" in text
    assert "--env-config=smax" in text


@pytest.fixture
def other_smac(tmp_path, monkeypatch):
    """Puts a package named smac, of these files, before any other for the length of a test. Returns its folder."""
    folder = tmp_path / "site/smac"
    monkeypatch.syspath_prepend(tmp_path / "site")

    def make(files: dict[str, str]) -> Path:
        for name, source in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(source)
        return folder

    loaded = forget("smac")
    yield make
    forget("smac")
    sys.modules.update(loaded)


def forget(package: str) -> dict:
    """Take a package out of Python's memory, so that it is searched for anew. Returns the modules taken."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if f"{name}.".startswith(f"{package}.")}


def test_automl_smac_is_recognised(game, other_smac):
    folder = other_smac({"__init__.py": "raise AssertionError('nothing of it may run')", "facade/__init__.py": ""})
    text = message(**ENV_ARGS)
    assert str(folder) in text
    assert "AutoML" in text
    assert "pip uninstall smac" in text


def test_a_package_that_smac_lacks_is_named(game, other_smac):
    other_smac({"__init__.py": "", "env/__init__.py": "import no_such_package", "env/starcraft2/__init__.py": ""})
    assert "does not load: No module named 'no_such_package'" in message(**ENV_ARGS)


def test_a_missing_map_file_is_named(game, scripted):
    text = message(map_name="8m")
    assert f"{game}/Maps/SMAC_Maps/8m.SC2Map is missing" in text
    assert "install_sc2.sh" in text


def test_a_map_in_the_wrong_folder_is_found(game, scripted):
    (game / "Maps/8m.SC2Map").touch()
    assert f"it lies in {game}/Maps, move it" in message(map_name="8m")


def test_an_unknown_map_names_the_nearest(scripted):
    text = message(map_name="5M_6M")
    assert "did you mean '5m_vs_6m'?" in text
    assert "3m, 5m_vs_6m, 8m" in text


def test_an_unknown_argument_names_the_nearest(scripted):
    text = message(step_mull=4)
    assert "env_args.step_mull: StarCraft2Env has no such argument (did you mean 'step_mul'?)" in text


# What the adapter changes


@pytest.mark.parametrize("how", ["as SMAC notices it", "as SMAC does not notice it"])
def test_a_crash_of_the_game_is_an_error_not_a_defeat(scripted, how):
    env = scripted()
    env.env.fails = how
    message = r"crashed, stopped answering or did not start on 3m \(NoAnswer: no answer\)"
    with pytest.raises(EnvCrash, match=message):
        env.step([1, 1, 1])
    env.env.reset = lambda: env.env.step([])
    with pytest.raises(EnvCrash, match=message):
        env.reset()
    env.close()


def test_info_holds_numbers(scripted):
    env = scripted()
    env.env.result = (np.float64(1.5), True, {"battle_won": True, "dead_allies": 2, "episode_limit": True})
    reward, terminated, info = env.step([1, 1, 1])
    assert (reward, terminated, info) == (1.5, True, {"battle_won": 1.0, "dead_allies": 2.0, "episode_limit": True})
    assert [type(value) for value in info.values()] == [float, float, bool]


def test_difficulty_may_be_a_number(scripted):
    assert scripted(difficulty=7).env.difficulty == "7"  # as in `with env_args.difficulty=7`


def test_before_the_first_battle(scripted):
    env = scripted()
    assert env.get_stats() == {}
    with pytest.raises(RuntimeError, match="call reset"):
        env.save_replay()


# The protocol's messages


def test_old_generated_messages_are_rebuilt(tmp_path, monkeypatch):
    """Two modules as the old protoc wrote them, the second one using the first; both would fail if they ran."""
    unit = descriptor_pb2.FileDescriptorProto(name="old_protocol/unit.proto", package="Old")
    unit.message_type.add(name="Unit").field.add(name="health", number=1, type="TYPE_FLOAT", label="LABEL_OPTIONAL")
    race = unit.enum_type.add(name="Race")
    race.value.add(name="Terran", number=1)
    team = descriptor_pb2.FileDescriptorProto(name="old_protocol/team.proto", package="Old", dependency=[unit.name])
    team.message_type.add(name="Team").field.add(
        name="units", number=1, type="TYPE_MESSAGE", type_name=".Old.Unit", label="LABEL_REPEATED"
    )
    (tmp_path / "old_protocol").mkdir()
    for file, literal in (
        (unit, f"_b({unit.SerializeToString().decode('latin1')!r})"),
        (team, team.SerializeToString()),
    ):
        source = f"raise TypeError('Descriptors cannot be created directly')\nFileDescriptor(serialized_pb={literal})\n"
        (tmp_path / file.name.replace(".proto", "_pb2.py")).write_text(source, encoding="utf-8")
    (tmp_path / "old_protocol/new_pb2.py").write_text("loaded_by_python = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))

    s2clientprotocol_compat.install("old_protocol")
    s2clientprotocol_compat.install("old_protocol")  # once is enough
    assert len(sys.meta_path) == len(set(map(id, sys.meta_path)))
    team_pb2 = importlib.import_module("old_protocol.team_pb2")
    unit_pb2 = importlib.import_module("old_protocol.unit_pb2")
    packed = team_pb2.Team(units=[unit_pb2.Unit(health=45)]).SerializeToString()
    assert team_pb2.Team.FromString(packed).units[0].health == 45
    assert unit_pb2.Terran == unit_pb2.Race.Value("Terran") == 1
    assert importlib.import_module("old_protocol.new_pb2").loaded_by_python
    forget("old_protocol")


# Real SMAC and pysc2 on the stand-in game

needs_smac = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("smac", "pysc2", "s2clientprotocol")),
    reason="SMAC is not installed (`bash install_sc2.sh` does it)",
)


@pytest.fixture
def make_env(game):
    """Builds environments with the arguments of sc2.yaml, and closes them."""
    envs = []

    def make(**env_args):
        envs.append(sc2.StarCraft2Env(**{**ENV_ARGS, "seed": 1, **env_args}))
        return envs[-1]

    yield make
    for env in envs:
        env.close()


def play(env, choose) -> list[tuple[float, bool, dict]]:
    """One episode in which each agent takes `choose(its available actions)`; checks every shape on the way."""
    obs, state = env.reset()
    steps = []
    while not steps or not steps[-1][1]:
        avail = env.get_avail_actions()
        assert np.shape(avail) == (env.n_agents, env.get_total_actions())
        assert np.shape(obs) == (env.n_agents, env.get_obs_size())
        assert state.shape == (env.get_state_size(),)
        steps.append(env.step([choose(np.flatnonzero(row)) for row in avail]))
        obs, state = env.get_obs(), env.get_state()
    return steps


def stand(actions: np.ndarray) -> int:
    return int(min(actions))  # stop; no-op when dead


def fight(actions: np.ndarray) -> int:
    """Attack the first enemy in reach, else wait for one."""
    return int(actions[actions > 5][0]) if (actions > 5).any() else stand(actions)


@needs_smac
def test_whole_episodes_are_lost_and_won(make_env):
    env = make_env()
    assert env.get_env_info() == {
        "state_shape": 48,
        "obs_shape": 30,
        "n_actions": 9,
        "n_agents": 3,
        "episode_limit": 60,
        "individual_reward": False,
    }
    assert env.seed() == 1

    *_, (_, terminated, info) = play(env, stand)
    assert terminated
    assert info == {"battle_won": 0.0, "dead_allies": 3.0, "dead_enemies": 0.0}

    steps = play(env, fight)
    assert steps[-1][2]["battle_won"] == 1.0
    assert steps[-1][2]["dead_enemies"] == 3.0
    assert sum(reward for reward, _, _ in steps) == pytest.approx(20)  # reward_scale_rate: nothing was missed
    assert env.get_stats() == {
        "battles_won": 1, "battles_game": 2, "battles_draw": 0, "win_rate": 0.5, "timeouts": 0, "restarts": 0,
    }  # fmt: skip

    path = env.save_replay()
    (replay,) = (Path(sc2.os.environ["SC2PATH"]) / "Replays").iterdir()
    assert f"{replay}" == path
    assert replay.name.startswith("3m_seed1_")
    env.close()
    env.close()


@needs_smac
@pytest.mark.parametrize("continuing", [False, True])
def test_the_time_limit_is_a_truncation_where_smac_says_so(make_env, continuing):
    env = make_env(map_name="5m_vs_6m", continuing_episode=continuing)
    env.env.episode_limit = 2
    steps = play(env, stand)
    assert len(steps) == 2
    assert steps[-1][1] is True
    assert steps[-1][2].get("episode_limit", False) is continuing


@needs_smac
@pytest.mark.parametrize("battles", [0, 1])
def test_a_killed_game_is_an_error_and_leaves_no_process(make_env, battles):
    """In the first battle, too, where SMAC itself would start a second game and lose sight of the first."""
    env = make_env()
    for _ in range(battles):
        play(env, fight)
    env.reset()
    game = env.env._sc2_proc._proc
    game.kill()
    with pytest.raises(EnvCrash, match="3m"):
        env.step([1, 1, 1])
    assert env.env._sc2_proc._proc is game
    env.close()
    assert game.returncode is not None


@needs_smac
@pytest.mark.parametrize(("fault", "reason"), [("garbage=1", "DecodeError"), ("refuse=1", "ConnectError")])
def test_a_game_that_answers_nonsense_or_does_not_start_is_an_error(make_env, monkeypatch, fault, reason):
    monkeypatch.setenv("FAKE_SC2_FAULTS", fault)
    env = make_env()
    with pytest.raises(EnvCrash, match=reason):
        play(env, fight)


@needs_smac
def test_a_renderer_that_does_not_load_is_named(make_env, monkeypatch):
    forget("smac.env.starcraft2.render")
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(UserError, match="renderer does not load here"):
        make_env().render()
