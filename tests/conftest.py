"""Fixtures of several tests. That this file is here puts its folder on the import path, for `helpers`."""

import functools
import os
import signal
import uuid
from pathlib import Path

import pymongo
import pytest
import sacred.dependencies
import torch
from hypothesis import settings
from mongo_server import MongoServer

torch.set_num_threads(1)  # the networks are tiny: a second thread only waits, on a busy machine for long

# Sacred asks git for each imported file, which takes seconds in a process that has imported all tests.
_of_file = sacred.dependencies.get_commit_if_possible
_of_folder = functools.cache(lambda folder, wanted: _of_file(str(Path(folder) / "any.py"), wanted))
sacred.dependencies.get_commit_if_possible = lambda file, wanted: _of_folder(str(Path(file).parent), wanted)

# A real server that tests may use, in a database of their own; no run of another test is recorded there.
REAL_MONGO = os.environ.pop("MONGO_URL", "")
os.environ.pop("MONGO_URL_FILE", None)

settings.register_profile("untimed", deadline=None)  # a slow moment of the machine is no failure
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _denormals():
    """A run in the test's own process flushes denormals, and they would stay so for the tests after it."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(params=[1, 2])
def cores(request, monkeypatch):
    """What is large is computed by one core, or half of it by each of two, however small it is."""
    monkeypatch.setattr("utils.aside._allowed", True)  # whatever a run in an earlier test decided
    monkeypatch.setattr("utils.aside.LEAST_WORK", 0 if request.param == 2 else 2**60)
    return request.param


@pytest.fixture
def mongo_server():
    """A stand-in for MongoDB, which can be stopped and started."""
    with MongoServer() as server:
        yield server


@pytest.fixture
def mongo_url(mongo_server):
    """A database that is empty: of the server that MONGO_URL names, else of the stand-in."""
    if not REAL_MONGO:
        yield mongo_server.url
        return
    name = f"test_{uuid.uuid4().hex}"
    scheme, _, rest = REAL_MONGO.partition("://")
    place, _, options = rest.partition("?")
    host, _, database = place.partition("/")
    if "@" in host and "authSource=" not in options:
        options = f"authSource={database or 'admin'}&{options}"
    with pymongo.MongoClient(REAL_MONGO) as client:
        yield f"{scheme}://{host}/{name}?{options}"
        client.drop_database(name)


@pytest.fixture
def double():
    """Networks, batches and arithmetic in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def _heeded_interrupts():
    """A process that a shell started in the background ignores Ctrl-C, and so would its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
