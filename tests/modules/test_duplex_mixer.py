"""QPLEX's mixer: numbers by hand, loops, that the agents' best actions are the team's, and what its gradients reach."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from modules.mixers import joint_value
from modules.mixers.qplex import DuplexMixer

B, T, N, A, S = 3, 4, 3, 4, 5


def make(layers=1, kernels=2, seed=0, scale=3.0, **sizes):
    """Random weights, larger than the initial ones, so that the mixer differs between states and joint actions."""
    torch.manual_seed(seed)
    sizes = {"n_agents": N, "n_actions": A, "state_shape": S, "hypernet_embed": 7, **sizes}
    advantage = {"adv_hypernet_layers": layers, "adv_hypernet_embed": 6, "num_kernel": kernels}
    mixer = DuplexMixer(SimpleNamespace(**sizes, **advantage))
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.mul_(scale)
    return mixer


def contents(seed=1):
    """q, actions, avail, states; every agent has an available action, and takes one."""
    rng = torch.Generator().manual_seed(seed)
    q, states = 2 * torch.randn(B, T, N, A, generator=rng), torch.randn(B, T, S, generator=rng)
    avail = (torch.rand(B, T, N, A, generator=rng) < 0.6).int()
    avail[..., 0] |= (avail == 0).all(-1)
    actions = torch.multinomial(avail.view(-1, A).float(), 1, generator=rng).view(B, T, N, 1)
    return q, actions, avail, states


def test_numbers_by_hand():
    """Two agents and actions, one kernel; constant networks: w = (2, 1), b = (.5, 0), key -4, both sigmoids known."""
    mixer = make(kernels=1, n_agents=2, n_actions=2, scale=0.0)
    with torch.no_grad():
        mixer.hyper_w[-1].bias.copy_(torch.tensor([-2.0, 1.0]))
        mixer.hyper_b[-1].bias.copy_(torch.tensor([0.5, 0.0]))
        mixer.kernels[0].key[0].bias.fill_(-4.0)
        mixer.kernels[0].agents[0].bias.copy_(torch.tensor([0.0, math.log(3.0)]))  # sigmoids .5 and .75
        mixer.kernels[0].actions[0].bias.copy_(torch.tensor([0.0, 0.0]))  # .5 and .5
    q = torch.tensor([[[[1.0, 3.0], [5.0, 4.0]]]])
    avail, states = torch.ones(1, 1, 2, 2), torch.randn(1, 1, S)
    for actions, expected in (
        # lambda = 4 * .5 * .5 = 1 and 4 * .75 * .5 = 1.5; V = 2 * 3 + .5 and 5
        ([1, 0], 6.5 + 5),
        ([0, 0], 6.5 + 5 + 1 * 2 * (1 - 3)),
        ([1, 1], 6.5 + 5 + 1.5 * (4 - 5)),
        ([0, 1], 6.5 + 5 - 4 - 1.5),
    ):
        found = joint_value(mixer, q, torch.tensor(actions).view(1, 1, 2, 1), avail, states)
        assert found.item() == pytest.approx(expected)
    weights = mixer.advantage_weights(states, torch.zeros(1, 1, 2, 2))
    torch.testing.assert_close(weights, torch.tensor([[[1.0, 1.5]]]))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_it_equals_its_formula_in_nested_loops(layers):
    mixer = make(layers)
    q, actions, avail, states = contents()
    found = joint_value(mixer, q, actions, avail, states)
    for b, t in itertools.product(range(B), range(T)):
        s = states[b, t]
        onehot = torch.zeros(N, A)
        for i in range(N):
            onehot[i, actions[b, t, i, 0]] = 1
        w, c = mixer.hyper_w(s).abs(), mixer.hyper_b(s)
        total = 0.0
        for i in range(N):
            value = [(w[i] * q[b, t, i, k] + c[i]).item() for k in range(A)]
            best = max(value[k] for k in range(A) if avail[b, t, i, k])
            weight = 0.0
            for kernel in mixer.kernels:
                heads = kernel.agents(s)[i].sigmoid() * kernel.actions(torch.cat([s, onehot.flatten()]))[i].sigmoid()
                weight += (kernel.key(s).abs() * heads).item()
            total += best + weight * (value[actions[b, t, i, 0]] - best)
        assert found[b, t, 0].item() == pytest.approx(total, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("layers", [1, 2])
def test_the_agents_best_actions_are_the_teams(layers, seed):
    """IGM, over all available joint actions, for random weights: the best total is at the tuple of the best actions."""
    mixer = make(layers, kernels=4, seed=seed, scale=4.0)
    q, _, avail, states = contents(seed)
    greedy = q.masked_fill(avail == 0, -torch.inf).argmax(dim=3, keepdim=True)
    at_greedy = joint_value(mixer, q, greedy, avail, states)
    spread = torch.zeros(B, T, 1)
    for joint in itertools.product(range(A), repeat=N):
        actions = torch.tensor(joint).view(1, 1, N, 1).expand(B, T, N, 1)
        can = avail.gather(3, actions).all(dim=2)
        total = joint_value(mixer, q, actions, avail, states)
        other = can & (actions != greedy).any(dim=2)
        assert (total < at_greedy)[other].all()
        spread = torch.maximum(spread, torch.where(other, at_greedy - total, 0.0))
    assert spread.max() > 1


def test_it_is_not_monotone_off_the_greedy_action():
    """What a monotone mixer cannot: raising an agent's best value lowers the total of a joint action without it."""
    mixer = make(scale=4.0)
    q, actions, avail, states = contents()
    greedy = q.masked_fill(avail == 0, -torch.inf).argmax(dim=3, keepdim=True)
    raised = q.scatter_add(3, greedy, torch.ones_like(greedy, dtype=q.dtype))
    change = joint_value(mixer, raised, actions, avail, states) - joint_value(mixer, q, actions, avail, states)
    assert (change < 0).any()


def test_weights_of_advantages_are_positive_and_depend_on_the_joint_action():
    mixer = make(kernels=4, scale=10.0)
    rng = torch.Generator().manual_seed(2)
    states = 5 * torch.randn(50, 20, S, generator=rng)
    actions = torch.nn.functional.one_hot(torch.randint(A, (50, 20, N), generator=rng), A).float()
    weights = mixer.double().advantage_weights(states.double(), actions.double())
    assert (weights > 0).all()
    other = mixer.advantage_weights(states.double(), actions.roll(1, dims=-1).double())
    assert not torch.allclose(weights, other)


def test_gradients_stop_at_the_advantages():
    """The chosen values learn with slope w, as without advantages; the best ones do not learn; lambda does."""
    mixer = make()
    q, actions, avail, states = contents()
    q.requires_grad_()
    joint_value(mixer, q, actions, avail, states).sum().backward()
    expected = torch.zeros_like(q).scatter(3, actions, mixer._scales(states)[0].detach().unsqueeze(-1))
    torch.testing.assert_close(q.grad, expected)
    grads = [p.grad for kernel in mixer.kernels for p in kernel.parameters()]
    assert all(grad is not None and (grad != 0).any() for grad in grads)


def test_values_of_unavailable_actions_change_nothing():
    mixer = make()
    q, actions, avail, states = contents()
    wild = q.masked_fill(avail == 0, 1e8)
    assert torch.equal(joint_value(mixer, q, actions, avail, states), joint_value(mixer, wild, actions, avail, states))


def test_shapes_are_checked():
    mixer = make()
    agent_qs, states, onehot = torch.zeros(2, 4, N), torch.zeros(2, 4, S), torch.zeros(2, 4, N, A)
    with pytest.raises(ValueError, match=r"agent_qs must have shape \(2, 4, 3\), got \(2, 4, 2\)"):
        mixer(agent_qs[..., :2], states, onehot, agent_qs)
    with pytest.raises(ValueError, match="shapes must be equal"):
        mixer(agent_qs, states, onehot, agent_qs[..., :1])
    with pytest.raises(ValueError, match=r"actions must have shape \(2, 4, 3, 4\), got \(2, 4, 3, 1\)"):
        mixer(agent_qs, states, onehot[..., :1], agent_qs)
    with pytest.raises(ValueError, match=r"states must have shape \(any, any, 5\), got \(2, 4, 6\)"):
        mixer(agent_qs, torch.zeros(2, 4, 6), onehot, agent_qs)
