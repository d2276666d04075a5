"""Exact tools of the checks: the project's equations as functions of arrays, and small problems solved to the end.

Legend: S states, N agents, A actions, J joint actions, R rows. Arrays are float64; (..., A) stands for the actions of
a row. A decision problem is transition (S, J, S), reward (S, J), gamma; a policy is (S, J).
"""

import itertools
from types import SimpleNamespace

import numpy as np
import torch
from scipy.optimize import lsq_linear

from modules.mixers.qmix import QMixer
from objectives import conservative, gate, munchausen, td


def tensor(values) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


# --- src/objectives on arrays


def sup(q, op: str, temperature: float = 1.0, avail=None, beta=None) -> np.ndarray:
    """`conservative.sup_value`, (..., A) -> (...); without `avail` every action is available."""
    avail = np.ones_like(q) if avail is None else avail
    beta = None if beta is None else tensor(beta)
    return conservative.sup_value(tensor(q), tensor(avail), op, temperature, beta).numpy()


def log_policy(q, tau: float) -> np.ndarray:
    """log softmax(Q/tau), (..., A) -> (..., A)."""
    return munchausen.log_policy(tensor(q), torch.ones(np.shape(q)), tau).numpy()


def policy(q, tau: float) -> np.ndarray:
    return np.exp(log_policy(q, tau))


def soft_value(q, tau: float) -> np.ndarray:
    """tau log sum exp(Q/tau), (..., A) -> (...)."""
    return munchausen.soft_value(tensor(q), torch.ones(np.shape(q)), tau).numpy()


def bonus(log_rho, tau: float, l0: float = -np.inf, clip: str = "scaled") -> np.ndarray:
    """The Munchausen term without its factor alpha; by default without its clip."""
    return munchausen.munchausen_bonus(tensor(log_rho), tau, l0, clip).numpy()


def direct_weights(gaps, p: float = 1.0) -> np.ndarray:
    """Reciprocal weights (2,) of gaps (2,), with an eps that does not matter."""
    return gate.direct_weights(tensor(gaps), 1e-12, p).numpy()


def backup(reward, transition, value, gamma: float) -> np.ndarray:
    """r + gamma E[V(s')], of problems that never end: (S, J)."""
    v_next = tensor(np.asarray(transition) @ np.asarray(value))
    return td.one_step_targets(tensor(reward), torch.zeros_like(v_next), v_next, gamma).numpy()


class Mixers:
    """R QMIX mixers with random weights as one function: q (R, J, N) -> Q_tot (R, J). Every row has its own weights."""

    state_size = 8

    def __init__(self, n_mixers: int, n_agents: int, seed: int, embed: int = 5):
        sizes = {"n_agents": n_agents, "mixing_embed_dim": embed, "state_shape": self.state_size}
        self.net = QMixer(SimpleNamespace(**sizes, hypernet_layers=1, hypernet_embed=1)).double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.net.parameters():  # of a size that gives mixing weights of about 1
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / self.state_size**0.5)
        self.net.requires_grad_(False)
        self.states = torch.randn(n_mixers, 1, self.state_size, generator=generator).double()

    def __call__(self, q) -> np.ndarray:
        return self.net(tensor(q), self._states(np.shape(q)[1])).squeeze(-1).numpy()

    def counterfactual(self, chosen, q) -> np.ndarray:
        """Q_tot(k, a_-i): chosen (R, N), q (R, N, A) -> (R, N, A), by the mixer's own rank-1 update."""
        return self.net.counterfactual(tensor(chosen)[:, None], tensor(q)[:, None], self._states(1))[:, 0].numpy()

    def slopes(self, q) -> np.ndarray:
        """df/dq_i at q (R, J, N)."""
        point = tensor(q).requires_grad_()
        return torch.autograd.grad(self.net(point, self._states(np.shape(q)[1])).sum(), point)[0].numpy()

    def largest_slopes(self) -> np.ndarray:
        """L_i = sum_k |W1_ik| |w2_k|, (R, N): ELU' is at most 1."""
        w1 = self.net.hyper_w_1(self.states).abs().view(len(self.states), self.net.n_agents, -1)
        return (w1 * self.net.hyper_w_final(self.states).abs()).sum(dim=-1).numpy()

    def _states(self, n_columns: int) -> torch.Tensor:
        return self.states.expand(-1, n_columns, -1)


# --- joint actions and distributions


def joint_actions(n_agents: int, n_actions: int) -> np.ndarray:
    """All of them, (A^N, N)."""
    return np.array(list(itertools.product(range(n_actions), repeat=n_agents)))


def values_of(q: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """The agents' values of joint actions: q (R, N, A), actions (J, N) -> (R, J, N)."""
    return q[:, np.arange(q.shape[1]), actions]


def random_policies(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Distributions over the last dimension in which every action has some weight."""
    weights = rng.random(shape) + 0.1
    return weights / weights.sum(axis=-1, keepdims=True)


def kl(p, q) -> np.ndarray:
    """KL(p || q) over the last dimension; q may sum to less than 1."""
    p, q = np.broadcast_arrays(p, q)
    return np.where(p > 0, p * (np.log(np.where(p > 0, p, 1.0)) - np.log(q)), 0.0).sum(axis=-1)


def entropy(p) -> np.ndarray:
    return -kl(p, np.ones(np.shape(p)[-1]))


def chi_square(p, q) -> np.ndarray:
    """sum p^2 / q - 1 over the last dimension."""
    return (np.asarray(p) ** 2 / np.asarray(q)).sum(axis=-1) - 1


# --- decision problems


def random_problem(rng: np.random.Generator, n_states: int, *n_actions: int) -> tuple[np.ndarray, np.ndarray]:
    """transition (S, *A, S) and reward (S, *A), normal."""
    transition = rng.dirichlet(np.full(n_states, 0.5), size=(n_states, *n_actions))
    return transition, rng.normal(size=(n_states, *n_actions))


def policy_value(transition, reward, policy_, gamma: float) -> np.ndarray:
    """V^pi, (S,), by solving (I - gamma P^pi) V = r^pi."""
    step = np.einsum("sj,sjt->st", policy_, transition)
    return np.linalg.solve(np.eye(len(step)) - gamma * step, (policy_ * reward).sum(axis=1))


def optimal_q(transition, reward, gamma: float, tau: float | None = None, sweeps: int = 600) -> np.ndarray:
    """The fixed point of value iteration, (S, J): with the maximum, or at temperature tau with the soft value."""
    q = np.zeros_like(reward)
    for _ in range(sweeps):
        q = backup(reward, transition, q.max(axis=-1) if tau is None else soft_value(q, tau), gamma)
    return q


# --- fits of games


def greedy_values(fit, probabilities=(1.0,)) -> np.ndarray:
    """V = E_z f_z(greedy) of each seed of a `MixerFit`: (R,)."""
    chosen = [joint[(slice(None), *greedy)] for joint, greedy in zip(fit.joint, fit.greedy, strict=True)]
    return np.array(chosen) @ np.asarray(probabilities)


# --- monotone functions on a grid of joint actions


def upper_sets(shape: tuple[int, ...]) -> np.ndarray:
    """All sets that hold with a cell every larger one, but the empty one: booleans (sets, *shape), by trying all."""
    sets = (np.array(bits).reshape(shape) for bits in itertools.product((False, True), repeat=int(np.prod(shape))))
    axes = range(len(shape))
    return np.array([u for u in sets if u.any() and all((np.diff(u.astype(int), axis=d) >= 0).all() for d in axes)])


def project_on_cone(target: np.ndarray, conditions: np.ndarray) -> np.ndarray:
    """argmin_f |f - target|^2 such that conditions @ f >= 0, by its non-negative multipliers (Moreau)."""
    multipliers = lsq_linear(conditions.T, -target, bounds=(0, np.inf), method="bvls", tol=1e-14).x
    return target + conditions.T @ multipliers
