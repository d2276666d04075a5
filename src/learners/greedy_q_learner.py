"""Greedy Q-learning: when to ignore cooperation.

Two heads value what the agents do: the independent one, every agent's own Q_i toward the team's return, and the
cooperative one, Q_tot = f(Q_1, ..., Q_N; s) of a monotone mixer, over the same utilities or over utilities of its own.
Each head is made conservative, a gate decides how far to trust each, and each one's target is regularised toward the
other's policy. docs/method.md has the equations and where each of them is. Pairs are ordered (independent,
cooperative); the legend is that of `q_learner`.
"""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from learners.greedy_terms import HEADS, STATISTICS, GreedyTerms, read_blocks
from learners.heads import Heads
from learners.q_learner import Objective, QLearner, Transitions, greedy_actions
from modules.mixers import InStates, counterfactual_q_tot
from objectives import conservative, gate, munchausen, shared_experience
from objectives.td import discounted_returns, one_step_targets, td_loss
from utils.aside import aside
from utils.errors import UserError
from utils.networks import blend, unroll
from utils.shapes import masked_mean

BLOCKS = ("heads", "conservative", "gate", "munchausen", "behaviour")


class GreedyQLearner(GreedyTerms, QLearner):
    statistics = (*QLearner.statistics, *STATISTICS)
    shown = ("gap_profile",)

    def __init__(self, mac, scheme, logger, args):
        super().__init__(mac, scheme, logger, args)
        if self.mixer is None:
            raise UserError("mixer=null: greedy_q_learner weighs a cooperative head, so it needs a mixer such as qmix")
        self.cfg = read_blocks(args, BLOCKS)
        self.shared = self.cfg.heads.utilities == "shared"
        self.individual = self.cfg.heads.reward_independent == "individual"
        # The alternative: slow copies whose policies the targets are regularised toward.
        self.slow_mac = copy.deepcopy(mac)
        self.slow_mixer = copy.deepcopy(self.mixer)
        for parameter in (*self.slow_mac.parameters(), *self.slow_mixer.parameters()):
            parameter.requires_grad_(False)
        self._build_terms(scheme)
        self.gap_profile: Any = None  # the last batch's gaps (B, T, N), (B, T, 1) and mask (B, T, 1), for pictures

    def settle(self) -> None:
        """One gradient step of the behaviour model if there is one, and the gate's choice of who acts."""
        self._train_behaviour()
        self.choose_actor()

    def choose_actor(self) -> None:
        """Let all agents follow the head that the gate trusts more (`heads.act` global)."""
        if self.cfg.heads.act == "global":
            self.mac.act_with(torch.where(self.weights[0] > self.weights[1], 0, 1))

    def objective(self, batch) -> Objective:
        """Sum over heads of TD loss and conservative penalty, weighed by the gate (docs/method.md, section 8)."""
        of_target = aside(lambda: self._unroll_heads(self.target_mac, batch), batch["actions"])
        step = self._transitions(batch)
        of_slow = aside(lambda: self._slow_heads(batch, step), batch["actions"])
        q_i, q_c = self._unroll_heads(self.mac, batch)  # (B, T+1, N, A) each
        target_q = of_target()
        beta, behaviour_stats = self._behaviour_policy(batch, step)
        heads = Heads(step, q_i, q_c, self.mixer, beta)
        q_tot = heads.q_tot  # (B, T, 1)
        self._start_statistics(step)

        reward_i = step.reward if step.individual_reward is None else step.individual_reward
        with torch.no_grad():
            v_i, v_c = self._bootstrap_values(step, (q_i, q_c), target_q)  # (B, T, N), (B, T, 1)
            self._update_gate(step, heads, v_i, v_c)
            alternative = self._alternative_policies(batch, of_slow())
            bonus_i, bonus_c = self._munchausen_bonuses(step, alternative)
        td, target_i, target_c = self._td(step, heads, (reward_i + bonus_i, step.reward + bonus_c), (v_i, v_c))
        mask_i = step.mask.expand_as(heads.chosen_i)
        penalty = torch.stack(self._penalties(step, heads))
        regularise = alternative is not None and self.cfg.munchausen.kl > 0
        regularised = td + self._kl(step, heads, alternative) if regularise else td
        terms = {}
        if self.cfg.heads.shared_experience > 0:
            terms["shared_loss"] = self._shared_loss(batch, step, reward_i + bonus_i)
            share = self.cfg.heads.shared_experience * terms["shared_loss"]
            regularised = regularised + torch.stack([share, torch.zeros_like(share)])
        units = gate.loss_units(self.target_std) if self.cfg.heads.normalise_loss else 1.0
        acting_weights = None if self.cfg.gate.mode == "none" else self.weights
        loss = gate.combine(units * regularised, units * penalty, acting_weights, self.cfg.gate.acts_on)
        imitation = self._imitation_loss(batch, step, heads)

        self._update_scales(step, target_i, target_c, td)
        for h, head in enumerate(HEADS):
            terms |= {f"td_loss_{head}": td[h], f"penalty_{head}": penalty[h]}
        if imitation is not None:
            terms["imitation_loss"] = imitation
            loss = loss + imitation
        if not self.measures:
            return Objective(loss, terms, {})
        stats = self._td_stats(q_tot, target_c, step.mask) | {
            "td_error_abs_independent": masked_mean((heads.chosen_i - target_i).abs().detach(), mask_i),
            "munchausen_bonus_independent": masked_mean(bonus_i.expand_as(heads.chosen_i), mask_i),
            "munchausen_bonus_cooperative": masked_mean(bonus_c, step.mask),
            "greedy_change": masked_mean(self._greedy_change(heads, target_q[1][:, :-1]), mask_i),
        }
        stats |= self._gate_stats(step, heads) | behaviour_stats
        return Objective(loss, terms, stats | {key: value.detach() for key, value in terms.items()})

    def joint_values(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The utilities that the mixer reads (B, T, N, A) and Q_tot of the batch's joint actions (B, T, 1)."""
        with torch.no_grad():
            _, q = self._unroll_heads(self.mac, batch)
            return q, self.mixer(q.gather(3, batch["actions"]).squeeze(3), batch["state"])

    def head_values(self, batch) -> dict[str, torch.Tensor]:
        """What each head says of every agent's actions, (B, T+1, N, A): Q_i, and Q_tot if the others act greedily."""
        with torch.no_grad():
            q_i, q_c = self._unroll_heads(self.mac, batch)
            best = conservative.sup_value(q_c, Transitions.of(batch).avail, "max")
            return dict(zip(HEADS, (q_i, counterfactual_q_tot(self.mixer, best, q_c, batch["state"])), strict=True))

    def agent_weights(self, batch) -> torch.Tensor:
        """As of all greedy learners; of agents that choose by a switch of their own, the switch's probability."""
        if self.cfg.heads.act != "agent":
            return super().agent_weights(batch)
        with torch.no_grad():
            return torch.sigmoid(self.mac.unroll_imitation(batch).squeeze(-1))

    def certify(self, head: int, batch) -> None:
        """Compare a head's values at the start of episodes with what its greedy play earned in them (`rollout`).

        Args:
            batch: whole episodes that all agents played greedily by this head.
        """
        with torch.no_grad():
            step = self._transitions(batch, learn_scale=False)
            q, target_q = self._unroll_heads(self.mac, batch), self._unroll_heads(self.target_mac, batch)
            heads = Heads(step, *q, self.mixer)
            v_i, v_c = self._bootstrap_values(step, q, target_q)
            value = (heads.value_c if head else self._team(heads.value_i))[:, 0].mean()
            realised = self._realised_returns(step, v_c if head else self._team(v_i))[:, 0].mean()
        of_head = torch.arange(2, device=value.device) == head
        before = torch.zeros_like(self.excess_ema) if self.value_ema is None else self.value_ema
        self.value_ema = torch.where(of_head, value, before)
        self.excess_ema = torch.where(of_head, value - realised, self.excess_ema)
        self.excess_known = torch.where(of_head, 1.0, self.excess_known)

    def _unroll_heads(self, mac, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Utilities of the independent and the cooperative head, (B, T+1, N, A); one tensor if they are shared."""
        if self.shared:
            q = unroll(mac, batch)
            return q, q
        return mac.unroll_heads(batch)

    def _transitions(self, batch, learn_scale: bool = True) -> Transitions:
        step = super()._transitions(batch, learn_scale)
        if not self.individual:
            step.individual_reward = None
        elif step.individual_reward is None:
            raise UserError("heads.reward_independent=individual: the batch has no individual_reward; set it to team")
        return step

    def _team(self, values: torch.Tensor) -> torch.Tensor:
        """The independent head's value of the team (B, T, 1): the agents' mean, or their sum if rewards are theirs."""
        return values.sum(dim=-1, keepdim=True) if self.individual else values.mean(dim=-1, keepdim=True)

    # Conservatism

    def _penalties(self, step: Transitions, heads: Heads) -> list[torch.Tensor]:
        """alpha_h d_h of both heads: the mean gap of the agents, and the gap of Q_tot.

        The temperature is in units of the targets' spread, too.
        """
        cfg = self.cfg.conservative
        scale = self.target_std
        gaps = [heads.q_tot.new_zeros(())] * 2
        if cfg.alpha_independent > 0:
            agents = heads.agent_gaps(cfg.op, cfg.temperature * scale[0])
            gaps[0] = masked_mean(agents, step.mask.expand_as(agents))
        if cfg.alpha_cooperative > 0:
            joint = heads.joint_gap(cfg.joint, cfg.op, cfg.temperature * scale[1], cfg.samples, cfg.shift_weight)
            gaps[1] = masked_mean(joint, step.mask)
        return self._scaled_penalties(gaps)

    # The gate

    def _update_gate(self, step: Transitions, heads: Heads, v_i, v_c) -> None:
        """Turn the heads' statistics (docs/method.md, section 5) into weights."""
        cfg = self.cfg.gate
        self.gap_profile = (*self._gaps(heads), step.mask)
        gap_i, gap_c, mask = self.gap_profile
        gaps = torch.stack([masked_mean(self._team(gap_i), mask), masked_mean(gap_c, mask)])
        if cfg.realised != "rollout":
            values = (self._team(heads.value_i), heads.value_c)
            # At the start of episodes, where the choice between the heads is made.
            first = torch.stack([masked_mean(value[:, :1], mask[:, :1]) for value in values])
            self.value_ema = gate.smooth(self.value_ema, first, cfg.ema)
            if cfg.metric in gate.MEASURED or cfg.target == "cert":
                self._measure_excess(step, heads, values, (self._team(v_i), v_c))
        self._weigh(gaps)

    def _gaps(self, heads: Heads) -> tuple[torch.Tensor, torch.Tensor]:
        """The gaps that the gate reads: (B, T, N) of the agents' values and (B, T, 1) of Q_tot."""
        cfg, temperature = self.cfg.gate, self.cfg.conservative.temperature * self.target_std
        joint = cfg.joint
        if joint == "auto":
            joint = "cf" if cfg.mode == "lagrange" else "max"
        samples = self.cfg.conservative.samples
        gap_c = heads.joint_gap(joint, cfg.op, temperature[1], samples)
        return heads.agent_gaps(cfg.op, temperature[0]).detach(), gap_c.detach()

    def _measure_excess(self, step: Transitions, heads: Heads, values, next_values) -> None:
        """How far each head's greedy value stands above what its greedy play was seen to earn (`gate.realised`).

        Args:
            values, next_values: of the team, (B, T, 1) for each head.
        """
        cfg = self.cfg.gate
        beta: Any = heads.beta  # None is refused with gate.realised=is
        excesses, counts = [], []
        for h in range(2):
            match = (heads.greedy[h] == step.actions).all(dim=2).to(step.reward.dtype) * step.mask  # (B, T, 1)
            if cfg.realised == "match":
                realised = one_step_targets(step.reward, step.terminated, next_values[h], self.args.gamma)
                weight = match
            else:
                realised = self._realised_returns(step, next_values[h])
                played = beta.gather(3, step.actions).prod(dim=2)
                weight = gate.suffix_weights(match, played, step.mask, cfg.importance_clip)
            excess, count = gate.weighted_excess(values[h], realised, weight)
            excesses.append(excess)
            counts.append(count)
        enough = torch.stack(counts) >= cfg.min_rows
        excess = torch.stack(excesses)
        smoothed = torch.where(self.excess_known > 0, gate.smooth(self.excess_ema, excess, cfg.ema), excess)
        self.excess_ema = torch.where(enough, smoothed, self.excess_ema)
        self.excess_known = torch.maximum(self.excess_known, enough.to(self.excess_known.dtype))

    def _realised_returns(self, step: Transitions, next_value: torch.Tensor) -> torch.Tensor:
        """Discounted returns (B, T, 1); behind an episode that was cut, the head's next value (B, T, 1) is to come."""
        last = step.mask * (1 - F.pad(step.mask[:, 1:], (0, 0, 0, 1)))
        to_come = self.args.gamma * last * (1 - step.terminated) * next_value
        return discounted_returns((step.reward + to_come) * step.mask, self.args.gamma)

    def _gate_stats(self, step: Transitions, heads: Heads) -> dict[str, torch.Tensor]:
        """What the gate saw and did, for the record."""
        cfg = self.cfg.gate
        stats = {
            "realised_return": masked_mean(discounted_returns(step.reward * step.mask, self.args.gamma), step.mask)
        }
        values = (masked_mean(self._team(heads.value_i), step.mask), masked_mean(heads.value_c, step.mask))
        stats |= self._trust_stats()
        for h, head in enumerate(HEADS):
            stats[f"value_{head}"] = values[h]
            if cfg.metric in gate.MEASURED or cfg.target == "cert":
                stats[f"excess_{head}"] = self.excess_ema[h]
        if not self.shared:
            disagree = (heads.greedy[0] != heads.greedy[1]).any(dim=2).to(step.mask.dtype)
            stats["heads_disagree"] = masked_mean(disagree, step.mask)
        return stats

    @staticmethod
    def _greedy_change(heads: Heads, q_target: torch.Tensor) -> torch.Tensor:
        """1 where the target network's greedy action is not the online network's, of the cooperative utilities."""
        return (greedy_actions(q_target, heads.avail) != heads.greedy[1]).squeeze(3).to(q_target.dtype)

    def _imitation_loss(self, batch, step: Transitions, heads: Heads) -> torch.Tensor | None:
        """What the agents learn so as to follow the gate's choice in each state without seeing it (`heads.act`)."""
        if self.cfg.heads.act not in ("agent", "distil"):
            return None
        output = self.mac.unroll_imitation(batch)[:, :-1]
        chosen = self._trusts_independent(heads)  # (B, T, 1)
        mask = step.mask.expand(-1, -1, output.shape[2])
        if self.cfg.heads.act == "agent":
            wanted = chosen.expand_as(output.squeeze(-1)).to(output.dtype)
            losses = F.binary_cross_entropy_with_logits(output.squeeze(-1), wanted, reduction="none")
        else:
            action = torch.where(chosen.unsqueeze(2), heads.greedy[0], heads.greedy[1])
            losses = -munchausen.log_policy(output, heads.avail, 1.0).gather(3, action).squeeze(3)
        return masked_mean(losses, mask)

    def _trusts_independent(self, heads: Heads) -> torch.Tensor:
        """The gate's choice in each state, (B, T, 1) bool."""
        metric = self.cfg.gate.metric
        gap_i, gap_c, _ = self.gap_profile
        smaller_gap = self._team(gap_i) < gap_c
        if metric == "gap":
            return smaller_gap
        if metric in ("cert", "realised"):
            excess = self.excess_ema.relu() if metric == "cert" else self.excess_ema
            earns_more = self._team(heads.value_i) - excess[0] > heads.value_c - excess[1]
            return torch.where(self.excess_known.min() > 0, earns_more, smaller_gap)
        return (self.weights[0] > self.weights[1]).expand(heads.value_c.shape)

    # Targets

    def _bootstrap_values(self, step: Transitions, q, target_q) -> tuple[torch.Tensor, torch.Tensor]:
        """V(s_{t+1}) of the independent head (B, T, N) and of the cooperative one (B, T, 1)."""
        v_i = self._utility_values(0, q[0], target_q[0], step.avail)
        same = self.shared and not self._is_soft()
        utilities = v_i if same else self._utility_values(1, q[1], target_q[1], step.avail)
        v_c = InStates(self.target_mixer, step.state[:, 1:], step.mask)(utilities)
        if self.cfg.gate.target == "own":
            return v_i, v_c
        excess = (self.excess_ema, self.excess_known)
        gated = gate.gated_value(self._team(v_i), v_c, self.cfg.gate.target, self.weights, *excess)
        return gated.expand_as(v_i), gated

    def _utility_values(self, head: int, q, target_q, avail) -> torch.Tensor:
        """V_i(s_{t+1}) of a head's utilities: hard or soft, as the regulariser has it. (B, T+1, X, A) -> (B, T, X)"""
        if not self._is_soft():
            return self._next_values(q, target_q, avail)
        return munchausen.soft_value(target_q[:, 1:], avail[:, 1:], self.cfg.munchausen.tau * self.target_std[head])

    def _is_soft(self) -> bool:
        return self.cfg.munchausen.source != "none" and self.cfg.munchausen.bootstrap == "soft"

    def _shared_loss(self, batch, step: Transitions, reward: torch.Tensor) -> torch.Tensor:
        """TD loss of the independent head on the other agents' experience: Q_j of what agent i saw and did.

        Q-learning is off-policy, so nothing is weighed by importance. reward: (B, T, 1 or N), of agent i.
        """
        N = step.actions.shape[2]
        q = self._independent_values_of_others(self.mac, batch)  # (B, T+1, N * N, A), pairs (i, j)
        with torch.no_grad():
            target_q = self._independent_values_of_others(self.target_mac, batch)
            v_next = self._utility_values(0, q, target_q, step.avail.repeat_interleave(N, dim=2))
            target = self._targets(step, reward.expand(-1, -1, N).repeat_interleave(N, dim=2), v_next)
        chosen = q[:, :-1].gather(3, step.actions.repeat_interleave(N, dim=2)).squeeze(3)
        pairs = (chosen.unflatten(2, (N, N)), target.unflatten(2, (N, N)))
        return shared_experience.value_loss(*pairs, torch.ones_like(pairs[0]), step.mask)

    def _independent_values_of_others(self, mac, batch) -> torch.Tensor:
        network = mac.agent if self.shared else mac.agent.independent
        return mac.unroll_others(batch, network).flatten(2, 3)

    def _td(self, step: Transitions, heads: Heads, rewards, next_values):
        """TD losses of both heads (2,), and their targets, (B, T, N) and (B, T, 1), from rewards and next values."""
        target_i, target_c = (self._targets(step, r, v) for r, v in zip(rewards, next_values, strict=True))
        mask_i = step.mask.expand_as(heads.chosen_i)
        losses = [td_loss(heads.chosen_i, target_i, mask_i), td_loss(heads.q_tot, target_c, step.mask)]
        return torch.stack(losses), target_i, target_c

    def _slow_heads(self, batch, step: Transitions) -> Heads | None:
        """The heads of the alternative; None if nothing is regularised."""
        cfg = self.cfg.munchausen
        if cfg.source == "none":
            return None
        slow = Heads(step, *self._unroll_heads(self.slow_mac, batch), self.slow_mixer)
        if cfg.who != "others" and cfg.source != "alt_utility":
            _ = slow.q_cf  # `_alternative_policies` asks for it
        return slow

    def _alternative_policies(self, batch, slow: Heads | None) -> tuple[torch.Tensor, torch.Tensor] | None:
        """log rho_h that head h is regularised toward, (B, T, N, A); or, for `who: others`, (B, T, N, N, A)."""
        if slow is None:
            return None
        cfg = self.cfg.munchausen
        tau_i, tau_c = cfg.tau * self.target_std
        if cfg.who == "others":
            return self._policies_of_others(batch, slow.avail, tau_i)
        independent = slow.log_policy_independent(tau_i)
        if cfg.source == "alt_utility":
            return slow.log_policy_cooperative_utility(cfg.tau), independent
        cooperative = slow.log_policy_counterfactual(tau_c)
        return (independent, cooperative) if cfg.source == "self" else (cooperative, independent)

    def _policies_of_others(self, batch, avail, tau_i) -> tuple[torch.Tensor, torch.Tensor]:
        """log rho_j(a | tau_i) of every agent j on the history of agent i, by the alternative head's utilities."""
        cfg, mac = self.cfg.munchausen, self.slow_mac
        avail = avail.unsqueeze(3).expand(-1, -1, -1, avail.shape[2], -1)
        if self.shared:
            q = mac.unroll_others(batch)[:, :-1]
            policy = munchausen.log_policy(q, avail, tau_i)
            return policy, policy
        q_i, q_c = (
            mac.unroll_others(batch, network)[:, :-1] for network in (mac.agent.independent, mac.agent.cooperative)
        )
        cooperative = munchausen.log_policy(conservative.standardise(q_c, avail), avail, cfg.tau)
        independent = munchausen.log_policy(q_i, avail, tau_i)
        return (independent, cooperative) if cfg.source == "self" else (cooperative, independent)

    def _kl(self, step: Transitions, heads: Heads, alternative) -> torch.Tensor:
        """kl w tau KL(pi_h || rho_h) of both heads, (2,): the direct regulariser, with a gradient into pi_h alone."""
        cfg = self.cfg.munchausen
        terms = []
        for h, trust in enumerate(self._trust_in_alternative()):
            tau = cfg.tau * self.target_std[h]
            q = heads.q_cf if h else heads.q_i
            divergence = munchausen.kl_to(q, heads.avail, alternative[h], tau)  # (B, T, N)
            terms.append(cfg.kl * trust * tau * masked_mean(divergence, step.mask.expand_as(divergence)))
        return torch.stack(terms)

    # State

    def _move_targets(self, share: float) -> None:
        super()._move_targets(share)
        ema = self.cfg.munchausen.alternative_ema
        for slow, target in self._with_mixer(
            self.slow_mac.agent, self.slow_mixer, self.target_mac.agent, self.target_mixer
        ):
            blend(slow, target, ema)

    def cuda(self) -> None:
        super().cuda()
        self.slow_mac.cuda()
        self.slow_mixer.cuda()
        self._terms_to_cuda()

    def save_models(self, path: str) -> None:
        super().save_models(path)
        state = {"slow_agent": self.slow_mac.agent.state_dict(), "slow_mixer": self.slow_mixer.state_dict()}
        torch.save(state | self._behaviour_state(), Path(path) / "greedy.th")

    def load_models(self, path: str) -> None:
        """Read what `save_models` wrote. A QMIX model, without `greedy.th`, starts the gate anew."""
        super().load_models(path)
        file = Path(path) / "greedy.th"
        if not file.exists():
            self.slow_mac.load_state(self.target_mac)
            self.slow_mixer.load_state_dict(self.target_mixer.state_dict())
            return
        state = torch.load(file, map_location="cpu", weights_only=True)
        self.slow_mac.agent.load_state_dict(state["slow_agent"])
        self.slow_mixer.load_state_dict(state["slow_mixer"])
        self._load_terms(state)
