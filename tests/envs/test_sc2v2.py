"""SMACv2: clear messages without it, and battles of the real package on the stand-in game, in processes of their own.

SMAC and SMACv2 cannot be loaded in one process, so the battles here run as they do in training: in worker processes.
"""

import importlib.util
import sys

import pytest
import torch
from helpers import fake_sc2

from config.schema import load
from envs import sc2v2
from envs.process_env import ProcessVectorEnv
from utils.errors import UserError

needs_smacv2 = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("smacv2", "pysc2", "s2clientprotocol")),
    reason="SMACv2 is not installed (`bash install_sc2.sh --smacv2` does it)",
)


@pytest.fixture
def game(tmp_path, monkeypatch):
    """A folder that looks like StarCraft II with SMACv2's map, and starts the stand-in game."""
    folder = fake_sc2("install").install(tmp_path / "StarCraftII", maps=("32x32_flat",))
    monkeypatch.setenv("SC2PATH", str(folder))
    return folder


def env_args(env_config="sc2_gen_terran", **overrides) -> dict:
    return load("qmix", env_config, {"env_args": {"seed": 1, **overrides}})["env_args"]


@pytest.fixture
def make_env(game, tmp_path):
    """Builds batches of environments, and closes them."""
    batches = []

    def make(n_envs=1, **options):
        batch = ProcessVectorEnv(
            "sc2v2", n_envs, "cpu", env_args(**options),
            deadline=60, crash_limit=2, lockstep=True, output_folder=tmp_path / "output",
        )  # fmt: skip
        batches.append(batch)
        return batch

    yield make
    for batch in batches:
        batch.close()


# Messages


def message(**options) -> str:
    with pytest.raises(UserError) as error:
        sc2v2.StarCraft2V2Env(**env_args(**options))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_the_game_its_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SC2PATH", str(tmp_path / "nowhere"))
    assert f"StarCraft II is not in {tmp_path / 'nowhere'} (from SC2PATH)" in message()


def test_a_missing_package_is_named(game, monkeypatch):
    monkeypatch.setitem(sys.modules, "smacv2", None)
    text = message()
    assert "package smacv2 is not installed" in text
    assert "install_sc2.sh --smacv2" in text


def test_an_unknown_key_of_the_capabilities_names_the_nearest(game):
    config = {"n_units": 5, "n_enemies": 5, "start_position": {}}
    assert (
        "env_args.capability_config.start_position: SMACv2 has no such key (did you mean 'start_positions'?)"
        in message(capability_config=config)
    )


@needs_smacv2
def test_it_does_not_load_beside_smac(game, monkeypatch):
    monkeypatch.setitem(sys.modules, "smac.env", sys)
    assert "smacv2 cannot be loaded beside smac" in message()


@needs_smacv2
def test_an_unknown_map_and_an_unknown_argument_are_refused_in_the_process_that_has_the_package(make_env):
    with pytest.raises(UserError, match=r"map_name='10gen_teran': no such map.*did you mean '10gen_terran'"):
        make_env(map_name="10gen_teran")
    with pytest.raises(UserError, match=r"map_name='3m': the map file .*3m.SC2Map is missing"):
        make_env(map_name="3m")


# Battles


def play(batch, steps: int) -> tuple[list, list]:
    """The first state of each episode that begins within so many steps, and the infos of those that end."""
    seen = batch.reset()
    firsts, infos = [seen.state[0].clone()], []
    for _ in range(steps):
        actions = seen.avail.argmax(dim=-1)  # the first action that may be taken
        outcome = batch.step(actions)
        if outcome.terminated[0] or outcome.truncated[0]:
            infos.append({key: float(value[0]) for key, value in outcome.info.items()})
            firsts.append(outcome.next.state[0].clone())
        seen = outcome.next
    return firsts, infos


@needs_smacv2
@pytest.mark.parametrize("env_config", ["sc2_gen_terran", "sc2_gen_protoss", "sc2_gen_zerg"])
def test_whole_battles_are_played(make_env, env_config):
    batch = make_env(env_config=env_config)
    assert (batch.n_agents, batch.n_actions, batch.episode_limit) == (5, 11, 200)
    firsts, infos = play(batch, 150)
    assert len(infos) >= 1
    for info in infos:
        assert {"battle_won", "dead_allies", "dead_enemies", "episode_limit"} <= info.keys()
    assert batch.crashes == 0
    assert not torch.equal(firsts[0], firsts[1])  # other teams, elsewhere


@needs_smacv2
def test_teams_and_places_follow_the_seed(make_env):
    (first, _), (again, _), (other, _) = (play(make_env(seed=seed), 100) for seed in (1, 1, 2))
    assert len(first) >= 2
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@needs_smacv2
def test_battles_of_another_size(make_env):
    config = {"n_units": 3, "n_enemies": 4}
    batch = make_env(capability_config=load("qmix", "sc2_gen_terran", {"env_args": {"capability_config": config}})
                     ["env_args"]["capability_config"])  # fmt: skip
    assert (batch.n_agents, batch.n_actions) == (3, 10)
