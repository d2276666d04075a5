"""Runs as tasks of Ray, on this machine or on a cluster. Ray is imported only here, and only when it is asked for."""

import contextlib
import importlib
import logging
import os
import re
import socket
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sweeping.attempts import Order
from utils.errors import UserError

INSTALL = "pip install -r requirements-ray.txt"
ANSWER = 10.0  # seconds in which the head of a cluster must answer
STORE_BYTES = 80 * 2**20  # Ray's least memory for objects; reports are small
# A worker that ends must not kill its run, which then writes a checkpoint.
SPARE_CHILDREN = "RAY_kill_child_processes_on_worker_exit"


class Cluster:
    """Tries runs where Ray finds room for them, and hands on what they report.

    Args:
        address: of a cluster that runs ("auto": the one of this machine). Without it the one that RAY_ADDRESS names,
            else one of this machine's own, which ends with this process.
        cpus, gpus: what a run takes, which may be a fraction.

    Raises:
        UserError: Ray is not installed, there is no such cluster, or no machine of it is large enough.
    """

    def __init__(self, address: str | None, cpus: float, gpus: float):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault(SPARE_CHILDREN, "false")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # `attempt` hides the GPUs itself
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        if address == "local":  # else Ray writes one for all sweeps, and two that start at once collide
            os.environ.setdefault("RAY_AUTH_TOKEN", uuid.uuid4().hex)
        try:
            ray: Any = importlib.import_module("ray")  # whose types differ with whether it is installed
        except ImportError as error:
            raise UserError(f"sweeps need Ray, which cannot be imported ({error}); run: {INSTALL}") from error
        self._ray = ray
        if address not in ("local", "auto"):
            _reach(address)
        # What befalls workers and machines is reported by `news`, in a line; Ray's own words fill the screen.
        ray._private.worker.print_to_stdstream = lambda *words, **options: None
        own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE_BYTES}
        try:
            ray.init(
                address=address,
                logging_level=logging.CRITICAL,
                log_to_driver=False,
                **(own if address == "local" else {}),
            )
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            reason = f"{error}".strip().partition("\n")[0].rstrip(".")
            raise UserError(
                f"--address={address}: {reason}; `ray status` shows a cluster, `ray start` starts one"
            ) from (error)
        try:
            self.notes = self._compare_sizes(address == "local", cpus, gpus)
        except UserError:
            self.close()
            raise

        def task(order: dict[str, Any]) -> Iterator[dict[str, Any]]:  # travels as it is: a node may lack this file
            if not Path(order["source"]).is_dir():
                reason = f"{os.uname().nodename} has no {order['source']}; all nodes need the same program there"
                yield {"code": 2, "reason": reason}
                return
            sys.path.insert(0, order["source"])
            from sweeping.attempts import Order, attempt

            yield from attempt(Order(**order))

        self._task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, num_returns="streaming")(task)
        self._tried: dict[Any, str] = {}  # Ray's generators of reports -> names of runs

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self._tried)

    def start(self, name: str, order: Order) -> None:
        """Try a run as soon as there is room."""
        self._tried[self._task.remote(asdict(order))] = name

    def news(self, seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
        """What runs report (`sweeping.attempts.attempt`), waiting so long for the first.

        Where a worker or a machine was lost, `lost` is all of the last report. A run that was stopped may end without.
        """
        errors = self._ray.exceptions
        everything = list(self._tried)
        ready, _ = self._ray.wait(everything, num_returns=len(everything), timeout=0, fetch_local=False)
        if not ready:
            ready, _ = self._ray.wait(everything, num_returns=1, timeout=seconds, fetch_local=False)
        for reports in ready:
            name, report = self._tried[reports], None
            try:
                report = self._ray.get(next(reports))
            except (StopIteration, errors.TaskCancelledError):
                pass
            except errors.RayError as error:
                report = {"lost": _in_words(error)}
            if report is None or "lost" in report:
                del self._tried[reports]
            if report is not None:
                yield name, report

    def stop(self) -> None:
        """Let all runs end, with a checkpoint; what waits for room does not start."""
        for reports in self._tried:
            self._ray.cancel(reports)

    def close(self) -> None:
        """Leave the cluster, or end the one that is this process's own."""
        with contextlib.suppress(Exception):  # it may be broken, and is not needed any more
            self._ray.shutdown()

    def _compare_sizes(self, own: bool, cpus: float, gpus: float) -> list[str]:
        """What is worth knowing of the machines.

        Raises:
            UserError: this one, which alone is there, is too small.
        """
        sizes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        found = ", ".join(f"{size.get('CPU', 0):g} CPUs and {size.get('GPU', 0):g} GPUs" for size in sizes)
        notes = [f"Ray: {len(sizes)} machine(s), with {found}"]
        if not any(size.get("CPU", 0) >= cpus and size.get("GPU", 0) >= gpus for size in sizes):
            if own:
                raise UserError(f"--cpus-per-run={cpus:g} --gpus-per-run={gpus:g}: this machine has {found}")
            notes.append("None of them has room for a run yet; the sweep waits until one comes")
        if not gpus and any(size.get("GPU") for size in sizes):
            notes.append("Runs use no GPU: --gpus-per-run=.25 lets four share one")
        return notes


def _reach(address: str) -> None:
    """
    Raises:
        UserError: nobody answers there, which Ray would need minutes to find out.
    """
    match = re.fullmatch(r"([\w.-]+|\[[\da-fA-F:]+\]):(\d{1,5})", address)
    if match is None:
        raise UserError(
            f"--address={address}: give auto on a machine of the cluster, or host:port of its head (6379, not ray://)"
        )
    try:
        socket.create_connection((match[1].strip("[]"), int(match[2])), ANSWER).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--address={address}: nobody answers ({error}); start a cluster by: ray start --head"
        ) from None


def _in_words(error: BaseException) -> str:
    known = {
        "WorkerCrashedError": "its worker died",
        "NodeDiedError": "its machine was lost",
        "OutOfMemoryError": "Ray has ended its worker, as memory ran out there",
        "LocalRayletDiedError": "Ray ended on its machine",
    }
    kind = type(error).__name__
    if kind in known:
        return known[kind]
    lines = [line.strip() for line in f"{error}".splitlines() if line.strip()]
    return f"{kind}: {lines[-1][:300] if lines else ''}"
