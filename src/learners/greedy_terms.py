"""What greedy learners share, whatever their heads are: scales, penalties, weights, bonuses and the behaviour policy.

The heads are pairs, ordered (independent, cooperative). docs/method.md has the equations. Legend: that of `q_learner`.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from learners.q_learner import LEAST_SCALE, Transitions
from modules.behaviour import build_model
from objectives import behaviour, gate, munchausen
from objectives.td import lambda_targets
from utils.errors import UserError
from utils.networks import NonFiniteError
from utils.shapes import masked_std

HEADS = ("independent", "cooperative")
STATISTICS = (  # attributes that change with every batch
    "target_std",
    "reward_std",
    "gap_ema",
    "value_ema",
    "excess_ema",
    "excess_known",
    "td_ema",
    "log_multipliers",
    "log_coefficients",
    "weights",
)


class GreedyTerms:
    """Part of a learner with `args`, `mac` and `cfg`, the blocks of options that it reads."""

    args: Any
    mac: Any
    cfg: Any

    def _build_terms(self, scheme) -> None:
        # A model of the behaviour policy, if it is learned
        self.behaviour: Any = build_model(self.mac._get_input_shape(scheme), self.args.n_actions, self.cfg.behaviour)
        if self.behaviour is not None:
            self.behaviour_optimiser = torch.optim.Adam(self.behaviour.parameters(), lr=self.cfg.behaviour.lr)
        # Running statistics, each (2,) over the heads but for the reward's; None until the first batch.
        self.target_std: Any = None
        self.reward_std: Any = None
        self.gap_ema: Any = None
        self.value_ema: Any = None  # the heads' greedy values, of the team
        self.td_ema: Any = None
        self.excess_ema = torch.zeros(2)  # how far they stand above what was realised
        self.excess_known = torch.zeros(2)  # 1 for heads of which that has been measured
        self.log_multipliers = torch.zeros(2)  # of the Lagrangian gate
        self.log_coefficients = torch.zeros(2)  # of the penalties, if these are Lagrangian
        self.weights = self._first_weights()

    def _first_weights(self) -> torch.Tensor:
        """The weights (2,) before the first update; with `gate.mode` fixed or none, of all."""
        fixed = self.cfg.gate.weight_independent if self.cfg.gate.mode == "fixed" else 0.5
        return torch.tensor([fixed, 1 - fixed])

    # Scales

    def _start_statistics(self, step: Transitions) -> None:
        """Scales of rewards and targets; before any target exists, the spread of the observed returns stands in."""
        reward_std = masked_std(step.reward, step.mask)
        self.reward_std = gate.smooth(self.reward_std, reward_std, self.cfg.gate.ema).clamp(min=LEAST_SCALE)
        if self.target_std is None:
            nothing = torch.zeros_like(step.reward)
            returns = lambda_targets(step.reward, step.terminated, step.mask, nothing, self.args.gamma, td_lambda=1.0)
            self.target_std = masked_std(returns, step.mask).clamp(min=LEAST_SCALE).repeat(2)

    def _update_scales(
        self, step: Transitions, target_i: torch.Tensor, target_c: torch.Tensor, td: torch.Tensor
    ) -> None:
        """Let this batch's targets (B, T, N), (B, T, 1) and TD losses (2,) enter the running ones, for the next."""
        mask_i = step.mask.expand_as(target_i)
        target_std = torch.stack([masked_std(target_i, mask_i), masked_std(target_c, step.mask)])
        self.target_std = gate.smooth(self.target_std, target_std, self.cfg.gate.ema).clamp(min=LEAST_SCALE)
        self.td_ema = gate.smooth(self.td_ema, td, self.cfg.gate.ema)

    # Conservatism

    def _scaled_penalties(self, gaps: list[torch.Tensor]) -> list[torch.Tensor]:
        """alpha_h d_h of both heads.

        alpha is in units of the targets' spread, so that the trade-off against the TD loss does not change with the
        scale of the reward. Lagrangian coefficients multiply alpha by exp(l_h) and ascend on d_h.
        """
        cfg, scale = self.cfg.conservative, self.target_std
        if cfg.coefficient == "fixed":
            return [alpha * s * gap for alpha, s, gap in zip(self._alphas(), scale, gaps, strict=True)]
        excess = [gap - cfg.threshold * s for s, gap in zip(scale, gaps, strict=True)]
        coefficients = self.log_coefficients.exp().clamp(max=cfg.coefficient_max)
        ascent = torch.stack(excess).detach() / scale
        self.log_coefficients = (self.log_coefficients + cfg.eta * ascent).clamp(-cfg.l_max, cfg.l_max)
        return [
            alpha * coefficient * s * e
            for alpha, coefficient, s, e in zip(self._alphas(), coefficients, scale, excess, strict=True)
        ]

    def _alphas(self) -> tuple[float, float]:
        return self.cfg.conservative.alpha_independent, self.cfg.conservative.alpha_cooperative

    # The gate

    def _weigh(self, gaps: torch.Tensor) -> None:
        """Turn the heads' gaps (2,) and what else was measured of them into weights (`gate.metric`, `gate.mode`)."""
        cfg = self.cfg.gate
        self.gap_ema = gate.smooth(self.gap_ema, gaps, cfg.ema)
        smooth, of_batch = self._statistic(gaps)
        if cfg.mode == "direct":
            eps = cfg.eps * self.target_std.mean()
            self.weights = gate.direct_weights(smooth, eps, cfg.p, cfg.floor, cfg.prior_cooperative)
        elif cfg.mode == "hard":
            self.weights = gate.hard_weights(smooth, cfg.floor, cfg.prior_cooperative)
        elif cfg.mode == "lagrange":
            relative = of_batch / self.target_std.mean()
            self.log_multipliers = gate.lagrange_step(
                self.log_multipliers, relative, cfg.eta, cfg.l_max, cfg.form, cfg.threshold
            )
            self.weights = gate.lagrange_weights(self.log_multipliers, cfg.floor)

    def _statistic(self, gaps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the weights fall with, (2,): smoothed over updates, and of this batch where that differs."""
        metric = self.cfg.gate.metric
        if metric == "td":
            squared = torch.zeros_like(self.gap_ema) if self.td_ema is None else self.td_ema
            losses = squared / self.target_std.mean()  # in the units of a value, as gaps are
            return losses, losses
        if metric == "gap":
            return self.gap_ema, gaps
        values = torch.zeros_like(gaps) if self.value_ema is None else self.value_ema  # None before the first rollout
        if metric == "over":
            measured = self.excess_ema.relu()
        elif metric == "cert":
            measured = gate.regret(gate.certified_value(values, self.excess_ema))
        else:
            measured = gate.regret(values - self.excess_ema)
        known = self.excess_known.min() > 0  # until both heads have been measured the gaps stand in
        return torch.where(known, measured, self.gap_ema), torch.where(known, measured, gaps)

    def agent_weights(self, batch) -> torch.Tensor:
        """The gate's weight of the independent head, the same for each agent at every step: (B, T+1, N)."""
        return self.weights[0].expand(batch["actions"].shape[:3])

    def _trust_stats(self) -> dict[str, torch.Tensor]:
        """Gaps, weights, multipliers and scales of the heads, for the record."""
        stats = {}
        for h, head in enumerate(HEADS):
            stats |= {f"gap_{head}": self.gap_ema[h], f"gate_weight_{head}": self.weights[h]}
            stats[f"target_std_{head}"] = self.target_std[h]
            if self.cfg.gate.mode == "lagrange":
                stats[f"multiplier_{head}"] = self.log_multipliers[h].exp()
            if self.cfg.conservative.coefficient == "lagrange":
                stats[f"penalty_coefficient_{head}"] = self.log_coefficients[h].exp()
        return stats

    # Targets

    def _munchausen_bonuses(self, step: Transitions, alternative) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha w [tau log rho(a|s)]: (B, T, N) for the independent and (B, T, 1) for the cooperative head.

        w is the gate's trust in the head whose policy rho is, so that a distrusted one does not shape rewards.
        """
        cfg = self.cfg.munchausen
        if alternative is None or cfg.alpha == 0:
            nothing = torch.zeros_like(step.reward)
            return nothing, nothing
        l0 = cfg.l0 * self.reward_std if cfg.clip == "scaled" else cfg.l0
        bonuses = []
        for h, trust in enumerate(self._trust_in_alternative()):
            if cfg.who == "author":
                log_rho = munchausen.neighbour_confidence(alternative[h])
            elif cfg.who == "others":
                log_rho = munchausen.opinion_pool(alternative[h], step.actions)
            else:
                log_rho = alternative[h].gather(3, step.actions).squeeze(3)  # (B, T, N)
            if h == 1:
                log_rho = (log_rho.sum if cfg.who == "sum" else log_rho.mean)(dim=-1, keepdim=True)
            tau = cfg.tau * self.target_std[h]
            bonuses.append(cfg.alpha * trust * munchausen.munchausen_bonus(log_rho, tau, l0, cfg.clip))
        return bonuses[0], bonuses[1]

    def _trust_in_alternative(self) -> tuple:
        if self.cfg.munchausen.source == "self":
            return 1.0, 1.0
        return self.weights[1], self.weights[0]

    # The behaviour policy

    def _behaviour_policy(self, batch, step: Transitions) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """beta(a | tau_i), (B, T, N, A), or None for the logged actions; a model of it gets its loss on this batch."""
        source = self.cfg.behaviour.source
        if source == "empirical":
            return None, {}
        if source == "stored":
            if step.behaviour is None:
                raise UserError("behaviour.source=stored: the batch has no field behaviour; store it, or set empirical")
            return step.behaviour, {}
        inputs = self.mac._build_sequence_inputs(batch)[:-1]
        episodes = (inputs, step.avail[:, :-1], step.actions, step.mask)
        log_beta, posterior = self.behaviour(*episodes)
        loss, stats = behaviour.model_loss(log_beta, posterior, step.actions, step.mask, self.cfg.behaviour.kl_weight)
        self._behaviour_loss = loss
        with torch.no_grad():  # without latents that was all
            found = log_beta.squeeze(0) if posterior is None else self.behaviour.log_probs(*episodes)
            return found.exp(), stats | {"behaviour_loss": loss.detach()}

    def _train_behaviour(self) -> None:
        """One step of the behaviour model, if there is one, on the batch that it was last asked about.

        Raises:
            NonFiniteError: its loss or gradient is not finite; this step was not taken.
        """
        if self.behaviour is None:
            return
        self.behaviour_optimiser.zero_grad()
        self._behaviour_loss.backward()
        norm = clip_grad_norm_(self.behaviour.parameters(), torch.inf)
        if not torch.isfinite(norm + self._behaviour_loss.detach()):
            raise NonFiniteError({"behaviour_loss": self._behaviour_loss, "behaviour gradient norm": norm})
        self.behaviour_optimiser.step()

    # State

    def _terms_to_cuda(self) -> None:
        if self.behaviour is not None:
            self.behaviour.cuda()
        for name in ("weights", "excess_ema", "excess_known", "log_multipliers", "log_coefficients"):
            setattr(self, name, getattr(self, name).cuda())

    def _behaviour_state(self) -> dict[str, Any]:
        if self.behaviour is None:
            return {}
        return {"behaviour": self.behaviour.state_dict(), "behaviour_opt": self.behaviour_optimiser.state_dict()}

    def _load_terms(self, state: dict[str, Any]) -> None:
        if self.cfg.gate.mode in ("fixed", "none"):  # the model's gate may have learned others
            self.weights = self._first_weights().to(self.weights.device)
        if self.behaviour is not None and "behaviour" in state:
            self.behaviour.load_state_dict(state["behaviour"])
            self.behaviour_optimiser.load_state_dict(state["behaviour_opt"])


def read_blocks(args, names: tuple[str, ...]) -> SimpleNamespace:
    """The blocks of options by name; PyMARL hands them over as dicts."""

    def as_namespace(block) -> SimpleNamespace:
        return SimpleNamespace(**(dict(block) if isinstance(block, dict) else vars(block)))

    return SimpleNamespace(**{name: as_namespace(getattr(args, name)) for name in names})
