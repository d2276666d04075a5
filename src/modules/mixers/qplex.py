"""QPLEX's duplex dueling mixer (Wang et al. 2021, section 4; `dmaq` in its code).

Q_tot(a; s) = sum_i V_i + sum_i lambda_i(s, a) A_i(a_i), with Q_i' = w_i(s) Q_i + b_i(s), w_i > 0, V_i = max_k Q_i'(k)
and A_i = Q_i'(a_i) - V_i <= 0. Since lambda_i > 0, a joint action is best if and only if every agent's part is its own
best one: the greedy actions agree (IGM), and nothing else is restricted. lambda_i is a sum over kernels k of
|key_k(s)| sigmoid(agents_k(s))_i sigmoid(actions_k(s, a))_i.

Legend: B episodes, T steps, N agents, A actions, S state.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from utils.linear import Linear
from utils.shapes import check_same_shape, check_shape

LEAST_WEIGHT = 1e-10  # keeps weights positive


class DuplexMixer(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.n_agents, self.n_actions = args.n_agents, args.n_actions
        self.state_dim = int(np.prod(args.state_shape))
        self.hyper_w = _network(self.state_dim, self.n_agents, 2, args.hypernet_embed)
        self.hyper_b = _network(self.state_dim, self.n_agents, 2, args.hypernet_embed)
        self.kernels = nn.ModuleList(
            _Kernel(self.state_dim, self.n_agents, self.n_actions, args.adv_hypernet_layers, args.adv_hypernet_embed)
            for _ in range(args.num_kernel)
        )

    def of_actions(
        self, q: torch.Tensor, actions: torch.Tensor, avail: torch.Tensor, states: torch.Tensor
    ) -> torch.Tensor:
        """Q_tot of joint actions, (B, T, 1); the arguments are those of `joint_value`."""
        best = q.masked_fill(avail == 0, -torch.inf).max(dim=3).values
        onehot = F.one_hot(actions.squeeze(3), self.n_actions).to(q.dtype)
        return self(q.gather(3, actions).squeeze(3), states, onehot, best)

    def forward(
        self, agent_qs: torch.Tensor, states: torch.Tensor, actions: torch.Tensor, max_qs: torch.Tensor
    ) -> torch.Tensor:
        """Q_tot of joint actions.

        The agents learn through sum_i Q_i' alone: no gradient flows through the advantages, which only teach lambda, as
        in the paper's code.

        Args:
            agent_qs, max_qs: (B, T, N) values of the chosen and of the best available actions.
            states: (B, T, S).
            actions: (B, T, N, A) one-hot.

        Returns:
            (B, T, 1).
        """
        check_shape("agent_qs", agent_qs, (*states.shape[:2], self.n_agents))
        check_same_shape(agent_qs=agent_qs, max_qs=max_qs)
        check_shape("actions", actions, (*agent_qs.shape, self.n_actions))
        w, b = self._scales(states)
        advantages = (w * (agent_qs - max_qs)).detach()
        weights = self.advantage_weights(states, actions)
        # sum_i V_i + lambda_i A_i = sum_i Q_i' + (lambda_i - 1) A_i
        return (w * agent_qs + b + (weights - 1) * advantages).sum(dim=-1, keepdim=True)

    def advantage_weights(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """lambda_i(s, a), positive: states (B, T, S), one-hot actions (B, T, N, A) -> (B, T, N)."""
        joint = torch.cat([states, actions.flatten(2)], dim=-1)
        return torch.stack([kernel(states, joint) for kernel in self.kernels]).sum(dim=0)

    def _scales(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """w (positive) and b of every agent, (B, T, N)."""
        check_shape("states", states, (None, None, self.state_dim))
        return self.hyper_w(states).abs() + LEAST_WEIGHT, self.hyper_b(states)


class _Kernel(nn.Module):
    """One attention head's part of lambda."""

    def __init__(self, state_dim: int, n_agents: int, n_actions: int, layers: int, embed_dim: int):
        super().__init__()
        self.key = _network(state_dim, 1, layers, embed_dim)
        self.agents = _network(state_dim, n_agents, layers, embed_dim)
        self.actions = _network(state_dim + n_agents * n_actions, n_agents, layers, embed_dim)

    def forward(self, states: torch.Tensor, joint: torch.Tensor) -> torch.Tensor:
        """states (B, T, S), states and one-hot joint actions (B, T, S + N * A) -> (B, T, N)."""
        key = self.key(states).abs() + LEAST_WEIGHT
        return key * self.agents(states).sigmoid() * self.actions(joint).sigmoid()


def _network(inputs: int, outputs: int, layers: int, hidden: int) -> nn.Sequential:
    """A network of linear layers with ReLU between them."""
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts += [Linear(inputs, hidden), nn.ReLU()]
        inputs = hidden
    return nn.Sequential(*parts, Linear(inputs, outputs))
