"""MADDPG against nested loops over episodes, steps, agents and actions, and what training does with it."""

import re
from pathlib import Path

import pytest
import torch
from helpers import (
    EPISODES,
    Episode,
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
from test_lica_learner import GAMMA, WildLogitsMAC, gradients, policies_of

from controllers import BasicMAC
from objectives.gumbel import gumbel_like
from utils.networks import NonFiniteError

SETTINGS = {"gamma": GAMMA, "logit_coef": 0.25, "standardise_rewards": False, "critic_hidden_dim": 6}


def maddpg_args(**changes):
    return make_args("maddpg", **{**SETTINGS, **changes})


def losses_of(learner, batch, seed=5):
    """The learner's objective, its draws from `seed`."""
    torch.manual_seed(seed)
    return learner.objective(batch)


def noises(learner, batch, seed=5):
    """The noise of the actors' draws and of the targets', in the order in which the learner draws it."""
    torch.manual_seed(seed)
    like = batch["avail_actions"][:, 1:].to(torch.get_default_dtype())
    return gumbel_like(like), gumbel_like(like)


def learn(learner, batches, start=0):
    for k in range(batches):
        torch.manual_seed(start + k)
        learner.train(random_batch(learner.args, seed=start + k), t_env=k, episode_num=k)


# The losses


def one_hot(learner, action):
    return torch.eye(learner.args.n_actions)[int(action)]


def drawn(learner, p, noise):
    """The action that the noise lets a policy of one agent draw."""
    allowed = [a for a in range(learner.args.n_actions) if p[a] > 0]
    return max(allowed, key=lambda a: (p[a].log() + noise[a]).item())


def relaxed(learner, p, noise):
    """The drawn action, one-hot, with the gradient of the softmax."""
    A, T = learner.args.n_actions, learner.args.gumbel_temperature
    raised = {a: ((p[a].log() + noise[a]) / T).exp() for a in range(A) if p[a] > 0}
    soft = torch.stack([raised[a] / sum(raised.values()) if a in raised else torch.zeros(()) for a in range(A)])
    return one_hot(learner, drawn(learner, p, noise)) + soft - soft.detach()


def logits_squared(p):
    logs = [x.log() for x in p if x > 0]
    mean = sum(logs) / len(logs)
    return sum((x - mean) ** 2 for x in logs) / len(logs)


class ActingOn:
    """A learner whose policies `policies_of` reads off another controller."""

    def __init__(self, learner, mac):
        self.args, self.mac = learner.args, mac


def free(e, t, policies):
    return 0.0


def naive_losses(learner, batch, episodes, seed=5, cost=free, next_cost=free):
    """Losses of critic and actors and their statistics, one step after another.

    Acting at step t costs the actors `cost(e, t, policies)`; the value of step t is less by `next_cost`.
    """
    args, N = learner.args, learner.args.n_agents
    pi, pi_target = policies_of(learner, batch), policies_of(ActingOn(learner, learner.target_mac), batch)
    now, following = noises(learner, batch, seed)

    def q(critic, joint, e, t):
        return critic(torch.stack(joint).view(1, 1, N, -1), batch["state"][e, t].view(1, 1, -1)).squeeze()

    errors, chosen, targets, values, costs, entropies, sizes, largest = [], [], [], [], [], [], [], []
    for e, episode in enumerate(episodes):
        for t in range(episode.length):
            played = [one_hot(learner, batch["actions"][e, t, i, 0]) for i in range(N)]
            target = batch["reward"][e, t, 0]
            if not (t == episode.length - 1 and episode.end == "terminated"):
                to_come = [
                    one_hot(learner, drawn(learner, pi_target[e][t + 1][i], following[e, t, i])) for i in range(N)
                ]
                following_value = q(learner.target_critic, to_come, e, t + 1) - next_cost(e, t + 1, pi_target[e][t + 1])
                target = target + args.gamma * following_value.detach()
            value = q(learner.critic, played, e, t)
            errors.append(value - target)
            chosen.append(value.item())
            targets.append(target.item())
            own = []
            for i in range(N):
                joint = [*played]
                joint[i] = relaxed(learner, pi[e][t][i], now[e, t, i])
                own.append(q(learner.critic, joint, e, t))
                entropies.append(-sum(p * p.log() for p in pi[e][t][i] if p > 0))
                sizes.append(logits_squared(pi[e][t][i]))
                largest.append(max(pi[e][t][i]).item())
            values.append(sum(own) / N)
            costs.append(cost(e, t, pi[e][t]))
    entropy = sum(entropies) / len(entropies)
    regulariser = args.logit_coef * sum(sizes) / len(sizes) - args.entropy_coef * entropy / entropy.item()
    losses = {
        "critic": sum(error**2 for error in errors) / len(errors),
        "agent": regulariser - sum(values) / len(values) + sum(costs) / len(costs),
    }
    count = len(errors)
    stats = {
        "td_error_abs": sum(abs(error.item()) for error in errors) / count,
        "q_taken_mean": sum(chosen) / count,
        "target_mean": sum(targets) / count,
        "q_policy_mean": sum(value.item() for value in values) / count,
        "entropy": entropy.item(),
        "pi_max": sum(largest) / len(largest),
        "critic_loss": losses["critic"].item(),
        "agent_loss": losses["agent"].item(),
    }
    return losses, stats


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "options",
    [{}, {"gumbel_temperature": 0.5}, {"logit_coef": 0.0, "entropy_coef": 0.25}, {"critic": "lica"}],
)
def test_losses_gradients_and_statistics_are_those_of_the_nested_loops(options):
    learner = make_learner(maddpg_args(**options))
    shake(learner, seed=2)
    batch = random_batch(learner.args, seed=3)
    objective = losses_of(learner, batch)
    losses, stats = naive_losses(learner, batch, EPISODES)
    assert objective.losses.keys() == losses.keys()
    for part, loss in losses.items():
        assert objective.losses[part].item() == pytest.approx(loss.item(), rel=1e-10), part
        expected = torch.autograd.grad(loss, learner.params[part], retain_graph=True)
        ours = torch.autograd.grad(objective.losses[part], learner.params[part], retain_graph=True)
        for g, h in zip(ours, expected, strict=True):
            torch.testing.assert_close(g, h, rtol=1e-8, atol=1e-11)
    assert {key: value.item() for key, value in objective.stats.items()} == pytest.approx(stats, rel=1e-9)


def test_options_change_the_losses():
    """Or the comparison above could pass by accident; the temperature is the gradient's alone."""
    found = set()
    for changes in ({}, {"logit_coef": 0.0}, {"entropy_coef": 0.25}, {"gamma": 0.5}, {"gumbel_temperature": 0.25}):
        learner = make_learner(maddpg_args(**changes))
        shake(learner, seed=2)
        objective = losses_of(learner, random_batch(learner.args, seed=3))
        slopes = gradients(learner, objective)
        found.add(tuple(round(value.sum().item(), 5) for value in (*objective.losses.values(), *slopes.values())))
    assert len(found) == 5


def test_the_config_draws_from_the_policies_alone():
    args = maddpg_args()
    assert (args.epsilon_start, args.epsilon_finish, args.action_selector) == (0, 0, "multinomial")
    assert args.test_greedy


# Corruption


def test_logits_of_unavailable_actions_change_nothing():
    found = []
    for wild in (0.0, 1e6):
        learner = make_learner(maddpg_args(), mac_class=WildLogitsMAC)
        shake(learner, seed=2)
        learner.mac.wild = learner.target_mac.wild = wild
        objective = losses_of(learner, random_batch(learner.args, seed=3))
        found.append(objective.losses | gradients(learner, objective))
    assert_equal(*found)


def test_padding_changes_nothing():
    found = []
    for corrupt in (False, True):
        learner = make_learner(maddpg_args(standardise_rewards=True))
        shake(learner, seed=2)
        batch = random_batch(learner.args, seed=3)
        objective = losses_of(learner, corrupt_padding(batch, EPISODES) if corrupt else batch)
        found.append(objective.losses | objective.stats | gradients(learner, objective))
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-5, atol=1e-6, msg=key)


def test_a_terminal_observation_may_offer_no_action():
    learner = make_learner(maddpg_args())
    clean = losses_of(learner, random_batch(learner.args, seed=3))
    bare = losses_of(learner, without_last_actions(random_batch(learner.args, seed=3)))
    assert_equal(clean.losses, bare.losses)


def test_truncation_bootstraps_and_termination_does_not():
    learner = make_learner(maddpg_args())
    shake(learner, seed=2)
    for end, matters in (("early", True), ("terminated", False)):
        episodes = (Episode(4, end),)
        batch = random_batch(learner.args, seed=3, episodes=episodes)
        before = losses_of(learner, batch).losses["critic"].item()
        batch["state"][0, 4] += 1
        assert (losses_of(learner, batch).losses["critic"].item() != before) == matters


# Training


@pytest.mark.usefixtures("double")
def test_targets_of_critic_and_actors_follow():
    learner = make_learner(maddpg_args(target_update_tau=0.25))
    shake(learner, seed=2)
    before = weights(learner)
    learn(learner, 1)
    after = weights(learner)
    names = {key.split(".")[0] for key in before if key.startswith("target_")}
    assert names == {"target_critic", "target_agent"}
    for key in before:
        if key.startswith("target_"):
            online = after[key.removeprefix("target_")]
            torch.testing.assert_close(after[key], 0.75 * before[key] + 0.25 * online)
    for network in (learner.target_critic, learner.target_mac.agent):
        assert all(parameter.grad is None for parameter in network.parameters())


def test_same_seed_same_weights():
    def train(seed):
        learner = make_learner(maddpg_args(), seed=seed)
        learn(learner, 4, start=seed)
        return weights(learner)

    first = train(0)
    assert_equal(first, train(0))
    assert differs(first, train(1))


STATISTICS = {
    *("critic_loss", "agent_loss", "critic_grad_norm", "agent_grad_norm", "td_error_abs", "q_taken_mean"),
    *("target_mean", "q_policy_mean", "entropy", "pi_max"),
}
DOCUMENTED = (Path(__file__).parents[2] / "docs" / "logged.md").read_text(encoding="utf-8")


def test_statistics_are_logged_and_documented():
    learner = make_learner(maddpg_args())
    learn(learner, 1)
    assert set(learner.logger.stats) == STATISTICS
    section = DOCUMENTED.partition("## Actor-critics")[2]
    assert "`maddpg_learner`" in section
    assert set(re.findall(r"`(\w+)`", section)) >= STATISTICS


def test_a_loaded_learner_goes_on_as_if_nothing_had_happened(tmp_path):
    args = maddpg_args(standardise_rewards=True)
    saved = make_learner(args)
    learn(saved, 3)
    saved.save_models(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {
        *("agent.th", "target_agent.th", "critic.th", "target_critic.th", "agent_opt.th", "critic_opt.th"),
        "statistics.th",
    }
    loaded = make_learner(args, seed=9)
    loaded.load_models(str(tmp_path))
    assert_equal(weights(loaded), weights(saved))
    for learner in (saved, loaded):  # differs from here on if the optimisers' memory was lost
        learn(learner, 3, start=3)
    assert_equal(weights(loaded), weights(saved))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_loss_is_named_and_changes_nothing(value):
    learner = make_learner(maddpg_args())
    learn(learner, 1)
    before = weights(learner)
    bad = random_batch(learner.args, seed=1)
    bad["reward"][1, 0] = value
    with pytest.raises(NonFiniteError) as error:
        learner.train(bad, t_env=1, episode_num=10)
    assert error.value.culprit == "critic_loss"
    assert_equal(weights(learner), before)


def test_an_agent_and_a_controller_without_unroll_give_the_same_losses():
    class Stepped(BasicMAC):
        unroll = property()  # hasattr is False

    fused, stepped = make_learner(maddpg_args()), make_learner(maddpg_args(), mac_class=Stepped)
    batch = random_batch(fused.args, seed=1)
    ours, theirs = losses_of(fused, batch).losses, losses_of(stepped, batch).losses
    for part, loss in ours.items():
        torch.testing.assert_close(loss, theirs[part], rtol=1e-5, atol=1e-6)
