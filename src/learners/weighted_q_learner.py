"""Weighted QMIX (Rashid et al. 2020): a central value without restrictions says what joint actions are worth, and the
monotone mixer is fitted to it with weights, so that it gives up bad joint actions for good ones.

y = r + gamma Q^*(s', argmax_a Q_tot(s', a)), the target of both; loss = w (Q_tot - y)^2 + c (Q^* - y)^2, where Q^* is a
network of its own over utilities of its own. Legend: that of `q_learner`.
"""

import copy
from pathlib import Path

import numpy as np
import torch

from learners.q_learner import Objective, QLearner, greedy_actions
from modules.mixers import joint_value
from modules.mixers.central import CentralMixer
from objectives.td import td_loss
from objectives.weighting import central_weights, optimistic_weights, weighted_td_loss
from utils.errors import UserError
from utils.networks import blend, unroll
from utils.shapes import masked_mean

FILE = "central.th"


class WeightedQLearner(QLearner):
    def __init__(self, mac, scheme, logger, args):
        super().__init__(mac, scheme, logger, args)
        if self.mixer is None:
            raise UserError("mixer=null: weighted_q_learner weighs the fit of a mixer; set mixer=qmix")
        self.cfg = args.weighting
        self.central_mac = type(mac)(scheme, {"agents": args.n_agents}, args)  # with weights of its own
        self.central_mixer = CentralMixer(args.n_agents, int(np.prod(args.state_shape)), self.cfg.central_embed_dim)
        self.target_central_mac = copy.deepcopy(self.central_mac)
        self.target_central_mixer = copy.deepcopy(self.central_mixer)
        central = [*self.central_mac.parameters(), *self.central_mixer.parameters()]
        self.params += central
        self.optimiser.add_param_group({"params": central})

    def objective(self, batch) -> Objective:
        """The weighted TD loss of Q_tot and the TD loss of the central value, toward the central value's targets."""
        step = self._transitions(batch)
        now = (step.actions, step.avail[:, :-1], step.state[:, :-1], step.mask)
        q = unroll(self.mac, batch)  # (B, T+1, N, A)
        central_q = unroll(self.central_mac, batch)
        with torch.no_grad():
            greedy = greedy_actions(q if self.args.double_q else unroll(self.target_mac, batch), step.avail)
            target_q = unroll(self.target_central_mac, batch)
            everywhere = (step.avail, step.state, batch["filled"].to(step.mask.dtype))
            best_value = joint_value(self.target_central_mixer, target_q, greedy, *everywhere)  # (B, T+1, 1)
            target = self._targets(step, step.reward, best_value[:, 1:])
        q_tot = joint_value(self.mixer, q[:, :-1], *now)
        central = joint_value(self.central_mixer, central_q[:, :-1], *now)
        if self.cfg.rule == "optimistic":
            weights = optimistic_weights(q_tot, target, self.cfg.alpha)
        else:
            weights = central_weights(step.actions, greedy[:, :-1], target, best_value[:, :-1], self.cfg.alpha)
        terms = {
            "td_loss": weighted_td_loss(q_tot, target, weights, step.mask),
            "central_loss": td_loss(central, target, step.mask),
        }
        stats = self._td_stats(q_tot, target, step.mask) | {
            "central_td_error_abs": masked_mean((central - target).abs().detach(), step.mask),
            "central_taken_mean": masked_mean(central.detach(), step.mask),
            "weight_mean": masked_mean(weights, step.mask),
        }
        return Objective(terms["td_loss"] + self.cfg.central_loss * terms["central_loss"], terms, stats)

    def _central(self) -> dict:
        """The networks of the central value by name."""
        return {
            "agent": self.central_mac.agent,
            "mixer": self.central_mixer,
            "target_agent": self.target_central_mac.agent,
            "target_mixer": self.target_central_mixer,
        }

    def _move_targets(self, share: float) -> None:
        super()._move_targets(share)
        networks = self._central()
        for name in ("agent", "mixer"):
            blend(networks[f"target_{name}"], networks[name], share)

    def cuda(self) -> None:
        super().cuda()
        for network in self._central().values():
            network.cuda()

    def save_models(self, path: str) -> None:
        super().save_models(path)
        torch.save({name: network.state_dict() for name, network in self._central().items()}, Path(path) / FILE)

    def load_models(self, path: str) -> None:
        """Read what `save_models` wrote."""
        super().load_models(path)
        state = torch.load(Path(path) / FILE, map_location="cpu", weights_only=True)
        for name, network in self._central().items():
            network.load_state_dict(state[name])
