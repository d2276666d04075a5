"""The gate: how far each head is trusted. Pairs are ordered (independent, cooperative).

A head's statistic g says how little it deserves trust, and a small one gets a large weight: its conservative gap, its
over-estimation, its TD error, or how far its certified value falls behind the other's. No gradient flows through it.
The direct and hard gates read statistics that are smoothed over updates, the Lagrangian one those of each batch, since
its multipliers do the smoothing.
"""

import math

import torch

from utils.shapes import check_same_shape, check_shape

MEASURED = ("over", "cert", "realised")  # metrics that compare values with what greedy play earned
ACTS_ON = ("loss", "penalty", "none")


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
    # Made on the device: it would wait for numbers of the host
    prior = torch.stack([gaps.new_full((), share) for share in (1 - prior_cooperative, prior_cooperative)])
    inverse = prior * (gaps.relu() + eps) ** -p
    return _with_floor(inverse / inverse.sum(), floor)


def hard_weights(gaps: torch.Tensor, floor: float = 0.0, prior_cooperative: float = 0.5) -> torch.Tensor:
    """All weight to the head with the smaller gap, as min(Q1, Q2) does; a tie goes to the head of larger prior.

    If both heads regress on one target, this picks min(V_I, V_C) exactly (Theorem 3.2 of docs/theory.md).
    """
    check_shape("gaps", gaps, (2,))
    gaps = gaps.relu()
    prefer_independent = gaps[0] <= gaps[1] if prior_cooperative <= 0.5 else gaps[0] < gaps[1]
    independent = prefer_independent.to(gaps.dtype)
    return _with_floor(torch.stack([independent, 1 - independent]), floor)


def lagrange_step(
    log_multipliers: torch.Tensor,
    statistic: torch.Tensor,
    eta: float,
    l_max: float,
    form: str = "exp",
    threshold: float | None = None,
) -> torch.Tensor:
    """One ascent step of the multipliers exp(l_h) of the constraints g_h <= threshold.

    exp: l_h <- clip(l_h + eta (g_h - threshold), -l_max, l_max);  gradient: the step times exp(l_h), as CQL's code has
    it, which stalls where the multiplier is small. threshold None is the mean of the statistics: it cancels in the
    weights, and any other one drives both multipliers into the same clip.

    Args:
        log_multipliers, statistic: (2,). eta: step size per unit of the statistic. l_max: > 0.
    """
    check_shape("log_multipliers", log_multipliers, (2,))
    check_shape("statistic", statistic, (2,))
    statistic = statistic.detach()
    excess = statistic - (statistic.mean() if threshold is None else threshold)
    if form == "gradient":
        excess = log_multipliers.exp() * excess
    elif form != "exp":
        raise ValueError(f"form must be exp or gradient, got {form!r}")
    return (log_multipliers + eta * excess).clamp(-l_max, l_max)


def lagrange_weights(log_multipliers: torch.Tensor, floor: float = 0.0) -> torch.Tensor:
    """w_h proportional to 1 / exp(l_h). Together with `lagrange_step` this is Hedge on the gaps (Theorem 3.7)."""
    check_shape("log_multipliers", log_multipliers, (2,))
    return _with_floor(torch.softmax(-log_multipliers, dim=0), floor)


def combine(td: torch.Tensor, penalty: torch.Tensor, weights: torch.Tensor | None, acts_on: str) -> torch.Tensor:
    """The scalar loss of both heads, the sum of `head_losses`."""
    return head_losses(td, penalty, weights, acts_on).sum()


def head_losses(td: torch.Tensor, penalty: torch.Tensor, weights: torch.Tensor | None, acts_on: str) -> torch.Tensor:
    """The loss of each head, (2,).

    loss: w_h (TD_h + penalty_h);  penalty: TD_h + w_h penalty_h;  none, or weights None: TD_h + penalty_h.

    Args:
        td, penalty, weights: (2,); no gradient flows into the weights.
    """
    check_shape("td", td, (2,))
    check_shape("penalty", penalty, (2,))
    if weights is None or acts_on == "none":
        return td + penalty
    check_shape("weights", weights, (2,))
    weights = weights.detach()
    if acts_on == "loss":
        return weights * (td + penalty)
    if acts_on == "penalty":
        return td + weights * penalty
    raise ValueError(f"acts_on must be one of {', '.join(ACTS_ON)}, got {acts_on!r}")


def loss_units(deviations: torch.Tensor) -> torch.Tensor:
    """(sigma_I / sigma_h)^2, (2,): what brings each head's loss, a squared value, into the independent head's units.

    A head whose values run away has errors as large as its values, and through shared utilities its loss would drown
    the other's whatever the weights are.

    Args:
        deviations: (2,) running deviations of the heads' targets, > 0.
    """
    check_shape("deviations", deviations, (2,))
    return (deviations[0] / deviations).square()


def suffix_weights(match: torch.Tensor, behaviour: torch.Tensor, mask: torch.Tensor, clip: float) -> torch.Tensor:
    """min(prod_{k >= t} 1[a_k = pi(tau_k)] / beta(a_k | tau_k), clip): importance of the rest of an episode, from t on.

    With a deterministic policy pi only episodes that follow it to their end say what it earns from t on; the ratio
    makes up for their rarity. (Precup, Sutton & Singh 2000; truncated as by Ionides 2008)

    Args:
        match: (B, T, 1) 1 where the logged joint action is the policy's.
        behaviour: (B, T, 1) probability with which the logged joint action was played, in (0, 1].
        mask: (B, T, 1) 1 on played steps. clip: > 0.

    Returns:
        (B, T, 1), 0 on padding.
    """
    check_same_shape(match=match, behaviour=behaviour, mask=mask)
    log_ratio = torch.where(mask.bool(), -behaviour.clamp(min=1e-12).log(), 0.0)
    missed = (1 - match.to(log_ratio.dtype)) * mask
    log_weight = log_ratio.flip(1).cumsum(1).flip(1).clamp(max=math.log(clip))
    followed = missed.flip(1).cumsum(1).flip(1) == 0
    return log_weight.exp() * followed * mask


def weighted_excess(value: torch.Tensor, realised: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(sum w (V - G) / sum w, number of rows with w > 0): how far values stand above what was realised.

    Args:
        value, realised, weight: (B, T, 1); rows of weight 0 have no effect, whatever they hold.
    """
    check_same_shape(value=value, realised=realised, weight=weight)
    excess = torch.where(weight > 0, value - realised, 0.0)
    return (weight * excess).sum() / weight.sum().clamp(min=1e-12), (weight > 0).sum()


def certified_value(value: torch.Tensor, excess: torch.Tensor) -> torch.Tensor:
    """C_h = min(V_h, Ghat_h) with Ghat_h = V_h - excess_h: what a head promises and has kept.

    If Ghat_h is a valid lower estimate of what head h's greedy play earns, acting on argmax_h C_h earns at least
    max_h C_h (Theorem 3.5 of docs/theory.md).
    """
    return value - excess.relu()


def regret(certified: torch.Tensor) -> torch.Tensor:
    """max_k C_k - C_h, (2,): the statistic of `cert` and `realised`, 0 for the head to act on.

    cert: C_h the certified value;  realised: Ghat_h = V_h - excess_h itself, what the head's greedy play earns. The
    independent head's values price in its teammates' exploration, so they can lie below what its greedy play earns.
    """
    check_shape("certified", certified, (2,))
    return certified.max() - certified


def gated_value(
    value_independent: torch.Tensor,
    value_cooperative: torch.Tensor,
    how: str,
    weights: torch.Tensor,
    excess: torch.Tensor,
    known: torch.Tensor | None = None,
) -> torch.Tensor:
    """The value that both heads bootstrap on.

    min: min_h V_h;  soft: sum_h w_h V_h;  cert: max_h (V_h - relu(excess_h)), the certified value. Without both
    excesses nothing is certified, and cert is min.

    Args:
        value_independent, value_cooperative: (B, T, 1), of the team. weights, excess: (2,).
        known: (2,), 1 for heads whose excess has been measured; None: both.

    Returns:
        (B, T, 1). With fixed weights the backup is a contraction (Proposition 3.8 of docs/theory.md).
    """
    check_same_shape(value_independent=value_independent, value_cooperative=value_cooperative)
    values = torch.cat([value_independent, value_cooperative], dim=-1)
    least = values.min(dim=-1, keepdim=True).values
    if how == "min":
        return least
    if how == "soft":
        return (weights * values).sum(dim=-1, keepdim=True)
    if how == "cert":
        certified = certified_value(values, excess).max(dim=-1, keepdim=True).values
        return certified if known is None else torch.where(known.min() > 0, certified, least)
    raise ValueError(f"how must be min, soft or cert, got {how!r}")


def _with_floor(weights: torch.Tensor, floor: float) -> torch.Tensor:
    return floor + (1 - 2 * floor) * weights
