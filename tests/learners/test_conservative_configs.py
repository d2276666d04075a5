"""cql_qmix and cfcql are configurations of the greedy learner: their losses against loops that know nothing of it.

The penalty's weight and the temperature are in units of the targets' running deviation, which is the learner's own.
"""

import itertools
import math

import pytest
import torch
from helpers import EPISODES, gradients, make_args, make_learner, random_batch, shake

GAMMA = 0.875


def make(alg, seed=2, **options):
    learner = make_learner(make_args(alg, gamma=GAMMA, **options))
    shake(learner, seed=seed)
    learner.target_std = torch.tensor([1.25, 1.5])
    return learner


def mix(mixer, values, batch, e, t):
    return mixer(torch.stack(list(values)).view(1, 1, -1), batch["state"][e, t].view(1, 1, -1)).squeeze()


class Naive:
    """QMIX with penalties, step by step."""

    def __init__(self, learner, batch):
        self.learner, self.batch, self.args = learner, batch, learner.args
        self.agents = range(self.args.n_agents)
        self.q, self.q_target = learner.mac.unroll(batch), learner.target_mac.unroll(batch).detach()
        self.steps = [(e, t) for e, episode in enumerate(EPISODES) for t in range(episode.length)]
        self.sigma = learner.target_std[1].item()

    def allowed(self, e, t, i):
        return [k for k in range(self.args.n_actions) if self.batch["avail_actions"][e, t, i, k] == 1]

    def logged(self, e, t):
        return self.batch["actions"][e, t, :, 0].tolist()

    def q_tot(self, actions, e, t):
        return mix(self.learner.mixer, [self.q[e, t, i, a] for i, a in enumerate(actions)], self.batch, e, t)

    def td(self):
        errors = []
        for e, t in self.steps:
            y = self.batch["reward"][e, t, 0].item()
            if not (t == EPISODES[e].length - 1 and EPISODES[e].end == "terminated"):
                best = [
                    max(self.allowed(e, t + 1, i), key=lambda k, i=i: self.q[e, t + 1, i, k].item())
                    for i in self.agents
                ]
                values = [self.q_target[e, t + 1, i, a] for i, a in enumerate(best)]
                y += GAMMA * mix(self.learner.target_mixer, values, self.batch, e, t + 1).item()
            errors.append(0.5 * (self.q_tot(self.logged(e, t), e, t) - y) ** 2)
        return sum(errors) / len(errors)

    def joint(self, e, t):
        """T log sum exp(Q_tot/T) over every joint action."""
        T = self.args.conservative.temperature * self.sigma
        every = itertools.product(*(self.allowed(e, t, i) for i in self.agents))
        return T * torch.logsumexp(torch.stack([self.q_tot(a, e, t) for a in every]) / T, dim=0)

    def counterfactual(self, e, t, beta):
        """The same over one agent's actions at a time, by CFCQL's weights."""
        T, logged = self.args.conservative.temperature * self.sigma, self.logged(e, t)
        sups, shares = [], []
        for i in self.agents:
            values = {k: self.q_tot([*logged[:i], k, *logged[i + 1 :]], e, t) for k in self.allowed(e, t, i)}
            sups.append(T * torch.logsumexp(torch.stack(list(values.values())) / T, dim=0))
            policy = torch.softmax(torch.stack(list(values.values())).detach() / T, dim=0).tolist()
            ratio = [p * math.log(p / max(beta[e, t, i, k].item(), 1e-5)) for p, k in zip(policy, values, strict=True)]
            shares.append(math.exp(self.args.conservative.shift_weight * sum(ratio)))
        return sum(w * s for w, s in zip(shares, sups, strict=True)) / sum(shares)

    def loss(self, sup):
        gaps = [sup(e, t) - self.q_tot(self.logged(e, t), e, t) for e, t in self.steps]
        return self.td() + self.args.conservative.alpha_cooperative * self.sigma * sum(gaps) / len(gaps)


def assert_same(learner, objective, loss, tolerance):
    assert objective.loss.item() == pytest.approx(loss.item(), rel=tolerance)
    for ours, theirs in zip(gradients(learner, objective.loss), gradients(learner, loss), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * (1e-2 + theirs.abs().max().item()))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("mixer", ["vdn", "qmix"])
def test_the_loss_of_cql_qmix_enumerates_joint_actions(mixer):
    """Many samples come close to it."""
    learner = make("cql_qmix", mixer=mixer, conservative={"samples": 4000})
    batch = random_batch(learner.args, seed=3)
    naive = Naive(learner, batch)
    loss = naive.loss(naive.joint)
    torch.manual_seed(0)
    assert_same(learner, learner.objective(batch), loss, 0.02)


@pytest.mark.usefixtures("double")
def test_one_sample_gives_the_loss_exactly_if_the_mixer_is_affine():
    learner = make("cql_qmix", mixer="vdn", conservative={"samples": 1})
    batch = random_batch(learner.args, seed=3)
    naive = Naive(learner, batch)
    assert learner.objective(batch).loss.item() == pytest.approx(naive.loss(naive.joint).item(), rel=1e-9)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("shift_weight", [0.0, 1.5])
@pytest.mark.parametrize("source", ["stored", "bc_rnn"])
def test_the_loss_of_cfcql_is_that_of_the_loops(source, shift_weight):
    options = {"conservative": {"shift_weight": shift_weight}, "behaviour": {"source": source}}
    learner = make("cfcql", **options)
    batch = random_batch(learner.args, seed=3)
    naive = Naive(learner, batch)
    objective = learner.objective(batch)
    beta = batch["behaviour"] if source == "stored" else clone(learner, batch)
    assert_same(learner, objective, naive.loss(lambda e, t: naive.counterfactual(e, t, beta)), 1e-8)


def clone(learner, batch):
    inputs = learner.mac._build_sequence_inputs(batch)[:-1]
    filled = batch["filled"]
    avail = batch["avail_actions"].masked_fill(filled.unsqueeze(-1) == 0, 1)[:, :-1]
    mask = filled[:, 1:].to(inputs.dtype)
    return learner.behaviour.log_probs(inputs, avail, batch["actions"][:, :-1], mask).exp().detach()


@pytest.mark.parametrize("alg", ["cql_qmix", "cfcql"])
def test_without_the_penalty_they_are_qmix_bit_for_bit(alg):
    """With the settings of the one config; the other's loss and gradients are the same numbers."""
    learner = make(alg, conservative={"alpha_cooperative": 0.0})
    qmix = make("qmix")
    batch = random_batch(learner.args, seed=3)
    ours, theirs = learner.objective(batch), qmix.objective(batch)
    assert torch.equal(ours.loss, theirs.loss)
    for a, b in zip(gradients(learner, ours.loss), gradients(qmix, theirs.loss), strict=True):
        assert torch.equal(a, b)


def test_the_penalty_lowers_what_the_data_lacks():
    """Of two games' worth of updates on one batch: the gap of the joint maximum falls as alpha grows."""
    gaps = []
    for alpha in (0.0, 0.5, 5.0):
        learner = make("cql_qmix", conservative={"alpha_cooperative": alpha}, lr=0.005, lr_finish=None)
        batch = random_batch(learner.args, seed=3)
        for k in range(60):
            learner.train(batch, t_env=k, episode_num=k)
        gaps.append(learner.gap_profile[1].mean().item())
    assert gaps[0] > gaps[1] > gaps[2]
