"""Seconds until a run learns, phase by phase, in fresh processes.

  python benchmarks/startup.py
  python benchmarks/startup.py --pairs qmix:smax greedy_qmix:smax --device cuda

"import" loads the code, "build" makes environments (and loads their packages), networks and replay, "first step" is the
first of all environments, "collect" plays until a batch is there, and then come the first two updates. The limit is a
process that only imports torch, and the package of the environment where it has one. "cold" has no compiled functions
of an earlier run, "warm" those of the cold one: what lies between is compilation. Writes NAME.json to
results/published.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time

import numpy as np
from jobs import add_sources, ask_fresh, experiment, positive, publish

KEYS = {  # environment file -> its keys
    "smax": {"env_args.map_name": "3m"},
    "gymma": {"env_args.key": "lbforaging:Foraging-8x8-2p-2f-coop-v3"},
}
PACKAGES = {"smax": "torch, jaxmarl", "gymma": "torch, lbforaging"}
PHASES = ("import", "build", "first step", "collect", "first update", "second update")
PAIRS = ("qmix:matrix_games", "qmix:gymma", "qmix:smax", "greedy_qmix:smax")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="startup", help="of the file in results/published")
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), metavar="CONFIG:ENV")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(start(**json.loads(args.worker))))
        return
    table: dict[str, dict] = {}
    print(f"{'':<28}" + "".join(f"{text:>15}" for text in (*PHASES, "in all", "of the limit")))
    for pair in args.pairs:
        config, _, env = pair.partition(":")
        rounds: dict[str, list[dict]] = {"cold": [], "warm": []}
        limits = []
        for _ in range(args.rounds):
            with tempfile.TemporaryDirectory() as cache:
                for found in rounds.values():
                    what = {"config": config, "env": env, "device": args.device, "started": time.time()}
                    found.append(ask_fresh(__file__, what, {"JAX_COMPILATION_CACHE_DIR": cache}))
            limits.append(imported(PACKAGES.get(env, "torch")))
        for name, found in rounds.items():
            table[f"{pair} {name}"] = row = summarise(found, limits)
            print(as_text(f"{pair} {name}", row), flush=True)
    publish(args.name, vars(args), table=table)


def imported(packages: str) -> float:
    """Seconds of a process that only imports these packages."""
    started = time.time()
    subprocess.run([sys.executable, "-c", f"import {packages}"], check=True, capture_output=True)
    return time.time() - started


def summarise(rounds: list[dict], limits: list[float]) -> dict:
    """Medians over the rounds, of which none may have failed."""
    for found in rounds:
        if "error" in found:
            return found
    phases = {phase: float(np.median([found[phase] for found in rounds])) for phase in PHASES}
    totals = [sum(found.values()) for found in rounds]
    return phases | {"in all": float(np.median(totals)), "limit": float(np.median(limits)), "rounds": totals}


def as_text(name: str, row: dict) -> str:
    if "error" in row:
        return f"{name:<28}  {row['error']}"
    cells = [f"{row[phase]:.2f} s" for phase in (*PHASES, "in all")] + [f"{row['limit'] / row['in all']:.0%}"]
    return f"{name:<28}" + "".join(f"{cell:>15}" for cell in cells)


# --- in a process of its own


def start(config: str, env: str, device: str, started: float) -> dict[str, float]:
    """Seconds of each phase."""
    times = [started]

    def note() -> None:
        times.append(time.time())

    add_sources()
    import run  # noqa: F401  what a run loads

    note()
    with experiment(config, env, KEYS.get(env, {}) | {"use_cuda": device == "cuda", "seed": 1}) as built:
        note()
        step = built.runner.env.step

        def first_step(*args):
            built.runner.env.step = step
            outcome = step(*args)
            note()
            return outcome

        built.runner.env.step = first_step
        batch_size = built.args.batch_size
        while not built.buffer.can_sample(batch_size):
            built.buffer.insert_episode_batch(built.runner.run())
        note()
        for _ in range(2):
            built.learner.train(built.buffer.sample(batch_size), built.runner.t_env, batch_size)
            if device == "cuda":
                import torch

                torch.cuda.synchronize()
            note()
    return dict(zip(PHASES, np.diff(times).tolist(), strict=True))


if __name__ == "__main__":
    main()
