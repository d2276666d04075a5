"""The method's open questions that small games can decide, each a table of interquartile means with 95% intervals.

  e2  does a joint penalty press values below the return as agents are added, and a counterfactual one not?
  e3  do slower alternatives keep the greedy actions of the heads from changing all the time?
  e4  do values that are compared with TD targets, importance-weighted returns and rollouts over-estimate alike?
  e5  does a mixer that sees noise in the state fail where agents without it do not?
  e6  what is an agent's own reward worth to the independent head, as rewards become noisier?
  e6_foraging  and on level-based foraging, where either agent may collect the food alone if it is strong enough?
  e7  do gates help actor-critics?
  e8  does a wider mixer escape DECOY?
  e9  does a mixer that can be concave mend REDUNDANT?

Writes questions.json to results/published, where tables of other questions stay, and prints the tables as markdown.

  python benchmarks/questions.py --questions e8 e9 --seeds 10
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass

from greed import SETTINGS
from jobs import PUBLISHED, ROOT, Job, described, last, positive, run_jobs, summarise, write

RETURN = "test_normalised_return_mean"


@dataclass(frozen=True)
class Question:
    variants: dict[str, tuple[str, dict]]  # name -> (config, overrides)
    measures: dict[str, Callable[[dict], float]]  # column -> value of a record
    env: str = "greed_games"


def game(name: str, kappa: float | None = 1.0, **more) -> dict:
    chosen = {"env_args.game": name, "env_args.kappa": kappa, **SETTINGS}
    return chosen | {key.replace("__", "."): value for key, value in more.items()}


def logged(name: str) -> Callable[[dict], float]:
    return lambda record: last(record, name)


def _over_return(record: dict) -> float:
    """The cooperative head's greedy value above what its greedy play earns."""
    return last(record, "value_cooperative") - last(record, "test_expected_return_mean")


def _late_return(record: dict) -> float:
    """The mean return of the last three tests."""
    curve = record.get("metrics", {}).get("test_return_mean", [])
    return sum(value for _, value in curve[-3:]) / 3 if len(curve) >= 3 else float("nan")


def _questions() -> dict[str, Question]:
    plain = {"munchausen.source": "none", "gate.mode": "fixed", "gate.weight_independent": 0.0}
    forms = {
        "cf": {"conservative.joint": "cf", "conservative.op": "max"},
        "joint": {"conservative.joint": "max", "conservative.op": "max"},
    }
    e2 = {}
    for n in (2, 3, 5):
        for alpha in (0.02, 0.1, 0.5):
            for form, changes in forms.items():
                weight = {"conservative.alpha_cooperative": alpha}
                separable = game("replay", None, env_args__n_agents=n)
                e2[f"{n} agents, alpha {alpha:g}, {form}"] = ("greedy_qmix", plain | changes | weight | separable)
    alternative = {
        f"{name}, rate {ema:g}": ("greedy_qmix", game(name, munchausen__alternative_ema=ema, munchausen__alpha=0.9))
        for name in ("decoy", "bridge")
        for ema in (1.0, 0.1, 0.01)
    }
    measured = {
        f"{name}, {realised}": (
            "greedy_qmix_cert",
            game(name, kappa, gate__realised=realised, gate__rollout_interval=640),
        )
        for name, kappa in (("decoy", 1.0), ("redundant", 1.0), ("bridge", 1.0))
        for realised in ("match", "is", "rollout")
    }
    noisy_state = {
        f"{method}, {dims} dimensions": (method, game("decoy", 0.5, env_args__noise_dims=dims, hypernet_layers=2))
        for method in ("iql", "qmix", "greedy_qmix", "greedy_qmix_cert")
        for dims in (0, 8, 32)
    }
    own_reward = {
        f"{reward} reward, noise {noise:g}": (
            "greedy_qmix",
            game(
                "replay",
                None,
                env_args__n_agents=5,
                env_args__reward_noise=noise,
                env_args__rewards="individual",
                heads__reward_independent=reward,
                gate__mode="fixed",
                gate__weight_independent=1.0,
            ),
        )
        for noise in (0.0, 20.0, 60.0)
        for reward in ("team", "individual")
    }
    foraging = {
        f"{reward} reward": (
            "greedy_qmix",
            {
                "env_args.key": "lbforaging:Foraging-5x5-2p-2f-v3",
                "env_args.time_limit": 25,
                "heads.reward_independent": reward,
                "gate.mode": "fixed",
                "gate.weight_independent": 1.0,
                "epsilon_anneal_time": 50_000,
                "t_max": 150_000,
                "log_interval": 50_000,
            },
        )
        for reward in ("team", "individual")
    }
    gates = {name: {"gate__mode": name} for name in ("direct", "lagrange")}
    gates |= {f"fixed {w:g}": {"gate__mode": "fixed", "gate__weight_independent": w} for w in (0.0, 0.5, 1.0)}
    actors = {  # they learn from their own play
        f"{config}, {name}, {gate}": (
            config,
            game(name, kappa, **changes, lr=0.0025, critic_lr=0.0025, epsilon_anneal_time=4000, t_max=8000),
        )
        for config in ("greedy_lica", "greedy_maddpg")
        for name, kappa in (("decoy", 1.0), ("handshake", 1.0), ("replay", None))
        for gate, changes in gates.items()
    }
    width = {f"{e} units": ("qmix", game("decoy", mixing_embed_dim=e)) for e in (8, 32, 64)}
    concave = {
        f"{name}, {mixer}": ("qmix", game(name, mixer=mixer))
        for name in ("redundant", "bridge")
        for mixer in ("qmix", "qmix_concave")
    }
    returns = {"normalised return": logged(RETURN)}
    excess = {f"{head} head's excess": logged(f"excess_{head}") for head in ("independent", "cooperative")}
    return {
        "e2": Question(e2, {"value - return": _over_return, **returns}),
        "e3": Question(alternative, {"greedy actions that changed": logged("greedy_change"), **returns}),
        "e4": Question(measured, excess | returns),
        "e5": Question(noisy_state, returns),
        "e6": Question(own_reward, returns),
        "e6_foraging": Question(foraging, {"return, last three tests": _late_return}, "gymma"),
        "e7": Question(actors, {**returns, "weight of the independent critic": logged("gate_weight_independent")}),
        "e8": Question(width, returns),
        "e9": Question(concave, returns),
    }


def main() -> None:
    questions = _questions()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", nargs="+", default=list(questions), choices=list(questions))
    parser.add_argument("--seeds", type=positive, default=10, help="number of seeds")
    parser.add_argument("--workers", type=positive, default=2, help="processes, of one thread each")
    args = parser.parse_args()

    jobs = [
        Job(question, name, config, questions[question].env, tuple(sorted(changes.items())), seed)
        for question in args.questions
        for name, (config, changes) in questions[question].variants.items()
        for seed in range(args.seeds)
    ]
    records = run_jobs(jobs, ROOT / "results" / "sweeps" / "questions.jsonl", args.workers)
    file = PUBLISHED / "questions.json"
    tables = json.loads(file.read_text()) if file.exists() else {}
    for question in args.questions:
        rows, measures = {}, questions[question].measures
        asked = [record for record in records if record["group"] == question]
        for name in questions[question].variants:
            runs = [record for record in asked if record["method"] == name]
            rows[name] = {column: summarise([measure(r) for r in runs]) for column, measure in measures.items()}
        tables[question] = described({"seeds": args.seeds, "run": SETTINGS}, asked, table=rows)
        print(as_markdown(question, rows))
    write("questions", tables)


def as_markdown(question: str, rows: dict) -> str:
    columns = list(next(iter(rows.values())))
    lines = [f"| {question} | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for name, found in rows.items():
        cells = []
        for column in columns:
            s = found[column]
            failed = f" ({s['failed']} failed)" if s["failed"] else ""
            cells.append(f"{s['iqm']:.2f} [{s['low']:.2f}, {s['high']:.2f}]{failed}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
