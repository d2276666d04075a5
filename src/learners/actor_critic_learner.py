"""What all actor-critics do with a batch, whatever their losses are: agents that act, and critics that teach them.

A learner says in `objective` what each of its parts minimises on a batch; every part has a loss and an optimiser of its
own. One that takes several steps on a batch says so in `objectives`. Legend: that of `q_learner`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from learners.q_learner import Learner
from modules.critics import REGISTRY as critic_REGISTRY
from utils.networks import NonFiniteError, blend, build_optimiser, copy_state, set_step_size
from utils.registry import resolve


@dataclass
class Losses:
    """What one step minimises: a loss for each part that it moves, the terms they were made of, statistics to log."""

    losses: dict[str, torch.Tensor]
    terms: dict[str, torch.Tensor]
    stats: dict[str, torch.Tensor]


class ActorCriticLearner(Learner):
    reads_behaviour = False  # whether the replay has to keep the probabilities that actions were drawn with

    def __init__(self, mac, scheme, logger, args):
        super().__init__(mac, logger, args)
        # Each part has a loss of its own, and steps on it alone.
        self.params: dict[str, list[nn.Parameter]] = {}
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        self.networks: dict[str, nn.Module] = {}  # besides the controller's, by the names of their files
        self.targets: dict[str, nn.Module] = {}  # by the name of each target among them, the network that it follows
        self.critic: Any = resolve("critic", args.critic, critic_REGISTRY)(scheme, args)
        self.networks["critic"] = self.critic
        self._add_part("agent", mac.parameters(), args.lr)
        self._add_part("critic", self.critic.parameters(), args.critic_lr)

    def _add_part(self, name: str, parameters: Iterable[nn.Parameter], lr: float) -> None:
        """Parameters that a loss of this name moves."""
        self.params[name] = list(parameters)
        self.optimisers[name] = build_optimiser(self.params[name], lr, self.args)

    def _follow(self, name: str, target: nn.Module, online: nn.Module) -> None:
        """Let `target`, whose file is `name`, follow `online` as the keys target_update_interval and _tau say."""
        self.networks[name], self.targets[name] = target, online

    # One batch

    def train(self, batch, t_env: int, episode_num: int) -> None:
        """The gradient steps that a batch of episodes is good for.

        Raises:
            NonFiniteError: a loss or a gradient is not finite; the step that has it was not taken, nor any after it.
                The steps before it on this batch stand, and targets do not move.
        """
        norms: dict[str, torch.Tensor] = {}
        stats: dict[str, torch.Tensor] = {}
        before = self._running()
        for objective in self.objectives(batch):
            found = {part: self._differentiate(part, loss) for part, loss in objective.losses.items()}
            if not torch.isfinite(torch.stack([*objective.losses.values(), *found.values()])).all():
                for name, value in before.items():
                    setattr(self, name, value)
                raise NonFiniteError({**objective.terms, **{f"{part} gradient norm": found[part] for part in found}})
            set_step_size(self.optimisers["agent"], t_env, self.args)
            for part in objective.losses:
                self.optimisers[part].step()
            before = self._running()
            norms |= found
            stats |= objective.stats
        self._update_targets(episode_num)
        if t_env - self.log_stats_t >= self.args.learner_log_interval:
            for part, norm in norms.items():
                self.logger.log_stat(f"{part}_grad_norm", norm.item(), t_env)
            for key, value in stats.items():
                self.logger.log_stat(key, value.item(), t_env)
            self.log_stats_t = t_env

    def objectives(self, batch) -> Iterator[Losses]:
        """What each gradient step on this batch minimises; the next is asked for when the last was taken."""
        yield self.objective(batch)

    def objective(self, batch) -> Losses:
        """What a learner that takes one step on a batch minimises."""
        raise NotImplementedError

    @staticmethod
    def _one_hot(batch, policy: torch.Tensor) -> torch.Tensor:
        """The logged actions as policies, (B, T+1, N, A); behind an episode's last action it holds no action played."""
        return F.one_hot(batch["actions"].squeeze(3), policy.shape[-1]).to(policy.dtype)

    def _differentiate(self, part: str, loss: torch.Tensor) -> torch.Tensor:
        """Give the parameters of this part, and no others, the loss's clipped gradient; its norm before the clip."""
        gradients = torch.autograd.grad(loss, self.params[part], retain_graph=True, allow_unused=True)
        for parameter, gradient in zip(self.params[part], gradients, strict=True):
            # Fused optimisers want gradients that lie in memory as their parameters do.
            parameter.grad = None if gradient is None else gradient.contiguous()
        return nn.utils.clip_grad_norm_(self.params[part], self.args.grad_norm_clip)

    def _move_targets(self, share: float) -> None:
        for name, online in self.targets.items():
            blend(self.networks[name], online, share)

    # State

    def _running(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.statistics}

    def cuda(self) -> None:
        self.mac.cuda()
        for network in self.networks.values():
            network.cuda()

    def save_models(self, path: str) -> None:
        """Write agent.th, critic.th and their optimisers as PyMARL does; other networks and statistics beside them."""
        folder = Path(path)
        self.mac.save_models(path)
        for name, network in self.networks.items():
            torch.save(network.state_dict(), folder / f"{name}.th")
        torch.save(self._running(), folder / "statistics.th")
        for part, optimiser in self.optimisers.items():
            torch.save(optimiser.state_dict(), folder / f"{part}_opt.th")

    def load_models(self, path: str) -> None:
        """Read what `save_models` or PyMARL wrote, which has neither targets (they start as copies) nor statistics."""
        folder = Path(path)
        self.mac.load_models(path)
        for name, network in self.networks.items():
            if name in self.targets:
                copy_state(folder / f"{name}.th", network, self.targets[name])
            else:
                network.load_state_dict(torch.load(folder / f"{name}.th", map_location="cpu", weights_only=True))
        if (folder / "statistics.th").exists():
            device = self.params["agent"][0].device
            statistics = torch.load(folder / "statistics.th", map_location=device, weights_only=True)
            for name in statistics.keys() & set(self.statistics):
                setattr(self, name, statistics[name])
        for part, optimiser in self.optimisers.items():
            if (folder / f"{part}_opt.th").exists():
                state = torch.load(folder / f"{part}_opt.th", map_location="cpu", weights_only=True)
                optimiser.load_state_dict(state)


def detached(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without gradient, as statistics are kept."""
    return {name: value.detach() for name, value in tensors.items()}
