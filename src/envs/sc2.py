"""StarCraft II battles: an adapter over SMAC, the StarCraft Multi-Agent Challenge (package `smac` of oxwhirl/smac).

Neither the game nor SMAC is part of this project. `install_sc2.sh` installs both, and whatever is missing is named
before anything starts.

Legend: N agents, A actions, O observation size, S state size.
"""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from envs import s2clientprotocol_compat
from envs.multiagentenv import MultiAgentEnv
from utils.errors import UserError

DEFAULT_GAME = Path(__file__).resolve().parents[2] / "3rdparty" / "StarCraftII"
REMEDY = "run `bash install_sc2.sh`, or use --env-config=smax for battles that need no game"


@dataclass(frozen=True)
class Smac:
    """What the adapter uses of the package `smac`."""

    env_class: type
    map_files: Mapping[str, str]  # every map that SMAC knows, and its file below the game's folder Maps


class StarCraft2Env(MultiAgentEnv):
    """One StarCraft II battle of SMAC, played by one game process that the first `reset` starts.

    An episode that SMAC cuts at its time limit is a truncation (`info["episode_limit"]`) only under
    `continuing_episode=True`; by default SMAC, as PyMARL, counts it as an end like any other.

    Args:
        map_name: one of SMAC's maps.
        **env_args: the other arguments of SMAC's `StarCraft2Env`, which `src/config/envs/sc2.yaml` lists.

    Raises:
        UserError: the game, the package smac or the map is missing, or an argument is unknown.
    """

    def __init__(self, map_name: str = "3m", **env_args):
        game = find_game()
        smac = load_smac()
        find_map(game, map_name, smac.map_files)
        known = inspect.signature(smac.env_class).parameters
        unknown = sorted(env_args.keys() - known.keys())
        if unknown:
            raise UserError(f"env_args.{unknown[0]}: SMAC has no such argument{_did_you_mean(unknown[0], known)}")
        if "difficulty" in env_args:  # SMAC's levels are named "1" to "9" and "A"; a command line makes 7 a number
            env_args["difficulty"] = str(env_args["difficulty"])
        self.map_name = map_name
        self.env = smac.env_class(map_name=map_name, **env_args)
        self.n_agents = self.env.n_agents
        self.episode_limit = self.env.episode_limit

    def reset(self) -> tuple[list[np.ndarray], np.ndarray]:
        return self.env.reset()

    def step(self, actions) -> tuple[float, bool, dict]:
        """Play the joint action, N integers. Returns (team reward, whether the episode ended, info).

        Raises:
            RuntimeError: the game crashed. The episode is void; `reset` starts the next one.
        """
        reward, terminated, info = self.env.step(actions)
        if terminated and not info:
            # SMAC reports a crash as an episode that ends here with reward 0, which learners would take for a defeat.
            raise RuntimeError(
                f"StarCraft II crashed or stopped answering during a battle on {self.map_name}; "
                f"SMAC has started it again (restart {self.env.force_restarts}), but the episode is void"
            )
        numbers = {key: float(value) for key, value in info.items() if key != "episode_limit"}
        timed_out = {"episode_limit": True} if info.get("episode_limit") else {}
        return float(reward), bool(terminated), numbers | timed_out

    def get_obs(self) -> list[np.ndarray]:
        return self.env.get_obs()

    def get_obs_agent(self, agent_id: int) -> np.ndarray:
        return self.env.get_obs_agent(agent_id)

    def get_obs_size(self) -> int:
        return self.env.get_obs_size()

    def get_state(self) -> np.ndarray:
        return self.env.get_state()

    def get_state_size(self) -> int:
        return self.env.get_state_size()

    def get_avail_actions(self) -> list[list[int]]:
        return self.env.get_avail_actions()

    def get_avail_agent_actions(self, agent_id: int) -> list[int]:
        return self.env.get_avail_agent_actions(agent_id)

    def get_total_actions(self) -> int:
        return self.env.get_total_actions()

    def get_stats(self) -> dict:
        """Battles played, won and timed out, the rate of wins, and restarts of the game; empty before the first end."""
        return self.env.get_stats() if self.env.battles_game else {}  # SMAC divides by the battles played

    def render(self, mode: str = "human"):
        """Draw the battle with SMAC's renderer (pygame)."""
        try:
            importlib.import_module("smac.env.starcraft2.render")
        except (ImportError, TypeError) as error:  # TypeError: pysc2 4.0's table of colours on Python 3.11
            raise UserError(f"SMAC's renderer does not load here ({error}); save a replay instead") from error
        return self.env.render(mode)

    def save_replay(self) -> None:
        """Write what this game process has played so far to `replay_dir`, below `$SC2PATH/Replays` if relative."""
        if self.env._sc2_proc is None:
            raise RuntimeError("no replay to save: the game has not started, call reset() first")
        self.env.save_replay()

    def seed(self) -> int | None:
        return self.env.seed()

    def close(self) -> None:
        self.env.close()


def find_game() -> Path:
    """The game's folder: `$SC2PATH`, or by default `3rdparty/StarCraftII`, which becomes `$SC2PATH` for pysc2.

    Raises:
        UserError: the game is not there.
    """
    given = os.environ.get("SC2PATH")
    game = Path(given).expanduser() if given else DEFAULT_GAME
    if not any(game.glob("Versions/Base*/SC2_x64")):
        origin = "from SC2PATH" if given else "the default, as SC2PATH is not set"
        raise UserError(f"StarCraft II is not in {game} ({origin}): no Versions/Base*/SC2_x64 there; {REMEDY}")
    os.environ["SC2PATH"] = str(game)
    return game


def load_smac() -> Smac:
    """Import SMAC.

    Raises:
        UserError: the package is not installed, is another one of the same name, or lacks something that it imports.
    """
    spec = importlib.util.find_spec("smac")
    if spec is None:
        raise UserError(
            f"the package smac (StarCraft Multi-Agent Challenge) is not installed in {sys.prefix}; {REMEDY}"
        )
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    place = folders[0] if folders else spec.origin
    if not any((folder / "env" / "starcraft2").is_dir() for folder in folders):
        raise UserError(
            f"the package smac in {place} is not the StarCraft Multi-Agent Challenge (has no env/starcraft2): "
            f"PyPI's smac is AutoML's SMAC3, of the same name; `pip uninstall smac`, then {REMEDY}"
        )
    s2clientprotocol_compat.install()
    try:
        # By name, since type checkers run without these packages.
        env_class = importlib.import_module("smac.env").StarCraft2Env
        names = importlib.import_module("smac.env.starcraft2.maps.smac_maps").get_smac_map_registry()
        maps = importlib.import_module("pysc2.maps")
    except ImportError as error:
        raise UserError(f"the package smac in {place} does not load: {error}; {REMEDY}") from error
    return Smac(env_class, {name: maps.get(name).path for name in names})


def find_map(game: Path, map_name: str, map_files: Mapping[str, str]) -> Path:
    """The file of a map.

    Raises:
        UserError: SMAC does not know the map, or its file is missing or lies where the game does not look.
    """
    if map_name not in map_files:
        raise UserError(
            f"env_args.map_name={map_name!r}: no such map in SMAC{_did_you_mean(map_name, map_files)}; "
            f"it knows {', '.join(sorted(map_files))}"
        )
    file = game / "Maps" / map_files[map_name]
    if not file.is_file():
        stray = next((game / "Maps").rglob(file.name), None)
        remedy = f"it lies in {stray.parent}, move it" if stray else REMEDY
        raise UserError(f"env_args.map_name={map_name!r}: the map file {file} is missing; {remedy}")
    return file


def _did_you_mean(name: str, choices: Iterable[str]) -> str:
    by_lower = {choice.lower(): choice for choice in choices}
    near = get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.4)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""
