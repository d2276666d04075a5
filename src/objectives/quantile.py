"""Quantile regression: heads that learn the distribution of the return. (Dabney et al. 2018, QR-DQN)

Legend: B episodes, T steps, N agents, M quantiles, X is 1 or N.
"""

from collections.abc import Callable

import torch

from utils.shapes import check_same_shape, check_shape, masked_mean


def quantile_huber_loss(
    quantiles: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, kappa: float = 1.0
) -> torch.Tensor:
    """mean over played steps of 1/M sum_m sum_k |tau_m - 1[u_km < 0]| L_kappa(u_km) / M, u_km = target_k - z_m.

    tau_m = (m - 1/2) / M; L_kappa is Huber's loss over kappa. No gradient flows into the target. (Equation 10 there,
    with the mean over m, so that the loss does not grow with M.)

    Args:
        quantiles, target: (B, T, X, M). mask: (B, T, X).

    Returns:
        A scalar.
    """
    check_same_shape(quantiles=quantiles, target=target)
    check_shape("mask", mask, tuple(quantiles.shape[:-1]))
    M = quantiles.shape[-1]
    tau = (torch.arange(M, device=quantiles.device, dtype=quantiles.dtype) + 0.5) / M
    error = target.detach().unsqueeze(-2) - quantiles.unsqueeze(-1)  # (B, T, X, m, k)
    error = torch.where(mask[..., None, None].bool(), error, 0.0)  # masked first: 0 * NaN in a backward is NaN
    size = error.detach().abs()
    huber = torch.where(size <= kappa, 0.5 * error**2 / kappa, error.abs() - 0.5 * kappa)
    weight = (tau.unsqueeze(-1) - (error.detach() < 0).to(error.dtype)).abs()
    return masked_mean((weight * huber).mean(dim=(-2, -1)), mask)


def mix_quantiles(mixer: Callable, quantiles: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """f applied quantile by quantile, z_tot^m = f(z_1^m, ..., z_N^m; s).

    Exact for agents whose returns rise and fall together (comonotone): a monotone f maps the m-th quantiles of all to
    the m-th quantile of the team's return.

    Args:
        quantiles: (B, T, N, M). states: (B, T, S).

    Returns:
        (B, T, 1, M).
    """
    check_shape("states", states, (*quantiles.shape[:2], None))
    return torch.vmap(lambda z: mixer(z, states), in_dims=3, out_dims=3)(quantiles)
