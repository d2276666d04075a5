"""The greedy learner's objective, one number at a time: loops over episodes, steps, agents and actions.

Everything that follows from a batch is worked out from the equations of the method; nothing of `src` but the networks,
the controller's inputs of one step and the model of the behaviour policy is called.
"""

import math

import torch

HEADS = ("independent", "cooperative")
MEASURED = ("over", "cert", "realised")


def sup(values, op, temperature, beta=None):
    """The first term of a gap over the values (scalar tensors by action), from its definition."""
    numbers = list(values.values())
    if op == "max":
        return max(numbers)
    if op == "uniform":
        return sum(numbers) / len(numbers)
    highest = max(value.item() for value in numbers)
    powers = {k: ((value - highest) / temperature).exp() for k, value in values.items()}
    if op == "softmax":
        return sum(powers[k] * values[k] for k in values) / sum(powers.values())
    if op == "lse_beta":
        return highest + temperature * sum(beta[k] * powers[k] for k in values).log()
    total = sum(powers.values()) / (len(numbers) if op == "lse_mean" else 1)
    return highest + temperature * total.log()


def log_softmax(values, tau):
    total = sup(values, "lse", tau)
    return {k: (value - total) / tau for k, value in values.items()}


def standardise(values):
    numbers = list(values.values())
    mean = sum(numbers) / len(numbers)
    deviation = math.sqrt(sum((float(value) - float(mean)) ** 2 for value in numbers) / len(numbers))
    return {k: (value - mean) / (deviation if deviation > 1e-6 else 1.0) for k, value in values.items()}


def average(values):
    values = list(values)
    return sum(values) / len(values)


def number(value) -> float:
    return float(torch.as_tensor(value).detach())


def spread(values):
    values = [number(value) for value in values]
    return math.sqrt(average((value - average(values)) ** 2 for value in values))


def stepped(network, inputs):
    """A network on the inputs (R, I) of one step after another: (T, R, A)."""
    hidden = network.init_hidden().expand(len(inputs[0]), -1)
    outputs = []
    for step in inputs:
        values, hidden = network(step, hidden)
        outputs.append(values)
    return torch.stack(outputs)


class Networks:
    """What one set of networks says about a batch; head 0 is the independent one, head 1 the cooperative one."""

    def __init__(self, mac, mixer, batch):
        self.mac, self.mixer, self.batch = mac, mixer, batch
        self.N = mac.n_agents
        self.inputs = [mac._build_inputs(batch, t) for t in range(batch.max_seq_length)]  # each (B * N, I)
        shared = not hasattr(mac.agent, "independent")
        self.networks = [mac.agent] * 2 if shared else [mac.agent.independent, mac.agent.cooperative]
        self.q = [self.of(network) for network in dict.fromkeys(self.networks)]  # each (B, T+1, N, A)
        self.q = self.q * (2 if shared else 1)
        self.counterfactuals = {}

    def of(self, network, inputs=None):
        outputs = stepped(network, inputs or self.inputs)
        return outputs.view(len(outputs), -1, self.N, outputs.shape[-1]).transpose(0, 1)

    def of_agent(self, head, j):
        """The values that agent j would see on the history of every agent."""
        inputs = [step.clone() for step in self.inputs]
        for step in inputs:
            step[:, -self.N :] = torch.eye(self.N)[j]
        return self.of(self.networks[head], inputs)

    def mix(self, values, e, t):
        return self.mixer(torch.stack(list(values)).view(1, 1, -1), self.batch["state"][e, t].view(1, 1, -1)).squeeze()

    def allowed(self, e, t, i):
        avail = self.batch["avail_actions"][e, t, i].tolist()
        return [k for k, can in enumerate(avail) if can]

    def action(self, e, t, i):
        return self.batch["actions"][e, t, i, 0].item()

    def options(self, head, e, t, i, q=None):
        q = self.q[head] if q is None else q
        return {k: q[e, t, i, k] for k in self.allowed(e, t, i)}

    def taken(self, head, e, t):
        return [self.q[head][e, t, i, self.action(e, t, i)] for i in range(self.N)]

    def greedy(self, head, e, t):
        options = [self.options(head, e, t, i) for i in range(self.N)]
        return [max(values, key=lambda k, values=values: values[k].item()) for values in options]

    def best(self, head, e, t):
        return [self.q[head][e, t, i, k] for i, k in enumerate(self.greedy(head, e, t))]

    def total(self, e, t):
        return self.mix(self.taken(1, e, t), e, t)

    def counterfactual(self, e, t, i):
        """Q_tot of the available actions of agent i, while the others keep theirs."""
        if (e, t, i) not in self.counterfactuals:
            with torch.enable_grad():  # the gate only reads what the penalty differentiates
                kept = self.taken(1, e, t)
                self.counterfactuals[e, t, i] = {
                    k: self.mix([value if j == i else kept[j] for j in range(self.N)], e, t)
                    for k, value in self.options(1, e, t, i).items()
                }
        return self.counterfactuals[e, t, i]

    def gains(self, e, t):
        with torch.enable_grad():
            values = torch.stack([value.detach() for value in self.taken(1, e, t)]).requires_grad_()
            return torch.autograd.grad(self.mix(values, e, t), values)[0].tolist()


class Reference:
    """The method's objective of one batch after another, with a memory of its own."""

    def __init__(self, learner):
        self.learner, self.args = learner, learner.args
        self.individual = self.args.heads.reward_independent == "individual"
        self.gaps = self.values = self.td = self.target_std = self.reward_std = None
        self.excess, self.known = [0.0, 0.0], [0.0, 0.0]
        self.log_multipliers, self.log_coefficients = [0.0, 0.0], [0.0, 0.0]
        w = self.args.gate.weight_independent if self.args.gate.mode == "fixed" else 0.5
        self.weights = [w, 1 - w]

    def state(self) -> dict:
        """The memory by the learner's names."""
        return {
            "gap_ema": self.gaps,
            "value_ema": self.values,
            "excess_ema": self.excess,
            "excess_known": self.known,
            "td_ema": self.td,
            "target_std": self.target_std,
            "reward_std": self.reward_std,
            "log_multipliers": self.log_multipliers,
            "log_coefficients": self.log_coefficients,
            "weights": self.weights,
        }

    def __call__(self, batch, episodes):
        """The loss and the statistics of this batch. If the behaviour policy is learned, call the learner first."""
        args, learner = self.args, self.learner
        self.batch, self.episodes = batch, episodes
        self.steps = [(e, t) for e, episode in enumerate(episodes) for t in range(episode.length)]
        self.last = {(e, episode.length - 1): episode.end for e, episode in enumerate(episodes)}
        self.agents = range(args.n_agents)
        self.online = Networks(learner.mac, learner.mixer, batch)
        with torch.no_grad():
            self.target = Networks(learner.target_mac, learner.target_mixer, batch)
            self.slow = Networks(learner.slow_mac, learner.slow_mixer, batch)
        self.beta = self.behaviour_policy()
        self.reward = {where: batch["reward"][where].item() for where in self.steps}
        self.start_scales()
        with torch.no_grad():
            next_i, next_c = self.next_values()
            self.update_gate(next_i, next_c)
            self.tau = [args.munchausen.tau * scale for scale in self.target_std]
            bonus_i, bonus_c = self.bonuses()
            target_i, target_c = self.targets(next_i, next_c, bonus_i, bonus_c)

        errors_i = [q - y for s in self.steps for q, y in zip(self.online.taken(0, *s), target_i[s], strict=True)]
        errors_c = [self.online.total(*s) - target_c[s] for s in self.steps]
        td = [average(0.5 * error**2 for error in errors) for errors in (errors_i, errors_c)]
        penalty = self.penalties()
        regularised = [a + b for a, b in zip(td, self.divergences(), strict=True)]
        scaled = penalty
        if args.heads.normalise_loss:
            unit = (self.target_std[0] / self.target_std[1]) ** 2
            regularised, scaled = [regularised[0], unit * regularised[1]], [penalty[0], unit * penalty[1]]
        if args.gate.mode == "none" or args.gate.acts_on == "none":
            loss = sum(regularised) + sum(scaled)
        elif args.gate.acts_on == "loss":
            loss = sum(w * (a + b) for w, a, b in zip(self.weights, regularised, scaled, strict=True))
        else:
            loss = sum(a + w * b for w, a, b in zip(self.weights, regularised, scaled, strict=True))
        imitation = self.imitation()
        if imitation is not None:
            loss = loss + imitation

        spreads = (spread(y for s in self.steps for y in target_i[s]), spread(target_c.values()))
        self.target_std = [max(self.smooth(a, b), 1e-3) for a, b in zip(self.target_std, spreads, strict=True)]
        self.td = self.smooth_pair(self.td, [number(value) for value in td])
        stats = {
            "td_error_abs": average(abs(number(error)) for error in errors_c),
            "td_error_abs_independent": average(abs(number(error)) for error in errors_i),
            "q_taken_mean": average(number(self.online.total(*s)) for s in self.steps),
            "target_mean": average(target_c.values()),
            "munchausen_bonus_independent": average(b for s in self.steps for b in bonus_i[s]),
            "munchausen_bonus_cooperative": average(bonus_c.values()),
        }
        for h, head in enumerate(HEADS):
            stats |= {f"td_loss_{head}": td[h], f"penalty_{head}": penalty[h]}
        if imitation is not None:
            stats["imitation_loss"] = imitation
        return loss, {key: number(value) for key, value in (stats | self.gate_stats()).items()}

    # Scales

    def smooth(self, old, new):
        return new if old is None else self.args.gate.ema * old + (1 - self.args.gate.ema) * new

    def smooth_pair(self, old, new):
        return new if old is None else [self.smooth(a, b) for a, b in zip(old, new, strict=True)]

    def realised(self, e, t):
        """The discounted sum of the rewards that followed."""
        length = self.episodes[e].length
        return sum(self.args.gamma ** (k - t) * self.reward[e, k] for k in range(t, length))

    def start_scales(self):
        self.reward_std = max(self.smooth(self.reward_std, spread(self.reward.values())), 1e-3)
        if self.target_std is None:
            self.target_std = [max(spread(self.realised(*s) for s in self.steps), 1e-3)] * 2

    def team(self, values):
        values = list(values)
        return sum(values) / (1 if self.individual else len(values))

    # The behaviour policy and the gaps

    def behaviour_policy(self):
        """beta[e, t, i] as a dict of probabilities by action; None for the logged actions."""
        source, mac, batch = self.args.behaviour.source, self.learner.mac, self.batch
        if source == "empirical":
            return None
        if source == "stored":
            probabilities = batch["behaviour"]
        else:
            inputs = torch.stack([step.view(batch.batch_size, len(self.agents), -1) for step in self.online.inputs])
            avail = batch["avail_actions"].clone()
            avail[batch["filled"].squeeze(2) == 0] = 1
            mask = batch["filled"][:, 1:].to(inputs.dtype)
            model = self.learner.behaviour
            with torch.no_grad():
                probabilities = model.log_probs(inputs[:-1], avail[:, :-1], batch["actions"][:, :-1], mask).exp()
        return {
            (e, t, i): {k: probabilities[e, t, i, k].item() for k in self.online.allowed(e, t, i)}
            for e, t in self.steps
            for i in range(mac.n_agents)
        }

    def beta_of(self, e, t, i):
        return None if self.beta is None else self.beta[e, t, i]

    def expected(self, values, e, t, i):
        """E_beta of the values by action; of the logged action, if that is all that is known."""
        beta = self.beta_of(e, t, i)
        return values[self.online.action(e, t, i)] if beta is None else sum(beta[k] * v for k, v in values.items())

    def agent_gap(self, head, op, temperature, e, t, i):
        values = self.online.options(head, e, t, i)
        return sup(values, op, temperature, self.beta_of(e, t, i)) - self.expected(values, e, t, i)

    def joint_gap(self, joint, op, temperature, e, t):
        online = self.online
        if joint == "max":
            return online.mix(online.best(1, e, t), e, t) - online.total(e, t)
        gains = online.gains(e, t)
        if joint == "linear":
            return sum(gains[i] * self.agent_gap(1, op, temperature, e, t, i) for i in self.agents)
        if joint == "cf_weighted":
            return self.weighted_gap(op, temperature, e, t)
        gaps = []
        for i in self.agents:
            values = online.counterfactual(e, t, i)
            gaps.append(sup(values, op, temperature, self.beta_of(e, t, i)) - self.expected(values, e, t, i))
        return average(gaps) / (max(average(gains), 1e-3) if joint == "cf_per_gain" else 1.0)

    def weighted_gap(self, op, temperature, e, t):
        """CFCQL's: each agent weighs by exp of its greedy policy's divergence from the behaviour."""
        sups, shares = [], []
        for i in self.agents:
            values, beta = self.online.counterfactual(e, t, i), self.beta_of(e, t, i)
            policy = {k: math.exp(number(v) / number(temperature)) for k, v in values.items()}
            policy = {k: p / sum(policy.values()) for k, p in policy.items()}
            divergence = sum(p * math.log(p / max(beta[k], 1e-5)) for k, p in policy.items())
            shares.append(math.exp(self.args.conservative.shift_weight * divergence))
            sups.append(sup(values, op, temperature, beta))
        return sum(w * s for w, s in zip(shares, sups, strict=True)) / sum(shares) - self.online.total(e, t)

    # The gate

    def update_gate(self, next_i, next_c):
        gate = self.args.gate
        temperature = [self.args.conservative.temperature * scale for scale in self.target_std]
        joint = gate.joint
        if joint == "auto":
            joint = "cf" if gate.mode == "lagrange" else "max"
        self.gap_of = {}  # the team's gaps by step
        for e, t in self.steps:
            own = [number(self.agent_gap(0, gate.op, temperature[0], e, t, i)) for i in self.agents]
            self.gap_of[e, t] = (self.team(own), number(self.joint_gap(joint, gate.op, temperature[1], e, t)))
        gaps = [average(self.gap_of[s][h] for s in self.steps) for h in range(2)]
        self.gaps = self.smooth_pair(self.gaps, gaps)
        self.value_of = {s: (number(self.team(self.online.best(0, *s))), self.best_total(*s)) for s in self.steps}
        starts = [(e, 0) for e in range(len(self.episodes))]
        values = [average(self.value_of[s][h] for s in starts) for h in range(2)]
        self.values = self.smooth_pair(self.values, values)
        if gate.metric in MEASURED or gate.target == "cert":
            following = {s: (self.team(next_i[s]), next_c[s]) for s in self.steps}
            for h in range(2):
                self.measure(h, following)
        self.update_weights(gaps)

    def best_total(self, e, t):
        return number(self.online.mix(self.online.best(1, e, t), e, t))

    def follows(self, h, e, t):
        return self.online.greedy(h, e, t) == [self.online.action(e, t, i) for i in self.agents]

    def measure(self, h, following):
        """How far the head's values stand above what rows, or rests of episodes, that followed it were worth."""
        gate, rows = self.args.gate, []
        for e, t in self.steps:
            length, end = self.episodes[e].length, self.episodes[e].end
            if gate.realised == "match":
                if self.follows(h, e, t):
                    ended = t == length - 1 and end == "terminated"
                    after = 0.0 if ended else self.args.gamma * following[e, t][h]
                    rows.append((1.0, self.value_of[e, t][h] - self.reward[e, t] - after))
            elif all(self.follows(h, e, k) for k in range(t, length)):
                ratio = 1.0
                for k in range(t, length):
                    for i in self.agents:
                        ratio /= self.beta[e, k, i][self.online.action(e, k, i)]
                after = 0.0 if end == "terminated" else self.args.gamma ** (length - t) * following[e, length - 1][h]
                excess = self.value_of[e, t][h] - self.realised(e, t) - after
                rows.append((min(ratio, gate.importance_clip), excess))
        if len(rows) < gate.min_rows:
            return
        excess = sum(weight * value for weight, value in rows) / sum(weight for weight, _ in rows)
        self.excess[h] = number(self.smooth(self.excess[h] if self.known[h] else None, excess))
        self.known[h] = 1.0

    def certified(self, values):
        return [value - max(excess, 0) for value, excess in zip(values, self.excess, strict=True)]

    def promised(self, values):
        """What the gate compares: certified values, or what the heads' greedy play earns."""
        if self.args.gate.metric == "cert":
            return self.certified(values)
        return [value - excess for value, excess in zip(values, self.excess, strict=True)]

    def update_weights(self, gaps):
        gate = self.args.gate
        statistic, of_batch = self.gaps, gaps
        if gate.metric == "td":
            statistic = of_batch = [loss / average(self.target_std) for loss in self.td or [0.0, 0.0]]
        elif gate.metric == "over" and all(self.known):
            statistic = of_batch = [max(excess, 0) for excess in self.excess]
        elif gate.metric in ("cert", "realised") and all(self.known):
            promised = self.promised(self.values)
            statistic = of_batch = [max(promised) - value for value in promised]
        scale = average(self.target_std)
        if gate.mode == "direct":
            priors = (1 - gate.prior_cooperative, gate.prior_cooperative)
            eps = gate.eps * scale
            trust = [prior / (max(g, 0) + eps) ** gate.p for prior, g in zip(priors, statistic, strict=True)]
        elif gate.mode == "hard":
            a, b = (max(g, 0) for g in statistic)
            independent = a < b or (a == b and gate.prior_cooperative <= 0.5)
            trust = [float(independent), float(not independent)]
        elif gate.mode == "lagrange":
            relative = [value / scale for value in of_batch]
            threshold = average(relative) if gate.threshold is None else gate.threshold
            for h in range(2):
                rate = gate.eta * (math.exp(self.log_multipliers[h]) if gate.form == "gradient" else 1.0)
                moved = self.log_multipliers[h] + rate * (relative[h] - threshold)
                self.log_multipliers[h] = min(gate.l_max, max(-gate.l_max, moved))
            trust = [1 / math.exp(log) for log in self.log_multipliers]
        else:
            return
        self.weights = [gate.floor + (1 - 2 * gate.floor) * w / sum(trust) for w in trust]

    def gate_stats(self):
        gate, online = self.args.gate, self.online
        stats = {"realised_return": average(self.realised(*s) for s in self.steps)}
        for h, head in enumerate(HEADS):
            stats |= {f"gap_{head}": self.gaps[h], f"gate_weight_{head}": self.weights[h]}
            stats[f"target_std_{head}"] = self.target_std[h]
            stats[f"value_{head}"] = average(self.value_of[s][h] for s in self.steps)
            if gate.metric in MEASURED or gate.target == "cert":
                stats[f"excess_{head}"] = self.excess[h]
            if gate.mode == "lagrange":
                stats[f"multiplier_{head}"] = math.exp(self.log_multipliers[h])
            if self.args.conservative.coefficient == "lagrange":
                stats[f"penalty_coefficient_{head}"] = math.exp(self.log_coefficients[h])
        pairs = [zip(online.greedy(1, *s), self.target.greedy(1, *s), strict=True) for s in self.steps]
        stats["greedy_change"] = average(now != before for pair in pairs for now, before in pair)
        if self.args.heads.utilities == "separate":
            stats["heads_disagree"] = average(online.greedy(0, *s) != online.greedy(1, *s) for s in self.steps)
        return stats

    # Targets

    def next_values(self):
        """What both heads bootstrap on after each step: of every agent, and of the team."""
        munchausen, how = self.args.munchausen, self.args.gate.target
        soft = munchausen.source != "none" and munchausen.bootstrap == "soft"
        next_i, next_c = {}, {}
        for e, t in self.steps:
            following = []
            for h in range(2):
                chooser = self.online if self.args.double_q else self.target
                best = chooser.greedy(h, e, t + 1)
                tau = munchausen.tau * self.target_std[h]
                following.append(
                    [
                        sup(self.target.options(h, e, t + 1, i), "lse", tau)
                        if soft
                        else self.target.q[h][e, t + 1, i, k]
                        for i, k in enumerate(best)
                    ]
                )
            next_i[e, t] = [number(value) for value in following[0]]
            next_c[e, t] = number(self.target.mix(following[1], e, t + 1))
            if how != "own":
                values = (self.team(next_i[e, t]), next_c[e, t])
                gated = {
                    "min": min(values),
                    "soft": self.weights[0] * values[0] + self.weights[1] * values[1],
                    "cert": max(self.certified(values)) if all(self.known) else min(values),
                }[how]
                next_i[e, t], next_c[e, t] = [gated] * len(self.agents), gated
        return next_i, next_c

    def targets(self, next_i, next_c, bonus_i, bonus_c):
        args, target_i, target_c = self.args, {}, {}
        for e, t in reversed(self.steps):
            ends, terminated = (e, t) in self.last, self.last.get((e, t)) == "terminated"

            def target(reward, value, later, ends=ends, terminated=terminated):
                mixed = value if ends else (1 - args.td_lambda) * value + args.td_lambda * later
                return reward + (0.0 if terminated else args.gamma * mixed)

            later_i, later_c = target_i.get((e, t + 1), [None] * len(self.agents)), target_c.get((e, t + 1))
            reward = self.reward[e, t]
            own = self.batch["individual_reward"][e, t].tolist() if self.individual else [reward] * len(self.agents)
            target_i[e, t] = [target(own[i] + bonus_i[e, t][i], next_i[e, t][i], later_i[i]) for i in self.agents]
            target_c[e, t] = target(reward + bonus_c[e, t], next_c[e, t], later_c)
        return target_i, target_c

    # Munchausen

    def policy(self, kind, e, t, i, q=None):
        """log rho of agent i by action: independent, counterfactual, or of the cooperative utilities."""
        if kind == "counterfactual":
            return log_softmax(self.slow.counterfactual(e, t, i), self.tau[1])
        values = self.slow.options(0 if kind == "independent" else 1, e, t, i, q)
        if kind == "independent":
            return log_softmax(values, self.tau[0])
        return log_softmax(standardise(values), self.args.munchausen.tau)

    def kinds(self):
        """Whose policy each head is regularised toward."""
        munchausen = self.args.munchausen
        cooperative = "counterfactual"
        if munchausen.source == "alt_utility" or munchausen.who == "others":
            cooperative = "utility" if self.args.heads.utilities == "separate" else "independent"
        return ("independent", cooperative) if munchausen.source == "self" else (cooperative, "independent")

    def trusts(self):
        return (1.0, 1.0) if self.args.munchausen.source == "self" else (self.weights[1], self.weights[0])

    def log_rho(self, kind, e, t, i):
        """What the policies of this kind say about what agent i did."""
        who, N = self.args.munchausen.who, len(self.agents)
        if who == "author":
            return max(self.policy(kind, e, t, (i + 1) % N).values())
        action = self.slow.action(e, t, i)
        if who != "others":
            return self.policy(kind, e, t, i)[action]
        others = [j for j in self.agents if j != i]
        return average(self.policy(kind, e, t, i, self.as_agent(kind, j))[action] for j in others)

    def as_agent(self, kind, j):
        if (kind, j) not in self.swapped:
            self.swapped[kind, j] = self.slow.of_agent(0 if kind == "independent" else 1, j)
        return self.swapped[kind, j]

    def bonuses(self):
        munchausen, bonus_i, bonus_c = self.args.munchausen, {}, {}
        self.swapped = {}

        def bonus(h, log_rho):
            if munchausen.clip == "scaled":
                clipped = min(0.0, max(munchausen.l0 * self.reward_std, self.tau[h] * log_rho))
            else:
                clipped = self.tau[h] * min(0.0, max(munchausen.l0, log_rho))
            return munchausen.alpha * self.trusts()[h] * clipped

        for e, t in self.steps:
            bonus_i[e, t], bonus_c[e, t] = [0.0] * len(self.agents), 0.0
            if munchausen.source == "none":
                continue
            kind_i, kind_c = self.kinds()
            bonus_i[e, t] = [bonus(0, number(self.log_rho(kind_i, e, t, i))) for i in self.agents]
            said = [number(self.log_rho(kind_c, e, t, i)) for i in self.agents]
            bonus_c[e, t] = bonus(1, sum(said) if munchausen.who == "sum" else average(said))
        return bonus_i, bonus_c

    def divergences(self):
        """The direct regulariser of each head: kl, times trust, times tau, times KL(pi || rho)."""
        munchausen = self.args.munchausen
        if munchausen.kl == 0:
            return [0.0, 0.0]
        terms = []
        for h, kind in enumerate(self.kinds()):
            found = []
            for e, t in self.steps:
                for i in self.agents:
                    values = self.online.counterfactual(e, t, i) if h else self.online.options(0, e, t, i)
                    pi, rho = log_softmax(values, self.tau[h]), self.policy(kind, e, t, i)
                    found.append(sum(pi[k].exp() * (pi[k] - number(rho[k])) for k in pi))
            terms.append(munchausen.kl * self.trusts()[h] * self.tau[h] * average(found))
        return terms

    # Penalties and imitation

    def penalties(self):
        cfg = self.args.conservative
        penalties = []
        for h, alpha in enumerate((cfg.alpha_independent, cfg.alpha_cooperative)):
            scale = self.target_std[h]
            temperature = cfg.temperature * scale
            if alpha == 0:
                gap = torch.zeros(())
            elif h == 0:
                gap = average(self.agent_gap(0, cfg.op, temperature, *s, i) for s in self.steps for i in self.agents)
            else:
                gap = average(self.joint_gap(cfg.joint, cfg.op, temperature, *s) for s in self.steps)
            if cfg.coefficient == "fixed":
                penalties.append(alpha * scale * gap)
                continue
            excess = gap - cfg.threshold * scale
            coefficient = min(math.exp(self.log_coefficients[h]), cfg.coefficient_max)
            penalties.append(alpha * coefficient * scale * excess)
            moved = self.log_coefficients[h] + cfg.eta * number(excess) / scale
            self.log_coefficients[h] = min(cfg.l_max, max(-cfg.l_max, moved))
        return penalties

    def imitation(self):
        """Cross-entropy of the switches' choice of the head, or of the actors' actions, with those of the gate."""
        act, agent = self.args.heads.act, self.learner.mac.agent
        if act not in ("agent", "distil"):
            return None
        losses = []
        logits = self.online.of(agent.actor) if act == "distil" else None
        for e, t in self.steps:
            metric = self.args.gate.metric
            if metric in ("cert", "realised") and all(self.known):
                promised = self.promised(self.value_of[e, t])
                independent = promised[0] > promised[1]
            elif metric in ("gap", "cert", "realised"):
                independent = self.gap_of[e, t][0] < self.gap_of[e, t][1]
            else:
                independent = self.weights[0] > self.weights[1]
            wanted = self.online.greedy(0 if independent else 1, e, t)
            for i in self.agents:
                if act == "distil":
                    losses.append(-log_softmax(self.online.options(None, e, t, i, logits), 1.0)[wanted[i]])
                else:
                    logit = agent.switch(self.online.inputs[t])[e * len(self.agents) + i, 0]
                    chance = 1 / (1 + (-logit).exp())
                    losses.append(-(chance if independent else 1 - chance).log())
        return average(losses)
