"""The Munchausen term: policies and soft values by hand, N1 and N8c, Theorem 5.1, nested loops."""

import math

import pytest
import torch

from objectives.munchausen import (
    kl_to,
    log_policy,
    munchausen_bonus,
    neighbour_confidence,
    opinion_pool,
    soft_value,
)
from objectives.td import one_step_targets


def t64(values):
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=tolerance)


def random_rows(*shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    avail = (torch.rand(*shape, generator=rng) < 0.6).int()
    avail[..., 0] |= avail.sum(-1) == 0
    assert (avail == 0).any()
    return torch.randn(*shape, generator=rng, dtype=torch.float64), avail


# Q / tau = (0, log 3) on the available actions, so their policy is (1/4, 3/4).
Q, AVAIL, TAU = t64([0.0, 0.5 * math.log(3), 7.0]), torch.tensor([1, 1, 0]), 0.5


def test_policy_and_soft_value_by_hand():
    close(log_policy(Q, AVAIL, TAU), [math.log(0.25), math.log(0.75), -math.inf])
    close(soft_value(Q, AVAIL, TAU), 0.5 * math.log(1 + 3))


def test_policies_of_n1_and_n8c():
    pi = log_policy(t64([1.0, 2.0, -0.5, 3.0]), torch.tensor([1, 1, 0, 1]), 1.0).exp()
    close(pi, [0.090031, 0.244728, 0.0, 0.665241])  # e, e^2, e^3 over their sum 30.192875
    mu = log_policy(t64([0.1] + [0.0] * 9), torch.ones(10), 1.0).exp()[0]
    close(mu, 0.109367)  # e^.1 / (e^.1 + 9)
    close(-(mu / 0.955 - 1), 0.885479)  # a soft penalty moves the greedy action up by this times alpha


@pytest.mark.parametrize(
    ("log_rho", "tau", "l0", "bonus"),
    [
        (math.log(0.25), 0.5, -1.0, -0.693147),  # .5 log 1/4
        (math.log(0.25), 0.5, -0.5, -0.5),  # clipped
        (-2.0, 0.1, -1.0, -0.2),  # tau log rho is clipped, not log rho, which would give -.1
        (-math.inf, 0.1, -1.0, -1.0),
        (0.0, 0.1, -1.0, 0.0),
        (1e-3, 0.1, -1.0, 0.0),  # rounding above probability 1
    ],
)
def test_bonus_by_hand(log_rho, tau, l0, bonus):
    close(munchausen_bonus(t64([log_rho]), tau, l0), [bonus])
    close(munchausen_bonus(t64([log_rho]), t64(tau), t64(l0)), [bonus])


@pytest.mark.parametrize(
    ("log_rho", "tau", "l0", "bonus"),
    [
        (math.log(0.25), 0.5, -1.0, -0.5),  # log 1/4 is clipped at -1, then times .5
        (math.log(0.25), 0.5, -2.0, -0.693147),
        (-2.0, 0.1, -1.0, -0.1),
        (-math.inf, 0.1, -3.0, -0.3),
        (1e-3, 0.1, -1.0, 0.0),
    ],
)
def test_unscaled_bonus_by_hand(log_rho, tau, l0, bonus):
    close(munchausen_bonus(t64([log_rho]), tau, l0, "unscaled"), [bonus])
    close(munchausen_bonus(t64([log_rho]), tau, tau * l0, "scaled"), [bonus])  # they differ by the factor in l0


def test_an_unknown_clip_is_refused():
    with pytest.raises(ValueError, match="clip must be one of scaled, unscaled, got 'hard'"):
        munchausen_bonus(t64([0.0]), 0.1, -1.0, "hard")


# Policies of the agents


def pool_of_two(p, q):
    """log rho (1, 1, 2, 2, 2) of two agents, [i, j, a]: on agent 1's history and on agent 2's."""
    return t64([[[[[0.5, 0.5], p], [q, [0.5, 0.5]]]]]).log()


def test_opinion_pool_by_hand():
    # Agent 1 played 0, to which agent 2 gives 1/4 on its history; agent 2 played 1, to which agent 1 gives 1/10.
    actions = torch.tensor([[[[0], [1]]]])
    close(opinion_pool(pool_of_two([0.25, 0.75], [0.9, 0.1]), actions), [[[math.log(0.25), math.log(0.1)]]])


def test_opinion_pool_is_the_log_of_the_geometric_mean_of_the_others_in_loops():
    B, T, N, A = 2, 3, 4, 5
    q, avail = random_rows(B, T, N, N, A, seed=6)
    log_rho = log_policy(q, torch.ones_like(avail), 0.7)
    actions = torch.randint(A, (B, T, N, 1), generator=torch.Generator().manual_seed(1))
    found = opinion_pool(log_rho, actions)
    for b in range(B):
        for t in range(T):
            for i in range(N):
                product = 1.0
                for j in range(N):
                    if j != i:
                        product *= math.exp(log_rho[b, t, i, j, actions[b, t, i, 0]])
                close(found[b, t, i], math.log(product ** (1 / (N - 1))), 1e-9)


def test_a_single_agent_is_its_own_pool():
    log_rho = t64([[[[[0.25, 0.75]]]]]).log()
    close(opinion_pool(log_rho, torch.tensor([[[[1]]]])), [[[math.log(0.75)]]])


def test_an_impossible_action_is_impossible_in_the_pool():
    pool = opinion_pool(pool_of_two([0.0, 1.0], [0.5, 0.5]), torch.tensor([[[[0], [1]]]]))
    close(munchausen_bonus(pool, 0.5, -1.0), [[[-1.0, 0.5 * math.log(0.5)]]])


def test_neighbours_confidence_is_the_next_agents_and_no_matter_of_the_action():
    rho = t64([[[[0.6, 0.4], [0.1, 0.9], [0.5, 0.5]]]])
    close(neighbour_confidence(rho.log()), [[[math.log(0.9), math.log(0.5), math.log(0.6)]]])


def test_neighbours_confidence_in_loops():
    q, avail = random_rows(2, 3, 4, 5, seed=7)
    log_rho = log_policy(q, avail, 0.7)
    found = neighbour_confidence(log_rho)
    for b in range(2):
        for t in range(3):
            for i in range(4):
                close(found[b, t, i], max(log_rho[b, t, (i + 1) % 4].tolist()))


def test_kl_by_hand():
    # pi = (1/4, 3/4) from rho = (1/2, 1/2): 1/4 log 1/2 + 3/4 log 3/2
    log_rho = t64([0.5, 0.5, 0.0]).log()
    close(kl_to(Q, AVAIL, log_rho, TAU), 0.130812)
    close(kl_to(Q, AVAIL, log_policy(Q, AVAIL, TAU), TAU), 0.0)


@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_kl_in_loops(tau):
    q, avail = random_rows(30, 5, seed=8)
    log_rho = log_policy(random_rows(30, 5, seed=9)[0], avail, 1.0)
    found = kl_to(q, avail, log_rho, tau)
    for row in range(30):
        available = [k for k in range(5) if avail[row, k]]
        partition = sum(math.exp(q[row, k] / tau) for k in available)
        pi = {k: math.exp(q[row, k] / tau) / partition for k in available}
        close(found[row], sum(pi[k] * (math.log(pi[k]) - log_rho[row, k].item()) for k in available), 1e-9)
    assert (found >= -1e-12).all()


def test_gradient_of_the_kl():
    """d KL / d Q(a) = pi(a) [log pi(a)/rho(a) - KL] / tau, and nothing flows into unavailable actions."""
    q = Q.clone().requires_grad_()
    kl = kl_to(q, AVAIL, t64([0.5, 0.5, 0.0]).log(), TAU)
    kl.backward()
    expected = [p * (math.log(p / 0.5) - 0.130812) / TAU for p in (0.25, 0.75)]
    close(q.grad, [*expected, 0.0], 1e-5)


def test_unavailable_actions_change_neither_the_kl_nor_its_gradient():
    clean, avail = random_rows(2, 3, 2, 5, seed=4)
    log_rho = log_policy(random_rows(2, 3, 2, 5, seed=5)[0], avail, 1.0)
    results = []
    for wild in (0.0, 1e6, math.nan, -math.inf):
        q = clean.masked_fill(avail == 0, wild).requires_grad_()
        kl = kl_to(q, avail, log_rho, 0.5)
        kl.sum().backward()
        results.append((kl.detach(), q.grad))
    for dirty in results[1:]:
        close(dirty[0], results[0][0], 0)
        close(dirty[1], results[0][1], 0)
    assert torch.isfinite(results[0][1]).all()


def test_target_by_hand():
    # y = 1 + .5 * (.5 log 1/4) + .9 * .5 log 4 = 1 - .346574 + .623832, for the first action
    log_rho = log_policy(Q, AVAIL, TAU)[0].view(1, 1, 1)
    reward = 1 + 0.5 * munchausen_bonus(log_rho, TAU, -1.0)
    v_next = soft_value(Q, AVAIL, TAU).view(1, 1, 1)
    close(one_step_targets(reward, torch.zeros(1, 1, 1), v_next, gamma=0.9), [[[1.277259]]])


@pytest.mark.parametrize("tau", [0.2, 1.0, 3.0])
def test_nested_loops(tau):
    B, T, N, A = 3, 4, 2, 5
    q, avail = random_rows(B, T, N, A)
    log_pi = torch.full((B, T, N, A), -math.inf, dtype=torch.float64)
    value = torch.empty(B, T, N, dtype=torch.float64)
    for b in range(B):
        for t in range(T):
            for i in range(N):
                partition = sum(math.exp(q[b, t, i, k] / tau) for k in range(A) if avail[b, t, i, k])
                value[b, t, i] = tau * math.log(partition)
                for k in range(A):
                    if avail[b, t, i, k]:
                        log_pi[b, t, i, k] = math.log(math.exp(q[b, t, i, k] / tau) / partition)
    close(log_policy(q, avail, tau), log_pi, 1e-10)
    close(soft_value(q, avail, tau), value, 1e-10)


def test_soft_value_lies_above_the_maximum_and_tends_to_it():
    q, avail = random_rows(200, 6, seed=1)
    best = q.masked_fill(avail == 0, -math.inf).max(-1).values
    for tau in (1e-3, 0.1, 1.0):
        value = soft_value(q, avail, tau)
        assert (value >= best - 1e-12).all()
        assert (value <= best + tau * avail.sum(-1).log() + 1e-6).all()
    assert (value > best + 0.1).any()


def test_soft_value_is_the_best_regularised_expectation():
    """Theorem 5.1, Q~ = Q - alpha tau log rho: V = max_pi E_pi[Q~] - alpha tau KL(pi||rho) + (1-alpha) tau H(pi)."""
    alpha, tau = 0.4, 0.7
    q_tilde, avail = random_rows(50, 5, seed=2)
    log_rho = log_policy(random_rows(50, 5, seed=3)[0], avail, tau).masked_fill(avail == 0, 0.0)
    q = q_tilde + alpha * tau * log_rho

    def regularised(pi):
        log_pi = torch.where(pi > 0, pi, 1.0).log()
        kl, entropy = (pi * (log_pi - log_rho)).sum(-1), -(pi * log_pi).sum(-1)
        return (pi * q_tilde).sum(-1) - alpha * tau * kl + (1 - alpha) * tau * entropy

    value = soft_value(q, avail, tau)
    close(regularised(log_policy(q, avail, tau).exp()), value, 1e-10)
    for seed in range(20):
        other = log_policy(random_rows(50, 5, seed=10 + seed)[0], avail, tau).exp()
        assert (regularised(other) < value + 1e-12).all()


def test_gradient_of_the_soft_value_is_the_policy():
    q = Q.clone().requires_grad_()
    soft_value(q, AVAIL, TAU).backward()
    close(q.grad, [0.25, 0.75, 0.0])


@pytest.mark.parametrize("wild", [1e6, -1e6, math.nan, math.inf, -math.inf])
def test_unavailable_actions_change_neither_values_nor_gradients(wild):
    clean, avail = random_rows(2, 3, 2, 5, seed=4)
    actions = avail.argmax(-1, keepdim=True)
    results = []
    for q in (clean, clean.masked_fill(avail == 0, wild)):
        q.requires_grad_()
        value, taken = soft_value(q, avail, 0.5), log_policy(q, avail, 0.5).gather(-1, actions).squeeze(-1)
        (value**2 + taken**2).sum().backward()
        results.append((value.detach(), taken.detach(), log_policy(q, avail, 0.5).detach(), q.grad))
    for dirty, expected in zip(results[1], results[0], strict=True):
        close(dirty, expected, 0)
    assert (results[0][3] != 0).any()


def test_shape_errors_name_both_shapes():
    q = torch.zeros(2, 3, 4, 5)
    cases = [
        (lambda: log_policy(q, q[0], 1.0), "(2, 3, 4, 5)", "(3, 4, 5)"),
        (lambda: soft_value(q, q[..., :1], 1.0), "(2, 3, 4, 5)", "(2, 3, 4, 1)"),
        (lambda: kl_to(q, q, q[..., :1], 1.0), "(2, 3, 4, 5)", "(2, 3, 4, 1)"),
        (lambda: opinion_pool(q.unsqueeze(3), q[..., :1].long()), "(B, T, N, N, A)", "(2, 3, 4, 1, 5)"),
        (lambda: opinion_pool(torch.zeros(2, 3, 4, 4, 5), q.long()), "(2, 3, 4, 1)", "(2, 3, 4, 5)"),
    ]
    for call, one, other in cases:
        with pytest.raises(ValueError, match="shape") as raised:
            call()
        assert one in str(raised.value)
        assert other in str(raised.value)
