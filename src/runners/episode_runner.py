"""One environment, one episode at a time (PyMARL's EpisodeRunner)."""

from typing import Any

import torch

from components.episode_buffer import EpisodeBatch
from envs import REGISTRY as env_REGISTRY
from envs.multiagentenv import RESTART_SEED, EnvCrash, MultiAgentEnv
from envs.replies import CheckedEnv
from envs.vector_env import SingleEnv
from runners.statistics import EpisodeStatistics
from utils.registry import resolve
from utils.seeding import RandomStream
from utils.state import restore, state_of


class EpisodeRunner:
    def __init__(self, args, logger):
        if args.batch_size_run != 1:
            raise ValueError(
                f"runner 'episode' steps one environment, so batch_size_run must be 1, got {args.batch_size_run}"
            )
        self.args = args
        self.logger = logger
        self.batch_size = 1
        self._make_env(args.env_args["seed"])
        self.crashes = self.crashes_in_row = 0  # in a row: without a whole episode between them
        self.episode_limit = self.env.episode_limit
        self.t = 0
        self.t_env = 0
        self.test_random = RandomStream(args.seed + 1, args.device)  # tests do not change what is learned
        self.train_statistics = EpisodeStatistics("")
        self.test_statistics = EpisodeStatistics("test_")
        self.log_train_stats_t = -args.runner_log_interval - 1

    def setup(self, scheme, groups, preprocess, mac) -> None:
        self._new_batch = lambda: EpisodeBatch(
            scheme, groups, 1, self.episode_limit + 1, preprocess=preprocess, device=self.args.device
        )
        self.mac = mac

    def state_dict(self) -> dict[str, Any]:
        """Between two episodes there is little: whoever cannot save its environment begins another."""
        return {
            "t_env": self.t_env,
            "crashes": self.crashes,
            "log_train_stats_t": self.log_train_stats_t,
            "statistics": state_of([self.train_statistics, self.test_statistics]),
            "test_random": self.test_random.state_dict(),
            "env": self.env.state_dict() if isinstance(self.env, SingleEnv) else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.t_env = state["t_env"]
        self.crashes = state["crashes"]
        self.log_train_stats_t = state["log_train_stats_t"]
        restore([self.train_statistics, self.test_statistics], state["statistics"])
        self.test_random.load_state_dict(state["test_random"])
        if state["env"] is not None and isinstance(self.env, SingleEnv):
            self.env.load_state_dict(state["env"])

    def get_env_info(self) -> dict:
        return self.env.get_env_info()

    def save_replay(self):
        return self.env.save_replay()

    def close_env(self) -> None:
        self.env.close()

    def reset(self) -> None:
        self.batch = self._new_batch()
        self.checked.reset()
        self.t = 0

    @torch.no_grad()
    def run(self, test_mode: bool = False) -> EpisodeBatch:
        """Play one episode and return it. An environment that crashes is made anew, and the episode played again.

        Raises:
            EnvCrash: it has crashed too often.
        """
        while True:
            try:
                batch = self._play(test_mode)
            except EnvCrash as error:
                self._replace_env(error)
            else:
                self.crashes_in_row = 0
                return batch

    def _play(self, test_mode: bool) -> EpisodeBatch:
        self.reset()
        self.mac.init_hidden(1)
        episode_return, terminated, truncated, info = 0.0, False, False, {}
        while not (terminated or truncated):
            self.batch.update(self._observation(), ts=self.t)
            actions = self.mac.select_actions(self.batch, t_ep=self.t, t_env=self.t_env, test_mode=test_mode)
            reward, terminated, truncated, info = self.checked.step(actions[0].cpu())
            episode_return += reward
            terminal = terminated or (truncated and not self.args.bootstrap_time_limit)
            taken = {"actions": actions, "reward": [(reward,)], "terminated": [(terminal,)]}
            if "individual_reward" in self.batch.scheme:
                taken["individual_reward"] = [info["individual_reward"]]
            if "behaviour" in self.batch.scheme:
                taken["behaviour"] = self.mac.behaviour
            self.batch.update(taken, ts=self.t, mark_filled=False)
            self.t += 1
        self.batch.update(self._observation(), ts=self.t)
        if test_mode:
            self.test_statistics.add(episode_return, self.t, info)
        else:
            self.t_env += self.t
            self.train_statistics.add(episode_return, self.t, info)
            if self.t_env - self.log_train_stats_t >= self.args.runner_log_interval:
                self.train_statistics.log(self.logger, self.t_env)
                self.logger.log_stat("epsilon", self.mac.action_selector.epsilon, self.t_env)
                self.logger.log_stat("env_crashes", self.crashes, self.t_env)
                self.log_train_stats_t = self.t_env
        return self.batch

    def evaluate(self, n_episodes: int) -> dict[str, float]:
        """Play exactly `n_episodes` test episodes, log their statistics and return them."""
        with self.test_random:
            for _ in range(n_episodes):
                self.run(test_mode=True)
        summary = self.test_statistics.summary()
        self.test_statistics.log(self.logger, self.t_env)
        return summary

    def _make_env(self, seed: int | None) -> None:
        self.env: MultiAgentEnv = resolve("env", self.args.env, env_REGISTRY)(**{**self.args.env_args, "seed": seed})
        self.checked = CheckedEnv(self.env)

    def _replace_env(self, error: EnvCrash) -> None:
        self.crashes += 1
        self.crashes_in_row += 1
        if self.crashes_in_row >= self.args.env_crash_limit:
            raise EnvCrash(
                f"{error}; that was crash {self.crashes_in_row} without a whole episode between them "
                f"(env_crash_limit={self.args.env_crash_limit})"
            ) from error
        self.logger.console_logger.warning("%s. The episode is dropped and played again", error)
        self.env.close()
        seed = self.args.env_args["seed"]  # another one, so that no battle is played twice
        self._make_env(None if seed is None else seed + RESTART_SEED * self.crashes)

    def _observation(self) -> dict:
        obs, state, avail = self.checked.observe()
        return {"state": state[None], "avail_actions": avail[None], "obs": obs[None]}
