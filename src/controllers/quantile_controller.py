"""The controller whose agents' networks give M quantiles of every action's return; they act on the quantiles' mean.

Legend: B episodes, T steps, N agents, A actions, M quantiles.
"""

from types import SimpleNamespace

import torch

from controllers.basic_controller import BasicMAC
from modules.agents import REGISTRY as agent_REGISTRY
from modules.agents.sharing import share_parameters
from utils.registry import resolve


class QuantileMAC(BasicMAC):
    def unroll_quantiles(self, batch) -> torch.Tensor:
        """The quantiles of all actions at every step from fresh memory: (B, T, N, A, M)."""
        return self._quantiles(self._run(self.agent, batch))

    def unroll_others(self, batch, network=None) -> torch.Tensor:
        return self._quantiles(super().unroll_others(batch, network)).mean(dim=-1)

    def _build_agents(self, input_shape: int) -> None:
        build = resolve("agent", self.args.agent, agent_REGISTRY)
        # The networks know one size of output, n_actions.
        sizes = SimpleNamespace(**{**vars(self.args), "n_actions": self.args.n_actions * self.args.quantiles})
        self.agent = share_parameters(lambda: build(input_shape, sizes), self.args.agent_groups)

    def _to_output(self, outputs: torch.Tensor, avail_actions: torch.Tensor, test_mode: bool) -> torch.Tensor:
        return self._quantiles(outputs).mean(dim=-1)

    def _quantiles(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.unflatten(-1, (self.args.n_actions, self.args.quantiles))
