"""Critics that value a situation, V: what the policies earn from here, for every agent from its own inputs.

They are networks of the agents' kind with one output, and share parameters as the agents do. Legend: B episodes, T
steps, N agents, S state, I inputs.
"""

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from modules.agents import REGISTRY as agent_REGISTRY
from modules.agents.sharing import share_parameters
from utils.networks import Packing, sequence_input_size, sequence_inputs, unroll_network
from utils.registry import resolve


class ValueCritic(nn.Module):
    """V_i of what agent i sees and remembers: known while acting (IPPO, independent actor-critics)."""

    def __init__(self, scheme, args):
        super().__init__()
        self.args = args
        sizes = SimpleNamespace(**{**vars(args), "n_actions": 1})  # what the networks call their outputs
        build = resolve("agent", args.agent, agent_REGISTRY)
        self.network = share_parameters(lambda: build(self._input_size(scheme), sizes), args.agent_groups)

    def forward(self, batch, t=None) -> torch.Tensor:
        """V of every agent at every step, or at step `t` alone: (B, T, N, 1)."""
        values = unroll_network(self.network, self._inputs(batch), Packing.of(batch)).transpose(0, 1)
        return values if t is None else values[:, t : t + 1]

    def _input_size(self, scheme) -> int:
        return sequence_input_size(scheme, self.args)

    def _inputs(self, batch) -> torch.Tensor:
        """(T, B, N, I)"""
        return sequence_inputs(batch, self.args)


class CentralValueCritic(ValueCritic):
    """V_i of the state and of what agent i sees of it, known in training only (MAPPO's agent-specific state)."""

    def _input_size(self, scheme) -> int:
        return int(np.prod(scheme["state"]["vshape"])) + super()._input_size(scheme)

    def _inputs(self, batch) -> torch.Tensor:
        own = super()._inputs(batch)
        state = batch["state"].transpose(0, 1).unsqueeze(2).expand(-1, -1, own.shape[2], -1)
        return torch.cat([state, own], dim=-1)
