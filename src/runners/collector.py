"""The process that collects episodes for `OverlappedRunner`: a runner, and a controller that is told its parameters.

Requests and answers are pickled over a socket. A request is a method's name and its arguments; an answer is what the
method returned or the error that it raised, with what the runner has said and logged meanwhile.
"""

import contextlib
import logging
import os
import pickle
import socket
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from components.episode_buffer import EpisodeBatch
from utils.logging import Logger
from utils.memory import keep_freed_memory
from utils.seeding import random_states, seed_everything, set_random_states
from utils.state import restore, state_of

SEED = 2_000_003  # added to the run's: what explores draws other numbers than what learns


class Notes(Logger):
    """Keeps what is said and logged, for the logger of the other process."""

    def __init__(self):
        console = logging.Logger("collector")
        handler = logging.Handler()
        handler.emit = lambda record: self.lines.append((record.levelno, record.getMessage()))
        console.addHandler(handler)
        super().__init__(console)
        self.lines: list[tuple[int, str]] = []
        self.points: list[tuple] = []  # arguments of `log_stat`

    def log_stat(self, key: str, value: float, t: int, to_sacred: bool = True) -> None:
        self.points.append((key, float(value), t, to_sacred))

    def take(self) -> dict[str, list]:
        """What was noted since the last time."""
        taken = {"lines": self.lines, "points": self.points}
        self.lines, self.points = [], []
        return taken


class Collector:
    """Answers requests until the other process closes its end."""

    def __init__(self, connection: Connection):
        self.connection = connection
        self.notes = Notes()
        self.runner: Any = None

    def serve(self) -> None:
        try:
            while True:
                name, given = pickle.loads(self.connection.recv_bytes())
                try:
                    answer = {"value": getattr(self, name)(*given)}
                except Exception as error:  # whatever it is, the other side decides what becomes of it
                    answer = {"error": _sendable(error)}
                self.connection.send_bytes(pickle.dumps(answer | self.notes.take(), pickle.HIGHEST_PROTOCOL))
        except (EOFError, ConnectionError):
            pass  # nobody is there any more
        finally:
            if self.runner is not None:
                self.runner.close_env()

    def build(self, runner_class, args) -> dict[str, Any]:
        """Make the runner; returns what others ask of it."""
        torch.set_num_threads(1)
        keep_freed_memory()
        torch.set_flush_denormal(True)  # as in the run's own process
        seed_everything(args.seed)
        self.seed = args.seed + SEED
        self.runner = runner_class(args, self.notes)
        env: Any = getattr(self.runner, "env", None)
        return {
            "env_info": self.runner.get_env_info(),
            "batch_size": self.runner.batch_size,
            "game_states": env.game_states() if env is not None and hasattr(env, "game_states") else None,
        }

    def setup(self, mac_class, args, scheme, groups, preprocess) -> None:
        full_scheme = EpisodeBatch(scheme, groups, 1, 1, preprocess=preprocess).scheme
        self.mac = mac_class(full_scheme, groups, args)
        seed_everything(self.seed)
        self.runner.setup(scheme, groups, preprocess, self.mac)

    def run(self, parameters, t_env: int, n_episodes: int) -> dict[str, Any]:
        """Let the runner run until there are at least so many episodes."""
        self._follow(parameters, t_env)
        parts: list[dict[str, Any]] = []
        while sum(len(part["filled"]) for part in parts) < n_episodes:
            parts.append(as_arrays(self.runner.run(test_mode=False).data.transition_data))
        episodes = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        return {"episodes": episodes, "t_env": self.runner.t_env}

    def evaluate(self, parameters, t_env: int, n_episodes: int) -> dict[str, float]:
        with self._aside(parameters, t_env):
            return self.runner.evaluate(n_episodes)

    def play(self, parameters, t_env: int, n_episodes: int) -> dict[str, Any]:
        with self._aside(parameters, t_env):
            return as_arrays(self.runner.play(n_episodes).data.transition_data)

    def state(self) -> dict[str, Any]:
        return {"runner": self.runner.state_dict(), "mac": state_of(self.mac, "mac"), "random": random_states()}

    def go_on(self, state: dict[str, Any]) -> None:
        self.runner.load_state_dict(state["runner"])
        restore(self.mac, state["mac"])
        set_random_states(state["random"])

    def _follow(self, parameters, t_env: int) -> None:
        self.mac.agent.load_state_dict(as_tensors(parameters))
        self.runner.t_env = t_env

    @contextlib.contextmanager
    def _aside(self, parameters, t_env: int):
        """Play with these parameters at this time; the collection is a round ahead of it."""
        ahead = self.runner.t_env
        self._follow(parameters, t_env)
        yield
        self.runner.t_env = ahead


def as_arrays(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """For pickle, which is quicker at arrays."""
    return {key: value.detach().cpu().numpy() for key, value in tensors.items()}


def as_tensors(arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


def _sendable(error: Exception) -> Exception:
    """The error, or one that says the same and can be pickled; a traceback is added for those who print one."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception's constructor may want anything
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(traceback.format_exc())
    return error


if __name__ == "__main__":
    sys.path.append(os.getcwd())  # where plug-ins of the user's own lie
    Collector(Connection(socket.socket(fileno=int(sys.argv[1])).detach())).serve()
