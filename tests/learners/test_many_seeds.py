"""The batched update of many seeds' learners against each one's own."""

import pytest
import torch
from helpers import gate_state, make_args, make_learner, random_batch, shake, weights
from torch.testing import assert_close

from components.episode_buffer import joined
from learners.many_seeds import ManySeeds
from utils.networks import NonFiniteError

SEPARATE = {"heads": {"utilities": "separate", "act": "global"}, "mac": "gated_mac", "gate": {"acts_on": "penalty"}}
LAGRANGE = {
    "gate": {"mode": "lagrange"},
    "conservative": {"coefficient": "lagrange", "op": "max", "threshold": 0.5},
}
CASES = {
    "qmix": ("qmix", {}),
    "qmix, rnn_norm": ("qmix", {"agent": "rnn_norm", "optimizer": "adam", "lr_finish": 1e-5}),
    "qmix, scaled rewards": ("qmix", {"standardise_rewards": True, "td_lambda": 0.6}),
    "qmix, separate agents": ("qmix", {"share": "none", "agent": "mlp"}),
    "vdn": ("vdn", {"target_update_interval": 2}),
    "iql": ("iql", {"agent": "mlp"}),
    "greedy_qmix": ("greedy_qmix", {}),
    "greedy_qmix, separate utilities": ("greedy_qmix", SEPARATE),
    "greedy_qmix, lagrange": ("greedy_qmix", LAGRANGE),
    "greedy_qmix, stored": ("greedy_qmix", {"behaviour": {"source": "stored"}, "gate": {"metric": "cert"}}),
    "greedy_qmix, linear": ("greedy_qmix", {"gate": {"joint": "linear"}, "conservative": {"joint": "linear"}}),
    "greedy_vdn": ("greedy_vdn", {}),
    "m_qmix": ("m_qmix", {}),
    "greedy_qr_qmix": ("greedy_qr_qmix", {}),
    "ow_qmix": ("ow_qmix", {}),
    "qtran": ("qtran", {}),
    "qplex": ("qplex", {}),
}


def build(case, seeds=(0, 1, 2)):
    alg, changes = CASES[case]
    args = make_args(alg, **changes)
    learners = [make_learner(args, seed) for seed in seeds]
    for seed, learner in zip(seeds, learners, strict=True):
        shake(learner, 50 + seed, 0.2)
    return args, learners


def assert_same(one, other):
    assert_close(weights(one), weights(other), rtol=1e-4, atol=1e-6)
    assert_close(gate_state(one), gate_state(other), rtol=1e-4, atol=1e-5)
    mine, theirs = one.optimiser.state_dict(), other.optimiser.state_dict()
    for key, state in theirs["state"].items():
        assert_close(dict(mine["state"][key]), dict(state), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_batched_updates_are_those_of_each_seed(case):
    args, alone = build(case)
    many = ManySeeds(build(case)[1])
    for update, seeds in enumerate(([0, 1, 2], [0, 2], [1], [2, 1, 0], [0, 1, 2])):
        batches = [random_batch(args, seed=10 * update + seed) for seed in seeds]
        errors = many.train(seeds, joined(batches), 10 * update, [update + 2 + seed for seed in seeds])
        assert errors == [None] * len(seeds)
        for seed, batch in zip(seeds, batches, strict=True):
            alone[seed].train(batch, 10 * update, update + 2 + seed)
        for one, other in zip(many.learners, alone, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("case", ["qmix", "greedy_qmix"])
def test_a_seed_knows_nothing_of_the_others(case):
    args, _ = build(case)
    results = []
    for other in (2, 5):
        many = ManySeeds(build(case, (0, 1, other))[1])
        for update in range(3):
            batches = [random_batch(args, seed=10 * update + seed) for seed in (0, 1, other)]
            many.train([0, 1, 2], joined(batches), update, [update] * 3)
        results.append([weights(learner) for learner in many.learners])
    for seed in range(2):
        assert all(torch.equal(results[0][seed][key], value) for key, value in results[1][seed].items())
    assert not all(torch.equal(results[0][2][key], value) for key, value in results[1][2].items())


@pytest.mark.parametrize("case", ["qmix", "greedy_qmix"])
def test_a_step_that_is_not_finite_leaves_its_own_seed_out(case):
    args, alone = build(case)
    many = ManySeeds(build(case)[1])
    for update in range(3):
        batches = [random_batch(args, seed=10 * update + seed) for seed in range(3)]
        if update == 1:
            batches[1]["reward"][0, 0] = torch.nan
        before = weights(many.learners[1]), gate_state(many.learners[1])
        errors = many.train([0, 1, 2], joined(batches), update, [update] * 3)
        assert [isinstance(error, NonFiniteError) for error in errors] == [False, update == 1, False]
        if update == 1:
            assert "td_loss" in f"{errors[1]}"
            assert_close((weights(many.learners[1]), gate_state(many.learners[1])), before, rtol=0, atol=0)
        for seed in range(3):
            if errors[seed] is None:
                alone[seed].train(batches[seed], update, update)
    for one, other in zip(many.learners, alone, strict=True):
        assert_same(one, other)


def test_logged_statistics_are_those_of_each_seed():
    args, alone = build("greedy_qmix")
    many = ManySeeds(build("greedy_qmix")[1])
    batches = [random_batch(args, seed=seed) for seed in range(3)]
    many.train([0, 1, 2], joined(batches), 5, [1, 1, 1])
    for one, other, batch in zip(many.learners, alone, batches, strict=True):
        other.train(batch, 5, 1)
        assert_close(one.logger.stats, other.logger.stats, rtol=1e-4, atol=1e-5)
