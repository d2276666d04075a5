"""Implicit constraint Q-learning: values and policies from the actions of the data alone (Yang et al. 2021).

The best policy within a KL divergence of the data is beta(a) exp(Q(a)/alpha) / Z. Averages over it are averages over
the data with weights exp(Q/alpha) / Z, so that no other action's value is ever asked for.
"""

import torch

from utils.shapes import check_same_shape


def batch_weights(values: torch.Tensor, mask: torch.Tensor, temperature: float) -> torch.Tensor:
    """w = n_t softmax(value / alpha) over the n_t episodes that play step t: exp(Q/alpha) / Z, Z by the batch.

    Yang et al. 2021, the multi-agent form, with a softmax over the batch; its mean over those episodes is 1.

    Args:
        values, mask: (B, T, X), one shape; mask 1 where the step was played.
        temperature: alpha > 0, in units of the values; large: all weigh alike.

    Returns:
        (B, T, X), without gradient; 0 where nothing was played.
    """
    check_same_shape(values=values, mask=mask)
    played = mask.bool()
    scaled = (values.detach() / temperature).masked_fill(~played, -torch.inf)
    weights = torch.softmax(scaled, dim=0) * mask.sum(dim=0, keepdim=True)
    return weights.masked_fill(~played, 0.0)  # where no episode plays, the softmax alone is NaN
