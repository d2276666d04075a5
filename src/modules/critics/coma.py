"""COMA's critic (Foerster et al. 2018): the value of each of an agent's actions, the others' actions given.

Legend: B episodes, T steps, N agents, A actions, S state, O observation.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from utils.linear import Linear
from utils.shapes import check_shape


class COMACritic(nn.Module):
    """Q(s, o_i, a_-i, .) of every agent i in one pass; its inputs also hold the joint action before, and i."""

    def __init__(self, scheme, args):
        super().__init__()
        self.n_agents, self.n_actions = args.n_agents, args.n_actions
        joint = self.n_agents * self.n_actions
        inputs = int(np.prod(scheme["state"]["vshape"])) + scheme["obs"]["vshape"] + 2 * joint + self.n_agents
        self.fc1 = Linear(inputs, args.critic_hidden_dim)
        self.fc2 = Linear(args.critic_hidden_dim, args.critic_hidden_dim)
        self.fc3 = Linear(args.critic_hidden_dim, self.n_actions)

    def forward(self, batch, t=None, actions: torch.Tensor | None = None) -> torch.Tensor:
        """The value of agent i's every action at every step, or at step `t` alone: (B, T, N, A).

        Args:
            actions: (B, T, N, A), what the agents do, if not what is logged.
        """
        played = batch["actions_onehot"]
        joint = played if actions is None else actions
        check_shape("actions", joint, played.shape)
        B, T, N, _ = played.shape
        ids = torch.eye(N, device=played.device, dtype=played.dtype)
        others = joint.unsqueeze(2) * (1 - ids).unsqueeze(-1)  # (B, T, N, N, A): row i without agent i's own action
        before = torch.cat([torch.zeros_like(played[:, :1]), played[:, :-1]], dim=1).flatten(2)
        inputs = [
            batch["state"].unsqueeze(2).expand(-1, -1, N, -1),
            batch["obs"],
            others.flatten(3),
            before.unsqueeze(2).expand(-1, -1, N, -1),
            ids.expand(B, T, -1, -1),
        ]
        x = torch.cat(inputs, dim=-1)
        if t is not None:
            x = x[:, t : t + 1]
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))
