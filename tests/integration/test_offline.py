"""Recording episodes and training from files, from end to end."""

import importlib.util
import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import assert_equal, error_line, read_run, run_main

import dataset
import run
from components.dataset import DatasetWriter, load_dataset, read_attributes
from config.schema import ON_POLICY, config_files, load
from runners import ParallelRunner, VectorRunner

ROOT = Path(__file__).resolve().parents[2]
GAME = "env_args.game=two_step"
TINY = ("use_cuda=False", "plot=False", "rnn_hidden_dim=16", "mixing_embed_dim=8", "hypernet_embed=8", "batch_size=8")
OFTEN = [f"{name}interval=20" for name in ("test_", "log_", "runner_log_", "learner_log_")]
OFF_POLICY = [
    alg for alg in config_files("algs") if load(alg, "matrix_games", {"offline": False})["learner"] not in ON_POLICY
]


@pytest.fixture(autouse=True)
def _own_import_path(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)


def record(path, *argv, alg="qmix", env="matrix_games", overrides=(GAME,), results=None):
    results = results or Path(path).parent
    head = [str(path), f"--config={alg}", f"--env-config={env}", *argv, "with", *overrides]
    return dataset.main(["src/dataset.py", *head, "use_cuda=False", f"local_results_path={results}"])


@pytest.fixture(scope="module")
def uniform(tmp_path_factory):
    path = tmp_path_factory.mktemp("uniform") / "uniform.h5"
    assert record(path, "--uniform", "--episodes=50") == 0
    return path


def train(path, results, *overrides, alg="qmix", env="matrix_games", game=GAME):
    options = [*TINY, *OFTEN, game, "offline=True", f"dataset={path}", "t_max=60", f"local_results_path={results}"]
    return run_main(f"--config={alg}", f"--env-config={env}", "with", *options, *overrides)


# Recording


def test_uniform_play_is_uniform(uniform):
    found = read_attributes(uniform)
    assert found["episodes"] == 50
    assert found["transitions"] == 100
    assert found["env"] == "matrix_games"
    assert json.loads(found["env_args"])["game"] == "two_step"
    assert json.loads(found["policy"]) == {
        "config": "qmix",
        "model": "",
        "learning": False,
        "epsilon from, to, within": [1.0, 1.0, 50000],
    }
    assert {"python", "torch", "numpy", "h5py"} <= json.loads(found["versions"]).keys()
    replay = replay_of(uniform)
    assert (replay["behaviour"][:, :-1] == 0.5).all()
    assert set(replay["actions"][:, :-1].flatten().tolist()) == {0, 1}


def replay_of(path):
    """All that a file of the two-step game holds."""
    found = read_attributes(path)
    scheme = {
        "state": {"vshape": 3},
        "obs": {"vshape": 3, "group": "agents"},
        "actions": {"vshape": (1,), "group": "agents", "dtype": torch.long},
        "avail_actions": {"vshape": (2,), "group": "agents", "dtype": torch.int},
        "reward": {"vshape": (1,)},
        "terminated": {"vshape": (1,), "dtype": torch.uint8},
        "behaviour": {"vshape": (2,), "group": "agents"},
    }
    return load_dataset(str(path), {"env_args": found["env_args"]}, scheme, {"agents": 2}, {}, 3, "cpu")[0]


def test_a_saved_model_plays_as_it_explores(tmp_path, capsys):
    options = [*TINY, GAME, "save_model=True", "t_max=300", f"local_results_path={tmp_path}"]
    assert run_main("--config=qmix", "--env-config=matrix_games", "with", *options) == 0
    (token,) = (tmp_path / "models").iterdir()
    rest = ["rnn_hidden_dim=16", "mixing_embed_dim=8", "hypernet_embed=8", f"checkpoint_path={token}"]
    explores = [*rest, "epsilon_start=0.5", "epsilon_finish=0.5"]
    assert record(tmp_path / "a.h5", "--episodes=33", overrides=(GAME, *explores)) == 0
    assert read_attributes(tmp_path / "a.h5")["episodes"] == 33
    likely = replay_of(tmp_path / "a.h5")["behaviour"][:, :-1]
    assert set(likely.flatten().tolist()) == {0.25, 0.75}
    out = capsys.readouterr().out
    assert f"{tmp_path / 'a.h5'}: whole" in out
    assert "policy: model" in out


@pytest.mark.parametrize("runner", ["episode", "vector", "parallel"])
def test_every_runner_records(tmp_path, runner):
    envs = "batch_size_run=1" if runner == "episode" else "batch_size_run=2"
    assert record(tmp_path / "a.h5", "--uniform", "--episodes=5", overrides=(GAME, f"runner={runner}", envs)) == 0
    assert read_attributes(tmp_path / "a.h5")["episodes"] == 5


def test_shares_of_the_reward_are_recorded_where_there_are_any(tmp_path):
    options = ("env_args.game=replay", "env_args.kappa=None", "env_args.rewards=individual")
    assert record(tmp_path / "a.h5", "--uniform", "--episodes=40", env="greed_games", overrides=options) == 0
    overrides = [*options[1:], "heads.reward_independent=individual", "behaviour.source=stored"]
    code = train(tmp_path / "a.h5", tmp_path, *overrides, alg="greedy_qmix", env="greed_games", game=options[0])
    assert code == 0


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "which file?"),
        (["a.h5", "--config=qmix", "--env-config=matrix_games"], "who plays?"),
        (["a.h5", "--config=qmix", "--env-config=matrix_games", "--uniform", "--episodes=0"], "at least one"),
        (["a.h5", "--config=qmix", "--env-config=matrix_games", "--uniform", "--episodes=x"], "invalid int"),
        (["a.h5", "--config=nothing", "--env-config=matrix_games", "--uniform"], "no such config"),
        (["a.h5", "--config=qmix", "--env-config=matrix_games", "--uniform", "seed=1"], "unrecognized"),
        (["a.h5", "--config=qmix", "--env-config=matrix_games", "--uniform", "with", "lr=x"], "lr='x'"),
        (
            ["a.h5", "--config=qmix", "--env-config=matrix_games", "--uniform", "with", "save_dataset=b.h5"],
            "only plays",
        ),
        (["missing.h5"], "no such file"),
    ],
)
def test_bad_commands_are_refused_in_one_line(argv, reason, capsys, tmp_path):
    assert dataset.main(["src/dataset.py", *argv]) == 2
    assert reason in error_line(capsys)
    assert not list(tmp_path.glob("*.h5"))


def test_recording_does_not_overwrite(uniform, capsys):
    before = uniform.read_bytes()
    assert record(uniform, "--uniform") == 2
    assert "already exists" in error_line(capsys)
    assert uniform.read_bytes() == before


def test_a_file_that_came_into_being_meanwhile_costs_nothing(tmp_path, monkeypatch, capsys):
    append = DatasetWriter.append

    def somebody_is_faster(self, batch):
        (tmp_path / "a.h5").write_text("taken")
        append(self, batch)

    monkeypatch.setattr(DatasetWriter, "append", somebody_is_faster)
    small = ("t_max=60", "test_interval=60", "use_cuda=False", "save_model=True", f"save_dataset={tmp_path / 'a.h5'}")
    where = f"local_results_path={tmp_path / 'results'}"
    assert run_main("--config=iql", "--env-config=matrix_games", "with", *small, where) == 0
    shown = capsys.readouterr()
    assert f"a.h5 exists by now; the episodes are in {tmp_path / 'a-2.h5'}" in shown.out + shown.err
    assert (tmp_path / "a.h5").read_text() == "taken"
    assert dataset.main(["src/dataset.py", str(tmp_path / "a-2.h5")]) == 0
    assert list((tmp_path / "results/models").glob("*/*/agent.th"))


def test_help_names_the_examples(capsys):
    assert dataset.main(["src/dataset.py", "--help"]) == 0
    assert "--uniform" in capsys.readouterr().out


@pytest.mark.usefixtures("_heeded_interrupts")
def test_an_interrupted_recording_leaves_nothing(tmp_path):
    command = [sys.executable, str(ROOT / "src/dataset.py"), str(tmp_path / "d/a.h5"), "--config=qmix", "--uniform"]
    command += ["--env-config=matrix_games", "--episodes=1000000", "with", "use_cuda=False"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    folder = tmp_path / "d"
    give_up = time.monotonic() + 60
    while not (folder.exists() and any(folder.iterdir())) and time.monotonic() < give_up:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert list(folder.iterdir()) == []


# What training collects


def test_training_writes_all_that_it_collects_and_learns_the_same(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(run.Experiment, "_report", lambda self, *rest: found.append(self))
    options = [*TINY, *OFTEN, GAME, "t_max=200"]
    for name, more in {"with": [f"save_dataset={tmp_path / 'a.h5'}"], "without": []}.items():
        results = [f"local_results_path={tmp_path / name}"]
        assert run_main("--config=qmix", "--env-config=matrix_games", "with", *options, *more, *results) == 0
    assert_equal(found[0].mac.agent.state_dict(), found[1].mac.agent.state_dict())
    played, replay = found[0].buffer, replay_of(tmp_path / "a.h5")
    assert replay.buffer_size == played.episodes_in_buffer
    for field, value in replay.data.transition_data.items():
        assert torch.equal(value, played[field][: replay.buffer_size])
    assert json.loads(read_attributes(tmp_path / "a.h5")["policy"])["learning"] is True


def test_what_was_collected_survives_a_failure(tmp_path, monkeypatch):
    update = run.Experiment._update

    def fail(self, sample):
        if self.counters.episodes > 50:
            raise KeyboardInterrupt
        return update(self, sample)

    monkeypatch.setattr(run.Experiment, "_update", fail)
    options = [*TINY, GAME, f"save_dataset={tmp_path / 'a.h5'}", f"local_results_path={tmp_path}"]
    assert run_main("--config=qmix", "--env-config=matrix_games", "with", *options) != 0
    assert read_attributes(tmp_path / "a.h5")["episodes"] > 50


# Training from a file


@pytest.mark.parametrize("alg", OFF_POLICY)
def test_every_off_policy_algorithm_trains_from_a_file(alg, uniform, tmp_path, capsys):
    config = load(alg, "matrix_games", {})
    # What compares policies with the behaviour on every agent's own history clones it.
    stored = ["behaviour.source=stored"] if "behaviour" in config and "regulariser" not in config else []
    assert train(uniform, tmp_path, *stored, alg=alg) == 0
    recorded = read_run(tmp_path)
    metrics = recorded["metrics"]
    assert all(math.isfinite(value) for metric in metrics.values() for value in metric["values"])
    assert metrics["test_return_mean"]["steps"] == [1, 21, 41, 60]  # time counts updates
    assert metrics["updates"]["values"] == metrics["updates"]["steps"]
    assert not {"episode", "epsilon", "return_mean"} & metrics.keys()  # nothing was collected
    assert "t counts updates" in capsys.readouterr().out
    assert re.search(r"updates +60 \(", recorded["cout"])


@pytest.mark.parametrize("runner", ["episode", "vector", "parallel"])
def test_every_runner_evaluates_and_none_collects(runner, uniform, tmp_path, monkeypatch):
    def collect(self, test_mode=False):
        raise AssertionError("an episode is being collected")

    monkeypatch.setattr(VectorRunner, "run", collect)
    made = []
    make_env = ParallelRunner._make_env
    monkeypatch.setattr(ParallelRunner, "_make_env", lambda self, *a: made.append(make_env(self, *a)) or made[-1])
    envs = "batch_size_run=1" if runner == "episode" else "batch_size_run=2"
    assert train(uniform, tmp_path, f"runner={runner}", envs, "test_nepisode=4") == 0
    assert len({id(env) for env in made}) == (runner == "parallel")  # no second set of processes


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_equal_seeds_give_equal_runs(dtype, uniform, tmp_path):
    """Also from replays of different types: the game's observations are whole numbers."""
    found = []
    for k, kept in enumerate(("float32", dtype)):
        assert train(uniform, tmp_path / str(k), "seed=3", f"replay_dtype={kept}") == 0
        found.append(read_run(tmp_path / str(k))["metrics"]["loss"]["values"])
    assert found[0] == found[1]


def test_the_step_size_falls_and_models_are_saved_by_updates(uniform, tmp_path):
    assert train(uniform, tmp_path, "lr_finish=0.0", "save_model=True", "save_model_interval=30") == 0
    (token,) = (tmp_path / "models").iterdir()
    assert sorted(int(path.name) for path in token.iterdir()) == [30, 60]


def test_qmix_learns_the_two_step_game_from_uniform_play(tmp_path):
    assert record(tmp_path / "a.h5", "--uniform", "--episodes=400") == 0
    options = ["t_max=1000", "optimizer=adam", "lr=0.003", "batch_size=64", "target_update_interval=50", "seed=1"]
    assert train(tmp_path / "a.h5", tmp_path, "test_interval=500", *options, "rnn_hidden_dim=32") == 0
    assert read_run(tmp_path)["metrics"]["test_return_mean"]["values"][-1] == 8


@pytest.fixture(scope="module")
def redundant(tmp_path_factory):
    """Uniform play of a game whose branch B, worth 1, QMIX takes for 1.25, and so leaves the safe 1.1."""
    path = tmp_path_factory.mktemp("redundant") / "redundant.h5"
    game = ("env_args.game=redundant",)
    assert record(path, "--uniform", "--episodes=1000", env="greed_games", overrides=game) == 0
    return path


@pytest.mark.parametrize(("alg", "earned"), [("qmix", 1.0), ("cql_qmix", 1.1), ("cfcql", 1.1), ("icq", 1.1)])
def test_conservative_learners_do_not_promise_themselves_what_the_data_lacks(alg, earned, redundant, tmp_path):
    """The safe branch alone is no proof, since with the penalty too large nothing is left of the game."""
    options = ["t_max=500", "batch_size=64", "mixing_embed_dim=8", "rnn_hidden_dim=32", "test_interval=500", "seed=1"]
    options += ["learner_log_interval=500", "critic_hidden_dim=32"] if alg == "icq" else ["learner_log_interval=500"]
    assert train(redundant, tmp_path, *options, alg=alg, env="greed_games", game="env_args.game=redundant") == 0
    found = read_run(tmp_path)["metrics"]["test_expected_return_mean"]["values"][-1]
    assert found == pytest.approx(earned)


@pytest.mark.skipif(importlib.util.find_spec("jaxmarl") is None, reason="jaxmarl not installed")
def test_it_works_on_smax(tmp_path):
    sizes = ("batch_size_run=4", "test_nepisode=4", "env_args.time_limit=10")
    assert record(tmp_path / "a.h5", "--uniform", "--episodes=10", env="smax", overrides=sizes) == 0
    code = train(tmp_path / "a.h5", tmp_path, *sizes[:2], "t_max=3", alg="cql_qmix", env="smax", game=sizes[2])
    assert code == 0


# What is refused


@pytest.mark.parametrize("alg", sorted(config_files("algs").keys() - set(OFF_POLICY)))
def test_learners_from_their_own_play_refuse_files(alg, uniform, tmp_path, capsys):
    assert train(uniform, tmp_path, alg=alg) == 2
    assert "present policies" in error_line(capsys)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["offline=True"], "which episodes?"),
        (["dataset=a.h5"], "set offline=True"),
        (["offline=True", "dataset=a.h5", "save_dataset=b.h5"], "no episode is collected"),
        (["evaluate=True", "checkpoint_path=x", "save_dataset=b.h5"], "src/dataset.py records a model's play"),
        (["offline=True", "dataset=missing.h5"], "no such file"),
    ],
)
def test_settings_that_make_no_sense(overrides, reason, capsys):
    assert run_main("--config=qmix", "--env-config=matrix_games", "with", *overrides) == 2
    assert reason in error_line(capsys)


def test_a_gate_cannot_play_rollouts_offline(uniform, tmp_path, capsys):
    options = ["gate.metric=realised", "gate.realised=rollout"]
    assert train(uniform, tmp_path, *options, alg="greedy_qmix") == 2
    assert "rollouts would collect episodes" in error_line(capsys)


def test_a_file_of_another_game_is_refused(uniform, tmp_path, capsys):
    assert train(uniform, tmp_path, game="env_args.game=climbing") == 2
    assert "env_args.game 'two_step' (this run: 'climbing')" in error_line(capsys)


def test_too_few_episodes_are_refused(uniform, tmp_path, capsys):
    assert train(uniform, tmp_path, "batch_size=64") == 2
    assert "holds 50 episodes; set batch_size=50 or less" in error_line(capsys)


def test_a_controller_without_probabilities_cannot_be_recorded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("controllers.BasicMAC.records_behaviour", False, raising=False)
    build = run.mac_REGISTRY["basic_mac"]

    def plain(*args):
        mac = build(*args)
        del mac.records_behaviour  # as controllers written for PyMARL
        return mac

    monkeypatch.setitem(run.mac_REGISTRY, "basic_mac", plain)
    assert record(tmp_path / "a.h5", "--uniform") == 2
    assert "does not say how likely its actions were" in error_line(capsys)
