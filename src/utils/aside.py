"""What needs no gradient, computed on a core that the update leaves idle."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

# Denormals are flushed as `run` has it, thread by thread.
_POOL = ThreadPoolExecutor(1, thread_name_prefix="aside", initializer=torch.set_flush_denormal, initargs=(True,))


def aside(compute: Callable[[], T], device: torch.device) -> Callable[[], T]:
    """Begin to compute without gradients beside what the caller does next; returns what waits for the result.

    That is for a CPU on which torch has one thread, as it has for networks of usual size (`torch_threads`): torch's
    operations release Python's lock, so two threads of Python's use two cores. Elsewhere it is computed at once.
    """
    compute = torch.no_grad()(compute)
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return _POOL.submit(compute).result
    result = compute()
    return lambda: result
