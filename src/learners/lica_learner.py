"""LICA: actors that ascend a centralised critic's value of their policies (Zhou et al. 2020).

The critic is trained at the actions that were played, their one-hot vectors, toward TD(lambda) targets; the actors
follow its gradient at the probabilities of their policies, which need no credit assignment of its own. Both step on
the same batch, from the networks before it; the paper's code lets the critic step first.
Legend: that of `q_learner`.
"""

import copy

import torch

from learners.actor_critic_learner import ActorCriticLearner, Losses, detached
from learners.q_learner import Transitions
from modules.mixers import InStates
from objectives import actor_critic
from objectives.td import td_loss
from utils.networks import unroll
from utils.shapes import masked_mean


class LICALearner(ActorCriticLearner):
    def __init__(self, mac, scheme, logger, args):
        super().__init__(mac, scheme, logger, args)
        self.target_critic = copy.deepcopy(self.critic)
        self._follow("target_critic", self.target_critic, self.critic)

    def objective(self, batch) -> Losses:
        """The critic's squared TD error at the actions that were played; the actors' value and its regulariser."""
        step = self._transitions(batch)
        policy = unroll(self.mac, batch, test_mode=True)  # (B, T+1, N, A), without exploration
        played = self._one_hot(batch, policy)
        acted = self._acted(policy[:, :-1])
        critic = InStates(self.critic, step.state[:, :-1], step.mask)
        q_taken = critic(played[:, :-1])  # (B, T, 1)
        with torch.no_grad():
            v_next = self._next_values(step, self._next_policy(batch, policy), played)
            target = self._targets(step, step.reward, v_next)
        td = td_loss(q_taken, target, step.mask)
        value = self._joint_value(critic, acted, played)
        actor = self._actor_loss(step, policy[:, :-1], value)
        # Twice the mean of half squared errors is PyMARL's loss, so that its learning rates and clip carry over.
        losses = {"critic": 2 * td, "agent": actor}
        terms = {"critic_loss": losses["critic"], "agent_loss": actor}
        return Losses(losses, terms, self._stats(step, policy, q_taken, target, value) | detached(terms))

    def joint_values(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The agents' policies (B, T, N, A) and the critic's value of the batch's joint actions (B, T, 1)."""
        with torch.no_grad():
            policy = unroll(self.mac, batch, test_mode=True)
            return policy, self.critic(self._one_hot(batch, policy), batch["state"])

    # What the critic is asked. Learners that let it read actions in place of probabilities have answers of their own.

    def _acted(self, policy: torch.Tensor) -> torch.Tensor:
        """What the actors are differentiated through, (B, T, N, A), of their policies of that shape."""
        return policy

    def _joint_value(self, critic: InStates, acted: torch.Tensor, played: torch.Tensor) -> torch.Tensor:
        """The critic's value of what the actors do, (B, T, 1), which they ascend."""
        return critic(acted)

    def _next_policy(self, batch, policy: torch.Tensor) -> torch.Tensor:
        """The policies that the targets let act at step t+1, (B, T, N, A)."""
        return policy[:, 1:]

    def _next_values(self, step: Transitions, policy_next: torch.Tensor, played: torch.Tensor) -> torch.Tensor:
        """The target critic's V(s_{t+1}), (B, T, 1)."""
        target_critic = InStates(self.target_critic, step.state[:, 1:], step.mask)
        return actor_critic.next_values(target_critic(played[:, 1:]), target_critic(policy_next), step.mask)

    def _actor_loss(self, step: Transitions, policy: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """What actors of these policies (B, T, N, A) minimise, a scalar, given the value (B, T, 1) that they ascend."""
        return actor_critic.actor_loss(value, actor_critic.policy_entropy(policy), step.mask, self.args.entropy_coef)

    def _stats(self, step: Transitions, policy, q_taken, target, value) -> dict[str, torch.Tensor]:
        entropy = actor_critic.policy_entropy(policy[:, :-1])  # (B, T, N)
        mask_i = step.mask.expand_as(entropy)
        stats = {
            "td_error_abs": masked_mean((q_taken - target).abs(), step.mask),
            "q_taken_mean": masked_mean(q_taken, step.mask),
            "target_mean": masked_mean(target, step.mask),
            "q_policy_mean": masked_mean(value, step.mask),
            "entropy": masked_mean(entropy, mask_i),
            "pi_max": masked_mean(policy[:, :-1].max(dim=-1).values, mask_i),
        }
        return detached(stats)
