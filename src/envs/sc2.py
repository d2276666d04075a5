"""StarCraft II battles: an adapter over SMAC, the StarCraft Multi-Agent Challenge (package `smac` of oxwhirl/smac).

Neither the game nor SMAC is part of this project. `install_sc2.sh` installs both, and whatever is missing is named
before anything starts.

Legend: N agents, A actions, O observation size, S state size.
"""

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import numpy as np

from envs import s2clientprotocol_compat
from envs.multiagentenv import EnvCrash, MultiAgentEnv
from utils.errors import UserError

DEFAULT_GAME = Path(__file__).resolve().parents[2] / "3rdparty" / "StarCraftII"
REMEDY = "run `bash install_sc2.sh`, or use --env-config=smax for battles that need no game"


@dataclass(frozen=True)
class Smac:
    """What the adapter uses of the package `smac` or `smacv2`."""

    build: Callable  # makes the environment
    arguments: Collection[str]  # that `build` takes
    map_files: Mapping[str, str]  # every map that the package knows, and its file below the game's folder Maps
    failures: tuple[type[Exception], ...]  # what it raises when the game is gone, does not start or talks nonsense
    remedy: str = REMEDY  # where a map is missing


class StarCraft2Env(MultiAgentEnv):
    """One StarCraft II battle of SMAC, played by one game process that the first `reset` starts.

    An episode that SMAC cuts at its time limit is a truncation (`info["episode_limit"]`) only under
    `continuing_episode=True`; by default SMAC, as PyMARL, counts it as an end like any other.

    Where SMAC would start a game that has crashed again and report the battle as lost, this raises `EnvCrash`: after a
    crash SMAC's own count of restarts, its reward scale and the game process of a first battle are wrong.

    Args:
        map_name: one of SMAC's maps.
        **env_args: the other arguments of SMAC's `StarCraft2Env`, which `src/config/envs/sc2.yaml` lists.

    Raises:
        UserError: the game, the package smac or the map is missing, or an argument is unknown.
    """

    def __init__(self, map_name: str = "3m", **env_args):
        game = find_game()
        smac = self._load()
        find_map(game, map_name, smac.map_files, smac.remedy)
        unknown = sorted(env_args.keys() - set(smac.arguments))
        if unknown:
            near = did_you_mean(unknown[0], smac.arguments)
            raise UserError(f"env_args.{unknown[0]}: {type(self).__name__} has no such argument{near}")
        if "difficulty" in env_args:  # SMAC's levels are named "1" to "9" and "A"; a command line makes 7 a number
            env_args["difficulty"] = str(env_args["difficulty"])
        self.map_name = map_name
        self._failures = smac.failures
        self.env = smac.build(map_name=map_name, **env_args)
        self._battle.full_restart = self._crash  # SMAC calls it wherever it notices that the game is gone
        self._begun: tuple | None = None  # what `reset` returned, until the first step: SMAC takes long to make it
        self.n_agents = self.env.n_agents
        self.episode_limit = self.env.episode_limit

    def _load(self) -> Smac:
        return load_smac()

    @property
    def _battle(self):
        """SMAC's environment, below any wrapper."""
        return self.env

    def reset(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Start a battle, the first time also the game.

        Raises:
            EnvCrash: the game has crashed or does not start.
        """
        try:
            self._begun = self.env.reset()
        except self._failures as error:
            self._crash(error)
        return self.get_obs(), self.get_state()

    def step(self, actions) -> tuple[float, bool, dict]:
        """Play the joint action, N integers. Returns (team reward, whether the episode ended, info).

        Raises:
            EnvCrash: the game has crashed or stopped answering.
        """
        self._begun = None
        try:
            reward, terminated, info = self.env.step(actions)
        except self._failures as error:
            self._crash(error)
        numbers = {key: float(value) for key, value in info.items() if key != "episode_limit"}
        timed_out = {"episode_limit": True} if info.get("episode_limit") else {}
        return float(reward), bool(terminated), numbers | timed_out

    def _crash(self, error: BaseException | None = None) -> NoReturn:
        error = error or sys.exc_info()[1]
        reason = f" ({type(error).__name__}: {error})" if error else ""
        raise EnvCrash(f"StarCraft II crashed, stopped answering or did not start on {self.map_name}{reason}")

    def get_obs(self) -> list[np.ndarray]:
        return self._begun[0] if self._begun else self.env.get_obs()

    def get_obs_agent(self, agent_id: int) -> np.ndarray:
        return self.env.get_obs_agent(agent_id)

    def get_obs_size(self) -> int:
        return self.env.get_obs_size()

    def get_state(self) -> np.ndarray:
        return self._begun[1] if self._begun else self.env.get_state()

    def get_state_size(self) -> int:
        return self.env.get_state_size()

    def get_avail_actions(self) -> list[list[int]]:
        return self.env.get_avail_actions()

    def get_avail_agent_actions(self, agent_id: int) -> list[int]:
        return self.env.get_avail_agent_actions(agent_id)

    def get_total_actions(self) -> int:
        return self.env.get_total_actions()

    def get_stats(self) -> dict:
        """Battles played, won and timed out, and the rate of wins; empty before the first end."""
        return self.env.get_stats() if self.env.battles_game else {}  # SMAC divides by the battles played

    def render(self, mode: str = "human"):
        """Draw the battle with SMAC's renderer (pygame)."""
        package = type(self._battle).__module__.partition(".")[0]
        try:
            importlib.import_module(f"{package}.env.starcraft2.render")
        except (ImportError, TypeError) as error:  # TypeError: pysc2 4.0's table of colours on Python 3.11
            raise UserError(f"SMAC's renderer does not load here ({error}); save a replay instead") from error
        return self.env.render(mode)

    def save_replay(self) -> str:
        """Write what this game process has played so far; returns the file.

        It lies in `replay_dir`, below `$SC2PATH/Replays` if relative. Its name holds the seed, because SMAC's own names
        are the same for all games that save in the same second.
        """
        battle = self._battle
        if battle._sc2_proc is None:
            raise RuntimeError("no replay to save: the game has not started, call reset() first")
        prefix = f"{battle.replay_prefix or self.map_name}_seed{self.seed()}"
        return battle._run_config.save_replay(battle._controller.save_replay(), battle.replay_dir or "", prefix)

    def seed(self) -> int | None:
        return self.env.seed()

    def close(self) -> None:
        with contextlib.suppress(*self._failures):  # the game may be gone
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
    env_class = import_package("smac", f"{place}", REMEDY).StarCraft2Env
    arguments = inspect.signature(env_class).parameters
    return Smac(env_class, arguments, map_files("smac"), failures())


def import_package(name: str, place: str, remedy: str) -> ModuleType:
    """The module `env` of the package smac or smacv2, by name, since type checkers run without these packages.

    Raises:
        UserError: it lacks something that it imports, or the other package is loaded: both give pysc2 maps of the same
            names, so one process can only have one of them.
    """
    other = {"smac": "smacv2", "smacv2": "smac"}[name]
    if f"{other}.env" in sys.modules:
        raise UserError(f"{name} cannot be loaded beside {other}, which this process uses; run them one by one")
    s2clientprotocol_compat.install()
    try:
        return importlib.import_module(f"{name}.env")
    except ImportError as error:
        raise UserError(f"the package {name} in {place} does not load: {error}; {remedy}") from error


def map_files(package: str) -> dict[str, str]:
    """The maps that this package knows, and each one's file below the game's folder Maps."""
    registry = importlib.import_module(f"{package}.env.starcraft2.maps.smac_maps").get_smac_map_registry()
    maps = importlib.import_module("pysc2.maps")
    return {name: maps.get(name).path for name in registry}


def failures() -> tuple[type[Exception], ...]:
    """What pysc2 raises when the game is gone, does not start, refuses a request or answers nonsense."""
    protocol, controller, process = (
        importlib.import_module(f"pysc2.lib.{name}") for name in ("protocol", "remote_controller", "sc_process")
    )
    return (
        protocol.ConnectionError,
        protocol.ProtocolError,
        controller.ConnectError,
        controller.RequestError,
        process.SC2LaunchError,
        importlib.import_module("websocket").WebSocketException,
        importlib.import_module("google.protobuf.message").DecodeError,
        OSError,
    )


def find_map(game: Path, map_name: str, files: Mapping[str, str], remedy: str = REMEDY) -> Path:
    """The file of a map.

    Raises:
        UserError: SMAC does not know the map, or its file is missing or lies where the game does not look.
    """
    if map_name not in files:
        raise UserError(
            f"env_args.map_name={map_name!r}: no such map in SMAC{did_you_mean(map_name, files)}; "
            f"it knows {', '.join(sorted(files))}"
        )
    file = game / "Maps" / files[map_name]
    if not file.is_file():
        stray = next((game / "Maps").rglob(file.name), None)
        remedy = f"it lies in {stray.parent}, move it" if stray else remedy
        raise UserError(f"env_args.map_name={map_name!r}: the map file {file} is missing; {remedy}")
    return file


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    by_lower = {choice.lower(): choice for choice in choices}
    near = get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.4)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""
