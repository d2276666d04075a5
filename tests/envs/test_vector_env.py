"""The adapters between one environment and a batch of them."""

import numpy as np
import pytest
import torch

from envs import REGISTRY, make_vector_env
from envs.matrix_games import MatrixGameVectorEnv
from envs.multiagentenv import MultiAgentEnv
from envs.vector_env import SerialVectorEnv, SingleEnv


class Scripted(MultiAgentEnv):
    """Shows `name`, the number of its episode and the number of steps in it.

    It is over after `length` steps, or cut by the time limit after `limit`, whichever comes first. It pays the tens
    and ones that the two agents' actions form; agent 2 may take action 1 only in odd steps.
    """

    n_agents = 2

    def __init__(self, name, length, limit):
        self.name, self.length, self.episode_limit = name, length, limit
        self.episode, self.steps, self.closed = 0, None, 0

    def reset(self):
        self.episode += 1
        self.steps = 0
        return self.get_obs(), self.get_state()

    def step(self, actions):
        self.steps += 1
        over = self.steps == self.length
        out_of_time = self.steps == self.episode_limit and not over
        info = {"steps": self.steps}
        if over:
            info["won"] = True
        if out_of_time:
            info["episode_limit"] = True
        return 10 * actions[0] + actions[1], over or out_of_time, info

    def get_obs(self):
        return [np.array([agent, self.name, self.episode, self.steps], dtype=np.float64) for agent in range(2)]

    def get_obs_size(self):
        return 4

    def get_state(self):
        return np.array([self.name, self.episode, self.steps], dtype=np.float64)

    def get_state_size(self):
        return 3

    def get_avail_actions(self):
        return [[1, 1, 1], [1, self.steps % 2, 1]]

    def get_total_actions(self):
        return 3

    def get_stats(self):
        return {"name": self.name}

    def close(self):
        self.closed += 1


def assert_shows(observation, states):
    """The environments show `states`, rows of (name, episode, steps), in state, observations and availability."""
    assert observation.state.tolist() == states
    assert observation.obs.tolist() == [[[agent, *state] for agent in range(2)] for state in states]
    assert observation.avail.tolist() == [[[1, 1, 1], [1, state[2] % 2, 1]] for state in states]
    assert observation.obs.dtype == observation.state.dtype == torch.float32
    assert observation.avail.dtype == torch.int32


def assert_same(first, second):
    """Two observations hold the same values of the same types."""
    for name in ("obs", "state", "avail"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=0)


class TestSerialVectorEnv:
    def make(self):
        # Environment 5 ends by termination after 2 steps, environment 6 by the time limit after 3.
        return SerialVectorEnv([Scripted(name=5, length=2, limit=9), Scripted(name=6, length=9, limit=3)])

    def test_sizes_are_those_of_the_environments(self):
        env = self.make()
        assert env.n_envs == 2
        assert env.get_env_info() == {
            "state_shape": 3,
            "obs_shape": 4,
            "n_actions": 3,
            "n_agents": 2,
            "episode_limit": 9,
            "individual_reward": False,
            "agent_types": None,
        }

    def test_ends_final_and_next_observations_of_environments_in_different_phases(self):
        env = self.make()
        assert_shows(env.reset(), [[5, 1, 0], [6, 1, 0]])
        no, actions = [False, False], torch.zeros(2, 2, dtype=torch.int64)
        script = [  # terminated, truncated, final, next
            (no, no, [[5, 1, 1], [6, 1, 1]], [[5, 1, 1], [6, 1, 1]]),
            ([True, False], no, [[5, 1, 2], [6, 1, 2]], [[5, 2, 0], [6, 1, 2]]),
            (no, [False, True], [[5, 2, 1], [6, 1, 3]], [[5, 2, 1], [6, 2, 0]]),
            ([True, False], no, [[5, 2, 2], [6, 2, 1]], [[5, 3, 0], [6, 2, 1]]),
            (no, no, [[5, 3, 1], [6, 2, 2]], [[5, 3, 1], [6, 2, 2]]),
            ([True, False], [False, True], [[5, 3, 2], [6, 2, 3]], [[5, 4, 0], [6, 3, 0]]),
        ]
        for terminated, truncated, final, following in script:
            step = env.step(actions)
            assert step.terminated.tolist() == terminated
            assert step.truncated.tolist() == truncated
            assert step.terminated.dtype == step.truncated.dtype == torch.bool
            assert_shows(step.final, final)
            assert_shows(step.next, following)

    def test_a_termination_in_the_last_step_of_the_time_limit_is_a_termination(self):
        env = SerialVectorEnv([Scripted(name=5, length=3, limit=3)])
        env.reset()
        step = [env.step(torch.zeros(1, 2, dtype=torch.int64)) for _ in range(3)][-1]
        assert (step.terminated.item(), step.truncated.item()) == (True, False)

    def test_each_environment_gets_its_own_actions(self):
        env = self.make()
        env.reset()
        step = env.step(torch.tensor([[1, 2], [2, 0]]))
        assert step.reward.tolist() == [12.0, 20.0]
        assert step.reward.dtype == torch.float32

    def test_actions_for_another_number_of_environments_are_refused(self):
        env = self.make()
        env.reset()
        with pytest.raises(ValueError, match="zip"):
            env.step(torch.zeros(1, 2, dtype=torch.int64))

    def test_info_is_stacked_with_zero_where_an_environment_has_no_such_key(self):
        env = self.make()
        env.reset()
        infos = [env.step(torch.zeros(2, 2, dtype=torch.int64)).info for _ in range(3)]
        found = [{key: value.tolist() for key, value in info.items()} for info in infos]
        assert found[0] == {"episode_limit": [0, 0]}  # nothing has ended
        assert found[1] == {"steps": [2, 0], "won": [1, 0], "episode_limit": [0, 0]}
        assert found[2] == {"steps": [0, 3], "episode_limit": [0, 1]}
        assert all(value.dtype == torch.float32 for info in infos for value in info.values())

    def test_reset_begins_a_new_episode_everywhere(self):
        env = self.make()
        env.reset()
        env.step(torch.zeros(2, 2, dtype=torch.int64))
        assert_shows(env.reset(), [[5, 2, 0], [6, 2, 0]])

    def test_close_reaches_every_environment(self):
        env = self.make()
        env.close()
        assert [single.closed for single in env.envs] == [1, 1]


class TestSingleEnv:
    def make(self, length=2, limit=9):
        """A scripted environment, lifted to a batch of one and lowered again."""
        return SingleEnv(SerialVectorEnv([Scripted(name=5, length=length, limit=limit)]))

    def test_plays_episodes_as_the_environment_inside_does(self):
        env, reference = self.make(), Scripted(name=5, length=2, limit=9)
        assert env.get_env_info() == reference.get_env_info()
        assert env.get_stats() == reference.get_stats()
        for _episode in range(3):
            for one, other in zip(env.reset()[0], reference.reset()[0], strict=True):
                np.testing.assert_array_equal(one, other)
            done = False
            while not done:
                reward, done, info = env.step([2, 1])
                expected_reward, expected_done, expected_info = reference.step([2, 1])
                assert (reward, done) == (expected_reward, expected_done)
                assert info.pop("episode_limit") is False
                assert info == ({key: float(value) for key, value in expected_info.items()} if done else {})
                np.testing.assert_array_equal(env.get_obs(), reference.get_obs())
                np.testing.assert_array_equal(env.get_obs_agent(1), reference.get_obs_agent(1))
                np.testing.assert_array_equal(env.get_state(), reference.get_state())
                assert env.get_avail_actions() == reference.get_avail_actions()
                assert env.get_avail_agent_actions(1) == reference.get_avail_agent_actions(1)

    def test_a_time_limit_ends_the_episode_and_is_marked_in_info(self):
        env = self.make(length=9, limit=2)
        env.reset()
        _, done, info = env.step([0, 0])
        assert (done, info["episode_limit"]) == (False, False)
        _, done, info = env.step([0, 0])
        assert (done, info["episode_limit"]) == (True, True)

    def test_reset_takes_the_episode_that_the_batch_began_by_itself(self):
        env = self.make()
        env.reset()
        env.step([0, 0])
        env.step([0, 0])
        assert env.get_state().tolist() == [5, 1, 2]  # the end of episode 1, until reset() is called
        env.reset()
        assert env.get_state().tolist() == [5, 2, 0]  # a wasted reset would show episode 3
        env.reset()
        assert env.get_state().tolist() == [5, 3, 0]  # that episode is handed out once

    def test_reset_in_the_middle_of_an_episode_begins_another(self):
        env = self.make()
        env.reset()
        env.step([0, 0])
        env.reset()
        assert env.get_state().tolist() == [5, 2, 0]
        env.step([0, 0])
        assert env.get_state().tolist() == [5, 2, 1]

    def test_asking_before_the_first_reset_says_so(self):
        with pytest.raises(RuntimeError, match=r"reset\(\)"):
            self.make().get_obs()

    def test_a_batch_of_two_is_refused(self):
        with pytest.raises(ValueError, match="got 2"):
            SingleEnv(SerialVectorEnv([Scripted(5, 2, 9), Scripted(6, 2, 9)]))


GAMES = ["two_step", "climbing", "penalty", "nonmonotone", "monotone"]


def matrix_game(n_envs, game):
    return MatrixGameVectorEnv(n_envs=n_envs, device="cpu", game=game, k=-100, repeats=None, seed=None)


@pytest.mark.parametrize("game", GAMES)
def test_round_trip_equals_the_batched_game(game):
    batched = matrix_game(4, game)
    serial = SerialVectorEnv([SingleEnv(matrix_game(1, game)) for _ in range(4)])
    generator = torch.Generator().manual_seed(1)
    assert serial.get_env_info() == batched.get_env_info()
    assert_same(serial.reset(), batched.reset())
    ends = 0
    for _ in range(60):  # the longest episodes have 25 steps
        actions = torch.randint(batched.n_actions, (4, 2), generator=generator)
        one, other = serial.step(actions), batched.step(actions)
        for name in ("reward", "terminated", "truncated"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0)
        assert_same(one.next, other.next)
        assert_same(one.final, other.final)
        assert one.info.keys() == other.info.keys()
        for key in one.info:
            torch.testing.assert_close(one.info[key], other.info[key], rtol=0, atol=0)
        ends += int(one.terminated.sum())
    assert ends == 4 * (60 // batched.episode_limit)


def test_matrix_games_in_different_phases_keep_their_own_episode():
    serial = SerialVectorEnv([SingleEnv(matrix_game(1, "two_step")) for _ in range(2)])
    serial.reset()
    serial.step(torch.tensor([[0, 0], [0, 0]]))
    serial.checked[1].reset()  # now environment 1 is one step behind environment 0
    step = serial.step(torch.tensor([[0, 0], [1, 0]]))
    assert step.reward.tolist() == [7, 0]
    assert step.terminated.tolist() == [True, False]
    assert step.final.state.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert step.next.state.tolist() == [[1, 0, 0], [0, 0, 1]]
    step = serial.step(torch.tensor([[1, 0], [1, 1]]))
    assert step.reward.tolist() == [0, 8]
    assert step.terminated.tolist() == [False, True]
    assert step.final.state.tolist() == [[0, 0, 1], [0, 0, 1]]
    assert step.next.state.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_the_registries_build_the_matrix_games():
    env_args = {"game": "climbing", "k": -100, "repeats": 2, "seed": None}
    vector = make_vector_env("matrix_games", 3, "cpu", env_args)
    assert (vector.n_envs, vector.episode_limit) == (3, 2)
    single = REGISTRY["matrix_games"](**env_args)
    single.reset()
    assert single.step([0, 1]) == (-30.0, False, {"episode_limit": False})
    reward, done, info = single.step([2, 1])
    assert (reward, done, info) == (6.0, True, {"episode_limit": False})
