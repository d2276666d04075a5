"""QTRAN's joint networks (Son et al. 2019): a joint action value without restrictions, and a state value.

Q_jt(s, u) and V(s) read the state and the joint action: as one-hots side by side (`qtran_arch: coma_critic`), or as the
sum of encodings of every agent's features and action (`qtran_paper`). Names of parameters are PyMARL's. Legend: B
episodes, T steps, N agents, A actions, S state, H the agents' features, E units of a layer.
"""

import numpy as np
import torch
from torch import nn

from utils.linear import Linear
from utils.shapes import check_shape

HIDDEN_LAYERS = {"small": 2, "big": 3}


class QTranBase(nn.Module):
    """One value of the joint action."""

    def __init__(self, args):
        super().__init__()
        self.n_agents, self.n_actions = args.n_agents, args.n_actions
        self.state_dim = int(np.prod(args.state_shape))
        self.embed_dim = args.mixing_embed_dim
        self.hidden_layers = HIDDEN_LAYERS[args.network_size]
        if args.qtran_arch == "coma_critic":
            size = self.n_agents * self.n_actions
            self.action_encoding = None
        elif args.qtran_arch == "qtran_paper":
            size = args.rnn_hidden_dim + self.n_actions
            self.action_encoding = nn.Sequential(Linear(size, size), nn.ReLU(), Linear(size, size))
        else:
            raise ValueError(f"qtran_arch must be coma_critic or qtran_paper, got {args.qtran_arch!r}")
        self.Q = self._joint_network(self.state_dim + size)
        self.V = self._network(self.state_dim, 1)

    def forward(
        self, batch, hidden_states: torch.Tensor, actions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The value of a joint action, and of the state.

        Args:
            batch: of B episodes and T steps, with `state` and `actions_onehot`.
            hidden_states: (B, T, N, H) the agents' features, such as their memories.
            actions: (B, T, N, A) one-hot; None for those of the batch.

        Returns:
            Q_jt (B * T, 1), V (B * T, 1).
        """
        states, actions = self._read(batch, hidden_states, actions)
        joint = self._encode(hidden_states, actions).sum(dim=1)
        return self.Q(torch.cat([states, joint], dim=1)), self.V(states)

    def _read(self, batch, hidden_states, actions) -> tuple[torch.Tensor, torch.Tensor]:
        """States (B * T, S) and one-hot joint actions (B * T, N, A)."""
        actions = batch["actions_onehot"] if actions is None else actions
        B, T = batch.batch_size, batch.max_seq_length
        check_shape("actions", actions, (B, T, self.n_agents, self.n_actions))
        check_shape("hidden_states", hidden_states, (B, T, self.n_agents, None))
        states = batch["state"].reshape(B * T, self.state_dim)
        return states, actions.reshape(B * T, self.n_agents, self.n_actions).to(states.dtype)

    def _encode(self, hidden_states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """What every agent adds to the joint input: (B, T, N, H), (B * T, N, A) -> (B * T, N, H + A or N * A).

        Without an encoding that is its one-hot in a place of its own, so that the sum is all of them side by side.
        """
        if self.action_encoding is None:
            own = torch.eye(self.n_agents, dtype=actions.dtype, device=actions.device).unsqueeze(-1)
            return (actions.unsqueeze(2) * own).flatten(2)
        features = hidden_states.reshape(*actions.shape[:2], -1)
        return self.action_encoding(torch.cat([features, actions], dim=-1))

    def _joint_network(self, inputs: int) -> nn.Sequential:
        return self._network(inputs, 1)

    def _network(self, inputs: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for size in (inputs, *[self.embed_dim] * (self.hidden_layers - 1)):
            layers += [Linear(size, self.embed_dim), nn.ReLU()]
        return nn.Sequential(*layers, Linear(self.embed_dim, outputs))


class QTranAlt(QTranBase):
    """Of every agent, the joint values of all its actions, given what the others do, in one pass.

    Agent i's network reads its number, and the joint action without its own part.
    """

    def forward(
        self, batch, hidden_states: torch.Tensor, actions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Every agent's estimate of the value of one joint action, Q_jt (B * T, N), and V (B * T, 1)."""
        states, taken = self._read(batch, hidden_states, actions)
        values = self.counterfactual(batch, hidden_states, actions)
        return (values * taken).sum(dim=-1), self.V(states)

    def counterfactual(self, batch, hidden_states: torch.Tensor, actions: torch.Tensor | None = None) -> torch.Tensor:
        """[..., i, k]: Q_jt if agent i takes action k and the others theirs, (B * T, N, A)."""
        states, actions = self._read(batch, hidden_states, actions)
        ids = torch.eye(self.n_agents, dtype=states.dtype, device=states.device)
        decided = self._encode(hidden_states, actions)
        undecided = self._encode(hidden_states, torch.zeros_like(actions))
        joint = decided.sum(dim=1, keepdim=True) - decided + undecided  # (B * T, N, ..)
        everyone = (len(states), self.n_agents, -1)
        inputs = [states.unsqueeze(1).expand(everyone), joint, ids.expand(everyone)]
        return self.Q(torch.cat(inputs, dim=-1))

    def _joint_network(self, inputs: int) -> nn.Sequential:
        return self._network(inputs + self.n_agents, self.n_actions)
