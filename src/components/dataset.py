"""Episodes in an HDF5 file, from which any learner trains with offline=True. docs/datasets.md describes the format.

A file holds one array for each field of the scheme, (episodes, steps, ...) as in a replay, and attributes that say what
was recorded and how. The checksum covers both. Legend: E episodes, N agents, A actions.
"""

import difflib
import hashlib
import json
import os
import weakref
from collections.abc import Iterator, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from components.episode_buffer import EpisodeBatch, ReplayBuffer, compact, episode_bytes, stored_fields
from utils.errors import UserError
from utils.memory import available_bytes, format_bytes

FORMAT, VERSION = "greed_is_good episodes", 1
BLOCK_BYTES = 2**22  # about as much is written, compressed and read at once
RECORD_AGAIN = "record it again, or restore it from a copy"
NOT_OF_THE_GAME = {"seed", "replay_dir", "replay_prefix", "debug"}  # env_args that may differ between file and run


class DatasetWriter:
    """Collects episodes in a file beside `path`, which takes that name when it is whole.

    Args:
        path: where nothing is yet.
        scheme, groups, preprocess: of the batches that will be appended.
        steps: of an episode, the final observation included.
        attributes: what was recorded and how: text, integers and truth values.

    Raises:
        UserError: there is something at `path`, or its folder cannot be written to.
    """

    def __init__(
        self, path: str | Path, scheme: Mapping, groups: Mapping, preprocess: Mapping, steps: int, attributes: Mapping
    ):
        self.path = Path(path)
        self._refuse_to_overwrite()
        self.fields = _fields(scheme, groups, preprocess, steps)
        self.steps = steps
        self.attributes = {"format": FORMAT, "format_version": VERSION, **attributes}
        self.block = max(1, BLOCK_BYTES // episode_bytes(scheme, groups, steps))
        self.hashes = {field: hashlib.sha256() for field in self.fields}
        self.pending: list[dict[str, np.ndarray]] = []
        self.returns: list[float] = []
        self.transitions = 0
        self._beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # An interrupt may come between any two lines; what is not whole does not stay.
            self._remove = weakref.finalize(self, self._beside.unlink, missing_ok=True)
            self._file = h5py.File(self._beside, "w", libver="latest")  # whose structures have checksums
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {_one_line(error)}; name another file") from error
        for field, (shape, dtype) in self.fields.items():
            whole = {"shape": (0, *shape), "maxshape": (None, *shape), "chunks": (self.block, *shape)}
            self._file.create_dataset(field, dtype=dtype, compression="gzip", compression_opts=1, shuffle=True, **whole)

    def __len__(self) -> int:
        return len(self.returns)

    def append(self, batch: EpisodeBatch) -> None:
        """Add whole episodes.

        Raises:
            UserError: they hold what no learner could use, such as NaN.
        """
        content = {field: batch[field].cpu().numpy() for field in self.fields}
        if fault := _fault(content):
            raise UserError(f"{self.path}: episode {len(self) + fault[0]} cannot be recorded: {fault[1]}")
        padding = self.steps - batch.max_seq_length
        content = {k: np.pad(v, [(0, 0), (0, padding)] + [(0, 0)] * (v.ndim - 2)) for k, v in content.items()}
        played = content["filled"][:, 1:]
        self.returns += (content["reward"][:, :-1].astype(np.float64) * played).sum(axis=(1, 2)).tolist()
        self.transitions += int(played.sum())
        self.pending.append(content)
        if sum(len(part["filled"]) for part in self.pending) >= self.block:
            self._write()

    def commit(self) -> Path:
        """Write what is left, the statistics and the checksum, and give the file its name; nothing without episodes.

        If there is a file of this name by now, it becomes the next free one of name-2, name-3, ...

        Returns:
            The file.
        """
        if not self.returns:
            self.discard()
            return self.path
        self._write()
        returns = np.asarray(self.returns)
        self.attributes |= {
            "episodes": len(self),
            "transitions": self.transitions,
            "return_mean": float(returns.mean()),
            "return_std": float(returns.std()),
            "return_min": float(returns.min()),
            "return_max": float(returns.max()),
        }
        digests = {field: found.hexdigest() for field, found in self.hashes.items()}
        self._file.attrs.update({**self.attributes, "checksum": _checksum(self.attributes, digests)})
        self._file.close()
        numbered = (self.path.with_stem(f"{self.path.stem}-{n}") for n in count(2))
        self.path = next(path for path in chain([self.path], numbered) if not path.exists())
        self._beside.replace(self.path)
        self._remove.detach()
        return self.path

    def discard(self) -> None:
        """Forget everything."""
        self._file.close()
        self._remove()

    def _write(self) -> None:
        if not self.pending:
            return
        for field in self.fields:
            array: Any = self._file[field]
            values = np.concatenate([part[field] for part in self.pending])
            count = len(array)
            try:
                array.resize(count + len(values), axis=0)
                array[count:] = values
            except OSError as error:
                raise UserError(f"{self.path}: cannot be written: {_one_line(error)}; make room for it") from error
            self.hashes[field].update(values.data)
        self.pending = []

    def _refuse_to_overwrite(self) -> None:
        if self.path.exists():
            raise UserError(f"{self.path}: already exists; name another file, or remove this one")


def read_attributes(path: str | Path) -> dict[str, Any]:
    """What a file says of itself.

    Raises:
        UserError: there is no such file, it is damaged, or it is no dataset that this version reads.
    """
    with _Opened(path) as opened:
        return opened.attributes


def check_dataset(path: str | Path) -> dict[str, Any]:
    """`read_attributes` of a file all of which was read and found whole."""
    with _Opened(path) as opened:
        for _ in opened.blocks():
            pass
        return opened.attributes


def load_dataset(
    path: str,
    run: Mapping[str, Any],
    scheme: Mapping,
    groups: Mapping,
    preprocess: Mapping,
    steps: int,
    device: str,
    dtype: torch.dtype | None = None,
) -> tuple[ReplayBuffer, dict[str, Any]]:
    """All episodes of a file in a replay on `device`, and the file's attributes.

    Args:
        run: what the file's attributes must agree with; `env_args` as JSON, of which a seed does not matter.
        scheme, groups, preprocess: of the replay; fields of the file that they lack are left out.
        steps: of an episode, the final observation included.
        dtype: of observations and states in the replay; None: the scheme's.

    Raises:
        UserError: the file is damaged, holds what no learner could use, or was recorded for something else; or its
            episodes need more memory than there is.
    """
    with _Opened(path) as opened:
        opened.must_agree(run)
        opened.must_have(_fields(scheme, groups, preprocess, steps))
        episodes = opened.attributes["episodes"]
        size, free = episode_bytes(compact(scheme, dtype), groups, steps) * episodes, available_bytes(device)
        if size > free:
            raise UserError(
                f"dataset={path}: its {episodes} episodes need {format_bytes(size)} on {device}, but "
                f"{format_bytes(free)} are free; record fewer, or set a smaller replay_dtype"
                + ("" if device == "cpu" else ", or set buffer_cpu_only=True to keep them in the host's memory")
            )
        replay = ReplayBuffer(scheme, groups, episodes, steps, preprocess, device, dtype)
        for content in opened.blocks():
            count = len(content["filled"])
            batch = EpisodeBatch(scheme, groups, count, steps, preprocess=preprocess)
            for field, value in batch.data.transition_data.items():
                value.copy_(torch.from_numpy(content[field]))
            replay.insert_episode_batch(batch)
        return replay, opened.attributes


class _Opened:
    """A file that is being read; whatever HDF5 finds wrong with it becomes a UserError."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def __enter__(self) -> "_Opened":
        if not self.path.is_file():
            self.refuse(f"no such file{self._neighbours()}; python src/dataset.py records one")
        try:
            self.file: Any = h5py.File(self.path, "r")
            self.attributes = {key: _plain(value) for key, value in self.file.attrs.items()}
            self.found = {key: (tuple(value.shape), value.dtype) for key, value in self.file.items()}
        except Exception as error:  # damaged structures make HDF5 raise nearly anything
            self.refuse(f"cannot be read as HDF5: {_one_line(error)}; {RECORD_AGAIN}", error)
        try:
            self.checksum = self.attributes.pop("checksum", None)
            if self.attributes.get("format") != FORMAT or self.checksum is None:
                self.refuse("holds no episodes that this project has recorded; python src/dataset.py records some")
            if (version := self.attributes.get("format_version")) != VERSION:
                self.refuse(f"its format has version {version}, this project reads {VERSION}; record it again")
            for key, kind in {"episodes": int, "transitions": int, "env_args": str}.items():
                if not isinstance(self.attributes.get(key), kind):
                    self.refuse(f"is damaged: its attribute {key} is {self.attributes.get(key)!r}; {RECORD_AGAIN}")
        except UserError:
            self.file.close()
            raise
        return self

    def __exit__(self, *error) -> None:
        self.file.close()

    def refuse(self, reason: str, cause: Exception | None = None):
        raise UserError(f"dataset={self.path}: {reason}") from cause

    def must_agree(self, run: Mapping[str, Any]) -> None:
        """Raise UserError unless the attributes are those of the run."""
        wrong = [
            f"{key} {self.attributes.get(key)!r} (this run: {value!r})"
            for key, value in run.items()
            if key != "env_args" and self.attributes.get(key) != value
        ]
        theirs, ours = self._env_args(self.attributes["env_args"]), self._env_args(run["env_args"])
        wrong += [
            f"env_args.{key} {theirs.get(key)!r} (this run: {ours.get(key)!r})"
            for key in sorted((theirs.keys() | ours.keys()) - NOT_OF_THE_GAME)
            if theirs.get(key) != ours.get(key)
        ]
        if wrong:
            self.refuse(f"was recorded with {'; '.join(wrong)}; set what it was recorded with, or record another")

    def must_have(self, fields: Mapping[str, tuple[tuple, np.dtype]]) -> None:
        """Raise UserError unless the file has these arrays, each of its shape and type and of all episodes."""
        episodes = self.attributes["episodes"]
        if "behaviour" in fields and "behaviour" not in self.found:
            self.refuse(
                "lacks behaviour, the probabilities of the actions, which this run reads; "
                "set behaviour.source=bc_rnn (or empirical), or record it again"
            )
        if missing := sorted(fields.keys() - self.found.keys()):
            self.refuse(f"lacks the field {missing[0]}, which this run reads; record it again")
        for field, (shape, dtype) in fields.items():
            if self.found[field] != ((episodes, *shape), dtype):
                found_shape, found_dtype = self.found[field]
                self.refuse(
                    f"its field {field} holds {found_dtype} {found_shape}, this run reads "
                    f"{dtype} {(episodes, *shape)}; {RECORD_AGAIN}"
                )

    def blocks(self) -> Iterator[dict[str, np.ndarray]]:
        """All fields, some episodes at a time.

        Raises:
            UserError: what was read cannot be used; or, at the end, it is not what was recorded.
        """
        sizes = [np.prod(shape[1:]) * dtype.itemsize for shape, dtype in self.found.values()]
        block = max(1, BLOCK_BYTES // int(max(1, sum(sizes))))
        hashes = {field: hashlib.sha256() for field in self.found}
        faults = []
        episodes = self.attributes["episodes"]
        for start in range(0, episodes, block):
            try:
                content = {field: np.ascontiguousarray(self.file[field][start : start + block]) for field in self.found}
                for field, values in content.items():
                    hashes[field].update(values.data)
                if not faults and (fault := _fault(content)):
                    faults.append(f"its episode {start + fault[0]} cannot be learned from: {fault[1]}")
            except Exception as error:  # see above
                self.refuse(f"is damaged: {_one_line(error)}; {RECORD_AGAIN}", error)
            if not faults:  # of a damaged file nothing more is handed out
                yield content
        digests = {field: found.hexdigest() for field, found in hashes.items()}
        if _checksum(self.attributes, digests) != self.checksum:
            self.refuse(f"is damaged: its content has another checksum than was recorded; {RECORD_AGAIN}")
        if faults:
            self.refuse(f"{faults[0]}; record another")

    def _env_args(self, text: str) -> dict[str, Any]:
        try:
            return dict(json.loads(text))
        except (ValueError, TypeError) as error:
            self.refuse(f"is damaged: its attribute env_args is {text!r:.80}; {RECORD_AGAIN}", error)
            raise

    def _neighbours(self) -> str:
        folder = self.path.parent
        names = sorted(p.name for p in folder.glob("*.h5")) if folder.is_dir() else []
        near = difflib.get_close_matches(self.path.name, names, n=1)
        return f" (did you mean {folder / near[0]}?)" if near else ""


def _fields(scheme: Mapping, groups: Mapping, preprocess: Mapping, steps: int) -> dict[str, tuple[tuple, np.dtype]]:
    """The arrays of the scheme's stored fields: shapes without the episodes, and types."""
    scheme = {**scheme, "filled": {"vshape": (1,), "dtype": torch.long}}
    return {
        field: ((steps, *shape), torch.empty(0, dtype=dtype).numpy().dtype)
        for field, (shape, dtype, _) in stored_fields(scheme, groups, preprocess).items()
    }


def _fault(content: Mapping[str, np.ndarray]) -> tuple[int, str] | None:
    """The first episode that no learner could use, and why; None if there is none."""
    filled = content["filled"][..., 0] > 0  # (E, T + 1)
    played = filled[:, 1:, None, None]
    actions, avail = content["actions"][:, :-1], content["avail_actions"][:, :-1]
    checks = {
        "is not one run of at least two steps": ~filled[:, :2].all(axis=1) | (filled[:, 1:] & ~filled[:, :-1]).any(1)
    }
    for field, values in content.items():
        if values.dtype.kind == "f":
            checks[f"its {field} holds a NaN or an infinity"] = ~np.isfinite(values).all(
                axis=tuple(range(1, values.ndim))
            )
    known = (actions >= 0) & (actions < avail.shape[-1])
    checks["an action is none of the environment's"] = (played & ~known).any(axis=(1, 2, 3))
    taken = np.where(known, actions, 0)
    unavailable = np.take_along_axis(avail, taken, axis=3) == 0
    checks["an action was taken that was not available"] = (played & unavailable).any(axis=(1, 2, 3))
    if "behaviour" in content:
        beta = content["behaviour"][:, :-1]
        sums = np.abs(beta.sum(axis=3, keepdims=True) - 1) < 1e-3
        fair = sums & (beta >= 0).all(axis=3, keepdims=True) & (np.take_along_axis(beta, taken, axis=3) > 0)
        checks["its behaviour is no probabilities of the actions"] = (played & ~fair).any(axis=(1, 2, 3))
    for reason, bad in checks.items():
        if bad.any():
            return int(bad.argmax()), reason
    return None


def _checksum(attributes: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """Of the attributes, and of every field's bytes in order of episodes."""
    content = json.dumps({"attributes": dict(attributes), "fields": dict(digests)}, sort_keys=True, default=repr)
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def _plain(value: Any) -> Any:
    """An attribute as it was before HDF5 stored it."""
    if isinstance(value, bytes):
        return value.decode()
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__} {' '.join(str(error).split())[:200]}"
