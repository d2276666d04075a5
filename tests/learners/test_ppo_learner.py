"""IPPO and MAPPO against nested loops over episodes, steps, agents and actions."""

import math

import pytest
import torch
from helpers import EPISODES, Episode, make_args, make_learner, random_batch, shake, weights
from test_lica_learner import gradients, policies_of

from learners.ppo_learner import PPOLearner

GAMMA = 0.875  # exact in float32, which masks and flags have, so that float64 results agree to float64's precision
ALGS = ("ippo", "mappo")


def ppo_args(alg="mappo", ppo=None, **changes):
    settings = {"gamma": GAMMA, "td_lambda": 0.5, "entropy_coef": 0.25}
    return make_args(alg, **{**settings, **changes}, ppo={"epochs": 3, **(ppo or {})})


def moments_of(values):
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def naive_losses(learner, batch, episodes, unit):
    """The first epoch's losses and statistics; `unit` is (mean, deviation) of the returns before this batch, or None.

    The advantage is the generalised one, a sum of TD errors.
    """
    args, cfg, N = learner.args, learner.args.ppo, learner.args.n_agents
    with torch.no_grad():
        raw = learner.critic(batch).squeeze(3)
    mean, std = unit or (0.0, 1.0)
    v, pi = raw * std + mean, policies_of(learner, batch)
    steps = [(e, t, i) for e, episode in enumerate(episodes) for t in range(episode.length) for i in range(N)]
    advantage, returns = {}, {}
    for e, episode in enumerate(episodes):
        for i in range(N):
            total = 0.0
            for t in reversed(range(episode.length)):
                ends = episode.end == "terminated" and t == episode.length - 1
                delta = batch["reward"][e, t, 0] + (0 if ends else args.gamma * v[e, t + 1, i]) - v[e, t, i]
                total = delta.item() + args.gamma * args.td_lambda * total
                advantage[e, t, i] = total
                returns[e, t, i] = total + v[e, t, i].item()
    average, deviation = moments_of(list(advantage.values()))
    scale = {key: (value - average) / (deviation + 1e-5) for key, value in advantage.items()}
    if cfg.normalise_values:
        seen = list(returns.values())
        mean, std = moments_of(seen) if unit is None else learner_moments(unit, learner.count, seen)
    critic, actor, entropies, largest, outside, kl = 0.0, 0.0, [], [], [], []
    found = learner.critic(batch).squeeze(3)
    for e, t, i in steps:
        y = (returns[e, t, i] - mean) / std if cfg.normalise_values else returns[e, t, i]
        error = (found[e, t, i] - y) ** 2
        if cfg.value_clip is not None:
            near = raw[e, t, i] + (found[e, t, i] - raw[e, t, i]).clamp(-cfg.value_clip, cfg.value_clip)
            error = torch.maximum(error, (near - y) ** 2)
        critic = critic + error / len(steps)
        a = batch["actions"][e, t, i, 0]
        p, beta = pi[e][t][i], batch["behaviour"][e, t, i, a]
        ratio, weight = p[a] / beta, scale[e, t, i]
        actor = actor - torch.minimum(ratio * weight, ratio.clamp(1 - cfg.clip, 1 + cfg.clip) * weight) / len(steps)
        entropies.append(-sum(x * x.log() for x in p if x > 0))
        largest.append(max(p).item())
        outside.append(abs(ratio.item() - 1) > cfg.clip)
        kl.append((ratio - 1 - ratio.log()).item())
    entropy = sum(entropies) / len(steps)
    losses = {"critic": critic, "agent": actor - args.entropy_coef * entropy}
    stats = {
        "critic_loss": losses["critic"].item(),
        "agent_loss": losses["agent"].item(),
        "td_error_abs": sum(abs(value) for value in advantage.values()) / len(steps),
        "value_mean": sum(v[key].item() for key in steps) / len(steps),
        "target_mean": sum(returns.values()) / len(steps),
        "entropy": entropy.item(),
        "pi_max": sum(largest) / len(steps),
        "clip_fraction": sum(outside) / len(steps),
        "policy_kl": sum(kl) / len(steps),
    }
    return losses, stats


def learner_moments(unit, count, seen):
    """Mean and deviation of earlier returns, of which there were `count`, and of these."""
    mean, std = unit
    total = count * mean + sum(seen)
    square = count * (std**2 + mean**2) + sum(value**2 for value in seen)
    n = count + len(seen)
    return total / n, math.sqrt(square / n - (total / n) ** 2)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("alg", ALGS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"td_lambda": 0.0},
        {"td_lambda": 1.0, "agent": "rnn"},
        {"ppo": {"value_clip": None}},
        {"ppo": {"normalise_values": False, "clip": 0.5}},
    ],
)
def test_losses_gradients_and_statistics_are_those_of_the_nested_loops(alg, changes):
    learner = make_learner(ppo_args(alg, **changes))
    shake(learner, seed=2)
    for seed, unit in ((3, None), (4, "known")):  # the second batch finds the units that the first one left
        batch = random_batch(learner.args, seed=seed)
        known = None
        if unit and learner.value_moments is not None:
            count, mean, squares = learner.value_moments.tolist()
            known, learner.count = (mean, math.sqrt(squares / count)), count
        objective = next(learner.objectives(batch))
        losses, stats = naive_losses(learner, batch, EPISODES, known)
        for part, loss in losses.items():
            assert objective.losses[part].item() == pytest.approx(loss.item(), rel=1e-6), part
            expected = torch.autograd.grad(loss, learner.params[part], retain_graph=True)
            ours = torch.autograd.grad(objective.losses[part], learner.params[part], retain_graph=True)
            for g, h in zip(ours, expected, strict=True):
                torch.testing.assert_close(g, h, rtol=1e-5, atol=1e-8)
        assert {key: value.item() for key, value in objective.stats.items()} == pytest.approx(stats, rel=1e-6)


def test_the_critics_of_ippo_do_not_see_the_state():
    found = {}
    for alg in ALGS:
        learner = make_learner(ppo_args(alg))
        batch = random_batch(learner.args, seed=3)
        before = next(learner.objectives(batch)).losses["critic"].item()
        batch["state"].mul_(2)
        learner.value_moments = None
        found[alg] = next(learner.objectives(batch)).losses["critic"].item() == before
    assert found == {"ippo": True, "mappo": False}


# Several steps on a batch


def test_every_epoch_learns_from_one_advantage_and_moves_away_from_what_acted():
    learner = make_learner(ppo_args(lr=0.01, critic_lr=0.01, ppo={"epochs": 5}))
    batch = random_batch(learner.args, seed=3)
    fixed, kl, critic = [], [], []
    for objective in learner.objectives(batch):
        fixed.append((objective.stats["target_mean"].item(), objective.stats["td_error_abs"].item()))
        kl.append(objective.stats["policy_kl"].item())
        critic.append(objective.stats["critic_loss"].item())
        for part, loss in objective.losses.items():
            learner._differentiate(part, loss)
            learner.optimisers[part].step()
    assert len(fixed) == 5
    assert len(set(fixed)) == 1
    assert critic == sorted(critic, reverse=True)
    assert len(set(kl)) == 5


def test_training_takes_the_steps_of_all_epochs():
    one, three = (make_learner(ppo_args(ppo={"epochs": epochs})) for epochs in (1, 3))
    batch = random_batch(one.args, seed=3)
    for learner in (one, three):
        learner.train(batch, t_env=0, episode_num=0)
    steps = [next(iter(learner.optimisers["agent"].state.values()))["step"].item() for learner in (one, three)]
    assert steps == [1, 3]
    assert any(not torch.equal(value, weights(three)[key]) for key, value in weights(one).items())


def test_where_the_policies_are_what_acted_the_first_gradient_is_the_policy_gradient():
    learner = make_learner(ppo_args(entropy_coef=0.0))
    batch = random_batch(learner.args, seed=3)
    with torch.no_grad():
        batch["behaviour"].copy_(learner.mac.unroll(batch, test_mode=True))
    objective = next(learner.objectives(batch))
    assert objective.stats["policy_kl"].item() == pytest.approx(0, abs=1e-7)
    assert objective.stats["clip_fraction"].item() == 0
    assert objective.losses["agent"].item() == pytest.approx(0, abs=1e-6)  # the mean of standardised advantages
    assert any(g.abs().max() > 1e-4 for key, g in gradients(learner, objective).items() if key.startswith("agent"))


def test_exploration_is_in_the_ratio_and_not_in_the_policy():
    found = []
    for epsilon in (0.0, 0.5):
        learner = make_learner(ppo_args())
        learner.mac.action_selector.epsilon = epsilon
        found.append(next(learner.objectives(random_batch(learner.args, seed=3))).losses["agent"].item())
    assert found[0] == found[1]
    assert PPOLearner.reads_behaviour


def test_truncation_bootstraps_and_termination_does_not():
    learner = make_learner(ppo_args(ppo={"normalise_values": False}))
    shake(learner, seed=2)
    for end, matters in (("early", True), ("terminated", False)):
        batch = random_batch(learner.args, seed=3, episodes=(Episode(4, end),))
        before = next(learner.objectives(batch)).losses["critic"].item()
        batch["state"][0, 4] += 1
        assert (next(learner.objectives(batch)).losses["critic"].item() != before) == matters
