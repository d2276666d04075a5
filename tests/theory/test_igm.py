"""Section 4 of docs/theory.md: are the agents' own greedy actions together the best joint action of the gated value?"""

import itertools

import numpy as np

from theory.reference import Mixers, joint_actions, values_of

ROWS, AGENTS, ACTIONS = 4000, 2, 3
JOINT = joint_actions(AGENTS, ACTIONS)


class Instances:
    """Random mixers f, shared utilities q, separate ones q_i and q_c, and a weight; a row of each per instance."""

    def __init__(self, rows=ROWS, seed=4):
        rng = np.random.default_rng(seed)
        self.f = Mixers(rows, AGENTS, seed, embed=3)
        self.q, self.q_i, self.q_c = rng.normal(size=(3, rows, AGENTS, ACTIONS))
        self.w = rng.random((rows, 1))
        self.rng = rng

    def head_i(self, q):
        """Mean utility of every joint action, (R, J)."""
        return values_of(q, JOINT).mean(axis=-1)

    def head_c(self, q):
        return self.f(values_of(q, JOINT))


def share(table, utilities):
    """In which share of the rows acting greedily on the utilities (R, N, A) attains the maximum of the table (R, J)."""
    greedy = utilities.argmax(axis=-1)  # (R, N)
    column = greedy @ [ACTIONS, 1]
    return (table[np.arange(len(table)), column] >= table.max(axis=1) - 1e-9).mean()


def gaps(x, table):
    """Greedy value minus mean over joint actions, of both heads with shared utilities: (R, 1) each."""
    return [t.max(axis=1, keepdims=True) - t.mean(axis=1, keepdims=True) for t in (x.head_i(x.q), table)]


def test_4_1_shared_utilities():
    """Thm 4.1: with shared utilities means, minima and gated means of both heads satisfy IGM if w is free of a."""
    x = Instances()
    mean, mixed = x.head_i(x.q), x.head_c(x.q)
    d_i, d_c = gaps(x, mixed)
    w = d_c / (d_i + d_c)
    assert share(x.w * mean + (1 - x.w) * mixed, x.q) == 1.0
    assert share(np.minimum(mean, mixed), x.q) == 1.0
    assert share(w * mean + (1 - w) * mixed, x.q) == 1.0
    assert share(np.where(x.w < 0.5, mean, mixed), x.q) == 1.0


def test_4_2_weights_of_the_joint_action():
    """4.2 [R]: weights that depend on a break it: (0, 1, 2) and f = (3, 7, 11) give (.6, 4, 3.8); 5 % at random."""
    q, mixed = np.array([0.0, 1.0, 2.0]), np.array([3.0, 7.0, 11.0])
    d_i, d_c = np.abs(q - q.mean()) + 1e-6, np.abs(mixed - mixed.mean()) + 1e-6
    np.testing.assert_allclose((d_c * q + d_i * mixed) / (d_i + d_c), [0.6, 4.0, 3.8], atol=1e-5)
    x = Instances()
    mean, mixed = x.head_i(x.q), x.head_c(x.q)
    d_i, d_c = (np.abs(t - t.mean(axis=1, keepdims=True)) + 1e-6 for t in (mean, mixed))
    np.testing.assert_allclose(share((d_c * mean + d_i * mixed) / (d_i + d_c), x.q), 0.95, atol=0.02)


def half_and_half(q_i, q_c, f):
    """1/2 mean Q^I + 1/2 f(Q^C) of two agents with equal utilities, (A, A)."""
    own, team = np.array(q_i), np.array(q_c)
    return 0.25 * (own[:, None] + own) + 0.5 * f(team[:, None], team[None, :])


def test_4_3_separate_utilities():
    """4.3 [R]: separate ones break it: Q^I = (1, 0), f = sum: acting on C fails at Q^C = (0, .4), on I at (0, .6)."""
    table = half_and_half([1.0, 0.0], [0.0, 0.4], np.add)
    np.testing.assert_allclose(table, [[0.5, 0.45], [0.45, 0.4]])
    assert table[1, 1] < table.max()  # acting on C
    table = half_and_half([1.0, 0.0], [0.0, 0.6], np.add)
    np.testing.assert_allclose(table, [[0.5, 0.55], [0.55, 0.6]])
    assert table[0, 0] < table.max()  # acting on I, and on the sum (1, .6)


def test_4_3_no_utilities():
    """4.3 [R]: f = max, Q^C = (0, 3): (0, 1) and (1, 0) are best; no utilities that equal agents share have them."""
    table = half_and_half([1.0, 0.0], [0.0, 3.0], np.maximum)
    np.testing.assert_allclose(table, [[0.5, 1.75], [1.75, 1.5]])
    best = {tuple(cell) for cell in np.argwhere(table == table.max())}
    assert best == {(0, 1), (1, 0)}
    for actions in ((0,), (1,), (0, 1)):  # what equal agents may regard as greedy
        assert not set(itertools.product(actions, actions)) <= best


def test_4_4_safe_constructions():
    """Thm 4.4: safe are utilities mixed per agent before f, sums of additive heads, acting on the selected head."""
    x = Instances()
    g = x.rng.random((ROWS, AGENTS, 1))
    soft, hard = (1 - g) * x.q_i + g * x.q_c, np.where(g < 0.5, x.q_c, x.q_i)
    assert share(x.w * x.head_i(soft) + (1 - x.w) * x.head_c(soft), soft) == 1.0  # (a)
    assert share(x.head_c(hard), hard) == 1.0  # (a)
    additive = x.w * x.head_i(x.q_i) + (1 - x.w) * values_of(x.q_c, JOINT).sum(axis=-1)
    utilities = x.w[..., None] / AGENTS * x.q_i + (1 - x.w[..., None]) * x.q_c
    assert share(additive, utilities) == 1.0  # (b)
    on_i = x.w < 0.5
    assert (
        share(np.where(on_i, x.head_i(x.q_i), x.head_c(x.q_c)), np.where(on_i[..., None], x.q_i, x.q_c)) == 1.0
    )  # (c)


def test_4_4_how_often_others_fail():
    """4.3: at random IGM holds in 60 % (act on C), 38 % (on I), 60 % (on the sum), 31 % (min), 34 % (disagreeing)."""
    x = Instances()
    convex = x.w * x.head_i(x.q_i) + (1 - x.w) * x.head_c(x.q_c)
    smallest = np.minimum(x.head_i(x.q_i), x.head_c(x.q_c))
    disagreeing = np.stack([x.q_i[:, 0], x.q_c[:, 1]], axis=1)
    shares = {
        "convex, act on C": (share(convex, x.q_c), 0.60),
        "convex, act on I": (share(convex, x.q_i), 0.38),
        "convex, act on the sum": (share(convex, x.q_i + x.q_c), 0.60),
        "min, act on C": (share(smallest, x.q_c), 0.31),
        "disagreeing agents": (share(x.head_c(x.q_c), disagreeing), 0.34),
    }
    for name, (found, expected) in shares.items():
        np.testing.assert_allclose(found, expected, atol=0.05, err_msg=name)
