"""Films of greedy episodes, with what the networks say beside the picture; replays where nothing can be drawn."""

from pathlib import Path
from typing import Any

import torch

from envs import REGISTRY as env_REGISTRY
from envs.multiagentenv import MultiAgentEnv
from runners.spectator import Watched, watch_episode
from utils.errors import RunFailure, UserError
from utils.memory import format_bytes
from utils.networks import unroll
from utils.registry import lazy, resolve
from utils.titles import env_title

# Imported where they are used, so that only films need matplotlib.
Shot = lazy("pictures.film:Shot")
check_film = lazy("pictures.film:check")
save_film = lazy("pictures.film:save")


def film(experiment, path: Path, episodes: int = 1, fps: float = 4.0) -> list[str]:
    """Film greedy episodes of a `run.Experiment`; returns lines that say what was played and written.

    Raises:
        UserError: the environment has neither `scene` nor `save_replay`.
    """
    args = experiment.args
    check_film(path)
    # Battles that were not trained on, as in tests.
    seed = None if args.env_args["seed"] is None else args.env_args["seed"] + args.batch_size_run
    env = resolve("env", args.env, env_REGISTRY)(**{**args.env_args, "seed": seed})
    shots, lines = [], []
    try:
        if getattr(type(env), "scene", MultiAgentEnv.scene) is MultiAgentEnv.scene:  # known before a game starts
            return _replay_instead(experiment)
        for number in range(1, episodes + 1):
            watched = watch_episode(env, experiment.mac, lambda: experiment.new_batch(1, args.episode_limit + 1))
            title = f"{args.name} on {env_title(args.env, args.env_args)}, episode {number}"
            shots += _shots(experiment, watched, title)
            lines.append(f"Episode {number}: {_outcome(watched)}")
    except NotImplementedError:
        return _replay_instead(experiment)
    finally:
        env.close()
    try:
        save_film(path, shots, fps)
    except OSError as error:
        raise RunFailure(f"{path} cannot be written: {error}") from error
    return [*lines, f"Film: {path} ({len(shots)} frames, {format_bytes(path.stat().st_size)})"]


def save_replays(runner) -> list[str]:
    """Let the environments save what they played last; returns a line for each replay.

    Raises:
        NotImplementedError: they cannot.
    """
    saved = runner.save_replay()
    return [
        f"Replay: {path}" if path else "The environment has saved its replay"
        for path in (saved if isinstance(saved, list) else [saved])
    ]


def _replay_instead(experiment) -> list[str]:
    """Let environments that cannot be drawn save replays of tests."""
    try:
        experiment.test()
        return save_replays(experiment.runner)
    except (NotImplementedError, AttributeError) as error:  # one written for PyMARL may lack the method
        raise UserError(
            f"env={experiment.args.env}: cannot be drawn and saves no replays ({error}); give it a method scene() that "
            "returns what there is to see (envs/scene.py)"
        ) from error


def _shots(experiment, watched: Watched, title: str) -> list[Any]:
    """An episode with what the agents' networks say at each step."""
    batch, learner = watched.batch, experiment.learner
    if hasattr(learner, "head_values"):
        values = learner.head_values(batch)
    else:
        name = "probability" if experiment.args.agent_output_type == "pi_logits" else "value"
        with torch.no_grad():
            values = {name: unroll(experiment.mac, batch, test_mode=True)}
    weights = learner.agent_weights(batch)[0].cpu().numpy() if hasattr(learner, "agent_weights") else None
    said = {name: value[0].cpu().numpy() for name, value in values.items()}
    actions, avail = batch["actions"][0, ..., 0].cpu().numpy(), batch["avail_actions"][0].cpu().numpy()
    shots, total = [], 0.0
    for t, reward in enumerate(watched.rewards):
        total += reward
        heading = f"{title}, step {t + 1}: reward {reward:.2f}, so far {total:.2f}"
        now = {name: value[t] for name, value in said.items()}
        shots.append(
            Shot(watched.scenes[t], heading, actions[t], avail[t], now, None if weights is None else weights[t])
        )
    return [*shots, Shot(watched.scenes[-1], f"{title}: {_outcome(watched)}")]


def _outcome(watched: Watched) -> str:
    """How an episode ended, in words."""
    count = len(watched.rewards)
    words = [f"{count} step{'s' * (count != 1)}", f"return {sum(watched.rewards):.2f}"]
    if "battle_won" in watched.info:
        words.append("won" if watched.info["battle_won"] else "not won")
    return ", ".join(words) + (" (time is up)" if watched.info.get("episode_limit") else "")
