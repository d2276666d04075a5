"""Drills: what a run survives, shown by doing it.

  python benchmarks/drill.py kills --count 200
  python benchmarks/drill.py inputs --count 20000

`kills` trains a run without pause, and the same run again while it is killed (SIGKILL) at random moments and resumed,
and compares the two to the last bit: every tensor of every saved model, every metric that was recorded. The kills take
turns between training, evaluation and the writing of a checkpoint. Writes results/published/drill_kills.json.

`inputs` hands over inputs that are good, bad and damaged (`tests/inputs.py`: command lines, yaml files, dataset files,
checkpoint and model folders, replies of environments), each kind its share of the count. Each must be used, unchanged,
or refused with one clear line. Writes results/published/drill_inputs.json.
"""

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import ROOT, add_overrides, add_sources, positive, publish

add_sources()
sys.path.insert(1, str(ROOT / "tests"))

STARTING, TRAINING, EVALUATION, WRITING = range(4)  # what a run is doing
PHASES = {TRAINING: "training", EVALUATION: "evaluation", WRITING: "writing a checkpoint"}
PATIENCE = 600.0  # seconds that a run may take to reach a phase


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    drills = parser.add_subparsers(dest="what", required=True)
    drill = drills.add_parser("kills")
    drill.add_argument("--count", type=positive, default=200, help="kills in all")
    drill.add_argument("--config", default="greedy_qmix")
    drill.add_argument("--env-config", default="greed_games")
    drill.add_argument("--seed", type=int, default=0, help="of the moments")
    add_overrides(drill, ["t_max=6000"])
    drill = drills.add_parser("inputs")
    drill.add_argument("--count", type=positive, default=20_000, help="inputs in all")
    drill.add_argument("--seed", type=int, default=0, help="of the inputs")
    args = parser.parse_args()
    if args.what == "inputs":
        report = inputs(args.count, args.seed)
    else:
        report = kills(args.config, args.env_config, args.overrides, args.count, args.seed)
    publish(f"drill_{args.what}", vars(args), **report)
    for key, found in report.items():
        print(f"{key:<14}{found}")
    sys.exit(1 if report.get("failures") or report.get("differences") else 0)


def inputs(count: int, seed: int) -> dict[str, Any]:
    """Try so many inputs, an equal share of each kind; what became of them."""
    from inputs import KINDS

    tried: dict[str, Counter] = {}
    failures: list[str] = []
    for name, kind in KINDS.items():
        tried[name], started = Counter(tried=0), time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try_inputs(kind, -(-count // len(KINDS)), seed, tried[name])
        except Exception as error:  # whatever it is, it is what the drill looks for
            failures.append(f"{name}: {type(error).__name__}: {error}")
            traceback.print_exc()
        print(f"{name}: {dict(tried[name])} in {time.monotonic() - started:.0f} s", flush=True)
    return {"inputs": sum(found["tried"] for found in tried.values()), "tried": tried, "failures": failures}


def try_inputs(kind, count: int, seed: int, found: Counter) -> None:
    """Draw so many inputs of one kind and check them; counts in `found` what became of them.

    Raises:
        Exception: what a check raised, for the simplest input that makes it do so.
    """
    from hypothesis import HealthCheck, given, settings
    from hypothesis import seed as seeded

    @seeded(seed)
    @settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(kind.inputs)
    def attempt(one):
        found["tried"] += 1
        found[kind.check(one)] += 1

    attempt()


def kills(config: str, env_config: str, settings: Sequence[str], count: int, seed: int) -> dict[str, Any]:
    """Kill a run so often, resuming it each time, and compare it with one that nothing disturbed."""
    from run import run  # noqa: F401  before the fork, so that every start is quick

    choose = random.Random(seed)
    common = [f"--config={config}", f"--env-config={env_config}", "with", "save_model=True", "plot=False", *settings]
    common += ["checkpoint_interval=0.05", "use_cuda=False"]
    struck: Counter = Counter()
    differences: list[str] = []
    runs = resumptions = 0
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain"
        code = Child([*common, f"local_results_path={plain}"], plain).wait()
        assert code == 0, f"the undisturbed run failed with exit code {code}: {(plain / 'output').read_text()[-2000:]}"
        while struck.total() < count:
            killed = Path(folder) / f"killed_{runs}"
            while True:
                child = Child([*common, f"local_results_path={killed}", "resume=auto"], killed)
                wanted = choose.choice(list(PHASES)) if struck.total() < count else None
                hit = child.kill_in(wanted, choose) if wanted is not None else None
                if hit is not None:
                    struck[PHASES[hit]] += 1
                    resumptions += 1
                    continue
                code = child.wait()
                assert code == 0, f"a resumed run failed, exit code {code}: {(killed / 'output').read_text()[-3000:]}"
                break
            runs += 1
            differences += [f"run {runs}: {text}" for text in compare(plain, killed)]
            shutil.rmtree(killed)
            print(f"{struck.total()} kills, {runs} runs, differences: {len(differences)}", flush=True)
    return {"kills": dict(struck), "runs": runs, "resumptions": resumptions, "differences": differences}


class Child:
    """`main.py` in a process forked from this one, which says in shared memory what it is doing."""

    def __init__(self, argv: list[str], folder: Path):
        self.phase = mmap.mmap(-1, 1)
        folder.mkdir(parents=True, exist_ok=True)
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                with (folder / "output").open("a", buffering=1) as output:
                    sys.stdout = sys.stderr = sys.__stdout__ = output
                    code = self._train(argv)
            finally:
                os._exit(code)

    def _train(self, argv: list[str]) -> int:
        import run
        from main import main as command
        from utils.checkpoints import Checkpoints

        def marked(function, phase: int):
            def wrapper(*args, **kwargs):
                before, self.phase[0] = self.phase[0], phase
                try:
                    return function(*args, **kwargs)
                finally:
                    self.phase[0] = before

            return wrapper

        run.Experiment.train = marked(run.Experiment.train, TRAINING)
        run.Experiment.test = marked(run.Experiment.test, EVALUATION)
        Checkpoints.write = marked(Checkpoints.write, WRITING)
        try:
            return command(["main.py", *argv])
        except SystemExit as error:
            return int(error.code or 0)

    def kill_in(self, phase: int, choose: random.Random) -> int | None:
        """Kill it in this phase, some time after its start; returns the phase, or None if it was done before."""
        end = time.monotonic() + PATIENCE
        while self.phase[0] == STARTING and self._lives():
            assert time.monotonic() < end, "the run does not start"
            time.sleep(0.001)
        time.sleep(choose.uniform(0.0, 0.6))
        while self.phase[0] != phase and self._lives():
            assert time.monotonic() < end, f"the run does not come to {PHASES[phase]}"
            time.sleep(0.0002)
        time.sleep(choose.uniform(0.0, 0.003))
        if not self._lives():
            return None
        os.kill(self.pid, signal.SIGKILL)
        hit = self.phase[0]
        self.code = os.waitpid(self.pid, 0)[1]
        return hit if hit in PHASES else phase

    def wait(self) -> int:
        """Its exit code."""
        if not hasattr(self, "code"):
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def _lives(self) -> bool:
        if not hasattr(self, "code"):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return not hasattr(self, "code")


def compare(one: Path, other: Path) -> list[str]:
    """Where the models and the metrics of two runs differ."""
    import torch

    found = []
    first, second = (sorted(next((folder / "models").iterdir()).rglob("*.*")) for folder in (one, other))
    if [file.name for file in first] != [file.name for file in second]:
        found.append(f"files {[f.name for f in first]} and {[f.name for f in second]}")
    for a, b in zip(first, second, strict=False):
        if a.suffix == ".th":
            left, right = (torch.load(file, weights_only=True) for file in (a, b))
            found += [f"{a.parent.name}/{a.name}{where}" for where in unequal(left, right)]
        elif a.read_bytes() != b.read_bytes():
            found.append(a.name)
    records = [complete_records(folder) for folder in (one, other)]
    if [len(record) for record in records] != [1, 1]:
        return [*found, f"complete records: {records}"]
    left, right = (json.loads((record[0] / "metrics.json").read_text()) for record in records)
    for name in sorted(left.keys() | right.keys()):
        for key in ("steps", "values"):
            if left.get(name, {}).get(key) != right.get(name, {}).get(key):
                found.append(f"metric {name} {key}")
    return found


def complete_records(results: Path) -> list[Path]:
    """sacred's records of runs that came to their end. One that was killed before its first checkpoint has another."""
    files = sorted((results / "sacred").glob("*/run.json"))
    return [file.parent for file in files if json.loads(file.read_text())["status"] == "COMPLETED"]


def unequal(a: Any, b: Any, where: str = "") -> list[str]:
    """The places where two nested values are not the same to the last bit."""
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        keys = a.keys() | b.keys()
        return [place for key in keys for place in unequal(a.get(key), b.get(key), f"{where}[{key!r}]")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [place for i, (x, y) in enumerate(zip(a, b, strict=True)) for place in unequal(x, y, f"{where}[{i}]")]
    return [] if a == b else [where]


if __name__ == "__main__":
    main()
