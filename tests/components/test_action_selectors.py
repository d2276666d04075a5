"""Selectors: their frequencies over many draws (within four standard deviations), and availability."""

from types import SimpleNamespace

import pytest
import torch

from components.action_selectors import (
    REGISTRY,
    EpsilonGreedyActionSelector,
    MultinomialActionSelector,
    OneAtATimeActionSelector,
)

DRAWS = 20000


def make(kind, epsilon=0.0, finish=None, test_greedy=True, test_epsilon=0.0):
    return kind(
        SimpleNamespace(
            epsilon_start=epsilon,
            epsilon_finish=epsilon if finish is None else finish,
            epsilon_anneal_time=100,
            test_greedy=test_greedy,
            test_epsilon=test_epsilon,
        )
    )


def frequencies(actions, n_actions=4):
    return torch.bincount(actions.flatten(), minlength=n_actions) / actions.numel()


def assert_frequencies(actual, expected, draws=DRAWS):
    expected = torch.tensor(expected)
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert ((actual - expected).abs() <= 4 * deviation).all(), f"{actual.tolist()}, expected {expected.tolist()}"


def test_registry_holds_pymarls_names():
    assert REGISTRY["epsilon_greedy"] is EpsilonGreedyActionSelector
    assert REGISTRY["multinomial"] is MultinomialActionSelector
    assert REGISTRY["one_at_a_time"] is OneAtATimeActionSelector


def test_epsilon_greedy_frequencies():
    torch.manual_seed(0)
    q = torch.tensor([1.0, 3.0, 2.0, 5.0]).expand(DRAWS, 1, 4)
    # .4 is spread over all four actions, the best keeps .6 besides
    all_four = make(EpsilonGreedyActionSelector, 0.4).select_action(q, torch.ones(DRAWS, 1, 4).int(), t_env=0)
    assert_frequencies(frequencies(all_four), [0.1, 0.1, 0.1, 0.7])
    # .9 is spread over the three available ones, the best of them keeps .1 besides
    avail = torch.tensor([1, 1, 1, 0]).expand(DRAWS, 1, 4)
    three = make(EpsilonGreedyActionSelector, 0.9).select_action(q, avail, t_env=0)
    assert_frequencies(frequencies(three), [0.3, 0.4, 0.3, 0.0])


def test_agents_explore_independently():
    torch.manual_seed(1)
    q = torch.tensor([1.0, 0.0]).expand(DRAWS, 2, 2)
    actions = make(EpsilonGreedyActionSelector, 0.4).select_action(q, torch.ones(DRAWS, 2, 2).int(), t_env=0)
    assert actions.shape == (DRAWS, 2)
    joint = frequencies(actions[:, 0] * 2 + actions[:, 1])
    assert_frequencies(joint, [0.64, 0.16, 0.16, 0.04])  # .8 and .2 for each


def test_greedy_takes_the_best_available():
    selector = make(EpsilonGreedyActionSelector)
    q = torch.tensor([[[1.0, 3.0, 2.0], [-5.0, -6.0, -7.0]], [[1e6, -1.0, -2.0], [0.0, float("nan"), 1.0]]])
    avail = torch.tensor([[[1, 1, 1], [0, 1, 1]], [[0, 1, 1], [1, 0, 1]]])
    assert selector.select_action(q, avail, t_env=0).tolist() == [[1, 1], [1, 2]]


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 0.99])
def test_epsilon_greedy_never_takes_unavailable_actions(epsilon):
    torch.manual_seed(2)
    avail = (torch.rand(5000, 2, 5) < 0.4).int()
    avail[..., 3] |= avail.sum(-1) == 0
    q = torch.randn(5000, 2, 5) - 10 * avail  # the unavailable ones look best
    actions = make(EpsilonGreedyActionSelector, epsilon).select_action(q, avail, t_env=0)
    assert (avail.gather(2, actions.unsqueeze(-1)) == 1).all()


def test_tests_are_greedy():
    torch.manual_seed(3)
    selector = make(EpsilonGreedyActionSelector, 0.9)
    q = torch.randn(1000, 2, 4)
    actions = selector.select_action(q, torch.ones(1000, 2, 4).int(), t_env=0, test_mode=True)
    assert (actions == q.argmax(-1)).all()
    assert selector.epsilon == 0.0
    selector.select_action(q, torch.ones(1000, 2, 4).int(), t_env=0)
    assert selector.epsilon == 0.9


@pytest.mark.parametrize("kind", [EpsilonGreedyActionSelector, MultinomialActionSelector])
def test_epsilon_falls_linearly_with_the_environment_steps(kind):
    selector = make(kind, 1.0, finish=0.2)
    assert selector.epsilon == 1.0
    outputs, avail = torch.full((1, 1, 2), 0.5), torch.ones(1, 1, 2).int()
    for t_env, epsilon in [(50, 0.6), (100, 0.2), (500, 0.2)]:
        selector.select_action(outputs, avail, t_env=t_env)
        assert selector.epsilon == pytest.approx(epsilon)


@pytest.mark.parametrize("test_mode", [False, True])
def test_multinomial_frequencies(test_mode):
    torch.manual_seed(4)
    policy = torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(DRAWS, 1, 4)
    selector = make(MultinomialActionSelector, test_greedy=False)
    actions = selector.select_action(policy, torch.ones(DRAWS, 1, 4).int(), t_env=0, test_mode=test_mode)
    assert_frequencies(frequencies(actions), [0.1, 0.2, 0.3, 0.4])
    # Without the last the others share its part: 1/6, 1/3, 1/2.
    avail = torch.tensor([1, 1, 1, 0]).expand(DRAWS, 1, 4)
    actions = selector.select_action(policy, avail, t_env=0, test_mode=test_mode)
    assert_frequencies(frequencies(actions), [1 / 6, 1 / 3, 1 / 2, 0.0])


def test_multinomial_draws_agents_independently():
    torch.manual_seed(5)
    policy = torch.tensor([[0.8, 0.2], [0.4, 0.6]]).expand(DRAWS, 2, 2)
    actions = make(MultinomialActionSelector).select_action(policy, torch.ones(DRAWS, 2, 2).int(), t_env=0)
    assert_frequencies(frequencies(actions[:, 0] * 2 + actions[:, 1]), [0.32, 0.48, 0.08, 0.12])


def test_multinomial_never_takes_unavailable_actions():
    torch.manual_seed(6)
    avail = (torch.rand(5000, 2, 5) < 0.4).int()
    avail[..., 3] |= avail.sum(-1) == 0
    policy = torch.rand(5000, 2, 5)
    selector = make(MultinomialActionSelector)
    for test_mode in (False, True):
        actions = selector.select_action(policy, avail, t_env=0, test_mode=test_mode)
        assert (avail.gather(2, actions.unsqueeze(-1)) == 1).all()


def test_multinomial_tests_take_the_likeliest_available_action():
    selector = make(MultinomialActionSelector)
    policy = torch.tensor([[[0.2, 0.5, 0.3], [0.2, 0.5, 0.3]]])
    avail = torch.tensor([[[1, 1, 1], [1, 0, 1]]])
    assert selector.select_action(policy, avail, t_env=0, test_mode=True).tolist() == [[1, 2]]


def test_tests_may_explore_by_an_epsilon_of_their_own():
    torch.manual_seed(7)
    selector = make(EpsilonGreedyActionSelector, 1.0, test_epsilon=0.4)
    q = torch.tensor([1.0, 3.0, 2.0, 5.0]).expand(DRAWS, 1, 4)
    actions = selector.select_action(q, torch.ones(DRAWS, 1, 4).int(), t_env=0, test_mode=True)
    assert_frequencies(frequencies(actions), [0.1, 0.1, 0.1, 0.7])
    assert selector.epsilon == 0.4


# The probabilities that actions were drawn with

Q_ROWS = torch.tensor([[1.0, 3.0, 9.0, 2.0], [0.5, 0.1, 0.2, -4.0]])
AVAIL_ROWS = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1]])


@pytest.mark.parametrize(("epsilon", "test_mode"), [(0.6, False), (0.0, False), (1.0, False), (0.6, True)])
def test_the_policy_of_epsilon_greedy_is_what_it_plays(epsilon, test_mode):
    torch.manual_seed(8)
    selector = make(EpsilonGreedyActionSelector, epsilon, test_epsilon=0.3)
    q, avail = Q_ROWS.expand(DRAWS, 2, 4), AVAIL_ROWS.expand(DRAWS, 2, 4)
    actions = selector.select_action(q, avail, t_env=0, test_mode=test_mode)
    policy = selector.policy(q, avail)
    assert policy.shape == (DRAWS, 2, 4)
    used = 0.3 if test_mode else epsilon
    # epsilon over three available actions, and the rest on the best of them
    expected = torch.tensor([[1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0]]) * used / 3
    expected[0, 1] += 1 - used
    expected[1, 2] += 1 - used
    torch.testing.assert_close(policy, expected.expand(DRAWS, 2, 4))
    for i in range(2):
        assert_frequencies(frequencies(actions[:, i]), policy[0, i].tolist())


def test_the_policy_follows_the_last_selections_epsilon():
    selector = make(EpsilonGreedyActionSelector, 1.0, finish=0.0)
    q, avail = Q_ROWS.unsqueeze(0), AVAIL_ROWS.unsqueeze(0)
    for t_env, best in [(0, 1 / 3), (50, 1 / 6 + 0.5), (100, 1.0)]:
        selector.select_action(q, avail, t_env=t_env)
        assert selector.policy(q, avail)[0, 0, 1].item() == pytest.approx(best)


def test_policies_of_padding_are_numbers():
    """Where nothing is available, as behind the end of an episode."""
    nothing = torch.zeros(1, 2, 4).int()
    assert torch.isfinite(make(EpsilonGreedyActionSelector, 0.6).policy(Q_ROWS.unsqueeze(0), nothing)).all()


def test_the_policy_of_multinomial_is_what_it_plays():
    torch.manual_seed(9)
    selector = make(MultinomialActionSelector)
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]).expand(DRAWS, 2, 4)
    avail = AVAIL_ROWS.expand(DRAWS, 2, 4)
    actions = selector.select_action(weights, avail, t_env=0)
    policy = selector.policy(weights, avail)
    torch.testing.assert_close(policy[0], torch.tensor([[1 / 7, 2 / 7, 0.0, 4 / 7], [0.0, 0.5, 1 / 3, 1 / 6]]))
    for i in range(2):
        assert_frequencies(frequencies(actions[:, i]), policy[0, i].tolist())


# One at a time


def test_one_agent_at_a_time_leaves_the_others_at_rest():
    torch.manual_seed(10)
    N = 3
    values, avail = torch.randn(DRAWS, N, 2), torch.ones(DRAWS, N, 2).int()
    selector = make(OneAtATimeActionSelector, 0.0)
    actions = selector.select_action(values, avail, t_env=0)
    assert (actions.sum(dim=1) == 1).all()
    assert_frequencies(frequencies(actions.argmax(dim=1), N), [1 / 3] * N)
    # With probability .4 all play uniformly: each of the 8 joint actions .05, and .2 more for one agent alone.
    selector = make(OneAtATimeActionSelector, 0.4)
    actions = selector.select_action(values, avail, t_env=0)
    joint = frequencies(actions[:, 0] * 4 + actions[:, 1] * 2 + actions[:, 2], 8)
    assert_frequencies(joint, [0.05, 0.25, 0.25, 0.05, 0.25, 0.05, 0.05, 0.05])
    # Its policy is each agent's own share: .4 / 2 + .6 / 3 for action 1.
    policy = selector.policy(values, avail)
    torch.testing.assert_close(policy, torch.tensor([0.6, 0.4]).expand(DRAWS, N, 2))
    for i in range(N):
        assert_frequencies(frequencies(actions[:, i], 2), policy[0, i].tolist())


def test_one_at_a_time_is_greedy_in_tests():
    torch.manual_seed(11)
    values, avail = torch.randn(500, 3, 2), torch.ones(500, 3, 2).int()
    actions = make(OneAtATimeActionSelector, 0.9).select_action(values, avail, t_env=0, test_mode=True)
    assert (actions == values.argmax(dim=-1)).all()
