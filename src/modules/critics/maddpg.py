"""MADDPG's critic (Lowe et al. 2017): a perceptron of the state and all agents' actions, as one-hot vectors.

Q(s, a) = w3 . ReLU(W2 ReLU(W1 [s; a_1; ...; a_N] + b1) + b2) + b3. Agents that share a reward have one value: there is
one critic for all of them.
Legend: B episodes, T steps, N agents, A actions, S state, H units.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from utils.linear import Linear, linear
from utils.shapes import check_same_shape, check_shape


class MADDPGCritic(nn.Module):
    def __init__(self, scheme, args):
        super().__init__()
        self.n_agents, self.n_actions = args.n_agents, args.n_actions
        self.state_dim = int(np.prod(args.state_shape))
        self.fc1 = Linear(self.state_dim + self.n_agents * self.n_actions, args.critic_hidden_dim)
        self.fc2 = Linear(args.critic_hidden_dim, args.critic_hidden_dim)
        self.fc3 = Linear(args.critic_hidden_dim, 1)

    def forward(self, policies: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """policies (B, T, N, A), states (B, T, S) -> Q (B, T, 1)."""
        self._check(policies, states)
        return self._value(self.fc1(torch.cat([states, policies.flatten(2)], dim=-1)))

    def counterfactual(self, policies: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Q(s, e_k, p_-i) for every agent i and action k: one agent at a time plays k. Both (B, T, N, A).

        One agent's change is a rank-1 update of the first layer.
        """
        others = self._without_each(policies, states)
        return self._value(others.unsqueeze(3) + self._action_weights()).squeeze(-1)

    def deviation(self, policies: torch.Tensor, own: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Q(s, own_i, p_-i) for every agent i: one agent at a time plays `own` instead of p. (B, T, N)"""
        check_same_shape(policies=policies, own=own)
        return self._value(self._without_each(policies, states) + self._shares(own)).squeeze(-1)

    def _value(self, hidden: torch.Tensor) -> torch.Tensor:
        """From the first layer's sums: (..., H) -> (..., 1)."""
        return self.fc3(F.relu(self.fc2(F.relu(hidden))))

    def _action_weights(self) -> torch.Tensor:
        """What each agent's actions add to the first layer's sums, (N, A, H)."""
        return self.fc1.weight[:, self.state_dim :].t().view(self.n_agents, self.n_actions, -1)

    def _shares(self, policies: torch.Tensor) -> torch.Tensor:
        """What each agent adds to the first layer's sums, (B, T, N, H)."""
        return torch.einsum("btna,nah->btnh", policies, self._action_weights())

    def _without_each(self, policies: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """The first layer's sums without agent i's share, (B, T, N, H)."""
        self._check(policies, states)
        of_state = linear(states, self.fc1.weight[:, : self.state_dim], self.fc1.bias)  # (B, T, H)
        shares = self._shares(policies)
        return of_state.unsqueeze(2) + shares.sum(dim=2, keepdim=True) - shares

    def _check(self, policies: torch.Tensor, states: torch.Tensor) -> None:
        check_shape("states", states, (None, None, self.state_dim))
        check_shape("policies", policies, (*states.shape[:2], self.n_agents, self.n_actions))
