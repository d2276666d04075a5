"""Environment steps per second of whole runs, learning included, here and in other code bases.

  python benchmarks/end_to_end.py
  python benchmarks/end_to_end.py --tasks foraging --peer epymarl=../epymarl --rounds 3

Each task states its ratio of updates to steps, which all code bases keep. A peer is a checkout of EPyMARL, which plays
the tasks that it has (foraging), from a copy of its sources. Code bases take turns, so that all see the same machine,
and what counts are ratios. The speed is taken between a run's first and last line of statistics behind `after` steps,
so neither start-up nor the collection of the first batch enters it. Writes end_to_end.json to results/published.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import numpy as np
from jobs import PUBLISHED, ROOT, machine

FORAGING = "lbforaging:Foraging-8x8-2p-2f-coop-v3"
INTERVAL = 1000  # environment steps between lines of statistics
QUIET = {"test_interval": 10**9, "test_nepisode": 1, "log_interval": INTERVAL}
QUIET |= {"runner_log_interval": INTERVAL, "learner_log_interval": INTERVAL, "use_cuda": False}
PLAIN = {"batch_size": 32, "buffer_size": 5000, "epsilon_anneal_time": 50000}
RECURRENT = PLAIN | {"agent": "rnn", "lr": 0.0005, "optim_eps": 0.00001}
GYMMA = {"env_args.key": FORAGING, "env_args.time_limit": 50}
# task -> (what it is, environment file, keys here, keys of peers)
TASKS = {
    "foraging": (
        "QMIX with a GRU of 64 units, one update of 32 episodes for every episode of up to 50 steps",
        "gymma",
        GYMMA
        | RECURRENT
        | {"rnn_hidden_dim": 64, "runner": "parallel", "batch_size_run": 4, "updates_per_episode": 1.0},
        {"epymarl": GYMMA | PLAIN | {"hidden_dim": 64, "use_rnn": True, "lr": 0.0005}},
    ),
    "smax": (
        "QMIX with a GRU of 64 units on 3m, 16 battles at a time, 8 updates of 32 battles for every 2,048 steps",
        "smax",
        {"env_args.map_name": "3m", "rnn_hidden_dim": 64, "batch_size_run": 16, "updates_per_episode": 0.1} | RECURRENT,
        {},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--configs", nargs="+", default=["qmix"], help="algorithms here; peers run qmix")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH", help="epymarl=CHECKOUT")
    parser.add_argument("--steps", type=int, default=12000, help="environment steps of a run")
    parser.add_argument("--after", type=int, default=4000, help="those that are not counted")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    peers = dict(peer.split("=", 1) for peer in args.peer)
    table: dict[str, dict] = {}
    for task in args.tasks:
        what, env, ours, theirs = TASKS[task]
        runs = {config: (ROOT, config, env, ours) for config in args.configs}
        runs |= {
            name: (Path(peers[name]).resolve(), "qmix", env, keys) for name, keys in theirs.items() if name in peers
        }
        rounds: dict[str, list[dict]] = {name: [] for name in runs}
        for n in range(args.rounds):
            for name, run in runs.items():
                rounds[name].append(measure(*run, args.steps, args.after, seed=n + 1))
                print(f"{task} {name}: {rounds[name][-1]}", flush=True)
        table[task] = {"what": what, "rounds": rounds}
        print(as_text(task, what, rounds), flush=True)
    report = {"settings": vars(args) | {"peer": list(peers)}, "machine": machine(), "table": table}
    PUBLISHED.mkdir(parents=True, exist_ok=True)
    (PUBLISHED / "end_to_end.json").write_text(json.dumps(report, indent=1) + "\n")


def measure(root: Path, config: str, env: str, keys: dict, steps: int, after: int, seed: int) -> dict:
    """Steps per second of one run, and its seconds to the first line of statistics."""
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        if root != ROOT:
            shutil.copytree(root / "src", where / "src")
            (where / "smaclite.py").touch()  # EPyMARL imports it whatever the environment is
        keys = QUIET | keys | {"t_max": steps, "seed": seed}
        if root == ROOT:
            keys |= {"local_results_path": str(where / "results")}
        command = [sys.executable, "src/main.py", f"--config={config}", f"--env-config={env}", "with"]
        command += [f"{key}={value}" for key, value in keys.items()]
        started = datetime.now().timestamp()
        done = subprocess.run(
            command,
            cwd=ROOT if root == ROOT else where,
            env=os.environ | {"PYTHONPATH": str(where)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return {"error": done.stderr.strip().splitlines()[-1] if done.stderr else f"exit code {done.returncode}"}
        (file,) = where.glob("results/sacred/**/metrics.json")
        found = json.loads(file.read_text())["return_mean"]
    times = [datetime.fromisoformat(stamp + "+00:00").timestamp() for stamp in found["timestamps"]]
    curve = [(t, time) for t, time in zip(found["steps"], times, strict=True) if t >= after]
    (t0, time0), (t1, time1) = curve[0], curve[-1]
    return {"steps_per_second": (t1 - t0) / (time1 - time0), "start_seconds": times[0] - started, "steps": t1 - t0}


def as_text(task: str, what: str, rounds: dict[str, list[dict]]) -> str:
    lines = [f"{task}: {what}", f"{'':<16}{'steps/s':>12}{'of this':>24}"]
    speeds = {name: [found.get("steps_per_second", np.nan) for found in runs] for name, runs in rounds.items()}
    first = np.array(next(iter(speeds.values())))
    for name, speed in speeds.items():
        ratios = first / np.array(speed)
        spread = f"1 / {np.median(ratios):.2f} [{ratios.min():.2f}, {ratios.max():.2f}]"
        lines.append(f"{name:<16}{np.median(speed):>12.0f}{spread:>24}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
