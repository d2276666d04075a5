"""Quantile regression: the numbers by hand, the definition in loops, and what it converges to."""

from types import SimpleNamespace

import pytest
import torch

from modules.mixers import QMixer, VDNMixer
from objectives.quantile import mix_quantiles, quantile_huber_loss


def test_by_hand():
    # One step, M = 2: tau = .25, .75. Errors target - z: (0, 2) for z = 1 and (-2, 0) for z = 3.
    z, target, mask = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[1.0, 3.0]]]]), torch.ones(1, 1, 1)
    # Huber(2) = 1.5: .25 * 1.5 for z_1 below the target, |.75 - 1| * 1.5 for z_2 above it; the mean of four pairs.
    assert quantile_huber_loss(z, target, mask).item() == pytest.approx((0.375 + 0.375) / 4)


@pytest.mark.parametrize("kappa", [1.0, 0.25])
def test_it_is_the_definition_in_loops(kappa):
    generator = torch.Generator().manual_seed(1)
    B, T, X, M = 2, 3, 2, 4
    z, target = torch.randn(2, B, T, X, M, generator=generator, dtype=torch.float64)
    mask = (torch.rand(B, T, X, generator=generator) < 0.6).double()
    z.requires_grad_()
    total = 0.0
    for b in range(B):
        for t in range(T):
            for x in range(X):
                for m in range(M):
                    for k in range(M):
                        u = target[b, t, x, k] - z[b, t, x, m]
                        huber = 0.5 * u**2 / kappa if abs(u) <= kappa else abs(u) - 0.5 * kappa
                        tau = (m + 0.5) / M
                        total = total + mask[b, t, x] * abs(tau - (1.0 if u < 0 else 0.0)) * huber / M**2
    naive = total / mask.sum()
    loss = quantile_huber_loss(z, target, mask, kappa)
    assert loss.item() == pytest.approx(naive.item(), rel=1e-12)
    ours, theirs = torch.autograd.grad(loss, z)[0], torch.autograd.grad(naive, z)[0]
    torch.testing.assert_close(ours, theirs)


def test_padding_has_no_effect_and_targets_no_gradient():
    z = torch.randn(1, 2, 1, 3, requires_grad=True)
    target = torch.randn(1, 2, 1, 3, requires_grad=True)
    mask = torch.tensor([[[1.0], [0.0]]])
    wild = torch.where(mask.bool().unsqueeze(-1), target, torch.nan)
    loss = quantile_huber_loss(z, wild, mask)
    assert torch.equal(loss, quantile_huber_loss(z, target, mask))
    loss.backward()
    assert target.grad is None
    assert torch.equal(z.grad[0, 1], torch.zeros(1, 3))


def test_it_finds_the_quantiles_of_a_distribution():
    """Returns 0 with probability .7, 10 with .3: the quantiles .1, .3, .5 are 0 and .9 is 10."""
    z = torch.zeros(1, 1, 1, 5, requires_grad=True)
    optimiser = torch.optim.Adam([z], lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(1500):
        samples = 10.0 * (torch.rand(256, 1, 1, 1, generator=generator) < 0.3)
        loss = quantile_huber_loss(z.expand(256, 1, 1, 5), samples.expand(256, 1, 1, 5), torch.ones(256, 1, 1), 0.01)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = z.detach().flatten().tolist()
    assert found[:3] == pytest.approx([0, 0, 0], abs=0.3)
    assert found[4] == pytest.approx(10, abs=0.3)


def test_mixing_goes_quantile_by_quantile():
    torch.manual_seed(0)
    z, states = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 7)
    args = SimpleNamespace(n_agents=4, state_shape=7, mixing_embed_dim=3, hypernet_layers=1)
    for mixer in (VDNMixer(), QMixer(args)):
        mixed = mix_quantiles(mixer, z, states)
        expected = torch.stack([mixer(z[..., m], states) for m in range(5)], dim=3)  # (B, T, 1, M)
        torch.testing.assert_close(mixed, expected)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(1, 2, 1, 3\).*\(1, 2, 1, 4\)"):
        quantile_huber_loss(torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 4), torch.ones(1, 2, 1))
    with pytest.raises(ValueError, match="mask"):
        quantile_huber_loss(torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 3), torch.ones(1, 2))
