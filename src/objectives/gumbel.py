"""Sampled discrete actions that actors are differentiated through: the straight-through Gumbel-softmax.

Legend: A actions. Policies are 0 where an action is not available.
"""

import torch
import torch.nn.functional as F

from utils.shapes import check_same_shape

LEAST = 1e-20  # probabilities below it count as 0: they are never drawn, and the slopes of their logarithms overflow


def gumbel_like(policy: torch.Tensor) -> torch.Tensor:
    """Independent standard Gumbel noise of the shape of `policy`: -log of a standard exponential variable."""
    return -torch.empty_like(policy).exponential_().log()


def straight_through(policy: torch.Tensor, noise: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """e_k with k = argmax_a log pi(a) + g(a), whose gradient is that of softmax((log pi + g) / T).

    With g standard Gumbel noise k is drawn from pi (the Gumbel-max trick); the value is the one-hot vector exactly, and
    the softmax, its relaxation, lends it a gradient. (Jang, Gu & Poole 2017, eq. 1, 2 and section 2.2)

    Args:
        policy: (..., A). A row without any action, as in padding, counts as uniform, without gradient.
        noise: (..., A). temperature: T > 0.

    Returns:
        (..., A); an action of probability 0 is never drawn and gets no gradient.
    """
    check_same_shape(policy=policy, noise=noise)
    possible = policy > LEAST
    logits = policy.masked_fill(~possible, 1.0).log()  # masked first: the gradient of the logarithm at 0 is infinite
    drawable = possible | ~possible.any(dim=-1, keepdim=True)
    perturbed = (logits + noise).masked_fill(~drawable, -torch.inf)
    soft = torch.softmax(perturbed / temperature, dim=-1)
    hard = F.one_hot(perturbed.argmax(dim=-1), policy.shape[-1]).to(policy.dtype)
    return hard + (soft - soft.detach())


def logit_size(policy: torch.Tensor) -> torch.Tensor:
    """mean_a l(a)^2 of the policy's logits l(a) = log pi(a) - mean_a log pi(a): (..., A) -> (...).

    A softmax knows its logits up to a constant; this takes those of mean 0, the smallest. Held small, no policy becomes
    so sure that the relaxation has no gradient left. Actions of probability 0 are left out.
    """
    possible = policy > LEAST
    logits = policy.masked_fill(~possible, 1.0).log()
    count = possible.sum(dim=-1, keepdim=True).clamp(min=1)
    centred = (logits - logits.sum(dim=-1, keepdim=True) / count).masked_fill(~possible, 0.0)
    return (centred**2).sum(dim=-1) / count.squeeze(-1)
