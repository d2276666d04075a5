"""The recurrent agent of PyMARL: a linear layer, a GRU, a linear layer (Hausknecht & Stone 2015)."""

import torch
import torch.nn.functional as F
from torch import nn

from modules.agents.gru import gru, run_gru
from utils.linear import Linear


class RNNAgent(nn.Module):
    fused = True  # a GRU for all steps at once, which `SeparateAgents` cannot map over copies

    def __init__(self, input_shape: int, args):
        super().__init__()
        self.args = args
        self.fc1 = Linear(input_shape, args.rnn_hidden_dim)
        self.rnn = nn.GRUCell(args.rnn_hidden_dim, args.rnn_hidden_dim)
        self.fc2 = Linear(args.rnn_hidden_dim, args.n_actions)
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
        if self.fused:
            T, R = inputs.shape[:2]
            found = self.unroll_packed(inputs.flatten(0, 1), [R] * T, hidden_state)
            return found[0].unflatten(0, (T, R)), found[1].unflatten(0, (T, R))
        h = gru(F.relu(self.norm1(self.fc1(inputs))), hidden_state, self.rnn)
        return self.fc2(self.norm2(h)), h

    def unroll_packed(
        self, inputs: torch.Tensor, counts: list[int], hidden_state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`unroll_features` on sequences without their padding (see `modules.agents.gru`).

        Inputs (P, I), memory (R, H) -> values (P, A), the memory after each (P, H).
        """
        h = run_gru(F.relu(self.norm1(self.fc1(inputs))), hidden_state, self.rnn, counts)
        return self.fc2(self.norm2(h)), h


class NormalisedRNNAgent(RNNAgent):
    """The same with layer normalisation before the ReLU and after the GRU.

    Normalised features keep Q-learning stable (Gallici et al. 2024, PQN).
    """

    def __init__(self, input_shape: int, args):
        super().__init__(input_shape, args)
        self.norm1, self.norm2 = nn.LayerNorm(args.rnn_hidden_dim), nn.LayerNorm(args.rnn_hidden_dim)
