"""What the options of greedy Q-learning promise: two networks, who acts, what was realised, learned behaviour, and that
every combination that the schema admits can be trained."""

import random
from functools import cache

import pytest
import torch
from greedy_cases import CASES, SHARED, SHORT, follow, greedy_args, separate, stored
from helpers import (
    EPISODES,
    Episode,
    assert_equal,
    corrupt_padding,
    gate_state,
    gradients,
    make_args,
    make_full_scheme,
    make_learner,
    random_batch,
    shake,
    values_on,
    weights,
)

from config.schema import METHOD_BLOCKS, _conflicts, freeze
from modules.behaviour import REGISTRY as behaviour_REGISTRY
from objectives.behaviour import model_loss
from utils.errors import UserError
from utils.networks import NonFiniteError

ALL_OFF = {
    "conservative": {"alpha_independent": 0.0, "alpha_cooperative": 0.0},
    "munchausen": {"source": "none"},
    "gate": {"mode": "none"},
}


# Shared experience

SHARING = {"none": {"share": "none", "obs_agent_id": False}, "groups": {"share": "groups", "share_groups": [1, 0, 1]}}


def naive_shared_loss(learner, batch, episodes, tau):
    """Pair after pair and step after step: agent j's Q-learning on agent i's episodes; tau None: hard values."""
    args, N = learner.args, learner.args.n_agents
    found = [mac.agent if learner.shared else mac.agent.independent for mac in (learner.mac, learner.target_mac)]
    total, count = 0, 0
    for j in range(N):
        for i in [i for i in range(N) if i != j]:
            q, q_target = (values_on(learner.mac, network, batch, i, j) for network in found)
            for e, episode in enumerate(episodes):
                for t in range(episode.length):
                    target = batch["reward"][e, t, 0].item()
                    if t < episode.length - 1 or episode.end != "terminated":
                        allowed = [k for k in range(args.n_actions) if batch["avail_actions"][e, t + 1, i, k] == 1]
                        following = q_target[e, t + 1, max(allowed, key=lambda k: q[e, t + 1, k].item())]
                        if tau is not None:
                            following = tau * (q_target[e, t + 1, allowed] / tau).logsumexp(0)
                        target += args.gamma * following.item()
                    total = total + (q[e, t, batch["actions"][e, t, i, 0]] - target) ** 2 / 2
                    count += 1
    return total / (count / (N - 1))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("sharing", [*SHARING.values(), {}], ids=[*SHARING, "all"])
@pytest.mark.parametrize("heads", [{}, separate("independent")], ids=["shared", "separate"])
@pytest.mark.parametrize("bootstrap", ["hard", "soft"])
def test_the_loss_on_others_experience_is_that_of_nested_loops(bootstrap, heads, sharing):
    options = {**heads, **sharing, "munchausen": {"alpha": 0.0, "bootstrap": bootstrap}}
    options["heads"] = {**heads.get("heads", {}), "shared_experience": 0.5}
    learner = make_learner(greedy_args(**options))
    shake(learner, seed=2)
    batch = random_batch(learner.args, seed=3)
    learner.objective(batch)  # scales the temperature
    tau = learner.cfg.munchausen.tau * learner.target_std[0].item() if bootstrap == "soft" else None
    step = learner._transitions(batch)
    found = learner._shared_loss(batch, step, step.reward)
    expected = naive_shared_loss(learner, batch, EPISODES, tau)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    for ours, theirs in zip(gradients(learner, found), gradients(learner, expected), strict=True):
        torch.testing.assert_close(ours, theirs)
    wild = corrupt_padding(random_batch(learner.args, seed=3), EPISODES)
    assert learner._shared_loss(wild, learner._transitions(wild), step.reward) == found


def test_what_is_shared_enters_with_the_independent_heads_loss():
    """The gate weighs it as it weighs that head; the bonus is that of the agent whose experience it is."""
    found = {}
    for weight in (0.0, 2.0):
        heads, gate = {"shared_experience": weight}, {"mode": "fixed", "weight_independent": 0.25}
        learner = make_learner(greedy_args(share="none", heads=heads, gate=gate))
        shake(learner, seed=2)
        found[weight] = learner.objective(random_batch(learner.args, seed=3))
    added = 0.25 * 2.0 * found[2.0].terms["shared_loss"]
    torch.testing.assert_close(found[2.0].loss, found[0.0].loss + added)
    assert "shared_loss" not in found[0.0].terms
    assert added > 0.01


# Units


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("normalise", [True, False])
def test_a_loss_in_other_units_weighs_the_same(normalise):
    """Of a mixer that says ten times as much, where nothing is earned: so does its target, and deviates as much."""
    found = []
    for factor in (1.0, 10.0):
        gate = {"mode": "fixed", "weight_independent": 0.25}
        heads = {"normalise_loss": normalise}
        learner = make_learner(greedy_args(heads=heads, gate=gate, munchausen={"source": "none"}))
        shake(learner, seed=2)
        for mixer in (learner.mixer, learner.target_mixer, learner.slow_mixer):
            for parameter in (*mixer.hyper_w_final[-1].parameters(), *mixer.V[-1].parameters()):
                parameter.data *= factor
        learner.target_std = torch.tensor([1.0, factor])
        batch = random_batch(learner.args, seed=3)
        batch["reward"].zero_()
        objective = learner.objective(batch)
        of_agent = torch.autograd.grad(objective.loss, list(learner.mac.parameters()), allow_unused=True)
        found.append((objective.terms["td_loss_cooperative"].item(), objective.loss.item(), of_agent))
    (td, loss, gradient), (td_10, loss_10, gradient_10) = found
    assert td_10 == pytest.approx(100 * td)
    assert (loss_10 == pytest.approx(loss)) == normalise
    pairs = zip(gradient, gradient_10, strict=True)
    assert all(a is b is None or torch.allclose(a, b) for a, b in pairs) == normalise


# Two networks


@pytest.mark.parametrize("td_lambda", [0.0, 0.6])
def test_two_networks_with_every_term_off_are_iql_and_qmix_side_by_side(td_lambda):
    greedy = make_learner(greedy_args(td_lambda=td_lambda, **separate("cooperative", **ALL_OFF)))
    iql, qmix = (make_learner(make_args(alg, **{**SHARED, "td_lambda": td_lambda}), seed=1) for alg in ("iql", "qmix"))
    shake(iql, seed=2)
    shake(qmix, seed=3)
    for mac, plain, other in ((greedy.mac, iql.mac, qmix.mac), (greedy.target_mac, iql.target_mac, qmix.target_mac)):
        mac.agent.independent.load_state_dict(plain.agent.state_dict())
        mac.agent.cooperative.load_state_dict(other.agent.state_dict())
    greedy.mixer.load_state_dict(qmix.mixer.state_dict())
    greedy.target_mixer.load_state_dict(qmix.target_mixer.state_dict())
    batch = random_batch(iql.args, seed=4)
    ours, theirs = greedy.objective(batch), [plain.objective(batch).loss for plain in (iql, qmix)]
    assert torch.equal(ours.terms["td_loss_independent"], theirs[0])
    assert torch.equal(ours.terms["td_loss_cooperative"], theirs[1])
    assert torch.equal(ours.loss, theirs[0] + theirs[1])
    found = gradients(greedy, ours.loss)
    expected = gradients(iql, theirs[0]) + gradients(qmix, theirs[1])
    assert len(found) == len(expected)  # the two networks and the mixer, in this order
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)


def test_the_mixers_values_are_those_of_the_cooperative_network():
    learner = make_learner(greedy_args(**separate()))
    shake(learner, seed=1)
    batch = random_batch(learner.args, seed=1)
    q, q_tot = learner.joint_values(batch)
    _, cooperative = learner.mac.unroll_heads(batch)
    assert torch.equal(q, cooperative)
    assert torch.equal(q_tot, learner.mixer(q.gather(3, batch["actions"]).squeeze(3), batch["state"]))


@pytest.mark.parametrize("mode", ["direct", "hard", "lagrange", "fixed"])
def test_the_head_that_the_gate_trusts_more_acts(mode):
    """heads.act=global; the other choices leave the acting head alone."""
    seen = set()
    for seed in range(12):
        gate = {"mode": mode, "weight_independent": [0.25, 0.5, 0.75][seed % 3], "joint": "cf", "eta": 5.0}
        learner = make_learner(greedy_args(**separate(gate=gate)), seed=seed)
        assert learner.mac.agent.acting == 1  # until the gate has seen a batch
        shake(learner, seed=seed)
        learner.train(random_batch(learner.args, seed=seed), t_env=0, episode_num=0)
        independent = bool(learner.weights[0] > learner.weights[1])
        assert learner.mac.agent.acting == (0 if independent else 1)
        seen.add(independent)
    assert seen == {False, True}


def test_the_gate_can_take_the_choice_back():
    """After rollouts, which each head played in turn."""
    learner = make_learner(greedy_args(**separate()))
    learner.train(random_batch(learner.args, seed=1), t_env=0, episode_num=0)
    chosen = learner.mac.agent.acting.clone()
    learner.mac.act_with(1 - chosen)
    learner.choose_actor()
    assert learner.mac.agent.acting == chosen


@pytest.mark.parametrize("act", ["independent", "cooperative", "agent", "distil"])
def test_otherwise_the_gate_does_not_say_who_acts(act):
    learner = make_learner(greedy_args(**separate(act)))
    batch = random_batch(learner.args, seed=1)
    before = learner.mac.unroll(batch)
    learner.objective(batch)
    for weights_ in ([1.0, 0.0], [0.0, 1.0]):
        learner.weights = torch.tensor(weights_)
        learner.choose_actor()
        assert torch.equal(learner.mac.unroll(batch), before)


@pytest.mark.parametrize(("act", "part"), [("agent", "switch"), ("distil", "actor")])
def test_imitation_teaches_the_imitator_and_nothing_else_does(act, part):
    learner = make_learner(greedy_args(**separate(act, munchausen={"kl": 0.5})))
    shake(learner, seed=1)
    objective = learner.objective(random_batch(learner.args, seed=1))
    imitator = {id(parameter) for parameter in getattr(learner.mac.agent, part).parameters()}
    rest = objective.loss - objective.terms["imitation_loss"]
    of_imitation = gradients_of(learner, objective.terms["imitation_loss"])
    for parameter, own, other in zip(learner.params, of_imitation, gradients_of(learner, rest), strict=True):
        assert own.any() == (id(parameter) in imitator)
        assert not (other.any() and id(parameter) in imitator)
    assert imitator <= {id(parameter) for parameter in learner.params}


def gradients_of(learner, loss):
    found = torch.autograd.grad(loss, learner.params, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(learner.params, found, strict=True)]


@pytest.mark.parametrize("act", ["agent", "distil"])
def test_imitation_learns_the_gates_choice(act):
    """On one batch again and again, with the heads held still."""
    learner = make_learner(greedy_args(**separate(act)), seed=1)
    shake(learner, seed=1, size=1.0)
    batch = random_batch(learner.args, seed=1, episodes=SHORT)
    imitator = learner.mac.agent.switch if act == "agent" else learner.mac.agent.actor
    optimiser = torch.optim.Adam(imitator.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = learner.objective(batch).terms["imitation_loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]


# What was realised


def rollout(**gate):
    gate = {"metric": "cert", "realised": "rollout", "mode": "hard", **gate}
    return greedy_args(**separate(gate=gate, munchausen={"bootstrap": "hard"}))


def expected_certificate(learner, batch, episodes, head):
    """Means over the episodes: the head's value of their starts, and what they earned, with the head's value of what
    was still to come where they were cut."""
    online, target = (mac.unroll_heads(batch)[head] for mac in (learner.mac, learner.target_mac))
    avail = batch["avail_actions"]
    best = online.masked_fill(avail == 0, -torch.inf).argmax(dim=3, keepdim=True)

    def team(q, mixer, e, t):
        values = q.gather(3, best)[e, t].view(1, 1, -1)
        return (mixer(values, batch["state"][e, t].view(1, 1, -1)) if head else values.mean()).item()

    promised, earned = [], []
    for e, episode in enumerate(episodes):
        promised.append(team(online, learner.mixer, e, 0))
        rewards = [batch["reward"][e, t].item() for t in range(episode.length)]
        if episode.end != "terminated":
            rewards.append(team(target, learner.target_mixer, e, episode.length))
        earned.append(sum(learner.args.gamma**t * reward for t, reward in enumerate(rewards)))
    return sum(promised) / len(promised), sum(earned) / len(earned)


def test_certificates_compare_promises_with_returns():
    learner = make_learner(rollout())
    shake(learner, seed=1)
    learner.objective(random_batch(learner.args, seed=2))  # a run plays after its first update
    episodes = (Episode(3, "terminated"), Episode(1, "terminated"), Episode(2, "early"), Episode(6, "limit"))
    values, excesses = [0.0, 0.0], [0.0, 0.0]
    for head in (1, 0, 1):
        batch = random_batch(learner.args, seed=head, episodes=episodes)
        batch["reward"].add_(5 * (1 - head))  # the independent head's play earns more than it says
        value, earned = expected_certificate(learner, batch, episodes, head)
        values[head], excesses[head] = value, value - earned
        learner.certify(head, batch)
        assert learner.value_ema.tolist() == pytest.approx(values, rel=1e-5)
        assert learner.excess_ema.tolist() == pytest.approx(excesses, rel=1e-5)
        assert learner.excess_known.tolist() == [float(excess != 0) for excess in excesses]
        for value in gate_state(learner).values():
            assert value is None or not value.requires_grad
    learner.objective(random_batch(learner.args, seed=3))
    assert learner.value_ema.tolist() == pytest.approx(values, rel=1e-5)  # nothing but a rollout changes them
    assert learner.excess_ema.tolist() == pytest.approx(excesses, rel=1e-5)
    certified = [value - max(excess, 0.0) for value, excess in zip(values, excesses, strict=True)]
    assert excesses[0] < 0
    independent = certified[0] > certified[1]
    assert learner.weights.tolist() == pytest.approx([0.9375, 0.0625] if independent else [0.0625, 0.9375])


def test_certificates_of_individual_rewards_are_the_teams():
    args = greedy_args(heads={"reward_independent": "individual"}, gate={"metric": "cert", "realised": "rollout"})
    learner = make_learner(args)
    batch = random_batch(args, seed=1)
    learner.objective(batch)
    learner.certify(0, batch)
    best = learner.mac.unroll(batch).masked_fill(batch["avail_actions"] == 0, -torch.inf).max(dim=3).values
    assert learner.value_ema[0].item() == pytest.approx(best[:, 0].sum(dim=1).mean().item(), rel=1e-5)


def test_certificates_leave_the_scale_of_rewards_alone():
    learner = make_learner(greedy_args(standardise_rewards=True))
    learner.objective(random_batch(learner.args, seed=1))
    before = learner.reward_moments.clone()
    learner.certify(0, random_batch(learner.args, seed=2, scale=100.0))
    assert torch.equal(learner.reward_moments, before)


@pytest.mark.parametrize("metric", ["over", "cert", "realised"])
def test_until_both_heads_have_been_measured_the_gaps_stand_in(metric):
    """As at the start of a run with rollouts, where updates come before the first of them."""
    batch = random_batch(rollout(), seed=1)
    by_gap = make_learner(greedy_args(**separate(gate={"mode": "hard"}, munchausen={"bootstrap": "hard"})))
    measured = make_learner(rollout(metric=metric))
    for learner in (by_gap, measured):
        learner.objective(batch)
    assert torch.equal(measured.weights, by_gap.weights)
    measured.certify(0, batch)
    for learner in (by_gap, measured):
        learner.objective(batch)
    assert torch.equal(measured.weights, by_gap.weights)


# Rewards and behaviour


def test_individual_rewards_must_be_there():
    learner = make_learner(greedy_args(heads={"reward_independent": "individual"}))
    with pytest.raises(UserError, match=r"reward_independent=individual: the batch has no individual_reward"):
        learner.objective(random_batch(greedy_args(), seed=1))


def test_with_team_rewards_individual_ones_are_not_read():
    learner = make_learner(greedy_args(), seed=1)
    batch = random_batch(greedy_args(heads={"reward_independent": "individual"}), seed=1)
    expected = make_learner(greedy_args(), seed=1).objective(random_batch(greedy_args(), seed=1)).loss
    assert torch.equal(learner.objective(batch).loss, expected)


@pytest.mark.parametrize("source", ["bc_rnn", "cvae_joint"])
def test_the_behaviour_model_takes_one_step_of_adam_on_its_own_loss_in_each_update(source):
    args = greedy_args(behaviour={"source": source})
    learner = make_learner(args)
    twin = behaviour_REGISTRY[source](learner.mac._get_input_shape(make_full_scheme(args)), args)
    twin.load_state_dict(learner.behaviour.state_dict())
    optimiser = torch.optim.Adam(twin.parameters(), lr=args.behaviour.lr)
    for k in range(3):
        batch = random_batch(args, seed=k)
        mask = batch["filled"][:, 1:].float()
        avail = batch["avail_actions"].masked_fill(batch["filled"].unsqueeze(-1) == 0, 1)[:, :-1]
        actions, inputs = batch["actions"][:, :-1], learner.mac._build_sequence_inputs(batch)[:-1]
        torch.manual_seed(k)
        log_beta, posterior = twin(inputs, avail, actions, mask)
        loss, stats = model_loss(log_beta, posterior, actions, mask, args.behaviour.kl_weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        torch.manual_seed(k)
        learner.train(batch, t_env=k, episode_num=k)
        assert_equal(learner.behaviour.state_dict(), twin.state_dict())
        if k == 0:
            logged = {key: values[0][1] for key, values in learner.logger.stats.items()}
            assert logged["behaviour_loss"] == pytest.approx(loss.item())
            for key, value in stats.items():
                assert logged[key] == pytest.approx(value.item())
    model = {id(parameter) for parameter in learner.behaviour.parameters()}
    assert not model & {id(parameter) for parameter in learner.params}


def test_stored_probabilities_must_be_there():
    learner = make_learner(greedy_args(**stored()))
    with pytest.raises(UserError, match=r"behaviour.source=stored: the batch has no field behaviour"):
        learner.objective(random_batch(greedy_args(), seed=1))


@pytest.mark.parametrize("case", ["separate, target", "cloned behaviour"])
def test_a_refused_update_changes_nothing(case):
    """Neither the head that acts nor the model of the behaviour policy."""
    learner = make_learner(greedy_args(**CASES[case]))
    learner.train(random_batch(learner.args, seed=1), t_env=0, episode_num=0)
    if case.startswith("separate"):
        learner.mac.act_with(1 - learner.mac.agent.acting)  # the gate would choose the other
    before = weights(learner) | gate_state(learner)
    bad = random_batch(learner.args, seed=2)
    bad["reward"][1, 0] = float("nan")
    with pytest.raises(NonFiniteError):
        learner.train(bad, t_env=1, episode_num=10)
    assert_equal(weights(learner) | gate_state(learner), before)


# Every combination

OPTIONS = {
    "heads": {
        "utilities": ["shared", "separate"],
        "act": ["shared", "independent", "cooperative", "global", "agent", "distil"],
        "reward_independent": ["team", "individual"],
        "normalise_loss": [False, True],
    },
    "conservative": {
        "alpha_independent": [0.0, 0.5],
        "alpha_cooperative": [0.0, 0.5],
        "op": ["max", "lse", "lse_beta", "lse_mean", "softmax", "uniform"],
        "joint": ["cf", "cf_weighted", "max", "sampled", "linear"],
        "coefficient": ["fixed", "lagrange"],
        "threshold": [0.5],
    },
    "gate": {
        "mode": ["direct", "hard", "lagrange", "fixed", "none"],
        "metric": ["gap", "over", "cert", "realised", "td"],
        "acts_on": ["loss", "penalty", "none"],
        "target": ["own", "min", "soft", "cert"],
        "op": ["max", "lse", "lse_beta", "lse_mean", "softmax", "uniform"],
        "joint": ["auto", "max", "cf", "cf_per_gain", "sampled", "linear"],
        "realised": ["match", "is", "rollout"],
        "form": ["exp", "gradient"],
        "threshold": [None, 0.5],
    },
    "munchausen": {
        "source": ["alt_counterfactual", "alt_utility", "self", "none"],
        "who": ["own", "sum", "others", "author"],
        "alpha": [0.0, 0.5],
        "kl": [0.0, 0.5],
        "clip": ["scaled", "unscaled"],
        "bootstrap": ["soft", "hard"],
    },
    "behaviour": {"source": ["empirical", "stored", "bc_rnn", "cvae_joint"]},
    "": {
        "learner": ["greedy_q_learner", "greedy_quantile_q_learner"],
        "quantiles": [1, 3],
        "mac": ["basic_mac", "gated_mac", "quantile_mac"],
        "agent": ["rnn", "mlp"],
        "mixer": ["qmix", "vdn", "vdn_mean", "qmix_concave"],
        "runner": ["vector", "episode"],
        "batch_size_run": [1],
        "td_lambda": [0.0, 0.5],
        "double_q": [True, False],
        "standardise_rewards": [False, True],
        "obs_agent_id": [True, False],
    },
}


# What quantiles need; among random choices that is rare.
QUANTILES = {
    "": {"learner": "greedy_quantile_q_learner", "mac": "quantile_mac", "quantiles": 3, "td_lambda": 0.0},
    "heads": {"utilities": "shared", "act": "shared"},
    "gate": {"target": "own"},
    "munchausen": {"bootstrap": "hard"},
}


@cache
def combinations(count=150):
    """Random choices of all options that the schema admits, as configurations; every fifth with quantiles."""
    rng = random.Random(0)
    base = greedy_args().as_dict()
    found = []
    while len(found) < count:
        config = {**base, **{block: dict(base[block]) for block in METHOD_BLOCKS}}
        for block, options in OPTIONS.items():
            chosen = {key: rng.choice(values) for key, values in options.items()}
            if len(found) % 5 == 0:
                chosen |= QUANTILES.get(block, {})
            (config[block] if block else config).update(chosen)
        if not any(_conflicts(config)):
            found.append(config)
    return found


def test_all_options_are_in_the_grid_and_in_the_combinations():
    for block, model in METHOD_BLOCKS.items():
        for key, spec in model.model_json_schema()["properties"].items():
            if "enum" in spec:
                of_values = set(spec["enum"]) - {"policy"}  # which actor-critics have
                assert set(OPTIONS[block][key]) == of_values, f"{block}.{key}"
    for block, options in OPTIONS.items():
        for key, values in options.items():
            chosen = {(config[block] if block else config)[key] for config in combinations()}
            assert chosen == set(values), f"{block}.{key}"


@pytest.mark.parametrize("number", range(150))
def test_every_combination_that_is_admitted_can_be_trained(number):
    config = combinations()[number]
    args = freeze(config)
    learner = make_learner(args)
    for k in range(3):
        batch = follow(learner, random_batch(args, seed=k, episodes=SHORT), SHORT)
        learner.train(batch, t_env=k * args.learner_log_interval, episode_num=k)
        if args.gate.realised == "rollout":  # as in a run, after an update
            for head in range(2):
                learner.certify(head, batch)
    for name, values in learner.logger.stats.items():
        assert all(torch.isfinite(torch.tensor(value)) for _, value in values), name
    assert len(learner.logger.stats["loss"]) == 3
    for name, value in (weights(learner) | gate_state(learner)).items():
        assert value is None or torch.isfinite(value).all(), name
    assert learner.weights.sum().item() == pytest.approx(1.0)
