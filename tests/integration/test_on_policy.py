"""On-policy learners learn from every episode that was played as often as they should, whatever the runner."""

import logging
from types import SimpleNamespace

import pytest

from config.schema import extend, freeze, load
from run import Experiment
from runners import REGISTRY as runner_REGISTRY
from utils.logging import Logger
from utils.seeding import seed_everything

SETTINGS = {
    "env": "helpers:ScriptedEnv",
    "t_max": 400,
    "use_cuda": False,
    "plot": False,
    "test_interval": 10**9,
    "rnn_hidden_dim": 8,
    "batch_size": 4,
    "buffer_size": 4,
}


def name_of(batch, e) -> tuple[int, int]:
    """Environment and number of an episode, which its state says."""
    return tuple(batch["state"][e, 0, :2].int().tolist())


@pytest.mark.parametrize(("runner", "n_envs"), [("episode", 1), ("vector", 3), ("vector", 9)])
@pytest.mark.parametrize("alg", ["mappo", "coma", "lica"])
def test_every_episode_is_learned_from_once(alg, runner, n_envs):
    options = {"runner": runner, "batch_size_run": n_envs, "updates_per_episode": 0.25, "env_args": {"seed": 0}}
    config = load(alg, "matrix_games", {**SETTINGS, **options})
    config["env_args"] = {"seed": 0}
    seed_everything(0)
    args, logger = extend(freeze(config), device="cpu", unique_token="test"), Logger(logging.getLogger("test"))
    experiment = Experiment(args, logger, runner_REGISTRY[args.runner](args, logger))
    played, learned, play, learn = [], [], experiment.runner.run, experiment.learner.train

    def run(test_mode=False):
        batch = play(test_mode=test_mode)
        if not test_mode:
            played.extend(name_of(batch, e) for e in range(batch.batch_size))
        return batch

    def train(batch, t_env, episode_num):
        learned.append({name_of(batch, e) for e in range(batch.batch_size)})
        taken = batch["behaviour"].gather(3, batch["actions"])[:, :-1] if "behaviour" in batch.scheme else None
        if taken is not None:  # what acted is kept for every step that was played
            assert ((taken > 0).all(dim=2) == (batch["filled"][:, 1:] == 1)).all()
        learn(batch, t_env, episode_num)

    experiment.runner.run, experiment.learner.train = run, train
    experiment.train(SimpleNamespace(_id=None))
    assert len(learned) == len(played) // 4 > 10
    assert learned == [set(played[k : k + 4]) for k in range(0, len(played) // 4 * 4, 4)]
    assert ("behaviour" in experiment.scheme) == (alg == "mappo")
