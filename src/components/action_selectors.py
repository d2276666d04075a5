"""From the agents' outputs to actions. Legend: B episodes, N agents, A actions."""

import torch
from torch.distributions import Categorical

from components.epsilon_schedules import DecayThenFlatSchedule


class EpsilonGreedyActionSelector:
    """The best available action, or with probability epsilon a uniformly random available one."""

    def __init__(self, args):
        self.schedule = DecayThenFlatSchedule(
            args.epsilon_start, args.epsilon_finish, args.epsilon_anneal_time, decay="linear"
        )
        self.epsilon = self.schedule.eval(0)

    def select_action(self, agent_inputs, avail_actions, t_env: int, test_mode: bool = False) -> torch.Tensor:
        """agent_inputs (B, N, A) action values, avail_actions (B, N, A) -> actions (B, N). Tests are greedy."""
        self.epsilon = 0.0 if test_mode else self.schedule.eval(t_env)
        greedy = agent_inputs.masked_fill(avail_actions == 0, -torch.inf).argmax(dim=-1)
        if self.epsilon == 0.0:
            return greedy
        explore = torch.rand_like(agent_inputs[..., 0]) < self.epsilon
        return torch.where(explore, Categorical(probs=avail_actions.float()).sample(), greedy)


class MultinomialActionSelector:
    """An action drawn from the agents' policies, or the likeliest one in tests if `test_greedy`."""

    def __init__(self, args):
        self.schedule = DecayThenFlatSchedule(
            args.epsilon_start, args.epsilon_finish, args.epsilon_anneal_time, decay="linear"
        )
        self.epsilon = self.schedule.eval(0)
        self.test_greedy = args.test_greedy

    def select_action(self, agent_inputs, avail_actions, t_env: int, test_mode: bool = False) -> torch.Tensor:
        """agent_inputs (B, N, A) probabilities, avail_actions (B, N, A) -> actions (B, N)."""
        self.epsilon = self.schedule.eval(t_env)
        policy = agent_inputs.masked_fill(avail_actions == 0, 0.0)
        if test_mode and self.test_greedy:
            return policy.argmax(dim=-1)
        return Categorical(probs=policy).sample()


REGISTRY = {
    "epsilon_greedy": EpsilonGreedyActionSelector,
    "multinomial": MultinomialActionSelector,
}
