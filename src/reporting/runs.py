"""The records of runs, from their folders or from MongoDB."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.mongo import Server, errors, reason
from utils.record import commit_of, find_runs, status_of

GATE = ("gate_weight_independent", "gap_independent", "gap_cooperative")  # the gate's statistics that are drawn
FIELDS = ("config", "status", "experiment", "host", "start_time", "heartbeat", "fail_trace", "info")
NEEDED = ("name", "env", "env_args", "seed", "t_max")  # keys without which it is no run of this project
# What became of a run, by its record's word for it; others are said as they are.
STATUSES = {"COMPLETED": "complete", "INTERRUPTED": "stopped", "TIMEOUT": "stopped"}


@dataclass(frozen=True, eq=False)  # eq=False: arrays do not compare to one truth value
class Run:
    """What is known of one run."""

    place: str  # its folder, or its number in MongoDB
    status: str  # complete, failed, stopped, killed or running
    config: dict[str, Any]
    metrics: dict[str, tuple[np.ndarray, np.ndarray]]  # name -> steps, values; of tests and of the gate
    commit: str  # the first digits, with + if files had been changed; "unknown"
    versions: str
    machine: str  # processor and GPUs
    started: str  # UTC
    error: str  # the last line of what it failed with

    @property
    def last_step(self) -> int:
        """The last step of which anything is known; 0 without any."""
        return max((int(steps[-1]) for steps, _ in self.metrics.values() if len(steps)), default=0)


def read_folders(paths: list[str]) -> tuple[list[Run], list[str]]:
    """All runs below these folders, and a line for each record that cannot be read.

    Raises:
        UserError: a folder holds no runs.
    """
    runs, unreadable = [], []
    for folder in dict.fromkeys(folder.resolve() for path in paths for folder in find_runs(Path(path))):
        place = _shown(folder)
        try:
            record, config = (json.loads((folder / name).read_text()) for name in ("run.json", "config.json"))
            file = folder / "metrics.json"
            metrics = json.loads(file.read_text()) if file.exists() else {}
            runs.append(_run(place, record, config, metrics))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            unreadable.append(f"{place}: not a whole record of a run ({type(error).__name__}: {error})")
    return runs, unreadable


def read_mongo(server: Server) -> tuple[list[Run], list[str]]:
    """All runs of a database, and a line for each record that cannot be read.

    Raises:
        UserError: it does not answer, or holds no runs.
    """
    runs, unreadable = [], []
    try:
        database = server.open()
        documents = list(database.runs.find({}, dict.fromkeys(FIELDS, 1)).sort("_id", 1))
        for document in documents:
            place = f"run {document['_id']} of {server}"
            try:
                names = [one["name"] for one in document["info"]["metrics"] if _is_wanted(one["name"])]
                found = database.metrics.find({"run_id": document["_id"], "name": {"$in": names}})
                metrics = {one["name"]: one for one in found}
                runs.append(_run(place, document, document["config"], metrics))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                unreadable.append(f"{place}: not a whole record of a run ({type(error).__name__}: {error})")
    except errors.PyMongoError as error:
        raise UserError(f"{server} {reason(error)}") from None
    if not documents:
        raise UserError(f"{server}: holds no runs; python src/sync_runs.py brings them there")
    return runs, unreadable


def _shown(folder: Path) -> str:
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def _run(place: str, record: dict[str, Any], config: dict[str, Any], metrics: dict[str, Any]) -> Run:
    experiment, trace = record.get("experiment", {}), record.get("fail_trace") or [""]
    host = record.get("host", {})
    commit, is_changed = commit_of(record)
    status = status_of(record)
    versions = [f"Python {host.get('python_version', '?')}", *experiment.get("dependencies", [])]
    gpus = Counter(gpu["model"] for gpu in host.get("gpus", {}).get("gpus", []))
    if missing := [key for key in NEEDED if key not in config]:
        raise ValueError(f"its configuration lacks {', '.join(missing)}")
    return Run(
        place=place,
        status=STATUSES.get(status, status.lower()),
        config=config,
        metrics={
            name: (np.asarray(points["steps"], float), np.asarray(points["values"], float))
            for name, points in metrics.items()
            if _is_wanted(name)
        },
        commit=(commit[:8] or "unknown") + "+" * is_changed,
        versions=", ".join(one.replace("==", " ") for one in versions),
        machine=", ".join([host.get("cpu") or "unknown", *(f"{count} x {gpu}" for gpu, count in gpus.items())]),
        started=f"{record.get('start_time') or '?'}".replace("T", " "),
        error=next((line.strip() for line in reversed("".join(trace).splitlines()) if _tells(line)), ""),
    )


def _is_wanted(name: str) -> bool:
    return name.startswith("test_") or name in GATE


def _tells(line: str) -> bool:
    """Whether a line of a traceback says what went wrong; `main.py` ends failed runs by SystemExit."""
    return bool(line.strip()) and not line.startswith((" ", "SystemExit", "Traceback", "The above exception"))
