"""Q-learning with QPLEX's mixer against nested loops: it reads actions and best values, of both networks."""

import pytest
import torch
from helpers import EPISODES, gradients, make_args, make_learner, random_batch, shake

GAMMA = 0.875


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("double_q", [True, False])
def test_loss_and_gradient_are_those_of_the_loops(double_q):
    learner = make_learner(make_args("qplex", gamma=GAMMA, double_q=double_q))
    shake(learner, seed=2)
    args, batch = learner.args, random_batch(learner.args, seed=3)
    q, q_target = learner.mac.unroll(batch), learner.target_mac.unroll(batch).detach()

    def value(mixer, values, actions, e, t):
        best, onehot = [], torch.zeros(1, 1, args.n_agents, args.n_actions)
        for i, action in enumerate(actions):
            can = [a for a in range(args.n_actions) if batch["avail_actions"][e, t, i, a] == 1]
            best.append(max(values[e, t, i, a].item() for a in can))
            onehot[0, 0, i, action] = 1
        chosen = torch.stack([values[e, t, i, a] for i, a in enumerate(actions)]).view(1, 1, -1)
        state = batch["state"][e, t].view(1, 1, -1)
        return mixer(chosen, state, onehot, torch.tensor(best).view(1, 1, -1)).squeeze()

    errors = []
    for e, episode in enumerate(EPISODES):
        for t in range(episode.length):
            chooser = q if double_q else q_target
            following = []
            for i in range(args.n_agents):
                can = [a for a in range(args.n_actions) if batch["avail_actions"][e, t + 1, i, a] == 1]
                following.append(max(can, key=lambda a, i=i: chooser[e, t + 1, i, a].item()))
            ended = t == episode.length - 1 and episode.end == "terminated"
            v_next = value(learner.target_mixer, q_target, following, e, t + 1).item()
            y = batch["reward"][e, t, 0].item() + (0.0 if ended else GAMMA) * v_next
            errors.append(value(learner.mixer, q, batch["actions"][e, t, :, 0].tolist(), e, t) - y)
    naive = sum(0.5 * error**2 for error in errors) / len(errors)
    loss = learner.objective(batch).loss
    assert loss.item() == pytest.approx(naive.item(), rel=1e-9)
    for ours, theirs in zip(gradients(learner, loss), gradients(learner, naive), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


def test_every_option_matters():
    losses = set()
    for options in ({}, {"num_kernel": 2}, {"adv_hypernet_layers": 2}, {"adv_hypernet_layers": 3}):
        learner = make_learner(make_args("qplex", **options))
        shake(learner, seed=2)
        losses.add(round(learner.objective(random_batch(learner.args, seed=3)).loss.item(), 6))
    wide = make_learner(make_args("qplex", adv_hypernet_layers=2, adv_hypernet_embed=9))
    assert len(losses) == 4
    assert wide.mixer.kernels[0].key[0].out_features == 9
