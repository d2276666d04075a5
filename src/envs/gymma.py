"""Gymnasium and PettingZoo environments behind PyMARL's interface.

`env_args.key` takes one of two forms:

- `module:EnvId-vN`: a Gymnasium id and the module that registers it, as in `lbforaging:Foraging-8x8-2p-2f-coop-v3` or
  `rware:rware-tiny-2ag-v2`. Its action and observation spaces are `Tuple`, with one entry per agent.
- `pettingzoo:package.module`: a module with a `parallel_env`, as in `pettingzoo:mpe2.simple_spread_v3`.

How such an environment becomes a `MultiAgentEnv`:

- Reward: the sum over the agents.
- Observations: flattened (discrete parts become one-hot) and padded with zeros to the largest agent's size.
- State: the environment's own `state()` where it declares a `state_space`, else all padded observations in a row.
- Actions: A is the largest agent's number of actions. `avail_actions` marks those that an agent has, and follows the
  `action_mask` of an environment that gives one, in its observations or in its infos.
- An agent that left the episode sees zeros, may only take action 0, which goes nowhere, and earns nothing.
- Types of agents: PettingZoo's names without their numbers.
- Ends: `time_limit` is the only clock. An environment's own clock is set behind it, because LBF and RWARE report time
  that is up as a termination, like a real end. Where that is not possible, `truncated` counts as a time limit too. A
  rule about what the agents do, as RWARE's `max_inactivity_steps`, ends an episode for real.

Legend: N agents, A actions, O observation size, S state size.
"""

import copy
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator

from envs.multiagentenv import MultiAgentEnv
from envs.scene import Field, Image, Piece, Scene
from utils.errors import UserError

PETTINGZOO = "pettingzoo:"
PIP_PACKAGES = ("lbforaging", "mpe2", "pettingzoo", "rware")  # modules that PyPI has under the same name
CLOCKS = ("max_episode_steps", "max_steps", "max_cycles")  # what constructors call their own time limit

# One pair per agent: its observation, None if it is not in the episode, and the action mask from its info, or None.
Shown = list[tuple[Any, Any]]


class GymmaEnv(MultiAgentEnv):
    """One Gymnasium or PettingZoo environment; the module's docstring says how it is mapped.

    Each agent's reward is in the step's info as `individual_reward`, N numbers that sum to the team's.

    Args:
        key: which environment, `module:EnvId-vN` or `pettingzoo:package.module`.
        time_limit: steps after which an episode is cut.
        seed: seeds the first episode; later ones continue its random numbers. None draws a seed.
        kwargs: further arguments for the environment's constructor.

    Raises:
        UserError: there is no such environment, or it is not one of several agents with discrete actions.
    """

    individual_reward = True

    def __init__(self, key: str, time_limit: int, seed: int | None, kwargs: dict[str, Any]):
        if clash := [name for name in CLOCKS if name in kwargs]:
            raise UserError(f"env_args.kwargs.{clash[0]}: remove it and set env_args.time_limit, the only clock")
        self.key = key
        self.episode_limit = time_limit
        self._seed = self._reset_seed = seed
        self._closed = False
        try:
            self._game = (_make_parallel if key.startswith(PETTINGZOO) else _make_tuple)(key, time_limit + 1, kwargs)
        except TypeError as error:
            unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if not unexpected or unexpected[1] not in kwargs:
                raise
            raise UserError(f"env_args.kwargs.{unexpected[1]}: {key} has no such argument; remove it") from error

        self.n_agents = len(self._game.action_spaces)
        self.agent_types = self._game.agent_types
        self._observation_spaces = [_without_mask(space) for space in self._game.observation_spaces]
        for kind, found, good, wanted in (
            ("action", self._game.action_spaces, lambda space: isinstance(space, spaces.Discrete), "Discrete"),
            ("observation", self._observation_spaces, lambda space: space.is_np_flattenable, "of a fixed size"),
        ):
            if wrong := [agent for agent in range(self.n_agents) if not good(found[agent])]:
                raise UserError(
                    f"env_args.key={key!r}: the {kind} space of agent {wrong[0]} is {type(found[wrong[0]]).__name__}, "
                    f"and it must be {wanted}; choose such a variant by the environment's id or by env_args.kwargs"
                )
        self._action_counts = [int(space.n) for space in self._game.action_spaces]
        self._n_actions = max(self._action_counts)
        self._unmasked = np.array(
            [[a < count for a in range(self._n_actions)] for count in self._action_counts], np.int64
        )
        self._action_starts = np.array([int(space.start) for space in self._game.action_spaces])
        self._obs_size = max(spaces.flatdim(space) for space in self._observation_spaces)
        # What the agents see now, from the first reset() on.
        self._obs: np.ndarray  # (N, O) float32
        self._state: np.ndarray  # (S,) float32
        self._avail: np.ndarray  # (N, A) int64

    def reset(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Start an episode. Returns the observations, N arrays of shape (O,), and the state, shape (S,)."""
        self._steps = 0
        self._see(self._game.reset(self._reset_seed))
        self._reset_seed = None  # seeding again would replay the first episode for ever
        return self.get_obs(), self.get_state()

    def step(self, actions) -> tuple[float, bool, dict]:
        """Play the joint action, N integers. Returns (team reward, whether the episode ended, info)."""
        joint_action = (np.asarray(actions).reshape(-1) + self._action_starts).tolist()
        shown, rewards, terminated, truncated = self._game.step(joint_action)
        self._see(shown)
        self._steps += 1
        timed_out = not terminated and (truncated or self._steps >= self.episode_limit)
        info = {"episode_limit": timed_out, "individual_reward": rewards}
        return sum(rewards), terminated or timed_out, info

    def get_obs(self) -> list[np.ndarray]:
        """The observations of all agents: N arrays of shape (O,), float32."""
        return list(self._obs)

    def get_obs_size(self) -> int:
        return self._obs_size

    def get_state(self) -> np.ndarray:
        """The global state, shape (S,), float32."""
        return self._state

    def get_state_size(self) -> int:
        space = self._game.state_space
        return self.n_agents * self._obs_size if space is None else spaces.flatdim(space)

    def get_avail_actions(self) -> list[list[int]]:
        """Which actions each agent may take now: N lists of A zeros and ones."""
        return self._avail.tolist()

    def get_total_actions(self) -> int:
        return self._n_actions

    def render(self):
        if getattr(self._game.env, "render_mode", None) is None:
            raise UserError(f"env_args.key={self.key!r}: drawing needs a mode, as env_args.kwargs.render_mode=human")
        return self._game.env.render()

    def scene(self) -> Scene:
        """Level-based foraging's field; of others the picture that they draw themselves."""
        game = self._game.env.unwrapped
        if all(hasattr(game, name) for name in ("field", "players", "field_size")):
            return _foraging_scene(game)
        if getattr(game, "render_mode", None) != "rgb_array":
            raise UserError(f"env_args.key={self.key!r}: a picture needs env_args.kwargs.render_mode=rgb_array")
        names = tuple(f"{action}" for action in range(self.get_total_actions()))
        return Image(np.asarray(game.render(), dtype=np.uint8)[..., :3], names)

    def close(self) -> None:
        if not self._closed:
            self._game.env.close()
        self._closed = True

    def seed(self) -> int | None:
        return self._seed

    def _see(self, shown: Shown) -> None:
        """Turn what is shown into the arrays that the getters return: fresh ones, since callers keep the old."""
        self._obs = np.zeros((self.n_agents, self._obs_size), np.float32)
        self._avail = self._unmasked.copy()
        for agent, (observation, mask) in enumerate(shown):
            if observation is None:
                self._avail[agent], self._avail[agent, 0] = 0, 1
                continue
            flat = _flatten(self._observation_spaces[agent], observation)
            self._obs[agent, : flat.size] = flat
            if isinstance(observation, dict):
                mask = observation.get("action_mask", mask)
            if mask is not None:
                self._avail[agent, : self._action_counts[agent]] = mask
                if not self._avail[agent].any():
                    self._avail[agent, 0] = 1  # a maximum or a softmax over no action at all is not a number
        space = self._game.state_space
        state: Any = self._obs if space is None else spaces.flatten(space, self._game.env.state())
        self._state = state.astype(np.float32).reshape(-1)


class _TupleGame:
    """A Gymnasium environment with one entry per agent in its observations, actions and rewards."""

    state_space = None
    agent_types = None

    def __init__(self, env: Any, key: str):
        for kind, space in (("action", env.action_space), ("observation", env.observation_space)):
            if not isinstance(space, spaces.Tuple):
                raise UserError(
                    f"env_args.key={key!r}: the {kind} space is {type(space).__name__}, that of a single agent; choose "
                    f"an environment whose spaces are Tuple, with one entry per agent"
                )
        self.env = env
        self.action_spaces = list(env.action_space)
        self.observation_spaces = list(env.observation_space)

    def reset(self, seed: int | None) -> Shown:
        return self._shown(*self.env.reset(seed=seed))

    def step(self, actions: list[int]) -> tuple[Shown, list[float], bool, bool]:
        """Returns (what is shown, the agents' rewards, terminated, truncated)."""
        observations, rewards, terminated, truncated, info = self.env.step(tuple(actions))
        shares, n_agents = np.asarray(rewards, float), len(self.action_spaces)
        if shares.ndim == 0:  # one number is the team's: then every agent has an equal share
            shares = shares / n_agents
        if shares.shape != (n_agents,):
            shares = np.broadcast_to(shares, n_agents)
        return self._shown(observations, info), shares.tolist(), *_end(terminated, truncated)

    def _shown(self, observations, info: dict) -> Shown:
        return list(zip(observations, info.get("action_mask", [None] * len(observations)), strict=True))


class _ParallelGame:
    """A PettingZoo environment, whose agents may leave before the episode ends."""

    def __init__(self, env: Any):
        self.env = env
        self.names = list(env.possible_agents)
        self.agent_types = [re.sub(r"_?\d+$", "", str(name)) for name in self.names]  # "adversary_0" is an adversary
        self.action_spaces = [env.action_space(name) for name in self.names]
        self.observation_spaces = [env.observation_space(name) for name in self.names]
        self.state_space = getattr(env, "state_space", None)

    def reset(self, seed: int | None) -> Shown:
        observations, infos = self.env.reset(seed=seed)
        return self._shown(self.env.agents, observations, infos)

    def step(self, actions: list[int]) -> tuple[Shown, list[float], bool, bool]:
        """Returns (what is shown, the agents' rewards, terminated, truncated)."""
        acting = list(self.env.agents)
        joint_action = {name: action for name, action in zip(self.names, actions, strict=True) if name in acting}
        observations, rewards, terminated, truncated, infos = self.env.step(joint_action)
        ended = _end([terminated[name] for name in acting], [truncated[name] for name in acting])
        present = self.env.agents
        if ended == (False, True):
            # By now the environment has dismissed everybody, but learners bootstrap from what a cut episode shows last.
            present = [name for name in acting if not terminated[name]]
        earned = [float(rewards[name]) if name in acting else 0.0 for name in self.names]
        return self._shown(present, observations, infos), earned, *ended

    def _shown(self, present: list, observations: dict, infos: dict) -> Shown:
        return [
            (observations[name], infos.get(name, {}).get("action_mask")) if name in present else (None, None)
            for name in self.names
        ]


def _foraging_scene(game: Any) -> Field:
    rows, columns = game.field_size
    agents = [
        Piece("agent", player.position[1], player.position[0], f"{i + 1}\nlevel {player.level}")
        for i, player in enumerate(game.players)
    ]
    food = [
        Piece("prey", int(column), int(row), f"food\n{game.field[row, column]}")
        for row, column in np.argwhere(game.field)
    ]
    moves = {1: (0, -1), 2: (0, 1), 3: (-1, 0), 4: (1, 0)}
    actions = ("none", "north", "south", "west", "east", "load")
    return Field(columns, rows, tuple(agents), tuple(food), actions, moves, is_grid=True)


def _end(terminated, truncated) -> tuple[bool, bool]:
    """Whether the episode (terminated, was cut), from one flag for all or from one per agent that acted.

    It was cut if all are done and somebody could have gone on; an agent with both flags could not.
    """
    if terminated is False and truncated is False:  # the usual, and numpy is slow at single numbers
        return False, False
    if np.all(terminated):
        return True, False
    return False, bool(np.all(np.logical_or(terminated, truncated)))


def _flatten(space: spaces.Space, observation) -> np.ndarray:
    """Gymnasium's flatten, by a shorter way for arrays."""
    if type(space) is spaces.Box:
        return np.asarray(observation, dtype=space.dtype).reshape(-1)
    flat: Any = spaces.flatten(space, observation)
    return flat


def _without_mask(space: spaces.Space) -> spaces.Space:
    """The part of an observation that the networks are fed: all but an action mask."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({name: part for name, part in space.items() if name != "action_mask"})
    return space


def _make_tuple(key: str, clock: int, kwargs: dict[str, Any]) -> _TupleGame:
    """The Gymnasium environment of `key`, its own clock set to `clock` steps."""
    module_name, _, env_id = key.rpartition(":")
    if module_name:
        _import(key, module_name)
    if env_id not in gymnasium.registry:
        raise UserError(
            f"env_args.key={key!r}: no Gymnasium environment has the id {env_id!r}{_near(env_id, gymnasium.registry)}; "
            f"write module:EnvId-vN, or {PETTINGZOO}package.module for PettingZoo"
        )
    # gymnasium.make keeps an argument max_episode_steps for a wrapper of its own: the constructor's goes into the spec.
    spec = copy.copy(gymnasium.registry[env_id])
    creator: Any = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    accepted = {*spec.kwargs, *inspect.signature(creator).parameters}
    spec.kwargs = {**spec.kwargs, **{name: clock for name in CLOCKS if name in accepted}, **kwargs}
    # The checker would warn that one reward per agent is not a number.
    return _TupleGame(gymnasium.make(spec, max_episode_steps=-1, disable_env_checker=True), key)


def _make_parallel(key: str, clock: int, kwargs: dict[str, Any]) -> _ParallelGame:
    """The PettingZoo environment of `key`, its own clock set to `clock` steps."""
    module = _import(key, key.removeprefix(PETTINGZOO))
    if not hasattr(module, "parallel_env"):
        raise UserError(
            f"env_args.key={key!r}: {module.__name__} has no parallel_env; name the module of an environment that has "
            f"one, as in {PETTINGZOO}mpe2.simple_spread_v3"
        )
    try:
        return _ParallelGame(module.parallel_env(max_cycles=clock, **kwargs))
    except TypeError as error:  # the signature does not tell: most are wrapped in functions of **kwargs
        if "unexpected keyword argument 'max_cycles'" not in str(error):
            raise
    return _ParallelGame(module.parallel_env(**kwargs))


def _import(key: str, name: str):
    """Import the module `name`, which `key` asks for."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package, _, leaf = name.rpartition(".")
        if package and error.name == name:
            siblings = [module.name for module in pkgutil.iter_modules(getattr(sys.modules[package], "__path__", ()))]
            reason = f"{package} has no module {leaf!r}{_near(leaf, siblings)}"
        elif error.name in PIP_PACKAGES:
            reason = f"the package {error.name} is not installed; run: pip install -c requirements.txt {error.name}"
        else:
            near = _near(name, PIP_PACKAGES)
            reason = f"cannot import {name}{near}: {error}; install what is missing, or put it on PYTHONPATH"
        raise UserError(f"env_args.key={key!r}: {reason}") from error


def _near(name: str, choices: Iterable[str]) -> str:
    """What was perhaps meant, for the middle of a message; empty if nothing comes near."""
    near = get_close_matches(name, choices, n=3)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
