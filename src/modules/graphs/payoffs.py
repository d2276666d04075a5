"""The payoffs of a coordination graph's edges, from the features of their agents (Boehmer et al. 2020, section 4).

Legend: N agents, A actions, E edges, H features, K rank; `...` stands for any leading dimensions.
"""

import torch
from torch import nn

from utils.linear import Linear, linear


class PayoffNetwork(nn.Module):
    """One network for all edges: f_ij(a, b) = 1/2 [F(h_i, h_j)(a, b) + F(h_j, h_i)(b, a)].

    The mean makes it the same whichever of the two agents comes first. With a rank, F is
    sum_k left_k(a) right_k(b), K vectors for each of the two agents, instead of a whole matrix.

    Args:
        features: H. n_actions: A.
        hidden: units of a hidden layer; None: F is linear in the features, as in the paper's code.
        rank: K; None: whole matrices.
    """

    def __init__(self, features: int, n_actions: int, hidden: int | None, rank: int | None):
        super().__init__()
        self.features, self.n_actions, self.rank = features, n_actions, rank
        outputs = n_actions**2 if rank is None else 2 * rank * n_actions
        self.pair = Linear(2 * features, outputs if hidden is None else hidden)
        self.output = nn.Identity() if hidden is None else nn.Sequential(nn.ReLU(), Linear(hidden, outputs))

    def forward(self, features: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """Features (..., N, H), edges (2, E) -> payoffs (..., E, A, A), row: action of the edge's first agent."""
        # The first layer is a sum over the two agents, so it runs once for each agent instead of for each edge.
        as_first = linear(features, self.pair.weight[:, : self.features], self.pair.bias)
        as_second = linear(features, self.pair.weight[:, self.features :])
        first, second = torch.cat([edges, edges.flip(0)], dim=1)
        raw = self.output(as_first[..., first, :] + as_second[..., second, :])  # (..., 2E, outputs)
        forth, back = self._matrices(raw).tensor_split(2, dim=-3)
        return (forth + back.transpose(-1, -2)) / 2

    def _matrices(self, raw: torch.Tensor) -> torch.Tensor:
        """(..., A, A)."""
        A = self.n_actions
        if self.rank is None:
            return raw.unflatten(-1, (A, A))
        left, right = raw.unflatten(-1, (2, self.rank, A)).unbind(dim=-3)  # (..., K, A)
        return torch.einsum("...ka,...kb->...ab", left, right)
