"""PPO's equations against numbers by hand and nested loops."""

import math

import pytest
import torch

from objectives import ppo

B, T, N = 2, 4, 3


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def steps(*values):
    """One episode of one agent: (1, T, 1)."""
    return torch.tensor(values).view(1, -1, 1)


@pytest.mark.usefixtures("double")
def test_standardised_values_by_hand():
    """Of 1, 3 and 5 the mean is 3 and the deviation sqrt(8/3); padding counts for nothing."""
    values, mask = steps(1.0, 3.0, 5.0, 1e9), steps(1.0, 1.0, 1.0, 0.0)
    found = ppo.standardised(values, mask)[0, :3, 0]
    deviation = math.sqrt(8 / 3) + 1e-5
    assert found.tolist() == pytest.approx([-2 / deviation, 0, 2 / deviation])
    with pytest.raises(ValueError, match="shapes must be equal"):
        ppo.standardised(values, mask[:, :2])


def test_equal_values_have_no_standardised_size():
    assert ppo.standardised(steps(2.0, 2.0), steps(1.0, 1.0)).flatten().tolist() == [0, 0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.5, 2.0, 2.4, 0.0),  # good, and likely enough: clipped at 1.2
        (0.5, 2.0, 1.0, 1.0),  # good, but less likely than it was: learned
        (1.5, -2.0, -3.0, -3.0),  # bad, but more likely than it was: learned
        (0.5, -2.0, -1.6, 0.0),  # bad, and unlikely enough: clipped at 0.8
        (1.0, 3.0, 3.0, 3.0),
    ],
)
def test_the_surrogate_by_hand(ratio, advantage, expected, slope):
    """The slope, in the log-probability, is ratio times advantage where nothing is clipped."""
    log_pi = steps(math.log(0.2 * ratio)).requires_grad_()
    log_beta, given = steps(math.log(0.2)).requires_grad_(), steps(advantage).requires_grad_()
    found = ppo.clipped_surrogate(log_pi, log_beta, given, clip=0.2)
    assert found.item() == pytest.approx(expected)
    gradients = torch.autograd.grad(found, [log_pi, log_beta, given], allow_unused=True)
    assert gradients[0].item() == pytest.approx(slope)
    assert gradients[1:] == (None, None)


@pytest.mark.usefixtures("double")
def test_the_surrogate_in_nested_loops():
    log_pi, log_beta, advantage = -random(B, T, N).exp(), -random(B, T, N, seed=1).exp(), random(B, T, N, seed=2)
    found = ppo.clipped_surrogate(log_pi, log_beta, advantage, 0.3)
    for b in range(B):
        for t in range(T):
            for i in range(N):
                r, a = math.exp(log_pi[b, t, i] - log_beta[b, t, i]), advantage[b, t, i].item()
                assert found[b, t, i].item() == pytest.approx(min(r * a, min(max(r, 0.7), 1.3) * a))
    with pytest.raises(ValueError, match="shapes must be equal"):
        ppo.clipped_surrogate(log_pi, log_beta[:, :, :1], advantage, 0.3)


@pytest.mark.parametrize(
    ("value", "target", "expected", "slope"),
    [
        (1.1, 3.0, 0.5 * 1.9**2, -1.9),  # within the clip: the squared error
        (1.5, 3.0, 0.5 * 1.8**2, 0.0),  # moved far enough toward the target: counted from 1.2, and left there
        (0.5, 3.0, 0.5 * 2.5**2, -2.5),  # moved far away from it: drawn back
    ],
)
def test_the_value_loss_by_hand(value, target, expected, slope):
    found, old = steps(value).requires_grad_(), steps(1.0).requires_grad_()
    given = steps(target).requires_grad_()
    loss = ppo.clipped_value_loss(found, old, given, 0.2, steps(1.0))
    assert loss.item() == pytest.approx(expected)
    gradients = torch.autograd.grad(loss, [found, old, given], allow_unused=True)
    assert gradients[0].item() == pytest.approx(slope)
    assert gradients[1:] == (None, None)


@pytest.mark.usefixtures("double")
def test_the_value_loss_in_nested_loops_and_without_padding():
    value, old, target = random(B, T, N), random(B, T, N, seed=1), random(B, T, N, seed=2)
    mask = (random(B, T, N, seed=3) > 0).double()
    errors = []
    for b in range(B):
        for t in range(T):
            for i in range(N):
                if mask[b, t, i] == 1:
                    v, o, y = (x[b, t, i].item() for x in (value, old, target))
                    near = o + min(max(v - o, -0.5), 0.5)
                    errors.append(0.5 * max((v - y) ** 2, (near - y) ** 2))
    wild = [torch.where(mask == 1, x, 1e6) for x in (value, old, target)]
    assert ppo.clipped_value_loss(*wild, 0.5, mask).item() == pytest.approx(sum(errors) / len(errors))
    with pytest.raises(ValueError, match="shapes must be equal"):
        ppo.clipped_value_loss(value, old, target[:, :2], 0.5, mask)


@pytest.mark.usefixtures("double")
def test_the_divergences_mean_is_the_kl_to_what_actions_were_drawn_from():
    pi, beta = random(5).softmax(dim=0), random(5, seed=1).softmax(dim=0)
    each = ppo.divergence(pi.log(), beta.log())
    assert (each >= 0).all()
    assert (beta * each).sum().item() == pytest.approx((beta * (beta / pi).log()).sum().item())
    assert ppo.divergence(torch.tensor(0.5).log(), torch.tensor(0.25).log()).item() == pytest.approx(1 - math.log(2))
