"""Behaviour cloning: the policy of every agent, given what it has seen so far.

One network is shared by the agents. It represents every agent's own policy, but their actions are independent given
what each has seen: a replay of several deterministic policies becomes a product that mixes them.
"""

import torch
import torch.nn.functional as F
from torch import nn

from utils.linear import Linear
from utils.shapes import check_shape


class RecurrentPolicy(nn.Module):
    """A linear layer, a GRU and a linear layer, as in the recurrent agent; a context may enter at the first layer."""

    def __init__(self, input_shape: int, hidden_dim: int, n_actions: int):
        super().__init__()
        self.fc1 = Linear(input_shape, hidden_dim)
        self.rnn = nn.GRU(hidden_dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, n_actions)

    def forward(self, inputs: torch.Tensor, avail: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """inputs (T, B, N, I), avail (B, T, N, A), context (K, B, H) -> log-probabilities (K, B, T, N, A)."""
        T, B, N, _ = inputs.shape
        K, _, H = context.shape
        x = F.relu(self.fc1(inputs).unsqueeze(1) + context.view(1, K, B, 1, H))  # (T, K, B, N, H)
        h, _ = self.rnn(x.reshape(T, K * B * N, H))
        logits = self.fc2(h).view(T, K, B, N, -1).permute(1, 2, 0, 3, 4)
        return masked_log_softmax(logits, avail.expand(logits.shape))


class BehaviourCloning(nn.Module):
    def __init__(self, input_shape: int, args):
        super().__init__()
        self.hidden_dim = args.behaviour.hidden_dim
        self.policy = RecurrentPolicy(input_shape, self.hidden_dim, args.n_actions)

    def forward(
        self, inputs: torch.Tensor, avail: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        """Shapes as in `modules.behaviour`; log-probabilities (1, B, T, N, A). The actions are not used."""
        check_episodes(inputs, avail, actions, mask)
        no_context = inputs.new_zeros(1, inputs.shape[1], self.hidden_dim)
        return self.policy(without_padding(inputs, mask), avail, no_context), None

    def log_probs(
        self, inputs: torch.Tensor, avail: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """log beta(a | tau_i), (B, T, N, A)."""
        log_beta, _ = self(inputs, avail, actions, mask)
        return log_beta.squeeze(0)


def masked_log_softmax(logits: torch.Tensor, avail: torch.Tensor) -> torch.Tensor:
    """log softmax over the available actions, (..., A); -inf, without gradient, where an action is not available.

    Masked twice: where no action is available, as in padding, the softmax alone is NaN.
    """
    check_shape("avail", avail, tuple(logits.shape))
    unavailable = avail == 0
    return torch.log_softmax(logits.masked_fill(unavailable, -torch.inf), dim=-1).masked_fill(unavailable, -torch.inf)


def without_padding(inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The inputs (T, B, N, I) as constants, 0 where mask (B, T, 1) is: a NaN there would spread by 0 * NaN."""
    return torch.where(mask.transpose(0, 1).unsqueeze(2).bool(), inputs.detach(), 0.0)


def check_episodes(inputs: torch.Tensor, avail: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor) -> None:
    """Raise ValueError unless the shapes are those of `modules.behaviour`."""
    B, T, N, _ = avail.shape
    check_shape("inputs", inputs, (T, B, N, None))
    check_shape("actions", actions, (B, T, N, 1))
    check_shape("mask", mask, (B, T, 1))
