"""Actors that stay near the policy that filled the replay: BEAR (Kumar et al. 2019) and BRAC (Wu et al. 2019).

MADDPG, with a model that clones the behaviour policy beta from the replay, and a divergence D(pi_i, beta_i) from it in
the actors' loss (BRAC-p, BEAR) and in the values that targets bootstrap on (BRAC-v). Its coefficient is fixed, or a
Lagrange multiplier that holds D at a threshold (BEAR). Legend: that of `q_learner`.
"""

from typing import Any

import torch

from learners.actor_critic_learner import Losses
from learners.greedy_terms import read_blocks
from learners.maddpg_learner import MADDPGLearner
from learners.q_learner import Transitions
from modules.behaviour import build_model
from objectives.behaviour import model_loss
from objectives.divergence import divergence
from utils.shapes import masked_mean


class BehaviourRegularisedLearner(MADDPGLearner):
    statistics = (*MADDPGLearner.statistics, "log_multiplier")

    def __init__(self, mac, scheme, logger, args):
        super().__init__(mac, scheme, logger, args)
        self.cfg = read_blocks(args, ("regulariser", "behaviour"))
        self.behaviour: Any = build_model(mac._get_input_shape(scheme), args.n_actions, self.cfg.behaviour)
        self.networks["behaviour"] = self.behaviour
        self._add_part("behaviour", self.behaviour.parameters(), self.cfg.behaviour.lr)
        self.log_multiplier = torch.zeros(())

    def objective(self, batch) -> Losses:
        """MADDPG's losses with the divergence in them, and the cloning loss of the behaviour model."""
        step = Transitions.of(batch)
        # The model is asked about the final observation, too: targets bootstrap there. What agents do has no effect.
        inputs = self.mac._build_sequence_inputs(batch)
        log_beta, _ = self.behaviour(inputs, step.avail, batch["actions"], batch["filled"])  # (1, B, T+1, N, A)
        loss, stats = model_loss(log_beta[:, :, :-1], None, step.actions, step.mask, kl_weight=0.0)
        self._log_beta = log_beta.squeeze(0).detach()  # of this batch, for the terms below
        found = super().objective(batch)
        terms = {"behaviour_loss": loss}
        stats |= {"behaviour_loss": loss.detach()}
        return Losses(found.losses | {"behaviour": loss}, found.terms | terms, found.stats | stats)

    def _next_values(self, step: Transitions, policy_next: torch.Tensor, played: torch.Tensor) -> torch.Tensor:
        values = super()._next_values(step, policy_next, played)
        if not self.cfg.regulariser.in_values:
            return values
        return values - self._coefficient() * self._divergence(policy_next, self._log_beta[:, 1:])

    def _actor_loss(self, step: Transitions, policy: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """MADDPG's, and the divergence times its coefficient, which climbs while it exceeds the threshold."""
        cfg = self.cfg.regulariser
        excess = masked_mean(self._divergence(policy, self._log_beta[:, :-1]), step.mask) - cfg.threshold
        loss = super()._actor_loss(step, policy, value) + self._coefficient() * excess
        if cfg.coefficient == "lagrange":
            climbed = self.log_multiplier + cfg.eta * excess.detach()
            self.log_multiplier = climbed.clamp(-cfg.l_max, cfg.l_max)
        return loss

    def _coefficient(self) -> torch.Tensor:
        cfg, climbed = self.cfg.regulariser, self.log_multiplier.exp()
        return cfg.alpha * (climbed if cfg.coefficient == "lagrange" else torch.ones_like(climbed))

    def _divergence(self, policy: torch.Tensor, log_beta: torch.Tensor) -> torch.Tensor:
        """1/N sum_i D(pi_i, beta_i), (B, T, 1)."""
        cfg = self.cfg.regulariser
        return divergence(policy, log_beta, cfg.divergence, cfg.support).mean(dim=-1, keepdim=True)

    def _stats(self, step: Transitions, policy, q_taken, target, value) -> dict[str, torch.Tensor]:
        stats = super()._stats(step, policy, q_taken, target, value)
        found = self._divergence(policy[:, :-1].detach(), self._log_beta[:, :-1])
        return stats | {"divergence": masked_mean(found, step.mask), "divergence_coefficient": self._coefficient()}

    def cuda(self) -> None:
        super().cuda()
        self.log_multiplier = self.log_multiplier.cuda()
