"""A runner in a process of its own: it plays what it would have played here, a round behind, and leaves nothing."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    assert_equal,
    bury_orphans,
    error_line,
    nothing_left,
    read_run,
    run_main,
    started_under,
    wait_until,
    weights,
)

from config.schema import ConfigError, extend, freeze, load
from envs.multiagentenv import EnvCrash
from run import Experiment, make_runner
from runners.collector import SEED
from runners.vector_runner import VectorRunner
from utils.logging import Logger
from utils.seeding import seed_everything

ROOT = Path(__file__).resolve().parents[2]
TWO_STEP = ("--config=qmix", "--env-config=matrix_games", "with", "env_args.game=two_step", "overlap=True")
QUICK = ("use_cuda=False", "plot=False")


@pytest.fixture
def make(tmp_path):
    """Builds an experiment on the two-step game; its runner is closed in the end."""
    made = []

    def build(**settings) -> Experiment:
        small = {"rnn_hidden_dim": 8, "test_nepisode": 2, "use_cuda": False, "plot": False}
        config = load("qmix", "matrix_games", {**small, "local_results_path": f"{tmp_path}", **settings})
        args, logger = extend(freeze(config), device="cpu", unique_token="test"), Logger(logging.getLogger("test"))
        made.append(make_runner(args, logger))
        return Experiment(args, logger, made[-1])

    yield build
    for runner in made:
        runner.close_env()


def collect(runner, rounds: int) -> None:
    for _ in range(rounds):
        runner.run()


@pytest.mark.parametrize(
    "settings",
    [
        {"runner": "vector", "batch_size_run": 4},
        {"runner": "episode", "batch_size_run": 1},
        {"runner": "parallel", "batch_size_run": 2, "env_lockstep": True},
    ],
    ids=lambda settings: settings["runner"],
)
def test_it_plays_the_same_episodes_as_the_runner_itself(make, settings):
    here, there = make(**settings), make(**settings, overlap=True)
    seed_everything(here.args.seed + SEED)
    assert there.runner.get_env_info() == here.runner.get_env_info()
    for n in range(6):
        mine, theirs = here.runner.run(), there.runner.run()
        assert_equal(mine.data.transition_data, theirs.data.transition_data)
        assert there.runner.t_env == here.runner.t_env
        if n == 3:  # tests disturb nothing, although there the next episodes are played before them
            assert there.runner.evaluate(3) == here.runner.evaluate(3)
    names = ("return_mean", "test_return_mean", "epsilon")
    assert {name: there.logger.stats[name] for name in names} == {name: here.logger.stats[name] for name in names}


def test_a_round_has_as_many_episodes_as_earn_an_update(make):
    settings = {"runner": "vector", "batch_size_run": 4, "updates_per_episode": 0.15}
    here, there = make(**settings), make(**settings, overlap=True)
    seed_everything(here.args.seed + SEED)
    for _ in range(3):
        alone = [here.runner.run().data.transition_data for _ in range(2)]  # all four games end at once, 7 are wanted
        mine = {key: torch.cat([episodes[key] for episodes in alone]) for key in alone[0]}
        assert_equal(mine, there.runner.run().data.transition_data)
        assert there.runner.t_env == here.runner.t_env


def test_parameters_reach_the_play_after_one_round(make):
    experiment = make(overlap=True, runner="vector", batch_size_run=4, epsilon_start=0.0, epsilon_finish=0.0)
    runner, head = experiment.runner, experiment.mac.agent.fc2

    def prefer(action: int) -> None:
        with torch.no_grad():
            head.weight.zero_()
            head.bias.copy_(torch.tensor([1.0, 0.0] if action == 0 else [0.0, 1.0]))

    def played() -> set[int]:
        batch = runner.run()
        return set(batch["actions"][:, :-1].flatten().tolist())

    prefer(0)
    assert played() == {0}  # asked for with these parameters, as is the next
    prefer(1)
    assert played() == {0}
    assert played() == {1}
    assert set(runner.play(4)["actions"][:, :-1].flatten().tolist()) == {1}
    prefer(0)
    assert set(runner.play(4)["actions"][:, :-1].flatten().tolist()) == {0}  # at once
    assert played() == {1}


def test_equal_seeds_learn_the_same(make):
    def learned() -> dict:
        seed_everything(3)
        experiment = make(overlap=True, seed=3, t_max=400)
        experiment.train(SimpleNamespace(_id=None))
        assert experiment.counters.updates > 0
        return weights(experiment.learner)

    assert_equal(learned(), learned())


def test_it_learns_the_two_step_game(tmp_path, capsys):
    assert run_main(*TWO_STEP, *QUICK, "t_max=1500", f"local_results_path={tmp_path}") == 0
    assert "state 2B: learned values" in capsys.readouterr().out
    assert read_run(tmp_path)["metrics"]["test_return_mean"]["values"][-1] == 8


def test_a_killed_process_is_one_clear_line(make):
    runner = make(overlap=True).runner
    collect(runner, 1)
    os.kill(runner._process.pid, signal.SIGKILL)
    crash = r"collects episodes is gone: its process ended \(signal 9\); set overlap=False"
    with pytest.raises(EnvCrash, match=crash):
        collect(runner, 2)  # what it has sent before arrives


def test_errors_are_raised_as_they_are(tmp_path, capsys):
    command = ("--config=qmix", "--env-config=gymma", "with", "env_args.key=lbforagin:Foraging-8x8-2p-2f-v3")
    assert run_main(*command, *QUICK, "overlap=True", f"local_results_path={tmp_path}") == 2
    assert "cannot import lbforagin (did you mean lbforaging?)" in error_line(capsys)


def test_learners_of_their_own_present_play_are_refused():
    with pytest.raises(ConfigError, match="a round old; set overlap=False"):
        load("coma", "matrix_games", {"overlap": True})


def test_without_learning_there_is_nothing_to_overlap():
    config = load("qmix", "matrix_games", {"overlap": True})
    args = extend(freeze({**config, "evaluate": True}), device="cpu")
    assert isinstance(make_runner(args, Logger(logging.getLogger("test"))), VectorRunner)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_however_the_run_ends(tmp_path, monkeypatch, end):
    with nothing_left(tmp_path, monkeypatch) as (mark, _):
        command = [sys.executable, str(ROOT / "src/main.py"), *TWO_STEP, *QUICK, "t_max=1000000"]
        run = subprocess.Popen(
            [*command, f"local_results_path={tmp_path}"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert run.stdout is not None
        for line in run.stdout:
            if "done" in line:  # the table's head: training has begun
                break
        os.killpg(run.pid, end)
        _, errors = run.communicate(timeout=60)
        assert "Traceback" not in errors
        wait_until(lambda: not started_under(mark))
        bury_orphans()
