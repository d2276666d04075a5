"""One seed, one result: two runs of the command line give the same weights, bit for bit, on the CPU."""

import importlib.util
import sys

import pytest
import torch
from helpers import differs, read_run, run_main

SETTINGS = {
    "rnn_hidden_dim": 16,
    "mixing_embed_dim": 8,
    "hypernet_embed": 8,
    "batch_size": 4,
    "buffer_size": 64,
    "test_nepisode": 2,
    "target_update_interval": None,
    "target_update_tau": 0.1,
    "use_cuda": False,
    "plot": False,
    "save_model": True,
}
ENVS = {
    "matrix_games": {"t_max": 120, "test_interval": 50},
    "gymma": {"t_max": 160, "batch_size_run": 4, "env_args.time_limit": 8, "test_interval": 50},
    # The sizes of test_every_config, so that JAX compiles once for both.
    "smax": {"t_max": 200, "batch_size_run": 8, "test_nepisode": 8, "env_args.time_limit": 12, "test_interval": 150},
}


PACKAGES = {"gymma": "lbforaging", "smax": "jaxmarl"}


def needs(env):
    if env in PACKAGES and importlib.util.find_spec(PACKAGES[env]) is None:
        pytest.skip(f"{PACKAGES[env]} is not installed")


@pytest.fixture(autouse=True)
def _own_import_path(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)


def train(alg, env, seed, results, **changes):
    """The final weights of a run and its training returns."""
    settings = {
        **SETTINGS,
        **ENVS[env],
        "seed": seed,
        "runner_log_interval": 1,
        "local_results_path": results,
        **changes,
    }
    options = [f"{key}={value}" for key, value in settings.items()]
    assert run_main(f"--config={alg}", f"--env-config={env}", "with", *options) == 0
    (model,) = (results / "models").glob("*/*")
    weights = {}
    for path in (model / f"{name}.th" for name in ("agent", "critic", "mixer", "target_agent", "target_critic")):
        if path.exists():
            for key, value in torch.load(path, weights_only=True).items():
                weights[f"{path.name}:{key}"] = value
    return weights, read_run(results)["metrics"]["return_mean"]["values"]


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("alg", ["qmix", "greedy_qmix", "greedy_lica"])
def test_same_seed_same_weights(alg, env, tmp_path):
    needs(env)
    often = {"updates_per_episode": 1.0} if alg == "greedy_lica" else {}
    first, returns = train(alg, env, 3, tmp_path / "first", **often)
    again, same_returns = train(alg, env, 3, tmp_path / "again", **often)
    other, _ = train(alg, env, 4, tmp_path / "other", **often)
    assert returns == same_returns
    assert not differs(first, again)
    assert differs(first, other)


@pytest.mark.parametrize("env", ["matrix_games", "gymma"])
def test_evaluations_do_not_change_what_is_learned(env, tmp_path):
    needs(env)
    often, _ = train("qmix", env, 3, tmp_path / "often", test_interval=20, test_nepisode=3)
    rarely, _ = train("qmix", env, 3, tmp_path / "rarely", test_interval=10**6)
    assert not differs(often, rarely)
