"""Selectors: their frequencies over many draws (within four standard deviations), and availability."""

from types import SimpleNamespace

import pytest
import torch

from components.action_selectors import REGISTRY, EpsilonGreedyActionSelector, MultinomialActionSelector

DRAWS = 20000


def make(kind, epsilon=0.0, finish=None, test_greedy=True):
    return kind(
        SimpleNamespace(
            epsilon_start=epsilon,
            epsilon_finish=epsilon if finish is None else finish,
            epsilon_anneal_time=100,
            test_greedy=test_greedy,
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
