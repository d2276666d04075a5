"""When to ignore cooperation: every method on every greed game, over the game's knob.

In each game it is known which head errs at which setting (`envs.greed_games_solver`). Draws, for each game: the
normalised return (0 uniform play, 1 optimal), the independent head's weight beside the truth, and both heads' gaps.
Writes NAME.json and NAME.png to results/published and prints the table as markdown.

  python benchmarks/greed.py --seeds 10
"""

import argparse
import itertools
import math
from pathlib import Path

from jobs import (
    PUBLISHED,
    ROOT,
    Job,
    add_overrides,
    add_sources,
    last,
    positive,
    publish,
    read_overrides,
    run_jobs,
    summarise,
)

add_sources()

from envs import greed_games
from envs import greed_games_solver as solver

KNOBS = {  # settings of the knob: lambda of the data in replay, kappa elsewhere
    "decoy": (0.0, 0.9, 1.0),
    "handshake": (0.0, 0.6, 1.0),
    "bridge": (0.0, 0.5, 1.0),
    "mirage": (0.25, 0.5, 0.75),
    "redundant": (0.0, 0.5, 1.0),
    "replay": (0.1, 0.2, 1.0),
    "stag": (0.5, 1.0),
}
AGENTS = {"bridge": 3}  # beyond the games' own numbers: with 3 agents IQL leaves B early
METHODS: dict[str, tuple[str, dict]] = {
    "iql": ("iql", {}),
    "qmix": ("qmix", {}),
    "greedy_qmix": ("greedy_qmix", {}),
    "greedy_qmix_cert": ("greedy_qmix_cert", {}),
}
METHODS |= {  # the controls: what constant weights of the independent head do
    f"fixed {w:g}": ("greedy_qmix", {"gate.mode": "fixed", "gate.weight_independent": w})
    for w in (0.0, 0.5, 0.7, 0.9, 1.0)
}
# A falling step size for all: the greedy actions of values that keep moving flicker where values are close.
SETTINGS = {"t_max": 6400, "test_interval": 6400, "log_interval": 6400, "lr_finish": 0.00001}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="greed_games", help="of the files in results/published")
    parser.add_argument("--games", nargs="+", default=list(KNOBS), choices=list(KNOBS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=positive, default=10, help="number of seeds")
    parser.add_argument("--control-seeds", type=positive, default=5, help="number of seeds of the constant weights")
    parser.add_argument("--workers", type=positive, default=2, help="processes, of one thread each")
    data = "what is learned from: uniform joint actions, or the learner's own, epsilon-greedy at .3"
    parser.add_argument("--data", choices=("uniform", "own"), default="uniform", help=data)
    add_overrides(parser)
    args = parser.parse_args()

    extra = read_overrides(args.overrides)
    jobs = []
    for game, method in itertools.product(args.games, args.methods):
        seeds = args.control_seeds if method.startswith("fixed") else args.seeds
        for knob, seed in itertools.product(KNOBS[game], range(seeds)):
            chosen = overrides(game, knob, method, args.data, extra)
            jobs.append(Job(f"{game} {knob:g}", method, METHODS[method][0], "greed_games", chosen, seed))
    jobs.sort(key=lambda job: job.seed)  # so that a sweep that is stopped has all settings for some seeds
    records = run_jobs(jobs, ROOT / "results" / "sweeps" / f"{args.name}.jsonl", args.workers)
    table = {
        game: {f"{knob:g}": summary(game, knob, args.methods, records) for knob in KNOBS[game]} for game in args.games
    }
    publish(args.name, vars(args) | {"run": SETTINGS}, records, table=table)
    draw(table, args.methods, PUBLISHED / f"{args.name}.png")
    print(as_markdown(table, args.methods))


def setting(game: str, knob: float) -> dict:
    """The keys of a game whose knob is set."""
    chosen: dict = {"env_args.game": game, "env_args.kappa": knob, **SETTINGS}
    if game in AGENTS:
        chosen["env_args.n_agents"] = AGENTS[game]
    if game == "replay":
        chosen |= {"env_args.kappa": None, "action_selector": "one_at_a_time"}
        chosen |= {"epsilon_start": knob, "epsilon_finish": knob}
    return chosen


def overrides(game: str, knob: float, method: str, data: str, extra: dict) -> tuple:
    chosen = setting(game, knob)
    if data == "own" and game != "replay":
        chosen |= {"epsilon_start": 0.3, "epsilon_finish": 0.3, "buffer_size": 512}
    chosen |= METHODS[method][1] | extra
    return tuple(sorted(chosen.items()))


def truth(game: str, knob: float) -> dict:
    """Which head's greedy play earns more, and what both earn, by the exact solver."""
    made = greed_games.make_game(game, None if game == "replay" else knob, AGENTS.get(game))
    data = solver.replay_mixture(made.n_agents, knob) if game == "replay" else solver.uniform(made.action_counts)
    solution = solver.solve(made, data)
    span = solution.optimum - solution.uniform_return
    return {
        "better": solution.better,
        **{name: (getattr(solution, name).episode_return - solution.uniform_return) / span for name in ("iql", "qmix")},
    }


def summary(game: str, knob: float, methods: list[str], records: list[dict]) -> dict:
    rows = {}
    for method in methods:
        runs = [r for r in records if r["group"] == f"{game} {knob:g}" and r["method"] == method]
        rows[method] = {
            "normalised_return": summarise([last(r, "test_normalised_return_mean") for r in runs]),
            **{
                name: summarise([last(r, name) for r in runs])
                for name in (
                    "gate_weight_independent",
                    "gap_independent",
                    "gap_cooperative",
                    "value_independent",
                    "value_cooperative",
                    "excess_independent",
                    "excess_cooperative",
                )
                if any(math.isfinite(last(r, name)) for r in runs)
            },
        }
    return {"truth": truth(game, knob), "methods": rows}


def draw(table: dict, methods: list[str], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, len(table), figsize=(3.2 * len(table), 8.5), squeeze=False, layout="constrained")
    colours = {method: f"C{i % 10}" for i, method in enumerate(methods)}
    for column, (game, settings) in enumerate(table.items()):
        knobs = [float(knob) for knob in settings]
        returns, weights, gaps = axes[:, column]
        for method in methods:
            style = {"color": colours[method], "label": method, "marker": "o", "ms": 3}
            style |= {"ls": ":", "lw": 1} if method.startswith("fixed") else {}
            _line(returns, knobs, [s["methods"][method]["normalised_return"] for s in settings.values()], style)
            if method.startswith("greedy"):
                found = [s["methods"][method] for s in settings.values()]
                _line(weights, knobs, [f["gate_weight_independent"] for f in found], style)
                for head, dash in (("independent", "-"), ("cooperative", "--")):
                    _line(gaps, knobs, [f[f"gap_{head}"] for f in found], style | {"ls": dash, "label": None})
        better = [s["truth"]["better"] for s in settings.values()]
        wanted = [{"independent": 1.0, "cooperative": 0.0}.get(b, 0.5) for b in better]
        weights.plot(knobs, wanted, "k*", ms=10, label="better head (0.5: tie)")
        weights.set_ylim(-0.05, 1.05)
        returns.set(title=game)
        gaps.set(xlabel="lambda" if game == "replay" else "kappa")
    labels = ("normalised return", "weight of the independent head", "gap (-- cooperative)")
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    star = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles + star[0][-1:], labels + star[1][-1:], loc="outside lower center", ncols=6, fontsize=8)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _line(axis, knobs: list[float], found: list[dict], style: dict) -> None:
    axis.plot(knobs, [f["iqm"] for f in found], **style)
    axis.fill_between(knobs, [f["low"] for f in found], [f["high"] for f in found], color=style["color"], alpha=0.12)


def as_markdown(table: dict, methods: list[str]) -> str:
    """Interquartile means of the normalised return with 95% bootstrap intervals."""
    lines = ["| game | knob | better head | " + " | ".join(methods) + " |", "|---" * (3 + len(methods)) + "|"]
    for game, settings in table.items():
        for knob, found in settings.items():
            cells = []
            for method in methods:
                s = found["methods"][method]["normalised_return"]
                spread = "" if s["high"] - s["low"] < 0.005 else f" [{s['low']:.2f}, {s['high']:.2f}]"
                cells.append(f"{s['iqm']:.2f}{spread}" + (f" ({s['failed']} failed)" if s["failed"] else ""))
            lines.append(f"| {game} | {knob} | {found['truth']['better']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
