"""LICA's critic against its formula in nested loops and numbers by hand."""

from types import SimpleNamespace

import pytest
import torch

from modules.critics import REGISTRY
from modules.critics.lica import LICACritic
from modules.mixers import InStates

B, T, N, A, S, E = 2, 3, 3, 4, 5, 6
LAYERS = (1, 2)


def make_critic(layers=2, **sizes):
    torch.manual_seed(0)
    given = {"n_agents": N, "n_actions": A, "state_shape": S, "mixing_embed_dim": E, "hypernet_embed": 7, **sizes}
    return LICACritic({}, SimpleNamespace(hypernet_layers=layers, **given))


def inputs(seed=1):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(B, T, S, generator=generator)
    first, second = torch.randn(2, B, T, N, A, generator=generator).softmax(dim=-1)
    return first, second, states


def naive(critic, policy, state):
    """Q of one step, from weights that the hypernetworks make of its state: policy (N, A), state (S,)."""
    w1, b1 = critic.hyper_w_1(state).view(N * A, E), critic.hyper_b_1(state)
    w2, total = critic.hyper_w_final(state), critic.hyper_b_2(state)[0]
    for e in range(E):
        hidden = b1[e]
        for i in range(N):
            for k in range(A):
                hidden = hidden + policy[i, k] * w1[i * A + k, e]
        total = total + max(hidden, torch.zeros(())) * w2[e]
    return total


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("layers", LAYERS)
def test_the_critic_equals_its_formula_in_nested_loops(layers):
    critic = make_critic(layers)
    first, second, states = inputs()
    q, cf = critic(first, states), critic.counterfactual(first, states)
    own = critic.deviation(first, second, states)
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
    """One agent of two actions, W1 = [[1, -1], [-2, 3]], b1 = (.5, 0), w2 = (2, -1), b2 = .25, whatever the state."""
    critic = make_critic(1, n_agents=1, n_actions=2, mixing_embed_dim=2)
    given = {
        critic.hyper_w_1: [1, -1, -2, 3],
        critic.hyper_b_1: [0.5, 0],
        critic.hyper_w_final: [2, -1],
        critic.hyper_b_2[2]: [0.25],
    }
    with torch.no_grad():
        for layer, bias in given.items():
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor(bias))
    state = torch.randn(1, 1, S)
    # hidden: (1.5, -1) -> 3.25;  (-1.5, 3) -> -2.75;  at (.5, .5): (0, 1) -> -.75, not the mean .25 of the two
    for policy, q in (([1, 0], 3.25), ([0, 1], -2.75), ([0.5, 0.5], -0.75)):
        assert critic(torch.tensor([[[policy]]], dtype=torch.float64), state).item() == pytest.approx(q)


def test_gradients_of_the_cheap_forms_are_those_of_the_critic():
    critic = make_critic()
    first, second, states = inputs()
    eye = torch.eye(A)
    brute = []
    for i in range(N):
        changed = first.clone()
        changed[:, :, i] = second[:, :, i]
        brute.append(critic(changed, states))
    ours = torch.autograd.grad(critic.deviation(first, second, states).square().sum(), list(critic.parameters()))
    theirs = torch.autograd.grad(torch.cat(brute, -1).square().sum(), list(critic.parameters()))
    for g, h in zip(ours, theirs, strict=True):
        torch.testing.assert_close(g, h, rtol=1e-4, atol=1e-5)
    changed = first.clone()
    changed[:, :, 1] = eye[2]
    torch.testing.assert_close(critic.counterfactual(first, states)[:, :, 1, 2], critic(changed, states).squeeze(-1))


def test_values_may_fall_with_a_probability():
    """Unlike a monotone mixer: the signs of the weights are free."""
    critic = make_critic()
    first, _, states = inputs()
    first.requires_grad_()
    (slope,) = torch.autograd.grad(critic(first, states).sum(), first)
    assert (slope > 0).any()
    assert (slope < 0).any()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["lica", "maddpg"])
@pytest.mark.parametrize("played", [(3, 3), (3, 1)])
def test_in_given_states_critics_say_what_they_say_when_called(name, played):
    sizes = {"n_agents": N, "n_actions": A, "state_shape": S, "mixing_embed_dim": E, "critic_hidden_dim": 7}
    critic = REGISTRY[name]({}, SimpleNamespace(hypernet_layers=1, **sizes))
    first, second, states = inputs()
    first.requires_grad_()
    mask = (torch.arange(T).view(1, T, 1) < torch.tensor(played).view(B, 1, 1)).float()
    here = InStates(critic, states, mask)
    for found, expected in (
        (here(first), critic(first, states)),
        (here.counterfactual(first), critic.counterfactual(first, states)),
        (here.deviation(first, second), critic.deviation(first, second, states)),
    ):
        wanted = mask.view(B, T, *(1,) * (found.dim() - 2))
        torch.testing.assert_close(found * wanted, expected * wanted)
        scale = torch.randn_like(found) * wanted
        parameters = [first, *critic.parameters()]
        ours, theirs = (
            torch.autograd.grad((values * scale).sum(), parameters, retain_graph=True) for values in (found, expected)
        )
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)
            assert one.any()


def test_hypernetworks_run_once_whatever_the_critic_is_asked():
    critic, calls = make_critic(), []
    critic.hyper_w_1.register_forward_hook(lambda *_: calls.append(1))
    first, second, states = inputs()
    here = InStates(critic, states)
    here(first)
    here.counterfactual(first)
    here.deviation(first, second)
    assert len(calls) == 1


def test_wrong_shapes_are_refused():
    critic = make_critic()
    first, second, states = inputs()
    with pytest.raises(ValueError, match="policies must have shape"):
        critic(first[:, :2], states)
    with pytest.raises(ValueError, match="states must have shape"):
        critic(first, states[..., :4])
    with pytest.raises(ValueError, match="shapes must be equal"):
        critic.deviation(first, second[..., :3], states)
    with pytest.raises(ValueError, match="hypernet_layers must be 1 or 2, got 3"):
        make_critic(3)


def test_the_registry_builds_it():
    args = SimpleNamespace(
        n_agents=N, n_actions=A, state_shape=S, mixing_embed_dim=E, hypernet_layers=1, hypernet_embed=7
    )
    assert isinstance(REGISTRY["lica"]({}, args), LICACritic)
