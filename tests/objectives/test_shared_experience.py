"""SEAC's equations against numbers by hand and nested loops."""

import math

import pytest
import torch

from objectives import shared_experience as shared

B, T, N = 2, 4, 3


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pairs(rows):
    """One step of a team: [i][j] -> (1, 1, N, N)."""
    return torch.tensor(rows, dtype=torch.float64)[None, None]


ONE = torch.ones(1, 1, 1, dtype=torch.float64)
# Agent 0 did what it does with probability .5 and agent 1 with .25; agent 1's action: .8, which agent 0 does with .2.
LOG_PI = pairs([[math.log(0.5), math.log(0.25)], [math.log(0.2), math.log(0.8)]])


def test_weights_by_hand():
    found = shared.importance_weights(LOG_PI.clone().requires_grad_(), ONE)
    assert found.flatten().tolist() == pytest.approx([0, 0.5, 0.25, 0])
    assert not found.requires_grad


def test_losses_by_hand():
    """Agent 1 learns from agent 0's advantage of 4 with weight .5, agent 0 from agent 1's -2 with weight .25."""
    weights = pairs([[9, 0.5], [0.25, 9]])
    advantage = pairs([[100, 4], [-2, 100]])
    expected = -(0.5 * math.log(0.25) * 4 + 0.25 * math.log(0.2) * -2) / 2
    assert shared.policy_loss(LOG_PI, advantage, weights, ONE).item() == pytest.approx(expected)
    value, target = pairs([[7, 1], [3, 7]]), pairs([[0, 3], [2, 0]])
    assert shared.value_loss(value, target, weights, ONE).item() == pytest.approx((0.5 * 4 + 0.25 * 1) / 2 / 2)


@pytest.mark.usefixtures("double")
def test_losses_and_gradients_in_nested_loops():
    mask = torch.ones(B, T, 1)
    mask[1, 2:] = 0
    leaves = {k: random(B, T, N, N, seed=s).requires_grad_() for s, k in enumerate(("log_pi", "value", "target"))}
    log_pi, value, target = leaves.values()
    weights = shared.importance_weights(log_pi, mask)
    policy, critic, count = 0, 0, 0
    for b, t in ((b, t) for b in range(B) for t in range(T) if mask[b, t] == 1):
        for j in range(N):
            count += 1
            for i in [i for i in range(N) if i != j]:
                ratio = (log_pi[b, t, i, j] - log_pi[b, t, i, i]).exp().item()
                assert weights[b, t, i, j].item() == pytest.approx(ratio)
                gain = (target - value)[b, t, i, j].item()
                policy = policy - ratio * log_pi[b, t, i, j] * gain
                critic = critic + ratio * (value[b, t, i, j] - target[b, t, i, j].item()) ** 2 / 2
    assert (weights.diagonal(dim1=2, dim2=3) == 0).all()
    found = {
        "policy": shared.policy_loss(log_pi, target - value, weights, mask),
        "value": shared.value_loss(value, target, weights, mask),
    }
    for loss, expected in zip(found.values(), (policy / count, critic / count), strict=True):
        torch.testing.assert_close(loss, expected)
        ours = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
        theirs = torch.autograd.grad(expected, list(leaves.values()), retain_graph=True, allow_unused=True)
        for mine, other in zip(ours, theirs, strict=True):
            if other is None:
                assert mine is None or not mine.any()
            else:
                torch.testing.assert_close(mine, other)


def test_padding_and_ones_own_experience_change_nothing():
    mask = torch.ones(B, T, 1)
    mask[0, 1:] = 0
    unused = (mask.unsqueeze(3) == 0) | torch.eye(N).bool()
    found = []
    for wild in (0.0, 1e30):
        log_pi, value = random(B, T, N, N).requires_grad_(), random(B, T, N, N, seed=1).requires_grad_()
        noise = wild * random(B, T, N, N, seed=2)
        padded = torch.where(mask.unsqueeze(3) == 0, noise, log_pi)  # the diagonal is the denominator
        weights = shared.importance_weights(padded, mask)
        assert torch.isfinite(weights).all()
        changed = torch.where(unused, noise, value)
        losses = [
            shared.policy_loss(torch.where(unused, noise, log_pi), changed, weights + noise * unused, mask),
            shared.value_loss(changed, random(B, T, N, N, seed=3) + noise * unused, weights, mask),
        ]
        gradients = torch.autograd.grad(sum(losses), [log_pi, value])
        found.append([*losses, *gradients])
    for clean, corrupted in zip(*found, strict=True):
        assert torch.equal(clean, corrupted)


def test_shapes_are_checked():
    x, mask = torch.zeros(B, T, N, N), torch.ones(B, T, 1)
    with pytest.raises(ValueError, match="log_pi must have shape"):
        shared.importance_weights(x[..., :2], mask)
    with pytest.raises(ValueError, match="shapes must be equal"):
        shared.policy_loss(x, x[..., :1], x, mask)
    with pytest.raises(ValueError, match="mask must have shape"):
        shared.value_loss(x, x, x, mask.expand(-1, -1, N))
