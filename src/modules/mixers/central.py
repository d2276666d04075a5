"""The unrestricted mixer of Weighted QMIX's central value (Rashid et al. 2020, section 4).

g(q, s) = network([q, s]) + v(s). It is not monotone, so no agent could act by it; it can fit any joint values.
"""

import torch
from torch import nn

from utils.linear import Linear
from utils.shapes import check_shape


class CentralMixer(nn.Module):
    def __init__(self, n_agents: int, state_dim: int, embed_dim: int):
        """
        Args:
            embed_dim: E, units of every hidden layer.
        """
        super().__init__()
        self.n_agents, self.state_dim = n_agents, state_dim
        layers: list[nn.Module] = []
        for inputs in (n_agents + state_dim, embed_dim, embed_dim):
            layers += [Linear(inputs, embed_dim), nn.ReLU()]
        self.net = nn.Sequential(*layers, Linear(embed_dim, 1))
        self.V = nn.Sequential(Linear(state_dim, embed_dim), nn.ReLU(), Linear(embed_dim, 1))

    def forward(self, agent_qs: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """agent_qs (B, T, N), states (B, T, S) -> (B, T, 1)."""
        check_shape("states", states, (None, None, self.state_dim))
        check_shape("agent_qs", agent_qs, (*states.shape[:2], self.n_agents))
        return self.net(torch.cat([agent_qs, states], dim=-1)) + self.V(states)
