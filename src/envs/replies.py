"""What an environment replies, checked before anything is learned from it.

The runners' other checks trust what comes from here: an action selector does not look whether an agent has an available
action, and a NaN in one observation would end up in every weight. Batches of environments that are written as one
(`VECTOR_REGISTRY`) are the project's own and not checked. Loads no torch: worker processes import it.

Legend: N agents, A actions, O observation size, S state size.
"""

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from envs.multiagentenv import EnvCrash, MultiAgentEnv
from utils.errors import UserError

SIZES = ("n_agents", "n_actions", "obs_shape", "state_shape", "episode_limit")
LARGEST = float(np.finfo(np.float32).max)
NUMBERS = (float, int, np.floating, np.integer, np.bool_)
MEND = "mend the environment: docs/environments.md says what it must reply"


def sizes(env: MultiAgentEnv) -> dict[str, Any]:
    """`get_env_info` of an environment.

    Raises:
        UserError: it lacks a size, or one is no positive integer.
    """
    info = env.get_env_info()
    for key in SIZES:
        if not isinstance(info.get(key), int | np.integer) or info[key] < 1:
            raise UserError(
                f"env {type(env).__name__}: {key} is {info.get(key)!r} in get_env_info(), and no positive integer; "
                f"{MEND}"
            )
    return info


class CheckedEnv:
    """Plays an environment, and refuses what it must not reply.

    Args:
        env: the environment. Its replies are read through this object alone.
        row: its number, where there are several.

    Raises:
        UserError: its sizes are none.
        EnvCrash: from every method: a reply is wrong. The episode is void; a NaN may come once in a million steps, so
            runners that replace what has crashed play on.
    """

    def __init__(self, env: MultiAgentEnv, row: int | None = None):
        info = sizes(env)
        self.env, self.row = env, row
        self.limit = int(info["episode_limit"])
        self.owns = bool(info.get("individual_reward"))  # whether infos say what each agent earned
        self._agents = (int(info["n_agents"]),)
        self._obs = (*self._agents, int(info["obs_shape"]))
        self._state = (int(info["state_shape"]),)
        self._avail = (*self._agents, int(info["n_actions"]))
        self.episode = self.t = 0
        self._terminated = False

    def reset(self) -> None:
        """Begin the next episode."""
        self.env.reset()
        self.episode, self.t, self._terminated = self.episode + 1, 0, False

    def step(self, actions) -> tuple[float, bool, bool, dict]:
        """Play the joint action, N integers: (team reward, terminated, truncated, info).

        Where agents have rewards of their own, info["individual_reward"] is an array of them, (N,) float32. Else info
        holds numbers alone, which statistics are made of, and them at an episode's end.
        """
        reply = self.env.step(actions)
        self.t += 1
        if not isinstance(reply, tuple | list) or len(reply) != 3:
            self._refuse(f"step() returned {_shown(reply)}, and not (reward, terminated, info)")
        reward, done, info = reply
        number = self._number(reward)
        if done is not True and done is not False and not (isinstance(done, NUMBERS) and done in (0, 1)):
            self._refuse(f"terminated is {_shown(done)}, and not True or False for the team")
        if not isinstance(info, Mapping):
            self._refuse(f"info is {_shown(info)}, and no dict")
        if not done and self.t >= self.limit:
            self._refuse(
                f"the episode goes on beyond episode_limit={self.limit}: at this step it ends, with terminated=True "
                f'and info["episode_limit"]=True'
            )
        found: dict[str, Any] = {}
        if self.owns:
            if "individual_reward" not in info:
                self._refuse("info lacks individual_reward, the agents' own rewards")
            found["individual_reward"] = self._array("individual_reward", info["individual_reward"], self._agents)
        cut = False
        if done:
            numbers = {f"{key}": value for key, value in info.items() if isinstance(value, NUMBERS)}
            found |= {key: float(value) for key, value in numbers.items() if abs(value) <= LARGEST}
            cut = bool(found.get("episode_limit", False))
        self._terminated = bool(done and not cut)
        return number, self._terminated, cut, found

    def observe(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is shown now: observations (N, O) and state (S,) float32, available actions (N, A) int32. All copies,
        since an environment may return its own buffers and overwrite them later.
        """
        obs = self._array("observation", self.env.get_obs(), self._obs)
        state = self._array("state", self.env.get_state(), self._state)
        avail = self._array("availability", self.env.get_avail_actions(), self._avail)
        able = avail == 1
        count = np.count_nonzero(able)
        if np.count_nonzero(avail) != count:
            agent, action = np.argwhere(~able & (avail != 0))[0]
            self._refuse(f"the availability of agent {agent}'s action {action} is {avail[agent, action]:g}, not 0 or 1")
        # Behind a termination nobody acts; behind a time limit the value of acting is bootstrapped.
        if count < able.size and not self._terminated and not all(map(any, able.tolist())):
            self._refuse(f"agent {int(np.argmin(able.any(axis=1)))} has no available action")
        return obs, state, able.astype(np.int32)

    def _number(self, reward) -> float:
        """The team's reward."""
        if getattr(reward, "ndim", None) == 0 and hasattr(reward, "item"):  # an array or tensor of one number
            reward = reward.item()
        if not isinstance(reward, NUMBERS):
            self._refuse(f"the reward is {_shown(reward)}, and not one number for the team")
        if not abs(reward) <= LARGEST:
            self._refuse(f"the reward is {_shown(reward)}, and no finite number (float32)")
        return float(reward)

    def _array(self, what: str, value, shape: tuple[int, ...]) -> np.ndarray:
        """A float32 copy of a reply."""
        try:
            found = np.array(value, dtype=np.float32)
        except (ValueError, TypeError, OverflowError):
            self._explain(what, value, shape)
        # The sum of squares is the quickest test: finite if all are, but for huge numbers.
        if found.shape != shape or (not math.isfinite(np.vdot(found, found)) and not np.isfinite(found).all()):
            self._explain(what, value, shape)
        return found

    def _explain(self, what: str, value, shape: tuple[int, ...]) -> NoReturn:
        """Say which agent's part of a reply is wrong, and how."""
        parts = {what: value}
        if len(shape) == 2:
            try:
                rows = list(value)
            except TypeError:
                self._refuse(f"the {what} is {_shown(value)}, and not one of each of {shape[0]} agents")
            if len(rows) != shape[0]:
                self._refuse(f"the {what} is that of {len(rows)} agents, and there are {shape[0]}")
            parts = {f"{what} of agent {agent}": row for agent, row in enumerate(rows)}
        for name, part in parts.items():
            try:
                found = np.array(part, dtype=np.float32)
            except (ValueError, TypeError, OverflowError):
                self._refuse(f"the {name} is {_shown(part)}, which is no array of numbers")
            if found.shape != shape[-1:]:
                self._refuse(f"the {name} has shape {found.shape}, and not {shape[-1:]} as get_env_info() says")
            if not np.isfinite(found).all():
                at = int(np.argmin(np.isfinite(found)))
                self._refuse(f"the {name} holds {found[at]} at position {at}")
        self._refuse(f"the {what} is {_shown(value)}, which is no array of shape {shape}")

    def _refuse(self, fault: str) -> NoReturn:
        row = "" if self.row is None else f" {self.row}"
        where = f"step {self.t} of episode {self.episode}"
        raise EnvCrash(f"env {type(self.env).__name__}{row}, {where}: {fault}; {MEND}")


def _shown(value) -> str:
    """A value in a few words."""
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
