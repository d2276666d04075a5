"""LICA against nested loops over episodes, steps, agents and actions, and what training does with it."""

import math
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
    wild_noise,
    without_last_actions,
)

from controllers import BasicMAC
from utils.networks import NonFiniteError

GAMMA = 0.875  # exact in float32, which masks and flags have, so that float64 results agree to float64's precision
SETTINGS = {"gamma": GAMMA, "entropy_coef": 0.25, "td_lambda": 0.5}


def lica_args(**changes):
    return make_args("lica", **{**SETTINGS, **changes})


def gradients(learner, objective):
    """Every part's gradient of its own loss, by parameter."""
    found = {}
    for part, loss in objective.losses.items():
        parts = torch.autograd.grad(loss, learner.params[part], retain_graph=True, allow_unused=True)
        for k, (parameter, gradient) in enumerate(zip(learner.params[part], parts, strict=True)):
            found[f"{part}.{k}"] = torch.zeros_like(parameter) if gradient is None else gradient
    return found


def learn(learner, batches, start=0):
    for k in range(batches):
        learner.train(random_batch(learner.args, seed=start + k), t_env=k, episode_num=k)


# The losses


def policies_of(learner, batch):
    """Probabilities [episode][step][agent][action] from the network's logits, without exploration."""
    mac = learner.mac
    mac.init_hidden(batch.batch_size)
    steps = []
    for t in range(batch.max_seq_length):
        logits, mac.hidden_states = mac.agent(mac._build_inputs(batch, t), mac.hidden_states)
        steps.append(logits.view(batch.batch_size, learner.args.n_agents, -1))
    avail = batch["avail_actions"]
    found = []
    for e in range(batch.batch_size):
        found.append([])
        for t in range(batch.max_seq_length):
            agents = []
            for i in range(learner.args.n_agents):
                allowed = [a for a in range(learner.args.n_actions) if avail[e, t, i, a] == 1]
                total = sum(steps[t][e, i, a].exp() for a in allowed)
                zero = torch.zeros(())
                ps = [steps[t][e, i, a].exp() / total if a in allowed else zero for a in range(learner.args.n_actions)]
                agents.append(torch.stack(ps))
            found[-1].append(torch.stack(agents))
    return found


def naive_losses(learner, batch, episodes):
    """Losses of critic and actors and their statistics, one step after another."""
    args, pi = learner.args, policies_of(learner, batch)
    eye = torch.eye(args.n_actions)

    def q(critic, policy, e, t):
        return critic(policy.view(1, 1, args.n_agents, -1), batch["state"][e, t].view(1, 1, -1)).squeeze()

    def taken(e, t):
        return torch.stack([eye[batch["actions"][e, t, i, 0]] for i in range(args.n_agents)])

    errors, chosen, targets, values, entropies, largest = [], [], [], [], [], []
    for e, episode in enumerate(episodes):
        L, returns = episode.length, None
        for t in reversed(range(L)):
            reward, last = batch["reward"][e, t, 0], t == L - 1
            if last and episode.end == "terminated":
                returns = reward
            elif last:
                returns = reward + args.gamma * q(learner.target_critic, pi[e][L], e, L).detach()
            else:
                following = q(learner.target_critic, taken(e, t + 1), e, t + 1).detach()
                mixed = (1 - args.td_lambda) * following + args.td_lambda * returns
                returns = reward + args.gamma * mixed
            value = q(learner.critic, taken(e, t), e, t)
            errors.append(value - returns)
            chosen.append(value.item())
            targets.append(returns.item())
            values.append(q(learner.critic, pi[e][t], e, t))
            for i in range(args.n_agents):
                entropies.append(-sum(p * p.log() for p in pi[e][t][i] if p > 0))
                largest.append(max(pi[e][t][i]).item())
    mean_entropy = sum(entropies) / len(entropies)
    losses = {
        "critic": sum(error**2 for error in errors) / len(errors),
        "agent": -sum(values) / len(values) - args.entropy_coef * mean_entropy / mean_entropy.item(),
    }
    count = len(errors)
    stats = {
        "td_error_abs": sum(abs(error.item()) for error in errors) / count,
        "q_taken_mean": sum(chosen) / count,
        "target_mean": sum(targets) / count,
        "q_policy_mean": sum(value.item() for value in values) / count,
        "entropy": mean_entropy.item(),
        "pi_max": sum(largest) / len(largest),
        "critic_loss": losses["critic"].item(),
        "agent_loss": losses["agent"].item(),
    }
    return losses, stats


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("hypernet_layers", [1, 2])
@pytest.mark.parametrize("td_lambda", [0.0, 0.8, 1.0])
def test_losses_gradients_and_statistics_are_those_of_the_nested_loops(td_lambda, hypernet_layers):
    learner = make_learner(lica_args(td_lambda=td_lambda, hypernet_layers=hypernet_layers))
    shake(learner, seed=2)
    batch = random_batch(learner.args, seed=3)
    objective = learner.objective(batch)
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
    """Or the comparison above could pass by accident."""
    found = set()
    for changes in ({}, {"td_lambda": 0.0}, {"entropy_coef": 0.0}, {"gamma": 0.5}, {"hypernet_layers": 1}):
        learner = make_learner(lica_args(**changes))
        shake(learner, seed=2)
        objective = learner.objective(random_batch(learner.args, seed=3))
        found.add(tuple(round(loss.item(), 6) for loss in objective.losses.values()))
    assert len(found) == 5


def test_exploration_is_no_part_of_the_policy_that_learns():
    found = []
    for epsilon in (0.0, 0.5):
        learner = make_learner(lica_args())
        learner.mac.action_selector.epsilon = epsilon
        found.append(learner.objective(random_batch(learner.args, seed=3)).losses["agent"].item())
    assert found[0] == found[1]


def test_a_part_steps_on_its_own_loss_alone():
    """The critic is no worse for the actors' ascent: its step is that of the TD loss, and the targets get none."""
    learner = make_learner(lica_args(grad_norm_clip=1e9))
    shake(learner, seed=2)
    batch = random_batch(learner.args, seed=3)
    expected = gradients(learner, learner.objective(batch))
    learner.train(batch, t_env=0, episode_num=0)
    for part, params in learner.params.items():
        for k, parameter in enumerate(params):
            torch.testing.assert_close(parameter.grad, expected[f"{part}.{k}"])
    assert all(parameter.grad is None for parameter in learner.target_critic.parameters())


@pytest.mark.usefixtures("double")
def test_two_steps_of_both_optimisers_by_hand():
    settings = {"lr": 0.003, "critic_lr": 0.002, "optim_eps": 1e-4, "grad_norm_clip": 0.01}
    learner = make_learner(lica_args(**settings))
    rates = {"agent": 0.003, "critic": 0.002}
    expected = {f"{part}.{k}": p.detach().clone() for part in rates for k, p in enumerate(learner.params[part])}
    first = {key: torch.zeros_like(value) for key, value in expected.items()}
    second = {key: torch.zeros_like(value) for key, value in expected.items()}
    for step in (1, 2):
        batch = random_batch(learner.args, seed=step)
        gradient = gradients(learner, learner.objective(batch))
        for part, rate in rates.items():
            keys = [key for key in gradient if key.startswith(part)]
            norm = math.sqrt(sum(gradient[key].square().sum().item() for key in keys))
            for key in keys:
                g = gradient[key] * min(1.0, 0.01 / norm)
                first[key], second[key] = 0.9 * first[key] + 0.1 * g, 0.999 * second[key] + 0.001 * g**2
                mean, square = first[key] / (1 - 0.9**step), second[key] / (1 - 0.999**step)
                expected[key] -= rate * mean / (square.sqrt() + 1e-4)
        learner.train(batch, t_env=step, episode_num=0)
        for part in rates:
            for k, parameter in enumerate(learner.params[part]):
                torch.testing.assert_close(parameter.detach(), expected[f"{part}.{k}"], rtol=1e-5, atol=1e-9)


# Corruption


class WildLogitsMAC(BasicMAC):
    """A controller whose logits of unavailable actions are huge; `wild` scales them."""

    wild = 0.0

    def _to_output(self, outputs, avail_actions, test_mode):
        return super()._to_output(outputs + self.wild * wild_noise(avail_actions), avail_actions, test_mode)


def test_logits_of_unavailable_actions_change_nothing():
    found = []
    for wild in (0.0, 1e6):
        learner = make_learner(lica_args(), mac_class=WildLogitsMAC)
        shake(learner, seed=2)
        learner.mac.wild = wild
        objective = learner.objective(random_batch(learner.args, seed=3))
        found.append(objective.losses | gradients(learner, objective))
    assert_equal(*found)


def test_padding_changes_nothing():
    learner = make_learner(lica_args())
    shake(learner, seed=2)
    clean = learner.objective(random_batch(learner.args, seed=3))
    wild = learner.objective(corrupt_padding(random_batch(learner.args, seed=3), EPISODES))
    for key, value in (clean.losses | clean.stats).items():
        torch.testing.assert_close(value, (wild.losses | wild.stats)[key], rtol=1e-6, atol=1e-7)
    ours, theirs = gradients(learner, clean), gradients(learner, wild)
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-5, atol=1e-6)


def test_a_terminal_observation_may_offer_no_action():
    learner = make_learner(lica_args())
    clean = learner.objective(random_batch(learner.args, seed=3))
    bare = learner.objective(without_last_actions(random_batch(learner.args, seed=3)))
    assert_equal(clean.losses, bare.losses)


def test_truncation_bootstraps_and_termination_does_not():
    """The final state of a cut episode enters the targets by the policies there; that of a terminated one does not."""
    learner = make_learner(lica_args())
    shake(learner, seed=2)
    for end, matters in (("early", True), ("terminated", False)):
        episodes = (Episode(4, end),)
        batch = random_batch(learner.args, seed=3, episodes=episodes)
        before = learner.objective(batch).losses["critic"].item()
        batch["actions"][0, 4] = 1  # no action was played there
        assert learner.objective(batch).losses["critic"].item() == before
        batch["state"][0, 4] += 1
        assert (learner.objective(batch).losses["critic"].item() != before) == matters


# Training


@pytest.mark.usefixtures("double")
def test_target_critics_follow():
    learner = make_learner(lica_args(target_update_interval=8, target_update_tau=None))
    copied = []
    for episode_num in (3, 8, 15, 17):
        learner.train(random_batch(learner.args, seed=episode_num), t_env=0, episode_num=episode_num)
        after = weights(learner)
        pairs = [(key, key.removeprefix("target_")) for key in after if key.startswith("target_")]
        copied.append(all(torch.equal(after[target], after[online]) for target, online in pairs))
    assert copied == [False, True, False, True]

    learner = make_learner(lica_args(target_update_interval=None, target_update_tau=0.25))
    before = weights(learner)
    learner.train(random_batch(learner.args, seed=1), t_env=0, episode_num=0)
    after = weights(learner)
    for key in before:
        if key.startswith("target_"):
            online = after[key.removeprefix("target_")]
            torch.testing.assert_close(after[key], 0.75 * before[key] + 0.25 * online)


def test_same_seed_same_weights():
    def train(seed):
        learner = make_learner(lica_args(), seed=seed)
        learn(learner, 4, start=seed)
        return weights(learner)

    first = train(0)
    assert_equal(first, train(0))
    assert differs(first, train(1))


@pytest.mark.parametrize(("t_env", "lr"), [(0, 0.004), (500, 0.0025), (1500, 0.001)])
def test_the_actors_step_size_falls_linearly(t_env, lr):
    scheduled = make_learner(lica_args(t_max=1000, lr=0.004, lr_finish=0.001))
    constant = make_learner(lica_args(t_max=1000, lr=lr))
    for learner in (scheduled, constant):
        learner.train(random_batch(learner.args, seed=1), t_env=t_env, episode_num=0)
    assert_equal(weights(scheduled), weights(constant))


def test_standardised_rewards_have_the_scale_of_their_deviation():
    learner, plain = make_learner(lica_args(standardise_rewards=True)), make_learner(lica_args())
    batch = random_batch(learner.args, seed=1, scale=7.0)
    loss = learner.objective(batch).losses["critic"]
    played = [batch["reward"][e, t, 0].item() for e, episode in enumerate(EPISODES) for t in range(episode.length)]
    mean = sum(played) / len(played)
    batch["reward"].div_((sum((r - mean) ** 2 for r in played) / len(played)) ** 0.5)
    torch.testing.assert_close(loss, plain.objective(batch).losses["critic"], rtol=1e-5, atol=1e-6)


# Logging and saving

STATISTICS = {
    *("critic_loss", "agent_loss", "critic_grad_norm", "agent_grad_norm", "td_error_abs", "q_taken_mean"),
    *("target_mean", "q_policy_mean", "entropy", "pi_max"),
}
DOCUMENTED = (Path(__file__).parents[2] / "docs" / "logged.md").read_text(encoding="utf-8")


def test_statistics_are_logged_and_documented():
    learner = make_learner(lica_args(learner_log_interval=100))
    for t_env in (0, 50, 100):
        learner.train(random_batch(learner.args, seed=1), t_env=t_env, episode_num=0)
    assert set(learner.logger.stats) == STATISTICS
    assert all([t for t, _ in values] == [0, 100] for values in learner.logger.stats.values())
    section = DOCUMENTED.partition("## Actor-critics")[2]
    assert set(re.findall(r"`(\w+)`", section)) >= STATISTICS


def test_a_loaded_learner_goes_on_as_if_nothing_had_happened(tmp_path):
    args = lica_args(target_update_interval=None, target_update_tau=0.1, standardise_rewards=True)
    saved = make_learner(args)
    learn(saved, 3)
    saved.save_models(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {
        *("agent.th", "critic.th", "target_critic.th", "agent_opt.th", "critic_opt.th", "statistics.th")
    }
    loaded = make_learner(args, seed=9)
    assert differs(weights(loaded), weights(saved))
    loaded.load_models(str(tmp_path))
    assert_equal(weights(loaded), weights(saved))
    for learner in (saved, loaded):  # differs from here on if the optimisers' memory was lost
        learn(learner, 3, start=3)
    assert_equal(weights(loaded), weights(saved))


def test_a_folder_of_the_papers_code_has_no_target_critic(tmp_path):
    saved = make_learner(lica_args())
    shake(saved, seed=1)
    saved.save_models(str(tmp_path))
    (tmp_path / "target_critic.th").unlink()
    (tmp_path / "statistics.th").unlink()
    loaded = make_learner(lica_args(), seed=9)
    loaded.load_models(str(tmp_path))
    after, expected = weights(loaded), weights(saved)
    for key in after:
        assert torch.equal(after[key], expected[key.removeprefix("target_")]), key


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_loss_is_named_and_changes_nothing(value):
    learner = make_learner(lica_args(target_update_interval=1, standardise_rewards=True))
    learn(learner, 1)
    before, moments = weights(learner), learner.reward_moments.clone()
    bad = random_batch(learner.args, seed=1)
    bad["reward"][1, 0] = value
    with pytest.raises(NonFiniteError) as error:
        learner.train(bad, t_env=1, episode_num=10)
    assert error.value.culprit == "critic_loss"
    assert_equal(weights(learner), before)
    assert torch.equal(learner.reward_moments, moments)
    learn(learner, 1)


def test_an_agent_and_a_controller_without_unroll_give_the_same_losses():
    class Stepped(BasicMAC):
        unroll = property()  # hasattr is False

    fused, stepped = make_learner(lica_args()), make_learner(lica_args(), mac_class=Stepped)
    batch = random_batch(fused.args, seed=1)
    ours, theirs = fused.objective(batch).losses, stepped.objective(batch).losses
    for part, loss in ours.items():
        torch.testing.assert_close(loss, theirs[part], rtol=1e-5, atol=1e-6)


def test_joint_values_are_the_critics():
    learner = make_learner(lica_args())
    batch = random_batch(learner.args, seed=1)
    policy, joint = learner.joint_values(batch)
    assert joint.shape == (*batch["state"].shape[:2], 1)
    assert not joint.requires_grad
    onehot = torch.eye(learner.args.n_actions)[batch["actions"].squeeze(3)]
    torch.testing.assert_close(joint, learner.critic(onehot, batch["state"]).detach())
    assert (policy[batch["avail_actions"] == 0] == 0).all()
