"""Section 3 of docs/theory.md: reciprocal gaps, their bias, multipliers, and backups through the gate.

Pairs are ordered (independent, cooperative): V_h a head's greedy value, m_h = E_beta Q_h, d_h = V_h - m_h its gap and
G_h what its greedy joint action earns.
"""

import math

import numpy as np
import pytest
import torch

from envs.greed_games_solver import independent_values, isotonic, monotone_projection, product, vdn_fit
from objectives.gate import (
    certified_value,
    combine,
    gated_value,
    hard_weights,
    lagrange_step,
    lagrange_weights,
    regret,
)
from theory.reference import (
    backup,
    chi_square,
    direct_weights,
    entropy,
    optimal_q,
    random_policies,
    random_problem,
    sup,
    tensor,
    upper_sets,
)


def harmonic_mean(d):
    return 2 * d[0] * d[1] / (d[0] + d[1])


# --- 3.1 direct weights


def test_3_1_harmonic_mean():
    """Prop 3.1: with reciprocal weights w.d is the harmonic mean of the gaps, between min and 2 min."""
    for d in np.random.default_rng(1).exponential(size=(500, 2)) + 1e-3:
        weighted = direct_weights(d) @ d
        np.testing.assert_allclose(weighted, harmonic_mean(d), rtol=1e-8)
        assert d.min() - 1e-9 <= weighted <= 2 * d.min() + 1e-9


def test_3_1_gradients():
    """Prop 3.1: detached weights descend the geometric mean (HM/2 grad log d_h), live ones the harmonic (2 w_h^2)."""
    for values in np.random.default_rng(2).exponential(size=(100, 2)) + 0.01:
        d, w = tensor(values).requires_grad_(), tensor(direct_weights(values))
        combine(tensor([0.0, 0.0]), d, w, "penalty").backward()
        np.testing.assert_allclose(d.grad, harmonic_mean(values) / 2 / values, rtol=1e-8)
        live = tensor(values).requires_grad_()
        harmonic_mean(live).backward()
        np.testing.assert_allclose(live.grad, 2 * w**2, rtol=1e-8)


def test_3_1_signs():
    """Prop 3.1: the gap must be clipped at 0: signed reciprocals of (-.5, .6) would be weights (6, -5)."""
    raw = 1 / np.array([-0.5, 0.6])
    np.testing.assert_allclose(raw / raw.sum(), [6, -5])
    clipped = direct_weights([-0.5, 0.6])
    assert (clipped >= 0).all()
    np.testing.assert_allclose(clipped, [1, 0], atol=1e-9)


def test_3_1_soft_value_is_no_bound():
    """Prop 3.1: V_gate = m + HM(d) is no lower bound: V = (2, 5), m = 1 gives 2.6, 2.18 with p = 2, 2 if hard."""
    values, gaps = tensor([2.0, 5.0]), tensor([1.0, 4.0])
    apart = [x.view(1, 1, 1) for x in values]
    for p, expected in ((1, 2.6), (2, 2.176471)):
        weights = tensor(direct_weights([1.0, 4.0], p))
        np.testing.assert_allclose(gated_value(*apart, "soft", weights, gaps).item(), expected, atol=1e-6)
    assert (hard_weights(gaps) * values).sum() == gated_value(*apart, "min", gaps, gaps).item() == 2.0
    kept = tensor([0.5, 1.0])  # V - G of G = (1.5, 4): the certified value is the larger of min(V, G)
    assert gated_value(*apart, "cert", gaps, kept).item() == 4.0


# --- exact heads of random games


def random_games(count, seed, shapes=((2, 2), (3, 3), (2, 2, 2))):
    """Payoffs (A_1, ..., A_N) and the agents' behaviours: data in which they act independently."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        shape = shapes[index % len(shapes)]
        yield rng.normal(size=shape), [random_policies(rng, size) for size in shape]


def independent_head(payoff, behaviours, alpha=0.0):
    """Utilities of every agent with a conservative penalty, V_I and m_I: means over agents."""
    data = product(behaviours)
    q = [independent_values(payoff, data, i) for i in range(payoff.ndim)]
    q = [x - alpha * ((np.arange(len(x)) == x.argmax()) / b - 1) for x, b in zip(q, behaviours, strict=True)]
    value = np.mean([x.max() for x in q])
    return q, value, np.mean([b @ x for x, b in zip(q, behaviours, strict=True)])


def counterfactual_value(table, data):
    """1/N sum_i E_beta[max_k Q_tot(k, a_-i)]."""
    return np.mean([(table.max(axis=i) * data.sum(axis=i)).sum() for i in range(table.ndim)])


def penalised_projection(payoff, data, alpha):
    """The best monotone fit, fitted again with the joint penalty on its own greedy action."""
    fit = monotone_projection(payoff[None], data[None])[0]
    mu = np.zeros(payoff.shape)
    mu[fit.greedy] = 1
    ranked = np.ix_(*fit.rankings)
    table = np.empty_like(payoff)
    table[ranked] = isotonic((payoff - alpha * (mu / data - 1))[ranked], data[ranked])
    return table


def test_3_2_hard_gate_is_the_minimum():
    """Thm 3.2: heads with one target have one data mean, penalised or not: the smallest gap is the smallest value."""
    tables = {
        "monotone": lambda payoff, data: monotone_projection(payoff[None], data[None])[0].joint[0],
        "monotone, penalised": lambda payoff, data: penalised_projection(payoff, data, 0.02),
        "additive": lambda payoff, data: vdn_fit(payoff[None], data[None]).joint[0],
        "joint": lambda payoff, data: payoff,
    }
    for payoff, behaviours in random_games(120, seed=3, shapes=((2, 2), (3, 3))):
        data = product(behaviours)
        for name, table_of in tables.items():
            for alpha in (0.0, 0.05):
                _, v_i, m_i = independent_head(payoff, behaviours, alpha)
                table = table_of(payoff, data)
                v_c, m_c = table.max(), (data * table).sum()
                np.testing.assert_allclose([m_i, m_c], (data * payoff).sum(), atol=1e-9, err_msg=name)
                weights = hard_weights(tensor([v_i - m_i, v_c - m_c])).numpy()
                np.testing.assert_allclose(weights @ [v_i, v_c], min(v_i, v_c), atol=1e-9)


def test_3_2_different_targets():
    """Thm 3.2: in general V_selected <= min V_h + |m_I - m_C|: d = (1, 2), m = (3, 1) picks 4 where the min is 3."""
    assert hard_weights(tensor([1.0, 2.0])).tolist() == [1, 0]
    rng = np.random.default_rng(4)
    for gaps, means in zip(rng.exponential(size=(500, 2)), rng.normal(size=(500, 2)), strict=True):
        values = means + gaps
        selected = hard_weights(tensor(gaps)).numpy() @ values
        assert selected <= values.min() + abs(means[0] - means[1]) + 1e-12


def test_3_3_cancellation():
    """Lemma 3.3: reciprocal multipliers as weights of what they multiply cancel: w_I a_I = w_C a_C (.099 of .1, 10)."""
    for multipliers in ([0.1, 10.0], [1.0, 3.0], [0.02, 0.5]):
        a = tensor(multipliers)
        products = lagrange_weights(a.log()) * a
        np.testing.assert_allclose(products, (a[0] * a[1] / (a[0] + a[1])).item(), rtol=1e-12)
    np.testing.assert_allclose((lagrange_weights(tensor([0.1, 10.0]).log())), [0.990099, 0.009901], atol=1e-6)


def test_3_4_joint_head():
    """Thm 3.4 (i): an unrestricted joint head has d_C >= d_I; one agent at a time, d_C - d_I = E max - max E >= 0."""
    for payoff, behaviours in random_games(300, seed=5):
        data = product(behaviours)
        _, v_i, _ = independent_head(payoff, behaviours)
        assert v_i <= counterfactual_value(payoff, data) + 1e-12 <= payoff.max() + 2e-12


def test_3_4_additive_head():
    """Thm 3.4 (ii): VDN's counterfactual gap is d_I in every game with product data, and its greedy action is IQL's."""
    for payoff, behaviours in random_games(300, seed=6):
        data = product(behaviours)
        q, v_i, _ = independent_head(payoff, behaviours)
        fit = vdn_fit(payoff[None], data[None])
        np.testing.assert_allclose(counterfactual_value(fit.joint[0], data), v_i, atol=1e-9)
        assert [x.argmax() for x in fit.utilities] == [x.argmax() for x in q]


def test_3_4_same_greedy_action():
    """Thm 3.4 (iii): a monotone fit whose greedy action is IQL's has d_C >= d_I, both of the joint and the cf gap."""
    same = 0
    for payoff, behaviours in random_games(300, seed=7):
        data = product(behaviours)
        q, v_i, _ = independent_head(payoff, behaviours)
        fit = monotone_projection(payoff[None], data[None])[0]
        if list(fit.greedy) == [x.argmax() for x in q]:
            same += 1
            assert counterfactual_value(fit.joint[0], data) >= v_i - 1e-8
            assert fit.joint[0].max() >= max(x.max() for x in q) - 1e-8
    assert same > 200


def test_3_4_counterexample():
    """Thm 3.4 (iv) [R]: else it can fail: r = [[1, 2], [2, -1]], beta_i = (.8, .2): V_C = 4/3 < V_I = 1.4."""
    payoff, behaviours = np.array([[1.0, 2.0], [2.0, -1.0]]), [np.array([0.8, 0.2])] * 2
    q, v_i, mean = independent_head(payoff, behaviours)
    np.testing.assert_allclose(q, [[1.2, 1.4], [1.2, 1.4]])
    fits = monotone_projection(payoff[None], product(behaviours)[None])
    assert [fit.greedy for fit in fits] == [(0, 0)]  # while IQL plays (1, 1), which pays -1
    np.testing.assert_allclose(fits[0].joint[0], [[4 / 3, 4 / 3], [4 / 3, -1]], atol=1e-9)
    np.testing.assert_allclose([v_i - mean, fits[0].joint[0].max() - mean], [0.16, 0.0933333], atol=1e-6)


@pytest.mark.slow
def test_3_4_how_often():
    """Thm 3.4 (iv): of 4000 random games d_C < d_I in about .3 % (cf gap: 2 %), never with IQL's greedy action."""
    rng = np.random.default_rng(11)
    below = {"joint": 0, "cf": 0}
    for index in range(4000):
        shape = ((2, 2), (3, 3))[index % 2]
        payoff = (
            rng.normal(size=shape),
            rng.standard_cauchy(size=shape),
            rng.integers(-3, 4, size=shape).astype(float),
        )[index % 3]
        behaviours = [rng.dirichlet(np.full(size, 1.0 if index % 5 else 5.0)) for size in shape]
        behaviours = [np.maximum(b, 0.02) / np.maximum(b, 0.02).sum() for b in behaviours]
        data = product(behaviours)
        q, v_i, _ = independent_head(payoff, behaviours)
        fit = monotone_projection(payoff[None], data[None])[0]
        slack = 1e-8 * np.abs(payoff).max()
        found = {
            "joint": fit.joint[0].max() < v_i - slack,
            "cf": counterfactual_value(fit.joint[0], data) < v_i - slack,
        }
        for name, is_below in found.items():
            below[name] += is_below
            assert not is_below or list(fit.greedy) != [x.argmax() for x in q]
    assert 4 <= below["joint"] <= 30
    assert 40 <= below["cf"] <= 120


def test_3_4_additive_gain():
    """Thm 3.4: with shared utilities VDN's joint max gap is N d_I, so that w_C = 1/(N + 1) whatever the data is."""
    for payoff, behaviours in random_games(60, seed=8):
        n = payoff.ndim
        q, v_i, m_i = independent_head(payoff, behaviours)
        q_tot_max, q_tot_mean = sum(x.max() for x in q), sum(b @ x for x, b in zip(q, behaviours, strict=True))
        gaps = np.array([v_i - m_i, q_tot_max - q_tot_mean])
        np.testing.assert_allclose(gaps[1], n * gaps[0], atol=1e-9)
        np.testing.assert_allclose(direct_weights(gaps)[1], 1 / (n + 1), atol=1e-6)


def test_3_5_decomposition():
    """Thm 3.5: d_h = (G_h - m) + (V_h - G_h), advantage + over-estimation; acting on argmax C_h earns >= max C_h."""
    for payoff, behaviours in random_games(200, seed=9):
        data = product(behaviours)
        mean = (data * payoff).sum()
        q, v_i, _ = independent_head(payoff, behaviours)
        fit = monotone_projection(payoff[None], data[None])[0]
        values = np.array([v_i, fit.joint[0].max()])
        earned = np.array([payoff[tuple(x.argmax() for x in q)], payoff[fit.greedy]])
        np.testing.assert_allclose(values - mean, (earned - mean) + (values - earned))
        estimate = earned - np.random.default_rng(0).exponential(size=2)  # any valid lower estimate
        certified = certified_value(tensor(values), tensor(values - estimate))
        np.testing.assert_allclose(certified, np.minimum(values, estimate), atol=1e-12)
        assert earned[regret(certified).argmin()] >= certified.max().item() - 1e-12


def test_3_5_numbers():
    """Thm 3.5: V = (.83, 3.33), G = (6, -1): o = (0, 4.33), C = (.83, -1) select I; V = (.33, 3), G = (0, 3): C."""
    cases = (
        ([5 / 6, 10 / 3], [6.0, -1.0], [0, 13 / 3], [5 / 6, -1.0], 0),
        ([1 / 3, 3.0], [0.0, 3.0], [1 / 3, 0], [0.0, 3.0], 1),
    )
    for values, earned, over, certified, selected in cases:
        excess = tensor(values) - tensor(earned)
        np.testing.assert_allclose(excess.relu(), over)
        assert hard_weights(excess)[selected] == 1
        np.testing.assert_allclose(certified_value(tensor(values), excess), certified)
        assert regret(certified_value(tensor(values), excess)).argmin() == selected


# --- 3.3 multipliers


def constrained(y, beta, direction, tau):
    """min 1/2 E_beta (Q - y)^2 with E_beta[p Q] <= tau, by its solution Q = y - a p: the multiplier a and the loss."""
    excess, size = (beta * direction * y).sum() - tau, (beta * direction**2).sum()
    multiplier = max(0.0, excess / size)
    return multiplier, 0.5 * multiplier**2 * size


def test_3_6_multiplier():
    """Thm 3.6: the multiplier is -dTD/dtau = (gap_y - tau)_+ / chi^2(mu || beta), 0 of an inactive constraint."""
    rng = np.random.default_rng(10)
    for tau in (0.1, 0.5, 5.0):
        beta, y = random_policies(rng, 5), rng.normal(size=5)
        mu = np.eye(5)[y.argmax()]
        p = mu / beta - 1
        multiplier, loss = constrained(y, beta, p, tau)
        gap = sup(y, "max") - beta @ y
        np.testing.assert_allclose(multiplier, max(0.0, gap - tau) / chi_square(mu, beta))
        envelope = (constrained(y, beta, p, tau + 1e-5)[1] - constrained(y, beta, p, tau - 1e-5)[1]) / 2e-5
        np.testing.assert_allclose(multiplier, -envelope, atol=1e-8)
        q = y - multiplier * p  # feasible, and no feasible table near it is better
        assert (beta * p * q).sum() <= tau + 1e-12
        for other in q + 0.1 * rng.normal(size=(200, 5)):
            other = other - max(0.0, (beta * p * other).sum() - tau) / (beta * p**2).sum() * p
            assert 0.5 * (beta * (other - y) ** 2).sum() >= loss - 1e-12
        assert (multiplier == 0) == (gap <= tau)


def test_3_6_distribution_shift():
    """Thm 3.6: an active one falls with distribution shift: .3, .15, .039, .008 at beta(a*) = .5, .2, .05, .01."""
    for best, expected in ((0.5, 0.3), (0.2, 0.15), (0.05, 0.039474), (0.01, 0.007980)):
        beta = np.array([best, 1 - best])
        multiplier, _ = constrained(np.array([1.0, 0.0]), beta, np.array([1.0, 0.0]) / beta - 1, 0.2)
        np.testing.assert_allclose(multiplier, expected, atol=1e-6)


def test_3_6_joint_multiplier():
    """Thm 3.6: a joint multiplier is (chi^2/N) / ((1 + chi^2)^N - 1) of the cf one, 1/3905 at N = |A| = 5."""
    for n, expected in ((1, 1.0), (2, 1 / 12), (5, 1 / 3905)):
        ratio = 5 * np.arange(5) // 4 * (np.arange(5) == 4)  # mu_i / beta_i of the last action, uniform data
        ratios = np.stack(np.meshgrid(*[ratio] * n, indexing="ij"))  # (N, A, ..., A)
        data = np.full(ratios.shape[1:], 5.0**-n)
        joint, cf = ratios.prod(axis=0) - 1, ratios.mean(axis=0) - 1
        np.testing.assert_allclose((data * joint**2).sum(), 5.0**n - 1)
        np.testing.assert_allclose((data * cf**2).sum(), 4 / n)
        y = np.random.default_rng(n).normal(size=data.shape)
        multipliers = []
        for p in (joint, cf):
            tau = (data * p * y).sum() - 0.6  # both constraints exceeded by .6
            multipliers.append(constrained(y, data, p, tau)[0])
        np.testing.assert_allclose(multipliers[0] / multipliers[1], expected, rtol=1e-9)


def test_3_6_infeasible():
    """Thm 3.6: the lse gap is at least T H(beta), so a threshold of 0 is infeasible (2.303 of ten equal actions)."""
    beta = np.full(10, 0.1)
    np.testing.assert_allclose(entropy(beta), 2.302585, atol=1e-6)
    for q in np.random.default_rng(12).normal(size=(200, 10)):
        assert sup(q, "lse") - beta @ q >= 2.302585 - 1e-6
    np.testing.assert_allclose(sup(np.zeros(10), "lse") - beta @ np.zeros(10), 2.302585, atol=1e-6)


def test_3_7_hedge():
    """Thm 3.7: reciprocal multipliers, exponentiated ascent: Hedge, regret <= log 2/eta + eta T D^2/8; tau cancels."""
    rng = np.random.default_rng(13)
    eta, rounds, largest = 0.05, 400, 1.0
    gaps = rng.random((rounds, 2)) * [1.0, 0.8] + [0.0, 0.15]
    for threshold in (None, 0.4):
        multipliers, weights = torch.zeros(2, dtype=torch.float64), []
        for d in gaps:
            weights.append(lagrange_weights(multipliers).numpy())
            multipliers = lagrange_step(multipliers, tensor(d), eta, 1e9, threshold=threshold)
        losses = np.concatenate([np.zeros((1, 2)), gaps.cumsum(axis=0)[:-1]])
        hedge = np.exp(-eta * losses)
        np.testing.assert_allclose(weights, hedge / hedge.sum(axis=1, keepdims=True), atol=1e-10)
        regret_to_best = (np.array(weights) * gaps).sum() - gaps.sum(axis=0).min()
        assert regret_to_best <= math.log(2) / eta + eta * rounds * largest**2 / 8


def test_3_7_gradient_form_stalls():
    """Thm 3.7: from log a = -8, excess .5, eta .05 exponentiated ascent needs 320 steps, the plain gradient 119 203."""
    start, gap = tensor([-8.0, 0.0]), tensor([0.9, 0.9])
    step = {form: lagrange_step(start, gap, 0.05, 1e9, form, threshold=0.4)[0].item() for form in ("exp", "gradient")}
    np.testing.assert_allclose(step["exp"], -8 + 0.05 * 0.5)  # so 8 / .025 = 320 of them
    np.testing.assert_allclose(step["gradient"], -8 + 0.05 * 0.5 * math.exp(-8))
    log_a, steps = -8.0, 0
    while log_a < 0:
        log_a += 0.05 * math.exp(log_a) * 0.5
        steps += 1
    assert steps == 119_203


def test_3_7_saturation():
    """Thm 3.7: with an absolute threshold both multipliers end at one clip, w = 1/2; less the mean gap they do not."""
    relative = absolute = torch.zeros(2, dtype=torch.float64)
    for _ in range(2000):
        gaps = tensor([0.9, 1.0])
        relative = lagrange_step(relative, gaps, 0.05, 4.0)
        absolute = lagrange_step(absolute, gaps, 0.05, 4.0, threshold=0.2)
    assert absolute.tolist() == [4, 4]
    assert lagrange_weights(absolute).tolist() == [0.5, 0.5]
    np.testing.assert_allclose(lagrange_weights(relative), [1 / (1 + math.exp(-8)), 1 / (1 + math.exp(8))])


# --- 3.4 where the gate acts


def test_separate_losses_cannot_be_weighed():
    """Section 3.4: weights on the losses of separate utilities do nothing: optima stay, Adam cancels the factor."""
    trained = []
    for weight in (1.0, 0.01):
        q = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam([q], lr=0.01, eps=1e-12)
        for _ in range(2000):
            optimiser.zero_grad()
            (weight * ((q - tensor([1.0, -2.0, 0.5, 3.0])) ** 2).mean()).backward()
            optimiser.step()
        trained.append(q.detach().numpy().copy())
    np.testing.assert_allclose(trained[0], trained[1], atol=1e-6)
    np.testing.assert_allclose(trained[0], [1.0, -2.0, 0.5, 3.0], atol=1e-3)


def test_agents_must_not_disagree_on_the_head():
    """Section 3.4: payoff I_2: agents that follow different heads get 0 where either head alone gets 1."""
    payoff, greedy_i, greedy_c = np.eye(2), (0, 0), (1, 1)
    assert payoff[greedy_i] == payoff[greedy_c] == 1
    assert payoff[greedy_i[0], greedy_c[1]] == payoff[greedy_c[0], greedy_i[1]] == 0


def head_values(y, behaviours):
    """V_I, V_C and m of a table y (A, A) in the order of a fixed ranking: exact heads, as functions of the backup."""
    data = product(behaviours)
    v_i = np.mean([independent_values(y, data, i).max() for i in range(2)])
    sets = upper_sets(y.shape).reshape(-1, y.size)
    v_c = ((sets @ (data * y).ravel()) / (sets @ data.ravel())).max()  # the top of the monotone fit, Thm 2.9
    return v_i, v_c, (data * y).sum()


def live_value(y, behaviours):
    """V_gate with reciprocal weights of this very table, and S = w_I^2 + w_C^2."""
    v_i, v_c, mean = head_values(y, behaviours)
    weights = direct_weights([v_i - mean, v_c - mean])
    return weights @ [v_i, v_c], (weights**2).sum()


def test_3_8_contraction():
    """Prop 3.8: with a fixed ranking the gated backup contracts by gamma, with fixed weights and with the minimum."""
    rng = np.random.default_rng(14)
    gamma = 0.95
    for _ in range(40):
        transition, reward = random_problem(rng, 4, 2, 2)
        behaviours = random_policies(rng, 4, 2, 2)
        x, other = rng.normal(size=(2, 4)) * 3
        for how in ("soft", "min"):
            gated = []
            for value in (x, other):
                y = backup(reward.reshape(4, 4), transition.reshape(4, 4, 4), value, gamma).reshape(4, 2, 2)
                heads = [head_values(*pair)[:2] for pair in zip(y, behaviours, strict=True)]
                v_i, v_c = (tensor(v).view(1, 4, 1) for v in zip(*heads, strict=True))
                gated.append(gated_value(v_i, v_c, how, tensor([0.3, 0.7]), torch.zeros(2)))
            assert (gated[0] - gated[1]).abs().max() <= gamma * np.abs(x - other).max() + 1e-9


def test_3_8_isotonic_regression_does_not_expand():
    """Prop 3.8: a monotone fit with a fixed ranking is non-expansive in the largest error."""
    rng = np.random.default_rng(15)
    for _ in range(100):
        data = product([random_policies(rng, 3), random_policies(rng, 3)])
        x, y = rng.normal(size=(2, 3, 3))
        assert np.abs(isotonic(x, data) - isotonic(y, data)).max() <= np.abs(x - y).max() + 1e-9


def test_3_8_live_weights():
    """Prop 3.8 [R]: with live weights the modulus is only bounded by gamma (4S - 1), S = w_I^2 + w_C^2 in [1/2, 1]."""
    rng = np.random.default_rng(16)
    largest = 0.0
    for _ in range(400):
        y, behaviours = rng.normal(size=(2, 2)), random_policies(rng, 2, 2)
        value, squares = live_value(y, behaviours)
        assert 0.5 - 1e-9 <= squares <= 1 + 1e-9
        for change in 1e-6 * rng.choice([-1.0, 1.0], size=(8, 2, 2)):
            ratio = abs(live_value(y + change, behaviours)[0] - value) / 1e-6
            assert ratio <= 4 * squares - 1 + 1e-3
            largest = max(largest, ratio)
    assert largest > 1.05  # so it does expand: times gamma it is no contraction near gamma = 1


def test_3_8_several_fixed_points():
    """Prop 3.8 [R]: live weights can have several fixed points: (5.2273, 5.2273), (5.4915, 5.3307), its mirror."""

    def limit(start, how):
        value = np.array(start)
        for _ in range(1500):
            after = []
            for s in range(2):
                y = np.array([[1.0, 0.0], [0.0, 0.9]]) + 0.9 * value[s]
                y[1, 1] = 0.9 + 0.9 * value[1 - s]  # the joint action (1, 1) leads to the other state
                v_i = (y.mean(axis=1).max() + y.mean(axis=0).max()) / 2
                v_c, mean = y.max(), y.mean()  # of an unrestricted table
                weights = {"fixed": np.array([0.3, 0.7]), "min": np.array([1.0, 0.0])}  # V_I <= V_C
                w = direct_weights([v_i - mean, v_c - mean]) if how == "live" else weights[how]
                after.append(w @ [v_i, v_c])
            value = np.array(after)
        return value

    starts = ([0.0, 0.0], [0.001, 0.0], [0.0, 0.001])
    live = ([5.2273, 5.2273], [5.4915, 5.3307], [5.3307, 5.4915])
    for start, expected in zip(starts, live, strict=True):
        np.testing.assert_allclose(limit(start, "live"), expected, atol=1e-4)
        np.testing.assert_allclose(limit(start, "fixed"), [8.5, 8.5], atol=1e-6)
        np.testing.assert_allclose(limit(start, "min"), [5.0, 5.0], atol=1e-6)


def separable_problem(rng, n_states=3, n_actions=2):
    """Two agents with states and rewards of their own: transitions, rewards, and data of (s_i, a_i), each a pair."""
    own = [random_problem(rng, n_states, n_actions) for _ in range(2)]
    data = [rng.dirichlet(np.ones(n_states * n_actions)).reshape(n_states, n_actions) for _ in range(2)]
    return [p for p, _ in own], [r for _, r in own], data


def test_3_9_separable():
    """Thm 3.9: separable, independent data: I learns Q_i* + const, C learns sum Q_i*: every weight acts optimally."""
    gamma = 0.9
    for seed in range(15):
        P, r, data = separable_problem(np.random.default_rng(seed))
        best = [optimal_q(P[i], r[i], gamma) for i in range(2)]
        rows, team = np.multiply.outer(*data), r[0][:, :, None, None] + r[1]  # both (s_1, a_1, s_2, a_2)
        others = [(data[1 - i] * r[1 - i]).sum() for i in range(2)]  # E[the teammate's reward]
        utilities = []
        for i, axes in enumerate(((2, 3), (0, 1))):
            seen = (rows * team).sum(axis=axes) / rows.sum(axis=axes)  # E[r | s_i, a_i], what head I learns from
            np.testing.assert_allclose(seen, r[i] + others[i], atol=1e-9)
            utilities.append(optimal_q(P[i], seen, gamma))
            np.testing.assert_allclose(utilities[i], best[i] + others[i] / (1 - gamma), atol=1e-9)
        joint = best[0][:, :, None, None] + best[1]  # (s_1, a_1, s_2, a_2)
        v_next = np.einsum("iaj,kbl,jl->iakb", *P, joint.max(axis=(1, 3)))
        np.testing.assert_allclose(joint, team + gamma * v_next, atol=1e-9)  # the optimum
        # Shared utilities and the mixer f(q) = sum q - const minimise both losses at once.
        sums = utilities[0][:, :, None, None] + utilities[1]
        np.testing.assert_allclose(sums - sum(others) / (1 - gamma), joint, atol=1e-9)
        for w_i in (0.0, 0.3, 1.0):
            gated = w_i * sums / 2 + (1 - w_i) * (sums - sum(others) / (1 - gamma))
            for s_1, s_2 in np.ndindex(3, 3):
                greedy = np.unravel_index(gated[s_1, :, s_2].argmax(), (2, 2))
                assert greedy == (best[0][s_1].argmax(), best[1][s_2].argmax())


def test_3_9_correlated_data():
    """Thm 3.9 [R]: if the teammate earned 3 whenever agent 1 was in its bad state, head I goes there."""
    transition = np.zeros((2, 2, 2))
    transition[:, 0, 0] = transition[:, 1, 1] = 1  # action a leads to state a
    own = np.array([[1.0, 1.0], [0.0, 0.0]])
    seen = own + np.array([[0.0], [3.0]])  # E[team reward | s_1]
    assert optimal_q(transition, own, 0.9).argmax(axis=1).tolist() == [0, 0]
    assert optimal_q(transition, seen, 0.9).argmax(axis=1).tolist() == [1, 1]
