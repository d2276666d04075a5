"""Environments in supervised processes of their own: for ones that are slow, or that may die.

Every environment acts as soon as it is ready, so none waits for the slowest. One that fails is started again while the
others play on; its episode never reaches the replay, and is counted in `env_crashes`.
"""

from pathlib import Path
from typing import Any

import torch

from envs.process_env import ProcessVectorEnv
from envs.vector_env import VectorStep
from runners.vector_runner import Rollout, VectorRunner


class ParallelRollout(Rollout):
    """A rollout whose environments act when it is their turn."""

    env: ProcessVectorEnv

    def start(self) -> None:
        super().start()
        self.turn = list(range(self.env.n_envs))  # who shows an observation and waits for an action
        self.resting: list[int] = []
        self.actions = torch.zeros(self.env.n_envs, self.env.n_agents, dtype=torch.long, device=self.rows.device)

    def step(self, t_env: int, test_mode: bool, bootstrap_time_limit: bool = True) -> tuple[VectorStep, torch.Tensor]:
        """Act in the environments whose turn it is, and wait for some: what came of it, and where an episode ended."""
        turn = [row for row in self.turn if row not in self.resting]
        if turn:
            rows = self.rows[turn]
            self.actions[rows] = self._act(rows, t_env, test_mode)
        outcome = self.env.step(self.actions, turn)
        return outcome, self._settle(self.rows[outcome.rows], outcome, bootstrap_time_limit)

    def advance(self, outcome: VectorStep, ended: list[int]) -> None:
        self.now = outcome.next
        rows, began = outcome.rows or [], outcome.began or []
        if began:
            self._begin(self.rows[began])
        self.turn = sorted(set(rows) - set(ended) | set(began))

    def rest(self, rows: list[int]) -> None:
        """These environments need not play on."""
        self.resting = rows


class ParallelRunner(VectorRunner):
    """The vector runner over `batch_size_run` worker processes; tests have processes of their own."""

    rollout_class = ParallelRollout
    env: ProcessVectorEnv
    test_env: ProcessVectorEnv | None
    crashes_before = 0  # of the run that this one goes on with

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"crashes": self._crashes()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.crashes_before = state["crashes"]

    def close_env(self) -> None:
        super().close_env()
        self._log_crashes()

    def _make_env(self, n_envs: int, env_args: dict, label: str) -> ProcessVectorEnv:
        args, log = self.args, self.logger.console_logger
        if (args.evaluate or args.offline) and label != "worker":
            return self.env  # nothing is collected, so it is free
        output = Path(args.local_results_path) / "workers" / args.unique_token
        first = env_args["seed"]
        seeds = f"seed {first}" if n_envs == 1 else f"seeds {first} to {first + n_envs - 1}"
        kind = label.replace("_", " ")
        log.info("Starting %d %s process(es) of %s, %s; their output: %s", n_envs, kind, args.env, seeds, output)
        return ProcessVectorEnv(
            args.env,
            n_envs,
            args.device,
            env_args,
            deadline=args.env_deadline,
            crash_limit=args.env_crash_limit,
            lockstep=args.env_lockstep,
            output_folder=output,
            label=label,
            log=log.warning,
        )

    def _log_statistics(self) -> None:
        super()._log_statistics()
        self._log_crashes()

    def _log_crashes(self) -> None:
        self.logger.log_stat("env_crashes", self._crashes(), self.t_env)

    def _crashes(self) -> int:
        return self.crashes_before + sum(env.crashes for env in {self.env, self.test_env} if env is not None)
