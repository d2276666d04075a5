"""COMA against nested loops over episodes, steps, agents and actions."""

import pytest
import torch
from helpers import EPISODES, Episode, make_args, make_learner, random_batch, shake
from test_lica_learner import policies_of

GAMMA = 0.875  # exact in float32, which masks and flags have, so that float64 results agree to float64's precision


def coma_args(**changes):
    settings = {"gamma": GAMMA, "td_lambda": 0.5, "entropy_coef": 0.25, "critic_train_reps": 2, "critic_hidden_dim": 6}
    return make_args("coma", **{**settings, **changes})


def objective_of(learner, batch):
    """Losses and statistics of all steps on a batch of which none is taken."""
    losses, stats = {}, {}
    for objective in learner.objectives(batch):
        losses |= objective.losses
        stats |= objective.stats
    return losses, stats


def naive_losses(learner, batch, episodes, epsilon):
    args, N, A = learner.args, learner.args.n_agents, learner.args.n_actions
    avail, eye = batch["avail_actions"], torch.eye(A)
    pi = policies_of(learner, batch)
    for e, t in ((e, t) for e, episode in enumerate(episodes) for t in range(episode.length + 1)):
        for i in range(N):
            uniform = avail[e, t, i] / avail[e, t, i].sum()
            pi[e][t][i] = (1 - epsilon) * pi[e][t][i] + epsilon * uniform

    def q(critic, e, t, i, joint):
        """The values of agent i's actions at one step, from the critic asked about a batch with this joint action."""
        asked = batch["actions_onehot"].to(joint.dtype).clone()
        asked[e, t] = joint
        return critic(batch, actions=asked)[e, t, i]

    def taken(e, t):
        return torch.stack([eye[batch["actions"][e, t, i, 0]] for i in range(N)])

    errors, chosen, targets, gains, gradients, entropies, largest = [], [], [], [], [], [], []
    for e, episode in enumerate(episodes):
        for i in range(N):
            returns, L = None, episode.length
            for t in reversed(range(L)):
                a = batch["actions"][e, t, i, 0]
                if t == L - 1 and episode.end == "terminated":
                    returns = batch["reward"][e, t, 0]
                elif t == L - 1:
                    p = pi[e][L].detach()
                    returns = (
                        batch["reward"][e, t, 0] + args.gamma * (p[i] * q(learner.target_critic, e, L, i, p)).sum()
                    )
                else:
                    b = batch["actions"][e, t + 1, i, 0]
                    following = q(learner.target_critic, e, t + 1, i, taken(e, t + 1))[b]
                    mixed = (1 - args.td_lambda) * following + args.td_lambda * returns
                    returns = batch["reward"][e, t, 0] + args.gamma * mixed
                returns = returns.detach()
                values, p = q(learner.critic, e, t, i, taken(e, t)), pi[e][t][i]
                errors.append(values[a] - returns)
                chosen.append(values[a].item())
                targets.append(returns.item())
                gains.append((values[a] - sum(p[k] * values[k] for k in range(A))).item())
                gradients.append(p[a].log() * gains[-1])
                entropies.append(-sum(x * x.log() for x in p if x > 0))
                largest.append(max(p).item())
    count = len(errors)
    entropy = sum(entropies) / count
    losses = {
        "critic": sum(error**2 for error in errors) / count,
        "agent": -sum(gradients) / count - args.entropy_coef * entropy,
    }
    stats = {
        "critic_loss": losses["critic"].item(),
        "agent_loss": losses["agent"].item(),
        "td_error_abs": sum(abs(error.item()) for error in errors) / count,
        "q_taken_mean": sum(chosen) / count,
        "target_mean": sum(targets) / count,
        "advantage_mean": sum(gains) / count,
        "entropy": entropy.item(),
        "pi_max": sum(largest) / count,
    }
    return losses, stats


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("td_lambda", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.25])
def test_losses_gradients_and_statistics_are_those_of_the_nested_loops(epsilon, td_lambda):
    learner = make_learner(coma_args(td_lambda=td_lambda))
    shake(learner, seed=2)
    learner.mac.action_selector.epsilon = epsilon
    batch = random_batch(learner.args, seed=3)
    found, statistics = objective_of(learner, batch)
    losses, stats = naive_losses(learner, batch, EPISODES, epsilon)
    assert found.keys() == losses.keys()
    for part, loss in losses.items():
        assert found[part].item() == pytest.approx(loss.item(), rel=1e-6), part
        expected = torch.autograd.grad(loss, learner.params[part], retain_graph=True)
        ours = torch.autograd.grad(found[part], learner.params[part], retain_graph=True)
        for g, h in zip(ours, expected, strict=True):
            torch.testing.assert_close(g, h, rtol=1e-5, atol=1e-8)
    assert {key: value.item() for key, value in statistics.items()} == pytest.approx(stats, rel=1e-6)


def test_the_actors_follow_the_critic_as_its_steps_have_left_it():
    learner = make_learner(coma_args(critic_lr=1e-4))
    batch = random_batch(learner.args, seed=3)
    parts, losses = [], []
    for objective in learner.objectives(batch):
        for part, loss in objective.losses.items():
            parts.append(part)
            losses.append(loss.item())
            if part == "critic":
                learner._differentiate(part, loss)
                learner.optimisers[part].step()
    assert parts == ["critic", "critic", "agent"]
    assert losses[1] < losses[0]
    assert losses[2] != pytest.approx(objective_of(make_learner(coma_args()), batch)[0]["agent"].item())


def test_an_agent_alone_that_cannot_choose_learns_nothing():
    """With one action available its counterfactual advantage is 0."""
    learner = make_learner(coma_args(entropy_coef=0.0))
    batch = random_batch(learner.args, seed=3)
    batch["avail_actions"].copy_(torch.nn.functional.one_hot(batch["actions"].squeeze(3), learner.args.n_actions))
    losses, _ = objective_of(learner, batch)
    gradients = torch.autograd.grad(losses["agent"], learner.params["agent"], allow_unused=True)
    assert all(g is None or g.abs().max() < 1e-6 for g in gradients)


def test_truncation_bootstraps_and_termination_does_not():
    """The final state of a cut episode enters the targets by the policies there; that of a terminated one does not."""
    learner = make_learner(coma_args())
    shake(learner, seed=2)
    for end, matters in (("early", True), ("terminated", False)):
        batch = random_batch(learner.args, seed=3, episodes=(Episode(4, end),))
        before = objective_of(learner, batch)[0]["critic"].item()
        batch["actions"][0, 4] = 1  # no action was played there
        assert objective_of(learner, batch)[0]["critic"].item() == before
        batch["state"][0, 4] += 1
        assert (objective_of(learner, batch)[0]["critic"].item() != before) == matters


def test_joint_values_are_the_mean_of_what_the_critic_tells_the_agents():
    learner = make_learner(coma_args())
    batch = random_batch(learner.args, seed=1)
    policy, joint = learner.joint_values(batch)
    assert joint.shape == (*batch["state"].shape[:2], 1)
    played = batch["filled"].bool().squeeze(2)
    q = learner.critic(batch).gather(3, batch["actions"]).mean(dim=2)
    torch.testing.assert_close(joint[played], q[played].detach())
    assert (policy[batch["avail_actions"] == 0] == 0).all()
