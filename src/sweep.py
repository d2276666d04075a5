"""Command line: many runs, on this machine or on a cluster. See --help."""

import argparse
import contextlib
import fcntl
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from doctor import GAMES, read_config, run_probe
from utils.arguments import Parser, say
from utils.attempts import CONTROL_C, SHOWN, TRY_AGAIN, Order, checksum_of_source, finished, newest_step
from utils.cluster import Cluster
from utils.cores import core_count
from utils.differences import differences
from utils.errors import UserError
from utils.logging import get_logger
from utils.signals import StopRequest
from utils.timehelper import time_str

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

Nothing starts before every configuration has been checked and every map was found; of StarCraft II, which only the
nodes may have, the runs say it. Runs that were killed, and those whose machine was lost, go
on from their last checkpoint. The same command may be given again at any time: complete runs are left alone, those that
were cut go on, those that failed are tried again. Ctrl-C and SIGTERM stop the runs with checkpoints.
FOLDER/sweep.json says what became of each run. It needs Ray: pip install -r requirements-ray.txt

Examples
  python src/sweep.py --configs=qmix,greedy_qmix --env-configs=smax --maps=3m,2s3z --seeds=0-9
  python src/sweep.py --configs=qmix,greedy_qmix --env-configs=smax --maps=3m,2s3z --seeds=0-9 --dry-run
  python src/sweep.py --configs=iql,qmix --env-configs=matrix_games --maps=climbing,penalty --seeds=0,3,5
  python src/sweep.py --configs=greedy_qmix --env-configs=smax --name=hard_gate with gate.mode=hard
  python src/sweep.py --configs=qmix --env-configs=smax --seeds=0-9 --address=auto --gpus-per-run=.25

Exit code: 0 all runs are complete, 1 some have failed, 2 bad input, 75 some were cut, 130 the same by Ctrl-C.
"""

ROOT = Path(__file__).resolve().parents[1]
MAP_KEYS = ("map_name", "key", "game")  # of env_args: what a map is called there
OWN_KEYS = ("seed", "resume", "local_results_path", "evaluate")  # no business of the sweep's overrides
MOST = 10_000  # runs of a sweep
PACKAGES = ("torch", "numpy", "jax", "jaxmarl", "sacred", "ray")
CONFIG = "config.json"  # in the folder of a run: its configuration
EVERY = 10.0  # seconds between two writings of what changes all the time

STATES = WAITING, RUNNING, DONE, FAILED, CUT = "waiting", "running", "done", "failed", "cut"


@dataclass
class Run:
    """One run of a sweep: what it is, and what became of it."""

    name: str  # of its folder
    config: str
    env_config: str
    map: str
    seed: int
    words: list[str]  # overrides of its own
    state: str = WAITING
    attempts: int = 0
    seconds: float = 0.0  # of all attempts
    where: str = ""
    step: int | None = None
    t_max: int = 0
    metrics: dict[str, float] = field(default_factory=dict)  # the last tests' results
    record: str = ""  # sacred's, below the sweep's folder
    reason: str = ""  # why it failed, or was cut

    @property
    def group(self) -> str:
        return self.name.rpartition("__seed_")[0]


@dataclass
class Plan:
    """What a command line asks for."""

    name: str
    folder: Path
    overrides: list[str]  # of all runs
    options: argparse.Namespace
    runs: list[Run] = field(default_factory=list)

    def command(self, run: Run) -> list[str]:
        """What Python is to run."""
        names = [f"--config={run.config}", f"--env-config={run.env_config}"]
        keeping = [f"local_results_path={self.folder / run.name}", "resume=auto"]
        return [str(ROOT / "src" / "main.py"), *names, "with", *self.overrides, *run.words, *keeping]

    def config_of(self, run: Run) -> dict[str, Any]:
        """Its configuration, but for where its results lie."""
        return read_config(run.config, run.env_config, ["with", *self.overrides, *run.words])


class Engine(Protocol):
    """What tries runs (`utils.cluster.Cluster`)."""

    @property
    def busy(self) -> bool: ...
    def start(self, name: str, order: Order) -> None: ...
    def news(self, seconds: float) -> Iterator[tuple[str, dict[str, Any]]]: ...
    def stop(self) -> None: ...


# --- command line


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


def read_plan(argv: list[str]) -> Plan:
    """What the command line asks for, every configuration checked.

    Raises:
        UserError: anything is wrong with it.
    """
    parser = Parser()
    for flag in ("--configs", "--env-configs", "--maps", "--name", "--results", "--address"):
        parser.add_argument(flag)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--cpus-per-run", type=float, default=1.0)
    parser.add_argument("--gpus-per-run", type=float, default=0.0)
    parser.add_argument("--retries", type=int, default=3)
    parser.add_argument("--dry-run", action="store_true")
    start = argv.index("with") if "with" in argv else len(argv)
    options, overrides = parser.parse_args(argv[:start]), argv[start + 1 :]
    if not (options.cpus_per_run > 0 and math.isfinite(options.cpus_per_run)):
        raise UserError(f"--cpus-per-run={options.cpus_per_run:g}: more than 0")
    if not (0 <= options.gpus_per_run < math.inf):
        raise UserError(f"--gpus-per-run={options.gpus_per_run:g}: 0 or more")
    for flag in ("cpus", "gpus"):
        number = getattr(options, f"{flag}_per_run")
        if number > 1 and number % 1:
            raise UserError(f"--{flag}-per-run={number:g}: above 1, Ray takes whole numbers only")
    if options.retries < 0:
        raise UserError(f"--retries={options.retries}: 0 or more")
    configs, envs = read_list("--configs", options.configs), read_list("--env-configs", options.env_configs)
    maps = read_list("--maps", options.maps) if options.maps is not None else [None]
    seeds = read_seeds(options.seeds)
    if (count := len(configs) * len(envs) * len(maps) * len(seeds)) > MOST:
        raise UserError(f"command line: {count:,} runs; a sweep has at most {MOST:,}")
    name = options.name or f"{'+'.join(map(stem, configs))}__{'+'.join(map(stem, envs))}"
    if not re.fullmatch(r"[\w.+-]{1,120}", name):
        raise UserError(f"--name={name!r}: give up to 120 letters, digits and . + - _")
    folder = Path(options.results or Path("results") / "sweeps" / name).absolute()
    plan = Plan(name, folder, overrides, options)
    refuse_overrides(plan)
    for config, env in itertools.product(configs, envs):
        key = map_key(plan, config, env)
        for map_ in maps:
            add_runs(plan, config, env, key, map_, seeds)
    if twice := [one for one, count in Counter(run.name for run in plan.runs).items() if count > 1]:
        raise UserError(f"command line: two runs would be called {twice[0]}; sweep them under two --name")
    return plan


def read_list(flag: str, text: str | None) -> list[str]:
    """
    Raises:
        UserError: it is missing, has an empty part, or one twice.
    """
    if text is None:
        raise UserError(f"command line: {flag} is missing: give {flag}=NAME or {flag}=NAME,NAME; see --help")
    parts = text.split(",")
    if not all(parts):
        raise UserError(f"{flag}={text}: a name is empty; write {flag}=NAME,NAME without spaces")
    if twice := sorted({part for part in parts if parts.count(part) > 1}):
        raise UserError(f"{flag}={text}: {twice[0]} stands there twice")
    return parts


def read_seeds(text: str) -> list[int]:
    """The numbers that "0-9", "0,3,5" or "0-4,10" stand for.

    Raises:
        UserError: it is not of this form, or names one twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise UserError(f"--seeds={text}: {part!r} is no seed or range; write 0-9, or 0,3,5, or 0-4,10")
        if last - first >= MOST:
            raise UserError(f"--seeds={text}: {last - first + 1:,} seeds; a sweep has at most {MOST:,} runs")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds={text}: {next(seed for seed in seeds if seeds.count(seed) > 1)} stands there twice")
    return seeds


def stem(config: str) -> str:
    """The name of a configuration, which may be the path of a file."""
    return Path(config).stem if config.endswith(".yaml") else config


def refuse_overrides(plan: Plan) -> None:
    """
    Raises:
        UserError: something behind `with` belongs to the sweep.
    """
    for override in plan.overrides:
        key = override.partition("=")[0]
        if key in OWN_KEYS:
            how = "--seeds says which" if key == "seed" else "the sweep decides it"
            raise UserError(f"{override!r} behind `with`: leave it out; {how}")
        if plan.options.maps and key in [f"env_args.{name}" for name in MAP_KEYS]:
            raise UserError(f"{override!r} behind `with`, and --maps={plan.options.maps}: give only one of them")


def map_key(plan: Plan, config: str, env: str) -> str | None:
    """What this environment calls its map; None if it has none.

    Raises:
        UserError: the configuration is wrong, or there is none and the command line names maps.
    """
    loaded = read_config(config, env, ["with", *plan.overrides])
    key = next((key for key in MAP_KEYS if key in loaded["env_args"]), None)
    if key is None and plan.options.maps:
        keys = ", ".join(MAP_KEYS)
        raise UserError(f"--maps={plan.options.maps}: {env} has no maps (in env_args: {keys}); leave --maps out")
    return key


def add_runs(plan: Plan, config: str, env: str, key: str | None, map_: str | None, seeds: Sequence[int]) -> None:
    """Check the runs of one algorithm on one map, and add them to the plan.

    Raises:
        UserError: their configuration is wrong.
    """
    own = [] if map_ is None else [f"env_args.{key}={map_}"]
    # They differ by nothing but the seed, of which only the size can be wrong.
    loaded = read_config(config, env, ["with", *plan.overrides, *own, f"seed={max(seeds)}"])
    shown = "" if key is None else f"{loaded['env_args'][key]}"
    where = "_".join(part for part in (stem(env), shown) if part)
    for seed in seeds:
        name = re.sub(r"[^\w.+-]+", "-", f"{stem(config)}__{where}__seed_{seed}")
        plan.runs.append(Run(name, config, env, shown, seed, [*own, f"seed={seed}"], t_max=loaded["t_max"]))


# --- what is there already


def look_up(plan: Plan) -> None:
    """Let the runs of a plan be as the sweep's folder says that they are.

    Raises:
        UserError: the folder holds a run of the same name with other settings.
    """
    known = read_record(plan.folder).get("runs", {})
    for run in plan.runs:
        folder = plan.folder / run.name
        before = known.get(run.name, {})
        for key in ("attempts", "seconds", "where", "metrics", "record", "reason"):
            setattr(run, key, before.get(key, getattr(run, key)))
        run.step = newest_step(folder)
        run.state = before.get("state", WAITING)
        if (end := finished(folder)) is not None:
            run.state, run.step, run.reason = DONE, before.get("step"), ""
            run.metrics, run.record = end["result"], f"{run.name}/sacred/{end['sacred_id']}"
        elif run.state != FAILED:  # whatever it says, the sweep that wrote it has ended
            run.state = CUT if run.attempts else WAITING
        with contextlib.suppress(OSError, ValueError):
            then = json.loads((folder / CONFIG).read_text())
            if different := differences(then, plan.config_of(run)):
                raise UserError(
                    f"{folder} holds a run of other settings: {'; '.join(different[:3])}; give another --name"
                )


def try_environments(plan: Plan) -> None:
    """Build the environments that are to be trained in, in processes of their own: they would hold a GPU's memory.

    Raises:
        UserError: there is no such map, or the environment refuses something else.
    """
    todo = {(run.env_config, run.map): run for run in plan.runs if run.state != DONE}
    configs = [config for config in map(plan.config_of, todo.values()) if config["env"] not in GAMES]
    with ThreadPoolExecutor(core_count()) as pool:
        for found in pool.map(partial(run_probe, "environment"), configs):
            if found.get("users_fault"):
                raise UserError(found["error"])


def read_record(folder: Path) -> dict[str, Any]:
    """What sweep.json says; empty if there is none.

    Raises:
        UserError: it cannot be read.
    """
    try:
        found = json.loads((folder / "sweep.json").read_text())
        return found if isinstance(found["runs"], dict) else {}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / 'sweep.json'} cannot be read ({type(error).__name__}); remove it, and what the folders of "
            "runs hold is used"
        ) from error


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


# --- working


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


# --- showing


class Board:
    """How far a sweep is: a table that renews itself on a terminal, else a line for each thing that happens."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.log = get_logger()
        self.started = time.monotonic()
        self._terminal = sys.__stdout__ if sys.__stdout__ is not None and sys.__stdout__.isatty() else None
        self._lines = 0  # of the table that is shown

    def say(self, text: str) -> None:
        self.release()
        self.log.info("%s", text)

    def tell(self, run: Run) -> None:
        """Say what has become of a run. On a terminal the table shows it, but for what went wrong."""
        if self._terminal is None or run.state in (FAILED, CUT):
            self.say(f"{run.name}: {self._in_words(run)}")

    def draw(self) -> None:
        """Renew the table, as much of it as the terminal has room for."""
        if self._terminal is None:
            return
        columns, rows = shutil.get_terminal_size()
        lines = [self.headline(), *format_running(self.plan.runs)]
        if len(lines) > rows - 1:
            lines = [*lines[: rows - 2], f"and {len(lines) - rows + 2} more"]
        text = "".join(f"\x1b[K{line[: columns - 1]}\n" for line in lines)
        self._terminal.write(f"{self._up()}{text}\x1b[J")
        self._terminal.flush()
        self._lines = len(lines)

    def release(self) -> None:
        """Remove the table: other lines come now."""
        if self._terminal is not None and self._lines:
            self._terminal.write(f"{self._up()}\x1b[J")
            self._terminal.flush()
        self._lines = 0

    def headline(self) -> str:
        counts = {state: sum(run.state == state for run in self.plan.runs) for state in STATES}
        text = f"{self.plan.name}: {counts[DONE]} of {len(self.plan.runs)} done"
        text += "".join(f", {counts[state]} {state}" for state in STATES if state != DONE and counts[state])
        return f"{text}; {time_str(time.monotonic() - self.started)}"

    def _up(self) -> str:
        return f"\x1b[{self._lines}F" if self._lines else ""

    def _in_words(self, run: Run) -> str:
        if run.state == RUNNING:
            origin = f", goes on at step {run.step:,}" if run.step else ""
            return f"attempt {run.attempts} on {run.where}{origin}"
        if run.state == DONE:
            found = ", ".join(f"{SHOWN[key]} {run.metrics[key]:.2f}" for key in SHOWN if key in run.metrics)
            done = sum(one.state == DONE for one in self.plan.runs)
            return f"done in {time_str(run.seconds)}; {found} ({done} of {len(self.plan.runs)})"
        goes_on = f"; it can go on at step {run.step:,}" if run.step and run.state == CUT else ""
        return f"{run.state}: {run.reason}{goes_on}"


def format_columns(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows with their columns below each other, the first `left` of them from the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def format_running(runs: Sequence[Run]) -> list[str]:
    """A table of the runs that are under way; empty if there is none."""
    rows = [["run", "where", "attempt", "steps", "done", *SHOWN.values()]]
    for run in runs:
        if run.state == RUNNING:
            tests = [f"{run.metrics[key]:.2f}" if key in run.metrics else "-" for key in SHOWN]
            share = f"{100 * (run.step or 0) / run.t_max:.0f}%"
            rows.append([run.name, run.where, f"{run.attempts}", f"{run.step or 0:,}", share, *tests])
    return format_columns(rows, left=2) if len(rows) > 1 else []


def format_groups(runs: Sequence[Run]) -> str:
    """What became of the runs, by algorithm and map: mean and standard deviation over seeds; and what went wrong."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    rows = [["", "runs", *(state for state in STATES if state != RUNNING), *SHOWN.values(), "time of a run"]]
    for group, members in groups.items():
        done = [run for run in members if run.state == DONE]
        counts = [sum(run.state == state for run in members) or "-" for state in STATES if state != RUNNING]
        tests = [spread([run.metrics[key] for run in done if key in run.metrics]) for key in SHOWN]
        seconds = time_str(statistics.mean(run.seconds for run in done)) if done else "-"
        rows.append([group, f"{len(members)}", *map(str, counts), *tests, seconds])
    wrong = [f"{run.name} {run.state}: {run.reason}" for run in runs if run.state in (FAILED, CUT)]
    return "\n".join([*format_columns(rows), *([""] if wrong else []), *wrong])


def spread(values: Sequence[float]) -> str:
    """1.85 (0.04): the mean, and the standard deviation if there are several."""
    if not values:
        return "-"
    deviation = f" ({statistics.stdev(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def describe(plan: Plan) -> str:
    """What a sweep would do."""
    options = plan.options
    words = {
        DONE: "complete: left alone",
        CUT: "was cut: goes on",
        FAILED: "failed before: tried again",
        WAITING: "new",
    }
    rows = [["run", "", "at step"]]
    for run in plan.runs:
        rows.append([run.name, words[run.state], f"{run.step:,}" if run.step else ""])
    todo = [run for run in plan.runs if run.state != DONE]
    share = f"{options.cpus_per_run:g} CPU(s) and {options.gpus_per_run:g} GPU(s) each"
    lines = [f"{len(plan.runs)} runs in {plan.folder}, {len(todo)} to be trained, with {share}", ""]
    lines += format_columns(rows, left=2)
    if todo:
        lines += ["", "The first: python " + shlex.join(plan.command(todo[0]))]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
