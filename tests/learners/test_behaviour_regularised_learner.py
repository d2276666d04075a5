"""BEAR and BRAC against nested loops, and without their divergence MADDPG bit for bit."""

import math
import re
from pathlib import Path

import pytest
import torch
from helpers import (
    EPISODES,
    assert_equal,
    corrupt_padding,
    make_args,
    make_learner,
    random_batch,
    shake,
    weights,
    without_last_actions,
)
from test_lica_learner import WildLogitsMAC, gradients
from test_maddpg_learner import SETTINGS, STATISTICS, learn, losses_of, maddpg_args, naive_losses

from config.schema import ConfigError
from utils.networks import NonFiniteError

BEHAVIOUR = {"hidden_dim": 7}


def regularised_args(alg="brac_p", **changes):
    regulariser = {"eta": 0.5, **changes.pop("regulariser", {})}
    return make_args(alg, **{**SETTINGS, **changes}, regulariser=regulariser, behaviour=BEHAVIOUR)


CASES = {
    "brac_p": ("brac_p", {"alpha": 0.5}),
    "brac_v": ("brac_v", {"alpha": 0.5}),
    "bear": ("bear", {"support": 0.75, "threshold": 0.01}),
    "held KL in the values": ("brac_v", {"coefficient": "lagrange", "threshold": 0.5, "alpha": 0.5, "l_max": 0.1}),
    "distance of densities": ("brac_p", {"divergence": "mmd"}),
}


def make(case, mac_class=None):
    alg, options = CASES[case]
    learner = make_learner(regularised_args(alg, regulariser=options), mac_class=mac_class)
    shake(learner, seed=2)
    return learner


# The losses


class Stray:
    """The mean divergence of the agents' policies from the clone of the behaviour, one step at a time."""

    def __init__(self, learner, batch, episodes):
        self.cfg = learner.cfg.regulariser
        self.log_beta = []
        inputs = learner.mac._build_sequence_inputs(batch)
        for e, episode in enumerate(episodes):  # each episode alone, to its final observation
            seen = slice(0, episode.length + 1)
            mask = torch.ones(1, episode.length + 1, 1)
            rows = (batch["avail_actions"][e : e + 1, seen], batch["actions"][e : e + 1, seen], mask)
            self.log_beta.append(learner.behaviour.log_probs(inputs[seen, e : e + 1], *rows)[0])

    def __call__(self, e, t, policies):
        total = 0.0
        for p, log_beta in zip(policies, self.log_beta[e][t].detach(), strict=True):
            allowed = [a for a in range(len(p)) if p[a] > 0]
            beta = [log_beta[a].exp() for a in range(len(p))]
            if self.cfg.divergence == "kl":
                total = total + sum(p[a] * (p[a].log() - log_beta[a]) for a in allowed)
            elif self.cfg.divergence == "mmd":
                total = total + sum((p[a] - beta[a]) ** 2 for a in allowed)
            else:
                inside = [a for a in allowed if beta[a] >= self.cfg.support * max(beta)]
                outside = [p[a] for a in allowed if a not in inside]
                total = total + sum(x**2 for x in outside) + sum(outside) ** 2 / len(inside)
        return total / len(policies)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", CASES)
def test_losses_gradients_and_multiplier_are_those_of_the_nested_loops(case):
    """Two batches: the multiplier that the first leaves is the second's coefficient."""
    learner = make(case)
    cfg, log_multiplier = learner.cfg.regulariser, 0.0
    for k in range(2):
        batch = random_batch(learner.args, seed=3 + k)
        objective, stray = losses_of(learner, batch), Stray(learner, batch, EPISODES)
        coefficient, found = cfg.alpha * math.exp(log_multiplier), []

        def cost(e, t, policies, stray=stray, coefficient=coefficient, found=found):
            found.append(stray(e, t, policies))
            return coefficient * (found[-1] - cfg.threshold)

        def next_cost(e, t, policies, stray=stray, coefficient=coefficient):
            return coefficient * stray(e, t, policies) if cfg.in_values else 0.0

        losses, stats = naive_losses(learner, batch, EPISODES, cost=cost, next_cost=next_cost)
        taken = [
            stray.log_beta[e][t, i, batch["actions"][e, t, i, 0]]
            for e, episode in enumerate(EPISODES)
            for t in range(episode.length)
            for i in range(learner.args.n_agents)
        ]
        losses["behaviour"] = -sum(taken) / len(taken)
        assert objective.losses.keys() == losses.keys()
        for part, loss in losses.items():
            assert objective.losses[part].item() == pytest.approx(loss.item(), rel=1e-8), part
            expected = torch.autograd.grad(loss, learner.params[part], retain_graph=True)
            ours = torch.autograd.grad(objective.losses[part], learner.params[part], retain_graph=True)
            for g, h in zip(ours, expected, strict=True):
                torch.testing.assert_close(g, h, rtol=1e-6, atol=1e-10)
        mean = (sum(found) / len(found)).item()
        assert mean > 0
        stats |= {"divergence": mean, "behaviour_loss": losses["behaviour"].item()}
        for key, value in stats.items():
            assert objective.stats[key].item() == pytest.approx(value, rel=1e-8), key
        if cfg.coefficient == "lagrange":
            climbed = log_multiplier + cfg.eta * (mean - cfg.threshold)
            log_multiplier = min(max(climbed, -cfg.l_max), cfg.l_max)
        assert learner.log_multiplier.item() == pytest.approx(log_multiplier)


def test_without_its_divergence_it_is_maddpg_bit_for_bit():
    regularised = make_learner(regularised_args("brac_v", regulariser={"alpha": 0.0}))
    plain = make_learner(maddpg_args())
    shake(plain, seed=2)
    for name, network in {"agent": regularised.mac.agent, **regularised.networks}.items():
        if name != "behaviour":
            source = {"agent": plain.mac.agent, **plain.networks}[name]
            network.load_state_dict(source.state_dict())
    for k in range(4):
        for learner in (regularised, plain):
            torch.manual_seed(k)
            learner.train(random_batch(plain.args, seed=k), t_env=k, episode_num=k)
        after, expected = weights(regularised), weights(plain)
        assert_equal({key: after[key] for key in expected}, expected)


def test_the_multiplier_rises_outside_of_the_support_and_falls_within():
    for support, rises in ((1.0, True), (1e-9, False)):
        learner = make_learner(regularised_args("bear", regulariser={"support": support, "threshold": 0.01}))
        shake(learner, seed=2)
        losses_of(learner, random_batch(learner.args, seed=3))
        assert (learner.log_multiplier > 0) == rises


# Corruption


@pytest.mark.parametrize("case", CASES)
def test_padding_changes_nothing(case):
    found = []
    for corrupt in (False, True):
        learner = make(case)
        batch = random_batch(learner.args, seed=3)
        objective = losses_of(learner, corrupt_padding(batch, EPISODES) if corrupt else batch)
        found.append(objective.losses | objective.stats | gradients(learner, objective))
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("case", CASES)
def test_logits_of_unavailable_actions_change_nothing(case):
    found = []
    for wild in (0.0, 1e6):
        learner = make(case, mac_class=WildLogitsMAC)
        learner.mac.wild = learner.target_mac.wild = wild
        objective = losses_of(learner, random_batch(learner.args, seed=3))
        found.append(objective.losses | gradients(learner, objective))
    assert_equal(*found)


@pytest.mark.parametrize("case", CASES)
def test_a_terminal_observation_may_offer_no_action(case):
    found = []
    for change in (lambda batch: batch, without_last_actions):
        learner = make(case)
        found.append(losses_of(learner, change(random_batch(learner.args, seed=3))).losses)
    assert_equal(*found)


# Training


DOCUMENTED = (Path(__file__).parents[2] / "docs" / "logged.md").read_text(encoding="utf-8")
MORE = {
    *("divergence", "divergence_coefficient", "behaviour_loss", "behaviour_grad_norm"),
    *("behaviour_log_likelihood", "behaviour_calibration_error"),
}


def test_statistics_are_logged_and_documented():
    learner = make_learner(regularised_args())
    learn(learner, 1)
    assert set(learner.logger.stats) == STATISTICS | MORE
    assert set(re.findall(r"`(\w+)`", DOCUMENTED)) >= MORE


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_learner_goes_on_as_if_nothing_had_happened(case, tmp_path):
    saved = make(case)
    learn(saved, 3)
    saved.save_models(str(tmp_path))
    loaded = make(case)
    loaded.load_models(str(tmp_path))
    for learner in (saved, loaded):
        learn(learner, 3, start=3)
    assert_equal(weights(loaded), weights(saved))
    assert torch.equal(loaded.log_multiplier, saved.log_multiplier)


def test_a_fixed_coefficient_stays_fixed_whatever_model_it_starts_from(tmp_path):
    saved = make("bear")
    learn(saved, 3)
    assert saved.log_multiplier != 0
    saved.save_models(str(tmp_path))
    loaded = make("brac_p")
    loaded.load_models(str(tmp_path))
    learn(loaded, 1, start=3)
    assert loaded.logger.stats["divergence_coefficient"][-1][1] == 0.5


def test_a_non_finite_loss_changes_nothing():
    learner = make("bear")
    learn(learner, 1)
    before, multiplier = weights(learner), learner.log_multiplier
    bad = random_batch(learner.args, seed=1)
    bad["reward"][1, 0] = float("nan")
    with pytest.raises(NonFiniteError):
        learner.train(bad, t_env=1, episode_num=10)
    assert_equal(weights(learner), before)
    assert learner.log_multiplier is multiplier


@pytest.mark.parametrize("source", ["empirical", "stored", "cvae_joint"])
def test_other_sources_of_the_behaviour_are_refused(source):
    with pytest.raises(ConfigError, match=r"set behaviour\.source=bc_rnn"):
        make_args("brac_p", behaviour={"source": source})
