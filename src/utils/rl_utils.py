"""TD(lambda) targets under PyMARL's name and signature, for its plug-ins."""

import torch


def build_td_lambda_targets(rewards, terminated, mask, target_qs, n_agents, gamma, td_lambda) -> torch.Tensor:
    """Lambda returns of steps 0..T-1.

    Unlike PyMARL's, the return at an episode's last step bootstraps if the episode was truncated.

    Args:
        rewards, terminated, mask: (B, T, 1) or (B, T, N).
        target_qs: (B, T+1, N), of the states at the steps and after the last.
        n_agents: not needed, kept for PyMARL's callers.

    Returns:
        (B, T, N).
    """
    v_next = target_qs[:, 1:]
    returns = torch.empty_like(v_next)
    following = v_next[:, -1]
    for t in reversed(range(v_next.shape[1])):
        if t + 1 < v_next.shape[1]:
            following = torch.where(mask[:, t + 1] > 0, returns[:, t + 1], v_next[:, t])
        bootstrap = (1 - td_lambda) * v_next[:, t] + td_lambda * following
        returns[:, t] = rewards[:, t] + gamma * (1 - terminated[:, t]) * bootstrap
    return returns
