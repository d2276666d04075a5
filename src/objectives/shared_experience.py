"""Learning from what other agents lived through, as in SEAC (Christianos et al. 2020).

Legend: B episodes, T steps, N agents. Tensors (B, T, N, N) hold in [..., i, j] what agent j's network says of agent i's
history and of what agent i did; the diagonal is every agent's own experience.
"""

import torch

from utils.shapes import check_same_shape, check_shape


def importance_weights(log_pi: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """w_ij = pi_j(a_i | tau_i) / pi_i(a_i | tau_i), without gradient; 0 for i = j and where nothing was played.

    Args:
        log_pi: (B, T, N, N), log pi_j(a_i | tau_i). mask: (B, T, 1).
    """
    check_shape("log_pi", log_pi, (*mask.shape[:2], log_pi.shape[3], log_pi.shape[3]))
    own = log_pi.diagonal(dim1=2, dim2=3).unsqueeze(3)  # log pi_i(a_i | tau_i)
    ratio = torch.where(_others(log_pi, mask), log_pi - own, -torch.inf).exp()
    return ratio.detach()


def policy_loss(
    log_pi: torch.Tensor, advantage: torch.Tensor, weights: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """-mean over played steps and agents j of sum_{i != j} w_ij log pi_j(a_i | tau_i) A_ij.

    (Christianos et al. 2020, the second term of equation 5.) No gradient flows into weights and advantages.

    Args:
        log_pi, advantage, weights: (B, T, N, N). mask: (B, T, 1).
    """
    check_same_shape(log_pi=log_pi, advantage=advantage, weights=weights)
    return -_mean(log_pi, (weights * advantage).detach(), mask)


def value_loss(value: torch.Tensor, target: torch.Tensor, weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """mean over played steps and agents j of 1/2 sum_{i != j} w_ij (V_j(tau_i) - y_ij)^2.

    (Christianos et al. 2020, the second term of equation 6.) No gradient flows into weights and targets.

    Args:
        value, target, weights: (B, T, N, N). mask: (B, T, 1).
    """
    check_same_shape(value=value, target=target, weights=weights)
    error = torch.where(_others(value, mask), value - target.detach(), 0.0)
    return _mean(0.5 * error**2, weights.detach(), mask)


def _others(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """True (B, T, N, N) where an agent played and another one looks at it."""
    check_shape("mask", mask, (*values.shape[:2], 1))
    same = torch.eye(values.shape[2], dtype=torch.bool, device=values.device)
    return mask.unsqueeze(3).bool() & ~same


def _mean(values: torch.Tensor, factors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """mean over played steps and agents j of sum_{i != j} factor_ij value_ij."""
    use = _others(values, mask)  # masked before the product: 0 * inf in a backward is NaN
    product = torch.where(use, values, 0.0) * torch.where(use, factors, 0.0)
    return product.sum() / (mask.sum() * values.shape[3])
