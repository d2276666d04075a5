"""What the independent and the cooperative head make of a diagnostic game, exactly: greedy play, values and returns.

Legend: N agents, A_i actions of agent i, Z values of the hidden variable, R seeds, M hidden units. All arrays are
float64. `payoffs` (Z, A_1, ..., A_N) are of the team; `weights` of the same shape are p(z) times the probability of
the joint action in the data, and sum to 1. The hidden variable is seen by a mixer and by no agent, so that utilities
are common to all its values while what a mixer makes of them is not.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch

from envs.greed_games import Game

MAX_JOINT_ACTIONS, MAX_RANKINGS = 32, 1000  # of a monotone fit
LIMITS = (
    f"monotone fits take at most {MAX_JOINT_ACTIONS} joint actions and {MAX_RANKINGS} rankings of all agents' actions, "
    f"as of 3 agents with 3 actions or 5 with 2"
)
TOLERANCE = 1e-9  # of values and losses that count as equal; rounding must not decide a tie

Method = Literal["exact", "monotone limit", "additive limit", "gradient descent"]


# --- distributions of the data, over joint actions


def product(policies: Sequence[np.ndarray]) -> np.ndarray:
    """beta(a) = prod_i beta_i(a_i): policies (A_i,) of independent agents -> (A_1, ..., A_N)."""
    joint = np.ones(())
    for policy in policies:
        joint = np.multiply.outer(joint, policy)
    return joint


def uniform(action_counts: Sequence[int]) -> np.ndarray:
    """Every joint action equally likely, (A_1, ..., A_N)."""
    return np.full(action_counts, 1 / math.prod(action_counts))


def epsilon_greedy(joint_action: Sequence[int], action_counts: Sequence[int], epsilon: float) -> np.ndarray:
    """Every agent plays its part of `joint_action`, and with probability epsilon any action instead."""
    return product(
        [
            epsilon / count + (1 - epsilon) * np.eye(count)[action]
            for action, count in zip(joint_action, action_counts, strict=True)
        ]
    )


def replay_mixture(n_agents: int, uniform_share: float) -> np.ndarray:
    """What a replay of N deterministic policies holds, in the k-th of which only agent k plays 1; (2, ..., 2).

    (1 - lambda) uniform over these N joint actions + lambda uniform over all, lambda = `uniform_share`.
    """
    joint = uniform_share * uniform((2,) * n_agents)
    for alone in np.eye(n_agents, dtype=np.int64):
        joint[tuple(alone)] += (1 - uniform_share) / n_agents
    return joint


# --- the heads


def independent_values(payoff: np.ndarray, weights: np.ndarray, agent: int) -> np.ndarray:
    """Q_i(a_i) = E[r | a_i], what independent Q-learning converges to (Tan 1993) when there is one decision.

    Args:
        payoff: (A_1, ..., A_N), without hidden variable. weights: of the same shape. agent: i, from 0.

    Returns:
        (A_i,).

    Raises:
        ValueError: the shapes differ, or an action of the agent has no weight.
    """
    _check_shapes(payoff, weights)
    others = tuple(axis for axis in range(payoff.ndim) if axis != agent)
    seen = weights.sum(axis=others)
    if (seen <= 0).any():
        raise ValueError(f"agent {agent} never plays action {int(seen.argmin())}: its value is not defined")
    return (weights * payoff).sum(axis=others) / seen


class AdditiveFit(NamedTuple):
    utilities: list[np.ndarray]  # N arrays (A_i,)
    joint: np.ndarray  # (Z, A_1, ..., A_N), b_z + sum_i Q_i(a_i)


def vdn_fit(payoffs: np.ndarray, weights: np.ndarray) -> AdditiveFit:
    """min sum w (r_z(a) - b_z - sum_i Q_i(a_i))^2: value decomposition (Sunehag et al. 2018) with a free bias.

    Utilities are defined up to constants, and joint actions without weight not at all: of all minimisers this is the
    one of smallest norm.

    Raises:
        ValueError: payoffs and weights differ in shape.
    """
    _check_shapes(payoffs, weights)
    cells = np.indices(payoffs.shape).reshape(payoffs.ndim, -1)  # (1 + N, cells)
    design = np.concatenate([np.eye(size)[index] for size, index in zip(payoffs.shape, cells, strict=True)], axis=1)
    root = np.sqrt(weights.ravel())
    solution = np.linalg.lstsq(design * root[:, None], payoffs.ravel() * root, rcond=None)[0]
    _biases, *utilities = np.split(solution, np.cumsum(payoffs.shape)[:-1])
    return AdditiveFit(utilities, (design @ solution).reshape(payoffs.shape))


@lru_cache
def _upper_sets(shape: tuple[int, ...]) -> np.ndarray:
    """All sets that with a cell hold every cell above it, the empty one included: (sets, cells), 0.0 or 1.0."""
    sets = np.zeros((1, math.prod(shape)), dtype=bool)
    for cell in reversed(list(np.ndindex(shape))):  # a cell comes after all cells above it
        steps = [np.array(cell) + unit for unit in np.eye(len(shape), dtype=np.int64)]
        above = [np.ravel_multi_index(tuple(step), shape) for step in steps if (step < shape).all()]
        grown = sets[sets[:, above].all(axis=1)]
        grown[:, np.ravel_multi_index(cell, shape)] = True
        sets = np.concatenate([sets, grown])
    return sets.astype(np.float64)  # for sums by a product


def isotonic(payoff: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """min_g sum w (r(a) - g(a))^2 over all g that are non-decreasing in every argument.

    The upper set of highest mean payoff takes that mean, then of what is left the next one does, and so on: the
    minimum lower sets algorithm (Brunk, Ewing and Utz 1957), from above. It takes means alone, so that it is exact to
    rounding where non-negative least squares over the sets' indicators, many of them dependent, may stop early.

    Args:
        payoff, weights: (A_1, ..., A_N), of at most `MAX_JOINT_ACTIONS` cells; all weights > 0.

    Raises:
        ValueError: the shapes differ, a weight is not positive, or there are too many cells.
    """
    _check_shapes(payoff, weights)
    if payoff.size > MAX_JOINT_ACTIONS:
        raise ValueError(f"{LIMITS}; got {payoff.size} joint actions")
    if (weights <= 0).any():
        raise ValueError("a monotone fit is not defined where the data has no weight; every joint action needs some")
    sets, payoffs, left = _upper_sets(payoff.shape), payoff.ravel(), weights.ravel().copy()
    fit = np.empty_like(payoffs, dtype=np.float64)
    while left.any():
        mass = sets @ left
        means = np.divide(sets @ (left * payoffs), mass, out=np.full(len(sets), -np.inf), where=mass > 0)
        best = means.argmax()
        pooled = (sets[best] > 0) & (left > 0)
        fit[pooled], left[pooled] = means[best], 0.0
    return fit.reshape(payoff.shape)


class MonotoneFit(NamedTuple):
    loss: float  # sum of weighted squared errors
    rankings: tuple[tuple[int, ...], ...]  # of each agent's actions, from the lowest utility to the highest
    joint: np.ndarray  # (Z, A_1, ..., A_N), the fit in the actions' own order

    @property
    def greedy(self) -> tuple[int, ...]:
        return tuple(ranking[-1] for ranking in self.rankings)


def monotone_projection(payoffs: np.ndarray, weights: np.ndarray) -> list[MonotoneFit]:
    """The best fits f_z(Q_1(a_1), ..., Q_N(a_N)) with f_z non-decreasing: what QMIX strives for, over all rankings.

    It contains all that the mixer of QMIX (Rashid et al. 2018) can express, and more: that mixer is supermodular in
    the utilities, and gradient descent may stop at a fit that is best only for its own ranking.

    Args:
        payoffs, weights: (Z, A_1, ..., A_N), of at most `MAX_JOINT_ACTIONS` joint actions and `MAX_RANKINGS` rankings.

    Returns:
        Every ranking that attains the smallest loss, in lexicographic order.

    Raises:
        ValueError: the shapes differ, a weight is not positive, or the game is too large.
    """
    _check_shapes(payoffs, weights)
    counts = payoffs.shape[1:]
    n_rankings = math.prod(math.factorial(count) for count in counts)
    if n_rankings > MAX_RANKINGS:
        raise ValueError(f"{LIMITS}; got {n_rankings} rankings")
    fits = []
    for rankings in itertools.product(*(itertools.permutations(range(count)) for count in counts)):
        ranked = np.ix_(range(len(payoffs)), *rankings)
        fit = np.empty_like(payoffs)
        fit[ranked] = [isotonic(*pair) for pair in zip(payoffs[ranked], weights[ranked], strict=True)]
        fits.append(MonotoneFit(float((weights * (payoffs - fit) ** 2).sum()), rankings, fit))
    least = min(fit.loss for fit in fits)
    return [fit for fit in fits if fit.loss <= least + TOLERANCE]


class MixerFit(NamedTuple):
    loss: np.ndarray  # (R,) sum of weighted squared errors
    greedy: np.ndarray  # (R, N) int64, each agent's action of highest utility
    joint: np.ndarray  # (R, Z, A_1, ..., A_N), Q_tot


def qmix_fit(
    payoffs: np.ndarray,
    weights: np.ndarray,
    seeds: Sequence[int],
    embed: int = 8,
    steps: int = 3000,
    lr: float = 0.01,
    utility_scale: float = 0.05,
    mixer_scale: float = 0.5,
) -> MixerFit:
    """QMIX itself, trained on exact expectations: min 1/2 sum w (r_z(a) - Q_tot(z, a))^2 by full-batch Adam.

    Q_tot(z, a) = |w2_z| . ELU(q(a) |W1_z| + b1_z) + v_z with utilities q_i(a_i) in a table (Rashid et al. 2018, with
    hypernetworks that are free for every z). This is a local method: what it finds depends on the seed.

    Args:
        payoffs, weights: (Z, A_1, ..., A_N).
        seeds: R of them, each of its own initial values; all are trained at once.
        embed: M, hidden units. steps, lr: of Adam.
        utility_scale, mixer_scale: standard deviations of the initial q, and of the initial W1 and w2.

    Raises:
        ValueError: payoffs and weights differ in shape.
    """
    _check_shapes(payoffs, weights)
    n_hidden, *counts = payoffs.shape
    n_agents = len(counts)
    first = np.cumsum([0, *counts[:-1]])  # where each agent's utilities begin
    rows = torch.tensor(
        np.indices(counts).reshape(n_agents, -1).T + first
    )  # (J, N) into the utilities, J joint actions
    target, weight = (torch.tensor(array.reshape(n_hidden, -1)) for array in (payoffs, weights))  # (Z, J)

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def initial(shape: tuple[int, ...], scale: float) -> torch.Tensor:
        drawn = [torch.randn(shape, dtype=torch.float64, generator=generator) for generator in generators]
        return (scale * torch.stack(drawn)).requires_grad_()

    q = initial((sum(counts),), utility_scale)
    w1 = initial((n_hidden, n_agents, embed), mixer_scale)
    b1 = initial((n_hidden, 1, embed), 0.1)
    w2 = initial((n_hidden, embed, 1), mixer_scale)
    v = initial((n_hidden, 1), 0.0)

    def q_tot() -> torch.Tensor:
        hidden = torch.nn.functional.elu(q[:, None, rows] @ w1.abs() + b1)  # (R, Z, J, M)
        return (hidden @ w2.abs()).squeeze(-1) + v  # (R, Z, J)

    optimiser = torch.optim.Adam([q, w1, b1, w2, v], lr=lr)
    for _step in range(steps):
        optimiser.zero_grad()
        (weight * (q_tot() - target) ** 2 / 2).sum().backward()
        optimiser.step()
    with torch.no_grad():
        fit = q_tot()
        loss = (weight * (fit - target) ** 2).sum(dim=(1, 2))
        greedy = torch.stack([part.argmax(dim=1) for part in q.split(counts, dim=1)], dim=1)
    return MixerFit(loss.numpy(), greedy.numpy(), fit.numpy().reshape(len(seeds), *payoffs.shape))


# --- whole games


@dataclass(frozen=True)
class HeadSolution:
    """What one head makes of a game. In a two-step game all but the last two are of the joint decision alone."""

    method: Method
    greedy: tuple[int, ...]  # its joint action
    value: float  # V, what the head believes that its greedy joint action pays
    realised: float  # G, what it pays
    gap: float  # d = V - E_data[r]
    over_estimation: float  # o = relu(V - G)
    takes_safe: bool  # agent 1 prefers the safe action of a two-step game
    episode_return: float  # of greedy play in the whole game


@dataclass(frozen=True)
class Solution:
    optimum: float  # return of the best decentralised play of the whole game
    uniform_return: float  # mean return of uniform play of the whole game
    data_mean: float  # E_data[r] of the joint decision
    iql: HeadSolution
    vdn: HeadSolution
    qmix: HeadSolution  # the limit of what its mixer can express
    qmix_trained: tuple[HeadSolution, ...]  # by seed
    better: Literal["independent", "cooperative", "tie"]  # the head, iql or qmix, whose greedy play earns more


def solve(game: Game, data: np.ndarray, qmix_seeds: Sequence[int] = ()) -> Solution:
    """Greedy play of IQL, VDN and QMIX that have learned a game from `data`, undiscounted.

    The value of head h is V_I = mean_i max_a Q_i(a), V_C = sum_z p(z) f_z(greedy). In a two-step game both actions of
    agent 1 occur in the data of the first step, and its safe action is preferred unless the other's value, V_C for a
    mixer and agent 1's own max_a Q_1(a) without one, is larger.

    QMIX is solved in the limit of all monotone functions, except for redundant: there the limit would be exact, and
    a mixer of one hidden layer, being supermodular, can express of decreasing returns no more than their additive
    fit, so that QMIX is VDN. Where several rankings fit equally well, the first in lexicographic order counts.

    Args:
        game: of `make_game`.
        data: (A_1, ..., A_N), probability of every joint action at the joint decision; all > 0.
        qmix_seeds: if given, QMIX is also trained by `qmix_fit`, once for each, and `better` compares IQL with the
            mean over them instead of the limit.

    Raises:
        ValueError: data of the wrong shape or no distribution over all joint actions, or a game too large for
            `monotone_projection`.
    """
    if data.shape != game.action_counts:
        raise ValueError(f"data must have shape {game.action_counts}, got {data.shape}")
    if (data <= 0).any() or abs(data.sum() - 1) > TOLERANCE:
        raise ValueError("data must give every joint action a probability > 0, and these must sum to 1")
    payoffs, mean_payoff = game.payoffs, game.mean_payoff
    weights = np.multiply.outer(game.probabilities, data)
    data_mean = float((data * mean_payoff).sum())

    def head(method: Method, greedy: tuple[int, ...], value: float, choice_value: float | None = None) -> HeadSolution:
        realised = float(mean_payoff[greedy])
        episode_return, takes_safe = realised, False
        if game.safe is not None and (value if choice_value is None else choice_value) <= game.safe + TOLERANCE:
            episode_return, takes_safe = game.safe, True
        return HeadSolution(
            method=method,
            greedy=greedy,
            value=value,
            realised=realised,
            gap=value - data_mean,
            over_estimation=max(value - realised, 0.0),
            takes_safe=takes_safe,
            episode_return=episode_return,
        )

    def mixed(method: Method, greedy: tuple[int, ...], joint: np.ndarray) -> HeadSolution:
        return head(method, greedy, float(game.probabilities @ joint[(slice(None), *greedy)]))

    q = [independent_values(mean_payoff, data, agent) for agent in range(game.n_agents)]
    iql = head("exact", tuple(map(_greedy, q)), float(np.mean([values.max() for values in q])), float(q[0].max()))
    additive = vdn_fit(payoffs, weights)
    vdn = mixed("exact", tuple(map(_greedy, additive.utilities)), additive.joint)
    if game.name == "redundant":
        qmix = mixed("additive limit", vdn.greedy, additive.joint)
    else:
        fit = monotone_projection(payoffs, weights)[0]
        qmix = mixed("monotone limit", fit.greedy, fit.joint)
    trained = ()
    if qmix_seeds:
        fits = qmix_fit(payoffs, weights, qmix_seeds)
        trained = tuple(
            mixed("gradient descent", tuple(greedy.tolist()), joint)
            for greedy, joint in zip(fits.greedy, fits.joint, strict=True)
        )
    cooperative = float(np.mean([solution.episode_return for solution in trained or (qmix,)]))
    difference = iql.episode_return - cooperative
    return Solution(
        optimum=game.optimum,
        uniform_return=game.uniform_return,
        data_mean=data_mean,
        iql=iql,
        vdn=vdn,
        qmix=qmix,
        qmix_trained=trained,
        better="tie" if abs(difference) <= TOLERANCE else "independent" if difference > 0 else "cooperative",
    )


def _greedy(values: np.ndarray) -> int:
    """The first of the largest."""
    return int(np.argmax(values >= values.max() - TOLERANCE))


def _check_shapes(payoffs: np.ndarray, weights: np.ndarray) -> None:
    if payoffs.shape != weights.shape:
        raise ValueError(f"payoffs and weights must have one shape, got {payoffs.shape} and {weights.shape}")
