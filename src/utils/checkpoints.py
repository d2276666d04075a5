"""A run's checkpoints on disk: everything that is needed to go on as if nothing had happened.

    results/checkpoints/<token>/
        lock                        held by the process that writes here
        <step>/state.pt             the state of all parts, without the replay
        <step>/checkpoint.json      what the run is, which files belong to it, and their checksums; written last
        replay/<first>-<end>.pt     the episodes that came into the replay between two checkpoints, by their number

Each checkpoint adds only the episodes that are new, so its cost does not grow with the replay. All files are written
beside, forced to the disk and then renamed: what has its final name is whole. Files load as data, never as code.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from utils.differences import FREE, differences
from utils.errors import UserError
from utils.memory import format_bytes

DESCRIPTION = "checkpoint.json"
STATE = "state.pt"
REPLAY = "replay"
FINISHED = "finished.json"
FORMAT = 2  # of what is written here; there is no program that reads several
SEAL = "seal"  # key of the checksum that a description holds of itself


class DamagedError(Exception):
    """A checkpoint is not what was written."""


@dataclass
class Resumption:
    """A run that is to go on."""

    folder: Path
    description: dict  # of its newest checkpoint, or what it left when it was complete
    result: dict | None  # its last results, if it is complete


class Checkpoints:
    """The checkpoints of one run, which this process alone may write while it is entered.

    Args:
        folder: results/checkpoints/<token>.
        keep: how many stay.

    Raises:
        UserError: another process writes there.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        (folder / REPLAY).mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise UserError(
                f"resume: another process is training the run in {folder}; wait for it, or end it"
            ) from error
        self._segments: list[dict] = []  # of the newest checkpoint, the oldest episodes first
        self._saved = 0  # episodes that came into the replay before the newest checkpoint

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error) -> None:
        self._lock.close()
        if not steps(self.folder) and not (self.folder / FINISHED).exists():
            shutil.rmtree(self.folder, ignore_errors=True)  # there is nothing to go on with

    def write(self, step: int, state: Any, replay, about: dict) -> int:
        """Write a checkpoint and drop the oldest; returns the bytes written.

        Args:
            replay: a `ReplayBuffer`, or None without one.
            about: goes into the description.

        Raises:
            OSError: it cannot be written. What was there before is still whole.
        """
        beside, final = self.folder / f"{step}.tmp", self.folder / f"{step}"
        segments, written = list(self._segments), 0
        new: Path | None = None
        try:
            if replay is not None:
                oldest = max(0, replay.inserted - replay.buffer_size)
                first = max(self._saved, oldest)
                if replay.inserted > first:
                    new = self.folder / REPLAY / f"{first:010d}-{replay.inserted:010d}.pt"
                    checksum, size = _write_tensors(new, replay.episodes(first, replay.inserted))
                    segments.append({"file": new.name, "first": first, "end": replay.inserted, "sha256": checksum})
                    written += size
                segments = [one for one in segments if one["end"] > oldest]
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            checksum, size = _write_tensors(beside / STATE, state)
            files = {STATE: checksum}
            description = {"format": FORMAT, "step": step, "files": files, "replay": segments, **about}
            text = _seal(description)
            _write(beside / DESCRIPTION, lambda file: file.write(text))
            shutil.rmtree(final, ignore_errors=True)  # of the same step, from before a resumption
            beside.rename(final)
            _sync(self.folder)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)
            if new is not None:
                new.unlink(missing_ok=True)
            raise
        self._segments = segments
        self._saved = replay.inserted if replay is not None else 0
        self._drop_old()
        return written + size + len(text)

    def read(self, load_replay: Callable[[dict, int], None] | None, device: str, warn: Callable) -> tuple[dict, Any]:
        """The newest whole checkpoint: its description and its state. Damaged ones are named and passed over.

        Args:
            load_replay: called with the fields of episodes and the number of the first, the oldest first.

        Raises:
            UserError: none is whole.
        """
        reasons = []
        for step in reversed(steps(self.folder)):
            try:
                description, state = self._read(self.folder / f"{step}", load_replay, device)
            except DamagedError as error:
                reasons.append(f"{error}")
                warn("Checkpoint %d is damaged and passed over: %s", step, error)
                continue
            self._segments = description["replay"]
            self._saved = self._segments[-1]["end"] if self._segments else 0
            for later in steps(self.folder):
                if later > step:
                    shutil.rmtree(self.folder / f"{later}")
            self._drop_old()
            return description, state
        found = "; ".join(reasons) or "there is none"
        raise UserError(f"resume: no whole checkpoint in {self.folder}: {found}; set resume='' to start a new run")

    def finish(self, about: dict) -> None:
        """Note that the run is complete, and remove what was only needed to go on."""
        _write(self.folder / FINISHED, lambda file: file.write(_seal(about)))
        for step in steps(self.folder):
            shutil.rmtree(self.folder / f"{step}", ignore_errors=True)
        shutil.rmtree(self.folder / REPLAY, ignore_errors=True)

    def _read(self, folder: Path, load_replay, device: str) -> tuple[dict, Any]:
        description = describe(folder)
        state_file = folder / STATE
        _check(state_file, description["files"][STATE])
        parts = [self.folder / REPLAY / one["file"] for one in description["replay"]]
        for one, file in zip(description["replay"], parts, strict=True):
            _check(file, one["sha256"])
        state = _load(state_file, device)
        if load_replay is not None:
            for one, file in zip(description["replay"], parts, strict=True):
                load_replay(_load(file, "cpu"), one["first"])
        return description, state

    def _drop_old(self) -> None:
        """Remove all but the newest checkpoints, and what no checkpoint needs any more."""
        whole = steps(self.folder)
        for step in whole[: -self.keep]:
            shutil.rmtree(self.folder / f"{step}", ignore_errors=True)
        needed = {one["file"] for one in self._segments}
        for step in whole[-self.keep :]:
            with contextlib.suppress(DamagedError):
                needed |= {one["file"] for one in describe(self.folder / f"{step}")["replay"]}
        for file in (self.folder / REPLAY).iterdir():
            if file.name not in needed:
                with contextlib.suppress(IsADirectoryError):  # of somebody else's
                    file.unlink(missing_ok=True)
        for leftover in self.folder.glob("*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)


def find(resume: str, config: dict) -> Resumption | None:
    """The run that `resume` names; None if it is empty, or "auto" and there is nothing to go on with.

    Args:
        resume: "auto" for the newest run of this configuration below its `local_results_path`; a token, the name of a
            folder in results/checkpoints; or the path of such a folder.

    Raises:
        UserError: there is no such run, it has another configuration, or another process is training it.
    """
    if not resume:
        return None
    home = Path(config["local_results_path"]) / "checkpoints"
    if resume == "auto":
        folders = sorted(home.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True) if home.is_dir() else []
        found = next(
            (
                run
                for folder in folders
                if (run := open_run(folder)) and not differences(run.description["config"], config)
            ),
            None,
        )
    else:
        folder = home / resume if (home / resume).is_dir() else Path(resume)
        if not folder.is_dir():
            near = sorted(p.name for p in home.iterdir()) if home.is_dir() else []
            hint = f"; {home} holds {', '.join(near[-5:])}" if near else ""
            raise UserError(f"resume={resume!r}: no such run{hint}")
        found = open_run(folder)
        if found is None:
            raise UserError(
                f"resume={resume!r}: {folder} holds no readable checkpoint; start the run anew without resume"
            )
        if different := differences(found.description["config"], config, (*FREE, "t_max")):
            raise UserError(f"resume={resume!r}: that run has another configuration: {'; '.join(different[:5])}")
        then, wanted = (known.get("t_max", 0) for known in (found.description["config"], config))
        if found.result is not None and wanted > then:
            model = home.parent / "models" / folder.name
            raise UserError(
                f"t_max={wanted}: the run in {folder} is complete at t_max={then}, and its checkpoints are gone; "
                f"leave resume out, and start from its model if it has one (checkpoint_path={model})"
            )
    if found is not None and not is_free(found.folder):
        raise UserError(
            f"resume={resume!r}: another process is training the run in {found.folder}; wait for it, or end it"
        )
    return found


def open_run(folder: Path) -> Resumption | None:
    """The run whose checkpoints lie, or have lain, in this folder; None if nothing there can be read."""
    try:
        finished = _unseal((folder / FINISHED).read_bytes())
        return Resumption(folder, finished, finished["result"])
    except (OSError, ValueError, KeyError):
        description = newest_description(folder)
        return None if description is None else Resumption(folder, description, None)


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a run's folder, in order."""
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir()) if folder.is_dir() else []


def describe(folder: Path) -> dict:
    """What a checkpoint says of itself.

    Raises:
        DamagedError: it is not what was written, or of another format.
    """
    file = folder / DESCRIPTION
    try:
        found = json.loads(file.read_bytes())
        if found["format"] != FORMAT:
            raise DamagedError(f"{file} has format {found['format']}, this program reads {FORMAT}")
        found = _unseal(file.read_bytes())
        if folder.name != f"{found['step']}":
            raise DamagedError(f"{file} is of step {found['step']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{file}: {type(error).__name__} {error}") from error
    return found


def newest_description(folder: Path) -> dict | None:
    """The description of the newest checkpoint that has a readable one."""
    for step in reversed(steps(folder)):
        with contextlib.suppress(DamagedError):
            return describe(folder / f"{step}")
    return None


def is_free(folder: Path) -> bool:
    """Whether no process trains this run now."""
    try:
        with (folder / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _seal(values: dict) -> bytes:
    """As JSON, with a checksum of the content."""
    values = json.loads(json.dumps(values))
    return json.dumps({**values, SEAL: _digest(values)}, indent=1).encode()


def _unseal(text: bytes) -> dict:
    """
    Raises:
        ValueError, KeyError, TypeError: it is not what was sealed.
    """
    found = json.loads(text)
    if found.pop(SEAL) != _digest(found):
        raise ValueError("it is not what was written")
    return found


def _digest(values: dict) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _write_tensors(path: Path, values: Any) -> tuple[str, int]:
    """Returns the checksum and the size."""
    _write(path, lambda file: torch.save(values, file))
    return checksum_of(path), path.stat().st_size


def _write(path: Path, fill: Callable[[IO[bytes]], Any]) -> None:
    """Write a file so that its name stands for all of it or for nothing."""
    beside = path.with_name(path.name + ".part")
    try:
        with beside.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
        _sync(path.parent)
    except RuntimeError as error:  # torch's writer does not say that a disk is full
        free = format_bytes(shutil.disk_usage(path.parent).free)
        beside.unlink(missing_ok=True)
        raise OSError(f"{path}: {free} are free there: {error}") from error
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    """Force names of this folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path, checksum: str) -> None:
    try:
        found = checksum_of(path)
    except OSError as error:
        raise DamagedError(f"{path}: {error}") from error
    if found != checksum:
        raise DamagedError(f"{path} has checksum {found[:12]}..., and {checksum[:12]}... was written")


def _load(path: Path, device: str) -> Any:
    try:
        # Only what lay on a GPU is moved: the states of random generators always lie in the host's memory.
        return torch.load(path, map_location={f"cuda:{i}": device for i in range(64)}, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise DamagedError(f"{path}: {type(error).__name__} {' '.join(str(error).split())[:200]}") from error
