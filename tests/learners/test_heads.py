"""The heads on one batch: what needs many samples, what is cached, and where gradients flow."""

import itertools
import math

import pytest
import torch
from greedy_cases import SHORT, greedy_args, stored
from helpers import make_learner, random_batch, shake

from learners.heads import Heads
from learners.q_learner import Transitions
from utils.networks import unroll

T = 0.7  # the temperature


def make_heads(mixer="qmix", separate=False, **options):
    """Heads on a batch of few steps, and where a step was played."""
    learner = make_learner(greedy_args(mixer=mixer, **options))
    shake(learner, seed=1, size=0.3)
    batch = random_batch(learner.args, seed=1, episodes=SHORT)
    step = Transitions.of(batch)
    q = unroll(learner.mac, batch)
    heads = Heads(step, q, 2 * q if separate else q, learner.mixer, step.behaviour)
    return heads, step.mask.bool().squeeze(2)


def exact_log_sum_exp(heads, b, t):
    """T log sum_a exp(Q_tot(a)/T) over all available joint actions of one step."""
    allowed = [heads.avail[b, t, i].nonzero().flatten().tolist() for i in range(heads.avail.shape[2])]
    joint = list(itertools.product(*allowed))
    chosen = torch.stack([torch.stack([heads.q_c[b, t, i, k] for i, k in enumerate(a)]) for a in joint])
    states = heads.state[b, t].expand(1, len(joint), -1)
    return T * torch.logsumexp(heads.mixer(chosen.unsqueeze(0), states).flatten() / T, dim=0), len(joint)


@pytest.mark.usefixtures("double")
class TestSampledGap:
    @pytest.mark.parametrize("mixer", ["vdn", "vdn_mean"])
    @pytest.mark.parametrize("samples", [1, 5])
    def test_one_sample_is_exact_for_a_linear_mixer(self, mixer, samples):
        """Proposition 1.4: the proposal is then the Boltzmann policy of Q_tot itself."""
        heads, played = make_heads(mixer)
        gap = heads.joint_gap("sampled", "lse", T, samples)
        for b, t in played.nonzero().tolist():
            expected, _ = exact_log_sum_exp(heads, b, t)
            torch.testing.assert_close(gap[b, t], expected - heads.q_tot[b, t])

    def test_many_samples_are_close_for_qmix_and_few_are_low_on_average(self):
        heads, played = make_heads()
        torch.manual_seed(0)
        many = heads.joint_gap("sampled", "lse", T, samples=20_000) + heads.q_tot
        few = torch.stack([heads.joint_gap("sampled", "lse", T, samples=1) + heads.q_tot for _ in range(300)])
        counts = []
        for b, t in played.nonzero().tolist():
            exact, count = exact_log_sum_exp(heads, b, t)
            assert many[b, t].item() == pytest.approx(exact.item(), abs=0.02)
            of_one = few[:, b, t, 0]
            assert of_one.mean() < exact + 3 * of_one.std() / math.sqrt(len(of_one))
            counts.append(count)
        assert max(counts) > 10

    def test_its_gradient_is_the_policys_minus_the_datas(self):
        """d/dQ_i(a) of the sum over a state: with many samples that of the exact log-sum-exp."""
        heads, played = make_heads()
        torch.manual_seed(0)
        b, t = played.nonzero().tolist()[0]
        sampled = heads.joint_gap("sampled", "lse", T, samples=20_000)[b, t].sum()
        (ours,) = torch.autograd.grad(sampled, heads.q_c, retain_graph=True)
        exact, _ = exact_log_sum_exp(heads, b, t)
        (theirs,) = torch.autograd.grad(exact - heads.q_tot[b, t].sum(), heads.q_c, retain_graph=True)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)
        assert theirs.abs().max() > 0.1


def test_gaps_that_are_read_without_gradient_are_differentiated_later():
    """The gate looks first, under no_grad; the penalty differentiates the same cached values."""
    for joint, op in (("cf", "lse"), ("max", "max"), ("linear", "lse"), ("sampled", "lse")):
        heads, _ = make_heads()
        with torch.no_grad():
            heads.joint_gap(joint, op, T, samples=2)
            assert not heads.value_c.requires_grad
            assert not heads.value_i.requires_grad
        (gradient,) = torch.autograd.grad(heads.joint_gap(joint, op, T, samples=2).sum(), heads.q_c)
        assert gradient.abs().sum() > 0


def test_the_greedy_joint_action_is_the_best_of_all():
    """Proposition 1.2: of Q_tot by the utilities that the mixer reads."""
    heads, played = make_heads(separate=True)
    greedy = heads.greedy[1]
    for b, t in played.nonzero().tolist():
        allowed = [heads.avail[b, t, i].nonzero().flatten().tolist() for i in range(3)]
        values = {}
        for action in itertools.product(*allowed):
            chosen = torch.stack([heads.q_c[b, t, i, k] for i, k in enumerate(action)])
            values[action] = heads.mixer(chosen.view(1, 1, 3), heads.state[b, t].view(1, 1, -1)).item()
        best = max(values, key=lambda action: values[action])
        assert tuple(greedy[b, t, :, 0].tolist()) == best
        assert heads.value_c[b, t].item() == pytest.approx(values[best], rel=1e-5)


def test_expectations_over_the_data_are_those_of_the_stored_policy():
    """The gap to the stored probabilities is the mean gap over actions that are drawn from them (Rao-Blackwell)."""
    heads, played = make_heads(**stored())
    gaps = heads.agent_gaps("max", 1.0)
    for b, t in played.nonzero().tolist():
        for i in range(3):
            options = heads.avail[b, t, i].nonzero().flatten().tolist()
            best = max(heads.q_i[b, t, i, k].item() for k in options)
            mean = sum(heads.beta[b, t, i, k].item() * heads.q_i[b, t, i, k].item() for k in options)
            assert gaps[b, t, i].item() == pytest.approx(best - mean, abs=1e-5)


def test_an_unknown_operator_is_refused():
    heads, _ = make_heads()
    with pytest.raises(ValueError, match="op must be one of"):
        heads.joint_gap("cf", "mean", 1.0)
