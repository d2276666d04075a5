"""How far policies stray from the behaviour policy: the maximum mean discrepancy of BEAR (Kumar et al. 2019).

BEAR keeps policies within the *support* of the data, by the MMD between samples of both. Of discrete actions, one-hot
vectors, all pairs are equally far apart, so that a kernel k(a, b) = kappa(||a - b||) has two values, and

    MMD^2(p, q) = sum_{a,b} (p - q)(a) (p - q)(b) k(a, b) = (kappa(0) - kappa(sqrt 2)) sum_a (p(a) - q(a))^2

exactly, without samples. The factor is a unit, and left out: all such kernels are one. But without a geometry among the
actions this is a distance of densities, which would clone the data. The support is therefore said in so many words:
Pi(beta) = {p: p(a) = 0 unless beta(a) >= e max beta} (definition 4.1 there), and a policy is as far from it as from its
nearest member. The KL divergence of BRAC is `actor_critic.policy_kl`.

Legend: A actions. Policies are 0 where an action is not available.
"""

import torch

from objectives.actor_critic import policy_kl
from utils.shapes import check_same_shape

KINDS = ("kl", "mmd", "support")


def squared_mmd(policy: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """sum_a (p(a) - q(a))^2, the squared MMD of policies over one-hot actions: (..., A) -> (...).

    Args:
        policy, other: (..., A); no gradient flows into `other`.
    """
    check_same_shape(policy=policy, other=other)
    return ((policy - other.detach()) ** 2).sum(dim=-1)


def support_mmd(policy: torch.Tensor, beta: torch.Tensor, share: float) -> torch.Tensor:
    """min {MMD^2(p, q): q(a) = 0 where beta(a) < share max beta} = sum_{a outside} p(a)^2 + m^2 / |inside|.

    m is the probability of the actions outside; the nearest q spreads it evenly over those inside. 0 for every policy
    that keeps to the support, however much surer or less sure than beta it is.

    Args:
        policy, beta: (..., A); no gradient flows into beta. A row of beta without any action has distance 0.
        share: in (0, 1], of the likeliest action's probability, from which on an action is supported.

    Returns:
        (...).
    """
    check_same_shape(policy=policy, beta=beta)
    beta = beta.detach()
    inside = beta >= share * beta.max(dim=-1, keepdim=True).values
    outside = policy.masked_fill(inside, 0.0)
    return (outside**2).sum(dim=-1) + outside.sum(dim=-1) ** 2 / inside.sum(dim=-1)


def divergence(policy: torch.Tensor, log_beta: torch.Tensor, kind: str, share: float) -> torch.Tensor:
    """D(pi, beta) of every agent, 0 or more.

    kl: KL(pi || beta) (Wu et al. 2019, section 3);  mmd: `squared_mmd`;  support: `support_mmd` with this share.

    Args:
        policy, log_beta: (B, T, N, A); no gradient flows into beta.

    Returns:
        (B, T, N).
    """
    if kind == "kl":
        return policy_kl(policy, log_beta)
    if kind == "mmd":
        return squared_mmd(policy, log_beta.exp())
    if kind == "support":
        return support_mmd(policy, log_beta.exp(), share)
    raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
