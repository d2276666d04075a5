"""Temporal-difference targets and loss: numbers worked out by hand, and a recursion written with nested loops."""

import pytest
import torch

from objectives.td import discounted_returns, lambda_targets, one_step_targets, td_loss
from utils.rl_utils import build_td_lambda_targets

LAMBDAS = [0.0, 0.3, 0.8, 1.0]


def rows(*values):
    """Episodes (B, T) as (B, T, 1)."""
    return torch.tensor(values, dtype=torch.float64).unsqueeze(-1)


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=tolerance)


def random_episodes(T=6, X=3, seed=0):
    """Two episodes of every length, the first of them terminated, the second cut off. Padding holds zeros."""
    rng = torch.Generator().manual_seed(seed)
    B, lengths = 2 * T, [1 + b // 2 for b in range(2 * T)]
    mask = torch.zeros(B, T, X, dtype=torch.float64)
    terminated = torch.zeros(B, T, X, dtype=torch.float64)
    for b, length in enumerate(lengths):
        mask[b, :length] = 1
        terminated[b, length - 1] = 1 - b % 2
    reward = torch.randn(B, T, X, generator=rng, dtype=torch.float64) * mask
    v_next = torch.randn(B, T, X, generator=rng, dtype=torch.float64) * mask
    return reward, terminated, mask, v_next, lengths


def naive_lambda_targets(reward, terminated, v_next, lengths, gamma, td_lambda):
    """The recursion of Sutton & Barto (12.18), one number at a time; zero on padding."""
    B, T, X = reward.shape
    expected = torch.zeros(B, T, X, dtype=torch.float64)

    def value_of_return(b, t, x):
        if terminated[b, t, x]:
            return reward[b, t, x].item()
        one_step = v_next[b, t, x].item()
        if t == lengths[b] - 1:
            return reward[b, t, x].item() + gamma * one_step
        rest = value_of_return(b, t + 1, x)
        return reward[b, t, x].item() + gamma * ((1 - td_lambda) * one_step + td_lambda * rest)

    for b in range(B):
        for t in range(lengths[b]):
            for x in range(X):
                expected[b, t, x] = value_of_return(b, t, x)
    return expected


def test_one_step_targets_by_hand():
    # 1 + .5 * 10 = 6;  2 + .5 * 20 = 12;  4, because the step terminated
    y = one_step_targets(rows([1, 2, 4]), rows([0, 0, 1]), rows([10, 20, 99]), gamma=0.5)
    close(y, rows([6, 12, 4]))


def test_lambda_targets_by_hand():
    reward = rows([1, 2, 4], [1, 2, 0], [0, 0, 2])
    terminated = rows([0, 0, 1], [0, 0, 0], [0, 0, 0])
    mask = rows([1, 1, 1], [1, 1, 0], [1, 1, 1])
    v_next = rows([10, 20, 99], [10, 20, 0], [4, 8, 6])
    # Terminated at its third step: 4;  2 + .5 (.5 * 20 + .5 * 4) = 8;  1 + .5 (.5 * 10 + .5 * 8) = 5.5
    # Cut off after two steps: 2 + .5 * 20 = 12;  1 + .5 (.5 * 10 + .5 * 12) = 6.5
    # Cut off by the end of the tensor: 2 + .5 * 6 = 5;  .5 (.5 * 8 + .5 * 5) = 3.25;  .5 (.5 * 4 + .5 * 3.25) = 1.8125
    expected = rows([5.5, 8, 4], [6.5, 12, 0], [1.8125, 3.25, 5])
    close(lambda_targets(reward, terminated, mask, v_next, gamma=0.5, td_lambda=0.5) * mask, expected)


@pytest.mark.parametrize("td_lambda", LAMBDAS)
def test_lambda_targets_equal_the_recursion(td_lambda):
    reward, terminated, mask, v_next, lengths = random_episodes()
    actual = lambda_targets(reward, terminated, mask, v_next, 0.9, td_lambda) * mask
    close(actual, naive_lambda_targets(reward, terminated, v_next, lengths, 0.9, td_lambda), 1e-10)


def test_lambda_one_is_the_discounted_sum_of_rewards():
    reward, terminated, mask, v_next, lengths = random_episodes(seed=1)
    actual = lambda_targets(reward, terminated, mask, v_next, gamma=0.9, td_lambda=1.0)
    for b, length in enumerate(lengths):
        for t in range(length):
            last = length - 1
            expected = sum(0.9 ** (k - t) * reward[b, k] for k in range(t, length))
            expected = expected + 0.9 ** (length - t) * (1 - terminated[b, last]) * v_next[b, last]
            close(actual[b, t], expected, 1e-10)


def test_lambda_zero_is_one_step_and_its_limit():
    reward, terminated, mask, v_next, _ = random_episodes(seed=2)
    one_step = one_step_targets(reward, terminated, v_next, gamma=0.9)
    close(lambda_targets(reward, terminated, mask, v_next, 0.9, td_lambda=0.0) * mask, one_step * mask, 1e-12)
    close(lambda_targets(reward, terminated, mask, v_next, 0.9, td_lambda=1e-9) * mask, one_step * mask, 1e-7)


@pytest.mark.parametrize("td_lambda", LAMBDAS)
@pytest.mark.parametrize("wild", [1e6, float("nan"), float("-inf")])
def test_padding_has_no_effect_on_the_targets_of_played_steps(td_lambda, wild):
    reward, terminated, mask, v_next, _ = random_episodes(seed=3)
    clean = lambda_targets(reward, terminated, mask, v_next, 0.9, td_lambda)
    padding = mask == 0
    wild_reward, wild_v = reward.masked_fill(padding, wild), v_next.masked_fill(padding, wild)
    dirty = lambda_targets(wild_reward, terminated, mask, wild_v, 0.9, td_lambda)
    close(dirty[~padding], clean[~padding], 0)
    assert padding.any()


def test_the_value_after_a_terminated_step_has_no_effect():
    reward, terminated, mask, v_next, _ = random_episodes(seed=4)
    wild = v_next.masked_fill(terminated == 1, 1e6)
    for td_lambda in LAMBDAS:
        clean = lambda_targets(reward, terminated, mask, v_next, 0.9, td_lambda)
        close(lambda_targets(reward, terminated, mask, wild, 0.9, td_lambda) * mask, clean * mask, 1e-9)


def test_discounted_returns_by_hand():
    # 4;  2 + .5 * 4 = 4;  1 + .5 * 4 = 3;  and an episode of two steps, the second of which ends with a value of 8
    returns = discounted_returns(rows([1, 2, 4], [1, 2 + 0.5 * 8, 0]), gamma=0.5)
    close(returns, rows([3, 4, 4], [4, 6, 0]))


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_discounted_returns_in_loops(gamma):
    reward, _, _, _, lengths = random_episodes(seed=7)
    expected = torch.zeros_like(reward)
    for b, length in enumerate(lengths):
        for t in range(length):
            for x in range(reward.shape[2]):
                expected[b, t, x] = sum(gamma ** (k - t) * reward[b, k, x].item() for k in range(t, length))
    close(discounted_returns(reward, gamma), expected, 1e-10)


def test_discounted_returns_of_a_long_episode_do_not_overflow():
    reward = torch.ones(1, 400, 1)
    returns = discounted_returns(reward, gamma=0.5)
    close(returns[0, :300], torch.full((300, 1), 2.0), 1e-5)


def test_pymarl_signature_takes_team_rewards_and_integer_flags():
    reward, terminated, mask, v_next, lengths = random_episodes(seed=5)
    reward = reward[:, :, :1]  # one reward of the team for three agents
    values = torch.cat([torch.full_like(v_next[:, :1], 1e6), v_next], dim=1)  # that of the first step is not read
    actual = build_td_lambda_targets(reward, terminated[:, :, :1].to(torch.uint8), mask[:, :, :1], values, 3, 0.9, 0.7)
    expected = naive_lambda_targets(reward.expand_as(v_next), terminated, v_next, lengths, 0.9, 0.7)
    close(actual * mask, expected, 1e-6)  # integer flags times gamma are float32


def test_td_loss_by_hand():
    q = torch.tensor([[[1.0, 2.0], [3.0, 9.0]]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[[0.0, 4.0], [1.0, 1e6]]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]], dtype=torch.float64)
    loss = td_loss(q, y, mask)
    close(loss, 1.5)  # 1/2 (1 + 4 + 4) / 3
    loss.backward()
    close(q.grad, [[[1 / 3, -2 / 3], [2 / 3, 0.0]]])  # (q - y) / 3 where the step was played
    assert y.grad is None


def test_td_loss_equals_nested_loops():
    rng = torch.Generator().manual_seed(6)
    q, y = torch.randn(2, 4, 5, 3, generator=rng, dtype=torch.float64)
    mask = (torch.rand(4, 5, 3, generator=rng) < 0.6).double()
    total, count = 0.0, 0
    for b in range(4):
        for t in range(5):
            for x in range(3):
                if mask[b, t, x]:
                    total += 0.5 * (q[b, t, x].item() - y[b, t, x].item()) ** 2
                    count += 1
    assert 0 < count < 60
    close(td_loss(q, y, mask), total / count, 1e-12)


@pytest.mark.parametrize("wild", [1e6, float("nan"), float("inf")])
def test_padding_has_no_effect_on_the_loss(wild):
    # 1/2 (1 + 4) / 2, whatever stands in the third step
    close(td_loss(rows([1, 2, wild]), rows([0, 4, 5]), rows([1, 1, 0])), 1.25, 0)
    close(td_loss(rows([1, 2, 3]), rows([0, 4, wild]), rows([1, 1, 0])), 1.25, 0)


@pytest.mark.parametrize("wild", [1e6, float("nan")])
def test_padding_has_no_effect_on_the_gradient(wild):
    q = rows([1, 2, 3]).requires_grad_()
    td_loss(q, rows([0, 4, wild]), rows([1, 1, 0])).backward()
    close(q.grad, rows([0.5, -1, 0]), 0)  # (q - y) / 2


def test_shape_errors_name_both_shapes():
    a, b = torch.zeros(2, 3, 1), torch.zeros(2, 3, 4)
    calls = [
        lambda: one_step_targets(a, b, a, 0.9),
        lambda: one_step_targets(a, a, b, 0.9),
        lambda: lambda_targets(a, a, b, a, 0.9, 0.5),
        lambda: lambda_targets(a, a, a, b, 0.9, 0.0),
        lambda: td_loss(a, b, a),
        lambda: td_loss(b, b, a),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="shapes must be equal") as raised:
            call()
        assert "(2, 3, 1)" in str(raised.value)
        assert "(2, 3, 4)" in str(raised.value)


def test_returns_are_of_rewards_by_episode_step_and_agent():
    with pytest.raises(ValueError, match=r"reward must have shape \(any, any, any\), got \(2, 3\)"):
        discounted_returns(torch.zeros(2, 3), 0.9)
