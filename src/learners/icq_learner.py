"""ICQ-MA: learning from the data's own actions, which weigh by their values (Yang et al. 2021).

The critic is fitted to TD(lambda) targets whose next values are those of the actions that were played next, times their
weights; the actors clone the actions that were played, times theirs. Nothing is asked about other actions, so that the
critic cannot promise itself what the data does not hold. Both step from the networks before the batch.
Legend: that of `q_learner`.
"""

import copy

import torch
import torch.nn.functional as F

from learners.actor_critic_learner import ActorCriticLearner, Losses, detached
from learners.q_learner import Transitions
from objectives import actor_critic
from objectives.implicit import batch_weights
from objectives.td import td_loss
from utils.networks import unroll
from utils.shapes import masked_mean


class ICQLearner(ActorCriticLearner):
    def __init__(self, mac, scheme, logger, args):
        super().__init__(mac, scheme, logger, args)
        self.cfg = args.implicit
        self.target_critic = copy.deepcopy(self.critic)
        self._follow("target_critic", self.target_critic, self.critic)

    def objective(self, batch) -> Losses:
        """The critic's squared TD error, and the weighted negative log-likelihood of the data under the policies."""
        step = self._transitions(batch)
        state = step.state[:, :-1]
        policy = unroll(self.mac, batch, test_mode=True)  # (B, T+1, N, A), without exploration
        pi = policy[:, :-1]
        mask = step.mask.expand(-1, -1, self.args.n_agents)  # (B, T, N)
        q = self.critic(batch)[:, :-1]  # (B, T, N, A)
        q_taken = self.critic.mix(q.gather(3, step.actions).squeeze(3), state)  # (B, T, 1)
        with torch.no_grad():
            target = self._targets(step, step.reward, self._next_values(batch, step, policy))
            advantage = self.critic.gains(state) * actor_critic.counterfactual_advantage(q, pi, step.actions)
            weights = batch_weights(advantage, mask, self.cfg.policy_temperature)  # (B, T, N)
        critic = 2 * td_loss(q_taken, target, step.mask)
        log_pi = actor_critic.log_probability(pi, step.actions, mask)
        actor = actor_critic.policy_gradient_loss(log_pi, weights, mask)
        terms = {"critic_loss": critic, "agent_loss": actor}
        stats = terms | {
            "td_error_abs": masked_mean((q_taken - target).abs(), step.mask),
            "q_taken_mean": masked_mean(q_taken, step.mask),
            "target_mean": masked_mean(target, step.mask),
            "advantage_mean": masked_mean(advantage, mask),
            "weight_max": weights.max(),
            "entropy": masked_mean(actor_critic.policy_entropy(pi), mask),
            "pi_max": masked_mean(pi.max(dim=-1).values, mask),
        }
        return Losses({"critic": critic, "agent": actor}, terms, detached(stats))

    def joint_values(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The agents' policies (B, T, N, A) and Q_tot of the batch's joint actions (B, T, 1)."""
        with torch.no_grad():
            q = self.critic(batch).gather(3, batch["actions"]).squeeze(3)
            return unroll(self.mac, batch, test_mode=True), self.critic.mix(q, batch["state"])

    def _next_values(self, batch, step: Transitions, policy: torch.Tensor) -> torch.Tensor:
        """V(s_{t+1}) of the target critic, (B, T, 1): the weighted value of what was played next.

        At the end of an episode that was cut nothing was: there it is the policies' value, since the mixer is linear.
        """
        q, state = self.target_critic(batch)[:, 1:], step.state[:, 1:]
        played = self.target_critic.mix(q.gather(3, batch["actions"][:, 1:]).squeeze(3), state)
        expected = self.target_critic.mix(actor_critic.policy_value(q, policy[:, 1:]), state)
        played_next = F.pad(step.mask[:, 1:], (0, 0, 0, 1))
        weights = batch_weights(played, played_next, self.cfg.value_temperature)
        return actor_critic.next_values(weights * played, expected, step.mask)
