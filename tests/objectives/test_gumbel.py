"""Gumbel-softmax samples against numbers by hand, nested loops and the frequencies of a softmax."""

import math

import pytest
import torch

from objectives.gumbel import gumbel_like, logit_size, straight_through

B, T, N, A = 2, 3, 2, 4


def policies(seed=0):
    """Random policies (B, T, N, A) of which some actions are not available."""
    generator = torch.Generator().manual_seed(seed)
    avail = torch.rand(B, T, N, A, generator=generator) > 0.3
    avail[..., 0] = True
    logits = torch.randn(B, T, N, A, generator=generator).masked_fill(~avail, -torch.inf)
    return logits.softmax(dim=-1), avail


@pytest.mark.usefixtures("double")
def test_a_sample_and_its_gradient_by_hand():
    """log pi + g = log(.5, .25, .25) + log(1, 4, 2) = log(.5, 1, .5): action 1, relaxed to (.25, .5, .25).

    With T = 1 the softmax is y = pi e^g / 2. Of 3 y_1 the slope by log pi is 3 y_1 (1[a=1] - y), by pi that over pi.
    """
    policy = torch.tensor([0.5, 0.25, 0.25], requires_grad=True)
    noise = torch.tensor([1.0, 4.0, 2.0]).log()
    sample = straight_through(policy, noise)
    assert sample.tolist() == [0, 1, 0]
    (slope,) = torch.autograd.grad((sample * torch.tensor([0.0, 3.0, 0.0])).sum(), policy)
    assert slope.tolist() == pytest.approx([1.5 * -0.25 / 0.5, 1.5 * 0.5 / 0.25, 1.5 * -0.25 / 0.25])
    # T = 1/2: y proportional to the squares, (1, 4, 1) / 6; a slope by log pi is twice that of the softmax
    sample = straight_through(policy, noise, 0.5)
    assert sample.tolist() == [0, 1, 0]
    (slope,) = torch.autograd.grad(sample[1], policy)
    assert slope.tolist() == pytest.approx([2 * -4 / 36 / 0.5, 2 * 8 / 36 / 0.25, 2 * -4 / 36 / 0.25])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_samples_and_gradients_equal_nested_loops(temperature):
    policy, avail = policies()
    policy.requires_grad_()
    generator = torch.Generator().manual_seed(1)
    noise, slope = torch.randn(2, B, T, N, A, generator=generator)
    sample = straight_through(policy, noise, temperature)
    (ours,) = torch.autograd.grad((sample * slope).sum(), policy)
    for b in range(B):
        for t in range(T):
            for i in range(N):
                allowed = [a for a in range(A) if avail[b, t, i, a]]
                p = {a: policy[b, t, i, a].item() for a in allowed}
                y = {a: math.exp((math.log(p[a]) + noise[b, t, i, a].item()) / temperature) for a in allowed}
                total = sum(y.values())
                best = max(allowed, key=y.__getitem__)
                assert sample[b, t, i].tolist() == [float(a == best) for a in range(A)]
                mean = sum(y[a] / total * slope[b, t, i, a].item() for a in allowed)
                for a in range(A):
                    expected = 0.0
                    if a in allowed:
                        expected = y[a] / total * (slope[b, t, i, a].item() - mean) / temperature / p[a]
                    assert ours[b, t, i, a].item() == pytest.approx(expected)


def test_samples_have_the_frequencies_of_the_policy():
    torch.manual_seed(0)
    policy = torch.tensor([0.6, 0.0, 0.3, 0.1]).expand(40_000, 4)
    frequency = straight_through(policy, gumbel_like(policy)).mean(dim=0)
    assert frequency[1] == 0
    # four standard errors of the largest
    torch.testing.assert_close(frequency, policy[0], rtol=0, atol=4 * 0.5 / 200)


def test_what_cannot_be_done_is_never_drawn_and_changes_nothing():
    policy, avail = policies()
    noise = gumbel_like(policy)
    wild = noise.masked_fill(~avail, 1e30)
    found = []
    for g in (noise, wild):
        logits = policy.log().clamp(min=-50).requires_grad_()
        p = torch.softmax(logits.masked_fill(~avail, -1e10), dim=-1).masked_fill(~avail, 0.0)
        sample = straight_through(p, g)
        (slope,) = torch.autograd.grad((sample * torch.arange(float(A))).sum(), logits)
        found.append((sample.detach(), slope))
    for clean, dirty in zip(*found, strict=True):
        assert torch.equal(clean, dirty)
        assert (clean[~avail] == 0).all()


def test_rows_without_any_action_are_finite_and_have_no_gradient():
    policy = torch.tensor([[0.5, 0.5], [0.0, 0.0]], requires_grad=True)
    sample = straight_through(policy, gumbel_like(policy.detach()))
    assert sample.sum(dim=-1).tolist() == [1, 1]
    for value in (sample[:, 0].sum(), logit_size(policy).sum()):
        (slope,) = torch.autograd.grad(value, policy)
        assert torch.isfinite(slope).all()
        assert (slope[1] == 0).all()


@pytest.mark.usefixtures("double")
def test_logit_size_by_hand_and_in_loops():
    """Logits (3, 0, 0) are (2, -1, -1) about their mean; 6 / 3. An unavailable action does not count."""
    assert logit_size(torch.tensor([3.0, 0.0, 0.0]).softmax(0)).item() == pytest.approx(2)
    assert logit_size(torch.tensor([103.0, 100.0, 100.0, -torch.inf]).softmax(0)).item() == pytest.approx(2)
    policy, avail = policies()
    size = logit_size(policy)
    for b in range(B):
        for t in range(T):
            for i in range(N):
                logs = [math.log(policy[b, t, i, a].item()) for a in range(A) if avail[b, t, i, a]]
                mean = sum(logs) / len(logs)
                assert size[b, t, i].item() == pytest.approx(sum((x - mean) ** 2 for x in logs) / len(logs))


def test_probabilities_that_are_nearly_nothing_have_finite_gradients():
    logits = torch.tensor([0.0, -60.0, -86.0, -300.0], requires_grad=True)
    policy = logits.softmax(0)
    noise = torch.tensor([0.1, 0.2, 0.3, 0.4])
    for value in (logit_size(policy), 7 * straight_through(policy, noise)[1]):
        (slope,) = torch.autograd.grad(value, logits, retain_graph=True)
        assert torch.isfinite(slope).all()


def test_wrong_shapes_are_refused():
    policy, _ = policies()
    with pytest.raises(ValueError, match="shapes must be equal"):
        straight_through(policy, policy[..., :2])
