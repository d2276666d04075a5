"""Memory at SMAC's shapes: what an episode takes in the replay, and what an update takes beyond its batch.

  python benchmarks/memory.py
  python benchmarks/memory.py --shapes 27m_vs_30m --configs qmix --device cuda

Each row is a run of its own process, put together as a run is, with 32 full episodes of 60 steps in a batch. "5,000
episodes" is what PyMARL's replay holds, and is given as a share of this machine's memory (of the GPU's with --device
cuda). A sample reads and writes the batch once: its speed is given as a share of a large copy's, which small batches
exceed where they lie in caches. An update's memory is
its peak (the process's resident memory, or what torch has allocated on a GPU) beyond what was held before, batch
included. Writes NAME.json to results/published.
"""

import argparse
import ctypes
import json
import typing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from jobs import add_sources, arguments_of, ask_fresh, publish
from learner_step import EPISODES, LIMIT, SAME, SHAPES, fill

HELD = 2 * EPISODES  # episodes in the replay that is measured
WHOLE = 5000  # episodes in PyMARL's
SAMPLES = 20
HEAD = ("an episode", "5,000 episodes", "of the memory", "batch", "sample", "of the limit", "update", "/ batch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="memory", help="of the file in results/published")
    parser.add_argument("--configs", nargs="+", default=["qmix", "greedy_qmix"])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(**json.loads(args.worker))))
        return
    table = {}
    print(f"{'':<36}" + "".join(f"{text:>16}" for text in HEAD))
    for shape in args.shapes:
        for config in args.configs:
            for overrides in replay_types():
                name = " ".join([shape, config, *overrides.values()])
                what = {"config": config, "shape": shape, "overrides": overrides, "device": args.device}
                table[name] = ask_fresh(__file__, what)
                print(as_text(name, table[name]), flush=True)
    publish(args.name, vars(args), table=table)


def replay_types() -> list[dict[str, str]]:
    """The overrides that name each type that the replay can have."""
    add_sources()
    from config.schema import Run

    key = "replay_dtype"
    return [{key: name} for name in typing.get_args(Run.model_fields[key].annotation)]


def as_text(name: str, row: dict) -> str:
    if "error" in row:
        return f"{name:<36}  {row['error']}"
    cells = [
        f"{row['episode_bytes'] / 2**10:,.0f} KiB",
        f"{row['episode_bytes'] * WHOLE / 2**30:.2f} GiB",
        f"{row['episode_bytes'] * WHOLE / row['memory_bytes']:.0%}",
        f"{row['batch_bytes'] / 2**20:.1f} MiB",
        f"{1000 * row['sample_seconds']:.2f} ms",
        f"{2 * row['batch_bytes'] / row['sample_seconds'] / row['bytes_per_second']:.0%}",
        f"{row['update_bytes'] / 2**20:.0f} MiB",
        f"{row['update_bytes'] / row['batch_bytes']:.1f}",
    ]
    return f"{name:<36}" + "".join(f"{cell:>16}" for cell in cells)


# --- in a process of its own


def measure(config: str, shape: str, overrides: dict[str, str], device: str) -> dict[str, float]:
    keys = SAME | {"use_cuda": device == "cuda", "buffer_size": HELD} | overrides
    args, logger = arguments_of(config, "sc2", keys)
    import torch
    from limits import bandwidth, seconds

    from run import Experiment

    N, O, S, A = SHAPES[shape]
    info = {"n_agents": N, "n_actions": A, "obs_shape": O, "state_shape": S, "episode_limit": LIMIT}
    # In place of the runner, whose environment may not be installed.
    runner = SimpleNamespace(batch_size=1, t_env=0, get_env_info=lambda: info, setup=lambda *_: None)
    built = Experiment(args, logger, runner)
    for _ in range(HELD // EPISODES):
        built.buffer.insert_episode_batch(episodes(built))
    batch = built.buffer.sample(EPISODES)
    taken = [seconds(lambda: built.buffer.sample(EPISODES), device) for _ in range(SAMPLES)]
    speed = bandwidth(device)
    built.learner.train(batch[:2, :4], 0, 0)  # makes the optimiser's state, and what libraries keep
    return {
        "episode_bytes": held_bytes(built.buffer) / HELD,
        "predicted_bytes": built.buffer.nbytes / HELD,
        "memory_bytes": torch.cuda.mem_get_info()[1] if device == "cuda" else kibibytes("/proc/meminfo", "MemTotal"),
        "batch_bytes": held_bytes(batch),
        "sample_seconds": float(np.median(taken)),
        "bytes_per_second": speed,
        "update_bytes": peak_bytes(lambda: built.learner.train(batch, 0, 0), device),
    }


def episodes(built):
    """Full episodes whose observations and states are zeros and ones, which all types hold exactly."""
    from components.episode_buffer import EpisodeBatch

    batch = EpisodeBatch(built.scheme, built.groups, EPISODES, LIMIT + 1, None, built.preprocess, built.args.device)
    fill(batch, "full")
    for key in ("obs", "state"):
        batch[key].copy_(batch[key] > 0)
    if "behaviour" in batch.scheme:
        avail = batch["avail_actions"].float()
        batch["behaviour"].copy_(avail / avail.sum(-1, keepdim=True).clamp(min=1))
    return batch


def held_bytes(batch) -> int:
    return sum(value.nbytes for value in [*batch.data.transition_data.values(), *batch.data.episode_data.values()])


def peak_bytes(work, device: str) -> int:
    """The most memory that is held at any time of this work, beyond what was held before."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what was freed and kept would hide what is taken
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = kibibytes("/proc/self/status", "VmRSS")
    work()
    return kibibytes("/proc/self/status", "VmHWM") - before


def kibibytes(file: str, key: str) -> int:
    """The bytes that the line "key: number kB" of a file says."""
    lines = dict(line.split(":", 1) for line in Path(file).read_text().splitlines())
    return 1024 * int(lines[key].split()[0])


if __name__ == "__main__":
    main()
