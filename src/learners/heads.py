"""The two heads of greedy Q-learning on one batch: their values, greedy actions, gaps and policies.

The independent head is every agent's own value Q_i; the cooperative head is Q_tot = f(Q_1, ..., Q_N; s) of a monotone
mixer. With shared utilities both read the same Q_i. Propositions are those of docs/theory.md. Legend: that of
`q_learner`.
"""

from collections.abc import Callable

import torch

from learners.q_learner import greedy_actions
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
        # Without gaps, which many that read them would each fill
        self.avail, self.state = step.avail[:, :-1].contiguous(), step.state[:, :-1]
        self.q_i = q_i[:, :-1].contiguous()
        self.q_c = self.q_i if q_c is q_i else q_c[:, :-1].contiguous()
        self.chosen_i, self.chosen_c = self._of_both(lambda q, _: _taken(q, self.actions))  # (B, T, N) each

    @computed
    def mix(self) -> InStates:
        """The mixer in the batch's states."""
        with torch.enable_grad():  # whoever asks first: the loss differentiates what the gate only reads
            return InStates(self.mixer, self.state, self.mask)

    @computed
    def q_tot(self) -> torch.Tensor:
        """Q_tot of the logged joint action, (B, T, 1)."""
        with torch.enable_grad():
            return self.mix(self.chosen_c)

    @computed
    def q_cf(self) -> torch.Tensor:
        """Q_tot(k, a_-i; s), (B, T, N, A)."""
        with torch.enable_grad():
            return self.mix.counterfactual(self.chosen_c, self.q_c)

    @computed
    def greedy(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The heads' greedy joint actions, (B, T, N, 1) each."""
        return self._of_both(lambda q, _: greedy_actions(q, self.avail))

    @computed
    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """max_a Q(a) of every agent's utilities, (B, T, N) for each head."""
        with torch.enable_grad():
            return self._of_both(lambda q, head: _taken(q, self.greedy[head]))

    @computed
    def q_best(self) -> torch.Tensor:
        """max_a Q_tot(a) = f(max Q_1, ..., max Q_N; s), (B, T, 1) (Proposition 1.2)."""
        with torch.enable_grad():
            return self.mix(self.best[1])

    @computed
    def value_i(self) -> torch.Tensor:
        """The independent head's value of every agent, max_a Q_i(a), (B, T, N), without gradient."""
        return self.best[0].detach()

    @computed
    def value_c(self) -> torch.Tensor:
        """The cooperative head's value, max_a Q_tot(a), (B, T, 1), without gradient."""
        return self.q_best.detach()

    def agent_gaps(self, op: str, temperature) -> torch.Tensor:
        """d_{I,i} of the independent utilities, (B, T, N)."""
        return self._utility_gaps(0, op, temperature)

    def joint_gap(self, joint: str, op: str, temperature, samples: int = 1, shift_weight: float = 0.0) -> torch.Tensor:
        """d_C of Q_tot, (B, T, 1), in the form `joint`, one of `conservative.JOINTS`.

        Cost per state beyond Q_tot: max 1 mixer evaluation, sampled M, cf N*A (the hypernetworks once), linear the
        gradient of the mixer. With `beta`, cf takes E_beta over each agent's own action instead of the logged one;
        cf_weighted, which is CFCQL's, reads it only for the agents' weights.
        """
        if joint == "max":
            return conservative.joint_max_gap(self.q_best, self.q_tot)
        if joint == "sampled":
            return self._sampled_sup(temperature, samples) - self.q_tot
        if joint == "linear":
            return conservative.linear_gap(self._gains(), self._utility_gaps(1, op, temperature))
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

    def _of_both(self, compute: Callable[[torch.Tensor, int], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What `compute` makes of the heads' utilities and numbers; of shared utilities it is the same."""
        of_i = compute(self.q_i, 0)
        return of_i, of_i if self.q_c is self.q_i else compute(self.q_c, 1)

    def _utility_gaps(self, head: int, op: str, temperature) -> torch.Tensor:
        q, chosen = (self.q_c, self.chosen_c) if head else (self.q_i, self.chosen_i)
        data = chosen if self.beta is None else expected_value(q, self.beta)
        if op == "max":
            return self.best[head] - data
        return conservative.agent_gaps(q, self.avail, data, op, temperature, self.beta)

    def _gains(self) -> torch.Tensor:
        mix = self.mix
        return mixer_gains(lambda agent_qs, _: mix(agent_qs), self.chosen_c, self.state)

    def _sampled_sup(self, temperature, samples: int) -> torch.Tensor:
        """T log sum_a exp(Q_tot(a)/T) from M joint actions of prod_i softmax(k_i Q_i/T), k_i the mixer's gains."""
        gains = self._gains().unsqueeze(-1)
        log_proposal = log_policy(gains * self.q_c.detach(), self.avail, temperature)  # (B, T, N, A)
        B, T, N, A = log_proposal.shape
        drawn = torch.multinomial(log_proposal.exp().reshape(-1, A), samples, replacement=True).view(B, T, N, samples)
        log_rho = log_proposal.gather(3, drawn).sum(dim=2)  # (B, T, M)
        sampled = self.q_c.gather(3, drawn).movedim(3, 0)  # (M, B, T, N)
        q_tot = torch.vmap(self.mix)(sampled).squeeze(3).movedim(0, 2)  # (B, T, M)
        return conservative.sampled_lse(q_tot, log_rho, temperature)


def _taken(q: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """The values of these actions: (B, T, N, A), (B, T, N, 1) -> (B, T, N)."""
    return q.gather(3, actions).squeeze(3)
