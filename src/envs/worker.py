"""One environment in a process of its own: the program that `ProcessVectorEnv` starts for each of its environments.

Commands come as packets over a socket, whose first byte says what to do; the numbers of each step lie in memory that
both processes see. `Layout` says where. This module and what it imports do not load torch, so that a worker is small.

Legend: E environments, N agents, A actions, O observation size, S state size.
"""

import json
import mmap
import pickle
import socket
import sys
import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs import REGISTRY
from envs.replies import SIZES, CheckedEnv
from utils.errors import UserError
from utils.registry import resolve

# Commands to the worker, and what it answers.
BUILD = b"b"  # with (name, env_args): make the environment; answers INFO with the sizes
ATTACH = b"a"  # with (Layout, row) and the memory's file descriptor: start the first episode; answers FRESH
RESET = b"r"  # start another episode; answers FRESH
STEP = b"s"  # play the actions that lie in memory; answers STEPPED, or ENDED and later FRESH
CALL = b"c"  # with a method's name: call it; answers VALUE with what it returned, or a NotImplementedError
INFO, FRESH, STEPPED, ENDED, VALUE = b"i", b"f", b"p", b"e", b"v"
FAILED = b"x"  # instead of any answer, with (message, whether it is a UserError); the worker ends
PACKET = 1 << 17  # bytes of the largest packet

PLAYED, BEGUN = 0, 1  # the two places for what an environment shows: after a step, and at an episode's start


@dataclass(frozen=True)
class Layout:
    """Where each number of E environments lies in the shared memory."""

    n_envs: int
    n_agents: int
    n_actions: int
    obs_size: int
    state_size: int

    def _fields(self) -> list[tuple[str, tuple[int, ...], type]]:
        E, N, A = self.n_envs, self.n_agents, self.n_actions
        return [  # the widest types first, so that all are aligned
            ("actions", (E, N), np.int64),
            ("obs", (2, E, N, self.obs_size), np.float32),
            ("state", (2, E, self.state_size), np.float32),
            ("reward", (E,), np.float32),
            ("individual_reward", (E, N), np.float32),
            ("avail", (2, E, N, A), np.uint8),
            ("terminated", (E,), np.bool_),
            ("truncated", (E,), np.bool_),
        ]

    @property
    def nbytes(self) -> int:
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for _, shape, dtype in self._fields())

    def arrays(self, memory: mmap.mmap) -> dict[str, np.ndarray]:
        """Views into the memory, by name."""
        views, offset = {}, 0
        for name, shape, dtype in self._fields():
            count = int(np.prod(shape))
            views[name] = np.frombuffer(memory, dtype, count, offset).reshape(shape)
            offset += count * np.dtype(dtype).itemsize
        return views


class Worker:
    """Answers commands until it is told to end, by an empty packet or by the end of the other process."""

    def __init__(self, channel: socket.socket):
        self.channel = channel
        self.env: Any = None

    def run(self) -> None:
        answer = {BUILD: self.build, ATTACH: self.attach, RESET: self.reset, STEP: self.step, CALL: self.call}
        try:
            while packet := self.receive():
                answer[packet[:1]](packet[1:])
        except ConnectionError:
            pass  # nobody is there any more
        except Exception as error:  # whatever it is, the other side decides what becomes of it
            traceback.print_exc()
            text = f"{error}" or type(error).__name__
            self.channel.send(FAILED + pickle.dumps((text[:1000], isinstance(error, UserError))))
        finally:
            if self.env is not None:
                self.env.close()

    def receive(self) -> bytes:
        packet, fds, _, _ = socket.recv_fds(self.channel, PACKET, 1)
        if fds:
            self.memory_fd = fds[0]
        return packet

    def build(self, payload: bytes) -> None:
        name, env_args = pickle.loads(payload)
        self.env = resolve("env", name, REGISTRY)(**env_args)
        self.checked = CheckedEnv(self.env)
        info = self.env.get_env_info()
        sizes = {key: int(info[key]) for key in SIZES}
        sizes |= {"individual_reward": self.checked.owns, "agent_types": info.get("agent_types")}
        self.channel.send(INFO + json.dumps(sizes).encode())

    def attach(self, payload: bytes) -> None:
        layout, self.row = pickle.loads(payload)
        self.shared = layout.arrays(mmap.mmap(self.memory_fd, layout.nbytes))
        self.reset(b"")

    def reset(self, _payload: bytes) -> None:
        self.checked.reset()
        self.show(BEGUN)
        self.channel.send(FRESH)

    def step(self, _payload: bytes) -> None:
        shared, row = self.shared, self.row
        reward, terminated, truncated, info = self.checked.step(shared["actions"][row].copy())
        shared["reward"][row], shared["terminated"][row], shared["truncated"][row] = reward, terminated, truncated
        if self.checked.owns:
            shared["individual_reward"][row] = info["individual_reward"]
        self.show(PLAYED)
        if not (terminated or truncated):
            self.channel.send(STEPPED)
            return
        info.pop("individual_reward", None)
        self.channel.send(ENDED + json.dumps(info | {"episode_limit": float(truncated)}).encode())
        self.reset(b"")

    def call(self, payload: bytes) -> None:
        try:
            value = getattr(self.env, payload.decode())()
        except NotImplementedError as error:  # an environment that cannot, which is no failure
            value = error
        self.channel.send(VALUE + pickle.dumps(value))

    def show(self, place: int) -> None:
        for name, value in zip(("obs", "state", "avail"), self.checked.observe(), strict=True):
            self.shared[name][place, self.row] = value


if __name__ == "__main__":
    Worker(socket.socket(fileno=int(sys.argv[1]))).run()
