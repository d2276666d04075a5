"""Q-learning and greedy Q-learning with quantile-regression heads (Dabney et al. 2018, QR-DQN).

The agents' quantiles are mixed one by one; gaps, gates and policies read their means. Legend: that of `q_learner`, and
M quantiles.
"""

import torch

from learners.greedy_q_learner import GreedyQLearner
from learners.heads import Heads
from learners.q_learner import Objective, QLearner, Transitions, greedy_actions
from objectives.quantile import mix_quantiles, quantile_huber_loss
from objectives.td import one_step_targets


class QuantileQLearner(QLearner):
    """Independent, VDN or QMIX learners of return distributions."""

    def objective(self, batch) -> Objective:
        """The quantile Huber loss of the mixed quantiles, or of each agent's own without a mixer."""
        step = self._transitions(batch)
        z = self.mac.unroll_quantiles(batch)  # (B, T+1, N, A, M)
        with torch.no_grad():
            z_target = self.target_mac.unroll_quantiles(batch)
            following = next_quantiles(self, z, z_target, step.avail)
        chosen = taken_quantiles(z[:, :-1], step.actions)  # (B, T, N, M)
        if self.mixer is not None:
            chosen = mix_quantiles(self.mixer, chosen, step.state[:, :-1])  # (B, T, 1, M)
            with torch.no_grad():
                following = mix_quantiles(self.target_mixer, following, step.state[:, 1:])
        target = quantile_targets(self, step, step.reward, following)
        mask = step.mask.expand(chosen.shape[:-1])
        loss = quantile_huber_loss(chosen, target, mask)
        return Objective(loss, {"td_loss": loss}, self._td_stats(chosen.mean(-1), target.mean(-1), mask))


class GreedyQuantileQLearner(GreedyQLearner):
    """Greedy Q-learning whose two heads learn return distributions over shared utilities."""

    def _unroll_heads(self, mac, batch) -> tuple[torch.Tensor, torch.Tensor]:
        z = mac.unroll_quantiles(batch)
        if mac is self.mac:
            self._z = z
        elif mac is self.target_mac:
            self._z_target = z
        q = z.mean(dim=-1)
        return q, q

    def _td(self, step: Transitions, heads: Heads, rewards, next_values):
        """Quantile losses of both heads (2,), and the means of their targets."""
        z = taken_quantiles(self._z[:, :-1], step.actions)
        z_tot = mix_quantiles(self.mixer, z, heads.state)
        with torch.no_grad():
            following = next_quantiles(self, self._z, self._z_target, step.avail)
            joint = mix_quantiles(self.target_mixer, following, step.state[:, 1:])
            target_i = quantile_targets(self, step, rewards[0], following)
            target_c = quantile_targets(self, step, rewards[1], joint)
        losses = [
            quantile_huber_loss(z, target_i, step.mask.expand(z.shape[:-1])),
            quantile_huber_loss(z_tot, target_c, step.mask),
        ]
        return torch.stack(losses), target_i.mean(dim=-1), target_c.mean(dim=-1)


def taken_quantiles(z: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """The quantiles of the logged actions: (B, T, N, A, M), (B, T, N, 1) -> (B, T, N, M)."""
    index = actions.unsqueeze(-1).expand(*actions.shape, z.shape[-1])
    return z.gather(3, index).squeeze(3)


def next_quantiles(learner: QLearner, z: torch.Tensor, z_target: torch.Tensor, avail: torch.Tensor) -> torch.Tensor:
    """The target network's quantiles of the next state's best action by mean, (B, T, N, M); double-Q as elsewhere."""
    choosing = (z.detach() if learner.args.double_q else z_target)[:, 1:].mean(dim=-1)
    return taken_quantiles(z_target[:, 1:], greedy_actions(choosing, avail[:, 1:]))


def quantile_targets(learner: QLearner, step: Transitions, reward: torch.Tensor, following: torch.Tensor):
    """r + gamma (1 - terminated) z' for every quantile: rewards (B, T, 1 or X), z' (B, T, X, M) -> (B, T, X, M)."""
    per_step = following.flatten(2)
    reward = reward.unsqueeze(-1).expand(following.shape).flatten(2)
    terminated = step.terminated.expand_as(per_step)
    return one_step_targets(reward, terminated, per_step, learner.args.gamma).view(following.shape)
