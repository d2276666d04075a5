"""What benchmarks share: many short runs in worker processes and their statistics, parts of a run, the machine.

Finished runs are appended to a file of lines at once, so that a sweep that was stopped goes on where it was.
"""

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "results" / "published"
PACKAGES = ("torch", "numpy", "jax", "jaxmarl", "sacred")


@dataclass(frozen=True)
class Job:
    """One run: `group` says what it belongs to, `method` which variant it is."""

    group: str
    method: str
    config: str
    env_config: str
    overrides: tuple[tuple[str, object], ...]
    seed: int

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def run_jobs(jobs: list[Job], store: Path, workers: int) -> list[dict]:
    """The records of all jobs; those that `store` holds already are not run again.

    A record is the job's fields, `commit`, `seconds`, and `metrics`: name -> [[step, value], ...] of every logged
    statistic; or `error` if the run failed. Wrong configurations end the program before anything is run.
    """
    store.parent.mkdir(parents=True, exist_ok=True)
    done = {}
    if store.exists():
        for line in store.read_text().splitlines():
            record = json.loads(line)
            if "error" not in record:  # what failed is tried again
                done[record["key"]] = record
    todo = [job for job in jobs if job.key not in done]
    check(todo)
    print(f"{len(jobs)} runs, {len(jobs) - len(todo)} of them in {store}; {workers} worker(s)", flush=True)
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool, store.open("a") as file:
        for n, record in enumerate(pool.imap_unordered(_run, todo), start=1):
            done[record["key"]] = record
            file.write(json.dumps(record) + "\n")
            file.flush()
            elapsed = time.monotonic() - started
            outcome = record.get("error") or f"{record['seconds']:.0f} s"
            left = elapsed / n * (len(todo) - n) / 60
            name = f"{record['group']} {record['method']} seed {record['seed']}"
            print(f"{n}/{len(todo)}  {name}: {outcome}  ({left:.0f} min left)", flush=True)
    return [done[job.key] for job in jobs]


def check(jobs: list[Job]) -> None:
    """End the program with one line if a configuration is wrong; each is looked at once for all seeds."""
    add_sources()
    from config.schema import ConfigError, load

    try:
        for config, env_config, overrides in {(job.config, job.env_config, job.overrides): None for job in jobs}:
            load(config, env_config, nested(dict(overrides)))
    except ConfigError as error:
        sys.exit(f"error: {error}")


def _run(job: Job) -> dict:
    record = {"key": job.key, **asdict(job), "commit": commit()}
    started = time.monotonic()
    try:
        overrides = {"seed": job.seed, "use_cuda": False, "plot": False, "torch_threads": 1, **dict(job.overrides)}
        with contextlib.redirect_stdout(io.StringIO()), experiment(job.config, job.env_config, overrides) as built:
            built.train(SimpleNamespace(_id=None))
        metrics = built.logger.stats
        record["metrics"] = {name: [[t, float(v)] for t, v in curve] for name, curve in metrics.items()}
    except Exception as error:  # one failed run must not end a sweep of hours; it is reported and counted
        record["error"] = f"{type(error).__name__}: {error}"
    record["seconds"] = round(time.monotonic() - started, 1)
    return record


@contextlib.contextmanager
def experiment(config: str, env: str, overrides: Mapping[str, object], evaluate: bool = False) -> Iterator:
    """A run's parts (`run.Experiment`), put together as `src/run.py` does; closed in the end.

    Args:
        overrides: keys of a block with a dot.
        evaluate: nothing will be learned, so there is no replay.
    """
    args, logger = arguments_of(config, env, overrides, evaluate)
    from run import Experiment, running

    with running(args, logger) as runner:
        yield Experiment(args, logger, runner)


def arguments_of(config: str, env: str, overrides: Mapping[str, object], evaluate: bool = False) -> tuple:
    """What `run.Experiment` is built from, but for the runner: arguments and a logger. Sets seeds and threads."""
    add_sources()
    from config.schema import extend, load
    from run import prepare
    from utils.logging import Logger

    console = logging.getLogger("jobs")
    console.setLevel(logging.WARNING)
    merged = load(config, env, nested(overrides)) | {"evaluate": evaluate}
    return extend(prepare(merged, console), unique_token="jobs"), Logger(console)


def add_sources() -> None:
    """Make the project's code importable."""
    if str(ROOT / "src") not in sys.path:
        sys.path.insert(0, str(ROOT / "src"))


def ask_fresh(script: str, what: Mapping[str, object], environment: Mapping[str, str] | None = None) -> dict:
    """What `script --worker JSON` prints as a line of JSON in a process of its own; {"error": ...} if it fails."""
    waiting = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}  # as src/main.py has it
    command = [sys.executable, script, "--worker", json.dumps(what)]
    env = os.environ | waiting | dict(environment or {})
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return failure(done) if done.returncode or not answers else json.loads(answers[-1])


def failure(done: subprocess.CompletedProcess) -> dict[str, str]:
    """What a row says of a process that failed."""
    return {"error": done.stderr.strip().splitlines()[-1] if done.stderr else f"exit code {done.returncode}"}


def nested(overrides: Mapping[str, object]) -> dict:
    """Keys with dots as blocks."""
    found: dict = {}
    for dotted, value in overrides.items():
        *blocks, key = dotted.split(".")
        place = found
        for block in blocks:
            place = place.setdefault(block, {})
        place[key] = value
    return found


def algorithms() -> list[str]:
    """The names of all configurations of algorithms."""
    return sorted(path.stem for path in (ROOT / "src" / "config" / "algs").glob("*.yaml"))


def positive(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def add_overrides(parser: argparse.ArgumentParser, default: Sequence[str] = ()) -> None:
    """The option --with, as src/main.py has it."""
    parser.add_argument("--with", dest="overrides", nargs="*", default=default, metavar="KEY=VALUE", help="of all runs")


def read_overrides(pairs: Sequence[str]) -> dict[str, object]:
    """The values of `--with`, keys of a block with a dot; values are read as src/main.py reads them."""
    from sacred.arg_parser import get_config_updates
    from sacred.utils import iterate_flattened

    updates, bare = get_config_updates(list(pairs))
    if bare:
        sys.exit(f"error: --with {bare[0]}: write key=value")
    return dict(iterate_flattened(updates))


def last(record: dict, metric: str) -> float:
    """The last logged value; not a number if the run failed or did not log it."""
    curve = record.get("metrics", {}).get(metric)
    return curve[-1][1] if curve else float("nan")


def summarise(values: Sequence[float]) -> dict:
    """Interquartile mean of runs with its 95% interval, their values, and how many there were and failed."""
    found = summarise_tasks({"": values})
    return {key: found[key] for key in ("iqm", "low", "high", "runs", "failed")} | {"values": found["values"][""]}


def summarise_tasks(values: Mapping[str, Sequence[float]]) -> dict:
    """`summarise` over the runs of several tasks, pooled, but drawn anew within each task; also each task's mean."""
    add_sources()
    from reporting.statistics import interquartile_mean, interval

    finite = {task: np.asarray(runs, float)[np.isfinite(runs)] for task, runs in values.items()}
    finite = {task: runs for task, runs in finite.items() if len(runs)}
    pooled = list(finite.values())
    low, high = interval(interquartile_mean, pooled) if pooled else (float("nan"), float("nan"))
    runs = sum(map(len, values.values()))
    return {
        "iqm": float(interquartile_mean(pooled)) if pooled else float("nan"),
        "low": float(low),
        "high": float(high),
        "values": {task: [round(float(value), 4) for value in found] for task, found in values.items()},
        "runs": runs,
        "failed": runs - sum(map(len, pooled)),
        "tasks": {task: float(found.mean()) for task, found in finite.items()},
    }


@dataclass(frozen=True)
class Peer:
    """Another code base: its checkout, and the Python that it runs in."""

    path: Path
    python: str


def add_peers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH", help="a checkout to compare with")
    parser.add_argument("--peer-python", action="append", default=[], metavar="NAME=PYTHON", help="this one by default")


def read_peers(args: argparse.Namespace) -> dict[str, Peer]:
    """What these options give, by name; from then on they hold names alone."""
    pythons = dict(text.partition("=")[::2] for text in args.peer_python)
    peers = {}
    for name, _, path in (text.partition("=") for text in args.peer):
        if not path or not Path(path).is_dir():
            sys.exit(f"error: --peer {name}={path}: no such folder; give NAME=PATH, such as epymarl=../epymarl")
        python = shutil.which(pythons.pop(name, sys.executable))
        if python is None:
            sys.exit(f"error: --peer-python {name}: no such program")
        peers[name] = Peer(Path(path).resolve(), os.path.abspath(python))  # links in virtual environments must stay
    if pythons:
        sys.exit(f"error: --peer-python {next(iter(pythons))}: no --peer has this name")
    args.peer, args.peer_python = list(peers), []
    return peers


def publish(name: str, settings: Mapping, records: Sequence[dict] = (), **found: object) -> None:
    """Write NAME.json to results/published: what `described` gives."""
    write(name, described(settings, records, **found))


def described(settings: Mapping, records: Sequence[dict] = (), **found: object) -> dict:
    """What was found, with the settings and the machine.

    Args:
        records: the runs from which it was found, which may be of earlier commits than the machine's.
    """
    commits = {"commits_of_runs": sorted({record.get("commit", "") for record in records})} if records else {}
    return {"settings": dict(settings), "machine": machine(), **commits, **found}


def write(name: str, report: dict) -> None:
    PUBLISHED.mkdir(parents=True, exist_ok=True)
    (PUBLISHED / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")


def machine() -> dict:
    """Where and with what versions something was measured."""
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    gpus = []
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpus = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(models),
        "gpus": gpus,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "commit": commit(),
        "date": f"{datetime.now():%Y-%m-%d}",
    }


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip()
