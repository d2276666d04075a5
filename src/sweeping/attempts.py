"""One run of a sweep, tried once, in a process that ends with a checkpoint when whoever started it does. For Linux.

A run's folder is a `local_results_path` of its own, which all machines of a sweep see, and holds besides:

    output.txt      what the run printed, attempt by attempt
    lock            held by the attempt and by its process, so by whichever of them lives longer

This file is also a program: `python attempts.py PARENT LOCK COMMAND...` runs a command, tied to the process PARENT.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PR_SET_PDEATHSIG = 1  # of Linux's prctl
LOOK = 0.2  # seconds between two looks at the process
REPORT = 5.0  # seconds between two reports of how far it is
PATIENCE = 900.0  # seconds that what an earlier attempt has left may take to write its checkpoint

BAD_INPUT, TRY_AGAIN, CONTROL_C = 2, 75, 130  # exit codes of src/main.py
SIGNALS = {int(number) for number in signal.Signals}
HEADING = "\n----- "  # of an attempt in output.txt
KILLED = 128  # what shells add to the number of the signal that killed a process
SHOWN = {"test_return_mean": "test return", "test_battle_won_mean": "test win rate"}  # of a run that is under way


@dataclass(frozen=True)
class Order:
    """A run that is to be tried, in words that another machine understands."""

    folder: str
    command: list[str]
    working_folder: str
    source: str  # the folder of src/
    source_checksum: str
    sweep: str  # the number of the sweep, which stands in the file that lies beside all runs
    threads: int
    gpu: bool


def attempt(order: Order) -> Iterator[dict[str, Any]]:
    """Run it, going on from its last checkpoint.

    Yields reports: `host`, when its process starts; `step` and `metrics`, as it goes on; at last `code`, its exit code
    (negative: the signal that killed it), with the last `step` and, if it is not complete, a `reason`. Who closes or
    interrupts the generator stops the run, which writes a checkpoint first.
    """
    folder, host = Path(order.folder), socket.gethostname()
    if refusal := _refusal(order, host):
        yield {"code": BAD_INPUT, "reason": refusal}
        return
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("a") as lock:
        if not _obtain(lock):
            reason = f"what an earlier attempt has started still holds {folder}/lock after {PATIENCE:.0f} s"
            yield {"code": TRY_AGAIN, "reason": reason}
            return
        yield {"host": host}
        with (folder / "output.txt").open("ab") as output:
            output.write(f"{HEADING}{time.strftime('%Y-%m-%d %H:%M:%S')} on {host}\n".encode())
            output.flush()
            process = _start(order, lock, output)
        try:
            yield from _watch(process, folder)
        except BaseException:  # also GeneratorExit and KeyboardInterrupt: whoever wants its end
            process.terminate()
            process.wait()
            raise
    yield _outcome(process.returncode, folder)


def newest_step(folder: Path) -> int | None:
    """The step from which the run in this folder would go on."""
    steps = [int(path.name) for path in folder.glob("checkpoints/*/*") if path.name.isdigit()]
    return max(steps, default=None)


def finished(folder: Path) -> dict[str, Any] | None:
    """What the run in this folder left when it was complete: `result` and `sacred_id`; None if it is not."""
    for path in folder.glob("checkpoints/*/finished.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = json.loads(path.read_text())
            return {"result": found["result"], "sacred_id": found["sacred_id"]}
    return None


def checksum_of_source(source: Path) -> str:
    """Of the program and its configurations, as far as it decides what a run does."""
    digest = hashlib.sha256()
    for path in sorted(path for path in source.rglob("*") if path.suffix in (".py", ".yaml")):
        digest.update(f"{path.relative_to(source)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _refusal(order: Order, host: str) -> str:
    """Why this machine cannot try it; empty if it can."""
    try:
        about = json.loads((Path(order.folder).parent / "sweep.json").read_text())
    except (OSError, ValueError):
        about = {}
    if about.get("id") != order.sweep:
        return f"{host} does not see {Path(order.folder).parent}; --results is a folder that all nodes share"
    if not Path(order.working_folder).is_dir():
        return f"{host} has no folder {order.working_folder}, where the sweep was started"
    if checksum_of_source(Path(order.source)) != order.source_checksum:
        return f"{host} has another program in {order.source}; all nodes need the same"
    return ""


def _obtain(lock: IO[str]) -> bool:
    """Lock the file, once what an earlier attempt has left has ended; whether it did."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(LOOK)


def _start(order: Order, lock: IO[str], output: IO[bytes]) -> subprocess.Popen:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": f"{order.threads}",
        "NPROC": f"{order.threads}",  # JAX's threads
        "PYTHONUNBUFFERED": "1",
    }
    if not order.gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, f"{os.getpid()}", f"{lock.fileno()}", sys.executable, *order.command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=order.working_folder,
        env=environment,
        start_new_session=True,  # signals of a terminal are for the sweep
        pass_fds=[lock.fileno()],
    )


def _watch(process: subprocess.Popen, folder: Path) -> Iterator[dict[str, Any]]:
    """Reports until the process ends."""
    told, due = None, time.monotonic() + REPORT
    while process.poll() is None:
        time.sleep(LOOK)
        if time.monotonic() < due:
            continue
        news = _progress(folder)
        if news and news != told:
            yield news
        told, due = news, time.monotonic() + REPORT


def _progress(folder: Path) -> dict[str, Any]:
    """What the newest record says: the step, and the last of the metrics that are shown."""
    files = sorted(folder.glob("sacred/*/metrics.json"), key=lambda path: path.stat().st_mtime)
    try:
        found = json.loads(files[-1].read_text())
    except (IndexError, OSError, ValueError):
        return {}
    step = max((points["steps"][-1] for points in found.values()), default=0)
    return {"step": step, "metrics": {key: found[key]["values"][-1] for key in SHOWN if key in found}}


def _outcome(code: int, folder: Path) -> dict[str, Any]:
    step = _progress(folder).get("step")
    if code - KILLED in SIGNALS and code != CONTROL_C:
        code = KILLED - code
    if code != 0:
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else _last_words(folder / "output.txt")
    else:
        reason = "it ended, but left nothing that says it is complete"
    return {"code": code, "step": step, "reason": reason}


def _last_words(file: Path) -> str:
    """The last error in the output of a run's last attempt, or its last line."""
    with file.open("rb") as output:
        output.seek(max(0, file.stat().st_size - 10_000))
        text = output.read().decode(errors="replace")
    lines = [line.strip() for line in text[text.rfind(HEADING) + 1 :].splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1][:500]


def _tend(parent: int, lock: int, command: list[str]) -> int:
    """Run a command that gets SIGTERM when the parent ends or this process is asked to, but once; its exit code.

    What ends workers comes in several ways at a time, and a run that is asked twice ends without a checkpoint.
    """
    prctl = ctypes.CDLL(None).prctl

    def tie() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})  # Ray blocks Ctrl-C for its workers

    def stop(_number: int, _frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        process.terminate()

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:  # it has ended before
        return TRY_AGAIN
    process = subprocess.Popen(command, pass_fds=[lock], preexec_fn=tie)
    signal.signal(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    code = process.wait()
    return code if code >= 0 else KILLED - code


if __name__ == "__main__":
    sys.exit(_tend(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
