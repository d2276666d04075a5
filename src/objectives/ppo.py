"""Proximal policy optimisation (Schulman et al. 2017; Yu et al. 2022 with many agents).

Legend: B episodes, T steps, N agents, A actions. Every agent has an advantage of its own; agents that share a reward
and a critic's inputs just have the same.
"""

import torch

from utils.shapes import check_same_shape, masked_mean, masked_std

LEAST_STD = 1e-5  # of advantages that are brought to deviation 1


def standardised(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(x - mean) / std over played steps; what stands where the mask is 0 has no effect. One shape."""
    return (values - masked_mean(values, mask)) / (masked_std(values, mask) + LEAST_STD)


def clipped_surrogate(
    log_pi: torch.Tensor, log_beta: torch.Tensor, advantage: torch.Tensor, clip: float
) -> torch.Tensor:
    """min(r A, clamp(r, 1 - clip, 1 + clip) A) with r = pi(a) / beta(a).  (Schulman et al. 2017, eq. 7)

    Args:
        log_pi: (B, T, N), log-probabilities of the actions that were taken by the policies that learn.
        log_beta: (B, T, N), by the policies that took them; no gradient flows into them, nor into the advantage.
        advantage: (B, T, N).

    Returns:
        (B, T, N), to be maximised.
    """
    check_same_shape(log_pi=log_pi, log_beta=log_beta, advantage=advantage)
    ratio, advantage = (log_pi - log_beta.detach()).exp(), advantage.detach()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def clipped_value_loss(
    value: torch.Tensor, old_value: torch.Tensor, target: torch.Tensor, clip: float, mask: torch.Tensor
) -> torch.Tensor:
    """mean over played steps of 1/2 max[(V - y)^2, (V_old + clamp(V - V_old, -clip, clip) - y)^2].

    A step that has moved further than `clip` from where the batch found it no longer learns, unless it moved away from
    its target. (Yu et al. 2022, section A)

    Args:
        value, old_value, target, mask: (B, T, N), one shape; gradients flow into `value` alone.
    """
    check_same_shape(value=value, old_value=old_value, target=target, mask=mask)
    old_value, target = old_value.detach(), target.detach()
    near = old_value + (value - old_value).clamp(-clip, clip)
    error = torch.maximum((value - target) ** 2, (near - target) ** 2)
    return masked_mean(0.5 * error, mask)


def divergence(log_pi: torch.Tensor, log_beta: torch.Tensor) -> torch.Tensor:
    """r - 1 - log r, whose mean over actions drawn from beta is KL(beta || pi); at least 0. One shape.

    (Schulman 2020, "Approximating KL divergence", estimator k3)
    """
    check_same_shape(log_pi=log_pi, log_beta=log_beta)
    log_ratio = log_pi - log_beta
    return log_ratio.exp() - 1 - log_ratio
