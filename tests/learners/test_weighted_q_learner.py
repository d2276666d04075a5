"""Weighted QMIX against nested loops; what every learner must do is in `test_value_learners.py`."""

import pytest
import torch
from helpers import EPISODES, assert_equal, gradients, make_args, make_learner, random_batch, shake, weights

from utils.errors import UserError

GAMMA = 0.875


def naive_losses(learner, batch):
    """The weighted loss, the central one, and the weights, step by step."""
    args, N = learner.args, learner.args.n_agents
    q, central_q = learner.mac.unroll(batch), learner.central_mac.unroll(batch)
    chooser = q if args.double_q else learner.target_mac.unroll(batch)
    target_q = learner.target_central_mac.unroll(batch).detach()

    def value(mixer, values, actions, e, t):
        chosen = torch.stack([values[e, t, i, a] for i, a in enumerate(actions)])
        return mixer(chosen.view(1, 1, -1), batch["state"][e, t].view(1, 1, -1)).squeeze()

    def greedy(e, t):
        can = [[a for a in range(args.n_actions) if batch["avail_actions"][e, t, i, a] == 1] for i in range(N)]
        return [max(can[i], key=lambda a, i=i: chooser[e, t, i, a].item()) for i in range(N)]

    fit, central_fit, found = [], [], []
    for e, episode in enumerate(EPISODES):
        for t in range(episode.length):
            actions = batch["actions"][e, t, :, 0].tolist()
            ended = t == episode.length - 1 and episode.end == "terminated"
            following = value(learner.target_central_mixer, target_q, greedy(e, t + 1), e, t + 1).item()
            y = batch["reward"][e, t, 0].item() + (0.0 if ended else GAMMA) * following
            q_tot = value(learner.mixer, q, actions, e, t)
            if args.weighting.rule == "optimistic":
                full = q_tot.item() < y
            else:
                best = value(learner.target_central_mixer, target_q, greedy(e, t), e, t).item()
                full = y > best or actions == greedy(e, t)
            found.append(1.0 if full else args.weighting.alpha)
            fit.append(0.5 * found[-1] * (q_tot - y) ** 2)
            central_fit.append(0.5 * (value(learner.central_mixer, central_q, actions, e, t) - y) ** 2)
    return sum(fit) / len(fit), sum(central_fit) / len(fit), found


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("double_q", [True, False])
@pytest.mark.parametrize("alg", ["ow_qmix", "cw_qmix"])
def test_losses_and_gradient_are_those_of_the_loops(alg, double_q):
    learner = make_learner(make_args(alg, gamma=GAMMA, double_q=double_q, weighting={"central_loss": 0.5}))
    shake(learner, seed=2)
    batch = random_batch(learner.args, seed=3)
    objective = learner.objective(batch)
    fit, central, found = naive_losses(learner, batch)
    assert 1 in found
    assert learner.args.weighting.alpha in found
    assert objective.terms["td_loss"].item() == pytest.approx(fit.item(), rel=1e-9)
    assert objective.terms["central_loss"].item() == pytest.approx(central.item(), rel=1e-9)
    assert objective.stats["weight_mean"].item() == pytest.approx(sum(found) / len(found))
    naive = gradients(learner, fit + 0.5 * central)
    for ours, theirs in zip(gradients(learner, objective.loss), naive, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


def test_every_option_matters():
    losses = set()
    for weighting in ({}, {"rule": "central"}, {"alpha": 0.25}, {"central_loss": 0.5}, {"central_embed_dim": 9}):
        learner = make_learner(make_args("ow_qmix", weighting={"central_embed_dim": 8, **weighting}))
        shake(learner, seed=2)
        losses.add(round(learner.objective(random_batch(learner.args, seed=3)).loss.item(), 6))
    assert len(losses) == 5


def test_the_central_agents_are_not_copies_and_nobody_else_changes():
    """Beside QMIX of the same seed: the networks that it has start the same."""
    ours, qmix = weights(make_learner(make_args("ow_qmix"))), weights(make_learner(make_args("qmix")))
    assert_equal({key: ours[key] for key in qmix}, qmix)
    assert not torch.equal(ours["central_agent.fc1.weight"], ours["agent.fc1.weight"])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("options", "share"), [({"target_update_tau": 0.25}, 0.25), ({"target_update_interval": 1}, 1)]
)
def test_the_central_targets_move_with_the_others(options, share):
    learner = make_learner(make_args("ow_qmix", **{"target_update_interval": None, **options}))
    shake(learner, seed=2)
    before = weights(learner)
    learner.train(random_batch(learner.args, seed=1), t_env=0, episode_num=1)
    after = weights(learner)
    for name in ("central_agent", "central_mixer"):
        for key in [key for key in before if key.startswith(f"target_{name}.")]:
            expected = before[key] + share * (after[key.removeprefix("target_")] - before[key])
            torch.testing.assert_close(after[key], expected)


def test_without_a_mixer_it_is_refused():
    args = make_args("ow_qmix", unchecked={"mixer": None})
    with pytest.raises(UserError, match="set mixer=qmix"):
        make_learner(args)
