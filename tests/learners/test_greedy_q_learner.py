"""Greedy Q-learning: its limits are QMIX and IQL bit for bit, and its objective is the method's, in nested loops."""

import math

import pytest
import torch
from helpers import (
    EPISODES,
    Episode,
    WildMAC,
    assert_equal,
    corrupt_padding,
    differs,
    gate_state,
    gradients,
    make_args,
    make_learner,
    random_batch,
    shake,
    step_by_step,
    weights,
    without_last_actions,
)

from utils.errors import UserError
from utils.networks import NonFiniteError

# Every setting that both kinds of learner have, so that configs can choose defaults of their own.
SHARED = {
    "optimizer": "rmsprop",
    "lr": 0.002,
    "lr_finish": None,
    "optim_alpha": 0.99,
    "optim_eps": 1e-5,
    "grad_norm_clip": 10,
    "gamma": 0.875,
    "double_q": True,
    "td_lambda": 0.0,
    "target_update_interval": 2,
    "target_update_tau": None,
}
BLOCKS = {
    "heads": {"utilities": "shared", "act": "shared", "reward_independent": "team"},
    "behaviour": {"source": "empirical"},
    "conservative": {
        "alpha_independent": 0.5,
        "alpha_cooperative": 0.75,
        "op": "lse",
        "temperature": 0.25,
        "joint": "cf",
        "coefficient": "fixed",
    },
    "gate": {
        "mode": "direct",
        "acts_on": "loss",
        "joint": "auto",
        "p": 1.5,
        "eps": 0.125,
        "prior_cooperative": 0.5,
        "ema": 0.75,
        "floor": 0.0625,
        "weight_independent": 0.25,
        "eta": 0.5,
        "l_max": 2.0,
    },
    "munchausen": {
        "source": "alt_counterfactual",
        "alpha": 0.5,
        "tau": 0.25,
        "l0": -0.5,
        "bootstrap": "soft",
        "alternative_ema": 0.25,
    },
}
OFF = {"conservative": {"alpha_independent": 0.0, "alpha_cooperative": 0.0}, "munchausen": {"source": "none"}}


def greedy_args(mixer="qmix", **overrides):
    """The settings above, with changes to single keys of blocks, as in gate={"mode": "hard"}, and of the top level."""
    blocks = {name: {**values, **overrides.pop(name, {})} for name, values in BLOCKS.items()}
    return make_args("greedy_qmix", mixer=mixer, **{**SHARED, **overrides}, **blocks)


def fixed(weight_independent, **overrides):
    """A gate of constant weights, and every other term off."""
    gate = {"mode": "fixed", "weight_independent": weight_independent}
    return greedy_args(gate=gate, **OFF, **overrides)


# The limits


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
@pytest.mark.parametrize("options", [{}, {"td_lambda": 0.6}, {"double_q": False, "grad_norm_clip": 0.1}])
@pytest.mark.parametrize("mixer", ["qmix", "vdn"])
def test_with_every_term_off_it_is_qmix_bit_for_bit(mixer, options, optimizer):
    greedy = make_learner(fixed(0.0, mixer=mixer, optimizer=optimizer, **options))
    plain = make_learner(make_args(mixer, **{**SHARED, "optimizer": optimizer, **options}))
    start = weights(plain)
    for k in range(6):
        batch = random_batch(plain.args, seed=k)
        ours, theirs = greedy.objective(batch).loss, plain.objective(batch).loss
        assert torch.equal(ours, theirs)
        for g, h in zip(gradients(greedy, ours), gradients(plain, theirs), strict=True):
            assert torch.equal(g, h)
        for learner in (greedy, plain):
            learner.train(batch, t_env=k, episode_num=k)
        after = weights(greedy)
        assert_equal({key: after[key] for key in weights(plain)}, weights(plain))
    assert differs(start, weights(plain))


@pytest.mark.parametrize("td_lambda", [0.0, 0.6])
def test_with_all_weight_on_the_independent_head_it_is_iql_on_the_utilities(td_lambda):
    options = {"td_lambda": td_lambda, "grad_norm_clip": 1e6}
    greedy = make_learner(fixed(1.0, **options))
    iql = make_learner(make_args("iql", **{**SHARED, **options}))
    mixer = {key: value for key, value in weights(greedy).items() if key.startswith("mixer")}
    for k in range(4):
        batch = random_batch(iql.args, seed=k)
        assert torch.equal(greedy.objective(batch).loss, iql.objective(batch).loss)
        for learner in (greedy, iql):
            learner.train(batch, t_env=k, episode_num=k)
        after = weights(greedy)
        assert_equal({key: after[key] for key in weights(iql)}, weights(iql))
    assert_equal({key: after[key] for key in mixer}, mixer)  # nothing pulls at the mixer


def test_every_term_that_is_switched_on_changes_the_loss():
    """Or else the bit for bit equality above would say nothing about the switches."""
    batch = random_batch(fixed(0.0), seed=1)

    def loss(**blocks):
        learner = make_learner(greedy_args(**{**OFF, "gate": {"mode": "fixed", "weight_independent": 0.0}, **blocks}))
        shake(learner, seed=2)
        return learner.objective(batch).loss.item()

    losses = [
        loss(),
        loss(gate={"mode": "fixed", "weight_independent": 0.25}),
        loss(gate={"mode": "none"}),
        loss(gate={"mode": "direct"}),
        loss(conservative={"alpha_independent": 0.0, "alpha_cooperative": 0.5}),
        loss(munchausen={"source": "alt_counterfactual", "bootstrap": "soft"}),
        loss(gate={"mode": "fixed", "weight_independent": 0.25}, munchausen={"bootstrap": "hard"}),
    ]
    assert len({round(value, 6) for value in losses}) == len(losses)


# The whole objective


def mix(mixer, values, state):
    return mixer(torch.stack(values).view(1, 1, -1), state.view(1, 1, -1)).squeeze()


def sup(values, op, temperature):
    if op == "max":
        return max(values)
    highest = max(value.item() for value in values)
    return highest + temperature * sum(((v - highest) / temperature).exp() for v in values).log()


def spread(values):
    values = [float(v) for v in values]
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))


class Reference:
    """The method's objective of one batch after another, in loops over episodes, steps, agents and actions."""

    def __init__(self, learner):
        self.learner, self.args = learner, learner.args
        self.gaps = self.target_std = self.reward_std = None
        self.log_multipliers = [0.0, 0.0]
        self.weights = [0.5, 0.5]
        if self.args.gate.mode == "fixed":
            w = self.args.gate.weight_independent
            self.weights = [w, 1 - w]

    def smooth(self, old, new):
        return new if old is None else self.args.gate.ema * old + (1 - self.args.gate.ema) * new

    def __call__(self, batch, episodes):
        args, learner = self.args, self.learner
        state, agents = batch["state"], range(args.n_agents)
        q = step_by_step(learner.mac, batch)
        q_target = step_by_step(learner.target_mac, batch).detach()
        q_slow = step_by_step(learner.slow_mac, batch).detach()
        steps = [(e, t) for e, episode in enumerate(episodes) for t in range(episode.length)]

        def taken(values, e, t):
            return [values[e, t, i, batch["actions"][e, t, i, 0]] for i in agents]

        def allowed(e, t, i):
            return [a for a in range(args.n_actions) if batch["avail_actions"][e, t, i, a] == 1]

        def counterfactual(mixer, values, e, t, i):
            """Q_tot of the available actions of agent i, while the others keep theirs; by action."""
            chosen = taken(values, e, t)
            return {
                k: mix(mixer, [values[e, t, i, k] if j == i else chosen[j] for j in agents], state[e, t])
                for k in allowed(e, t, i)
            }

        q_tot = {(e, t): mix(learner.mixer, taken(q, e, t), state[e, t]) for e, t in steps}

        # Scales
        rewards = {(e, t): batch["reward"][e, t, 0].item() for e, t in steps}
        self.reward_std = max(self.smooth(self.reward_std, spread(rewards.values())), 1e-3)
        if self.target_std is None:
            returns = []
            for e, episode in enumerate(episodes):
                for t in range(episode.length):
                    returns.append(sum(args.gamma ** (k - t) * rewards[e, k] for k in range(t, episode.length)))
            self.target_std = [max(spread(returns), 1e-3)] * 2

        # Gate
        gap_i, gap_c = [], []
        cf = args.gate.joint == "cf" or (args.gate.joint == "auto" and args.gate.mode == "lagrange")
        for e, t in steps:
            best = [max(q[e, t, i, a] for a in allowed(e, t, i)) for i in agents]
            gap_i += [(b - c).item() for b, c in zip(best, taken(q, e, t), strict=True)]
            if cf:
                for i in agents:
                    highest = max(counterfactual(learner.mixer, q, e, t, i).values())
                    gap_c.append((highest - q_tot[e, t]).item())
            else:
                gap_c.append((mix(learner.mixer, best, state[e, t]) - q_tot[e, t]).item())
        now = [sum(gap_i) / len(gap_i), sum(gap_c) / len(gap_c)]
        self.gaps = now if self.gaps is None else [self.smooth(a, b) for a, b in zip(self.gaps, now, strict=True)]
        self.update_weights(now)

        # Targets: the Munchausen bonus for what the other head would have done, and the values of what follows
        munchausen = args.munchausen
        tau = [munchausen.tau * scale for scale in self.target_std]
        values_i, values_c, bonus_i, bonus_c = {}, {}, {}, {}
        for e, t in steps:
            soft = munchausen.source != "none" and munchausen.bootstrap == "soft"
            following = {0: [], 1: []}
            for i in agents:
                can = allowed(e, t + 1, i)
                chooser = q.detach() if args.double_q else q_target
                best = max(can, key=lambda a: chooser[e, t + 1, i, a].item())
                for h in (0, 1):
                    following[h].append(
                        sup([q_target[e, t + 1, i, a] for a in can], "lse", tau[h])
                        if soft
                        else q_target[e, t + 1, i, best]
                    )
            values_i[e, t] = following[0]
            values_c[e, t] = mix(learner.target_mixer, following[1], state[e, t + 1]).detach()
            bonus_i[e, t], bonus_c[e, t] = [0.0] * args.n_agents, 0.0
            if munchausen.source == "none":
                continue
            l0, log_rho = munchausen.l0 * self.reward_std, []
            for i in agents:
                action = batch["actions"][e, t, i, 0].item()
                joint = counterfactual(learner.slow_mixer, q_slow, e, t, i)
                own = {k: q_slow[e, t, i, k] for k in allowed(e, t, i)}
                log_rho_c = (joint[action] - sup(list(joint.values()), "lse", tau[1])).item() / tau[1]
                log_rho.append((own[action] - sup(list(own.values()), "lse", tau[0])).item() / tau[0])
                clipped = min(0.0, max(l0, tau[0] * log_rho_c))
                bonus_i[e, t][i] = munchausen.alpha * self.weights[1] * clipped
            clipped = min(0.0, max(l0, tau[1] * sum(log_rho) / args.n_agents))
            bonus_c[e, t] = munchausen.alpha * self.weights[0] * clipped
        target_i, target_c = {}, {}
        for e, episode in enumerate(episodes):
            for t in reversed(range(episode.length)):
                last = t == episode.length - 1
                for i in agents:
                    following = values_i[e, t][i] if last else target_i[e, t + 1][i]
                    mixed = (1 - args.td_lambda) * values_i[e, t][i] + args.td_lambda * following
                    bootstrap = 0.0 if last and episode.end == "terminated" else args.gamma * mixed
                    target_i.setdefault((e, t), []).append(rewards[e, t] + bonus_i[e, t][i] + bootstrap)
                following = values_c[e, t] if last else target_c[e, t + 1]
                mixed = (1 - args.td_lambda) * values_c[e, t] + args.td_lambda * following
                bootstrap = 0.0 if last and episode.end == "terminated" else args.gamma * mixed
                target_c[e, t] = rewards[e, t] + bonus_c[e, t] + bootstrap

        # Losses
        errors_i = [q_a - y for where in steps for q_a, y in zip(taken(q, *where), target_i[where], strict=True)]
        errors_c = [q_tot[where] - target_c[where] for where in steps]
        td = [sum(0.5 * error**2 for error in errors) / len(errors) for errors in (errors_i, errors_c)]
        op, temperature = args.conservative.op, [args.conservative.temperature * scale for scale in self.target_std]
        excess = {0: [], 1: []}
        for e, t in steps:
            chosen = taken(q, e, t)
            for i in agents:
                own = [q[e, t, i, a] for a in allowed(e, t, i)]
                joint = list(counterfactual(learner.mixer, q, e, t, i).values())
                excess[0].append(sup(own, op, temperature[0]) - chosen[i])
                excess[1].append(sup(joint, op, temperature[1]) - q_tot[e, t])
        alphas = (args.conservative.alpha_independent, args.conservative.alpha_cooperative)
        penalty = [a * self.target_std[h] * sum(excess[h]) / len(excess[h]) for h, a in enumerate(alphas)]
        if args.gate.mode == "none":
            loss = sum(td) + sum(penalty)
        elif args.gate.acts_on == "loss":
            loss = sum(w * (a + b) for w, a, b in zip(self.weights, td, penalty, strict=True))
        else:
            loss = sum(a + w * b for w, a, b in zip(self.weights, td, penalty, strict=True))

        spreads = (spread([y for where in steps for y in target_i[where]]), spread(target_c.values()))
        self.target_std = [max(self.smooth(a, b), 1e-3) for a, b in zip(self.target_std, spreads, strict=True)]

        def mean(values):
            return sum(float(torch.as_tensor(v).detach()) for v in values) / len(values)

        stats = {
            "td_error_abs": mean([abs(error.item()) for error in errors_c]),
            "td_error_abs_independent": mean([abs(error.item()) for error in errors_i]),
            "q_taken_mean": mean(list(q_tot.values())),
            "target_mean": mean(list(target_c.values())),
            "munchausen_bonus_independent": mean([b for where in steps for b in bonus_i[where]]),
            "munchausen_bonus_cooperative": mean(list(bonus_c.values())),
        }
        for h, head in enumerate(("independent", "cooperative")):
            stats |= {f"td_loss_{head}": td[h], f"penalty_{head}": penalty[h]}
            stats |= {f"gap_{head}": self.gaps[h], f"gate_weight_{head}": self.weights[h]}
        return loss, {key: float(torch.as_tensor(value).detach()) for key, value in stats.items()}

    def update_weights(self, gaps):
        gate = self.args.gate
        if gate.mode == "direct":
            eps = gate.eps * sum(self.target_std) / 2
            priors = (1 - gate.prior_cooperative, gate.prior_cooperative)
            trust = [prior / (max(gap, 0) + eps) ** gate.p for prior, gap in zip(priors, self.gaps, strict=True)]
        elif gate.mode == "hard":
            independent = max(self.gaps[0], 0) <= max(self.gaps[1], 0)
            trust = [float(independent), float(not independent)]
        elif gate.mode == "lagrange":
            middle = sum(gaps) / 2
            moved = [log + gate.eta * (gap - middle) for log, gap in zip(self.log_multipliers, gaps, strict=True)]
            self.log_multipliers = [min(gate.l_max, max(-gate.l_max, log)) for log in moved]
            trust = [1 / math.exp(log) for log in self.log_multipliers]
        else:
            return
        self.weights = [gate.floor + (1 - 2 * gate.floor) * w / sum(trust) for w in trust]


CASES = {
    "direct": {},
    "direct, linear, no floor": {"gate": {"p": 1.0, "floor": 0.0, "eps": 0.01}},
    "direct, with a prior": {"gate": {"prior_cooperative": 0.875}},
    "direct on penalty": {"gate": {"acts_on": "penalty"}},
    "direct, counterfactual gap": {"gate": {"joint": "cf"}},
    "hard": {"gate": {"mode": "hard"}},
    "hard, counterfactual gap": {"gate": {"mode": "hard", "joint": "cf"}},
    "lagrange": {"gate": {"mode": "lagrange"}},
    "lagrange, clipped": {"gate": {"mode": "lagrange", "eta": 8.0, "l_max": 0.5}},
    "fixed": {"gate": {"mode": "fixed"}},
    "none": {"gate": {"mode": "none"}},
    "max penalty": {"conservative": {"op": "max"}},
    "one penalty": {"conservative": {"alpha_independent": 0.0, "alpha_cooperative": 2.0}},
    "hard bootstrap": {"munchausen": {"bootstrap": "hard"}},
    "hard bootstrap, no double-Q": {"munchausen": {"bootstrap": "hard"}, "double_q": False},
    "no munchausen": {"munchausen": {"source": "none"}},
    "wide clip": {"munchausen": {"l0": -50.0}},
    "TD(lambda)": {"td_lambda": 0.5},
    "VDN": {"mixer": "vdn"},
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", CASES)
def test_objective_gradient_and_statistics_are_those_of_the_nested_loops(name):
    """Two batches, the networks moving in between; slow, target and online networks all differ."""
    learner = make_learner(greedy_args(**CASES[name]))
    reference = Reference(learner)
    for k in range(2):
        shake(learner, seed=k)
        batch = random_batch(learner.args, seed=k, scale=1 + k)
        loss, stats = reference(batch, EPISODES)
        objective = learner.objective(batch)
        assert objective.loss.item() == pytest.approx(loss.item(), rel=1e-9)
        for ours, theirs in zip(gradients(learner, objective.loss), gradients(learner, loss), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)
        assert {key: value.item() for key, value in objective.stats.items()} == pytest.approx(stats, rel=1e-9)
        assert learner.target_std.tolist() == pytest.approx(reference.target_std, rel=1e-9)
        assert learner.reward_std.item() == pytest.approx(reference.reward_std, rel=1e-9)
        assert learner.log_multipliers.tolist() == pytest.approx(reference.log_multipliers, rel=1e-9)
        named = {"td_loss_independent", "penalty_independent", "td_loss_cooperative", "penalty_cooperative"}
        assert {key: value.item() for key, value in objective.terms.items()} == pytest.approx(
            {key: stats[key] for key in named}, rel=1e-9
        )


@pytest.mark.usefixtures("double")
def test_the_cases_differ_from_each_other():
    found = {}
    for name, case in CASES.items():
        learner = make_learner(greedy_args(**case))
        for k in range(2):
            shake(learner, seed=k)
            value = learner.objective(random_batch(learner.args, seed=k)).loss.item()
        found[name] = (round(value, 9), *learner.gap_ema.tolist())
    assert len(set(found.values())) == len(found), found


def test_equal_rewards_leave_the_scales_positive():
    learner = make_learner(greedy_args())
    batch = random_batch(learner.args, seed=1, scale=0.0)
    assert torch.isfinite(learner.objective(batch).loss)
    assert learner.reward_std.item() == pytest.approx(1e-3)
    assert (learner.target_std >= 1e-3).all()


# The gate


def gaps_of(learner, worst: bool):
    """A batch whose actions are all the best of the online network, or all the worst."""
    batch = random_batch(learner.args, seed=1)
    for _ in range(len(EPISODES) + 10):  # actions change what the agents see next, so one pass is not enough
        q = learner.mac.unroll(batch).detach()
        off = q.masked_fill(batch["avail_actions"] == 0, torch.inf if worst else -torch.inf)
        batch["actions"].copy_(
            (off.argmin(-1) if worst else off.argmax(-1)).unsqueeze(-1) * batch["filled"].unsqueeze(2)
        )
    return batch


@pytest.mark.usefixtures("double")
class TestGate:
    """A sum makes the gaps exact: the joint gap is N times the agents' gap, and the counterfactual gap equals it."""

    def learner(self, **gate):
        exact = {"p": 1.0, "eps": 1e-9, "floor": 0.0, "ema": 0.75}
        learner = make_learner(greedy_args(mixer="vdn", gate={**exact, **gate}))
        shake(learner, seed=1)
        return learner

    def test_reciprocal_weights(self):
        learner = self.learner()
        batch = gaps_of(learner, worst=True)
        learner.objective(batch)
        assert learner.gap_ema[1].item() == pytest.approx(3 * learner.gap_ema[0].item())
        assert learner.weights.tolist() == pytest.approx([3 / 4, 1 / 4], abs=1e-6)
        learner = self.learner(p=2.0)
        learner.objective(batch)
        assert learner.weights.tolist() == pytest.approx([9 / 10, 1 / 10], abs=1e-6)
        learner = self.learner(floor=0.2)
        learner.objective(batch)
        assert learner.weights.tolist() == pytest.approx([0.2 + 0.6 * 3 / 4, 0.2 + 0.6 / 4], abs=1e-6)
        learner = self.learner(joint="cf")
        learner.objective(batch)
        assert learner.weights.tolist() == pytest.approx([0.5, 0.5], abs=1e-6)

    def test_hard_weights(self):
        learner = self.learner(mode="hard", floor=0.05)
        learner.objective(gaps_of(learner, worst=True))
        assert learner.weights.tolist() == pytest.approx([0.95, 0.05])

    def test_data_of_the_best_actions_leaves_no_gap_and_the_prior_decides(self):
        for mode, prior, expected in (
            ("direct", 0.5, 0.5),
            ("direct", 0.9, 0.9),
            ("hard", 0.5, 0.0),
            ("hard", 0.9, 1.0),
        ):
            learner = self.learner(mode=mode, prior_cooperative=prior)
            learner.objective(gaps_of(learner, worst=False))
            assert learner.gap_ema.tolist() == pytest.approx([0, 0], abs=1e-12)
            assert learner.weights.tolist() == pytest.approx([1 - expected, expected])

    def test_weights_follow_the_smoothed_gaps_to_the_head_that_the_data_supports(self):
        learner = self.learner(eps=0.01)
        learner.objective(gaps_of(learner, worst=False))
        bad = gaps_of(learner, worst=True)
        q = learner.mac.unroll(bad).detach()  # the same in every call below
        taken = q.gather(3, bad["actions"]).squeeze(3)
        best = q.masked_fill(bad["avail_actions"] == 0, -torch.inf).max(-1).values
        step = (best - taken)[bad["filled"].squeeze(2).roll(-1, 1).bool() & (torch.arange(7) < 6)].mean().item()
        trust = []
        for k in range(1, 6):
            learner.objective(bad)
            assert learner.gap_ema.tolist() == pytest.approx([(1 - 0.75**k) * step, 3 * (1 - 0.75**k) * step])
            trust.append(learner.weights[0].item())
        assert 0.5 < trust[0] < trust[1] < trust[2] < trust[3] < trust[4] < 0.75

    def test_multipliers_climb_by_half_the_difference_of_the_gaps(self):
        learner = make_learner(greedy_args(gate={"mode": "lagrange", "eta": 0.5, "floor": 0.0, "l_max": 50.0}))
        shake(learner, seed=1)
        batch = gaps_of(learner, worst=True)
        logs = []
        for _ in range(3):
            learner.objective(batch)
            logs.append(learner.log_multipliers.tolist())
            total = math.exp(-logs[-1][0]) + math.exp(-logs[-1][1])
            assert learner.weights.tolist() == pytest.approx([math.exp(-log) / total for log in logs[-1]])
        gaps = learner.gap_ema.tolist()  # all batches were the same
        push = 0.5 * (gaps[0] - gaps[1]) / 2
        assert push != 0
        for k, (independent, cooperative) in enumerate(logs, start=1):
            assert [independent, cooperative] == pytest.approx([k * push, -k * push])

    def test_no_gradient_flows_through_the_weights_and_scales(self):
        learner = self.learner()
        learner.objective(random_batch(learner.args, seed=1))
        for value in gate_state(learner).values():
            assert not value.requires_grad


# Corruption


@pytest.mark.parametrize("mode", ["direct", "lagrange"])
def test_padding_changes_nothing(mode):
    found = []
    for corrupt in (False, True):
        learner = make_learner(greedy_args(gate={"mode": mode}, td_lambda=0.5))
        shake(learner, seed=2)
        batch = random_batch(learner.args, seed=3)
        objective = learner.objective(corrupt_padding(batch, EPISODES) if corrupt else batch)
        found.append((objective, gradients(learner, objective.loss), gate_state(learner)))
    (clean, clean_gradients, clean_gate), (wild, wild_gradients, wild_gate) = found
    torch.testing.assert_close(clean.loss, wild.loss, rtol=1e-6, atol=0)
    for key, value in clean.stats.items():
        torch.testing.assert_close(value, wild.stats[key], rtol=1e-5, atol=1e-7, msg=key)
    for ours, theirs in zip(clean_gradients, wild_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for key, value in clean_gate.items():
        torch.testing.assert_close(value, wild_gate[key], rtol=1e-5, atol=1e-7, msg=key)


@pytest.mark.parametrize("case", ["direct", "hard bootstrap", "no munchausen", "TD(lambda)", "VDN"])
def test_a_terminal_observation_may_offer_no_action(case):
    losses = []
    for change in (lambda batch: batch, without_last_actions):
        learner = make_learner(greedy_args(**CASES[case]))
        losses.append(learner.objective(change(random_batch(learner.args, seed=3))).loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("case", ["direct", "lagrange", "hard bootstrap", "max penalty", "VDN"])
def test_values_of_unavailable_actions_change_nothing(case):
    found = []
    for wild in (0.0, 1e4):
        learner = make_learner(greedy_args(**CASES[case]), mac_class=WildMAC)
        shake(learner, seed=2)
        learner.mac.wild = learner.target_mac.wild = learner.slow_mac.wild = wild
        batch = random_batch(learner.args, seed=3)
        objective = learner.objective(batch)
        found.append((objective.loss, gradients(learner, objective.loss), gate_state(learner)))
    assert torch.equal(found[0][0], found[1][0])
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        assert torch.equal(ours, theirs)
    assert_equal(found[0][2], found[1][2])


# Training


def test_slow_copies_follow_the_target_networks():
    args = greedy_args(target_update_interval=None, target_update_tau=0.5, munchausen={"alternative_ema": 0.25})
    learner = make_learner(args)
    shake(learner, seed=1)
    before = weights(learner)
    learner.train(random_batch(args, seed=1), t_env=0, episode_num=0)
    after = weights(learner)
    for key, old in before.items():
        if key.startswith("target_"):
            online = after[key.removeprefix("target_")]
            torch.testing.assert_close(after[key], 0.5 * old + 0.5 * online)
        elif key.startswith("slow_"):
            torch.testing.assert_close(after[key], 0.75 * old + 0.25 * after[key.replace("slow_", "target_")])


def test_same_seed_same_weights():
    def train(seed):
        learner = make_learner(greedy_args(), seed=seed)
        for k in range(5):
            learner.train(random_batch(learner.args, seed=seed + k), t_env=k, episode_num=k)
        return weights(learner) | gate_state(learner)

    first = train(0)
    assert_equal(first, train(0))
    assert differs(first, train(1))


def test_statistics_are_logged():
    learner = make_learner(greedy_args())
    learner.train(random_batch(learner.args, seed=1), t_env=0, episode_num=0)
    heads = ("td_loss", "penalty", "gap", "gate_weight", "munchausen_bonus")
    assert set(learner.logger.stats) == {
        "loss",
        "grad_norm",
        "td_error_abs",
        "td_error_abs_independent",
        "q_taken_mean",
        "target_mean",
        *(f"{name}_{head}" for name in heads for head in ("independent", "cooperative")),
    }


@pytest.mark.parametrize("mode", ["direct", "lagrange"])
def test_a_loaded_learner_goes_on_as_if_nothing_had_happened(mode, tmp_path):
    args = greedy_args(gate={"mode": mode})
    saved = make_learner(args)
    for k in range(4):
        saved.train(random_batch(args, seed=k), t_env=k, episode_num=k)
    saved.save_models(str(tmp_path))
    loaded = make_learner(args, seed=9)
    loaded.load_models(str(tmp_path))
    assert_equal(weights(loaded) | gate_state(loaded), weights(saved) | gate_state(saved))
    saved.last_target_update_episode = loaded.last_target_update_episode = 0  # a new run counts its episodes anew
    for k in range(4):
        for learner in (saved, loaded):
            learner.train(random_batch(args, seed=10 + k), t_env=k, episode_num=k)
    assert_equal(weights(loaded) | gate_state(loaded), weights(saved) | gate_state(saved))


def test_a_learner_can_be_saved_before_its_first_update(tmp_path):
    saved, loaded = make_learner(greedy_args()), make_learner(greedy_args(), seed=9)
    saved.save_models(str(tmp_path))
    loaded.load_models(str(tmp_path))
    assert_equal(weights(loaded) | gate_state(loaded), weights(saved) | gate_state(saved))
    batch = random_batch(saved.args, seed=1)
    assert torch.equal(loaded.objective(batch).loss, saved.objective(batch).loss)


def test_a_qmix_model_starts_the_slow_copies_anew(tmp_path):
    qmix = make_learner(make_args("qmix", **SHARED))
    shake(qmix, seed=1)
    qmix.save_models(str(tmp_path))
    greedy = make_learner(greedy_args(), seed=9)
    greedy.load_models(str(tmp_path))
    after, expected = weights(greedy), weights(qmix)
    for key, value in after.items():
        assert torch.equal(value, expected[key.replace("slow_", "target_")]), key


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_loss_is_named_and_changes_nothing(value):
    learner = make_learner(greedy_args())
    learner.train(random_batch(learner.args, seed=1), t_env=0, episode_num=0)
    before = weights(learner) | gate_state(learner)
    bad = random_batch(learner.args, seed=1)
    bad["reward"][1, 0] = value
    with pytest.raises(NonFiniteError, match="td_loss_independent") as error:
        learner.train(bad, t_env=1, episode_num=10)
    assert error.value.culprit == "td_loss_independent"
    assert set(error.value.terms) == {
        "td_loss_independent",
        "penalty_independent",
        "td_loss_cooperative",
        "penalty_cooperative",
        "gradient norm",
    }
    assert_equal(weights(learner) | gate_state(learner), before)


def test_without_a_mixer_it_is_refused():
    with pytest.raises(UserError, match="needs a mixer"):
        make_learner(make_args("greedy_qmix", unchecked={"mixer": None}))


def test_single_step_episodes_work():
    """The stateless games have nothing but first and last steps."""
    learner = make_learner(greedy_args())
    batch = random_batch(learner.args, seed=1, episodes=(Episode(1, "terminated"), Episode(1, "early")))
    learner.train(batch, t_env=0, episode_num=0)
    assert all(torch.isfinite(value).all() for value in weights(learner).values())
