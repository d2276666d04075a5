"""Greedy Q-learning: when to ignore cooperation.

Shared utilities Q_i carry two heads: the independent one, every Q_i toward the team's return, and the cooperative one,
Q_tot = f(Q_1, ..., Q_N; s) of a monotone mixer. Each head is made conservative, a gate on their conservative gaps
weighs them, and each one's target is regularised toward the other's policy. Pairs are ordered (independent,
cooperative); the legend is that of `q_learner`.
"""

import copy
from pathlib import Path
from typing import Any

import torch

from learners.q_learner import LEAST_SCALE, Objective, QLearner, Transitions
from modules.mixers import counterfactual_q_tot
from objectives import conservative, gate, munchausen
from objectives.td import lambda_targets, td_loss
from utils.errors import UserError
from utils.networks import blend, unroll
from utils.shapes import masked_mean, masked_std

HEADS = ("independent", "cooperative")


class GreedyQLearner(QLearner):
    statistics = (*QLearner.statistics, "gap_ema", "target_std", "reward_std", "log_multipliers", "weights")

    def __init__(self, mac, scheme, logger, args):
        super().__init__(mac, scheme, logger, args)
        if self.mixer is None:
            raise UserError("mixer=null: greedy_q_learner weighs a cooperative head, so it needs a mixer such as qmix")
        # The alternative: slow copies whose policies the targets are regularised toward.
        self.slow_mac = copy.deepcopy(mac)
        self.slow_mixer = copy.deepcopy(self.mixer)
        # Running statistics, each (2,) over the heads but for the reward's; None until the first batch.
        self.gap_ema: Any = None
        self.target_std: Any = None
        self.reward_std: Any = None
        self.log_multipliers = torch.zeros(2)
        fixed = args.gate.weight_independent if args.gate.mode == "fixed" else 0.5
        self.weights = torch.tensor([fixed, 1 - fixed])

    def objective(self, batch) -> Objective:
        """Sum over heads of TD loss and conservative penalty, weighed by the gate (section 1.2 of the method)."""
        step = self._transitions(batch)
        state, next_state = step.state[:, :-1], step.state[:, 1:]
        avail = step.avail[:, :-1]
        q = unroll(self.mac, batch)  # (B, T+1, N, A)
        with torch.no_grad():
            q_target = unroll(self.target_mac, batch)
        q_t = q[:, :-1]
        chosen = q_t.gather(3, step.actions).squeeze(3)  # (B, T, N)
        q_tot = self.mixer(chosen, state)  # (B, T, 1)
        self._start_statistics(step)

        with torch.no_grad():
            self._update_gate(step, q_t.detach(), chosen.detach(), q_tot.detach())
            bonus_i, bonus_c = self._munchausen_bonuses(batch, step)
            v_i, v_c = self._bootstrap_values(q, q_target, step.avail)
            target_i = self._targets(step, step.reward + bonus_i, v_i)  # (B, T, N)
            target_c = self._targets(step, step.reward + bonus_c, self.target_mixer(v_c, next_state))  # (B, T, 1)
        mask_i = step.mask.expand_as(chosen)
        td = torch.stack([td_loss(chosen, target_i, mask_i), td_loss(q_tot, target_c, step.mask)])
        penalty = torch.stack(self._penalties(step, q_t, chosen, q_tot, state, avail))
        acting_weights = None if self.args.gate.mode == "none" else self.weights
        loss = gate.combine(td, penalty, acting_weights, self.args.gate.acts_on)

        target_std = torch.stack([masked_std(target_i, mask_i), masked_std(target_c, step.mask)])
        self.target_std = gate.smooth(self.target_std, target_std, self.args.gate.ema).clamp(min=LEAST_SCALE)
        stats = self._td_stats(q_tot, target_c, step.mask) | {
            "td_error_abs_independent": masked_mean((chosen - target_i).abs().detach(), mask_i),
            "munchausen_bonus_independent": masked_mean(bonus_i.expand_as(chosen), mask_i),
            "munchausen_bonus_cooperative": masked_mean(bonus_c, step.mask),
        }
        terms = {}
        for h, head in enumerate(HEADS):
            terms |= {f"td_loss_{head}": td[h], f"penalty_{head}": penalty[h]}
            stats |= {f"gap_{head}": self.gap_ema[h], f"gate_weight_{head}": self.weights[h]}
        return Objective(loss, terms, stats | {key: value.detach() for key, value in terms.items()})

    def _penalties(self, step, q_t, chosen, q_tot, state, avail) -> list[torch.Tensor]:
        """alpha_h d_h: the independent head's mean gap of the agents, the cooperative head's counterfactual gap.

        alpha and the temperature are in units of the targets' spread, so that the trade-off against the TD loss does
        not change with the scale of the reward.
        """
        cfg = self.args.conservative
        scale_i, scale_c = self.target_std
        nothing = chosen.new_zeros(())
        penalty_i = penalty_c = nothing
        if cfg.alpha_independent > 0:
            gaps = conservative.agent_gaps(q_t, avail, chosen, cfg.op, cfg.temperature * scale_i)
            penalty_i = cfg.alpha_independent * scale_i * masked_mean(gaps, step.mask.expand_as(gaps))
        if cfg.alpha_cooperative > 0:
            q_cf = counterfactual_q_tot(self.mixer, chosen, q_t, state)
            gaps = conservative.counterfactual_gap(q_cf, avail, q_tot, cfg.op, cfg.temperature * scale_c)
            penalty_c = cfg.alpha_cooperative * scale_c * masked_mean(gaps, step.mask)
        return [penalty_i, penalty_c]

    def _update_gate(self, step: Transitions, q_t, chosen, q_tot) -> None:
        """Turn the heads' gaps (with the plain maximum) into weights."""
        cfg = self.args.gate
        state, avail = step.state[:, :-1], step.avail[:, :-1]
        gap_i = conservative.agent_gaps(q_t, avail, chosen, "max")
        if cfg.joint == "cf" or (cfg.joint == "auto" and cfg.mode == "lagrange"):
            q_cf = counterfactual_q_tot(self.mixer, chosen, q_t, state)
            gap_c = conservative.counterfactual_gap(q_cf, avail, q_tot, "max")
        else:
            gap_c = conservative.joint_max_gap(self.mixer(conservative.sup_value(q_t, avail, "max"), state), q_tot)
        gaps = torch.stack([masked_mean(gap_i, step.mask.expand_as(gap_i)), masked_mean(gap_c, step.mask)])
        self.gap_ema = gate.smooth(self.gap_ema, gaps, cfg.ema)
        if cfg.mode == "direct":
            eps = cfg.eps * self.target_std.mean()
            self.weights = gate.direct_weights(self.gap_ema, eps, cfg.p, cfg.floor, cfg.prior_cooperative)
        elif cfg.mode == "hard":
            self.weights = gate.hard_weights(self.gap_ema, cfg.floor, cfg.prior_cooperative)
        elif cfg.mode == "lagrange":
            self.log_multipliers = gate.lagrange_step(self.log_multipliers, gaps, cfg.eta, cfg.l_max)
            self.weights = gate.lagrange_weights(self.log_multipliers, cfg.floor)

    def _munchausen_bonuses(self, batch, step: Transitions) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha w_other [tau log rho_other(a|s)]: (B, T, N) for the independent and (B, T, 1) for the cooperative head.

        The independent head's alternative is the counterfactual policy softmax_k Q_tot(k, a_-i; s): with shared
        utilities softmax Q_i would be its own. The cooperative head's is the mean over agents of log softmax Q_i.
        """
        cfg = self.args.munchausen
        if cfg.source == "none":
            nothing = torch.zeros_like(step.reward)
            return nothing, nothing
        avail, state = step.avail[:, :-1], step.state[:, :-1]
        tau_i, tau_c = cfg.tau * self.target_std
        l0 = cfg.l0 * self.reward_std
        q_slow = unroll(self.slow_mac, batch)[:, :-1]
        chosen = q_slow.gather(3, step.actions).squeeze(3)
        q_cf = counterfactual_q_tot(self.slow_mixer, chosen, q_slow, state)
        log_rho_c = munchausen.taken_log_policy(q_cf, avail, step.actions, tau_c)
        log_rho_i = munchausen.taken_log_policy(q_slow, avail, step.actions, tau_i).mean(dim=2, keepdim=True)
        bonus_i = cfg.alpha * self.weights[1] * munchausen.munchausen_bonus(log_rho_c, tau_i, l0)
        bonus_c = cfg.alpha * self.weights[0] * munchausen.munchausen_bonus(log_rho_i, tau_c, l0)
        return bonus_i, bonus_c

    def _bootstrap_values(self, q, q_target, avail) -> tuple[torch.Tensor, torch.Tensor]:
        """The agents' next values (B, T, N), for the independent head and for the mixer of the cooperative head."""
        cfg = self.args.munchausen
        if cfg.source == "none" or cfg.bootstrap == "hard":
            hard = self._next_values(q, q_target, avail)
            return hard, hard
        tau_i, tau_c = cfg.tau * self.target_std
        q_next, avail_next = q_target[:, 1:], avail[:, 1:]
        return munchausen.soft_value(q_next, avail_next, tau_i), munchausen.soft_value(q_next, avail_next, tau_c)

    def _start_statistics(self, step: Transitions) -> None:
        """Scales of rewards and targets; before any target exists, the spread of the observed returns stands in."""
        reward_std = masked_std(step.reward, step.mask)
        self.reward_std = gate.smooth(self.reward_std, reward_std, self.args.gate.ema).clamp(min=LEAST_SCALE)
        if self.target_std is None:
            nothing = torch.zeros_like(step.reward)
            returns = lambda_targets(step.reward, step.terminated, step.mask, nothing, self.args.gamma, td_lambda=1.0)
            self.target_std = masked_std(returns, step.mask).clamp(min=LEAST_SCALE).repeat(2)

    def _move_targets(self, share: float) -> None:
        super()._move_targets(share)
        ema = self.args.munchausen.alternative_ema
        for slow, target in self._with_mixer(
            self.slow_mac.agent, self.slow_mixer, self.target_mac.agent, self.target_mixer
        ):
            blend(slow, target, ema)

    def cuda(self) -> None:
        super().cuda()
        self.slow_mac.cuda()
        self.slow_mixer.cuda()
        self.weights = self.weights.cuda()
        self.log_multipliers = self.log_multipliers.cuda()

    def save_models(self, path: str) -> None:
        super().save_models(path)
        slow = {"slow_agent": self.slow_mac.agent.state_dict(), "slow_mixer": self.slow_mixer.state_dict()}
        torch.save(slow, Path(path) / "greedy.th")

    def load_models(self, path: str) -> None:
        """Read what `save_models` wrote. A QMIX model, without `greedy.th`, starts the alternative and the gate anew."""
        super().load_models(path)
        file = Path(path) / "greedy.th"
        if file.exists():
            slow = torch.load(file, map_location="cpu", weights_only=True)
            self.slow_mac.agent.load_state_dict(slow["slow_agent"])
            self.slow_mixer.load_state_dict(slow["slow_mixer"])
        else:
            self.slow_mac.load_state(self.target_mac)
            self.slow_mixer.load_state_dict(self.target_mixer.state_dict())
