"""Greedy LICA: actors that weigh critics of their own against a centralised one (docs/method.md, section 12).

The cooperative head is LICA's critic of all agents' policies, the independent one every agent's own critic of its own.
Each is made conservative, a gate decides how far the actors follow each, and each one's targets, or the actors
themselves, are regularised toward the policy that the other would choose. With every such term off it is LICA, bit for
bit. Pairs are ordered (independent, cooperative); the legend is that of `q_learner`.
"""

import copy
from pathlib import Path
from typing import Any

import torch

from learners.actor_critic_learner import Losses
from learners.critic_heads import CriticHeads
from learners.greedy_terms import HEADS, STATISTICS, GreedyTerms, read_blocks
from learners.lica_learner import LICALearner
from learners.q_learner import Transitions
from objectives import actor_critic, gate
from objectives.td import discounted_returns, td_loss
from utils.networks import blend, unroll
from utils.shapes import masked_mean

BLOCKS = ("conservative", "gate", "munchausen", "behaviour")


class GreedyLICALearner(GreedyTerms, LICALearner):
    statistics = (*LICALearner.statistics, *STATISTICS, "slope_ema")
    heads = CriticHeads

    def __init__(self, mac, scheme, logger, args):
        super().__init__(mac, scheme, logger, args)
        self.cfg = read_blocks(args, BLOCKS)
        # The agents' own critics start as copies of the actors' networks: that draws no random number, so that with
        # every greedy term off even whole runs are LICA's.
        self.independent = copy.deepcopy(mac)
        self.independent.agent_output_type = "q"
        self.target_independent = copy.deepcopy(self.independent)
        # The alternative: slow copies whose policies the targets and actors are regularised toward.
        self.slow_independent = copy.deepcopy(self.independent)
        self.slow_critic = copy.deepcopy(self.critic)
        for parameter in (*self.slow_independent.parameters(), *self.slow_critic.parameters()):
            parameter.requires_grad_(False)
        self._add_part("independent", self.independent.parameters(), args.critic_lr)
        self._build_terms(scheme)
        self.slope_ema: Any = None  # (2,) how steep the heads' values are in the policies; None until the first batch
        self.gap_profile: Any = None  # the last batch's gaps (B, T, N), (B, T, 1) and mask (B, T, 1), for pictures

    def train(self, batch, t_env: int, episode_num: int) -> None:
        """One gradient step of actors and critics, and one of the behaviour model if there is one."""
        super().train(batch, t_env, episode_num)
        self._train_behaviour()

    def objective(self, batch) -> Losses:
        """Each critic's TD loss and penalty; the actors' weighed value, its regulariser and KL to the alternative."""
        step = self._transitions(batch)
        policy = unroll(self.mac, batch, test_mode=True)  # (B, T+1, N, A), without exploration
        played = self._one_hot(batch, policy)
        now = policy[:, :-1]
        acted = self._acted(now)
        q_i = unroll(self.independent, batch)  # (B, T+1, N, A)
        beta, behaviour_stats = self._behaviour_policy(batch, step)
        heads = self.heads(step, q_i, self.critic, now, acted, played, beta)
        self._start_statistics(step)
        with torch.no_grad():
            v_i, v_c = self._bootstrap_values(batch, step, policy, played)  # (B, T, N), (B, T, 1)
            self._update_gate(step, heads)
            alternative = self._alternative_policies(batch, step, now, acted, played)
            bonus_i, bonus_c = self._munchausen_bonuses(step, alternative)
            target_i = self._targets(step, step.reward + bonus_i, v_i)
            target_c = self._targets(step, step.reward + bonus_c, v_c)
        mask_i = step.mask.expand_as(heads.chosen_i)
        td = torch.stack([td_loss(heads.chosen_i, target_i, mask_i), td_loss(heads.q_tot, target_c, step.mask)])
        penalty = torch.stack(self._penalties(step, heads))
        weights = None if self.cfg.gate.mode == "none" else self.weights
        critics = gate.head_losses(td, penalty, weights, self.cfg.gate.acts_on)

        value_i = actor_critic.policy_value(heads.q_i.detach(), now)  # (B, T, N)
        value_c = self._joint_value(heads.mix, acted, played)  # (B, T, 1)
        scales = self._scales(step, (value_i.mean(dim=-1, keepdim=True), value_c), (now, acted))
        actor = self._actor_loss(step, now, actor_critic.weighed_value(value_i, value_c, weights, scales))
        if alternative is not None and self.cfg.munchausen.kl > 0:
            actor = actor + self._kl(step, now, alternative)
        self._update_scales(step, target_i, target_c, td)

        losses = {"critic": 2 * critics[1], "agent": actor, "independent": 2 * critics[0]}
        terms = {"critic_loss": losses["critic"], "agent_loss": actor, "independent_loss": losses["independent"]}
        for h, head in enumerate(HEADS):
            terms |= {f"td_loss_{head}": td[h], f"penalty_{head}": penalty[h]}
        returns = discounted_returns(step.reward * step.mask, self.args.gamma)
        stats = self._stats(step, policy, heads.q_tot, target_c, value_c) | behaviour_stats
        stats |= {
            "td_error_abs_independent": masked_mean((heads.chosen_i - target_i).abs(), mask_i),
            "munchausen_bonus_independent": masked_mean(bonus_i.expand_as(heads.chosen_i), mask_i),
            "munchausen_bonus_cooperative": masked_mean(bonus_c, step.mask),
            "realised_return": masked_mean(returns, step.mask),
            "value_independent": masked_mean(heads.value_i, mask_i),
            "value_cooperative": masked_mean(heads.value_c, step.mask),
            "slope_scale": scales[0],
        }
        stats |= self._trust_stats() | terms
        return Losses(losses, terms, {key: value.detach() for key, value in stats.items()})

    # Conservatism and the gate

    def _penalties(self, step: Transitions, heads: CriticHeads) -> list[torch.Tensor]:
        """alpha_h d_h of both heads: the mean gap of the agents' critics, and the gap of the centralised one.

        Between actions nothing but the penalty moves a critic, so a gap of the policies that is negative is left alone:
        lowered further it would fall without end.
        """
        cfg = self.cfg.conservative
        gaps = [heads.q_tot.new_zeros(())] * 2
        if cfg.alpha_independent > 0:
            agents = heads.agent_gaps(cfg.op, cfg.temperature * self.target_std[0])
            gaps[0] = masked_mean(agents, step.mask.expand_as(agents))
        if cfg.alpha_cooperative > 0:
            joint = heads.joint_gap(cfg.joint, cfg.op, cfg.temperature * self.target_std[1])
            gaps[1] = masked_mean(joint, step.mask)
        return self._scaled_penalties([gap.relu() for gap in gaps] if cfg.op == "policy" else gaps)

    def _update_gate(self, step: Transitions, heads: CriticHeads) -> None:
        """Turn the heads' gaps into weights."""
        cfg, temperature = self.cfg.gate, self.cfg.conservative.temperature * self.target_std
        joint = cfg.joint
        if joint == "auto":
            joint = "cf" if cfg.mode == "lagrange" else "policy"
        gap_i, gap_c = heads.agent_gaps(cfg.op, temperature[0]), heads.joint_gap(joint, cfg.op, temperature[1])
        self.gap_profile = (gap_i.detach(), gap_c.detach(), step.mask)
        gaps = [masked_mean(gap_i, step.mask.expand_as(gap_i)), masked_mean(gap_c, step.mask)]
        self._weigh(torch.stack(gaps).detach())

    def _scales(self, step: Transitions, values, acted) -> torch.Tensor:
        """kappa_h, (2,): what makes both heads' values equally steep in what is done, over the last updates.

        Args:
            values: of both heads, (B, T, 1) each. acted: what each is a function of, (B, T, N, A).
        """
        slopes = []
        for value, done in zip(values, acted, strict=True):
            # Steps do not share a policy: the gradient of the sum holds that of every step.
            (gradient,) = torch.autograd.grad(value.sum(), done, retain_graph=True)
            slopes.append(actor_critic.policy_slope(gradient, step.avail[:, :-1], step.mask))
        self.slope_ema = gate.smooth(self.slope_ema, torch.stack(slopes), self.cfg.gate.ema)
        return actor_critic.slope_scales(self.slope_ema)

    # Targets

    def _bootstrap_values(self, batch, step: Transitions, policy, played) -> tuple[torch.Tensor, torch.Tensor]:
        """V(s_{t+1}) of the agents' own critics (B, T, N) and of the centralised one (B, T, 1)."""
        cfg, policy_next = self.cfg.munchausen, self._next_policy(batch, policy)
        v_i = actor_critic.policy_value(unroll(self.target_independent, batch)[:, 1:], policy_next)
        v_c = self._next_values(step, policy_next, played)
        if cfg.source == "none" or cfg.bootstrap == "hard":
            return v_i, v_c
        entropy = actor_critic.policy_entropy(policy_next)
        of_team = (entropy.sum if cfg.who == "sum" else entropy.mean)(dim=-1, keepdim=True)
        tau_i, tau_c = cfg.tau * self.target_std
        return v_i + tau_i * entropy, v_c + tau_c * of_team

    def _alternative_policies(
        self, batch, step: Transitions, policy, acted, played
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """log rho_h that head h is regularised toward, (B, T, N, A); None if nothing is."""
        cfg = self.cfg.munchausen
        if cfg.source == "none":
            return None
        slow = self.heads(step, unroll(self.slow_independent, batch), self.slow_critic, policy, acted, played)
        tau_i, tau_c = cfg.tau * self.target_std
        independent, cooperative = slow.log_policy_independent(tau_i), slow.log_policy_counterfactual(tau_c)
        return (independent, cooperative) if cfg.source == "self" else (cooperative, independent)

    def _kl(self, step: Transitions, policy: torch.Tensor, alternative) -> torch.Tensor:
        """kl sum_h w tau_h sum_i KL(pi_i || rho_h,i), a scalar; w is the gate's trust in the head that rho_h is of."""
        cfg, total = self.cfg.munchausen, policy.new_zeros(())
        for h, trust in enumerate(self._trust_in_alternative()):
            divergence = actor_critic.policy_kl(policy, alternative[h]).sum(dim=-1, keepdim=True)  # (B, T, 1)
            total = total + cfg.kl * trust * cfg.tau * self.target_std[h] * masked_mean(divergence, step.mask)
        return total

    # State

    def _move_targets(self, share: float) -> None:
        super()._move_targets(share)
        blend(self.target_independent.agent, self.independent.agent, share)
        ema = self.cfg.munchausen.alternative_ema
        blend(self.slow_critic, self.target_critic, ema)
        blend(self.slow_independent.agent, self.target_independent.agent, ema)

    def cuda(self) -> None:
        super().cuda()
        for mac in (self.independent, self.target_independent, self.slow_independent):
            mac.cuda()
        self.slow_critic.cuda()
        self._terms_to_cuda()

    def save_models(self, path: str) -> None:
        super().save_models(path)
        state = {
            "independent": self.independent.agent.state_dict(),
            "target_independent": self.target_independent.agent.state_dict(),
            "slow_independent": self.slow_independent.agent.state_dict(),
            "slow_critic": self.slow_critic.state_dict(),
        }
        torch.save(state | self._behaviour_state(), Path(path) / "greedy.th")

    def load_models(self, path: str) -> None:
        """Read what `save_models` wrote. A LICA model, without `greedy.th`, starts agents' critics and gate anew."""
        super().load_models(path)
        file = Path(path) / "greedy.th"
        if not file.exists():
            self.slow_critic.load_state_dict(self.target_critic.state_dict())
            return
        state = torch.load(file, map_location="cpu", weights_only=True)
        for name in ("independent", "target_independent", "slow_independent"):
            getattr(self, name).agent.load_state_dict(state[name])
        self.slow_critic.load_state_dict(state["slow_critic"])
        self._load_terms(state)
