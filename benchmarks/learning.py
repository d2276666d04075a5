"""Measure how runs learn: one command line with several seeds, one run after another.

For each seed: steps and seconds until a logged metric first reaches the goal, its best and its last value. Writes
NAME.json (settings, machine, curves) and NAME.png to results/published and prints the table as markdown.

  python benchmarks/learning.py --name main_job --config greedy_qmix --env-config smax \\
      --metric test_battle_won_mean --goal 0.9 --seeds 1 2 3 4 5 6 --with env_args.map_name=3m t_max=500000
"""

import argparse
import json
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from jobs import PUBLISHED, ROOT, add_overrides, publish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the files in results/published")
    parser.add_argument("--config", required=True)
    parser.add_argument("--env-config", required=True)
    add_overrides(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--metric", default="test_return_mean", help="a logged name")
    parser.add_argument("--goal", type=float, required=True, help="value of the metric to reach")
    args = parser.parse_args()

    runs = []
    for seed in args.seeds:
        print(f"seed {seed} ({len(runs) + 1} of {len(args.seeds)})", flush=True)
        runs.append(measure(args, seed))
        print(json.dumps({k: v for k, v in runs[-1].items() if k != "curve"}), flush=True)
        publish(args.name, vars(args), runs=runs)
    draw(runs, args, PUBLISHED / f"{args.name}.png")
    print(as_markdown(runs, args.goal))


def measure(args, seed: int) -> dict:
    """One run, read back from sacred's record."""
    folder = ROOT / "results" / f"{args.name}_{datetime.now():%Y%m%d_%H%M%S}_seed{seed}"
    command = [sys.executable, "src/main.py", f"--config={args.config}", f"--env-config={args.env_config}", "with"]
    command += [*args.overrides, f"seed={seed}", f"local_results_path={folder}"]
    started = time.time()
    done = subprocess.run(command, cwd=ROOT, check=False)
    seconds = time.time() - started
    if done.returncode == 2:  # wrong input, which the run has named
        sys.exit(2)
    if done.returncode != 0:
        return {"seed": seed, "exit_code": done.returncode, "seconds": seconds}
    metrics = json.loads((folder / "sacred" / "1" / "metrics.json").read_text())
    if args.metric not in metrics:
        sys.exit(f"error: --metric={args.metric} was not logged; logged: {', '.join(sorted(metrics))}")
    metric = metrics[args.metric]
    # Sacred's timestamps are UTC without a zone.
    times = [datetime.fromisoformat(stamp + "+00:00").timestamp() - started for stamp in metric["timestamps"]]
    curve = list(zip(metric["steps"], times, metric["values"], strict=True))
    reached = next(((step, at) for step, at, value in curve if value >= args.goal), None)
    return {
        "seed": seed,
        "exit_code": 0,
        "seconds": round(seconds, 1),
        "steps_to_goal": reached[0] if reached else None,
        "seconds_to_goal": round(reached[1], 1) if reached else None,
        "last": curve[-1][2],
        "best": max(value for _, _, value in curve),
        "curve": [[step, round(at, 1), value] for step, at, value in curve],
    }


def draw(runs: list[dict], args, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (by_step, by_time) = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    for run in runs:
        if "curve" in run:
            steps, seconds, values = zip(*run["curve"], strict=True)
            by_step.plot(steps, values, label=f"seed {run['seed']}")
            by_time.plot([s / 60 for s in seconds], values)
    for axis, label in ((by_step, "environment steps"), (by_time, "minutes since the start")):
        axis.axhline(args.goal, color="grey", ls=":")
        axis.set(xlabel=label)
        axis.grid(alpha=0.3)
    by_step.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    by_step.set_ylabel(args.metric)
    by_step.legend(fontsize=8)
    figure.suptitle(" ".join([args.config, args.env_config, *args.overrides]), fontsize=10)
    figure.savefig(path, dpi=120)


def as_markdown(runs: list[dict], goal: float) -> str:
    lines = [
        f"| seed | steps to {goal:g} | seconds to {goal:g} | best | at the end | seconds in all |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        if run["exit_code"] != 0:
            lines.append(f"| {run['seed']} | failed with exit code {run['exit_code']} | | | | {run['seconds']:.0f} |")
            continue
        steps = f"{run['steps_to_goal']:,}" if run["steps_to_goal"] else "not reached"
        seconds = f"{run['seconds_to_goal']:.0f}" if run["seconds_to_goal"] else "-"
        lines.append(
            f"| {run['seed']} | {steps} | {seconds} | {run['best']:.2f} | {run['last']:.2f} | {run['seconds']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
