"""What N seeds at once cost (`seeds=N`), beside one seed and beside N runs of one seed.

  python benchmarks/many_seeds.py
  python benchmarks/many_seeds.py --seeds 1 10 --device cuda

One update: the batched learner beside the plain one, on synthetic episodes (those of `learner_step.py`). End to end:
whole runs with learning; the speed is taken between a run's first and last line of statistics behind `after` steps, so
neither start-up nor the collection of the first batch enters it. Runs of one seed are started in waves of --workers
processes. What is measured takes turns, so that all see the same machine, and what counts are ratios: "of one" is the
time of N seeds at once in times of one seed alone, "of N" in times of N runs. Writes many_seeds.json to
results/published.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import numpy as np
from end_to_end import QUIET
from jobs import ROOT, add_sources, positive, publish
from learner_step import draw, our_learner, step

TASKS = {  # keys behind the environment's own
    "matrix_games": {},
    "smax": {"env_args.map_name": "3m"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=["qmix", "greedy_qmix"])
    parser.add_argument("--seeds", nargs="+", type=positive, default=[1, 4, 10], help="numbers of them at once")
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--shapes", nargs="*", default=["3m"], help="of the update, as in learner_step.py")
    parser.add_argument("--agents", nargs="+", choices=["rnn", "mlp"], default=["rnn", "mlp"], help="of the update")
    parser.add_argument("--steps", type=int, default=12000, help="environment steps of a run")
    parser.add_argument("--after", type=int, default=4000, help="those that are not counted")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--updates", type=positive, default=5, help="in a round")
    parser.add_argument(
        "--workers", type=positive, default=len(os.sched_getaffinity(0)), help="runs of one seed at a time"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    table: dict[str, dict] = {}
    for config in args.configs:
        for shape in args.shapes:
            for agent in args.agents:
                title = f"{config}, update, {shape}, {agent}"
                table[title] = measure_updates(args, config, shape, agent)
                print(as_text(title, "ms", table[title]), flush=True)
        for task in args.tasks:
            title = f"{config}, end to end, {task}"
            table[title] = measure_runs(args, config, task)
            print(as_text(title, "s per 1,000 steps of each seed", table[title]), flush=True)
    publish("many_seeds", vars(args), table=table)


def measure_updates(args, config: str, shape: str, agent: str) -> dict[str, list[float]]:
    """Milliseconds of an update, by what was updated: the medians of rounds."""
    add_sources()
    import torch

    from components.episode_buffer import joined
    from learners.many_seeds import ManySeeds

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)

    def plain():
        return our_learner(config, shape, "realistic", args.device, ROOT, agent=agent)

    alone, episodes = plain()
    batch = draw(episodes, np.random.default_rng(0))
    measured = {"alone": lambda: step(alone, batch, args.device)}
    for n in args.seeds:
        many, whole = ManySeeds([plain()[0] for _ in range(n)]), joined([batch] * n)

        def together(many=many, whole=whole, n=n) -> float:
            if args.device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            many.train(list(range(n)), whole, 1, [1] * n)
            if args.device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - started

        measured[f"{n}"] = together
    for one in measured.values():
        one()  # the first allocates
    rounds: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(args.rounds):
        for name, one in measured.items():
            rounds[name].append(1000 * float(np.median([one() for _ in range(args.updates)])))
    # So many updates one after another: an update of one learner leaves no core idle that another's could use.
    return rounds | {f"{n} runs": [n * ms for ms in rounds["alone"]] for n in args.seeds if n > 1}


def measure_runs(args, config: str, task: str) -> dict[str, list[float]]:
    """Seconds for 1,000 steps of every seed, by how they were trained."""
    rounds: dict[str, list[float]] = {"alone": []} | {f"{n}": [] for n in args.seeds if n > 1}
    rounds |= {f"{n} runs": [] for n in args.seeds if n > 1}
    for _ in range(args.rounds):
        rounds["alone"].append(run(args, config, task, 1))
        for n in args.seeds:
            if n == 1:
                continue
            rounds[f"{n}"].append(run(args, config, task, n))
            workers = min(n, args.workers)
            with ThreadPoolExecutor(workers) as pool:
                wave = list(pool.map(lambda _: run(args, config, task, 1), range(workers)))
            rounds[f"{n} runs"].append(math.ceil(n / workers) * max(wave))
    return rounds


def run(args, config: str, task: str, seeds: int) -> float:
    """Seconds for 1,000 steps of every seed."""
    with tempfile.TemporaryDirectory() as folder:
        keys = (
            QUIET
            | TASKS[task]
            | {"plot": False, "t_max": args.steps, "seeds": seeds, "use_cuda": args.device == "cuda"}
        )
        keys["local_results_path"] = f"{folder}/results"
        command = [sys.executable, "src/main.py", f"--config={config}", f"--env-config={task}", "with"]
        subprocess.run(
            command + [f"{key}={value}" for key, value in keys.items()], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
        found = json.loads((Path(folder) / "results/sacred/1/metrics.json").read_text())["return_mean"]
    times = [datetime.fromisoformat(stamp).timestamp() for stamp in found["timestamps"]]
    curve = [(t, time) for t, time in zip(found["steps"], times, strict=True) if t >= args.after]
    (t0, time0), (t1, time1) = curve[0], curve[-1]
    return 1000 * (time1 - time0) / (t1 - t0)


def as_text(title: str, unit: str, rounds: dict[str, list[float]]) -> str:
    """A table with the ratios of this run, and how far they spread over its rounds."""
    lines = [title, f"{'seeds':<12}{unit:>32}{'of one':>24}{'of N':>24}"]
    for name, found in rounds.items():
        cells = [ratio(found, rounds["alone"])]
        cells.append(ratio(found, rounds[f"{name} runs"]) if f"{name} runs" in rounds else "")
        lines.append(f"{name:<12}{np.median(found):>32.2f}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines) + "\n"


def ratio(found: list[float], other: list[float]) -> str:
    ratios = np.array(found) / np.array(other)
    return f"{np.median(ratios):.2f} [{ratios.min():.2f}, {ratios.max():.2f}]"


if __name__ == "__main__":
    main()
