"""Temporal-difference targets and the loss toward them. Truncated steps have `terminated` 0 and so are bootstrapped."""

import torch

from utils.rl_utils import build_td_lambda_targets
from utils.shapes import check_same_shape, check_shape, masked_mean


def one_step_targets(
    reward: torch.Tensor, terminated: torch.Tensor, v_next: torch.Tensor, gamma: float
) -> torch.Tensor:
    """y_t = r_t + gamma (1 - terminated_t) V(s_{t+1}).  (Watkins 1989)

    Args:
        reward, terminated, v_next: (B, T, X), one shape.
    """
    check_same_shape(reward=reward, terminated=terminated, v_next=v_next)
    return reward + gamma * (1 - terminated) * v_next


def lambda_targets(
    reward: torch.Tensor,
    terminated: torch.Tensor,
    mask: torch.Tensor,
    v_next: torch.Tensor,
    gamma: float,
    td_lambda: float,
) -> torch.Tensor:
    """G_t = r_t + gamma (1 - terminated_t) [(1 - lambda) V(s_{t+1}) + lambda G_{t+1}].  (Sutton & Barto 2018, eq. 12.2)

    At an episode's last step, terminated or truncated, G_{t+1} stands for V(s_{t+1}); lambda = 0 gives
    `one_step_targets`. Off-policy data is not corrected for (Peng's Q(lambda)).

    Args:
        reward, terminated, mask, v_next: (B, T, X), one shape.
    """
    check_same_shape(reward=reward, terminated=terminated, mask=mask, v_next=v_next)
    if td_lambda == 0:
        return one_step_targets(reward, terminated, v_next, gamma)
    values = torch.cat([v_next[:, :1], v_next], dim=1)  # the function reads the values after step 0
    return build_td_lambda_targets(reward, terminated, mask, values, v_next.shape[2], gamma, td_lambda)


def td_loss(q: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """mean over played steps of 1/2 (Q - y)^2; no gradient flows into y.

    Args:
        q, target, mask: (B, T, X), one shape.
    """
    check_same_shape(q=q, target=target, mask=mask)
    error = torch.where(mask.bool(), q - target.detach(), 0.0)  # masked first: 0 * NaN in a backward is NaN
    return masked_mean(0.5 * error**2, mask)


def discounted_returns(reward: torch.Tensor, gamma: float) -> torch.Tensor:
    """G_t = sum_{k >= t} gamma^(k-t) r_k, the return that was realised from every step on.

    Args:
        reward: (B, T, X), 0 behind the end of an episode; a value that stands for the future of a cut episode belongs
            to the last reward.
    """
    check_shape("reward", reward, (None, None, None))
    steps = torch.arange(reward.shape[1], device=reward.device)
    ahead = steps.unsqueeze(0) - steps.unsqueeze(1)  # (t, k): k - t
    discounts = torch.where(ahead >= 0, gamma ** ahead.clamp(min=0).to(reward.dtype), 0.0)
    return torch.einsum("tk,bkx->btx", discounts, reward)
