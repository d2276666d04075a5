"""Environment steps per second of acting without learning: environments, runners, and how many play side by side.

  python benchmarks/rollout.py
  python benchmarks/rollout.py --envs smax --runners vector --counts 16 1024 --device cuda

All play uniformly, so that episodes are alike: "uniform" without any network, "network" with QMIX's default agent (a
GRU of 64 units), which is computed although its values are not followed. Shares are of the time with the network: "env"
is spent in the environment (under the parallel runner, waiting for its processes), "agents" choosing actions, the rest
on writing episodes down. The limit is what the environment takes and what the agents' matrix products would take at the
speed of large ones; "launches" is what torch's operations would take if none computed anything. Writes NAME.json to
results/published.
"""

import argparse
import os
import time

import numpy as np
from jobs import experiment, positive, publish

ENVIRONMENTS: dict[str, dict] = {  # environment file -> its keys
    "matrix_games": {},
    "greed_games": {},
    "stag_hunt": {},
    "smax": {"env_args.map_name": "3m"},
    "gymma": {"env_args.key": "lbforaging:Foraging-8x8-2p-2f-coop-v3"},
}
RUNNERS = ("vector", "parallel", "episode")
AGENT = {"agent": "rnn", "rnn_hidden_dim": 64, "epsilon_start": 1.0, "epsilon_finish": 1.0}
HEAD = ("", "uniform/s", "network/s", "env", "agents", "rest", "of the limit", "launches")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="rollout", help="of the file in results/published")
    parser.add_argument("--envs", nargs="+", choices=list(ENVIRONMENTS), default=list(ENVIRONMENTS))
    parser.add_argument("--runners", nargs="+", choices=RUNNERS, default=list(RUNNERS))
    parser.add_argument("--counts", nargs="+", type=positive, default=[4**n for n in range(6)], help="environments")
    parser.add_argument(
        "--processes", type=positive, default=2 * (os.cpu_count() or 1), help="most of the parallel runner"
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement, at least")
    parser.add_argument("--rounds", type=positive, default=3, help="with and without the network in turn")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    most = {"vector": max(args.counts), "parallel": args.processes, "episode": 1}
    limits: dict[str, float] = {}
    table: dict[str, dict] = {}
    for env in args.envs:
        for runner in args.runners:
            for count in (count for count in args.counts if count <= most[runner]):
                keys = AGENT | ENVIRONMENTS[env] | {"runner": runner, "batch_size_run": count, "seed": 1}
                keys |= {"use_cuda": args.device == "cuda", "runner_log_interval": 10**9}
                with experiment("qmix", env, keys, evaluate=True) as built:
                    limits = limits or describe_machine(args.device)
                    row = measure(built, args.seconds, args.rounds, args.device, limits)
                table[f"{env} {runner} {count}"] = row
                print(as_text(f"{env} {runner} {count}", row), flush=True)
    publish(args.name, vars(args), limits=limits, table=table)


def describe_machine(device: str) -> dict[str, float]:
    from limits import in_words, machine_limits

    limits = machine_limits(device)
    print(in_words(limits) + "\n" + f"{HEAD[0]:<28}" + "".join(f"{text:>13}" for text in HEAD[1:]))
    return limits


def as_text(name: str, row: dict) -> str:
    cells = [f"{row[acting]['steps_per_second']:,.0f}" for acting in ("uniform", "network")]
    cells += [f"{row[share]:.0%}" for share in ("env", "agents", "rest", "of_limit", "launches")]
    return f"{name:<28}" + "".join(f"{cell:>13}" for cell in cells)


def measure(built, least: float, rounds: int, device: str, limits: dict[str, float]) -> dict:
    """Steps per second with and without the network, and where the time with it goes."""
    import torch
    from limits import count, synchronise

    def nothing(batch, t: int, test_mode: bool = False) -> torch.Tensor:
        return torch.zeros_like(batch["avail_actions"][:, t], dtype=torch.float32)

    runner, mac = built.runner, built.mac
    acting = {"network": mac.forward, "uniform": nothing}

    def play() -> tuple[float, int]:
        """Seconds, and the steps that were played in them."""
        synchronise(device)
        first, started, now = runner.t_env, time.perf_counter(), 0.0
        while now - started < least:
            runner.run()
            synchronise(device)
            now = time.perf_counter()
        return now - started, runner.t_env - first

    speeds: dict[str, list[float]] = {name: [] for name in acting}
    runner.run()  # the first compiles
    for _ in range(rounds):
        for name, forward in acting.items():
            mac.forward = forward
            taken, steps = play()
            speeds[name].append(steps / taken)
    mac.forward = acting["network"]
    first = runner.t_env
    flops, launches = (found / (runner.t_env - first) for found in count(runner.run))
    # Clocks wait for the device, so speeds were measured without them.
    places = [(runner.env, "step")] if hasattr(runner, "rollout") else [(runner.checked, "step")]
    if not hasattr(runner, "rollout"):
        places += [(runner.checked, "reset"), (runner.checked, "observe")]
    env = Clock(places, device)
    agents = Clock([(mac, "select_actions")], device)
    taken, steps = play()
    arithmetic = steps * flops / limits["flops"]
    return {name: {"steps_per_second": float(np.median(found)), "rounds": found} for name, found in speeds.items()} | {
        "env": env.total / taken,
        "agents": agents.total / taken,
        "rest": 1 - (env.total + agents.total) / taken,
        "of_limit": (env.total + arithmetic) / taken,
        "launches": steps * launches * limits["launch_seconds"] / taken,
    }


class Clock:
    """The seconds that calls of some methods take from now on."""

    def __init__(self, places: list[tuple[object, str]], device: str):
        self.total = 0.0
        self.device = device
        for owner, name in places:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, inner):
        from limits import synchronise

        def timed(*args, **kwargs):
            synchronise(self.device)
            started = time.perf_counter()
            found = inner(*args, **kwargs)
            synchronise(self.device)
            self.total += time.perf_counter() - started
            return found

        return timed


if __name__ == "__main__":
    main()
