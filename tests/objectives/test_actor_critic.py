"""The actors' equations against numbers by hand and nested loops."""

import math

import pytest
import torch

from objectives import actor_critic

B, T, N, A = 2, 3, 2, 4


def policies(seed=0, unavailable=0.3):
    """Random policies (B, T, N, A) that are 0 where an action is not available, and what is available."""
    generator = torch.Generator().manual_seed(seed)
    avail = torch.rand(B, T, N, A, generator=generator) > unavailable
    avail[..., 0] = True
    logits = torch.randn(B, T, N, A, generator=generator).masked_fill(~avail, -torch.inf)
    return logits.softmax(dim=-1), avail


# Values of the next step


def test_next_values_by_hand():
    """Three played steps, then padding: after the last one no action was played."""
    q_next = torch.tensor([1.0, 2.0, 99.0, 99.0]).view(1, 4, 1)
    q_policy = torch.tensor([-1.0, -2.0, -3.0, -4.0]).view(1, 4, 1)
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0]).view(1, 4, 1)
    assert actor_critic.next_values(q_next, q_policy, mask)[0, :3, 0].tolist() == [1, 2, -3]
    assert actor_critic.next_values(q_next, q_policy, torch.ones_like(mask)).flatten().tolist() == [1, 2, 99, -4]
    with pytest.raises(ValueError, match="shapes must be equal"):
        actor_critic.next_values(q_next, q_policy, mask[:, :2])


# Policies


@pytest.mark.usefixtures("double")
def test_policy_value_by_hand_and_in_loops():
    q, policy = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([0.5, 0.25, 0.25])
    assert actor_critic.policy_value(q, policy).item() == pytest.approx(0.25)
    policy, _ = policies()
    q = torch.randn(B, T, N, A)
    value = actor_critic.policy_value(q, policy)
    for b in range(B):
        for t in range(T):
            for i in range(N):
                expected = sum(policy[b, t, i, a].item() * q[b, t, i, a].item() for a in range(A))
                assert value[b, t, i].item() == pytest.approx(expected)


def test_values_of_actions_that_cannot_be_taken_have_no_effect():
    policy, avail = policies()
    q = torch.randn(B, T, N, A)
    wild = q.masked_fill(~avail, torch.inf)
    assert torch.equal(actor_critic.policy_value(q, policy), actor_critic.policy_value(wild, policy))


@pytest.mark.usefixtures("double")
def test_entropy_by_hand_and_in_loops():
    assert actor_critic.policy_entropy(torch.tensor([0.5, 0.25, 0.25])).item() == pytest.approx(1.5 * math.log(2))
    assert actor_critic.policy_entropy(torch.tensor([0.0, 1.0, 0.0])).item() == 0
    policy, avail = policies()
    entropy = actor_critic.policy_entropy(policy)
    for b in range(B):
        for t in range(T):
            for i in range(N):
                ps = [policy[b, t, i, a].item() for a in range(A) if avail[b, t, i, a]]
                assert entropy[b, t, i].item() == pytest.approx(-sum(p * math.log(p) for p in ps))


def test_entropy_has_a_finite_gradient_and_none_where_nothing_is_available():
    avail = torch.tensor([[1, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]).bool()
    logits = torch.randn(3, 4, requires_grad=True)
    policy = torch.softmax(logits.masked_fill(~avail, -1e10), dim=-1).masked_fill(~avail, 0.0)
    (gradient,) = torch.autograd.grad(actor_critic.policy_entropy(policy).sum(), logits)
    assert torch.isfinite(gradient).all()
    assert (gradient[~avail] == 0).all()
    assert (gradient[0][avail[0]] != 0).all()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("logits", "plain", "adaptive"), [([0.1, 0, 0], 0.0229, 0.0209), ([3.0, 0, 0], 0.247, 0.674)])
def test_adaptive_entropy_has_the_gradient_of_the_logarithm(logits, plain, adaptive):
    """The numbers of docs/theory.md, section 7: largest components of the gradients, with xi = 1."""
    logits = torch.tensor(logits, requires_grad=True)
    entropy = actor_critic.policy_entropy(torch.softmax(logits, dim=0))
    slope = torch.autograd.grad(entropy, logits, retain_graph=True)[0]
    ours = torch.autograd.grad(actor_critic.adaptive_entropy(entropy, 1.0), logits, retain_graph=True)[0]
    of_log = torch.autograd.grad(entropy.log(), logits, retain_graph=True)[0]
    torch.testing.assert_close(ours, of_log)
    assert slope.abs().max().item() == pytest.approx(plain, abs=2e-3)
    assert ours.abs().max().item() == pytest.approx(adaptive, abs=1e-3)
    assert actor_critic.adaptive_entropy(entropy, 0.11).item() == pytest.approx(0.11)


def test_adaptive_entropy_of_sure_policies_is_finite():
    entropy = torch.zeros((), requires_grad=True)
    value = actor_critic.adaptive_entropy(entropy, 0.11)
    assert value.item() == 0
    assert torch.isfinite(torch.autograd.grad(value, entropy)[0])


# The actors' loss


@pytest.mark.usefixtures("double")
def test_actor_loss_by_hand():
    """Two steps were played: mean value 2; xi H/H is xi. What stands in the padding has no effect."""
    value = torch.tensor([1.0, 3.0, torch.nan]).view(1, 3, 1)
    entropy = torch.tensor([[0.5, 1.0], [0.25, 0.25], [torch.inf, 0.0]]).view(1, 3, 2).requires_grad_()
    mask = torch.tensor([1.0, 1.0, 0.0]).view(1, 3, 1)
    loss = actor_critic.actor_loss(value, entropy, mask, 0.5)
    assert loss.item() == pytest.approx(-2 - 0.5)
    (gradient,) = torch.autograd.grad(loss, entropy)
    # d/dH of -xi mean H / .5: -.5 / 4 / .5
    assert gradient.flatten().tolist() == pytest.approx([-0.25] * 4 + [0, 0])
    with pytest.raises(ValueError, match="entropy must have shape"):
        actor_critic.actor_loss(value, entropy[:, :2], mask, 0.5)
