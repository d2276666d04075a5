"""ICQ's critic (Yang et al. 2021, section 4): the values of every agent's actions, and a linear mixer of them.

Q_tot = sum_i k_i(s) Q_i(s, o_i, a_i) + b(s) with k_i >= 0, so that the best policy near the data is a product of the
agents'. Legend: B episodes, T steps, N agents, A actions, S state, O observation.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from utils.linear import Linear
from utils.shapes import check_shape


class ICQCritic(nn.Module):
    def __init__(self, scheme, args):
        super().__init__()
        self.n_agents, self.n_actions = args.n_agents, args.n_actions
        states, hidden = int(np.prod(scheme["state"]["vshape"])), args.critic_hidden_dim
        self.fc1 = Linear(states + scheme["obs"]["vshape"] + self.n_agents, hidden)
        self.fc2 = Linear(hidden, hidden)
        self.fc3 = Linear(hidden, self.n_actions)
        self.hyper_k = self._hypernet(states, args.mixing_embed_dim, self.n_agents)
        self.hyper_b = self._hypernet(states, args.mixing_embed_dim, 1)

    def forward(self, batch) -> torch.Tensor:
        """Q_i of every action at every step, (B, T, N, A)."""
        obs = batch["obs"]
        B, T, N, _ = obs.shape
        ids = torch.eye(N, dtype=obs.dtype, device=obs.device).expand(B, T, -1, -1)
        x = torch.cat([batch["state"].unsqueeze(2).expand(-1, -1, N, -1), obs, ids], dim=-1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))

    def mix(self, values: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """The agents' values (B, T, N) and states (B, T, S) -> Q_tot (B, T, 1)."""
        check_shape("values", values, (*states.shape[:2], self.n_agents))
        return (self.gains(states) * values).sum(dim=-1, keepdim=True) + self.hyper_b(states)

    def gains(self, states: torch.Tensor) -> torch.Tensor:
        """k, (B, T, N)."""
        return self.hyper_k(states).abs()

    @staticmethod
    def _hypernet(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(Linear(inputs, hidden), nn.ReLU(), Linear(hidden, outputs))
