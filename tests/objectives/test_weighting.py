"""The weights of Weighted QMIX by hand and in loops."""

import pytest
import torch

from objectives.td import td_loss
from objectives.weighting import central_weights, optimistic_weights, weighted_td_loss


def column(values):
    return torch.tensor(values).view(1, -1, 1)


def test_optimistic_weights_by_hand():
    q_tot, target = column([1.0, 2.0, 3.0]), column([2.0, 2.0, 2.0])  # too low, exact, too high
    assert optimistic_weights(q_tot, target, 0.25).flatten().tolist() == [1.0, 0.25, 0.25]


def test_central_weights_by_hand():
    """The greedy joint action; one agent that deviates, with a target that is worse, equal, better than the best."""
    greedy = torch.tensor([[0, 1]] * 4).view(1, 4, 2, 1)
    actions = torch.tensor([[0, 1], [0, 0], [2, 1], [0, 2]]).view(1, 4, 2, 1)
    target, best = column([-9.0, 4.0, 5.0, 6.0]), column([5.0] * 4)
    assert central_weights(actions, greedy, target, best, 0.25).flatten().tolist() == [1.0, 0.25, 0.25, 1.0]


def test_central_weights_in_loops():
    rng = torch.Generator().manual_seed(0)
    actions, greedy = (torch.randint(2, (3, 5, 2, 1), generator=rng) for _ in range(2))
    target, best = (torch.randn(3, 5, 1, generator=rng) for _ in range(2))
    found = central_weights(actions, greedy, target, best, 0.5)
    for b in range(3):
        for t in range(5):
            same = all(actions[b, t, i, 0] == greedy[b, t, i, 0] for i in range(2))
            assert found[b, t, 0] == (1.0 if same or target[b, t, 0] > best[b, t, 0] else 0.5)
    assert set(found.flatten().tolist()) == {0.5, 1.0}


def test_weighted_loss_by_hand():
    q, target, weights = column([1.0, 2.0, 9.0]), column([3.0, 1.0, 0.0]), column([0.5, 1.0, 1.0])
    # (.5 * .5 * 4 + .5 * 1) / 2: the last step was not played
    assert weighted_td_loss(q, target, weights, column([1.0, 1.0, 0.0])).item() == pytest.approx(0.75)


def test_equal_weights_are_the_td_loss():
    rng = torch.Generator().manual_seed(1)
    q, target = (torch.randn(3, 5, 1, generator=rng) for _ in range(2))
    mask = (torch.rand(3, 5, 1, generator=rng) < 0.7).float()
    assert torch.equal(weighted_td_loss(q, target, torch.ones_like(q), mask), td_loss(q, target, mask))


def test_no_gradient_flows_into_target_weights_or_padding():
    q, target, weights = (column([1.0, 2.0]).requires_grad_() for _ in range(3))
    padded = torch.where(column([1.0, 0.0]).bool(), target, torch.inf)
    weighted_td_loss(q, padded + 1, weights, column([1.0, 0.0])).backward()
    assert q.grad is not None
    assert q.grad.flatten().tolist() == [-1.0, 0.0]
    assert target.grad is None
    assert weights.grad is None
    assert not optimistic_weights(q, target.detach(), 0.5).requires_grad
    assert not central_weights(torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1), target.detach(), q, 0.5).requires_grad


def test_shapes_are_checked():
    wide = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match="shapes must be equal"):
        optimistic_weights(column([1.0, 2.0]), wide, 0.5)
    with pytest.raises(ValueError, match=r"target must have shape \(1, 2, 1\), got \(1, 2, 3\)"):
        central_weights(torch.zeros(1, 2, 3, 1), torch.zeros(1, 2, 3, 1), wide, wide, 0.5)
    with pytest.raises(ValueError, match="shapes must be equal"):
        weighted_td_loss(wide, wide, column([1.0, 2.0]), wide)
