"""What needs no gradient, computed on a core that the update leaves idle."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

from utils.shapes import may_look_at

T = TypeVar("T")

LEAST_ROWS = 3000  # seen: 2,300 are as fast at once, 5,700 faster aside
_allowed = True


def allow_aside(allowed: bool) -> None:
    """Whether this process has a core for it. On one that something else uses, it only gets in the way."""
    global _allowed
    _allowed = allowed


def aside(compute: Callable[[], T], rows: torch.Tensor) -> Callable[[], T]:
    """Begin to compute without gradients beside what the caller does next; returns what waits for the result.

    That is for a CPU on which torch has one thread, as it has for networks of usual size (`torch_threads`): torch's
    operations release Python's lock, so two threads of Python's use two cores. Elsewhere it is computed at once.

    Args:
        rows: what has an entry for each input of the networks. Of few inputs the threads would wait for Python alone.
    """
    compute = torch.no_grad()(compute)
    if _allowed and may_look_at(rows) and torch.get_num_threads() == 1 and rows.numel() >= LEAST_ROWS:
        return _pool(os.getpid()).submit(compute).result
    result = compute()
    return lambda: result


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The thread of this process: a fork has none of its parent's. Denormals are flushed there as `run` has it."""
    return ThreadPoolExecutor(1, f"aside_{process}", initializer=torch.set_flush_denormal, initargs=(True,))
