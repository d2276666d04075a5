"""Behaviour policies: hand-computed numbers, nested loops, the selector that plays, bounds that are biased low."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from components.action_selectors import EpsilonGreedyActionSelector
from objectives.behaviour import (
    calibration_error,
    cloning_loss,
    episode_log_likelihood,
    epsilon_greedy_policy,
    evidence_lower_bound,
    expected_value,
    gaussian_kl,
    model_loss,
    sampled_log_likelihood,
)
from objectives.conservative import agent_gaps, sup_value

NAN, INF = float("nan"), float("inf")
WILD = [1e6, NAN, INF, -INF]


def t64(values):
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=tolerance)


def random_episodes(K=2, B=3, T=4, N=2, A=5, seed=0):
    """Policies of K latents (K, B, T, N, A) that play available actions only, such actions, and a mask with padding."""
    rng = torch.Generator().manual_seed(seed)
    avail = torch.rand(B, T, N, A, generator=rng) < 0.6
    avail[..., 0] |= ~avail.any(-1)
    logits = 2 * torch.randn(K, B, T, N, A, generator=rng, dtype=torch.float64)
    log_beta = torch.log_softmax(logits.masked_fill(~avail, -torch.inf), dim=-1)
    actions = torch.multinomial(avail.double().view(-1, A), 1, generator=rng).view(B, T, N, 1)
    lengths = torch.tensor([T, 1, T - 1][:B])
    mask = (torch.arange(T) < lengths.unsqueeze(1)).double().unsqueeze(-1)  # (B, T, 1)
    return log_beta, actions, mask


def random_posterior(B=3, L=2, seed=1):
    rng = torch.Generator().manual_seed(seed)
    mean, logvar = torch.randn(2, B, L, generator=rng, dtype=torch.float64)
    return mean, logvar


# --- epsilon-greedy play


def test_epsilon_greedy_by_hand():
    avail = torch.tensor([[1, 1, 0, 1], [0, 0, 1, 0]])
    greedy = torch.tensor([[3], [2]])
    close(epsilon_greedy_policy(greedy, 0.3, avail), [[0.1, 0.1, 0.0, 0.8], [0.0, 0.0, 1.0, 0.0]])
    close(epsilon_greedy_policy(greedy, 0.0, avail), [[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]], 0)
    close(epsilon_greedy_policy(greedy, 1.0, avail)[0], [1 / 3, 1 / 3, 0.0, 1 / 3])
    # each row its own epsilon
    close(epsilon_greedy_policy(greedy, torch.tensor([[0.6], [0.5]]), avail)[0], [0.2, 0.2, 0.0, 0.6])


def test_epsilon_greedy_of_padding_is_zero_and_not_nan():
    avail = torch.tensor([[0, 0, 0], [1, 0, 1]])
    close(epsilon_greedy_policy(torch.tensor([[0], [2]]), 0.5, avail), [[0.0, 0.0, 0.0], [0.25, 0.0, 0.75]], 0)


class Constant:
    """The selector's settings: epsilon stays what it is."""

    epsilon_start = epsilon_finish = 0.4
    epsilon_anneal_time = 1
    test_epsilon = 0.0


def test_epsilon_greedy_is_what_the_selector_plays():
    torch.manual_seed(0)
    q = t64([[[1.0, 3.0, 9.0, 2.0], [0.5, 0.1, 0.2, -4.0]]])
    avail = torch.tensor([[[1, 1, 0, 1], [0, 1, 1, 1]]])
    rows = 40_000
    selector = EpsilonGreedyActionSelector(Constant)
    played = selector.select_action(q.expand(rows, -1, -1), avail.expand(rows, -1, -1), t_env=0)  # (rows, 2)
    greedy = q.masked_fill(avail == 0, -torch.inf).argmax(dim=-1, keepdim=True)
    beta = epsilon_greedy_policy(greedy, 0.4, avail)
    close(torch.nn.functional.one_hot(played, 4).double().mean(dim=0), beta[0].double(), 0.01)
    # E_beta[Q] has the mean of Q(a_data), and not the noise of a batch of 32: the policy's deviation over sqrt 32.
    sampled = q.expand(rows, -1, -1).gather(2, played.unsqueeze(-1)).squeeze(-1)
    expected = expected_value(q.unsqueeze(0), beta.double().unsqueeze(0))[0, 0]
    close(sampled.mean(dim=0), expected, 0.02)
    deviation = expected_value((q - expected.unsqueeze(-1)).square().unsqueeze(0), beta.double().unsqueeze(0)).sqrt()
    close(sampled.view(-1, 32, 2).mean(dim=1).std(dim=0), deviation[0, 0] / math.sqrt(32), 0.01)


# --- expected values


@pytest.mark.parametrize("wild", [-0.5, *WILD])
def test_n1_expected_value_ignores_what_is_never_played(wild):
    q = t64([1.0, 2.0, wild, 3.0]).view(1, 1, 1, 4).requires_grad_()
    beta = t64([0.2, 0.5, 0.0, 0.3]).view(1, 1, 1, 4).requires_grad_()
    value = expected_value(q, beta)
    close(value, [[[2.1]]])  # .2 * 1 + .5 * 2 + .3 * 3
    value.sum().backward()
    close(q.grad, beta.detach(), 0)
    assert beta.grad is None


def test_n1_gap_to_the_stored_behaviour():
    q, beta = t64([1.0, 2.0, -0.5, 3.0]).view(1, 1, 1, 4), t64([0.2, 0.5, 0.0, 0.3]).view(1, 1, 1, 4)
    avail = torch.tensor([1, 1, 0, 1]).view(1, 1, 1, 4)
    close(agent_gaps(q, avail, expected_value(q, beta), "max"), [[[0.9]]])
    # With the logged action for sure, it is the gap to that action.
    one_hot = t64([0.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 4)
    close(sup_value(q, avail, "max") - expected_value(q, one_hot), [[[1.0]]])


def test_expected_value_equals_nested_loops():
    log_beta, _, _ = random_episodes()
    beta = log_beta[0].exp()
    q = torch.randn(beta.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = torch.zeros(3, 4, 2, dtype=torch.float64)
    for b, t, i, k in torch.cartesian_prod(*map(torch.arange, beta.shape)).tolist():
        expected[b, t, i] += beta[b, t, i, k] * q[b, t, i, k]
    close(expected_value(q, beta), expected, 1e-12)


# --- likelihoods


def test_cloning_loss_by_hand():
    # two agents, a played step and one of padding, of which nothing counts
    log_beta = t64([[[[0.5, 0.5], [0.8, 0.2]], [[0.9, 0.1], [NAN, NAN]]]]).log()
    actions, mask = torch.tensor([[[[0], [1]], [[1], [0]]]]), t64([[[1.0], [0.0]]])
    close(cloning_loss(log_beta, actions, mask), -(math.log(0.5) + math.log(0.2)) / 2)
    close(episode_log_likelihood(log_beta.unsqueeze(0), actions, mask), [[math.log(0.1)]])


def test_likelihoods_equal_nested_loops():
    log_beta, actions, mask = random_episodes()
    K, B, T, N, _ = log_beta.shape
    expected = torch.zeros(K, B, dtype=torch.float64)
    for k, b, t, i in torch.cartesian_prod(*map(torch.arange, (K, B, T, N))).tolist():
        if mask[b, t, 0]:
            expected[k, b] += log_beta[k, b, t, i, actions[b, t, i, 0]]
    close(episode_log_likelihood(log_beta, actions, mask), expected, 1e-12)
    decisions = 2 * (4 + 1 + 3)
    close(cloning_loss(log_beta[1], actions, mask), -expected[1].sum() / decisions, 1e-12)
    close(sampled_log_likelihood(expected), ((expected[0].exp() + expected[1].exp()) / 2).log(), 1e-12)


def test_gaussian_kl():
    # a mean of 1: 1/2; a deviation of 2: (4 - 1 - log 4) / 2
    close(gaussian_kl(t64([[1.0], [0.0]]), t64([[0.0], [math.log(4)]])), [0.5, 0.806853])
    close(gaussian_kl(torch.zeros(3, 5), torch.zeros(3, 5)), torch.zeros(3), 0)
    mean, logvar = random_posterior()
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(t64(0.0), t64(1.0))).sum(dim=-1)
    close(gaussian_kl(mean, logvar), expected, 1e-12)


# --- a latent of two classes: p(a | z) = .9 and .2, equally likely, so p(a) = .55

DECODER = (0.9, 0.2)
TRUE = math.log(0.55)


def two_classes(zs) -> torch.Tensor:
    """log p(a | z_k) for latents zs of one agent's one decision, (K, 1)."""
    log_beta = t64([[[[[DECODER[z], 1 - DECODER[z]]]]] for z in zs]).log()
    return episode_log_likelihood(log_beta, torch.zeros(1, 1, 1, 1, dtype=torch.long), torch.ones(1, 1, 1))


def test_the_bound_is_below_the_likelihood():
    prior = evidence_lower_bound(two_classes([0, 1]), torch.zeros(1))  # q is the prior: no divergence
    close(prior, [-0.857399])  # (log .9 + log .2) / 2
    assert prior < TRUE
    # The true posterior, 9 to 2, makes it exact; its divergence from the prior is log 2 - H(9/11, 2/11).
    kl = math.log(2) + (9 * math.log(9 / 11) + 2 * math.log(2 / 11)) / 11
    close(evidence_lower_bound(two_classes([0] * 9 + [1] * 2), t64([kl])), [TRUE])
    close(evidence_lower_bound(two_classes([0]), t64([3.0]), kl_weight=0.5), [math.log(0.9) - 1.5])


def test_the_logarithm_of_an_average_of_samples_is_biased_low():
    """Exactly, over all draws of K latents: method, section 8, had -.853, -.654 and -.611 by simulation."""
    expectation = {}
    for K in (1, 4, 16):
        estimates = torch.cat([sampled_log_likelihood(two_classes([0] * m + [1] * (K - m))) for m in range(K + 1)])
        expectation[K] = sum(math.comb(K, m) / 2**K * estimates[m].item() for m in range(K + 1))
    assert expectation[1] < expectation[4] < expectation[16] < TRUE
    assert expectation == pytest.approx({1: -0.857399, 4: -0.655, 16: -0.611}, abs=2e-3)


def test_a_product_of_clones_loses_log_2_nats_of_two_policies():
    """The replay holds (0, 1) and (1, 0). Each agent plays either action half of the time, but never independently."""
    actions = torch.tensor([[[[0], [1]]], [[[1], [0]]]])  # (2, 1, 2, 1)
    mask = torch.ones(2, 1, 1)
    clone = torch.full((1, 2, 1, 2, 2), 0.5, dtype=torch.float64)
    policies = torch.nn.functional.one_hot(actions.squeeze(-1), 2).double()  # (2 latents, 1, 2, 2)
    latent = policies.unsqueeze(1).expand(2, 2, 1, 2, 2)
    product = episode_log_likelihood(clone.log(), actions, mask)[0]
    mixture = sampled_log_likelihood(episode_log_likelihood(latent.log(), actions, mask))
    close(mixture, [-math.log(2)] * 2)
    close(mixture - product, [math.log(2)] * 2)
    joint = torch.outer(clone[0, 0, 0, 0], clone[0, 0, 0, 1])
    close(joint[0, 0] + joint[1, 1], 0.5)  # mass where nobody ever was


# --- calibration


def test_calibration_by_hand():
    # agent 1 is given .8 and right once of twice, agent 2 .6 and right twice: |1 - 1.6| / 4 + |2 - 1.2| / 4
    log_beta = t64([[[[0.8, 0.2], [0.4, 0.6]], [[0.8, 0.2], [0.4, 0.6]]]]).log()
    actions = torch.tensor([[[[0], [1]], [[1], [1]]]])
    close(calibration_error(log_beta, actions, torch.ones(1, 2, 1)), 0.35)
    close(calibration_error(log_beta, actions, torch.ones(1, 2, 1), bins=1), 0.05)  # |3 - 2.8| / 4
    close(calibration_error(log_beta, actions, t64([[[1.0], [0.0]]])), 0.3)  # (.2 + .4) / 2
    # .5 lies in the first of two bins: |1 - .5| / 2 + |0 - .9| / 2
    edge = t64([[[[0.5, 0.5], [0.1, 0.9]]]]).log().requires_grad_()
    error = calibration_error(edge, torch.zeros(1, 1, 2, 1, dtype=torch.long), torch.ones(1, 1, 1), bins=2)
    close(error, 0.7)
    assert not error.requires_grad


@pytest.mark.parametrize("bins", [1, 5, 10])
def test_calibration_equals_nested_loops(bins):
    log_beta, actions, mask = random_episodes(K=1, B=3, T=40, N=3)
    log_beta = log_beta[0]
    confidence, correct = [[] for _ in range(bins)], [[] for _ in range(bins)]
    for b, t, i in torch.cartesian_prod(*map(torch.arange, log_beta.shape[:3])).tolist():
        if mask[b, t, 0]:
            p = log_beta[b, t, i].exp().tolist()
            best = max(range(len(p)), key=p.__getitem__)
            place = next(m for m in range(bins) if p[best] <= (m + 1) / bins or m == bins - 1)
            confidence[place].append(p[best])
            correct[place].append(best == actions[b, t, i, 0].item())
    n = sum(map(len, correct))
    error = sum(abs(sum(correct[m]) - sum(confidence[m])) for m in range(bins)) / n
    close(calibration_error(log_beta, actions, mask, bins), error, 1e-12)


def test_calibration_of_the_true_policy_is_nearly_zero_and_of_a_bold_one_is_not():
    rng = torch.Generator().manual_seed(4)
    log_beta = torch.log_softmax(torch.randn(500, 20, 2, 3, generator=rng), dim=-1)
    actions = torch.multinomial(log_beta.exp().view(-1, 3), 1, generator=rng).view(500, 20, 2, 1)
    mask = torch.ones(500, 20, 1)
    assert calibration_error(log_beta, actions, mask) < 0.02
    assert calibration_error(torch.log_softmax(5 * log_beta, dim=-1), actions, mask) > 0.2


# --- the models' loss


def test_model_loss_without_a_latent_is_the_cloning_loss():
    log_beta, actions, mask = random_episodes(K=1)
    log_beta.requires_grad_()
    loss, stats = model_loss(log_beta, None, actions, mask, kl_weight=7.0)
    cloning = cloning_loss(log_beta[0], actions, mask)
    close(loss, cloning, 0)
    close(*(torch.autograd.grad(x, log_beta)[0] for x in (loss, cloning)), 0)
    assert set(stats) == {"behaviour_log_likelihood", "behaviour_calibration_error"}
    close(stats["behaviour_log_likelihood"], -loss.detach(), 1e-12)
    close(stats["behaviour_calibration_error"], calibration_error(log_beta[0], actions, mask), 1e-12)


def test_model_loss_with_a_latent_is_the_bound_per_decision():
    log_beta, actions, mask = random_episodes()
    mean, logvar = random_posterior()
    leaves = [x.clone().requires_grad_() for x in (log_beta, mean, logvar)]
    loss, stats = model_loss(leaves[0], (leaves[1], leaves[2]), actions, mask, kl_weight=0.3)
    log_likelihood = episode_log_likelihood(log_beta, actions, mask)
    kl = gaussian_kl(mean, logvar)
    close(loss.detach(), -evidence_lower_bound(log_likelihood, kl, 0.3).sum() / 16, 1e-12)
    close(stats["behaviour_log_likelihood"], log_likelihood.sum() / 2 / 16, 1e-12)
    close(stats["behaviour_kl"], kl.mean(), 1e-12)
    average = ((log_beta[0].exp() + log_beta[1].exp()) / 2).log()
    close(stats["behaviour_calibration_error"], calibration_error(average, actions, mask), 1e-12)
    assert not any(value.requires_grad or value.dim() for value in stats.values())


def test_an_episode_of_padding_changes_nothing():
    log_beta, actions, mask = random_episodes()
    posterior = random_posterior()
    mask[1] = 0
    kept = torch.tensor([0, 2])
    whole = model_loss(log_beta, posterior, actions, mask, 0.5)
    parts = [x[kept] for x in posterior]
    without = model_loss(log_beta[:, kept], (parts[0], parts[1]), actions[kept], mask[kept], 0.5)
    close(whole[0], without[0], 1e-12)
    for key, value in without[1].items():
        close(whole[1][key], value, 1e-12)


@pytest.mark.parametrize("wild", WILD)
def test_padding_changes_neither_losses_nor_gradients(wild):
    clean, actions, mask = random_episodes()
    mean, logvar = random_posterior()
    padded = (mask == 0).unsqueeze(-1).expand(clean.shape[1:])  # (B, T, N, A)
    other_actions = torch.where(mask.unsqueeze(-1).bool(), actions, (actions + 1) % 5)
    results = []
    for log_beta, taken in ((clean, actions), (clean.masked_fill(padded, wild), other_actions)):
        log_beta = log_beta.clone().requires_grad_()
        loss, stats = model_loss(log_beta, (mean, logvar), taken, mask, 1.0)
        (loss + cloning_loss(log_beta[0], taken, mask)).backward()
        results.append([loss.detach(), log_beta.grad, *stats.values()])
    for dirty, value in zip(*reversed(results), strict=True):
        close(dirty, value, 0)
    assert (results[0][1][:, padded] == 0).all()
    assert (results[0][1] != 0).any()


def test_shape_errors_name_both_shapes():
    q, actions, mask = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 1, dtype=torch.long), torch.ones(2, 3, 1)
    cases = [
        (lambda: epsilon_greedy_policy(actions[..., 0], 0.1, q), "(2, 3, 4, 1)", "(2, 3, 4)"),
        (lambda: epsilon_greedy_policy(actions, mask, q), "(2, 3, 4, 1)", "(2, 3, 1)"),
        (lambda: expected_value(q, q[..., :1]), "(2, 3, 4, 5)", "(2, 3, 4, 1)"),
        (lambda: cloning_loss(q, actions[..., 0], mask), "(2, 3, 4, 1)", "(2, 3, 4)"),
        (lambda: cloning_loss(q, actions, mask.squeeze(-1)), "(2, 3, 1)", "(2, 3)"),
        (lambda: episode_log_likelihood(q, actions, mask), "(3, 4, 1)", "(2, 3, 4, 1)"),
        (lambda: calibration_error(q, actions[:, :, :1], mask), "(2, 3, 4, 1)", "(2, 3, 1, 1)"),
        (lambda: calibration_error(q, actions, mask[:1]), "(2, 3, 1)", "(1, 3, 1)"),
        (lambda: gaussian_kl(q[0, 0], q[0, 0, :, :1]), "(4, 5)", "(4, 1)"),
        (lambda: evidence_lower_bound(q[0, 0], q[0, 0]), "(5)", "(4, 5)"),
        (lambda: sampled_log_likelihood(q), "(any, any)", "(2, 3, 4, 5)"),
        (lambda: model_loss(q, None, actions, mask, 1.0), "(3, 4, 1)", "(2, 3, 4, 1)"),
    ]
    for call, one, other in cases:
        with pytest.raises(ValueError, match="shape") as raised:
            call()
        assert one in str(raised.value)
        assert other in str(raised.value)
