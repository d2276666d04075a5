"""The interface of one multi-agent environment, as PyMARL defines it."""

from abc import ABC, abstractmethod

import numpy as np

from envs.scene import Scene

RESTART_SEED = 10_000  # the seed of an environment grows by this when it is made anew, so that no episode comes twice


class EnvCrash(RuntimeError):
    """What plays the episode has died or stopped answering: the episode is void, and the environment of no more use.

    Runners drop the episode, make the environment anew and play on; they count it in `env_crashes`.
    """


class MultiAgentEnv(ABC):
    """One environment with `n_agents` agents that act at the same time and share a reward.

    Time limits: an environment that ends an episode because time is up returns `terminated=True` and puts
    `episode_limit: True` into `info` (PyMARL's convention). Runners store such an end as a truncation, which the
    learners bootstrap through; any other end is a termination, which they do not.
    """

    n_agents: int
    episode_limit: int
    individual_reward = False  # whether infos say what each agent earned: N numbers that sum to the team's reward
    agent_types: list | None = None  # the type of each agent, N numbers or names, if it is always the same

    @abstractmethod
    def reset(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Start an episode. Returns the observations, N arrays of shape (O,), and the state, shape (S,)."""

    @abstractmethod
    def step(self, actions) -> tuple[float, bool, dict]:
        """Play the joint action, N integers. Returns (team reward, whether the episode ended, info)."""

    @abstractmethod
    def get_obs(self) -> list[np.ndarray]:
        """The observations of all agents: N arrays of shape (O,)."""

    def get_obs_agent(self, agent_id: int) -> np.ndarray:
        """The observation of one agent, shape (O,)."""
        return self.get_obs()[agent_id]

    @abstractmethod
    def get_obs_size(self) -> int:
        """O, the length of one agent's observation."""

    @abstractmethod
    def get_state(self) -> np.ndarray:
        """The global state, shape (S,), which only training may use."""

    @abstractmethod
    def get_state_size(self) -> int:
        """S, the length of the state."""

    @abstractmethod
    def get_avail_actions(self) -> list[list[int]]:
        """Which actions each agent may take now: N lists of A zeros and ones."""

    def get_avail_agent_actions(self, agent_id: int) -> list[int]:
        """Which actions one agent may take now: A zeros and ones."""
        return self.get_avail_actions()[agent_id]

    @abstractmethod
    def get_total_actions(self) -> int:
        """A, the number of actions of each agent."""

    def render(self):
        raise NotImplementedError(f"{type(self).__name__} cannot be rendered")

    def scene(self) -> Scene:
        """What there is to see, as the last step left it."""
        raise NotImplementedError(f"{type(self).__name__} has no scene()")

    def close(self) -> None:
        """Free what the environment holds. May be called twice."""

    def seed(self):
        raise NotImplementedError(f"{type(self).__name__} does not report its seed")

    def save_replay(self):
        """Save what was played so far; may return where."""
        raise NotImplementedError(f"{type(self).__name__} cannot save replays")

    def get_stats(self) -> dict:
        """Statistics over the environment's whole life."""
        return {}

    def get_env_info(self) -> dict:
        """The sizes that the networks and buffers are built from."""
        return {
            "state_shape": self.get_state_size(),
            "obs_shape": self.get_obs_size(),
            "n_actions": self.get_total_actions(),
            "n_agents": self.n_agents,
            "episode_limit": self.episode_limit,
            "individual_reward": self.individual_reward,
            "agent_types": self.agent_types,
        }
