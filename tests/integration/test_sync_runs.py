"""Runs that are recorded in MongoDB too: it is absent, lost, back again, and never what training waits for."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import bson
import gridfs
import pymongo
import pytest
from helpers import error_line, run_main
from mongo_server import MongoServer

import sync_runs
from utils import mongo

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("rnn_hidden_dim=16", "batch_size=8", "use_cuda=False", "test_nepisode=4", "plot=False")
GAME = ("--config=qmix", "--env-config=matrix_games", "with", *SMALL)


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mongo, "EVERY", 0.05)


def read(url: str):
    return pymongo.MongoClient(url, serverSelectionTimeoutMS=2000).get_default_database()


def dump(url: str) -> dict[str, list[bytes]]:
    """Every document, as it is stored."""
    database = read(url)
    return {
        name: [bson.encode(one) for one in database[name].find().sort("_id", 1)]
        for name in ("runs", "metrics", "fs.files", "fs.chunks")
    }


def check(url: str, folder: Path, number: int = 1) -> dict:
    """The documents of a run hold what its folder holds, neither more nor less; returns the run's."""
    database = read(url)
    run = database.runs.find_one({"_id": number})
    record = json.loads((folder / "run.json").read_text())
    same = ("command", "host", "meta", "status", "uid", "result")
    assert {key: run[key] for key in same} == {key: record.get(key) for key in same}
    for key in ("start_time", "stop_time", "heartbeat"):
        assert run.get(key) == (mongo.date(record[key]) if record.get(key) else None)
    assert run["config"] == json.loads((folder / "config.json").read_text())
    assert run["captured_out"] == (folder / "cout.txt").read_bytes().decode()
    assert [one["name"] for one in run["artifacts"]] == list(dict.fromkeys(record["artifacts"]))
    grid = gridfs.GridFS(database)
    for one in run["artifacts"]:
        assert grid.get(one["file_id"]).read() == (folder / one["name"]).read_bytes()
    assert len(run["experiment"]["sources"]) == len(record["experiment"]["sources"])
    for (name, file), (same, stored) in zip(run["experiment"]["sources"], record["experiment"]["sources"], strict=True):
        assert name == same
        assert grid.get(file).read() == (folder.parent / stored).read_bytes()
    metrics = {one["name"]: one for one in database.metrics.find({"run_id": number})}
    assert {one["name"]: one["id"] for one in run["info"]["metrics"]} == {
        name: str(one["_id"]) for name, one in metrics.items()
    }
    written = json.loads((folder / "metrics.json").read_text())
    assert metrics.keys() == written.keys()
    for name, points in written.items():
        assert (metrics[name]["steps"], metrics[name]["values"]) == (points["steps"], points["values"])
        assert metrics[name]["timestamps"] == [mongo.date(stamp) for stamp in points["timestamps"]]
    assert all(isinstance(stamp, datetime) for stamp in metrics["return_mean"]["timestamps"])
    return run


def sync(*argv: str) -> int:
    return sync_runs.main(["sync_runs.py", *argv])


def launch(results, url: str, *options: str) -> subprocess.Popen:
    """A run of its own process, whose copies are quick."""
    program = (
        "import sys; from main import main; from utils import mongo; "
        "mongo.EVERY, mongo.SHARE, mongo.ANSWER = 0.05, 1, 1.0; "
        "sys.exit(main(['main.py', *sys.argv[1:]]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *GAME, f"local_results_path={results}", *options],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "MONGO_URL": url,
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_run_and_its_copies(mongo_url, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MONGO_URL", mongo_url)
    assert run_main(*GAME, "t_max=200", "save_model=True", f"local_results_path={tmp_path}") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "is there, and has this run as number 1" in captured.out
    run = check(mongo_url, tmp_path / "sacred/1")
    assert run["status"] == "COMPLETED"
    assert run["result"]["test_ep_length_mean"] == 2
    model = max((tmp_path / "models").glob("*/*"), key=lambda folder: int(folder.name))
    assert {one["name"] for one in run["artifacts"]} == {file.name for file in model.iterdir()}
    before = dump(mongo_url)
    for _ in range(2):
        assert sync(str(tmp_path)) == 0
    assert "0 runs new, 0 runs changed, 1 runs unchanged" in capsys.readouterr().out
    assert dump(mongo_url) == before


def test_sacreds_option(mongo_server, tmp_path, monkeypatch):
    monkeypatch.setenv("MONGO_URL", "mongodb://elsewhere.invalid/greed")  # what the command line says counts
    place = f"127.0.0.1:{mongo_server.port}:greed"
    assert run_main(*GAME, "t_max=50", f"local_results_path={tmp_path}", "-m", place) == 0
    check(mongo_server.url, tmp_path / "sacred/1")
    assert len(read(mongo_server.url).runs.find().to_list()) == 1
    assert run_main(*GAME, "t_max=50", f"local_results_path={tmp_path}", "-u", "-m", place) == 0
    assert len(read(mongo_server.url).runs.find().to_list()) == 1  # unobserved


def test_runs_that_never_reached_it(mongo_url, tmp_path, monkeypatch, capsys):
    """Of two machines, each of which calls its run the first."""
    for machine in ("one", "two"):
        assert run_main(*GAME, "t_max=50", f"local_results_path={tmp_path / machine}") == 0
    monkeypatch.setenv("MONGO_URL", mongo_url)
    assert sync(str(tmp_path / "one"), str(tmp_path / "two/sacred/1")) == 0
    assert "2 runs new" in capsys.readouterr().out
    check(mongo_url, tmp_path / "one/sacred/1", 1)
    check(mongo_url, tmp_path / "two/sacred/1", 2)
    before = dump(mongo_url)
    assert sync(str(tmp_path)) == 0  # finds both
    assert dump(mongo_url) == before


# Faults


def test_absent_from_beginning_to_end(mongo_server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MONGO_URL", mongo_server.url)
    monkeypatch.setattr(mongo, "ANSWER", 0.2)
    mongo_server.stop()
    assert run_main(*GAME, "t_max=2000", f"local_results_path={tmp_path}") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("training goes on") == 1  # said once
    assert "does not answer ([Errno 111] Connection refused); training goes on" in captured.out
    assert (
        f"it lacks the end of this run, which python src/sync_runs.py {tmp_path}/sacred/1 brings there" in captured.out
    )
    assert sync(str(tmp_path)) == 1
    assert "does not answer" in error_line(capsys)
    mongo_server.start()
    monkeypatch.setattr(mongo, "ANSWER", 3.0)
    assert sync(str(tmp_path)) == 0
    check(mongo_server.url, tmp_path / "sacred/1")


def test_killed_and_back_again(mongo_server, tmp_path):
    """During training; the second time all that it held is lost too."""
    process = launch(tmp_path, mongo_server.url, "t_max=100000000", "log_interval=200", "-b", "1")
    said: list[str] = []

    def listen() -> None:
        for line in process.stdout:
            said.append(line)

    listener = threading.Thread(target=listen)
    listener.start()

    def count(words: str) -> int:
        return sum(words in line for line in said)

    until(lambda: mongo_server.commands.count("update") > 5)
    for times, lose in enumerate((False, True), start=1):
        mongo_server.stop()
        until(lambda times=times: count("training goes on") == times)
        if lose:
            mongo_server.databases.clear()
        mongo_server.commands.clear()
        mongo_server.start()
        until(lambda times=times: count("answers again") == times)
    process.terminate()
    assert process.wait(120) == 75
    listener.join()
    assert process.stderr.read() == ""
    assert check(mongo_server.url, tmp_path / "sacred/1")["status"] == "INTERRUPTED"
    assert len(read(mongo_server.url).runs.find().to_list()) == 1


def test_cut_off_after_every_command(mongo_server, tmp_path, monkeypatch):
    """However little is written before the connection breaks, copying again makes it whole, and the same."""
    assert run_main(*GAME, "t_max=50", f"local_results_path={tmp_path}") == 0
    answer = MongoServer.answer
    left = 0

    def breaking(self, command, peer):
        nonlocal left
        reply = answer(self, command, peer)
        if next(iter(command)).lower() not in ("hello", "ismaster", "endsessions"):
            left -= 1
            if left < 0:  # it was done, but nobody hears of it
                raise OSError
        return reply

    monkeypatch.setattr(MongoServer, "answer", breaking)
    folder = tmp_path / "sacred/1"
    left, ends = 10**9, 0
    mongo.Copy(mongo.locate(mongo_server.url).open(), folder).sync()
    whole = dump(mongo_server.url)
    mongo_server.databases.clear()
    while True:
        ends += 4
        left = ends
        try:
            mongo.Copy(mongo.locate(mongo_server.url).open(), folder).sync()
        except pymongo.errors.PyMongoError:
            left = 10**9
            mongo.Copy(mongo.locate(mongo_server.url).open(), folder).sync()
            check(mongo_server.url, folder)
            now = dump(mongo_server.url)
            assert (now["runs"], now["metrics"]) == (whole["runs"], whole["metrics"])
            assert len(now["fs.chunks"]) == len(whole["fs.chunks"])
            mongo_server.databases.clear()
        else:
            break
    assert ends > 20


def test_a_slow_server_does_not_slow_training(mongo_server, tmp_path, monkeypatch):
    answer = MongoServer.answer

    def slow(self, command, peer):
        time.sleep(0.2)
        return answer(self, command, peer)

    monkeypatch.setattr(mongo, "ANSWER", 3.0)
    monkeypatch.setenv("MONGO_URL", mongo_server.url)
    monkeypatch.setattr(MongoServer, "answer", slow)
    monkeypatch.setattr(mongo, "LAST", 0.1)
    start = time.monotonic()
    assert run_main(*GAME, "t_max=50", f"local_results_path={tmp_path}") == 0
    assert time.monotonic() - start < 10
    assert json.loads((tmp_path / "sacred/1/run.json").read_text())["status"] == "COMPLETED"


def test_a_resumed_run(mongo_url, tmp_path):
    """Killed between two checkpoints: what it had logged behind the last one is gone from the database too."""
    often = ("checkpoint_interval=0.4", "log_interval=50", "runner_log_interval=50", "resume=auto", "-b", "1")
    process = launch(tmp_path, mongo_url, "t_max=100000000", *often)
    runs = read(mongo_url).runs
    until(lambda: runs.find_one() and list((tmp_path / "checkpoints").glob("*/[1-9]*/checkpoint.json")))
    time.sleep(1.5)  # a heartbeat or two
    process.kill()
    process.communicate(timeout=60)
    assert runs.find_one()["status"] == "RUNNING"
    process = launch(tmp_path, mongo_url, "t_max=100000000", *often, "max_hours=0.0005")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (75, "")
    assert re.search(r"Resumed at step \d+", out)
    run = check(mongo_url, tmp_path / "sacred/1")
    assert (run["status"], len(run["resumed"])) == ("INTERRUPTED", 1)
    assert runs.find().to_list() == [run]
    for one in read(mongo_url).metrics.find():
        assert one["steps"] == sorted(set(one["steps"])), one["name"]


def test_what_cannot_be_read_is_named(mongo_url, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MONGO_URL", mongo_url)
    for _ in range(2):
        assert run_main(*GAME, "t_max=20", f"local_results_path={tmp_path}", "-u") == 0
    assert sync(str(tmp_path)) == 2
    assert "holds no runs; give a folder of results" in error_line(capsys)
    for _ in range(2):
        monkeypatch.delenv("MONGO_URL", raising=False)
        assert run_main(*GAME, "t_max=20", f"local_results_path={tmp_path}") == 0
    monkeypatch.setenv("MONGO_URL", mongo_url)
    (tmp_path / "sacred/1/run.json").write_text('{"status": ')
    capsys.readouterr()
    assert sync(str(tmp_path)) == 1
    assert f"{tmp_path}/sacred/1: not a whole record of a run (JSONDecodeError" in error_line(capsys)
    check(mongo_url, tmp_path / "sacred/2")


# Secrets


def test_no_password_anywhere(tmp_path, monkeypatch, capsys):
    password = "p%40ss-of-nobody"
    with MongoServer(f"trainer:{password}") as server:
        monkeypatch.setenv("MONGO_URL", server.url)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        (tmp_path / "telltale.py").write_text(
            "import os, time\n"
            "def Env(*args, **kwargs):\n    print('to', os.environ['MONGO_URL'], 'by p@ss-of-nobody')\n"
            "    time.sleep(1)\n"  # sacred keeps what was printed until its last heartbeat
            "    raise RuntimeError(os.environ['MONGO_URL'])\n"
        )
        assert run_main(*GAME, "t_max=50", "save_model=True", f"local_results_path={tmp_path}") == 0
        check(server.url, tmp_path / "sacred/1")
        argv = ("t_max=50", "env=telltale:Env", f"local_results_path={tmp_path}", "-b", "0.2")
        assert run_main(*GAME, *argv) == 1
        assert sync(str(tmp_path)) == 0
        run = read(server.url).runs.find_one({"_id": 2})
        assert "to mongodb://***@127.0.0.1" in run["captured_out"]
        assert "by ***" in run["captured_out"]
        assert "RuntimeError: mongodb://***@127.0.0.1" in "".join(run["fail_trace"])
        stored = b"".join(document for documents in dump(server.url).values() for document in documents)
        capsys.readouterr()
        monkeypatch.setenv("MONGO_URL", server.url.replace(password, "wrong-of-nobody"))
        assert run_main(*GAME, "t_max=50", f"local_results_path={tmp_path}") == 0
        assert sync(str(tmp_path)) == 1
        shown = capsys.readouterr()
        assert "refuses (AuthenticationFailed); it lacks the end" in shown.out
        assert "refuses (AuthenticationFailed)" in shown.err
        assert "of-nobody" not in shown.out + shown.err
        (tmp_path / "telltale.py").unlink()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)  # its compiled copy
        for path in tmp_path.rglob("*"):
            assert path.is_dir() or b"of-nobody" not in path.read_bytes(), path
        assert b"of-nobody" not in stored


def test_a_password_on_the_command_line_is_refused(tmp_path, monkeypatch, capsys):
    secret = "mongodb://me:hidden-word@there/greed"
    results = f"local_results_path={tmp_path}"
    for argv in (["-m", secret], [f"--mongo_db={secret}"], ["nonsense", "more", "-m", secret]):
        assert run_main(*GAME, results, *argv) == 2
        assert "hidden-word" not in error_line(capsys)
    assert sync("--mongo", secret) == 2
    assert "belongs into the environment variable MONGO_URL" in error_line(capsys)
    monkeypatch.setenv("MONGO_URL", "mongodb://me:hidden-word")
    assert run_main(*GAME, results) == sync() == 2
    captured = capsys.readouterr()
    assert captured.err.count("MONGO_URL is not understood") == 2
    assert "hidden-word" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_of_sync_runs(capsys):
    assert sync("--help") == 0
    assert "MONGO_URL=mongodb://user:password@host:port/database" in capsys.readouterr().out
    assert sync() == 2
    assert "MongoDB: where? Set MONGO_URL" in error_line(capsys)
    assert sync("--nonsense") == 2
    assert "see --help" in error_line(capsys)
    logging.getLogger("greed").handlers.clear()
