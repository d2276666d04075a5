"""The two heads of greedy Q-learning on one batch: their values, greedy actions, gaps and policies.

The independent head is every agent's own value Q_i; the cooperative head is Q_tot = f(Q_1, ..., Q_N; s) of a monotone
mixer. With shared utilities both read the same Q_i. Propositions are those of docs/theory.md. Legend: that of
`q_learner`.
"""

import torch

from modules.mixers import InStates, mixer_gains
from objectives import conservative
from objectives.behaviour import expected_value
from objectives.munchausen import log_policy
from utils.computed import computed


class Heads:
    def __init__(self, step, q_i: torch.Tensor, q_c: torch.Tensor, mixer, beta: torch.Tensor | None = None):
        """
        Args:
            step: the batch's `Transitions`.
            q_i, q_c: (B, T+1, N, A) utilities of the independent and the cooperative head; one tensor if shared.
            mixer: (agent_qs (B, T, N), states (B, T, S)) -> (B, T, 1).
            beta: (B, T, N, A) behaviour probabilities; None: expectations over the data take the logged action.
        """
        self.mixer = mixer
        self.beta = beta
        self.actions, self.mask = step.actions, step.mask
        self.avail, self.state = step.avail[:, :-1], step.state[:, :-1]
        self.q_i, self.q_c = q_i[:, :-1], q_c[:, :-1]
        self.chosen_i = self._taken(self.q_i)  # (B, T, N)
        self.chosen_c = self.chosen_i if q_c is q_i else self._taken(self.q_c)

    @computed
    def _mix(self) -> InStates:
        with torch.enable_grad():  # whoever asks first: the loss differentiates what the gate only reads
            return InStates(self.mixer, self.state, self.mask)

    @computed
    def q_tot(self) -> torch.Tensor:
        """Q_tot of the logged joint action, (B, T, 1)."""
        with torch.enable_grad():
            return self._mix(self.chosen_c)

    @computed
    def q_cf(self) -> torch.Tensor:
        """Q_tot(k, a_-i; s), (B, T, N, A)."""
        with torch.enable_grad():
            return self._mix.counterfactual(self.chosen_c, self.q_c)

    @computed
    def value_i(self) -> torch.Tensor:
        """max_a Q_i(a) of every agent, (B, T, N), without gradient."""
        return conservative.sup_value(self.q_i.detach(), self.avail, "max")

    @computed
    def value_c(self) -> torch.Tensor:
        """max_a Q_tot(a) = f(max Q_1, ..., max Q_N; s), (B, T, 1), without gradient (Proposition 1.2)."""
        with torch.no_grad():
            return self._mix(conservative.sup_value(self.q_c, self.avail, "max"))

    def greedy(self, head: int) -> torch.Tensor:
        """The head's greedy joint action, (B, T, N, 1)."""
        q = self.q_c if head else self.q_i
        return q.detach().masked_fill(self.avail == 0, -torch.inf).argmax(dim=3, keepdim=True)

    def agent_gaps(self, op: str, temperature) -> torch.Tensor:
        """d_{I,i} of the independent utilities, (B, T, N)."""
        return self._utility_gaps(self.q_i, self.chosen_i, op, temperature)

    def joint_gap(self, joint: str, op: str, temperature, samples: int = 1, shift_weight: float = 0.0) -> torch.Tensor:
        """d_C of Q_tot, (B, T, 1), in the form `joint`, one of `conservative.JOINTS`.

        Cost per state beyond Q_tot: max 1 mixer evaluation, sampled M, cf N*A (the hypernetworks once), linear the
        gradient of the mixer. With `beta`, cf takes E_beta over each agent's own action instead of the logged one;
        cf_weighted, which is CFCQL's, reads it only for the agents' weights.
        """
        if joint == "max":
            return conservative.joint_max_gap(self._best_q_tot(), self.q_tot)
        if joint == "sampled":
            return self._sampled_sup(temperature, samples) - self.q_tot
        if joint == "linear":
            gaps = self._utility_gaps(self.q_c, self.chosen_c, op, temperature)
            return conservative.linear_gap(self._gains(), gaps)
        data, beta = self.q_tot, self.beta
        if joint == "cf_weighted":
            if beta is None:
                raise ValueError("joint 'cf_weighted' needs the behaviour probabilities beta")
            weights = conservative.shift_weights(self.q_cf, self.avail, beta, temperature, shift_weight)
            return conservative.counterfactual_gap(self.q_cf, self.avail, data, op, temperature, beta, weights)
        if beta is not None:
            data = expected_value(self.q_cf, beta).mean(dim=-1, keepdim=True)
        gap = conservative.counterfactual_gap(self.q_cf, self.avail, data, op, temperature, beta)
        if joint == "cf_per_gain":
            gap = gap / self._gains().mean(dim=-1, keepdim=True).clamp(min=1e-3)
        return gap

    def log_policy_independent(self, tau) -> torch.Tensor:
        """log softmax(Q^I_i / tau), (B, T, N, A)."""
        return log_policy(self.q_i, self.avail, tau)

    def log_policy_counterfactual(self, tau) -> torch.Tensor:
        """log softmax_k(Q_tot(k, a_-i; s) / tau): the cooperative head's policy, in units of the return."""
        return log_policy(self.q_cf, self.avail, tau)

    def log_policy_cooperative_utility(self, tau: float) -> torch.Tensor:
        """log softmax of Q^C_i / (tau std_a Q^C_i): a mixer's utilities have no scale (Proposition 2.11)."""
        return log_policy(conservative.standardise(self.q_c, self.avail), self.avail, tau)

    def _taken(self, q: torch.Tensor) -> torch.Tensor:
        return q.gather(3, self.actions).squeeze(3)

    def _utility_gaps(self, q: torch.Tensor, chosen: torch.Tensor, op: str, temperature) -> torch.Tensor:
        data = chosen if self.beta is None else expected_value(q, self.beta)
        return conservative.agent_gaps(q, self.avail, data, op, temperature, self.beta)

    def _best_q_tot(self) -> torch.Tensor:
        return self._mix(conservative.sup_value(self.q_c, self.avail, "max"))

    def _gains(self) -> torch.Tensor:
        return mixer_gains(self.mixer, self.chosen_c, self.state)

    def _sampled_sup(self, temperature, samples: int) -> torch.Tensor:
        """T log sum_a exp(Q_tot(a)/T) from M joint actions of prod_i softmax(k_i Q_i/T), k_i the mixer's gains."""
        gains = self._gains().unsqueeze(-1)
        log_proposal = log_policy(gains * self.q_c.detach(), self.avail, temperature)  # (B, T, N, A)
        B, T, N, A = log_proposal.shape
        drawn = torch.multinomial(log_proposal.exp().reshape(-1, A), samples, replacement=True).view(B, T, N, samples)
        log_rho = log_proposal.gather(3, drawn).sum(dim=2)  # (B, T, M)
        sampled = self.q_c.gather(3, drawn).permute(3, 0, 1, 2).reshape(samples * B, T, N)
        states = self.state.unsqueeze(0).expand(samples, *self.state.shape).reshape(samples * B, T, -1)
        q_tot = self.mixer(sampled, states).view(samples, B, T).permute(1, 2, 0)
        return conservative.sampled_lse(q_tot, log_rho, temperature)
