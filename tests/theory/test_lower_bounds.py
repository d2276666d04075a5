"""Section 2 of docs/theory.md: what the conservative penalty of each head bounds, and what a mixer does to it.

A tabular step of conservative Q-learning subtracts alpha (mu/beta - 1) from the backup; "penalty" means the bracket.
"""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from envs.greed_games import make_game
from envs.greed_games_solver import isotonic, product, qmix_fit, uniform, vdn_fit
from objectives.conservative import sup_value
from theory.reference import (
    Mixers,
    backup,
    chi_square,
    greedy_values,
    joint_actions,
    policy_value,
    project_on_cone,
    random_policies,
    random_problem,
    tensor,
    upper_sets,
)
from theory.training import train


def joint_penalty(pi, beta):
    """pi/beta - 1 of the joint action: pi, beta (N, S, A) -> (S, A^N), for two agents."""
    return np.einsum("sa,sb->sab", *(pi / beta)).reshape(pi.shape[1], -1) - 1


def counterfactual_penalty(pi, beta):
    """1/N sum_i (pi_i/beta_i - 1), likewise."""
    first, second = pi / beta - 1
    return ((first[:, :, None] + second[:, None, :]) / 2).reshape(pi.shape[1], -1)


def both(policies):
    """The product policy of two agents, (2, S, A) -> (S, A^2)."""
    return np.einsum("sa,sb->sab", *policies).reshape(policies.shape[1], -1)


def conservative_fixed_point(transition, reward, pi, penalty, gamma, alpha, sweeps=400):
    q = np.zeros_like(reward)
    for _ in range(sweeps):
        q = backup(reward, transition, (pi * q).sum(axis=1), gamma) - alpha * penalty
    return q


def random_team_problems(count, n_states=3, n_actions=2):
    """transition, reward (both over joint actions), pi and beta (2, S, A) of random problems of two agents."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        transition, reward = random_problem(rng, n_states, n_actions**2)
        pi, beta = random_policies(rng, 2, 2, n_states, n_actions)
        yield transition, reward, pi, beta


# --- tables over joint actions


def test_2_0_one_step():
    """Section 2.1: argmin_Q alpha (E_mu Q - E_beta Q) + 1/2 E_beta (Q - y)^2 is y - alpha (mu/beta - 1)."""
    rng = np.random.default_rng(0)
    for alpha in (0.1, 1.0, 5.0):
        mu, beta = random_policies(rng, 2, 6)
        y = rng.normal(size=6)
        q = tensor(y - alpha * (mu / beta - 1)).requires_grad_()
        mu, beta, y = tensor(mu), tensor(beta), tensor(y)
        loss = alpha * ((mu * q).sum() - (beta * q).sum()) + 0.5 * (beta * (q - y) ** 2).sum()
        assert torch.autograd.grad(loss, q)[0].abs().max() < 1e-12  # and the loss is convex


def check_closed_form(penalty, excess):
    """E_pi Qhat = V^pi - alpha (I - gamma P^pi)^-1 D <= V^pi, and E_beta[penalty] = 0; D (S,) of chi_i^2 (2, S)."""
    for transition, reward, pi, beta in random_team_problems(20):
        q = conservative_fixed_point(transition, reward, both(pi), penalty(pi, beta), 0.9, 0.1)
        value = (both(pi) * q).sum(axis=1)
        bound = policy_value(transition, reward, both(pi), 0.9)
        paid = np.broadcast_to(excess(chi_square(pi, beta))[:, None], reward.shape)
        np.testing.assert_allclose(value, bound - 0.1 * policy_value(transition, paid, both(pi), 0.9), atol=1e-10)
        assert (value <= bound + 1e-12).all()
        np.testing.assert_allclose((both(beta) * penalty(pi, beta)).sum(axis=1), 0, atol=1e-12)


def test_2_1_joint_penalty():
    """Thm 2.1: E_pi Qhat = V^pi - alpha (I - gamma P^pi)^-1 D with D = prod_i (1 + chi_i^2) - 1 >= 0, a lower bound."""
    check_closed_form(joint_penalty, lambda chi: (1 + chi).prod(axis=0) - 1)


def test_2_2_counterfactual_penalty():
    """Thm 2.2: one agent at a time, D is the mean of chi_i^2: a lower bound too. No penalty moves the data's mean."""
    check_closed_form(counterfactual_penalty, lambda chi: chi.mean(axis=0))


def test_2_1_and_2_2_numbers():
    """Thm 2.1, 2.2: two states, two agents: E_pi Qhat is 16.266, 15.378 (joint), 15.885 (cf) in the first state."""
    transition = np.zeros((2, 4, 2))
    transition[:, :3, 0] = transition[:, 3, 1] = 1  # the joint action (1, 1) leads to the second state
    reward = np.array([[0.0, 1.0, 1.0, 2.0], [1.0, 0.0, 0.0, 3.0]])
    pi = np.full((2, 2, 2), [0.25, 0.75])
    beta = np.stack([np.full((2, 2), 0.5), np.full((2, 2), [0.6, 0.4])])
    np.testing.assert_allclose(chi_square(pi, beta)[:, 0], [0.25, 0.510417], atol=1e-6)
    expected = {  # after one step in the second state; E_pi in both; the fixed point in the first state
        "none": ([1, 0, 0, 3], [16.265625, 16.515625], [14.639062, 15.639062, 15.639062, 16.864062]),
        "joint": (
            [1.079167, 0.006250, 0.037500, 2.818750],
            [15.377604, 15.627604],
            [13.919010, 14.846094, 14.877344, 15.883594],
        ),
        "cf": (
            [1.054167, -0.018750, 0.004167, 2.931250],
            [15.885417, 16.135417],
            [14.351042, 15.278125, 15.301042, 16.453125],
        ),
    }
    penalties = {
        "none": np.zeros((2, 4)),
        "joint": joint_penalty(pi, beta),
        "cf": counterfactual_penalty(pi, beta),
    }
    for name, penalty in penalties.items():
        one = conservative_fixed_point(transition, reward, both(pi), penalty, 0.9, 0.1, sweeps=1)
        q = conservative_fixed_point(transition, reward, both(pi), penalty, 0.9, 0.1)
        for actual, wanted in zip((one[1], (both(pi) * q).sum(axis=1), q[0]), expected[name], strict=True):
            np.testing.assert_allclose(actual, wanted, atol=1e-6)


def test_2_2_growth():
    """Thm 2.2: with N agents D is prod(1 + chi^2) - 1 of a joint penalty, N chi^2 of a sum, chi^2 of the mean."""
    uniform_data = chi_square([1.0, 0, 0, 0, 0], np.full(5, 0.2))
    own_data = chi_square([1.0, 0, 0, 0, 0], [0.92, 0.02, 0.02, 0.02, 0.02])  # epsilon-greedy, epsilon .1
    expected = {
        2: (24, 8, 0.181474, 0.173913),
        5: (3124, 20, 0.517263, 0.434783),
        8: (390624, 32, 0.948486, 0.695652),
    }
    np.testing.assert_allclose([uniform_data, own_data], [4, 0.086957], atol=1e-6)  # the counterfactual mean
    for n, numbers in expected.items():
        actual = [x for chi in (uniform_data, own_data) for x in ((1 + chi) ** n - 1, n * chi)]
        np.testing.assert_allclose(actual, numbers, rtol=1e-5)


def test_2_3_soft_penalty():
    """Prop 2.3: on its own data a soft penalty raises the greedy action: by .885 alpha (10 actions, T = 1, gap .1)."""
    beta = torch.full((10,), 0.005, dtype=torch.float64)
    beta[0] = 0.955

    def shift(gap, temperature, op="lse"):
        """By how much alpha = 1 moves the greedy action: -(mu - beta)/beta, the penalty's gradient over beta."""
        q = torch.zeros(10, dtype=torch.float64)
        q[0] = gap
        q.requires_grad_()
        (sup_value(q, torch.ones(10), op, temperature) - (beta * q).sum()).backward()
        return -(q.grad[0] / beta[0]).item()

    np.testing.assert_allclose(shift(0.1, 1.0), 0.885479, atol=1e-6)
    threshold = np.log(0.955 * 9 / 0.045)
    np.testing.assert_allclose(threshold, 5.252273, atol=1e-6)
    assert shift(threshold - 0.01, 1.0) > 0 > shift(threshold + 0.01, 1.0)
    assert shift(0.1, 0.1 / threshold * 1.01) > 0 > shift(0.1, 0.1 / threshold * 0.99)
    np.testing.assert_allclose(shift(0.1, 1.0, "max"), -(1 / 0.955 - 1), atol=1e-12)  # a hard one lowers it


# --- what the independent head bounds


def test_2_4_independent_head():
    """Thm 2.4: with product data agent i's head is a lower bound of V^(pi_i, beta_-i): the others play the data."""
    for transition, reward, pi, beta in random_team_problems(20):
        P, r = transition.reshape(3, 2, 2, 3), reward.reshape(3, 2, 2)
        own_transition, own_reward = np.einsum("sb,sabt->sat", beta[1], P), np.einsum("sb,sab->sa", beta[1], r)
        q = conservative_fixed_point(own_transition, own_reward, pi[0], pi[0] / beta[0] - 1, 0.9, 0.1)
        bound = policy_value(transition, reward, both(np.stack([pi[0], beta[1]])), 0.9)
        assert ((pi[0] * q).sum(axis=1) <= bound + 1e-10).all()
        chi = np.broadcast_to(chi_square(pi[0], beta[0])[:, None], own_reward.shape)
        paid = 0.1 * policy_value(own_transition, chi, pi[0], 0.9)
        np.testing.assert_allclose((pi[0] * q).sum(axis=1), bound - paid, atol=1e-10)


def test_2_4_not_the_teams_value():
    """Thm 2.4 [R]: it is no bound of V^pi: r = [[1, 0], [0, 0]], beta_2 = (.9, .1), pi = (0, 1): .8 > J(pi) = 0."""
    r, beta_1, beta_2 = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([0.5, 0.5]), np.array([0.9, 0.1])
    pi_1 = np.array([1.0, 0.0])
    q = r @ beta_2 - 0.1 * (pi_1 / beta_1 - 1)
    np.testing.assert_allclose(pi_1 @ q, 0.8)
    assert r[0, 1] == 0.0


def test_2_4_min_and_mean_of_bounds():
    """Section 2.2: the min of two lower bounds bounds both targets, a mean of them only the mean of the targets."""
    rng = np.random.default_rng(4)
    targets = rng.normal(size=(1000, 2))
    bounds = targets - rng.random((1000, 2))
    assert (bounds.min(axis=1, keepdims=True) <= targets).all()
    assert (bounds.mean(axis=1) <= targets.mean(axis=1)).all()
    assert (bounds.mean(axis=1) > targets.min(axis=1)).any()


# --- from the agents to the mixer


def test_2_5_transfer():
    """Thm 2.5: Qhat_i(a_i) <= Q_i(a_i) for all i gives 0 <= f(Q) - f(Qhat) <= sum_i L_i (Q_i - Qhat_i) for one f."""
    rng = np.random.default_rng(5)
    mixers = Mixers(500, 3, seed=5)
    q, drop = rng.normal(size=(500, 8, 3)), rng.random((500, 8, 3))
    loss = mixers(q) - mixers(q - drop)
    assert (loss >= -1e-12).all()
    assert (loss <= (mixers.largest_slopes()[:, None] * drop).sum(axis=-1) + 1e-9).all()


def test_2_6_gain_escape():
    """Thm 2.6 [R]: an agent-level penalty is vacuous if the gain k is free: it falls to 0 and Q_tot = k q goes to r."""
    r, beta, alpha = np.array([1.0, 0.0]), np.array([0.2, 0.8]), 0.5

    def optimum(c):
        """min_Q 1/2 E_beta (Q - r)^2 + c (max Q - E_beta Q), Q = k q, c = alpha / k: the order kept, or a constant."""
        q = r - c * (np.array([1.0, 0.0]) / beta - 1)
        q = q if q[0] >= q[1] else np.full(2, beta @ r)
        return 0.5 * (beta * (q - r) ** 2).sum() + c * (q.max() - beta @ q), q

    grid = np.stack(np.meshgrid(np.linspace(-0.5, 1.5, 401), np.linspace(-0.5, 1.5, 401)), axis=-1)  # of Q
    expected = {1: 0.08, 5: 0.06, 20: 0.01875, 100: 0.00395, 1000: 0.00039950}
    for gain, value in expected.items():
        best, q = optimum(alpha / gain)
        np.testing.assert_allclose(best, value, atol=1e-8)
        gap = sup_value(tensor(grid), torch.ones(grid.shape), "max").numpy() - grid @ beta
        on_grid = 0.5 * ((grid - r) ** 2 @ beta) + alpha / gain * gap
        assert best - 1e-9 <= on_grid.min() <= best + 1e-4  # nothing is better
    np.testing.assert_allclose(q, r, atol=3e-3)  # at the largest gain


def test_2_6_fixed_policy():
    """Thm 2.6 [R]: with a fixed mu it is unbounded below as k -> 0: -.1, -1.2, -46, -4960 at k = 1, .5, .1, .01."""
    r, beta, mu, alpha = np.array([1.0, 0.0]), np.array([0.2, 0.8]), np.array([1.0, 0.0]), 0.5
    for gain, value in {1: -0.1, 0.5: -1.2, 0.1: -46.0, 0.01: -4960.0}.items():
        c = alpha / gain
        q = r - c * (mu / beta - 1)
        best = 0.5 * (beta * (q - r) ** 2).sum() + c * (mu - beta) @ q
        np.testing.assert_allclose(best, value, rtol=1e-9)
        np.testing.assert_allclose(best, c * (mu - beta) @ r - c**2 / 2 * chi_square(mu, beta), rtol=1e-9)


def test_2_7_expectations():
    """Thm 2.7 [R]: a bound in expectation does not pass a convex mixer: E[-Delta] = -.889, E ELU(-5 Delta) = +.056."""
    pi, beta = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    delta = 0.5 * (pi / beta - 1)
    np.testing.assert_allclose(pi @ -delta, -0.888889, atol=1e-6)
    np.testing.assert_allclose(pi @ F.elu(tensor(-5 * delta)).numpy(), 0.055578, atol=1e-6)
    assert F.elu(torch.zeros(())).item() == 0.0


def test_2_8_convex():
    """Prop 2.8: QMIX's mixer is convex in the utilities."""
    rng = np.random.default_rng(8)
    mixers = Mixers(500, 3, seed=8)
    x, y = 3 * rng.normal(size=(2, 500, 10, 3))
    assert (mixers((x + y) / 2) <= (mixers(x) + mixers(y)) / 2 + 1e-9).all()


def test_2_8_supermodular():
    """Prop 2.8: it is supermodular: f(q + d_i + d_j) + f(q) >= f(q + d_i) + f(q + d_j): increasing returns alone."""
    rng = np.random.default_rng(9)
    mixers = Mixers(500, 3, seed=9)
    q, d = 2 * rng.normal(size=(500, 40, 3)), 3 * rng.random((500, 40, 3))
    for i, j in itertools.combinations(range(3), 2):
        one, other = d * np.eye(3)[i], d * np.eye(3)[j]
        assert (mixers(q + one + other) + mixers(q) >= mixers(q + one) + mixers(q + other) - 1e-9).all()


def increasing_return_conditions(n_agents, ranks):
    """Rows C of C f >= 0 for f on {0, 1}^N: monotone and supermodular, where agent i ranks action ranks[i] highest."""
    cells = joint_actions(n_agents, 2)
    number = {tuple(cell): index for index, cell in enumerate(cells)}

    def at(cell, changes):
        """The row of f at the cell where some agents play their better (1) or worse (0) action."""
        changed = list(cell)
        for agent, better in changes.items():
            changed[agent] = ranks[agent] if better else 1 - ranks[agent]
        return np.eye(len(cells))[number[tuple(changed)]]

    rows = []
    for cell in cells:
        for i in range(n_agents):
            rows.append(at(cell, {i: 1}) - at(cell, {i: 0}))
        for i, j in itertools.combinations(range(n_agents), 2):
            same = at(cell, {i: 1, j: 1}) + at(cell, {i: 0, j: 0})
            rows.append(same - at(cell, {i: 1, j: 0}) - at(cell, {i: 0, j: 1}))
    return np.unique(rows, axis=0)


def test_2_8_substitutes():
    """Prop 2.8: QMIX's best fit of REDUNDANT (kappa = 1: OR) is additive: top value 1 + kappa (N - 1) 2^-N, true 1."""
    for n, kappa in itertools.product((2, 3, 4), (0.25, 1.0)):
        payoffs = make_game("redundant", kappa, n).payoffs
        target = payoffs[0].ravel()
        additive = vdn_fit(payoffs, uniform((2,) * n)[None]).joint[0].ravel()
        np.testing.assert_allclose(additive[-1], 1 + kappa * (n - 1) / 2**n, atol=1e-9)
        losses = {}
        for reversed_agents in range(n + 1):  # by symmetry their number is all that matters of a ranking
            ranks = [0] * reversed_agents + [1] * (n - reversed_agents)
            conditions = increasing_return_conditions(n, ranks)
            fit = project_on_cone(target, conditions)
            assert (conditions @ fit >= -1e-9).all()
            loss = ((fit - target) ** 2).mean()
            losses[reversed_agents] = loss
            if kappa == 1.0:
                np.testing.assert_allclose(loss, 2.0**-n - (n + 1 - reversed_agents) * 4.0**-n, atol=1e-9)
            if reversed_agents == 0:
                np.testing.assert_allclose(fit, additive, atol=1e-8)
        assert min(losses, key=losses.__getitem__) == 0
    or_game = make_game("redundant", 1.0, 2).payoffs
    fit = vdn_fit(or_game, uniform((2, 2))[None]).joint[0]
    np.testing.assert_allclose(fit, [[0.25, 0.75], [0.75, 1.25]], atol=1e-9)
    np.testing.assert_allclose(((fit - or_game[0]) ** 2).mean(), 1 / 16, atol=1e-12)


@pytest.mark.slow
def test_2_8_trained():
    """Prop 2.8: trained QMIX ends there: OR has loss 1/16 and top value 1.25 from every seed; AND is fitted exactly."""
    fit = qmix_fit(make_game("redundant", 1.0, 2).payoffs, uniform((2, 2))[None], seeds=range(12))
    np.testing.assert_allclose(greedy_values(fit), 1.25, atol=0.01)
    np.testing.assert_allclose(fit.loss, 1 / 16, atol=1e-3)
    fit = qmix_fit(make_game("bridge", 1.0, 2).payoffs, uniform((2, 2))[None], seeds=range(12))
    np.testing.assert_allclose(greedy_values(fit), 1.0, atol=0.02)


@pytest.mark.slow
def test_2_8_concave_units():
    """Prop 2.8: with half of the hidden units concave (qmix_concave) OR and AND of 2 and 3 agents are fitted."""
    signs = [1.0] * 4 + [-1.0] * 4
    for n, name in itertools.product((2, 3), ("redundant", "bridge")):
        payoffs = make_game(name, 1.0, n).payoffs.repeat(8, axis=0)
        trained = train(payoffs, np.broadcast_to(uniform((2,) * n), payoffs.shape).copy(), gate=0.0, signs=signs)
        assert (trained.greedy == 1).all()
        np.testing.assert_allclose(trained.value_c, 1.0, atol=0.03)


# --- at the mixer


def ranked_games(count, seed, shapes=((3, 3), (2, 2, 2))):
    """Random payoffs and data; the actions are in the order of a fixed ranking, so that the last ones are the top."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        shape = shapes[index % len(shapes)]
        yield rng.normal(size=shape), product([random_policies(rng, size) for size in shape])


def top_of(shape):
    return tuple(size - 1 for size in shape)


def set_means(payoff, beta):
    """E_beta[y | U] and beta(U) of all upper sets U; each but the empty one holds the top."""
    sets = upper_sets(payoff.shape).reshape(-1, payoff.size)
    mass = sets @ beta.ravel()
    return (sets @ (beta * payoff).ravel()) / mass, mass


def test_2_9_projection_is_optimistic():
    """Thm 2.9: a monotone fit keeps the data's mean and has Q_tot(top) >= y(top), for every ranking."""
    strict = 0
    for payoff, beta in ranked_games(300, seed=29):
        fit = isotonic(payoff, beta)
        top = top_of(payoff.shape)
        np.testing.assert_allclose((beta * fit).sum(), (beta * payoff).sum(), atol=1e-9)
        assert fit[top] >= payoff[top] - 1e-9
        strict += fit[top] > payoff[top] + 1e-6
    assert strict > 100


def test_2_9_value_of_the_top():
    """Thm 2.9: of all monotone functions, Q_tot(top) = max over upper sets U of E_beta[y | U]."""
    for payoff, beta in ranked_games(100, seed=30):
        np.testing.assert_allclose(
            isotonic(payoff, beta)[top_of(payoff.shape)], set_means(payoff, beta)[0].max(), atol=1e-8
        )


@pytest.mark.slow
def test_2_9_local_optima():
    """Thm 2.9 [E]: not at every local optimum of training: of STAG .6 QMIX learns hare with V = .85, true 1."""
    game = make_game("stag", 0.6)
    fit = qmix_fit(game.payoffs, uniform(game.action_counts)[None], seeds=range(12))
    assert (fit.greedy == 1).all()
    assert game.mean_payoff[1, 1] == 1.0
    np.testing.assert_allclose(greedy_values(fit), 0.847, atol=0.04)


def penalised(payoff, beta, alpha):
    """The monotone fit with the joint penalty of mu = 1_top."""
    mu = np.zeros(payoff.shape)
    mu[top_of(payoff.shape)] = 1
    return isotonic(payoff - alpha * (mu / beta - 1), beta)


def smallest_alpha(payoff, beta):
    means, mass = set_means(payoff, beta)
    proper = mass < 1 - 1e-12
    return max(0.0, ((means - payoff[top_of(payoff.shape)])[proper] / (1 / mass[proper] - 1)).max())


def test_2_10_repair():
    """Thm 2.10: a joint penalty gives Q_tot(top) <= y(top) iff E_beta y <= y(top) and alpha >= alpha_min: tight."""
    repaired = hopeless = 0
    for payoff, beta in ranked_games(200, seed=31, shapes=((2, 2), (3, 3))):
        top, mean = payoff[top_of(payoff.shape)], (beta * payoff).sum()
        means, mass = set_means(payoff, beta)
        for alpha in (0.0, 0.3, 2.0):
            value = (means - alpha * (1 / mass - 1)).max()
            np.testing.assert_allclose(penalised(payoff, beta, alpha).flat[-1], value, atol=1e-7)
        if mean <= top:
            alpha = smallest_alpha(payoff, beta)
            assert penalised(payoff, beta, 1.0001 * alpha + 1e-6).flat[-1] <= top + 1e-6
            if alpha > 1e-3:
                repaired += 1
                assert penalised(payoff, beta, 0.98 * alpha).flat[-1] > top + 1e-9
        else:
            hopeless += 1
            np.testing.assert_allclose(penalised(payoff, beta, 1e4).flat[-1], mean, atol=1e-3)
    assert repaired > 20
    assert hopeless > 20


def test_2_10_numbers():
    """Thm 2.10: y = [[-2, 1], [1, .5]], uniform: .833 at the top, alpha_min = 1; of [[0, 1], [1, .5]] no alpha does."""
    y, beta = np.array([[-2.0, 1.0], [1.0, 0.5]]), np.full((2, 2), 0.25)
    np.testing.assert_allclose(isotonic(y, beta), [[-2, 5 / 6], [5 / 6, 5 / 6]], atol=1e-9)
    np.testing.assert_allclose(smallest_alpha(y, beta), 1.0)
    values = {0: 0.833333, 0.5: 0.666667, 0.9: 0.533333, 1.0: 0.5, 1.1: 0.466667, 2.0: 0.166667}
    for alpha, value in values.items():
        np.testing.assert_allclose(penalised(y, beta, alpha)[1, 1], value, atol=1e-6)
    y = np.array([[0.0, 1.0], [1.0, 0.5]])
    np.testing.assert_allclose(penalised(y, beta, 1000.0), np.full((2, 2), 0.625), atol=1e-6)


def test_2_11_utilities_are_free():
    """Prop 2.11: conservatism of Q_tot says nothing on utilities: 100 more of each, other biases: the same Q_tot."""
    mixers = Mixers(50, 3, seed=11)
    q = np.random.default_rng(11).normal(size=(50, 8, 3))
    before = mixers(q)
    per_agent = torch.eye(3, dtype=torch.float64)
    w1 = mixers.net.hyper_w_1(mixers.states).abs().view(50, 3, -1)
    shift = torch.einsum("in,rne->re", per_agent, w1) * 100  # what 100 more of every utility adds to the hidden units
    plain = mixers.net.hyper_b_1
    mixers.net.hyper_b_1 = _Shifted(plain, shift)
    np.testing.assert_allclose(mixers(q + 100), before, atol=1e-9)


class _Shifted(torch.nn.Module):
    """A hypernetwork of biases, less a constant for each row."""

    def __init__(self, inner, shift):
        super().__init__()
        self.inner, self.shift = inner, shift

    def forward(self, states):
        return self.inner(states) - self.shift[:, None]


def test_2_12_spread_of_greedy_values():
    """Prop 2.12 [R]: max_i V_i - min_i V_i is 0 for any error if observations are equal; else not 0 of exact values."""
    q = np.array([[1.0, 5.0], [0.0, 2.0]])  # of two observations
    for error in (0.0, 3.0, 1000.0):
        wrong = q + error * np.array([0.3, 1.0])
        same = wrong[[0, 0]].max(axis=1)
        assert same.max() - same.min() == 0.0
    exact = q.max(axis=1)
    assert exact.max() - exact.min() == 3.0
