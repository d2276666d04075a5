"""A server that speaks MongoDB's wire protocol and keeps documents in memory.

As much of it as a run's record and Omniboard need.
"""

import socketserver
import struct
import threading
from typing import Any
from urllib.parse import unquote

import bson
from bson import Int64

OP_QUERY, OP_MSG, OP_REPLY = 2004, 2013, 1  # the first: only how old drivers say hello
HELLO = {"ok": 1.0, "ismaster": True, "isWritablePrimary": True, "minWireVersion": 0, "maxWireVersion": 21}
HELLO |= {"maxBsonObjectSize": 2**24, "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000}


class MongoServer:
    """Listens on a free port while it is started; what it holds stays when it is stopped.

    Args:
        login: "user:password" that clients must give (authMechanism=PLAIN); empty: they need none.
    """

    def __init__(self, login: str = ""):
        self.login = login
        self.databases: dict[str, dict[str, Collection]] = {}
        self.lock = threading.Lock()
        self.commands: list[str] = []  # by name, as they came
        self.port = 0
        self._server: Any = None
        self._connections: set = set()

    def __enter__(self) -> "MongoServer":
        self.start()
        return self

    def __exit__(self, *error) -> None:
        if self._server is not None:
            self.stop()

    @property
    def url(self) -> str:
        login = f"{self.login}@" if self.login else ""
        return f"mongodb://{login}127.0.0.1:{self.port}/greed" + ("?authMechanism=PLAIN" if self.login else "")

    def start(self) -> None:
        """Listen, after a stop where it did before."""
        socketserver.ThreadingTCPServer.allow_reuse_address = True
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", self.port), _Connection)
        self._server.daemon_threads, self._server.mongo = True, self
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Cut all connections and listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        for connection in list(self._connections):
            connection.shutdown(2)

    def collection(self, database: str, name: str) -> "Collection":
        return self.databases.setdefault(database, {}).setdefault(name, Collection())

    def answer(self, command: dict[str, Any], peer: dict[str, bool]) -> dict[str, Any]:
        name = next(iter(command))
        self.commands.append(name)
        if name.lower() in ("hello", "ismaster"):
            return HELLO
        if name == "saslStart":
            _, user, password = bytes(command["payload"]).decode().split("\0")
            peer["known"] = self.login == f"{user}:{password}" or unquote(self.login) == f"{user}:{password}"
            if peer["known"]:
                return {"ok": 1.0, "conversationId": 1, "done": True, "payload": b""}
            return _error(18, "AuthenticationFailed")
        if name in ("endSessions", "killCursors", "ping"):
            return {"ok": 1.0}
        if self.login and not peer.get("known"):
            return _error(13, "Unauthorized")
        if name == "dropDatabase":
            self.databases.pop(command["$db"], None)
            return {"ok": 1.0}
        if name not in ("find", "aggregate", "distinct", "insert", "update", "delete", "createIndexes", "listIndexes"):
            return _error(59, "CommandNotFound")
        return getattr(self.collection(command["$db"], command[name]), name)(command)


class _Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        mongo, peer = self.server.mongo, {}
        mongo._connections.add(self.request)
        try:
            while head := self.request.recv(16, 0x100):  # MSG_WAITALL
                size, request, _, kind = struct.unpack("<iiii", head)
                body = self.request.recv(size - 16, 0x100)
                command = _read_query(body) if kind == OP_QUERY else _read_message(body)
                with mongo.lock:
                    reply = bson.encode(mongo.answer(command, peer))
                head = struct.pack("<iqii", 8, 0, 0, 1) if kind == OP_QUERY else struct.pack("<ib", 0, 0)
                kind = OP_REPLY if kind == OP_QUERY else OP_MSG
                self.request.sendall(struct.pack("<iiii", 16 + len(head) + len(reply), 1, request, kind) + head + reply)
        except (OSError, struct.error):
            pass  # cut off
        finally:
            mongo._connections.discard(self.request)


def _read_query(body: bytes) -> dict[str, Any]:
    return bson.decode(body[body.index(b"\0", 4) + 9 :])


def _read_message(body: bytes) -> dict[str, Any]:
    """One document, and sequences of documents, each behind its name."""
    command: dict[str, Any] = {}
    sequences: dict[str, Any] = {}
    at = 4
    while at < len(body):
        kind, (size,) = body[at], struct.unpack_from("<i", body, at + 1)
        content = body[at + 1 : at + 1 + size]
        if kind == 0:
            command = bson.decode(content)
        else:
            end = content.index(b"\0", 4)
            sequences[content[4:end].decode()] = bson.decode_all(content[end + 1 :])
        at += 1 + size
    return command | sequences


class Collection:
    """Documents in the order in which they came, and which of their fields are unique."""

    def __init__(self):
        self.documents: list[dict[str, Any]] = []
        self.unique: list[tuple[str, ...]] = [("_id",)]

    def find(self, command):
        found = [one for one in self.documents if _matches(one, command.get("filter", {}))]
        for key, direction in reversed(command.get("sort", {}).items()):
            found.sort(key=lambda one: one[key], reverse=direction < 0)
        found = found[command.get("skip", 0) :]
        found = found[: abs(command.get("limit", 0)) or None]
        if wanted := [key for key, value in command.get("projection", {}).items() if value]:
            found = [{key: one[key] for key in ("_id", *wanted) if key in one} for one in found]
        return _cursor(command, found)

    def aggregate(self, command):
        found = self.documents
        for stage in command["pipeline"]:
            ((name, what),) = stage.items()
            match name:
                case "$match":
                    found = [one for one in found if _matches(one, what)]
                case "$project":
                    found = [_project(one, what) for one in found]
                case "$addFields":
                    found = [one | {key: _evaluate(value, one) for key, value in what.items()} for one in found]
                case "$sort":
                    ((key, direction),) = what.items()
                    found = sorted(found, key=lambda one: _look(one, key), reverse=direction < 0)
                case "$skip":
                    found = found[what:]
                case "$limit":
                    found = found[:what]
                case "$count":
                    found = [{what: len(found)}] if found else []
                case _:
                    raise NotImplementedError(name)
        return _cursor(command, found)

    def distinct(self, command):
        values: list = []
        for one in self.documents:
            value = _look(one, command["key"])
            for each in value if isinstance(value, list) else [value]:
                if each is not None and each not in values and _matches(one, command.get("query", {})):
                    values.append(each)
        return {"ok": 1.0, "values": values}

    def insert(self, command):
        for i, one in enumerate(command["documents"]):
            if self._taken(one):
                return {"ok": 1.0, "n": i, "writeErrors": [{"index": i, "code": 11000, "errmsg": "E11000 duplicate"}]}
            self.documents.append(one)
        return {"ok": 1.0, "n": len(command["documents"])}

    def update(self, command):
        matched, upserted = 0, []
        for i, one in enumerate(command["updates"]):
            found = [document for document in self.documents if _matches(document, one["q"])][:1]
            for document in found:
                _change(document, one["u"])
            matched += len(found)
            if not found and one.get("upsert"):
                new = dict(one["q"]) | one["u"]
                self.documents.append(new)
                upserted.append({"index": i, "_id": new["_id"]})
        answer = {"ok": 1.0, "n": matched + len(upserted), "nModified": matched}
        return answer | ({"upserted": upserted} if upserted else {})

    def delete(self, command):
        before = len(self.documents)
        for one in command["deletes"]:
            gone = [document for document in self.documents if _matches(document, one["q"])]
            gone = gone[: one["limit"] or None]
            self.documents = [document for document in self.documents if document not in gone]
        return {"ok": 1.0, "n": before - len(self.documents)}

    def createIndexes(self, command):
        self.unique += [tuple(index["key"]) for index in command["indexes"] if index.get("unique")]
        return {"ok": 1.0}

    def listIndexes(self, command):
        return _cursor(
            command, [{"v": 2, "key": dict.fromkeys(keys, 1), "name": "_".join(keys)} for keys in self.unique]
        )

    def _taken(self, new: dict[str, Any]) -> bool:
        keys = [keys for keys in self.unique if all(key in new for key in keys)]
        return any(all(one.get(key) == new[key] for key in of) for of in keys for one in self.documents)


def _look(document: dict[str, Any], path: str) -> Any:
    value: Any = document
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _project(document: dict[str, Any], wanted: dict[str, int]) -> dict[str, Any]:
    if any(wanted.values()):
        return {key: document[key] for key in document if key == "_id" or wanted.get(key)}
    return {key: document[key] for key in document if key not in wanted}


def _evaluate(what: Any, document: dict[str, Any]) -> Any:
    """An expression of an aggregation."""
    if isinstance(what, str) and what.startswith("$"):
        return _look(document, what[1:])
    if not isinstance(what, dict):
        return what
    ((operator, operand),) = what.items()
    if operator == "$cond":
        return _evaluate(operand["then" if _evaluate(operand["if"], document) else "else"], document)
    values = [_evaluate(one, document) for one in operand]
    if operator == "$and":
        return all(values)
    one, other = values
    match operator:
        case "$eq":
            return one == other
        case "$gt":
            return one is not None and one > other
        case "$ifNull":
            return other if one is None else one
        case "$subtract":
            return None if None in values else Int64((one - other).total_seconds() * 1000)
    raise NotImplementedError(operator)


def _matches(document: dict[str, Any], query: dict[str, Any]) -> bool:
    for path, wanted in query.items():
        value = _look(document, path)
        if not isinstance(wanted, dict):
            wanted = {"$eq": wanted}
        if not all(_holds(operator, operand, value) for operator, operand in wanted.items()):
            return False
    return True


def _holds(operator: str, operand: Any, value: Any) -> bool:
    match operator:
        case "$eq":
            return value == operand
        case "$in":
            return value in operand
        case "$size":
            return isinstance(value, list) and len(value) == operand
        case "$type":
            assert operand == "number"
            return isinstance(value, int | float)
    raise NotImplementedError(operator)


def _change(document: dict[str, Any], change: dict[str, Any]) -> None:
    if not next(iter(change)).startswith("$"):
        number = document["_id"]
        document.clear()
        document.update({"_id": number} | change)
        return
    document.update(change.get("$set", {}))
    for key in change.get("$unset", {}):
        document.pop(key, None)
    for key, new in change.get("$push", {}).items():
        document[key] += new["$each"]


def _cursor(command: dict[str, Any], documents: list) -> dict[str, Any]:
    name = next(iter(command))
    return {"ok": 1.0, "cursor": {"id": Int64(0), "ns": f"{command['$db']}.{command[name]}", "firstBatch": documents}}


def _error(code: int, name: str) -> dict[str, Any]:
    return {"ok": 0.0, "code": code, "codeName": name, "errmsg": name}
