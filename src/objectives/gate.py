"""The gate: how far each head is trusted. Pairs are ordered (independent, cooperative).

The statistics are the heads' conservative gaps without gradient: smoothed over updates for the direct and hard gate,
of each batch for the Lagrangian one, whose multipliers do the smoothing. A small gap means that
the head's values are supported by the data, so it gets a large weight.
"""

import torch

from utils.shapes import check_shape

ACTS_ON = ("loss", "penalty")


def smooth(previous: torch.Tensor | None, value: torch.Tensor, decay: float) -> torch.Tensor:
    """Exponential moving average, started at the first value. No gradient flows through it."""
    value = value.detach()
    return value.clone() if previous is None else decay * previous + (1 - decay) * value


def direct_weights(
    gaps: torch.Tensor, eps, p: float = 1.0, floor: float = 0.0, prior_cooperative: float = 0.5
) -> torch.Tensor:
    """w_h = prior_h (relu(d_h) + eps)^-p / sum, then w <- floor + (1 - 2 floor) w.

    With p = 1, eps = 0 the weighted gap w . d is the harmonic mean of the two, at most twice the smaller.

    Args:
        gaps: (2,). eps: > 0, in units of the gap. p: > 0, larger is harder. floor: in [0, .5), least weight.
        prior_cooperative: in (0, 1), the cooperative head's weight at equal gaps.

    Returns:
        (2,), positive, summing to 1.
    """
    check_shape("gaps", gaps, (2,))
    prior = torch.tensor([1 - prior_cooperative, prior_cooperative], dtype=gaps.dtype, device=gaps.device)
    inverse = prior * (gaps.relu() + eps) ** -p
    return _with_floor(inverse / inverse.sum(), floor)


def hard_weights(gaps: torch.Tensor, floor: float = 0.0, prior_cooperative: float = 0.5) -> torch.Tensor:
    """All weight to the head with the smaller gap, as min(Q1, Q2) does; a tie goes to the head of larger prior.

    If both heads regress on one target, this picks min(V_I, V_C) exactly (Theorem 3.2 of the method).
    """
    check_shape("gaps", gaps, (2,))
    gaps = gaps.relu()
    prefer_independent = gaps[0] <= gaps[1] if prior_cooperative <= 0.5 else gaps[0] < gaps[1]
    independent = prefer_independent.to(gaps.dtype)
    return _with_floor(torch.stack([independent, 1 - independent]), floor)


def lagrange_step(log_multipliers: torch.Tensor, gaps: torch.Tensor, eta: float, l_max: float) -> torch.Tensor:
    """l_h <- clip(l_h + eta (d_h - mean d), -l_max, l_max): exponentiated ascent of the multipliers exp(l_h).

    The mean is subtracted because without it both multipliers run into the same clip.

    Args:
        log_multipliers, gaps: (2,). eta: step size per unit of gap. l_max: > 0.
    """
    check_shape("log_multipliers", log_multipliers, (2,))
    check_shape("gaps", gaps, (2,))
    return (log_multipliers + eta * (gaps.detach() - gaps.detach().mean())).clamp(-l_max, l_max)


def lagrange_weights(log_multipliers: torch.Tensor, floor: float = 0.0) -> torch.Tensor:
    """w_h proportional to 1 / exp(l_h). Together with `lagrange_step` this is Hedge on the gaps (Theorem 3.7)."""
    check_shape("log_multipliers", log_multipliers, (2,))
    return _with_floor(torch.softmax(-log_multipliers, dim=0), floor)


def combine(td: torch.Tensor, penalty: torch.Tensor, weights: torch.Tensor | None, acts_on: str) -> torch.Tensor:
    """The scalar loss of both heads.

    loss: sum_h w_h (TD_h + penalty_h);  penalty: sum_h TD_h + w_h penalty_h;  weights None: sum_h TD_h + penalty_h.

    Args:
        td, penalty, weights: (2,); no gradient flows into the weights.
    """
    check_shape("td", td, (2,))
    check_shape("penalty", penalty, (2,))
    if weights is None:
        return (td + penalty).sum()
    check_shape("weights", weights, (2,))
    weights = weights.detach()
    if acts_on == "loss":
        return (weights * (td + penalty)).sum()
    if acts_on == "penalty":
        return (td + weights * penalty).sum()
    raise ValueError(f"acts_on must be one of {', '.join(ACTS_ON)}, got {acts_on!r}")


def _with_floor(weights: torch.Tensor, floor: float) -> torch.Tensor:
    return floor + (1 - 2 * floor) * weights
