"""Value decomposition networks (Sunehag et al. 2018): the team's value is the agents' sum, or their mean."""

import torch
from torch import nn


class VDNMixer(nn.Module):
    def forward(self, agent_qs: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """agent_qs (B, T, N) -> (B, T, 1). The second argument, the states, is not used."""
        return agent_qs.sum(dim=2, keepdim=True)

    def counterfactual(self, chosen: torch.Tensor, qs: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """chosen (B, T, N), qs (B, T, N, A) -> (B, T, N, A)."""
        return chosen.sum(dim=2)[..., None, None] + qs - chosen.unsqueeze(-1)


class VDNMeanMixer(VDNMixer):
    """The mean, for agents whose values are those of the whole team: their sum would be N times the team's value."""

    def forward(self, agent_qs: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """agent_qs (B, T, N) -> (B, T, 1). The second argument, the states, is not used."""
        return super().forward(agent_qs, batch) / agent_qs.shape[2]

    def counterfactual(self, chosen: torch.Tensor, qs: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """chosen (B, T, N), qs (B, T, N, A) -> (B, T, N, A)."""
        return super().counterfactual(chosen, qs, states) / chosen.shape[2]
