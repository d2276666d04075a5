"""The memory that a worker shares with the other side, and what it answers to each command."""

import json
import mmap
import os
import pickle
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from plugins.misbehaving import (
    ACTIONS,
    AGENTS,
    BAD_PLAYED,
    BAD_SEEN,
    LIMIT,
    OBS,
    STATE,
    TYPES,
    ScriptedEnv,
    paid,
    script,
    shares,
    shown,
)

from envs import worker
from envs.worker import BEGUN, PLAYED, Layout, Worker

SOURCES = Path(worker.__file__).resolve().parents[1]
SCRIPTED = "plugins.misbehaving:ScriptedEnv"
MISBEHAVING = "plugins.misbehaving:MisbehavingEnv"
NUMBER, ROW, ROWS = 7, 1, 3


# Where the numbers lie

LAYOUTS = [Layout(1, 1, 1, 1, 1), Layout(3, 5, 7, 11, 13), Layout(2, 3, 1, 1, 5), Layout(8, 27, 36, 285, 1454)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_fill_the_memory_without_overlap(layout):
    memory = mmap.mmap(-1, layout.nbytes)
    views = layout.arrays(memory)
    assert sum(view.nbytes for view in views.values()) == layout.nbytes
    for view in views.values():
        assert view.flags.aligned
        assert view.flags.writeable
    counts = np.zeros(layout.nbytes, np.uint8)
    for view in views.values():
        memory[:] = bytes(layout.nbytes)
        view.reshape(-1).view(np.uint8)[:] = 1
        counts += np.frombuffer(memory, np.uint8)
    assert (counts == 1).all()


def test_shapes_and_types():
    E, N, A, O, S = 3, 5, 7, 11, 13
    views = Layout(E, N, A, O, S).arrays(mmap.mmap(-1, Layout(E, N, A, O, S).nbytes))
    assert {name: (view.shape, view.dtype) for name, view in views.items()} == {
        "actions": ((E, N), np.int64),
        "obs": ((2, E, N, O), np.float32),
        "state": ((2, E, S), np.float32),
        "avail": ((2, E, N, A), np.uint8),
        "reward": ((E,), np.float32),
        "individual_reward": ((E, N), np.float32),
        "terminated": ((E,), np.bool_),
        "truncated": ((E,), np.bool_),
    }


# What a worker answers; here it runs in a thread, so that the test sees into it


class OtherSide:
    """Talks to a worker as `ProcessVectorEnv` does."""

    def __init__(self):
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(60)
        self.worker = Worker(theirs)
        self.thread = threading.Thread(target=self.worker.run, daemon=True)
        self.thread.start()
        self.layout = Layout(ROWS, AGENTS, ACTIONS, OBS, STATE)

    def ask(self, command: bytes, payload: bytes = b"") -> bytes:
        self.channel.send(command + payload)
        return self.channel.recv(worker.PACKET)

    def build(self, name=SCRIPTED, **env_args) -> bytes:
        return self.ask(worker.BUILD, pickle.dumps((name, {"seed": NUMBER, **env_args})))

    def attach(self) -> bytes:
        fd = os.memfd_create("test")
        os.truncate(fd, self.layout.nbytes)
        self.seen = self.layout.arrays(mmap.mmap(fd, self.layout.nbytes))
        socket.send_fds(self.channel, [worker.ATTACH + pickle.dumps((self.layout, ROW))], [fd])
        os.close(fd)
        return self.channel.recv(worker.PACKET)

    def end(self) -> None:
        self.channel.close()
        self.thread.join(60)
        assert not self.thread.is_alive()
        self.worker.channel.close()


@pytest.fixture
def side():
    side = OtherSide()
    yield side
    side.end()


def assert_shows(side, place, episode, t):
    for name, value in zip(("obs", "state", "avail"), shown(NUMBER, episode, t), strict=True):
        assert (side.seen[name][place, ROW] == value).all(), name
        assert not side.seen[name][:, [0, 2]].any()  # the rows of others


def test_sizes_come_before_anything_else(side):
    answer = side.build()
    assert answer[:1] == worker.INFO
    assert json.loads(answer[1:]) == {
        "n_agents": AGENTS,
        "n_actions": ACTIONS,
        "obs_shape": OBS,
        "state_shape": STATE,
        "episode_limit": LIMIT,
        "individual_reward": True,
        "agent_types": TYPES,
    }


def test_both_sides_see_the_same_numbers(side):
    side.build()
    assert side.attach() == worker.FRESH
    rng, ends = np.random.default_rng(0), set()
    for episode in range(12):
        plan = script(NUMBER, episode)
        ends.add(plan.end)
        assert_shows(side, BEGUN, episode, 0)
        for t in range(plan.length):
            actions = rng.integers(ACTIONS, size=AGENTS)
            side.seen["actions"][ROW] = actions
            side.seen["actions"][[0, 2]] = 99  # of others
            answer = side.ask(worker.STEP)
            reward, last = paid(NUMBER, episode, t, actions), t == plan.length - 1
            assert_shows(side, PLAYED, episode, t + 1)
            assert side.seen["reward"].tolist() == [0, reward, 0]
            assert (side.seen["individual_reward"][ROW] == np.float32(shares(reward))).all()
            assert side.seen["terminated"].tolist() == [False, last and plan.end == "terminated", False]
            assert side.seen["truncated"].tolist() == [False, last and plan.end != "terminated", False]
            if not last:
                assert answer == worker.STEPPED
        assert answer[:1] == worker.ENDED
        limit = float(plan.end != "terminated")
        assert json.loads(answer[1:]) == {"last_step": plan.length, "number": NUMBER, "episode_limit": limit}
        assert side.channel.recv(worker.PACKET) == worker.FRESH
    assert ends == {"terminated", "limit", "early"}


def test_an_episode_can_be_dropped(side):
    side.build()
    side.attach()
    for episode in range(1, 4):
        assert side.ask(worker.RESET) == worker.FRESH
        assert_shows(side, BEGUN, episode, 0)


def test_methods_can_be_called(side):
    side.build(MISBEHAVING)
    assert side.ask(worker.CALL, b"save_replay") == worker.VALUE + pickle.dumps(None)
    answer = side.ask(worker.CALL, b"get_stats")
    assert answer[:1] == worker.VALUE
    assert pickle.loads(answer[1:])["replays"] == 1


def test_it_closes_its_environment_when_the_other_side_is_gone(side):
    side.build()
    env = side.worker.env
    assert isinstance(env, ScriptedEnv)
    assert not env.closed
    side.end()
    assert env.closed


def test_it_closes_its_environment_when_asked_to(side):
    side.build()
    side.channel.send(b"")
    side.thread.join(60)
    assert side.worker.env.closed


@pytest.mark.parametrize(
    ("deed", "message", "users_fault"),
    [
        ("fail", "the dice fell off the table", False),
        ("crash", "the game is gone", False),
        ("refuse", "env_args.dice=0: nothing to throw; set env_args.dice=2", True),
    ],
)
@pytest.mark.parametrize("where", ["constructor", "reset", "step", "call"])
def test_errors_are_answers(where, deed, message, users_fault, side, capfd):
    answer = side.build(MISBEHAVING, faults=[{"do": [deed], "where": where}])
    if where != "constructor":
        assert answer[:1] == worker.INFO
        answer = side.attach() if where in ("reset", "step") else b""
        if where == "step":
            assert answer == worker.FRESH
            answer = side.ask(worker.STEP)
        if where == "call":
            answer = side.ask(worker.CALL, b"get_stats")
    assert answer[:1] == worker.FAILED
    assert pickle.loads(answer[1:]) == (message, users_fault)
    side.thread.join(60)  # it ends
    assert message in capfd.readouterr().err  # with a traceback in its output
    if where != "constructor":
        assert side.worker.env.closed


def test_an_error_without_a_text_is_named(side):
    answer = side.build(MISBEHAVING, faults=[{"do": ["fail_silently"], "where": "constructor"}])
    assert answer == worker.FAILED + pickle.dumps(("ZeroDivisionError", False))


@pytest.mark.parametrize("deed", BAD_SEEN | BAD_PLAYED)
def test_bad_replies_are_errors(deed, side):
    """What comes of them is in test_replies.py."""
    side.build(MISBEHAVING, faults=[{"do": [deed], "where": "step"}])
    side.attach()
    answer = side.ask(worker.STEP)
    while answer[:1] != worker.FAILED:  # an episode may end before it goes on for too long
        answer = side.ask(worker.STEP) if answer[:1] == worker.STEPPED else side.channel.recv(worker.PACKET)
    assert (BAD_SEEN | BAD_PLAYED)[deed] in pickle.loads(answer[1:])[0]


def test_it_does_not_load_torch():
    code = "import sys, envs.worker, plugins.misbehaving; print('torch' in sys.modules)"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCES), str(SOURCES.parent / "tests")])}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n", done.stderr
