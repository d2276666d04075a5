"""The Munchausen term, with the policy of the *other* head (after Vieillard et al. 2020, eq. 3).

y = r + alpha [tau log rho(a|s)]_{l0}^0 + gamma V(s'),  V(s') = tau log sum_a exp(Q(a)/tau)

With rho the policy of another head the fixed point is regularised by alpha tau KL(pi || rho) and keeps
(1 - alpha) tau of entropy; with the hard value V(s') = max_a Q(s', a) it is regularised by the cross-entropy alone. A
slowly moving rho and the clip at l0 keep two coupled heads from chasing each other.
"""

import torch

from utils.shapes import check_same_shape, check_shape


def log_policy(q: torch.Tensor, avail: torch.Tensor, tau) -> torch.Tensor:
    """log softmax(Q/tau) over the available actions, (..., A) -> (..., A); -inf where an action is not available."""
    check_same_shape(q=q, avail=avail)
    return torch.log_softmax(q.masked_fill(avail == 0, -torch.inf) / tau, dim=-1)


def soft_value(q: torch.Tensor, avail: torch.Tensor, tau) -> torch.Tensor:
    """max_pi E_pi[Q] + tau H(pi) = tau log sum_a exp(Q/tau) over the available actions, (..., A) -> (...)."""
    check_same_shape(q=q, avail=avail)
    return tau * torch.logsumexp(q.masked_fill(avail == 0, -torch.inf) / tau, dim=-1)


def munchausen_bonus(log_rho: torch.Tensor, tau, l0) -> torch.Tensor:
    """[tau log rho(a|s)] clipped to [l0, 0]: what is added to the reward, before the factor alpha.

    Args:
        log_rho: any shape, log-probability of the logged action; -inf is allowed and clipped.
        tau: temperature in units of Q.
        l0: the least value, in units of the reward (negative).
    """
    return (tau * log_rho).clamp(min=l0, max=0.0)


def taken_log_policy(q: torch.Tensor, avail: torch.Tensor, actions: torch.Tensor, tau) -> torch.Tensor:
    """log softmax(Q/tau) of the logged actions.

    Args:
        q, avail: (B, T, N, A); actions: (B, T, N, 1).

    Returns:
        (B, T, N).
    """
    check_shape("actions", actions, (*q.shape[:-1], 1))
    return log_policy(q, avail, tau).gather(-1, actions).squeeze(-1)
