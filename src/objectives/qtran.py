"""QTRAN's conditions: the agents' values sum to the joint value at the best joint action and to no less elsewhere.

Q'(u) - Q_jt(u) + V = 0 at the greedy joint action, and >= 0 at all others, with Q'(u) = sum_i Q_i(u_i). V makes
up for what the agents cannot see. (Son et al. 2019, theorem 1 and section 4) No gradient flows into Q_jt, which learns
from its TD loss alone. Legend: B episodes, T steps, N agents, A actions; X is 1, or N where every agent has an estimate
of Q_jt.
"""

import torch

from utils.shapes import check_same_shape, check_shape, masked_mean


def opt_loss(q_sum_best: torch.Tensor, q_joint_best: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """mean over played steps of 1/2 (Q'(u*) - Q_jt(u*) + V)^2, u* the agents' greedy actions.  (Equation 5 there)

    Args:
        q_sum_best, v, mask: (B, T, 1). q_joint_best: (B, T, X).
    """
    return _mean_square(_excess(q_sum_best, q_joint_best, v, mask), mask)


def nopt_loss(q_sum: torch.Tensor, q_joint: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """mean over played steps of 1/2 min(Q'(u) - Q_jt(u) + V, 0)^2, u what was done.  (Equation 6, QTRAN-base)

    Args:
        q_sum, v, mask: (B, T, 1). q_joint: (B, T, X).
    """
    return _mean_square(_excess(q_sum, q_joint, v, mask).clamp(max=0), mask)


def nopt_min_loss(
    q_sum: torch.Tensor, q_joint: torch.Tensor, v: torch.Tensor, avail: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """mean over played steps and agents of 1/2 (min_k Q'(k, u_-i) - Q_jt(k, u_-i) + V)^2.  (Equation 9, QTRAN-alt)

    Stronger than `nopt_loss`: one action of every agent must meet the bound exactly, given what the others did.

    Args:
        q_sum, q_joint, avail: (B, T, N, A), [..., i, k] if agent i had taken action k.
        v, mask: (B, T, 1).
    """
    check_same_shape(q_sum=q_sum, q_joint=q_joint, avail=avail)
    check_shape("v", v, (*q_sum.shape[:2], 1))
    excess = (q_sum - q_joint.detach() + v.unsqueeze(-1)).masked_fill(avail == 0, torch.inf)
    return _mean_square(excess.min(dim=-1).values, mask)


def _excess(q_sum, q_joint, v, mask) -> torch.Tensor:
    """Q' - Q_jt + V, (B, T, X)."""
    check_same_shape(q_sum=q_sum, v=v, mask=mask)
    check_shape("q_joint", q_joint, (*q_sum.shape[:2], None))
    return q_sum - q_joint.detach() + v


def _mean_square(error: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    mask = mask.expand_as(error)
    error = torch.where(mask.bool(), error, 0.0)  # masked first: 0 * NaN in a backward is NaN
    return masked_mean(0.5 * error**2, mask)
