"""Actors that ascend a critic's value of their action probabilities, as in LICA (Zhou et al. 2020).

The critic is a function Q(s, p_1, ..., p_N) of the agents' policies that is trained at actions, their one-hot vectors,
and evaluated at the probabilities. Legend: B episodes, T steps, N agents, A actions. Policies are 0 where an action is
not available.
"""

import torch

from utils.shapes import check_same_shape, check_shape, masked_mean

LEAST = 1e-8  # of an entropy or a norm that something is divided by


def next_values(q_next: torch.Tensor, q_policy: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """V(s_{t+1}) = Q(s_{t+1}, a_{t+1}) of the action that was played next, as in the paper's code.

    At the end of an episode nothing was played: there V(s_{t+1}) = Q(s_{t+1}, pi(s_{t+1})), which only an episode that
    was cut uses.

    Args:
        q_next: (B, T, 1), Q of the joint action that is logged at step t+1.
        q_policy: (B, T, 1), Q of the policies at step t+1.
        mask: (B, T, 1), 1 where step t was played.
    """
    check_same_shape(q_next=q_next, q_policy=q_policy, mask=mask)
    played_next = torch.zeros_like(mask)
    played_next[:, :-1] = mask[:, 1:]
    return torch.where(played_next.bool(), q_next, q_policy)


def policy_value(q: torch.Tensor, policy: torch.Tensor) -> torch.Tensor:
    """Q_i(pi_i) = sum_a pi_i(a) Q_i(a), with gradients into both; linear in pi, so that it is E_{a ~ pi} Q_i(a).

    Args:
        q, policy: (..., A); values of actions of probability exactly 0 have no effect.

    Returns:
        (...).
    """
    check_same_shape(q=q, policy=policy)
    return (policy * q.masked_fill(policy == 0, 0.0)).sum(dim=-1)


def policy_entropy(policy: torch.Tensor) -> torch.Tensor:
    """H(pi) = -sum_a pi(a) log pi(a), in nats: (..., A) -> (...). 0 log 0 is 0, and so is its gradient."""
    positive = policy > 0
    safe = policy.masked_fill(~positive, 1.0)  # masked first: the gradient of the logarithm at 0 is infinite
    return -(safe * safe.log()).sum(dim=-1)


def adaptive_entropy(entropy: torch.Tensor, xi: float) -> torch.Tensor:
    """xi H / sg[H]: its gradient is xi grad log H, of like size whether the policies are random or nearly sure.

    Zhou et al. 2020, equation 8, with the mean entropy of the batch for H, as in their code. 0 where H is.

    Args:
        entropy: a scalar, the mean entropy of the policies.
    """
    return xi * entropy / entropy.detach().clamp(min=LEAST)


def actor_loss(value: torch.Tensor, entropy: torch.Tensor, mask: torch.Tensor, xi: float) -> torch.Tensor:
    """-mean Q(s, pi) - xi H / sg[H], which the actors minimise. (Zhou et al. 2020, equations 5 and 8)

    Args:
        value: (B, T, 1), the critics' value of the policies.
        entropy: (B, T, N). mask: (B, T, 1).
    """
    check_shape("entropy", entropy, (*value.shape[:2], None))
    return -masked_mean(value, mask) - adaptive_entropy(masked_mean(entropy, mask.expand_as(entropy)), xi)
