"""Actors and their critics: policy gradients, and actors that ascend a critic's value of their action probabilities.

The latter is LICA's (Zhou et al. 2020): the critic is a function Q(s, p_1, ..., p_N) of the agents' policies that is
trained at actions, their one-hot vectors, and evaluated at the probabilities. Legend: B episodes, T steps, N agents, A
actions. Policies are 0 where an action is not available.
"""

import torch

from utils.shapes import check_same_shape, check_shape, masked_mean

LEAST = 1e-8  # of an entropy or a norm that something is divided by


def next_values(q_next: torch.Tensor, q_policy: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """V(s_{t+1}) = Q(s_{t+1}, a_{t+1}) of the action that was played next, as in the paper's code.

    At the end of an episode nothing was played: there V(s_{t+1}) = Q(s_{t+1}, pi(s_{t+1})), which only an episode that
    was cut uses.

    Args:
        q_next: (B, T, X), Q of the joint action that is logged at step t+1.
        q_policy: (B, T, X), Q of the policies at step t+1.
        mask: (B, T, X), 1 where step t was played.
    """
    check_same_shape(q_next=q_next, q_policy=q_policy, mask=mask)
    played_next = torch.zeros_like(mask)
    played_next[:, :-1] = mask[:, 1:]
    return torch.where(played_next.bool(), q_next, q_policy)


def log_probability(policy: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """log pi(a) of the actions that were taken, (B, T, N); 0, without gradient, where nothing was played.

    Args:
        policy: (B, T, N, A). actions: (B, T, N, 1). mask: (B, T, N).
    """
    check_shape("actions", actions, (*policy.shape[:3], 1))
    check_shape("mask", mask, policy.shape[:3])
    taken = policy.gather(3, actions).squeeze(3).masked_fill(mask == 0, 1.0)
    return taken.clamp(min=LEAST).log()


def policy_gradient_loss(log_pi: torch.Tensor, advantage: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """-mean over played steps and agents of log pi(a) A; no gradient flows into the advantage.  (Williams 1992)

    Args:
        log_pi, advantage, mask: (B, T, N), one shape.
    """
    check_same_shape(log_pi=log_pi, advantage=advantage, mask=mask)
    return -masked_mean(log_pi * advantage.detach(), mask)


def counterfactual_advantage(q: torch.Tensor, policy: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """A_i = Q(s, a) - sum_a' pi_i(a') Q(s, a', a_-i): what agent i's action added to what it does on average.

    (Foerster et al. 2018, equation 4)

    Args:
        q: (B, T, N, A), the value of each of agent i's actions with the others' as they were.
        policy: (B, T, N, A). actions: (B, T, N, 1), available ones.

    Returns:
        (B, T, N).
    """
    check_shape("actions", actions, (*q.shape[:3], 1))
    return q.gather(3, actions).squeeze(3) - policy_value(q, policy)


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


def vertex_gap(q_policy: torch.Tensor, q_data: torch.Tensor) -> torch.Tensor:
    """d_C = Q(s, pi) - Q(s, a): what the critic promises between the actions that it is trained at.

    Of a critic that is linear in every agent's probabilities it is 0 on average over a ~ pi. (Section 7 of
    docs/theory.md: 1 for Q(p) = 1 - |p_1 - p_2| at p = (.5, .5), although both actions are fitted exactly.)

    Args:
        q_policy, q_data: (B, T, 1).
    """
    check_same_shape(q_policy=q_policy, q_data=q_data)
    return q_policy - q_data


def deviation_gap(q_own: torch.Tensor, q_data: torch.Tensor) -> torch.Tensor:
    """d_C = 1/N sum_i Q(s, pi_i, a_-i) - Q(s, a): one agent at a time plays its policy, the others what is logged.

    Args:
        q_own: (B, T, N). q_data: (B, T, 1), the value of the logged joint action, or E_beta[Q].

    Returns:
        (B, T, 1).
    """
    check_shape("q_data", q_data, (*q_own.shape[:2], 1))
    return q_own.mean(dim=-1, keepdim=True) - q_data


def policy_kl(policy: torch.Tensor, log_rho: torch.Tensor) -> torch.Tensor:
    """KL(pi || rho) = sum_a pi(a) [log pi(a) - log rho(a)], in nats: (..., A) -> (...). No gradient flows into rho.

    Args:
        policy, log_rho: (..., A); where pi is 0 the term is 0, whatever rho is.
    """
    check_same_shape(policy=policy, log_rho=log_rho)
    cross = (policy * log_rho.detach().masked_fill(policy == 0, 0.0)).sum(dim=-1)
    return -policy_entropy(policy) - cross


def policy_slope(gradient: torch.Tensor, avail: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """mean over played steps of ||dQ/dpi|| in the directions that policies can move in.

    A policy sums to 1, so that the mean of the gradient over an agent's available actions moves nothing: it is left
    out, or else the level of the values would count.

    Args:
        gradient, avail: (B, T, N, A). mask: (B, T, 1).

    Returns:
        A scalar.
    """
    check_same_shape(gradient=gradient, avail=avail)
    available = avail > 0
    felt = gradient.masked_fill(~available, 0.0)
    level = felt.sum(dim=-1, keepdim=True) / available.sum(dim=-1, keepdim=True)
    centred = (felt - level).masked_fill(~available, 0.0)
    return masked_mean(centred.flatten(2).norm(dim=-1, keepdim=True), mask)


def slope_scales(slopes: torch.Tensor) -> torch.Tensor:
    """kappa_h = ||dQ^C/dpi|| / ||dQ^h/dpi||: with them both heads pull equally hard at the policies.

    Relative to the cooperative head, whose scale is 1, so that the entropy term weighs what it does in LICA.

    Args:
        slopes: (2,), of the independent and the cooperative head.
    """
    check_shape("slopes", slopes, (2,))
    ratio = slopes[1] / slopes[0].clamp(min=LEAST)
    return torch.stack([ratio, torch.ones_like(ratio)]).detach()


def weighed_value(
    value_independent: torch.Tensor, value_cooperative: torch.Tensor, weights: torch.Tensor | None, scales: torch.Tensor
) -> torch.Tensor:
    """w_I kappa_I 1/N sum_i Q_i(pi_i) + w_C kappa_C Q(s, pi), what the actors ascend; weights None: both count in full.

    Args:
        value_independent: (B, T, N). value_cooperative: (B, T, 1).
        weights, scales: (2,); no gradient flows into them.

    Returns:
        (B, T, 1).
    """
    check_shape("value_independent", value_independent, (*value_cooperative.shape[:2], None))
    factors = scales.detach() if weights is None else (weights * scales).detach()
    return factors[0] * value_independent.mean(dim=-1, keepdim=True) + factors[1] * value_cooperative
