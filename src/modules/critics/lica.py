"""LICA's mixing critic (Zhou et al. 2020, section 4.1): the team's value of the agents' action probabilities.

Q(s, p) = w2(s) . ReLU([p_1; ...; p_N] W1(s) + b1(s)) + b2(s), with the weights made from the state by hypernetworks.
Their signs are free: actors ascend Q's gradient, so that nothing needs to be monotone.
Legend: B episodes, T steps, N agents, A actions, S state, E units.
"""

from dataclasses import dataclass

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
        return self.at(states)(policies)

    def counterfactual(self, policies: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Q(s, e_k, p_-i) for every agent i and action k: one agent at a time plays k. Both (B, T, N, A)."""
        return self.at(states).counterfactual(policies)

    def deviation(self, policies: torch.Tensor, own: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Q(s, own_i, p_-i) for every agent i: one agent at a time plays `own` instead of p. (B, T, N)"""
        return self.at(states).deviation(policies, own)

    def at(self, states: torch.Tensor) -> "_LICACriticAt":
        """The critic in these states, (B, T, S): the hypernetworks run once, whatever it is asked."""
        check_shape("states", states, (None, None, self.state_dim))
        w1 = self.hyper_w_1(states).view(*states.shape[:2], self.n_agents, self.n_actions, self.embed_dim)
        return _LICACriticAt(w1, self.hyper_b_1(states), self.hyper_w_final(states), self.hyper_b_2(states))

    def _hypernet(self, hidden: int, out: int) -> nn.Sequential:
        return nn.Sequential(Linear(self.state_dim, hidden), nn.ReLU(), Linear(hidden, out))


@dataclass
class _LICACriticAt:
    w1: torch.Tensor  # (B, T, N, A, E)
    b1: torch.Tensor  # (B, T, E)
    w2: torch.Tensor  # (B, T, E)
    b2: torch.Tensor  # (B, T, 1)

    def __call__(self, policies: torch.Tensor) -> torch.Tensor:
        """(B, T, N, A) -> (B, T, 1)"""
        check_shape("policies", policies, self.w1.shape[:4])
        hidden = torch.matmul(policies.flatten(2).unsqueeze(2), self.w1.flatten(2, 3)).squeeze(2)  # (B, T, E)
        return (F.relu(hidden + self.b1) * self.w2).sum(dim=-1, keepdim=True) + self.b2

    def counterfactual(self, policies: torch.Tensor) -> torch.Tensor:
        """(B, T, N, A) -> (B, T, N, A); one agent's change is a rank-1 update of the first layer."""
        hidden = F.relu(self._without_each(policies).unsqueeze(3) + self.w1)  # (B, T, N, A, E)
        return (hidden * self.w2[:, :, None, None]).sum(dim=-1) + self.b2.unsqueeze(-1)

    def deviation(self, policies: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """(B, T, N, A) twice -> (B, T, N)"""
        check_same_shape(policies=policies, own=own)
        mine = (own.unsqueeze(-1) * self.w1).sum(dim=3)  # (B, T, N, E)
        hidden = F.relu(self._without_each(policies) + mine)
        return (hidden * self.w2.unsqueeze(2)).sum(dim=-1) + self.b2

    def _without_each(self, policies: torch.Tensor) -> torch.Tensor:
        """The first layer's sums without agent i's share, (B, T, N, E)."""
        check_shape("policies", policies, self.w1.shape[:4])
        shares = (policies.unsqueeze(-1) * self.w1).sum(dim=3)
        return shares.sum(dim=2, keepdim=True) + self.b1.unsqueeze(2) - shares
