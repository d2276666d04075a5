"""A run that is stopped, killed or robbed of its disk goes on as if nothing had happened."""

import importlib.util
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import error_line, read_run, run_main

from config.schema import config_files, extend, freeze, load
from run import Experiment, make_runner
from utils.checkpoints import Checkpoints
from utils.logging import Logger, Progress

ROOT = Path(__file__).resolve().parents[2]
MAIN = ROOT / "src/main.py"
SMALL = {
    "rnn_hidden_dim": 8,
    "mixing_embed_dim": 6,
    "hypernet_embed": 5,
    "batch_size": 4,
    "test_nepisode": 2,
    "use_cuda": False,
    "plot": False,
    "updates_per_episode": 1.0,
    "learner_log_interval": 1,
    "runner_log_interval": 1,
}
OFTEN = ("checkpoint_interval=0.05", "save_model=True", "plot=False", "use_cuda=False")


@pytest.fixture
def drill(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("drill", ROOT / "benchmarks/drill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _own_import_path(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)


# Every algorithm, and every environment that can save itself


class Trial:
    """The parts of a run, some rounds of which are played."""

    def __init__(self, alg, env, **overrides):
        config = load(alg, env, {**SMALL, **overrides})
        self.args = extend(freeze(config), device="cpu", unique_token="test")
        logger = Logger(logging.getLogger("test"))
        self.experiment = Experiment(self.args, logger, make_runner(self.args, logger))
        self.progress = Progress(logger, 0, self.args.t_max, "steps")

    def play(self, rounds: int) -> None:
        for _ in range(rounds):
            self.experiment._round(self.progress)

    def close(self) -> None:
        self.experiment.runner.close_env()


def check_exact(tmp_path, drill, alg, env, rounds=5, **overrides):
    one = Trial(alg, env, **overrides)
    one.play(rounds)
    about = {"token": "token", "config": {}}
    with Checkpoints(tmp_path / "token", 2) as checkpoints:
        checkpoints.write(1, one.experiment.state_dict(), one.experiment.buffer, about)
    one.play(rounds)
    other = Trial(alg, env, **overrides)
    other.play(1)  # whatever it did before is overwritten
    with Checkpoints(tmp_path / "token", 2) as checkpoints:
        _, state = checkpoints.read(other.experiment.buffer.put, "cpu", print)
        other.experiment.load_state_dict(state)
    assert drill.unequal(one.experiment.state_dict(), other.experiment.state_dict())  # they are not there yet
    other.play(rounds)
    assert drill.unequal(one.experiment.state_dict(), other.experiment.state_dict()) == []
    assert one.experiment.buffer.inserted == other.experiment.buffer.inserted
    for key, value in one.experiment.buffer.data.transition_data.items():
        assert drill.unequal(value, other.experiment.buffer.data.transition_data[key]) == []
    assert one.experiment.counters.updates > 0
    for trial in (one, other):
        trial.close()


@pytest.mark.parametrize("alg", config_files("algs"))
def test_every_algorithm_goes_on_exactly(alg, tmp_path, drill):
    check_exact(tmp_path, drill, alg, "greed_games", buffer_size=32, batch_size_run=8)


@pytest.mark.parametrize(
    ("env", "overrides"),
    [
        ("matrix_games", {}),
        ("matrix_games", {"overlap": True}),
        ("matrix_games", {"runner": "episode", "batch_size_run": 1}),
        ("greed_games", {"runner": "episode", "batch_size_run": 1, "env_args": {"game": "redundant"}}),
        ("smax", {"batch_size_run": 8, "test_nepisode": 8, "env_args": {"time_limit": 12}}),
        ("stag_hunt", {"batch_size_run": 4, "env_args": {"time_limit": 12}}),
        ("stag_hunt", {"batch_size_run": 4, "env_args": {"time_limit": 12}, "replay_dtype": "float16"}),
    ],
)
def test_every_environment_that_saves_itself_goes_on_exactly(env, overrides, tmp_path, drill):
    if env not in config_files("envs"):
        pytest.skip(f"there is no {env}")
    if env == "smax" and importlib.util.find_spec("jaxmarl") is None:
        pytest.skip("jaxmarl is not installed")
    check_exact(tmp_path, drill, "greedy_qmix", env, **overrides)


@pytest.mark.parametrize(
    "settings",
    [
        {"mac": "gated_mac", "heads": {"utilities": "separate", "act": "agent"}, "gate": {"acts_on": "none"}},
        {"gate": {"mode": "lagrange"}, "conservative": {"coefficient": "lagrange", "op": "max", "threshold": 0.5}},
        {"behaviour": {"source": "cvae_joint"}},
        {"behaviour": {"source": "bc_rnn"}},
        {"replay_dtype": "float16"},
        {"standardise_rewards": True, "optimizer": "adam", "lr_finish": 0.0},
    ],
)
def test_options_with_memories_of_their_own_go_on_exactly(settings, tmp_path, drill):
    check_exact(tmp_path, drill, "greedy_qmix", "greed_games", batch_size_run=8, **settings)


# Kills


def test_twenty_kills_change_nothing(drill, capfd):
    result = drill.kills("greedy_qmix", "greed_games", ["t_max=4000", "rnn_hidden_dim=16"], count=20, seed=1)
    assert result["differences"] == []
    assert sum(result["kills"].values()) >= 20
    assert set(result["kills"]) == {"training", "evaluation", "writing a checkpoint"}


# Signals and the clock

GAME = ("--config=qmix", "--env-config=matrix_games", "with", "rnn_hidden_dim=16", "batch_size=8")


def launch(results, *options):
    return subprocess.Popen(
        [sys.executable, str(MAIN), *GAME, f"local_results_path={results}", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, pattern: str) -> None:
    end = time.monotonic() + 120
    for line in process.stdout:
        if re.search(pattern, line):
            return
        assert time.monotonic() < end
    raise AssertionError(process.stderr.read())


def test_sigterm_and_going_on(tmp_path, drill):
    plain, stopped = tmp_path / "plain", tmp_path / "stopped"
    options = ("t_max=1000", "checkpoint_interval=0.005", *OFTEN[1:])
    assert run_main(*GAME, *options, f"local_results_path={plain}") == 0
    process = launch(stopped, *options, "resume=auto")
    wait_for(process, "Checkpoint of step")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (75, "")
    (word,) = re.findall(r"Stopped at step (\d+) \(SIGTERM\); the model is saved in \S+; .*goes on at step \1", out)
    assert 0 < int(word) < 1000
    assert read_run(stopped)["status"] == "INTERRUPTED"
    assert run_main(*GAME, *options, f"local_results_path={stopped}", "resume=auto") == 0
    for token in (stopped / "models").iterdir():  # saved where it stopped
        for file in (token / word).iterdir():
            file.unlink()
        (token / word).rmdir()
    assert drill.compare(plain, stopped) == []
    run = read_run(stopped)
    assert run["status"] == "COMPLETED"
    assert len(json.loads((stopped / "sacred/1/run.json").read_text())["resumed"]) == 1


def test_the_clock(tmp_path, capsys):
    results = f"local_results_path={tmp_path}"
    assert run_main(*GAME, *OFTEN, "t_max=100000000", "max_hours=0.0002", results) == 75
    assert "(max_hours is over)" in capsys.readouterr().out
    (token,) = (tmp_path / "checkpoints").iterdir()
    step = max(int(path.name) for path in token.iterdir() if path.name.isdigit())
    assert run_main(*GAME, *OFTEN, f"t_max={step + 50}", f"resume={token.name}", results) == 0
    assert f"Resumed at step {step} from" in capsys.readouterr().out


def test_jumps_of_the_wall_clock_change_nothing(tmp_path, drill, monkeypatch):
    plain, jumping = tmp_path / "plain", tmp_path / "jumping"
    options = (*GAME, *OFTEN, "t_max=400", "max_hours=1")
    assert run_main(*options, f"local_results_path={plain}") == 0
    jumps, now = itertools.count(), time.time
    monkeypatch.setattr(time, "time", lambda: now() + (next(jumps) % 4 - 2) * 36000.0)
    assert run_main(*options, f"local_results_path={jumping}") == 0
    assert next(jumps) > 0  # somebody asked for the time
    assert drill.compare(plain, jumping) == []


def test_a_complete_run_has_nothing_to_go_on_with(tmp_path, capsys):
    options = (*GAME, *OFTEN, "t_max=60", f"local_results_path={tmp_path}", "resume=auto")
    assert run_main(*options) == 0
    capsys.readouterr()
    assert run_main(*options) == 0
    assert "is complete; its last test" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "sacred").iterdir() if path.name.isdigit()] == ["1"]


def test_a_complete_run_is_not_lengthened(tmp_path, capsys):
    options = (*GAME, *OFTEN, f"local_results_path={tmp_path}")
    assert run_main(*options, "t_max=60") == 0
    (token,) = (path.name for path in (tmp_path / "checkpoints").iterdir())
    assert run_main(*options, "t_max=60", f"resume={token}") == 0
    capsys.readouterr()
    assert run_main(*options, "t_max=120", f"resume={token}") == 2
    assert "is complete at t_max=60, and its checkpoints are gone" in error_line(capsys)


def test_bad_requests(tmp_path, capsys):
    options = (*GAME, *OFTEN, "t_max=60", f"local_results_path={tmp_path}")
    assert run_main(*options, "resume=nothing") == 2
    assert "resume='nothing': no such run" in error_line(capsys)


def test_two_runs_of_one_second_share_a_folder(tmp_path):
    processes = [launch(tmp_path, *OFTEN, "t_max=100") for _ in range(3)]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    assert len(list((tmp_path / "models").iterdir())) == 3
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3
    assert sorted(path.name for path in (tmp_path / "sacred").iterdir() if path.name.isdigit()) == ["1", "2", "3"]


# Environments that cannot save themselves


def test_what_cannot_save_itself_begins_other_episodes(tmp_path):
    if importlib.util.find_spec("lbforaging") is None:
        pytest.skip("lbforaging is not installed")
    overrides = {"batch_size_run": 2, "env_args": {"time_limit": 8}}
    one = Trial("qmix", "gymma", **overrides)
    one.play(6)
    with Checkpoints(tmp_path / "token", 2) as checkpoints:
        checkpoints.write(1, one.experiment.state_dict(), one.experiment.buffer, {"token": "token", "config": {}})
    other = Trial("qmix", "gymma", **overrides)
    with Checkpoints(tmp_path / "token", 2) as checkpoints:
        _, state = checkpoints.read(other.experiment.buffer.put, "cpu", print)
        other.experiment.load_state_dict(state)
    assert other.experiment.runner.t_env == one.experiment.runner.t_env
    assert other.experiment.buffer.inserted == one.experiment.buffer.inserted
    assert (other.experiment.runner.rollout.steps == 0).all()
    other.play(3)
    for trial in (one, other):
        trial.close()


# A full disk


FULL_DISK = """
set -e
mount -t tmpfs -o size=1200k tmpfs "$DISK"
"$@" t_max=30000 > "$OUT/first" 2>&1 &
for i in $(seq 1200); do grep -q 'cannot be written' "$OUT/first" && break; sleep 0.1; done
sleep 1
kill -KILL $!
wait || true
mount -o remount,size=64m "$DISK"
"$@" t_max=30000 resume=auto > "$OUT/second" 2>&1
cp -r "$DISK/." "$OUT/disk"
"""


def test_a_full_disk(tmp_path, drill):
    """Training goes on, says so, and keeps its last whole checkpoint, from which it goes on when it is killed."""
    namespace = ["unshare", "-rm"]
    mounted = subprocess.run([*namespace, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False, capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here (unshare -rm)")
    disk, out = tmp_path / "disk", tmp_path / "out"
    for folder in (disk, out / "disk"):
        folder.mkdir(parents=True)
    options = ("buffer_size=4000", "updates_per_episode=0.05", "log_interval=500", *OFTEN)
    command = [sys.executable, str(MAIN), *GAME, *options, f"local_results_path={disk}"]
    done = subprocess.run(
        [*namespace, "sh", "-c", FULL_DISK, "sh", *command],
        env={**os.environ, "DISK": str(disk), "OUT": str(out), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    first = (out / "first").read_text()
    assert done.returncode == 0, done.stderr + first + (out / "second").read_text()
    complaint = (
        r"checkpoint of step \d+ cannot be written \(.* are free.*\); the one of step \d+ stays; training goes on"
    )
    assert re.search(complaint, first)
    assert "Traceback" not in first
    second = (out / "second").read_text()
    assert re.search(r"Resumed at step \d+ from", second)
    plain = tmp_path / "plain"
    assert run_main(*GAME, *options, "t_max=30000", f"local_results_path={plain}") == 0
    assert drill.compare(plain, out / "disk") == []


def test_models_and_pictures_that_cannot_be_written(tmp_path, capsys):
    """Their folders are files here; training and its checkpoints do not care."""
    (tmp_path / "models").write_text("")
    (tmp_path / "plots").write_text("")
    results = f"local_results_path={tmp_path}"
    assert run_main(*GAME, "use_cuda=False", "t_max=100", results) == 0
    assert "The pictures cannot be written" in capsys.readouterr().out
    often = ("save_model=True", "save_model_interval=20", "plot=False")
    assert run_main(*GAME, "use_cuda=False", "t_max=100", *often, results) == 1
    captured = capsys.readouterr()
    assert re.search(r"The model of step \d+ cannot be saved", captured.out)
    assert "training is complete, but its model cannot be saved" in captured.err
    assert run_main(*GAME, "use_cuda=False", "t_max=100000000", "max_hours=0.0002", results) == 75
    assert "the model cannot be saved: " in capsys.readouterr().out


# The record


def test_the_record_is_rewound_to_the_checkpoint(tmp_path):
    from utils.record import RunFolder

    said = []
    log = SimpleNamespace(warning=lambda text, *values: said.append(text % values))
    (tmp_path / "1").mkdir()
    (tmp_path / "1/metrics.json").write_text(
        json.dumps({"loss": {"steps": [1, 2, 3], "values": [0.1, 0.2, 0.3], "timestamps": ["a", "b", "c"]}})
    )
    observer = RunFolder(tmp_path, log, "1")
    observer.dir = str(tmp_path / "1")
    observer.rewind({"loss": [(1, 0.1), (2, 0.2)], "late": [(2, 5.0)]})
    metrics = json.loads((tmp_path / "1/metrics.json").read_text())
    assert metrics["loss"] == {"steps": [1, 2], "values": [0.1, 0.2], "timestamps": ["a", "b"]}
    assert (metrics["late"]["steps"], metrics["late"]["values"], len(metrics["late"]["timestamps"])) == ([2], [5.0], 1)
