"""The vector runner on scripted environments whose observations say where and when they were shown."""

import numpy as np
import pytest
import torch
from helpers import (
    ACTIONS,
    AGENTS,
    LIMIT,
    RecordingLogger,
    ScriptedEnv,
    ScriptedVectorEnv,
    assert_shows,
    make_args,
    make_mac,
    make_scheme,
    paid,
    script,
)

from envs import VECTOR_REGISTRY
from runners.episode_runner import EpisodeRunner
from runners.vector_runner import VectorRunner

ENVS = 4
KINDS = {"native": "scripted", "lifted": "helpers:ScriptedEnv"}


@pytest.fixture(autouse=True)
def scripted(monkeypatch):
    """The scripted environments as a batch of their own, under the name `scripted`."""
    monkeypatch.setitem(VECTOR_REGISTRY, "scripted", ScriptedVectorEnv)


def make_runner(kind="native", epsilon=0.0, seed=10, n_envs=ENVS, mac_seed=0, **overrides):
    args = make_args(
        "qmix",
        env="gymma",
        epsilon_start=epsilon,
        epsilon_finish=epsilon,
        runner="vector",
        batch_size_run=n_envs,
        seed=seed,
        **overrides,
    )
    object.__setattr__  # args are frozen; the scripted environments stand outside the yaml files
    args.__dict__.update(env=KINDS[kind], env_args={"seed": seed})
    runner = VectorRunner(args, RecordingLogger())
    scheme, groups, preprocess = make_scheme(args)
    runner.setup(scheme, groups, preprocess, make_mac(args, mac_seed))
    return runner


def collect(runner, runs):
    """The episodes of so many runs by (environment, episode), each a batch of one."""
    episodes = {}
    for _ in range(runs):
        batch = runner.run()
        assert batch.batch_size == len(batch["filled"])
        for e in range(batch.batch_size):
            env, episode = batch["state"][e, 0, :2].int().tolist()
            assert (env, episode) not in episodes, "an episode was returned twice"
            episodes[env, episode] = batch[e, :]
    return episodes
