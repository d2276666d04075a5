"""MADDPG with discrete actions: actors that follow a centralised critic through samples (Lowe et al. 2017).

The critic knows the state and all agents' actions. Every actor ascends its value of an action drawn from the actor's
policy, the others' as they are in the replay, by the straight-through Gumbel-softmax; target networks of critic and
actors give one-step targets. The flow of a batch is LICA's, whose critic reads probabilities where this one reads
actions. Legend: that of `q_learner`.
"""

import copy

import torch

from learners.lica_learner import LICALearner
from learners.q_learner import Transitions
from modules.mixers import InStates
from objectives.gumbel import gumbel_like, logit_size, straight_through
from utils.networks import unroll
from utils.shapes import masked_mean


class MADDPGLearner(LICALearner):
    def __init__(self, mac, scheme, logger, args):
        super().__init__(mac, scheme, logger, args)
        self.target_mac = copy.deepcopy(mac)
        self._follow("target_agent", self.target_mac.agent, mac.agent)

    def _acted(self, policy: torch.Tensor) -> torch.Tensor:
        """Actions drawn from the policies, one-hot, with the gradient of their relaxation."""
        return straight_through(policy, gumbel_like(policy), self.args.gumbel_temperature)

    def _joint_value(self, critic: InStates, acted: torch.Tensor, played: torch.Tensor) -> torch.Tensor:
        """1/N sum_i Q(s, a~_i, a_-i): one agent at a time acts, the others play what is logged."""
        return critic.deviation(played[:, :-1], acted).mean(dim=-1, keepdim=True)

    def _next_policy(self, batch, policy: torch.Tensor) -> torch.Tensor:
        return unroll(self.target_mac, batch, test_mode=True)[:, 1:]

    def _next_values(self, step: Transitions, policy_next: torch.Tensor, played: torch.Tensor) -> torch.Tensor:
        """The target critic's value of actions drawn from the target actors' policies."""
        return InStates(self.target_critic, step.state[:, 1:], step.mask)(self._acted(policy_next))

    def _actor_loss(self, step: Transitions, policy: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """LICA's, and the size of the policies' logits."""
        size = logit_size(policy)  # (B, T, N)
        return super()._actor_loss(step, policy, value) + self.args.logit_coef * masked_mean(
            size, step.mask.expand_as(size)
        )
