"""The exact solutions of the diagnostic games: against loops, against closed forms, and the method's tables of numbers.

Section and N numbers are those of the method's page: "N9" is its table of exact head solutions under uniform data.
"""

from functools import partial
from itertools import chain, combinations, permutations, product

import numpy as np
import pytest
import torch

from envs.greed_games import GreedGameVectorEnv, make_game
from envs.greed_games_solver import (
    epsilon_greedy,
    independent_values,
    isotonic,
    monotone_projection,
    qmix_fit,
    replay_mixture,
    solve,
    uniform,
    vdn_fit,
)
from envs.greed_games_solver import product as product_distribution

exactly = partial(pytest.approx, abs=1e-9)
printed = partial(pytest.approx, abs=6e-7)  # of the tables, with six digits
CLIMBING = np.array([[[8.0, -12, -12], [-12, 0, 0], [-12, 0, 0]]])  # of Son et al. 2019


def on_uniform(name, kappa, n=None, **options):
    game = make_game(name, kappa, n)
    return solve(game, uniform(game.action_counts), **options)


def on_epsilon_greedy(name, kappa, n, around, epsilon):
    game = make_game(name, kappa, n)
    return solve(game, epsilon_greedy(around, game.action_counts, epsilon))


def returns(solution):
    return [solution.iql.episode_return, solution.vdn.episode_return, solution.qmix.episode_return, solution.optimum]


def random_problem(seed, *shape):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 1, shape)
    return rng.normal(size=shape), weights / weights.sum()


# --- distributions


def test_distributions():
    assert uniform((2, 3)).tolist() == [[1 / 6] * 3] * 2
    np.testing.assert_allclose(
        product_distribution([np.array([0.9, 0.1]), np.array([0.5, 0.5])]), [[0.45] * 2, [0.05] * 2]
    )
    np.testing.assert_allclose(epsilon_greedy((1, 0), (2, 2), 0.2), [[0.09, 0.01], [0.81, 0.09]])
    np.testing.assert_allclose(epsilon_greedy((0, 2), (3, 3), 1.0), uniform((3, 3)))
    np.testing.assert_allclose(replay_mixture(2, 0.2), [[0.05, 0.45], [0.45, 0.05]])
    assert replay_mixture(4, 0.1).sum() == exactly(1)


# --- the heads on any game


@pytest.mark.parametrize("agent", [0, 1, 2])
def test_independent_values_are_conditional_means(agent):
    payoff, weights = random_problem(0, 2, 3, 2)
    values = independent_values(payoff, weights, agent)
    for action in range(payoff.shape[agent]):
        rows = [joint for joint in np.ndindex(payoff.shape) if joint[agent] == action]
        mean = sum(weights[joint] * payoff[joint] for joint in rows) / sum(weights[joint] for joint in rows)
        assert values[action] == exactly(mean)


def test_an_action_that_is_never_played_has_no_independent_value():
    with pytest.raises(ValueError, match="agent 1 never plays action 0"):
        independent_values(np.zeros((2, 2)), np.array([[0.0, 0.5], [0.0, 0.5]]), 1)


def test_the_additive_fit_leaves_no_residual_that_a_term_could_take():
    payoffs, weights = random_problem(1, 2, 3, 2, 2)
    utilities, joint = vdn_fit(payoffs, weights)
    residual = weights * (payoffs - joint)
    for axis in range(payoffs.ndim):
        others = tuple(other for other in range(payoffs.ndim) if other != axis)
        np.testing.assert_allclose(residual.sum(axis=others), 0, atol=1e-12)
    bias = joint[:, 0, 0, 0] - sum(q[0] for q in utilities)
    for cell in np.ndindex(payoffs.shape):
        total = bias[cell[0]] + sum(q[action] for q, action in zip(utilities, cell[1:], strict=True))
        assert joint[cell] == exactly(total)
    # Constants could be moved between the terms; at the smallest norm each term has the same sum.
    assert [q.sum() for q in utilities] == exactly([bias.sum()] * 3)


def test_uniform_data_gives_the_additive_fit_its_main_effects():
    payoffs, _ = random_problem(2, 1, 3, 4)
    (payoff,) = payoffs
    expected = payoff.mean(axis=1, keepdims=True) + payoff.mean(axis=0, keepdims=True) - payoff.mean()
    np.testing.assert_allclose(vdn_fit(payoffs, np.full(payoffs.shape, 1 / 12)).joint[0], expected, atol=1e-12)


def upper_sets(shape):
    """All of them by trying every set of cells."""
    cells = list(np.ndindex(shape))
    for chosen in chain.from_iterable(combinations(cells, size) for size in range(1, len(cells) + 1)):
        if all(up in chosen for cell in chosen for up in cells if all(a <= b for a, b in zip(cell, up, strict=True))):
            yield np.array([cell in chosen for cell in cells]).reshape(shape)


def min_max_of_averages(payoff, weights):
    """max over upper sets U, min over lower sets L, both holding a, of the mean payoff on their intersection."""
    uppers = list(upper_sets(payoff.shape))
    lowers = [np.flip(upper) for upper in uppers]
    fit = np.empty(payoff.shape)
    for cell in np.ndindex(payoff.shape):
        averages = [
            min(
                (weights * payoff)[upper & lower].sum() / weights[upper & lower].sum()
                for lower in lowers
                if lower[cell]
            )
            for upper in uppers
            if upper[cell]
        ]
        fit[cell] = max(averages)
    return fit


@pytest.mark.parametrize("shape", [(4,), (2, 2), (3, 3), (2, 2, 2)])
def test_isotonic_is_the_min_max_of_averages(shape):
    for seed in range(3):
        payoff, weights = random_problem(seed, *shape)
        np.testing.assert_allclose(isotonic(payoff, weights), min_max_of_averages(payoff, weights), atol=1e-12)


def test_isotonic_where_many_sets_fit_alike():
    """In every order of the actions of stag, where equal payoffs and weights once let a least-squares solver stop."""
    game = make_game("stag", 0.726192)
    weights = uniform((3, 3))
    for first, second in product(permutations(range(3)), repeat=2):
        payoff = game.payoffs[0][np.ix_(first, second)]
        np.testing.assert_allclose(isotonic(payoff, weights), min_max_of_averages(payoff, weights), atol=1e-12)


def test_isotonic_keeps_what_is_monotone_and_pools_what_is_not():
    steps = np.array([[-3.0, 0], [1, 2]])
    np.testing.assert_allclose(isotonic(steps, uniform((2, 2))), steps, atol=1e-12)
    np.testing.assert_allclose(isotonic(-steps, uniform((2, 2))), 0, atol=1e-12)
    expected = [[-2, 5 / 6], [5 / 6, 5 / 6]]  # N8b
    np.testing.assert_allclose(isotonic(np.array([[-2, 1], [1, 0.5]]), uniform((2, 2))), expected, atol=1e-12)


def test_the_monotone_projection_is_the_best_of_all_rankings():
    payoffs, weights = random_problem(3, 2, 3, 2)
    (best,) = monotone_projection(payoffs, weights)
    losses = []
    for first, second in product([(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)], [(0, 1), (1, 0)]):
        loss = 0.0
        for payoff, weight in zip(payoffs, weights, strict=True):
            ranked, ranked_weight = payoff[list(first)][:, list(second)], weight[list(first)][:, list(second)]
            loss += (ranked_weight * (ranked - isotonic(ranked, ranked_weight)) ** 2).sum()
        losses.append(loss)
        if best.rankings == (first, second):
            assert best.loss == exactly(loss)
    assert best.loss == exactly(min(losses))
    assert best.loss == exactly((weights * (payoffs - best.joint) ** 2).sum())
    for z in range(2):
        ordered = best.joint[z][np.ix_(*best.rankings)]
        assert (np.diff(ordered, axis=0) >= -1e-12).all()
        assert (np.diff(ordered, axis=1) >= -1e-12).all()
        assert best.joint[z][best.greedy] == exactly(best.joint[z].max())


def test_the_monotone_projection_returns_every_ranking_that_fits_as_well():
    flat = np.zeros((1, 2, 3))
    assert len(monotone_projection(flat, flat + 1 / 6)) == 2 * 6
    climbing = monotone_projection(CLIMBING, np.full((1, 3, 3), 1 / 9))
    assert len(climbing) == 4  # each agent's lower two actions are alike
    assert {fit.greedy for fit in climbing} == {(0, 0)}
    assert [fit.loss for fit in climbing] == exactly([32.0] * 4)


def test_the_climbing_game():
    payoff, weights = CLIMBING[0], uniform((3, 3))
    values = [independent_values(payoff, weights, agent) for agent in range(2)]
    assert [q.tolist() for q in values] == [exactly([-16 / 3, -4, -4])] * 2
    assert vdn_fit(CLIMBING, weights[None]).joint[0, 1, 1] == printed(-3.555556)
    assert monotone_projection(CLIMBING, weights[None])[0].joint[0, 0, 0] == exactly(8)


def test_games_that_are_too_large_for_all_rankings_say_so():
    for counts, found in [((3,) * 4, "1296 rankings"), ((2,) * 6, "64 joint actions")]:
        payoffs = np.zeros((1, *counts))
        with pytest.raises(ValueError, match=f"3 agents with 3 actions or 5 with 2; got {found}"):
            monotone_projection(payoffs, payoffs + 1 / payoffs.size)


@pytest.mark.parametrize("fit", [vdn_fit, monotone_projection, partial(qmix_fit, seeds=[0])])
def test_shapes_are_checked(fit):
    with pytest.raises(ValueError, match=r"one shape, got \(1, 2, 2\) and \(2, 2\)"):
        fit(np.zeros((1, 2, 2)), np.zeros((2, 2)))


def test_a_monotone_fit_needs_data_on_every_joint_action():
    with pytest.raises(ValueError, match="every joint action needs some"):
        isotonic(np.zeros((2, 2)), np.array([[0, 0.5], [0.5, 0]]))


# --- QMIX, trained


def weights_of(game):
    return np.multiply.outer(game.probabilities, uniform(game.action_counts))


def test_trained_qmix_finds_the_pooled_fit_of_the_climbing_game():
    """A local method: the loss is 320/9 where the best ranking has 32; all but the first row and column are pooled."""
    fit = qmix_fit(CLIMBING, np.full((1, 3, 3), 1 / 9), seeds=range(4), steps=1500)
    assert fit.loss == pytest.approx([320 / 9] * 4, abs=0.02)
    assert (fit.greedy > 0).all()
    assert fit.joint[:, 0, 0, :] == pytest.approx(np.full((4, 3), -8), abs=0.2)
    assert fit.joint[:, 0, 1:, 1:] == pytest.approx(np.zeros((4, 2, 2)), abs=0.2)


def test_trained_qmix_is_captured_by_the_decoy():
    game = make_game("decoy", 1.0)
    fit = qmix_fit(game.payoffs, weights_of(game), seeds=range(12), steps=1500)
    captured = (fit.greedy == [0, 2]).all(axis=1)
    assert captured.sum() >= 10  # the others find the optimum
    assert fit.joint[captured, 0, 0, 2] == pytest.approx(2.75, abs=0.05)


def test_trained_qmix_over_estimates_substitutes_as_the_additive_fit_does():
    solution = on_uniform("redundant", 1.0, 2, qmix_seeds=range(3))
    for trained in solution.qmix_trained:
        assert trained.method == "gradient descent"
        assert trained.greedy == (1, 1)
        assert trained.value == pytest.approx(1.25, abs=0.02)
        assert trained.over_estimation == pytest.approx(0.25, abs=0.02)
        assert not trained.takes_safe
    assert len(solution.qmix_trained) == 3
    assert solution.better == "independent"


def test_trained_qmix_is_monotone_supermodular_and_decided_by_the_seed():
    game = make_game("mirage", 0.75)
    fit = qmix_fit(game.payoffs, weights_of(game), seeds=[5, 6, 7], steps=300)
    for joint, greedy in zip(fit.joint, fit.greedy, strict=True):
        for table in joint:  # with the greedy action second, by flipping
            table = np.flip(table, axis=tuple(axis for axis in range(2) if greedy[axis] == 0))
            assert (np.diff(table, axis=0) >= 0).all()
            assert (np.diff(table, axis=1) >= 0).all()
            assert table[1, 1] + table[0, 0] >= table[0, 1] + table[1, 0] - 1e-12
    alone = qmix_fit(game.payoffs, weights_of(game), seeds=[6], steps=300)
    np.testing.assert_allclose(alone.joint[0], fit.joint[1], atol=1e-9)
    assert fit.loss == pytest.approx((weights_of(game) * (game.payoffs - fit.joint) ** 2).sum(axis=(1, 2, 3)))


# --- whole games: N9


# N9 gives redundant's column C as the monotone limit, 1, and says that QMIX is the additive fit instead, as it is here.
TABLE = """
game      n kappa | greedy V_I      G_I      d_I      o_I      | V_VDN    | greedy V_C      G_C       d_C      o_C      | optimum
decoy     2 0.00  | 12     0.833333 2.000000 1.166667 0.000000 | 2.000000 | 12     2.000000 2.000000  2.333333 0.000000 | 2.000000
decoy     2 0.50  | 12     0.833333 4.000000 1.166667 0.000000 | 2.000000 | 12     4.000000 4.000000  4.333333 0.000000 | 4.000000
decoy     2 1.00  | 12     0.833333 6.000000 1.166667 0.000000 | 2.000000 | 02     3.333333 -1.000000 3.666667 4.333333 | 6.000000
handshake 2 0.00  | 12     0.333333 0.888889 0.555556 0.000000 | 0.888889 | 12     0.888889 0.888889  1.111111 0.000000 | 0.888889
handshake 2 0.25  | 12     0.333333 0.666667 0.555556 0.000000 | 0.888889 | 12     0.916667 0.666667  1.138889 0.250000 | 1.166667
handshake 2 0.60  | 12     0.333333 0.355556 0.555556 0.000000 | 0.888889 | 02     2.022222 2.022222  2.244444 0.000000 | 2.022222
handshake 2 1.00  | 12     0.333333 0.000000 0.555556 0.333333 | 0.888889 | 02     3.000000 3.000000  3.222222 0.000000 | 3.000000
stag      2 0.50  | 11     0.583333 1.000000 0.250000 0.000000 | 0.833333 | 11     1.000000 1.000000  0.666667 0.000000 | 1.000000
stag      2 0.75  | 11     0.541667 1.000000 0.208333 0.000000 | 0.750000 | 22     1.500000 1.500000  1.166667 0.000000 | 1.500000
stag      2 1.00  | 11     0.500000 1.000000 0.166667 0.000000 | 0.666667 | 22     2.000000 2.000000  1.666667 0.000000 | 2.000000
stag      3 0.75  | 111    0.388889 1.000000 0.222222 0.000000 | 0.833333 | 111    1.000000 1.000000  0.833333 0.000000 | 1.500000
bridge    2 1.00  | 11     0.500000 1.000000 0.250000 0.000000 | 0.750000 | 11     1.000000 1.000000  0.750000 0.000000 | 1.000000
bridge    3 0.50  | 111    0.458333 1.000000 0.145833 0.000000 | 0.750000 | 111    1.000000 1.000000  0.687500 0.000000 | 1.000000
bridge    3 1.00  | 111    0.250000 1.000000 0.125000 0.000000 | 0.500000 | 111    1.000000 1.000000  0.875000 0.000000 | 1.000000
mirage    2 0.75  | 11     0.437500 0.500000 0.031250 0.000000 | 0.468750 | 11     0.781250 0.500000  0.375000 0.281250 | 0.500000
mirage    3 0.75  | 111    0.406250 0.500000 0.015625 0.000000 | 0.437500 | 111    0.828125 0.500000  0.437500 0.328125 | 0.500000
redundant 2 1.00  | 11     1.000000 1.000000 0.250000 0.000000 | 1.250000 | 11     1.250000 1.000000  0.500000 0.250000 | 1.000000
redundant 3 1.00  | 111    1.000000 1.000000 0.125000 0.000000 | 1.250000 | 111    1.250000 1.000000  0.375000 0.250000 | 1.000000
redundant 2 0.50  | 11     0.875000 1.000000 0.250000 0.000000 | 1.125000 | 11     1.125000 1.000000  0.500000 0.125000 | 1.000000
"""  # noqa: E501


@pytest.mark.parametrize("row", TABLE.strip().splitlines()[1:])
def test_the_table_of_exact_solutions(row):
    """Of two-step games the joint decision alone."""
    (name, n, kappa), independent, (v_vdn,), cooperative, (optimum,) = (part.split() for part in row.split("|"))
    solution = on_uniform(name, float(kappa), int(n))
    for head, (greedy, *expected) in [(solution.iql, independent), (solution.qmix, cooperative)]:
        assert "".join(map(str, head.greedy)) == greedy
        found = (head.value, head.realised, head.gap, head.over_estimation)
        assert found == printed(tuple(map(float, expected)))
    assert solution.vdn.value == printed(float(v_vdn))
    assert make_game(name, float(kappa), int(n)).mean_payoff.max() == printed(float(optimum))
    assert solution.qmix.method == ("additive limit" if name == "redundant" else "monotone limit")


@pytest.mark.parametrize(
    ("name", "n", "kappa", "better"),
    [
        ("decoy", 2, 0.5, "tie"),
        ("decoy", 2, 1.0, "independent"),
        ("handshake", 2, 0.25, "tie"),
        ("handshake", 2, 0.6, "cooperative"),
        ("handshake", 2, 1.0, "cooperative"),
        ("stag", 2, 0.5, "tie"),
        ("stag", 2, 0.75, "cooperative"),
        ("stag", 3, 0.75, "tie"),
        ("bridge", 3, 0.0, "tie"),
        ("bridge", 3, 0.5, "cooperative"),
        ("mirage", 2, 0.75, "independent"),
        ("redundant", 3, 1.0, "independent"),
        ("redundant", 2, 0.25, "tie"),
    ],
)
def test_which_head_is_better(name, n, kappa, better):
    assert on_uniform(name, kappa, n).better == better


def test_redundant_has_the_monotone_limit_that_the_mixer_does_not_reach():
    for n, kappa in [(2, 1.0), (3, 1.0), (2, 0.5)]:
        game = make_game("redundant", kappa, n)
        assert monotone_projection(game.payoffs, weights_of(game))[0].joint.max() == exactly(1)


# --- section 6, game by game


@pytest.mark.parametrize(("kappa", "value"), [(0, 2), (0.5, 4), (0.75, 5), (0.9, 5.6), (1, 6)])
def test_iql_and_vdn_never_leave_the_optimum_of_decoy(kappa, value):
    solution = on_uniform("decoy", kappa)
    assert returns(solution) == exactly([value, value, -1 if kappa == 1 else value, value])


@pytest.mark.parametrize(
    ("kappa", "independent", "cooperative", "optimum"),
    [
        (0, 0.888889, 0.888889, 0.888889),
        (0.25, 0.666667, 0.666667, 1.166667),
        (0.6, 0.355556, 2.022222, 2.022222),
        (1, 0, 3, 3),
    ],
)
def test_iql_and_vdn_do_not_see_the_interaction_of_handshake(kappa, independent, cooperative, optimum):
    assert returns(on_uniform("handshake", kappa)) == printed([independent, independent, cooperative, optimum])


@pytest.mark.parametrize("name", ["decoy", "handshake"])
def test_without_data_on_the_interaction_the_knob_changes_no_independent_value(name):
    solutions = [on_uniform(name, kappa) for kappa in (0.0, 0.3, 1.0)]
    for head in ("iql", "vdn"):
        found = [getattr(solution, head) for solution in solutions]
        assert len({one.greedy for one in found}) == 1
        assert [one.value for one in found] == exactly([found[0].value] * 3)


@pytest.mark.parametrize(
    ("name", "switch", "below", "above"),
    [
        ("decoy", 0.987258, (1, 2), (0, 2)),
        ("handshake", 0.390999, (1, 2), (0, 2)),
        ("stag", 0.726194, (1, 1), (2, 2)),  # N9 prints .726040; exact fractions give .726194, and 6.2 rounds to .726
    ],
)
def test_where_the_monotone_limit_switches(name, switch, below, above):
    assert on_uniform(name, switch - 1e-6).qmix.greedy == below
    assert on_uniform(name, switch + 1e-6).qmix.greedy == above


def test_where_the_optimum_of_handshake_switches():
    for kappa, best in [(0.0999, (1, 2)), (0.1001, (0, 2))]:
        payoff = make_game("handshake", kappa).payoffs[0]
        assert np.unravel_index(payoff.argmax(), payoff.shape) == best


@pytest.mark.parametrize(("name", "path"), [("decoy", [6, 6, 6]), ("handshake", [0, 3, 3])])
def test_iql_on_epsilon_greedy_data_of_its_own(name, path):
    game = make_game(name, 1.0)
    data, found = uniform((3, 3)), []
    for _round in path:
        iql = solve(game, data).iql
        found.append(iql.episode_return)
        data = epsilon_greedy(iql.greedy, (3, 3), 0.3)
    assert found == exactly(path)


@pytest.mark.parametrize(("name", "independent"), [("decoy", 7), ("handshake", 1)])
def test_a_spectator_adds_its_own_bonus(name, independent):
    game = make_game(name, 1.0, spectators=1)
    solution = solve(game, uniform(game.action_counts))
    assert solution.iql.episode_return == exactly(independent)
    assert solution.optimum == exactly({"decoy": 7, "handshake": 4}[name])


@pytest.mark.parametrize("n", [2, 3])
def test_iql_hunts_the_stag_if_its_teammates_do_so_often_enough(n):
    """p^(n-1) > (1 + kappa) / (3 n kappa), p the probability of stag: never under uniform data for kappa < 1."""
    kappa = 0.75
    assert on_uniform("stag", 0.999, n).iql.greedy == (1,) * n
    p = ((1 + kappa) / (3 * n * kappa)) ** (1 / (n - 1))
    switch = 1.5 * (1 - p)  # epsilon-greedy around stag: p = 1 - 2/3 epsilon
    assert on_epsilon_greedy("stag", kappa, n, (2,) * n, switch - 1e-6).iql.greedy == (2,) * n
    assert on_epsilon_greedy("stag", kappa, n, (2,) * n, switch + 1e-6).iql.greedy == (1,) * n
    assert on_epsilon_greedy("stag", kappa, n, (1,) * n, 0.1).iql.greedy == (1,) * n


def values(name, kappa, n):
    solution = on_uniform(name, kappa, n)
    return solution.iql.value, solution.vdn.value, solution.qmix.value


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("kappa", [0.0, 0.25, 0.5, 0.75, 0.95])
def test_closed_forms_of_the_two_step_games(n, kappa):
    separable = (1 - kappa) * (n + 1) / (2 * n)
    bridge = (separable + kappa * 2 ** -(n - 1), 1 - kappa + kappa * (n + 1) / 2**n, 1)
    assert values("bridge", kappa, n) == exactly(bridge)
    additive = 1 + kappa * (n - 1) / 2**n
    assert values("redundant", kappa, n) == exactly((separable + kappa, additive, additive))
    iql, vdn, qmix = values("mirage", kappa, n)
    assert iql == exactly((kappa * (1 - 2 ** -(n - 1)) + 2 ** -(n - 1)) / 2)
    assert max(iql, vdn) <= 0.5
    assert qmix == exactly((1 + kappa * (1 - 2**-n)) / 2)


@pytest.mark.parametrize(
    ("name", "kappa", "ns", "expected"),
    [  # return of IQL, VDN, QMIX and the optimum
        ("bridge", 0.0, [3], [1, 1, 1, 1]),
        ("bridge", 0.5, [3], [0.6, 1, 1, 1]),
        ("bridge", 1.0, [3], [0.6, 0.6, 1, 1]),
        ("mirage", 0.75, [2, 3], [0.52, 0.52, 0.5, 0.52]),
        ("redundant", 1.0, [2, 3, 4], [1.1, 1, 1, 1.1]),
    ],
)
def test_returns_of_the_two_step_games(name, kappa, ns, expected):
    for n in ns:
        assert returns(on_uniform(name, kappa, n)) == exactly(expected)


@pytest.mark.parametrize(("n", "iql", "vdn"), [(2, 0.6, None), (3, 0.16, 0.8), (4, 0.05, 0.58)])
def test_where_the_heads_leave_the_bridge(n, iql, vdn):
    exact_iql = ((n + 1) / (2 * n) - 0.6) / ((n + 1) / (2 * n) - 2 ** -(n - 1))
    exact_vdn = 0.4 / (1 - (n + 1) / 2**n)
    assert exact_iql == pytest.approx(iql, abs=0.006)
    switches = {"iql": exact_iql}
    if vdn is None:
        assert exact_vdn > 1
    else:
        assert exact_vdn == pytest.approx(vdn, abs=0.006)
        switches["vdn"] = exact_vdn
    for head, switch in switches.items():
        assert not getattr(on_uniform("bridge", switch - 1e-6, n), head).takes_safe
        assert getattr(on_uniform("bridge", switch + 1e-6, n), head).takes_safe


@pytest.mark.parametrize(("n", "switch"), [(2, 0.8), (3, 0.451), (4, 0.313)])
def test_less_exploration_keeps_iql_on_the_bridge(n, switch):
    exact = 2 * (1 - 0.6 ** (1 / (n - 1)))
    assert exact == pytest.approx(switch, abs=6e-4)
    assert not on_epsilon_greedy("bridge", 1.0, n, (1,) * n, exact - 1e-6).iql.takes_safe
    assert on_epsilon_greedy("bridge", 1.0, n, (1,) * n, exact + 1e-6).iql.takes_safe


@pytest.mark.parametrize("n", [2, 3, 4])
def test_where_qmix_falls_for_the_mirage(n):
    switch = 0.04 / (1 - 2**-n)
    assert on_uniform("mirage", switch - 1e-6, n).qmix.takes_safe
    assert not on_uniform("mirage", switch + 1e-6, n).qmix.takes_safe


@pytest.mark.parametrize(("n", "value"), [(2, 0.781), (3, 0.828), (4, 0.852)])
def test_what_qmix_sees_in_the_mirage(n, value):
    assert on_uniform("mirage", 0.75, n).qmix.value == pytest.approx(value, abs=6e-4)


@pytest.mark.parametrize(("epsilon", "value"), [(1, 0.781), (0.2, 0.571), (0.1, 0.537)])
def test_less_exploration_shrinks_the_mirage(epsilon, value):
    assert on_epsilon_greedy("mirage", 0.75, 2, (1, 1), epsilon).qmix.value == pytest.approx(value, abs=6e-4)


@pytest.mark.parametrize(("n", "value", "switch"), [(2, 1.25, 0.4), (3, 1.25, 0.4), (4, 1.1875, 0.5333333)])
def test_where_the_mixers_fall_for_substitutes(n, value, switch):
    assert on_uniform("redundant", 1.0, n).qmix.value == exactly(value)
    for head in ("vdn", "qmix"):
        assert getattr(on_uniform("redundant", switch - 1e-6, n), head).takes_safe
        assert not getattr(on_uniform("redundant", switch + 1e-6, n), head).takes_safe


@pytest.mark.parametrize(("epsilon", "value"), [(0.5, 1.0625), (0.2, 1.01), (0.1, 1.0025)])
def test_less_exploration_shrinks_the_over_estimation_of_substitutes(epsilon, value):
    assert on_epsilon_greedy("redundant", 1.0, 2, (1, 1), epsilon).qmix.value == exactly(value)


def test_how_many_of_21_two_step_cases_each_head_solves():
    cases = [("bridge", kappa) for kappa in (0.0, 0.5, 1.0)]
    cases += [("mirage", kappa) for kappa in (0.3, 0.75)] + [("redundant", kappa) for kappa in (0.75, 1.0)]
    found = [returns(on_uniform(name, kappa, n)) for name, kappa in cases for n in (2, 3, 4)]
    solved = np.array([[value >= row[-1] - 1e-9 for value in row] for row in found]).sum(axis=0)
    assert solved.tolist() == [16, 13, 9, 21]


def test_correlated_replay_misleads_iql_on_a_separable_task():
    game = make_game("replay", None)
    data = replay_mixture(3, 0.2)
    contrasts = [np.diff(independent_values(game.payoffs[0], data, agent)).item() for agent in range(3)]
    assert contrasts == printed([-0.818182, 0.545455, 1.909091])
    solution = solve(game, data)
    assert solution.iql.greedy == (0, 1, 1)
    assert returns(solution) == exactly([5, 6, 6, 6])
    assert solution.better == "cooperative"
    assert returns(solve(make_game("replay", None, 4), replay_mixture(4, 0.1))) == exactly([7, 10, 10, 10])
    assert returns(solve(game, uniform((2, 2, 2)))) == exactly([6, 6, 6, 6])


# --- solve and the environment


@pytest.mark.parametrize(
    ("name", "kappa", "n"),
    [
        ("decoy", 1.0, 2),
        ("handshake", 0.6, 2),
        ("stag", 0.75, 3),
        ("bridge", 0.5, 3),
        ("mirage", 0.75, 2),
        ("redundant", 1.0, 3),
        ("replay", None, 3),
    ],
)
def test_the_environment_pays_what_the_solution_says(name, kappa, n):
    game = make_game(name, kappa, n)
    data = replay_mixture(n, 0.2) if name == "replay" else uniform(game.action_counts)
    solution = solve(game, data)
    heads = [solution.iql, solution.vdn, solution.qmix]
    env = GreedGameVectorEnv(3, "cpu", name, kappa, n, 0, 0.0, 0, "team", seed=1)
    joint = torch.tensor([head.greedy for head in heads])
    paid = torch.full((3,), torch.nan)
    if game.safe is not None:
        first = joint.clone()
        first[:, 0] = torch.tensor([int(not head.takes_safe) for head in heads])
        step = env.step(first)
        paid[step.terminated] = step.info["expected_return"][step.terminated]
    step = env.step(joint)
    paid = torch.where(paid.isnan(), step.info["expected_return"], paid)
    assert paid.tolist() == pytest.approx([head.episode_return for head in heads])
    assert solution.data_mean == exactly((data * game.mean_payoff).sum())
    assert solution.uniform_return == game.uniform_return


def test_agent_1_decides_by_its_own_value_when_there_is_no_mixer():
    game = make_game("bridge", 1.0)
    data = product_distribution([np.array([0.9, 0.1]), np.array([0.3, 0.7])])
    iql = solve(game, data).iql
    assert iql.value == exactly((0.7 + 0.1) / 2)  # the other agent believes that agent 1 hardly ever plays 1
    assert not iql.takes_safe


def test_data_must_be_a_distribution_over_all_joint_actions():
    game = make_game("decoy", 1.0)
    with pytest.raises(ValueError, match=r"data must have shape \(3, 3\), got \(2, 2\)"):
        solve(game, uniform((2, 2)))
    for data in (epsilon_greedy((0, 0), (3, 3), 0.0), 2 * uniform((3, 3))):
        with pytest.raises(ValueError, match="every joint action a probability > 0, and these must sum to 1"):
            solve(game, data)


def test_a_game_too_large_for_the_monotone_limit_is_refused():
    game = make_game("stag", 1.0, 4)
    with pytest.raises(ValueError, match="3 agents with 3 actions"):
        solve(game, uniform(game.action_counts))
    large = make_game("redundant", 1.0, 8)  # needs no limit
    assert solve(large, uniform(large.action_counts)).qmix.value == exactly(1 + 7 / 2**8)
