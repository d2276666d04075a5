"""`GymmaEnv` against LBF, RWARE, MPE and two tiny environments whose every value is known.

The tiny ones live in this module, which names itself in their keys.
"""

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from envs.gymma import GymmaEnv
from utils.errors import UserError

LBF = "lbforaging:Foraging-8x8-2p-2f-coop-v3"
RWARE = "rware:rware-tiny-2ag-v2"
SPREAD = "pettingzoo:mpe2.simple_spread_v3"
LISTENER = "pettingzoo:mpe2.simple_speaker_listener_v4"
DOOR = f"{__name__}:Door-v0"
RELAY = f"pettingzoo:{__name__}"


class Door(gymnasium.Env):
    """Two unequal agents; the episode ends for real when they play actions 1 and 3 (the second counts from 10).

    As LBF and RWARE do, it reports the end of its own time as a termination. It observes (step, both last actions).
    """

    def __init__(self, max_steps=4, truncate_at=None, masked=False):
        self.max_steps = max_steps
        self.truncate_at = truncate_at
        self.masked = masked
        self.observation_space = spaces.Tuple((spaces.Discrete(6), spaces.Box(-99, 99, (2, 1), np.float64)))
        self.action_space = spaces.Tuple((spaces.Discrete(2), spaces.Discrete(4, start=10)))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.shown((self.np_random.integers(90), 0))

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        opened = action == (1, 13)
        observations, info = self.shown(action)
        rewards = [1.5, 10.0] if opened else [-1.0, 0.5]
        return observations, rewards, opened or self.steps >= self.max_steps, self.steps == self.truncate_at, info

    def shown(self, pair):
        info = {"action_mask": [np.array([1, 0], np.int8), np.array([0, 1, 1, 0], np.int8)]} if self.masked else {}
        return (self.steps % 6, np.array(pair, np.float64).reshape(2, 1)), info


gymnasium.register("Door-v0", entry_point=Door, max_episode_steps=3)


class Relay:
    """Agents a, b, c play at most `max_cycles` steps, then are cut; b terminates in step 2, the others in `ends_at`.

    The reward of a step is 1, 10 and 100. It follows the PettingZoo parallel interface to the letter.
    """

    possible_agents = ("a", "b", "c")

    def __init__(self, max_cycles, ends_at=1000, mask=None, draws_state=False):
        self.max_cycles = max_cycles
        self.ends_at = ends_at
        self.mask = mask
        self.closed = 0
        if draws_state:
            self.state_space = spaces.Box(0, 99, (2, 2), np.float64)

    def observation_space(self, agent):
        seen = spaces.Box(0, 99, self.shape(agent), np.float32)
        if self.mask == "observation":
            return spaces.Dict(observation=seen, action_mask=spaces.MultiBinary(int(self.action_space(agent).n)))
        return seen

    def action_space(self, agent):
        return spaces.Discrete({"a": 2, "b": 3, "c": 4}[agent])

    def reset(self, seed=None, options=None):
        self.agents = list(self.possible_agents)
        self.steps = 0
        return self.shown()

    def step(self, actions):
        assert actions.keys() == set(self.agents), "only and all living agents act"
        self.steps += 1
        observations, infos = self.shown()
        terminated = {name: self.steps >= (2 if name == "b" else self.ends_at) for name in self.agents}
        truncated = dict.fromkeys(self.agents, self.steps >= self.max_cycles)
        rewards = {name: {"a": 1.0, "b": 10.0, "c": 100.0}[name] for name in self.agents}
        self.agents = [name for name in self.agents if not (terminated[name] or truncated[name])]
        return observations, rewards, terminated, truncated, infos

    def shown(self):
        observations, infos = {}, {name: {} for name in self.agents}
        for name in self.agents:
            observations[name] = np.full(self.shape(name), 10 + self.steps, np.float32)
            mask = np.arange(self.action_space(name).n) == 1
            if self.mask == "observation":
                observations[name] = {"observation": observations[name], "action_mask": mask.astype(np.int8)}
            if self.mask == "info":
                infos[name]["action_mask"] = mask
        return observations, infos

    @staticmethod
    def shape(agent):
        return (2,) if agent == "c" else (1,)

    def state(self):
        return np.arange(4, dtype=np.float64).reshape(2, 2) + self.steps

    def close(self):
        self.closed += 1
        assert self.closed == 1, "closed twice"


def step(env, actions):
    """(reward, done, info) without the agents' own rewards, which sum to the team's."""
    reward, done, info = env.step(actions)
    own = info.pop("individual_reward")
    assert len(own) == env.n_agents
    assert sum(own) == pytest.approx(reward)
    return reward, done, info


def parallel_env(clockless=None, **kwargs):
    """A `Relay`, from the function that PettingZoo modules offer; nobody can set the steps of a `clockless` one."""
    if clockless is None:
        return Relay(**kwargs)
    if "max_cycles" in kwargs:
        raise TypeError("clockless() got an unexpected keyword argument 'max_cycles'")
    return Relay(max_cycles=clockless, **kwargs)


def make(key, time_limit=25, seed=0, **kwargs):
    return GymmaEnv(key=key, time_limit=time_limit, seed=seed, kwargs=kwargs)


def play_randomly(env, rng):
    """One episode of random legal actions, checking every step; returns (observations, rewards, last info)."""
    info = env.get_env_info()
    seen, rewards, done, last_info = [], [], False, {}
    env.reset()
    while True:
        obs, state, avail = np.array(env.get_obs()), env.get_state(), np.array(env.get_avail_actions())
        assert obs.shape == (info["n_agents"], info["obs_shape"])
        assert obs.dtype == state.dtype == np.float32
        assert state.shape == (info["state_shape"],)
        assert avail.shape == (info["n_agents"], info["n_actions"])
        assert np.isin(avail, (0, 1)).all()
        assert avail.any(axis=-1).all()
        seen.append(obs)
        if done:
            return np.array(seen), np.array(rewards), last_info
        reward, done, last_info = step(env, [rng.choice(np.flatnonzero(row)) for row in avail])
        assert isinstance(reward, float)
        assert isinstance(done, bool)
        rewards.append(reward)


@pytest.mark.parametrize(
    ("key", "sizes"),
    [
        (LBF, {"n_agents": 2, "n_actions": 6, "obs_shape": 12, "state_shape": 24}),
        (RWARE, {"n_agents": 2, "n_actions": 5, "obs_shape": 71, "state_shape": 142}),
        (SPREAD, {"n_agents": 3, "n_actions": 5, "obs_shape": 18, "state_shape": 54, "agent_types": ["agent"] * 3}),
        (  # a state of its own
            LISTENER,
            {"n_agents": 2, "n_actions": 5, "obs_shape": 11, "state_shape": 14, "agent_types": ["speaker", "listener"]},
        ),
        (DOOR, {"n_agents": 2, "n_actions": 4, "obs_shape": 6, "state_shape": 12}),
        (RELAY, {"n_agents": 3, "n_actions": 4, "obs_shape": 2, "state_shape": 6, "agent_types": ["a", "b", "c"]}),
    ],
)
def test_whole_episodes_keep_the_announced_shapes(key, sizes):
    env = make(key, time_limit=30)
    assert env.get_env_info() == {"agent_types": None} | sizes | {"episode_limit": 30, "individual_reward": True}
    rng = np.random.default_rng(1)
    for _ in range(3):
        _, rewards, info = play_randomly(env, rng)
        assert len(rewards) <= 30
        assert info.keys() == {"episode_limit"}
        assert info["episode_limit"] == (len(rewards) == 30) or key == DOOR
    env.close()
    env.close()


@pytest.mark.parametrize(
    ("key", "own_limit", "kwargs"),
    [
        (LBF, 50, {}),
        (RWARE, 500, {}),
        (SPREAD, 25, {}),
        (DOOR, 3, {}),
        (RELAY, 1000, {"ends_at": 5000}),
    ],
)
@pytest.mark.parametrize("longer_by", [-2, 0, 4])
def test_time_limit_is_the_only_clock_and_a_truncation(key, own_limit, kwargs, longer_by):
    env = make(key, own_limit + longer_by, **kwargs)
    for _ in range(2):
        env.reset()
        ends = [step(env, [0] * env.n_agents)[1:] for _ in range(own_limit + longer_by)]
        assert ends[:-1] == [(False, {"episode_limit": False})] * (len(ends) - 1)
        assert ends[-1] == (True, {"episode_limit": True})


def test_all_food_eaten_is_a_termination_and_pays_one():
    env = make("lbforaging:Foraging-8x8-2p-1f-v3", time_limit=5000, max_food_level=1)  # food that one agent can lift
    rng = np.random.default_rng(0)
    lengths = []
    for _ in range(5):
        obs, rewards, info = play_randomly(env, rng)
        assert info == {"episode_limit": False}
        assert rewards.sum() == pytest.approx(1.0)
        np.testing.assert_array_equal(obs[-1][:, :3], [[-1, -1, 0]] * 2)  # LBF's sign for no food
        lengths.append(len(rewards))
    assert max(lengths) > 50, "none outlasted LBF's own limit, so the test did not cover it"


def test_lbf_rewards_of_an_episode_never_exceed_one():
    env = make("lbforaging:Foraging-6x6-3p-3f-v3", time_limit=100)
    rng = np.random.default_rng(3)
    returns = [play_randomly(env, rng)[1].sum() for _ in range(10)]
    assert 0 < max(returns) <= 1 + 1e-6
    assert min(returns) >= 0


def test_unequal_agents_are_padded_and_discrete_observations_one_hot():
    env = make(DOOR)
    obs, state = env.reset()
    start = obs[1][0]
    np.testing.assert_array_equal(obs[0], [1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(obs[1], [start, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(state, np.concatenate(obs))
    assert env.get_avail_actions() == [[1, 1, 0, 0], [1, 1, 1, 1]]

    assert step(env, np.array([0, 2])) == (-0.5, False, {"episode_limit": False})
    np.testing.assert_array_equal(env.get_obs(), [[0, 1, 0, 0, 0, 0], [0, 12, 0, 0, 0, 0]])
    np.testing.assert_array_equal(obs[1], [start, 0, 0, 0, 0, 0])  # what was handed out before stays as it was


def test_termination_wins_over_every_kind_of_time_limit():
    for limits in ({}, {"time_limit": 2}, {"truncate_at": 2}):
        env = make(DOOR, **limits)
        env.reset()
        step(env, [1, 0])
        assert step(env, [1, 3]) == (11.5, True, {"episode_limit": False})


def test_truncation_by_the_environment_is_a_time_limit():
    env = make(DOOR, truncate_at=2)
    for _ in range(2):
        env.reset()
        assert not step(env, [0, 0])[1]
        assert step(env, [0, 0])[1:] == (True, {"episode_limit": True})


def test_masks_of_a_gymnasium_environment_are_followed():
    env = make(DOOR, masked=True)
    env.reset()
    assert env.get_avail_actions() == [[1, 0, 0, 0], [0, 1, 1, 0]]


def test_agents_that_left_see_nothing_and_earn_nothing():
    env = make(RELAY, ends_at=4)
    env.reset()
    assert env.get_avail_actions() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    np.testing.assert_array_equal(env.get_obs(), [[10, 0], [10, 0], [10, 10]])

    assert step(env, [0, 0, 0]) == (111.0, False, {"episode_limit": False})
    assert step(env, [0, 0, 0]) == (111.0, False, {"episode_limit": False})  # b leaves with its last reward
    np.testing.assert_array_equal(env.get_obs(), [[12, 0], [0, 0], [12, 12]])
    np.testing.assert_array_equal(env.get_state(), [12, 0, 0, 0, 12, 12])
    assert env.get_avail_actions() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]

    assert step(env, [0, 0, 0]) == (101.0, False, {"episode_limit": False})
    assert step(env, [0, 0, 0]) == (101.0, True, {"episode_limit": False})
    assert len(env.reset()[0]) == 3
    assert env.get_avail_actions()[1] == [1, 1, 1, 0]  # b is back


@pytest.mark.parametrize("length", [2, 3])
def test_a_cut_episode_shows_what_to_bootstrap_from(length):
    """The environment's own cut removes all agents; what the survivors last saw and could do must remain.

    Agent b does not survive: with length 2 it dies in the very step that cuts the others.
    """
    env = make(RELAY, clockless=length)
    env.reset()
    ends = [step(env, [0, 0, 0])[1:] for _ in range(length)]
    assert ends[-2:] == [(False, {"episode_limit": False}), (True, {"episode_limit": True})]
    seen = 10 + length
    np.testing.assert_array_equal(env.get_obs(), [[seen, 0], [0, 0], [seen, seen]])
    assert env.get_avail_actions() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("where", ["info", "observation"])
def test_masks_of_a_pettingzoo_environment_are_followed(where):
    env = make(RELAY, mask=where)
    env.reset()
    assert env.get_avail_actions() == [[0, 1, 0, 0]] * 3
    assert env.get_obs_size() == 2, "a mask is no observation"
    for _ in range(2):
        step(env, [1, 1, 1])
    assert env.get_avail_actions() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]


def test_an_environments_own_state_is_preferred():
    env = make(RELAY, draws_state=True)
    _, state = env.reset()
    assert env.get_state_size() == 4
    np.testing.assert_array_equal(state, [0, 1, 2, 3])
    step(env, [0, 0, 0])
    np.testing.assert_array_equal(env.get_state(), [1, 2, 3, 4])
    assert env.get_state().dtype == np.float32


@pytest.mark.parametrize("key", [LBF, RWARE, SPREAD])
def test_seed_decides_the_sequence_of_episodes(key):
    def episodes(seed):
        env, rng = make(key, seed=seed), np.random.default_rng(0)
        assert env.seed() == seed
        return [play_randomly(env, rng) for _ in range(3)]

    first, again, other = episodes(5), episodes(5), episodes(6)
    for (obs, rewards, _), (obs_again, rewards_again, _) in zip(first, again, strict=True):
        np.testing.assert_array_equal(obs, obs_again)
        np.testing.assert_array_equal(rewards, rewards_again)
    starts = [obs[0] for obs, *_ in first]
    assert not np.array_equal(starts[0], other[0][0][0]), "another seed starts alike"
    assert not np.array_equal(starts[0], starts[1]), "each episode is the first one again"


def test_without_a_seed_episodes_differ():
    assert not np.array_equal(make(SPREAD, seed=None).reset()[1], make(SPREAD, seed=None).reset()[1])


@pytest.mark.parametrize(
    ("key", "kwargs", "parts"),
    [
        ("lbforaging:Foraging-8x8-2p-2f-cop-v3", {}, ["did you mean Foraging-8x8-2p-2f-coop-v3"]),
        ("mpe2:simple_spread_v3", {}, ["no Gymnasium environment", "pettingzoo:package.module"]),
        ("pettingzoo:mpe2.simple_sprad_v3", {}, ["mpe2 has no module", "did you mean simple_spread_v3"]),
        ("pettingzoo:mpe2", {}, ["no parallel_env"]),
        ("pettingzoo:pettingzoo.mpe.simple_v3", {}, ["pip install mpe2"]),
        ("lbforagin:Foraging-8x8-2p-2f-v3", {}, ["No module named", "did you mean lbforaging"]),
        ("CartPole-v1", {}, ["is Discrete", "single agent", "Tuple"]),
        (SPREAD, {"continuous_actions": True}, ["agent 0", "Box", "must be Discrete"]),
        (RWARE, {"msg_bits": 2}, ["MultiDiscrete", "must be Discrete"]),
    ],
)
def test_an_unusable_key_is_explained_in_one_line(key, kwargs, parts):
    with pytest.raises(UserError) as caught:
        make(key, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    for part in [f"env_args.key={key!r}", *parts]:
        assert part in message


def test_a_missing_package_is_named_with_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "rware", None)
    with pytest.raises(UserError, match=r"rware:rware-tiny-2ag-v2.*run: pip install .*rware$"):
        make(RWARE)


@pytest.mark.parametrize("key", [RWARE, SPREAD])
def test_kwargs_reach_the_constructor_or_are_refused(key):
    with pytest.raises(UserError, match=r"env_args\.kwargs\.colour"):
        make(key, colour="red")
    with pytest.raises(UserError, match=r"env_args\.kwargs\.max_steps.*env_args\.time_limit"):
        make(key, max_steps=10)
    more_agents = {RWARE: {"n_agents": 4}, SPREAD: {"N": 4}}[key]
    assert make(key, **more_agents).n_agents == 4


def test_drawing_needs_a_mode():
    with pytest.raises(UserError, match="render_mode"):
        make(SPREAD).render()
    env = make(SPREAD, render_mode="rgb_array")
    env.reset()
    assert env.render().ndim == 3
