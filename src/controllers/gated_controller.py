"""The controller of separate utilities: each agent has an independent and a cooperative network, and one of them acts.

Any choice made from what an agent sees itself, or from a number that all agents share, can be executed decentrally;
the best team action of a mix of both heads cannot (section 4 of docs/theory.md).
Legend: B episodes, T steps, N agents, A actions, I inputs, R rows (episodes times agents).
"""

from typing import Any

import torch
from torch import nn

from controllers.basic_controller import BasicMAC
from modules.agents import REGISTRY as agent_REGISTRY
from modules.agents.sharing import share_parameters
from utils.networks import Packing, unroll_network
from utils.registry import resolve

INDEPENDENT, COOPERATIVE = 0, 1


class TwoUtilities(nn.Module):
    """The networks of an agent. `heads.act` says whose values it follows:

    independent, cooperative: always that network's;  global: those of the head that the gate trusts more, the same for
    all agents;  agent: each agent chooses by a switch on its own inputs, which imitates the gate's choice in every
    state;  distil: an actor that imitates the greedy action of the head that the gate would choose in every state.
    """

    def __init__(self, input_shape: int, args):
        super().__init__()
        agent_class = resolve("agent", args.agent, agent_REGISTRY)

        def build(build_one=lambda: agent_class(input_shape, args)):
            return share_parameters(build_one, args.agent_groups)

        self.act = args.heads.act
        self.independent = build()
        self.cooperative = build()
        self.switch = build(lambda: _switch(input_shape, args.rnn_hidden_dim)) if self.act == "agent" else None
        self.actor = build() if self.act == "distil" else None
        # The head that acts if heads.act is global; a buffer, so that it is saved with the weights.
        self.acting: torch.Tensor
        self.register_buffer("acting", torch.tensor(COOPERATIVE))

    def networks(self) -> list[Any]:
        return [net for net in (self.independent, self.cooperative, self.actor) if net is not None]

    def init_hidden(self) -> torch.Tensor:
        """The memories of all networks in a row, (1, H)."""
        return torch.cat([net.init_hidden() for net in self.networks()], dim=-1)

    def forward(self, inputs: torch.Tensor, hidden_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step: inputs (R, I), memory -> the values to act on (R, A), memory (R, H)."""
        sizes = [net.init_hidden().shape[-1] for net in self.networks()]
        memories = hidden_state.reshape(len(inputs), -1).split(sizes, dim=-1)
        steps = [net(inputs, memory) for net, memory in zip(self.networks(), memories, strict=True)]
        hidden = torch.cat([memory.reshape(len(inputs), -1).expand(len(inputs), -1) for _, memory in steps], dim=-1)
        return self._choose([values for values, _ in steps], inputs), hidden

    def unroll(self, inputs: torch.Tensor, hidden_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All steps from fresh memory: inputs (T, R, I) -> the values to act on (T, R, A), the memory as it was."""
        rows = inputs.unsqueeze(2)  # each a sequence of its own
        return self._choose([unroll_network(net, rows).squeeze(2) for net in self.networks()], inputs), hidden_state

    def _choose(self, values: list[torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        if self.act == "distil":
            return values[2]
        if self.switch is not None:
            return torch.where(self.switch(inputs) > 0, values[INDEPENDENT], values[COOPERATIVE])
        if self.act == "global":
            independent = torch.eq(self.acting, INDEPENDENT)
            return torch.where(independent, values[INDEPENDENT], values[COOPERATIVE])
        return values[INDEPENDENT if self.act == "independent" else COOPERATIVE]


class GatedMAC(BasicMAC):
    def unroll_heads(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The values of both heads' utilities for every step: independent and cooperative, each (B, T, N, A)."""
        inputs, packing = self._build_sequence_inputs(batch), Packing.of(batch)
        networks = (self.agent.independent, self.agent.cooperative)
        independent, cooperative = (unroll_network(net, inputs, packing).transpose(0, 1) for net in networks)
        return independent, cooperative

    def unroll_imitation(self, batch) -> torch.Tensor:
        """What imitates the gate's choice: the switch's logit (B, T, N, 1), or the actor's logits (B, T, N, A)."""
        if self.agent.switch is not None:
            return self.agent.switch(self._build_sequence_inputs(batch)).transpose(0, 1)
        return self._run(self.agent.actor, batch)

    def act_with(self, head) -> None:
        """From now on all agents follow this head, 0 or 1 (`heads.act` global)."""
        agent: Any = self.agent
        agent.acting.copy_(torch.as_tensor(head))

    def _build_agents(self, input_shape: int) -> None:
        self.agent = TwoUtilities(input_shape, self.args)


def _switch(input_shape: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(input_shape, hidden), nn.ReLU(), nn.Linear(hidden, 1))
