"""StarCraft II under the parallel runner: what the runner costs, and whether it holds out.

Runs on the game at $SC2PATH, or on the stand-in game of the tests (`python tests/fake_sc2/install.py DIR`, then
SC2PATH=DIR), and needs the package smac (`bash install_sc2.sh`). Writes starcraft_throughput.json and
starcraft_soak.json to results/published.

  python benchmarks/starcraft.py throughput --maps 3m 2s3z 27m_vs_30m --workers 2 --step-ms 0 2 5
  FAKE_SC2_FAULTS=crash=0.05 python benchmarks/starcraft.py soak --episodes 1000 --workers 4

`throughput` plays the same random legal actions three ways, in turn: bare SMAC in as many separate processes, the same
number of environments under `ProcessVectorEnv`, and the whole parallel runner with a recurrent controller. `soak` plays
episodes while games fail, and counts what comes back, what is left behind, and how memory grows.
"""

import argparse
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from jobs import ROOT, add_sources, positive, publish

add_sources()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "soak", "bare"], help="bare: one process of `throughput`")
    parser.add_argument("--maps", nargs="+", default=["3m", "2s3z", "27m_vs_30m"])
    parser.add_argument("--workers", type=positive, default=2)
    parser.add_argument("--seconds", type=float, default=10, help="throughput: of each measurement")
    parser.add_argument("--rounds", type=positive, default=3, help="throughput: of all three ways, one after another")
    parser.add_argument(
        "--step-ms", nargs="+", default=["0"], help="throughput: what a step of the stand-in takes at least"
    )
    parser.add_argument("--episodes", type=positive, default=1000, help="soak: on the first map")
    args = parser.parse_args()
    if args.what == "bare":
        print(bare(args.maps[0], args.seconds))
        return
    found = throughput(args) if args.what == "throughput" else soak(args)
    publish(f"starcraft_{args.what}", vars(args), game=game(), **found)


def game() -> str:
    from envs.sc2 import find_game

    binary = next(find_game().glob("Versions/Base*/SC2_x64"))
    return "the stand-in of the tests" if binary.stat().st_size < 10_000 else binary.parent.name


# --- throughput


def throughput(args) -> dict:
    """Environment steps per second, of all workers together."""
    table = {}
    for name, pace in [(name, pace) for name in args.maps for pace in args.step_ms]:
        os.environ["FAKE_SC2_STEP_MS"] = pace
        ways = {"bare": several_bare, "process_env": process_env, "runner": whole_runner}
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way, measure in ways.items():
                found[way].append(measure(name, args.workers, args.seconds))
        median = {way: float(np.median(rates)) for way, rates in found.items()}
        table[f"{name}, {pace} ms"] = {"steps_per_second": found, "median": median}
        ratios = "  ".join(f"{way} {median[way] / median['bare']:.2f}" for way in ("process_env", "runner"))
        print(f"{name}, {pace} ms: bare SMAC {median['bare']:,.0f} steps/s; as a fraction of it: {ratios}", flush=True)
    return {"throughput": table}


def several_bare(name: str, workers: int, seconds: float) -> float:
    command = [sys.executable, __file__, "bare", "--maps", name, "--seconds", str(seconds)]
    limited = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=limited) for _ in range(workers)]
    return sum(float(process.communicate()[0]) for process in running)


def bare(name: str, seconds: float) -> float:
    """SMAC alone, in this process."""
    from envs.sc2 import find_game, load_smac

    find_game()
    env = load_smac().build(map_name=name)
    rng = np.random.default_rng(0)
    env.reset()
    steps, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        env.get_obs(), env.get_state()
        actions = [rng.choice(np.flatnonzero(row)) for row in env.get_avail_actions()]
        steps += 1
        if env.step(actions)[1]:
            env.reset()
    env.close()
    return steps / seconds


def process_env(name: str, workers: int, seconds: float) -> float:
    """The supervised processes, with random legal actions from this one."""
    import torch

    torch.set_num_threads(1)
    runner = make_runner(name, workers)
    env, steps = runner.env, 0
    now, turn = env.reset(), list(range(workers))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        actions = (torch.rand(now.avail.shape) * now.avail).argmax(dim=-1)
        outcome = env.step(actions, turn)
        ended = (outcome.terminated | outcome.truncated).tolist()
        turn = [row for row in outcome.rows if not ended[row]] + outcome.began
        now = outcome.next
        steps += len(outcome.rows)
    runner.close_env()
    return steps / seconds


def whole_runner(name: str, workers: int, seconds: float) -> float:
    """The parallel runner, with QMIX's recurrent agents exploring; no learning."""
    runner = make_runner(name, workers)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        runner.run()
    rate = runner.t_env / (time.perf_counter() - start)
    runner.close_env()
    return rate


# --- soak


def soak(args) -> dict:
    """Play episodes and watch."""
    name = args.maps[0]
    before = children()
    runner = make_runner(name, args.workers)
    whole, samples, started = 0, [], time.perf_counter()
    while whole < args.episodes:
        batch = runner.run()
        for e in range(batch.batch_size):
            check_whole(batch[e, :], runner.episode_limit)
        whole += batch.batch_size
        if whole // 25 > len(samples):
            workers = [one.process.pid for one in runner.env._workers if one.process is not None]
            samples.append((whole, resident(os.getpid()), float(np.mean([resident(pid) for pid in workers]))))
            print(f"{whole} episodes, {runner.env.crashes} failures, {samples[-1][1]:.0f} MiB here", flush=True)
    temporary = [one.temporary for one in runner.env._workers]
    crashes, seconds = runner.env.crashes, time.perf_counter() - started
    runner.close_env()
    later = [sample for sample in samples if sample[0] >= args.episodes / 5]  # behind the start
    slope = [float(np.polyfit([s[0] for s in later], [s[i] for s in later], 1)[0] * 1024) for i in (1, 2)]
    found = {
        "episodes": whole,
        "failures": crashes,
        "seconds": seconds,
        "resident_mib": samples,
        "kib_per_episode": {"runner": slope[0], "worker": slope[1]},
        "processes_left": len(children() - before),
        "temporary_folders_left": sum(folder.exists() for folder in temporary),
    }
    for key in ("episodes", "failures", "kib_per_episode", "processes_left", "temporary_folders_left"):
        print(f"{key:<24}{found[key]}")
    return {"soak": found}


def check_whole(episode, limit: int) -> None:
    """An episode of the replay ends for real or at the time limit; one that a crash cut would do neither.

    Raises:
        AssertionError: it does not.
    """
    length = int(episode["filled"].sum()) - 1
    assert bool(episode["filled"][0, : length + 1].all()), "there is a hole in it"
    ends = episode["terminated"][0, :length, 0].tolist()
    assert sum(ends[:-1]) == 0, "it goes on after its end"
    assert ends[-1] == 1, f"it was cut after {length} of {limit} steps"


def children() -> set[int]:
    """All processes below this one."""
    parent = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, more = set(), {os.getpid()}
    while more:
        more = {pid for pid, above in parent.items() if above in more} - found
        found |= more
    return found


def resident(pid: int) -> float:
    """MiB of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def make_runner(name: str, workers: int):
    """The parallel runner of a run of `--config=qmix --env-config=sc2`, with its controller."""
    import torch

    from config.schema import extend, freeze, load
    from run import Experiment
    from runners.parallel_runner import ParallelRunner
    from utils.logging import Logger

    torch.set_num_threads(1)
    overrides = {"batch_size_run": workers, "use_cuda": False, "epsilon_anneal_time": 10**9, "buffer_size": 32}
    config = load("qmix", "sc2", overrides | {"env_args": {"map_name": name}})
    args = extend(
        freeze(config | {"local_results_path": str(ROOT / "results")}), device="cpu", unique_token="starcraft"
    )
    console = logging.getLogger("starcraft")
    console.setLevel(logging.ERROR)  # failures are counted, not told one by one
    logger = Logger(console)
    runner = ParallelRunner(args, logger)
    Experiment(args, logger, runner)  # hands the runner its controller
    return runner


if __name__ == "__main__":
    main()
