"""How many cores this process has. The doctor reads this file with any Python."""

import os
from pathlib import Path


def core_count(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """The cores that this process may use, within its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit, _, period = quota.read_text().partition(" ") if quota.exists() else ("max", "", "")
    return cores if limit == "max" else min(cores, max(1, int(limit) // int(period)))
