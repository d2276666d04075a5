"""The record in MongoDB, a copy of the run's folder in the form of sacred's MongoObserver, which Omniboard shows.

The folder is the truth. Whatever is copied is compared with what the database holds, and only differences are written:
copying twice changes nothing, and copying after a failure, wherever it struck, mends what is missing.

    runs       one document per run, without its measurements
    metrics    one document per metric of a run: {run_id, name, steps, values, timestamps}
    fs.*       sources and artifacts (GridFS), named by their content

A run is known by the `uid` of its run.json, wherever its folder lies: what two machines call run 1 are two runs here.
Its number in the database is the next one that is free.
"""

import hashlib
import json
import logging
import mimetypes
import re
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import bson
import gridfs
import pymongo
from bson import ObjectId
from bson.errors import BSONError
from pymongo import errors
from pymongo.uri_parser import parse_uri
from sacred.observers import MongoObserver, RunObserver

from utils.credentials import hide, masked, mongo_url
from utils.errors import UserError
from utils.record import identity

EVERY = 20.0  # seconds between two copies of a run that is under way; more, if they would take more of its time than
SHARE = 0.02
LAST = 60.0  # seconds that the end of a run waits for its last copy
ANSWER = 3.0  # seconds in which a server must answer
# A document may have 16 MiB. What is longer is shortened there, and its file is stored whole when the run has ended.
MAX_TEXT = 2**20  # characters of the output: the last ones
MAX_POINTS = 200_000  # of a metric: every second one, or fourth, ...

Word = Literal["new", "changed", "unchanged"]  # what became of a run
POINTS = ("steps", "values", "timestamps")
DATES = ("start_time", "stop_time", "heartbeat")
OPTIONAL = ("stop_time", "fail_trace", "resumed")  # a run that goes on loses what it had
FAILURES = (errors.PyMongoError, BSONError, OSError, ValueError, OverflowError)

# Sacred's -m: host:port, host:port:database or a database of this machine.
SHORT = re.compile(r"(?:(?P<host>[\w.-]+:\d{1,5})(?:$|:(?=.)))?(?P<database>[A-Za-z_][\w-]*)?")


@dataclass(frozen=True)
class Server:
    """A database and where it is. Shown without its credentials."""

    url: str = field(repr=False)
    database: str

    def __str__(self) -> str:
        return f"MongoDB at {masked(self.url)}"

    def open(self) -> Any:
        """The database; whether it answers shows when it is asked."""
        milliseconds = int(1000 * ANSWER)
        client: Any = pymongo.MongoClient(
            self.url,
            serverSelectionTimeoutMS=milliseconds,
            connectTimeoutMS=milliseconds,
            socketTimeoutMS=10 * milliseconds,
        )
        return client[self.database]


def locate(option: str | None = None) -> Server:
    """The server that a command line names (as sacred's -m or as a URL), else the environment.

    Raises:
        UserError: neither does, it is not understood, or a command line, which everybody can read, has a password.
    """
    if option and "@" in option:
        raise UserError(
            "MongoDB: a URL with a password belongs into the environment variable MONGO_URL, or into a file that "
            "MONGO_URL_FILE names; command lines are seen by everybody"
        )
    text = option or mongo_url()
    if not text:
        raise UserError("MongoDB: where? Set MONGO_URL or MONGO_URL_FILE, or name host:port:database")
    if short := SHORT.fullmatch(text):
        return Server(f"mongodb://{short['host'] or 'localhost:27017'}", short["database"] or "sacred")
    try:
        asks = text.startswith("mongodb+srv://")  # parsing it would ask a name server
        database = urlsplit(text).path.strip("/") if asks else parse_uri(text)["database"]
    except (errors.PyMongoError, ValueError, TypeError):  # their words, and what the URL holds, may be a password
        if option:
            raise UserError(
                f"MongoDB at {option}: not understood; write host:port:database, host:port or database"
            ) from None
        raise UserError(
            "MONGO_URL is not understood; write "
            "mongodb://user:password@host:port/database, the password through urllib.parse.quote_plus"
        ) from None
    return Server(text, database or "sacred")


def reason(error: BaseException) -> str:
    """What a server does instead of what it was asked, without what may be secret."""
    if isinstance(error, errors.OperationFailure):
        return f"refuses ({(error.details or {}).get('codeName', error.code)})"
    if isinstance(error, errors.ConfigurationError):
        return "has a URL that is not understood, or a name that is not found"
    if isinstance(error, errors.ConnectionFailure):
        found = re.search(r"\[Errno -?\d+\] [\w ]*\w|timed out|SSL\w*", f"{error}")
        return f"does not answer ({found[0]})" if found else "does not answer"
    return hide(f"cannot be filled ({type(error).__name__}: {error})")


class Copy:
    """Makes the documents of one run equal to its folder.

    Args:
        database: of pymongo.
        folder: results/sacred/<id>.
    """

    def __init__(self, database, folder: Path):
        self.runs, self.metrics, self.files = database["runs"], database["metrics"], database["fs.files"]
        self.grid = gridfs.GridFS(database)
        self.folder = folder
        self.forget()

    def forget(self) -> None:
        """Compare with everything the database holds when it is next asked, not with what it held."""
        self._points: dict[ObjectId, tuple[int, bytes]] | None = None  # of each metric: how many, and their checksum
        self._stored: set[ObjectId] = set()  # files

    def sync(self) -> tuple[int, Word]:
        """Write what differs; returns the run's number and whether it was "new", "changed" or "unchanged".

        Raises:
            OSError, ValueError: the folder cannot be read.
            PyMongoError: the database does not answer, or refuses.
        """
        record = json.loads((self.folder / "run.json").read_text())
        uid = identity(record)
        metrics = self._read_metrics(uid)
        files = self._read_files(uid, record)
        document = self._describe(uid, record, metrics, files)
        found, word = self.runs.find_one({"uid": uid}), None
        if found is None:
            self.forget()
            found, word = self._insert(document), "new"
        number = found["_id"]
        changed = self._write_metrics(number, metrics)
        changed |= self._write_files(files)
        update = {
            "$set": {key: value for key, value in document.items() if key not in found or differ(found[key], value)},
            "$unset": {key: "" for key in OPTIONAL if key in found and key not in document},
        }
        if update := {operator: fields for operator, fields in update.items() if fields}:
            self.runs.update_one({"_id": number}, update)
            changed = True
        for old in self.files.find({"metadata.uid": uid}, {"_id": 1}):
            if old["_id"] not in files:  # replaced since
                self.grid.delete(old["_id"])
        return number, word or ("changed" if changed else "unchanged")

    def _read_metrics(self, uid: str) -> list[dict[str, Any]]:
        """The metrics, without the run's number."""
        file = self.folder / "metrics.json"
        found = json.loads(file.read_text()) if file.exists() else {}
        documents = []
        for name, points in found.items():
            stride = 1
            while len(points["steps"]) > MAX_POINTS * stride:
                stride *= 2
            points = {key: points[key][::stride] for key in POINTS}
            points["timestamps"] = [date(stamp) for stamp in points["timestamps"]]
            documents.append({"_id": object_id(uid, name), "name": name, **points, "stride": stride})
        return documents

    def _read_files(self, uid: str, record: dict[str, Any]) -> dict[ObjectId, dict[str, Any]]:
        """Sources and artifacts: what GridFS says of each, and its content, by its number there."""
        artifacts = list(dict.fromkeys(record.get("artifacts", [])))
        if record["status"] != "RUNNING":
            artifacts += [name for name in ("cout.txt", "metrics.json") if self._too_long(name)]
        experiment = record["experiment"]
        wanted = [
            (self.folder / name, {"filename": f"artifact://runs/{uid}/{name}", "metadata": {"uid": uid, "name": name}})
            for name in artifacts
        ] + [
            (self.folder.parent / stored, {"filename": f"{experiment['base_dir']}/{name}", "metadata": {"name": name}})
            for name, stored in experiment["sources"]
        ]
        found = {}
        for path, about in wanted:
            if path.is_file():
                content = path.read_bytes()
                about["contentType"] = mimetypes.guess_type(path.name)[0]
                found[object_id(about["filename"], content)] = {"data": content, **about}
        return found

    def _too_long(self, name: str) -> bool:
        """Whether a document holds less than this file."""
        path = self.folder / name
        if not path.exists():
            return False
        if name == "cout.txt":
            return path.stat().st_size > MAX_TEXT
        return any(len(points["steps"]) > MAX_POINTS for points in json.loads(path.read_text()).values())

    def _describe(self, uid: str, record: dict[str, Any], metrics, files) -> dict[str, Any]:
        """The document of the run, without its number."""
        numbers = {file["metadata"]["name"]: number for number, file in files.items() if "uid" in file["metadata"]}
        sources = {file["metadata"]["name"]: number for number, file in files.items() if "uid" not in file["metadata"]}
        info = self.folder / "info.json"
        output = self.folder / "cout.txt"
        document = {
            **record,
            "uid": uid,
            "format": MongoObserver.VERSION,
            "experiment": {**record["experiment"], "sources": [[name, number] for name, number in sources.items()]},
            "config": json.loads((self.folder / "config.json").read_text()),
            "artifacts": [{"name": name, "file_id": number} for name, number in numbers.items()],
            "captured_out": output.read_bytes().decode(errors="replace")[-MAX_TEXT:] if output.exists() else "",
            "info": {
                **(json.loads(info.read_text()) if info.exists() else {}),
                "metrics": [{"name": one["name"], "id": str(one["_id"])} for one in metrics],
            },
            "result": record.get("result"),
        }
        for key in DATES:
            if document.get(key):
                document[key] = date(document[key])
        return document

    def _insert(self, document: dict[str, Any]) -> dict[str, Any]:
        """A new run, with the next number; the run as it is there, if another process was quicker."""
        self.runs.create_index("uid", unique=True, sparse=True)
        self.metrics.create_index([("run_id", 1), ("name", 1)])
        while True:
            last = self.runs.find_one({"_id": {"$type": "number"}}, {"_id": 1}, sort=[("_id", -1)])
            new = {"_id": 1 if last is None else int(last["_id"]) + 1, **document}
            try:
                self.runs.insert_one(new)
                return new
            except errors.DuplicateKeyError:
                if found := self.runs.find_one({"uid": document["uid"]}):
                    return found

    def _write_metrics(self, number: int, metrics: list[dict[str, Any]]) -> bool:
        """Returns whether anything was written."""
        if self._points is None:
            self._points = {one["_id"]: checksum(one) for one in self.metrics.find({"run_id": number})}
        changed = False
        for one in metrics:
            known, now = self._points.get(one["_id"]), checksum(one)
            if known == now:
                continue
            changed = True
            added = False
            if known is not None and known == checksum(one, known[0]):
                # Only if nobody else has added them: otherwise they would be there twice.
                same = {"_id": one["_id"], "run_id": number, "stride": one["stride"], "steps": {"$size": known[0]}}
                new = {key: {"$each": one[key][known[0] :]} for key in POINTS}
                added = bool(self.metrics.update_one(same, {"$push": new}).matched_count)
            if not added:
                document = {"_id": one["_id"], "run_id": number, **one}
                self.metrics.replace_one({"_id": one["_id"]}, document, upsert=True)
            self._points[one["_id"]] = now
        if gone := list(self._points.keys() - {one["_id"] for one in metrics}):
            self.metrics.delete_many({"_id": {"$in": gone}})
            self._points = {key: value for key, value in self._points.items() if key not in gone}
            changed = True
        return changed

    def _write_files(self, files: dict[ObjectId, dict[str, Any]]) -> bool:
        """Returns whether anything was written."""
        changed = False
        for number, file in files.items():
            if number in self._stored:
                continue
            if not self.grid.exists(number):
                self.grid.delete(number)  # what an upload that was cut off has left
                self.grid.put(**file, _id=number)
                changed = True
            self._stored.add(number)
        return changed


class MongoRecord(RunObserver):
    """Copies the run's folder into MongoDB while it trains, in a thread for which training never waits.

    Args:
        basedir: results/sacred.
    """

    priority = 10  # after the folder's own observer

    def __init__(self, server: Server, basedir: Path, log: logging.Logger):
        self.server, self.basedir, self.log = server, basedir, log
        self._copy: Copy | None = None
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._reached = False
        self._trouble = ""  # what the last copy failed for

    def started_event(self, ex_info, command, host_info, start_time, config, meta_info, _id):
        self.folder = self.basedir / str(_id)
        self._thread = threading.Thread(target=self._keep, name="MongoDB", daemon=True)
        self._thread.start()

    def completed_event(self, stop_time, result):
        self._ended.set()

    def interrupted_event(self, interrupt_time, status):
        self._ended.set()

    def failed_event(self, fail_time, fail_trace):
        self._ended.set()

    def join(self) -> None:
        """Let the last copy be made, if the server answers."""
        if self._thread is None:
            return
        self._thread.join(LAST)
        if self._thread.is_alive() or self._trouble or not self._reached:
            self.log.warning(
                "%s %s; it lacks the end of this run, which python src/sync_runs.py %s brings there",
                *(self.server, self._trouble or "is slow", self.folder),
            )

    def _keep(self) -> None:
        while True:
            started = time.thread_time()
            last = self._ended.is_set()  # asked before the folder is read
            if last and self._copy is not None:
                self._copy.forget()
            self._attempt()
            if last:
                return
            self._ended.wait(max(EVERY, (time.thread_time() - started) / SHARE))

    def _attempt(self) -> None:
        try:
            if self._copy is None:
                self._copy = Copy(self.server.open(), self.folder)
            number, _ = self._copy.sync()
        except FAILURES as error:
            if self._copy is not None:
                self._copy.forget()
            before, self._trouble = self._trouble, reason(error)
            if not before and not self._ended.is_set():
                self.log.warning(
                    "%s %s; training goes on, %s holds its record, and MongoDB is tried again every %d seconds",
                    *(self.server, self._trouble, self.folder, EVERY),
                )
        else:
            if self._trouble or not self._reached:
                word = "answers again" if self._trouble else "is there"
                self.log.info("%s %s, and has this run as number %d", self.server, word, number)
            self._reached, self._trouble = True, ""


def object_id(*parts: str | bytes) -> ObjectId:
    """A number that follows from what it stands for, so that the same is never there twice."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return ObjectId(digest.digest()[:12])


def date(stamp: str) -> datetime:
    """A time as MongoDB keeps it, in milliseconds."""
    found = datetime.fromisoformat(stamp)
    return found.replace(microsecond=found.microsecond // 1000 * 1000)


def checksum(metric: dict[str, Any], count: int | None = None) -> tuple[int, bytes]:
    """How many points a metric has, and a checksum of them; of the first `count`."""
    points = {key: metric[key][:count] for key in POINTS}
    return len(points["steps"]), hashlib.sha256(bson.encode({**points, "stride": metric.get("stride")})).digest()


def differ(one: Any, other: Any) -> bool:
    """Whether two values are different documents; not a number equals itself."""
    return bson.encode({"": one}) != bson.encode({"": other})
