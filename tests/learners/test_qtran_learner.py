"""QTRAN against nested loops; what every learner must do is in `test_value_learners.py`."""

import pytest
import torch
import torch.nn.functional as F
from helpers import EPISODES, gradients, make_args, make_learner, random_batch, shake

GAMMA = 0.875


def naive_losses(learner, batch):
    """TD, opt and nopt loss step by step, and statistics."""
    args, N = learner.args, learner.args.n_agents
    alternative = args.mixer == "qtran_alt"

    def stepped(mac):
        mac.init_hidden(batch.batch_size)
        values, memories = [], []
        for t in range(batch.max_seq_length):
            values.append(mac.forward(batch, t))
            memories.append(mac.hidden_states.view(batch.batch_size, N, -1))
        return torch.stack(values, 1), torch.stack(memories, 1)

    (q, memories), (q_target, target_memories) = stepped(learner.mac), stepped(learner.target_mac)

    def joint(mixer, hidden, e, t, actions):
        """Estimates of Q_jt (1, or one per agent), and V."""
        onehot = F.one_hot(torch.tensor(actions), args.n_actions).view(1, 1, N, -1)
        values, v = mixer(batch[e, t], hidden[e : e + 1, t : t + 1], onehot)
        return values.view(-1), v.squeeze()

    def allowed(e, t, i):
        return [a for a in range(args.n_actions) if batch["avail_actions"][e, t, i, a] == 1]

    def greedy(values, e, t):
        return [max(allowed(e, t, i), key=lambda a, i=i: values[e, t, i, a].item()) for i in range(N)]

    td, opt, nopt = [], [], []
    for e, episode in enumerate(EPISODES):
        for t in range(episode.length):
            actions = batch["actions"][e, t, :, 0].tolist()
            ended = t == episode.length - 1 and episode.end == "terminated"
            best_next = greedy(q if args.double_q else q_target, e, t + 1)
            following = joint(learner.target_mixer, target_memories, e, t + 1, best_next)[0].detach()
            y = batch["reward"][e, t, 0] + (0.0 if ended else GAMMA) * following
            q_joint, v = joint(learner.mixer, memories, e, t, actions)
            td += [0.5 * (ours - theirs) ** 2 for ours, theirs in zip(q_joint, y, strict=True)]
            best = greedy(q, e, t)
            q_best = joint(learner.mixer, memories, e, t, best)[0].detach()
            total = sum(q[e, t, i, a] for i, a in enumerate(best))
            opt += [0.5 * (total - estimate + v) ** 2 for estimate in q_best]
            total = sum(q[e, t, i, a] for i, a in enumerate(actions))
            if not alternative:
                nopt += [0.5 * min(total - estimate + v, torch.tensor(0.0)) ** 2 for estimate in q_joint.detach()]
                continue
            for i in range(N):
                excesses = []
                for k in allowed(e, t, i):
                    changed = [k if j == i else a for j, a in enumerate(actions)]
                    estimate = joint(learner.mixer, memories, e, t, changed)[0][i].detach()
                    excesses.append(total - q[e, t, i, actions[i]] + q[e, t, i, k] - estimate + v)
                nopt.append(0.5 * min(excesses) ** 2)
    return [sum(errors) / len(errors) for errors in (td, opt, nopt)]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("double_q", [True, False])
@pytest.mark.parametrize("arch", ["qtran_paper", "coma_critic"])
@pytest.mark.parametrize("alg", ["qtran", "qtran_alt"])
def test_losses_and_gradient_are_those_of_the_loops(alg, arch, double_q):
    learner = make_learner(make_args(alg, gamma=GAMMA, double_q=double_q, qtran_arch=arch, opt_loss=0.5))
    shake(learner, seed=2)
    batch = random_batch(learner.args, seed=3)
    objective = learner.objective(batch)
    td, opt, nopt = naive_losses(learner, batch)
    assert nopt > 0
    for name, expected in (("td_loss", td), ("opt_loss", opt), ("nopt_loss", nopt)):
        assert objective.terms[name].item() == pytest.approx(expected.item(), rel=1e-9), name
    naive = gradients(learner, td + 0.5 * opt + 0.1 * nopt)
    for ours, theirs in zip(gradients(learner, objective.loss), naive, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


def test_every_option_matters():
    losses = set()
    changes = ({}, {"mixer": "qtran_alt"}, {"opt_loss": 0.5}, {"nopt_min_loss": 0.5})
    for options in (*changes, {"qtran_arch": "coma_critic"}, {"network_size": "big"}):
        learner = make_learner(make_args("qtran", **options))
        shake(learner, seed=2)
        losses.add(round(learner.objective(random_batch(learner.args, seed=3)).loss.item(), 6))
    assert len(losses) == 6


@pytest.mark.parametrize("alg", ["qtran", "qtran_alt"])
def test_the_conditions_do_not_move_the_joint_value(alg):
    """Without a TD loss the joint network stays; V and the agents, which can meet the conditions, move."""
    learner = make_learner(make_args(alg))
    shake(learner, seed=2)
    terms = learner.objective(random_batch(learner.args, seed=3)).terms
    (terms["opt_loss"] + terms["nopt_loss"]).backward()
    assert all(p.grad is None for p in learner.mixer.Q.parameters())
    assert all(p.grad is not None for p in (*learner.mixer.V.parameters(), *learner.mac.parameters()))


def test_statistics_are_logged_under_pymarls_names():
    learner = make_learner(make_args("qtran"))
    learner.train(random_batch(learner.args, seed=1), t_env=0, episode_num=0)
    names = "loss grad_norm td_loss opt_loss nopt_loss td_error_abs td_targets td_chosen_qs v_mean agent_indiv_qs"
    assert set(learner.logger.stats) == set(names.split())


@pytest.mark.parametrize("arch", ["qtran_paper", "coma_critic"])
def test_agents_without_memory_can_be_used(arch):
    learner = make_learner(make_args("qtran", agent="mlp", qtran_arch=arch))
    learner.train(random_batch(learner.args, seed=1), t_env=0, episode_num=0)
