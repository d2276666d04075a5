"""The Munchausen term, with the policy of the *other* head (after Vieillard et al. 2020, eq. 3).

y = r + alpha [tau log rho(a|s)]_{l0}^0 + gamma V(s'),  V(s') = tau log sum_a exp(Q(a)/tau)

With rho the policy of another head the fixed point is regularised by alpha tau KL(pi || rho) and keeps
(1 - alpha) tau of entropy; with the hard value V(s') = max_a Q(s', a) it is regularised by the cross-entropy alone. A
slowly moving rho and the clip at l0 keep two coupled heads from chasing each other.
"""

import torch

from objectives.available import log_softmax, logsumexp
from utils.shapes import check_same_shape, check_shape

CLIPS = ("scaled", "unscaled")


def log_policy(q: torch.Tensor, avail: torch.Tensor, tau) -> torch.Tensor:
    """log softmax(Q/tau) over the available actions, (..., A) -> (..., A); -inf where an action is not available."""
    return log_softmax(q, avail, tau)


def soft_value(q: torch.Tensor, avail: torch.Tensor, tau) -> torch.Tensor:
    """max_pi E_pi[Q] + tau H(pi) = tau log sum_a exp(Q/tau) over the available actions, (..., A) -> (...)."""
    return logsumexp(q, avail, tau)


def munchausen_bonus(log_rho: torch.Tensor, tau, l0, clip: str = "scaled") -> torch.Tensor:
    """What is added to the reward, before the factor alpha.

    scaled: [tau log rho]_{l0}^0;  unscaled: tau [log rho]_{l0}^0.

    Args:
        log_rho: any shape, log-probability of the logged action; -inf is allowed and clipped.
        tau: temperature in units of Q.
        l0: the least value (negative): scaled, in units of the reward; unscaled, a log-probability.
    """
    if clip == "scaled":
        return (tau * log_rho).clamp(max=0.0).clamp(min=l0)  # one clamp of both would read a tensor l0 on the host
    if clip == "unscaled":
        return tau * log_rho.clamp(max=0.0).clamp(min=l0)
    raise ValueError(f"clip must be one of {', '.join(CLIPS)}, got {clip!r}")


def opinion_pool(log_rho: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """1/(N-1) sum_{j != i} log rho_j(a_i | tau_i): what the other agents' policies say about agent i's action.

    The log of the geometric mean of their policies, so that the bonus is a KL toward an unnormalised opinion pool.

    Args:
        log_rho: (B, T, N, J, A), [i, j] the policy of agent j on the history of agent i; J = N.
        actions: (B, T, N, 1).

    Returns:
        (B, T, N). A single agent is its own pool.
    """
    B, T, N, J, _ = log_rho.shape
    if J != N:
        raise ValueError(f"log_rho must have shape (B, T, N, N, A), got {tuple(log_rho.shape)}")
    check_shape("actions", actions, (B, T, N, 1))
    taken = log_rho.gather(-1, actions.unsqueeze(3).expand(B, T, N, J, 1)).squeeze(-1)
    if N == 1:
        return taken.squeeze(-1)
    own = torch.eye(N, dtype=torch.bool, device=taken.device)
    return taken.masked_fill(own, 0.0).sum(dim=-1) / (N - 1)


def neighbour_confidence(log_rho: torch.Tensor) -> torch.Tensor:
    """max_a log rho_j(a | tau_j) of the next agent j = i + 1 (cyclic): the author's permuted form.

    It does not depend on agent i's action, so it is no KL: it only rewards states in which the neighbour is sure.

    Args:
        log_rho: (B, T, N, A).

    Returns:
        (B, T, N).
    """
    return log_rho.max(dim=-1).values.roll(-1, dims=-1)


def kl_to(q: torch.Tensor, avail: torch.Tensor, log_rho: torch.Tensor, tau) -> torch.Tensor:
    """KL(softmax(Q/tau) || rho) over the available actions: the direct regulariser beside the Munchausen term.

    Args:
        q, avail, log_rho: (..., A); log_rho is finite where avail is 1.

    Returns:
        (...).
    """
    check_same_shape(q=q, log_rho=log_rho)
    log_pi = log_policy(q, avail, tau)
    difference = (log_pi - log_rho).masked_fill(avail == 0, 0.0)  # -inf - -inf is not a number
    return (log_pi.exp() * difference).sum(dim=-1)
