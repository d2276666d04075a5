"""The command line from end to end: what a run leaves behind, how it ends, and what it says about bad input."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import error_line, read_run, run_main

ROOT = Path(__file__).resolve().parents[2]
MAIN = ROOT / "src/main.py"
PLUGINS = ROOT / "tests/plugins"
SMALL = ("rnn_hidden_dim=16", "batch_size=8", "use_cuda=False", "test_nepisode=4")
GAME = ("--config=qmix", "--env-config=matrix_games", "with", *SMALL)
PYMARL_NAMES = {  # the names under which PyMARL logs runners and Q learners
    *("return_mean", "return_std", "ep_length_mean", "test_return_mean", "test_return_std", "test_ep_length_mean"),
    *("epsilon", "episode", "loss", "grad_norm", "td_error_abs", "q_taken_mean", "target_mean"),
}


@pytest.fixture(autouse=True)
def _own_import_path(monkeypatch, tmp_path):
    """`main` appends the current folder to the import path; here, an empty one."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)


def intervals(steps):
    return [
        f"{name}={steps}" for name in ("test_interval", "log_interval", "runner_log_interval", "learner_log_interval")
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The results of a short training of QMIX on the two-step game, and what it printed."""
    results = tmp_path_factory.mktemp("trained")
    command = [sys.executable, str(MAIN), *GAME, *intervals(100), f"local_results_path={results}"]
    command += ["t_max=600", "use_tensorboard=True", "save_model=True", "save_model_interval=200"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=results, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return results, done


def token_of(results):
    (token,) = (results / "models").iterdir()
    return token


# What a run leaves behind


def test_nothing_on_stderr_and_the_results_on_stdout(trained):
    results, done = trained
    assert done.stderr == ""
    for part in (
        "qmix on matrix_games two_step: 2 agents, 2 actions",
        "Replay: 5000 episodes",
        "1 update(s) of 8 episodes per collected episode; 8 environment(s); device cpu",
        "test return",  # a column of the progress table
        "state 2B: learned values",
        str(results / "sacred/1"),
        str(results / "plots"),
        str(token_of(results)),
    ):
        assert part in done.stdout, part
    table = dict(
        line.rsplit(maxsplit=1) for line in done.stdout.splitlines() if line.startswith(("return_", "test ep"))
    )
    assert table["test episodes"] == "4"
    assert float(table["return_mean"]) in (0, 1, 7, 8)


def test_sacred_records_the_run(trained):
    results, _ = trained
    run = read_run(results)
    assert run["status"] == "COMPLETED"
    assert run["config"]["t_max"] == 600
    assert run["config"]["env_args"] == {"game": "two_step", "k": -100, "repeats": None, "seed": 0}
    assert run["metrics"].keys() >= PYMARL_NAMES
    for name, metric in run["metrics"].items():
        assert metric["steps"] == sorted(metric["steps"]), name
        assert all(isinstance(value, float) and abs(value) < 1e6 for value in metric["values"]), name
    assert run["metrics"]["test_return_mean"]["steps"][-1] == 608  # the first multiple of 16 steps above t_max
    assert "state 2B: learned values" in run["cout"]
    assert json.loads((results / "sacred/1/run.json").read_text())["result"]["test_ep_length_mean"] == 2


def test_intervals_are_kept(trained):
    metrics = read_run(trained[0])["metrics"]
    for name in ("test_return_mean", "return_mean", "loss", "episode"):
        steps = metrics[name]["steps"]
        gaps = [later - earlier for earlier, later in pairwise(steps)]
        assert all(gap >= 100 for gap in gaps[:-1]), (name, steps)  # the last test comes with the end
        assert all(gap <= 112 for gap in gaps), (name, steps)
        assert len(steps) >= 6, name


def test_updates_per_episode_are_counted_in_episodes_whatever_the_number_of_environments(tmp_path):
    for ratio, n_envs in ((0.25, 8), (2.0, 3)):
        results = tmp_path / str(n_envs)
        options = ("t_max=300", f"updates_per_episode={ratio}", f"batch_size_run={n_envs}", "plot=False")
        assert run_main(*GAME, *intervals(1), *options, f"local_results_path={results}") == 0
        metrics = read_run(results)["metrics"]
        before_first = 8 // n_envs * n_envs if 8 % n_envs == 0 else (8 // n_envs + 1) * n_envs
        for episodes, updates in zip(metrics["episode"]["values"], metrics["updates"]["values"], strict=True):
            sampled = max(0, episodes - (before_first - n_envs))  # episodes since the replay holds a batch
            assert updates == int(ratio * sampled)
        assert episodes > 100


def test_models_lie_as_pymarls_do(trained):
    token = token_of(trained[0])
    assert re.fullmatch(r"qmix__\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", token.name)
    steps = sorted(int(path.name) for path in token.iterdir())
    assert steps == [208, 416, 608]
    for step in steps:
        files = {path.name for path in (token / str(step)).iterdir()}
        assert {"agent.th", "mixer.th", "opt.th"} <= files
        description = json.loads((token / str(step) / "model.json").read_text())
        assert (description["learner"], description["env"], description["map"]) == (
            "q_learner",
            "matrix_games",
            "two_step",
        )


def test_tensorboard_has_pymarls_names(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (trained[0] / "tb_logs").iterdir()
    assert folder.name == token_of(trained[0]).name
    events = EventAccumulator(str(folder))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= PYMARL_NAMES
    metric = read_run(trained[0])["metrics"]["loss"]
    scalars = events.Scalars("loss")
    assert [event.step for event in scalars] == metric["steps"]
    assert [event.value for event in scalars] == pytest.approx(metric["values"])


def test_the_picture_is_drawn(trained):
    (picture,) = (trained[0] / "plots").iterdir()
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (trained[0] / "sacred/1/learning_curve.png").read_bytes() == picture.read_bytes()


def test_what_is_switched_off_is_not_written(tmp_path):
    assert run_main(*GAME, "t_max=50", "plot=False", f"local_results_path={tmp_path}") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"sacred", "checkpoints"}


# Sacred's own options


def test_sacreds_options_work(tmp_path, capsys):
    results = f"local_results_path={tmp_path}"
    assert run_main("print_config", *GAME, results, "lr=0.25") == 0
    assert "lr = 0.25" in capsys.readouterr().out
    assert not (tmp_path / "sacred").exists()
    assert run_main(*GAME, results, "t_max=20", "plot=False", "-u") == 0
    assert not (tmp_path / "sacred").exists()  # unobserved
    assert run_main(*GAME, results, "t_max=20", "plot=False", "--name=mine", "-F", str(tmp_path / "more")) == 0
    run = json.loads((tmp_path / "more/1/run.json").read_text())
    assert run["experiment"]["name"] == "mine"


def test_help_names_configs_and_examples(capsys):
    assert run_main("--help") == 0
    out = capsys.readouterr().out
    for part in ("greedy_qmix", "iql", "vdn", "qmix", "smax", "matrix_games", "gymma", "sc2", "docs/configuration.md"):
        assert part in out
    assert "python src/main.py --config=greedy_qmix --env-config=smax" in out


# Loading models


def load_options(trained, tmp_path, *options):
    return (f"checkpoint_path={token_of(trained[0])}", f"local_results_path={tmp_path}", *options)


def test_evaluation_prints_a_table(trained, tmp_path, capsys):
    assert run_main(*GAME, *load_options(trained, tmp_path, "evaluate=True", "test_nepisode=5")) == 0
    out = capsys.readouterr().out
    assert "Evaluation of qmix on matrix_games two_step" in out
    assert "Loaded the model of step 608" in out
    table = dict(line.split(maxsplit=1) for line in out.splitlines() if line.startswith(("episodes ", "return_mean")))
    assert table["episodes"] == "5"
    trained_return = read_run(trained[0])["metrics"]["test_return_mean"]["values"][-1]
    assert float(table["return_mean"]) == pytest.approx(trained_return)  # the policy of the end of training
    run = read_run(tmp_path)
    assert run["status"] == "COMPLETED"
    assert "loss" not in run["metrics"]
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(("wanted", "found"), [(0, 608), (1, 208), (300, 208), (320, 416), (10**6, 608)])
def test_the_model_nearest_to_the_step_is_loaded(wanted, found, trained, tmp_path, capsys):
    assert run_main(*GAME, *load_options(trained, tmp_path, "evaluate=True", f"load_step={wanted}")) == 0
    assert f"Loaded the model of step {found} " in capsys.readouterr().out


def test_training_goes_on_from_a_model(trained, tmp_path):
    assert run_main(*GAME, *load_options(trained, tmp_path, "t_max=700", "plot=False", "save_model=True")) == 0
    (model,) = (tmp_path / "models").glob("*/*")
    assert model.name == "704"
    assert min(read_run(tmp_path)["metrics"]["loss"]["steps"]) > 608


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--config=qmix", "env_args.game=climbing"), ("'two_step'", "this run: 'climbing'", "n_actions 2")),
        (("--config=vdn",), ("mixer 'qmix' (this run: 'vdn')")),
        (("--config=greedy_qmix",), ("learner 'q_learner' (this run: 'greedy_q_learner')",)),
        (("--config=qmix", "rnn_hidden_dim=8"), ("does not fit", "size mismatch")),
    ],
)
def test_a_model_of_another_kind_is_refused(options, parts, trained, tmp_path, capsys):
    config, *overrides = options
    small = [option for option in SMALL if option.partition("=")[0] not in str(overrides)]
    loading = load_options(trained, tmp_path, "evaluate=True", *overrides)
    assert run_main(config, "--env-config=matrix_games", "with", *small, *loading) == 2
    line = error_line(capsys)
    assert line.startswith("checkpoint_path: ")
    for part in parts:
        assert part in line


def test_missing_checkpoints(trained, tmp_path, capsys):
    token = token_of(trained[0])
    where = (f"local_results_path={tmp_path}", "evaluate=True")
    assert run_main(*GAME, f"checkpoint_path={token.parent}/nothing", *where) == 2
    line = error_line(capsys)
    assert "no such folder" in line
    assert token.name in line  # what is there instead
    assert run_main(*GAME, f"checkpoint_path={token}/608", *where) == 2
    assert "holds no models" in error_line(capsys)
    assert run_main(*GAME, "evaluate=True") == 2
    assert "checkpoint_path" in error_line(capsys)


# Bad input: one line, exit code 2

SMAX = ("--config=qmix", "--env-config=smax", "with")
GYMMA = ("--config=qmix", "--env-config=gymma", "with")
BAD = {
    "no config": (("--env-config=smax",), ("--config is missing", "greedy_qmix, greedy_qmix_cert")),
    "no value": (("--config",), ("--config needs a value",)),
    "config": (("--config=qmx", "--env-config=smax"), ("--config=qmx", "did you mean qmix?", "greedy_qmix")),
    "env": (("--config=qmix", "--env-config=smx"), ("--env-config=smx", "did you mean smax?", "matrix_games")),
    "no with": (("--config=qmix", "--env-config=smax", "seed=1"), ("'seed=1'", "with seed=1")),
    "no override": ((*SMAX, "seed"), ("'seed'", "key=value")),
    "key": ((*SMAX, "epsilon_strat=1.0"), ("epsilon_strat=1.0", "command line", "did you mean epsilon_start?")),
    "key of a block": (
        ("--config=greedy_qmix", "--env-config=smax", "with", "gate.mod=hard"),
        ("gate.mod='hard'", "did you mean gate.mode?"),
    ),
    "key of env_args": ((*SMAX, "env_args.map_nam=3m"), ("env_args.map_nam='3m'", "did you mean env_args.map_name?")),
    "type": ((*SMAX, "batch_size=many"), ("batch_size='many'", "an integer >= 1")),
    "range": ((*SMAX, "gamma=1.5"), ("gamma=1.5", "in [0, 1)")),
    "value of a block": (
        ("--config=greedy_qmix", "--env-config=smax", "with", "gate.mode=soft"),
        ("gate.mode='soft'", "direct, hard, lagrange, fixed, none"),
    ),
    "block of another learner": ((*SMAX, "gate.mode=hard"), ("gate.mode='hard'", "no block gate", "greedy_qmix")),
    "contradiction": ((*SMAX, "runner=episode"), ("batch_size_run=1",)),
    "no mixer": (("--config=greedy_qmix", *SMAX[1:], "mixer=None"), ("mixer=None", "mixer=qmix")),
    "game": ((*GAME, "env_args.game=two_steps"), ("env_args.game='two_steps'", "did you mean 'two_step'?", "climbing")),
    "gymnasium id": (
        (*GYMMA, "env_args.key=lbforaging:Foraging-8x8-2p-2f-cop-v3"),
        ("env_args.key='lbforaging:Foraging-8x8-2p-2f-cop-v3'", "did you mean"),
    ),
    "package": ((*GYMMA, "env_args.key=not_installed:Thing-v0"), ("env_args.key='not_installed:Thing-v0'", "install")),
    "learner": ((*GAME, "learner=greedy"), ("learner='greedy'", "greedy_q_learner")),
    "plug-in": ((*GAME, "learner=my_file:MyLearner"), ("learner='my_file:MyLearner'", "no module named 'my_file'")),
    "types": ((*GAME, "share=groups"), ("share=groups", "matrix_games", "share_groups=[0, 1]")),
    "groups": ((*GAME, "share=groups", "share_groups=[0,1,0]"), ("share_groups=[0, 1, 0]", "2 agents")),
    "replay": ((*GAME, "buffer_size=1000000000000"), ("buffer_size=1000000000000", "free", "set buffer_size=")),
    "replay's type": (
        (*GYMMA, "env_args.key=pettingzoo:mpe2.simple_spread_v3", "replay_dtype=uint8"),
        ("replay_dtype=uint8: ", "holds", "set replay_dtype=float32"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_line(name, tmp_path, capsys):
    arguments, parts = BAD[name]
    if "with" in arguments:
        arguments = (*arguments, f"local_results_path={tmp_path}", "use_cuda=False")
    assert run_main(*arguments) == 2
    line = error_line(capsys)
    for part in parts:
        assert part in line, line


def shell(*arguments, **environ):
    return subprocess.run(
        [sys.executable, str(MAIN), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_one_line(text, *parts):
    (line,) = text.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


def test_bad_input_in_a_shell():
    done = shell("--config=greedy_qmix", "--env-config=smax", "with", "env_args.map_nam=3m")
    assert done.returncode == 2
    assert_one_line(done.stderr, "env_args.map_nam='3m'", "did you mean env_args.map_name?")
    assert done.stdout == ""


@pytest.mark.skipif(importlib.util.find_spec("jaxmarl") is None, reason="jaxmarl is not installed")
def test_an_unknown_map_and_streams_that_somebody_put_in_place(tmp_path):
    """Packages that SMAX needs replace Python's streams on import; what sacred or a caller put there must stay."""
    code = f"""
import sys
sys.path.insert(0, {str(MAIN.parent)!r})
sys.stdout, sys.stderr = open("out.txt", "w"), open("err.txt", "w")
from main import main
main(["main.py", *{[*SMAX, "env_args.map_name=3mm", "use_cuda=False"]!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == ""
    assert_one_line((tmp_path / "err.txt").read_text(), "env_args.map_name='3mm'", "did you mean '3m'?", "27m_vs_30m")
    assert "Failed after" in (tmp_path / "out.txt").read_text()
    assert read_run(tmp_path / "results")["status"] == "FAILED"


def test_starcraft_without_the_game(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SC2PATH", str(tmp_path / "StarCraftII"))
    code = run_main("--config=qmix", "--env-config=sc2", "with", f"local_results_path={tmp_path}", "use_cuda=False")
    line = error_line(capsys)
    assert code == 2
    for part in (str(tmp_path / "StarCraftII"), "install_sc2.sh", "--env-config=smax"):
        assert part in line


def test_without_cuda(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = (*(option for option in GAME if not option.startswith("use_cuda")), f"local_results_path={tmp_path}")
    assert run_main(*options, "require_cuda=True") == 2
    line = error_line(capsys)
    assert line.startswith("require_cuda=True: ")
    assert "require_cuda=False" in line
    assert read_run(tmp_path)["status"] == "FAILED"
    assert run_main(*options, "t_max=20", "plot=False") == 0
    assert "No CUDA device: training on the CPU" in capsys.readouterr().out


# How runs end


@pytest.fixture
def beside_the_plugins(monkeypatch):
    monkeypatch.chdir(PLUGINS)


@pytest.mark.usefixtures("beside_the_plugins")
def test_a_learner_that_raises_fails_the_run(tmp_path, capsys):
    assert run_main(*GAME, "learner=faulty:RaisingLearner", f"local_results_path={tmp_path}") == 1
    assert "the third update went wrong" in capsys.readouterr().err
    assert read_run(tmp_path)["status"] == "FAILED"


@pytest.mark.usefixtures("beside_the_plugins")
def test_an_interrupt_saves_the_model_and_says_where(tmp_path, capsys):
    assert run_main(*GAME, "learner=faulty:InterruptedLearner", f"local_results_path={tmp_path}") == 130
    (model,) = (tmp_path / "models").glob("*/*")
    assert "agent.th" in {path.name for path in model.iterdir()}
    out = capsys.readouterr().out
    assert f"Interrupted at step {model.name}" in out
    assert str(model) in out
    assert read_run(tmp_path)["status"] == "INTERRUPTED"


def test_out_of_memory_says_what_to_lower(tmp_path, capsys):
    assert run_main(*GAME, "learner=faulty:GreedyForMemoryLearner", f"local_results_path={tmp_path}") == 1
    line = error_line(capsys)
    assert "no memory is left on cpu" in line
    assert "lower batch_size (8), buffer_size (5000) or batch_size_run (8)" in line
    assert read_run(tmp_path)["status"] == "FAILED"


@pytest.mark.usefixtures("_heeded_interrupts")
def test_control_c(tmp_path):
    """The signal itself, in a process of its own, while it trains."""
    process = subprocess.Popen(
        [sys.executable, str(MAIN), *GAME, "t_max=100000000", "log_interval=100", f"local_results_path={tmp_path}"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        rows, deadline = 0, time.monotonic() + 60
        while rows < 3:
            assert time.monotonic() < deadline
            line = process.stdout.readline()
            assert line, process.stderr.read()
            rows += bool(re.match(r" +[\d,]+ +\d+% ", line))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err == ""
    (model,) = (tmp_path / "models").glob("*/*")
    assert {"agent.th", "mixer.th", "opt.th"} <= {path.name for path in model.iterdir()}
    assert re.search(r"Stopped at step \d+ \(SIGINT\); .*resume=", out)
    assert str(model) in out
    assert read_run(tmp_path)["status"] == "INTERRUPTED"


def assert_stopped_by(term, tmp_path, capsys):
    line = error_line(capsys)
    assert "training stopped at step" in line
    assert f"{term} is nan" in line
    (model,) = (tmp_path / "models").glob("*/*")
    assert str(model / "nonfinite_batch.pt") in line
    state = torch.load(model / "agent.th", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state.values())
    assert read_run(tmp_path)["status"] == "FAILED"
    return torch.load(model / "nonfinite_batch.pt", weights_only=True), model


@pytest.mark.usefixtures("beside_the_plugins")
@pytest.mark.parametrize(("config", "term"), [("qmix", "td_loss"), ("greedy_qmix", "td_loss_independent")])
def test_a_batch_that_holds_no_numbers_stops_the_run(config, term, tmp_path, capsys):
    arguments = (f"--config={config}", "--env-config=corridor.yaml", "with", *SMALL, "runner=faulty:NanRunner")
    assert run_main(*arguments, f"local_results_path={tmp_path}") == 1
    batch, model = assert_stopped_by(term, tmp_path, capsys)
    assert batch["reward"].isnan().any()
    assert set(batch) >= {"obs", "state", "actions", "avail_actions", "reward", "terminated", "filled"}
    if config == "greedy_qmix":
        state = torch.load(model / "statistics.th", weights_only=True)
        for name in ("gap_ema", "target_std", "reward_std", "log_multipliers", "weights"):
            assert state[name] is None or torch.isfinite(state[name]).all(), name


@pytest.mark.usefixtures("beside_the_plugins")
@pytest.mark.parametrize("runner", ["episode", "vector", "parallel"])
def test_an_environment_that_pays_no_number_stops_the_run(runner, tmp_path, capsys):
    arguments = ("--config=qmix", "--env-config=corridor.yaml", "with", *SMALL, "env=faulty:NanEnv", f"runner={runner}")
    assert run_main(*arguments, "env_crash_limit=1", f"local_results_path={tmp_path}") == 1
    line = capsys.readouterr().err.splitlines()[0]
    assert "training stopped at step" in line
    assert "of episode 10: the reward is nan (float), and no finite number" in line
    (model,) = (tmp_path / "models").glob("*/*")
    assert f"the model is saved in {model}" in line


@pytest.mark.usefixtures("beside_the_plugins")
def test_a_term_of_a_plugin_that_is_no_number_stops_the_run(tmp_path, capsys):
    assert run_main(*GAME, "learner=faulty:NanLearner", f"local_results_path={tmp_path}") == 1
    assert_stopped_by("entropy", tmp_path, capsys)


@pytest.mark.usefixtures("beside_the_plugins")
def test_an_update_that_is_not_finite_can_be_left_out(tmp_path, capsys):
    game = (*GAME, "learner=faulty:NanLearner", "log_interval=10", "t_max=200")
    assert run_main(*game, "on_nonfinite=skip", f"local_results_path={tmp_path}") == 0
    out = capsys.readouterr()
    assert "Update left out at step" in out.out + out.err
    record = read_run(tmp_path)
    assert record["status"] == "COMPLETED"
    skipped, made = (record["metrics"][name]["values"][-1] for name in ("nonfinite_updates", "updates"))
    assert skipped == 1
    (kept,) = (tmp_path / "models").glob("*/nonfinite/*")
    assert kept.name == "1"
    batch = torch.load(kept / "nonfinite_batch.pt", weights_only=True)
    assert torch.isfinite(batch["reward"]).all()  # the learner's own term was none
    assert run_main(*game, f"checkpoint_path={kept.parent}", "evaluate=True", f"local_results_path={tmp_path}") == 0
    plain = tmp_path / "plain"
    assert run_main(*game, "learner=q_learner", f"local_results_path={plain}") == 0
    assert read_run(plain)["metrics"]["updates"]["values"][-1] == made + skipped
    assert "nonfinite_updates" not in read_run(plain)["metrics"]


@pytest.mark.usefixtures("beside_the_plugins")
def test_too_many_in_a_row_stop_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("run.NONFINITE_IN_ROW", 5)
    corridor = ("--config=qmix", "--env-config=corridor.yaml", "with", *SMALL, "buffer_size=32", "batch_size=32")
    arguments = (*corridor, "t_max=3000", "runner=faulty:NanRunner", "on_nonfinite=skip")
    assert run_main(*arguments, f"local_results_path={tmp_path}") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "in 5 updates in a row; the batch is in" in line
    (run,) = (tmp_path / "models").iterdir()
    assert sorted(path.name for path in (run / "nonfinite").iterdir()) == ["1", "2", "3"]
    assert len(list(run.glob("*/nonfinite_batch.pt"))) == 1
    state = torch.load(next(run.glob("*/nonfinite_batch.pt")).parent / "agent.th", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state.values())
