"""LICA: actors that ascend a centralised critic's value of their policies (Zhou et al. 2020).

The critic is trained at the actions that were played, their one-hot vectors, toward TD(lambda) targets; the actors
follow its gradient at the probabilities of their policies, which need no credit assignment of its own. Both step on
the same batch, from the networks before it; the paper's code lets the critic step first.
Legend: that of `q_learner`.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from learners.q_learner import LEAST_SCALE, Transitions
from modules.critics import REGISTRY as critic_REGISTRY
from objectives import actor_critic
from objectives.td import lambda_targets, td_loss
from utils.moments import deviation, update_moments
from utils.networks import NonFiniteError, blend, build_optimiser, copy_state, set_step_size, unroll
from utils.registry import resolve
from utils.shapes import masked_mean


@dataclass
class Losses:
    """What one batch gives: a loss for each part of the learner, the terms they were made of, and statistics to log."""

    losses: dict[str, torch.Tensor]
    terms: dict[str, torch.Tensor]
    stats: dict[str, torch.Tensor]


class LICALearner:
    # Attributes that change with every batch: running statistics, restored if the update fails.
    statistics: tuple[str, ...] = ("reward_moments",)

    def __init__(self, mac, scheme, logger, args):
        self.args = args
        self.mac = mac
        self.logger = logger
        self.critic: Any = resolve("critic", args.critic, critic_REGISTRY)(scheme, args)
        self.target_critic = copy.deepcopy(self.critic)
        # Each part has a loss of its own, and steps on it alone.
        self.params: dict[str, list[nn.Parameter]] = {
            "agent": list(mac.parameters()),
            "critic": list(self.critic.parameters()),
        }
        self.optimisers = {
            "agent": build_optimiser(self.params["agent"], args.lr, args),
            "critic": build_optimiser(self.params["critic"], args.critic_lr, args),
        }
        self.reward_moments: Any = None  # of the rewards of all batches so far; None until the first
        self.last_target_update_episode = 0
        self.log_stats_t = -args.learner_log_interval - 1

    def train(self, batch, t_env: int, episode_num: int) -> None:
        """One gradient step of every part on a batch of episodes.

        Raises:
            NonFiniteError: a loss or a gradient is not finite; nothing was changed.
        """
        before = {name: getattr(self, name) for name in self.statistics}
        objective = self.objective(batch)
        norms = {part: self._differentiate(part, loss) for part, loss in objective.losses.items()}
        if not all(torch.isfinite(value) for value in (*objective.losses.values(), *norms.values())):
            for name, value in before.items():
                setattr(self, name, value)
            raise NonFiniteError({**objective.terms, **{f"{part} gradient norm": norms[part] for part in norms}})
        set_step_size(self.optimisers["agent"], t_env, self.args)
        for part in objective.losses:
            self.optimisers[part].step()
        self._update_targets(episode_num)
        if t_env - self.log_stats_t >= self.args.learner_log_interval:
            for part, norm in norms.items():
                self.logger.log_stat(f"{part}_grad_norm", norm.item(), t_env)
            for key, value in objective.stats.items():
                self.logger.log_stat(key, value.item(), t_env)
            self.log_stats_t = t_env

    def objective(self, batch) -> Losses:
        """The critic's squared TD error at the actions that were played; the actors' value and adaptive entropy."""
        step = self._transitions(batch)
        policy = unroll(self.mac, batch, test_mode=True)  # (B, T+1, N, A), without exploration
        played = self._one_hot(batch, policy)
        q_taken = self.critic(played[:, :-1], step.state[:, :-1])  # (B, T, 1)
        with torch.no_grad():
            target = self._targets(step, step.reward, self._next_values(step, policy, played))
        td = td_loss(q_taken, target, step.mask)
        value = self.critic(policy[:, :-1], step.state[:, :-1])  # (B, T, 1)
        entropy = actor_critic.policy_entropy(policy[:, :-1])  # (B, T, N)
        actor = actor_critic.actor_loss(value, entropy, step.mask, self.args.entropy_coef)
        # Twice the mean of half squared errors is PyMARL's loss, so that its learning rates and clip carry over.
        losses = {"critic": 2 * td, "agent": actor}
        terms = {"critic_loss": losses["critic"], "agent_loss": actor}
        return Losses(losses, terms, self._stats(step, policy, entropy, q_taken, target, value) | _detached(terms))

    def joint_values(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The agents' policies (B, T, N, A) and the critic's value of the batch's joint actions (B, T, 1)."""
        with torch.no_grad():
            policy = unroll(self.mac, batch, test_mode=True)
            return policy, self.critic(self._one_hot(batch, policy), batch["state"])

    def _transitions(self, batch) -> Transitions:
        """The batch's steps, with rewards in units of their running standard deviation if `standardise_rewards`."""
        step = Transitions.of(batch)
        if self.args.standardise_rewards:
            self.reward_moments = update_moments(self.reward_moments, step.reward, step.mask)
            step.divide_rewards(deviation(self.reward_moments).clamp(min=LEAST_SCALE))
        return step

    @staticmethod
    def _one_hot(batch, policy: torch.Tensor) -> torch.Tensor:
        """The logged actions as policies, (B, T+1, N, A); behind an episode's last action it holds no action played."""
        return F.one_hot(batch["actions"].squeeze(3), policy.shape[-1]).to(policy.dtype)

    def _next_values(self, step: Transitions, policy: torch.Tensor, played: torch.Tensor) -> torch.Tensor:
        """The target critic's V(s_{t+1}), (B, T, 1)."""
        state = step.state[:, 1:]
        q_next, q_policy = self.target_critic(played[:, 1:], state), self.target_critic(policy[:, 1:], state)
        return actor_critic.next_values(q_next, q_policy, step.mask)

    def _targets(self, step: Transitions, reward: torch.Tensor, v_next: torch.Tensor) -> torch.Tensor:
        """TD(lambda) targets (B, T, X) from rewards (B, T, 1 or X) and next values (B, T, X)."""
        return lambda_targets(
            reward.expand_as(v_next),
            step.terminated.expand_as(v_next),
            step.mask.expand_as(v_next),
            v_next,
            self.args.gamma,
            self.args.td_lambda,
        )

    @staticmethod
    def _stats(step: Transitions, policy, entropy, q_taken, target, value) -> dict[str, torch.Tensor]:
        mask_i = step.mask.expand_as(entropy)
        stats = {
            "td_error_abs": masked_mean((q_taken - target).abs(), step.mask),
            "q_taken_mean": masked_mean(q_taken, step.mask),
            "target_mean": masked_mean(target, step.mask),
            "q_policy_mean": masked_mean(value, step.mask),
            "entropy": masked_mean(entropy, mask_i),
            "pi_max": masked_mean(policy[:, :-1].max(dim=-1).values, mask_i),
        }
        return _detached(stats)

    def _differentiate(self, part: str, loss: torch.Tensor) -> torch.Tensor:
        """Give the parameters of this part, and no others, the loss's clipped gradient; its norm before the clip."""
        gradients = torch.autograd.grad(loss, self.params[part], retain_graph=True, allow_unused=True)
        for parameter, gradient in zip(self.params[part], gradients, strict=True):
            parameter.grad = gradient
        return nn.utils.clip_grad_norm_(self.params[part], self.args.grad_norm_clip)

    def _update_targets(self, episode_num: int) -> None:
        if self.args.target_update_tau is not None:
            self._move_targets(self.args.target_update_tau)
        elif (
            self.args.target_update_interval is not None
            and episode_num - self.last_target_update_episode >= self.args.target_update_interval
        ):
            self._move_targets(1.0)
            self.last_target_update_episode = episode_num

    def _move_targets(self, share: float) -> None:
        """Let `share` of the critic enter the target critic."""
        blend(self.target_critic, self.critic, share)

    def cuda(self) -> None:
        self.mac.cuda()
        self.critic.cuda()
        self.target_critic.cuda()

    def save_models(self, path: str) -> None:
        """Write agent.th, critic.th and their optimisers as PyMARL does; the target critic and statistics beside."""
        folder = Path(path)
        self.mac.save_models(path)
        torch.save(self.critic.state_dict(), folder / "critic.th")
        torch.save(self.target_critic.state_dict(), folder / "target_critic.th")
        torch.save({name: getattr(self, name) for name in self.statistics}, folder / "statistics.th")
        for part, optimiser in self.optimisers.items():
            torch.save(optimiser.state_dict(), folder / f"{part}_opt.th")

    def load_models(self, path: str) -> None:
        """Read what `save_models` or LICA's own code wrote, which has neither target critic nor statistics."""
        folder = Path(path)
        self.mac.load_models(path)
        self.critic.load_state_dict(torch.load(folder / "critic.th", map_location="cpu", weights_only=True))
        copy_state(folder / "target_critic.th", self.target_critic, self.critic)
        if (folder / "statistics.th").exists():
            device = self.params["critic"][0].device
            statistics = torch.load(folder / "statistics.th", map_location=device, weights_only=True)
            for name in statistics.keys() & set(self.statistics):
                setattr(self, name, statistics[name])
        for part, optimiser in self.optimisers.items():
            if (folder / f"{part}_opt.th").exists():
                state = torch.load(folder / f"{part}_opt.th", map_location="cpu", weights_only=True)
                optimiser.load_state_dict(state)


def _detached(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in tensors.items()}
