"""Distances to the behaviour policy against numbers by hand, kernels in nested loops and searches."""

import math

import pytest
import torch

from objectives.actor_critic import policy_kl
from objectives.divergence import KINDS, divergence, squared_mmd, support_mmd

B, T, N, A = 2, 2, 2, 4


def policies(seed):
    return torch.randn(B, T, N, A, generator=torch.Generator().manual_seed(seed)).softmax(dim=-1)


def kernel_mmd(p, q, kappa):
    """sum over pairs of actions of (p - q)(a) (p - q)(b) kappa(distance of their one-hot vectors)."""
    eye = torch.eye(len(p))
    difference = [a - b for a, b in zip(p.tolist(), q.tolist(), strict=True)]
    return sum(
        difference[a] * difference[b] * kappa((eye[a] - eye[b]).norm().item())
        for a in range(len(p))
        for b in range(len(p))
    )


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "kappa", [lambda d: math.exp(-(d**2) / 2), lambda d: math.exp(-d / 3), lambda d: 1 / (1 + d**2)]
)
def test_every_radial_kernel_gives_this_distance_in_a_unit_of_its_own(kappa):
    """Gaussian, Laplacian and rational kernels, in nested loops."""
    p, q = policies(0), policies(1)
    ours, unit = squared_mmd(p, q), kappa(0.0) - kappa(math.sqrt(2))
    for b in range(B):
        for t in range(T):
            for i in range(N):
                expected = kernel_mmd(p[b, t, i], q[b, t, i], kappa)
                assert unit * ours[b, t, i].item() == pytest.approx(expected)


@pytest.mark.usefixtures("double")
def test_it_is_what_samples_estimate():
    """The unbiased estimate from samples of both (Gretton et al. 2012, eq. 3), with the kernel 1[a = b]."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.1, 0.8])
    torch.manual_seed(0)
    n = 2000
    x, y = (torch.multinomial(r, n, replacement=True) for r in (p, q))

    def pairs(a, b, same):
        hits = (a.unsqueeze(1) == b.unsqueeze(0)).double()
        return (hits.sum() - n) / (n * (n - 1)) if same else hits.mean()

    estimate = pairs(x, x, True) + pairs(y, y, True) - 2 * pairs(x, y, False)
    assert squared_mmd(p, q).item() == pytest.approx(0.16 + 0.04 + 0.36)
    assert estimate.item() == pytest.approx(0.56, abs=0.05)


@pytest.mark.usefixtures("double")
def test_distance_to_the_support_by_hand():
    """beta (.6, .35, .05, 0): at a tenth of .6 the first two are supported. Outside .2 and .1, together .3.

    .04 + .01 + .09 / 2; the nearest supported policy is (.1 + .15, .6 + .15, 0, 0).
    """
    policy = torch.tensor([0.1, 0.6, 0.2, 0.1])
    beta = torch.tensor([0.6, 0.35, 0.05, 0.0])
    assert support_mmd(policy, beta, 0.1).item() == pytest.approx(0.095)
    assert squared_mmd(policy, torch.tensor([0.25, 0.75, 0.0, 0.0])).item() == pytest.approx(0.095)
    # the third joins at a smaller share
    assert support_mmd(policy, beta, 0.05).item() == pytest.approx(0.01 + 0.01 / 3)
    for inside in ([1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]):
        assert support_mmd(torch.tensor(inside), beta, 0.1).item() == 0
    assert support_mmd(torch.tensor([0.0, 0.0, 0.0, 1.0]), beta, 0.1).item() == pytest.approx(1.5)


@pytest.mark.usefixtures("double")
def test_no_supported_policy_is_nearer():
    """A search over policies of the support, in loops over the batch."""
    p, beta = policies(0), policies(1)
    ours = support_mmd(p, beta, 0.5)
    generator = torch.Generator().manual_seed(2)
    reached = 0
    for b in range(B):
        for t in range(T):
            for i in range(N):
                row = beta[b, t, i]
                inside = [a for a in range(A) if row[a] >= 0.5 * row.max()]
                least = math.inf
                for _ in range(4000):
                    q = torch.zeros(A)
                    q[inside] = torch.rand(len(inside), generator=generator).log().neg()
                    q = q / q.sum()
                    least = min(least, squared_mmd(p[b, t, i], q).item())
                assert ours[b, t, i].item() <= least + 1e-12
                reached += least < ours[b, t, i].item() + 0.01
    assert reached == B * T * N


@pytest.mark.usefixtures("double")
def test_gradients_flow_into_the_policy_alone():
    policy, beta = policies(0).requires_grad_(), policies(1).requires_grad_()
    for value in (squared_mmd(policy, beta), support_mmd(policy, beta, 0.5)):
        ours, of_beta = torch.autograd.grad(value.sum(), [policy, beta], allow_unused=True)
        assert (ours != 0).any()
        assert of_beta is None
    inside = beta >= 0.5 * beta.max(dim=-1, keepdim=True).values
    (slope,) = torch.autograd.grad(support_mmd(policy, beta, 0.5).sum(), policy)
    assert (slope[inside] == 0).all()
    assert (slope[~inside] > 0).all()


def test_rows_without_any_action_are_at_distance_0():
    nothing = torch.zeros(2, A)
    assert support_mmd(nothing, nothing, 0.1).tolist() == [0, 0]
    assert squared_mmd(nothing, nothing).tolist() == [0, 0]


def test_each_kind_is_its_function():
    p, beta = policies(0), policies(1)
    expected = {"kl": policy_kl(p, beta.log()), "mmd": squared_mmd(p, beta), "support": support_mmd(p, beta, 0.5)}
    assert set(expected) == set(KINDS)
    for kind, value in expected.items():
        torch.testing.assert_close(divergence(p, beta.log(), kind, 0.5), value)
    with pytest.raises(ValueError, match="kind must be one of kl, mmd, support, got 'js'"):
        divergence(p, beta.log(), "js", 0.5)


def test_wrong_shapes_are_refused():
    p = policies(0)
    with pytest.raises(ValueError, match="shapes must be equal"):
        squared_mmd(p, p[..., :2])
    with pytest.raises(ValueError, match="shapes must be equal"):
        support_mmd(p, p[:, :1], 0.1)
