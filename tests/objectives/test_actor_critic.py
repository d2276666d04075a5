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


# Policy gradients


def test_log_probabilities_and_the_policy_gradient_by_hand():
    """The second step is padding."""
    policy = torch.tensor([[0.25, 0.75], [0.0, 1.0]]).view(1, 2, 1, 2).requires_grad_()
    actions, mask = torch.tensor([1, 0]).view(1, 2, 1, 1), torch.tensor([1.0, 0.0]).view(1, 2, 1)
    log_pi = actor_critic.log_probability(policy, actions, mask)
    assert log_pi.flatten().tolist() == pytest.approx([math.log(0.75), 0])
    advantage = torch.tensor([3.0, 1e6]).view(1, 2, 1).requires_grad_()
    loss = actor_critic.policy_gradient_loss(log_pi, advantage, mask)
    assert loss.item() == pytest.approx(-3 * math.log(0.75))
    gradient, none = torch.autograd.grad(loss, [policy, advantage], allow_unused=True)
    assert gradient.flatten().tolist() == pytest.approx([0, -3 / 0.75, 0, 0])
    assert none is None
    with pytest.raises(ValueError, match="actions must have shape"):
        actor_critic.log_probability(policy, actions.squeeze(3), mask)
    with pytest.raises(ValueError, match="shapes must be equal"):
        actor_critic.policy_gradient_loss(log_pi, advantage, mask[:, :1])


@pytest.mark.usefixtures("double")
def test_the_policy_gradient_in_nested_loops():
    policy, avail = policies()
    actions = avail.long().argmax(dim=-1, keepdim=True)
    advantage, mask = torch.randn(B, T, N), torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    mask = mask.unsqueeze(-1).expand(B, T, N)
    log_pi = actor_critic.log_probability(policy, actions, mask)
    terms = []
    for b in range(B):
        for t in range(T):
            for i in range(N):
                if mask[b, t, i] == 1:
                    terms.append(math.log(policy[b, t, i, actions[b, t, i, 0]]) * advantage[b, t, i].item())
    found = actor_critic.policy_gradient_loss(log_pi, advantage, mask).item()
    assert found == pytest.approx(-sum(terms) / len(terms))


def test_the_counterfactual_advantage_by_hand():
    """0.5 * 4 + 0.25 * 2 + 0.25 * (-2) = 2 is what the agent gets on average; its second action gets it 2."""
    q, policy = torch.tensor([4.0, 2.0, -2.0]).view(1, 1, 1, 3), torch.tensor([0.5, 0.25, 0.25]).view(1, 1, 1, 3)
    for action, expected in ((0, 2.0), (1, 0.0), (2, -4.0)):
        found = actor_critic.counterfactual_advantage(q, policy, torch.full((1, 1, 1, 1), action))
        assert found.item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="actions must have shape"):
        actor_critic.counterfactual_advantage(q, policy, torch.zeros(1, 1, 1, dtype=torch.long))


@pytest.mark.usefixtures("double")
def test_the_counterfactual_advantage_in_nested_loops():
    """It averages to 0 over an agent's policy, and actions that cannot be taken have no part in it."""
    policy, avail = policies()
    q = torch.randn(B, T, N, A)
    average = torch.zeros(B, T, N)
    for a in range(A):
        actions = torch.full((B, T, N, 1), a)
        found = actor_critic.counterfactual_advantage(q, policy, actions)
        wild = q.masked_fill(~avail & (torch.arange(A) != a), torch.inf)
        assert torch.equal(found, actor_critic.counterfactual_advantage(wild, policy, actions))
        average += policy[..., a] * found
        for b in range(B):
            for t in range(T):
                for i in range(N):
                    baseline = sum(policy[b, t, i, k].item() * q[b, t, i, k].item() for k in range(A))
                    assert found[b, t, i].item() == pytest.approx(q[b, t, i, a].item() - baseline)
    torch.testing.assert_close(average, torch.zeros(B, T, N))


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


# Two critics


@pytest.mark.usefixtures("double")
def test_the_gap_of_the_policies_by_hand():
    """Section 7 of docs/theory.md: Q(p) = 1 - |p_1 - p_2| is 0 at both actions and 1 at (.5, .5)."""

    def q(p):
        return 1 - (p[0] - p[1]).abs()

    even, first = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    gap = actor_critic.vertex_gap(q(even).view(1, 1, 1), q(first).view(1, 1, 1))
    assert gap.item() == 1
    with pytest.raises(ValueError, match="shapes must be equal"):
        actor_critic.vertex_gap(gap, gap.expand(1, 1, 2))


def test_the_gap_of_one_agent_at_a_time_by_hand():
    own, data = torch.tensor([1.0, 2.5, 3.0]).view(1, 1, 3), torch.tensor(1.5).view(1, 1, 1)
    assert actor_critic.deviation_gap(own, data).item() == pytest.approx(6.5 / 3 - 1.5)
    with pytest.raises(ValueError, match="q_data must have shape"):
        actor_critic.deviation_gap(own, own)


@pytest.mark.usefixtures("double")
def test_policy_kl_by_hand_and_in_loops():
    policy, rho = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.75, 0.0])
    kl = actor_critic.policy_kl(policy, rho.log())
    assert kl.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    policy, avail = policies(1)
    other = torch.randn(B, T, N, A).masked_fill(~avail, -torch.inf).log_softmax(-1)
    kl = actor_critic.policy_kl(policy, other)
    for b in range(B):
        for t in range(T):
            for i in range(N):
                ps = [(policy[b, t, i, a].item(), other[b, t, i, a].item()) for a in range(A) if avail[b, t, i, a]]
                assert kl[b, t, i].item() == pytest.approx(sum(p * (math.log(p) - log) for p, log in ps))
    assert actor_critic.policy_kl(policy, policy.log()).abs().max() < 1e-12


def test_the_kl_has_a_gradient_into_the_policy_alone():
    avail = torch.tensor([1, 1, 0]).bool()
    logits, q = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    policy = torch.softmax(logits.masked_fill(~avail, -1e10), 0).masked_fill(~avail, 0.0)
    kl = actor_critic.policy_kl(policy, q.masked_fill(~avail, -torch.inf).log_softmax(0))
    slope, none = torch.autograd.grad(kl, [logits, q], allow_unused=True)
    assert none is None
    assert torch.isfinite(slope).all()
    assert slope[2] == 0


@pytest.mark.usefixtures("double")
def test_slopes_leave_out_what_policies_cannot_feel():
    """One step: agent 1 has gradients 1, 3 and an unavailable action, so -1, 1; agent 2 has 5 alone, so 0."""
    gradient = torch.tensor([[1.0, 3.0, 1e9], [1e9, 5.0, -1e9]]).view(1, 1, 2, 3)
    avail = torch.tensor([[1, 1, 0], [0, 1, 0]]).view(1, 1, 2, 3)
    mask = torch.ones(1, 1, 1)
    assert actor_critic.policy_slope(gradient, avail, mask).item() == pytest.approx(math.sqrt(2))
    _, avail = policies(2)
    gradient, mask = torch.randn(B, T, N, A), torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).unsqueeze(2)
    norms = []
    for b, t in ((0, 0), (0, 1), (1, 0)):
        square = 0.0
        for i in range(N):
            felt = [gradient[b, t, i, a].item() for a in range(A) if avail[b, t, i, a]]
            square += sum((g - sum(felt) / len(felt)) ** 2 for g in felt)
        norms.append(math.sqrt(square))
    found = actor_critic.policy_slope(gradient, avail, mask).item()
    assert found == pytest.approx(sum(norms) / 3)
    level = torch.randn(B, T, N, 1)
    assert actor_critic.policy_slope(gradient + level, avail, mask).item() == pytest.approx(found)


def test_scales_make_both_slopes_the_cooperative_ones():
    slopes = torch.tensor([0.5, 3.0])
    assert actor_critic.slope_scales(slopes).tolist() == [6, 1]
    assert (actor_critic.slope_scales(slopes) * slopes).tolist() == [3, 3]
    assert torch.isfinite(actor_critic.slope_scales(torch.zeros(2))).all()


def test_weighed_value_by_hand():
    own, team = torch.tensor([1.0, 3.0]).view(1, 1, 2), torch.tensor(5.0).view(1, 1, 1)
    weights, scales = torch.tensor([0.25, 0.75]), torch.tensor([4.0, 1.0])
    assert actor_critic.weighed_value(own, team, weights, scales).item() == 0.25 * 4 * 2 + 0.75 * 5
    assert actor_critic.weighed_value(own, team, None, scales).item() == 4 * 2 + 5
    for tensor in (weights, scales):
        tensor.requires_grad_()
    own.requires_grad_()
    value = actor_critic.weighed_value(own, team, weights, scales)
    (slope,) = torch.autograd.grad(value, own)
    assert slope.flatten().tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="value_independent must have shape"):
        actor_critic.weighed_value(own[0], team, weights, scales)
