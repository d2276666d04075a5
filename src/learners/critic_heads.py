"""The two heads of greedy actor-critics on one batch: critics that value the actors' policies.

The independent head is every agent's own critic, Q_i(pi_i) = sum_a pi_i(a) Q_i(a); the cooperative head is a
centralised critic Q(s, p) of all agents' policies. What `Heads` takes a maximum for, the policies decide here: the
heads' values are those of the policies. Legend: that of `q_learner`.
"""

import torch

from learners.heads import Heads
from objectives import actor_critic
from objectives.behaviour import expected_value
from utils.computed import computed


class CriticHeads(Heads):
    def __init__(self, step, q_i: torch.Tensor, critic, policy: torch.Tensor, acted, played: torch.Tensor, beta=None):
        """
        Args:
            step: the batch's `Transitions`.
            q_i: (B, T+1, N, A) values of the agents' own critics.
            critic: (policies (B, T, N, A), states (B, T, S)) -> (B, T, 1), with `counterfactual` and `deviation`.
            policy, acted: (B, T, N, A) the actors' policies and what the critic reads for them; no gradient flows into
                either.
            played: (B, T+1, N, A) the one-hot vectors of the logged actions.
            beta: (B, T, N, A) behaviour probabilities; None: expectations over the data take the logged action.
        """
        super().__init__(step, q_i, q_i, critic, beta)
        self.policy, self.acted, self.played = policy.detach(), acted.detach(), played[:, :-1]

    @computed
    def q_tot(self) -> torch.Tensor:
        """Q(s, a) of the logged joint action, (B, T, 1)."""
        with torch.enable_grad():
            return self.mixer(self.played, self.state)

    @computed
    def q_cf(self) -> torch.Tensor:
        """Q(s, e_k, a_-i), (B, T, N, A)."""
        with torch.enable_grad():
            return self.mixer.counterfactual(self.played, self.state)

    @computed
    def value_i(self) -> torch.Tensor:
        """Q_i(pi_i) of every agent, (B, T, N), without gradient."""
        return expected_value(self.q_i, self.policy).detach()

    @computed
    def value_c(self) -> torch.Tensor:
        """Q(s, pi), (B, T, 1), without gradient."""
        with torch.no_grad():
            return self.mixer(self.acted, self.state)

    def agent_gaps(self, op: str, temperature) -> torch.Tensor:
        """d_{I,i}, (B, T, N); with op `policy`, Q_i(pi_i) less the value of the data."""
        if op != "policy":
            return super().agent_gaps(op, temperature)
        data = self.chosen_i if self.beta is None else expected_value(self.q_i, self.beta)
        return expected_value(self.q_i, self.policy) - data

    def joint_gap(self, joint: str, op: str, temperature, samples: int = 1) -> torch.Tensor:
        """d_C, (B, T, 1): `policy` of all agents' policies at once, `cf` of one agent at a time."""
        if joint == "policy":
            return actor_critic.vertex_gap(self.mixer(self.acted, self.state), self.q_tot)
        if op != "policy":
            return super().joint_gap(joint, op, temperature, samples)
        data = self.q_tot
        if self.beta is not None:
            data = expected_value(self.q_cf, self.beta).mean(dim=-1, keepdim=True)
        return actor_critic.deviation_gap(self._own_policies(), data)

    def _own_policies(self) -> torch.Tensor:
        """Q(s, pi_i, a_-i) of every agent, (B, T, N)."""
        return self.mixer.deviation(self.played, self.policy, self.state)


class SampledHeads(CriticHeads):
    """The same for a critic that knows actions alone: `acted` are drawn from the policies.

    All policies at once have the value of one draw. One agent's has an expectation: sum_k pi_i(k) Q(s, e_k, a_-i).
    """

    def _own_policies(self) -> torch.Tensor:
        return expected_value(self.q_cf, self.policy)
