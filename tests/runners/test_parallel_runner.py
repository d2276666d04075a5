"""The parallel runner on scripted environments that are slow and misbehave; the episode runner on ones that crash."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import (
    RecordingLogger,
    assert_as_scripted,
    assert_records,
    bury_orphans,
    group_of,
    make_args,
    make_mac,
    make_scheme,
    masked_greedy,
    nothing_left,
    random_batch,
    read_run,
    run_main,
    script,
    sharpen,
    started_under,
    wait_until,
)
from plugins.misbehaving import LIMIT
from test_vector_runner import assert_same_episodes, collect

from envs.multiagentenv import RESTART_SEED, EnvCrash
from envs.process_env import ProcessVectorEnv
from runners import REGISTRY

ROOT = Path(__file__).resolve().parents[2]
MISBEHAVING = "plugins.misbehaving:MisbehavingEnv"
ENVS, SEED = 3, 15  # the first episodes of 15 to 18 have several steps
TESTS = SEED + ENVS  # the first of the environments for tests
PATIENCE = 120.0  # seconds, where nothing is too late


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes runners of misbehaving environments with a sharpened controller; at the end nothing of them is left."""
    made = []

    def make(*faults, kind="parallel", seed=SEED, epsilon=0.0, alg="qmix", lockstep=False, slow=0.0, **overrides):
        env_args = {"seed": seed, "faults": list(faults), "cue": str(tmp_path / "cue"), "slow": slow}
        exploration = {"epsilon_start": epsilon, "epsilon_finish": epsilon}
        n_envs = 1 if kind == "episode" else ENVS
        options = {"runner": kind, "batch_size_run": n_envs, "env_deadline": PATIENCE, "env_lockstep": lockstep}
        unchecked = {"env": MISBEHAVING, "env_args": env_args, "local_results_path": str(tmp_path)}
        unchecked["evaluate"] = overrides.pop("evaluate", False)
        args = make_args(alg, unchecked=unchecked, **exploration, **options, **overrides)
        runner = REGISTRY[kind](args, RecordingLogger())
        made.append(runner)
        mac = make_mac(args)
        sharpen(mac)
        runner.setup(*make_scheme(args), mac)
        return runner

    with nothing_left(tmp_path, monkeypatch):
        yield make
        for runner in made:
            runner.close_env()


def fault(do: str, row: int = 1, start: int | None = 0, where: str = "step", first: int = SEED, **when) -> dict:
    """The environment of this row does these things, separated by spaces; only in its first start, unless told so."""
    return {"do": do.split(), "env": first + row, "starts": None if start is None else [start], "where": where, **when}


def collect_until(runner, row: int, count: int, episodes=None, **options):
    """The episodes of runs until there are so many of this row, after those of earlier runs."""
    episodes = {} if episodes is None else episodes
    while len(in_order(episodes, row)) < count:
        more = collect(runner, 1, **options)
        assert not more.keys() & episodes.keys()
        episodes |= more
    return episodes


def in_order(episodes, row: int, first: int = SEED) -> list[tuple[int, int]]:
    """The (number, episode) of this row's episodes, as they came."""
    return [(number, episode) for number, episode in episodes if number % RESTART_SEED == first + row]


def assert_remembered(mac, batch):
    """Every action is the best one for agents that remember this episode from its start, and nothing else."""
    length = int(batch["filled"].sum()) - 1
    greedy = masked_greedy(mac.unroll(batch), batch)
    assert torch.equal(batch["actions"][0, :length, :, 0], greedy[0, :length])


def count_steps(runner) -> list[int]:
    """Will hold how many environments have answered, for each call."""
    counts, step = [], runner.env.step

    def counted(*args):
        outcome = step(*args)
        counts.append(len(outcome.rows))
        return outcome

    runner.env.step = counted
    return counts


# Episodes


def test_every_episode_lands_whole_and_in_order(make):
    runner = make(epsilon=1.0, slow=0.004, bootstrap_time_limit=False)
    counts, other = count_steps(runner), random_batch(runner.args, seed=1)
    episodes, ends = {}, set()
    for row in range(ENVS):
        collect_until(runner, row, 6, episodes, between=lambda: runner.mac.unroll(other))  # as the learner does
    for (number, episode), batch in episodes.items():
        assert_as_scripted(batch, number, episode, limit_is_an_end=True)
        ends.add(script(number, episode).end)
    assert ends == {"terminated", "limit", "early"}
    for row in range(ENVS):
        mine = in_order(episodes, row)
        assert mine == [(SEED + row, episode) for episode in range(len(mine))]
    assert runner.t_env == sum(counts)
    assert 0 <= runner.t_env - sum(script(*where).length for where in episodes) < ENVS * LIMIT


def test_agents_remember_their_own_episode_and_nothing_else(make):
    runner = make(fault("leave", episode=2, t=1), slow=0.004)
    other = random_batch(runner.args, seed=1)
    for batch in collect_until(runner, 1, 8, between=lambda: runner.mac.unroll(other)).values():
        assert_remembered(runner.mac, batch)
    assert runner.env.crashes == 1


def test_agents_remember_their_actions_while_others_act(make, tmp_path):
    runner = make(fault("wait", episode=1, t=0))
    episodes = {}
    while not (tmp_path / "cue_awaited").exists():
        episodes |= collect(runner, 1)
    episodes |= collect(runner, 4)  # meanwhile, environment 1 does not answer to the first actions of an episode
    (tmp_path / "cue").touch()
    for batch in collect_until(runner, 1, 3, episodes).values():
        assert_remembered(runner.mac, batch)


def test_shares_of_the_reward_and_probabilities_of_the_actions_are_kept(make):
    stored = {"heads": {"reward_independent": "individual"}, "behaviour": {"source": "stored"}, "alg": "greedy_qmix"}
    runner = make(fault("leave", episode=2, t=1), epsilon=0.25, slow=0.004, **stored)
    for (number, episode), batch in collect_until(runner, 1, 6).items():
        assert_as_scripted(batch, number, episode)
        assert_records(batch, runner.mac, epsilon=0.25)


def test_in_lockstep_a_run_can_be_repeated(make):
    first, second = (collect(make(lockstep=True, epsilon=0.5, slow=slow), 15) for slow in (0.0, 0.004))
    assert_same_episodes(first, second)


@pytest.mark.parametrize(
    "epsilon",
    [0.0, 0.5],
)
def test_in_lockstep_it_plays_what_the_vector_runner_plays(epsilon, make):
    assert_same_episodes(
        *(collect(make(kind=kind, epsilon=epsilon, lockstep=True), 15) for kind in ("parallel", "vector"))
    )


# Crashes


@pytest.mark.parametrize("lockstep", [True, False])
def test_episodes_that_crashed_never_appear(lockstep, make):
    """Environment 1 crashes twice in the middle of an episode, 0 once, and 2 once at the start of an episode."""
    faults = [fault("bear leave", start=start, episode=2, t=1) for start in (0, 1)]
    faults += [fault("fail", row=0, episode=1, t=2), fault("die", row=2, where="reset", episode=3)]
    runner = make(*faults, lockstep=lockstep, runner_log_interval=10)
    counts, episodes = count_steps(runner), {}
    for row in range(ENVS):
        collect_until(runner, row, 5, episodes)
    for (number, episode), batch in episodes.items():
        assert_as_scripted(batch, number, episode)
    for row, wholes in enumerate(([1, 4], [2, 2, 1], [3, 2])):  # the whole episodes of each start
        expected = [
            (SEED + row + start * RESTART_SEED, episode)
            for start, whole in enumerate(wholes)
            for episode in range(whole)
        ]
        assert in_order(episodes, row)[:5] == expected
    assert runner.env.crashes == 4
    assert runner.t_env == sum(counts)
    crashes = [value for _, value in runner.logger.stats["env_crashes"]]
    assert crashes[0] == 0  # nobody crashes in the first episode
    assert crashes == sorted(crashes)
    runner.close_env()
    assert runner.logger.stats["env_crashes"][-1] == (runner.t_env, 4)


def test_a_continued_run_goes_on_counting_crashes(make):
    runner = make(fault("leave", episode=1, t=1))
    collect_until(runner, 1, 3)
    assert runner.env.crashes > 0
    state = runner.state_dict()
    again = make(fault("leave", episode=1, t=1))
    again.load_state_dict(state)
    again._log_crashes()
    assert again.logger.stats["env_crashes"][-1][1] == runner.env.crashes
    collect_until(again, 1, 3)
    again._log_crashes()
    assert again.logger.stats["env_crashes"][-1][1] == runner.env.crashes + again.env.crashes > runner.env.crashes


def test_one_that_does_not_answer_stops_nobody(make):
    runner = make(fault("deafen bear hang", episode=1, t=1))
    pid = runner.env.get_stats()["pid"][1]
    episodes = {}
    while len(group_of(pid)) == 1:
        episodes |= collect(runner, 1)
    episodes |= collect(runner, 5)
    assert in_order(episodes, 1) == [(SEED + 1, 0)]
    runner.env._workers[1].due = 0.0  # its deadline has passed
    collect_until(runner, 1, 3, episodes)
    assert in_order(episodes, 1)[1:] == [(SEED + 1 + RESTART_SEED, 0), (SEED + 1 + RESTART_SEED, 1)]
    assert runner.env.crashes == 1


def test_one_that_crashes_after_its_answer_acts_once(make, monkeypatch, tmp_path):
    """In lockstep environment 0 is slow; meanwhile 1 answers, is killed, and shows the start of another episode."""
    receive = ProcessVectorEnv._receive

    def receive_and_kill(self, one):
        receive(self, one)
        if one.row == 1 and 1 in self._stepped and self.crashes == 0:
            os.kill(one.process.pid, signal.SIGKILL)
        if self.crashes and 1 in self._began:
            (tmp_path / "cue").touch()

    runner = make(fault("wait", row=0, episode=0, t=0), lockstep=True)
    monkeypatch.setattr(ProcessVectorEnv, "_receive", receive_and_kill)
    turns, act = [], runner.rollout._act
    monkeypatch.setattr(runner.rollout, "_act", lambda rows, *args: turns.append(rows.tolist()) or act(rows, *args))
    episodes = collect_until(runner, 1, 2)
    for (number, episode), batch in episodes.items():
        assert_as_scripted(batch, number, episode)
    assert runner.env.crashes == 1
    assert in_order(episodes, 1) == [(SEED + 1 + RESTART_SEED, episode) for episode in (0, 1)]
    assert all(len(turn) == len(set(turn)) for turn in turns)


def test_it_says_what_it_starts_and_what_failed(make, tmp_path, caplog):
    caplog.set_level(logging.INFO, "test")
    runner = make(fault("die", episode=0, t=0), test_nepisode=1)
    while not runner.env.crashes:
        runner.run()
    runner.evaluate(1)
    folder = tmp_path / "workers/test"
    first, failed, tests = (record.getMessage() for record in caplog.records)
    assert first == f"Starting 3 worker process(es) of {MISBEHAVING}, seeds 15 to 17; their output: {folder}"
    assert failed.startswith("Environment 1 failed: its process ended (signal 9). Its episode is dropped; it starts")
    assert tests == f"Starting 1 test worker process(es) of {MISBEHAVING}, seed 18; their output: {folder}"
    assert {path.name for path in folder.iterdir()} == {*(f"worker_{row}.log" for row in range(3)), "test_worker_0.log"}
    output = "".join(f"environment {number} was started\n" for number in (SEED + 1, SEED + 1 + RESTART_SEED))
    wait_until(lambda: (folder / "worker_1.log").read_text() == output)


# Tests


def alone(make, number: int, episodes: int):
    """What the episode runner plays on this environment with the same weights: its first episodes."""
    runner = make(kind="episode", seed=number)
    return [runner.run(test_mode=True) for _ in range(episodes)]


def expected_tests(n_episodes: int) -> list[tuple[int, int]]:
    """The (number, episode) of so many test episodes, if environment 1 of them crashes in its second episode."""
    played = []
    for row in range(ENVS):
        share = n_episodes // ENVS + (row < n_episodes % ENVS)
        whole = [(TESTS + row, episode) for episode in range(share)]
        if row == 1:
            whole = [*whole[:1], *((TESTS + row + RESTART_SEED, episode) for episode in range(share - 1))]
        played += whole
    return played


CRASH_IN_TESTS = fault("bear die", first=TESTS, episode=1, t=0)


@pytest.mark.parametrize("lockstep", [True, False])
def test_evaluation_plays_exactly_so_many_episodes_in_spite_of_crashes(lockstep, make):
    runner = make(CRASH_IN_TESTS, epsilon=0.7, lockstep=lockstep, slow=0.004)  # exploration is for training
    runner.run()
    t_env = runner.t_env
    summary = runner.evaluate(8)
    expected = expected_tests(8)
    assert len(expected) == 8
    plans = [script(*where) for where in expected]
    numbers = sorted({number for number, _ in expected})
    batches = [batch for number in numbers for batch in alone(make, number, [n for n, _ in expected].count(number))]
    returns = torch.tensor([batch["reward"].sum().item() for batch in batches], dtype=torch.float64)
    assert summary["test_number_mean"] == pytest.approx(sum(number for number, _ in expected) / 8)
    assert summary["test_ep_length_mean"] == pytest.approx(sum(plan.length for plan in plans) / 8)
    assert summary["test_episode_limit_mean"] == pytest.approx(sum(plan.end != "terminated" for plan in plans) / 8)
    assert summary["test_return_mean"] == pytest.approx(returns.mean().item())
    assert summary["test_return_std"] == pytest.approx(returns.std(correction=0).item())
    assert runner.t_env == t_env
    assert (runner.env.crashes, runner.test_env.crashes) == (0, 1)
    runner.close_env()
    assert runner.logger.stats["env_crashes"][-1] == (t_env, 1)


def test_playing_gives_exactly_so_many_whole_episodes_in_spite_of_crashes(make):
    runner = make(CRASH_IN_TESTS, slow=0.004)
    for _ in range(3):
        played = runner.play(5)
        assert played.batch_size == 5
        for e in range(5):
            assert_as_scripted(played[[e], :], *played["state"][e, 0, :2].int().tolist())
        rows = [int(number) % RESTART_SEED - TESTS for number in played["state"][:, 0, 0].tolist()]
        assert [rows.count(row) for row in range(ENVS)] == [2, 2, 1]
    assert runner.test_env.crashes == 1


def test_tests_disturb_neither_open_episodes_nor_memory(make):
    undisturbed = collect(make(kind="vector"), 10)  # the same as in lockstep, see above
    runner = make(CRASH_IN_TESTS, lockstep=True)
    assert_same_episodes(collect(runner, 10, between=lambda: runner.evaluate(3)), undisturbed)


def test_evaluation_of_a_model_uses_the_same_processes(make):
    runner = make(evaluate=True, lockstep=True)
    summary = runner.evaluate(2)
    assert runner.test_env is runner.env
    assert summary["test_number_mean"] == SEED + 0.5
    assert summary["test_ep_length_mean"] == sum(script(SEED + row, 0).length for row in (0, 1)) / 2


# The episode runner


def test_the_episode_runner_plays_a_crashed_episode_again(make):
    """The first start crashes in its third episode, the second at once, the third while it begins its second."""
    faults = [fault("crash", row=0, start=0, episode=2, t=1), fault("crash", row=0, start=1, where="reset")]
    runner = make(*faults, fault("crash", row=0, start=2, where="reset", episode=1), kind="episode", env_crash_limit=3)
    first = runner.env
    numbers = [SEED + start * RESTART_SEED for start in range(4)]
    played = [(numbers[0], 0), (numbers[0], 1), (numbers[2], 0), (numbers[3], 0), (numbers[3], 1)]
    steps = 0
    for number, episode in played:
        assert_as_scripted(runner.run(), number, episode)
        steps += script(number, episode).length
        assert runner.t_env == steps
    assert runner.crashes == 3
    assert first.closed
    assert not runner.env.closed


def test_the_episode_runner_tests_exactly_so_often_and_counts_crashes(make):
    faults = [fault("crash", row=0, start=0, episode=2, t=1)]
    runner = make(*faults, kind="episode", runner_log_interval=1)
    played = [(SEED, 0), (SEED, 1), (SEED + RESTART_SEED, 0), (SEED + RESTART_SEED, 1)]
    summary = runner.evaluate(4)
    assert summary["test_number_mean"] == sum(number for number, _ in played) / 4
    assert summary["test_ep_length_mean"] == sum(script(*where).length for where in played) / 4
    runner.run()
    assert runner.logger.stats["env_crashes"] == [(runner.t_env, 1)]


def test_the_episode_runner_gives_up(make):
    runner = make(fault("crash", row=0, start=None, episode=0, t=0), kind="episode", env_crash_limit=3)
    with pytest.raises(EnvCrash) as caught:
        runner.run()
    assert str(caught.value) == (
        "the game is gone; that was crash 3 without a whole episode between them (env_crash_limit=3)"
    )
    assert runner.crashes == 3
    assert runner.env.number == SEED + 2 * RESTART_SEED
    lucky = make(fault("crash", row=0, start=None, episode=1, t=0), kind="episode", env_crash_limit=2)
    for _ in range(4):
        lucky.run()  # a whole episode between two crashes
    assert lucky.crashes == 3


# Whole runs

# The rewards are huge, and the states of restarted environments too.
SMALL = (
    "standardise_rewards=True",
    "rnn_hidden_dim=16",
    "batch_size=4",
    "use_cuda=False",
    "test_nepisode=2",
    "plot=False",
    "batch_size_run=2",
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty current folder; nothing is left of the runs there. The mark of their processes, and TMPDIR."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    with nothing_left(tmp_path, monkeypatch) as place:
        yield place


def arguments(*faults, **options):
    """The command line of a run in the current folder, with these faults."""
    config = {"env": MISBEHAVING, "env_args": {"faults": list(faults)}, "runner": "parallel", "t_max": 120}
    Path("misbehaving.yaml").write_text(json.dumps(config))
    intervals = [f"{name}=50" for name in ("test_interval", "log_interval", "runner_log_interval")]
    overrides = [f"{key}={value}" for key, value in options.items()]
    return ["--config=vdn", "--env-config=misbehaving.yaml", "with", *SMALL, *intervals, *overrides]


@pytest.mark.usefixtures("place")
def test_a_run_in_which_environments_crash_completes(capsys):
    faults = {"do": ["bear", "litter", "die"], "episode": 6, "t": 0}  # again and again, tests included
    assert run_main(*arguments(faults)) == 0
    done = capsys.readouterr()
    assert done.err == ""
    assert "Environment 0 failed: its process ended (signal 9)" in done.out
    run = read_run(Path("results"))
    assert run["status"] == "COMPLETED"
    assert run["metrics"]["env_crashes"]["values"][-1] > 1
    assert {"loss", "test_return_mean"} <= run["metrics"].keys()


@pytest.mark.usefixtures("place")
def test_after_too_many_crashes_a_run_saves_its_model_and_says_where(capsys):
    faults = [{"do": ["shout", "fail"], "env": 1, "episode": 15, "t": 0}]
    faults += [{"do": ["shout", "fail"], "env": 1, "starts": [1], "where": "constructor"}]
    assert run_main(*arguments(*faults, env_crash_limit=2, t_max=10_000)) == 1
    head, *tail = capsys.readouterr().err.splitlines()
    (model,) = Path("results/models").glob("*/*")
    assert {"agent.th", "opt.th"} <= {path.name for path in model.iterdir()}
    assert head.startswith(f"error: training stopped at step {model.name}; the model is saved in {model}: environment")
    assert "(env_crash_limit=2), the last time: the dice fell off the table; the end of its output, " in head
    assert "  | line 30 of 30" in tail
    assert tail[-1] == "  | RuntimeError: the dice fell off the table"
    assert read_run(Path("results"))["status"] == "FAILED"


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("do", "code", "message"),
    [
        ("fail", 1, r"error: environment \d of .* failed 2 times in a row .* the dice fell off the table; "),
        ("refuse", 2, r"error: env_args\.dice=0: nothing to throw; set env_args\.dice=2$"),
    ],
)
def test_a_run_whose_environments_do_not_start(do, code, message, capsys):
    assert run_main(*arguments({"do": [do], "where": "constructor"}, env_crash_limit=2)) == code
    assert re.match(message, capsys.readouterr().err.splitlines()[0])
    assert not Path("results/models").exists()


@pytest.fixture
def running(place, _heeded_interrupts):
    """A run in a process group of its own, as a shell starts it, while it trains; its environments have children."""
    environments = {"do": ["bear", "litter", "deafen"], "where": "constructor"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "src/main.py"), *arguments(environments, t_max=10**8)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT / "tests")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if re.match(r" +[\d,]+ +\d+% ", line):  # a line of results, the first behind a test
            break
    yield process
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: not started_under(place[0], git=True))
    bury_orphans()


def test_control_c_leaves_nothing(running, place):
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    out, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (130, "")
    assert not started_under(place[0])  # at once
    (model,) = Path("results/models").glob("*/*")
    assert f"Stopped at step {model.name} (SIGINT); the model is saved in {model}" in out


def test_a_killed_run_leaves_nothing(running, place):
    assert len(started_under(place[0])) > 8
    assert len(list(place[1].glob("env-*"))) == 4
    running.kill()
    running.wait(60)
    wait_until(lambda: not started_under(place[0]))
    wait_until(lambda: not list(place[1].glob("env-*")))
