"""Greedy MADDPG: with every term off it is MADDPG bit for bit, and its losses are the method's, in nested loops.

The loops are greedy LICA's but for what the critic is asked: at actions that are drawn, not at probabilities.
"""

import pytest
import torch
from helpers import assert_equal, corrupt_padding, differs, gate_state, make_learner, random_batch, shake, weights
from test_greedy_lica_learner import CASES, CORRUPTED, OFF, SHORT, Loops, compare, greedy_args
from test_lica_learner import WildLogitsMAC, gradients, policies_of
from test_maddpg_learner import (
    SETTINGS,
    ActingOn,
    drawn,
    learn,
    logits_squared,
    losses_of,
    maddpg_args,
    noises,
    one_hot,
    relaxed,
)


def greedy_maddpg_args(**changes):
    return greedy_args("greedy_maddpg", SETTINGS, **changes)


def fixed(weight_independent, **changes):
    """A gate of constant weights, and every other term off."""
    gate = {"mode": "fixed", "weight_independent": weight_independent}
    return greedy_maddpg_args(gate=gate, **OFF, **changes)


def make(case, seed=2, mac_class=None):
    learner = make_learner(greedy_maddpg_args(**CASES[case]), mac_class=mac_class)
    shake(learner, seed=seed)
    return learner


# The limit


@pytest.mark.parametrize("options", [{}, {"td_lambda": 0.5, "grad_norm_clip": 0.01}, {"optimizer": "rmsprop"}])
def test_with_every_term_off_it_is_maddpg_bit_for_bit(options):
    greedy, plain = make_learner(fixed(0.0, **options)), make_learner(maddpg_args(**options))
    start = weights(plain)
    for k in range(6):
        batch = random_batch(plain.args, seed=k)
        ours, theirs = losses_of(greedy, batch), losses_of(plain, batch)
        found, expected = gradients(greedy, ours), gradients(plain, theirs)
        for part, loss in theirs.losses.items():
            assert torch.equal(ours.losses[part], loss), part
        assert_equal({key: found[key] for key in expected}, expected)
        state = torch.get_rng_state()
        for learner in (greedy, plain):
            torch.set_rng_state(state)
            learner.train(batch, t_env=k, episode_num=100 * k)
        after = weights(greedy)
        assert_equal({key: after[key] for key in weights(plain)}, weights(plain))
    assert differs(start, weights(plain))


def test_it_draws_no_random_number_that_maddpg_does_not():
    """So that whole runs with every term off are MADDPG's, too."""
    found = []
    for args in (fixed(0.0), maddpg_args()):
        learner = make_learner(args)
        learner.train(random_batch(args, seed=1), t_env=0, episode_num=0)
        found.append(torch.get_rng_state())
    assert torch.equal(*found)


def test_what_both_configs_set_is_the_same():
    greedy, plain = greedy_maddpg_args().as_dict(), maddpg_args().as_dict()
    assert {key for key in plain if plain[key] != greedy[key]} == {"name", "learner"}


# The losses


class SampledLoops(Loops):
    """What MADDPG's critic is asked instead."""

    def begin(self):
        self.now, self.following = noises(self.learner, self.batch, torch.initial_seed())
        self.pi_target = policies_of(ActingOn(self.learner, self.learner.target_mac), self.batch)

    def draw(self, policies, noise):
        return [one_hot(self.learner, drawn(self.learner, p.detach(), noise[i])) for i, p in enumerate(policies)]

    def policies_at_once(self, e, t):
        return self.draw(self.pi[e][t], self.now[e, t])

    def own_policy(self, e, t, i):
        p = self.pi[e][t][i].detach()
        return sum(p[k] * v for k, v in self.counterfactual(self.learner.critic, e, t, i).items())

    def next_pi(self, e, t):
        return self.pi_target[e][t + 1]

    def next_actions(self, e, t, last):
        return self.draw(self.pi_target[e][t + 1], self.following[e, t])

    def acted(self, e, t):
        return [relaxed(self.learner, p, self.now[e, t, i]) for i, p in enumerate(self.pi[e][t])]

    def joint_value(self, e, t, acted):
        values = []
        for i in range(self.args.n_agents):
            joint = self.taken(e, t)
            joint[i] = acted[i]
            values.append(self.q(self.learner.critic, joint, e, t))
        return sum(values) / len(values)

    def regulariser(self, steps):
        sizes = [logits_squared(self.pi[e][t][i]) for e, t in steps for i in range(self.args.n_agents)]
        return self.args.logit_coef * sum(sizes) / len(sizes)


FOUND: dict[tuple, str] = {}
START = {"td_lambda": 0.5, "conservative": {"joint": "policy"}, "gate": {"joint": "auto"}}  # what the cases change


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", CASES)
def test_losses_gradients_and_running_values_are_those_of_the_nested_loops(name):
    case = CASES[name]
    blocks = {key: {**START[key], **case.get(key, {})} for key in ("conservative", "gate")}
    learner = make_learner(greedy_maddpg_args(**{**START, **case, **blocks}))
    assert FOUND.setdefault(compare(learner, SampledLoops(learner)), name) == name


# Corruption


@pytest.mark.parametrize("case", CORRUPTED)
def test_padding_changes_nothing(case):
    found = []
    for corrupt in (False, True):
        learner = make(case)
        batch = random_batch(learner.args, seed=3, episodes=SHORT)
        objective = losses_of(learner, corrupt_padding(batch, SHORT) if corrupt else batch)
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
        independent = (learner.independent, learner.target_independent, learner.slow_independent)
        for mac in (learner.mac, learner.target_mac, *independent):
            mac.wild = wild
        objective = losses_of(learner, random_batch(learner.args, seed=3, episodes=SHORT))
        found.append(objective.losses | gradients(learner, objective) | gate_state(learner))
    assert_equal(*found)


# The gap


def test_one_agents_gap_is_exact_where_all_agents_is_drawn():
    """Over draws, the joint gap has a spread; one agent's is an expectation, and needs none."""
    found = {"cf": set(), "policy": set()}
    for joint, gaps in found.items():
        learner = make_learner(greedy_maddpg_args(gate={"joint": joint}))
        shake(learner, seed=2)
        batch = random_batch(learner.args, seed=3)
        for seed in range(4):
            learner.gap_ema = None
            losses_of(learner, batch, seed)
            gaps.add(round(learner.gap_ema[1].item(), 6))
    assert len(found["cf"]) == 1
    assert len(found["policy"]) > 1


# Training


def test_neither_targets_nor_slow_copies_get_a_gradient():
    learner = make("direct KL")
    learn(learner, 1)
    for network in (learner.target_critic, learner.slow_critic, learner.target_mac.agent):
        assert all(parameter.grad is None for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in learner.target_independent.agent.parameters())


@pytest.mark.parametrize("case", ["direct", "lagrange", "held penalty"])
def test_a_loaded_learner_goes_on_as_if_nothing_had_happened(case, tmp_path):
    args = greedy_maddpg_args(target_update_interval=None, target_update_tau=0.1, **CASES[case])
    saved = make_learner(args)
    learn(saved, 3)
    saved.save_models(str(tmp_path))
    loaded = make_learner(args, seed=9)
    loaded.load_models(str(tmp_path))
    assert_equal(weights(loaded) | gate_state(loaded), weights(saved) | gate_state(saved))
    for learner in (saved, loaded):
        learn(learner, 3, start=3)
    assert_equal(weights(loaded) | gate_state(loaded), weights(saved) | gate_state(saved))


def test_a_maddpg_model_starts_what_it_lacks_anew(tmp_path):
    plain = make_learner(maddpg_args())
    shake(plain, seed=1)
    plain.save_models(str(tmp_path))
    greedy = make_learner(greedy_maddpg_args(), seed=9)
    greedy.load_models(str(tmp_path))
    after, expected = weights(greedy), weights(plain)
    assert_equal({key: after[key] for key in expected}, expected)
    learn(greedy, 1)
