"""A run's documents in MongoDB are its folder, whatever happened in between."""

import json
import math
import shutil
from datetime import datetime

import bson
import gridfs
import pymongo
import pytest

from utils import credentials, mongo
from utils.errors import UserError
from utils.mongo import Copy, locate

STAMP = "2026-11-22T10:00:00.123456"


def write_run(folder, uid="a" * 32, points=3, **changes):
    """A record as sacred and `RunFolder` write it."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = folder.parent / "_sources"
    sources.mkdir(exist_ok=True)
    (sources / "main_0.py").write_text("print()\n")
    (folder / "learning_curve.png").write_bytes(b"picture" * 100_000)  # more than one chunk
    run = {
        "experiment": {
            "name": "greed",
            "base_dir": "/src",
            "sources": [["main.py", "_sources/main_0.py"]],
            "dependencies": [],
        },
        "command": "train",
        "host": {"hostname": "here", "cpu": "one"},
        "start_time": STAMP,
        "heartbeat": "2026-11-22T10:00:10.5",
        "meta": {"options": {"--mongo_db": None}},
        "status": "RUNNING",
        "resources": [],
        "artifacts": ["learning_curve.png", "learning_curve.png", "lost.png"],
        "uid": uid,
    }
    (folder / "run.json").write_text(json.dumps(run | changes))
    (folder / "config.json").write_text(json.dumps({"name": "qmix", "env_args": {"k": -100}}))
    (folder / "cout.txt").write_text("one\ntwo\n")
    write_metrics(folder, loss=[0.5 * i for i in range(points)], odd=[math.nan, math.inf])
    return folder


def write_metrics(folder, **metrics):
    (folder / "metrics.json").write_text(
        json.dumps(
            {
                name: {"steps": list(range(len(values))), "values": values, "timestamps": [STAMP] * len(values)}
                for name, values in metrics.items()
            }
        )
    )


@pytest.fixture
def database(mongo_url):
    with pymongo.MongoClient(mongo_url) as client:
        yield client.get_default_database()


def dump(database) -> dict[str, list[bytes]]:
    """Every document, as it is stored."""
    return {
        name: [bson.encode(one) for one in database[name].find().sort("_id", 1)]
        for name in ("runs", "metrics", "fs.files", "fs.chunks")
    }


def test_a_run_in_sacreds_form(database, tmp_path):
    folder = write_run(tmp_path / "sacred/7", result={"test_return_mean": 8.0}, stop_time=STAMP, status="COMPLETED")
    assert Copy(database, folder).sync() == (1, "new")
    run = database.runs.find_one()
    assert (run["_id"], run["status"], run["format"]) == (1, "COMPLETED", "MongoObserver-0.7.0")
    assert run["config"] == {"name": "qmix", "env_args": {"k": -100}}
    assert run["start_time"] == run["stop_time"] == datetime(2026, 11, 22, 10, 0, 0, 123000)
    assert run["heartbeat"] == datetime(2026, 11, 22, 10, 0, 10, 500000)
    assert (run["captured_out"], run["result"]) == ("one\ntwo\n", {"test_return_mean": 8.0})
    loss, odd = (database.metrics.find_one({"_id": bson.ObjectId(one["id"])}) for one in run["info"]["metrics"])
    assert (loss["run_id"], loss["name"], loss["steps"], loss["values"]) == (1, "loss", [0, 1, 2], [0.0, 0.5, 1.0])
    assert loss["timestamps"] == [run["start_time"]] * 3
    assert (odd["name"], math.isnan(odd["values"][0]), odd["values"][1]) == ("odd", True, math.inf)
    grid = gridfs.GridFS(database)
    (picture,) = run["artifacts"]
    assert grid.get(picture["file_id"]).read() == (folder / picture["name"]).read_bytes()
    ((name, number),) = run["experiment"]["sources"]
    assert (name, grid.get(number).read()) == ("main.py", b"print()\n")
    assert set(run) - {"uid"} <= {
        *json.loads((folder / "run.json").read_text()),
        *bson.decode(dump(database)["runs"][0]),
    }


def test_twice_is_once(database, tmp_path):
    folder = write_run(tmp_path / "1")
    copy = Copy(database, folder)
    copy.sync()
    before = dump(database)
    assert copy.sync() == (1, "unchanged")
    assert Copy(database, folder).sync() == (1, "unchanged")
    assert dump(database) == before


def test_only_new_points_are_sent(mongo_server, tmp_path):
    """And nothing that grew is written whole again."""
    database = pymongo.MongoClient(mongo_server.url).get_default_database()
    folder = write_run(tmp_path / "1")
    copy = Copy(database, folder)
    copy.sync()
    mongo_server.commands.clear()
    copy.sync()
    assert set(mongo_server.commands) <= {"find", "hello", "ismaster"}
    write_metrics(folder, loss=[0.0, 0.5, 1.0, 9.0], odd=[math.nan, math.inf])
    mongo_server.commands.clear()
    assert copy.sync() == (1, "changed")
    assert mongo_server.commands.count("update") == 1
    assert database.metrics.find_one({"name": "loss"})["values"] == [0.0, 0.5, 1.0, 9.0]


def test_two_that_copy_the_same_run_at_once(database, tmp_path):
    folder = write_run(tmp_path / "1")
    one, other = Copy(database, folder), Copy(database, folder)
    one.sync()
    other.sync()
    write_metrics(folder, loss=[0.0, 0.5, 1.0, 9.0, 8.0])
    one.sync()
    assert other.sync()[0] == 1  # it does not know of what the first has added
    assert database.metrics.find_one({"name": "loss"})["values"] == [0.0, 0.5, 1.0, 9.0, 8.0]
    assert len(list(database.runs.find())) == 1


def test_what_was_rewound_is_replaced(database, tmp_path):
    folder = write_run(tmp_path / "1", points=50, status="FAILED", fail_trace=["no"], stop_time=STAMP)
    Copy(database, folder).sync()
    database.runs.update_one({"_id": 1}, {"$set": {"omniboard": {"notes": "mine"}}})
    write_run(tmp_path / "1", points=20, resumed=[STAMP])
    write_metrics(folder, loss=[7.0, 7.5])
    (folder / "learning_curve.png").write_bytes(b"another")
    copy = Copy(database, folder)
    assert copy.sync() == (1, "changed")
    run = database.runs.find_one()
    assert (run["status"], "stop_time" in run, "fail_trace" in run) == ("RUNNING", False, False)
    assert run["omniboard"] == {"notes": "mine"}  # what others have written there stays
    assert [(one["name"], one["values"]) for one in database.metrics.find()] == [("loss", [7.0, 7.5])]
    files = [one["filename"] for one in database["fs.files"].find()]
    assert sorted(files) == ["/src/main.py", f"artifact://runs/{'a' * 32}/learning_curve.png"]
    assert gridfs.GridFS(database).get(run["artifacts"][0]["file_id"]).read() == b"another"


def test_a_folder_that_was_moved_is_the_same_run(database, tmp_path):
    folder = write_run(tmp_path / "here/sacred/1")
    Copy(database, folder).sync()
    before = dump(database)
    shutil.move(folder.parent, tmp_path / "there")
    assert Copy(database, tmp_path / "there/1").sync() == (1, "unchanged")
    assert dump(database) == before


def test_the_same_number_on_two_machines(database, tmp_path):
    Copy(database, write_run(tmp_path / "one/1", "a" * 32)).sync()
    before = dump(database)
    assert Copy(database, write_run(tmp_path / "two/1", "b" * 32, points=5)).sync() == (2, "new")
    assert [bson.decode(one)["uid"][0] for one in dump(database)["runs"]] == ["a", "b"]
    for name, documents in before.items():
        assert set(documents) <= set(dump(database)[name])


def test_a_run_of_before_there_were_uids(database, tmp_path):
    folder = write_run(tmp_path / "1", uid=None)
    Copy(database, folder).sync()
    assert Copy(database, folder).sync() == (1, "unchanged")
    assert database.runs.find_one()["uid"] == f"{STAMP} here"


def test_beside_runs_of_sacreds_own(database, tmp_path):
    database.runs.insert_one({"_id": 41, "status": "COMPLETED"})
    database.runs.insert_one({"_id": "named", "status": "COMPLETED"})
    assert Copy(database, write_run(tmp_path / "1")).sync() == (42, "new")


def test_what_an_interrupted_upload_left_is_replaced(database, tmp_path):
    folder = write_run(tmp_path / "1")
    Copy(database, folder).sync()
    before = dump(database)
    for file in database["fs.files"].find():
        database["fs.chunks"].delete_one({"files_id": file["_id"], "n": 1})
        database["fs.files"].delete_one({"_id": file["_id"]})
    database.metrics.delete_one({"name": "odd"})
    assert Copy(database, folder).sync() == (1, "changed")
    after = dump(database)
    assert after["metrics"] == before["metrics"]
    assert after["runs"] == before["runs"]
    assert len(after["fs.chunks"]) == len(before["fs.chunks"])


def test_what_is_too_long_for_a_document(database, tmp_path, monkeypatch):
    monkeypatch.setattr(mongo, "MAX_TEXT", 5)
    monkeypatch.setattr(mongo, "MAX_POINTS", 10)
    folder = write_run(tmp_path / "1", points=21)
    copy = Copy(database, folder)
    copy.sync()
    run, loss = database.runs.find_one(), database.metrics.find_one({"name": "loss"})
    assert run["captured_out"] == "\ntwo\n"
    assert loss["steps"] == [0, 4, 8, 12, 16, 20]
    assert [one["name"] for one in run["artifacts"]] == ["learning_curve.png"]
    write_run(folder, points=21, status="COMPLETED")
    copy.sync()
    run = database.runs.find_one()
    whole = {one["name"]: gridfs.GridFS(database).get(one["file_id"]).read() for one in run["artifacts"]}
    assert whole["cout.txt"] == b"one\ntwo\n"
    assert whole["metrics.json"] == (folder / "metrics.json").read_bytes()


# Where the server is


@pytest.mark.parametrize(
    ("text", "url", "database"),
    [
        ("there:27018:greed", "mongodb://there:27018", "greed"),
        ("there:27018", "mongodb://there:27018", "sacred"),
        ("greed", "mongodb://localhost:27017", "greed"),
        ("mongodb://there/greed?tls=true", "mongodb://there/greed?tls=true", "greed"),
        ("mongodb+srv://there.net/greed", "mongodb+srv://there.net/greed", "greed"),
        ("mongodb://there", "mongodb://there", "sacred"),
    ],
)
def test_servers(text, url, database, monkeypatch):
    for option, variable in ((text, ""), (None, text)):
        monkeypatch.setenv("MONGO_URL", variable)
        server = locate(option)
        assert (server.url, server.database) == (url, database)


@pytest.mark.parametrize(
    "text", ["a:b:c", "there:27018:greed.runs:7", "http://there", "mongodb://there:port", "a:1:b:2"]
)
def test_servers_that_are_not_understood(text, monkeypatch):
    with pytest.raises(UserError, match="not understood; write host:port:database"):
        locate(text)
    monkeypatch.setenv("MONGO_URL", text)
    with pytest.raises(UserError, match="MONGO_URL is not understood; write mongodb://"):
        locate()


def test_a_password_comes_from_the_environment_or_a_file(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="belongs into the environment variable MONGO_URL") as error:
        locate("mongodb://me:secret@there/greed")
    assert "secret" not in f"{error.value}"
    with pytest.raises(UserError, match="MongoDB: where"):
        locate()
    (tmp_path / "url").write_text("mongodb://me:secret@there/greed\n")
    monkeypatch.setenv("MONGO_URL_FILE", str(tmp_path / "url"))
    server = locate()
    assert (server.url, server.database) == ("mongodb://me:secret@there/greed", "greed")
    assert f"{server}" == "MongoDB at mongodb://***@there/greed"
    assert "secret" not in repr(server)
    assert locate("here:1:other").database == "other"
    monkeypatch.setenv("MONGO_URL_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"MONGO_URL_FILE='.*none' cannot be read"):
        locate()
    (tmp_path / "url").write_text("\n")
    monkeypatch.setenv("MONGO_URL_FILE", str(tmp_path / "url"))
    with pytest.raises(UserError, match="is empty"):
        locate()


def test_hidden(monkeypatch):
    monkeypatch.setenv("MONGO_URL", "mongodb://me:p%40ss-word@there/greed")
    value = {"a": ["to mongodb://me:p%40ss-word@there/greed", 12345678], "b": ("it is p@ss-word", "or p%40ss-word")}
    hidden = {"a": ["to mongodb://***@there/greed", 12345678], "b": ["it is ***", "or ***"]}
    assert credentials.hide(value) == hidden
    assert credentials.hide(hidden) == hidden
    monkeypatch.setenv("MONGO_URL", "mongodb://me:qmix@there")
    assert credentials.hide("qmix at http://you:qmix@here") == "qmix at http://***@here"
    monkeypatch.delenv("MONGO_URL")
    assert credentials.hide("s3://you:me@here and a@b") == "s3://***@here and a@b"
