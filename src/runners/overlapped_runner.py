"""A runner in a process of its own, which collects the next episodes while the learner learns from the last.

Every `run` returns the episodes that the previous one has asked for, and asks for the next with the parameters of now.
So episodes are played by the parameters of one round before, whatever is faster: equal seeds give equal runs. A round
has as many episodes as earn an update, so that there is something to play for as long as the learner learns.
"""

import math
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from components.episode_buffer import EpisodeBatch
from envs.multiagentenv import EnvCrash
from runners.collector import as_arrays
from utils.errors import UserError
from utils.processes import Guard, ending

CLOSING = 5.0  # seconds that the process has to close its environments in peace


class OverlappedRunner:
    """The interface of the runner that it runs elsewhere. For Linux.

    Args:
        runner_class: of the runner that collects.

    Raises:
        EnvCrash: from every method: the process has ended. Errors of the runner itself are raised as they are.
    """

    def __init__(self, runner_class, args, logger):
        if sys.platform != "linux":
            raise UserError(f"overlap=True needs Linux, this is {sys.platform}; set overlap=False")
        self.args, self.logger = args, logger
        self._episodes = math.ceil(1 / args.updates_per_episode)  # of a round, at least
        self.t_env = 0  # of the last episodes that were returned; the process is a round ahead
        self._asked = False  # whether an answer to `run` is under way
        self._round: dict[str, Any] | None = None  # such an answer that nobody has asked for yet
        self._guard = Guard()
        try:
            self._start()
            facts = self._ask("build", runner_class, _on_cpu(args))
        except BaseException:
            self.close_env()
            raise
        self.env_info, self.batch_size = facts["env_info"], facts["batch_size"]
        self.episode_limit = self.env_info["episode_limit"]
        if facts["game_states"] is not None:
            self.env = SimpleNamespace(game_states=lambda: facts["game_states"])

    def setup(self, scheme, groups, preprocess, mac) -> None:
        if not hasattr(mac, "agent"):
            raise UserError(f"overlap=True: mac={self.args.mac} has no agent, whose parameters play; set overlap=False")
        self.scheme, self.groups, self.preprocess, self.mac = scheme, groups, preprocess, mac
        self._ask("setup", type(mac), _on_cpu(mac.args), scheme, groups, preprocess)

    def get_env_info(self) -> dict:
        return self.env_info

    def run(self, test_mode: bool = False) -> EpisodeBatch:
        """The episodes that the last call has asked for; asks for the next."""
        if test_mode:
            raise ValueError("this runner evaluates by evaluate(n_episodes), not by run(test_mode=True)")
        if self._round is None and not self._asked:  # the first
            self._ask_for_round()
        self._settle()
        found, self._round = self._round, None
        assert found is not None
        self._note(found)
        self.t_env = found["value"]["t_env"]
        self._ask_for_round()
        return self._batch(found["value"]["episodes"])

    def evaluate(self, n_episodes: int) -> dict[str, float]:
        return self._ask("evaluate", *self._now(), n_episodes)

    def play(self, n_episodes: int) -> EpisodeBatch:
        return self._batch(self._ask("play", *self._now(), n_episodes))

    def state_dict(self) -> dict[str, Any]:
        state = self._ask("state")
        pending = None
        if self._round is not None:
            value = self._round["value"]
            episodes = {key: torch.from_numpy(field) for key, field in value["episodes"].items()}
            pending = {**self._round, "value": {**value, "episodes": episodes}}
        return {"t_env": self.t_env, "process": state, "pending": pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ask("go_on", state["process"])
        self.t_env, self._round = state["t_env"], state["pending"]
        if self._round is not None:
            value = self._round["value"]
            self._round = {**self._round, "value": {**value, "episodes": as_arrays(value["episodes"])}}

    def close_env(self) -> None:
        if self._process is not None:
            self._connection.close()  # the process then closes its environments and ends
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSING)
            self._guard.kill(self._process, self._temporary)
            self._process = None
        self._guard.close()

    def _start(self) -> None:
        self._process: Any = None
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        self._temporary = Path(tempfile.mkdtemp(prefix="env-"))
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with theirs:
            self._process = self._guard.start(
                [sys.executable, "-P", "-u", "-m", "runners.collector", str(theirs.fileno())],
                self._temporary,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **threads, "PYTHONPATH": path, "TMPDIR": str(self._temporary)},
            )

    def _now(self) -> tuple[dict[str, Any], int]:
        """The parameters to act with, and the time of them."""
        return as_arrays(self.mac.agent.state_dict()), self.t_env

    def _ask_for_round(self) -> None:
        self._send("run", *self._now(), self._episodes)
        self._asked = True

    def _settle(self) -> None:
        """Wait for the episodes that were asked for, and keep them."""
        if self._asked:
            self._asked = False
            self._round = self._receive()

    def _ask(self, name: str, *given) -> Any:
        """What the process returns, after the episodes that are under way."""
        self._settle()
        self._send(name, *given)
        answer = self._receive()
        self._note(answer)
        return answer["value"]

    def _send(self, name: str, *given) -> None:
        with suppress(ConnectionError):  # the next `_receive` notices its end
            self._connection.send_bytes(pickle.dumps((name, given), pickle.HIGHEST_PROTOCOL))

    def _receive(self) -> dict[str, Any]:
        try:
            answer = pickle.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError):
            raise EnvCrash(
                f"the process that collects episodes is gone: {ending(self._process)}; set overlap=False to collect "
                f"them in this one"
            ) from None
        if "error" in answer:
            self._note(answer)
            raise answer["error"]
        return answer

    def _note(self, answer: dict[str, Any]) -> None:
        """Say and log here what was said and logged there."""
        for level, line in answer["lines"]:
            self.logger.console_logger.log(level, "%s", line)
        for point in answer["points"]:
            self.logger.log_stat(*point)

    def _batch(self, arrays: dict[str, Any]) -> EpisodeBatch:
        device = self.args.device
        fields = {key: torch.from_numpy(value).to(device) for key, value in arrays.items()}
        data = SimpleNamespace(transition_data=fields, episode_data={})
        episodes, steps = fields["filled"].shape[:2]
        return EpisodeBatch(self.scheme, self.groups, episodes, steps, data, self.preprocess, device)


def _on_cpu(args):
    """These settings, for a process without a GPU."""
    return type(args)({**vars(args), "device": "cpu", "use_cuda": False})
