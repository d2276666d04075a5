"""COMA: policy gradients with a counterfactual baseline from a centralised critic (Foerster et al. 2018).

The critic is fitted to TD(lambda) targets of a slow copy of itself; then every agent's policy follows what its action
added to what it does on average, the others' actions given. Policies hold their exploration, of probability epsilon, as
in the paper. Legend: that of `q_learner`.
"""

import copy
from collections.abc import Iterator

import torch

from learners.actor_critic_learner import ActorCriticLearner, Losses, detached
from learners.q_learner import Transitions
from objectives import actor_critic
from objectives.td import td_loss
from utils.networks import unroll
from utils.shapes import masked_mean


class COMALearner(ActorCriticLearner):
    def __init__(self, mac, scheme, logger, args):
        super().__init__(mac, scheme, logger, args)
        self.target_critic = copy.deepcopy(self.critic)
        self._follow("target_critic", self.target_critic, self.critic)

    def objectives(self, batch) -> Iterator[Losses]:
        """The critic's squared TD error, `critic_train_reps` times; then the actors' policy gradient."""
        step = self._transitions(batch)
        policy = unroll(self.mac, batch)  # (B, T+1, N, A), with exploration
        mask = step.mask.expand(-1, -1, self.args.n_agents)  # (B, T, N)
        joint = self._joint(batch, step, policy.detach())
        with torch.no_grad():
            target = self._targets(step, step.reward, self._next_values(batch, step, policy, joint, mask))
        for _ in range(self.args.critic_train_reps):
            q = self.critic(batch, actions=joint)[:, :-1]  # (B, T, N, A)
            q_taken = q.gather(3, step.actions).squeeze(3)  # (B, T, N)
            loss = 2 * td_loss(q_taken, target, mask)
            stats = {
                "critic_loss": loss,
                "td_error_abs": masked_mean((q_taken - target).abs(), mask),
                "q_taken_mean": masked_mean(q_taken, mask),
                "target_mean": masked_mean(target, mask),
            }
            yield Losses({"critic": loss}, {"critic_loss": loss}, detached(stats))
        with torch.no_grad():
            q = self.critic(batch, actions=joint)[:, :-1]
        pi = policy[:, :-1]
        advantage = actor_critic.counterfactual_advantage(q, pi.detach(), step.actions)
        log_pi = actor_critic.log_probability(pi, step.actions, mask)
        entropy = masked_mean(actor_critic.policy_entropy(pi), mask)
        actor = actor_critic.policy_gradient_loss(log_pi, advantage, mask) - self.args.entropy_coef * entropy
        stats = {
            "agent_loss": actor,
            "advantage_mean": masked_mean(advantage, mask),
            "entropy": entropy,
            "pi_max": masked_mean(pi.max(dim=-1).values, mask),
        }
        yield Losses({"agent": actor}, {"agent_loss": actor}, detached(stats))

    def joint_values(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The policies (B, T, N, A), and the mean over agents of the critic's values of the joint actions (B, T, 1)."""
        with torch.no_grad():
            policy = unroll(self.mac, batch, test_mode=True)
            q = self.critic(batch, actions=self._one_hot(batch, policy))
            return policy, q.gather(3, batch["actions"]).mean(dim=2)

    def _joint(self, batch, step: Transitions, policy: torch.Tensor) -> torch.Tensor:
        """What the agents do, (B, T+1, N, A): the logged actions; behind an episode's last, their policies."""
        nothing = torch.zeros_like(step.mask[:, :1])
        played = torch.cat([step.mask, nothing], dim=1).unsqueeze(-1).bool()  # (B, T+1, 1, 1)
        return torch.where(played, self._one_hot(batch, policy), policy)

    def _next_values(self, batch, step: Transitions, policy, joint, mask) -> torch.Tensor:
        """The target critic's V(s_{t+1}), (B, T, N)."""
        q = self.target_critic(batch, actions=joint)[:, 1:]
        q_next = q.gather(3, batch["actions"][:, 1:]).squeeze(3)
        return actor_critic.next_values(q_next, actor_critic.policy_value(q, policy[:, 1:]), mask)
