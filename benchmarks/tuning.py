"""The same grid of step sizes and target rates for several algorithms, before they are compared.

Every algorithm gets as many trials, on seeds that the comparison does not use. Its best setting is the one with the
largest mean of its last three tests, over seeds. Writes NAME.json to results/published, and prints the table with the
best in bold.

  python benchmarks/tuning.py
  python benchmarks/tuning.py --name stags --configs qmix dcg --env-config stag_hunt --metric test_return_mean
"""

import argparse
import itertools
import sys

import numpy as np
from jobs import ROOT, Job, add_overrides, algorithms, positive, publish, read_overrides, run_jobs

GRID = {"lr": (0.0005, 0.001), "target_update_tau": (0.01, 0.03)}
SAME = {"optimizer": "adam", "lr_finish": 0.00001, "target_update_interval": None}  # as greedy_qmix has them
# name -> configuration and what makes it another algorithm
ALGORITHMS = {
    "iql": ("iql", {}),
    "vdn": ("vdn", {}),
    "qmix": ("qmix", {}),
    "greedy_qmix": ("greedy_qmix", {}),
    "greedy_qmix lagrange": ("greedy_qmix", {"gate.mode": "lagrange"}),
}
TESTS = 3  # the last ones, which are the score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="tuning", help="of the file in results/published")
    known = [*ALGORITHMS, *(name for name in algorithms() if name not in ALGORITHMS)]
    parser.add_argument(
        "--configs",
        nargs="+",
        choices=known,
        default=list(ALGORITHMS),
        metavar="ALG",
        help="of src/config/algs, or 'greedy_qmix lagrange'",
    )
    parser.add_argument("--env-config", default="smax")
    parser.add_argument("--metric", default="test_battle_won_mean")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101], help="not those of the comparison")
    parser.add_argument("--workers", type=positive, default=2)
    add_overrides(parser, ["env_args.map_name=3m", "t_max=100000", "test_interval=10000", "epsilon_anneal_time=50000"])
    args = parser.parse_args()
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        sys.exit(f"error: --seeds {' '.join(map(str, args.seeds))}: give different whole numbers from 0 on")
    given = read_overrides(args.overrides)
    for key in GRID.keys() & given.keys():
        sys.exit(f"error: --with {key}={given[key]}: {key} is what is tuned; leave it out")
    common = SAME | given
    settings = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    chosen = {name: ALGORITHMS.get(name, (name, {})) for name in args.configs}
    jobs = [
        Job(args.name, name, config, args.env_config, tuple(sorted((common | own | setting).items())), seed)
        for seed in args.seeds
        for name, (config, own) in chosen.items()
        for setting in settings
    ]
    records = run_jobs(jobs, ROOT / "results" / "sweeps" / "tuning.jsonl", args.workers)
    logged = {name for record in records for name in record.get("metrics", {})}
    if logged and args.metric not in logged:
        sys.exit(f"error: --metric={args.metric} was not logged; logged: {', '.join(sorted(logged))}")
    table = {name: [] for name in chosen}
    for name, setting in itertools.product(chosen, settings):
        mine = [r for r in records if r["method"] == name and setting.items() <= dict(r["overrides"]).items()]
        scores = [_score(record, args.metric) for record in mine]
        table[name].append({"setting": setting, "score": float(np.mean(scores)), "scores": scores})
    publish(args.name, vars(args), records, same=common, table=table)
    print(as_markdown(table))


def as_markdown(table: dict) -> str:
    first = next(iter(table.values()))
    heads = [" ".join(f"{key}={value:g}" for key, value in row["setting"].items()) for row in first]
    lines = ["| algorithm | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, rows in table.items():
        best = np.nanargmax([row["score"] for row in rows])
        cells = [f"**{row['score']:.2f}**" if n == best else f"{row['score']:.2f}" for n, row in enumerate(rows)]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _score(record: dict, metric: str) -> float:
    """The mean of a run's last tests; the worst there is if it failed."""
    curve = record.get("metrics", {}).get(metric, [])
    return float(np.mean([value for _, value in curve[-TESTS:]])) if curve else -np.inf


if __name__ == "__main__":
    main()
