"""Environment steps per second of whole runs, learning included, here and in other code bases.

  python benchmarks/end_to_end.py
  python benchmarks/end_to_end.py --tasks foraging --peer epymarl=../epymarl
  python benchmarks/end_to_end.py --tasks smax --peer jaxmarl=../JaxMARL --peer-python jaxmarl=../venv/bin/python

Each task states how often it updates and what an update trains on, which all code bases keep; both are also measured. A
peer is a checkout: EPyMARL plays foraging from a copy of its sources, JaxMARL's QMIX (baselines/QLearning/qmix_rnn.py)
plays SMAX in a Python that has flashbax. Code bases take turns, so that all see the same machine, and what counts are
ratios. The speed is taken between lines of statistics while the run learns, so neither start-up, compilation nor the
collection of the first batch enters it. The limit is what the environment alone takes, and the updates' matrix products
at the speed of large ones with as many torch threads as the run has. Writes NAME.json to results/published.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from jobs import ROOT, Peer, add_peers, ask_fresh, experiment, failure, positive, publish, read_peers

INTERVAL = 1000  # environment steps between lines of statistics
QUIET = {"test_interval": 10**9, "test_nepisode": 1, "log_interval": INTERVAL}
QUIET |= {"runner_log_interval": INTERVAL, "learner_log_interval": INTERVAL}
PLAIN = {"batch_size": 32, "buffer_size": 5000, "epsilon_anneal_time": 50000}
RECURRENT = {"agent": "rnn", "rnn_hidden_dim": 64, "lr": 0.0005, "optim_eps": 0.00001}
GYMMA = {"env_args.key": "lbforaging:Foraging-8x8-2p-2f-coop-v3", "env_args.time_limit": 50}
# Networks, inputs and exploration of JaxMARL's QMIX. Battles of nearly uniform play take 17.75 steps on average: 229
# of them hold as many as 32 rows of 128 steps, the last of which has no target, and .0693 updates of each are 8 of
# 2,048 steps.
BATTLES = PLAIN | RECURRENT | {"env_args.map_name": "3m", "batch_size_run": 16, "updates_per_episode": 0.0693}
BATTLES |= {"obs_last_action": False, "mixing_embed_dim": 32, "hypernet_embed": 256, "epsilon_anneal_time": 10**6}
JAXMARL = {"MAP_NAME": "3m", "HIDDEN_SIZE": 64, "MIXER_EMBEDDING_DIM": 32, "TEST_DURING_TRAINING": False}
JAXMARL_ROWS = 32  # of 128 steps from each of 16 environments, before it begins to learn
# What JaxMARL's script imports and this measurement does not need. Its statistics become lines with the time.
STUBS = {
    "hydra.py": "def main(**_):\n    return lambda function: function\n",
    "omegaconf.py": "class OmegaConf:\n    to_yaml = staticmethod(str)\n",
    "wandb.py": (
        "import json, time\n\ndef init(**_):\n    pass\n\ndef log(found):\n    print(json.dumps("
        '{"step": int(found["env_step"]), "updates": int(found["grad_steps"]), "time": time.time()}), flush=True)\n'
    ),
}


@dataclass(frozen=True)
class Task:
    what: str
    env: str  # environment file
    keys: dict  # here
    peers: dict[str, dict]  # and there
    after: int  # environment steps that are not counted
    steps: int  # that are


TASKS = {
    "foraging": Task(
        "QMIX with a GRU of 64 units, one update of 32 episodes for every episode of up to 50 steps",
        "gymma",
        PLAIN | RECURRENT | GYMMA | {"batch_size_run": 8, "overlap": True, "updates_per_episode": 1.0},
        {"epymarl": GYMMA | PLAIN | {"hidden_dim": 64, "use_rnn": True, "lr": 0.0005}},
        after=4000,
        steps=24000,
    ),
    "smax": Task(
        "QMIX with a GRU of 64 units on 3m, 16 battles at a time, 8 updates of 4,064 transitions (229 battles, or 32 "
        "rows of 128 steps) for every 2,048 steps",
        "smax",
        BATTLES | {"batch_size": 229},
        {"jaxmarl": JAXMARL},
        after=10000,
        steps=40000,
    ),
    "smax_32": Task(
        "the same with 32 battles in an update, a seventh of that",
        "smax",
        BATTLES,
        {},
        after=10000,
        steps=40000,
    ),
    "smax_32_overlap": Task(
        "the same, collected in a process of its own",
        "smax",
        BATTLES | {"overlap": True},
        {},
        after=10000,
        steps=40000,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="end_to_end", help="of the file in results/published")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--configs", nargs="+", default=["qmix"], help="algorithms here; peers run qmix")
    add_peers(parser)
    parser.add_argument("--steps", type=positive, help="environment steps that are counted; the task's by default")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(limit(**json.loads(args.worker))))
        return
    peers = read_peers(args)
    table: dict[str, dict] = {}
    for name in args.tasks:
        task = TASKS[name]
        steps = args.steps or task.steps
        runs = {config: (Peer(ROOT, sys.executable), config, task.keys) for config in args.configs}
        runs |= {name: (peers[name], "qmix", keys) for name, keys in task.peers.items() if name in peers}
        rounds: dict[str, list[dict]] = {name: [] for name in runs}
        for n in range(args.rounds):
            for run, (where, config, keys) in runs.items():
                if run == "jaxmarl":
                    found = measure_jaxmarl(where, keys, steps, n + 1, args.device)
                else:
                    seeded = keys | {"seed": n + 1, "use_cuda": args.device == "cuda"}
                    found = measure(where, config, task.env, seeded, task.after, steps)
                rounds[run].append(found)
                print(f"{name} {run}: {found}", flush=True)
        what = {"env": task.env, "keys": task.keys, "device": args.device}
        limits = {config: ask_fresh(__file__, what | {"config": config}) for config in args.configs}
        table[name] = {"what": task.what, "rounds": rounds, "limits": limits}
        print(as_text(name, **table[name]), flush=True)
    publish(args.name, vars(args), table=table)


def measure(base: Peer, config: str, env: str, keys: dict, after: int, steps: int) -> dict:
    """Steps per second of one run here or of EPyMARL's, its seconds to the first line of statistics, and its pace."""
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        if base.path != ROOT:
            shutil.copytree(base.path / "src", where / "src")
            (where / "smaclite.py").touch()  # EPyMARL imports it whatever the environment is
        keys = QUIET | keys | {"t_max": after + steps}
        if base.path == ROOT:
            keys |= {"local_results_path": str(where / "results")}
        command = [base.python, "src/main.py", f"--config={config}", f"--env-config={env}", "with"]
        command += [f"{key}={value}" for key, value in keys.items()]
        started = datetime.now().timestamp()
        done = subprocess.run(
            command,
            cwd=ROOT if base.path == ROOT else where,
            env=os.environ | {"PYTHONPATH": str(where)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return failure(done)
        (file,) = where.glob("results/sacred/**/metrics.json")
        found = json.loads(file.read_text())
    counted = found.get("updates", found["episode"])  # EPyMARL makes an update for each episode
    times = [datetime.fromisoformat(stamp + "+00:00").timestamp() for stamp in counted["timestamps"]]
    lines = list(zip(counted["steps"], counted["values"], times, strict=True))
    episodes = [
        n
        for n, t in zip(found["ep_length_mean"]["values"], found["ep_length_mean"]["steps"], strict=True)
        if t >= after
    ]
    trained = keys["batch_size"] * float(np.mean(episodes))
    return pace([line for line in lines if line[0] >= after], trained) | {"start_seconds": times[0] - started}


def measure_jaxmarl(peer: Peer, keys: dict, steps: int, seed: int, device: str) -> dict:
    """The same of JaxMARL's QMIX, from its first updates on. All is compiled before it begins to play."""
    import yaml

    folder = peer.path / "baselines/QLearning"
    values = yaml.safe_load((folder / "config/config.yaml").read_text())
    learner = yaml.safe_load((folder / "config/alg/ql_rnn_smax.yaml").read_text())
    total = (JAXMARL_ROWS + 1) * learner["NUM_STEPS"] * learner["NUM_ENVS"] + steps
    decay = learner["EPS_DECAY"] * float(learner["TOTAL_TIMESTEPS"]) / total  # as slow as in a run of its own length
    values["alg"] = learner | keys | {"TOTAL_TIMESTEPS": total, "EPS_DECAY": decay}
    values |= {"SEED": seed, "WANDB_MODE": "offline", "SAVE_PATH": None}
    with tempfile.TemporaryDirectory() as stubs:
        for name, text in STUBS.items():
            (Path(stubs) / name).write_text(text)
        started = datetime.now().timestamp()
        done = subprocess.run(
            [
                peer.python,
                "-c",
                "import json, sys, qmix_rnn; qmix_rnn.single_run(json.loads(sys.argv[1]))",
                json.dumps(values),
            ],
            cwd=stubs,
            env=os.environ
            | {"PYTHONPATH": f"{stubs}:{peer.path}:{folder}"}
            | ({"JAX_PLATFORMS": "cpu"} if device == "cpu" else {}),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        return failure(done)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"step"')]
    counted = [(line["step"], line["updates"], line["time"]) for line in lines if line["updates"]]
    trained = learner["BUFFER_BATCH_SIZE"] * (learner["NUM_STEPS"] - 1)
    return pace(counted, trained) | {"start_seconds": lines[0]["time"] - started}


def pace(lines: list[tuple[int, float, float]], trained: float) -> dict:
    """Of lines of (environment steps, updates, time), and what an update trains on."""
    (steps0, updates0, time0), (steps1, updates1, time1) = lines[0], lines[-1]
    return {
        "steps_per_second": (steps1 - steps0) / (time1 - time0),
        "steps_per_update": (steps1 - steps0) / (updates1 - updates0),
        "transitions_per_update": trained,
        "steps": steps1 - steps0,
    }


def as_text(name: str, what: str, rounds: dict[str, list[dict]], limits: dict[str, dict]) -> str:
    head = ["steps/s", "of this", "steps / update", "transitions / update", "of the limit"]
    lines = [f"{name}: {what}", f"{'':<16}" + "".join(f"{text:>24}" for text in head)]
    first = next(iter(rounds.values()))
    for run, found in rounds.items():
        errors = [one["error"] for one in [*found, *first, limits.get(run, {})] if "error" in one]
        if errors:
            lines.append(f"{run:<16}  {errors[0]}")
            continue
        speeds = np.array([one["steps_per_second"] for one in found])
        ratios = np.array([one["steps_per_second"] for one in first]) / speeds
        cells = [f"{np.median(speeds):,.0f}", f"1 / {np.median(ratios):.2f} [{ratios.min():.2f}, {ratios.max():.2f}]"]
        for key in ("steps_per_update", "transitions_per_update"):
            cells.append(f"{np.median([one[key] for one in found]):,.0f}")
        if run in limits:
            at_most = 1 / (limits[run]["env_seconds"] + limits[run]["update_seconds"] / found[0]["steps_per_update"])
            cells.append(f"{np.median(speeds) / at_most:.0%}")
        lines.append(f"{run:<16}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines) + "\n"


# --- in a process of its own


def limit(config: str, env: str, keys: dict, device: str) -> dict[str, float]:
    """Seconds of the environment in a step, and of an update's matrix products at the speed of large ones."""
    with experiment(config, env, keys | {"use_cuda": device == "cuda", "seed": 1, "overlap": False}) as built:
        from limits import count, matrix_peak
        from rollout import Clock

        built.runner.run()  # the first compiles
        clock, first = Clock([(built.runner.env, "step")], device), built.runner.t_env
        while not built.buffer.can_sample(built.args.batch_size):
            built.buffer.insert_episode_batch(built.runner.run())
        env_seconds = clock.total / (built.runner.t_env - first)
        flops, _ = count(lambda: built.learner.train(built.buffer.sample(built.args.batch_size), first, 1))
        return {"env_seconds": env_seconds, "update_seconds": flops / matrix_peak(device)}


if __name__ == "__main__":
    main()
