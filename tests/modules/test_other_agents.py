"""The agents beside the plain recurrent one: unroll against stepping, and what each adds."""

from types import SimpleNamespace

import pytest
import torch

from modules.agents import REGISTRY

I, H, A = 5, 8, 4


def make_agent(name):
    torch.manual_seed(0)
    return REGISTRY[name](I, SimpleNamespace(rnn_hidden_dim=H, n_actions=A))


@pytest.mark.parametrize("name", REGISTRY)
def test_unroll_equals_stepping(name):
    agent = make_agent(name)
    inputs = torch.randn(7, 6, I)
    hidden = agent.init_hidden().expand(6, -1)
    expected, memory = [], hidden
    for step in inputs:
        q, memory = agent(step, memory)
        expected.append(q)
    together, last = agent.unroll(inputs, hidden)
    torch.testing.assert_close(together, torch.stack(expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(last, memory, rtol=0, atol=1e-5)


def test_mlp_follows_the_equations_and_remembers_nothing():
    agent = make_agent("mlp")
    inputs = torch.randn(6, I)
    x = (inputs @ agent.fc1.weight.T + agent.fc1.bias).clamp(min=0)
    x = (x @ agent.fc2.weight.T + agent.fc2.bias).clamp(min=0)
    expected = x @ agent.fc3.weight.T + agent.fc3.bias
    for memory in (torch.zeros(6, 1), torch.ones(6, 1)):
        torch.testing.assert_close(agent(inputs, memory)[0], expected)


def test_normalised_agent_does_not_see_the_scale_of_its_first_layer():
    """LayerNorm divides by the spread: ten times the first layer gives the same values (up to its epsilon)."""
    agent = make_agent("rnn_norm")
    inputs, memory = torch.randn(6, I) * 100, agent.init_hidden().expand(6, -1)
    before, _ = agent(inputs, memory)
    with torch.no_grad():
        agent.fc1.weight *= 10
        agent.fc1.bias *= 10
    after, _ = agent(inputs, memory)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    plain = make_agent("rnn")
    assert not torch.allclose(plain(inputs, memory)[0], before, atol=1e-2)


def test_features_of_an_agent_without_memory_are_what_its_last_layer_reads():
    torch.manual_seed(0)
    agent = REGISTRY["mlp"](5, SimpleNamespace(rnn_hidden_dim=6, n_actions=3))
    inputs = torch.randn(4, 7, 5)
    values, features = agent.unroll_features(inputs, agent.init_hidden())
    assert torch.equal(values, agent.unroll(inputs, agent.init_hidden())[0])
    assert features.shape == (4, 7, 6)
    assert torch.equal(agent.fc3(features), values)
