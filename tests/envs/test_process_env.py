"""Environments in worker processes: they show what they show alone, and one that misbehaves harms nobody."""

import gc
import os
import re
import signal
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import group_of, nothing_left
from plugins.misbehaving import ACTIONS, AGENTS, LIMIT, OBS, STATE, ScriptedEnv, shares

from envs import REGISTRY, process_env
from envs.multiagentenv import RESTART_SEED, EnvCrash
from envs.process_env import ProcessVectorEnv
from utils.errors import UserError

SCRIPTED = "plugins.misbehaving:ScriptedEnv"
MISBEHAVING = "plugins.misbehaving:MisbehavingEnv"
SEED = 15  # the first episodes of 15 to 18 have several steps
PATIENCE = 120.0  # seconds, where nothing is too late
SHORT = 0.3  # a deadline that only those who never answer are given


class Told(ProcessVectorEnv):
    """Keeps what is logged.

    Args:
        deadlines: those after the first failure, the second, ...; then PATIENCE.
    """

    def __init__(self, *args, deadlines=(), **options):
        self.told: list[str] = []
        self.deadlines = iter(deadlines)
        super().__init__(*args, log=self.note, **options)

    def note(self, message):
        self.told.append(message)
        self.deadline = next(self.deadlines, PATIENCE)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a `Told` of misbehaving environments; at the end nothing of it is left."""
    made = []

    def make(n_envs=2, *faults, name=MISBEHAVING, crash_limit=3, lockstep=False, deadlines=(), kind=Told, **env_args):
        env_args = {"seed": SEED, **env_args}
        if name == MISBEHAVING:
            env_args |= {"faults": list(faults), "cue": str(tmp_path / "cue")}
        options = {"deadline": PATIENCE, "crash_limit": crash_limit, "lockstep": lockstep, "deadlines": deadlines}
        made.append(kind(name, n_envs, "cpu", env_args, output_folder=tmp_path / "out", **options))
        return made[-1]

    with nothing_left(tmp_path, monkeypatch):
        yield make
        for env in made:
            env.close()


def assert_shows(seen, row: int, env: ScriptedEnv):
    """What is seen of this row is what this environment shows."""
    assert torch.equal(seen.obs[row], torch.tensor(np.array(env.get_obs())))
    assert torch.equal(seen.state[row], torch.tensor(env.get_state()))
    assert torch.equal(seen.avail[row], torch.tensor(env.get_avail_actions(), dtype=torch.int32))


class Twins:
    """Plays random actions in worker processes and in the same environments here, and compares all that is shown.

    After a crash, that is the environment with the seed of the restart.
    """

    def __init__(self, env: ProcessVectorEnv):
        self.env = env
        self.here = [ScriptedEnv(SEED + row) for row in range(env.n_envs)]
        self.rng = np.random.default_rng(0)
        self.told = torch.zeros(env.n_envs, env.n_agents, dtype=torch.long)  # the actions that each is to play
        self.episodes: list[list[tuple[int, int]]] = [[] for _ in self.here]  # of each: the whole ones
        self.ends: set[str] = set()
        now = env.reset()
        for row in range(env.n_envs):
            self.begin(row, now)
        self.turn = list(range(env.n_envs))

    def begin(self, row, seen):
        number = int(seen.state[row, 0])
        if number != self.here[row].number:
            assert number % RESTART_SEED == SEED + row
            assert number > self.here[row].number
            self.here[row] = ScriptedEnv(number)
        self.here[row].reset()
        assert_shows(seen, row, self.here[row])

    def step(self, rows=None):
        """These act (None: all whose turn it is)."""
        rows = self.turn if rows is None else rows
        actions = torch.tensor(self.rng.integers(ACTIONS, size=self.told.shape))
        self.told[rows] = actions[rows]
        outcome = self.env.step(actions, rows)
        ended = outcome.terminated | outcome.truncated
        assert outcome.rows == sorted(set(outcome.rows))
        assert outcome.began == sorted(set(outcome.began))
        for row in range(self.env.n_envs):
            if row in outcome.rows:
                self.compare_step(row, outcome, ended[row])
            else:
                assert outcome.reward[row] == 0
                assert not outcome.individual_reward[row].any()
                assert not ended[row]
        for row in outcome.began:
            self.begin(row, outcome.next)
        played = [row for row in outcome.rows if not ended[row] and row not in outcome.began]
        for row in played:
            assert_shows(outcome.next, row, self.here[row])
        waiting = [row for row in self.turn if row not in rows]
        self.turn = sorted(set(waiting + played + outcome.began))
        return outcome

    def compare_step(self, row, outcome, ended):
        env = self.here[row]
        reward, done, info = env.step(self.told[row])
        assert outcome.reward[row] == reward
        assert torch.equal(outcome.individual_reward[row], torch.tensor(shares(reward)))
        assert ended == done
        assert outcome.truncated[row] == info["episode_limit"]
        for key, value in outcome.info.items():
            assert value[row] == (info[key] if done else 0), key
        if done:
            assert outcome.info.keys() == {"last_step", "number", "episode_limit"}
            self.episodes[row].append((env.number, env.episode))
            self.ends.add("truncated" if info["episode_limit"] else "terminated")
        if row not in outcome.began or done:
            assert_shows(outcome.final, row, env)

    def play(self, episodes: int):
        """Until every environment has ended so many episodes more; they come in order, and none is missing."""
        goal = [len(mine) + episodes for mine in self.episodes]
        while any(len(mine) < enough for mine, enough in zip(self.episodes, goal, strict=True)):
            self.step()
        for mine in self.episodes:
            for (before, episode), (number, later) in pairwise(mine):
                assert (number, later) == (before, episode + 1) or (number > before and later == 0)


def fault(do: str, row: int = 1, start: int | None = 0, **when) -> dict:
    """The environment of this row does these things, separated by spaces; only in its first start, unless told so."""
    return {"do": do.split(), "env": SEED + row, "starts": None if start is None else [start], **when}


def numbers(env: ProcessVectorEnv) -> list[int]:
    """The seed of each environment that is there now."""
    return env.get_stats()["seed"]


# What is shown and done


@pytest.mark.parametrize("lockstep", [True, False])
def test_they_show_what_the_environments_show_alone(lockstep, make):
    env = make(3, lockstep=lockstep, slow=0.004)
    alone = ScriptedEnv(SEED).get_env_info()
    assert env.get_env_info() == alone
    assert alone.items() >= {"obs_shape": OBS, "state_shape": STATE, "n_actions": ACTIONS, "n_agents": AGENTS}.items()
    assert alone["episode_limit"] == LIMIT
    twins = Twins(env)
    twins.play(12)
    assert twins.ends == {"terminated", "truncated"}
    for row, mine in enumerate(twins.episodes):
        assert mine == [(SEED + row, episode) for episode in range(len(mine))]
    assert (env.crashes, env.told) == (0, [])
    if lockstep:
        assert twins.step().rows == [0, 1, 2]


def test_one_that_takes_long_keeps_nobody_waiting(make, tmp_path):
    env = make(3, fault("wait", **STEP))
    twins = Twins(env)
    while min(len(twins.episodes[row]) for row in (0, 2)) < 3:
        assert 1 not in twins.step().rows
    assert twins.episodes[1] == []
    (tmp_path / "cue").touch()
    twins.play(3)
    assert twins.episodes[1][0] == (SEED + 1, 0)


def test_in_lockstep_all_wait_for_all(make, tmp_path):
    env = make(2, fault("wait", **STEP), lockstep=True)
    twins = Twins(env)
    clue = threading.Timer(0.3, (tmp_path / "cue").touch)
    clue.start()
    started = time.monotonic()
    assert twins.step().rows == [0, 1]
    assert time.monotonic() - started > 0.29
    clue.join()


def test_rows_that_are_not_named_do_not_act(make):
    twins = Twins(make(3))
    for rows in ([1], [2], [1, 2], [2]):
        acted = set()
        while acted != set(rows):
            acted |= set(twins.step([row for row in rows if row not in acted and row in twins.turn]).rows)
        while set(twins.turn) != {0, 1, 2}:
            twins.step([])
    assert twins.here[0].t == 0


def test_somebody_has_to_act(make):
    env = make(1)
    env.reset()
    with pytest.raises(RuntimeError, match="no environment was told to act"):
        env.step(torch.zeros(1, AGENTS, dtype=torch.long), [])


def test_reset_keeps_episodes_that_nobody_has_played_of(make):
    env = make(3)
    for _ in range(2):
        assert env.reset().state[:, 1].tolist() == [0, 0, 0]
    actions = torch.zeros(3, AGENTS, dtype=torch.long)
    env.step(actions, [1])
    assert env.reset().state[:, :3].tolist() == [[SEED, 0, 0], [SEED + 1, 1, 0], [SEED + 2, 0, 0]]
    env.step(actions)  # also while steps are on their way
    seen = env.reset()
    assert seen.state[:, :3].tolist() == [[SEED, 1, 0], [SEED + 1, 2, 0], [SEED + 2, 1, 0]]
    for row, episode in enumerate((1, 2, 1)):
        alone = ScriptedEnv(SEED + row)
        for _ in range(episode + 1):
            alone.reset()
        assert_shows(seen, row, alone)


def test_an_episode_that_has_just_begun_by_itself_is_kept_by_reset(make):
    env = make(1)
    twins = Twins(env)
    while not twins.episodes[0]:
        twins.step()
    seen = env.reset()
    assert seen.state[0, :3].tolist() == [SEED, 1, 0]


def test_methods_reach_every_worker(make, tmp_path):
    env = make(3)
    twins = Twins(env)
    twins.step()
    for count in (1, 2):
        env.save_replay()
        stats = env.get_stats()
        assert stats["replays"] == [count] * 3
    assert stats["seed"] == [SEED, SEED + 1, SEED + 2]
    assert stats["odd"] == [True, None, True]
    assert stats["torch"] == [False] * 3
    assert stats["threads"] == [["1", "1", "1"]] * 3
    assert len(set(stats["pid"]) | {os.getpid()}) == 4
    assert len(set(stats["temporary"])) == 3
    assert {Path(folder).parent for folder in stats["temporary"]} == {tmp_path / "temporary"}
    twins.play(2)


def test_what_environments_cannot_do_is_said(make):
    env = make(2, name=SCRIPTED)
    env.reset()
    with pytest.raises(NotImplementedError, match="ScriptedEnv cannot save replays"):
        env.save_replay()
    assert env.crashes == 0
    Twins(env).play(1)


def test_every_environment_of_this_project_runs_so(make):
    """One that is written as a batch, and needs torch."""
    args = {"game": "two_step", "k": -100, "repeats": None}
    env = make(1, name="matrix_games", **args)
    alone = REGISTRY["matrix_games"](seed=SEED, **args)
    assert env.get_env_info() == alone.get_env_info()
    seen = env.reset()
    alone.reset()
    rng = np.random.default_rng(0)
    for _ in range(12):
        assert torch.equal(seen.obs[0], torch.tensor(np.array(alone.get_obs())))
        assert torch.equal(seen.state[0], torch.tensor(alone.get_state()))
        assert seen.avail[0].tolist() == alone.get_avail_actions()
        actions = torch.tensor(rng.integers(2, size=(1, 2)))
        outcome = env.step(actions)
        reward, done, info = alone.step(actions[0])
        assert outcome.reward.tolist() == [reward]
        assert (outcome.terminated[0], outcome.truncated[0]) == (
            done and not info["episode_limit"],
            info["episode_limit"],
        )
        if done:
            alone.reset()
            if not outcome.began:
                outcome = env.step(actions, [])
            assert outcome.began == [0]
        seen = outcome.next


def test_files_of_the_current_folder_do_not_hide_those_of_the_project(make, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("envs", "utils", "random"):
        (folder / f"{name}.py").write_text("raise RuntimeError('the wrong file')")
    monkeypatch.chdir(folder)
    env = make(1, crash_limit=1)
    env.reset()


# What the user has to mend


def starts(tmp_path, row=0) -> int:
    return (tmp_path / f"out/worker_{row}.log").read_text().count("was started")


def test_a_users_error_comes_out_at_once(make, tmp_path):
    with pytest.raises(UserError) as caught:
        make(1, fault("refuse", row=0, where="constructor"))
    assert str(caught.value) == "env_args.dice=0: nothing to throw; set env_args.dice=2"
    assert starts(tmp_path) == 1


@pytest.mark.parametrize(("name", "part"), [("nowhere:Env", "no module named 'nowhere'"), ("smx", "mean 'smax'?")])
def test_a_name_that_nobody_has(name, part, make):
    with pytest.raises(UserError, match=re.escape(part)):
        make(2, name=name)


def test_environments_of_different_sizes_are_refused(make):
    with pytest.raises(UserError, match="must have the same sizes"):
        Twins(make(2, name="plugins.misbehaving:UnevenEnv"))


# Misdeeds

STEP = {"where": "step", "episode": 0, "t": 0}
ENDED = "its process ended"
LATE = f"it did not answer within {SHORT:g} s (env_deadline)"
MISDEEDS = {  # what is done, and how it is reported
    "fail": "the dice fell off the table",
    "fail_silently": "ZeroDivisionError",
    "crash": "the game is gone",
    "quit_python": f"{ENDED} (exit code 3)",
    "leave": f"{ENDED} (exit code 7)",
    "die": f"{ENDED} (signal 9)",
    "hang": LATE,
    "stop": LATE,
    "hang_up": "it has closed its socket",
    "deafen bear hang": LATE,
    "bear litter leave": f"{ENDED} (exit code 7)",
    "shout die": f"{ENDED} (signal 9)",
    "widen_obs": "shape",
}
MISDEEDS_IN_RESET = {"fail": MISDEEDS["fail"], "deafen bear litter hang": LATE, "bear die": f"{ENDED} (signal 9)"}


class Culprit:
    """Environment 1 of two plays a whole episode between its misdeeds; it and what it has started are gone then."""

    def __init__(self, env):
        self.env, self.twins = env, Twins(env)
        self.crashes = 0

    def play_alone(self, episodes=0, steps=0):
        self.stats = self.env.get_stats()
        mine = self.twins.episodes[1]
        goal = len(mine) + episodes
        while len(mine) < goal or self.twins.turn != [0, 1] or self.twins.here[1].t < steps:
            self.twins.step([1] if 1 in self.twins.turn else [])

    def assert_replaced(self, reason):
        self.crashes += 1
        assert self.env.crashes == len(self.env.told) == self.crashes
        told = self.env.told[-1]
        assert told.startswith("Environment 1 failed: ")
        assert reason in told
        assert f". Its episode is dropped; it starts again (failures so far: {self.crashes}; its output: " in told
        assert told.endswith("/out/worker_1.log)")
        assert group_of(self.stats["pid"][1]) == []
        assert not Path(self.stats["temporary"][1]).exists()
        assert self.env.deadline == PATIENCE

    def assert_others_were_not_disturbed(self, pid):
        self.twins.play(3)
        assert self.env.get_stats()["pid"][0] == pid
        assert self.twins.episodes[0] == [(SEED, episode) for episode in range(len(self.twins.episodes[0]))]
        assert self.env.crashes == self.crashes


def test_one_that_misbehaves_in_a_step_is_replaced(make):
    faults = [fault(do, start=start, episode=1, t=0) for start, do in enumerate(MISDEEDS)]
    culprit = Culprit(make(2, *faults))
    pid = culprit.env.get_stats()["pid"][0]
    for start, reason in enumerate(MISDEEDS.values()):
        assert numbers(culprit.env) == [SEED, SEED + 1 + start * RESTART_SEED]
        culprit.play_alone(episodes=1)
        culprit.env.deadline = SHORT  # for the step that is never answered, and no other
        while culprit.env.crashes == start:
            culprit.twins.step([1] if 1 in culprit.twins.turn else [])
        culprit.assert_replaced(reason)
        assert culprit.twins.episodes[1] == [(SEED + 1 + n * RESTART_SEED, 0) for n in range(start + 1)]
    culprit.assert_others_were_not_disturbed(pid)


def test_one_that_misbehaves_in_a_reset_is_replaced(make):
    faults = [fault(do, start=start, where="reset", episode=2) for start, do in enumerate(MISDEEDS_IN_RESET)]
    culprit = Culprit(make(2, *faults, crash_limit=4))
    pid = culprit.env.get_stats()["pid"][0]
    for start, reason in enumerate(MISDEEDS_IN_RESET.values()):
        culprit.play_alone(episodes=1)
        culprit.play_alone(steps=1)
        culprit.env.deadline = SHORT
        seen = culprit.env.reset()
        assert seen.state[:, :3].tolist() == [[SEED, 0, 0], [SEED + 1 + (start + 1) * RESTART_SEED, 0, 0]]
        culprit.twins.begin(1, seen)
        culprit.twins.turn = [0, 1]
        culprit.assert_replaced(reason)
    culprit.assert_others_were_not_disturbed(pid)


def test_one_that_does_not_start_again_is_tried_again(make, monkeypatch):
    monkeypatch.setattr(process_env, "LONGEST_PAUSE", 0.05)
    misdeeds = {
        "leave": "exit code 7",
        "fail": "the dice",
        "bear litter leave": "exit code 7",
        "deafen bear hang": LATE,
    }
    failures = [fault(do, start=start, where="constructor") for start, do in enumerate(misdeeds) if start > 0]
    env = make(2, fault("leave", **STEP), *failures, crash_limit=5, deadlines=[PATIENCE, PATIENCE, SHORT])
    twins = Twins(env)
    twins.play(2)
    assert env.crashes == len(env.told) == 4
    for told, reason, again in zip(env.told, misdeeds.values(), ("", *[" in 0.05 s"] * 3), strict=True):
        assert told.startswith("Environment 1 failed: ")
        assert reason in told
        assert f"it starts again{again} (" in told
    assert numbers(env) == [SEED, SEED + 1 + 4 * RESTART_SEED]
    assert [twins.episodes[row][0] for row in (0, 1)] == [(SEED, 0), (SEED + 1 + 4 * RESTART_SEED, 0)]


def test_one_that_fails_at_the_very_start_is_tried_again(make):
    env = make(2, fault("bear die", where="constructor"), fault("fail", row=0, where="reset"))
    Twins(env).play(2)
    assert env.crashes == 2
    assert numbers(env) == [SEED + RESTART_SEED, SEED + 1 + RESTART_SEED]


def test_a_users_error_of_a_later_start_is_a_failure_like_others(make, monkeypatch):
    """What worked at the first start is not the user's to mend; a run saves its model after too many failures."""
    monkeypatch.setattr(process_env, "LONGEST_PAUSE", 0.0)
    env = make(2, fault("leave", **STEP), fault("refuse", start=1, where="constructor"))
    Twins(env).play(1)
    assert env.crashes == 2
    assert "nothing to throw" in env.told[1]


@pytest.mark.parametrize("lockstep", [True, False])
def test_an_episode_that_was_whole_before_the_crash_counts(lockstep, make):
    env = make(2, fault("die", where="reset", episode=2), lockstep=lockstep)
    twins = Twins(env)
    twins.play(4)
    again = SEED + 1 + RESTART_SEED
    assert twins.episodes[1][:4] == [(SEED + 1, 0), (SEED + 1, 1), (again, 0), (again, 1)]
    assert twins.episodes[0][:4] == [(SEED, episode) for episode in range(4)]
    assert env.crashes == 1


def test_several_may_fail_again_and_again(make):
    """Each start of 0 and 1 fails in its third episode, of 2 only the first: nobody's episodes suffer."""
    faults = [fault("die", row=0, start=None, episode=2, t=0), fault("fail", start=None, where="reset", episode=2)]
    env = make(3, *faults, fault("leave", row=2, episode=0, t=0), crash_limit=2)
    twins = Twins(env)
    twins.play(4)  # without an EnvCrash: there is always a whole episode between two failures
    for row in (0, 1):
        starts = (0, RESTART_SEED)
        assert twins.episodes[row][:4] == [(SEED + row + start, episode) for start in starts for episode in (0, 1)]
    assert twins.episodes[2][:4] == [(SEED + 2 + RESTART_SEED, episode) for episode in range(4)]
    assert env.crashes >= 3


def test_one_that_is_killed_from_outside_while_it_waits(make):
    env = make(2)
    twins = Twins(env)
    twins.play(1)
    while twins.turn != [0, 1]:
        twins.step([])
    os.kill(env.get_stats()["pid"][1], signal.SIGKILL)
    twins.play(2)
    assert env.crashes == 1
    assert numbers(env) == [SEED, SEED + 1 + RESTART_SEED]


def test_one_that_fails_in_a_call_is_asked_again_and_the_others_are_not(make):
    env = make(3, fault("bear die", where="call"))
    env.reset()
    env.save_replay()
    stats = env.get_stats()
    assert stats["seed"] == [SEED, SEED + 1 + RESTART_SEED, SEED + 2]
    assert stats["replays"] == [1, 1, 1]
    Twins(env).play(1)


def test_one_that_began_again_during_a_call_does_not_play_an_action_of_before(make):
    env = make(2, fault("die", where="call"))
    twins = Twins(env)
    twins.step([1])
    env.get_stats()  # kills environment 1, which then shows another first observation
    assert 1 not in env.step(twins.told, [0, 1]).rows
    while not env.step(twins.told, []).rows:
        pass
    assert env.reset().state[1, :3].tolist() == [SEED + 1 + RESTART_SEED, 0, 0]  # nothing was played of it


# Too many failures, and pauses between them


def test_too_many_failures_in_a_row(make, monkeypatch, tmp_path):
    monkeypatch.setattr(process_env, "LONGEST_PAUSE", 0.0)
    env = make(2, fault("shout fail", start=None, **STEP), crash_limit=3)
    twins = Twins(env)
    with pytest.raises(EnvCrash) as caught:
        twins.play(1000)
    assert env.crashes == 3
    assert len(env.told) == 2
    head, *tail = str(caught.value).splitlines()
    assert head == (
        f"environment 1 of {MISBEHAVING} failed 3 times in a row without a whole episode between "
        "(env_crash_limit=3), the last time: the dice fell off the table; "
        f"the end of its output, {tmp_path}/out/worker_1.log:"
    )
    assert len(tail) == process_env.TAIL
    assert all(line.startswith("  | ") for line in tail)
    assert "  | line 30 of 30" in tail
    assert f"  | environment {SEED + 1}" not in str(caught.value)
    assert tail[-1] == "  | RuntimeError: the dice fell off the table"  # the last line of a traceback
    assert starts(tmp_path, 1) == 3
    for row, mine in enumerate(twins.episodes):
        assert mine == [(SEED + row, episode) for episode in range(len(mine))]


def test_a_message_is_not_megabytes_long(make):
    with pytest.raises(EnvCrash) as caught:
        make(1, fault("mumble leave", row=0, where="constructor"), crash_limit=1)
    assert len(str(caught.value)) < 20_000


def test_an_episode_between_makes_failures_forgotten(make):
    """With the same limit, and as many failures, the one goes on for ever, and the other does not."""
    env = make(1, fault("leave", row=0, start=None, where="step", episode=1, t=0), crash_limit=2)
    Twins(env).play(3)
    assert env.crashes >= 2
    assert all("starts again (" in message for message in env.told)  # at once
    other = make(1, fault("leave", row=0, start=None, where="step", episode=0, t=0), crash_limit=2)
    with pytest.raises(EnvCrash, match="2 times in a row"):
        Twins(other).play(1)


def test_after_too_many_failures_calls_may_only_raise_the_same(make):
    env = make(2, fault("hang", **STEP), crash_limit=1)
    env.reset()
    env.deadline = SHORT
    actions = torch.zeros(2, AGENTS, dtype=torch.long)
    with pytest.raises(EnvCrash):
        env.step(actions, [1])
    for _ in range(2):
        try:
            env.step(actions, [0])
        except EnvCrash:
            break


class Clock:
    """In place of the module `time` of `process_env`: the test may skip some of it."""

    def __init__(self):
        self.skipped, self.looks = 0.0, 0

    def monotonic(self):
        self.looks += 1
        return time.monotonic() + self.skipped


class Skipping(Told):
    """Lets most of a pause pass at once, and keeps (the pause that it tells of, how long it really was)."""

    clock: Clock
    rest = 0.05  # seconds of each pause that really pass

    def note(self, message):
        super().note(message)
        found = re.search(r"starts again in ([\d.]+) s", message)
        pause = float(found[1]) if found else 0.0
        self.pauses = [*getattr(self, "pauses", []), [pause, self.clock.monotonic()]]
        self.clock.skipped += max(0.0, pause - self.rest)

    def _launch(self, one):
        if hasattr(self, "pauses"):
            self.pauses[-1][1] = self.clock.monotonic() - self.pauses[-1][1]
        super()._launch(one)


@pytest.fixture
def skipping(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(process_env, "time", clock)
    monkeypatch.setattr(Skipping, "clock", clock, raising=False)
    return Skipping


def test_pauses_grow_up_to_a_limit(make, skipping, monkeypatch):
    monkeypatch.setattr(process_env, "LONGEST_PAUSE", 5.0)
    faults = [fault("leave", row=0, start=start, where="constructor") for start in range(6)]
    env = make(1, *faults, crash_limit=7, kind=skipping)
    env.reset()
    assert env.crashes == 6
    assert [told for told, _ in env.pauses] == [0, 1, 2, 4, 5, 5]
    for told, real in env.pauses:
        assert told - 0.01 < real < told + 10  # the pause begins a little before it is told


def test_pauses_cost_nothing(make, skipping, monkeypatch):
    monkeypatch.setattr(skipping, "rest", 0.3)
    env = make(1, *(fault("leave", row=0, start=start, where="constructor") for start in range(2)), kind=skipping)
    env.reset()
    assert [told for told, _ in env.pauses] == [0, 1]
    assert env.clock.looks < 500


# The end


def test_closing_lets_environments_close(make, tmp_path):
    env = make(3, {"do": ["shout"], "where": "close"})
    env.reset()
    env.step(torch.zeros(3, AGENTS, dtype=torch.long), [0])
    env.close()
    for row in range(3):
        assert (tmp_path / f"out/worker_{row}.log").read_text().endswith("line 30 of 30\n")
    assert env.crashes == 0
    env.close()  # may come twice


def test_closing_ends_what_does_not_close(make, monkeypatch):
    monkeypatch.setattr(process_env, "CLOSING", SHORT)
    misdeeds = ("deafen bear litter hang", "bear fail", "bear litter leave", "stop")
    env = make(5, *(fault(do, row=row, where="close") for row, do in enumerate(misdeeds)))
    env.reset()
    pids, started = env.get_stats()["pid"], time.monotonic()
    env.close()
    assert time.monotonic() - started < SHORT + 10  # all of them together
    assert [group_of(pid) for pid in pids] == [[]] * 5


class Interrupted(Told):
    """Ctrl-C comes with the third failure."""

    def note(self, message):
        super().note(message)
        if len(self.told) == 3:
            raise KeyboardInterrupt


def test_an_interrupt_in_the_middle_of_everything(make, monkeypatch):
    """One is in a step, one in its start, one waits for its next start, and one shows something."""
    monkeypatch.setattr(process_env, "CLOSING", SHORT)
    env = make(
        4,
        fault("bear hang", row=0, **STEP),
        fault("leave", **STEP),
        fault("bear hang", start=1, where="constructor"),
        fault("leave", row=2, **STEP),
        fault("leave", row=2, start=1, where="constructor"),
        kind=Interrupted,
    )
    twins = Twins(env)
    with pytest.raises(KeyboardInterrupt):
        twins.play(1000)
    env.close()


def test_an_interrupt_while_they_start(make, monkeypatch):
    monkeypatch.setattr(process_env, "CLOSING", SHORT)
    failures = [fault("leave", row=row, where="constructor") for row in (1, 2, 3)]
    # Whoever is started again must not be ready before the third failure: the start would be over.
    hanging = [fault("bear hang", row=row, start=None, where="constructor") for row in range(4)]
    with pytest.raises(KeyboardInterrupt):
        make(4, *failures, *hanging, kind=Interrupted)


def test_closing_gives_back_all_file_descriptors(tmp_path, monkeypatch):
    options = {"deadline": PATIENCE, "crash_limit": 3, "lockstep": False, "output_folder": tmp_path / "out"}
    with nothing_left(tmp_path, monkeypatch):
        gc.collect()  # what earlier tests have left
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(2):
            env = ProcessVectorEnv(SCRIPTED, 1, "cpu", {"seed": SEED}, **options)
            env.reset()
            env.close()
        del env
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before


def test_without_linux(make, monkeypatch):
    monkeypatch.setattr(process_env, "sys", SimpleNamespace(platform="darwin"))
    with pytest.raises(UserError, match="runner=parallel needs Linux, this is darwin; set runner=vector"):
        make(1)
