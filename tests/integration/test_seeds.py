"""Several seeds at once give what each of them gives alone."""

import json

import pytest
import torch
from helpers import run_main
from torch.testing import assert_close

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
    "stag_hunt": {"env_args.size": 3, "env_args.n_agents": 2, "env_args.n_stags": 1, "env_args.time_limit": 6},
}


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def train(results, alg, env, **changes):
    """The records of all runs by seed: weights by file and name, metrics, configuration and run."""
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


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("alg", ["qmix", "vdn", "iql", "greedy_qmix"])
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


def test_a_seed_does_not_depend_on_the_others(tmp_path):
    two = train(tmp_path / "two", "greedy_qmix", "stag_hunt", seed=3, seeds=2)
    three = train(tmp_path / "three", "greedy_qmix", "stag_hunt", seed=3, seeds=3)
    for seed in two:
        assert_close(two[seed]["weights"], three[seed]["weights"], rtol=1e-3, atol=1e-5)
