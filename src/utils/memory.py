"""How much memory there is, and how to say it."""

import ctypes
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # names of <malloc.h>


def available_bytes(device) -> int:
    """Bytes that can still be allocated on a torch device: free GPU memory, or the host's within its cgroup."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(meminfo["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        reclaimable = int(stat.get("inactive_file", 0))  # file cache counts as used, but gives way
        free = min(free, int(limit.read_text()) - int(used.read_text()) + reclaimable)
    return free


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next tensor; elsewhere nothing happens.

    By default large tensors are given back to the system at once, and every fresh page of the next one costs a fault:
    up to half of an update's time.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for name in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(name, 2**30)
        libc.mallopt(M_ARENA_MAX, 1)  # memory of other threads is kept, too


def format_bytes(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, in Python, in torch or in JAX."""
    words = ("can't allocate memory", "out of memory", "RESOURCE_EXHAUSTED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)
