"""The recurrent agent: names and shapes of PyMARL's, one step by the GRU's equations, unroll against stepping."""

from types import SimpleNamespace

import torch

from modules.agents.rnn_agent import RNNAgent

I, H, A = 5, 8, 4


def make_agent(seed=0):
    torch.manual_seed(seed)
    return RNNAgent(I, SimpleNamespace(rnn_hidden_dim=H, n_actions=A))


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def test_parameters_are_pymarls():
    assert {name: tuple(p.shape) for name, p in make_agent().state_dict().items()} == {
        "fc1.weight": (H, I),
        "fc1.bias": (H,),
        "rnn.weight_ih": (3 * H, H),
        "rnn.weight_hh": (3 * H, H),
        "rnn.bias_ih": (3 * H,),
        "rnn.bias_hh": (3 * H,),
        "fc2.weight": (A, H),
        "fc2.bias": (A,),
    }


def test_memory_starts_at_zero():
    hidden = make_agent().init_hidden()
    assert hidden.shape == (1, H)
    assert (hidden == 0).all()


def test_one_step_follows_the_equations():
    """r, z, n of a GRU: h' = (1 - z) n + z h, between two linear layers."""
    agent = make_agent()
    torch.manual_seed(1)
    inputs, h = torch.randn(6, I), torch.randn(6, H)
    q, new = agent(inputs, h)
    x = (inputs @ agent.fc1.weight.T + agent.fc1.bias).clamp(min=0)
    from_x = (x @ agent.rnn.weight_ih.T + agent.rnn.bias_ih).chunk(3, dim=1)
    from_h = (h @ agent.rnn.weight_hh.T + agent.rnn.bias_hh).chunk(3, dim=1)
    r, z = torch.sigmoid(from_x[0] + from_h[0]), torch.sigmoid(from_x[1] + from_h[1])
    n = torch.tanh(from_x[2] + r * from_h[2])
    expected = (1 - z) * n + z * h
    close(new, expected)
    close(q, expected @ agent.fc2.weight.T + agent.fc2.bias)


def test_memory_may_have_any_shape():
    agent = make_agent()
    torch.manual_seed(2)
    inputs, h = torch.randn(6, I), torch.randn(2, 3, H)
    close(agent(inputs, h)[0], agent(inputs, h.view(6, H))[0], 0)


def test_unroll_equals_stepping_with_gradients():
    agent = make_agent()
    T, R = 7, 6
    torch.manual_seed(3)
    inputs = torch.randn(T, R, I, requires_grad=True)
    start = torch.randn(R, H, requires_grad=True)
    weights = torch.randn(T, R, A)
    leaves = [inputs, start, *agent.parameters()]

    fused, fused_last = agent.unroll(inputs, start)
    hidden, steps = start, []
    for t in range(T):
        q, hidden = agent(inputs[t], hidden)
        steps.append(q)
    stepped = torch.stack(steps)

    assert fused.shape == (T, R, A)
    close(fused, stepped)
    close(fused_last, hidden)
    of_fused = torch.autograd.grad((fused * weights).sum() + fused_last.sum(), leaves)
    of_stepped = torch.autograd.grad((stepped * weights).sum() + hidden.sum(), leaves)
    for a, b in zip(of_fused, of_stepped, strict=True):
        assert b.abs().max() > 0.01
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_unroll_does_not_look_ahead():
    agent = make_agent()
    torch.manual_seed(4)
    inputs = torch.randn(5, 2, I)
    before, _ = agent.unroll(inputs, torch.zeros(2, H))
    inputs[3] += 1.0
    after, _ = agent.unroll(inputs, torch.zeros(2, H))
    assert (before[:3] == after[:3]).all()
    assert (before[3:] != after[3:]).all()
