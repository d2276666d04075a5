"""Proximal policy optimisation with many agents: IPPO with critics of what each agent sees (de Witt et al. 2020),
MAPPO with critics of the state (Yu et al. 2022).

The advantages of a batch are computed once; then actors and critic take several steps on it. The ratio of policies is
to the probabilities that the actions were really drawn with, which the replay keeps: environments play on through an
update, so that an episode may have been begun by an older policy than the one that an update starts from, and whatever
exploration was added is in them. Legend: that of `q_learner`.
"""

from collections.abc import Iterator
from typing import Any

import torch

from learners.actor_critic_learner import ActorCriticLearner, Losses, detached
from learners.q_learner import LEAST_SCALE
from objectives import actor_critic, ppo
from objectives.td import td_loss
from utils.moments import deviation, update_moments
from utils.networks import unroll
from utils.shapes import masked_mean


class PPOLearner(ActorCriticLearner):
    statistics = (*ActorCriticLearner.statistics, "value_moments")
    reads_behaviour = True

    def __init__(self, mac, scheme, logger, args):
        super().__init__(mac, scheme, logger, args)
        self.cfg = args.ppo
        self.value_moments: Any = None  # of the returns of all batches so far; None until the first

    def objectives(self, batch) -> Iterator[Losses]:
        """In every epoch the clipped loss of the critic, and of the actors with an entropy bonus."""
        step = self._transitions(batch)
        assert step.behaviour is not None  # as `reads_behaviour` asks
        mask = step.mask.expand(-1, -1, self.args.n_agents)  # (B, T, N)
        with torch.no_grad():
            old = self.critic(batch).squeeze(3)  # (B, T+1, N), in the critic's units
            value = self._in_reward_units(old)
            # Of lambda returns, which bootstrap where an episode was cut, generalised advantages are the excess.
            returns = self._targets(step, step.reward, value[:, 1:])
            error = returns - value[:, :-1]
            advantage = ppo.standardised(error, mask)
            log_beta = actor_critic.log_probability(step.behaviour, step.actions, mask)
            if self.cfg.normalise_values:
                self.value_moments = update_moments(self.value_moments, returns, mask)
            target = self._in_critic_units(returns)
        stats = {
            "td_error_abs": masked_mean(error.abs(), mask),
            "value_mean": masked_mean(value[:, :-1], mask),
            "target_mean": masked_mean(returns, mask),
        }
        for _ in range(self.cfg.epochs):
            found = self.critic(batch).squeeze(3)[:, :-1]
            if self.cfg.value_clip is None:
                critic = td_loss(found, target, mask)
            else:
                critic = ppo.clipped_value_loss(found, old[:, :-1], target, self.cfg.value_clip, mask)
            policy = unroll(self.mac, batch, test_mode=True)[:, :-1]  # (B, T, N, A)
            log_pi = actor_critic.log_probability(policy, step.actions, mask)
            surrogate = ppo.clipped_surrogate(log_pi, log_beta, advantage, self.cfg.clip)
            entropy = masked_mean(actor_critic.policy_entropy(policy), mask)
            actor = -masked_mean(surrogate, mask) - self.args.entropy_coef * entropy
            terms = {"critic_loss": 2 * critic, "agent_loss": actor}
            outside = ((log_pi - log_beta).exp() - 1).abs() > self.cfg.clip
            stats |= terms | {
                "entropy": entropy,
                "pi_max": masked_mean(policy.max(dim=-1).values, mask),
                "clip_fraction": masked_mean(outside.to(log_pi.dtype), mask),
                "policy_kl": masked_mean(ppo.divergence(log_pi, log_beta), mask),
            }
            yield Losses({"critic": terms["critic_loss"], "agent": actor}, terms, detached(stats))

    def _in_reward_units(self, value: torch.Tensor) -> torch.Tensor:
        """What the critic says, whose outputs are returns in units of their running mean and deviation."""
        if self.value_moments is None:
            return value
        return value * self._value_scale() + self.value_moments[1]

    def _in_critic_units(self, returns: torch.Tensor) -> torch.Tensor:
        if self.value_moments is None:
            return returns
        return (returns - self.value_moments[1]) / self._value_scale()

    def _value_scale(self) -> torch.Tensor:
        return deviation(self.value_moments).clamp(min=LEAST_SCALE)
