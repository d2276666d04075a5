"""Greedy episodes of one environment, with what there was to see of every step."""

from dataclasses import dataclass

import torch

from components.episode_buffer import EpisodeBatch
from envs.multiagentenv import MultiAgentEnv
from envs.replies import CheckedEnv
from envs.scene import Scene


@dataclass
class Watched:
    """One episode of T steps."""

    batch: EpisodeBatch  # (1, T+1, ...)
    scenes: list[Scene]  # T+1, the last as the episode ended
    rewards: list[float]  # T
    info: dict[str, float]  # what the environment said at the end


@torch.no_grad()
def watch_episode(env: MultiAgentEnv, mac, new_batch) -> Watched:
    """Play one episode as in a test.

    Args:
        new_batch: () -> an empty EpisodeBatch of one episode.

    Raises:
        NotImplementedError: there is nothing to see of this environment.
    """
    checked = CheckedEnv(env)
    batch = new_batch()
    checked.reset()
    mac.init_hidden(1)
    scenes, rewards, ended, info, t = [env.scene()], [], False, {}, 0
    while not ended:
        _show(batch, checked, t)
        actions = mac.select_actions(batch, t_ep=t, t_env=0, test_mode=True)
        reward, terminated, truncated, info = checked.step(actions[0].cpu())
        ended = terminated or truncated
        batch.update(
            {"actions": actions, "reward": [(reward,)], "terminated": [(terminated,)]}, ts=t, mark_filled=False
        )
        scenes.append(env.scene())
        rewards.append(reward)
        t += 1
    _show(batch, checked, t)
    return Watched(batch[:, : t + 1], scenes, rewards, {k: v for k, v in info.items() if isinstance(v, float)})


def _show(batch: EpisodeBatch, checked: CheckedEnv, t: int) -> None:
    obs, state, avail = checked.observe()
    batch.update({"state": state[None], "avail_actions": avail[None], "obs": obs[None]}, ts=t)
