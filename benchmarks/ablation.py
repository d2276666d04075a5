"""Which parts of the method matter: greedy QMIX with one choice changed at a time, beside the baselines.

Writes ablation_ENV.json and ablation_ENV.png to results/published and prints the table as markdown. A run scores its
last test, or the mean of its last tests; scores are summed up by their interquartile mean over tasks and seeds, with
a 95% interval of the stratified bootstrap: seeds are drawn again within each task (Agarwal et al. 2021).

  python benchmarks/ablation.py --env greed_games --seeds 5
  python benchmarks/ablation.py --env smax --seeds 5
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import greed
import numpy as np
from jobs import PUBLISHED, ROOT, Job, positive, publish, run_jobs, summarise_tasks


@dataclass(frozen=True)
class Environment:
    tasks: dict[str, dict]  # name -> overrides
    metric: str
    tests: int  # the last ones whose mean is a run's score


HARD = {"decoy": 1.0, "handshake": 1.0, "bridge": 1.0, "mirage": 0.75, "redundant": 1.0, "replay": 0.1}  # and knob
ENVIRONMENTS = {
    "greed_games": Environment(
        tasks={f"{game} {knob:g}": greed.setting(game, knob) for game, knob in HARD.items()},
        metric="test_normalised_return_mean",
        tests=1,
    ),
    "smax": Environment(
        tasks={"3m": {"env_args.map_name": "3m", "t_max": 60000, "test_interval": 10000, "test_nepisode": 128}},
        metric="test_battle_won_mean",
        tests=3,
    ),
}

SEPARATE = {"heads.utilities": "separate", "mac": "gated_mac", "gate.acts_on": "none", "heads.act": "global"}
MEASURED = {"gate.metric": "realised", "gate.realised": "is", "gate.min_rows": 1, "gate.ema": 0.9}
STORED = {"behaviour.source": "stored"}
# choice -> option -> (config, overrides); the first of all is the preset that the others change.
CHOICES: dict[str, dict[str, tuple[str, dict]]] = {
    "algorithm": {
        "greedy_qmix": ("greedy_qmix", {}),
        "greedy_qmix_cert": ("greedy_qmix_cert", {}),
        "greedy_qmix_paper": ("greedy_qmix_paper", {}),
        "qmix": ("qmix", {}),
        "iql": ("iql", {}),
    },
    "gate": {
        "hard": ("greedy_qmix", {"gate.mode": "hard"}),
        "lagrange": ("greedy_qmix", {"gate.mode": "lagrange"}),
        "fixed 0.5": ("greedy_qmix", {"gate.mode": "fixed", "gate.weight_independent": 0.5}),
        "none": ("greedy_qmix", {"gate.mode": "none"}),
        "no prior": ("greedy_qmix", {"gate.prior_cooperative": 0.5}),
        "realised": ("greedy_qmix", MEASURED | STORED),
    },
    "regulariser": {
        "none": ("greedy_qmix", {"munchausen.source": "none"}),
        "direct KL": ("greedy_qmix", {"munchausen.alpha": 0.0, "munchausen.kl": 0.5}),
        "both": ("greedy_qmix", {"munchausen.kl": 0.5}),
    },
    "against": {
        "own policy": ("greedy_qmix", {"munchausen.source": "self"}),
        "others' policies": ("greedy_qmix", {"munchausen.source": "alt_utility", "munchausen.who": "others"}),
        "author's form": ("greedy_qmix", {"munchausen.who": "author"}),
        "soft bootstrap": ("greedy_qmix", {"munchausen.bootstrap": "soft"}),
    },
    "conservative": {
        "mixer only": ("greedy_qmix", {"conservative.alpha_independent": 0.0}),
        "agents only": ("greedy_qmix", {"conservative.alpha_cooperative": 0.0}),
        "nowhere": ("greedy_qmix", {"conservative.alpha_independent": 0.0, "conservative.alpha_cooperative": 0.0}),
        "alpha 0.5": ("greedy_qmix", {"conservative.alpha_independent": 0.5, "conservative.alpha_cooperative": 0.5}),
        "joint maximum": ("greedy_qmix", {"conservative.joint": "max", "conservative.op": "max"}),
    },
    "behaviour": {
        "stored": ("greedy_qmix", STORED),
        "cloned": ("greedy_qmix", {"behaviour.source": "bc_rnn"}),
    },
    "utilities": {
        "separate": ("greedy_qmix", SEPARATE),
        "separate, realised": ("greedy_qmix", SEPARATE | MEASURED | STORED | {"gate.mode": "hard"}),
        "separate, per agent": ("greedy_qmix", SEPARATE | MEASURED | STORED | {"heads.act": "agent"}),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="greed_games", choices=list(ENVIRONMENTS))
    parser.add_argument("--seeds", type=positive, default=5, help="number of seeds")
    parser.add_argument("--workers", type=positive, default=2, help="processes, of one thread each")
    parser.add_argument("--choices", nargs="+", default=list(CHOICES), choices=list(CHOICES))
    args = parser.parse_args()

    environment = ENVIRONMENTS[args.env]
    jobs = [
        Job(f"{task} {seed}", name, config, args.env, tuple(sorted((changes | environment.tasks[task]).items())), seed)
        for seed in range(args.seeds)
        for name, config, changes in variants(args.choices)
        for task in environment.tasks
    ]
    records = run_jobs(jobs, ROOT / "results" / "sweeps" / f"ablation_{args.env}.jsonl", args.workers)
    table = {}
    for choice in args.choices:
        for option in CHOICES[choice]:
            runs = [r for r in records if r["method"] == f"{choice}: {option}"]
            by_task = {task: [r for r in runs if r["group"].rpartition(" ")[0] == task] for task in environment.tasks}
            table[f"{choice}: {option}"] = summarise_tasks(
                {task: [score(r, environment) for r in found] for task, found in by_task.items()}
            )
    settings = vars(args) | {"tasks": environment.tasks, "metric": environment.metric, "tests": environment.tests}
    publish(f"ablation_{args.env}", settings, records, table=table)
    draw(table, environment.metric, f"{args.env}, {args.seeds} seeds", PUBLISHED / f"ablation_{args.env}.png")
    print(as_markdown(table, environment.metric))


def variants(choices: list[str]) -> Iterator[tuple[str, str, dict]]:
    for choice in choices:
        for option, (config, changes) in CHOICES[choice].items():
            yield f"{choice}: {option}", config, changes


def score(record: dict, environment: Environment) -> float:
    curve = record.get("metrics", {}).get(environment.metric, [])
    return float(np.mean([value for _, value in curve[-environment.tests :]])) if curve else float("nan")


def draw(table: dict, metric: str, title: str, path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 0.28 * len(table) + 1.2), layout="constrained")
    names = list(table)[::-1]
    choices = list(dict.fromkeys(name.split(":")[0] for name in table))
    for row, name in enumerate(names):
        found = table[name]
        colour = f"C{choices.index(name.split(':')[0])}"
        axis.plot([found["low"], found["high"]], [row, row], color=colour, lw=4, alpha=0.4)
        axis.plot(found["iqm"], row, "o", color=colour)
    if "algorithm: greedy_qmix" in table:
        axis.axvline(table["algorithm: greedy_qmix"]["iqm"], color="grey", ls=":")
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel=f"{metric} (interquartile mean, 95% interval)")
    axis.set_title(f"One choice of greedy_qmix changed: {title}", fontsize=10)
    axis.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=110)


def as_markdown(table: dict, metric: str) -> str:
    tasks = list(next(iter(table.values()))["tasks"])
    columns = tasks if len(tasks) > 1 else []
    head = ["choice", "option", metric, "95% interval", *columns]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, found in table.items():
        choice, option = name.split(": ")
        failed = f" ({found['failed']} failed)" if found["failed"] else ""
        interval = f"[{found['low']:.2f}, {found['high']:.2f}]{failed}"
        means = [f"{found['tasks'].get(task, float('nan')):.2f}" for task in columns]
        cells = [choice, option, f"{found['iqm']:.2f}", interval, *means]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
