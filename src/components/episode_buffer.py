"""Episodes in tensors, and the replay of them. Legend: B episodes, T steps (the final observation included).

A field of the scheme is `{"vshape": int or tuple, "dtype": torch dtype, "group": name, "episode_const": bool}`; its
tensor is (B, T, [group size,] *vshape), without T if `episode_const`. The field `filled` (B, T, 1) says which steps
hold data: the steps that were played and the observation after the last of them.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, overload

import numpy as np
import torch

from utils.errors import UserError
from utils.memory import available_bytes, format_bytes

FILLED = {"vshape": (1,), "dtype": torch.long}
NUMBERS = ("obs", "state")  # of which a replay may keep less than the scheme's precision

Index = slice | int | list | np.ndarray | torch.Tensor


class EpisodeBatch:
    """B episodes of up to T steps.

    `preprocess={"actions": ("actions_onehot", [OneHot(A)])}` adds fields that are derived when they are read, never
    stored; a derived field is 0 where `filled` is 0.
    """

    def __init__(
        self,
        scheme: Mapping,
        groups: Mapping,
        batch_size: int,
        max_seq_length: int,
        data=None,
        preprocess=None,
        device="cpu",
    ):
        self.scheme = dict(scheme)
        self.groups = dict(groups)
        self.batch_size = batch_size
        self.max_seq_length = max_seq_length
        self.preprocess = {} if preprocess is None else dict(preprocess)
        self.device = device
        for source, (name, transforms) in self.preprocess.items():
            vshape, dtype = self.scheme[source]["vshape"], self.scheme[source].get("dtype", torch.float32)
            for transform in transforms:
                vshape, dtype = transform.infer_output_info(vshape, dtype)
            derived = {"vshape": vshape, "dtype": dtype}
            for key in ("group", "episode_const"):
                if key in self.scheme[source]:
                    derived[key] = self.scheme[source][key]
            self.scheme[name] = derived
        self.scheme.setdefault("filled", FILLED)
        if data is None:
            fields = stored_fields(self.scheme, self.groups, self.preprocess)
            data = _zeros(fields, batch_size, max_seq_length, device)
        self.data = data

    def update(self, data: Mapping, bs: Index = slice(None), ts: Index = slice(None), mark_filled: bool = True) -> None:
        """Write fields at episodes `bs` and steps `ts` (slices, integers or lists of integers).

        Raises:
            KeyError: a field that the scheme does not have.
            ValueError: values whose shape does not fit.
        """
        bs, ts = _as_index(bs), _as_index(ts)
        if isinstance(bs, list) and isinstance(ts, list):
            raise ValueError("update() takes a list of integers for bs or for ts, not for both")
        for key, value in data.items():
            if key in self.data.transition_data:
                target, index = self.data.transition_data[key], (bs, ts)
            elif key in self.data.episode_data:
                target, index = self.data.episode_data[key], bs
            else:
                raise KeyError(f"{key!r} is not a stored field of this batch; it has {sorted(self._stored())}")
            value = torch.as_tensor(_to_array(value), dtype=target.dtype, device=target.device)
            place = target[index]
            if not _same_but_for_ones(value.shape, place.shape):
                raise ValueError(f"field {key!r}: cannot store shape {tuple(value.shape)} as {tuple(place.shape)}")
            target[index] = value.reshape(place.shape)
            if mark_filled and key in self.data.transition_data:
                self.data.transition_data["filled"][index] = 1
                mark_filled = False

    @overload
    def __getitem__(self, item: str) -> torch.Tensor: ...

    @overload
    def __getitem__(self, item: Index | tuple) -> "EpisodeBatch": ...

    def __getitem__(self, item):
        """A field by name, a batch of some fields by a tuple of names, or a part of the batch by (episodes, steps)."""
        if isinstance(item, str):
            if item in self.data.transition_data:
                return self.data.transition_data[item]
            if item in self.data.episode_data:
                return self.data.episode_data[item]
            for source, (name, transforms) in self.preprocess.items():
                if item == name:
                    return self._derive(source, transforms)
            raise KeyError(f"{item!r} is not a field of this batch; it has {sorted(self.scheme)}")
        if isinstance(item, tuple) and all(isinstance(key, str) for key in item):
            unknown = [key for key in item if key not in self.scheme]
            if unknown:
                raise KeyError(f"{unknown} are not fields of this batch; it has {sorted(self.scheme)}")
            sources = [source for source, (name, _) in self.preprocess.items() if name in item]
            kept = {*item, *sources, "filled"}  # a derived field needs what it is derived from
            return self.over(
                SimpleNamespace(
                    transition_data={k: v for k, v in self.data.transition_data.items() if k in kept},
                    episode_data={k: v for k, v in self.data.episode_data.items() if k in kept},
                ),
                {k: v for k, v in self.preprocess.items() if k in kept},
            )
        bs, ts = item if isinstance(item, tuple) else (item, slice(None))
        bs, ts = _as_index(bs), _as_index(ts)
        return self.over(
            SimpleNamespace(
                transition_data={k: v[bs][:, ts] for k, v in self.data.transition_data.items()},
                episode_data={k: v[bs] for k, v in self.data.episode_data.items()},
            )
        )

    def to(self, device) -> None:
        for fields in (self.data.transition_data, self.data.episode_data):
            for key, value in fields.items():
                fields[key] = value.to(device)
        self.device = device

    def max_t_filled(self) -> int:
        """The largest number of filled steps of an episode, the final observation included."""
        return int(self["filled"].sum(dim=1).max())

    def _stored(self) -> list[str]:
        return [*self.data.transition_data, *self.data.episode_data]

    def _derive(self, source: str, transforms) -> torch.Tensor:
        value = self[source]
        for transform in transforms:
            value = transform.transform(value)
        if source in self.data.transition_data:
            filled = self["filled"]
            value = value * filled.reshape(*filled.shape[:2], *(1,) * (value.dim() - 2)).to(value.dtype)
        return value

    def over(self, data: SimpleNamespace, preprocess: dict | None = None) -> "EpisodeBatch":
        """A batch of the same scheme over other tensors."""
        preprocess = self.preprocess if preprocess is None else preprocess
        filled = data.transition_data["filled"]
        scheme = {k: v for k, v in self.scheme.items() if k in data.transition_data or k in data.episode_data}
        return EpisodeBatch(scheme, self.groups, filled.shape[0], filled.shape[1], data, preprocess, device=self.device)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(episodes={self.batch_size}, steps={self.max_seq_length}, {sorted(self.scheme)})"


class ReplayBuffer(EpisodeBatch):
    """A ring of whole episodes, allocated at once on `device`; the oldest is overwritten first.

    Its tensors have the types of `compact(scheme, dtype)`; samples, and other parts of it, have the scheme's.

    Raises:
        UserError: it cannot fit into the device's memory.
    """

    def __init__(
        self,
        scheme: Mapping,
        groups: Mapping,
        buffer_size: int,
        max_seq_length: int,
        preprocess=None,
        device="cpu",
        dtype: torch.dtype | None = None,
    ):
        scheme_of_ring = compact(scheme, dtype)
        self.nbytes = episode_bytes(scheme_of_ring, groups, max_seq_length) * buffer_size
        free = available_bytes(device)
        if self.nbytes > free:
            fitting = max(1, int(0.8 * free / (self.nbytes / buffer_size)))
            raise UserError(
                f"buffer_size={buffer_size}: the replay needs {format_bytes(self.nbytes)} on {device} "
                f"({format_bytes(self.nbytes / buffer_size)} an episode), but {format_bytes(free)} are free; "
                f"set buffer_size={fitting} or less, or a smaller replay_dtype"
                + ("" if str(device) == "cpu" else ", or buffer_cpu_only=True to keep it in the host's memory")
            )
        ring = _zeros(stored_fields(scheme_of_ring, groups, {}), buffer_size, max_seq_length, device)
        super().__init__(scheme, groups, buffer_size, max_seq_length, ring, preprocess, device)
        self.buffer_size = buffer_size
        self.lengths: int | None = None  # that sampled batches may have (`rounded_up`); None: as many as there are
        self.inserted = 0  # episodes so far; the next one comes to this number modulo the ring's size
        self._lengths = np.zeros(buffer_size, dtype=np.int64)  # filled steps of each episode, kept on the host
        self.random: Any = np.random  # what samples are drawn by: numpy's global numbers, as PyMARL

    def insert_episode_batch(self, ep_batch: EpisodeBatch) -> None:
        """Store whole episodes; ones of fewer steps than the ring's are padded with zeros.

        Raises:
            ValueError: the batch lacks a field, or is longer than the ring's episodes.
            UserError: it holds a value that the ring's types do not; nothing is stored.
        """
        missing = set(self._stored()) - set(ep_batch._stored())
        if missing or ep_batch.max_seq_length > self.max_seq_length:
            raise ValueError(
                f"cannot store episodes of {ep_batch.max_seq_length} steps without {sorted(missing)} "
                f"in a replay of {self.max_seq_length} steps with {sorted(self._stored())}"
            )
        fields = self._encode({**ep_batch.data.transition_data, **ep_batch.data.episode_data})
        lengths = ep_batch["filled"].sum(dim=(1, 2)).cpu().numpy()
        start = 0
        while start < ep_batch.batch_size:
            count = min(ep_batch.batch_size - start, self.buffer_size - self.buffer_index)
            rows, place = slice(start, start + count), slice(self.buffer_index, self.buffer_index + count)
            for key, mine in self.data.transition_data.items():
                mine[place, : ep_batch.max_seq_length] = fields[key][rows].to(self.device)
                mine[place, ep_batch.max_seq_length :] = 0
            for key, mine in self.data.episode_data.items():
                mine[place] = fields[key][rows].to(self.device)
            self._lengths[place] = lengths[rows]
            self.inserted += count
            start += count

    def over(self, data: SimpleNamespace, preprocess: dict | None = None) -> EpisodeBatch:
        """A batch over parts of the ring, in the scheme's types."""
        for fields in (data.transition_data, data.episode_data):
            for key, value in fields.items():
                fields[key] = value.to(self.scheme[key].get("dtype", torch.float32))
        return super().over(data, preprocess)

    def _encode(self, fields: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The ring's fields in the ring's types.

        Raises:
            UserError: a value cannot be held. Floats may be rounded, integers not.
        """
        encoded, lost = {}, {}
        for key, mine in (self.data.transition_data | self.data.episode_data).items():
            value, kept = fields[key], fields[key].to(mine.dtype)
            encoded[key] = kept
            if kept.dtype.itemsize < value.dtype.itemsize:
                floats = kept.dtype.is_floating_point
                lost[key] = value.abs() > torch.finfo(kept.dtype).max if floats else kept.to(value.dtype) != value
        if lost and torch.stack([where.any() for where in lost.values()]).any():
            key = next(key for key, where in lost.items() if where.any())
            name = str(encoded[key].dtype).removeprefix("torch.")
            problem = f"{key} holds {fields[key][lost[key]][0].item():g}, which the replay cannot keep as {name}"
            raise UserError(f"replay_dtype={name}: {problem}; set replay_dtype=float32" if key in NUMBERS else problem)
        return encoded

    @property
    def buffer_index(self) -> int:
        return self.inserted % self.buffer_size

    @property
    def episodes_in_buffer(self) -> int:
        return min(self.inserted, self.buffer_size)

    def episodes(self, first: int, end: int) -> dict[str, torch.Tensor]:
        """The stored fields of the episodes that came as number `first` to `end` - 1, cut after the longest."""
        rows = np.arange(first, end) % self.buffer_size
        longest = int(self._lengths[rows].max())
        found = {key: value[:, :longest][rows] for key, value in self.data.transition_data.items()}
        return found | {key: value[rows] for key, value in self.data.episode_data.items()}

    def put(self, fields: Mapping[str, torch.Tensor], first: int) -> None:
        """Store again what `episodes` returned, also in the scheme's types; number `first` is the first of them."""
        fields = self._encode(fields)
        count, longest = fields["filled"].shape[:2]
        rows = np.arange(first, first + count) % self.buffer_size
        for key, mine in self.data.transition_data.items():
            mine[rows, :longest] = fields[key].to(self.device)
            mine[rows, longest:] = 0
        for key, mine in self.data.episode_data.items():
            mine[rows] = fields[key].to(self.device)
        self._lengths[rows] = fields["filled"].sum(dim=(1, 2)).numpy()
        self.inserted = first + count

    def can_sample(self, batch_size: int) -> bool:
        return self.episodes_in_buffer >= batch_size

    def sample(self, batch_size: int) -> EpisodeBatch:
        """`batch_size` different episodes, uniformly drawn, cut after the longest of them or a little later."""
        if not self.can_sample(batch_size):
            raise ValueError(f"cannot sample {batch_size} episodes, the replay holds {self.episodes_in_buffer}")
        return self.of_rows(self.draw(batch_size))

    def draw(self, batch_size: int) -> np.ndarray:
        """The places of `batch_size` different episodes, uniformly drawn."""
        return self.random.choice(self.episodes_in_buffer, batch_size, replace=False)

    def longest(self, rows: np.ndarray) -> int:
        """The filled steps of the longest episode in these places, or a little more (`lengths`)."""
        return rounded_up(int(self._lengths[rows].max()), self.max_seq_length, self.lengths)

    def of_rows(self, rows: np.ndarray, longest: int | None = None) -> EpisodeBatch:
        """The episodes in these places, cut after `longest` steps; None: after the longest of them."""
        longest = self.longest(rows) if longest is None else longest
        index = torch.as_tensor(rows, device=self.device)
        # Cut first, so that the gather copies no padding.
        return self.over(
            SimpleNamespace(
                transition_data={
                    k: v[:, :longest].index_select(0, index) for k, v in self.data.transition_data.items()
                },
                episode_data={k: v.index_select(0, index) for k, v in self.data.episode_data.items()},
            )
        )


def rounded_up(length: int, limit: int, lengths: int | None) -> int:
    """The least of about `lengths` even lengths up to `limit` that holds `length`; with None, `length` itself."""
    if lengths is None:
        return length
    step = -(-limit // lengths)
    return min(limit, -(-length // step) * step)


def joined(batches: list[EpisodeBatch]) -> EpisodeBatch:
    """The episodes of batches of the same scheme and length, one behind the other."""
    data = [batch.data for batch in batches]
    return batches[0].over(
        SimpleNamespace(
            transition_data={k: torch.cat([x.transition_data[k] for x in data]) for k in data[0].transition_data},
            episode_data={k: torch.cat([x.episode_data[k] for x in data]) for k in data[0].episode_data},
        )
    )


def stored_fields(scheme: Mapping, groups: Mapping, preprocess: Mapping) -> dict:
    """Field -> (shape without episodes and steps, dtype, episode_const), for the fields that take memory."""
    derived = {name for name, _ in preprocess.values()}
    fields = {}
    for key, info in scheme.items():
        if key in derived:
            continue
        vshape = info["vshape"]
        shape = (vshape,) if isinstance(vshape, int) else tuple(vshape)
        if "group" in info:
            if info["group"] not in groups:
                raise ValueError(f"field {key!r}: group {info['group']!r} has no size in {dict(groups)}")
            shape = (groups[info["group"]], *shape)
        fields[key] = (shape, info.get("dtype", torch.float32), info.get("episode_const", False))
    return fields


def compact(scheme: Mapping, dtype: torch.dtype | None = None) -> dict:
    """The scheme with the types in which a replay keeps its fields.

    Whole numbers take the smallest type that holds all of them, observations and states take `dtype` (None: the
    scheme's). float16 rounds a number by at most 2^-11 of it (2^-25 near 0). Rewards stay as they are, for targets add
    them up, and so do probabilities: importance weights divide by them, and a small one would become 0.
    """
    types = {"filled": torch.uint8, "avail_actions": torch.uint8}
    if "avail_actions" in scheme:
        largest = int(np.prod(scheme["avail_actions"]["vshape"])) - 1
        types["actions"] = next(t for t in (torch.uint8, torch.int16, torch.int32) if largest <= torch.iinfo(t).max)
    if dtype is not None:
        types |= dict.fromkeys(NUMBERS, dtype)
    scheme = {"filled": FILLED, **scheme}
    return {key: {**info, "dtype": types[key]} if key in types else info for key, info in scheme.items()}


def episode_bytes(scheme: Mapping, groups: Mapping, max_seq_length: int) -> int:
    """Bytes that one episode takes."""
    scheme = {"filled": FILLED, **scheme}
    return sum(
        int(np.prod(shape)) * dtype.itemsize * (1 if const else max_seq_length)
        for shape, dtype, const in stored_fields(scheme, groups, {}).values()
    )


def _zeros(fields: Mapping, batch_size: int, max_seq_length: int, device) -> SimpleNamespace:
    """The data of an empty batch with these `stored_fields`."""
    data = SimpleNamespace(transition_data={}, episode_data={})
    for key, (shape, dtype, const) in fields.items():
        if const:
            data.episode_data[key] = torch.zeros((batch_size, *shape), dtype=dtype, device=device)
        else:
            data.transition_data[key] = torch.zeros((batch_size, max_seq_length, *shape), dtype=dtype, device=device)
    return data


def _as_index(item):
    """An integer becomes a slice of length 1, so that the dimension stays."""
    if isinstance(item, int | np.integer):
        return slice(item, item + 1 or None)  # -1 is the last
    if isinstance(item, np.ndarray | torch.Tensor):
        return item.tolist() if item.dtype != bool else item
    return item


def _to_array(value):
    """Lists of arrays become one array first: torch converts such lists element by element."""
    if isinstance(value, list) and value and not isinstance(value[0], torch.Tensor):
        return np.asarray(value)
    return torch.stack(value) if isinstance(value, list) and value else value


def _same_but_for_ones(shape, target) -> bool:
    return [n for n in shape if n != 1] == [n for n in target if n != 1]
