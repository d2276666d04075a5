"""Q-learning with a mixer: IQL (no mixer), VDN, QMIX.

Legend: B episodes, T steps, N agents, A actions, S state. X is 1 with a mixer and N without one.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modules.mixers import REGISTRY as mixer_REGISTRY
from modules.mixers import joint_value
from objectives.available import best_action
from objectives.td import lambda_targets, td_loss
from utils.aside import aside
from utils.moments import deviation, update_moments
from utils.networks import NonFiniteError, blend, build_optimiser, copy_state, set_step_size, unroll
from utils.registry import resolve
from utils.shapes import masked_mean

LEAST_SCALE = 1e-3  # of running deviations: positive while every value so far was the same


@dataclass
class Transitions:
    """A batch of episodes, sliced once into steps t and what follows them."""

    actions: torch.Tensor  # (B, T, N, 1)
    reward: torch.Tensor  # (B, T, 1)
    terminated: torch.Tensor  # (B, T, 1) 1 where the episode ended for good, so that nothing is bootstrapped
    mask: torch.Tensor  # (B, T, 1) 1 on steps that were played
    # (B, T+1, N, A) all ones where nothing is available (padding, an end), so that every maximum is finite
    avail: torch.Tensor
    state: torch.Tensor  # (B, T+1, S)
    individual_reward: torch.Tensor | None = None  # (B, T, N) each agent's share, where the environment gives it
    # (B, T, N, A) probabilities that the actions were drawn with, if stored; all ones in padding, so that every
    # logarithm of an expectation is finite
    behaviour: torch.Tensor | None = None

    @classmethod
    def of(cls, batch) -> "Transitions":
        filled, avail = batch["filled"], batch["avail_actions"]
        nothing = (filled.unsqueeze(-1) == 0) | (avail.amax(dim=-1, keepdim=True) == 0)
        return cls(
            actions=batch["actions"][:, :-1],
            reward=batch["reward"][:, :-1],
            terminated=batch["terminated"][:, :-1].float(),
            # A step was played if the observation after it is there: right for terminated and truncated ends alike.
            mask=filled[:, 1:].float(),
            avail=avail.to(torch.uint8) | nothing,
            state=batch["state"],
            individual_reward=batch["individual_reward"][:, :-1] if "individual_reward" in batch.scheme else None,
            behaviour=batch["behaviour"][:, :-1].masked_fill(filled[:, 1:].unsqueeze(-1) == 0, 1)
            if "behaviour" in batch.scheme
            else None,
        )

    def divide_rewards(self, scale: torch.Tensor) -> None:
        """Rewards in units of `scale`. Their mean stays: with episodes of different lengths it decides what is best."""
        self.reward = self.reward / scale
        if self.individual_reward is not None:
            self.individual_reward = self.individual_reward / scale


def greedy_actions(q: torch.Tensor, avail: torch.Tensor) -> torch.Tensor:
    """Every agent's best available action, which is its part of the team's best one: (B, T, N, A) -> (B, T, N, 1)."""
    return best_action(q, avail)


@dataclass
class Objective:
    """What one batch gives: the loss, the terms that it was made of, and statistics to log (scalar tensors)."""

    loss: torch.Tensor
    terms: dict[str, torch.Tensor]
    stats: dict[str, torch.Tensor]


class Learner:
    """What Q-learners and actor-critics do alike: rewards in units, TD targets, and when target networks follow."""

    # Attributes that change with every batch: running statistics, restored if the update fails; and what the last batch
    # left to be drawn.
    statistics: tuple[str, ...] = ("reward_moments",)
    shown: tuple[str, ...] = ()
    compiles = False  # whether `objective` can be compiled: it decides by shapes and settings alone
    measures = True  # whether `objective` also takes the statistics, which are logged now and then

    def __init__(self, mac, logger, args):
        self.args = args
        self.mac = mac
        self.logger = logger
        self.reward_moments: Any = None  # of the rewards of all batches so far; None until the first
        self.last_target_update_episode = 0
        self.log_stats_t = -args.learner_log_interval - 1

    def _transitions(self, batch, learn_scale: bool = True) -> Transitions:
        """The batch's steps, with rewards in units of their running standard deviation if `standardise_rewards`."""
        step = Transitions.of(batch)
        if self.args.standardise_rewards:
            if learn_scale or self.reward_moments is None:
                self.reward_moments = update_moments(self.reward_moments, step.reward, step.mask)
            step.divide_rewards(deviation(self.reward_moments).clamp(min=LEAST_SCALE))
        return step

    def _targets(self, step: Transitions, reward: torch.Tensor, v_next: torch.Tensor) -> torch.Tensor:
        """TD targets (B, T, X) from rewards (B, T, 1 or X) and next values (B, T, X)."""
        return lambda_targets(
            reward.expand_as(v_next),
            step.terminated.expand_as(v_next),
            step.mask.expand_as(v_next),
            v_next,
            self.args.gamma,
            self.args.td_lambda,
        )

    def _update_targets(self, episode_num: int) -> None:
        share = self.share_due(episode_num)
        if share > 0:
            self._move_targets(share)

    def share_due(self, episode_num: int) -> float:
        """The share of the networks that is to enter the target networks now."""
        if self.args.target_update_tau is not None:
            return self.args.target_update_tau
        interval = self.args.target_update_interval
        if interval is None or episode_num - self.last_target_update_episode < interval:
            return 0.0
        self.last_target_update_episode = episode_num
        return 1.0

    def _move_targets(self, share: float) -> None:
        """Let `share` of the networks enter the target networks that follow them."""
        raise NotImplementedError


class QLearner(Learner):
    compiles = True

    def __init__(self, mac, scheme, logger, args):
        super().__init__(mac, logger, args)
        self.target_mac = copy.deepcopy(mac)
        self.mixer: Any = None  # a module (agent_qs, states) -> Q_tot, or None for independent learners
        self.target_mixer: Any = None
        self.params = list(mac.parameters())
        if args.mixer is not None:
            self.mixer = resolve("mixer", args.mixer, mixer_REGISTRY)(args)
            self.target_mixer = copy.deepcopy(self.mixer)
            self.params += list(self.mixer.parameters())
        self.optimiser = build_optimiser(self.params, args.lr, args)

    def train(self, batch, t_env: int, episode_num: int) -> None:
        """One gradient step on a batch of episodes.

        Raises:
            NonFiniteError: the loss or a gradient is not finite; nothing was changed.
        """
        before = {name: getattr(self, name) for name in self.statistics}
        self.measures = t_env - self.log_stats_t >= self.args.learner_log_interval
        self.optimiser.zero_grad()  # first: compiled code would write the next gradients over these
        objective = self.objective(batch)
        # The terms are means of half squared errors; the factor makes the TD term PyMARL's squared error, so that
        # its learning rates and gradient clip carry over.
        (2 * objective.loss).backward()
        grad_norm = nn.utils.clip_grad_norm_(self.params, self.args.grad_norm_clip)
        if not torch.isfinite(grad_norm + objective.loss.detach()):
            for name, value in before.items():
                setattr(self, name, value)
            raise NonFiniteError({**objective.terms, "gradient norm": grad_norm})
        set_step_size(self.optimiser, t_env, self.args)
        self.optimiser.step()
        self._update_targets(episode_num)
        if self.measures:
            stats = {"loss": 2 * objective.loss, "grad_norm": grad_norm} | objective.stats
            self.log({key: value.item() for key, value in stats.items()}, t_env)
        self.settle()

    def settle(self) -> None:
        """What follows a gradient step."""

    def log(self, stats: dict[str, float], t_env: int) -> None:
        for key, value in stats.items():
            self.logger.log_stat(key, value, t_env)
        self.log_stats_t = t_env

    def objective(self, batch) -> Objective:
        """TD loss of the mixed values (VDN, QMIX), or of each agent's own values (IQL)."""
        of_target = aside(lambda: self._unroll(self.target_mac, batch), batch["actions"])
        step = self._transitions(batch)
        q = self._unroll(self.mac, batch)  # (B, T+1, N, A)
        with torch.no_grad():
            q_target = of_target()
            best = self._next_actions(q, q_target, step.avail)
            then = (best, step.avail[:, 1:], step.state[:, 1:], step.mask)
            v_next = self._joint_value(self.target_mixer, q_target[:, 1:], *then)
        now = (step.actions, step.avail[:, :-1], step.state[:, :-1], step.mask)
        chosen = self._joint_value(self.mixer, q[:, :-1], *now)  # (B, T, X)
        target = self._targets(step, step.reward, v_next)
        mask = step.mask.expand_as(chosen)
        loss = td_loss(chosen, target, mask)
        return Objective(loss, {"td_loss": loss}, self._td_stats(chosen, target, mask) if self.measures else {})

    def joint_values(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The agents' values (B, T, N, A) and the value of the batch's joint actions (B, T, X), without gradient."""
        with torch.no_grad():
            q = unroll(self.mac, batch)
            return q, joint_value(self.mixer, q, batch["actions"], Transitions.of(batch).avail, batch["state"])

    def _unroll(self, mac, batch) -> Any:
        """What the controller's networks say of every step: the agents' values (B, T+1, N, A).

        A learner that needs more overrides this and what reads it, `_next_actions` and `_joint_value`; what it returns
        must slice as a tensor does.
        """
        return unroll(mac, batch)

    def _joint_value(self, mixer, q: Any, actions, avail, state, mask=None) -> torch.Tensor:
        """The value of joint actions (B, T, X), as `modules.mixers.joint_value` gives it."""
        return joint_value(mixer, q, actions, avail, state, mask)

    def _next_values(self, q: torch.Tensor, q_target: torch.Tensor, avail: torch.Tensor) -> torch.Tensor:
        """max_a Q_i(s_{t+1}, a) of the target network, (B, T, N); with double-Q the online network chooses a."""
        return q_target[:, 1:].gather(3, self._next_actions(q, q_target, avail)).squeeze(3)

    def _next_actions(self, q: torch.Tensor, q_target: torch.Tensor, avail: torch.Tensor) -> torch.Tensor:
        """The greedy actions of s_{t+1}, (B, T, N, 1)."""
        return greedy_actions(q if self.args.double_q else q_target, avail)[:, 1:]

    @staticmethod
    def _td_stats(chosen: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "td_error_abs": masked_mean((chosen - target).abs().detach(), mask),
            "q_taken_mean": masked_mean(chosen.detach(), mask),
            "target_mean": masked_mean(target, mask),
        }

    def _move_targets(self, share: float) -> None:
        for target, online in self._with_mixer(self.target_mac.agent, self.target_mixer, self.mac.agent, self.mixer):
            blend(target, online, share)

    @staticmethod
    def _with_mixer(agent, mixer, other_agent, other_mixer) -> list[tuple[nn.Module, nn.Module]]:
        pairs = [(agent, other_agent)]
        return pairs if mixer is None else [*pairs, (mixer, other_mixer)]

    def cuda(self) -> None:
        self.mac.cuda()
        self.target_mac.cuda()
        if self.mixer is not None:
            self.mixer.cuda()
            self.target_mixer.cuda()

    def save_models(self, path: str) -> None:
        """Write agent.th, mixer.th and opt.th as PyMARL does; target networks and running statistics beside them."""
        folder = Path(path)
        self.mac.save_models(path)
        torch.save(self.target_mac.agent.state_dict(), folder / "target_agent.th")
        if self.mixer is not None:
            torch.save(self.mixer.state_dict(), folder / "mixer.th")
            torch.save(self.target_mixer.state_dict(), folder / "target_mixer.th")
        torch.save({name: getattr(self, name) for name in self.statistics}, folder / "statistics.th")
        torch.save(self.optimiser.state_dict(), folder / "opt.th")

    def load_models(self, path: str) -> None:
        """Read what `save_models` or PyMARL wrote, which has neither targets (they start as copies) nor statistics."""
        folder = Path(path)
        self.mac.load_models(path)
        copy_state(folder / "target_agent.th", self.target_mac.agent, self.mac.agent)
        if self.mixer is not None:
            self.mixer.load_state_dict(torch.load(folder / "mixer.th", map_location="cpu", weights_only=True))
            copy_state(folder / "target_mixer.th", self.target_mixer, self.mixer)
        if (folder / "statistics.th").exists():
            device = self.params[0].device
            statistics = torch.load(folder / "statistics.th", map_location=device, weights_only=True)
            for name in statistics.keys() & set(self.statistics):
                setattr(self, name, statistics[name])
        self.optimiser.load_state_dict(torch.load(folder / "opt.th", map_location="cpu", weights_only=True))
