"""What a machine can do at most: speed of large matrix products, memory bandwidth, latency of one launch."""

import contextlib
import math
import sys
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

SIDE = 2048  # of the square matrices
COPIED = 2**28  # bytes, more than caches hold
LAUNCHES = 1000
TRIES = 5  # the fastest counts
HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")


def machine_limits(device: str) -> dict[str, float]:
    """All of them, with torch's present number of threads."""
    return {
        "threads": torch.get_num_threads(),
        "flops": matrix_peak(device),
        "bytes_per_second": bandwidth(device),
        "launch_seconds": launch_latency(device),
    }


def matrix_peak(device: str) -> float:
    """Floating point operations per second of a large float32 product."""
    a = torch.randn(SIDE, SIDE, device=device)
    ways = [torch.matmul]
    if device == "cpu" and HAS_ONEDNN:  # the faster one depends on the processor's maker
        ways.append(lambda a, b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    return 2 * SIDE**3 / min(seconds(lambda way=way: way(a, a), device) for way in ways * TRIES)


def bandwidth(device: str) -> float:
    """Bytes per second that a large copy reads and writes."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * COPIED / min(seconds(lambda: target.copy_(source), device) for _ in range(TRIES))


def launch_latency(device: str) -> float:
    """Seconds of an operation on a single number, one of many in a row."""
    number = torch.zeros(1, device=device)

    def launch() -> None:
        for _ in range(LAUNCHES):
            number.add_(1)

    return min(seconds(launch, device) for _ in range(TRIES)) / LAUNCHES


class _Launches(TorchDispatchMode):
    """Counts torch's operations, but for views."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def count(run: Callable[[], object]) -> tuple[int, int]:
    """Floating point operations of the matrix products in a call, and how many operations it launches in all."""
    native = sys.modules.get("utils.native")  # of src; other code bases have none
    in_kernels = _Kernels(native.call if native else None)
    counted = patch.object(native, "call", in_kernels) if native else contextlib.nullcontext()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)  # with one, target networks are computed in a thread that is not looked at
    try:
        with FlopCounterMode(display=False) as flops, _Launches() as launches, counted:
            run()
    finally:
        torch.set_num_threads(threads)
    return flops.get_total_flops() + in_kernels.flops, launches.count + in_kernels.count


class _Kernels:
    """Counts calls of this project's own kernels (src/utils/native.py), and those of their products."""

    def __init__(self, call):
        self.call, self.flops, self.count = call, 0, 0

    def __call__(self, name: str, *arguments) -> None:
        self.count += 1
        if name == "gru_forward":  # (P, 3W) sums of W products
            self.flops += 2 * arguments[0].numel() * arguments[1].shape[0]
        elif name == "gru_backward":  # (P, W) sums of 3W
            self.flops += 2 * arguments[0].numel() * arguments[3].shape[0]
        elif name == "linear":  # (P, O) sums of I products
            self.flops += 2 * math.prod(arguments[5:8])
        elif name == "linear_gradients":  # (O, I) sums of P
            self.flops += 2 * math.prod(arguments[2:5])
        self.call(name, *arguments)


def seconds(run: Callable[[], object], device: str) -> float:
    """Of one call, with all that it starts on the device."""
    synchronise(device)
    started = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def in_words(limits: dict[str, float]) -> str:
    return (
        f"limits here: {limits['flops'] / 1e9:.0f} GFLOP/s of float32 with {limits['threads']:.0f} thread(s), "
        f"{limits['bytes_per_second'] / 1e9:.1f} GB/s, {1e6 * limits['launch_seconds']:.1f} microseconds a launch"
    )
