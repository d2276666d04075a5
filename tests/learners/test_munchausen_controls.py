"""m_iql and m_qmix are Munchausen Q-learning as published: one head, regularised toward its own policy."""

import itertools
import math

import pytest
import torch
from helpers import EPISODES, assert_equal, gradients, make_args, make_learner, random_batch, shake, weights

GAMMA = 0.875


def ready(alg, batch_seed=3, **overrides):
    """A learner in the middle of training, its slow copies those of the target networks, and its running scales known.

    Returns:
        (learner, batch, temperature, least bonus).
    """
    learner = make_learner(make_args(alg, gamma=GAMMA, **overrides))
    shake(learner, seed=2)
    learner.slow_mac.load_state(learner.target_mac)
    learner.slow_mixer.load_state_dict(learner.target_mixer.state_dict())
    batch = random_batch(learner.args, seed=batch_seed)
    learner.objective(batch)
    head = int(learner.args.gate.weight_independent == 0)
    tau = learner.cfg.munchausen.tau * learner.target_std[head].item()
    return learner, batch, tau, learner.cfg.munchausen.l0 * learner.reward_std.item()


def allowed(batch, e, t, i):
    return batch["avail_actions"][e, t, i].nonzero().flatten().tolist()


def steps():
    return ((e, t, episode) for e, episode in enumerate(EPISODES) for t in range(episode.length))


def target(batch, e, t, episode, alpha, bonus, value):
    ended = t == episode.length - 1 and episode.end == "terminated"
    return batch["reward"][e, t, 0].item() + alpha * bonus + (0.0 if ended else GAMMA) * value


def soft(values, tau):
    return tau * math.log(sum(math.exp(v / tau) for v in values))


@pytest.mark.usefixtures("double")
def test_m_iql_is_munchausen_q_learning_of_every_agent():
    # A warm policy, so that both sides of the clip occur.
    learner, batch, tau, least = ready("m_iql", munchausen={"tau": 0.5, "l0": -0.8})
    q, q_target = learner.mac.unroll(batch), learner.target_mac.unroll(batch).detach()
    errors, clipped = [], []
    for e, t, episode in steps():
        for i in range(learner.args.n_agents):
            action = batch["actions"][e, t, i, 0].item()
            now = [q_target[e, t, i, a].item() for a in allowed(batch, e, t, i)]
            following = [q_target[e, t + 1, i, a].item() for a in allowed(batch, e, t + 1, i)]
            log_policy = q_target[e, t, i, action].item() - soft(now, tau)  # tau log pi
            clipped.append(log_policy < least)
            y = target(batch, e, t, episode, 0.9, max(log_policy, least), soft(following, tau))
            errors.append(q[e, t, i, action] - y)
    naive = sum(0.5 * error**2 for error in errors) / len(errors)
    loss = learner.objective(batch).loss
    assert 0 < sum(clipped) < len(clipped)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-9)
    for ours, theirs in zip(gradients(learner, loss), gradients(learner, naive), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


@pytest.mark.usefixtures("double")
def test_m_qmix_of_a_sum_is_munchausen_q_learning_of_joint_actions():
    """With VDN's mixer the agents' policies and soft values are those of softmax(Q_tot / tau) over joint actions."""
    learner, batch, tau, least = ready("m_qmix", mixer="vdn", munchausen={"tau": 0.5, "l0": -6.0})
    q, q_target = learner.mac.unroll(batch), learner.target_mac.unroll(batch).detach()
    N = learner.args.n_agents

    def totals(e, t):
        options = itertools.product(*(allowed(batch, e, t, i) for i in range(N)))
        return {joint: sum(q_target[e, t, i, a].item() for i, a in enumerate(joint)) for joint in options}

    errors, clipped = [], []
    for e, t, episode in steps():
        joint = tuple(batch["actions"][e, t, :, 0].tolist())
        now = totals(e, t)
        log_policy = now[joint] - soft(now.values(), tau)
        clipped.append(log_policy < least)
        y = target(batch, e, t, episode, 0.9, max(log_policy, least), soft(totals(e, t + 1).values(), tau))
        errors.append(sum(q[e, t, i, a] for i, a in enumerate(joint)) - y)
    naive = sum(0.5 * error**2 for error in errors) / len(errors)
    loss = learner.objective(batch).loss
    assert 0 < sum(clipped) < len(clipped)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-9)
    for ours, theirs in zip(gradients(learner, loss), gradients(learner, naive), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("alg", ["m_iql", "m_qmix"])
def test_the_policy_is_the_target_networks(alg):
    learner = make_learner(make_args(alg))
    for k in range(4):
        learner.train(random_batch(learner.args, seed=k), t_env=k, episode_num=k)
    found = weights(learner)
    slow = {key.removeprefix("slow_"): value for key, value in found.items() if key.startswith("slow_")}
    target = {key.removeprefix("target_"): value for key, value in found.items() if key.startswith("target_")}
    assert_equal(slow, target)


@pytest.mark.parametrize("alg", ["m_iql", "m_qmix"])
def test_both_the_bonus_and_the_soft_value_matter(alg):
    losses = set()
    for changes in ({}, {"alpha": 0.0}, {"bootstrap": "hard"}):
        learner = make_learner(make_args(alg, munchausen={"tau": 0.5, **changes}))
        shake(learner, seed=2)
        losses.add(round(learner.objective(random_batch(learner.args, seed=3)).loss.item(), 6))
    assert len(losses) == 3
