"""Section 8 of docs/theory.md: what a model of the behaviour policy can and cannot represent."""

import math

import numpy as np
import torch

from objectives.behaviour import (
    epsilon_greedy_policy,
    evidence_lower_bound,
    expected_value,
    sampled_log_likelihood,
)
from objectives.conservative import agent_gaps
from theory.reference import kl, sup, tensor

# A model with one binary latent: p(z) is even, p(a = 0 | z) is .9 or .2, so that p(a = 0) = .55.
PRIOR, DECODED = np.array([0.5, 0.5]), np.array([0.9, 0.2])
TRUE = math.log(PRIOR @ DECODED)


def test_8_stored_probabilities():
    """Section 8: the gap to E_beta Q has the mean of the gap to Q(a_data) and none of its noise (Rao-Blackwell)."""
    rng = np.random.default_rng(8)
    batches, rows, n_actions, epsilon = 2000, 32, 6, 0.2
    q = tensor(2 * rng.normal(size=(batches, rows, 1, n_actions)))
    avail = torch.ones_like(q)
    beta = epsilon_greedy_policy(torch.tensor(rng.integers(n_actions, size=(batches, rows, 1, 1))), epsilon, avail)
    drawn = (beta.cumsum(dim=-1) > tensor(rng.random((batches, rows, 1, 1)))).int().argmax(dim=-1, keepdim=True)
    one = agent_gaps(q, avail, q.gather(-1, drawn).squeeze(-1), "max").mean(dim=(1, 2))
    exact = agent_gaps(q, avail, expected_value(q, beta), "max").mean(dim=(1, 2))
    error = (one - exact).numpy()
    assert abs(error.mean()) < 4 * error.std() / math.sqrt(batches)  # the same expectation
    np.testing.assert_allclose(error.std(), 0.19, atol=0.02)  # the noise of a batch of 32, which E_beta Q has not


def test_8_categorical_head():
    """Section 8: a loose posterior bounds an agent's marginal, which a categorical head has, by -.857; true -.598."""
    np.testing.assert_allclose(TRUE, -0.597837, atol=1e-6)
    exact = PRIOR * DECODED / (PRIOR @ DECODED)
    for posterior, expected in ((exact, TRUE), (np.array([0.5, 0.5]), -0.857399), (np.array([0.99, 0.01]), -0.757553)):
        expectation = (posterior * np.log(DECODED)).sum()  # E_q log p(a | z), of both latents
        bound = evidence_lower_bound(tensor([[expectation]]), tensor([kl(posterior, PRIOR)])).item()
        np.testing.assert_allclose(bound, expected, atol=1e-5)
        assert bound <= TRUE + 1e-12


def test_8_sampled_likelihood():
    """Section 8: the log of an average of K samples is too low: -.857, -.657, -.611 for K = 1, 4, 16, true -.598."""
    rng = np.random.default_rng(9)
    for k, expected in ((1, -0.857399), (4, -0.656967), (16, -0.610993)):
        # exactly, by the number of samples with z = 1
        counts = np.arange(k + 1)
        chances = np.array([math.comb(k, c) for c in counts]) / 2.0**k
        mean = (chances * np.log((counts * DECODED[1] + (k - counts) * DECODED[0]) / k)).sum()
        np.testing.assert_allclose(mean, expected, atol=1e-5)
        assert mean < TRUE
        z = rng.integers(2, size=(k, 20_000))
        estimate = sampled_log_likelihood(tensor(np.log(DECODED[z])))
        np.testing.assert_allclose(estimate.mean(), mean, atol=0.02)


def test_8_replay_is_a_mixture():
    """Section 8: agents cloned apart lose log 2 nats of a replay of (0, 1), (1, 0); half goes to unseen pairs."""
    joint = np.array([[0.0, 0.5], [0.5, 0.0]])
    apart = np.multiply.outer(joint.sum(axis=1), joint.sum(axis=0))
    np.testing.assert_allclose(kl(joint.ravel(), apart.ravel()), math.log(2))
    assert apart[joint == 0].sum() == 0.5
    # One latent for the whole episode, z = which policy played: a mixture of products is the replay itself.
    policies = np.eye(2)[[[0, 1], [1, 0]]]  # [z, agent, action]
    mixture = np.mean([np.multiply.outer(*policies[z]) for z in range(2)], axis=0)
    np.testing.assert_allclose(kl(joint.ravel(), np.where(joint > 0, mixture, 1.0).ravel()), 0.0, atol=1e-12)


def test_8_what_needs_a_model():
    """Section 8: max and lse gaps to the logged action need no model of beta; lse_beta, ratios and chi^2 do."""
    q = np.array([1.0, 2.0, 3.0])
    for op in ("max", "lse"):
        assert sup(q, op, beta=None) == sup(q, op, beta=np.array([0.2, 0.5, 0.3]))
    assert sup(q, "lse_beta", beta=np.array([0.2, 0.5, 0.3])) != sup(q, "lse_beta", beta=np.array([0.3, 0.5, 0.2]))
