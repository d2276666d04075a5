"""src/doctor.py: what it says of things that are there, missing or broken, and how it ends."""

import ast
import importlib.util
import json
import os
import shutil
import socketserver
import struct
import subprocess
import sys
import threading
from pathlib import Path

import bson
import pytest
import torch

import doctor
from config.schema import load
from doctor import MISSING, NOT_NEEDED, NOTE, OK, PROBLEM, Case, Finding
from utils import native

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "src/doctor.py"
MIB = 2**20
RUN = {  # what the probe `run` answers
    **{"n_agents": 3, "n_actions": 9, "obs_shape": 30, "state_shape": 48, "episode_limit": 60},
    **{"episode_bytes": MIB, "replay_bytes": MIB, "update_bytes": 50 * MIB, "model_bytes": 2 * MIB},
    **{"worker_bytes": 60 * MIB, "process_bytes": 500 * MIB},
}
GPU = {"name": "H200", "free": 100 * 2**30, "total": 140 * 2**30}
TORCH = {"version": "2.13.0", "cuda": "13.0", "gpus": [], "why": "", "host_free": 30 * 2**30}
ANSWERS = {
    "torch": TORCH,
    "run": RUN,
    "kernels": {"there": True, "processor": "AVX512"},
    "jax": {"version": "0.10.2", "backend": "cpu", "devices": ["cpu"]},
    "record": {"version": "0.8.7", "commit": "c8a411e000000", "changed": False},
    "smac": {"protobuf": "upb", "messages": "", "versions": {"4.10.0": 75689}, "maps": {"3m": "SMAC_Maps/3m.SC2Map"}},
    "smacv2": {"maps": {"10gen_terran": "SMAC_Maps/32x32_flat.SC2Map"}},
    "mongo": {"url": "mongodb://host", "version": "8.0"},
}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch, tmp_path):
    for name in ("MONGO_URL", "CUDA_VISIBLE_DEVICES", "SC2PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


def case(alg: str | None = "qmix", env="matrix_games", answers=None, **overrides) -> Case:
    """What is examined: this config, and what the probes would have found but for `answers`."""
    return Case(load(alg, env, overrides) if alg else None, {**ANSWERS, **(answers or {})})


def row(item: str, examined: Case) -> doctor.Row:
    return next(row for row in doctor.examine(examined) if row.item == item)


def broken(text: str, users_fault: bool = False) -> dict:
    return {"error": text, "users_fault": users_fault}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Puts a module of this source before all others, for the probes."""

    def make(name: str, source: str) -> None:
        file = tmp_path / "site" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)

    return make


# Python and the machine


def test_this_python():
    assert doctor.check_python(case()).mark == OK


def test_an_old_python_is_refused_and_can_still_read_the_program():
    found = doctor.check_python(case(), (3, 10, 12))
    assert found.mark == PROBLEM
    assert "3.10.12" in found.text
    assert "Python 3.11" in found.remedy
    utils = ("arguments", "cores", "credentials", "errors", "titles")
    for file in (PROGRAM, *(PROGRAM.parent / f"utils/{name}.py" for name in utils)):
        tree = ast.parse(file.read_text(), feature_version=(3, 9))
        at_once = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in at_once if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in at_once if isinstance(node, ast.ImportFrom)}
        others = {name for name in names if name.partition(".")[0] not in sys.stdlib_module_names}
        assert others <= {f"utils.{name}" for name in utils}


def test_the_cores_of_a_container(tmp_path):
    quota = tmp_path / "cpu.max"
    quota.write_text("100000 100000\n")
    assert doctor.core_count(quota) == 1
    quota.write_text("max 100000\n")
    assert doctor.core_count(quota) == len(os.sched_getaffinity(0))
    assert doctor.core_count(tmp_path / "nothing") == len(os.sched_getaffinity(0))


def test_the_parallel_runner_needs_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert doctor.check_platform(case(runner="parallel")).mark == PROBLEM
    assert doctor.check_platform(case()).mark == OK


def test_what_a_run_needs_of_the_host():
    settings = {"runner": "parallel", "batch_size_run": 8, "test_nepisode": 5, "buffer_size": 100, "batch_size": 32}
    config = case(**settings).config
    process = 500 * MIB + doctor.RECORD_BYTES
    update = 50 * MIB + (32 + 8) * MIB
    expected = [process, 100 * MIB, update, (8 + 5) * 60 * MIB]  # tests have processes of their own
    assert list(doctor.host_needs(config, RUN, on_gpu=False).values()) == expected
    config["env"] = "sc2"
    assert list(doctor.host_needs(config, RUN, on_gpu=False).values()) == [*expected, 13 * doctor.GAME_BYTES]
    config["runner"] = "episode"  # one game, in no process of its own
    assert list(doctor.host_needs(config, RUN, on_gpu=False).values()) == [*expected[:3], doctor.GAME_BYTES]
    config["evaluate"] = True
    assert doctor.host_needs(config, RUN, on_gpu=False)["replay of 0 episodes"] == 0


def test_what_a_run_needs_of_the_gpu():
    config = case(buffer_size=100, batch_size=32, batch_size_run=8).config
    update = 50 * MIB + (32 + 8) * MIB
    assert sum(doctor.gpu_needs(config, RUN).values()) == doctor.CUDA_BYTES + 100 * MIB + update
    process = 500 * MIB + doctor.RECORD_BYTES + doctor.CUDA_HOST_BYTES
    assert list(doctor.host_needs(config, RUN, on_gpu=True).values()) == [process]
    config["buffer_cpu_only"] = True
    assert sum(doctor.gpu_needs(config, RUN).values()) == doctor.CUDA_BYTES + update
    assert list(doctor.host_needs(config, RUN, on_gpu=True).values()) == [process, 100 * MIB]


def test_too_little_memory():
    small = {"torch": {**TORCH, "host_free": 800 * MIB}}
    assert row("memory", case(buffer_size=100)).mark == OK
    found = row("memory", case(buffer_size=100, answers=small))
    assert found.fails
    assert "800 MiB available" in found.found
    assert "replay of 100 episodes 100 MiB" in found.found
    assert "buffer_size" in found.remedy
    assert row("memory", case(None, answers=small)).mark == OK


def test_memory_where_it_cannot_be_known():
    assert row("memory", case(answers={"torch": {**TORCH, "host_free": None}})).mark == NOTE
    found = row("memory", case(answers={"run": broken("no such map; take another", True)}))
    assert (found.mark, found.found) == (OK, "30 GiB available")


def test_too_little_disk(monkeypatch, tmp_path):
    saved = case(save_model=True, t_max=1000, save_model_interval=100, local_results_path=str(tmp_path / "new/folder"))
    monkeypatch.setattr(doctor, "free_disk", lambda folder: 30 * MIB if folder == tmp_path else None)
    found = row("disk", saved)
    assert found.fails
    assert "11 models 22 MiB" in found.found
    assert "local_results_path" in found.remedy
    monkeypatch.setattr(doctor, "free_disk", lambda folder: 60 * MIB)
    assert row("disk", saved).mark == OK


def test_a_results_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "results").touch()
    assert row("disk", case()).fails
    assert not row("disk", case(None)).fails
    (tmp_path / "results").unlink()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert row("disk", case()).fails


# GPUs


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A program of this name that prints one GPU."""
    file = tmp_path / "bin/nvidia-smi"
    file.parent.mkdir()
    file.write_text("#!/bin/sh\necho '580.65, NVIDIA H200'\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(file.parent), prepend=os.pathsep)
    return file


def test_without_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = row("GPU", case())
    assert (found.mark, found.found) == (OK, "none: runs train on the CPU")
    found = row("GPU", case(require_cuda=True))
    assert found.fails
    assert "require_cuda=False" in found.remedy


def test_a_gpu_that_torch_does_not_see(nvidia_smi):
    old = {"torch": {**TORCH, "why": "The NVIDIA driver on your system is too old"}}
    for examined in (case(answers=old), case(None, answers=old)):
        found = row("GPU", examined)
        assert found.mark == NOTE
        assert "NVIDIA H200, driver 580.65" in found.found
        assert "driver on your system is too old" in found.found
    assert row("GPU", case(answers=old, require_cuda=True)).fails
    assert row("GPU", case(answers=old, use_cuda=False)).mark == OK
    without_cuda = {"torch": {**TORCH, "cuda": None, "version": "2.13.0+cpu"}}
    assert "2.13.0+cpu is built without CUDA" in row("GPU", case(answers=without_cuda)).found


def test_gpus(nvidia_smi, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    two = {"torch": {**TORCH, "gpus": [GPU, {"name": "H200", "error": "CUDA error: unspecified"}]}}
    found = row("GPU", case(answers=two))
    assert found.mark == OK
    for part in (
        "0: H200, 100 GiB of 140 GiB free",
        "1: H200, unusable: CUDA error",
        "580.65",
        "DEVICES=2,3",
        "replay",
    ):
        assert part in found.found
    assert "not used" in row("GPU", case(answers=two, use_cuda=False)).found
    assert "needs" not in row("GPU", case(None, answers=two)).found


def test_a_gpu_that_is_full_or_broken():
    full = {"torch": {**TORCH, "gpus": [{**GPU, "free": 2 * 2**30}]}}
    found = row("GPU", case(answers=full, buffer_size=5000))
    assert found.fails
    assert "buffer_cpu_only=True" in found.remedy
    assert row("GPU", case(answers=full, buffer_size=5000, buffer_cpu_only=True)).mark == OK
    defect = {"torch": {**TORCH, "gpus": [{"name": "H200", "error": "no kernel image"}]}}
    assert row("GPU", case(answers=defect)).fails
    assert not row("GPU", case(answers=defect, use_cuda=False)).fails
    assert not row("GPU", case(None, answers=defect)).fails


def test_an_nvidia_smi_that_fails(nvidia_smi):
    nvidia_smi.write_text("#!/bin/sh\necho 'Failed to initialize NVML, sorry'\nexit 9\n")
    assert doctor.nvidia_gpus() == ("", [])


# Packages


def test_requirements(tmp_path, monkeypatch):
    file = tmp_path / "requirements.txt"
    file.write_text("# pins\nnumpy==2.4.6  # arrays\n\ntorch==2.13.0\njax==0.10.2\nsetuptools==80.10.2\n")
    there = {"numpy": "2.4.6", "torch": "2.13.0+cu130", "jax": "0.10.2", "setuptools": "80.10.2"}
    monkeypatch.setattr(doctor, "installed", lambda name: there.get(name))
    assert doctor.check_requirements(case(), file) == Finding(OK, "all 4 packages are there as pinned")
    there["setuptools"] = "82.0.0"
    found = doctor.check_requirements(case(), file)
    assert found.mark == NOTE
    assert found.text == "setuptools 82.0.0 (pinned: 80.10.2)"
    del there["jax"]
    assert doctor.check_requirements(case(), file).mark == NOTE  # the trial says whether this run needs it
    assert doctor.check_requirements(case(None), file).mark == MISSING
    del there["numpy"]
    found = doctor.check_requirements(case(), file)
    assert found.mark == MISSING
    assert "missing: numpy==2.4.6, jax==0.10.2" in found.text
    assert found.remedy


def test_another_python_than_the_project_s(monkeypatch, tmp_path):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").touch()
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    assert str(tmp_path / ".venv/bin/python") in doctor.how_to_install()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    assert "make setup" in doctor.how_to_install()


def test_the_installed_packages_are_those_that_are_pinned():
    assert doctor.check_requirements(case(None)).mark in (OK, NOTE)
    assert doctor.installed("torch") == torch.__version__
    assert doctor.installed("no-such-package") is None


def test_torch_is_tried():
    found = doctor.run_probe("torch", None)
    assert found["version"] == torch.__version__
    assert 0 < found["host_free"] < 2**50
    assert len(found["gpus"]) == torch.cuda.device_count()


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_jax_is_tried():
    found = doctor.run_probe("jax", None)
    assert found["devices"]
    assert row("JAX", case(answers={"jax": found})).mark in (OK, NOTE)


@pytest.mark.parametrize(("there", "mark"), [(True, OK), (False, NOTE)])
def test_kernels(there, mark):
    found = row("kernels", case(answers={"kernels": {"there": there, "processor": "AVX2"}}))
    assert found.mark == mark
    assert ("C++ compiler" in found.remedy) == (not there)


def test_kernels_are_compiled():
    assert doctor.run_probe("kernels", None) == {
        "there": native.is_there(),
        "processor": torch.backends.cpu.get_cpu_capability(),
    }


def test_jax_without_the_gpu_that_torch_has():
    with_gpu = {"torch": {**TORCH, "gpus": [GPU]}}
    found = row("JAX", case(env="smax", answers=with_gpu))
    assert found.mark == NOTE
    assert "requirements-cuda.txt" in found.remedy
    assert row("JAX", case(env="smax", answers=with_gpu, use_cuda=False)).mark == OK


@pytest.mark.parametrize(("env", "mark"), [("smax", MISSING), ("matrix_games", NOT_NEEDED), (None, MISSING)])
def test_without_jax(env, mark):
    examined = case("qmix" if env else None, env, {"jax": broken("ModuleNotFoundError: No module named 'jax'")})
    found = row("JAX", examined)
    assert (found.mark, found.found) == (mark, "No module named 'jax'")
    assert found.fails == (mark == MISSING)


# Probes


def test_a_probe_may_print_and_raise(package):
    package("torch.py", "print('hello')\nraise ValueError('two\\nlines')")
    assert doctor.run_probe("torch", None) == broken("ValueError: two lines")


def test_a_probe_may_crash(package):
    package("torch.py", "import os\nos.write(2, b'first\\nthe last words\\n')\nos.kill(os.getpid(), 9)")
    assert doctor.run_probe("torch", None) == broken("its process ended with -9: the last words")


def test_a_probe_may_hang(package):
    package("torch.py", "import time\ntime.sleep(100)")
    assert doctor.run_probe("torch", None, seconds=1) == broken("no answer within 1 s")


def test_what_nobody_foresaw_is_a_row(monkeypatch):
    def fall_ill(_case):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(doctor, "CHECKS", [("Machine", "thing", doctor.always, fall_ill)])
    (found,) = doctor.examine(case())
    assert found.fails
    assert found.found == "ZeroDivisionError: by zero"


def test_peak_memory():
    kept = []

    def work():
        first = torch.ones(1000, 250)  # a million bytes
        second = (first + 1).view(-1)
        del first
        second.add_(1)
        kept.append(second[:5] * 2)
        del second
        torch.ones(10)

    assert doctor.peak_bytes(work) == 2_000_000


# Records


def test_what_records_a_run():
    found = doctor.run_probe("record", None)
    assert found["version"]
    assert row("sacred", case(answers={"record": found})).mark == OK


def test_sacred_without_pkg_resources(package):
    package("pkg_resources.py", "raise ModuleNotFoundError('No module named pkg_resources', name='pkg_resources')")
    answers = {"record": doctor.run_probe("record", None)}
    found = row("sacred", case(answers=answers))
    assert found.fails
    assert "pkg_resources" in found.found
    assert "setuptools<82" in found.remedy
    assert row("sacred", case(None, answers=answers)).fails


def test_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = row("git", case(answers={"record": doctor.run_probe("record", None)}))
    assert found.mark == NOTE
    assert "git is not installed" in found.found
    monkeypatch.setenv("GREED_IS_GOOD_COMMIT", "0123456789abcdef")  # as in a container
    found = row("git", case(answers={"record": doctor.run_probe("record", None)}))
    assert found.mark == OK
    assert "0123456789" in found.found


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this copy of the project is no git repository")
@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_repository_of_another_user(monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    found = row("git", case(answers={"record": doctor.run_probe("record", None)}))
    assert found.fails
    assert "dubious ownership" in found.found
    assert f"safe.directory {ROOT}" in found.remedy


def test_without_a_repository():
    found = row("git", case(answers={"record": {"version": "0.8.7", "git": True, "commit": None, "changed": None}}))
    assert found.mark == NOTE


class FakeMongo(socketserver.BaseRequestHandler):
    """Answers each command with what the server's `replies` hold for it."""

    def handle(self):
        while head := self.request.recv(16, 0x100):  # MSG_WAITALL
            size, request, _, kind = struct.unpack("<iiii", head)
            body = self.request.recv(size - 16, 0x100)
            text = body[5:] if kind == 2013 else body[body.index(b"\0", 4) + 9 :]  # OP_MSG, or the old OP_QUERY
            command = next(iter(bson.decode(text[: struct.unpack("<i", text[:4])[0]])))
            reply = bson.encode(self.server.replies.get(command.lower(), {"ok": 1.0}))
            reply = struct.pack("<ib", 0, 0) + reply if kind == 2013 else struct.pack("<iqii", 0, 0, 0, 1) + reply
            answers = 2013 if kind == 2013 else 1
            self.request.sendall(struct.pack("<iiii", 16 + len(reply), 1, request, answers) + reply)


@pytest.fixture
def mongo():
    """A server that talks as MongoDB does."""
    hello = {"ok": 1.0, "ismaster": True, "maxWireVersion": 25, "minWireVersion": 0, "maxBsonObjectSize": 2**24}
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), FakeMongo) as server:
        server.daemon_threads = True
        server.replies = {"hello": hello, "ismaster": hello, "buildinfo": {"ok": 1.0, "version": "8.0.4"}}
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def mongo_row(monkeypatch, url: str) -> doctor.Row:
    monkeypatch.setenv("MONGO_URL", url)
    return row("MongoDB", case(answers={"mongo": doctor.run_probe("mongo", None)}))


def test_mongodb_is_not_needed_without_its_url():
    found = row("MongoDB", case())
    assert found.mark == NOT_NEEDED
    assert "MONGO_URL" in found.found


def test_a_mongodb_that_answers(monkeypatch, mongo):
    url = f"127.0.0.1:{mongo.server_address[1]}/sacred"
    found = mongo_row(monkeypatch, f"mongodb://{url}?appName=secret")
    assert (found.mark, found.found) == (OK, f"mongodb://{url} answers, version 8.0.4")


def test_a_mongodb_that_refuses(monkeypatch, mongo):
    mongo.replies["ping"] = {"ok": 0.0, "code": 18, "codeName": "AuthenticationFailed", "errmsg": "secret"}
    found = mongo_row(monkeypatch, f"mongodb://127.0.0.1:{mongo.server_address[1]}")
    assert found.mark == NOTE
    assert "AuthenticationFailed" in found.found
    assert "secret" not in found.found


def test_a_mongodb_that_is_not_there(monkeypatch, mongo):
    port = mongo.server_address[1]
    mongo.shutdown()
    mongo.server_close()
    found = mongo_row(monkeypatch, f"mongodb://me:secret@127.0.0.1:{port}/sacred")
    assert found.mark == NOTE
    assert f"mongodb://***@127.0.0.1:{port}/sacred" in found.found
    assert "Connection refused" in found.found
    assert "secret" not in found.found + found.remedy
    assert not row("MongoDB", case(None, answers={"mongo": broken("it does not answer", True)})).fails


@pytest.mark.parametrize(
    "url", ["mongodb://me:sec/ret@host", "mongodb://me:sec@ret@host", "mongodb://me:secret", "sec:ret@x"]
)
def test_a_mongo_url_that_is_wrong_shows_no_password(monkeypatch, url):
    found = mongo_row(monkeypatch, url)
    assert found.mark == NOTE
    assert "sec" not in found.found + found.remedy
    assert "ret@" not in found.found + found.remedy
    assert "quote_plus" in found.remedy


# StarCraft II


@pytest.fixture
def game(tmp_path, monkeypatch):
    """A folder that looks like StarCraft II with two maps."""
    folder = tmp_path / "StarCraftII"
    (folder / "Versions/Base75689").mkdir(parents=True)
    (folder / "Versions/Base75689/SC2_x64").touch(mode=0o755)
    (folder / "Maps/SMAC_Maps").mkdir(parents=True)
    for name in ("3m", "32x32_flat"):
        (folder / f"Maps/SMAC_Maps/{name}.SC2Map").touch()
    monkeypatch.setenv("SC2PATH", str(folder))
    return folder


def sc2_rows(examined: Case) -> dict[str, doctor.Row]:
    return {row.item: row for row in doctor.examine(examined) if row.section == "StarCraft II"}


def test_a_game(game):
    rows = sc2_rows(case(env="sc2"))
    assert {row.mark for row in rows.values()} == {OK}
    assert rows["game"].found == f"{game} (SC2PATH): Base75689 (version 4.10); found, not started"
    assert rows["maps"].found == f"2 in {game}/Maps/SMAC_Maps; 3m is played on 3m.SC2Map"
    rows = sc2_rows(case(env="sc2_gen_terran"))
    assert {row.mark for row in rows.values()} == {OK}
    assert rows["maps"].found.endswith("10gen_terran is played on 32x32_flat.SC2Map")


@pytest.mark.parametrize("env", ["sc2", "sc2_gen_terran", "smax", None])
def test_without_a_game(env, tmp_path, monkeypatch):
    monkeypatch.setenv("SC2PATH", str(tmp_path))
    (tmp_path / "Versions").mkdir()
    rows = sc2_rows(case("qmix" if env else None, env))
    for found in (rows["game"], rows["maps"]):
        assert found.mark == (NOT_NEEDED if env == "smax" else MISSING)
        assert found.fails == (env in ("sc2", "sc2_gen_terran"))
        assert str(tmp_path) in found.found
        assert ("install_sc2.sh" in found.remedy) == (env != "smax")


def test_the_default_place_of_the_game(game, monkeypatch):
    monkeypatch.setenv("SC2PATH", "")
    monkeypatch.setattr("envs.sc2.DEFAULT_GAME", game)
    assert "(the default, as SC2PATH is not set)" in sc2_rows(case(env="sc2"))["game"].found


def test_a_game_that_is_not_executable(game):
    (game / "Versions/Base75689/SC2_x64").chmod(0o644)
    found = sc2_rows(case(env="sc2"))["game"]
    assert found.fails
    assert found.remedy.startswith("chmod +x ")


def test_the_version_that_is_asked_for(game):
    (game / "Versions/Base12345").mkdir()
    (game / "Versions/Base12345/SC2_x64").touch(mode=0o755)
    found = sc2_rows(case(env="sc2", env_args={"game_version": "4.10.0"}))["game"]
    assert found.mark == OK
    assert "Base12345 (version unknown), Base75689 (version 4.10)" in found.found
    found = sc2_rows(case(env="sc2", env_args={"game_version": "4.6.2"}))["game"]
    assert found.fails
    assert "env_args.game_version=4.6.2" in found.found


def test_maps_that_are_missing(game):
    (game / "Maps/SMAC_Maps/3m.SC2Map").rename(game / "Maps/3m.SC2Map")
    found = sc2_rows(case(env="sc2"))["maps"]
    assert found.fails
    assert "move it" in found.remedy
    found = sc2_rows(case(env="sc2", env_args={"map_name": "3n"}))["maps"]
    assert found.fails
    assert "did you mean '3m'?" in found.found
    assert sc2_rows(case(env="smax"))["maps"].mark == OK


def test_maps_without_the_package_that_knows_them(game):
    answers = {
        "smac": {"protobuf": "upb", "messages": "", "versions": {}, "smac_error": "smac is not installed; get it"}
    }
    rows = sc2_rows(case(env="sc2", answers=answers))
    assert rows["maps"].mark == NOTE
    assert rows["smac"].fails
    assert (rows["smac"].mark, rows["smac"].remedy) == (MISSING, "get it")


def test_another_smac(package):
    package("smac/__init__.py", "# as AutoML's")
    found = sc2_rows(case(env="sc2", answers={"smac": doctor.run_probe("smac", None)}))["smac"]
    assert found.mark == PROBLEM
    assert found.fails
    assert "AutoML" in found.found
    assert "pip uninstall smac" in found.remedy


def test_messages_that_do_not_load(package):
    package("s2clientprotocol/sc2api_pb2.py", "raise TypeError('Descriptors cannot be created directly')")
    package("s2clientprotocol/__init__.py", "")
    found = sc2_rows(case(env="sc2", answers={"smac": doctor.run_probe("smac", None)}))["pysc2"]
    assert found.fails
    assert "Descriptors cannot be created directly" in found.found
    assert "install_sc2.sh" in found.remedy


def test_a_slow_protobuf(monkeypatch):
    monkeypatch.setenv("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
    assert doctor.run_probe("smac", None)["protobuf"] == "python"
    slow = {"smac": {**ANSWERS["smac"], "protobuf": "python"}}
    found = sc2_rows(case(env="sc2", answers=slow))["pysc2"]
    assert found.mark == NOTE
    assert "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION" in found.remedy


def test_the_commit_of_a_package(tmp_path, monkeypatch):
    folder = tmp_path / "site/of_a_repository-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: of_a_repository\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    (tmp_path / "install_sc2.sh").write_text("SMAC_COMMIT=0123456789abcdef # a date\n")
    monkeypatch.setattr(doctor, "ROOT", tmp_path)

    def source() -> str:
        return doctor.source_of("of_a_repository", "SMAC_COMMIT")

    assert source() == "1.0, commit unknown"
    for commit, text in (("0123456789abcdef", ""), ("fedcba9876543210", ", another commit than install_sc2.sh's")):
        (folder / "direct_url.json").write_text(json.dumps({"vcs_info": {"commit_id": commit}}))
        assert source() == f"1.0, commit {commit[:10]}{text}"
    assert doctor.source_of("no_such_package", "SMAC_COMMIT") == "on the import path, not installed by pip"


def needs(package: str):
    there = all(importlib.util.find_spec(name) for name in (package, "pysc2", "s2clientprotocol"))
    return pytest.mark.skipif(not there, reason=f"{package} is not installed (`bash install_sc2.sh` does it)")


@pytest.mark.parametrize(
    ("env", "map_name"),
    [
        pytest.param("sc2", "3m", marks=needs("smac")),
        pytest.param("sc2_gen_terran", "10gen_terran", marks=needs("smacv2")),
    ],
)
def test_real_smac(env, map_name, game):
    done = start("--config=qmix", f"--env-config={env}", "--json", "with", "buffer_size=32")
    assert done.returncode == 0, done.stdout
    rows = {row["item"]: row for row in json.loads(done.stdout)["checks"]}
    assert f"{map_name} is played on" in rows["maps"]["found"]
    assert "the game's messages load" in rows["pysc2"]["found"]
    assert "an update" in rows["trial"]["found"]
    assert "2 environment processes" in rows["memory"]["found"]
    assert "2 game(s) 2.0 GiB" in rows["memory"]["found"]


# The trial


def trial(alg="qmix", env="matrix_games", **overrides) -> doctor.Row:
    config = load(alg, env, overrides)
    return row("trial", Case(config, {**ANSWERS, "run": doctor.run_probe("run", config)}))


@pytest.mark.skipif(importlib.util.find_spec("jaxmarl") is None, reason="jaxmarl is not installed")
def test_a_trial_measures_the_run():
    config = load("greedy_qmix", "smax", {"behaviour": {"source": "stored"}, "replay_dtype": "float16"})
    found = doctor.probe_run(config)
    assert row("trial", Case(config, {**ANSWERS, "run": found})).mark == OK
    numbers = {"obs_shape": 75, "state_shape": 72, "n_actions": 8, "n_agents": 3, "episode_limit": 100}
    assert found.items() >= numbers.items()
    # Observations, state, actions, available actions, reward, end, filled, probabilities of the behaviour policy.
    assert found["episode_bytes"] == 101 * (4 * 3 * 75 + 4 * 72 + 8 * 3 + 4 * 3 * 8 + 4 + 1 + 8 + 4 * 3 * 8)
    assert found["replay_bytes"] == 101 * (2 * 3 * 75 + 2 * 72 + 3 + 3 * 8 + 4 + 1 + 1 + 4 * 3 * 8)
    assert found["process_bytes"] > 100 * MIB


def test_an_update_grows_with_its_batch(cores, monkeypatch):
    monkeypatch.setattr("utils.aside.LEAST_ROWS", 0)  # another thread would take what may be done aside
    sizes = [doctor.probe_run(load("qmix", "matrix_games", {"batch_size": n}))["update_bytes"] for n in (8, 2000, 3992)]
    assert 0 < sizes[0] < sizes[1] - sizes[0] == pytest.approx(sizes[2] - sizes[1], rel=0.01)


def test_an_environment_that_cannot_be_built():
    found = trial(env_args={"game": "three_step"})
    assert found.fails
    assert "three_step" in found.found
    assert "--env" in found.remedy or "two_step" in found.found + found.remedy


def test_a_learner_that_fails(tmp_path):
    (tmp_path / "mine.py").write_text(  # in the current folder, as plug-ins may be
        "from learners.q_learner import QLearner\n"
        "class Mine(QLearner):\n"
        "    def train(self, batch, t_env, episode_num):\n"
        "        raise RuntimeError('shapes do not fit')\n"
    )
    found = trial(learner="mine:Mine")
    assert found.fails
    assert found.found == "RuntimeError: shapes do not fit"


# The whole program


def start(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_from_another_folder(tmp_path):
    done = start("--config=qmix", "--env-config=matrix_games", "with", "buffer_size=32", "seed=1")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "Can qmix on matrix_games two_step run here?"
    assert lines[-1] == "Nothing stands in the way of qmix on matrix_games two_step here."
    assert max(map(len, lines)) <= 120
    marks = {line[12:30].strip(): line[:12].strip() for line in lines if line[:12].strip() in (OK, NOT_NEEDED)}
    assert marks["torch"] == marks["trial"] == marks["memory"] == OK
    assert marks["game"] == marks["MongoDB"] == NOT_NEEDED
    assert not (tmp_path / "results").exists()


@pytest.fixture
def probes(monkeypatch):
    """In place of the probes: answers that a test may change."""
    answers = dict(ANSWERS)
    monkeypatch.setattr(doctor, "start_probes", lambda config: answers)
    return answers


CONFIG = ("--config=qmix", "--env-config=matrix_games")


def run(*arguments: str) -> int:
    return doctor.main(["src/doctor.py", *arguments])


def test_without_a_config(probes, capsys):
    assert run() == 0
    text = capsys.readouterr().out
    assert text.endswith("Runs can start here. What one of them needs: --config=ALG --env-config=ENV.\n")
    assert "trial" not in text
    for probe in ("torch", "record"):
        before, probes[probe] = probes[probe], broken("ModuleNotFoundError: No module named 'it'")
        assert run() == 1
        assert capsys.readouterr().out.splitlines()[-1].startswith("No run can start here yet: see ")
        probes[probe] = before
    probes["smac"] = probes["smacv2"] = broken("not installed; install it", users_fault=True)
    assert run() == 0


def test_with_a_config(probes, capsys):
    assert run(*CONFIG) == 0
    probes["run"] = broken("env_args.game='x': no such game; take another", users_fault=True)
    assert run(*CONFIG) == 1
    text = capsys.readouterr().out
    assert "problem     trial             env_args.game='x': no such game\n" in text
    assert "-> take another\n" in text
    assert text.endswith("qmix on matrix_games two_step cannot run here yet: see trial.\n")


def test_bad_input_is_one_line(capsys):
    for arguments, part in (
        (("--config=qmxi", "--env-config=smax"), "did you mean qmix?"),
        (("--config=qmix",), "--env-config is missing"),
        ((*CONFIG, "with", "lr=fast"), "lr='fast'"),
        ((*CONFIG, "with", "lr"), "write key=value"),
        ((*CONFIG, "lr=1"), "behind the word with"),
        (("--fast",), "--fast"),
    ):
        assert run(*arguments) == 2
        written = capsys.readouterr()
        assert written.out == ""
        assert written.err.startswith("error: ")
        assert part in written.err
        assert written.err.count("\n") == 1


def test_overrides_are_read_as_by_a_run():
    words = ["with", "lr=5e-4", "mixer=None", "env_args.game=climbing", "double_q=False"]
    config = doctor.read_config("qmix", "matrix_games", words)
    assert (config["lr"], config["mixer"], config["double_q"]) == (5e-4, None, False)
    assert config["env_args"]["game"] == "climbing"


def test_a_config_that_nothing_can_read(probes, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "config.schema", None)
    assert run(*CONFIG) == 1
    assert "configuration" in capsys.readouterr().out


def test_help(capsys):
    assert run("--help") == 0
    assert "python src/doctor.py --config=greedy_qmix --env-config=sc2" in capsys.readouterr().out


def test_json(probes, capsys):
    probes["torch"] = {**TORCH, "gpus": [{**GPU, "free": MIB}]}
    assert run(*CONFIG, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["run"] == "qmix on matrix_games two_step"
    assert found["usable"] is False
    assert found["needs_bytes"]["gpu_memory"] > 5000 * MIB
    failing = [row["item"] for row in found["checks"] if row["fails"]]
    assert failing == ["GPU"]
    assert run("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["run"], found["usable"], found["needs_bytes"]) == (None, True, {})


def test_a_reader_who_has_seen_enough(probes, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert run(*CONFIG) == 0


def test_the_table():
    rows = [
        doctor.Row("Machine", "disk", PROBLEM, "little " * 20, "make room", True),
        doctor.Row("Machine", "memory", PROBLEM, "less", "make room", True),
        doctor.Row("Run", "trial", NOT_NEEDED, "fine", "", False),
    ]
    assert doctor.format_rows(rows, "qmix", 80).splitlines() == [
        "Can qmix run here?",
        "------------------",
        "",
        "Machine",
        "problem     disk    little little little little little little little little",
        "                    little little little little little little little little",
        "                    little little little little",
        "                    -> make room",
        "problem     memory  less",
        "",
        "Run",
        "not needed  trial   fine",
        "",
        "qmix cannot run here yet: see disk, memory.",
    ]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_target_of_make():
    command = ["make", "-s", "-n", "-C", str(ROOT), "doctor", "CONFIG=qmix", "ENV=smax"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.endswith("src/doctor.py --config=qmix --env-config=smax\n")
