"""Environments that show where and when they were asked, and misbehave on command. Workers load them without torch."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from envs.multiagentenv import RESTART_SEED, EnvCrash, MultiAgentEnv
from utils.errors import UserError

OBS, STATE, AGENTS, ACTIONS, LIMIT = 4, 5, 3, 4, 6  # sizes
TYPES = ["scout", "scout", "guard"]


# --- the script: everything that is shown says where it was shown


@dataclass(frozen=True)
class Episode:
    """How one episode goes: `length` steps, and its end: terminated, limit (cut there) or early (cut)."""

    length: int
    end: str

    def __post_init__(self):
        assert self.end in ("terminated", "limit", "early")


def script(env: int, episode: int) -> Episode:
    """How `episode` (from 0) of environment `env` goes: any length, any end."""
    rng = np.random.default_rng((env, episode))
    length = int(rng.integers(1, LIMIT + 1))
    if rng.random() < 0.5:
        return Episode(length, "terminated")
    return Episode(length, "limit" if length == LIMIT else "early")


def shown(env: int, episode: int, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations (N, O), state (S,) and availability (N, A) at step t."""
    place = 12.9898 * env + 78.233 * episode + 37.719 * t
    obs = np.sin([[place * (1 + k) + 4.1 * i for k in range(OBS)] for i in range(AGENTS)])
    state = np.array([env, episode, t, 10 * env + episode, 1])
    avail = np.array([[1] + [(env + episode + t + i + a) % 3 > 0 for a in range(1, ACTIONS)] for i in range(AGENTS)])
    return obs.astype(np.float32), state.astype(np.float32), avail.astype(np.int32)


def paid(env: int, episode: int, t: int, actions) -> float:
    """The reward of step t, different for all joint actions; whole numbers below 2**24, so that float32 is exact."""
    return float(100_000 * (env % 97) + 1_000 * episode + 100 * t + sum(4**i * int(a) for i, a in enumerate(actions)))


def shares(reward: float) -> list[float]:
    """What each agent earned of it."""
    return [reward * (1 + i) / sum(range(1, AGENTS + 1)) for i in range(AGENTS)]


class ScriptedEnv(MultiAgentEnv):
    """One environment that follows `script`; its seed is its number."""

    n_agents, episode_limit, individual_reward, agent_types = AGENTS, LIMIT, True, TYPES

    def __init__(self, seed: int):
        self.number, self.episode, self.t, self.closed = seed, -1, 0, False

    def reset(self):
        self.episode, self.t = self.episode + 1, 0
        return self.get_obs(), self.get_state()

    def step(self, actions):
        plan = script(self.number, self.episode)
        reward = paid(self.number, self.episode, self.t, actions)
        self.t += 1
        done = self.t == plan.length
        info = {"last_step": self.t, "number": self.number} if done else {}
        always = {"episode_limit": done and plan.end != "terminated", "individual_reward": shares(reward)}
        return reward, done, info | always

    def get_obs(self):
        return list(shown(self.number, self.episode, self.t)[0])

    def get_obs_size(self):
        return OBS

    def get_state(self):
        return shown(self.number, self.episode, self.t)[1]

    def get_state_size(self):
        return STATE

    def get_avail_actions(self):
        return shown(self.number, self.episode, self.t)[2].tolist()

    def get_total_actions(self):
        return ACTIONS

    def close(self):
        self.closed = True


# --- misdeeds


def fail(env):
    raise RuntimeError("the dice fell off the table")


def fail_silently(env):
    raise ZeroDivisionError


def crash(env):
    raise EnvCrash("the game is gone")


def refuse(env):
    raise UserError("env_args.dice=0: nothing to throw; set env_args.dice=2")


def quit_python(env):
    sys.exit(3)


def leave(env):
    os._exit(7)


def die(env):
    os.kill(os.getpid(), signal.SIGKILL)


def hang(env):
    while True:
        time.sleep(60)


def stop(env):
    os.kill(os.getpid(), signal.SIGSTOP)


def hang_up(env):
    """Close the connection, and stay."""
    os.closerange(3, 256)
    hang(env)


def wait(env):
    """Until the file `cue` is there; says by another file that it waits."""
    open(f"{env.cue}_awaited", "w").close()
    while not os.path.exists(env.cue):
        time.sleep(0.005)


def deafen(env):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def bear(env):
    """A child, and a child of it, that outlive this process."""
    subprocess.Popen(["sh", "-c", "trap '' TERM HUP; sleep 600 & sleep 600"])


def litter(env):
    """A temporary file."""
    tempfile.mkstemp()


def shout(env):
    """Megabytes, and then the last lines."""
    sys.stdout.write("A LONG STORY " * 500_000)
    print("".join(f"\nline {number} of 30" for number in range(1, 31)))


def mumble(env):
    """Megabytes in one line."""
    print("a long story " * 500_000)


def widen_obs(env):
    env.get_obs = lambda: [np.zeros(OBS + 1)] * AGENTS


def flatten_obs(env):
    """One observation for all: numpy would copy it to each agent."""
    env.get_obs = lambda: np.zeros(OBS)


def shrink_state(env):
    """One number, that numpy would copy everywhere."""
    env.get_state = lambda: np.zeros(1)


def flatten_avail(env):
    env.get_avail_actions = lambda: [1] * ACTIONS


def lose_an_agent(env):
    env.get_obs = lambda: [np.zeros(OBS)] * (AGENTS - 1)


def show_nan(env):
    """To agent 1."""
    env.get_obs = lambda: [np.full(OBS, np.nan if agent == 1 else 0.0) for agent in range(AGENTS)]


def show_text(env):
    env.get_obs = lambda: [["north"] * OBS] * AGENTS


def show_infinity(env):
    env.get_state = lambda: [0.0] * (STATE - 1) + [np.inf]


def show_nothing(env):
    env.get_state = lambda: None


def forbid_all(env):
    """To agent 2."""
    env.get_avail_actions = lambda: [[int(agent < 2)] * ACTIONS for agent in range(AGENTS)]


def half_allow(env):
    env.get_avail_actions = lambda: [[1, 1, 0.5, 1]] * AGENTS


def allow_twice(env):
    env.get_avail_actions = lambda: [[1, 2, 0, 1]] * AGENTS


def pay_nan(env):
    env.reply["reward"] = float("nan")


def pay_infinity(env):
    env.reply["reward"] = np.float32(np.inf)


def pay_too_much(env):
    """More than float32 holds."""
    env.reply["reward"] = 1e39


def pay_each(env):
    env.reply["reward"] = [1.0] * AGENTS


def pay_text(env):
    env.reply["reward"] = "1.0"


def pay_nothing(env):
    env.reply["reward"] = None


def end_each(env):
    env.reply["terminated"] = [True] * AGENTS


def go_on(env):
    env.reply["terminated"] = False


def lose_info(env):
    env.reply["info"] = None


def lose_shares(env):
    env.reply["info"] = {}


def spoil_shares(env):
    env.reply["info"] = {"individual_reward": [np.nan] * AGENTS}


def lose_limit(env):
    env.episode_limit = 0


# What is wrong with an environment's replies, in words of the error.
BAD_SEEN = {
    "widen_obs": f"the observation of agent 0 has shape ({OBS + 1},), and not ({OBS},)",
    "flatten_obs": f"the observation is that of {OBS} agents, and there are {AGENTS}",
    "lose_an_agent": f"the observation is that of {AGENTS - 1} agents, and there are {AGENTS}",
    "shrink_state": f"the state has shape (1,), and not ({STATE},)",
    "flatten_avail": f"the availability is that of {ACTIONS} agents, and there are {AGENTS}",
    "show_nan": "the observation of agent 1 holds nan at position 0",
    "show_text": "the observation of agent 0 is ['north', 'north', 'north', 'north'] (list), which is no array of num",
    "show_infinity": f"the state holds inf at position {STATE - 1}",
    "show_nothing": "the state ",
    "forbid_all": "agent 2 has no available action",
    "half_allow": "the availability of agent 0's action 2 is 0.5, not 0 or 1",
    "allow_twice": "the availability of agent 0's action 1 is 2, not 0 or 1",
}
BAD_PLAYED = {
    "pay_nan": "the reward is nan (float), and no finite number",
    "pay_infinity": "the reward is inf (float), and no finite number",
    "pay_too_much": "the reward is 1e+39 (float), and no finite number",
    "pay_each": "the reward is [1.0, 1.0, 1.0] (list), and not one number for the team",
    "pay_text": "the reward is '1.0' (str), and not one number for the team",
    "pay_nothing": "the reward is None (NoneType), and not one number for the team",
    "end_each": "terminated is [True, True, True] (list), and not True or False for the team",
    "go_on": f"the episode goes on beyond episode_limit={LIMIT}",
    "lose_info": "info is None (NoneType), and no dict",
    "lose_shares": "info lacks individual_reward",
    "spoil_shares": "the individual_reward holds nan at position 0",
}
STOPS = (fail, fail_silently, crash, refuse, quit_python, leave, die, hang, stop, hang_up, wait)
DEEDS: dict[str, Callable] = {deed.__name__: deed for deed in (*STOPS, deafen, bear, litter, shout, mumble, lose_limit)}
DEEDS |= {name: globals()[name] for name in (*BAD_SEEN, *BAD_PLAYED)}


@dataclass(frozen=True)
class Fault:
    """What an environment does, where, and when; None: always."""

    do: list[str]  # names of DEEDS, one after another
    where: str = "step"  # constructor, reset, step, call or close
    env: int | None = None  # the seed of its first start
    starts: list[int] | None = None  # 0: the first; the seed says which it is
    episode: int | None = None
    t: int | None = None


class MisbehavingEnv(ScriptedEnv):
    """A scripted environment that does what `faults` (dicts of a `Fault`) say.

    Args:
        seed: its number. That of its k-th restart is larger by k times RESTART_SEED.
        cue: the path that some deeds wait for.
        slow: the steps sleep for up to so many seconds, each for a time of its own.
    """

    def __init__(self, seed: int, faults: list | None = None, cue: str = "", slow: float = 0.0):
        super().__init__(seed)
        self.faults = [Fault(**fault) for fault in faults or []]
        self.cue, self.slow = cue, slow
        self.replays = 0
        self.reply: dict = {}  # what steps return instead of what they should: reward, terminated, info
        print(f"environment {seed} was started")
        self._misbehave("constructor")

    def reset(self):
        super().reset()
        self._misbehave("reset")
        return self.get_obs(), self.get_state()

    def step(self, actions):
        self._misbehave("step")
        if self.slow:
            time.sleep(self.slow * np.random.default_rng((self.number, self.episode, self.t)).random())
        names = ("reward", "terminated", "info")
        return tuple({**dict(zip(names, super().step(actions), strict=True)), **self.reply}.values())

    def save_replay(self):
        self._misbehave("call")
        self.replays += 1

    def get_stats(self):
        """About this process."""
        self._misbehave("call")
        return {
            "seed": self.number,
            "replays": self.replays,
            "pid": os.getpid(),
            "torch": "torch" in sys.modules,
            "threads": [os.environ.get(f"{name}_NUM_THREADS") for name in ("OMP", "OPENBLAS", "MKL")],
            "temporary": tempfile.gettempdir(),
        } | ({"odd": True} if self.number % 2 else {})

    def close(self):
        self._misbehave("close")
        super().close()

    def _misbehave(self, where: str) -> None:
        for fault in self.faults:
            if (
                fault.where == where
                and fault.env in (None, self.number % RESTART_SEED)
                and (fault.starts is None or self.number // RESTART_SEED in fault.starts)
                and fault.episode in (None, self.episode)
                and fault.t in (None, self.t)
            ):
                for deed in fault.do:
                    DEEDS[deed](self)


class UnevenEnv(ScriptedEnv):
    """Environments whose states have different sizes."""

    def get_state_size(self):
        return STATE + self.number % 2

    def get_state(self):
        return np.zeros(self.get_state_size())
