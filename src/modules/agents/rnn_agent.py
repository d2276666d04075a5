"""The recurrent agent of PyMARL: a linear layer, a GRU, a linear layer (Hausknecht & Stone 2015)."""

import torch
import torch.nn.functional as F
from torch import nn


class RNNAgent(nn.Module):
    fused = True  # torch's fused GRU (cuDNN on a GPU), which `SeparateAgents` cannot map over copies

    def __init__(self, input_shape: int, args):
        super().__init__()
        self.args = args
        self.fc1 = nn.Linear(input_shape, args.rnn_hidden_dim)
        self.rnn = nn.GRUCell(args.rnn_hidden_dim, args.rnn_hidden_dim)
        self.fc2 = nn.Linear(args.rnn_hidden_dim, args.n_actions)
        self.norm1, self.norm2 = nn.Identity(), nn.Identity()

    def init_hidden(self) -> torch.Tensor:
        """The memory at the start of an episode, (1, H)."""
        return self.fc1.weight.new_zeros(1, self.args.rnn_hidden_dim)

    def forward(self, inputs: torch.Tensor, hidden_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step: inputs (R, I), memory (any shape of R*H values) -> values (R, A), memory (R, H)."""
        x = F.relu(self.norm1(self.fc1(inputs)))
        h = hidden_state.reshape(-1, self.args.rnn_hidden_dim)
        h = self.rnn(x, h) if self.fused else gru(x.unsqueeze(0), h, self.rnn)[0]
        return self.fc2(self.norm2(h)), h

    def unroll(self, inputs: torch.Tensor, hidden_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All steps at once: inputs (T, R, I), memory (R, H) -> values (T, R, A), last memory (R, H)."""
        values, memories = self.unroll_features(inputs, hidden_state)
        return values, memories[-1]

    def unroll_features(self, inputs: torch.Tensor, hidden_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All steps at once: inputs (T, R, I), memory (R, H) -> values (T, R, A), the memory after each (T, R, H)."""
        x = F.relu(self.norm1(self.fc1(inputs)))
        h = (fused_gru if self.fused else gru)(x, hidden_state, self.rnn)
        return self.fc2(self.norm2(h)), h


class NormalisedRNNAgent(RNNAgent):
    """The same with layer normalisation before the ReLU and after the GRU.

    Normalised features keep Q-learning stable (Gallici et al. 2024, PQN).
    """

    def __init__(self, input_shape: int, args):
        super().__init__(input_shape, args)
        self.norm1, self.norm2 = nn.LayerNorm(args.rnn_hidden_dim), nn.LayerNorm(args.rnn_hidden_dim)


def fused_gru(x: torch.Tensor, hidden_state: torch.Tensor, cell: nn.GRUCell) -> torch.Tensor:
    """The cell over all steps: x (T, R, X), memory (R, H) -> the memory after each step (T, R, H)."""
    # biases, 1 layer, no dropout, training (cuDNN has a backward only then), one direction, time first
    weights = [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]
    return torch.gru(x, hidden_state.unsqueeze(0).contiguous(), weights, True, 1, 0.0, True, False, False)[0]


def gru(x: torch.Tensor, hidden_state: torch.Tensor, cell: nn.GRUCell) -> torch.Tensor:
    """`fused_gru` in plain operations: h' = n + z (h - n), n = tanh(W_n x + r (U_n h)), with gates r and z."""
    memories = []
    for given in F.linear(x, cell.weight_ih, cell.bias_ih):  # (R, 3H)
        r_x, z_x, n_x = given.chunk(3, dim=-1)
        r_h, z_h, n_h = F.linear(hidden_state, cell.weight_hh, cell.bias_hh).chunk(3, dim=-1)
        n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
        hidden_state = n + torch.sigmoid(z_x + z_h) * (hidden_state - n)
        memories.append(hidden_state)
    return torch.stack(memories)
