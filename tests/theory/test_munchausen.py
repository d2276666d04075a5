"""Section 5 of docs/theory.md: the Munchausen term with the policy of the other head.

rho is the policy of the alternative, alpha the weight, tau the temperature; h = I, C are the two heads.
"""

import itertools

import numpy as np
import torch

from objectives.munchausen import neighbour_confidence, opinion_pool
from theory.reference import (
    Mixers,
    backup,
    bonus,
    entropy,
    joint_actions,
    kl,
    log_policy,
    optimal_q,
    policy,
    policy_value,
    random_policies,
    random_problem,
    soft_value,
    sup,
    tensor,
    values_of,
)

GAMMA = 0.9


def fixed_alternative(seed, alpha=0.6, tau=0.3):
    """A random problem (transition, reward), an alternative rho, and the fixed point Q of the soft backup."""
    rng = np.random.default_rng(seed)
    transition, reward = random_problem(rng, 5, 4)
    rho = random_policies(rng, 5, 4)
    return transition, reward, rho, optimal_q(transition, reward + alpha * bonus(np.log(rho), tau), GAMMA, tau)


def regularised_optimum(transition, reward, rho, alpha, tau):
    """max_pi E[sum r - alpha tau KL(pi || rho) + (1 - alpha) tau H(pi)] by policy iteration: V and pi."""
    pi = np.full(reward.shape, 1 / reward.shape[1])
    for _ in range(100):
        paid = reward - (alpha * tau * kl(pi, rho) - (1 - alpha) * tau * entropy(pi))[:, None]
        value = policy_value(transition, paid, pi, GAMMA)
        pi = rho**alpha * np.exp(backup(reward, transition, value, GAMMA) / tau)
        pi /= pi.sum(axis=1, keepdims=True)
    return value, pi


def test_5_1_fixed_alternative():
    """Thm 5.1: with fixed rho the optimum is that of r - alpha tau KL(pi||rho) + (1 - alpha) tau H(pi)."""
    for seed, alpha, tau in itertools.product(range(3), (0.3, 0.9), (0.1, 1.0)):
        transition, reward, rho, q = fixed_alternative(seed, alpha, tau)
        value, pi = regularised_optimum(transition, reward, rho, alpha, tau)
        np.testing.assert_allclose(soft_value(q, tau), value, atol=1e-9)
        np.testing.assert_allclose(policy(q, tau), pi, atol=1e-9)


def test_5_1_bounds():
    """Thm 5.1: V_reg - V* is in [alpha tau min log rho(a*), (1 - alpha) tau log|A|]/(1 - gamma); pi loses less."""
    alpha, tau = 0.6, 0.3
    for seed in range(10):
        transition, reward, rho, q = fixed_alternative(seed, alpha, tau)
        best = optimal_q(transition, reward, GAMMA)
        star = best.argmax(axis=1)
        low = alpha * tau * -np.log(rho[np.arange(5), star]).min() / (1 - GAMMA)
        high = (1 - alpha) * tau * np.log(4) / (1 - GAMMA)
        difference = soft_value(q, tau) - best.max(axis=1)
        assert (-low - 1e-9 <= difference).all()
        assert (difference <= high + 1e-9).all()
        lost = best.max(axis=1) - policy_value(transition, reward, policy(q, tau), GAMMA)
        assert (lost <= low + high + 1e-9).all()


def test_5_1_the_optimum_moves():
    """Thm 5.1: it is not policy-invariant: r = (1, 0), rho = (.001, .999), alpha tau = .18 prefer the second action."""
    reward, rho = np.array([1.0, 0.0]), np.array([0.001, 0.999])
    assert (reward + 0.6 * bonus(np.log(rho), 0.3)).argmax() == 1
    assert policy(reward + 0.6 * bonus(np.log(rho), 0.3), 0.3)[1] > 0.6


def test_5_1_itself_as_alternative():
    """Thm 5.1: with its own last iterate as rho the KL vanishes, and only (1 - alpha) tau of entropy remains."""
    alpha, tau = 0.6, 0.3
    transition, reward, _, _ = fixed_alternative(0)
    q = np.zeros_like(reward)
    for _ in range(800):
        q = backup(reward + alpha * bonus(log_policy(q, tau), tau), transition, soft_value(q, tau), GAMMA)
    plain = optimal_q(transition, reward, GAMMA, (1 - alpha) * tau)
    np.testing.assert_allclose(policy(q, tau), policy(plain, (1 - alpha) * tau), atol=1e-9)


def test_5_2_contraction():
    """Prop 5.2: with fixed rho, clipped or not, the operator is a gamma-contraction."""
    rng = np.random.default_rng(2)
    transition, reward, rho, _ = fixed_alternative(2)
    for l0, tau in itertools.product((-np.inf, -0.5), (None, 0.3)):
        paid = reward + 0.6 * bonus(np.log(rho), 0.3, l0)
        for x, y in rng.normal(size=(50, 2, 5, 4)) * 5:
            values = [q.max(axis=1) if tau is None else soft_value(q, tau) for q in (x, y)]
            first, second = (backup(paid, transition, value, GAMMA) for value in values)
            assert np.abs(first - second).max() <= GAMMA * np.abs(x - y).max() + 1e-9


def test_5_2_clip():
    """Prop 5.2: clipped at l0, the value shifts by at most alpha |l0| / (1 - gamma): 90 of M-DQN's .9, -1, .99."""
    alpha, tau, l0 = 0.6, 0.3, -1.0
    transition, reward, rho, _ = fixed_alternative(3)
    rho[:, 0] = 1e-12
    rho /= rho.sum(axis=1, keepdims=True)
    plain, free, clipped = (
        soft_value(optimal_q(transition, reward + alpha * extra, GAMMA, tau), tau)
        for extra in (0.0, bonus(np.log(rho), tau), bonus(np.log(rho), tau, l0))
    )
    assert (-alpha * abs(l0) / (1 - GAMMA) <= clipped - plain).all()
    assert (clipped <= plain).all()
    most = alpha * (tau * -np.log(rho.min()) + l0) / (1 - GAMMA)
    assert (clipped - free >= -1e-9).all()
    assert (clipped - free <= most).all()
    np.testing.assert_allclose(0.9 * 1 / (1 - 0.99), 90)
    # that clip acts only below pi = exp(-1 / .03)
    np.testing.assert_allclose(np.exp(-1 / 0.03), 3.338e-15, rtol=1e-3)
    assert bonus(np.log(3.4e-15), 0.03, -1.0) > -1.0 == bonus(np.log(3.3e-15), 0.03, -1.0)
    # the two conventions differ by the factor 1 / tau in l0
    logs = -np.random.default_rng(0).exponential(size=100) * 30
    np.testing.assert_allclose(bonus(logs, tau, -1.0), bonus(logs, tau, -1.0 / tau, "unscaled"))


def test_5_2_clipping_is_a_floor_under_rho():
    """Prop 5.2: the clipped term is that of max(rho, e^(l0/tau)), which sums to more than 1."""
    rho, tau, l0 = np.array([0.9, 0.0999, 0.0001]), 0.3, -1.0
    floored = np.maximum(rho, np.exp(l0 / tau))
    np.testing.assert_allclose(bonus(np.log(rho), tau, l0), tau * np.log(floored))
    assert floored.sum() > 1


def test_5_3_hard_bootstrap():
    """Prop 5.3: with the hard value it is that of r - alpha tau CE(pi, rho): deterministic, no credit for entropy."""
    alpha, tau = 0.6, 0.3
    for seed in range(5):
        transition, reward, rho, _ = fixed_alternative(seed)
        paid = reward + alpha * bonus(np.log(rho), tau)
        q = optimal_q(transition, paid, GAMMA)
        greedy = np.eye(4)[q.argmax(axis=1)]
        cross_entropy = entropy(greedy) + kl(greedy, rho)
        np.testing.assert_allclose((greedy * (paid - reward)).sum(axis=1), -alpha * tau * cross_entropy)
        np.testing.assert_allclose(q.max(axis=1), policy_value(transition, paid, greedy, GAMMA), atol=1e-9)
        for other in random_policies(np.random.default_rng(seed), 50, 5, 4):
            assert (policy_value(transition, paid, other, GAMMA) <= q.max(axis=1) + 1e-9).all()


# --- both heads move


def paired_backup(heads, problems, alpha, tau, tau_alternative):
    """One synchronous step of both heads: each with the other's last policy as rho."""
    (q_i, q_c), after = heads, []
    for own, other, (transition, reward) in ((q_i, q_c, problems[0]), (q_c, q_i, problems[1])):
        extra = alpha * bonus(log_policy(other, tau_alternative), tau)
        after.append(backup(reward + extra, transition, soft_value(own, tau), GAMMA))
    return after


def test_5_4_modulus_of_the_pair():
    """Section 5: the pair's sup-norm modulus is at most gamma + 2 alpha tau / tau_alt: a contraction below 1."""
    rng = np.random.default_rng(4)
    problems = [random_problem(rng, 4, 3) for _ in range(2)]
    largest = 0.0
    for alpha, tau, tau_alternative in ((0.5, 0.1, 0.1), (0.5, 0.1, 4.0), (0.9, 1.0, 1.0)):
        bound = GAMMA + 2 * alpha * tau / tau_alternative
        for x in rng.normal(size=(30, 2, 4, 3)):
            y = x + 1e-3 * rng.choice([-1.0, 1.0], size=x.shape)
            first, second = (paired_backup(q, problems, alpha, tau, tau_alternative) for q in (x, y))
            modulus = np.abs(np.subtract(first, second)).max() / np.abs(x - y).max()
            assert modulus <= bound + 1e-6
            largest = max(largest, modulus)
        assert (bound < 1) == (tau_alternative == 4.0)
    assert largest > 1


def test_5_4_same_kernel():
    """Thm 5.4: with one kernel the pair converges; pi_I is that of (r_I + alpha r_C)/(1 + alpha), (1 - alpha) tau."""
    alpha, tau = 0.8, 0.1
    for seed in range(6):
        rng = np.random.default_rng(seed)
        transition, reward_i = random_problem(rng, 4, 3)
        reward_c = rng.normal(size=(4, 3))
        heads = list(rng.normal(size=(2, 4, 3)) * 5)
        for _ in range(400):
            heads = paired_backup(heads, [(transition, reward_i), (transition, reward_c)], alpha, tau, tau)
        for head, (own, other) in zip(heads, ((reward_i, reward_c), (reward_c, reward_i)), strict=True):
            cold = (1 - alpha) * tau
            limit = optimal_q(transition, (own + alpha * other) / (1 + alpha), GAMMA, cold)
            np.testing.assert_allclose(policy(head, tau), policy(limit, cold), atol=1e-8)


def test_5_4_same_kernel_and_reward():
    """Thm 5.4: with one reward too this is self-Munchausen: entropy (1 - alpha) tau and no KL."""
    alpha, tau = 0.8, 0.1
    rng = np.random.default_rng(7)
    problem = random_problem(rng, 4, 3)
    heads = list(rng.normal(size=(2, 4, 3)))
    for _ in range(400):
        heads = paired_backup(heads, [problem, problem], alpha, tau, tau)
    plain = optimal_q(*problem, GAMMA, (1 - alpha) * tau)
    for head in heads:
        np.testing.assert_allclose(policy(head, tau), policy(plain, (1 - alpha) * tau), atol=1e-8)


# Deterministic moves (S, A) and rewards of two heads, with two states and actions, that chase each other.
CYCLE_MOVES = (np.array([[1, 1], [1, 0]]), np.array([[0, 0], [0, 0]]))
CYCLE_REWARDS = (np.array([[-2.0, 2.0], [1.0, 2.0]]), np.array([[0.0, 1.0], [2.0, 1.0]]))
CYCLE = (  # the two points that alternate, at alpha = gamma = .9 with the hard maximum: Q_I and Q_C
    ([[-6.689, 19.1], [14.737, 20.0]], [[-14.211, 10.0], [11.0, 6.637]]),
    ([[-5.789, 20.0], [19.0, 15.263]], [[-14.211, 10.0], [6.263, 10.0]]),
)


def hard_advantage(q, l0=-np.inf):
    """tau log softmax(Q/tau) as tau -> 0: Q - max Q, clipped."""
    return np.maximum(q - q.max(axis=-1, keepdims=True), l0)


def run_cycle(rate=1.0, l0=-np.inf, sweeps=2500):
    """The last two iterates of (Q_I, Q_C) from 0; the alternative follows at `rate`."""
    heads, slow = [np.zeros((2, 2))] * 2, [np.zeros((2, 2))] * 2
    for _ in range(sweeps):
        before = heads
        slow = [s + rate * (hard_advantage(q, l0) - s) for s, q in zip(slow, heads, strict=True)]
        heads = [
            r + 0.9 * other + 0.9 * q.max(axis=1)[moves]
            for r, other, q, moves in zip(CYCLE_REWARDS, slow[::-1], heads, CYCLE_MOVES, strict=True)
        ]
    return before, heads


def test_5_5_cycle():
    """5.5 [R]: with different kernels the pair can cycle: two states at alpha = gamma = .9 alternate."""
    np.testing.assert_allclose(run_cycle(), CYCLE, atol=1e-3)


def test_5_5_what_stops_it():
    """5.5: that cycle stops if the alternative follows at a rate of .5 or .1, and with the clip at -.3."""
    for options in ({"rate": 0.5}, {"rate": 0.1}, {"l0": -0.3}):
        before, after = run_cycle(**options)
        np.testing.assert_allclose(before, after, atol=1e-6)


def test_5_5_soft_cycle():
    """5.5 [R]: at a small temperature too: with tau = .01 and the project's soft values the same pair alternates."""
    problems = [(np.eye(2)[moves], reward) for moves, reward in zip(CYCLE_MOVES, CYCLE_REWARDS, strict=True)]
    history = [[np.zeros((2, 2))] * 2]
    for _ in range(800):
        history.append(paired_backup(history[-1], problems, 0.9, 0.01, 0.01))
    np.testing.assert_allclose(history[-1], history[-3], atol=1e-6)
    assert np.abs(np.subtract(history[-1], history[-2])).max() > 1


def frozen_radius(rng, same_kernel, alpha=0.9, gamma=0.95, n_states=3, n_actions=2):
    """Spectral radius of the pair's linearised backup with both policies held fixed."""
    size = n_states * n_actions
    kernels = rng.dirichlet(np.full(n_states, 0.3), size=(2, n_states, n_actions))
    policies = rng.dirichlet(np.ones(n_actions), size=(2, n_states))
    if same_kernel:
        kernels[1] = kernels[0]
    moves = [
        gamma * np.einsum("sat,tb->satb", P, pi).reshape(size, size) for P, pi in zip(kernels, policies, strict=True)
    ]
    means = [
        np.einsum("st,tb->stb", np.eye(n_states), pi).repeat(n_actions, axis=0).reshape(size, size) for pi in policies
    ]
    away = [alpha * (np.eye(size) - mean) for mean in means]  # Q -> alpha (Q - E_pi Q)
    return np.abs(np.linalg.eigvals(np.block([[moves[0], away[1]], [away[0], moves[1]]]))).max()


def test_5_5_frozen_policies():
    """5.5: at frozen policies the spectral radius is <= max(alpha, gamma) with one kernel, and up to 1.5 with two."""
    rng = np.random.default_rng(5)
    assert max(frozen_radius(rng, same_kernel=True) for _ in range(300)) <= 0.95 + 1e-9
    assert max(frozen_radius(rng, same_kernel=False) for _ in range(300)) > 1.4


def unsettled(n_states, n_actions, alpha, rate, same_kernel=False, l0=-np.inf, problems=400, seed=0):
    """How many of random deterministic problems with integer rewards still move after 1500 sweeps (rate .1: 3000)."""
    rng = np.random.default_rng(seed)
    size = (problems, n_states, n_actions)
    moves = rng.integers(0, n_states, size=(2, *size))
    if same_kernel:
        moves[1] = moves[0]
    rewards = rng.integers(-2, 3, size=(2, *size)).astype(float)
    q = 3 * rng.normal(size=(2, *size))
    slow = hard_advantage(q, l0)
    heads, rows = np.arange(2)[:, None, None, None], np.arange(problems)[None, :, None, None]
    low, high = np.full(q.shape, np.inf), np.full(q.shape, -np.inf)
    sweeps = 1500 if rate > 0.2 else 3000
    for sweep in range(sweeps):
        slow += rate * (hard_advantage(q, l0) - slow)
        q = rewards + alpha * slow[::-1] + 0.9 * q.max(axis=-1)[heads, rows, moves]
        if sweep >= sweeps - 60:
            low, high = np.minimum(low, q), np.maximum(high, q)
    return int(((high - low).max(axis=(0, 2, 3)) > 1e-3).sum())


def test_5_6_random_problems():
    """5.6 [E]: of 400 random problems about 107, 16, 1 never settle if the alternative follows at rate 1, .5, .1."""
    for options, expected in (
        ({"alpha": 0.9, "rate": 1.0}, 107),
        ({"alpha": 0.9, "rate": 0.5}, 16),
        ({"alpha": 0.9, "rate": 0.1}, 1),
        ({"alpha": 0.5, "rate": 1.0}, 52),
        ({"alpha": 0.2, "rate": 1.0}, 9),
        ({"alpha": 0.9, "rate": 1.0, "l0": -1.0}, 32),
        ({"alpha": 0.9, "rate": 1.0, "l0": -0.3}, 1),
        ({"alpha": 0.9, "rate": 1.0, "same_kernel": True}, 0),
    ):
        assert abs(unsettled(3, 2, **options) - expected) <= 0.3 * expected + 2, options


# --- several agents


def test_mean_over_agents_keeps_the_scale():
    """Section 5: the KL of product policies is the sum of the agents' KLs; so their mean has a scale free of N."""
    rng = np.random.default_rng(8)
    for n in (2, 3, 5):
        pi, rho = random_policies(rng, 2, n, 3)
        actions = joint_actions(n, 3)
        joint = [values_of(p[None], actions)[0].prod(axis=-1) for p in (pi, rho)]
        np.testing.assert_allclose(kl(*joint), kl(pi, rho).sum(), atol=1e-12)


def test_opinion_pool():
    """Section 5: log rho_j(a_i) averaged over the others is the log of their geometric mean, which sums to <= 1."""
    rng = np.random.default_rng(9)
    rho = random_policies(rng, 4, 4, 3)  # [i, j]: agent j's policy on agent i's history
    for action in range(3):
        actions = torch.full((1, 1, 4, 1), action)
        pooled = opinion_pool(tensor(np.log(rho))[None, None], actions)[0, 0].exp().numpy()
        for i in range(4):
            others = [rho[i, j, action] for j in range(4) if j != i]
            np.testing.assert_allclose(pooled[i], np.prod(others) ** (1 / 3))
    pools = [np.exp(np.log(np.delete(rho[i], i, axis=0)).mean(axis=0)).sum() for i in range(4)]
    assert max(pools) <= 1


def test_permuted_form_is_no_kl():
    """Section 5: the author's max_a log rho_j(a | tau_j) is free of a_i: it moves no contrast of a stateless game."""
    rng = np.random.default_rng(10)
    rho = tensor(np.log(random_policies(rng, 1, 1, 3, 4)))
    extra = neighbour_confidence(rho)[0, 0].numpy()  # (N,): one number for each agent, whatever its action
    assert extra.shape == (3,)
    np.testing.assert_allclose(extra, rho[0, 0].max(dim=-1).values[[1, 2, 0]])
    reward = rng.normal(size=4)
    for bonus_ in extra:
        np.testing.assert_allclose(policy(reward + 0.5 * bonus_, 0.3), policy(reward, 0.3))


def test_soft_value_of_the_mixer():
    """Section 5: f(V_1^soft, ...) is VDN's joint soft value; gains k_i need lse(k_i Q_i/tau); bent mixers differ."""
    rng = np.random.default_rng(11)
    tau, actions = 0.5, joint_actions(2, 3)
    q, gains = rng.normal(size=(1, 2, 3)), np.array([0.7, 1.8])[:, None]
    joint = values_of(q, actions).sum(axis=-1)
    np.testing.assert_allclose(soft_value(joint, tau), soft_value(q, tau).sum(axis=1))
    joint = values_of(gains * q, actions).sum(axis=-1)
    np.testing.assert_allclose(soft_value(joint, tau), soft_value(gains * q, tau).sum(axis=1))
    assert abs(soft_value(joint, tau) - (gains[:, 0] * soft_value(q, tau)).sum(axis=1)).item() > 0.1
    bent = Mixers(200, 2, seed=11)
    q = rng.normal(size=(200, 2, 3))
    apart = bent(soft_value(q, tau)[:, None])[:, 0]
    assert np.abs(sup(bent(values_of(q, actions)), "lse", tau) - apart).max() > 0.1
