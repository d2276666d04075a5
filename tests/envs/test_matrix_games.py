"""The matrix games, payoff by payoff, against tables written out again by hand."""

from itertools import product
from pathlib import Path

import pytest
import torch
import yaml

from envs.matrix_games import MatrixGameVectorEnv
from utils.errors import UserError

CONFIG = Path(__file__).parents[2] / "src/config/envs/matrix_games.yaml"

JOINT_ACTIONS = list(product(range(3), repeat=2))  # (0, 0), (0, 1), (0, 2), (1, 0), ...
# game -> (payoffs of these nine joint actions, number of repeats), with k = -100.
STATELESS = {
    "climbing": ([11, -30, 0, -30, 7, 0, 0, 6, 5], 25),
    "penalty": ([-100, 0, 10, 0, 2, 0, 10, 0, -100], 25),
    "nonmonotone": ([8, -12, -12, -12, 0, 0, -12, 0, 0], 1),
    "monotone": ([12, -0.1, -0.1, -0.1, 0, 0, -0.1, 0, 0], 1),
}
IN_1, IN_2A, IN_2B = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]


def make(game="two_step", n_envs=1, k=-100, repeats=None, seed=None):
    return MatrixGameVectorEnv(n_envs=n_envs, device="cpu", game=game, k=k, repeats=repeats, seed=seed)


def assert_shows(observation, states):
    """Both agents and the state show `states` (E, S), and every action is available."""
    states = torch.tensor(states)
    torch.testing.assert_close(observation.state, states, rtol=0, atol=0)
    torch.testing.assert_close(observation.obs, torch.stack([states, states], dim=1), rtol=0, atol=0)
    assert observation.avail.dtype == torch.int32
    assert (observation.avail == 1).all()


@pytest.mark.parametrize("game", STATELESS)
def test_stateless_games_pay_their_table_in_whole_episodes(game):
    payoffs, repeats = STATELESS[game]
    env = make(game, n_envs=9)  # environment e plays the e-th joint action throughout
    actions = torch.tensor(JOINT_ACTIONS)
    expected = torch.tensor(payoffs, dtype=torch.float32)
    assert_shows(env.reset(), [[1.0]] * 9)
    for _episode in range(2):
        for repeat in range(1, repeats + 1):
            step = env.step(actions)
            torch.testing.assert_close(step.reward, expected, rtol=0, atol=0)
            assert step.terminated.tolist() == [repeat == repeats] * 9
            assert step.truncated.tolist() == [False] * 9
            assert_shows(step.final, [[1.0]] * 9)
            assert_shows(step.next, [[1.0]] * 9)


def test_stateless_games_pay_alternating_joint_actions():
    env = make("climbing")
    env.reset()
    rewards = [env.step(torch.tensor([joint])).reward.item() for joint in [(0, 1), (2, 1), (1, 2), (0, 0)]]
    assert rewards == [-30, 6, 0, 11]


def test_two_step_pays_its_table_on_every_path():
    first = list(product(range(2), repeat=2))
    paths = list(product(first, first))  # 16 environments, one for each path
    env = make(n_envs=16)
    assert_shows(env.reset(), [IN_1] * 16)
    for _episode in range(2):
        step = env.step(torch.tensor([path[0] for path in paths]))
        second = [IN_2A if path[0][0] == 0 else IN_2B for path in paths]  # agent 2's first action has no effect
        assert step.reward.tolist() == [0.0] * 16
        assert step.terminated.tolist() == step.truncated.tolist() == [False] * 16
        assert_shows(step.next, second)
        assert_shows(step.final, second)

        step = env.step(torch.tensor([path[1] for path in paths]))
        in_2b = {(0, 0): 0.0, (0, 1): 1.0, (1, 0): 1.0, (1, 1): 8.0}
        assert step.reward.tolist() == [7.0 if path[0][0] == 0 else in_2b[path[1]] for path in paths]
        assert step.terminated.tolist() == [True] * 16
        assert step.truncated.tolist() == [False] * 16
        assert_shows(step.final, second)
        assert_shows(step.next, [IN_1] * 16)


def test_reset_in_the_middle_of_an_episode_starts_a_whole_one():
    env = make(n_envs=2)
    env.reset()
    env.step(torch.tensor([[0, 0], [1, 0]]))
    assert_shows(env.reset(), [IN_1, IN_1])
    step = env.step(torch.tensor([[1, 0], [0, 0]]))
    assert step.terminated.tolist() == [False, False]
    assert_shows(step.next, [IN_2B, IN_2A])


def test_what_a_step_returned_does_not_change_later():
    env = make(n_envs=2)
    start = env.reset()
    middle = env.step(torch.tensor([[0, 0], [1, 0]])).next
    env.step(torch.tensor([[0, 0], [1, 1]]))
    assert_shows(start, [IN_1, IN_1])
    assert_shows(middle, [IN_2A, IN_2B])


@pytest.mark.parametrize(
    ("game", "best", "value"),
    [
        ("two_step", [(1, 0), (1, 1)], 8),
        ("climbing", [(0, 0)] * 25, 275),
        ("penalty", [(2, 0)] * 25, 250),
        ("nonmonotone", [(0, 0)], 8),
        ("monotone", [(0, 0)], 12),
    ],
)
def test_return_of_best_play(game, best, value):
    env = make(game)
    env.reset()
    steps = [env.step(torch.tensor([joint])) for joint in best]
    assert sum(step.reward.item() for step in steps) == value
    assert [step.terminated.item() for step in steps] == [False] * (len(best) - 1) + [True]


@pytest.mark.parametrize(
    ("game", "size", "n_actions", "limit"),
    [
        ("two_step", 3, 2, 2),
        ("climbing", 1, 3, 25),
        ("penalty", 1, 3, 25),
        ("nonmonotone", 1, 3, 1),
        ("monotone", 1, 3, 1),
    ],
)
def test_sizes_shapes_and_types(game, size, n_actions, limit):
    env = make(game, n_envs=4, seed=3)
    assert env.get_env_info() == {
        "state_shape": size,
        "obs_shape": size,
        "n_actions": n_actions,
        "n_agents": 2,
        "episode_limit": limit,
        "individual_reward": False,
        "agent_types": None,
    }
    start = env.reset()
    step = env.step(torch.zeros(4, 2, dtype=torch.int64))
    for seen in (start, step.next, step.final):
        assert (seen.obs.shape, seen.obs.dtype) == ((4, 2, size), torch.float32)
        assert (seen.state.shape, seen.state.dtype) == ((4, size), torch.float32)
        assert (seen.avail.shape, seen.avail.dtype) == ((4, 2, n_actions), torch.int32)
    assert (step.reward.shape, step.reward.dtype) == ((4,), torch.float32)
    for ended in (step.terminated, step.truncated):
        assert (ended.shape, ended.dtype) == ((4,), torch.bool)
    assert step.info["episode_limit"].tolist() == [0.0] * 4


def test_k_is_the_payoff_of_miscoordination():
    env = make("penalty", n_envs=4, k=-25.5)
    env.reset()
    assert env.step(torch.tensor([[0, 0], [2, 2], [0, 2], [1, 1]])).reward.tolist() == [-25.5, -25.5, 10, 2]


@pytest.mark.parametrize("game", ["two_step", "climbing", "nonmonotone", "monotone"])
def test_k_changes_no_other_game(game):
    for k in (None, -100, 5):
        states = make(game, k=k).game_states()
        assert [state.payoff.tolist() for state in states] == [
            state.payoff.tolist() for state in make(game).game_states()
        ]


@pytest.mark.parametrize(("game", "repeats"), [("climbing", 1), ("nonmonotone", 3)])
def test_repeats_replaces_the_games_own_number(game, repeats):
    env = make(game, repeats=repeats)
    env.reset()
    assert env.episode_limit == repeats
    ends = [env.step(torch.tensor([[0, 0]])).terminated.item() for _ in range(2 * repeats)]
    assert ends == ([False] * (repeats - 1) + [True]) * 2


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (
            {"game": "climbin"},
            [
                "env_args.game='climbin'",
                "climbing, monotone, nonmonotone, penalty, two_step",
                "did you mean 'climbing'",
            ],
        ),
        ({"game": "chess"}, ["env_args.game='chess'", "available: climbing, "]),
        ({"game": None}, ["env_args.game=None", "available: climbing, "]),
        ({"game": "penalty", "k": None}, ["env_args.k=None", "<= 0"]),
        ({"game": "penalty", "k": 1}, ["env_args.k=1", "<= 0"]),
        ({"game": "penalty", "k": float("nan")}, ["env_args.k=nan", "<= 0"]),
        ({"game": "penalty", "k": float("-inf")}, ["env_args.k=-inf", "<= 0"]),
        ({"game": "two_step", "repeats": 2}, ["env_args.repeats=2", "two_step", "null"]),
        ({"game": "climbing", "repeats": 0}, ["env_args.repeats=0", ">= 1"]),
        ({"game": "climbing", "repeats": 2.5}, ["env_args.repeats=2.5", ">= 1"]),
        ({"game": "climbing", "repeats": True}, ["env_args.repeats=True", ">= 1"]),
    ],
)
def test_wrong_options_name_key_value_and_remedy(options, parts):
    with pytest.raises(UserError) as error:
        make(**options)
    for part in parts:
        assert part in str(error.value)


def test_no_near_game_is_named_when_none_is_near():
    with pytest.raises(UserError) as error:
        make("chess")
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("shape", [(1, 2), (3,), (3, 3), (2, 3)])
def test_actions_of_another_shape_are_refused(shape):
    env = make(n_envs=3)
    env.reset()
    with pytest.raises(ValueError, match=r"expected \(3, 2\)"):
        env.step(torch.zeros(shape, dtype=torch.int64))


def test_game_states_of_two_step():
    states = make().game_states()
    assert {state.name: state.payoff.tolist() for state in states} == {
        "1": [[0, 0], [0, 0]],
        "2A": [[7, 7], [7, 7]],
        "2B": [[0, 1], [1, 8]],
    }
    assert [len(state.path) for state in states] == [0, 1, 1]


@pytest.mark.parametrize("game", ["two_step", *STATELESS])
def test_game_states_lie_at_the_end_of_their_path_and_pay_their_payoff(game):
    for index, state in enumerate(make(game).game_states()):
        n_actions = len(state.payoff)
        joint_actions = list(product(range(n_actions), repeat=2))
        env = make(game, n_envs=len(joint_actions))
        seen = env.reset()
        for joint in state.path:
            seen = env.step(torch.tensor([joint] * len(joint_actions))).next
        assert seen.state.argmax(dim=-1).tolist() == [index] * len(joint_actions)
        reward = env.step(torch.tensor(joint_actions)).reward
        torch.testing.assert_close(reward.view(n_actions, n_actions), state.payoff, rtol=0, atol=0)


@pytest.mark.parametrize("game", STATELESS)
def test_stateless_games_have_one_game_state(game):
    (state,) = make(game).game_states()
    assert state.path == ()
    assert state.payoff.shape == (3, 3)


@pytest.mark.parametrize("game", ["two_step", *STATELESS])
def test_the_yaml_defaults_build_every_game(game):
    config = yaml.safe_load(CONFIG.read_text())
    assert config["env"] == "matrix_games"
    env = MatrixGameVectorEnv(n_envs=2, device="cpu", **{**config["env_args"], "game": game})
    assert env.reset().obs.shape[:2] == (2, 2)
