"""Classes written for PyMARL run as they are, named on the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import (
    SIZES,
    error_line,
    make_args,
    make_learner,
    random_batch,
    read_run,
    run_main,
    step_by_step,
)

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "tests/plugins"
LEARNER = "learner=my_pymarl_learner:CautiousLearner"
SMALL = ("rnn_hidden_dim=16", "batch_size=8", "use_cuda=False", "plot=False", "test_nepisode=4", "test_interval=200")


@pytest.fixture(autouse=True)
def _beside_the_plugins(monkeypatch):
    """The command line runs in the plug-ins' folder, where it finds them without further ado."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(PLUGINS)


def train(results, *overrides, config="qmix", env="matrix_games"):
    code = run_main(
        f"--config={config}", f"--env-config={env}", "with", *SMALL, f"local_results_path={results}", *overrides
    )
    assert code == 0
    return read_run(results)


def test_pymarl_learner_from_the_shell(tmp_path):
    command = [sys.executable, str(ROOT / "src/main.py"), "--config=qmix", "--env-config=matrix_games", "with", LEARNER]
    options = [*SMALL, "t_max=200", "plugin.caution=0.5", "save_model=True", f"local_results_path={tmp_path}"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *options], cwd=PLUGINS, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert read_run(tmp_path)["status"] == "COMPLETED"
    (model,) = (tmp_path / "models").glob("*/*")
    assert {path.name for path in model.iterdir()} == {"agent.th", "mixer.th", "opt.th", "model.json"}


@pytest.mark.parametrize("mixer", ["None", "vdn", "qmix"])
def test_a_key_of_ones_own_reaches_the_learner(mixer, tmp_path):
    """The learner's loss is its TD loss plus `caution` times a statistic that it logs, so the key shows."""
    runs = {}
    for caution in (0.0, 4.0):
        options = (LEARNER, "t_max=40", f"mixer={mixer}", "learner_log_interval=1000", f"plugin.caution={caution}")
        run = train(tmp_path / str(caution), *options)
        runs[caution] = {name: run["metrics"][name]["values"][0] for name in ("loss", "caution")}
    assert runs[0.0]["caution"] == runs[4.0]["caution"]  # logged at the first update: the same weights and data
    assert runs[4.0]["loss"] - runs[0.0]["loss"] == pytest.approx(4 * runs[0.0]["caution"], rel=1e-5)


def test_a_missing_key_of_ones_own_says_where_it_belongs():
    args = make_args("qmix", plugin={"caution": 0.5})
    assert args.caution == args.plugin["caution"] == 0.5
    with pytest.raises(AttributeError, match="below plugin"):
        args.zzz  # noqa: B018


def test_environment_of_pymarls_with_a_file_of_its_own(tmp_path):
    run = train(tmp_path, env="corridor.yaml")
    assert run["status"] == "COMPLETED"
    assert run["config"]["env_args"] == {"length": 4, "n_agents": 2, "seed": 0}
    assert {"battle_won_mean", "test_battle_won_mean", "test_ep_length_mean", "loss"} <= run["metrics"].keys()
    assert max(run["metrics"]["ep_length_mean"]["values"]) <= 8


def test_environment_of_pymarls_in_a_batch(tmp_path):
    run = train(tmp_path, "runner=vector", "batch_size_run=3", "env_args.length=3", env="corridor.yaml")
    assert run["status"] == "COMPLETED"
    assert max(run["metrics"]["ep_length_mean"]["values"]) <= 6


def test_everything_of_pymarls_at_once(tmp_path):
    """Learner, controller, environment and runner are all written for PyMARL; no part of this project's in between."""
    parts = (LEARNER, "mac=my_pymarl_parts:TwoLooksMAC", "runner=my_pymarl_parts:PlainRunner", "plugin.caution=0.1")
    run = train(tmp_path, *parts, "save_model=True", env="corridor.yaml")
    assert run["status"] == "COMPLETED"
    assert {"loss", "caution", "test_return_mean"} <= run["metrics"].keys()
    (token,) = (tmp_path / "models").iterdir()
    code = run_main(
        "--config=qmix",
        "--env-config=corridor.yaml",
        "with",
        *SMALL,
        *parts,
        "evaluate=True",
        f"checkpoint_path={token}",
        f"local_results_path={tmp_path}",
    )
    assert code == 0
    assert "return_mean" in read_run(tmp_path, 2)["cout"]


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_a_replay_of_small_types_shows_what_the_learner_knows(dtype, tmp_path):
    """The corridor's observations are 0 and 1, which all types hold."""
    parts = (LEARNER, "mac=my_pymarl_parts:TwoLooksMAC", "learner_log_interval=1", "plugin.caution=0.1", "t_max=100")
    runs = [train(tmp_path / name, *parts, f"replay_dtype={name}", env="corridor.yaml") for name in ("float32", dtype)]
    plain, small = ({key: metric["values"] for key, metric in run["metrics"].items()} for run in runs)
    assert len(plain["loss"]) > 1
    assert small == plain


@pytest.mark.parametrize("config", ["qmix", "greedy_qmix"])
def test_controller_and_mixer_with_the_learners_of_this_project(config, tmp_path):
    parts = ("mac=my_pymarl_parts:TwoLooksMAC", "mixer=my_pymarl_parts:WeighedSum", "t_max=200")
    run = train(tmp_path, *parts, config=config, env="corridor.yaml")
    assert run["status"] == "COMPLETED"
    assert all(value == value for value in run["metrics"]["loss"]["values"])


@pytest.mark.parametrize("same_size", [True, False])
def test_the_learner_sees_the_inputs_that_the_controller_builds(same_size, monkeypatch):
    """A controller of PyMARL's overrides `_build_inputs`; training must use what acting uses."""
    monkeypatch.syspath_prepend(PLUGINS)
    from my_pymarl_parts import TwoLooksMAC

    class ReversedMAC(TwoLooksMAC.__base__):
        """Inputs of the usual size, so that nothing but the values could tell."""

        def _build_inputs(self, batch, t):
            return super()._build_inputs(batch, t).flip(1)

    learner = make_learner(make_args("qmix"), mac_class=ReversedMAC if same_size else TwoLooksMAC)
    batch = random_batch(learner.args, seed=1)
    q, _ = learner.joint_values(batch)
    torch.testing.assert_close(q, step_by_step(learner.mac, batch).detach(), rtol=1e-4, atol=1e-5)
    assert q.shape[2:] == (SIZES["n_agents"], SIZES["n_actions"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner=no_such_file:Learner", "no module named 'no_such_file'"),
        ("learner=my_pymarl_learner:Missing", "has no class 'Missing'"),
        ("learner=q_lerner", "did you mean 'q_learner'?"),
        ("mac=my_pymarl_parts:Missing", "has no class 'Missing'"),
        ("env=no_such_file:Env", "no module named 'no_such_file'"),
        ("runner=no_such_file:Runner", "no module named 'no_such_file'"),
        ("mixer=my_pymarl_parts:Missing", "has no class 'Missing'"),
        ("agent=my_pymarl_parts:Missing", "has no class 'Missing'"),
        ("action_selector=greedy", "available: epsilon_greedy, multinomial"),
    ],
)
def test_a_plugin_that_is_not_there(override, message, tmp_path, capsys):
    code = run_main("--config=qmix", "--env-config=corridor.yaml", "with", f"local_results_path={tmp_path}", override)
    line = error_line(capsys)
    assert code == 2
    assert line.startswith(override.partition("=")[0] + "=")
    assert message in line


def test_pymarl_runner_costs_checkpoints_and_not_the_run(tmp_path, capsys):
    run = train(tmp_path, "runner=my_pymarl_parts:PlainRunner", "checkpoint_interval=0.001", env="corridor.yaml")
    assert run["status"] == "COMPLETED"
    assert capsys.readouterr().out.count("runner=my_pymarl_parts:PlainRunner has no state_dict") == 1


def test_pymarl_learner_and_controller_are_in_checkpoints(tmp_path, capsys):
    options = (LEARNER, "plugin.caution=0.1", "t_max=200", "checkpoint_interval=0.001")
    train(tmp_path, *options)
    out = capsys.readouterr().out
    assert "Checkpoint of step" in out
    assert "no checkpoints" not in out
