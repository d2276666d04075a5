"""All that objects have learned and counted, as plain data that loads without running code, and back again.

`state_of` walks an object's attributes: tensors, networks, optimisers, random generators, numbers, and what objects
and containers below hold. So whatever a learner, a controller or a plug-in of PyMARL's adds as an attribute is saved,
without a list that somebody forgets to extend. What does not change in a run is left out: functions, classes,
settings (`args`) and loggers. Objects that have `state_dict` and `load_state_dict` speak for themselves.
"""

import logging
import random
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import numpy as np
import torch

PLAIN = (bool, int, float, str, type(None))
FIXED = (type, ModuleType, MethodType, logging.Logger, Path, torch.device, torch.dtype)
NAMED_FIXED = ("args", "logger")  # as PyMARL's classes call their settings and their log
SEQUENCES = {"list": list, "tuple": tuple, "deque": deque}
LEFT_OUT = "left out"
KIND = "kind"  # marks a dictionary that stands for something else


def state_of(thing: Any, name: str = "it") -> Any:
    """Plain data for `restore`.

    Args:
        name: what messages call it.

    Raises:
        TypeError: something below is of a kind that cannot be saved; the message names the attribute.
    """
    return _state(thing, name, set())


def restore(thing: Any, state: Any) -> Any:
    """Give `thing` this state again; returns what stands for it, itself wherever it can be changed.

    Raises:
        ValueError: the state is one of something else.
    """
    return _restore(thing, state, set())


def _state(thing: Any, name: str, above: set[int]) -> Any:
    if isinstance(thing, PLAIN):
        return thing
    if id(thing) in above or isinstance(thing, FIXED) or (callable(thing) and not hasattr(thing, "__dict__")):
        return {KIND: LEFT_OUT}
    if isinstance(thing, torch.nn.Parameter):
        return {KIND: LEFT_OUT}  # its module has it
    if isinstance(thing, torch.Tensor):
        return thing.detach().clone()
    if isinstance(thing, np.generic):
        return thing.item()
    if isinstance(thing, np.ndarray):
        return {KIND: "ndarray", "values": torch.from_numpy(np.ascontiguousarray(thing).copy())}
    if isinstance(thing, torch.Generator):
        return {KIND: "generator", "values": thing.get_state()}
    if isinstance(thing, np.random.Generator):
        return {KIND: "numpy generator", "values": thing.bit_generator.state}
    if isinstance(thing, random.Random):
        return {KIND: "python generator", "values": thing.getstate()}
    above = above | {id(thing)}
    if hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict"):
        return {KIND: "own", "values": thing.state_dict()}
    if isinstance(thing, Mapping):
        return {KIND: "mapping", "values": [(key, _state(v, f"{name}[{key!r}]", above)) for key, v in thing.items()]}
    if isinstance(thing, list | tuple | deque):
        kind = next(name for name, kind in SEQUENCES.items() if isinstance(thing, kind))
        return {KIND: kind, "values": [_state(v, f"{name}[{i}]", above) for i, v in enumerate(thing)]}
    if isinstance(thing, set):
        return {KIND: "set", "values": sorted(thing)}
    if not hasattr(thing, "__dict__"):
        raise TypeError(f"{name} is a {type(thing).__name__}, which cannot be saved for a resumption")
    if callable(thing) and not vars(thing):
        return {KIND: LEFT_OUT}
    return {KIND: "object", "values": {k: _state(v, f"{name}.{k}", above) for k, v in _attributes(thing).items()}}


def _restore(thing: Any, state: Any, above: set[int]) -> Any:
    if isinstance(state, torch.Tensor):
        return state.to(thing.device) if isinstance(thing, torch.Tensor) else state
    if not isinstance(state, dict):
        return thing if type(thing) is type(state) and thing == state else state  # settings may be frozen
    kind = state[KIND]
    if kind == LEFT_OUT:
        return thing
    values = state["values"]
    above = above | {id(thing)}
    if kind == "ndarray":
        return values.numpy()
    if kind == "generator":
        thing.set_state(values)
    elif kind == "numpy generator":
        thing.bit_generator.state = values
    elif kind == "python generator":
        thing.setstate(_as_tuple(values))
    elif kind == "own":
        thing.load_state_dict(values)
    elif kind == "mapping":
        now = thing if isinstance(thing, Mapping) else {}
        found = {key: _restore(now.get(key), value, above) for key, value in values}
        kind_of_mapping: Any = type(thing) if isinstance(thing, Mapping) else dict
        return kind_of_mapping(found)
    elif kind in SEQUENCES:
        now = list(thing) if isinstance(thing, SEQUENCES[kind]) else []
        now += [None] * (len(values) - len(now))
        found = [_restore(a, b, above) for a, b in zip(now, values, strict=False)]
        if isinstance(thing, tuple) and hasattr(thing, "_fields"):  # a named tuple
            return type(thing)(*found)
        return deque(found, thing.maxlen) if isinstance(thing, deque) else SEQUENCES[kind](found)
    elif kind == "set":
        return set(values)
    elif kind == "object":
        if not hasattr(thing, "__dict__"):
            raise ValueError(f"cannot restore the attributes {sorted(values)} of {thing!r}")
        for name, value in values.items():
            current = getattr(thing, name, None)
            found = _restore(current, value, above)
            if found is not current:
                setattr(thing, name, found)
    return thing


def _attributes(thing: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(thing).items() if name not in NAMED_FIXED}


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(one) for one in value) if isinstance(value, list | tuple) else value
