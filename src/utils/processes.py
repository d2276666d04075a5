"""Process groups that end with this process, whatever way it ends. For Linux.

This file is also a program: `python processes.py` reads from its standard input which groups live, and kills them when
the input ends. It runs beside a run, and its input ends when the run does, even by SIGKILL.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl
REAP_SECONDS = 5.0  # how long a killed process may take to disappear


class Guard:
    """Starts process groups, each with a folder for temporary files, and leaves none of either behind."""

    def __init__(self):
        # What a killed group leaves becomes our child, so that we can reap it: in a container nobody else may.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._watcher: Any = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for the watcher
        )

    def start(self, command: list[str], temporary: Path, **options) -> subprocess.Popen:
        """Start a command as the leader of its own group; `temporary` is its folder, removed with it."""
        process = subprocess.Popen(command, start_new_session=True, **options)
        self._tell(f"+{process.pid} {temporary}")
        return process

    def kill(self, process: subprocess.Popen, temporary: Path) -> None:
        """Kill the group of a process that `start` returned, and wait until nothing of it is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        give_up = time.monotonic() + REAP_SECONDS
        with contextlib.suppress(ChildProcessError):  # none of the group is left
            while time.monotonic() < give_up:
                if os.waitpid(-process.pid, os.WNOHANG)[0] == 0:
                    time.sleep(0.001)
        shutil.rmtree(temporary, ignore_errors=True)
        self._tell(f"-{process.pid} {temporary}")

    def close(self) -> None:
        """End the watcher, which kills what was not killed yet."""
        with contextlib.suppress(BrokenPipeError):
            self._watcher.stdin.close()
        self._watcher.wait()

    def _tell(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody has killed it
            self._watcher.stdin.write(f"{line}\n".encode())
            self._watcher.stdin.flush()


def ending(process: subprocess.Popen) -> str:
    """How a process ended whose socket is closed; it may need a moment more."""
    try:
        code = process.wait(1.0)
    except subprocess.TimeoutExpired:
        return "it has closed its socket"
    return f"its process ended (signal {-code})" if code < 0 else f"its process ended (exit code {code})"


def _watch() -> None:
    living = {}
    for line in sys.stdin:
        group, _, temporary = line[1:].rstrip("\n").partition(" ")
        if line[0] == "+":
            living[int(group)] = temporary
        else:
            living.pop(int(group), None)
    for group in living:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    for temporary in living.values():
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    _watch()
