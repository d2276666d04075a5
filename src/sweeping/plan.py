"""What a sweep's command line asks for, and what of it is there already."""

import argparse
import contextlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from doctor import GAMES, read_config, run_probe
from sweeping.attempts import finished, newest_step
from utils.arguments import Parser
from utils.cores import core_count
from utils.differences import differences
from utils.errors import UserError
from utils.titles import MAP_KEYS

ROOT = Path(__file__).resolve().parents[2]
OWN_KEYS = ("seed", "resume", "local_results_path", "evaluate")  # no business of the sweep's overrides
RESUME = "resume=auto"  # every run goes on with what it left
MOST = 10_000  # runs of a sweep
CONFIG = "config.json"  # in the folder of a run: its configuration

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
        keeping = [f"local_results_path={self.folder / run.name}", RESUME]
        return [str(ROOT / "src" / "main.py"), *names, "with", *self.overrides, *run.words, *keeping]

    def config_of(self, run: Run) -> dict[str, Any]:
        """Its configuration, but for where its results lie."""
        return read_config(run.config, run.env_config, ["with", *self.overrides, *run.words])


# --- the command line


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
    loaded = read_config(config, env, ["with", *plan.overrides, RESUME])
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
    loaded = read_config(config, env, ["with", *plan.overrides, *own, f"seed={max(seeds)}", RESUME])
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
