"""Independent actor-critics, and SEAC (Christianos et al. 2020), whose agents also learn from each other's experience.

Every agent has an actor and a critic of what it sees. With shared experience agent j evaluates its own networks on what
agent i saw and did, and learns from it as from its own, weighed by how much likelier it would have done the same.
Legend: that of `q_learner`.
"""

import torch

from learners.actor_critic_learner import ActorCriticLearner, Losses, detached
from learners.q_learner import Transitions
from objectives import actor_critic, shared_experience
from objectives.munchausen import log_policy
from objectives.td import td_loss
from utils.errors import UserError
from utils.networks import unroll
from utils.shapes import masked_mean


class IACLearner(ActorCriticLearner):
    def objective(self, batch) -> Losses:
        """Losses of every agent's own experience, and `iac.shared_experience` times those of the other agents'."""
        step, weight = self._transitions(batch), self.args.iac.shared_experience
        own = self._own(batch, step)
        if weight == 0:
            return own
        terms, stats = self._shared(batch, step)
        losses = {part: loss + weight * terms[f"shared_{part}_loss"] for part, loss in own.losses.items()}
        return Losses(losses, own.terms | terms, own.stats | detached(terms) | stats)

    def _own(self, batch, step: Transitions) -> Losses:
        """The critics' squared TD error; the actors' policy gradient with an entropy bonus."""
        mask = step.mask.expand(-1, -1, self.args.n_agents)  # (B, T, N)
        values = self.critic(batch).squeeze(3)  # (B, T+1, N)
        value = values[:, :-1]
        with torch.no_grad():
            target = self._targets(step, self._reward(step), values[:, 1:])
            advantage = target - value
        policy = unroll(self.mac, batch, test_mode=True)[:, :-1]  # (B, T, N, A)
        log_pi = actor_critic.log_probability(policy, step.actions, mask)
        entropy = masked_mean(actor_critic.policy_entropy(policy), mask)
        actor = actor_critic.policy_gradient_loss(log_pi, advantage, mask) - self.args.entropy_coef * entropy
        losses = {"critic": 2 * td_loss(value, target, mask), "agent": actor}
        terms = {"critic_loss": losses["critic"], "agent_loss": actor}
        stats = terms | {
            "td_error_abs": masked_mean(advantage.abs(), mask),
            "value_mean": masked_mean(value, mask),
            "target_mean": masked_mean(target, mask),
            "entropy": entropy,
            "pi_max": masked_mean(policy.max(dim=-1).values, mask),
        }
        return Losses(losses, terms, detached(stats))

    def _reward(self, step: Transitions) -> torch.Tensor:
        """What each agent learns from, (B, T, N)."""
        if self.args.iac.reward == "team":
            return step.reward.expand(-1, -1, self.args.n_agents)
        if step.individual_reward is None:
            raise UserError("iac.reward=individual: the batch has no individual_reward; set iac.reward=team")
        return step.individual_reward

    def _shared(self, batch, step: Transitions) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The same losses of agent j's networks on what agent i saw, [..., i, j], weighed by importance; statistics."""
        N = self.args.n_agents
        values = self.mac.unroll_others(batch, self.critic.network).squeeze(4)  # (B, T+1, N, N)
        logits = self.mac.unroll_others(batch)[:, :-1]  # (B, T, N, N, A)
        avail = step.avail[:, :-1].unsqueeze(3).expand_as(logits)
        taken = step.actions.unsqueeze(3).expand(-1, -1, -1, N, -1)
        log_pi = log_policy(logits, avail, 1.0).gather(4, taken).squeeze(4)  # (B, T, N, N)
        value = values[:, :-1]
        with torch.no_grad():
            reward = self._reward(step).unsqueeze(3).expand_as(value)
            target = self._targets(step, reward.flatten(2), values[:, 1:].flatten(2)).view_as(value)
            ratio = shared_experience.importance_weights(log_pi, step.mask)
        terms = {
            "shared_critic_loss": 2 * shared_experience.value_loss(value, target, ratio, step.mask),
            "shared_agent_loss": shared_experience.policy_loss(log_pi, target - value, ratio, step.mask),
        }
        return terms, {"importance_mean": ratio.sum() / (step.mask.sum() * N * (N - 1))}
