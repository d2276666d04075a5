"""What every learner beside QMIX and its greedy kin must do: padding, unavailable actions, targets, seeds, saving."""

import pytest
import torch
from helpers import (
    EPISODES,
    WildMAC,
    assert_equal,
    corrupt_padding,
    differs,
    gradients,
    make_args,
    make_learner,
    networks,
    random_batch,
    shake,
    weights,
    without_last_actions,
)

from controllers import REGISTRY as mac_REGISTRY
from utils.networks import NonFiniteError

ALGS = ("ow_qmix", "cw_qmix", "qtran", "qtran_alt", "qplex", "dcg", "qcgraph", "qcgraph_qmix")


def objective(learner, batch):
    """The learner's objective; what is random in it (QCGraph's graphs) is the same every time."""
    torch.manual_seed(4)
    return learner.objective(batch)


@pytest.mark.parametrize("alg", ALGS)
def test_padding_changes_nothing(alg):
    args = make_args(alg)
    learner = make_learner(args)
    shake(learner, seed=2)
    clean = objective(learner, random_batch(args, seed=3))
    wild = objective(learner, corrupt_padding(random_batch(args, seed=3), EPISODES))
    assert torch.equal(clean.loss, wild.loss)
    assert {k: v.item() for k, v in clean.stats.items()} == {k: v.item() for k, v in wild.stats.items()}
    for ours, theirs in zip(gradients(learner, clean.loss), gradients(learner, wild.loss), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("alg", ALGS)
def test_a_terminal_observation_may_offer_no_action(alg):
    args = make_args(alg)
    learner = make_learner(args)
    expected = objective(learner, random_batch(args, seed=3)).loss
    assert torch.equal(objective(learner, without_last_actions(random_batch(args, seed=3))).loss, expected)


@pytest.mark.parametrize("double_q", [True, False])
@pytest.mark.parametrize("alg", ALGS)
def test_values_of_unavailable_actions_change_nothing(alg, double_q):
    args = make_args(alg, double_q=double_q)
    found = []
    for wild in (0.0, 1e8):
        learner = make_learner(args, mac_class=type("Wild", (WildMAC, mac_REGISTRY[args.mac]), {}))
        shake(learner, seed=2)
        for mac in [value for value in vars(learner).values() if isinstance(value, WildMAC)]:
            mac.wild = wild
        loss = objective(learner, random_batch(args, seed=3)).loss
        found.append((loss, gradients(learner, loss)))
    assert torch.equal(found[0][0], found[1][0])
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("alg", ALGS)
def test_targets_carry_no_gradient_and_every_other_network_has_one(alg):
    learner = make_learner(make_args(alg))
    shake(learner, seed=2)
    learner.objective(random_batch(learner.args, seed=3)).loss.backward()
    for name, network in networks(learner).items():
        moved = [p.grad is not None and bool((p.grad != 0).any()) for p in network.parameters()]
        assert any(moved) != name.startswith("target_"), name
    inside = {id(p) for p in learner.params}
    online = [n for name, n in networks(learner).items() if not name.startswith("target_")]
    assert inside == {id(p) for network in online for p in network.parameters()}


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
@pytest.mark.parametrize("alg", ALGS)
def test_same_seed_same_weights(alg, optimizer):
    def train(seed):
        args = make_args(alg, optimizer=optimizer, target_update_interval=2)
        learner = make_learner(args, seed=seed)
        for k in range(4):
            learner.train(random_batch(args, seed=seed + k), t_env=k, episode_num=k)
        return weights(learner)

    first = train(0)
    assert_equal(first, train(0))
    assert differs(first, train(1))


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
@pytest.mark.parametrize("alg", ALGS)
def test_a_loaded_learner_goes_on_as_if_nothing_had_happened(alg, optimizer, tmp_path):
    options = {"target_update_interval": None, "target_update_tau": 0.1, "standardise_rewards": True}
    args = make_args(alg, optimizer=optimizer, **options)
    saved = make_learner(args)
    for k in range(3):
        saved.train(random_batch(args, seed=k), t_env=k, episode_num=k)
    saved.save_models(str(tmp_path))
    loaded = make_learner(args, seed=9)
    assert differs(weights(loaded), weights(saved))
    loaded.load_models(str(tmp_path))
    assert_equal(weights(loaded), weights(saved))
    for k in range(3, 6):  # differs from here on if the optimiser's memory was lost
        for learner in (saved, loaded):
            torch.manual_seed(k)
            learner.train(random_batch(args, seed=k), t_env=k, episode_num=k)
    assert_equal(weights(loaded), weights(saved))


@pytest.mark.parametrize("alg", ALGS)
def test_a_non_finite_loss_is_named_and_changes_nothing(alg):
    args = make_args(alg, target_update_interval=1)
    learner = make_learner(args)
    learner.train(random_batch(args, seed=1), t_env=0, episode_num=5)
    before = weights(learner)
    bad = random_batch(args, seed=1)
    bad["reward"][1, 0] = float("nan")
    with pytest.raises(NonFiniteError) as error:
        learner.train(bad, t_env=1, episode_num=10)
    assert error.value.culprit == "td_loss"
    assert_equal(weights(learner), before)


@pytest.mark.parametrize("alg", ALGS)
def test_learned_tables_have_one_value_of_every_joint_action(alg):
    learner = make_learner(make_args(alg))
    batch = random_batch(learner.args, seed=1)
    q, joint = learner.joint_values(batch)
    assert joint.shape == (*q.shape[:2], 1)
    assert not joint.requires_grad
