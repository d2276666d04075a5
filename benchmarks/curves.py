"""Learning curves: every algorithm on four small tasks, in budgets that a laptop has, or chosen ones on longer tasks.

Nothing is tuned here: each configuration is as its file says, with exploration shortened to the small tasks' budgets,
so this is no comparison of algorithms. A run's score is its last test. Its start is the first test, of networks that
have hardly been trained. Writes NAME.json and NAME.png to results/published and prints the table as markdown.

  python benchmarks/curves.py --seeds 3
  python benchmarks/curves.py --name stag_hunt --configs vdn qmix dcg --tasks stag_hunt stag_hunt_punished
"""

import argparse
from pathlib import Path

import numpy as np
from jobs import PUBLISHED, ROOT, Job, algorithms, positive, publish, run_jobs, summarise

FORAGING = "lbforaging:Foraging-5x5-2p-1f-v3"
# task -> environment file, steps, what is shown, other keys
SMALL = {
    "two-step": ("matrix_games", 4000, "test_return_mean", {"env_args.game": "two_step"}),
    "decoy": ("greed_games", 4000, "test_normalised_return_mean", {"env_args.game": "decoy", "env_args.kappa": 1.0}),
    "foraging": (
        "gymma",
        12000,
        "test_return_mean",
        {"env_args.key": FORAGING, "env_args.time_limit": 25, "test_nepisode": 48},
    ),
    "3m": ("smax", 24000, "test_battle_won_mean", {"env_args.map_name": "3m", "test_nepisode": 128}),
}
STAGS = {"epsilon_anneal_time": 50000, "buffer_size": 500}
SCALED = {"env_args.reward_scale": 10.0, "test_interval": 50000}  # as large as SMAC's rewards
LONG = {
    "stag_hunt": ("stag_hunt", 200000, "test_return_mean", STAGS),
    "stag_hunt_punished": ("stag_hunt", 200000, "test_return_mean", STAGS | {"env_args.punishment": -2.0}),
    "3m_long": ("smax", 1000000, "test_battle_won_mean", {"env_args.map_name": "3m"} | SCALED),
    "2s3z_long": ("smax", 1000000, "test_battle_won_mean", {"env_args.map_name": "2s3z"} | SCALED),
}
TASKS = SMALL | LONG
TESTS = 8  # in a run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="curves", help="of the files in results/published")
    parser.add_argument("--configs", nargs="+", default=None, help="algorithms; all by default")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(SMALL))
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--workers", type=positive, default=2)
    args = parser.parse_args()
    configs = args.configs or algorithms()
    jobs = [job(config, task, seed) for seed in range(args.seeds) for config in configs for task in args.tasks]
    records = run_jobs(jobs, ROOT / "results" / "sweeps" / "curves.jsonl", args.workers)
    table = {config: {task: scores(records, config, task) for task in args.tasks} for config in configs}
    publish(args.name, vars(args), records, tasks={task: TASKS[task] for task in args.tasks}, table=table)
    draw = draw_tasks if len(configs) <= 8 else draw_configurations
    draw(table, PUBLISHED / f"{args.name}.png")
    print(as_markdown(table))


def job(config: str, task: str, seed: int) -> Job:
    env, steps, _, overrides = TASKS[task]
    budget = {"t_max": steps}
    if task in SMALL:
        often = steps // TESTS
        budget |= {"epsilon_anneal_time": steps // 4, "test_interval": often, "log_interval": often}
        budget |= {"runner_log_interval": often, "learner_log_interval": often}
    return Job(task, config, config, env, tuple(sorted((budget | overrides).items())), seed)


def scores(records: list[dict], config: str, task: str) -> dict:
    """The first and the last test of all runs, with intervals, and each run's curve."""
    metric = TASKS[task][2]
    runs = [record for record in records if (record["method"], record["group"]) == (config, task)]
    curves = [record["metrics"][metric] for record in runs if metric in record.get("metrics", {})]
    finite = all(
        np.isfinite(value) for record in runs for curve in record.get("metrics", {}).values() for _, value in curve
    )
    return {
        "first": summarise([curve[0][1] for curve in curves]),
        "last": summarise([curve[-1][1] for curve in curves] + [np.nan] * (len(runs) - len(curves))),
        "finite": finite,
        "curves": curves,
        "seconds": float(np.mean([record["seconds"] for record in runs])) if runs else float("nan"),
        "errors": [record["error"] for record in runs if "error" in record],
    }


def as_markdown(table: dict) -> str:
    tasks = list(next(iter(table.values())))
    lines = ["| configuration | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
    for config, row in table.items():
        cells = []
        for task in tasks:
            first, last = row[task]["first"], row[task]["last"]
            failed = f", {last['failed']} failed" if last["failed"] else ""
            strange = "" if row[task]["finite"] else ", not finite"
            span = f"[{last['low']:.2f}, {last['high']:.2f}]"
            cells.append(f"{first['iqm']:.2f} → {last['iqm']:.2f} {span}{failed}{strange}")
        lines.append(f"| `{config}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mean_curve(curves: list) -> np.ndarray:
    """Steps and values (2, tests): means over runs."""
    shortest = min((len(curve) for curve in curves), default=0)
    return np.mean([curve[:shortest] for curve in curves], axis=0).T if shortest else np.zeros((2, 0))


def thousands(curve: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return curve[0] / 1000, curve[1]


def draw_tasks(table: dict, path: Path) -> None:
    """A picture for each task: each configuration's mean, and each run in a thin line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(next(iter(table.values())))
    figure, axes = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 3.4), squeeze=False)
    for axis, task in zip(axes.flat, tasks, strict=True):
        for n, (config, row) in enumerate(table.items()):
            for curve in row[task]["curves"]:
                axis.plot(*thousands(np.array(curve).T), color=f"C{n}", linewidth=0.6, alpha=0.5)
            axis.plot(*thousands(mean_curve(row[task]["curves"])), color=f"C{n}", linewidth=2, label=config)
        axis.set(title=task, xlabel="thousand environment steps", ylabel=TASKS[task][2])
        axis.grid(alpha=0.3)
    axes.flat[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def draw_configurations(table: dict, path: Path) -> None:
    """A small picture for each configuration: its means, each task scaled to the best that any configuration saw."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(next(iter(table.values())))
    means = {config: {task: mean_curve(row[task]["curves"]) for task in tasks} for config, row in table.items()}
    span = {}
    for task in tasks:
        values = np.concatenate([row[task][1] for row in means.values()])
        span[task] = (values.min(initial=np.inf), values.max(initial=-np.inf))
    columns = 6
    rows = -(-len(table) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.3 * columns, 1.7 * rows), sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(table) :]:
        axis.axis("off")
    for axis, (config, row) in zip(axes.flat, means.items(), strict=False):
        axis.set_title(config, fontsize=9)
        for task, (steps, values) in row.items():
            low, high = span[task]
            axis.plot(steps / TASKS[task][1], (values - low) / max(high - low, 1e-9), label=task, linewidth=1.3)
        axis.set(xlim=(0, 1.05), ylim=(-0.05, 1.08))
        axis.tick_params(labelsize=7)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(tasks), fontsize=9, frameon=False)
    figure.supxlabel("share of the task's steps", fontsize=9, y=0.035)
    figure.supylabel("tests: 0 the worst, 1 the best of all configurations' means", fontsize=9)
    figure.tight_layout(rect=(0.01, 0.05, 1, 1))
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
