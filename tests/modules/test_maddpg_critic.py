"""MADDPG's critic against its formula in nested loops and numbers by hand."""

from types import SimpleNamespace

import pytest
import torch

from modules.critics import REGISTRY
from modules.critics.maddpg import MADDPGCritic

B, T, N, A, S, H = 2, 3, 3, 4, 5, 6


def make_critic(**sizes):
    torch.manual_seed(0)
    given = {"n_agents": N, "n_actions": A, "state_shape": S, "critic_hidden_dim": H, **sizes}
    return MADDPGCritic({}, SimpleNamespace(**given))


def inputs(seed=1):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(B, T, S, generator=generator)
    first, second = torch.randn(2, B, T, N, A, generator=generator).softmax(dim=-1)
    return first, second, states


def layer(linear, values):
    """One layer, unit by unit."""
    return [
        bias + sum(weight * value for weight, value in zip(row, values, strict=True))
        for row, bias in zip(linear.weight, linear.bias, strict=True)
    ]


def naive(critic, policy, state):
    """Q of one step: policy (N, A), state (S,)."""
    values = [*state, *(policy[i, k] for i in range(N) for k in range(A))]
    for linear in (critic.fc1, critic.fc2):
        values = [max(x, torch.zeros(())) for x in layer(linear, values)]
    return layer(critic.fc3, values)[0]


@pytest.mark.usefixtures("double")
def test_the_critic_equals_its_formula_in_nested_loops():
    critic = make_critic()
    first, second, states = inputs()
    q, cf, own = critic(first, states), critic.counterfactual(first, states), critic.deviation(first, second, states)
    assert q.shape == (B, T, 1)
    for b in range(B):
        for t in range(T):
            torch.testing.assert_close(q[b, t, 0], naive(critic, first[b, t], states[b, t]))
            for i in range(N):
                changed = first[b, t].clone()
                changed[i] = second[b, t, i]
                torch.testing.assert_close(own[b, t, i], naive(critic, changed, states[b, t]))
                for k in range(A):
                    changed[i] = torch.eye(A)[k]
                    torch.testing.assert_close(cf[b, t, i, k], naive(critic, changed, states[b, t]))


@pytest.mark.usefixtures("double")
def test_by_hand():
    """One agent of two actions and one state s: h1 = ReLU(s + (2, -1) . a), h2 = ReLU(3 h1 - 1), Q = 2 h2 + .5."""
    critic = make_critic(n_agents=1, n_actions=2, state_shape=1, critic_hidden_dim=1)
    given = {critic.fc1: ([1, 2, -1], 0), critic.fc2: ([3], -1), critic.fc3: ([2], 0.5)}
    with torch.no_grad():
        for linear, (weight, bias) in given.items():
            linear.weight.copy_(torch.tensor(weight))
            linear.bias.fill_(bias)
    state = torch.full((1, 1, 1), 1.0)
    for policy, q in (([1, 0], 16.5), ([0, 1], 0.5), ([0.5, 0.5], 7.5)):
        assert critic(torch.tensor([[[policy]]], dtype=torch.float64), state).item() == pytest.approx(q)
    played = torch.tensor([[[[0.0, 1.0]]]])
    assert critic.counterfactual(played, state).flatten().tolist() == pytest.approx([16.5, 0.5])


@pytest.mark.usefixtures("double")
def test_gradients_of_the_cheap_forms_are_those_of_the_critic():
    critic = make_critic()
    first, second, states = inputs()
    second.requires_grad_()
    brute = []
    for i in range(N):
        changed = first.clone()
        changed[:, :, i] = second[:, :, i]
        brute.append(critic(changed, states))
    wanted = [second, *critic.parameters()]
    ours = torch.autograd.grad(critic.deviation(first, second, states).square().sum(), wanted)
    theirs = torch.autograd.grad(torch.cat(brute, -1).square().sum(), wanted)
    for g, h in zip(ours, theirs, strict=True):
        torch.testing.assert_close(g, h)


def test_wrong_shapes_are_refused():
    critic = make_critic()
    first, second, states = inputs()
    for call in (critic, critic.counterfactual):
        with pytest.raises(ValueError, match="policies must have shape"):
            call(first[:, :2], states)
        with pytest.raises(ValueError, match="states must have shape"):
            call(first, states[..., :4])
    with pytest.raises(ValueError, match="shapes must be equal"):
        critic.deviation(first, second[..., :3], states)


def test_the_registry_builds_it():
    args = SimpleNamespace(n_agents=N, n_actions=A, state_shape=S, critic_hidden_dim=H)
    assert isinstance(REGISTRY["maddpg"]({}, args), MADDPGCritic)
