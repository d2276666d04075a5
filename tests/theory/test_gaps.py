"""Section 1 of docs/theory.md: the conservative gap, its masks, and the scale of shared utilities."""

import itertools

import numpy as np
import torch

from modules.mixers import counterfactual_q_tot
from modules.mixers.vdn import VDNMeanMixer, VDNMixer
from objectives.conservative import OPS, counterfactual_gap, joint_max_gap, sampled_lse
from objectives.td import td_loss
from theory.reference import (
    Mixers,
    entropy,
    joint_actions,
    kl,
    log_policy,
    policy,
    sup,
    tensor,
    values_of,
)

TEMPERATURES = (0.1, 0.5, 1.0, 3.0)


def masked_rows(rows=1000, n_actions=6, seed=0):
    """Values, availability with at least one action, and behaviours on the available actions: each (rows, A)."""
    rng = np.random.default_rng(seed)
    avail = rng.random((rows, n_actions)) < 0.7
    avail[np.arange(rows), rng.integers(n_actions, size=rows)] = True
    beta = rng.random((rows, n_actions)) * avail
    return 3 * rng.normal(size=(rows, n_actions)), avail, beta / beta.sum(axis=1, keepdims=True)


def gaps(op, temperature, rows=None):
    q, avail, beta = masked_rows() if rows is None else rows
    return sup(q, op, temperature, avail, beta) - (beta * q).sum(axis=1)


def test_1_1_order():
    """Prop 1.1 (i): uniform <= softmax <= max <= lse <= max + T log|A|, and E_beta Q <= lse_beta <= max."""
    q, avail, beta = masked_rows()
    mean = (beta * q).sum(axis=1)
    for temperature in TEMPERATURES:
        s = {op: sup(q, op, temperature, avail, beta) for op in OPS}
        chain = [s["uniform"], s["softmax"], s["max"], s["lse"], s["max"] + temperature * np.log(avail.sum(axis=1))]
        for smaller, larger in itertools.pairwise(chain):
            assert (smaller <= larger + 1e-9).all()
        assert (mean <= s["lse_beta"] + 1e-9).all()
        assert (s["lse_beta"] <= s["max"] + 1e-9).all()


def test_1_1_signs():
    """Prop 1.1 (i): the gaps of max, lse, lse_beta are never negative; those of softmax, lse_mean, uniform can be."""
    for temperature in TEMPERATURES:
        for op in ("max", "lse", "lse_beta"):
            assert (gaps(op, temperature) >= -1e-9).all()
        for op in ("softmax", "lse_mean", "uniform"):
            assert (gaps(op, temperature) < -1e-3).any()


def test_1_1_cross_entropy():
    """Prop 1.1 (ii): the lse gap is T CE(beta, softmax(Q/T)) = T [H(beta) + KL(beta || softmax(Q/T))]."""
    q, avail, beta = masked_rows()
    for temperature in TEMPERATURES:
        pi = policy(np.where(avail, q, -np.inf), temperature)
        cross_entropy = entropy(beta) + kl(beta, np.where(avail, pi, 1.0))
        np.testing.assert_allclose(gaps("lse", temperature), temperature * cross_entropy, atol=1e-9)
        # Its least value T H(beta), not 0, is that of Q = T log beta; adding a constant changes nothing, a factor does.
        best = np.where(avail, temperature * np.log(np.where(avail, beta, 1.0)) + 7.0, 0.0)
        np.testing.assert_allclose(
            gaps("lse", temperature, (best, avail, beta)), temperature * entropy(beta), atol=1e-9
        )
        np.testing.assert_allclose(gaps("lse", temperature, (q + 5, avail, beta)), gaps("lse", temperature), atol=1e-9)
        assert not np.allclose(gaps("lse", temperature, (2 * q, avail, beta)), gaps("lse", temperature), atol=0.1)


def test_masks():
    """Masks: an unavailable action times 0 would count as value 0: lse(-5, -6) is -4.69, but .009 with a product."""
    q, avail = np.array([-5.0, -6.0, -7.0]), np.array([1.0, 1.0, 0.0])
    np.testing.assert_allclose(sup(q, "lse", avail=avail), -4.686738, atol=1e-6)  # -5 + log(1 + 1/e)
    np.testing.assert_allclose(sup(q * avail, "lse"), 0.009174, atol=1e-6)  # log(e^-5 + e^-6 + 1)


def test_1_2_joint_maximum():
    """Prop 1.2: max_a Q_tot(a) = f(max Q_1, ..., max Q_N; s) for monotone f, with masks."""
    n_mixers, n_agents, n_actions = 300, 3, 4
    rng = np.random.default_rng(2)
    mixers = Mixers(n_mixers, n_agents, seed=2)
    q = rng.normal(size=(n_mixers, n_agents, n_actions))
    avail = rng.random(q.shape) < 0.7
    avail[..., 0] |= ~avail.any(axis=-1)
    actions = joint_actions(n_agents, n_actions)
    allowed = values_of(avail, actions).all(axis=-1)  # (R, J)
    q_tot = np.where(allowed, mixers(values_of(q, actions)), -np.inf)
    greedy = mixers(sup(q, "max", avail=avail)[:, None])
    np.testing.assert_allclose(q_tot.max(axis=1), greedy[:, 0], atol=1e-10)
    # so this gap of the joint action 0, 0, 0 needs one more evaluation of the mixer
    data = q_tot[:, 0].clip(-1e6)
    gap = joint_max_gap(tensor(greedy)[..., None], tensor(data)[:, None, None]).flatten()
    np.testing.assert_allclose(gap, q_tot.max(axis=1) - data, atol=1e-9)


def test_1_3_log_sum_exp():
    """Prop 1.3: of f = sum k_i q_i + b the lse is sum_i T lse(k_i Q_i/T) + b; any f: max <= lse <= max + T N log|A|."""
    n_agents, n_actions = 3, 4
    rng = np.random.default_rng(3)
    q, gains, bias = rng.normal(size=(300, n_agents, n_actions)), rng.random((300, n_agents, 1)), rng.normal(size=300)
    actions = joint_actions(n_agents, n_actions)
    bent = Mixers(300, n_agents, seed=3)(values_of(q, actions))
    for temperature in TEMPERATURES:
        affine = values_of(gains * q, actions).sum(axis=-1) + bias[:, None]
        apart = sup(gains * q, "lse", temperature).sum(axis=1) + bias
        np.testing.assert_allclose(sup(affine, "lse", temperature), apart, atol=1e-9)
        joint = sup(bent, "lse", temperature)
        assert (bent.max(axis=1) <= joint + 1e-9).all()
        assert (joint <= bent.max(axis=1) + temperature * n_agents * np.log(n_actions) + 1e-9).all()


def proposals(mixers, q, actions, temperature):
    """log rho of joint actions, (R, J): uniform, prod softmax(Q_i/T), prod softmax(k_i Q_i/T) with the slopes k."""
    slopes = mixers.slopes(q.mean(axis=-1)[:, None])[:, 0, :, None]
    logits = {"uniform": 0 * q, "utilities": q, "scaled utilities": slopes * q}
    return {name: values_of(log_policy(x, temperature), actions).sum(axis=-1) for name, x in logits.items()}


def sampled_errors(q_tot, log_rho, n_samples, repeats, rng):
    """Errors of the estimate of T log sum exp(Q_tot/T) at T = 1 from samples of rho: (repeats,)."""
    drawn = rng.choice(len(q_tot), size=(repeats, n_samples), p=np.exp(log_rho))
    estimate = sampled_lse(tensor(q_tot[drawn])[:, None], tensor(log_rho[drawn])[:, None], 1.0)
    return estimate.flatten().numpy() - sup(q_tot, "lse")


def test_1_4_one_sample_is_exact_for_affine_mixers():
    """Prop 1.4: one sample of prod_i softmax(k_i Q_i/T) gives the joint lse of an affine mixer exactly."""
    rng = np.random.default_rng(4)
    q, gains = rng.normal(size=(1, 3, 5)), np.array([0.4, 1.7, 0.9])[:, None]
    actions = joint_actions(3, 5)
    q_tot = values_of(gains * q, actions).sum(axis=-1)[0] + 0.2
    log_rho = values_of(log_policy(gains * q, 0.7), actions).sum(axis=-1)[0]
    for joint in range(len(actions)):
        one = sampled_lse(
            tensor(q_tot[joint : joint + 1])[None, None], tensor(log_rho[joint : joint + 1])[None, None], 0.7
        )
        np.testing.assert_allclose(one.item(), sup(q_tot, "lse", 0.7), atol=1e-12)


def test_1_4_the_estimate_is_low():
    """Prop 1.4: else the sampled lse is too low in expectation, with one sample by T KL(rho || softmax(Q_tot/T))."""
    rng = np.random.default_rng(7)
    mixers, actions = Mixers(1, 4, seed=7), joint_actions(4, 5)
    q = rng.normal(size=(1, 4, 5))
    q_tot = mixers(values_of(q, actions))[0]
    expected = {  # for 1 sample, exact by all 625 joint actions; for 4, 16 and 64 with standard errors below .05
        "uniform": [-6.202, -3.73, -1.58, -0.54],
        "utilities": [-2.255, -0.49, -0.10, -0.03],
        "scaled utilities": [-0.307, -0.08, -0.02, -0.00],
    }
    for name, log_rho in proposals(mixers, q, actions, 1.0).items():
        rho, log_rho = np.exp(log_rho[0]), log_rho[0]
        one_sample = (rho * (q_tot - log_rho)).sum() - sup(q_tot, "lse")
        np.testing.assert_allclose(one_sample, -kl(rho, policy(q_tot, 1.0)), atol=1e-9)
        more = [sampled_errors(q_tot, log_rho, m, 4000, rng).mean() for m in (4, 16, 64)]
        np.testing.assert_allclose(one_sample, expected[name][0], atol=1e-3)
        np.testing.assert_allclose(more, expected[name][1:], atol=0.15)


def test_1_4_without_importance_weights():
    """Prop 1.4 [R]: the unweighted log sum exp over M samples (raw CFCQL) drifts by T log M, whatever the truth is."""
    rng = np.random.default_rng(6)
    q_tot = rng.normal(size=500)
    limit = sup(q_tot, "lse") - np.log(500)
    for m in (64, 4096):
        raw = np.mean([sup(q_tot[rng.integers(500, size=m)], "lse") for _ in range(200)])
        np.testing.assert_allclose(raw, limit + np.log(m), atol=0.05)


def test_1_5_rank_one_counterfactuals():
    """Prop 1.5: QMIX's counterfactuals by a rank-1 update of the first layer are those of brute force."""
    rng = np.random.default_rng(7)
    mixers, q = Mixers(200, 4, seed=7), rng.normal(size=(200, 4, 6))
    taken = rng.integers(6, size=(200, 4))
    chosen = np.take_along_axis(q, taken[..., None], axis=2)[..., 0]
    fast = mixers.counterfactual(chosen, q)
    for agent, action in itertools.product(range(4), range(6)):
        changed = chosen.copy()
        changed[:, agent] = q[:, agent, action]
        np.testing.assert_allclose(fast[:, agent, action], mixers(changed[:, None])[:, 0], atol=1e-12)


def test_1_5_counterfactual_gap_of_vdn():
    """Section 1.1: of VDN the counterfactual max gap is the agents' mean gap and the joint max gap is their sum."""
    rng = np.random.default_rng(8)
    q = tensor(rng.normal(size=(50, 1, 4, 6)))
    chosen, state = q[..., 2], torch.zeros(50, 1, 1)
    apart = q.max(dim=-1).values - chosen
    q_tot = VDNMixer()(chosen, state)
    q_cf = counterfactual_q_tot(VDNMixer(), chosen, q, state)
    gap = counterfactual_gap(q_cf, torch.ones_like(q_cf), q_tot, "max")
    torch.testing.assert_close(gap.squeeze(-1), apart.mean(dim=-1))
    gap = joint_max_gap(VDNMixer()(q.max(dim=-1).values, state), q_tot)
    torch.testing.assert_close(gap.squeeze(-1), apart.sum(dim=-1))


def test_scale_rule():
    """Scale rule: values that each learn the return R cannot also sum to it: q = R (w_I + N w_C) / (w_I + N^2 w_C)."""
    for n, w_i, w_c, expected in ((2, 0.5, 0.5, 0.6), (5, 0.5, 0.5, 0.230769), (5, 0.9, 0.1, 0.411765)):
        q = torch.full((1, 1, n), (w_i + n * w_c) / (w_i + n**2 * w_c), dtype=torch.float64, requires_grad=True)
        np.testing.assert_allclose(q[0, 0, 0].item(), expected, atol=1e-6)
        one, mask = torch.ones(1, 1, 1, dtype=torch.float64), torch.ones(1, 1, n, dtype=torch.float64)

        def loss(mixer, q=q, one=one, mask=mask, w_i=w_i, w_c=w_c):
            q_tot = mixer(q, torch.zeros(1, 1, 1))
            return w_i * td_loss(q, one.expand_as(q), mask) + w_c * td_loss(q_tot, one, one)

        slope = torch.autograd.grad(loss(VDNMixer()), q)[0]
        assert slope.abs().max() < 1e-12  # the loss is convex, so this is its minimum: far from R = 1
        with torch.no_grad():
            q.fill_(1.0)
        assert loss(VDNMeanMixer()).item() == 0.0  # divided by N, the sum has no conflict
