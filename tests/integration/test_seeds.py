"""Several seeds at once give what each of them gives alone."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import error_line, run_main
from torch.testing import assert_close

from config.schema import load
from reporting.runs import read_folders
from seeds import train_together
from utils.logging import get_logger

SETTINGS = {
    "rnn_hidden_dim": 16,
    "mixing_embed_dim": 8,
    "hypernet_embed": 8,
    "batch_size": 8,
    "batch_size_run": 4,
    "buffer_size": 64,
    "test_nepisode": 4,
    "epsilon_finish": 0.2,
    "epsilon_anneal_time": 200,
    "target_update_interval": None,
    "target_update_tau": 0.1,
    "t_max": 300,
    "test_interval": 100,
    "log_interval": 100,
    "runner_log_interval": 1,
    "learner_log_interval": 1,
    "use_cuda": False,
    "plot": False,
    "save_model": True,
}
ENVS = {
    "matrix_games": {"agent": "rnn", "updates_per_episode": 0.5},
    "greed_games": {"env_args.game": "mirage", "env_args.reward_noise": 0.5, "updates_per_episode": 0.3},
    # The sizes of test_every_config, so that JAX compiles the solo run's step once for both.
    "smax": {
        "agent": "rnn",
        "batch_size_run": 8,
        "test_nepisode": 8,
        "env_args.time_limit": 12,
        "updates_per_episode": 0.3,
        "t_max": 1000,
        "test_interval": 400,
    },
    "stag_hunt": {"env_args.size": 3, "env_args.n_agents": 2, "env_args.n_stags": 1, "env_args.time_limit": 6},
}


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def train(results, alg, env, **changes):
    """The records of all runs by seed: weights by file and name, metrics, configuration and run."""
    if env == "smax" and importlib.util.find_spec("jaxmarl") is None:
        pytest.skip("jaxmarl is not installed")
    settings = {**SETTINGS, **ENVS[env], "local_results_path": results, **changes}
    options = [f"{key}={value}" for key, value in settings.items()]
    assert run_main(f"--config={alg}", f"--env-config={env}", "with", *options) == 0
    records = {}
    for folder in (results / "sacred").glob("[0-9]*"):
        read = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("config", "metrics", "run")}
        files = {path.name: torch.load(path, weights_only=True) for path in folder.glob("*agent.th")}
        files |= {path.name: torch.load(path, weights_only=True) for path in folder.glob("*mixer.th")}
        records[read["config"]["seed"]] = {"weights": files, **read}
    return records


@pytest.mark.parametrize(
    ("alg", "env"),
    [
        *((alg, "matrix_games") for alg in ("qmix", "vdn", "iql", "greedy_qmix")),
        *((alg, env) for alg in ("qmix", "greedy_qmix") for env in ("greed_games", "stag_hunt", "smax")),
    ],
)
def test_each_seed_learns_what_it_learns_alone(alg, env, tmp_path):
    together = train(tmp_path / "together", alg, env, seed=3, seeds=3)
    assert sorted(together) == [3, 4, 5]
    for seed in (3, 5):
        (alone,) = train(tmp_path / f"{seed}", alg, env, seed=seed).values()
        mine = together[seed]
        assert mine["run"]["status"] == "COMPLETED"
        assert mine["config"] | {"seeds": 1, "local_results_path": ""} == alone["config"] | {"local_results_path": ""}
        metrics = mine["metrics"], alone["metrics"]
        for name in ("return_mean", "loss", "target_mean", "epsilon"):
            ours, theirs = (found[name] for found in metrics)
            count = min(len(ours["values"]), len(theirs["values"]))
            # A run ends with an episode: this seed's if it is alone, otherwise one of any seed.
            assert len(theirs["values"]) - 1 <= count >= 8
            assert ours["steps"][:count] == theirs["steps"][:count]
            assert_close(ours["values"][:count], theirs["values"][:count], rtol=1e-3, atol=1e-4)
        if metrics[0]["loss"]["steps"] == metrics[1]["loss"]["steps"]:
            assert_close(mine["weights"], alone["weights"], rtol=1e-3, atol=1e-5)


class Recorded:
    """In place of a sacred run: what is logged, (name, value, step)."""

    _id = None

    def __init__(self):
        self.logged = []

    def log_scalar(self, name, value, step):
        self.logged.append((name, value, step))


def test_a_seed_does_not_depend_on_the_others_to_the_last_bit():
    settings = {**SETTINGS, "env_args": {"game": "stag", "reward_noise": 0.5}, "t_max": 600, "save_model": False}
    config = load("greedy_qmix", "greed_games", {**settings, "seeds": 3})
    found = []
    for last in (2, 9):
        configs = [{**config, "seed": seed, "env_args": {**config["env_args"], "seed": seed}} for seed in (0, 1, last)]
        runs: list[Any] = [Recorded() for _ in configs]
        train_together(configs, runs, get_logger())
        found.append([run.logged for run in runs])
    assert len(found[0][0]) > 1000
    assert found[0][:2] == found[1][:2]
    assert found[0][2] != found[1][2]


def test_reports_see_a_run_of_each_seed(tmp_path):
    train(tmp_path / "results", "vdn", "matrix_games", seeds=3, seed=7)
    runs, unreadable = read_folders([str(tmp_path / "results")])
    assert not unreadable
    assert [run.config["seed"] for run in runs] == [7, 8, 9]
    assert {run.status for run in runs} == {"complete"}
    assert all(len(run.metrics["test_return_mean"][0]) == 4 for run in runs)


def test_every_record_says_how_the_run_ended(tmp_path):
    """The rewards of stag hunt are too large to be squared, for all seeds."""
    options = [f"{key}={value}" for key, value in {**SETTINGS, **ENVS["stag_hunt"], "seeds": 2}.items()]
    options += ["env_args.reward=1e38", "env_args.punishment=-1e38", "env_args.catchers=1", "epsilon_finish=1.0"]
    assert run_main("--config=iql", "--env-config=stag_hunt", "with", *options) == 1
    runs, _ = read_folders(["results"])
    assert [run.status for run in runs] == ["failed", "failed"]


def test_a_run_that_is_asked_to_stop_keeps_its_models(tmp_path, capsys):
    options = [f"{key}={value}" for key, value in {**SETTINGS, "seeds": 2, "max_hours": 1e-9}.items()]
    assert run_main("--config=iql", "--env-config=matrix_games", "with", *options) == 75
    assert "Stopped at step 8" in capsys.readouterr().out
    runs, _ = read_folders(["results"])
    assert [run.status for run in runs] == ["stopped", "stopped"]
    assert len(list(Path("results/models").glob("*/*/agent.th"))) == 2
    assert not list(Path("results/checkpoints").iterdir())


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["--config=qmix", "--env-config=matrix_games", "runner=episode", "batch_size_run=1"], "runner"),
        (["--config=qmix", "--env-config=gymma", "env_args.key=x"], "env"),
        (["--config=mappo", "--env-config=matrix_games"], "learner"),
        (["--config=dcg", "--env-config=matrix_games"], "learner"),
        (["--config=cfcql", "--env-config=matrix_games"], "behaviour.source"),
        (["--config=qcgraph_qmix", "--env-config=matrix_games"], "learner"),
        (["--config=qmix", "--env-config=matrix_games", "agent=my.module:Agent"], "agent"),
        (["--config=qmix", "--env-config=matrix_games", "offline=True", "dataset=x"], "offline"),
        (["--config=qmix", "--env-config=matrix_games", "precision=bf16"], "precision"),
        (["--config=qmix", "--env-config=matrix_games", "compile=True"], "compile"),
        (["--config=qmix", "--env-config=matrix_games", "resume=auto"], "resume"),
        (["--config=qmix", "--env-config=matrix_games", "checkpoint_path=x"], "checkpoint_path"),
        (["--config=qmix", "--env-config=matrix_games", "save_dataset=x"], "save_dataset"),
    ],
)
def test_what_cannot_be_batched_is_refused(options, key, capsys):
    assert run_main(*options[:2], "with", "seeds=4", *options[2:]) == 2
    said = error_line(capsys)
    assert "seeds=4 (command line)" in said
    assert f" {key}=" in said
    assert "src/sweep.py" in said
