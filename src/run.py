"""Wiring of a run, and the loop that collects, trains, evaluates and records."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import torch

from components.episode_buffer import EpisodeBatch, ReplayBuffer
from components.pace import Pace
from components.transforms import OneHot
from config.schema import extend, freeze
from controllers import REGISTRY as mac_REGISTRY
from envs import make_vector_env
from envs.multiagentenv import EnvCrash
from filming import film, save_replays
from keeper import Keeper
from learners import REGISTRY as learner_REGISTRY
from modules.agents.sharing import assign_groups
from objectives.gate import MEASURED
from runners import REGISTRY as runner_REGISTRY
from runners.game_tables import format_tables
from runners.overlapped_runner import OverlappedRunner
from utils import models
from utils.acceleration import accelerate
from utils.aside import allow_aside
from utils.checkpoints import Checkpoints, Resumption
from utils.cores import core_count
from utils.errors import Interrupted, RunFailure, UserError
from utils.logging import Logger, Progress, format_table
from utils.memory import format_bytes, is_out_of_memory, keep_freed_memory
from utils.networks import NonFiniteError
from utils.plots import plot_gate, plot_learning_curve
from utils.registry import lazy, resolve
from utils.seeding import random_states, seed_everything, set_random_states
from utils.signals import StopRequest
from utils.state import restore, state_of
from utils.timehelper import time_str
from utils.titles import env_title

# Imported where they are used, so that only episodes in files need h5py.
load_dataset = lazy("components.dataset:load_dataset")
new_writer = lazy("components.dataset:DatasetWriter")

LENGTHS = 8  # that batches may have if updates are compiled: each is compiled anew
NONFINITE_IN_ROW = 100  # updates in a row that are too many to leave out
NONFINITE_SAVED = 3  # batches of left out updates that are kept to be looked at
RESUMED_SEED = 1_000_003  # what a resumption adds to the seed of environments


def run(_run, _config, _log, resumption: Resumption | None = None) -> dict[str, float]:
    """Train, or evaluate a saved model, as the configuration says; returns the last test statistics.

    Args:
        _run: the sacred run.
        _config: a validated configuration (`config.schema.load`).
        _log: the console logger.
        resumption: the run of this configuration that is to go on; None for a new one.

    Raises:
        Interrupted: it was asked to stop, and can go on.
    """
    times = 0 if resumption is None else resumption.description["resumed"] + 1
    args = prepare(_config, _log, times)
    folder = new_folder(args) if resumption is None else resumption.folder
    args = extend(args, unique_token=folder.name)
    logger = Logger(_log)
    logger.setup_sacred(_run)
    about = {"token": folder.name, "config": _config, "sacred_id": _run._id, "resumed": times}
    with Checkpoints(folder, args.keep_checkpoints) as checkpoints, running(args, logger) as runner:
        experiment = Experiment(args, logger, runner)
        if args.evaluate:
            return experiment.evaluate()
        with StopRequest(args.max_hours) as stop:
            keeper = Keeper(experiment, checkpoints, about, stop)
            if times:
                keeper.resume(_run)
            if args.use_tensorboard:
                tb_logs = Path(args.local_results_path) / "tb_logs"
                logger.setup_tb(str(tb_logs / args.unique_token), runner.t_env if times else None)
            summary = experiment.train(_run, keeper.between)
            keeper.finish(summary)
            return summary


def record(config, path: str, episodes: int, log) -> Path:
    """Play exactly `episodes` episodes, as in training but without learning, into the file `path`.

    Args:
        config: a validated configuration; the model of its `checkpoint_path` plays, or without one new networks.
        log: the console logger.
    """
    args = extend(prepare({**config, "evaluate": True}, log), unique_token="dataset")  # nothing is learned: no replay
    logger = Logger(log)
    with running(args, logger) as runner:
        return Experiment(args, logger, runner, records=True).record(path, episodes)


def watch(config, path: Path, episodes: int, fps: float, log) -> list[str]:
    """Play greedy episodes of a saved model into a film; what cannot be drawn saves a replay of its own.

    Args:
        config: a validated configuration with a `checkpoint_path`.

    Returns:
        Lines that say what was written.
    """
    args = extend(prepare({**config, "evaluate": True, "test_nepisode": episodes}, log), unique_token="replay")
    with running(args, Logger(log)) as runner:
        return film(Experiment(args, Logger(log), runner), path, episodes, fps)


def prepare(config, log, times_resumed: int = 0):
    """The arguments of a run, with its device; sets seeds and threads."""
    device = _choose_device(freeze(config), log)
    env_args = dict(config["env_args"])
    if times_resumed and env_args.get("seed") is not None:
        # What cannot save itself must not play its first episodes again.
        env_args["seed"] = (env_args["seed"] + RESUMED_SEED * times_resumed) % 2_000_000_000
    # PyMARL's plug-ins move themselves by use_cuda.
    args = extend(freeze({**config, "use_cuda": device != "cpu", "env_args": env_args}), device=device)
    torch.set_num_threads(args.torch_threads or _good_thread_count(args))
    allow_aside(has_spare_core(args))
    keep_freed_memory()
    torch.set_flush_denormal(True)  # values that decay to denormals slow a CPU down a hundredfold
    seed_everything(args.seed)
    return args


def make_runner(args, logger: Logger) -> Any:
    """The runner, in a process of its own if `overlap` says so and there is something to learn meanwhile."""
    runner_class = resolve("runner", args.runner, runner_REGISTRY)
    if _overlaps(args):
        return OverlappedRunner(runner_class, args, logger)
    return runner_class(args, logger)


def _overlaps(args) -> bool:
    """Whether a second process collects while this one learns."""
    return args.overlap and not (args.evaluate or args.offline)


@contextlib.contextmanager
def running(args, logger: Logger, build: Callable[..., Any] | None = None) -> Iterator[Any]:
    """The runner that `build`, or `args.runner`, makes; closed in the end."""
    try:
        runner = (build or make_runner)(args, logger)
        try:
            yield runner
        finally:
            runner.close_env()
    except EnvCrash as error:
        raise RunFailure(str(error)) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunFailure(
            f"no memory is left on {args.device}: {' '.join(str(error).split())[:300]}; lower batch_size "
            f"({args.batch_size}), buffer_size ({args.buffer_size}) or batch_size_run ({args.batch_size_run})"
            + ("" if args.device == "cpu" else ", or set buffer_cpu_only=True")
        ) from error
    finally:
        logger.close()


def _nothing() -> None:
    pass


@dataclass
class Counters:
    """How far a run is, in environment steps where nothing else is said."""

    t_start: int = 0
    episodes: int = 0
    updates: int = 0
    nonfinite_updates: int = 0  # left out, because a loss or gradient was no finite number
    nonfinite_in_row: int = 0  # of these, since the last that was made
    owed: float = 0.0  # updates that the collected episodes have earned and that were not made yet
    last_test: float = -math.inf
    last_log: float = -math.inf
    last_save: int = 0
    last_rollout: float = -math.inf
    rollout_steps: int = 0
    summary: dict[str, float] = field(default_factory=dict)  # of the last test


class Experiment:
    """The parts of one run, built from its configuration and around its runner.

    Args:
        records: whether episodes will be recorded, so that all is kept of them that a learner may want.
    """

    def __init__(self, args, logger: Logger, runner, records: bool = False):
        self.logger = logger
        self.runner = runner
        # Again: packages that an environment imports draw random numbers, but only the first time in a process.
        seed_everything(args.seed)
        info = self.runner.get_env_info()
        args = extend(
            args,
            n_agents=info["n_agents"],
            n_actions=info["n_actions"],
            state_shape=info["state_shape"],
            obs_shape=info["obs_shape"],
            episode_limit=info["episode_limit"],
            agent_groups=assign_groups(args, info["n_agents"], info.get("agent_types")),
        )
        self.args = args
        self.model_folder = Path(args.local_results_path) / "models" / args.unique_token
        self.scheme = {
            "state": {"vshape": args.state_shape},
            "obs": {"vshape": args.obs_shape, "group": "agents"},
            "actions": {"vshape": (1,), "group": "agents", "dtype": torch.long},
            "avail_actions": {"vshape": (args.n_actions,), "group": "agents", "dtype": torch.int},
            "reward": {"vshape": (1,)},
            "terminated": {"vshape": (1,), "dtype": torch.uint8},
        }
        for block, key in (("heads", "reward_independent"), ("iac", "reward")):
            if not _block_says(args, block, key, "individual"):
                continue
            if not info.get("individual_reward"):
                raise UserError(
                    f"{block}.{key}=individual: env {args.env} gives one reward to the team, none to each agent; "
                    f"set {block}.{key}=team (greed_games needs env_args.rewards=individual)"
                )
            self.scheme["individual_reward"] = {"vshape": (args.n_agents,)}
        saves = bool(args.save_dataset) and not args.evaluate
        records = records or saves
        if records and info.get("individual_reward"):
            self.scheme["individual_reward"] = {"vshape": (args.n_agents,)}
        learner_class = resolve("learner", args.learner, learner_REGISTRY)
        # Learners that were written for PyMARL do not say what they read.
        reads = _block_says(args, "behaviour", "source", "stored") or getattr(learner_class, "reads_behaviour", False)
        if records or reads:
            self.scheme["behaviour"] = {"vshape": (args.n_actions,), "group": "agents"}
        self.groups = {"agents": args.n_agents}
        self.preprocess = {"actions": ("actions_onehot", [OneHot(args.n_actions)])}
        steps = args.episode_limit + 1
        self.buffer: Any = None
        if not args.evaluate:
            where, dtype = "cpu" if args.buffer_cpu_only else args.device, getattr(torch, args.replay_dtype)
            if args.offline:
                self.buffer, self.dataset = self._load_dataset(steps, where, dtype)
            else:
                parts = (self.scheme, self.groups, args.buffer_size, steps, self.preprocess)
                self.buffer = ReplayBuffer(*parts, where, dtype)
            if args.compile:
                self.buffer.lengths = LENGTHS
        full_scheme = EpisodeBatch(self.scheme, self.groups, 1, 1, preprocess=self.preprocess).scheme
        self.mac = resolve("mac", args.mac, mac_REGISTRY)(full_scheme, self.groups, args)
        self.learner = learner_class(self.mac, full_scheme, logger, args)
        if args.device != "cpu":
            self.learner.cuda()
        accelerate(self.learner, args)
        self.counters = Counters()
        self.runner.setup(self.scheme, self.groups, self.preprocess, self.mac)
        if args.checkpoint_path:
            path, step = models.find(args.checkpoint_path, args.load_step)
            models.load(self.learner, path, args)
            if not args.evaluate and step > args.t_max:
                raise UserError(
                    f"t_max={args.t_max}: the model in {path} has been trained for {step} steps; set a larger t_max"
                )
            self.runner.t_env = self.counters.t_start = self.counters.last_save = step
            logger.console_logger.info("Loaded the model of step %d from %s", step, path)
        self.writer = self._new_writer(args.save_dataset) if saves else None

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, but for the replay.

        Raises:
            TypeError: a part cannot be saved; the message names it.
        """
        if not hasattr(self.runner, "state_dict"):
            raise TypeError(f"runner={self.args.runner} has no state_dict and load_state_dict, as PyMARL's have none")
        return {
            "learner": state_of(self.learner, "learner"),
            "runner": self.runner.state_dict(),
            "counters": state_of(self.counters),
            "statistics": state_of(self.logger.stats),
            "random": random_states(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore(self.learner, state["learner"])
        self.runner.load_state_dict(state["runner"])
        restore(self.counters, state["counters"])
        self.logger.stats = restore(self.logger.stats, state["statistics"])
        set_random_states(state["random"])

    def train(self, _run, between: Callable[[], None] = _nothing) -> dict[str, float]:
        """Collect, train, evaluate and record until `t_max`, and report.

        Args:
            between: called after every round, when nothing is half done.
        """
        args, runner = self.args, self.runner
        self.announce()
        started, t_start, updates = time.monotonic(), runner.t_env, self.counters.updates
        progress = Progress(self.logger, t_start, args.t_max, "updates" if args.offline else "steps", updates)
        try:
            while runner.t_env <= args.t_max - args.offline:
                self._round(progress)
                between()
            if self.test_last():
                progress.row(runner.t_env, self.counters.updates)
        except Interrupted:
            raise
        except KeyboardInterrupt:
            progress.close()
            self.logger.console_logger.info("Interrupted at step %d; %s", runner.t_env, self.say_save())
            raise
        except EnvCrash as error:
            raise RunFailure(f"training stopped at step {runner.t_env}; {self.say_save()}: {error}") from error
        finally:
            progress.close()
            if self.writer is not None:  # however training ends, the episodes are whole
                self._keep_dataset(self.writer)
        done = (runner.t_env - t_start, self.counters.updates - updates, time.monotonic() - started)
        self._report(_run, *done)
        return self.counters.summary

    def test_last(self) -> bool:
        """Test once more, unless nothing was played since; whether that was so."""
        if self.runner.t_env <= self.counters.last_test:
            return False
        self.counters.summary = self.test()
        self.counters.last_test = self.runner.t_env
        return True

    def _round(self, progress: Progress) -> None:
        """Collect some episodes, make the updates that they earn, and test, save and log what is due."""
        for _ in self.due_updates():
            sample = self.buffer.sample(self.args.batch_size)
            if sample.device != self.args.device:
                sample.to(self.args.device)
            self._update(sample)
        if self.keep_up():
            progress.row(self.runner.t_env, self.counters.updates)
        progress.line(self.runner.t_env, self.counters.updates)

    def due_updates(self) -> Iterator[None]:
        """Collect some episodes; returns once for every update that they earn, which is to be made then."""
        for earned in self._collect():
            self.counters.owed += earned
            while self.counters.owed >= 1:
                yield
                self.counters.owed -= 1

    def keep_up(self) -> bool:
        """Test, save and log what is due; whether statistics were logged."""
        args, runner, counters = self.args, self.runner, self.counters
        t_env = runner.t_env
        if self._rolls_out and counters.updates and t_env - counters.last_rollout >= args.gate.rollout_interval:
            counters.rollout_steps += self._certify()
            self.logger.log_stat("rollout_steps", counters.rollout_steps, t_env)
            counters.last_rollout = t_env
        if t_env - counters.last_test >= args.test_interval:
            counters.summary = self.test()
            counters.last_test = t_env
        if args.save_model and t_env - counters.last_save >= args.save_model_interval:
            try:
                self.save()
            except OSError as error:
                self.logger.console_logger.warning("The model of step %d cannot be saved: %s", t_env, error)
            counters.last_save = t_env
        if t_env - counters.last_log < args.log_interval:
            return False
        if not args.offline:
            self.logger.log_stat("episode", counters.episodes, t_env)
        self.logger.log_stat("updates", counters.updates, t_env)
        if args.on_nonfinite == "skip":
            self.logger.log_stat("nonfinite_updates", counters.nonfinite_updates, t_env)
        counters.last_log = t_env
        return True

    def evaluate(self) -> dict[str, float]:
        """Play `test_nepisode` test episodes and print their statistics."""
        summary = self.test()
        rows = [("episodes", f"{self.args.test_nepisode}"), ("model", f"{self.args.checkpoint_path or 'untrained'}")]
        rows += [(key.removeprefix("test_"), f"{value:.4f}") for key, value in summary.items()]
        print(format_table(rows, f"Evaluation of {self.args.name} on {env_title(self.args.env, self.args.env_args)}"))
        if self.args.save_replay:
            try:
                print("\n".join(save_replays(self.runner)))
            except NotImplementedError as error:
                raise UserError(f"save_replay=True: {error}; set save_replay=False") from error
        if self.args.render:
            path = Path(self.args.local_results_path) / "replays" / f"{self.args.unique_token}.gif"
            print("\n".join(film(self, path)))
        return summary

    def new_batch(self, episodes: int, steps: int) -> EpisodeBatch:
        """An empty one for what this run's agents play."""
        return EpisodeBatch(self.scheme, self.groups, episodes, steps, None, self.preprocess, self.args.device)

    def record(self, path: str, episodes: int) -> Path:
        """Play exactly `episodes` episodes into the file `path`."""
        writer = self._new_writer(path)
        log, said = self.logger.console_logger.info, time.monotonic()
        started = said
        log("Recording %d episodes of %s in %s", episodes, env_title(self.args.env, self.args.env_args), path)
        try:
            while len(writer) < episodes:
                batch = self.runner.run(test_mode=False)
                writer.append(batch[: episodes - len(writer)])
                if time.monotonic() - said >= 5:
                    said = time.monotonic()
                    left = (said - started) * (episodes - len(writer)) / len(writer)
                    log("%d of %d episodes, left %s", len(writer), episodes, time_str(left))
            return self._keep_dataset(writer)
        except BaseException:
            writer.discard()
            raise

    def _keep_dataset(self, writer) -> Path:
        wanted = writer.path
        if writer.commit() != wanted:
            self.logger.console_logger.warning("%s exists by now; the episodes are in %s", wanted, writer.path)
        return writer.path

    def _new_writer(self, path: str):
        """A `DatasetWriter` for what this run's agents play."""
        args = self.args
        if not getattr(self.mac, "records_behaviour", False):
            raise UserError(
                f"mac={args.mac}: does not say how likely its actions were, which {path} would hold; set mac=basic_mac"
            )
        steps = args.episode_limit + 1
        exploration = [getattr(args, f"epsilon_{key}") for key in ("start", "finish", "anneal_time")]
        policy = {
            "config": args.name,
            "model": args.checkpoint_path,
            "learning": not args.evaluate,
            "epsilon from, to, within": exploration,
        }
        attributes = self._played_in() | {
            "seed": args.seed,
            "policy": json.dumps(policy),
            "versions": json.dumps(_versions()),
            "created": datetime.now().isoformat(timespec="seconds"),
        }
        return new_writer(path, self.scheme, self.groups, self.preprocess, steps, attributes)

    def _load_dataset(self, steps: int, device: str, dtype: torch.dtype) -> tuple[ReplayBuffer, dict[str, Any]]:
        args = self.args
        parts = (self.scheme, self.groups, self.preprocess)
        found = load_dataset(args.dataset, self._played_in(), *parts, steps, device, dtype)
        if not found[0].can_sample(args.batch_size):
            raise UserError(
                f"batch_size={args.batch_size}: {args.dataset} holds {found[0].buffer_size} episodes; "
                f"set batch_size={found[0].buffer_size} or less, or record more"
            )
        return found

    def _played_in(self) -> dict[str, Any]:
        """What episodes must agree in to be learned from together."""
        args = self.args
        names = ("env", "n_agents", "n_actions", "obs_shape", "state_shape", "episode_limit", "bootstrap_time_limit")
        return {name: getattr(args, name) for name in names} | {"env_args": json.dumps(args.env_args, sort_keys=True)}

    def _collect(self) -> Iterator[float]:
        """Play until an episode ends, put what ended into the replay, and say how many updates that earns.

        Offline nothing is played: there is one update after another, and time counts them. For target networks an
        update counts as an episode, as it does where one is made for each.
        """
        args, counters = self.args, self.counters
        if args.offline:
            self.runner.t_env += 1
            counters.episodes += 1
            yield 1.0
            return
        batch = self.runner.run(test_mode=False)
        if self.writer is not None:
            self.writer.append(batch)
        pace = Pace(args.batch_size, args.buffer_size, args.updates_per_episode)
        for part in pace.portions(batch, counters.episodes):
            self.buffer.insert_episode_batch(part)
            counters.episodes += part.batch_size
            yield pace.earned(part.batch_size, counters.episodes)

    def save(self) -> Path:
        """Save the model as it is now; returns its folder.

        Raises:
            OSError: it cannot be written.
        """
        return models.save(self.learner, self.model_folder, self.runner.t_env, self.args)

    def say_save(self) -> str:
        """`save`, and what became of it, in words."""
        try:
            return f"the model is saved in {self.save()}"
        except OSError as error:
            return f"the model cannot be saved: {error}"

    def _update(self, sample: EpisodeBatch) -> None:
        """Learn from a batch, if it can be done."""
        try:
            self.learner.train(sample, self.runner.t_env, self.counters.episodes)
        except NonFiniteError as error:
            self.count_update(error, sample)
        else:
            self.count_update(None, sample)

    def count_update(self, error: NonFiniteError | None, sample: EpisodeBatch) -> None:
        """An update with this batch was made, or left out for this error."""
        counters = self.counters
        if error is None:
            counters.updates += 1
            counters.nonfinite_in_row = 0
            return
        counters.nonfinite_updates += 1
        counters.nonfinite_in_row += 1
        if self.args.on_nonfinite == "stop" or counters.nonfinite_in_row >= NONFINITE_IN_ROW:
            self._stop_at(error, sample)
        self._leave_out(error, sample)

    def _stop_at(self, error: NonFiniteError, sample: EpisodeBatch) -> NoReturn:
        row = self.counters.nonfinite_in_row
        often = f" in {row} updates in a row" if self.args.on_nonfinite == "skip" else ""
        kept = self._keep(sample, self.model_folder, self.runner.t_env)
        raise RunFailure(f"training stopped at step {self.runner.t_env}: {error}{often}; {kept}") from error

    def _leave_out(self, error: NonFiniteError, sample: EpisodeBatch) -> None:
        """Go on without this update; the first batches are kept with the model that met them."""
        count, log = self.counters.nonfinite_updates, self.logger.console_logger.warning
        if count & (count - 1) == 0:  # the first, second, fourth, eighth, ...
            log("Update left out at step %d (%d so far): %s", self.runner.t_env, count, error)
        if count <= NONFINITE_SAVED:
            log("Of update left out %d %s", count, self._keep(sample, self.model_folder / "nonfinite", count))

    def _keep(self, sample: EpisodeBatch, folder: Path, number: int) -> str:
        """Save a batch that could not be learned from with the model; says where."""
        try:
            file = models.save(self.learner, folder, number, self.args) / "nonfinite_batch.pt"
            torch.save({**sample.data.transition_data, **sample.data.episode_data}, file)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
            return f"the batch cannot be saved: {error}"
        return f"the batch is in {file}, the model before the update beside it"

    @property
    def _rolls_out(self) -> bool:
        """Whether the gate compares the heads' values with greedy episodes that are played for it."""
        if not _block_says(self.args, "gate", "realised", "rollout"):
            return False
        return self.args.gate.metric in MEASURED or self.args.gate.target == "cert"

    def _certify(self) -> int:
        """Let each head play greedily and tell the learner what it earned; returns the steps that this took."""
        steps = 0
        for head in range(2):
            if hasattr(self.mac, "act_with"):
                self.mac.act_with(head)
            batch = self.runner.play(self.args.gate.rollout_episodes)
            self.learner.certify(head, batch)
            steps += int(batch["filled"][:, 1:].sum())
        self.learner.choose_actor()
        return steps

    def test(self) -> dict[str, float]:
        """Play `test_nepisode` test episodes; returns their statistics."""
        if hasattr(self.runner, "evaluate"):
            return self.runner.evaluate(self.args.test_nepisode)
        for _ in range(max(1, self.args.test_nepisode // self.runner.batch_size)):  # a runner written for PyMARL
            self.runner.run(test_mode=True)
        return {k: v[-1][1] for k, v in self.logger.stats.items() if k.startswith("test_")}

    def announce(self) -> None:
        args, log = self.args, self.logger.console_logger.info
        sizes = f"{args.n_agents} agents, {args.n_actions} actions, observations of {args.obs_shape}"
        log("%s on %s: %s, state of %s", args.name, env_title(args.env, args.env_args), sizes, args.state_shape)
        held, size = self.buffer.buffer_size, format_bytes(self.buffer.nbytes)
        log("Replay: %d episodes, %s on %s, observations as %s", held, size, self.buffer.device, args.replay_dtype)
        machine = f"device {args.device}, {torch.get_num_threads()} torch thread(s)"
        if args.offline:
            mean, std = self.dataset["return_mean"], self.dataset["return_std"]
            log("Offline: all of them from %s, of return %.2f (deviation %.2f)", args.dataset, mean, std)
            log("%d updates of %d episodes; t counts updates; %s", args.t_max, args.batch_size, machine)
            return
        log(
            "%s update(s) of %d episodes per collected episode; %d environment(s); %s",
            f"{args.updates_per_episode:g}",
            args.batch_size,
            self.runner.batch_size,
            machine,
        )

    def _report(self, _run, steps: int, updates: int, seconds: float) -> None:
        args = self.args
        env: Any = getattr(self.runner, "env", None)
        if hasattr(env, "game_states") and hasattr(self.learner, "joint_values"):

            def make_env(n_envs: int):
                return make_vector_env(args.env, n_envs, args.device, args.env_args)

            print(format_tables(self.learner, env.game_states(), make_env, self.new_batch))
        rows = [] if args.offline else [("steps", f"{steps:,} ({steps / seconds:,.0f} per second)")]
        rows += [
            ("updates", f"{updates:,} ({updates / seconds:.1f} per second)"),
            ("time", time_str(seconds)),
            ("test episodes", f"{args.test_nepisode}"),
        ]
        rows += [(key.removeprefix("test_"), f"{value:.3f}") for key, value in self.counters.summary.items()]
        rows += self.keep_results(_run)
        print("\n" + format_table(rows, f"{args.name} on {env_title(args.env, args.env_args)}, seed {args.seed}"))
        sys.stdout.flush()

    def keep_results(self, _run) -> list[tuple[str, str]]:
        """Save the model and draw what is wanted, and hand them to sacred; returns what lies where."""
        args, results = self.args, Path(self.args.local_results_path)
        try:
            saved = self.save() if args.save_model else None
        except OSError as error:
            raise RunFailure(f"training is complete, but its model cannot be saved: {error}") from error
        rows = []
        if _run._id is not None:
            rows.append(("sacred record", f"{results / 'sacred' / str(_run._id)}"))
        if args.use_tensorboard:
            rows.append(("TensorBoard", f"{results / 'tb_logs' / args.unique_token}"))
        if saved is not None:
            rows.append(("model", f"{saved}"))
            for file in sorted(saved.iterdir()):
                _run.add_artifact(str(file), file.name)
        if self.writer is not None and len(self.writer):
            rows.append(("dataset", f"{self.writer.path} ({len(self.writer):,} episodes)"))
        if args.plot:
            try:
                rows += self._plot(_run)
            except OSError as error:
                self.logger.console_logger.warning("The pictures cannot be written: %s", error)
        return rows

    def _plot(self, _run) -> list[tuple[str, str]]:
        """Draw the run's pictures and hand them to sacred; returns what each is and where it lies."""
        args, plots = self.args, Path(self.args.local_results_path) / "plots"
        unit = "gradient updates" if args.offline else "environment steps"
        title = f"{args.name} on {env_title(args.env, args.env_args)}, seed {args.seed}"
        curve = plot_learning_curve(self.logger.stats, title, plots / f"{args.unique_token}.png", unit)
        profile = getattr(self.learner, "gap_profile", None)
        gate = plot_gate(self.logger.stats, profile, title, plots / f"{args.unique_token}_gate.png", unit)
        rows = []
        for name, picture in (("learning curve", curve), ("gate", gate)):
            if picture is not None:
                rows.append((name, f"{picture}"))
                _run.add_artifact(str(picture), f"{name.replace(' ', '_')}.png")
        return rows


def _choose_device(args, log) -> str:
    if not args.use_cuda:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if args.require_cuda:
        raise UserError(
            "require_cuda=True: torch finds no CUDA device; check `nvidia-smi` and that torch is a CUDA build "
            f"(this one is {torch.__version__}), or set require_cuda=False to train on the CPU"
        )
    log.info("No CUDA device: training on the CPU (use_cuda=False says so on purpose, require_cuda=True would fail)")
    return "cpu"


def _versions() -> dict[str, str]:
    """Of what a recorded episode depends on."""
    packages = ("torch", "numpy", "h5py", "jaxmarl", "gymnasium", "lbforaging", "rware", "mpe2", "smac", "smacv2")
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _block_says(args, block: str, key: str, value: str) -> bool:
    """Whether the config has this block, and this value in it: not every learner has the method's blocks."""
    return block in vars(args) and getattr(getattr(args, block), key) == value


def has_spare_core(args) -> bool:
    """Whether updates have a second core (`utils.aside`), beside one for an overlapping collection.

    Sweeps tell each of their runs by OMP_NUM_THREADS how many are its own.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    cores = min(core_count(), int(given)) if given.isdecimal() else core_count()
    return args.torch_threads == 0 and cores >= (3 if _overlaps(args) else 2)


def _good_thread_count(args) -> int:
    """One thread for small networks, where a second one only waits at barriers; otherwise what torch chose."""
    return 1 if args.rnn_hidden_dim <= 128 else torch.get_num_threads()


def new_folder(args) -> Path:
    """results/checkpoints/<name>__<time>, made here and so this run's alone: the last part is its token.

    A number stands behind the time if another run of this second has taken the name.
    """
    results = Path(args.local_results_path)
    token = f"{args.name}__{datetime.now():%Y-%m-%d_%H-%M-%S}"
    for name in (token, *(f"{token}_{i}" for i in range(2, 1000))):
        if any((results / folder / name).exists() for folder in ("models", "tb_logs")):
            continue
        with contextlib.suppress(FileExistsError):
            (results / "checkpoints" / name).mkdir(parents=True)
            return results / "checkpoints" / name
    raise UserError(f"local_results_path={args.local_results_path!r}: no free name like {token} in checkpoints")
