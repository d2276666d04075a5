"""Conservative gaps: the numbers N1, N1b and N3, Propositions 1.1 to 1.4, and nested loops over agents and actions."""

import math

import pytest
import torch

from objectives.conservative import (
    OPS,
    agent_gaps,
    counterfactual_gap,
    joint_max_gap,
    linear_gap,
    sampled_lse,
    shift_weights,
    standardise,
    sup_value,
)

NAN, INF = float("nan"), float("inf")
WILD = [1e6, -1e6, NAN, INF, -INF]


def t64(values):
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=tolerance)


def naive_sup(q, avail, op, T, beta):
    """One row of A numbers, from the definitions."""
    available = [k for k in range(len(q)) if avail[k]]
    partition = sum(math.exp(q[k] / T) for k in available)
    if op == "max":
        return max(q[k] for k in available)
    if op == "lse":
        return T * math.log(partition)
    if op == "lse_mean":
        return T * math.log(partition / len(available))
    if op == "lse_beta":
        return T * math.log(sum(beta[k] * math.exp(q[k] / T) for k in available))
    if op == "softmax":
        return sum(math.exp(q[k] / T) / partition * q[k] for k in available)
    return sum(q[k] for k in available) / len(available)


def random_rows(*shape, seed=0):
    """Values, masks with at least one available action, and behaviours that play available actions only."""
    rng = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(*shape, generator=rng, dtype=torch.float64)
    avail = (torch.rand(*shape, generator=rng) < 0.6).int()
    avail[..., 0] |= avail.sum(-1) == 0
    beta = torch.rand(*shape, generator=rng, dtype=torch.float64) * avail
    assert (avail == 0).any()
    assert ((avail.sum(-1) > 1) & (avail.sum(-1) < shape[-1])).any()
    return q, avail, beta / beta.sum(-1, keepdim=True)


# N1: sup, gap to the logged action a = 1 with Q(a) = 2, gap to E_beta[Q] = .2 * 1 + .5 * 2 + .3 * 3 = 2.1
N1_Q, N1_AVAIL, N1_BETA = t64([1.0, 2.0, -0.5, 3.0]), torch.tensor([1, 1, 0, 1]), t64([0.2, 0.5, 0.0, 0.3])
N1 = [
    ("max", 1.0, 3.000000, 1.000000, 0.900000),
    # e, e^2, e^3 over their sum 30.192875 = [.090031, .244728, .665241], times 1, 2, 3
    ("softmax", 1.0, 2.575210, 0.575210, 0.475210),
    ("softmax", 0.5, 2.850937, 0.850937, 0.750937),
    ("lse", 1.0, 3.407606, 1.407606, 1.307606),  # log 30.192875
    ("lse", 0.5, 3.071466, 1.071466, 0.971466),  # log(e^2 + e^4 + e^6) / 2
    ("lse_mean", 1.0, 2.308994, 0.308994, 0.208994),  # log(30.192875 / 3)
    ("lse_beta", 1.0, 2.328628, 0.328628, 0.228628),  # log(.2 e + .5 e^2 + .3 e^3)
    ("uniform", 1.0, 2.000000, 0.000000, -0.100000),
]


@pytest.mark.parametrize(("op", "T", "sup", "gap_data", "gap_beta"), N1)
def test_n1_all_operators(op, T, sup, gap_data, gap_beta):
    q, avail, beta = (x.view(1, 1, 1, 4) for x in (N1_Q, N1_AVAIL, N1_BETA))
    close(sup_value(N1_Q, N1_AVAIL, op, T, N1_BETA), sup)
    close(agent_gaps(q, avail, q[..., 1], op, T, beta), [[[gap_data]]])
    close(agent_gaps(q, avail, (q * beta).sum(-1), op, T, beta), [[[gap_beta]]])


def test_n1_names_every_operator():
    assert {row[0] for row in N1} == set(OPS)


def n1b():
    """Two agents, three actions, one step played and one of padding: q, avail, values of the actions (0, 2), mask."""
    q = t64([[[[0.5, 1.5, -1.0], [2.0, 0.0, 1.0]], [[9.0, -7.0, 3.0], [5.0, 5.0, -5.0]]]])
    avail = torch.tensor([[[[1, 1, 1], [1, 0, 1]], [[1, 1, 1], [1, 1, 1]]]])
    q_data = t64([[[0.5, 1.0], [-7.0, 5.0]]])
    return q, avail, q_data, t64([[[1.0], [0.0]]])


@pytest.mark.parametrize(
    ("op", "gaps", "mean"),
    [
        # agent 1: log(e^.5 + e^1.5 + e^-1) - .5 = 1.371539;  agent 2: log(e^2 + e) - 1 = 1.313262
        ("lse", [1.371539, 1.313262], 1.342400),
        ("max", [1.0, 1.0], 1.0),  # 1.5 - .5 and 2 - 1
    ],
)
def test_n1b_batch_with_padding(op, gaps, mean):
    q, avail, q_data, mask = n1b()
    d = agent_gaps(q, avail, q_data, op)  # (1, 2, 2)
    close(d[0, 0], gaps)
    close((d * mask).sum() / (2 * mask.sum()), mean)
    if op == "lse":
        close((d * mask).sum(), 2.684801)


def n3_q_tot(q1, q2):
    """The mixer of N2, with absolute weights [[1, .5], [.25, 2]] and [.5, 1.5], written out."""

    def elu(x):
        return x if x > 0 else math.exp(x) - 1

    return 0.5 * elu(q1 + 0.25 * q2 + 0.1) + 1.5 * elu(0.5 * q1 + 2 * q2 - 0.3) + 0.2


def test_n3_joint_gaps_of_the_mixer():
    q, avail, _, _ = n1b()
    q1, q2 = q[0, 0].tolist()
    # The data plays (0, 2), so Q_tot(k, 2) for agent 1 and Q_tot(0, k) for agent 2.
    q_cf = t64([[[[n3_q_tot(k, 1.0) for k in q1], [n3_q_tot(0.5, k) for k in q2]]]])
    # e.g. .5 * .85 + 1.5 * 1.95 + .2 = 3.55 and .5 (e^-.65 - 1) + 1.5 * 1.2 + .2 = 1.761023
    close(q_cf, [[[[3.55, 4.8, 1.761023], [6.675, 0.426844, 3.55]]]])
    q_tot = t64([[[3.55]]])
    # N13: the mean of log(e^3.55 + e^4.8 + e^1.761023) - 3.55 and log(e^6.675 + e^3.55) - 3.55
    close(counterfactual_gap(q_cf, avail[:, :1], q_tot, "lse"), [[[2.353236]]])
    close(counterfactual_gap(q_cf, avail[:, :1], q_tot, "max"), [[[(1.25 + 3.125) / 2]]])
    # f(1.5, 2) = .5 * 2.1 + 1.5 * 4.45 + .2 = 7.925
    close(joint_max_gap(t64([[[n3_q_tot(1.5, 2.0)]]]), q_tot), [[[4.375]]])


def test_n3_first_order_gap():
    # At the data both hidden units are positive, so the gains are .5 * (1, .25) + 1.5 * (.5, 2) = (1.25, 3.125).
    q, avail, q_data, _ = n1b()
    gains = t64([[[1.25, 3.125]]])
    lse, largest = (agent_gaps(q, avail, q_data, op)[:, :1] for op in ("lse", "max"))
    close(linear_gap(gains, lse), [[[5.818368]]], 1e-5)  # 1.25 * 1.371539 + 3.125 * 1.313262
    close(linear_gap(gains, largest), [[[4.375]]])  # the joint gap itself: the mixer is affine up to the maximum


def test_first_order_gap_in_loops():
    rng = torch.Generator().manual_seed(6)
    gains, gaps = torch.randn(2, 3, 4, 5, generator=rng, dtype=torch.float64)
    for b in range(3):
        for t in range(4):
            expected = sum(gains[b, t, i].item() * gaps[b, t, i].item() for i in range(5))
            close(linear_gap(gains, gaps)[b, t], [expected])


@pytest.mark.parametrize(("T", "estimate"), [(1.0, 2.551444), (0.5, 2.119773)])
def test_sampled_log_sum_exp_by_hand(T, estimate):
    # Q_tot (1, 2) drawn with probabilities 1/4 and 1/2: T log((4 e^(1/T) + 2 e^(2/T)) / 2)
    q_tot, log_rho = t64([[[1.0, 2.0]]]), t64([[[math.log(0.25), math.log(0.5)]]])
    close(sampled_lse(q_tot, log_rho, T), [[[estimate]]])


@pytest.mark.parametrize("M", [1, 3])
def test_sampled_log_sum_exp_in_loops(M):
    rng = torch.Generator().manual_seed(7)
    q_tot, log_rho = torch.randn(2, 4, 5, M, generator=rng, dtype=torch.float64)
    for b in range(4):
        for t in range(5):
            weights = [math.exp(q_tot[b, t, m] / 0.7 - log_rho[b, t, m]) for m in range(M)]
            close(sampled_lse(q_tot, log_rho, 0.7)[b, t], [0.7 * math.log(sum(weights) / M)])


def test_proposition_1_4_expectation_of_the_samples():
    """E[exp(estimate/T)] is the sum itself, whatever the proposal; one sample of the Boltzmann policy is exact."""
    T = 0.6
    q = t64([1.0, -0.5, 2.0, 0.3])
    total = sup_value(q, torch.ones(4), "lse", T)
    for proposal in (t64([0.1, 0.2, 0.3, 0.4]), torch.full((4,), 0.25, dtype=torch.float64)):
        one = sampled_lse(q.view(1, 4, 1), proposal.log().view(1, 4, 1), T).flatten()
        close((proposal * (one / T).exp()).sum(), (total / T).exp(), 1e-9)
        assert (proposal * one).sum() < total  # Jensen
    boltzmann = torch.softmax(q / T, dim=0)
    close(sampled_lse(q.view(1, 4, 1), boltzmann.log().view(1, 4, 1), T).flatten(), total.expand(4), 1e-9)


def test_standardised_values_by_hand():
    q = t64([[0.0, 2.0, 7.0], [5.0, 5.0, 9.0], [3.0, 8.0, 8.0]])
    avail = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 0, 0]])
    found = standardise(q, avail)
    close(found[0, :2], [-1.0, 1.0])  # mean 1, deviation 1
    close(found[1, :2], [0.0, 0.0])  # no deviation
    close(found[2, 0], 0.0)
    # Their policy does not change with the scale of the values, which a mixer's utilities do not have.
    close(standardise(100 * q + 3, avail)[0, :2], [-1.0, 1.0])


def test_standardised_values_in_loops():
    q, avail, _ = random_rows(40, 5, seed=8)
    for clean in (q, q.masked_fill(avail == 0, NAN)):
        found = standardise(clean, avail)
        for row in range(40):
            available = [k for k in range(5) if avail[row, k]]
            mean = sum(q[row, k].item() for k in available) / len(available)
            deviation = math.sqrt(sum((q[row, k].item() - mean) ** 2 for k in available) / len(available))
            for k in available:
                close(found[row, k], (q[row, k].item() - mean) / (deviation if len(available) > 1 else 1.0))


def test_multiplying_by_the_mask_would_be_wrong():
    # log(e^-5 + e^-6), where an unavailable action with value 0 would give .01
    close(sup_value(t64([-5.0, -6.0, -7.0]), torch.tensor([1, 1, 0]), "lse"), -5 + math.log(1 + math.exp(-1)))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("T", [0.3, 1.0, 2.5])
def test_every_operator_equals_nested_loops(op, T):
    B, S, N, A = 3, 4, 2, 5
    q, avail, beta = random_rows(B, S, N, A)
    rng = torch.Generator().manual_seed(1)
    q_data = torch.randn(B, S, N, generator=rng, dtype=torch.float64)
    q_tot = torch.randn(B, S, 1, generator=rng, dtype=torch.float64)
    sup = torch.empty(B, S, N, dtype=torch.float64)
    for b in range(B):
        for t in range(S):
            for i in range(N):
                row = (x[b, t, i].tolist() for x in (q, avail))
                sup[b, t, i] = naive_sup(*row, op, T, beta[b, t, i].tolist())
    close(sup_value(q, avail, op, T, beta), sup)
    close(sup_value(q, avail, op, t64(T), beta), sup)  # the temperature may be a tensor
    close(agent_gaps(q, avail, q_data, op, T, beta), sup - q_data)
    close(counterfactual_gap(q, avail, q_tot, op, T, beta), (sup[:, :, :1] + sup[:, :, 1:]) / 2 - q_tot)


@pytest.mark.parametrize("T", [0.1, 1.0, 3.0])
def test_proposition_1_1_order_of_the_operators(T):
    q, avail, beta = random_rows(500, 6, seed=2)
    sup = {op: sup_value(q, avail, op, T, beta) for op in OPS}
    mean = (q * beta).sum(-1)
    slack = 1e-9
    assert (sup["uniform"] <= sup["softmax"] + slack).all()
    assert (sup["softmax"] <= sup["max"] + slack).all()
    assert (sup["max"] <= sup["lse"] + slack).all()
    assert (sup["lse"] <= sup["max"] + T * avail.sum(-1).log() + slack).all()
    assert (mean <= sup["lse_beta"] + slack).all()
    assert (sup["lse_beta"] <= sup["max"] + slack).all()
    assert (sup["softmax"] < mean).any()  # unlike those of max, lse and lse_beta, this gap can be negative


@pytest.mark.parametrize("T", [0.1, 1.0, 3.0])
def test_proposition_1_1_lse_gap_is_cross_entropy(T):
    q, avail, beta = random_rows(500, 6, seed=3)
    gap = sup_value(q, avail, "lse", T) - (q * beta).sum(-1)
    expected, entropy = torch.zeros(500, dtype=torch.float64), torch.zeros(500, dtype=torch.float64)
    for row in range(500):
        available = [k for k in range(6) if avail[row, k]]
        partition = sum(math.exp(q[row, k] / T) for k in available)
        for k in available:
            p = beta[row, k].item()
            expected[row] -= T * p * math.log(math.exp(q[row, k] / T) / partition)
            entropy[row] -= T * p * math.log(p)
    close(gap, expected, 1e-9)
    assert (gap >= entropy - 1e-9).all()
    # The least gap, T H(beta), is reached by Q = T log beta + constant.
    fitted = torch.where(avail > 0, T * beta.log() + 7.0, 0.0)
    close(sup_value(fitted, avail, "lse", T) - (fitted * beta).sum(-1), entropy, 1e-9)
    # A constant added to Q changes nothing, a factor does.
    close(sup_value(q + 5, avail, "lse", T) - ((q + 5) * beta).sum(-1), gap, 1e-9)
    assert not torch.allclose(sup_value(2 * q, avail, "lse", T) - (2 * q * beta).sum(-1), gap, atol=1e-2)


def test_n1_cross_entropy():
    # -(.2 log .090031 + .5 log .244728 + .3 log .665241)
    gap = sup_value(N1_Q, N1_AVAIL, "lse") - (N1_Q * N1_BETA).sum()
    close(gap, -(0.2 * math.log(0.090031) + 0.5 * math.log(0.244728) + 0.3 * math.log(0.665241)), 1e-5)
    close(gap, 1.307606)


def test_n8c_soft_penalty_raises_the_greedy_action_on_its_own_data():
    # Ten actions, the best by .1; mu(a*) = e^.1 / (e^.1 + 9) = .109367 while the data plays it with .955.
    q = torch.zeros(10, dtype=torch.float64)
    q[0] = 0.1
    q.requires_grad_()
    beta = torch.full((10,), 0.005, dtype=torch.float64)
    beta[0] = 0.955
    (sup_value(q, torch.ones(10), "lse") - (q * beta).sum()).backward()
    close(q.grad[0] + beta[0], 0.109367)
    close(-q.grad[0] / beta[0], 0.885479)  # one tabular step, in units of alpha


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("wild", WILD)
def test_unavailable_actions_change_neither_values_nor_gradients(op, wild):
    clean, avail, beta = random_rows(2, 3, 2, 5, seed=4)
    results = []
    for q in (clean, clean.masked_fill(avail == 0, wild)):
        q.requires_grad_()
        gaps = agent_gaps(q, avail, torch.zeros(2, 3, 2), op, 0.7, beta)
        (gaps**2).sum().backward()
        results.append((gaps.detach(), q.grad))
    close(results[1][0], results[0][0], 0)
    close(results[1][1], results[0][1], 0)
    assert (results[0][1][avail == 0] == 0).all()
    assert (results[0][1] != 0).any()


@pytest.mark.parametrize("wild", [1e6, NAN, INF])
def test_unavailable_counterfactuals_change_neither_values_nor_gradients(wild):
    clean, avail, _ = random_rows(2, 3, 2, 5, seed=5)
    results = []
    for q in (clean, clean.masked_fill(avail == 0, wild)):
        q.requires_grad_()
        gaps = counterfactual_gap(q, avail, torch.zeros(2, 3, 1), "lse", 0.7)
        gaps.sum().backward()
        results.append((gaps.detach(), q.grad))
    close(results[1][0], results[0][0], 0)
    close(results[1][1], results[0][1], 0)


def test_gradient_of_the_gap_is_policy_minus_data():
    q = N1_Q.clone().requires_grad_()
    agent_gaps(q.view(1, 1, 1, 4), N1_AVAIL.view(1, 1, 1, 4), q[1].view(1, 1, 1), "lse").sum().backward()
    close(q.grad, [0.090031, 0.244728 - 1, 0.0, 0.665241])


def test_bad_arguments():
    q, avail = torch.zeros(2, 3), torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"op must be one of max, lse, .*got 'mean'"):
        sup_value(q, avail, "mean")
    with pytest.raises(ValueError, match="needs the behaviour"):
        sup_value(q, avail, "lse_beta")


def test_shape_errors_name_both_shapes():
    q, tot = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 1)
    cases = [
        (lambda: sup_value(q, q[0], "max"), "(2, 3, 4, 5)", "(3, 4, 5)"),
        (lambda: sup_value(q, q, "lse_beta", 1.0, q[..., :1]), "(2, 3, 4, 5)", "(2, 3, 4, 1)"),
        (lambda: agent_gaps(q, q, tot, "max"), "(2, 3, 4)", "(2, 3, 1)"),
        (lambda: counterfactual_gap(q, q, q[..., 0], "max"), "(2, 3, 1)", "(2, 3, 4)"),
        (lambda: joint_max_gap(tot, q[..., 0]), "(2, 3, 1)", "(2, 3, 4)"),
        (lambda: linear_gap(tot, q[..., 0]), "(2, 3, 1)", "(2, 3, 4)"),
        (lambda: sampled_lse(tot, q[..., 0], 1.0), "(2, 3, 1)", "(2, 3, 4)"),
    ]
    for call, one, other in cases:
        with pytest.raises(ValueError, match="shape") as raised:
            call()
        assert one in str(raised.value)
        assert other in str(raised.value)


# CFCQL's weights


def test_shift_weights_by_hand():
    """Two actions. Agent 1 would play (3/4, 1/4) and the data has (1/2, 1/2); agent 2 plays as the data does."""
    q = t64([[[[math.log(3), 0.0], [math.log(3), 0.0]]]])
    beta, avail = t64([[[[0.5, 0.5], [0.75, 0.25]]]]), torch.ones(1, 1, 2, 2)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # 0.130812
    ratio = math.exp(2 * divergence)
    expected = [[[ratio / (1 + ratio), 1 / (1 + ratio)]]]  # 0.565035, 0.434965
    close(shift_weights(q, avail, beta, 1.0, 2.0), expected)
    close(shift_weights(2 * q, avail, beta, 2.0, 2.0), expected)  # the temperature is in units of the values
    close(shift_weights(q, avail, beta, 1.0, 0.0), [[[0.5, 0.5]]])
    close(shift_weights(q, avail, beta, 1.0, 1e6), [[[1.0, 0.0]]])
    gap = counterfactual_gap(q, avail, t64([[[1.0]]]), "max", weights=t64([[[0.25, 0.75]]]))
    close(gap, [[[math.log(3) - 1]]])


@pytest.mark.parametrize("strength", [0.0, 0.5, 3.0])
def test_shift_weights_in_loops(strength):
    B, S, N, A, T = 3, 4, 3, 5, 0.7
    q, avail, beta = random_rows(B, S, N, A)
    found = shift_weights(q.requires_grad_(), avail, beta, T, strength)
    assert not found.requires_grad
    q_tot = torch.zeros(B, S, 1, dtype=torch.float64)
    gaps = counterfactual_gap(q, avail, q_tot, "lse", T, weights=found)
    for b in range(B):
        for t in range(S):
            shares = []
            for i in range(N):
                allowed = [k for k in range(A) if avail[b, t, i, k]]
                partition = sum(math.exp(q[b, t, i, k] / T) for k in allowed)
                mu = {k: math.exp(q[b, t, i, k] / T) / partition for k in allowed}
                shares.append(
                    math.exp(
                        strength * sum(p * math.log(p / max(beta[b, t, i, k].item(), 1e-5)) for k, p in mu.items())
                    )
                )
            close(found[b, t], [share / sum(shares) for share in shares])
            sups = [naive_sup(q[b, t, i].tolist(), avail[b, t, i].tolist(), "lse", T, None) for i in range(N)]
            close(gaps[b, t, 0].detach(), sum(w * s for w, s in zip(shares, sups, strict=True)) / sum(shares))


def test_actions_that_are_unavailable_or_never_played_leave_the_shift_finite():
    q, avail, beta = random_rows(2, 3, 2, 4)
    expected = shift_weights(q, avail, beta, 0.7, 1.0)
    for wild in WILD[:2]:
        close(shift_weights(torch.where(avail == 0, wild, q), avail, beta, 0.7, 1.0), expected)
    never = torch.zeros_like(beta)
    never[..., 0] = 1.0
    assert torch.isfinite(shift_weights(q, avail, never, 0.7, 1.0)).all()
