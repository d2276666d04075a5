"""Neighbourhoods that agents choose anew at every step, and how values pass between neighbours.

Legend: N agents, H features; `...` stands for any leading dimensions.
"""

import torch
import torch.nn.functional as F
from torch import nn

from utils.linear import Linear
from utils.shapes import check_shape

MARGIN = 1e-4  # by which attention must be above its mean, so that rounding decides nothing


def neighbours(scores: torch.Tensor, temperature: float, explore: bool) -> torch.Tensor:
    """Who is whose neighbour: i and j are if one of them picks the other, or attends to it more than to its average.

    Agent i attends to the others by p_i = softmax of its scores, and picks one of them: the likeliest, or with
    `explore` a sample from p_i (Gumbel-max). Picks and attention pass gradients as if they were not rounded
    (straight-through, Jang et al. 2017: those of a softmax of the perturbed scores at `temperature`).

    Args:
        scores: (..., N, N), row: the agent that chooses. The diagonal has no effect.
        temperature: > 0; only the gradient depends on it.
        explore: draw from torch's global random numbers.

    Returns:
        (..., N, N) of 0 and 1, symmetric, 1 on the diagonal.
    """
    N = scores.shape[-1]
    check_shape("scores", scores, (*scores.shape[:-2], N, N))
    self_loops = torch.eye(N, dtype=torch.bool, device=scores.device)
    if N == 1:
        return torch.ones_like(scores)
    scores = scores.masked_fill(self_loops, -torch.inf)
    attention = scores.softmax(dim=-1)
    perturbed = scores
    if explore:
        perturbed = scores - torch.empty_like(scores).exponential_().log()  # Gumbel noise
    soft = (perturbed / temperature).softmax(dim=-1)
    pick = F.one_hot(perturbed.argmax(dim=-1), N).to(scores.dtype)
    above = (attention * (N - 1) > 1 + MARGIN).to(scores.dtype)
    chosen = torch.maximum(_straight_through(pick, soft), _straight_through(above, attention))
    return torch.maximum(chosen, chosen.transpose(-1, -2)).masked_fill(self_loops, 1.0)


def normalise(adjacency: torch.Tensor) -> torch.Tensor:
    """D^-1/2 A D^-1/2, with D the numbers of neighbours, oneself included.  (Kipf & Welling 2017, equation 2)

    Its eigenvalues lie in [-1, 1], so that repeated convolutions do not blow up.

    Args:
        adjacency: (..., N, N) symmetric, 1 on the diagonal.
    """
    check_shape("adjacency", adjacency, (*adjacency.shape[:-1], adjacency.shape[-2]))
    scale = adjacency.sum(dim=-1).rsqrt()
    return scale.unsqueeze(-1) * adjacency * scale.unsqueeze(-2)


class Neighbourhood(nn.Module):
    """The graph's normalised matrix from the agents' features, by attention between them.

    Args:
        features: H. embed_dim: size of queries and keys. temperature: see `neighbours`.
    """

    def __init__(self, features: int, embed_dim: int, temperature: float):
        super().__init__()
        self.query = Linear(features, embed_dim)
        self.key = Linear(features, embed_dim)
        self.temperature = temperature

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (..., N, H) -> (..., N, N).

        Neighbours are sampled only where a gradient is wanted: what is merely read, such as a target, does not explore.
        """
        query, key = self.query(features), self.key(features)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        return normalise(neighbours(scores, self.temperature, explore=torch.is_grad_enabled()))


def _straight_through(hard: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    """The values of `hard`, exactly, with the gradient of `soft`."""
    return hard + (soft - soft.detach())
