"""What one update costs: every learner on synthetic episodes, beside other code bases and the machine's own limit.

  python benchmarks/learner_step.py
  python benchmarks/learner_step.py --configs qmix greedy_qmix --peer pymarl=../pymarl --peer epymarl=../epymarl
  python benchmarks/learner_step.py --configs qmix --busy 1 --name learner_step_busy

A peer is a checkout of PyMARL or of EPyMARL, whose QMIX is measured on the same episodes. Each code base runs in a
process of its own; they take turns, so that all see the same machine, and what counts are ratios. Every update is of
other episodes, drawn in the same order for all. They are full, or have realistic lengths: 60 steps times a draw of
beta(2, 3), 40% on average, cut after the longest of the batch, as all code bases do. The limit is what an update's
matrix products would take at the speed of large ones (with as many threads, so that what is computed aside on a second
core counts in full); "launches" is what torch's operations would take if none computed anything. With --busy other
processes compute all the time, as on a shared machine. Writes NAME.json to results/published.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from jobs import ROOT, Peer, add_peers, algorithms, positive, publish, read_peers

SHAPES = {  # agents, observation, state, actions
    "3m": (3, 75, 72, 8),
    "3s5z_vs_3s6z": (8, 218, 204, 14),
    "27m_vs_30m": (27, 738, 684, 35),
}
EPISODES, LIMIT = 32, 60
HELD = 4 * EPISODES  # of which each update draws some
COUNTED = 5  # updates whose products are counted
SAME = {"agent": "rnn", "rnn_hidden_dim": 64, "batch_size": EPISODES, "use_cuda": False}  # PyMARL's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="learner_step", help="of the file in results/published")
    parser.add_argument("--configs", nargs="+", default=None, help="algorithms; all by default")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--lengths", nargs="+", choices=["full", "realistic"], default=["full", "realistic"])
    add_peers(parser)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--updates", type=positive, default=5, help="in a round")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--busy", type=int, default=0, help="other processes that compute meanwhile")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(**json.loads(args.worker))
        return
    configs = args.configs or algorithms()
    peers = {name: peer for name, peer in read_peers(args).items() if (peer.path / "src/learners").is_dir()}
    table = {}
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)]
    for shape in args.shapes:
        for lengths in args.lengths:
            table[f"{shape}, {lengths}"] = measure(args, shape, lengths, configs, peers)
            print(as_text(f"{shape}, {lengths}", table[f"{shape}, {lengths}"], list(peers)), flush=True)
    for other in others:
        other.kill()
    publish(args.name, vars(args) | {"peer": list(peers)}, table=table)


def measure(args, shape: str, lengths: str, configs: list[str], peers: dict[str, Peer]) -> dict:
    """Milliseconds of an update, by name: medians of rounds, which all take in turn."""
    common = {"shape": shape, "lengths": lengths, "threads": args.threads, "device": args.device}
    workers = {name: Worker(sys.executable, config=name, path="", **common) for name in configs}
    workers |= {name: Worker(peer.python, config="qmix", path=str(peer.path), **common) for name, peer in peers.items()}
    rounds: dict[str, list[float]] = {name: [] for name in workers}
    failed = {name: worker.error for name, worker in workers.items() if worker.error}
    for _ in range(args.rounds):
        for name, worker in workers.items():
            if name not in failed:
                rounds[name].append(worker.updates(args.updates))
    for worker in workers.values():
        worker.close()
    return {
        name: {"error": failed[name]}
        if name in failed
        else {"ms": float(np.median(found)), "rounds": found, **workers[name].limits}
        for name, found in rounds.items()
    }


def as_text(title: str, table: dict, peers: list[str]) -> str:
    """A table with the ratios of this run, and how far they spread over its rounds."""
    head = ["ms", "of the limit", "launches", *(f"{peer} / this" for peer in peers)]
    lines = [title, f"{'':<22}" + "".join(f"{text:>24}" for text in head)]
    for name, row in table.items():
        if "error" in row:
            lines.append(f"{name:<22}  {row['error']}")
            continue
        cells = [f"{row['ms']:.1f}", f"{row['limit_ms'] / row['ms']:.0%}", f"{row['launch_ms'] / row['ms']:.0%}"]
        for peer in peers:
            if "rounds" not in table[peer]:
                cells.append("-")
                continue
            ratios = np.array(table[peer]["rounds"]) / np.array(row["rounds"])
            cells.append(f"{np.median(ratios):.2f} [{ratios.min():.2f}, {ratios.max():.2f}]")
        lines.append(f"{name:<22}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines) + "\n"


class Worker:
    """One code base's learner in a process of its own."""

    def __init__(self, python: str, **what):
        threads = {"OMP_NUM_THREADS": str(what["threads"]), "MKL_NUM_THREADS": str(what["threads"])}
        self.process = subprocess.Popen(
            [python, __file__, "--worker", json.dumps(what)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | threads | {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"},
        )
        found = self._answer()
        self.error, self.limits = found.get("error"), found

    def updates(self, count: int) -> float:
        """The median milliseconds of so many updates."""
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return self._answer()["ms"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        return {"error": f"its process ended with code {self.process.wait()}"}


# --- in the worker's process


def work(config: str, path: str, shape: str, lengths: str, threads: int, device: str) -> None:
    sys.path.insert(0, str((Path(path) if path else ROOT) / "src"))
    import torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    if not path:  # as `run` does
        from utils.memory import keep_freed_memory

        keep_freed_memory()
    torch.manual_seed(0)
    try:
        learner, episodes = (peers_learner if path else our_learner)(config, shape, lengths, device, Path(path))
        rng = np.random.default_rng(0)
        step(learner, draw(episodes, rng), device)  # the first allocates
        answer = limits(learner, [draw(episodes, rng) for _ in range(COUNTED)], device)
    except Exception as error:  # told to the other side, which goes on with the others
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        times = [step(learner, draw(episodes, rng), device) for _ in range(int(line))]
        print(json.dumps({"ms": 1000 * float(np.median(times))}), flush=True)


def draw(episodes, rng: np.random.Generator):
    """The batch of an update."""
    batch = episodes[rng.choice(HELD, EPISODES, replace=False).tolist()]
    return batch[:, : batch.max_t_filled()]


def step(learner, batch, device: str) -> float:
    from limits import seconds

    return seconds(lambda: learner.train(batch, t_env=1, episode_num=1), device)


def limits(learner, batches: list, device: str) -> dict[str, float]:
    """Milliseconds of an update's matrix products at the speed of large ones, and of launching all that it launches."""
    from limits import count, launch_latency, matrix_peak

    found = [count(lambda batch=batch: learner.train(batch, t_env=1, episode_num=1)) for batch in batches]
    flops, launches = np.mean(found, axis=0).tolist()
    return {"limit_ms": 1000 * flops / matrix_peak(device), "launch_ms": 1000 * launches * launch_latency(device)}


def our_learner(config: str, shape: str, lengths: str, device: str, _path: Path, **more):
    from components.episode_buffer import EpisodeBatch
    from components.transforms import OneHot
    from config.schema import extend, freeze, load
    from controllers import REGISTRY as mac_REGISTRY
    from learners import REGISTRY as learner_REGISTRY

    N, O, S, A = SHAPES[shape]
    sizes = {"n_agents": N, "n_actions": A, "obs_shape": O, "state_shape": S, "episode_limit": LIMIT}
    overrides = SAME | {"use_cuda": device == "cuda", "learner_log_interval": 10**9} | more
    args = freeze(load(config, "sc2", overrides))
    args = extend(args, device=device, unique_token="benchmark", agent_groups=None, **sizes)
    one_hot = {"actions": ("actions_onehot", [OneHot(A)])}
    scheme = make_scheme(N, O, S, A) | {"behaviour": {"vshape": (A,), "group": "agents"}}
    batch = fill(EpisodeBatch(scheme, {"agents": N}, HELD, LIMIT + 1, preprocess=one_hot, device=device), lengths)
    avail = batch["avail_actions"].float()
    batch.data.transition_data["behaviour"].copy_(avail / avail.sum(-1, keepdim=True).clamp(min=1))
    mac = mac_REGISTRY[args.mac](batch.scheme, {"agents": N}, args)
    learner = learner_REGISTRY[args.learner](mac, batch.scheme, SimpleNamespace(log_stat=lambda *_: None), args)
    if device == "cuda":
        learner.cuda()
    return learner, batch


def peers_learner(config: str, shape: str, lengths: str, device: str, path: Path):
    import yaml

    from components.episode_buffer import EpisodeBatch
    from components.transforms import OneHot
    from controllers import REGISTRY as mac_REGISTRY
    from learners import REGISTRY as learner_REGISTRY

    N, O, S, A = SHAPES[shape]
    folder = path / "src/config"
    values = yaml.safe_load((folder / "default.yaml").read_text())
    values |= yaml.safe_load((folder / f"algs/{config}.yaml").read_text())
    values |= SAME | {"hidden_dim": 64, "use_rnn": True, "learner_log_interval": 10**9, "t_max": 10**6}
    values |= {"n_agents": N, "n_actions": A, "state_shape": S, "obs_shape": O, "device": device}
    args = SimpleNamespace(**values | {"use_cuda": device == "cuda"})
    one_hot = {"actions": ("actions_onehot", [OneHot(out_dim=A)])}
    batch = EpisodeBatch(make_scheme(N, O, S, A), {"agents": N}, HELD, LIMIT + 1, preprocess=one_hot, device=device)
    fill(batch, lengths)
    mac = mac_REGISTRY[args.mac](batch.scheme, {"agents": N}, args)
    logger = SimpleNamespace(log_stat=lambda *_: None, console_logger=SimpleNamespace(info=lambda *_: None))
    learner = learner_REGISTRY[args.learner](mac, batch.scheme, logger, args)
    if device == "cuda":
        learner.cuda()
    return learner, batch


def make_scheme(N: int, O: int, S: int, A: int) -> dict:
    import torch

    return {
        "state": {"vshape": S},
        "obs": {"vshape": O, "group": "agents"},
        "actions": {"vshape": (1,), "group": "agents", "dtype": torch.long},
        "avail_actions": {"vshape": (A,), "group": "agents", "dtype": torch.int},
        "reward": {"vshape": (1,)},
        "terminated": {"vshape": (1,), "dtype": torch.uint8},
    }


def fill(batch, lengths: str):
    """Random episodes through PyMARL's `update`, the same in every code base."""
    import torch

    rng = np.random.default_rng(0)
    fields = batch.data.transition_data
    N, O = fields["obs"].shape[2:]
    A = fields["avail_actions"].shape[-1]
    S = fields["state"].shape[-1]
    for e in range(batch.batch_size):
        steps = LIMIT if lengths == "full" else max(1, round(LIMIT * rng.beta(2, 3)))
        avail = rng.random((1, steps + 1, N, A)) < 0.6
        avail[..., 0] = True
        actions = (rng.random(avail.shape) * avail).argmax(-1)
        seen = {
            "obs": torch.from_numpy(rng.normal(size=(1, steps + 1, N, O)).astype(np.float32)),
            "state": torch.from_numpy(rng.normal(size=(1, steps + 1, S)).astype(np.float32)),
            "avail_actions": torch.from_numpy(avail.astype(np.int32)),
        }
        ends = np.zeros((1, steps, 1), dtype=np.uint8)
        ends[:, -1] = 1
        taken = {
            "actions": torch.from_numpy(actions[:, :steps, :, None]),
            "reward": torch.from_numpy(rng.normal(size=(1, steps, 1)).astype(np.float32)),
            "terminated": torch.from_numpy(ends),
        }
        batch.update(seen, bs=slice(e, e + 1), ts=slice(0, steps + 1))
        batch.update(taken, bs=slice(e, e + 1), ts=slice(0, steps), mark_filled=False)
    return batch


if __name__ == "__main__":
    main()
