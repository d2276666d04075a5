"""Weighted projections onto what a monotone mixer can express. (Rashid et al. 2020, Weighted QMIX)

QMIX fits all joint actions alike, and where the truth is not monotone it gives up the best ones for the many bad ones.
Weights let it fit those that matter. Legend: B episodes, T steps, N agents.
"""

import torch

from utils.shapes import check_same_shape, check_shape, masked_mean


def optimistic_weights(q_tot: torch.Tensor, target: torch.Tensor, alpha: float) -> torch.Tensor:
    """w = 1 where Q_tot < y, so that it is too low, and alpha elsewhere.  (Equation 5 there, OW-QMIX)

    Args:
        q_tot, target: (B, T, 1).
        alpha: in (0, 1].

    Returns:
        (B, T, 1), without gradient.
    """
    check_same_shape(q_tot=q_tot, target=target)
    return torch.where(q_tot.detach() < target, 1.0, alpha).to(target.dtype)


def central_weights(
    actions: torch.Tensor, greedy: torch.Tensor, target: torch.Tensor, best_value: torch.Tensor, alpha: float
) -> torch.Tensor:
    """w = 1 where the joint action is the greedy one, or y > Q^*(s, greedy); alpha elsewhere.  (Equation 6, CW-QMIX)

    Args:
        actions, greedy: (B, T, N, 1) what was done and what the agents would do.
        target: (B, T, 1) y of what was done.
        best_value: (B, T, 1) the unrestricted value of the greedy joint action.
        alpha: in (0, 1].

    Returns:
        (B, T, 1), without gradient.
    """
    check_same_shape(actions=actions, greedy=greedy)
    check_same_shape(target=target, best_value=best_value)
    check_shape("target", target, (*actions.shape[:2], 1))
    keeps = (actions == greedy).all(dim=2) | (target > best_value.detach())
    return torch.where(keeps, 1.0, alpha).to(target.dtype)


def weighted_td_loss(q: torch.Tensor, target: torch.Tensor, weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """mean over played steps of 1/2 w (Q - y)^2; no gradient flows into y or w.

    Args:
        q, target, weights, mask: (B, T, X), one shape.
    """
    check_same_shape(q=q, target=target, weights=weights, mask=mask)
    error = torch.where(mask.bool(), q - target.detach(), 0.0)  # masked first: 0 * NaN in a backward is NaN
    return masked_mean(0.5 * weights.detach() * error**2, mask)
