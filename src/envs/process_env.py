"""A batch of environments in worker processes, which are watched, killed and replaced when they fail.

Each environment has a process of its own (`envs.worker`), the leader of a process group that also holds what the
environment starts, such as a game. What is seen and done passes through memory that both sides map; a socket carries
one small packet for each step. A worker that ends, reports an error or does not answer in time is killed with its whole
group and started again. For Linux.

Legend: E environments, N agents, A actions, O observation size, S state size.
"""

import contextlib
import json
import mmap
import os
import pickle
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs import worker
from envs.multiagentenv import RESTART_SEED, EnvCrash
from envs.vector_env import Observation, VectorEnv, VectorStep
from envs.worker import BEGUN, PLAYED, Layout
from utils.errors import UserError
from utils.processes import Guard, ending

LONGEST_PAUSE = 60.0  # seconds before an environment that keeps failing is started again
CLOSING = 5.0  # seconds that all workers together have to close their environments in peace
TAIL, WIDTH = 20, 500  # lines of a worker's output that an error shows, and characters of each


class _State(Enum):
    READY = auto()  # it shows an observation and waits for an action
    BUSY = auto()  # it has to answer until `due`
    AWAY = auto()  # it has failed, and starts again when it is `due`


@dataclass
class _Worker:
    """One environment's process, and what is known of it."""

    row: int
    output: Path
    state: _State = _State.AWAY
    due: float = 0.0
    process: Any = None  # subprocess.Popen, while there is one
    temporary: Path = Path()  # the process's folder for temporary files
    channel: Any = None  # socket.socket, while there is a process
    launches: int = 0
    starting: bool = True  # it has not shown an observation since its launch
    fresh: bool = False  # nothing was played yet of the episode that it shows
    crashes_in_row: int = 0  # without a whole episode between them
    values: list = field(default_factory=list)  # what a call returned
    output_start: int = 0  # where the output of this launch begins

    def tail(self) -> str:
        """The last lines of what the process has printed since its launch."""
        with self.output.open("rb") as file:
            file.seek(max(self.output_start, self.output.stat().st_size - TAIL * WIDTH))
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(f"  | {line[:WIDTH]}" for line in lines[-TAIL:]) or "  | (nothing)"


class ProcessVectorEnv(VectorEnv):
    """E environments of any kind, each in a process of its own; environment e gets the seed `env_args["seed"] + e`.

    Unlike other `VectorEnv`s it does not step as one: `step` says which environments act, and returns as soon as some
    have answered (see `VectorStep.rows`). The tensors of an `Observation` are written anew by the next `step`.

    Args:
        name: a key of `envs.REGISTRY`, or package.module:ClassName.
        deadline: seconds that a start or a step may take.
        crash_limit: failures of one environment in a row, without a whole episode between them, that are too many.
        lockstep: return only when all environments have answered (but for ones that are being started again), so that
            equal seeds give equal runs.
        output_folder: where each worker's output is written.
        label: start of these files' names.
        log: is told about every failure.

    Raises:
        UserError: the environment cannot be built from these arguments, or this is not Linux.
        EnvCrash: there were too many failures; later calls may raise it too.
    """

    def __init__(
        self,
        name: str,
        n_envs: int,
        device: str | torch.device,
        env_args: dict,
        *,
        deadline: float,
        crash_limit: int,
        lockstep: bool,
        output_folder: Path,
        label: str = "worker",
        log: Callable[[str], None] = print,
    ):
        if sys.platform != "linux":
            raise UserError(f"runner=parallel needs Linux, this is {sys.platform}; set runner=vector or runner=episode")
        output_folder.mkdir(parents=True, exist_ok=True)
        self.name, self.env_args, self.n_envs, self.device = name, env_args, n_envs, device
        self.deadline, self.crash_limit, self.lockstep = deadline, crash_limit, lockstep
        self.log = log
        self.crashes = 0
        self._sizes: dict[str, Any] | None = None
        self._workers = [_Worker(row, output_folder / f"{label}_{row}.log") for row in range(n_envs)]
        self._stepped: list[int] = []  # who has stepped, ended or begun since `step` last returned
        self._ended: dict[int, dict[str, float]] = {}
        self._began: list[int] = []
        self._memory_fd = -1
        self._selector = selectors.DefaultSelector()
        self._guard = Guard()
        try:
            while self._sizes is None:  # all start at once, and go on while the caller builds its networks
                self._pump()
        except BaseException:
            self.close()
            raise

    def reset(self) -> Observation:
        """Start a fresh episode in every environment. One that has not played of its episode yet keeps it."""
        while any(one.state is not _State.READY or not one.fresh for one in self._workers):
            for one in self._workers:
                if one.state is _State.READY and not one.fresh:
                    self._send(one, worker.RESET)
            if any(one.state is not _State.READY for one in self._workers):
                self._pump()
        self._stepped, self._ended, self._began = [], {}, []
        self._show(list(range(self.n_envs)), BEGUN)
        return self._now

    def step(self, actions: torch.Tensor, rows: list[int] | None = None) -> VectorStep:
        """Play the joint actions (E, N) int64 of these environments (None: all); wait until some have answered.

        An environment that has failed meanwhile is left out. With no rows it only waits for those that are busy.
        """
        rows = list(range(self.n_envs)) if rows is None else rows
        if rows:
            self._shared["actions"][rows] = actions.cpu().numpy()[rows]
        for one in [self._workers[row] for row in rows]:
            if one.state is _State.READY and one.row not in self._began:
                one.fresh = False
                self._send(one, worker.STEP)
        while not self._answered():
            if all(one.state is _State.READY for one in self._workers):
                raise RuntimeError("no environment was told to act, so none will answer")
            self._pump()
        return self._outcome()

    def save_replay(self) -> list:
        """Save what each environment has played so far; returns what each says, such as a file's path."""
        return self._call("save_replay")

    def get_stats(self) -> dict:
        """Each statistic of the environments, as a list with one entry for each environment."""
        found = self._call("get_stats")
        return {key: [stats.get(key) for stats in found] for key in dict.fromkeys(key for one in found for key in one)}

    def close(self) -> None:
        living = [one for one in self._workers if one.process is not None]
        for one in living:
            one.channel.close()  # the worker then closes its environment and ends
        give_up = time.monotonic() + CLOSING
        for one in living:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(max(0.0, give_up - time.monotonic()))
            self._guard.kill(one.process, one.temporary)
            one.process = None
        self._selector.close()
        self._guard.close()
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            self._memory_fd = -1

    # Starting and supervision

    def _launch(self, one: _Worker) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        one.channel, one.temporary = ours, Path(tempfile.mkdtemp(prefix="env-"))
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with theirs, one.output.open("ab") as output:
            one.output_start = output.tell()
            try:
                one.process = self._guard.start(
                    [sys.executable, "-P", "-u", "-m", "envs.worker", str(theirs.fileno())],
                    one.temporary,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **threads, "PYTHONPATH": path, "TMPDIR": str(one.temporary)},
                )
            except OSError as error:  # too little memory, or too many processes
                ours.close()
                one.temporary.rmdir()
                self._count_failure(one, f"its process cannot be started: {error}")
                return
        self._selector.register(ours, selectors.EVENT_READ, one)
        env_args = dict(self.env_args)
        if env_args.get("seed") is not None:
            env_args["seed"] += one.row + RESTART_SEED * one.launches
        one.launches += 1
        one.starting = True
        self._send(one, worker.BUILD, pickle.dumps((self.name, env_args)))

    def _crash(self, one: _Worker, reason: str) -> None:
        """Kill what is left of a worker, and plan its next start."""
        self._selector.unregister(one.channel)
        one.channel.close()
        self._guard.kill(one.process, one.temporary)
        one.process = None
        if one.row in self._began:
            self._began.remove(one.row)
        self._count_failure(one, reason)

    def _count_failure(self, one: _Worker, reason: str) -> None:
        self.crashes += 1
        one.crashes_in_row += 1
        pause = 0.0 if one.crashes_in_row == 1 else min(2.0 ** (one.crashes_in_row - 2), LONGEST_PAUSE)
        one.state, one.due = _State.AWAY, time.monotonic() + pause
        if one.crashes_in_row >= self.crash_limit:
            raise EnvCrash(
                f"environment {one.row} of {self.name} failed {one.crashes_in_row} times in a row without a whole "
                f"episode between (env_crash_limit={self.crash_limit}), the last time: {reason}; "
                f"the end of its output, {one.output}:\n{one.tail()}"
            )
        later = f" in {pause:g} s" if pause else ""
        self.log(
            f"Environment {one.row} failed: {reason}. Its episode is dropped; it starts again{later} "
            f"(failures so far: {self.crashes}; its output: {one.output})"
        )

    def _send(self, one: _Worker, command: bytes, payload: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        one.state, one.due = _State.BUSY, time.monotonic() + self.deadline
        with contextlib.suppress(ConnectionError):  # the next `_pump` notices its end
            if fds:
                socket.send_fds(one.channel, [command + payload], fds)
            else:
                one.channel.send(command + payload)

    def _pump(self) -> None:
        """Wait until something happens, and deal with all that has."""
        waiting = [one.due for one in self._workers if one.state is not _State.READY]
        pause = max(0.0, min(waiting) - time.monotonic())
        for key, _ in self._selector.select(pause):
            self._receive(key.data)
        now = time.monotonic()
        for one in self._workers:
            if one.state is _State.AWAY and one.due <= now:
                self._launch(one)
            elif one.state is _State.BUSY and one.due <= now:
                self._crash(one, f"it did not answer within {self.deadline:g} s (env_deadline)")

    def _receive(self, one: _Worker) -> None:
        try:
            packet = one.channel.recv(worker.PACKET)
        except ConnectionError:
            packet = b""
        kind, payload = packet[:1], packet[1:]
        if kind == worker.STEPPED:
            one.state = _State.READY
            self._stepped.append(one.row)
        elif kind == worker.ENDED:
            one.due = time.monotonic() + self.deadline  # still busy: it begins another
            one.crashes_in_row = 0
            self._stepped.append(one.row)
            self._ended[one.row] = json.loads(payload)
        elif kind == worker.FRESH:
            one.state, one.fresh, one.starting = _State.READY, True, False
            self._began.append(one.row)
        elif kind == worker.VALUE:
            one.state = _State.READY
            one.values.append(pickle.loads(payload))
        elif kind == worker.INFO:
            self._attach(one, json.loads(payload))
        elif kind == worker.FAILED:
            text, users_fault = pickle.loads(payload)
            if users_fault and one.starting and one.launches == 1:
                raise UserError(text)
            self._crash(one, text)
        else:
            self._crash(one, ending(one.process))

    def _attach(self, one: _Worker, sizes: dict[str, Any]) -> None:
        """Show a worker where the shared memory is, once the environments' sizes are known."""
        if self._sizes is None:
            self._allocate(sizes)
        elif sizes != self._sizes:
            raise UserError(f"env={self.name}: environments of one run must have the same sizes, found {sizes} in "
                            f"environment {one.row} and {self._sizes} in the first")  # fmt: skip
        self._send(one, worker.ATTACH, pickle.dumps((self._layout, one.row)), (self._memory_fd,))

    def _allocate(self, sizes: dict[str, Any]) -> None:
        self._sizes = sizes
        self.n_agents, self.n_actions = sizes["n_agents"], sizes["n_actions"]
        self.obs_size, self.state_size = sizes["obs_shape"], sizes["state_shape"]
        self.episode_limit, self.individual_reward = sizes["episode_limit"], sizes["individual_reward"]
        self.agent_types = sizes["agent_types"]
        self._layout = Layout(self.n_envs, self.n_agents, self.n_actions, self.obs_size, self.state_size)
        self._memory_fd = os.memfd_create("environments")  # has no name in the file system: nothing to clean up
        os.truncate(self._memory_fd, self._layout.nbytes)
        self._shared = self._layout.arrays(mmap.mmap(self._memory_fd, self._layout.nbytes))
        E, N = self.n_envs, self.n_agents
        # What all environments show now: in this process's memory, and the same or a copy of it on the device.
        self._host = {
            "obs": np.zeros((E, N, self.obs_size), dtype=np.float32),
            "state": np.zeros((E, self.state_size), dtype=np.float32),
            "avail": np.zeros((E, N, self.n_actions), dtype=np.int32),
        }
        self._now = Observation(**{key: torch.from_numpy(seen).to(self.device) for key, seen in self._host.items()})

    # What the environments answered

    def _answered(self) -> bool:
        """Whether there is enough for `step` to return."""
        if not self._stepped and not self._began:
            return False
        return not self.lockstep or not any(one.state is _State.BUSY and not one.starting for one in self._workers)

    def _outcome(self) -> VectorStep:
        rows, began = sorted(self._stepped), sorted(self._began)
        ended = self._ended
        self._stepped, self._ended, self._began = [], {}, []
        self._show(rows, PLAYED)
        final = self._now
        if any(row in ended for row in began):
            final = Observation(final.obs.clone(), final.state.clone(), final.avail.clone())
        self._show(began, BEGUN)
        shared, zeros = self._shared, np.zeros(self.n_envs, dtype=np.float32)
        reward, terminated, truncated = zeros, zeros.astype(bool), zeros.astype(bool)
        reward[rows] = shared["reward"][rows]
        if ended:
            terminated[rows], truncated[rows] = shared["terminated"][rows], shared["truncated"][rows]
        info = {}
        for key in dict.fromkeys(key for values in ended.values() for key in values):
            info[key] = torch.zeros(self.n_envs, device=self.device)
            for row, values in ended.items():
                info[key][row] = values.get(key, 0.0)
        shares = None
        if self.individual_reward:
            shares = torch.zeros(self.n_envs, self.n_agents, device=self.device)
            shares[rows] = torch.from_numpy(shared["individual_reward"][rows]).to(self.device)
        return VectorStep(
            reward=torch.from_numpy(reward).to(self.device),
            terminated=torch.from_numpy(terminated).to(self.device),
            truncated=torch.from_numpy(truncated).to(self.device),
            next=self._now,
            final=final,
            info=info,
            individual_reward=shares,
            rows=rows,
            began=began,
        )

    def _show(self, rows: list[int], place: int) -> None:
        """Copy what these environments show at this place into `_now`."""
        if not rows:
            return
        for key, host in self._host.items():
            host[rows] = self._shared[key][place, rows]
            now = getattr(self._now, key)
            if now.device.type != "cpu":
                now[rows] = torch.from_numpy(host[rows]).to(now.device)

    def _call(self, method: str) -> list:
        """What a method of each environment returns. Waits until all are ready.

        Raises:
            NotImplementedError: they do not have it.
        """
        for one in self._workers:
            one.values.clear()
        while not all(one.values for one in self._workers):
            for one in self._workers:
                if one.state is _State.READY and not one.values:
                    self._send(one, worker.CALL, method.encode())
            self._pump()
        values = [one.values.pop() for one in self._workers]
        for value in values:
            if isinstance(value, NotImplementedError):
                raise value
        return values
