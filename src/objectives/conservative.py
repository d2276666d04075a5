"""Conservative gaps: how far a head's values stand above what the data supports.

d = sup_a Q - E_beta[Q], the gap of conservative Q-learning (Kumar et al. 2020, eq. 4) with different first terms `op`.
Unavailable actions are outside every sup; their values have no effect.
"""

import math

import torch

from objectives.available import best_action, logsumexp
from utils.shapes import check_same_shape, check_shape

JOINTS = ("max", "cf", "cf_weighted", "cf_per_gain", "sampled", "linear")  # how the cooperative head's gap is taken
LEAST_BETA = 1e-5  # of a behaviour probability whose logarithm is taken
OPS = ("max", "lse", "lse_beta", "lse_mean", "softmax", "uniform")


def sup_value(
    q: torch.Tensor, avail: torch.Tensor, op: str, temperature=1.0, beta: torch.Tensor | None = None
) -> torch.Tensor:
    """The first term of the gap over the last dimension.

    max: max_a Q;  lse: T log sum_a exp(Q/T);  lse_beta: T log sum_a beta(a) exp(Q/T);  lse_mean: lse - T log |A|;
    softmax: sum_a softmax(Q/T)(a) Q(a);  uniform: mean_a Q.
    They are ordered uniform <= softmax <= max <= lse <= max + T log |A|.

    Args:
        q, avail: (..., A), avail 1 where the action may be taken; at least one action must be available.
        op: one of `OPS`.
        temperature: T > 0, in units of Q; a number or a scalar tensor.
        beta: (..., A) behaviour probabilities, for `lse_beta` alone.

    Returns:
        (...), without the action dimension.
    """
    check_same_shape(q=q, avail=avail)
    if op == "max":
        return q.gather(-1, best_action(q, avail)).squeeze(-1)
    if op == "lse":
        return logsumexp(q, avail, temperature)
    unavailable = avail == 0
    if op == "uniform":
        return q.masked_fill(unavailable, 0.0).sum(dim=-1) / (~unavailable).sum(dim=-1)
    if op == "lse_mean":
        count = (~unavailable).sum(dim=-1).to(q.dtype)
        return logsumexp(q, avail, temperature) - temperature * count.log()
    q_avail = q.masked_fill(unavailable, -torch.inf)
    if op == "lse_beta":
        if beta is None:
            raise ValueError("op 'lse_beta' needs the behaviour probabilities beta")
        check_same_shape(q=q, beta=beta)
        return temperature * torch.logsumexp(q_avail / temperature + beta.log(), dim=-1)
    if op == "softmax":
        return (torch.softmax(q_avail / temperature, dim=-1) * q.masked_fill(unavailable, 0.0)).sum(dim=-1)
    raise ValueError(f"op must be one of {', '.join(OPS)}, got {op!r}")


def agent_gaps(
    q: torch.Tensor, avail: torch.Tensor, q_data: torch.Tensor, op: str, temperature=1.0, beta=None
) -> torch.Tensor:
    """d_{I,i} = sup_a Q_i(a) - Q_i(data), the gap of every agent's own values.

    Args:
        q, avail: (B, T, N, A).
        q_data: (B, T, N), the value of the logged action, or E_beta[Q_i].

    Returns:
        (B, T, N). The independent head's gap is their mean over agents and played steps.
    """
    check_shape("q_data", q_data, tuple(q.shape[:-1]))
    return sup_value(q, avail, op, temperature, beta) - q_data


def joint_max_gap(q_tot_max: torch.Tensor, q_tot_data: torch.Tensor) -> torch.Tensor:
    """d_C = f(max_1 Q_1, ..., max_N Q_N; s) - Q_tot(s, a_data), exact for a monotone mixer f.

    Args:
        q_tot_max, q_tot_data: (B, T, 1).
    """
    check_same_shape(q_tot_max=q_tot_max, q_tot_data=q_tot_data)
    return q_tot_max - q_tot_data


def counterfactual_gap(
    q_cf: torch.Tensor,
    avail: torch.Tensor,
    q_tot_data: torch.Tensor,
    op: str,
    temperature=1.0,
    beta: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """d_C = sum_i lambda_i [sup_k Q_tot(k, a_-i; s) - Q_tot(a; s)]: one agent at a time leaves the data.

    Unlike a joint penalty it does not grow with the number of agents (Shao et al. 2023, CFCQL, eq. 4).

    Args:
        q_cf, avail: (B, T, N, A), q_cf[..., i, k] = Q_tot(k, a_-i; s).
        q_tot_data: (B, T, 1), the value of the logged joint action, or E_beta[Q_tot].
        beta: (B, T, N, A) behaviour probabilities of each agent, for op `lse_beta` alone.
        weights: (B, T, N) lambda, which sum to 1 over the agents; None: 1/N.

    Returns:
        (B, T, 1).
    """
    check_shape("q_tot_data", q_tot_data, (*q_cf.shape[:2], 1))
    sup = sup_value(q_cf, avail, op, temperature, beta)  # (B, T, N)
    if weights is None:
        return sup.mean(dim=-1, keepdim=True) - q_tot_data
    check_same_shape(sup=sup, weights=weights)
    return (weights * sup).sum(dim=-1, keepdim=True) - q_tot_data


def shift_weights(
    q_cf: torch.Tensor, avail: torch.Tensor, beta: torch.Tensor, temperature, strength: float
) -> torch.Tensor:
    """lambda_i = softmax_i(strength KL(mu_i || beta_i)), mu_i = softmax_k(Q_tot(k, a_-i; s)/T), without gradient.

    The agents whose values would lead them furthest from the data weigh most; strength 0 gives 1/N. (CFCQL, as in the
    paper's code, which adds 1e-5 to every probability where here beta is at least that.)

    Args:
        q_cf, avail, beta: (B, T, N, A); beta the behaviour probabilities of each agent.

    Returns:
        (B, T, N).
    """
    check_same_shape(q_cf=q_cf, avail=avail, beta=beta)
    log_mu = torch.log_softmax((q_cf.detach() / temperature).masked_fill(avail == 0, -torch.inf), dim=-1)
    difference = (log_mu - beta.clamp(min=LEAST_BETA).log()).masked_fill(avail == 0, 0.0)
    return torch.softmax(strength * (log_mu.exp() * difference).sum(dim=-1), dim=-1)


def sampled_lse(q_tot: torch.Tensor, log_rho: torch.Tensor, temperature) -> torch.Tensor:
    """T [log sum_m exp(Q_tot(a^m)/T - log rho(a^m)) - log M], an estimate of T log sum_a exp(Q_tot(a)/T).

    Its expectation is at most the truth (Jensen) and comes as close as 1/M. With the proposal
    rho = prod_i softmax(k_i Q_i/T), k_i = df/dQ_i, one sample is exact if the mixer f is affine (Proposition 1.4).

    Args:
        q_tot, log_rho: (B, T, M), the M sampled joint actions' values and log-probabilities.

    Returns:
        (B, T, 1).
    """
    check_same_shape(q_tot=q_tot, log_rho=log_rho)
    total = torch.logsumexp(q_tot / temperature - log_rho, dim=-1, keepdim=True)
    return temperature * (total - math.log(q_tot.shape[-1]))


def linear_gap(gains: torch.Tensor, gaps: torch.Tensor) -> torch.Tensor:
    """d_C = sum_i df/dQ_i d_i: what the agents' gaps are worth to the mixer, to first order at the data.

    Args:
        gains, gaps: (B, T, N).

    Returns:
        (B, T, 1).
    """
    check_same_shape(gains=gains, gaps=gaps)
    return (gains * gaps).sum(dim=-1, keepdim=True)


def standardise(q: torch.Tensor, avail: torch.Tensor) -> torch.Tensor:
    """Q over its standard deviation among the available actions, (..., A); 0 deviation counts as 1."""
    n = avail.sum(dim=-1, keepdim=True)
    mean = q.masked_fill(avail == 0, 0.0).sum(dim=-1, keepdim=True) / n
    variance = (q - mean).masked_fill(avail == 0, 0.0).square().sum(dim=-1, keepdim=True) / n
    deviation = variance.sqrt()
    return (q - mean) / torch.where(deviation > 1e-6, deviation, 1.0)
