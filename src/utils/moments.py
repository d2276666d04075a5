"""Running mean and variance of everything seen so far, as a tensor that is never written to."""

import torch


def update_moments(moments: torch.Tensor | None, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Merge the values where `mask` is 1 into (count, mean, sum of squared deviations), shape (3,).

    `moments` None means that nothing was seen yet. (Chan, Golub & LeVeque 1983, eq. 2.1)
    """
    played, values = mask.bool(), values.detach()
    count = played.sum().to(values.dtype)
    mean = torch.where(played, values, 0.0).sum() / count.clamp(min=1)
    batch = torch.stack([count, mean, torch.where(played, values - mean, 0.0).square().sum()])
    if moments is None:
        return batch
    total = moments[0] + count
    delta = mean - moments[1]
    share = count / total.clamp(min=1)
    return torch.stack([total, moments[1] + delta * share, moments[2] + batch[2] + delta**2 * moments[0] * share])


def deviation(moments: torch.Tensor) -> torch.Tensor:
    """The standard deviation, a scalar; 0 before anything was seen."""
    return (moments[2] / moments[0].clamp(min=1)).sqrt()
