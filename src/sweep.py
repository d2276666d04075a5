"""Command line: many runs, on this machine or on a cluster. See --help."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from sweeping.attempts import CONTROL_C, TRY_AGAIN, Order, checksum_of_source, finished, newest_step
from sweeping.board import Board, describe, format_groups
from sweeping.cluster import Cluster
from sweeping.plan import (
    CONFIG,
    CUT,
    DONE,
    FAILED,
    ROOT,
    RUNNING,
    Plan,
    Run,
    look_up,
    read_plan,
    read_record,
    try_environments,
)
from utils.arguments import say
from utils.errors import UserError
from utils.logging import get_logger
from utils.signals import StopRequest

HELP = """Train every algorithm on every map with every seed, as many at a time as there is room for.

  python src/sweep.py --configs=ALG,... --env-configs=ENV,... [--maps=MAP,...] [--seeds=SEEDS] [with KEY=VALUE ...]

  --configs=ALG,...      as src/main.py's --config, one or more
  --env-configs=ENV,...  as src/main.py's --env-config, one or more
  --maps=MAP,...         env_args.map_name of each environment; env_args.key or .game where it has that instead.
                         Without it: what the environment's file says
  --seeds=SEEDS          0-9, or 0,3,5, or 0-4,10 (0)
  with KEY=VALUE         overrides of all runs, as for src/main.py

  --name=NAME            of the sweep (ALG+...__ENV+...)
  --results=FOLDER       where its runs lie, each in a folder of its own (results/sweeps/NAME); on a cluster all
                         machines see this folder
  --address=ADDRESS      of a Ray cluster, auto for the one of this machine. Without it: the one that RAY_ADDRESS names,
                         else this machine alone
  --cpus-per-run=N       cores, and threads, of a run (1); a fraction lets several runs share a core
  --gpus-per-run=N       GPUs of a run (0); .25 lets four runs share one
  --retries=N            how often a run that was cut is tried again without having come further (3)
  --dry-run              only say what would be done

Nothing starts before every configuration has been checked and every map found (but StarCraft II's, which only the nodes
may have). Runs that were killed, and those whose machine was lost, go on from their last checkpoint. The same command
may be given again at any time: complete runs are left alone, those that were cut go on, those that failed are tried
again. Ctrl-C and SIGTERM stop the runs with checkpoints.
FOLDER/sweep.json says what became of each run. It needs Ray: pip install -r requirements-ray.txt

Examples
  python src/sweep.py --configs=qmix,greedy_qmix --env-configs=smax --maps=3m,2s3z --seeds=0-9
  python src/sweep.py --configs=qmix,greedy_qmix --env-configs=smax --maps=3m,2s3z --seeds=0-9 --dry-run
  python src/sweep.py --configs=iql,qmix --env-configs=matrix_games --maps=climbing,penalty --seeds=0,3,5
  python src/sweep.py --configs=greedy_qmix --env-configs=smax --name=hard_gate with gate.mode=hard
  python src/sweep.py --configs=qmix --env-configs=smax --seeds=0-9 --address=auto --gpus-per-run=.25

Exit code: 0 all runs are complete, 1 some have failed, 2 bad input, 75 some were cut, 130 the same by Ctrl-C.
"""

PACKAGES = ("torch", "numpy", "jax", "jaxmarl", "sacred", "ray")
EVERY = 10.0  # seconds between two writings of what changes all the time


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    sys.path.append(os.getcwd())  # where plug-ins of the user's own lie
    if {"-h", "--help"} & set(argv[1:]):
        print(HELP, end="")
        return 0
    try:
        plan = read_plan(argv[1:])
        look_up(plan)
        try_environments(plan)
        if plan.options.dry_run:
            say(describe(plan))
            return 0
        if all(run.state == DONE for run in plan.runs):
            print(f"All {len(plan.runs)} runs are complete; nothing is left to do\n\n{format_groups(plan.runs)}")
            return 0
        with locked(plan.folder):
            look_up(plan)  # another sweep may have ended meanwhile
            cluster = Cluster(plan.options.address, plan.options.cpus_per_run, plan.options.gpus_per_run)
            try:
                with StopRequest(None) as stop:
                    for note in cluster.notes:
                        get_logger().info(note)
                    sweep = Sweep(plan, argv)
                    sweep.work(cluster, stop)
            finally:
                cluster.close()
        print(f"\n{format_groups(plan.runs)}\n\n{sweep.file} and the folders beside it hold the results")
        return exit_code(plan.runs, stop)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return CONTROL_C


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let no other sweep write here meanwhile.

    Raises:
        UserError: another one does, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise UserError(f"--results={folder}: cannot be written to ({error.strerror}); name another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{folder}: another sweep is at work there; wait for it, or end it") from error
        yield


class Engine(Protocol):
    """What tries runs (`sweeping.cluster.Cluster`)."""

    @property
    def busy(self) -> bool: ...
    def start(self, name: str, order: Order) -> None: ...
    def news(self, seconds: float) -> Iterator[tuple[str, dict[str, Any]]]: ...
    def stop(self) -> None: ...


class Sweep:
    """Works through a plan, and keeps sweep.json up to date."""

    def __init__(self, plan: Plan, argv: Sequence[str]):
        self.plan = plan
        self.runs = {run.name: run for run in plan.runs}
        self.file = plan.folder / "sweep.json"
        before = read_record(plan.folder)
        self.about = {
            "id": before.get("id", uuid.uuid4().hex),
            "name": plan.name,
            "command": list(argv),
            "settings": {**vars(plan.options), "overrides": plan.overrides},
            "started": before.get("started", now()),
            **provenance(),
        }
        # Runs that other commands have added under this name stay.
        self.others = {name: run for name, run in before.get("runs", {}).items() if name not in self.runs}
        self.source = checksum_of_source(ROOT / "src")
        self.board = Board(plan)
        self._begun: dict[str, float] = {}  # when the attempts that are under way began
        self._reached = {run.name: run.step or 0 for run in plan.runs}  # the step of the last checkpoint
        self._useless = dict.fromkeys(self.runs, 0)  # attempts that have not come further, in a row
        self._written = 0.0

    def work(self, engine: Engine, stop: StopRequest) -> None:
        """Try every run that is not complete, until each has come to its end or somebody asks to stop."""
        todo = [run for run in self.plan.runs if run.state != DONE]
        self.board.say(f"{len(self.runs)} runs in {self.plan.folder}, {len(todo)} of them to be trained")
        self.save()
        for run in todo:
            engine.start(run.name, self._order(run))
        stopping = False
        while engine.busy:
            if stop.asked() and not stopping:
                stopping = True
                self.board.release()
                engine.stop()
            for name, report in engine.news(1.0):
                run = self.runs[name]
                self._take(run, report)
                if run.state == CUT and not stopping and self._useless[name] <= self.plan.options.retries:
                    engine.start(name, self._order(run))
            self.board.draw()
            if time.monotonic() - self._written > EVERY:
                self.save()
        for run in todo:
            if run.state == RUNNING:  # one that was stopped says nothing more
                self._take(run, {"lost": "stopped with the sweep"})
        self.board.release()
        self.save()

    def save(self) -> None:
        """Write sweep.json, so that its name always stands for a whole one."""
        self._written = time.monotonic()
        runs = {**self.others, **{name: asdict(run) for name, run in self.runs.items()}}
        beside = self.file.with_name(self.file.name + ".part")
        try:
            beside.write_text(json.dumps({**self.about, "updated": now(), "runs": runs}, indent=1) + "\n")
            os.replace(beside, self.file)
        except OSError as error:  # it is tried again
            self.board.say(f"{self.file} cannot be written: {error}")

    def _order(self, run: Run) -> Order:
        options = self.plan.options
        return Order(
            folder=str(self.plan.folder / run.name),
            command=self.plan.command(run),
            working_folder=os.getcwd(),
            source=str(ROOT / "src"),
            source_checksum=self.source,
            sweep=self.about["id"],
            threads=max(1, int(options.cpus_per_run)),
            gpu=options.gpus_per_run > 0,
        )

    def _take(self, run: Run, report: dict[str, Any]) -> None:
        """Note what a run reports."""
        if "metrics" in report:
            run.step, run.metrics = report["step"], report["metrics"]
            return
        if "host" in report:
            run.state, run.where, run.reason = RUNNING, report["host"], ""
            run.attempts += 1
            self._begun[run.name] = time.monotonic()
            with contextlib.suppress(OSError):  # of a full disk, the run itself will speak
                (self.plan.folder / run.name / CONFIG).write_text(json.dumps(self.plan.config_of(run), indent=1))
        else:
            self._take_last(run, report)
        self.board.tell(run)
        self.save()

    def _take_last(self, run: Run, report: dict[str, Any]) -> None:
        folder = self.plan.folder / run.name
        if run.name in self._begun:
            run.seconds = round(run.seconds + time.monotonic() - self._begun.pop(run.name), 1)
        if (end := finished(folder)) is not None:
            run.state, run.reason = DONE, ""
            run.metrics, run.record = end["result"], f"{run.name}/sacred/{end['sacred_id']}"
            run.step = report.get("step") or run.step
            return
        run.step = newest_step(folder)
        run.reason = report.get("lost") or report["reason"]
        code = report.get("code", TRY_AGAIN)
        run.state = CUT if code < 0 or code in (TRY_AGAIN, CONTROL_C) else FAILED
        further = (run.step or 0) > self._reached[run.name]
        self._reached[run.name] = run.step or 0
        self._useless[run.name] = 0 if further else self._useless[run.name] + 1


def provenance() -> dict[str, Any]:
    """With what the runs are made."""

    def git(*words: str) -> str:
        with contextlib.suppress(OSError):
            return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout.strip()
        return ""

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain")), "versions": versions}


def now() -> str:
    return f"{datetime.now():%Y-%m-%d %H:%M:%S}"


def exit_code(runs: Sequence[Run], stop: StopRequest) -> int:
    states = {run.state for run in runs}
    if states == {DONE}:
        return 0
    if stop.reason:
        return stop.code
    return 1 if FAILED in states else TRY_AGAIN


if __name__ == "__main__":
    sys.exit(main(sys.argv))
