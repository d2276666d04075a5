"""Environments. `REGISTRY` builds one environment (PyMARL's interface), `make_vector_env` a batch of them.

This file loads no torch: the worker processes of `ProcessVectorEnv` import it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from envs.multiagentenv import MultiAgentEnv
from utils.registry import lazy, resolve

if TYPE_CHECKING:
    import torch

    from envs.vector_env import VectorEnv

# Environments that are written as a batch, called with n_envs, device, seed and **env_args.
VECTOR_REGISTRY: dict[str, Callable[..., VectorEnv]] = {
    "smax": lazy("envs.smax:SmaxVectorEnv"),
    "matrix_games": lazy("envs.matrix_games:MatrixGameVectorEnv"),
    "greed_games": lazy("envs.greed_games:GreedGameVectorEnv"),
    "stag_hunt": lazy("envs.stag_hunt:StagHuntVectorEnv"),
}


def _single(build: Callable[..., VectorEnv]) -> Callable[..., MultiAgentEnv]:
    def make(**env_args) -> MultiAgentEnv:
        from envs.vector_env import SingleEnv

        return SingleEnv(build(n_envs=1, device="cpu", **env_args))

    return make


# One environment, called with **env_args (which hold the seed).
REGISTRY: dict[str, Callable[..., MultiAgentEnv]] = {
    "sc2": lazy("envs.sc2:StarCraft2Env"),
    "sc2v2": lazy("envs.sc2v2:StarCraft2V2Env"),
    "gymma": lazy("envs.gymma:GymmaEnv"),
} | {name: _single(build) for name, build in VECTOR_REGISTRY.items()}


def make_vector_env(name: str, n_envs: int, device: str | torch.device, env_args: dict) -> VectorEnv:
    """E environments of any kind as one `VectorEnv`; environment e gets the seed `env_args["seed"] + e`.

    Those of `VECTOR_REGISTRY` also take a list of seeds, for as many equal parts of the batch, each of which then plays
    as it would alone.
    """
    from envs.vector_env import SerialVectorEnv

    if name in VECTOR_REGISTRY:
        return VECTOR_REGISTRY[name](n_envs=n_envs, device=device, **env_args)
    build = resolve("env", name, REGISTRY)
    seed = env_args.get("seed")
    envs = [build(**{**env_args, "seed": None if seed is None else seed + index}) for index in range(n_envs)]
    return SerialVectorEnv(envs, device)
