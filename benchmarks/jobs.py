"""Many short runs in worker processes, and their statistics: what `greed.py` and `ablation.py` share.

Finished runs are appended to a file of lines at once, so that a sweep that was stopped goes on where it was.
"""

import contextlib
import io
import json
import logging
import multiprocessing
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "results" / "published"
PACKAGES = ("torch", "numpy", "jax", "jaxmarl", "sacred")


@dataclass(frozen=True)
class Job:
    """One run: `group` says what it belongs to, `method` which variant it is."""

    group: str
    method: str
    config: str
    env_config: str
    overrides: tuple[tuple[str, object], ...]
    seed: int

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def run_jobs(jobs: list[Job], store: Path, workers: int) -> list[dict]:
    """The records of all jobs; those that `store` holds already are not run again.

    A record is the job's fields, `seconds`, and `metrics`: name -> [[step, value], ...] of every logged statistic; or
    `error` if the run failed.
    """
    store.parent.mkdir(parents=True, exist_ok=True)
    done = {}
    if store.exists():
        for line in store.read_text().splitlines():
            record = json.loads(line)
            if "error" not in record:  # what failed is tried again
                done[record["key"]] = record
    todo = [job for job in jobs if job.key not in done]
    print(f"{len(jobs)} runs, {len(jobs) - len(todo)} of them in {store}; {workers} worker(s)", flush=True)
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool, store.open("a") as file:
        for n, record in enumerate(pool.imap_unordered(_run, todo), start=1):
            done[record["key"]] = record
            file.write(json.dumps(record) + "\n")
            file.flush()
            elapsed = time.monotonic() - started
            outcome = record.get("error") or f"{record['seconds']:.0f} s"
            left = elapsed / n * (len(todo) - n) / 60
            name = f"{record['group']} {record['method']} seed {record['seed']}"
            print(f"{n}/{len(todo)}  {name}: {outcome}  ({left:.0f} min left)", flush=True)
    return [done[job.key] for job in jobs]


def _run(job: Job) -> dict:
    sys.path.insert(0, str(ROOT / "src"))
    import torch

    from config.schema import extend, freeze, load
    from run import Experiment
    from runners import REGISTRY as runner_REGISTRY
    from utils.logging import Logger
    from utils.registry import resolve
    from utils.seeding import seed_everything

    record = {"key": job.key, **asdict(job)}
    started = time.monotonic()
    try:
        overrides: dict = {"seed": job.seed, "use_cuda": False, "plot": False}
        for dotted, value in job.overrides:
            *blocks, key = dotted.split(".")
            place = overrides
            for block in blocks:
                place = place.setdefault(block, {})
            place[key] = value
        args = freeze(load(job.config, job.env_config, overrides))
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        seed_everything(args.seed)
        console = logging.getLogger("jobs")
        console.setLevel(logging.WARNING)
        logger = Logger(console)
        with contextlib.redirect_stdout(io.StringIO()):
            args = extend(args, device="cpu", unique_token="jobs")
            runner = resolve("runner", args.runner, runner_REGISTRY)(args, logger)
            try:
                Experiment(args, logger, runner).train(SimpleNamespace(_id=None))
            finally:
                runner.close_env()
        record["metrics"] = {name: [[t, float(v)] for t, v in curve] for name, curve in logger.stats.items()}
    except Exception as error:  # one failed run must not end a sweep of hours; it is reported and counted
        record["error"] = f"{type(error).__name__}: {error}"
    record["seconds"] = round(time.monotonic() - started, 1)
    return record


def last(record: dict, metric: str) -> float:
    """The last logged value; not a number if the run failed or did not log it."""
    curve = record.get("metrics", {}).get(metric)
    return curve[-1][1] if curve else float("nan")


def iqm(values, axis: int = -1):
    """The interquartile mean: without the lowest and the highest quarter. (Agarwal et al. 2021)"""
    return stats.trim_mean(values, 0.25, axis=axis)


def interval(values, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the interquartile mean over runs."""
    values = np.asarray(values, float)
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.min()), float(values.max())
    rng = np.random.default_rng(0)
    found = stats.bootstrap(
        (values,), iqm, vectorized=True, confidence_level=confidence, method="percentile", n_resamples=2000, rng=rng
    ).confidence_interval
    return float(found.low), float(found.high)


def summarise(values) -> dict:
    """Interquartile mean, its interval, and how many runs there were and failed."""
    values = np.asarray(values, float)
    ok = values[np.isfinite(values)]
    low, high = interval(ok) if len(ok) else (float("nan"), float("nan"))
    return {
        "iqm": float(iqm(ok)) if len(ok) else float("nan"),
        "low": low,
        "high": high,
        "runs": len(values),
        "failed": int(len(values) - len(ok)),
    }


def summarise_tasks(values: dict[str, list[float]], resamples: int = 5000) -> dict:
    """`summarise` over the runs of several tasks, as rliable does: pooled, and resampled within each task.

    Tasks are fixed, only seeds are chance. Also the mean of each task alone.
    """
    finite = {task: np.asarray(runs, float)[np.isfinite(runs)] for task, runs in values.items()}
    pooled = np.concatenate(list(finite.values()))
    rng = np.random.default_rng(0)
    drawn = np.concatenate([rng.choice(runs, (resamples, len(runs))) for runs in finite.values() if len(runs)], axis=1)
    low, high = np.quantile(iqm(drawn), [0.025, 0.975])
    return summarise(pooled) | {
        "low": float(low),
        "high": float(high),
        "runs": sum(map(len, values.values())),
        "failed": sum(map(len, values.values())) - len(pooled),
        "tasks": {task: float(np.mean(runs)) for task, runs in finite.items() if len(runs)},
    }


def machine() -> dict:
    """Where and with what versions something was measured."""
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(models),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "commit": commit.stdout.strip(),
        "date": f"{datetime.now():%Y-%m-%d}",
    }
