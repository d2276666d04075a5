"""A feed-forward agent: two hidden layers, no memory (EPyMARL's `use_rnn: False`)."""

import torch
import torch.nn.functional as F
from torch import nn

from utils.linear import Linear


class MLPAgent(nn.Module):
    def __init__(self, input_shape: int, args):
        super().__init__()
        self.fc1 = Linear(input_shape, args.rnn_hidden_dim)
        self.fc2 = Linear(args.rnn_hidden_dim, args.rnn_hidden_dim)
        self.fc3 = Linear(args.rnn_hidden_dim, args.n_actions)

    def init_hidden(self) -> torch.Tensor:
        """An empty memory, (1, 1), which `forward` hands back: controllers expect one."""
        return self.fc1.weight.new_zeros(1, 1)

    def forward(self, inputs: torch.Tensor, hidden_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (..., I), any memory -> values (..., A), the same memory."""
        return self.fc3(self._features(inputs)), hidden_state

    def unroll(self, inputs: torch.Tensor, hidden_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All steps at once: inputs (T, R, I) -> values (T, R, A), the memory."""
        return self.forward(inputs, hidden_state)

    def unroll_features(self, inputs: torch.Tensor, hidden_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`unroll`, with the last hidden layer in place of the memory: (T, R, I) -> (T, R, A), (T, R, H)."""
        features = self._features(inputs)
        return self.fc3(features), features

    def unroll_packed(
        self, inputs: torch.Tensor, counts: list[int], hidden_state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`unroll_features` on sequences without their padding: (P, I) -> (P, A), (P, H)."""
        return self.unroll_features(inputs, hidden_state)

    def _features(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.relu(self.fc2(F.relu(self.fc1(inputs))))
