"""A batch of environments that step together, without pause between episodes.

An environment that ends starts its next episode at once, so E environments always work, and every episode lands whole
in the replay. Legend: E environments, N agents.
"""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch

from components.episode_buffer import EpisodeBatch
from envs import make_vector_env
from envs.vector_env import Observation, VectorEnv, VectorStep
from runners.statistics import EpisodeStatistics
from utils.seeding import RandomStream
from utils.state import restore, state_of

ALL = slice(None)


class _Window(Mapping):
    """Two neighbouring steps of some episodes, each field gathered when it is read."""

    def __init__(self, store: Mapping[str, torch.Tensor], rows: torch.Tensor, first: torch.Tensor):
        self.store = store
        self.at = (rows.unsqueeze(1), torch.stack([first, first + 1], dim=1))
        self.gathered: dict[str, torch.Tensor] = {}

    def __getitem__(self, key: str) -> torch.Tensor:
        if key not in self.gathered:
            self.gathered[key] = self.store[key][self.at]
        return self.gathered[key]

    def __contains__(self, key) -> bool:
        return key in self.store

    def __iter__(self) -> Iterator[str]:
        return iter(self.store)

    def __len__(self) -> int:
        return len(self.store)


class Rollout:
    """E environments, what their agents see and remember now, how far each episode is, and what happened in it."""

    def __init__(self, env: VectorEnv, new_batch, mac, device):
        self.env = env
        self.mac = mac
        self.rows = torch.arange(env.n_envs, device=device)
        self.steps = torch.zeros(env.n_envs, dtype=torch.long, device=device)
        self.returns = torch.zeros(env.n_envs, device=device)
        # The open episodes. Step t lies at t + 1: what is before an episode's first step is empty.
        self.episodes: EpisodeBatch = new_batch(env.n_envs, 1 + env.episode_limit + 1)
        self.store: dict[str, torch.Tensor] = self.episodes.data.transition_data

    def start(self) -> None:
        """Begin a fresh episode in every environment."""
        self.now: Observation = self.env.reset()
        self.mac.init_hidden(self.env.n_envs)
        self.hidden = self.mac.hidden_states
        self.steps.zero_()
        self.returns.zero_()
        self.store["filled"].zero_()

    def state_dict(self) -> dict[str, Any] | None:
        """Where every environment and its open episode is; None if the environments cannot save themselves."""
        env = self.env.state_dict()
        if env is None:
            return None
        now = {"obs": self.now.obs, "state": self.now.state, "avail": self.now.avail}
        mine = {"steps": self.steps, "returns": self.returns, "hidden": self.hidden, "store": self.store, "now": now}
        return {"env": env, **mine}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on in the middle of the open episodes. Without a state they are dropped, and others begin."""
        if state is None:
            self.start()
            return
        self.env.load_state_dict(state["env"])
        self.now = Observation(**state["now"])
        self.hidden = state["hidden"]
        self.steps.copy_(state["steps"])
        self.returns.copy_(state["returns"])
        for key, value in self.store.items():
            value.copy_(state["store"][key])

    def step(self, t_env: int, test_mode: bool, bootstrap_time_limit: bool = True) -> tuple[VectorStep, torch.Tensor]:
        """Act in all environments: what came of it, and where an episode ended (E,) bool."""
        actions = self._act(ALL, t_env, test_mode)
        outcome = self.env.step(actions)
        return outcome, self._settle(ALL, outcome, bootstrap_time_limit)

    def advance(self, outcome: VectorStep, ended: list[int]) -> None:
        """Go on to the next step; environments that ended begin an episode with fresh memory."""
        self.now = outcome.next
        if ended:
            self._begin(self.rows[ended])

    def rest(self, rows: list[int]) -> None:
        """These environments need not play on. A batch that steps as one plays on all the same."""

    def take(self, rows: list[int], outcome: VectorStep) -> EpisodeBatch:
        """The episodes of these environments, which have just ended, with their final observations."""
        index = self.rows[rows]
        at = (index, self.steps[index] + 1)
        self._write(at, outcome.final, index)
        for key in self.store.keys() & {"actions", "reward", "terminated", "individual_reward", "behaviour"}:
            self.store[key][at] = 0
        fields, constants = self.store.items(), self.episodes.data.episode_data.items()
        batch = self.episodes.over(
            SimpleNamespace(
                transition_data={key: value[:, 1:].index_select(0, index) for key, value in fields},
                episode_data={key: value.index_select(0, index) for key, value in constants},
            )
        )
        # Behind the end, slots still hold their previous episode; padding is zero, as in PyMARL.
        filled = batch["filled"].clone()
        for value in batch.data.transition_data.values():
            value *= filled.reshape(*filled.shape[:2], *(1,) * (value.dim() - 2)).to(value.dtype)
        return batch

    def _act(self, rows: slice | torch.Tensor, t_env: int, test_mode: bool) -> torch.Tensor:
        """Choose actions for these environments, (len(rows), N), and write down what they saw and do."""
        index, steps = self.rows[rows], self.steps[rows]
        at = (index, steps + 1)
        self._write(at, self.now, rows)
        window = _Window(self.store, index, steps)  # PyMARL's controllers look at steps t and t - 1 of a batch
        batch = self.episodes.over(SimpleNamespace(transition_data=window, episode_data={}))
        hidden = self.hidden
        if not isinstance(rows, slice):
            hidden = hidden.reshape(self.env.n_envs, self.env.n_agents, -1)
        self.mac.hidden_states = hidden[rows]  # the learner uses the same controller between our steps
        actions = self.mac.select_actions(batch, t_ep=1, t_env=t_env, test_mode=test_mode)
        if isinstance(rows, slice):
            self.hidden = self.mac.hidden_states
        else:
            self.hidden = hidden.index_copy(0, rows, self.mac.hidden_states.reshape(len(rows), *hidden.shape[1:]))
        self.store["actions"][at] = actions.unsqueeze(-1)
        if "behaviour" in self.store:
            self.store["behaviour"][at] = self.mac.behaviour
        return actions

    def _write(self, at: tuple[torch.Tensor, torch.Tensor], seen: Observation, rows) -> None:
        """Write down, at these places of the store, what these environments show."""
        self.store["obs"][at] = seen.obs[rows]
        self.store["state"][at] = seen.state[rows]
        self.store["avail_actions"][at] = seen.avail[rows]
        self.store["filled"][at] = 1

    def _settle(self, rows: slice | torch.Tensor, outcome: VectorStep, bootstrap_time_limit: bool) -> torch.Tensor:
        """Write down what came of the actions of these environments; where an episode ended (E,) bool."""
        ended = outcome.terminated | outcome.truncated
        store, at = self.store, (self.rows[rows], self.steps[rows] + 1)
        terminal = outcome.terminated if bootstrap_time_limit else ended
        store["reward"][at] = outcome.reward[rows].unsqueeze(-1)
        store["terminated"][at] = terminal[rows].unsqueeze(-1).to(torch.uint8)
        if "individual_reward" in store:
            assert outcome.individual_reward is not None
            store["individual_reward"][at] = outcome.individual_reward[rows]
        self.steps[rows] += 1
        self.returns += outcome.reward
        return ended

    def _begin(self, rows: torch.Tensor) -> None:
        """Begin an episode in these environments."""
        self.steps[rows] = 0
        self.returns[rows] = 0.0
        self.store["filled"][rows] = 0
        hidden = self.hidden.reshape(self.env.n_envs, self.env.n_agents, -1).clone()
        self.mac.init_hidden(self.env.n_envs)
        hidden[rows] = self.mac.hidden_states.reshape(hidden.shape)[rows]
        self.hidden = hidden


class VectorRunner:
    """PyMARL's runner interface over a `VectorEnv`."""

    rollout_class = Rollout

    def __init__(self, args, logger):
        self.args = args
        self.logger = logger
        self.batch_size = args.batch_size_run
        self.env = self._make_env(self.batch_size, args.env_args, "worker")
        self.test_env: VectorEnv | None = None
        self.test_random = RandomStream(args.seed + 1, args.device)  # tests do not change what is learned
        self.episode_limit = self.env.episode_limit
        self.t = 0
        self.t_env = 0
        self.train_statistics: Any = self._new_statistics("")
        self.log_train_stats_t = -args.runner_log_interval - 1

    def setup(self, scheme, groups, preprocess, mac) -> None:
        def new_batch(batch_size: int, steps: int) -> EpisodeBatch:
            return EpisodeBatch(scheme, groups, batch_size, steps, preprocess=preprocess, device=self.args.device)

        self.mac = mac
        self._new_batch = new_batch
        self.rollout = self.rollout_class(self.env, new_batch, mac, self.args.device)
        self.reset()

    def state_dict(self) -> dict[str, Any]:
        return {
            "t_env": self.t_env,
            "log_train_stats_t": self.log_train_stats_t,
            "statistics": state_of(self.train_statistics),
            "test_random": self.test_random.state_dict(),
            "test_env": None if self.test_env is None else self.test_env.state_dict(),
            "rollout": self.rollout.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.t_env = state["t_env"]
        self.log_train_stats_t = state["log_train_stats_t"]
        restore(self.train_statistics, state["statistics"])
        self.test_random.load_state_dict(state["test_random"])
        if state["test_env"] is not None:
            self._testing_env().load_state_dict(state["test_env"])
        self.rollout.load_state_dict(state["rollout"])

    def get_env_info(self) -> dict:
        return self.env.get_env_info()

    def save_replay(self):
        return (self.test_env or self.env).save_replay()

    def close_env(self) -> None:
        self.env.close()
        if self.test_env is not None:
            self.test_env.close()

    def reset(self) -> None:
        """Drop the open episodes and start new ones. `run` never does this by itself."""
        with torch.no_grad():
            self.rollout.start()

    @torch.no_grad()
    def run(self, test_mode: bool = False) -> EpisodeBatch:
        """Step all environments until at least one episode ends; returns the episodes that ended, whole.

        Tests are played by `evaluate`, in environments of their own.
        """
        if test_mode:
            raise ValueError("the vector runner evaluates by evaluate(n_episodes), not by run(test_mode=True)")
        return self._play_on()[1]

    def _play_on(self) -> tuple[list[int], EpisodeBatch]:
        """`run`, and the environments that played these episodes."""
        rollout = self.rollout
        while True:
            outcome, ended = rollout.step(self.t_env, False, self.args.bootstrap_time_limit)
            self.t_env += self.batch_size if outcome.rows is None else len(outcome.rows)
            rows = _where(ended)
            finished = rollout.take(rows, outcome) if rows else None
            self._count(self.train_statistics, rollout, rows, outcome)
            rollout.advance(outcome, rows)
            if finished is not None:
                break
        if self.t_env - self.log_train_stats_t >= self.args.runner_log_interval:
            self._log_statistics()
            self.log_train_stats_t = self.t_env
        return rows, finished

    @torch.no_grad()
    def evaluate(self, n_episodes: int) -> dict[str, float]:
        """Play exactly `n_episodes` test episodes, log their statistics and return them."""
        statistics = self._new_statistics("test_")
        with self.test_random:
            for rollout, outcome, rows in self._test_episodes(n_episodes):
                self._count(statistics, rollout, rows, outcome)
        summary = statistics.summary()
        statistics.log(self.logger, self.t_env)
        return summary

    @torch.no_grad()
    def play(self, n_episodes: int) -> EpisodeBatch:
        """Exactly `n_episodes` whole test episodes. They are neither logged nor counted in `t_env`."""
        played = self._new_batch(n_episodes, self.episode_limit + 1)
        count = 0
        with self.test_random:
            for rollout, outcome, rows in self._test_episodes(n_episodes):
                episodes = rollout.take(rows, outcome).data.transition_data
                for key, value in played.data.transition_data.items():
                    value[count : count + len(rows)] = episodes[key]
                count += len(rows)
        return played

    def _test_episodes(self, n_episodes: int):
        """Play test episodes; yields the rollout, a step's outcome and the environments whose episode ended in it.

        Every environment plays a fixed share of them: taking the first that end would favour short episodes.
        """
        test_env = self._testing_env()
        n_envs = test_env.n_envs
        rollout = self.rollout_class(test_env, self._new_batch, self.mac, self.args.device)
        rollout.start()
        remaining = self._shares(n_episodes, n_envs)
        while any(remaining):
            outcome, ended = rollout.step(self.t_env, True, self.args.bootstrap_time_limit)
            over = _where(ended)
            rows = [e for e in over if remaining[e] > 0]
            for e in rows:
                remaining[e] -= 1
            if rows:
                yield rollout, outcome, rows
            rollout.advance(outcome, over)
            rollout.rest([e for e in range(n_envs) if remaining[e] == 0])

    def _shares(self, n_episodes: int, n_envs: int) -> list[int]:
        """How many of the episodes each environment plays."""
        return [n_episodes // n_envs + (e < n_episodes % n_envs) for e in range(n_envs)]

    def _new_statistics(self, prefix: str) -> EpisodeStatistics:
        return EpisodeStatistics(prefix)

    def _testing_env(self) -> VectorEnv:
        if self.test_env is None:
            n_envs = min(self.batch_size, self.args.test_nepisode)
            seed = self.args.env_args["seed"] + self.batch_size  # no training battle again
            self.test_env = self._make_env(n_envs, {**self.args.env_args, "seed": seed}, "test_worker")
        return self.test_env

    def _make_env(self, n_envs: int, env_args: dict, _label: str) -> VectorEnv:
        return make_vector_env(self.args.env, n_envs, self.args.device, env_args)

    def _log_statistics(self) -> None:
        self.train_statistics.log(self.logger, self.t_env)
        self.logger.log_stat("epsilon", self.mac.action_selector.epsilon, self.t_env)

    def _count(self, statistics: EpisodeStatistics, rollout: Rollout, rows: list[int], outcome: VectorStep) -> None:
        """Add the episodes of these environments, which have just ended, to the statistics."""
        for _, episode in ended_episodes(rollout, rows, outcome):
            statistics.add(*episode)


def ended_episodes(
    rollout: Rollout, rows: list[int], outcome: VectorStep
) -> Iterator[tuple[int, tuple[float, int, dict[str, float]]]]:
    """These environments' numbers, and their returns, lengths and final info, brought to the host at once."""
    if not rows:
        return
    values = torch.stack([rollout.returns, rollout.steps, *outcome.info.values()])[:, rollout.rows[rows]]
    for e, (episode_return, length, *info) in zip(rows, values.T.tolist(), strict=True):
        yield e, (episode_return, int(length), dict(zip(outcome.info, info, strict=True)))


def _where(ended: torch.Tensor) -> list[int]:
    """The environments whose episode ended: the one thing that the host has to read at every step."""
    return [e for e, over in enumerate(ended.tolist()) if over]
