"""Wiring of a run, and the loop that collects, trains, evaluates and records."""

import contextlib
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from components.episode_buffer import EpisodeBatch, ReplayBuffer, episode_bytes
from components.pace import Pace
from components.transforms import OneHot
from config.schema import extend, freeze
from controllers import REGISTRY as mac_REGISTRY
from envs import make_vector_env
from envs.multiagentenv import EnvCrash
from keeper import Keeper
from learners import REGISTRY as learner_REGISTRY
from objectives.gate import MEASURED
from runners import REGISTRY as runner_REGISTRY
from runners.game_tables import format_tables
from utils import models
from utils.checkpoints import Checkpoints, Resumption
from utils.errors import Interrupted, RunFailure, UserError
from utils.logging import Logger, Progress, format_table
from utils.memory import format_bytes
from utils.networks import NonFiniteError
from utils.plots import plot_gate, plot_learning_curve
from utils.registry import resolve
from utils.seeding import random_states, seed_everything, set_random_states
from utils.signals import StopRequest
from utils.state import restore, state_of
from utils.timehelper import time_str

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
    device = _choose_device(freeze(_config), _log)
    env_args = dict(_config["env_args"])
    if times and env_args.get("seed") is not None:  # what cannot save itself must not play its first episodes again
        env_args["seed"] = (env_args["seed"] + RESUMED_SEED * times) % 2_000_000_000
    # PyMARL's plug-ins move themselves by use_cuda.
    args = freeze({**_config, "use_cuda": device != "cpu", "env_args": env_args})
    folder = _new_folder(args) if resumption is None else resumption.folder
    args = extend(args, device=device, unique_token=folder.name)
    torch.set_num_threads(args.torch_threads or _good_thread_count(args))
    torch.set_flush_denormal(True)  # values that decay to denormals slow a CPU down a hundredfold
    seed_everything(args.seed)

    logger = Logger(_log)
    logger.setup_sacred(_run)
    about = {"token": folder.name, "config": _config, "sacred_id": _run._id, "resumed": times}
    try:
        with Checkpoints(folder, args.keep_checkpoints) as checkpoints:
            runner = resolve("runner", args.runner, runner_REGISTRY)(args, logger)
            try:
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
            finally:
                runner.close_env()
    except EnvCrash as error:
        raise RunFailure(str(error)) from error
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
    owed: float = 0.0  # updates that the collected episodes have earned and that were not made yet
    last_test: float = -math.inf
    last_log: float = -math.inf
    last_save: int = 0
    last_rollout: float = -math.inf
    rollout_steps: int = 0
    summary: dict[str, float] = field(default_factory=dict)  # of the last test


class Experiment:
    """The parts of one run, built from its configuration and around its runner."""

    def __init__(self, args, logger: Logger, runner):
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
        if _block_says(args, "heads", "reward_independent", "individual"):
            if not info.get("individual_reward"):
                raise UserError(
                    f"heads.reward_independent=individual: env {args.env} gives one reward to the team, none to each "
                    "agent; set heads.reward_independent=team (greed_games needs env_args.rewards=individual)"
                )
            self.scheme["individual_reward"] = {"vshape": (args.n_agents,)}
        learner_class = resolve("learner", args.learner, learner_REGISTRY)
        # Learners that were written for PyMARL do not say what they read.
        if _block_says(args, "behaviour", "source", "stored") or getattr(learner_class, "reads_behaviour", False):
            self.scheme["behaviour"] = {"vshape": (args.n_actions,), "group": "agents"}
        self.groups = {"agents": args.n_agents}
        self.preprocess = {"actions": ("actions_onehot", [OneHot(args.n_actions)])}
        steps = args.episode_limit + 1
        self.buffer: Any = None
        if not args.evaluate:
            where = "cpu" if args.buffer_cpu_only else args.device
            self.buffer = ReplayBuffer(self.scheme, self.groups, args.buffer_size, steps, self.preprocess, where)
        full_scheme = EpisodeBatch(self.scheme, self.groups, 1, 1, preprocess=self.preprocess).scheme
        self.mac = resolve("mac", args.mac, mac_REGISTRY)(full_scheme, self.groups, args)
        self.learner = learner_class(self.mac, full_scheme, logger, args)
        if args.device != "cpu":
            self.learner.cuda()
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

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, but for the replay."""
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
        self._announce()
        started, t_start, updates = time.monotonic(), runner.t_env, self.counters.updates
        progress = Progress(self.logger, t_start, args.t_max, self.counters.updates)
        try:
            while runner.t_env <= args.t_max:
                self._round(progress)
                between()
            if runner.t_env > self.counters.last_test:
                self.counters.summary = self._test()
                progress.row(runner.t_env, self.counters.updates)
        except Interrupted:
            raise
        except KeyboardInterrupt:
            progress.close()
            self.logger.console_logger.info(
                "Interrupted at step %d; the model is saved in %s", runner.t_env, self.save()
            )
            raise
        except EnvCrash as error:
            raise RunFailure(
                f"training stopped at step {runner.t_env}; the model is saved in {self.save()}: {error}"
            ) from error
        finally:
            progress.close()
        saved = self.save() if args.save_model else None
        done = (runner.t_env - t_start, self.counters.updates - updates, time.monotonic() - started)
        self._report(_run, *done, saved)
        return self.counters.summary

    def _round(self, progress: Progress) -> None:
        """Collect some episodes, make the updates that they earn, and test, save and log what is due."""
        args, runner, counters, buffer = self.args, self.runner, self.counters, self.buffer
        batch = runner.run(test_mode=False)
        pace = Pace(args.batch_size, args.buffer_size, args.updates_per_episode)
        for part in pace.portions(batch, counters.episodes):
            buffer.insert_episode_batch(part)
            counters.episodes += part.batch_size
            counters.owed += pace.earned(part.batch_size, counters.episodes)
            while counters.owed >= 1:
                sample = buffer.sample(args.batch_size)
                if sample.device != args.device:
                    sample.to(args.device)
                self._update(sample)
                counters.updates, counters.owed = counters.updates + 1, counters.owed - 1
        t_env = runner.t_env
        if self._rolls_out and counters.updates and t_env - counters.last_rollout >= args.gate.rollout_interval:
            counters.rollout_steps += self._certify()
            self.logger.log_stat("rollout_steps", counters.rollout_steps, t_env)
            counters.last_rollout = t_env
        if t_env - counters.last_test >= args.test_interval:
            counters.summary = self._test()
            counters.last_test = t_env
        if args.save_model and t_env - counters.last_save >= args.save_model_interval:
            try:
                self.save()
            except OSError as error:
                self.logger.console_logger.warning("The model of step %d cannot be saved: %s", t_env, error)
            counters.last_save = t_env
        if t_env - counters.last_log >= args.log_interval:
            self.logger.log_stat("episode", counters.episodes, t_env)
            self.logger.log_stat("updates", counters.updates, t_env)
            progress.row(t_env, counters.updates)
            counters.last_log = t_env
        progress.line(t_env, counters.updates)

    def evaluate(self) -> dict[str, float]:
        """Play `test_nepisode` test episodes and print their statistics."""
        summary = self._test()
        rows = [("episodes", f"{self.args.test_nepisode}"), ("model", f"{self.args.checkpoint_path or 'untrained'}")]
        rows += [(key.removeprefix("test_"), f"{value:.4f}") for key, value in summary.items()]
        print(format_table(rows, f"Evaluation of {self.args.name} on {_env_title(self.args)}"))
        if self.args.save_replay:
            try:
                saved = self.runner.save_replay()
                for path in saved if isinstance(saved, list) else [saved]:
                    print(f"Replay: {path}" if path else "The environment has saved its replay")
            except NotImplementedError as error:
                raise UserError(f"save_replay=True: {error}; set save_replay=False") from error
        return summary

    def save(self) -> Path:
        """Save the model as it is now; returns its folder.

        Raises:
            OSError: it cannot be written.
        """
        return models.save(self.learner, self.model_folder, self.runner.t_env, self.args)

    def _update(self, sample: EpisodeBatch) -> None:
        try:
            self.learner.train(sample, self.runner.t_env, self.counters.episodes)
        except NonFiniteError as error:
            path = self.save()
            file = path / "nonfinite_batch.pt"
            torch.save({**sample.data.transition_data, **sample.data.episode_data}, file)
            raise RunFailure(
                f"training stopped at step {self.runner.t_env}: {error}; the batch is in {file}, "
                f"the model before the update beside it"
            ) from error

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

    def _test(self) -> dict[str, float]:
        if hasattr(self.runner, "evaluate"):
            return self.runner.evaluate(self.args.test_nepisode)
        for _ in range(max(1, self.args.test_nepisode // self.runner.batch_size)):  # a runner written for PyMARL
            self.runner.run(test_mode=True)
        return {k: v[-1][1] for k, v in self.logger.stats.items() if k.startswith("test_")}

    def _announce(self) -> None:
        args, log = self.args, self.logger.console_logger.info
        sizes = f"{args.n_agents} agents, {args.n_actions} actions, observations of {args.obs_shape}"
        log("%s on %s: %s, state of %s", args.name, _env_title(args), sizes, args.state_shape)
        size = episode_bytes(self.scheme, self.groups, args.episode_limit + 1) * args.buffer_size
        log("Replay: %d episodes, %s on %s", args.buffer_size, format_bytes(size), self.buffer.device)
        log(
            "%s update(s) of %d episodes per collected episode; %d environment(s); device %s, %d torch thread(s)",
            f"{args.updates_per_episode:g}",
            args.batch_size,
            self.runner.batch_size,
            args.device,
            torch.get_num_threads(),
        )

    def _report(self, _run, steps: int, updates: int, seconds: float, saved: Path | None) -> None:
        args, results = self.args, Path(self.args.local_results_path)
        env: Any = getattr(self.runner, "env", None)
        if hasattr(env, "game_states") and hasattr(self.learner, "joint_values"):

            def new_batch(episodes: int, length: int) -> EpisodeBatch:
                return EpisodeBatch(self.scheme, self.groups, episodes, length, None, self.preprocess, args.device)

            def make_env(n_envs: int):
                return make_vector_env(args.env, n_envs, args.device, args.env_args)

            print(format_tables(self.learner, env.game_states(), make_env, new_batch))
        rows = [
            ("steps", f"{steps:,} ({steps / seconds:,.0f} per second)"),
            ("updates", f"{updates:,} ({updates / seconds:.1f} per second)"),
            ("time", time_str(seconds)),
            ("test episodes", f"{args.test_nepisode}"),
        ]
        rows += [(key.removeprefix("test_"), f"{value:.3f}") for key, value in self.counters.summary.items()]
        if _run._id is not None:
            rows.append(("sacred record", f"{results / 'sacred' / str(_run._id)}"))
        if args.use_tensorboard:
            rows.append(("TensorBoard", f"{results / 'tb_logs' / args.unique_token}"))
        if saved is not None:
            rows.append(("model", f"{saved}"))
        if args.plot:
            title = f"{args.name} on {_env_title(args)}, seed {args.seed}"
            picture = plot_learning_curve(self.logger.stats, title, results / "plots" / f"{args.unique_token}.png")
            if picture is not None:
                rows.append(("learning curve", f"{picture}"))
                _run.add_artifact(str(picture), "learning_curve.png")
            path = results / "plots" / f"{args.unique_token}_gate.png"
            gate = plot_gate(self.logger.stats, getattr(self.learner, "gap_profile", None), title, path)
            if gate is not None:
                rows.append(("gate", f"{gate}"))
                _run.add_artifact(str(gate), "gate.png")
        print("\n" + format_table(rows, f"{args.name} on {_env_title(args)}, seed {args.seed}"))
        sys.stdout.flush()


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


def _block_says(args, block: str, key: str, value: str) -> bool:
    """Whether the config has this block, and this value in it: not every learner has the method's blocks."""
    return block in vars(args) and getattr(getattr(args, block), key) == value


def _good_thread_count(args) -> int:
    """One thread for small networks, where a second one only waits at barriers; otherwise what torch chose."""
    return 1 if args.rnn_hidden_dim <= 128 else torch.get_num_threads()


def _new_folder(args) -> Path:
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


def _env_title(args) -> str:
    name = args.env_args.get("map_name") or args.env_args.get("key") or args.env_args.get("game")
    return f"{args.env} {name}" if name else args.env
