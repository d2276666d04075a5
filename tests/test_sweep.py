"""Sweeps: what a command line asks for, runs that are cut, fail or go on, and all of it with Ray."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import command_of, error_line, process_table, run_main, wait_until

import sweep
from sweeping import attempts
from sweeping.attempts import Order, attempt
from sweeping.board import Board, format_groups
from sweeping.plan import CUT, DONE, FAILED, WAITING, Run, look_up, read_plan, read_seeds, try_environments
from utils.checkpoints import is_free

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "src/sweep.py"
GAMES = ("--configs=qmix,vdn", "--env-configs=matrix_games")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def said(monkeypatch):
    """What is said, line by line."""
    lines: list[str] = []
    log = SimpleNamespace(info=lambda text, *values: lines.append(text % values))
    monkeypatch.setattr("sweeping.board.get_logger", lambda: log)
    return lines


def run_sweep(*argv: str) -> int:
    return sweep.main(["src/sweep.py", *argv])


def names(*argv: str) -> list[str]:
    return [run.name for run in read_plan(list(argv)).runs]


# What a command line asks for


@pytest.mark.parametrize(
    ("text", "seeds"), [("0", [0]), ("0-3", [0, 1, 2, 3]), ("0,3,5", [0, 3, 5]), ("7,0-1", [7, 0, 1]), ("4-4", [4])]
)
def test_seeds(text, seeds):
    assert read_seeds(text) == seeds


def test_every_algorithm_on_every_map_with_every_seed():
    found = names(*GAMES, "--maps=climbing,penalty", "--seeds=0,7")
    assert found == [
        f"{alg}__matrix_games_{game}__seed_{seed}"
        for alg in ("qmix", "vdn")
        for game in ("climbing", "penalty")
        for seed in (0, 7)
    ]


def test_what_a_map_is_called():
    assert names("--configs=iql", "--env-configs=smax", "--maps=2s3z") == ["iql__smax_2s3z__seed_0"]
    (name,) = names("--configs=iql", "--env-configs=gymma", "--maps=lbforaging:Foraging-8x8-2p-2f-coop-v3")
    assert name == "iql__gymma_lbforaging-Foraging-8x8-2p-2f-coop-v3__seed_0"
    assert names("--configs=iql", "--env-configs=smax") == ["iql__smax_3m__seed_0"]  # the environment's own
    assert names("--configs=iql", "--env-configs=stag_hunt") == ["iql__stag_hunt__seed_0"]


def test_the_command_of_a_run():
    overrides = ["t_max=100", "env_args.k=-50"]
    plan = read_plan([*GAMES, "--maps=penalty", "--seeds=3", "--name=games", "with", *overrides])
    words = plan.command(plan.runs[0])
    folder = f"local_results_path={Path.cwd()}/results/sweeps/games/qmix__matrix_games_penalty__seed_3"
    start = [str(ROOT / "src/main.py"), "--config=qmix", "--env-config=matrix_games", "with", *overrides]
    assert words == [*start, "env_args.game=penalty", "seed=3", folder, "resume=auto"]


def test_configurations_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: qmix\nlr: 0.01\n")
    assert names("--configs=mine.yaml", "--env-configs=matrix_games") == ["mine__matrix_games_two_step__seed_0"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--configs=qmxi", "--env-configs=smax"), "did you mean qmix?"),
        (("--configs=qmix", "--env-configs=smaxx"), "did you mean smax?"),
        (("--configs=qmix",), "--env-configs is missing"),
        (("--configs=qmix,", "--env-configs=smax"), "--configs=qmix,: a name is empty"),
        (("--configs=qmix,qmix", "--env-configs=smax"), "qmix stands there twice"),
        ((*GAMES, "--seeds=9-0"), "'9-0' is no seed or range; write 0-9"),
        ((*GAMES, "--seeds=a"), "'a' is no seed or range"),
        ((*GAMES, "--seeds="), "'' is no seed or range"),
        ((*GAMES, "--seeds=0-2,1"), "1 stands there twice"),
        ((*GAMES, "--seeds=0-9999999"), "at most 10,000 runs"),
        ((*GAMES, "--seeds=0-5001"), "10,004 runs; a sweep has at most 10,000"),
        ((*GAMES, "--seeds=0-9999999999"), "at most 10,000 runs"),
        ((*GAMES, "--cpus-per-run=0"), "--cpus-per-run=0: more than 0"),
        ((*GAMES, "--gpus-per-run=-1"), "--gpus-per-run=-1: 0 or more"),
        ((*GAMES, "--gpus-per-run=1.5"), "whole numbers only"),
        ((*GAMES, "--gpus-per-run=half"), "invalid float value: 'half'"),
        ((*GAMES, "--retries=-1"), "--retries=-1: 0 or more"),
        ((*GAMES, "--name=a/b"), "--name='a/b': give up to 120 letters"),
        ((*GAMES, "--fast"), "--fast"),
        ((*GAMES, "lr=1"), "lr=1"),
        ((*GAMES, "with", "lr=fast"), "lr='fast'"),
        ((*GAMES, "with", "lr"), "write key=value"),
        ((*GAMES, "with", "seed=3"), "--seeds says which"),
        ((*GAMES, "with", "local_results_path=x"), "the sweep decides it"),
        ((*GAMES, "--maps=penalty", "with", "env_args.game=climbing"), "give only one of them"),
        (("--configs=qmix", "--env-configs=stag_hunt", "--maps=3m"), "stag_hunt has no maps"),
        (("--configs=qmix", "--env-configs=matrix_games", "--maps=climbing,penalt"), "did you mean 'penalty'?"),
        ((*GAMES, "--dry-run", "with", "env_args.game=nope"), "env_args.game='nope': unknown"),
        # What goes wrong with `resume=auto` alone, which every run gets.
        ((*GAMES, "--dry-run", "with", "seeds=2"), "resume"),
        ((*GAMES, "--dry-run", "with", "save_dataset=x.h5"), "resume"),
        # One of several is wrong: nothing starts.
        (("--configs=qmix,greedy_qmix", "--env-configs=matrix_games", "with", "gate.mode=hard"), "gate"),
    ],
)
def test_bad_input_is_one_line(argv, words, capsys, tmp_path):
    assert run_sweep(*argv) == 2
    assert words in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_results(tmp_path, capsys):
    (tmp_path / "results").write_text("")
    for options in ((), ("--results=results",)):
        assert run_sweep(*GAMES, *options) == 2
        assert "cannot be written to" in error_line(capsys)


def test_environments_are_tried_but_for_starcrafts(monkeypatch):
    """Each once, whatever the algorithm and the seed; not those of runs that are complete."""
    tried = []
    monkeypatch.setattr("sweeping.plan.run_probe", lambda name, config: tried.append((name, config["env_args"])) or {})
    argv = ["--configs=qmix,vdn", "--env-configs=matrix_games,sc2", "--seeds=0-1"]
    plan = read_plan(argv)
    try_environments(plan)
    assert [(name, args["game"]) for name, args in tried] == [("environment", "two_step")]
    for run in plan.runs:
        run.state = DONE
    try_environments(plan)
    assert len(tried) == 1


def test_without_ray(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run_sweep(*GAMES) == 2
    assert "pip install -r requirements-ray.txt" in error_line(capsys)


def test_help(capsys):
    assert run_sweep("--help") == 0
    text = capsys.readouterr().out
    for command in re.findall(r"^  python src/sweep.py (--configs=\w.*)$", text, re.MULTILINE):
        if "ALG" not in command:
            assert read_plan(command.split()).runs


# A dry run


def leave(folder: Path, config: dict | None = None, step: int | None = None, result: dict | None = None) -> None:
    """What a run would have left in its folder."""
    (folder / "checkpoints/token").mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if step is not None:
        (folder / f"checkpoints/token/{step}").mkdir()
    if result is not None:
        (folder / "checkpoints/token/finished.json").write_text(json.dumps({"result": result, "sacred_id": "2"}))


def test_a_dry_run_says_what_is_there_and_changes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # it needs none
    options = (*GAMES, "--seeds=0-1", "--results=here")
    assert run_sweep(*options, "--dry-run") == 0
    assert capsys.readouterr().out.count(" new\n") == 4
    assert list(tmp_path.iterdir()) == []
    here = tmp_path / "here"
    leave(here / "qmix__matrix_games_two_step__seed_0", result={"test_return_mean": 8.0})
    leave(here / "qmix__matrix_games_two_step__seed_1", step=1200)
    runs = {
        "qmix__matrix_games_two_step__seed_1": {"state": "running", "attempts": 1},
        "vdn__matrix_games_two_step__seed_0": {"state": "failed", "attempts": 1, "reason": "no memory"},
    }
    (here / "sweep.json").write_text(json.dumps({"id": "x", "runs": runs}))
    before = sorted(here.rglob("*"))
    assert run_sweep(*options, "--dry-run") == 0
    text = capsys.readouterr().out
    for line in (
        r"qmix\S+seed_0 +complete: left alone",
        r"qmix\S+seed_1 +was cut: goes on +1,200",
        r"vdn\S+seed_0 +failed before: tried again",
        r"vdn\S+seed_1 +new",
        r"The first: python \S+/src/main.py --config=qmix .* seed=1 local_results_path=\S+seed_1 resume=auto",
    ):
        assert re.search(line, text), line
    assert sorted(here.rglob("*")) == before


def test_a_complete_sweep_needs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for alg in ("qmix", "vdn"):
        leave(tmp_path / f"here/{alg}__matrix_games_two_step__seed_0", result={"test_return_mean": 8.0})
    assert run_sweep(*GAMES, "--results=here") == 0
    assert "All 2 runs are complete; nothing is left to do" in capsys.readouterr().out


def test_other_settings_are_refused(tmp_path, capsys):
    plan = read_plan([*GAMES, "--results=here"])
    run = plan.runs[0]
    leave(tmp_path / "here" / run.name, config=plan.config_of(run), step=5)
    assert run_sweep(*GAMES, "--results=here", "--dry-run", "with", "checkpoint_interval=5") == 0
    assert run_sweep(*GAMES, "--results=here", "--dry-run", "with", "lr=0.25") == 2
    assert "holds a run of other settings: lr 0.0005 (now 0.25); give another --name" in error_line(capsys)


def test_two_sweeps_of_one_folder(tmp_path, capsys):
    with sweep.locked(tmp_path / "here"):
        assert run_sweep(*GAMES, "--results=here") == 2
    assert "another sweep is at work there" in error_line(capsys)


def test_what_another_sweep_completes_before_the_lock_is_left_alone(tmp_path, monkeypatch):
    plan = read_plan([*GAMES, "--results=here"])
    locked = sweep.locked

    @contextlib.contextmanager
    def completed_meanwhile(folder):
        for run in plan.runs:
            leave(folder / run.name, config=plan.config_of(run), result={"test_return_mean": 7.0})
        with locked(folder):
            yield

    class Nobody(Script):
        notes: tuple = ()

        def __init__(self, *_):
            super().__init__()

        def close(self):
            assert self.tried == []

    monkeypatch.setattr(sweep, "locked", completed_meanwhile)
    monkeypatch.setattr(sweep, "Cluster", Nobody)
    assert run_sweep(*GAMES, "--results=here") == 0


def test_a_damaged_record_is_named(tmp_path, capsys):
    (tmp_path / "here").mkdir()
    (tmp_path / "here/sweep.json").write_text("{")
    assert run_sweep(*GAMES, "--results=here") == 2
    assert "sweep.json cannot be read (JSONDecodeError); remove it" in error_line(capsys)


# What becomes of runs, as an engine reports it


class Script:
    """In place of Ray: each attempt of a run reports the next of the lists that its name has here."""

    def __init__(self, **reports):
        self.reports = reports
        self.waiting: list[tuple[str, list]] = []
        self.tried: list[str] = []
        self.stopped = False

    @property
    def busy(self) -> bool:
        return bool(self.waiting)

    def start(self, name, order):
        assert order.folder.endswith(name)
        alg = name.partition("__")[0]
        self.tried.append(alg)
        self.waiting.append((name, self.reports[alg].pop(0)))

    def news(self, seconds):
        name, reports = self.waiting[0]
        if callable(reports[0]):
            reports.pop(0)()
        report = reports.pop(0) if reports else None
        if not reports:
            self.waiting.pop(0)
        if report is not None:
            yield name, report

    def stop(self):
        self.stopped = True
        self.waiting = [one for one in self.waiting if HOST not in one[1]]


def work(tmp_path, script, *options, stop=None) -> dict[str, Run]:
    plan = read_plan([*GAMES, "--results=here", *options])
    look_up(plan)
    never = SimpleNamespace(asked=lambda: False, reason="", code=75)
    with sweep.locked(plan.folder):
        sweep.Sweep(plan, ["src/sweep.py"]).work(script, stop or never)
    written = json.loads((tmp_path / "here/sweep.json").read_text())["runs"]
    assert {name: one["state"] for name, one in written.items()} == {run.name: run.state for run in plan.runs}
    return {run.config: run for run in plan.runs}


QMIX, VDN = (f"here/{alg}__matrix_games_two_step__seed_0" for alg in ("qmix", "vdn"))
HOST = {"host": "node"}


def test_runs_that_complete(tmp_path, said):
    done = [lambda: leave(tmp_path / VDN, result={"test_return_mean": 7.0}), {"code": 0, "step": 90, "reason": ""}]
    news = {"step": 50, "metrics": {"test_return_mean": 3.0}}
    script = Script(
        qmix=[[HOST, lambda: leave(tmp_path / QMIX, result={"test_return_mean": 8.0}), {"code": 0, "step": 90}]],
        vdn=[[HOST, news, *done]],
    )
    runs = work(tmp_path, script)
    for alg, value in (("qmix", 8.0), ("vdn", 7.0)):
        run = runs[alg]
        assert (run.state, run.attempts, run.where, run.step) == (DONE, 1, "node", 90)
        assert run.metrics == {"test_return_mean": value}
        assert run.record == f"{run.name}/sacred/2"
    assert script.tried == ["qmix", "vdn"]
    record = json.loads((tmp_path / "here/sweep.json").read_text())
    assert record["settings"]["configs"] == "qmix,vdn"
    assert record["versions"]["torch"]
    assert len(record["commit"]) in (0, 40)
    assert any(line.endswith("test return 8.00 (1 of 2)") for line in said)


def test_runs_that_are_cut_are_tried_again_as_long_as_they_come_further(tmp_path):
    lost = {"lost": "its worker died"}

    def came_to(step):
        return lambda: (tmp_path / f"{QMIX}/checkpoints/token/{step}").mkdir(parents=True)

    done = [
        lambda: (tmp_path / f"{QMIX}/checkpoints/token/finished.json").write_text(
            json.dumps({"result": {}, "sacred_id": "1"})
        ),
        {"code": 0, "step": 9},
    ]
    script = Script(
        qmix=[
            [HOST, {"code": 75, "reason": "Stopped at step 3"}],
            [HOST, came_to(3), lost],
            [HOST, {"code": -9, "reason": "killed by SIGKILL"}],
            [HOST, came_to(5), lost],
            [HOST, *done],
        ],
        vdn=[[HOST, lost], [lost], [HOST, {"code": 130, "reason": "Ctrl-C"}]],
    )
    runs = work(tmp_path, script, "--retries=1")
    assert (runs["qmix"].state, runs["qmix"].attempts) == (DONE, 5)
    assert (runs["vdn"].state, runs["vdn"].attempts, runs["vdn"].reason) == (CUT, 1, "its worker died")
    assert sweep.exit_code(list(runs.values()), SimpleNamespace(reason="", code=75)) == 75


def test_runs_that_fail_are_not_tried_again_but_by_the_next_sweep(tmp_path, said):
    script = Script(
        qmix=[[HOST, {"code": 1, "reason": "a loss is not finite"}]],
        vdn=[[{"code": 2, "reason": "node has another program"}]],
    )
    runs = work(tmp_path, script)
    assert [run.state for run in runs.values()] == [FAILED, FAILED]
    assert script.tried == ["qmix", "vdn"]
    assert sweep.exit_code(list(runs.values()), SimpleNamespace(reason="", code=75)) == 1
    table = format_groups(list(runs.values()))
    assert "qmix__matrix_games_two_step__seed_0 failed: a loss is not finite" in table
    assert "vdn__matrix_games_two_step__seed_0: failed: node has another program" in said
    leave(tmp_path / VDN, result={})
    again = Script(qmix=[[HOST, {"code": 1, "reason": "again"}]], vdn=[])
    runs = work(tmp_path, again)
    assert again.tried == ["qmix"]
    assert (runs["qmix"].attempts, runs["qmix"].reason, runs["vdn"].state) == (2, "again", DONE)


def test_a_request_to_stop(tmp_path):
    asked = []
    stop = SimpleNamespace(asked=lambda: bool(asked), reason="SIGINT", code=130)

    def ask():
        asked.append(1)
        leave(tmp_path / QMIX, step=40)

    script = Script(qmix=[[HOST, ask, {"step": 45, "metrics": {}}, None]], vdn=[[HOST, None]])
    runs = work(tmp_path, script, stop=stop)
    assert script.stopped
    assert (runs["qmix"].state, runs["qmix"].step, runs["vdn"].state) == (CUT, 40, WAITING)
    assert sweep.exit_code(list(runs.values()), stop) == 130


def test_runs_of_another_command_stay_in_the_record(tmp_path):
    failing = {"code": 1, "reason": "x"}
    work(tmp_path, Script(qmix=[[HOST, failing]], vdn=[[HOST, failing]]))
    plan = read_plan(["--configs=iql", "--env-configs=matrix_games", "--results=here"])
    look_up(plan)
    one = sweep.Sweep(plan, [])
    before = json.loads(one.file.read_text())
    one.save()
    after = json.loads(one.file.read_text())
    assert after["id"] == before["id"]
    assert len(after["runs"]) == 3


# The table


def test_the_live_table(monkeypatch, said):
    plan = read_plan([*GAMES, "--seeds=0-1"])
    written = []
    terminal = SimpleNamespace(isatty=lambda: True, write=written.append, flush=lambda: None)
    monkeypatch.setattr(sys, "__stdout__", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LINES", "24")
    board = Board(plan)
    for run in plan.runs[:3]:
        run.state, run.where, run.attempts, run.step, run.t_max = "running", "node-1", 1, 2500, 10000
        run.metrics = {"test_return_mean": 7.5}
    board.draw()
    lines = written[-1].replace("\x1b[K", "").splitlines()
    assert lines[0].startswith("qmix+vdn__matrix_games: 0 of 4 done, 1 waiting, 3 running; 0:00:0")
    assert lines[1].split() == ["run", "where", "attempt", "steps", "done", "test", "return", "test", "win", "rate"]
    assert lines[2].split() == ["qmix__matrix_games_two_step__seed_0", "node-1", "1", "2,500", "25%", "7.50", "-"]
    monkeypatch.setenv("LINES", "4")
    board.draw()
    assert written[-1].startswith("\x1b[5F")  # over what was there
    assert written[-1].replace("\x1b[K", "").splitlines()[-2:] == ["and 3 more", "\x1b[J"]
    plan.runs[0].state, plan.runs[0].reason = FAILED, "no memory"
    board.tell(plan.runs[0])
    assert written[-1].startswith("\x1b[3F")
    assert said == ["qmix__matrix_games_two_step__seed_0: failed: no memory"]


def test_the_final_table():
    runs = [
        Run(f"qmix__smax_3m__seed_{seed}", "qmix", "smax", "3m", seed, [], DONE, seconds=60.0, metrics=metrics)
        for seed, metrics in enumerate([{"test_return_mean": 1.0}, {"test_return_mean": 2.0}])
    ]
    runs.append(Run("qmix__smax_3m__seed_2", "qmix", "smax", "3m", 2, [], FAILED, reason="no memory"))
    lines = format_groups(runs).splitlines()
    assert lines[1].split() == ["qmix__smax_3m", "3", "-", "2", "1", "-", "1.50", "(0.71)", "-", "0:01:00"]
    assert lines[-1] == "qmix__smax_3m__seed_2 failed: no memory"


# One attempt


def order(tmp_path, code: str, **changes) -> Order:
    """Of a run that is this program."""
    folder = tmp_path / "sweep"
    folder.mkdir(exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps({"id": "this"}))
    source = tmp_path / "src"
    source.mkdir(exist_ok=True)
    checksum = attempts.checksum_of_source(source)
    command = ["-c", code, str(folder / "run")]
    values = {"sweep": "this", "source_checksum": checksum, "threads": 3, "gpu": False, **changes}
    return Order(str(folder / "run"), command, str(tmp_path), str(source), **values)


def last_report(found: Order) -> dict:
    *_, last = attempt(found)
    return last


@pytest.mark.parametrize(
    ("code", "exit_code", "reason"),
    [
        ("print('a line'); print('error: lr=0: too small'); print('more'); raise SystemExit(2)", 2, "lr=0: too small"),
        ("raise RuntimeError('shapes')", 1, "RuntimeError: shapes"),
        ("raise SystemExit(75)", 75, "-----"),
        ("raise SystemExit(-1)", 255, "-----"),
        ("import os; os.kill(os.getpid(), 9)", -9, "killed by SIGKILL"),
        ("pass", 0, "it ended, but left nothing that says it is complete"),
    ],
)
def test_how_an_attempt_ends(code, exit_code, reason, tmp_path):
    report = last_report(order(tmp_path, code))
    assert report["code"] == exit_code
    assert reason in report["reason"]


def test_an_attempt_says_its_own_reason(tmp_path):
    assert last_report(order(tmp_path, "print('error: no memory'); raise SystemExit(1)"))["reason"] == "no memory"
    assert last_report(order(tmp_path, "raise RuntimeError('shapes')"))["reason"] == "RuntimeError: shapes"


def test_what_a_run_finds(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    code = (
        "import os, signal; blocked = signal.pthread_sigmask(signal.SIG_BLOCK, []);"
        "threads, gpus = os.environ['OMP_NUM_THREADS'], os.environ['CUDA_VISIBLE_DEVICES'];"
        "print('error:', os.getcwd(), threads, repr(gpus), blocked);"
        "raise SystemExit(1)"
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as Ray does
    try:
        assert last_report(order(tmp_path, code))["reason"] == f"{tmp_path} 3 '' set()"
        assert last_report(order(tmp_path, code, gpu=True))["reason"] == f"{tmp_path} 3 '0' set()"
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert (tmp_path / "sweep/run/output.txt").read_text().count("-----") == 2


def test_progress_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "REPORT", 0.0)
    code = (
        "import sys, json, time, pathlib; folder = pathlib.Path(sys.argv[1]) / 'sacred/1'; folder.mkdir(parents=True);"
        "points = {'steps': [1, 30], 'values': [2.0, 8.0]};"
        "(folder / 'metrics.json').write_text(json.dumps({'test_return_mean': points, 'loss': points}));"
        "time.sleep(1)"
    )
    first, second, last = attempt(order(tmp_path, code))
    assert list(first) == ["host"]
    assert second == {"step": 30, "metrics": {"test_return_mean": 8.0}}
    assert (last["code"], last["step"]) == (0, 30)


def test_machines_that_differ_are_refused(tmp_path):
    found = order(tmp_path, "pass", source_checksum="other")
    assert "has another program in" in last_report(found)["reason"]
    assert "does not see" in last_report(order(tmp_path, "pass", sweep="other"))["reason"]
    assert not (tmp_path / "sweep/run").exists()


STUBBORN = """
import json, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def stop(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(1)
    (folder / "stopped").write_text(signal.Signals(number).name)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
(folder / "sacred/1").mkdir(parents=True)
(folder / "sacred/1/metrics.json").write_text(json.dumps({"loss": {"steps": [1], "values": [2.0]}}))
time.sleep(100)
"""


@pytest.mark.parametrize("end", [GeneratorExit, KeyboardInterrupt])
def test_an_attempt_that_is_ended_stops_its_run_first(end, tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "REPORT", 0.0)
    found, run = attempt(order(tmp_path, STUBBORN)), tmp_path / "sweep/run"
    assert [next(found), next(found)] == [{"host": os.uname().nodename}, {"step": 1, "metrics": {}}]
    assert not is_free(run)
    with pytest.raises(end):
        found.throw(end)
    assert (run / "stopped").read_text() == "SIGTERM"
    assert is_free(run)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_whose_worker_ends_writes_its_checkpoint_in_peace(number, tmp_path, monkeypatch):
    """It is asked to stop, once, and the next attempt waits for it."""
    found, run = order(tmp_path, STUBBORN), tmp_path / "sweep/run"
    code = "import signal; from sweeping.attempts import *; signal.signal(signal.SIGTERM, lambda *_: sys.exit(15));"
    code += f"[None for _ in attempt({found!r})]"  # SIGTERM as Ray heeds it
    worker = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    wait_until((run / "sacred/1/metrics.json").exists)
    worker.send_signal(number)
    worker.wait()
    if number == signal.SIGKILL:  # nobody waits for the run but the next attempt, which is impatient
        monkeypatch.setattr(attempts, "PATIENCE", 0.3)
        report = last_report(found)
        assert (report["code"], "still holds" in report["reason"]) == (75, True)
    monkeypatch.setattr(attempts, "PATIENCE", 60.0)
    report = last_report(
        order(tmp_path, "raise SystemExit(int(open(__import__('sys').argv[1] + '/stopped').read() == 'SIGTERM'))")
    )
    assert report["code"] == 1  # what the first has written was there


# With Ray

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install -r requirements-ray.txt)"
)
LONG = 240.0  # seconds: Ray's first start on a busy machine reads 240 MB, and takes more than a minute
SMALL = ("rnn_hidden_dim=16", "batch_size=8", "updates_per_episode=0.5", "save_model=True", "plot=False")


@pytest.fixture
def compare(monkeypatch):
    """`compare` of the drills, which looks for differences between two runs."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("drill", ROOT / "benchmarks/drill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.compare


def launch(folder: Path, *argv: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), f"--results={folder}", "--env-configs=matrix_games", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def next_with_checkpoint(folder: Path, *others: Path) -> Path:
    """Wait until a run of a sweep, but for those others, can go on from a checkpoint; returns its folder.

    Which comes first is Ray's affair, and on a busy machine one may be complete before another has begun.
    """
    found: list[Path] = []

    def look() -> bool:
        runs = (run for run in folder.glob("*__seed_*") if run not in others and attempts.newest_step(run) is not None)
        found.extend(runs)
        return bool(found)

    wait_until(look, LONG)
    return found[0]


def training_of(folder: Path) -> int:
    """The process that trains this run."""
    words = f"local_results_path={folder} "
    commands = {pid: command_of(pid) for pid in process_table()}
    return next(pid for pid, command in commands.items() if words in command and "attempts.py" not in command)


def states(folder: Path) -> dict[str, tuple[str, int]]:
    runs = json.loads((folder / "sweep.json").read_text())["runs"].values()
    return {run["name"]: (run["state"], run["attempts"]) for run in runs}


@needs_ray
def test_a_sweep_whose_processes_are_killed(tmp_path, compare, capsys):
    """A worker of Ray's, and the training process of another run: both go on, and end as if nothing had happened."""
    folder, options = tmp_path / "swept", ("--configs=qmix", "--seeds=0,3", "--cpus-per-run=0.5")
    words = ("with", "t_max=3000", *SMALL)
    process = launch(folder, *options, *words, "checkpoint_interval=0.02")
    try:
        first = next_with_checkpoint(folder)
        table = process_table()
        tender = table[training_of(first)][1]
        os.kill(table[tender][1], signal.SIGKILL)
        second = next_with_checkpoint(folder, first)
        os.kill(training_of(second), signal.SIGKILL)
        out, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, out
    assert states(folder) == {first.name: (DONE, 2), second.name: (DONE, 2)}, out
    assert "cut: its worker died; it can go on at step" in out
    assert "cut: killed by SIGKILL; it can go on at step" in out
    assert "raylet" not in out  # Ray's own words
    for run in (first, second):
        assert "Resumed at step" in (run / "output.txt").read_text()
        plain = tmp_path / run.name
        game = ("--config=qmix", "--env-config=matrix_games", *words, f"seed={run.name[-1]}")
        assert run_main(*game, f"local_results_path={plain}") == 0
        (last,) = plain.glob("models/*/*")
        for model in run.glob("models/*/*"):
            if model.name != last.name:  # where it was stopped
                shutil.rmtree(model)
        assert compare(plain, run) == []
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert run_sweep("--env-configs=matrix_games", f"--results={folder}", *options, *words) == 0
    assert "All 2 runs are complete; nothing is left to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@needs_ray
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
@pytest.mark.usefixtures("_heeded_interrupts")
def test_a_sweep_that_is_stopped(number, code, tmp_path):
    """Its run writes a checkpoint, even if the sweep is killed without a word."""
    process = launch(tmp_path / "swept", "--configs=qmix", "with", "t_max=100000000", *SMALL, "checkpoint_interval=0")
    try:
        run = tmp_path / "swept/qmix__matrix_games_two_step__seed_0"
        wait_until(lambda: (run / "output.txt").exists() and "steps/s" in (run / "output.txt").read_text(), LONG)
        process.send_signal(number)
        out, _ = process.communicate(timeout=LONG)
    finally:
        process.kill()
    assert process.returncode == code, out
    wait_until(lambda: is_free(run), LONG)
    assert re.search(r"Stopped at step \d+ \(SIGTERM\)", (run / "output.txt").read_text())
    assert attempts.newest_step(run) > 0
    if number != signal.SIGKILL:
        assert states(tmp_path / "swept") == {run.name: (CUT, 1)}


@needs_ray
def test_more_than_this_machine_has(tmp_path, capsys):
    assert run_sweep(*GAMES, "--cpus-per-run=1000") == 2
    assert "--cpus-per-run=1000 --gpus-per-run=0: this machine has" in error_line(capsys)


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "ray://localhost:10001", "somewhere"])
def test_a_cluster_that_is_not_there(address, capsys):
    assert run_sweep(*GAMES, f"--address={address}") == 2
    assert f"--address={address}: " in error_line(capsys)
