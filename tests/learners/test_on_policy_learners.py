"""What actor-critics beside LICA have in common: corruption, saving, logging and failures."""

import re
from pathlib import Path

import pytest
import torch
from helpers import (
    EPISODES,
    assert_equal,
    corrupt_padding,
    differs,
    make_args,
    make_learner,
    random_batch,
    shake,
    weights,
    without_last_actions,
)
from test_lica_learner import WildLogitsMAC

from controllers import BasicMAC
from utils.networks import NonFiniteError

ALGS = ("ippo", "mappo", "coma", "iac", "seac")
every_alg = pytest.mark.parametrize("alg", ALGS)


def some_args(alg, **changes):
    return make_args(alg, **{"gamma": 0.875, "td_lambda": 0.5, "entropy_coef": 0.25, **changes})


def learn(learner, batches, start=0):
    for k in range(batches):
        learner.train(random_batch(learner.args, seed=start + k), t_env=k, episode_num=k)


def outcome(learner, batch):
    """Losses, statistics and gradients of the first step of each part."""
    found = {}
    for objective in learner.objectives(batch):
        for part, loss in objective.losses.items():
            if f"{part} loss" not in found:
                gradients = torch.autograd.grad(loss, learner.params[part], retain_graph=True, allow_unused=True)
                found |= {f"{part}.{k}": g for k, g in enumerate(gradients) if g is not None}
                found[f"{part} loss"] = loss.detach()
                found |= objective.stats
    return found


@every_alg
def test_padding_changes_nothing(alg):
    learner = make_learner(some_args(alg))
    shake(learner, seed=2)
    clean = outcome(learner, random_batch(learner.args, seed=3))
    learner.value_moments = None
    wild = corrupt_padding(random_batch(learner.args, seed=3), EPISODES)
    found = outcome(learner, wild)
    for key, value in clean.items():
        torch.testing.assert_close(value, found[key], rtol=1e-4, atol=1e-5)


@every_alg
def test_logits_of_unavailable_actions_change_nothing(alg):
    found = []
    for wild in (0.0, 1e6):
        learner = make_learner(some_args(alg), mac_class=WildLogitsMAC)
        shake(learner, seed=2)
        learner.mac.wild = wild
        found.append(outcome(learner, random_batch(learner.args, seed=3)))
    assert_equal(*found)


@every_alg
def test_a_terminal_observation_may_offer_no_action(alg):
    found = []
    for change in (lambda batch: batch, without_last_actions):
        learner = make_learner(some_args(alg))
        found.append(outcome(learner, change(random_batch(learner.args, seed=3))))
    assert_equal(*found)


@every_alg
def test_same_seed_same_weights(alg):
    def train(seed):
        learner = make_learner(some_args(alg), seed=seed)
        learn(learner, 3, start=seed)
        return weights(learner)

    first = train(0)
    assert_equal(first, train(0))
    assert differs(first, train(1))


@every_alg
def test_a_loaded_learner_goes_on_as_if_nothing_had_happened(alg, tmp_path):
    args = some_args(alg, standardise_rewards=True)
    saved = make_learner(args)
    learn(saved, 3)
    saved.save_models(str(tmp_path))
    target = {"target_critic.th"} if alg == "coma" else set()
    names = {"agent.th", "critic.th", "agent_opt.th", "critic_opt.th", "statistics.th"}
    assert {path.name for path in tmp_path.iterdir()} == names | target
    loaded = make_learner(args, seed=9)
    loaded.load_models(str(tmp_path))
    assert_equal(weights(loaded), weights(saved))
    for learner in (saved, loaded):
        learn(learner, 3, start=3)
    assert_equal(weights(loaded), weights(saved))
    for name in saved.statistics:
        assert torch.equal(getattr(loaded, name), getattr(saved, name)), name


@every_alg
def test_a_non_finite_loss_is_named_and_changes_nothing(alg):
    learner = make_learner(some_args(alg, standardise_rewards=True))
    learn(learner, 1)
    before, moments = weights(learner), [getattr(learner, name).clone() for name in learner.statistics]
    bad = random_batch(learner.args, seed=1)
    bad["reward"][1, 0] = float("nan")
    with pytest.raises(NonFiniteError) as error:
        learner.train(bad, t_env=1, episode_num=10)
    assert error.value.culprit == "critic_loss"
    assert_equal(weights(learner), before)
    assert all(torch.equal(getattr(learner, n), m) for n, m in zip(learner.statistics, moments, strict=True))
    learn(learner, 1)


def test_steps_before_one_that_is_not_finite_stand():
    """The rest of the batch is left out: as if there had been fewer epochs."""

    args, fewer = (
        make_args("mappo", ppo={"epochs": epochs}, gamma=0.875, standardise_rewards=True) for epochs in (5, 2)
    )
    learner, twin = make_learner(args), make_learner(fewer)
    whole = learner.objectives

    def failing(batch):
        for epoch, losses in enumerate(whole(batch)):
            if epoch == 2:
                losses.losses["agent"] = losses.losses["agent"] * torch.nan
            yield losses

    learner.objectives = failing
    batch = random_batch(args, seed=1)
    with pytest.raises(NonFiniteError, match="agent gradient norm"):
        learner.train(batch, t_env=0, episode_num=0)
    twin.train(batch, t_env=0, episode_num=0)
    assert_equal(weights(learner), weights(twin))
    for name in learner.statistics:
        assert torch.equal(getattr(learner, name), getattr(twin, name)), name
    learner.objectives, twin.cfg = whole, learner.cfg
    for one in (learner, twin):
        learn(one, 2, start=1)
    assert_equal(weights(learner), weights(twin))
    assert all(torch.isfinite(value).all() for value in weights(learner).values())


@every_alg
def test_statistics_are_logged_and_documented(alg):
    learner = make_learner(some_args(alg, learner_log_interval=100))
    for t_env in (0, 50, 100):
        learner.train(random_batch(learner.args, seed=1), t_env=t_env, episode_num=0)
    assert all([t for t, _ in values] == [0, 100] for values in learner.logger.stats.values())
    documented = (Path(__file__).parents[2] / "docs" / "logged.md").read_text(encoding="utf-8")
    section = documented.partition("## Actor-critics")[2]
    logged = set(learner.logger.stats)
    assert {"critic_loss", "agent_loss", "critic_grad_norm", "agent_grad_norm", "entropy", "pi_max"} <= logged
    assert set(re.findall(r"`(\w+)`", section)) >= logged


@every_alg
def test_a_controller_without_unroll_gives_the_same_losses(alg):
    class Stepped(BasicMAC):
        unroll = property()  # hasattr is False

    fused, stepped = make_learner(some_args(alg)), make_learner(some_args(alg), mac_class=Stepped)
    batch = random_batch(fused.args, seed=1)
    ours, theirs = outcome(fused, batch), outcome(stepped, batch)
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-4, atol=1e-5)
