"""Every algorithm trains briefly on every environment whose packages are installed."""

import importlib.util
import math
import os
import sys

import pytest
from helpers import fake_sc2, read_run, run_main

from config.schema import config_files, lineage, read_yaml

ALGS = config_files("algs")
TINY = {
    "rnn_hidden_dim": 16,
    "mixing_embed_dim": 8,
    "hypernet_embed": 8,
    "batch_size": 4,
    "buffer_size": 64,
    "test_nepisode": 2,
    "use_cuda": False,
    "plot": False,
    "target_update_interval": None,
    "target_update_tau": 0.1,
}
# Each environment: the packages that it needs, and settings with which a few episodes take a moment.
ENVS = {
    "matrix_games": ((), {"t_max": 100}),
    # The game with most parts: two steps, and a hidden variable in the state.
    "greed_games": ((), {"t_max": 200, "env_args.game": "mirage", "updates_per_episode": 0.1}),
    "stag_hunt": ((), {"t_max": 400, "batch_size_run": 8, "env_args.time_limit": 12}),
    "gymma": (("gymnasium", "lbforaging"), {"t_max": 120, "batch_size_run": 4, "env_args.time_limit": 8}),
    # As many test battles as training battles: a batch of another size would be compiled anew.
    "smax": (("jax", "jaxmarl"), {"t_max": 300, "batch_size_run": 8, "test_nepisode": 8, "env_args.time_limit": 12}),
    # On the stand-in game, unless the real one is there.
    "sc2": (("smac",), {"t_max": 250}),
    "sc2_gen_terran": (("smacv2",), {"t_max": 500}),
}


@pytest.fixture(autouse=True)
def _own_import_path(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)


def test_every_environment_has_settings_here():
    assert sorted(ENVS) == sorted(
        name for name, path in config_files("envs").items() if "extends" not in read_yaml(path)
    )
    assert {"iql", "vdn", "qmix", "greedy_qmix"} <= set(ALGS)


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("alg", ALGS)
def test_it_trains(alg, env, tmp_path, monkeypatch):
    packages, settings = ENVS[env]
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed")
    if env.startswith("sc2") and "SC2PATH" not in os.environ:
        folder = fake_sc2("install").install(tmp_path / "StarCraftII", maps=("3m", "32x32_flat"))
        monkeypatch.setenv("SC2PATH", str(folder))
    intervals = {f"{name}interval": 1 for name in ("log_", "runner_log_", "learner_log_")} | {"test_interval": 60}
    sets_pace = any("updates_per_episode" in read_yaml(path) for path in lineage("config", ALGS[alg]))
    often = {"updates_per_episode": 1.0} if sets_pace else {}
    options = [f"{key}={value}" for key, value in {**TINY, **intervals, **often, **settings}.items()]
    code = run_main(f"--config={alg}", f"--env-config={env}", "with", *options, f"local_results_path={tmp_path}")
    assert code == 0
    run = read_run(tmp_path)
    assert run["status"] == "COMPLETED"
    metrics = run["metrics"]
    for name, metric in metrics.items():
        assert all(math.isfinite(value) for value in metric["values"]), name
    assert max(metrics["updates"]["values"]) >= 4
    assert {"return_mean", "test_return_mean", "ep_length_mean", "epsilon"} <= metrics.keys()
    names = {"loss", "grad_norm"} if "loss" in metrics else {"critic_loss", "critic_grad_norm", "agent_grad_norm"}
    for name in names:
        assert len(set(metrics[name]["values"])) >= 4, name
    # What was printed is in the record, to the end.
    assert "test return" in run["cout"]
    assert "sacred record" in run["cout"]


@pytest.mark.parametrize(
    ("alg", "env", "options"),
    [
        ("qmix", "matrix_games", {"share": "none"}),
        ("greedy_lica", "matrix_games", {"share": "groups", "share_groups": "[0,1]", "updates_per_episode": 1.0}),
        # The environment says which agents are alike.
        (
            "greedy_qmix",
            "gymma",
            {"share": "groups", "env_args.key": "pettingzoo:mpe2.simple_speaker_listener_v4", "runner": "parallel"},
        ),
    ],
)
def test_agents_with_parameters_of_their_own_train_and_are_evaluated(alg, env, options, tmp_path, capsys):
    packages, settings = ENVS[env]
    if missing := [name for name in (*packages, "mpe2") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed")
    settings = {**TINY, **settings, **options, "save_model": True, "local_results_path": tmp_path}
    given = (f"--config={alg}", f"--env-config={env}", "with", *(f"{key}={value}" for key, value in settings.items()))
    assert run_main(*given) == 0
    assert read_run(tmp_path)["status"] == "COMPLETED"
    (token,) = (tmp_path / "models").iterdir()
    assert run_main(*given, f"checkpoint_path={token}", "evaluate=True") == 0
    assert run_main(*given, f"checkpoint_path={token}", "evaluate=True", "share=all", "share_groups=None") == 2
    assert "agent_groups [0, 1] (this run: None)" in capsys.readouterr().err
