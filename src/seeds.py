"""Many seeds in one process (`seeds`): each a run as it would be alone, all by one set of batched kernels.

An `Experiment` for each seed keeps its learner, replay, counters, statistics and record; what takes time is done for
all of them at once: steps of their environments and agents (`runners.seeds_runner`), and updates
(`learners.many_seeds`).
"""

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sacred.run import Run

from components.episode_buffer import joined
from config.schema import extend, freeze
from learners.many_seeds import ManySeeds
from run import Experiment, new_folder, prepare, running
from runners.seeds_runner import SeedsRunner
from utils.checkpoints import Checkpoints
from utils.errors import Interrupted
from utils.logging import Logger, Progress, format_table
from utils.record import run_beside
from utils.signals import StopRequest
from utils.timehelper import time_str
from utils.titles import env_title

DONE = object()


def run_seeds(sacred_run: Run, config: dict[str, Any], log, observers: Callable[[], list]) -> dict[str, float]:
    """Train `seeds` seeds; returns the last test statistics of the first. Each has a sacred record of its own.

    Args:
        sacred_run: of the first seed.
        config: a validated configuration (`config.schema.load`).
        observers: makes the observers of another record.

    Raises:
        Interrupted: it was asked to stop.
    """
    env_args = config["env_args"]
    configs = [
        {**config, "seed": config["seed"] + n, "env_args": {**env_args, "seed": env_args["seed"] + n}}
        for n in range(config["seeds"])
    ]
    runs, summaries = [sacred_run], []

    def train(number: int) -> dict[str, float]:
        """Begin the records from this one on, and train when all have begun: however it ends, they say so."""
        if number == len(configs):
            summaries.extend(train_together(configs, runs, log))
        else:
            runs.append(run_beside(sacred_run, configs[number], observers(), lambda: train(number + 1)))
            runs[number]()
        return summaries[number - 1]

    return train(1)


def train_together(configs: list[dict[str, Any]], runs: list[Run], log) -> list[dict[str, float]]:
    """Train these configurations, which differ in their seeds alone; returns each one's last test statistics."""
    args = prepare(configs[0], log)
    folder = new_folder(args)
    settings = [
        extend(
            freeze({**config, "use_cuda": args.use_cuda}),
            device=args.device,
            unique_token=f"{folder.name}__seed_{config['seed']}",
        )
        for config in configs
    ]
    loggers = [Logger(log) for _ in runs]
    with contextlib.ExitStack() as stack:
        stack.enter_context(Checkpoints(folder, args.keep_checkpoints))  # which holds the name, and stays empty
        for one, run, logger in zip(settings, runs, loggers, strict=True):
            stack.callback(logger.close)
            logger.setup_sacred(run)
            if args.use_tensorboard:
                logger.setup_tb(str(Path(args.local_results_path) / "tb_logs" / one.unique_token))
        runner = stack.enter_context(running(settings[0], loggers[0], lambda args, _: SeedsRunner(args, loggers)))
        stop = stack.enter_context(StopRequest(args.max_hours))
        return Seeds(settings, loggers, runner).train(runs, stop)


class Seeds:
    """The experiments of all seeds, and the loop that they share.

    Args:
        settings, loggers: of every seed.
    """

    def __init__(self, settings: list, loggers: list[Logger], runner: SeedsRunner):
        self.runner = runner
        self.experiments, generators = [], []
        for number, (args, logger) in enumerate(zip(settings, loggers, strict=True)):
            one = Experiment(args, logger, runner.part(number))
            # The random numbers that this seed alone would go on with.
            generators.append(torch.Generator(args.device))
            generators[-1].set_state(torch.get_rng_state() if args.device == "cpu" else torch.cuda.get_rng_state())
            one.buffer.random = np.random.RandomState()
            one.buffer.random.set_state(np.random.get_state())  # noqa: NPY002  as `seed_everything` has it
            self.experiments.append(one)
        self.args = self.experiments[0].args
        self.learners = ManySeeds([one.learner for one in self.experiments])
        runner.setup_all(self.learners.acting_mac(), generators)

    def train(self, runs: list[Run], stop: StopRequest) -> list[dict[str, float]]:
        """Collect, train, evaluate and record until `t_max`, and report; returns each seed's last test statistics.

        Raises:
            Interrupted: it was asked to stop. There are models, but no checkpoint.
        """
        runner, log = self.runner, self.experiments[0].logger.console_logger
        log.info("%s at once, each with what follows; they write no checkpoints", self._named())
        self.experiments[0].announce()
        started = time.monotonic()
        progress = SpreadProgress([one.logger for one in self.experiments], self.args.t_max)
        try:
            while runner.t_env <= self.args.t_max:
                self._round(progress)
                if stop.asked():
                    said = [one.say_save() for one in self.experiments]
                    raise Interrupted(f"Stopped at step {runner.t_env} ({stop.reason}); {'; '.join(said)}", stop.code)
            if any([one.test_last() for one in self.experiments]):
                progress.row(runner.t_env, self._updates())
        finally:
            progress.close()
        self._report(runs, time.monotonic() - started)
        return [one.counters.summary for one in self.experiments]

    def _round(self, progress: Progress) -> None:
        """Collect, and make the updates that each seed has earned: the first of all seeds at once, then the second."""
        self.runner.collect()
        due = {n: one.due_updates() for n, one in enumerate(self.experiments) if self.runner.played[n] is not None}
        while due := {n: updates for n, updates in due.items() if next(updates, DONE) is not DONE}:
            self._update(list(due))
        if any([one.keep_up() for one in self.experiments]):
            progress.row(self.runner.t_env, self._updates())
        progress.line(self.runner.t_env, self._updates())

    def _update(self, seeds: list[int]) -> None:
        """Let each of these seeds learn from a batch of its replay."""
        experiments = [self.experiments[n] for n in seeds]
        drawn = [one.buffer.draw(self.args.batch_size) for one in experiments]
        longest = max(one.buffer.longest(rows) for one, rows in zip(experiments, drawn, strict=True))
        batches = [one.buffer.of_rows(rows, longest) for one, rows in zip(experiments, drawn, strict=True)]
        batch = joined(batches)
        batch.to(self.args.device)
        episodes = [one.counters.episodes for one in experiments]
        errors = self.learners.train(seeds, batch, self.runner.t_env, episodes)
        for one, error, mine in zip(experiments, errors, batches, strict=True):
            one.count_update(error, mine)

    def _updates(self) -> int:
        """Of all seeds."""
        return sum(one.counters.updates for one in self.experiments)

    def _named(self) -> str:
        seeds = [one.args.seed for one in self.experiments]
        return f"seeds {seeds[0]} to {seeds[-1]}"

    def _report(self, runs: list[Run], seconds: float) -> None:
        steps, updates = self.runner.t_env * len(runs), self._updates()
        rows = [
            ("steps of all", f"{steps:,} ({steps / seconds:,.0f} per second)"),
            ("updates of all", f"{updates:,} ({updates / seconds:.1f} per second)"),
            ("time", time_str(seconds)),
            ("test episodes", f"{self.args.test_nepisode} of each"),
        ]
        summaries = [one.counters.summary for one in self.experiments]
        rows += [(key.removeprefix("test_"), _spread([one[key] for one in summaries], 3)) for key in summaries[0]]
        kept = [one.keep_results(run) for one, run in zip(self.experiments, runs, strict=True)]
        rows += [
            (f"seed {one.args.seed}, {name}", place)
            for one, found in zip(self.experiments, kept, strict=True)
            for name, place in found
        ]
        game = env_title(self.args.env, self.args.env_args)
        print("\n" + format_table(rows, f"{self.args.name} on {game}, {self._named()}"))
        sys.stdout.flush()


class SpreadProgress(Progress):
    """The table of several seeds: mean, least and largest."""

    WIDTH = 24

    def __init__(self, loggers: list[Logger], t_max: int):
        super().__init__(loggers[0], 0, t_max, "steps")
        self.loggers = loggers

    def _latest(self, key: str) -> str:
        values = [value for one in self.loggers if (value := one.latest(key)) is not None]
        return _spread(values, 2) if values else "-"


def _spread(values: list[float], digits: int) -> str:
    """The mean [least, largest]; one number where they are the same."""
    mean, least, largest = (f"{x:.{digits}f}" for x in (np.mean(values), min(values), max(values)))
    return mean if least == largest else f"{mean} [{least}, {largest}]"
