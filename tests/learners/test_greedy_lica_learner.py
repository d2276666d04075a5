"""Greedy LICA: with every term off it is LICA bit for bit, and its losses are the method's, in nested loops."""

import math
import re
from pathlib import Path

import pytest
import torch
from helpers import (
    EPISODES,
    Episode,
    assert_equal,
    corrupt_padding,
    differs,
    gate_state,
    make_args,
    make_learner,
    random_batch,
    shake,
    step_by_step,
    weights,
    without_last_actions,
)
from test_lica_learner import SETTINGS, WildLogitsMAC, gradients, lica_args, policies_of

from controllers import BasicMAC
from objectives.actor_critic import policy_slope
from utils.networks import NonFiniteError

SHORT = (Episode(3, "terminated"), Episode(1, "terminated"), Episode(2, "early"))
BLOCKS = {
    "conservative": {"alpha_independent": 0.5, "alpha_cooperative": 0.75, "temperature": 0.25},
    "gate": {"p": 1.5, "eps": 0.125, "prior_cooperative": 0.5, "ema": 0.75, "floor": 0.0625, "eta": 0.5, "l_max": 2.0},
    "munchausen": {"tau": 0.25, "l0": -0.5, "alternative_ema": 0.25},
    "behaviour": {"hidden_dim": 7, "latent_dim": 2, "samples": 3},
}
OFF = {"conservative": {"alpha_independent": 0.0, "alpha_cooperative": 0.0}, "munchausen": {"source": "none"}}


def greedy_args(alg="greedy_lica", settings=SETTINGS, **changes):
    """The settings above, with changes to single keys of blocks, as in gate={"mode": "hard"}, and of the top level."""
    blocks = {name: {**values, **changes.pop(name, {})} for name, values in BLOCKS.items()}
    return make_args(alg, **{**settings, **changes}, **blocks)


def fixed(weight_independent, **changes):
    """A gate of constant weights, and every other term off."""
    gate = {"mode": "fixed", "weight_independent": weight_independent}
    return greedy_args(gate=gate, **OFF, **changes)


def gate_of(**options):
    return {"gate": options}


def penalty(**options):
    return {"conservative": options}


def munchausen(**options):
    return {"munchausen": options}


CASES = {
    "direct": {},
    "direct on the penalty": gate_of(acts_on="penalty"),
    "hard": gate_of(mode="hard"),
    "lagrange": gate_of(mode="lagrange"),
    "lagrange, log-sum-exp": gate_of(mode="lagrange", op="lse"),
    "fixed": gate_of(mode="fixed", weight_independent=0.25),
    "none": gate_of(mode="none"),
    "td": gate_of(metric="td"),
    "one agent at a time": gate_of(joint="cf"),
    "greedy gaps": gate_of(joint="cf", op="max"),
    "penalty of one agent at a time": penalty(joint="cf"),
    "log-sum-exp penalty": penalty(joint="cf", op="lse"),
    "held penalty": penalty(coefficient="lagrange", threshold=0.125, eta=0.5, l_max=2.0),
    "no penalty": penalty(alpha_independent=0.0, alpha_cooperative=0.0),
    "stored behaviour": {"behaviour": {"source": "stored"}, **penalty(joint="cf")},
    "penalty to the behaviour": {"behaviour": {"source": "stored"}, **penalty(joint="cf", op="lse_beta")},
    "hard bootstrap": munchausen(bootstrap="hard"),
    "no munchausen": munchausen(source="none"),
    "own alternative": munchausen(source="self"),
    "summed over agents": munchausen(who="sum", l0=-2.0),
    "neighbour's confidence": munchausen(who="author", l0=-2.0),
    "direct KL": munchausen(kl=0.5),
    "direct KL to itself, no bonus": munchausen(kl=0.5, alpha=0.0, source="self"),
    "one-step targets": {"td_lambda": 0.0},
}


def make(case, seed=2, mac_class=None, **more):
    learner = make_learner(greedy_args(**{**CASES[case], **more}), mac_class=mac_class)
    shake(learner, seed=seed)
    return learner


# The limit


@pytest.mark.parametrize("options", [{}, {"td_lambda": 0.0, "grad_norm_clip": 0.01}, {"optimizer": "rmsprop"}])
def test_with_every_term_off_it_is_lica_bit_for_bit(options):
    greedy, plain = make_learner(fixed(0.0, **options)), make_learner(lica_args(**options))
    start = weights(plain)
    for k in range(6):
        batch = random_batch(plain.args, seed=k)
        ours, theirs = greedy.objective(batch), plain.objective(batch)
        found, expected = gradients(greedy, ours), gradients(plain, theirs)
        for part, loss in theirs.losses.items():
            assert torch.equal(ours.losses[part], loss), part
        assert_equal({key: found[key] for key in expected}, expected)
        for learner in (greedy, plain):
            learner.train(batch, t_env=k, episode_num=100 * k)
        after = weights(greedy)
        assert_equal({key: after[key] for key in weights(plain)}, weights(plain))
    assert differs(start, weights(plain))


def test_it_draws_no_random_number_that_lica_does_not():
    """So that whole runs with every term off are LICA's, too."""
    found = []
    for args in (fixed(0.0), lica_args()):
        make_learner(args)
        found.append(torch.get_rng_state())
    assert torch.equal(*found)


def test_with_all_weight_on_the_independent_head_the_actors_ignore_the_centralised_critic():
    learner = make_learner(fixed(1.0, entropy_coef=0.0))
    shake(learner, seed=2)
    batch = random_batch(learner.args, seed=1)
    before = gradients(learner, learner.objective(batch))
    with torch.no_grad():
        slope = learner.slope_ema.clone()
        for parameter in learner.critic.hyper_w_1.parameters():
            parameter.mul_(-1)
    after = gradients(learner, learner.objective(batch))
    actors = [key for key in before if key.startswith("agent")]
    ratio = (learner.slope_ema[1] / slope[1]).item()
    for key in actors:  # but for its slope, which sets the scale
        torch.testing.assert_close(after[key], before[key] * ratio, rtol=1e-3, atol=1e-6)


def test_every_term_that_is_switched_on_changes_a_loss():
    found = []
    for changes in (
        {"gate": {"mode": "fixed", "weight_independent": 0.0}, **OFF},
        {"gate": {"mode": "fixed", "weight_independent": 0.25}, **OFF},
        {"gate": {"mode": "none"}, **OFF},
        {"gate": {"mode": "direct"}, **OFF},
        {"conservative": {"alpha_cooperative": 0.0}, "munchausen": {"source": "none"}},
        {"conservative": {"alpha_independent": 0.0}, "munchausen": {"source": "none"}},
        {"conservative": OFF["conservative"]},
        {"conservative": OFF["conservative"], "munchausen": {"kl": 0.5}},
    ):
        learner = make_learner(greedy_args(**changes))
        shake(learner, seed=2)
        losses = learner.objective(random_batch(learner.args, seed=1)).losses
        found.append(tuple(round(loss.item(), 6) for loss in losses.values()))
    assert len(set(found)) == len(found)


# The losses


class Loops:
    """The method in nested loops over episodes, steps, agents and actions, with running values of its own."""

    def __init__(self, learner):
        self.learner, self.args, self.cfg = learner, learner.args, learner.cfg
        self.deviation = self.reward_deviation = self.gaps = self.td = self.slopes = None
        self.log_multipliers, self.log_coefficients, self.trust = [0.0, 0.0], [0.0, 0.0], None
        w = learner.cfg.gate.weight_independent if learner.cfg.gate.mode == "fixed" else 0.5
        self.trust = [w, 1 - w]

    def smooth(self, before, values):
        ema = self.cfg.gate.ema
        return values if before is None else [ema * b + (1 - ema) * v for b, v in zip(before, values, strict=True)]

    def q(self, critic, policy, e, t):
        N = self.args.n_agents
        return critic(torch.stack(list(policy)).view(1, 1, N, -1), self.batch["state"][e, t].view(1, 1, -1)).squeeze()

    def taken(self, e, t):
        eye = torch.eye(self.args.n_actions)
        return [eye[self.batch["actions"][e, t, i, 0]] for i in range(self.args.n_agents)]

    def allowed(self, e, t, i):
        return [a for a in range(self.args.n_actions) if self.batch["avail_actions"][e, t, i, a] == 1]

    def counterfactual(self, critic, e, t, i):
        values = {}
        for k in self.allowed(e, t, i):
            joint = self.taken(e, t)
            joint[i] = torch.eye(self.args.n_actions)[k]
            values[k] = self.q(critic, joint, e, t)
        return values

    def sup(self, values, op, T, beta, pi):
        """Over a dict of values by action."""
        if op == "policy":
            return sum(pi[a] * v for a, v in values.items())
        if op == "max":
            return max(values.values())
        factor = beta if op == "lse_beta" else dict.fromkeys(values, 1.0)
        return T * sum(factor[a] * (v / T).exp() for a, v in values.items()).log()

    # What LICA's critic is asked

    def begin(self):
        """Draw what the learner draws."""

    def policies_at_once(self, e, t):
        return [p.detach() for p in self.pi[e][t]]

    def own_policy(self, e, t, i):
        mine = self.taken(e, t)
        mine[i] = self.pi[e][t][i].detach()
        return self.q(self.learner.critic, mine, e, t)

    def next_pi(self, e, t):
        return self.pi[e][t + 1]

    def next_actions(self, e, t, last):
        return self.pi[e][t + 1] if last else self.taken(e, t + 1)

    def acted(self, e, t):
        return list(self.pi[e][t])

    def joint_value(self, e, t, acted):
        return self.q(self.learner.critic, acted, e, t)

    def regulariser(self, steps):
        return 0.0

    def gaps_of(self, e, t, op, joint, T):
        """The agents' gaps, and the centralised critic's."""
        N, pi = self.args.n_agents, self.pi[e][t]
        stored = self.cfg.behaviour.source == "stored"
        q_data = self.q(self.learner.critic, self.taken(e, t), e, t)
        agents, data, sups = [], [], []
        for i in range(N):
            beta = {a: self.batch["behaviour"][e, t, i, a] for a in self.allowed(e, t, i)} if stored else None
            own = {a: self.q_i[e, t, i, a] for a in self.allowed(e, t, i)}
            a_i = self.batch["actions"][e, t, i, 0].item()
            of_data = sum(beta[a] * own[a] for a in own) if stored else own[a_i]
            agents.append(self.sup(own, op, T[0], beta, pi[i].detach()) - of_data)
            if joint == "cf":
                cf = self.counterfactual(self.learner.critic, e, t, i)
                data.append(sum(beta[a] * cf[a] for a in cf) if stored else q_data)
                sups.append(self.own_policy(e, t, i) if op == "policy" else self.sup(cf, op, T[1], beta, None))
        if joint == "policy":
            return agents, self.q(self.learner.critic, self.policies_at_once(e, t), e, t) - q_data
        return agents, sum(sups) / N - sum(data) / N

    def weigh(self, gaps):
        cfg = self.cfg.gate
        self.gaps = self.smooth(self.gaps, gaps)
        spread = sum(self.deviation) / 2
        statistic = [loss / spread for loss in self.td or [0.0, 0.0]] if cfg.metric == "td" else self.gaps
        of_batch = statistic if cfg.metric == "td" else gaps
        prior = [1 - cfg.prior_cooperative, cfg.prior_cooperative]
        if cfg.mode == "direct":
            found = [p * (max(g, 0.0) + cfg.eps * spread) ** -cfg.p for p, g in zip(prior, statistic, strict=True)]
        elif cfg.mode == "hard":
            first = max(statistic[0], 0.0) <= max(statistic[1], 0.0)
            found = [float(first), float(not first)]
        elif cfg.mode == "lagrange":
            mean = sum(of_batch) / 2
            steps = [cfg.eta * (g - mean) / spread for g in of_batch]
            self.log_multipliers = [
                min(max(x + step, -cfg.l_max), cfg.l_max) for x, step in zip(self.log_multipliers, steps, strict=True)
            ]
            found = [math.exp(-x) for x in self.log_multipliers]
        else:
            return
        self.trust = [cfg.floor + (1 - 2 * cfg.floor) * f / sum(found) for f in found]

    def __call__(self, batch, episodes):
        args, cfg, learner = self.args, self.cfg, self.learner
        self.batch, self.pi = batch, policies_of(learner, batch)
        self.begin()
        self.q_i = step_by_step(learner.independent, batch)
        target_i = step_by_step(learner.target_independent, batch).detach()
        slow_i = step_by_step(learner.slow_independent, batch).detach()
        N, steps = args.n_agents, [(e, t) for e, episode in enumerate(episodes) for t in range(episode.length)]
        rewards = {(e, t): batch["reward"][e, t, 0].item() for e, t in steps}

        def spread(values):
            values = [float(v) for v in values]
            mean = sum(values) / len(values)
            return math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))

        self.reward_deviation = self.smooth(self.reward_deviation, [spread(rewards.values())])
        if self.deviation is None:
            returns = []
            for e, episode in enumerate(episodes):
                to_come = 0.0
                for t in reversed(range(episode.length)):
                    to_come = rewards[e, t] + args.gamma * to_come
                    returns.append(to_come)
            self.deviation = [spread(returns)] * 2
        tau = [cfg.munchausen.tau * s for s in self.deviation]
        T = [cfg.conservative.temperature * s for s in self.deviation]

        # The gate
        joint = cfg.gate.joint
        if joint == "auto":
            joint = "cf" if cfg.gate.mode == "lagrange" else "policy"
        seen = [self.gaps_of(e, t, cfg.gate.op, joint, T) for e, t in steps]
        self.weigh(
            [
                sum(sum(agents) / N for agents, _ in seen).item() / len(steps),
                sum(team for _, team in seen).item() / len(steps),
            ]
        )

        # The alternative
        none = cfg.munchausen.source == "none"
        trust = [1.0, 1.0] if cfg.munchausen.source == "self" else [self.trust[1], self.trust[0]]
        rho = [{}, {}]
        for e, t in steps if not none else []:
            for i in range(N):
                own = {a: slow_i[e, t, i, a] / tau[0] for a in self.allowed(e, t, i)}
                team = {a: v.detach() / tau[1] for a, v in self.counterfactual(learner.slow_critic, e, t, i).items()}
                policies = []
                for logits in (own, team):
                    top = max(v.item() for v in logits.values())
                    total = sum(math.exp(v.item() - top) for v in logits.values())
                    policies.append({a: v.item() - top - math.log(total) for a, v in logits.items()})
                if cfg.munchausen.source != "self":
                    policies.reverse()
                rho[0][e, t, i], rho[1][e, t, i] = policies

        def bonus(h, log_rho):
            clipped = min(max(tau[h] * log_rho, cfg.munchausen.l0 * self.reward_deviation[0]), 0.0)
            return cfg.munchausen.alpha * trust[h] * clipped

        def of_action(h, e, t, i):
            if cfg.munchausen.who == "author":
                return max(rho[h][e, t, (i + 1) % N].values())
            return rho[h][e, t, i][batch["actions"][e, t, i, 0].item()]

        # Targets
        soft = not none and cfg.munchausen.bootstrap == "soft"
        over_agents = sum if cfg.munchausen.who == "sum" else lambda values: sum(values) / N

        def entropy_of(p):
            return -sum(x * x.log() for x in p if x > 0)

        y_i, y_c = {}, {}
        for e, episode in enumerate(episodes):
            last_i, last_c = [None] * N, None
            for t in reversed(range(episode.length)):
                last = t == episode.length - 1
                ended = last and episode.end == "terminated"
                entropies = [entropy_of(p).item() for p in self.next_pi(e, t)] if not ended else [0.0] * N
                for i in range(N):
                    r = rewards[e, t] + (0.0 if none else bonus(0, of_action(0, e, t, i)))
                    if not ended:
                        v = sum(self.next_pi(e, t)[i][a].item() * target_i[e, t + 1, i, a].item()
                                for a in self.allowed(e, t + 1, i))  # fmt: skip
                        v += tau[0] * entropies[i] if soft else 0.0
                        following = v if last else last_i[i]
                        r += args.gamma * ((1 - args.td_lambda) * v + args.td_lambda * following)
                    last_i[i] = y_i[e, t, i] = r
                r = rewards[e, t]
                if not none:
                    r += bonus(1, over_agents([of_action(1, e, t, i) for i in range(N)]))
                if not ended:
                    v = self.q(learner.target_critic, self.next_actions(e, t, last), e, t + 1).item()
                    v += tau[1] * over_agents(entropies) if soft else 0.0
                    following = v if last else last_c
                    r += args.gamma * ((1 - args.td_lambda) * v + args.td_lambda * following)
                last_c = y_c[e, t] = r

        # Critics
        errors_i = [self.q_i[e, t, i, batch["actions"][e, t, i, 0]] - y_i[e, t, i] for e, t in steps for i in range(N)]
        errors_c = [self.q(learner.critic, self.taken(e, t), e, t) - y_c[e, t] for e, t in steps]
        td = [sum(0.5 * x**2 for x in errors) / len(errors) for errors in (errors_i, errors_c)]
        c = cfg.conservative
        means = [torch.zeros(()), torch.zeros(())]
        gaps = [self.gaps_of(e, t, c.op, c.joint, T) for e, t in steps]
        if c.alpha_independent > 0:
            means[0] = sum(sum(agents) / N for agents, _ in gaps) / len(steps)
        if c.alpha_cooperative > 0:
            means[1] = sum(team for _, team in gaps) / len(steps)
        if c.op == "policy":
            means = [max(mean, torch.zeros(())) for mean in means]
        penalties = []
        for h, alpha in enumerate((c.alpha_independent, c.alpha_cooperative)):
            if c.coefficient == "fixed":
                penalties.append(alpha * self.deviation[h] * means[h])
                continue
            excess = means[h] - c.threshold * self.deviation[h]
            penalties.append(alpha * math.exp(self.log_coefficients[h]) * self.deviation[h] * excess)
            climbed = self.log_coefficients[h] + c.eta * excess.item() / self.deviation[h]
            self.log_coefficients[h] = min(max(climbed, -c.l_max), c.l_max)
        on_penalty = cfg.gate.mode != "none" and cfg.gate.acts_on == "penalty"
        critics = [td[h] + (self.trust[h] if on_penalty else 1.0) * penalties[h] for h in range(2)]

        # Actors
        entropies, values, slopes, kl = [], [[], []], [[], []], 0.0
        for e, t in steps:
            p = [x.detach().clone().requires_grad_() for x in self.pi[e][t]]
            x = [x.detach().clone().requires_grad_() for x in self.acted(e, t)]
            own = sum((p[i] * self.q_i[e, t, i].detach()).sum() for i in range(N)) / N
            for h, (value, done) in enumerate(((own, p), (self.joint_value(e, t, x), x))):
                square = 0.0
                for i, g in enumerate(torch.autograd.grad(value, done)):
                    felt = [g[a].item() for a in self.allowed(e, t, i)]
                    square += sum((x - sum(felt) / len(felt)) ** 2 for x in felt)
                slopes[h].append(math.sqrt(square))
            pi = self.pi[e][t]
            values[0].append(sum((pi[i] * self.q_i[e, t, i].detach()).sum() for i in range(N)) / N)
            values[1].append(self.joint_value(e, t, self.acted(e, t)))
            entropies += [entropy_of(pi[i]) for i in range(N)]
            if not none:
                for h in range(2):
                    for i in range(N):
                        divergence = sum(
                            pi[i][a] * (pi[i][a].log() - rho[h][e, t, i][a]) for a in self.allowed(e, t, i)
                        )
                        kl = kl + cfg.munchausen.kl * trust[h] * tau[h] * divergence / len(steps)
        self.slopes = self.smooth(self.slopes, [sum(s) / len(s) for s in slopes])
        factors = [self.slopes[1] / self.slopes[0], 1.0]
        if cfg.gate.mode != "none":
            factors = [f * w for f, w in zip(factors, self.trust, strict=True)]
        mean_entropy = sum(entropies) / len(entropies)
        ascended = sum(f * sum(v) / len(v) for f, v in zip(factors, values, strict=True))
        actor = self.regulariser(steps) - ascended - args.entropy_coef * mean_entropy / mean_entropy.item() + kl

        now = [spread(y_i.values()), spread(y_c.values())]
        self.deviation = self.smooth(self.deviation, now)
        self.td = self.smooth(self.td, [x.item() for x in td])
        return {"critic": 2 * critics[1], "agent": actor, "independent": 2 * critics[0]}

    def state(self):
        return {
            "gap_ema": self.gaps,
            "td_ema": self.td,
            "target_std": self.deviation,
            "reward_std": self.reward_deviation[0],
            "log_multipliers": self.log_multipliers,
            "log_coefficients": self.log_coefficients,
            "weights": self.trust,
            "slope_ema": self.slopes,
        }


def compare(learner, loops):
    """Two batches, the networks moving in between; slow, target and online networks all differ.

    Returns:
        What the losses came to, so that no option is without effect on these batches.
    """
    outcome = []
    for k in range(2):
        shake(learner, seed=k)
        batch = random_batch(learner.args, seed=k, scale=1 + k, episodes=SHORT)
        torch.manual_seed(k)
        objective = learner.objective(batch)
        torch.manual_seed(k)
        losses = loops(batch, SHORT)
        assert objective.losses.keys() == losses.keys()
        for part, loss in losses.items():
            assert objective.losses[part].item() == pytest.approx(loss.item(), rel=1e-8), part
            theirs = torch.autograd.grad(loss, learner.params[part], retain_graph=True, allow_unused=True)
            ours = torch.autograd.grad(
                objective.losses[part], learner.params[part], retain_graph=True, allow_unused=True
            )
            for g, h in zip(ours, theirs, strict=True):
                torch.testing.assert_close(g, h, rtol=1e-6, atol=1e-9)
        for key, expected in loops.state().items():
            assert getattr(learner, key).tolist() == pytest.approx(expected, rel=1e-8, abs=1e-11), key
        outcome += [round(loss.item(), 9) for loss in losses.values()]
    return tuple(outcome)


FOUND: dict[tuple, str] = {}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", CASES)
def test_losses_gradients_and_running_values_are_those_of_the_nested_loops(name):
    learner = make_learner(greedy_args(**CASES[name]))
    assert FOUND.setdefault(compare(learner, Loops(learner)), name) == name


# The critic's value between actions


class Between(torch.nn.Module):
    """Q(p) = 1 - |p_1 - p_2| of one agent's probabilities: 0 at both actions, so that r = 0 is fitted exactly."""

    def __init__(self, scheme, args):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, policies, states):
        difference = (policies[..., 0, 0] - policies[..., 0, 1]).unsqueeze(-1)
        return self.scale * (1 - torch.relu(difference) - torch.relu(-difference))


class EvenMAC(WildLogitsMAC):
    """Both actions are equally likely, whatever the networks say, and both are always available."""

    def _to_output(self, outputs, avail_actions, test_mode):
        if self.agent_output_type != "pi_logits":
            return outputs
        even = torch.zeros_like(outputs)
        even[..., :2] = 0.5
        return even + 0 * outputs


def test_the_gap_sees_what_a_critic_invents_between_actions(monkeypatch):
    """Section 7 of docs/theory.md: the gap is 1, and the gate leaves the centralised critic."""
    from modules.critics import REGISTRY

    monkeypatch.setitem(REGISTRY, "between", Between)
    options = {"munchausen": {"source": "none"}, "gate": {"floor": 0.0, "prior_cooperative": 0.9, "p": 1.0}}
    learner = make_learner(greedy_args(critic="between", **options), mac_class=EvenMAC)
    batch = random_batch(learner.args, seed=1, scale=0.0)
    batch["actions"][:, :, 0] %= 2
    objective = learner.objective(batch)
    assert objective.stats["q_taken_mean"].item() == 0
    assert objective.stats["q_policy_mean"].item() == 1
    assert learner.gap_ema[1].item() == pytest.approx(1)
    assert objective.stats["td_loss_cooperative"].item() <= 0.5  # only the ends of cut episodes bootstrap on it
    assert objective.stats["penalty_cooperative"].item() > 0
    (slope,) = torch.autograd.grad(objective.terms["penalty_cooperative"], learner.critic.scale)
    assert slope.item() > 0  # descent lowers the invented value
    assert learner.weights[0].item() > learner.weights[1].item()


@pytest.mark.usefixtures("double")
def test_a_gap_that_is_negative_is_not_penalised():
    learner = make("direct")
    learner.critic.at = lambda states: lambda policies: (policies**2).sum(dim=(2, 3)).unsqueeze(2)  # largest at actions
    objective = learner.objective(random_batch(learner.args, seed=1))
    assert learner.gap_profile[1].max() <= 0
    assert objective.stats["penalty_cooperative"].item() == 0


# Scales


@pytest.mark.usefixtures("double")
def test_both_heads_pull_equally_hard_at_the_policies():
    learner = make("direct", **gate_of(ema=0.0))
    batch = random_batch(learner.args, seed=1)
    objective = learner.objective(batch)
    scale = objective.stats["slope_scale"].item()
    N = learner.args.n_agents
    gradient = scale * step_by_step(learner.independent, batch)[:, :-1].detach() / N
    mask = batch["filled"][:, 1:].double()
    avail = batch["avail_actions"][:, :-1].masked_fill(mask.unsqueeze(-1) == 0, 1)
    slope = policy_slope(gradient, avail, mask)
    assert slope.item() == pytest.approx(learner.slope_ema[1].item())


# Corruption

CORRUPTED = [
    *("direct", "lagrange, log-sum-exp", "td", "held penalty", "penalty of one agent at a time", "direct KL"),
    *("penalty to the behaviour", "own alternative", "neighbour's confidence", "log-sum-exp penalty"),
]


@pytest.mark.parametrize("case", CORRUPTED)
def test_padding_changes_nothing(case):
    found = []
    for corrupt in (False, True):
        learner = make(case)
        batch = random_batch(learner.args, seed=3, episodes=SHORT)
        objective = learner.objective(corrupt_padding(batch, SHORT) if corrupt else batch)
        found.append((objective.losses | objective.stats | gate_state(learner), gradients(learner, objective)))
    for clean, wild in zip(*found, strict=True):
        for key, value in clean.items():
            if value is not None:
                torch.testing.assert_close(value, wild[key], rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("case", CORRUPTED)
def test_what_networks_say_of_unavailable_actions_changes_nothing(case):
    found = []
    for wild in (0.0, 1e4):
        learner = make(case, mac_class=WildLogitsMAC)
        for mac in (learner.mac, learner.independent, learner.target_independent, learner.slow_independent):
            mac.wild = wild
        objective = learner.objective(random_batch(learner.args, seed=3, episodes=SHORT))
        found.append(objective.losses | gradients(learner, objective) | gate_state(learner))
    assert_equal(*found)


def test_a_terminal_observation_may_offer_no_action():
    learner = make("direct")
    clean = learner.objective(random_batch(learner.args, seed=3)).losses
    again = make("direct")
    bare = again.objective(without_last_actions(random_batch(again.args, seed=3))).losses
    assert_equal(clean, bare)


# Training


def learn(learner, batches, start=0):
    for k in range(batches):
        learner.train(random_batch(learner.args, seed=start + k), t_env=k, episode_num=k)


def test_neither_targets_nor_slow_copies_get_a_gradient():
    learner = make("direct KL")
    learn(learner, 1)
    for network in (learner.target_critic, learner.slow_critic, learner.target_independent.agent):
        assert all(parameter.grad is None for parameter in network.parameters())
    for value in gate_state(learner).values():
        assert value is None or not value.requires_grad


def test_slow_copies_follow_the_targets():
    learner = make("direct", target_update_interval=None, target_update_tau=0.5)
    before = weights(learner)
    learn(learner, 1)
    after = weights(learner)
    for key, old in before.items():
        if key.startswith("target_"):
            torch.testing.assert_close(after[key], 0.5 * old + 0.5 * after[key.removeprefix("target_")])
        elif key.startswith("slow_"):
            torch.testing.assert_close(after[key], 0.75 * old + 0.25 * after[key.replace("slow_", "target_")])


def test_same_seed_same_weights():
    def train(seed):
        learner = make_learner(greedy_args(), seed=seed)
        learn(learner, 4, start=seed)
        return weights(learner) | gate_state(learner)

    first = train(0)
    assert_equal(first, train(0))
    assert differs(first, train(1))


STATISTICS = {
    *("critic_loss", "agent_loss", "independent_loss", "td_error_abs", "td_error_abs_independent", "q_taken_mean"),
    *("critic_grad_norm", "agent_grad_norm", "independent_grad_norm", "target_mean", "q_policy_mean", "entropy"),
    *("pi_max", "realised_return", "slope_scale"),
    *(
        f"{name}_{head}"
        for name in ("td_loss", "penalty", "gap", "gate_weight", "target_std", "value", "munchausen_bonus")
        for head in ("independent", "cooperative")
    ),
}
DOCUMENTED = (Path(__file__).parents[2] / "docs" / "logged.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("case", "more"),
    [
        ("direct", set()),
        ("lagrange", {"multiplier_independent", "multiplier_cooperative"}),
        ("held penalty", {"penalty_coefficient_independent", "penalty_coefficient_cooperative"}),
    ],
)
def test_statistics_are_logged_and_documented(case, more):
    learner = make_learner(greedy_args(**CASES[case]))
    learn(learner, 1)
    assert set(learner.logger.stats) == STATISTICS | more
    for name in learner.logger.stats:
        of_head = re.sub("_(independent|cooperative)$", "_h", name)
        assert f"`{name}`" in DOCUMENTED or f"`{of_head}`" in DOCUMENTED, name


@pytest.mark.parametrize("case", ["direct", "lagrange", "td", "held penalty", "cloned behaviour"])
def test_a_loaded_learner_goes_on_as_if_nothing_had_happened(case, tmp_path):
    options = CASES.get(case, {"behaviour": {"source": "bc_rnn"}})
    args = greedy_args(target_update_interval=None, target_update_tau=0.1, **options)
    saved = make_learner(args)
    learn(saved, 3)
    saved.save_models(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {
        *("agent.th", "critic.th", "target_critic.th", "agent_opt.th", "critic_opt.th", "independent_opt.th"),
        *("statistics.th", "greedy.th"),
    }
    loaded = make_learner(args, seed=9)
    loaded.load_models(str(tmp_path))
    assert_equal(weights(loaded) | gate_state(loaded), weights(saved) | gate_state(saved))
    for learner in (saved, loaded):
        learn(learner, 3, start=3)
    assert_equal(weights(loaded) | gate_state(loaded), weights(saved) | gate_state(saved))


def test_a_lica_model_starts_what_it_lacks_anew(tmp_path):
    lica = make_learner(lica_args())
    shake(lica, seed=1)
    lica.save_models(str(tmp_path))
    greedy = make_learner(greedy_args(), seed=9)
    greedy.load_models(str(tmp_path))
    after, expected = weights(greedy), weights(lica)
    assert_equal({key: after[key] for key in expected}, expected)
    for key, value in after.items():
        if key.startswith("slow_critic"):
            assert torch.equal(value, expected[key.replace("slow_", "target_")]), key
    learn(greedy, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_loss_is_named_and_changes_nothing(value):
    learner = make_learner(greedy_args())
    learn(learner, 1)
    before = weights(learner) | gate_state(learner)
    bad = random_batch(learner.args, seed=1)
    bad["reward"][1, 0] = value
    with pytest.raises(NonFiniteError) as error:
        learner.train(bad, t_env=1, episode_num=10)
    assert error.value.culprit == "critic_loss"
    assert_equal(weights(learner) | gate_state(learner), before)
    learn(learner, 1)


def test_a_controller_of_pymarl_gives_the_same_losses():
    class Stepped(BasicMAC):
        unroll = property()  # hasattr is False

    fused, stepped = make("direct KL"), make("direct KL", mac_class=Stepped)
    batch = random_batch(fused.args, seed=1)
    ours, theirs = fused.objective(batch).losses, stepped.objective(batch).losses
    for part, loss in ours.items():
        torch.testing.assert_close(loss, theirs[part], rtol=1e-5, atol=1e-6)


def test_blocks_may_be_dicts_as_in_pymarl():
    args = greedy_args()
    blocks = {name: getattr(args, name).as_dict() for name in BLOCKS}
    found = []
    for learner in (make_learner(args), make_learner(make_args("greedy_lica", **SETTINGS, unchecked=blocks))):
        found.append(learner.objective(random_batch(args, seed=1, episodes=EPISODES)).losses)
    assert_equal(*found)
