"""LICA's mixing critic (Zhou et al. 2020, section 4.1): the team's value of the agents' action probabilities.

Q(s, p) = w2(s) . ReLU([p_1; ...; p_N] W1(s) + b1(s)) + b2(s), with the weights made from the state by hypernetworks.
Their signs are free: actors ascend Q's gradient, so that nothing needs to be monotone.
Legend: B episodes, T steps, N agents, A actions, S state, E units.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from utils.linear import Linear
from utils.shapes import check_same_shape, check_shape


class LICACritic(nn.Module):
    def __init__(self, scheme, args):
        super().__init__()
        self.n_agents, self.n_actions = args.n_agents, args.n_actions
        self.state_dim = int(np.prod(args.state_shape))
        self.embed_dim = args.mixing_embed_dim
        inputs = self.n_agents * self.n_actions
        if args.hypernet_layers == 1:
            self.hyper_w_1 = Linear(self.state_dim, inputs * self.embed_dim)
            self.hyper_w_final = Linear(self.state_dim, self.embed_dim)
        elif args.hypernet_layers == 2:
            self.hyper_w_1 = self._hypernet(args.hypernet_embed, inputs * self.embed_dim)
            self.hyper_w_final = self._hypernet(args.hypernet_embed, self.embed_dim)
        else:
            raise ValueError(f"hypernet_layers must be 1 or 2, got {args.hypernet_layers}")
        self.hyper_b_1 = Linear(self.state_dim, self.embed_dim)
        self.hyper_b_2 = self._hypernet(self.embed_dim, 1)

    def forward(self, policies: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """policies (B, T, N, A), states (B, T, S) -> Q (B, T, 1)."""
        w1, b1, w2, b2 = self._weights(policies, states)
        hidden = torch.matmul(policies.flatten(2).unsqueeze(2), w1.flatten(2, 3)).squeeze(2)  # (B, T, E)
        return (F.relu(hidden + b1) * w2).sum(dim=-1, keepdim=True) + b2

    def counterfactual(self, policies: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Q(s, e_k, p_-i) for every agent i and action k: one agent at a time plays k. Both (B, T, N, A).

        One agent's change is a rank-1 update of the first layer, so the hypernetworks run once.
        """
        w1, b1, w2, b2 = self._weights(policies, states)
        others = self._without_each(policies, w1, b1)
        hidden = F.relu(others.unsqueeze(3) + w1)  # (B, T, N, A, E)
        return (hidden * w2[:, :, None, None]).sum(dim=-1) + b2.unsqueeze(-1)

    def deviation(self, policies: torch.Tensor, own: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Q(s, own_i, p_-i) for every agent i: one agent at a time plays `own` instead of p. (B, T, N)"""
        check_same_shape(policies=policies, own=own)
        w1, b1, w2, b2 = self._weights(policies, states)
        mine = (own.unsqueeze(-1) * w1).sum(dim=3)  # (B, T, N, E)
        hidden = F.relu(self._without_each(policies, w1, b1) + mine)
        return (hidden * w2.unsqueeze(2)).sum(dim=-1) + b2

    def _weights(self, policies: torch.Tensor, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """W1 (B, T, N, A, E), b1 (B, T, E), w2 (B, T, E), b2 (B, T, 1)."""
        check_shape("states", states, (None, None, self.state_dim))
        B, T, _ = states.shape
        check_shape("policies", policies, (B, T, self.n_agents, self.n_actions))
        w1 = self.hyper_w_1(states).view(B, T, self.n_agents, self.n_actions, self.embed_dim)
        return w1, self.hyper_b_1(states), self.hyper_w_final(states), self.hyper_b_2(states)

    @staticmethod
    def _without_each(policies: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor) -> torch.Tensor:
        """The first layer's sums without agent i's share, (B, T, N, E)."""
        shares = (policies.unsqueeze(-1) * w1).sum(dim=3)
        return shares.sum(dim=2, keepdim=True) + b1.unsqueeze(2) - shares

    def _hypernet(self, hidden: int, out: int) -> nn.Sequential:
        return nn.Sequential(Linear(self.state_dim, hidden), nn.ReLU(), Linear(hidden, out))
