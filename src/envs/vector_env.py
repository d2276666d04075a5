"""The interface of a batch of environments that step together, and the adapters from and to `MultiAgentEnv`.

Legend: E environments, N agents, A actions, O observation size, S state size.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from envs.multiagentenv import MultiAgentEnv
from envs.replies import CheckedEnv
from envs.scene import Scene


@dataclass
class Observation:
    """What E environments show before the agents act."""

    obs: torch.Tensor  # (E, N, O) float32
    state: torch.Tensor  # (E, S) float32
    avail: torch.Tensor  # (E, N, A) int32, 1 where the action may be taken


@dataclass
class VectorStep:
    """What one step of E environments returns.

    `next` is what the agents see next: where an episode ended, the first observation of the next episode.
    `final` is what they saw at the end of this step; it differs from `next` only where an episode ended.
    An episode that the time limit cut has `truncated` and not `terminated`.

    Environments that do not step as one (`ProcessVectorEnv`) say in `rows` which have stepped, and in `began` which
    show the first observation of a new episode: after an end that may come in a later step, and after a crash it comes
    without an end. What tensors hold for environments that are in neither list means nothing; their reward is 0 and
    they have not ended.
    """

    reward: torch.Tensor  # (E,) float32, of the team
    terminated: torch.Tensor  # (E,) bool
    truncated: torch.Tensor  # (E,) bool
    next: Observation
    final: Observation
    info: dict[str, torch.Tensor] = field(default_factory=dict)  # each (E,) float32, valid where an episode ended
    individual_reward: torch.Tensor | None = None  # (E, N) each agent's share; sums to reward
    rows: list[int] | None = None  # None: all
    began: list[int] | None = None  # None: those whose episode ended


class VectorEnv(ABC):
    """E environments behind one call. An environment that ends starts its next episode at once."""

    n_envs: int
    individual_reward = False  # whether steps also say what each agent earned
    agent_types: list | None = None  # the type of each agent, N numbers or names, if it is always the same
    n_agents: int
    n_actions: int
    obs_size: int
    state_size: int
    episode_limit: int

    @abstractmethod
    def reset(self) -> Observation:
        """Start a fresh episode in every environment."""

    @abstractmethod
    def step(self, actions: torch.Tensor) -> VectorStep:
        """Play the joint actions, shape (E, N), int64."""

    def close(self) -> None:
        """Free what the environments hold. May be called twice."""

    def get_stats(self) -> dict:
        """Statistics over the whole life of the environments."""
        return {}

    def save_replay(self):
        raise NotImplementedError(f"{type(self).__name__} cannot save replays")

    def scene(self) -> Scene:
        """What there is to see of the first environment, as the last step left it, even if another has begun since."""
        raise NotImplementedError(f"{type(self).__name__} has no scene()")

    def state_dict(self) -> dict[str, Any] | None:
        """Where every environment is and what its random numbers are, as plain data; None if that cannot be saved."""
        return None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, to the last bit as if nothing had been between."""
        raise NotImplementedError(f"{type(self).__name__} cannot be restored")

    def get_env_info(self) -> dict:
        """The sizes that the networks and buffers are built from."""
        return {
            "state_shape": self.state_size,
            "obs_shape": self.obs_size,
            "n_actions": self.n_actions,
            "n_agents": self.n_agents,
            "episode_limit": self.episode_limit,
            "individual_reward": self.individual_reward,
            "agent_types": self.agent_types,
        }


class SerialVectorEnv(VectorEnv):
    """Lifts `MultiAgentEnv`s to a `VectorEnv`: they step one after another in this process.

    Raises:
        EnvCrash: from `reset` and `step`: an environment has crashed, or replied what it must not (`envs.replies`).
    """

    def __init__(self, envs: list[MultiAgentEnv], device: str | torch.device = "cpu"):
        self.checked = [CheckedEnv(env, row) for row, env in enumerate(envs)]
        info = envs[0].get_env_info()
        self.envs = envs
        self.device = device
        self.n_envs = len(envs)
        self.n_agents = info["n_agents"]
        self.n_actions = info["n_actions"]
        self.obs_size = info["obs_shape"]
        self.state_size = info["state_shape"]
        self.episode_limit = info["episode_limit"]
        self.individual_reward = info.get("individual_reward", False)
        self.agent_types = info.get("agent_types")

    def reset(self) -> Observation:
        for env in self.checked:
            env.reset()
        return self._stack([env.observe() for env in self.checked])

    def step(self, actions: torch.Tensor) -> VectorStep:
        rewards, terminated, truncated, infos, final, following = [], [], [], [], [], []
        for env, joint_action in zip(self.checked, actions.cpu().numpy(), strict=True):
            reward, over, cut, info = env.step(joint_action)
            seen = env.observe()
            final.append(seen)
            if over or cut:
                env.reset()
                seen = env.observe()
            following.append(seen)
            rewards.append(reward)
            terminated.append(over)
            truncated.append(cut)
            infos.append(info)
        keys = dict.fromkeys(key for info in infos for key in info if key != "individual_reward")
        stacked_info = {key: self._tensor([info.get(key, 0) for info in infos], np.float32) for key in keys}
        stacked_info["episode_limit"] = self._tensor(truncated, np.float32)
        shares = None
        if self.individual_reward:
            shares = self._tensor([info["individual_reward"] for info in infos], np.float32)
        last = self._stack(final)
        return VectorStep(
            individual_reward=shares,
            reward=self._tensor(rewards, np.float32),
            terminated=self._tensor(terminated, bool),
            truncated=self._tensor(truncated, bool),
            next=self._stack(following) if any(terminated) or any(truncated) else last,
            final=last,
            info=stacked_info,
        )

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def get_stats(self) -> dict:
        return self.envs[0].get_stats()

    def save_replay(self) -> list:
        return [env.save_replay() for env in self.envs]

    def _stack(self, seen: list[tuple[Any, Any, Any]]) -> Observation:
        obs, state, avail = zip(*seen, strict=True)
        return Observation(
            self._tensor(obs, np.float32), self._tensor(state, np.float32), self._tensor(avail, np.int32)
        )

    def _tensor(self, values, dtype) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values, dtype=dtype), device=self.device)


class SingleEnv(MultiAgentEnv):
    """One environment of a `VectorEnv` of size 1, behind PyMARL's interface."""

    def __init__(self, vector_env: VectorEnv):
        if vector_env.n_envs != 1:
            raise ValueError(f"SingleEnv needs a VectorEnv with 1 environment, got {vector_env.n_envs}")
        self.vector_env = vector_env
        self.n_agents = vector_env.n_agents
        self.episode_limit = vector_env.episode_limit
        self.individual_reward = vector_env.individual_reward
        self.agent_types = vector_env.agent_types
        self._seen: Observation | None = None  # what the agents see now
        self._fresh: Observation | None = None  # the start of an episode that the last step began by itself

    def reset(self):
        # A VectorEnv starts the next episode by itself, so only the very first episode, or one begun in the middle
        # of another, needs a reset of its own.
        self._seen = self._fresh if self._fresh is not None else self.vector_env.reset()
        self._fresh = None
        return self.get_obs(), self.get_state()

    def step(self, actions) -> tuple[float, bool, dict]:
        joint_action = torch.as_tensor([[int(action) for action in actions]], dtype=torch.int64)
        step = self.vector_env.step(joint_action)
        done = bool(step.terminated[0] | step.truncated[0])
        self._seen = step.final
        self._fresh = step.next if done else None
        info: dict[str, Any] = {key: float(value[0]) for key, value in step.info.items()} if done else {}
        info["episode_limit"] = bool(step.truncated[0])
        if step.individual_reward is not None:
            info["individual_reward"] = step.individual_reward[0].tolist()
        return float(step.reward[0]), done, info

    def state_dict(self) -> dict[str, Any] | None:
        """As of a `VectorEnv`."""
        env = self.vector_env.state_dict()
        return None if env is None else {"env": env, "fresh": _as_dict(self._fresh), "seen": _as_dict(self._seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.vector_env.load_state_dict(state["env"])
        self._fresh, self._seen = (
            None if now is None else Observation(**now) for now in (state["fresh"], state["seen"])
        )

    def get_obs(self) -> list[np.ndarray]:
        return list(self._now().obs[0].cpu().numpy())

    def get_state(self) -> np.ndarray:
        return self._now().state[0].cpu().numpy()

    def get_avail_actions(self) -> list[list[int]]:
        return self._now().avail[0].tolist()

    def get_obs_size(self) -> int:
        return self.vector_env.obs_size

    def get_state_size(self) -> int:
        return self.vector_env.state_size

    def get_total_actions(self) -> int:
        return self.vector_env.n_actions

    def get_stats(self) -> dict:
        return self.vector_env.get_stats()

    def save_replay(self):
        return self.vector_env.save_replay()

    def scene(self) -> Scene:
        return self.vector_env.scene()

    def close(self) -> None:
        self.vector_env.close()

    def _now(self) -> Observation:
        if self._seen is None:
            raise RuntimeError("call reset() before asking the environment for observations")
        return self._seen


def _as_dict(seen: Observation | None) -> dict[str, torch.Tensor] | None:
    return None if seen is None else {"obs": seen.obs, "state": seen.state, "avail": seen.avail}
