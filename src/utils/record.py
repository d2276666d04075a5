"""sacred's record of a run in a folder, which a resumed run continues and a full disk does not break."""

import contextlib
import json
import logging
import os
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sacred.observers import FileStorageObserver
from sacred.run import Run
from sacred.serializer import flatten

from utils.credentials import hide
from utils.errors import UserError

SILENT = timedelta(minutes=5)  # sacred writes a sign of life every ten seconds; who is silent for longer is dead


class RunFolder(FileStorageObserver):
    """The record results/sacred/<id>.

    sacred drops an observer that fails once. Here what cannot be written is said once, kept, and written later.
    The `uid` in run.json tells this run from all others, wherever its folder lies. No password is written.

    Args:
        continue_id: the run that goes on; None for a new one.
    """

    def __init__(self, basedir: Path, log: logging.Logger, continue_id: str | None = None):
        super().__init__(str(basedir))
        self.continue_id = continue_id
        self.log = log
        self.metrics: dict[str, dict[str, list]] = {}
        self._failing = False

    def started_event(self, ex_info, command, host_info, start_time, config, meta_info, _id):
        if self.continue_id is None or not (Path(self.basedir) / self.continue_id).is_dir():
            number = super().started_event(ex_info, command, host_info, start_time, config, meta_info, _id)
            self.run_entry["uid"] = uuid.uuid4().hex
            self.save_json(self.run_entry, "run.json")
            return number
        self.dir = str(Path(self.basedir) / self.continue_id)
        before = self._read("run.json")
        ex_info["sources"] = self.save_sources(ex_info)
        self.run_entry = {
            "experiment": dict(ex_info),
            "command": command,
            "host": dict(host_info),
            "start_time": before.get("start_time", start_time.isoformat()),
            "resumed": [*before.get("resumed", []), start_time.isoformat()],
            "meta": meta_info,
            "status": "RUNNING",
            "resources": before.get("resources", []),
            "artifacts": before.get("artifacts", []),
            "heartbeat": None,
            "uid": identity(before) if before else uuid.uuid4().hex,
        }
        self.config, self.info = config, {}
        self.cout, self.cout_write_cursor = "", 0
        self.save_json(self.run_entry, "run.json")
        self.save_json(self.config, "config.json")
        return self.continue_id

    def rewind(self, stats: dict[str, list[tuple[int, float]]]) -> None:
        """Let the metrics be these, (step, value) by name: what was logged behind the checkpoint comes again."""
        before, now = self._read("metrics.json"), datetime.now(UTC).replace(tzinfo=None).isoformat()
        self.metrics = {}
        for name, points in stats.items():
            known = before.get(name, {}).get("timestamps", [])[: len(points)]
            self.metrics[name] = {
                "steps": [step for step, _ in points],
                "values": [value for _, value in points],
                "timestamps": known + [now] * (len(points) - len(known)),
            }
        self.save_json(self.metrics, "metrics.json")

    def log_metrics(self, metrics_by_name, info) -> None:
        for name, new in metrics_by_name.items():
            mine = self.metrics.setdefault(name, {"steps": [], "values": [], "timestamps": []})
            mine["steps"] += new["steps"]
            mine["values"] += new["values"]
            mine["timestamps"] += [stamp.isoformat() for stamp in new["timestamps"]]
        self.save_json(self.metrics, "metrics.json")

    def save_json(self, obj, filename) -> None:
        """Write a file so that its name always stands for a whole one."""
        path = Path(self.dir) / filename
        beside = path.with_name(path.name + ".part")
        with self._forgiving(filename):
            try:
                with beside.open("w") as file:
                    plain = flatten(obj)
                    # Metrics hold no texts but their names.
                    json.dump(plain if filename == "metrics.json" else hide(plain), file, sort_keys=True, indent=2)
                os.replace(beside, path)
            except OSError:
                beside.unlink(missing_ok=True)
                raise

    def artifact_event(self, name, filename, metadata=None, content_type=None) -> None:
        try:
            super().artifact_event(name, filename, metadata, content_type)
        except OSError as error:
            self.log.warning("%s cannot be copied to %s (%s)", filename, self.dir, error)

    def save_cout(self) -> None:
        with self._forgiving("cout.txt"):
            super().save_cout()

    @contextlib.contextmanager
    def _forgiving(self, filename: str):
        try:
            yield
        except OSError as error:
            if not self._failing:
                self.log.warning("%s cannot be written (%s); it is tried again every 10 seconds", filename, error)
            self._failing = True
        else:
            self._failing = False

    def _read(self, filename: str) -> dict:
        try:
            return json.loads((Path(self.dir) / filename).read_text())
        except (OSError, ValueError):
            return {}


def run_beside(run: Run, config: dict[str, Any], observers: list, main: Callable[[], Any]) -> Run:
    """A run with a record and a configuration of its own, that `run`'s program also makes; it calls `main`."""
    quiet = logging.getLogger("greed.beside")
    quiet.setLevel(logging.WARNING)
    other = Run(
        config,
        run.config_modifications,
        _Command(main, run.main_function),
        observers,
        run.root_logger,
        quiet,
        run.experiment_info,
        run.host_info,
        [],
        [],
        run.captured_out_filter,
    )
    other.meta_info, other.capture_mode = dict(run.meta_info), run.capture_mode
    return other


class _Command:
    """A function under the name that sacred knows another by."""

    def __init__(self, call: Callable[[], Any], named):
        self.call, self.prefix, self.signature = call, named.prefix, named.signature

    def __call__(self) -> Any:
        return self.call()


def identity(record: dict[str, Any]) -> str:
    """What a run is known by: its uid; without one, when and where it started."""
    return record.get("uid") or f"{record['start_time']} {record['host'].get('hostname', '')}"


def status_of(record: dict[str, Any]) -> str:
    """sacred's word for what became of a run; KILLED if the record says RUNNING, but the signs of life have ended.

    Raises:
        KeyError, TypeError, ValueError: the record is not whole.
    """
    word: str = record["status"]
    if word != "RUNNING":
        return word
    beat: Any = record.get("heartbeat") or record["start_time"]
    seen = beat if isinstance(beat, datetime) else datetime.fromisoformat(beat)  # in UTC, as sacred has it
    return word if datetime.now(UTC).replace(tzinfo=None) - seen < SILENT else "KILLED"


def commit_of(record: dict[str, Any]) -> tuple[str, bool]:
    """The commit that a run was started from, and whether files had been changed; "" if it is not known.

    An image is no repository, but was told its commit when it was built.
    """
    repositories = record.get("experiment", {}).get("repositories") or []
    if found := next((one for one in repositories if one.get("commit")), None):
        return found["commit"], bool(found.get("dirty"))
    return record.get("host", {}).get("ENV", {}).get("GREED_IS_GOOD_COMMIT", ""), False


def find_runs(path: Path) -> list[Path]:
    """The folders of runs at or below a folder of results, the first run first.

    Raises:
        UserError: there is none.
    """
    if (path / "run.json").exists():
        return [path]
    patterns = ("*/run.json", "**/sacred/*/run.json")  # those of sweeps lie deeper
    if found := {file.parent for pattern in patterns for file in path.glob(pattern)}:
        return sorted(found, key=lambda run: (run.parent, run.name.zfill(12)))
    raise UserError(f"{path}: holds no runs; give a folder of results (results), or of one run (results/sacred/1)")
