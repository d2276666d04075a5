"""Coordination graphs (Guestrin et al. 2002; Boehmer et al. 2020): the team's value as a sum over agents and edges.

Q(a) = 1/N sum_i f_i(a_i) + 1/E sum_{(i,j)} f_ij(a_i, a_j), with utilities f_i and payoffs f_ij. The best joint action
is found by messages along the edges instead of over all A^N joint actions. Legend: N agents, A actions, E edges; `...`
stands for any leading dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from utils.shapes import check_shape

# The edges (i, j), i < j, of N agents.
TOPOLOGIES: dict[str, Callable[[int], list[tuple[int, int]]]] = {
    "full": lambda n: [(i, j) for i in range(n) for j in range(i + 1, n)],
    "cycle": lambda n: TOPOLOGIES["line"](n) + ([(0, n - 1)] if n > 2 else []),
    "line": lambda n: [(i, i + 1) for i in range(n - 1)],
    "star": lambda n: [(0, i) for i in range(1, n)],
    "none": lambda n: [],  # utilities alone: VDN
}


def edge_list(topology: str, n_agents: int) -> torch.Tensor:
    """The edges of a topology, (2, E): column e holds the two agents of edge e."""
    return torch.tensor(TOPOLOGIES[topology](n_agents), dtype=torch.int64).reshape(-1, 2).T


def graph_value(
    utilities: torch.Tensor, payoffs: torch.Tensor, edges: torch.Tensor, actions: torch.Tensor
) -> torch.Tensor:
    """Q(a) = 1/N sum_i f_i(a_i) + 1/E sum_{(i,j)} f_ij(a_i, a_j).  (Boehmer et al. 2020, equation 3)

    Args:
        utilities: (..., N, A).
        payoffs: (..., E, A, A), row: action of the edge's first agent.
        edges: (2, E).
        actions: (..., N, 1).

    Returns:
        (..., 1).
    """
    _check(utilities, payoffs, edges)
    check_shape("actions", actions, (*utilities.shape[:-1], 1))
    value = utilities.gather(-1, actions).mean(dim=-2)
    if edges.shape[1] == 0:
        return value
    first, second = (actions[..., ends, :] for ends in edges)  # (..., E, 1)
    pair = first * utilities.shape[-1] + second
    return value + payoffs.flatten(-2).gather(-1, pair).mean(dim=-2)


def max_sum(
    utilities: torch.Tensor, payoffs: torch.Tensor, edges: torch.Tensor, avail: torch.Tensor, iterations: int
) -> torch.Tensor:
    """The best joint action of a graph, by max-sum messages along its edges.  (Algorithm 3 there)

    An agent's message says what each of its neighbour's actions is worth at best, all else that it was told included:
    m_ij(a_j) = max_{a_i} [f_i(a_i)/N + sum_{k != j} m_ki(a_i) + f_ij(a_i, a_j)/E], less its mean over available a_j.
    On a tree this is exact after as many iterations as the longest path has edges. On other graphs messages may cycle,
    so the best of the joint actions that came up is kept (anytime extension of Kok & Vlassis 2006); the first is that
    of the utilities alone.

    Args:
        utilities, avail: (..., N, A). Agents with no action are read as having all (padding).
        payoffs: (..., E, A, A). edges: (2, E).
        iterations: rounds in which every edge passes a message in both directions.

    Returns:
        (..., N, 1) available actions; no gradient flows.
    """
    _check(utilities, payoffs, edges)
    check_shape("avail", avail, tuple(utilities.shape))
    n_edges = edges.shape[1]
    utilities, payoffs = utilities.detach(), payoffs.detach()
    may = (avail > 0) | (avail == 0).all(dim=-1, keepdim=True)
    own = (utilities / utilities.shape[-2]).masked_fill(~may, -torch.inf)
    best = own.argmax(dim=-1, keepdim=True)
    if n_edges == 0:
        return best
    best_value = graph_value(utilities, payoffs, edges, best)

    # From here on actions lead and situations come last, R of them, so that maxima over few actions run over long rows.
    own, may = _actions_first(own, 1), _actions_first(may, 1)  # (A, N, R)
    # Each edge in both directions; the reverse of direction d is d + E, modulo 2 E.
    sender, receiver = torch.cat([edges, edges.flip(0)], dim=1)
    forth = _actions_first(payoffs, 2)  # (A, A, E, R)
    directed = torch.cat([forth, forth.transpose(0, 1)], dim=2) / n_edges  # by the sender's, the receiver's
    heard = may[:, receiver]  # (A, 2E, R) the actions that a message matters for
    n_heard = heard.sum(dim=0)
    messages = torch.zeros_like(directed[0])  # (A, 2E, R) by the receiver's action
    beliefs = own
    for _ in range(iterations):
        told = beliefs[:, sender] - messages.roll(n_edges, dims=1)  # without what the receiver itself has said
        messages = (told.unsqueeze(1) + directed).amax(dim=0)
        messages = messages - torch.where(heard, messages, 0.0).sum(dim=0) / n_heard
        beliefs = own.index_add(1, receiver, messages)
        actions = beliefs.argmax(dim=0).T.reshape(best.shape)
        value = graph_value(utilities, payoffs, edges, actions)
        better = value > best_value
        best_value = torch.where(better, value, best_value)
        best = torch.where(better.unsqueeze(-1), actions, best)
    return best


def _actions_first(values: torch.Tensor, n_dims: int) -> torch.Tensor:
    """(..., X, A) -> (A, X, R), or with `n_dims` 2 (..., X, A, A) -> (A, A, X, R)."""
    flat = values.reshape(-1, *values.shape[-n_dims - 1 :])  # (R, X, A[, A])
    return flat.permute(*range(2, n_dims + 2), 1, 0).contiguous()


@dataclass
class GraphValues:
    """The values of a coordination graph in many situations; slices as its tensors' leading dimensions do."""

    utilities: torch.Tensor  # (..., N, A)
    payoffs: torch.Tensor  # (..., E, A, A)
    edges: torch.Tensor  # (2, E)

    def __getitem__(self, index) -> "GraphValues":
        return GraphValues(self.utilities[index], self.payoffs[index], self.edges)

    def of(self, actions: torch.Tensor) -> torch.Tensor:
        """Q of joint actions: (..., N, 1) -> (..., 1)."""
        return graph_value(self.utilities, self.payoffs, self.edges, actions)

    def best(self, avail: torch.Tensor, iterations: int) -> torch.Tensor:
        """The best joint action, as far as `iterations` of messages find it: (..., N, A) -> (..., N, 1)."""
        return max_sum(self.utilities, self.payoffs, self.edges, avail, iterations)


def _check(utilities: torch.Tensor, payoffs: torch.Tensor, edges: torch.Tensor) -> None:
    *leading, _, A = utilities.shape
    check_shape("edges", edges, (2, None))
    check_shape("payoffs", payoffs, (*leading, edges.shape[1], A, A))
