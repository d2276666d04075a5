"""The environments of many seeds as one batch: each seed's equal part plays as that seed would alone.

Legend: N seeds, E environments of each.
"""

from bisect import bisect_left
from itertools import pairwise
from typing import Any

import torch

from components.episode_buffer import EpisodeBatch
from envs import make_vector_env
from envs.vector_env import VectorEnv, VectorStep
from runners.statistics import EpisodeStatistics
from runners.vector_runner import Rollout, VectorRunner, ended_episodes
from utils.seeding import RandomRows


class SeedStatistics:
    """`EpisodeStatistics` of every seed."""

    def __init__(self, prefix: str, loggers: list):
        self.loggers = loggers
        self.of = [EpisodeStatistics(prefix) for _ in loggers]

    def summary(self) -> list[dict[str, float]]:
        return [one.summary() for one in self.of]

    def log(self, _logger, t_env: int, **more: float) -> None:
        """Log the summary of every seed that has played an episode, and what else there is; start anew."""
        for one, logger in zip(self.of, self.loggers, strict=True):
            if one.returns:
                one.log(logger, t_env)
                for key, value in more.items():
                    logger.log_stat(key, value, t_env)


class SeedsRunner(VectorRunner):
    """The vector runner over N * E environments. `t_env` counts one seed's steps: it is the same for all.

    Args:
        args: of the first seed; the others count up from its seeds.
        loggers: of every seed.
    """

    train_statistics: Any

    def __init__(self, args, loggers: list):
        self.loggers = loggers
        self.n_seeds = len(loggers)
        self.schemes: tuple[Any, Any, Any] = ({}, {}, {})  # scheme, groups and preprocess, the same for all
        super().__init__(args, loggers[0])
        self.played: list[EpisodeBatch | None] = []
        self._summaries: tuple[int, list[dict[str, float]]] = (-1, [])  # when they were made, of every seed

    def part(self, number: int) -> "SeedPart":
        """What one seed sees of this runner."""
        return SeedPart(self, number)

    def setup_all(self, mac, generators: list[torch.Generator]) -> None:
        """Begin to play by the controller of all seeds, which explore by these generators."""
        selector = mac.action_selector
        selector.random = RandomRows(generators)
        seeds = [self.args.seed + 1 + n for n in range(self.n_seeds)]
        self.test_random: Any = _Lent(selector, RandomRows.seeded(seeds, self.args.device))
        self.setup(*self.schemes, mac)

    def collect(self) -> None:
        """Step all environments until an episode ends; `played` has the episodes of each seed, None without any."""
        rows, batch = self._play_on()
        owners = [row // self.batch_size for row in rows]  # in ascending order
        ends = [bisect_left(owners, n) for n in range(self.n_seeds + 1)]
        self.played = [batch[start:end] if start < end else None for start, end in pairwise(ends)]

    def summary_of(self, number: int, n_episodes: int) -> dict[str, float]:
        """One seed's statistics of test episodes at this step, which all seeds play together."""
        if self._summaries[0] != self.t_env:
            found: Any = self.evaluate(n_episodes)
            self._summaries = (self.t_env, found)
        return self._summaries[1][number]

    def _make_env(self, n_envs: int, env_args: dict, _label: str) -> VectorEnv:
        seeds = [env_args["seed"] + n for n in range(self.n_seeds)]
        return make_vector_env(self.args.env, self.n_seeds * n_envs, self.args.device, {**env_args, "seed": seeds})

    def _new_statistics(self, prefix: str) -> Any:
        return SeedStatistics(prefix, self.loggers)

    def _count(self, statistics: Any, rollout: Rollout, rows: list[int], outcome: VectorStep) -> None:
        of_each = rollout.env.n_envs // self.n_seeds
        for e, episode in ended_episodes(rollout, rows, outcome):
            statistics.of[e // of_each].add(*episode)

    def _shares(self, n_episodes: int, n_envs: int) -> list[int]:
        return super()._shares(n_episodes, n_envs // self.n_seeds) * self.n_seeds

    def _log_statistics(self) -> None:
        self.train_statistics.log(None, self.t_env, epsilon=self.mac.action_selector.epsilon)


class SeedPart:
    """One seed's part of a `SeedsRunner`, as a runner. It plays nothing itself: `run` gives what has been collected."""

    def __init__(self, runner: SeedsRunner, number: int):
        self.runner, self.number = runner, number
        self.batch_size, self.env = runner.batch_size, runner.env

    @property
    def t_env(self) -> int:
        return self.runner.t_env

    def get_env_info(self) -> dict:
        return self.runner.get_env_info()

    def setup(self, scheme, groups, preprocess, _mac) -> None:
        self.runner.schemes = (scheme, groups, preprocess)

    def run(self, test_mode: bool = False) -> EpisodeBatch | None:
        return self.runner.played[self.number]

    def evaluate(self, n_episodes: int) -> dict[str, float]:
        return self.runner.summary_of(self.number, n_episodes)


class _Lent:
    """A selector draws by these random numbers while this is entered."""

    def __init__(self, selector, random: RandomRows):
        self.selector, self.random = selector, random

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *error) -> None:
        self._swap()

    def _swap(self) -> None:
        self.selector.random, self.random = self.random, self.selector.random
