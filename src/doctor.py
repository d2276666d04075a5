"""What is installed and usable on this machine, and whether a run could start: `python src/doctor.py --help`.

Packages are imported in processes of their own, the probes: one that crashes or hangs costs one row of the table, and
smac and smacv2, which cannot share a process, are both really loaded. This file itself imports nothing that may be
missing, and keeps to the syntax of older Pythons, so that it can say so.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import pickle
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import traceback
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from utils.arguments import Parser, say
from utils.cores import core_count
from utils.credentials import masked, names_mongo
from utils.errors import UserError
from utils.titles import env_title

HELP = """What is installed and usable here, and whether a run could start: one table.

  python src/doctor.py [--config=ALG --env-config=ENV [with KEY=VALUE ...]] [--json]

  --config=ALG        as for src/main.py: what this run would need is checked, built and tried
  --env-config=ENV    likewise
  with KEY=VALUE      overrides, as for src/main.py
  --json              the same as JSON

Examples
  python src/doctor.py
  python src/doctor.py --config=greedy_qmix --env-config=sc2 with env_args.map_name=8m batch_size_run=8
  python src/doctor.py --config=greedy_qmix --env-config=smax --json

Marks: ok; note (worth knowing, nothing fails); missing; problem; not needed (by this config). Sizes are estimates.

Exit code: 0 the run can start (without a config: Python, torch and requirements.txt's packages are in place),
1 it cannot, 2 bad input.
"""

ROOT = Path(__file__).resolve().parents[1]
OK, NOTE, MISSING, PROBLEM, NOT_NEEDED = "ok", "note", "missing", "problem", "not needed"
LEAST_PYTHON = (3, 11)
BUILDS = {  # of the game -> its version
    55958: "3.16.1",
    60321: "4.1.2",
    67926: "4.6.1",
    69232: "4.6.2",
    70154: "4.7.1",
    71663: "4.8.2",
    73620: "4.8.6",
    75025: "4.9.3",
    75689: "4.10",
}
GAMES = ("sc2", "sc2v2")  # the environments that start StarCraft II
# Of these the row `trial` says whether the config can do without.
ENV_PACKAGES = ("jax", "jaxlib", "flax", "jaxmarl", "gymnasium", "lbforaging", "rware", "pettingzoo", "mpe2")

# What cannot be measured before a run, about.
MIB, GIB = 2**20, 2**30
GAME_BYTES = 1 * GIB  # one StarCraft II process without graphics
RECORD_BYTES = 150 * MIB  # what sacred, matplotlib and TensorBoard add to the training process
CUDA_HOST_BYTES = 2 * GIB  # what CUDA's libraries add to it
CUDA_BYTES = 1 * GIB  # what CUDA, its libraries and JAX take of the GPU's memory
STATISTICS, POINT_BYTES = 60, 200  # logged at each interval, and what each writes to sacred's files and TensorBoard's
RESULT_BYTES = 20 * MIB  # pictures, copies of the sources, the output of processes

PROBE_SECONDS = 180  # a first import from a network disk takes a minute


@dataclass(frozen=True)
class Finding:
    mark: str
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table. `needed`: what goes wrong here lets the whole fail."""

    section: str
    item: str
    mark: str
    found: str
    remedy: str
    needed: bool

    @property
    def fails(self) -> bool:
        return self.needed and self.mark in (MISSING, PROBLEM)


@dataclass
class Case:
    """What is examined: a configuration, None without one, and where the probes' answers come from."""

    config: dict[str, Any] | None
    answers: dict[str, Any] = field(default_factory=dict)  # of each probe: a dict, or a Future of one

    def ask(self, probe: str) -> dict[str, Any]:
        """What a probe found.

        Raises:
            UserError: it met something that the user can mend.
            ProbeError: it failed otherwise.
        """
        answer = self.answers[probe]
        answer = answer.result() if isinstance(answer, Future) else answer
        if "error" in answer:
            raise (UserError if answer["users_fault"] else ProbeError)(answer["error"])
        return answer

    @property
    def env(self) -> str | None:
        return self.config["env"] if self.config else None

    def sizes(self) -> dict[str, Any] | None:
        """What the run's environment and networks take; None without a config, or where they cannot be built."""
        try:
            return self.ask("run") if self.config else None
        except (UserError, ProbeError):
            return None  # the rows of the run itself say why


class ProbeError(Exception):
    """A probe failed; the message is its error in one line."""


# --- command line


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    if argv[1:2] == ["--probe"]:
        return answer(argv[2])
    parser = Parser()
    for flag in ("--config", "--env-config"):
        parser.add_argument(flag)
    for flag in ("--help", "-h", "--json"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("overrides", nargs="*")
    try:
        options = parser.parse_intermixed_args(argv[1:])
        if options.help or options.h:
            print(HELP, end="")
            return 0
        config, rows = None, []
        if options.config or options.env_config or options.overrides:
            try:
                config = read_config(options.config, options.env_config, options.overrides)
            except ImportError as error:  # nothing can be said of the run, but something of the machine
                text = f"cannot be read: {error}"
                rows = [Row("Run", "configuration", PROBLEM, text, how_to_install(), needed=True)]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        case = Case(config, start_probes(config))
        rows = examine(case) + rows
    except KeyboardInterrupt:
        return 130
    title = f"{options.config} on {env_title(config['env'], config['env_args'])}" if config else ""
    if options.json:
        text = json.dumps(as_json(rows, case, title), indent=2)
    else:
        text = format_rows(rows, title, min(shutil.get_terminal_size((120, 0)).columns, 120))
    say(text)
    return int(any(row.fails for row in rows))


def read_config(alg: str | None, env: str | None, overrides: list[str]) -> dict[str, Any]:
    """The configuration that src/main.py would make of these arguments.

    Raises:
        UserError: it would refuse them.
        ImportError: a package is missing that this needs.
    """
    if overrides and overrides[0] != "with":
        raise UserError(f"command line: {overrides[0]!r} is not known; overrides stand behind the word with")
    from config.schema import ConfigError, load

    updates, bare = {}, []
    if overrides:
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
        from sacred.arg_parser import get_config_updates

        updates, bare = get_config_updates(overrides[1:])
    if bare:
        raise UserError(f"command line: {bare[0]!r} behind `with` is no override; write key=value")
    try:
        return load(alg, env, updates)
    except ConfigError as error:
        raise UserError(f"{error}") from error


# --- probes: each runs in a process of its own


def start_probes(config: dict[str, Any] | None) -> dict[str, Future]:
    """Start every probe whose answer is wanted, as many at a time as there are cores."""
    names = ["torch", "run"] if config else ["torch"]
    names += ["kernels", "jax", "record", "smac", "smacv2"]
    if names_mongo():
        names.append("mongo")
    with ThreadPoolExecutor(max_workers=max(1, min(len(names), core_count()))) as pool:
        return {name: pool.submit(run_probe, name, config) for name in names}


def run_probe(name: str, config: dict[str, Any] | None, seconds: float = PROBE_SECONDS) -> dict[str, Any]:
    """The answer of a probe; whatever happens to its process is one, with the key `error`."""
    command = [sys.executable, str(Path(__file__).resolve()), "--probe", name]
    try:
        done = subprocess.run(command, input=pickle.dumps(config), capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {seconds:g} s", "users_fault": False}
    try:
        return json.loads(done.stdout)
    except ValueError:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return {"error": f"its process ended with {done.returncode}: {last[:300]}", "users_fault": False}


def answer(name: str) -> int:
    """Be the process of a probe: read the config, print the answer as JSON."""
    config = pickle.load(sys.stdin.buffer)
    with os.fdopen(os.dup(1), "w") as channel:
        os.dup2(2, 1)  # packages greet on stdout
        sys.path.append(os.getcwd())  # where plug-ins of the user's own lie
        warnings.simplefilter("ignore")
        try:
            found = PROBES[name](config)
        except Exception as error:  # whatever it is, it is what was found
            traceback.print_exc()
            text = f"{error}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            found = {"error": " ".join(text.split())[:1000], "users_fault": isinstance(error, UserError)}
        json.dump(found, channel)
    return 0


def probe_torch(_config) -> dict[str, Any]:
    import torch

    from utils.memory import available_bytes

    found: dict[str, Any] = {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": [], "why": ""}
    try:
        found["host_free"] = available_bytes("cpu")
    except OSError:  # not Linux
        found["host_free"] = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if not usable:
        found["why"] = " ".join(f"{caught[0].message}".split())[:300] if caught else ""
        return found
    for index in range(torch.cuda.device_count()):
        gpu: dict[str, Any] = {"name": torch.cuda.get_device_name(index)}
        try:
            gpu["free"], gpu["total"] = torch.cuda.mem_get_info(index)
            if index == 0:  # the one that a run takes
                (torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")).sum().item()
        except RuntimeError as error:
            gpu["error"] = f"{error}".splitlines()[0]
        found["gpus"].append(gpu)
    return found


def probe_kernels(_config) -> dict[str, Any]:
    import torch

    from utils import native

    return {"there": native.is_there(), "processor": torch.backends.cpu.get_cpu_capability()}


def probe_jax(_config) -> dict[str, Any]:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax
    import jax.numpy as jnp

    jax.jit(jnp.sum)(jnp.ones(8)).block_until_ready()
    kinds = [device.device_kind for device in jax.devices()]
    return {"version": jax.__version__, "backend": jax.default_backend(), "devices": kinds}


def probe_record(_config) -> dict[str, Any]:
    try:
        import sacred
        from sacred.dependencies import get_commit_if_possible
    except ModuleNotFoundError as error:
        if error.name != "pkg_resources":
            raise
        version = installed("setuptools")
        raise UserError(
            f"sacred imports pkg_resources, not in setuptools {version}; pip install 'setuptools<82'"
        ) from None
    ask_git = shutil.which("git") is not None  # as main.py does
    found: dict[str, Any] = {"version": sacred.__version__, "git": ask_git}
    try:
        _, found["commit"], found["changed"] = get_commit_if_possible(str(ROOT / "src" / "main.py"), ask_git)
        found["commit"] = found["commit"] or os.environ.get("GREED_IS_GOOD_COMMIT")  # of a container's image
    except Exception as error:  # of sacred, GitPython or git: each would end a run in the same way
        asked = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
        found["git_error"] = asked.stderr.partition("\n")[0] or f"{error}".strip().partition("\n")[0]
    return found


def probe_smac(_config) -> dict[str, Any]:
    """SMAC, and what it shares with SMACv2. Each part is tried even where another fails."""
    from google.protobuf.internal import api_implementation

    from envs import s2clientprotocol_compat, sc2

    found: dict[str, Any] = {"protobuf": api_implementation.Type(), "messages": "", "versions": {}}
    s2clientprotocol_compat.install()
    try:
        request = importlib.import_module("s2clientprotocol.sc2api_pb2").Request(id=7)
        assert type(request).FromString(request.SerializeToString()).id == 7
        versions = importlib.import_module("pysc2.run_configs.lib").VERSIONS.values()
        found["versions"] = {version.game_version: version.build_version for version in versions}
    except Exception as error:  # of packages that were generated for another protobuf: anything
        found["messages"] = f"{type(error).__name__}: {error}"
    try:
        found["maps"] = dict(sc2.load_smac().map_files)
    except UserError as error:
        found["smac_error"] = f"{error}"
    except Exception as error:  # likewise
        found["smac_error"] = f"{type(error).__name__}: {error}; {sc2.REMEDY}"
    return found


def probe_smacv2(_config) -> dict[str, Any]:
    from envs import sc2v2

    return {"maps": dict(sc2v2.load_smacv2().map_files)}


def probe_mongo(_config) -> dict[str, Any]:
    from pymongo import errors

    from utils.mongo import locate, reason

    server = locate()
    try:
        with server.open().client as client:
            client.admin.command("ping")
            return {"url": masked(server.url), "version": client.server_info()["version"]}
    except errors.OperationFailure as error:
        raise UserError(f"{masked(server.url)} {reason(error)}; check user and password") from None
    except errors.PyMongoError as error:
        raise UserError(
            f"{masked(server.url)} {reason(error)}; "
            "start the server, mend MONGO_URL, or unset it to record in files alone"
        ) from None


def probe_environment(config) -> dict[str, Any]:
    """Whether the run's environment can be built."""
    environment_info(config)
    return {}


def environment_info(config) -> dict[str, Any]:
    """Build the run's environment; what it says of itself."""
    from envs import REGISTRY
    from utils.registry import resolve

    env: Any = resolve("env", config["env"], REGISTRY)(**config["env_args"])
    info = {**env.get_env_info()}
    env.close()
    return info


def probe_run(config) -> dict[str, Any]:
    """Build the run but for its replay and its runner, and let the learner make an update on random episodes."""
    info = environment_info(config)
    worker_bytes = resident_bytes()  # as much as a worker process holds

    import torch

    from components.episode_buffer import EpisodeBatch, compact, episode_bytes
    from config.schema import extend, freeze
    from run import Experiment
    from runners import REGISTRY as runner_REGISTRY
    from utils.aside import allow_aside
    from utils.logging import Logger
    from utils.registry import resolve

    # In place of the runner.
    runner = SimpleNamespace(batch_size=1, t_env=0, get_env_info=lambda: info, setup=lambda *_: None)
    torch.set_num_threads(1)
    allow_aside(False)  # `peak_bytes` sees what its own thread allocates
    resolve("runner", config["runner"], runner_REGISTRY)
    args = freeze({**config, "use_cuda": False, "evaluate": True})  # to evaluate, no replay is allocated
    args = extend(args, device="cpu", unique_token="doctor")
    experiment = Experiment(args, Logger(logging.getLogger("doctor")), runner)
    learner, steps = experiment.learner, info["episode_limit"] + 1

    def update(episodes: int) -> int:
        batch = EpisodeBatch(experiment.scheme, experiment.groups, episodes, steps, preprocess=experiment.preprocess)
        fields = batch.data.transition_data
        for key, value in {"filled": 1, "avail_actions": 1, "behaviour": 1 / info["n_actions"]}.items():
            if key in fields:
                fields[key].fill_(value)
        for key in ("obs", "state", "reward"):
            fields[key].normal_()
        fields["terminated"][:, steps - 2] = 1
        return peak_bytes(lambda: learner.train(batch, 0, 0))

    few = max(2, 300 // steps)  # enough that the batch takes more than a copy of the parameters
    _, one, twice = (update(episodes) for episodes in (few, few, 2 * few))  # the first also makes the optimiser's state
    with tempfile.TemporaryDirectory() as folder:
        learner.save_models(folder)
        model_bytes = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    each = max(0, twice - one) // few
    kept = compact(experiment.scheme, getattr(torch, config["replay_dtype"]))
    return {
        **{key: int(info[key]) for key in ("n_agents", "n_actions", "obs_shape", "state_shape", "episode_limit")},
        "episode_bytes": episode_bytes(experiment.scheme, experiment.groups, steps),
        "replay_bytes": episode_bytes(kept, experiment.groups, steps),
        "update_bytes": max(0, one - few * each) + each * config["batch_size"],
        "model_bytes": model_bytes,
        "worker_bytes": worker_bytes,
        "process_bytes": resident_bytes(),
    }


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most memory that torch holds for this thread at any time of this work, beyond what it held before."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Count(TorchDispatchMode):
        seen, now, most = weakref.WeakSet(), 0, 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            before = {id(x.untyped_storage()) for x in tree_leaves(args) if isinstance(x, torch.Tensor)}
            for tensor in tree_leaves(result):
                storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
                if storage is not None and storage not in self.seen and id(storage) not in before:
                    self.seen.add(storage)
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self.release, storage.nbytes())
            return result

        def release(self, size: int) -> None:
            self.now -= size

    count = Count()
    with count:
        work()
    return count.most


def resident_bytes() -> int:
    """What this process holds of the host's memory; 0 where that is not known."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


PROBES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "torch": probe_torch,
    "kernels": probe_kernels,
    "jax": probe_jax,
    "record": probe_record,
    "smac": probe_smac,
    "smacv2": probe_smacv2,
    "mongo": probe_mongo,
    "environment": probe_environment,
    "run": probe_run,
}


# --- checks: each makes one row of what was found


def check_python(_case: Case, version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Finding:
    text = f"{'.'.join(map(str, version))}, {sys.executable}"
    if version[:2] < LEAST_PYTHON:
        return Finding(PROBLEM, text, "install Python 3.11, then run `make setup PYTHON=python3.11`")
    return Finding(OK, text)


def check_platform(case: Case) -> Finding:
    text = f"{platform.system()} {platform.release()} on {platform.machine()}, {core_count()} core(s)"
    if case.config and case.config["runner"] == "parallel" and sys.platform != "linux":
        return Finding(PROBLEM, text, "runner=parallel needs Linux; set runner=vector or runner=episode")
    return Finding(OK, text)


def check_memory(case: Case) -> Finding:
    free = case.ask("torch")["host_free"]
    sizes = case.sizes()
    if free is None:
        return Finding(NOTE, "cannot be measured on this system")
    if sizes is None:
        return Finding(OK, f"{show(free)} available")
    needs = host_needs(case.config or {}, sizes, on_gpu=trains_on_gpu(case))
    remedy = "lower buffer_size or batch_size_run, or free memory"
    return compare(free, needs, "available", remedy)


def check_gpu(case: Case) -> Finding:
    config, found = case.config or {}, case.ask("torch")
    driver, seen = nvidia_gpus()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    within = f" (CUDA_VISIBLE_DEVICES={chosen})" if chosen is not None else ""
    gpus = found["gpus"]
    if not gpus:
        return _without_gpu(config, found, driver, seen, within)
    text = "; ".join(
        f"{index}: {gpu['name']}, "
        + (f"unusable: {gpu['error']}" if "error" in gpu else f"{show(gpu['free'])} of {show(gpu['total'])} free")
        for index, gpu in enumerate(gpus)
    )
    text += f"; CUDA {found['cuda']}, driver {driver or 'unknown'}{within}"
    if config and not config["use_cuda"]:
        return Finding(OK, f"{text}; not used, as use_cuda=False")
    if "error" in gpus[0]:
        return Finding(PROBLEM, text, "choose another GPU with CUDA_VISIBLE_DEVICES, or set use_cuda=False")
    sizes = case.sizes()
    if sizes is None:
        return Finding(OK, text)
    remedy = "set buffer_cpu_only=True or a smaller buffer_size or replay_dtype, or CUDA_VISIBLE_DEVICES to another GPU"
    memory = compare(gpus[0]["free"], gpu_needs(config, sizes), "free", remedy)
    return Finding(memory.mark, f"{text}; {memory.text}", memory.remedy)


def _without_gpu(config: dict[str, Any], found: dict[str, Any], driver: str, seen: list[str], within: str) -> Finding:
    if found["cuda"] is None:
        why = f"torch {found['version']} is built without CUDA"
    else:
        why = f"torch finds none{within}" + (f": {found['why']}" if found["why"] else "")
    remedy = "set require_cuda=False to train on the CPU"
    if seen:
        why += f", but nvidia-smi shows {', '.join(seen)}, driver {driver}"
        remedy = (
            "install the torch of requirements.txt, a driver that is new enough for it, or mend CUDA_VISIBLE_DEVICES"
        )
    if config and config["use_cuda"] and config["require_cuda"]:
        return Finding(MISSING, f"{why} (require_cuda=True)", remedy)
    if seen and (not config or config["use_cuda"]):
        return Finding(NOTE, f"{why}; runs train on the CPU", remedy)
    return Finding(OK, "none: runs train on the CPU")


def nvidia_gpus() -> tuple[str, list[str]]:
    """The version of NVIDIA's driver and the GPUs that it shows; nothing without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return "", []
    query = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return "unknown, as nvidia-smi does not answer", []
    rows = [line.split(", ", 1) for line in done.stdout.splitlines() if ", " in line and done.returncode == 0]
    return rows[0][0] if rows else "", [name for _, name in rows]


def trains_on_gpu(case: Case) -> bool:
    return bool(case.config and case.config["use_cuda"] and case.ask("torch")["gpus"])


def check_disk(case: Case) -> Finding:
    folder = Path(case.config["local_results_path"] if case.config else "results").absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    remedy = "make room, mend its permissions, or set local_results_path"
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Finding(PROBLEM, f"{there} is not a folder to write to", remedy)
    free, sizes = free_disk(there), case.sizes()
    if case.config is None or sizes is None:
        return Finding(OK, f"{show(free)} free in {folder}")
    return compare(free, disk_needs(case.config, sizes), f"free in {folder}", remedy)


def free_disk(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def check_requirements(case: Case, file: Path = ROOT / "requirements.txt") -> Finding:
    missing, others, count = [], [], 0
    for line in file.read_text().splitlines():
        name, _, pinned = line.partition("#")[0].strip().partition("==")
        if not name:
            continue
        count += 1
        found = installed(name)
        if found is None:
            missing.append((name, f"{name}=={pinned}"))
        elif found.partition("+")[0] != pinned:  # behind the +, how it was built
            others.append(f"{name} {found} (pinned: {pinned})")
    text = "; ".join([f"missing: {', '.join(pin for _, pin in missing)}"] * bool(missing) + others)
    if [name for name, _ in missing if case.config is None or name not in ENV_PACKAGES]:
        return Finding(MISSING, text, how_to_install())
    if text:
        return Finding(NOTE, text, how_to_install())
    return Finding(OK, f"all {count} packages are there as pinned")


def how_to_install() -> str:
    python = ROOT / ".venv" / "bin" / "python"
    if python.exists() and Path(sys.prefix).resolve() != python.parents[1].resolve():
        return f"this Python is not the project's: use {python}"
    return "run `make setup` (or: pip install -r requirements.txt)"


def installed(name: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_torch(case: Case) -> Finding:
    found = case.ask("torch")
    return Finding(OK, f"{found['version']}, " + (f"for CUDA {found['cuda']}" if found["cuda"] else "for CPUs alone"))


def check_kernels(case: Case) -> Finding:
    found = case.ask("kernels")
    if found["there"]:
        return Finding(OK, f"compiled for {found['processor']}")
    text = "not compiled: on a CPU, recurrent networks and mixers take up to twice as long"
    return Finding(NOTE, text, "install a C++ compiler (g++), or name one by the environment variable CXX")


def check_jax(case: Case) -> Finding:
    found = case.ask("jax")
    text = f"{found['version']} on {', '.join(found['devices'])}"
    uses_gpu = case.config is None or trains_on_gpu(case)
    if found["backend"] == "cpu" and uses_gpu and case.ask("torch")["gpus"]:
        return Finding(NOTE, f"{text}: SMAX plays on the CPU", "pip install -r requirements-cuda.txt")
    return Finding(OK, text)


def check_sacred(case: Case) -> Finding:
    return Finding(OK, f"{case.ask('record')['version']}")


def check_git(case: Case) -> Finding:
    found = case.ask("record")
    if "git_error" in found:
        remedy = "mend what git says of this repository, which sacred asks for the commit"
        if "ownership" in found["git_error"]:
            remedy = f"git config --global --add safe.directory {ROOT}"
        return Finding(PROBLEM, found["git_error"], remedy)
    if not found["commit"]:
        reason = "this is no git repository" if found["git"] else "git is not installed"
        return Finding(NOTE, f"{reason}: runs will not record their commit")
    changed = ", with changes that no commit has" if found["changed"] else ""
    return Finding(OK, f"runs record commit {found['commit'][:10]}{changed}")


def check_mongo(case: Case) -> Finding:
    if not names_mongo():
        return Finding(NOT_NEEDED, "MONGO_URL is not set: runs are recorded in files alone")
    try:
        found = case.ask("mongo")
    except UserError as error:  # no run fails for it: results are recorded in files as well
        return refused(error, NOTE)
    return Finding(OK, f"{found['url']} answers, version {found['version']}")


def check_game(case: Case) -> Finding:
    from envs.sc2 import find_game

    origin = "SC2PATH" if os.environ.get("SC2PATH") else "the default, as SC2PATH is not set"
    try:
        game = find_game()
    except UserError as error:
        return refused(error, MISSING)
    binaries = {int(path.parent.name.removeprefix("Base")): path for path in game.glob("Versions/Base*/SC2_x64")}
    names = [f"Base{build} (version {BUILDS.get(build, 'unknown')})" for build in sorted(binaries)]
    text = f"{game} ({origin}): {', '.join(names)}"
    locked = [path for path in binaries.values() if not os.access(path, os.X_OK)]
    if locked:
        return Finding(PROBLEM, f"{text}; {locked[0]} is not executable", f"chmod +x {locked[0]}")
    wanted = case.config["env_args"].get("game_version") if case.config and case.env in GAMES else None
    if wanted and (versions := case.ask("smac")["versions"]) and versions.get(wanted) not in binaries:
        return Finding(PROBLEM, f"{text}; not env_args.game_version={wanted}", "set env_args.game_version=None")
    return Finding(OK, f"{text}; found, not started")


def check_maps(case: Case) -> Finding:
    from envs.sc2 import DEFAULT_GAME, find_map
    from envs.sc2 import REMEDY as SC2_REMEDY
    from envs.sc2v2 import REMEDY as SC2V2_REMEDY

    given = os.environ.get("SC2PATH")
    game = Path(given).expanduser() if given else DEFAULT_GAME
    folder = game / "Maps" / "SMAC_Maps"  # where both packages look
    count = len(list(folder.glob("*.SC2Map")))
    if not count:
        return Finding(MISSING, f"none in {folder}", SC2_REMEDY)
    text = f"{count} in {folder}"
    if case.config is None or case.env not in GAMES:
        return Finding(OK, text)
    name = case.config["env_args"]["map_name"]
    probe, remedy = ("smac", SC2_REMEDY) if case.env == "sc2" else ("smacv2", SC2V2_REMEDY)
    known = case.ask(probe).get("maps")
    if known is None:
        return Finding(NOTE, f"{text}; whether {name} is one of them, {probe} would have to say")
    try:
        file = find_map(game, name, known, remedy)
    except UserError as error:
        return refused(error)
    return Finding(OK, f"{text}; {name} is played on {file.name}")


def check_smac(case: Case) -> Finding:
    found = case.ask("smac")
    if "smac_error" in found:
        return refused(UserError(found["smac_error"]))
    return Finding(OK, f"{source_of('smac', 'SMAC_COMMIT')}, loads, {len(found['maps'])} maps")


def check_smacv2(case: Case) -> Finding:
    return Finding(OK, f"{source_of('smacv2', 'SMACV2_COMMIT')}, loads, {len(case.ask('smacv2')['maps'])} maps")


def source_of(package: str, pin: str) -> str:
    """The version and commit of a package that is installed from its repository, and whether install_sc2.sh has it."""
    version = installed(package)
    if version is None:
        return "on the import path, not installed by pip"
    source = json.loads(metadata.distribution(package).read_text("direct_url.json") or "{}")
    commit = source.get("vcs_info", {}).get("commit_id")
    if commit is None:
        return f"{version}, commit unknown"
    pinned = re.search(rf"^{pin}=(\w+)", (ROOT / "install_sc2.sh").read_text(), re.MULTILINE)
    same = "" if pinned and pinned[1] == commit else ", another commit than install_sc2.sh's"
    return f"{version}, commit {commit[:10]}{same}"


def check_pysc2(case: Case) -> Finding:
    found = case.ask("smac")
    versions = [f"{name} {installed(name) or 'missing'}" for name in ("pysc2", "s2clientprotocol", "protobuf")]
    text = f"{', '.join(versions)} ({found['protobuf']})"
    if found["messages"]:
        mark = MISSING if found["messages"].startswith("ModuleNotFoundError") else PROBLEM
        return Finding(
            mark, f"{text}; {found['messages'].removeprefix('ModuleNotFoundError: ')}", "run `bash install_sc2.sh`"
        )
    if found["protobuf"] == "python":
        remedy = "unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION, or install the protobuf of requirements-sc2.txt"
        return Finding(NOTE, f"{text}; the game's messages load, but are read many times slower", remedy)
    return Finding(OK, f"{text}; the game's messages load")


def check_trial(case: Case) -> Finding:
    run = case.ask("run")
    env = f"{run['n_agents']} agents, {run['n_actions']} actions, observations of {run['obs_shape']}"
    env += f", state of {run['state_shape']}, up to {run['episode_limit']} steps"
    return Finding(OK, f"{env}; the learner made an update; a saved model takes {show(run['model_bytes'])}")


# --- what a run needs


def host_needs(config: dict[str, Any], sizes: dict[str, Any], on_gpu: bool) -> dict[str, int]:
    """About the host's memory that a run takes, by part."""
    needs = {"process": sizes["process_bytes"] + RECORD_BYTES + (CUDA_HOST_BYTES if on_gpu else 0)}
    if not on_gpu or config["buffer_cpu_only"]:
        needs |= _replay_needs(config, sizes)
    if not on_gpu:
        needs["update"] = _update_bytes(config, sizes)
    envs = config["batch_size_run"]
    total = envs + min(envs, config["test_nepisode"]) if config["runner"] != "episode" else 1
    if config["runner"] == "parallel":
        needs[f"{total} environment processes"] = total * sizes["worker_bytes"]
    if config["env"] in GAMES:
        needs[f"{total} game(s)"] = total * GAME_BYTES
    return needs


def gpu_needs(config: dict[str, Any], sizes: dict[str, Any]) -> dict[str, int]:
    """About the GPU's memory that a run takes, by part."""
    replay = {} if config["buffer_cpu_only"] else _replay_needs(config, sizes)
    return {"CUDA": CUDA_BYTES, **replay, "update": _update_bytes(config, sizes)}


def _replay_needs(config: dict[str, Any], sizes: dict[str, Any]) -> dict[str, int]:
    stored = 0 if config["evaluate"] else config["buffer_size"]
    return {f"replay of {stored} episodes": sizes["replay_bytes"] * stored}


def _update_bytes(config: dict[str, Any], sizes: dict[str, Any]) -> int:
    """An update, its batch, and the episodes that are being played."""
    episodes = config["batch_size"] + config["batch_size_run"]
    return sizes["update_bytes"] + sizes["episode_bytes"] * episodes


def disk_needs(config: dict[str, Any], sizes: dict[str, Any]) -> dict[str, int]:
    """About what a run writes, by part."""
    models = config["t_max"] // config["save_model_interval"] + 1 if config["save_model"] else 0
    interval = min(config[key] for key in ("test_interval", "runner_log_interval", "learner_log_interval"))
    logs = config["t_max"] // interval * STATISTICS * POINT_BYTES + RESULT_BYTES
    return {f"{models} models": models * sizes["model_bytes"], "records": logs}


def compare(free: int, needs: dict[str, int], where: str, remedy: str) -> Finding:
    """Whether the sum of what is needed is there."""
    total = sum(needs.values())
    parts = ", ".join(f"{part} {show(size)}" for part, size in needs.items() if size)
    text = f"{show(free)} {where}; needs about {show(total)} ({parts})"
    return Finding(PROBLEM, text, remedy) if total > free else Finding(OK, text)


def show(size: float) -> str:
    """Bytes in words (utils.memory has this too, but loads torch)."""
    unit, name = (GIB, "GiB") if size >= GIB else (MIB, "MiB") if size >= MIB else (1024, "KiB")
    return f"{size / unit:.1f} {name}" if size < 10 * unit else f"{size / unit:.0f} {name}"


# --- the table


def always(_case: Case) -> bool:
    return True


def for_run(case: Case) -> bool:
    return case.config is not None


def for_env(*names: str | None) -> Callable[[Case], bool]:
    return lambda case: case.env in names


# Section, item, when it is needed, what looks at it.
CHECKS: list[tuple[str, str, Callable[[Case], bool], Callable[[Case], Finding]]] = [
    ("Machine", "Python", always, check_python),
    ("Machine", "platform", for_run, check_platform),
    ("Machine", "memory", for_run, check_memory),
    ("Machine", "GPU", for_run, check_gpu),
    ("Machine", "disk", for_run, check_disk),
    ("Packages", "requirements.txt", always, check_requirements),
    ("Packages", "torch", always, check_torch),
    ("Packages", "kernels", for_run, check_kernels),
    ("Packages", "JAX", for_env("smax", None), check_jax),
    ("Records", "sacred", always, check_sacred),
    ("Records", "git", always, check_git),
    ("Records", "MongoDB", for_run, check_mongo),
    ("StarCraft II", "game", for_env(*GAMES), check_game),
    ("StarCraft II", "maps", for_env(*GAMES), check_maps),
    ("StarCraft II", "pysc2", for_env(*GAMES), check_pysc2),
    ("StarCraft II", "smac", for_env("sc2"), check_smac),
    ("StarCraft II", "smacv2", for_env("sc2v2"), check_smacv2),
    ("Run", "trial", for_run, check_trial),
]


def examine(case: Case) -> list[Row]:
    """One row for each check; a check that fails in an unexpected way is a row too."""
    rows = []
    for section, item, is_needed, check in CHECKS:
        if section == "Run" and case.config is None:
            continue
        needed = is_needed(case)
        try:
            finding = check(case)
        except UserError as error:
            finding = refused(error)
        except Exception as error:  # a doctor does not fall ill: the error is what was found
            text = f"{error}" if isinstance(error, ProbeError) else f"{type(error).__name__}: {error}"
            finding = Finding(PROBLEM, text)
            if text.startswith("ModuleNotFoundError: "):
                finding = Finding(MISSING, text.partition(": ")[2], how_to_install())
        if case.config is not None and not needed and finding.mark in (MISSING, PROBLEM):
            finding = Finding(NOT_NEEDED, finding.text)
        rows.append(Row(section, item, finding.mark, finding.text, finding.remedy, needed))
    return rows


def refused(error: UserError, mark: str = "") -> Finding:
    """A message of this project, `what is wrong; the remedy`, as a finding."""
    text, _, remedy = f"{error}".partition("; ")
    return Finding(mark or (MISSING if "not installed" in text or "missing" in text else PROBLEM), text, remedy)


def format_rows(rows: list[Row], title: str, width: int) -> str:
    """The table and what it comes to."""
    heading = f"Can {title} run here?" if title else "What is installed and usable here"
    lines = [heading, "-" * len(heading)]
    first = max(len(mark) for mark in (OK, NOTE, MISSING, PROBLEM, NOT_NEEDED)) + 2
    second = max(len(row.item) for row in rows) + 2
    indent = " " * (first + second)
    section = said = ""
    for row in rows:
        if row.section != section:
            section = row.section
            lines += ["", section]
        wrap = textwrap.TextWrapper(
            max(width, len(indent) + 40), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        lines += wrap.wrap(f"{row.mark:<{first}}{row.item:<{second}}{row.found}")
        if row.remedy and row.remedy != said:  # rows one after the other often have the same
            wrap.initial_indent = f"{indent}-> "
            wrap.subsequent_indent = f"{indent}   "
            lines += wrap.wrap(row.remedy)
        said = row.remedy
    return "\n".join([*lines, "", verdict(rows, title)])


def verdict(rows: list[Row], title: str) -> str:
    failing = ", ".join(row.item for row in rows if row.fails)
    if failing:
        return f"{title} cannot run here yet: see {failing}." if title else f"No run can start here yet: see {failing}."
    if title:
        return f"Nothing stands in the way of {title} here."
    return "Runs can start here. What one of them needs: --config=ALG --env-config=ENV."


def as_json(rows: list[Row], case: Case, title: str) -> dict[str, Any]:
    """What the table holds, and the sizes in bytes behind it."""
    needs: dict[str, int] = {}
    sizes = case.sizes()
    if case.config and sizes:
        on_gpu = trains_on_gpu(case)
        needs["memory"] = sum(host_needs(case.config, sizes, on_gpu).values())
        needs["disk"] = sum(disk_needs(case.config, sizes).values())
        needs["gpu_memory"] = sum(gpu_needs(case.config, sizes).values()) if on_gpu else 0
    return {
        "run": title or None,
        "usable": not any(row.fails for row in rows),
        "needs_bytes": needs,
        "checks": [{**asdict(row), "fails": row.fails} for row in rows],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv))
