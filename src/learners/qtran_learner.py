"""QTRAN (Son et al. 2019): a joint value without restrictions, and agents whose values sum to it where it matters.

Q_jt learns from its TD loss; the agents' values and V from the conditions in `objectives.qtran`. Legend: that of
`q_learner`; X is 1 with qtran_base, and N with qtran_alt, whose agents each have an estimate of Q_jt.
"""

import torch
import torch.nn.functional as F

from learners.q_learner import Objective, QLearner, Transitions, greedy_actions
from objectives.qtran import nopt_loss, nopt_min_loss, opt_loss
from objectives.td import td_loss
from utils.networks import unroll_features
from utils.shapes import masked_mean


class QTranLearner(QLearner):
    def objective(self, batch) -> Objective:
        """TD loss of Q_jt, and what the agents' sum lacks to it at the greedy and at the logged joint action."""
        step = self._transitions(batch)
        now, avail = batch[:, :-1], step.avail[:, :-1]
        q_all, features_all = unroll_features(self.mac, batch)  # (B, T+1, N, A), (B, T+1, N, H)
        q, features = q_all[:, :-1], features_all[:, :-1]
        greedy = greedy_actions(q, avail)
        with torch.no_grad():
            target = self._joint_targets(batch, step, q_all)
            q_joint_best, _ = self._joint(self.mixer, now, features, greedy)
        q_joint, v = self._joint(self.mixer, now, features)  # (B, T, X), (B, T, 1)
        chosen = q.gather(3, step.actions)  # (B, T, N, 1)
        best_sum, q_sum = q.gather(3, greedy).sum(dim=2), chosen.sum(dim=2)  # (B, T, 1)
        mask = step.mask.expand_as(q_joint)
        terms = {
            "td_loss": td_loss(q_joint, target, mask),
            "opt_loss": opt_loss(best_sum, q_joint_best, v, step.mask),
        }
        if hasattr(self.mixer, "counterfactual"):
            with torch.no_grad():
                q_joint_cf = self.mixer.counterfactual(now, features).view_as(q)
            q_sum_cf = q_sum.unsqueeze(-1) - chosen + q  # (B, T, N, A)
            terms["nopt_loss"] = nopt_min_loss(q_sum_cf, q_joint_cf, v, avail, step.mask)
        else:
            terms["nopt_loss"] = nopt_loss(q_sum, q_joint, v, step.mask)
        loss = terms["td_loss"] + self.args.opt_loss * terms["opt_loss"] + self.args.nopt_min_loss * terms["nopt_loss"]
        stats = {name: term.detach() for name, term in terms.items()} | {
            "td_error_abs": masked_mean((q_joint - target).abs().detach(), mask),
            "td_targets": masked_mean(target, mask),
            "td_chosen_qs": masked_mean(q_joint.detach(), mask),
            "v_mean": masked_mean(v.detach(), step.mask),
            "agent_indiv_qs": masked_mean(q_sum.detach(), step.mask),
        }
        return Objective(loss, terms, stats)

    def _joint_targets(self, batch, step: Transitions, q: torch.Tensor) -> torch.Tensor:
        """TD targets (B, T, X) of Q_jt: the target networks' value of the next greedy joint action."""
        q_target, features = unroll_features(self.target_mac, batch)
        best = self._next_actions(q, q_target, step.avail)
        v_next, _ = self._joint(self.target_mixer, batch[:, 1:], features[:, 1:], best)
        return self._targets(step, step.reward, v_next)

    def _joint(self, mixer, batch, features: torch.Tensor, actions: torch.Tensor | None = None):
        """Q_jt (B, T, X) and V (B, T, 1) of the joint actions (B, T, N, 1), or of the batch's."""
        onehot = None if actions is None else F.one_hot(actions.squeeze(3), self.args.n_actions)
        q_joint, v = mixer(batch, features, onehot)
        B, T = features.shape[:2]
        return q_joint.view(B, T, -1), v.view(B, T, 1)

    def joint_values(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The agents' values (B, T, N, A) and Q_jt of the batch's joint actions (B, T, 1), a mean of its estimates."""
        with torch.no_grad():
            q, features = unroll_features(self.mac, batch)
            return q, self._joint(self.mixer, batch, features)[0].mean(dim=2, keepdim=True)
