"""A second core for an update: a thread for networks that need no gradient, and for halves of kernels.

That is for a CPU on which torch has one thread, as it has for networks of usual size (`torch_threads`): torch's
operations and kernels release Python's lock, so two threads of Python's use two cores. While only one of them computes,
its kernels have the other core (src/kernels/halves.h).
"""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from threading import Condition, Thread
from typing import Any, TypeVar

import torch

from utils.shapes import may_look_at

T = TypeVar("T")

LEAST_ROWS = 3000  # seen: 2,300 are as fast at once, 5,700 faster aside
LEAST_WORK = 2**20  # multiplications of a kernel, some ten microseconds
_allowed = True


def allow_aside(allowed: bool) -> None:
    """Whether this process has a core for it. On one that something else uses, it only gets in the way."""
    global _allowed
    _allowed = allowed


def aside(compute: Callable[[], T], rows: torch.Tensor) -> Callable[[], T]:
    """Begin to compute without gradients beside what the caller does next; returns what waits for the result.

    Args:
        rows: what has an entry for each input of the networks. Of few inputs the threads would wait for Python alone.
    """
    compute = torch.no_grad()(compute)
    if may_look_at(rows) and _has_second_core() and rows.numel() >= LEAST_ROWS:
        return _two_threads(os.getpid()).begin(compute)
    result = compute()
    return lambda: result


def cores_for(work: int) -> int:
    """Cores for a kernel with so many multiplications: 2 if it is worth it and nobody else computes, else 1."""
    return 2 if work >= LEAST_WORK and _has_second_core() and _two_threads(os.getpid()).computing == 1 else 1


def _has_second_core() -> bool:
    return _allowed and torch.get_num_threads() == 1


class _TwoThreads:
    """The caller's thread and another: whoever has nothing to do takes what was asked for last.

    So a caller who waits does what the other has not begun, and the results are the same whoever computes them.
    """

    def __init__(self, name: str):
        self.begun = Condition()  # or done
        self.tasks: deque[tuple[Future, Callable[[], Any]]] = deque()
        self.computing = 2  # of the two, how many do not wait
        Thread(target=self._serve, name=name, daemon=True).start()

    def begin(self, compute: Callable[[], T]) -> Callable[[], T]:
        task: Future[T] = Future()
        with self.begun:
            self.tasks.append((task, compute))
            self.begun.notify_all()

        def wait() -> T:
            self._work(until=task.done)
            return task.result()

        return wait

    def _serve(self) -> None:
        torch.set_flush_denormal(True)  # as `run` has it
        self._work(until=lambda: False)

    def _work(self, until: Callable[[], bool]) -> None:
        while True:
            with self.begun:
                self.computing -= 1
                self.begun.wait_for(lambda: until() or self.tasks)
                self.computing += 1
                if until():
                    return
                task, compute = self.tasks.pop()
            try:
                task.set_result(compute())
            except BaseException as error:
                task.set_exception(error)
            with self.begun:
                self.begun.notify_all()


@cache
def _two_threads(process: int) -> _TwoThreads:
    """Those of this process: a fork has none of its parent's."""
    return _TwoThreads(f"aside_{process}")
