"""From the agents' outputs to actions. Legend: B episodes, N agents, A actions."""

import torch

from components.epsilon_schedules import DecayThenFlatSchedule
from utils.seeding import RandomRows


class EpsilonGreedyActionSelector:
    """The best available action, or with probability epsilon a uniformly random available one."""

    def __init__(self, args):
        self.schedule = DecayThenFlatSchedule(
            args.epsilon_start, args.epsilon_finish, args.epsilon_anneal_time, decay="linear"
        )
        self.epsilon = self.schedule.eval(0)
        self.random = RandomRows()
        self.test_epsilon = args.test_epsilon

    def select_action(self, agent_inputs, avail_actions, t_env: int, test_mode: bool = False) -> torch.Tensor:
        """agent_inputs (B, N, A) action values, avail_actions (B, N, A) -> actions (B, N)."""
        self.epsilon = self.test_epsilon if test_mode else self.schedule.eval(t_env)
        greedy = agent_inputs.masked_fill(avail_actions == 0, -torch.inf).argmax(dim=-1)
        if self.epsilon == 0.0:
            return greedy
        explore = self._uniform(greedy) < self.epsilon
        return torch.where(explore, draw(avail_actions.float(), self.random), greedy)

    def _uniform(self, like: torch.Tensor) -> torch.Tensor:
        """Numbers in [0, 1) of this shape."""
        return self.random(
            lambda rows, generator: torch.rand(rows, *like.shape[1:], device=like.device, generator=generator),
            len(like),
        )

    def policy(self, agent_inputs: torch.Tensor, avail_actions: torch.Tensor) -> torch.Tensor:
        """The probabilities that the last selection drew from, at its epsilon: (B, N, A)."""
        available = (avail_actions > 0).to(agent_inputs.dtype)
        greedy = agent_inputs.masked_fill(avail_actions == 0, -torch.inf).argmax(dim=-1, keepdim=True)
        uniform = available / available.sum(dim=-1, keepdim=True).clamp(min=1)
        return (self.epsilon * uniform).scatter_add(-1, greedy, torch.full_like(uniform, 1 - self.epsilon))


class OneAtATimeActionSelector(EpsilonGreedyActionSelector):
    """A replay of past near-deterministic policies, as data: with probability epsilon every agent plays uniformly,
    otherwise exactly one agent, drawn uniformly, plays action 1 and the others play action 0.

    The agents' actions depend on each other, so independent learners take their teammates' reward for their own
    (game REPLAY of docs/theory.md).
    """

    def select_action(self, agent_inputs, avail_actions, t_env: int, test_mode: bool = False) -> torch.Tensor:
        if test_mode:
            return super().select_action(agent_inputs, avail_actions, t_env, test_mode)
        self.epsilon = self.schedule.eval(t_env)
        B, N, _ = agent_inputs.shape
        device = agent_inputs.device
        acting = self.random(lambda rows, generator: torch.randint(N, (rows, 1), device=device, generator=generator), B)
        alone = (torch.arange(N, device=device) == acting).long()
        explore = self._uniform(acting) < self.epsilon
        return torch.where(explore, draw(avail_actions.float(), self.random), alone)

    def policy(self, agent_inputs: torch.Tensor, avail_actions: torch.Tensor) -> torch.Tensor:
        """Each agent's own probabilities, (B, N, A); their product is not the team's."""
        available = (avail_actions > 0).to(agent_inputs.dtype)
        N = agent_inputs.shape[1]
        alone = torch.zeros_like(available)
        alone[..., 0], alone[..., 1] = (N - 1) / N, 1 / N
        return self.epsilon * available / available.sum(dim=-1, keepdim=True) + (1 - self.epsilon) * alone


class MultinomialActionSelector:
    """An action drawn from the agents' policies, or the likeliest one in tests if `test_greedy`."""

    def __init__(self, args):
        self.schedule = DecayThenFlatSchedule(
            args.epsilon_start, args.epsilon_finish, args.epsilon_anneal_time, decay="linear"
        )
        self.epsilon = self.schedule.eval(0)
        self.random = RandomRows()
        self.test_greedy = args.test_greedy

    def select_action(self, agent_inputs, avail_actions, t_env: int, test_mode: bool = False) -> torch.Tensor:
        """agent_inputs (B, N, A) probabilities, avail_actions (B, N, A) -> actions (B, N)."""
        self.epsilon = self.schedule.eval(t_env)
        policy = agent_inputs.masked_fill(avail_actions == 0, 0.0)
        if test_mode and self.test_greedy:
            return policy.argmax(dim=-1)
        return draw(policy, self.random)

    def policy(self, agent_inputs: torch.Tensor, avail_actions: torch.Tensor) -> torch.Tensor:
        """The probabilities that the last selection drew from: (B, N, A)."""
        weights = agent_inputs.masked_fill(avail_actions == 0, 0.0)
        return weights / weights.sum(dim=-1, keepdim=True)


def draw(weights: torch.Tensor, random: RandomRows) -> torch.Tensor:
    """An index of the last dimension for each row of it, by these weights: (..., A) -> (...).

    The first arrival of independent exponential clocks with these rates, as in torch.multinomial, whose checks of the
    weights would wait for a GPU at every step.
    """
    clocks = random(
        lambda rows, generator: torch.empty_like(weights[:rows]).exponential_(generator=generator), len(weights)
    )
    return (weights / clocks).argmax(dim=-1)


REGISTRY = {
    "epsilon_greedy": EpsilonGreedyActionSelector,
    "one_at_a_time": OneAtATimeActionSelector,
    "multinomial": MultinomialActionSelector,
}
