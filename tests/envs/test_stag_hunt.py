"""Stag hunt against a plain implementation of one hunt, its conservation laws, and scenes worked out by hand."""

import math

import pytest
import torch
from helpers import run_main

from envs import REGISTRY, make_vector_env
from envs.stag_hunt import CATCH, DOWN, GONE, LEFT, RIGHT, STAY, UP, Draws, StagHuntVectorEnv
from utils.errors import UserError

ARGS = {
    "n_agents": 8,
    "n_stags": 8,
    "size": 10,
    "sight": 2,
    "catchers": 2,
    "reward": 10.0,
    "punishment": -2.0,
    "time_limit": 200,
    "seed": 1,
}
SMALL = {**ARGS, "size": 4, "n_agents": 4, "n_stags": 4, "time_limit": 40}
STEPS = {RIGHT: (0, 1), DOWN: (1, 0), LEFT: (0, -1), UP: (-1, 0), STAY: (0, 0), CATCH: (0, 0)}


def make(n_envs=1, **changes) -> StagHuntVectorEnv:
    return StagHuntVectorEnv(n_envs, "cpu", **{**ARGS, **changes})


def place(env, agents, stags, e=0):
    """Put everyone of one environment on cells (row, column) of the field; None: has left."""
    index = {(k // env_size(env), k % env_size(env)): int(cell) for k, cell in enumerate(env._field)}
    index[None] = GONE
    env._agents[e] = torch.tensor([index[cell] for cell in agents])
    env._stags[e] = torch.tensor([index[cell] for cell in stags])


def places(env, e=0):
    """Where agents and stags are: lists of (row, column), None for those that have left."""
    where = {int(cell): (k // env_size(env), k % env_size(env)) for k, cell in enumerate(env._field)}
    where[GONE] = None
    return [where[c] for c in env._agents[e].tolist()], [where[c] for c in env._stags[e].tolist()]


def env_size(env):
    return math.isqrt(len(env._field))


class Hunt:
    """One hunt, turn by turn, as the paper's code describes it."""

    def __init__(self, agents, stags, size, sight, catchers, reward, punishment):
        self.agents, self.stags, self.size, self.sight = list(agents), list(stags), size, sight
        self.catchers, self.reward, self.punishment = catchers, reward, punishment

    def is_free(self, cell):
        inside = 0 <= cell[0] < self.size and 0 <= cell[1] < self.size
        return inside and cell not in self.agents and cell not in self.stags

    @staticmethod
    def neighbours(cell):
        return [(cell[0] + STEPS[a][0], cell[1] + STEPS[a][1]) for a in (RIGHT, DOWN, LEFT, UP)]

    def step(self, actions, agent_order, stag_order, stag_choice):
        reward = 0.0
        for i in agent_order:
            if self.agents[i] is not None:
                down, right = STEPS[actions[i]]
                target = (self.agents[i][0] + down, self.agents[i][1] + right)
                if self.is_free(target):
                    self.agents[i] = target
        for turn, j in enumerate(stag_order):
            stag = self.stags[j]
            if stag is None:
                continue
            beside = self.neighbours(stag)
            hunters = [i for i, agent in enumerate(self.agents) if actions[i] == CATCH and agent in beside]
            if len(hunters) >= self.catchers:
                reward += self.reward
                self.stags[j] = None
                for i in hunters:
                    self.agents[i] = None
                continue
            if hunters:
                reward += self.punishment
            free = [cell for cell in beside if self.is_free(cell)]
            if free:
                self.stags[j] = free[int(stag_choice[turn] * len(free))]
        return reward

    def obs(self, i):
        if self.agents[i] is None:
            return [0.0] * (2 * (2 * self.sight + 1) ** 2)
        row, column = self.agents[i]
        near = range(-self.sight, self.sight + 1)
        cells = [(row + y, column + x) for y in near for x in near]
        return [float(cell in entities) for entities in (self.agents, self.stags) for cell in cells]

    def state(self):
        cells = [(row, column) for row in range(self.size) for column in range(self.size)]
        return [float(cell in entities) for entities in (self.agents, self.stags) for cell in cells]

    def avail(self, i):
        if self.agents[i] is None:
            return [int(a == STAY) for a in range(6)]
        beside = self.neighbours(self.agents[i])
        moves = [int(0 <= row < self.size and 0 <= column < self.size) for row, column in beside]
        return [*moves, 1, int(any(cell in self.stags for cell in beside))]


def random_actions(avail, generator):
    E, N, A = avail.shape
    likely = avail.float()
    likely[..., CATCH] *= 3  # so that catches, alone and together, are common
    return torch.multinomial(likely.view(-1, A), 1, generator=generator).view(E, N)


@pytest.mark.parametrize("changes", [{}, SMALL, {**SMALL, "sight": 0, "catchers": 1}, {**SMALL, "sight": 3}])
def test_it_is_the_plain_game(changes, monkeypatch):
    """Same draws, same game: positions, rewards, observations, states and masks, in every environment and step."""
    env = make(6, **changes)
    drawn: list[Draws] = []
    draw = env._draw
    monkeypatch.setattr(env, "_draw", lambda: drawn.append(draw()) or drawn[-1])
    rules = {**ARGS, **changes}
    rules = {key: rules[key] for key in ("size", "sight", "catchers", "reward", "punishment")}
    generator = torch.Generator().manual_seed(3)
    seen = env.reset()
    hunts = [Hunt(*places(env, e), **rules) for e in range(6)]
    steps, caught, punished, ends = [0] * 6, 0, [0] * 6, []
    for _ in range(250):
        actions = random_actions(seen.avail, generator)
        before = [places(env, e) for e in range(6)]
        outcome = env.step(actions)
        draws = [[row.tolist() for row in part] for part in drawn[-1]]
        for e, hunt in enumerate(hunts):
            assert before[e] == (hunt.agents, hunt.stags)
            here = sum(stag is None for stag in hunt.stags)
            reward = hunt.step(actions[e].tolist(), *(part[e] for part in draws))
            assert outcome.reward[e].item() == reward
            found = sum(stag is None for stag in hunt.stags) - here
            caught += found
            punished[e] += round((rules["reward"] * found - reward) / 2)  # the punishment is -2
            for i in range(env.n_agents):
                assert outcome.final.obs[e, i].tolist() == hunt.obs(i)
                assert outcome.final.avail[e, i].tolist() == hunt.avail(i)
            assert outcome.final.state[e].tolist() == hunt.state()
            steps[e] += 1
            over = all(stag is None for stag in hunt.stags) or all(agent is None for agent in hunt.agents)
            late = steps[e] == env.episode_limit and not over
            assert (outcome.terminated[e].item(), outcome.truncated[e].item()) == (over, late)
            assert outcome.info["prey_caught"][e].item() == sum(stag is None for stag in hunt.stags)
            assert outcome.info["lone_catches"][e].item() == punished[e]
            if over or late:
                ends.append(over)
                steps[e], punished[e] = 0, 0
                hunts[e] = Hunt(*places(env, e), **rules)
            for i in range(env.n_agents):
                assert outcome.next.obs[e, i].tolist() == hunts[e].obs(i)
            assert outcome.next.state[e].tolist() == hunts[e].state()
        seen = outcome.next
    assert caught >= 12
    assert bool(changes) in ends  # small hunts end, large ones are cut


def test_no_two_share_a_cell_and_nobody_comes_back():
    env = make(64)
    generator = torch.Generator().manual_seed(0)
    seen = env.reset()
    left = torch.zeros(64, 16, dtype=torch.bool)
    for _ in range(210):
        outcome = env.step(random_actions(seen.avail, generator))
        seen = outcome.next
        everyone = torch.cat([env._agents, env._stags], dim=1)
        gone = everyone == GONE
        assert not env._border[everyone[~gone]].any()
        unique = everyone + (torch.arange(16) + 1000) * gone  # those that have left: different numbers
        assert all(len(set(row)) == 16 for row in unique.tolist())
        ended = (outcome.terminated | outcome.truncated).unsqueeze(1)
        assert not (left & ~gone & ~ended).any()
        assert not (gone & ended).any()  # a fresh hunt has everyone
        left = gone


def scene(agents, stags, actions, **changes):
    """One step from this scene, stags and agents in their own order: reward, agents, stags, observation."""
    env = make(1, n_agents=len(agents), n_stags=len(stags), size=4, **changes)
    place(env, agents, stags)
    ordered = (torch.arange(len(agents))[None], torch.arange(len(stags))[None])
    env._draw = lambda: Draws(*ordered, torch.zeros(1, len(stags)))
    outcome = env.step(torch.tensor([actions]))
    return outcome, *places(env)


def test_two_catch_a_stag_and_leave():
    outcome, agents, stags = scene([(0, 0), (1, 1), (3, 3)], [(0, 1), (3, 0)], [CATCH, CATCH, STAY])
    assert outcome.reward.tolist() == [10.0]
    assert (agents, stags[0]) == ([None, None, (3, 3)], None)
    assert outcome.final.avail[0].tolist()[0] == [0, 0, 0, 0, 1, 0]
    assert not outcome.final.obs[0, :2].any()
    assert outcome.info["prey_caught"].tolist() == [1.0]


def test_one_alone_is_punished_once_for_every_stag_beside_it():
    outcome, agents, stags = scene([(1, 1)], [(0, 1), (1, 0), (3, 3)], [CATCH])
    assert outcome.reward.tolist() == [-4.0]
    assert outcome.info["lone_catches"].tolist() == [2.0]
    assert agents == [(1, 1)]
    assert None not in stags


def test_three_that_catch_one_stag_all_leave():
    outcome, agents, _ = scene([(0, 0), (1, 1), (0, 2), (3, 3)], [(0, 1), (3, 0)], [CATCH, CATCH, CATCH, STAY])
    assert outcome.reward.tolist() == [10.0]
    assert agents == [None, None, None, (3, 3)]


def test_who_has_left_does_not_help_with_the_next_stag():
    """Agent 1 stands between two stags: after the first catch agent 2 is alone with the second."""
    outcome, agents, stags = scene([(1, 0), (1, 2), (1, 4 - 1)], [(1, 1), (0, 2)], [CATCH, CATCH, STAY])
    assert outcome.reward.tolist() == [10.0]
    assert agents == [None, None, (1, 3)]
    outcome, agents, stags = scene([(1, 0), (1, 2), (0, 3)], [(1, 1), (0, 2)], [CATCH, CATCH, CATCH])
    assert outcome.reward.tolist() == [8.0]
    assert agents == [None, None, (0, 3)]
    assert None not in stags[1:]


def test_an_agent_follows_into_a_cell_that_was_left_but_not_into_one_that_will_be():
    assert scene([(0, 1), (0, 0)], [(3, 3)], [RIGHT, RIGHT])[1] == [(0, 2), (0, 1)]
    assert scene([(0, 0), (0, 1)], [(3, 3)], [RIGHT, RIGHT])[1] == [(0, 0), (0, 2)]
    assert scene([(0, 0), (0, 2)], [(3, 3)], [RIGHT, LEFT])[1] == [(0, 1), (0, 2)]
    assert scene([(0, 0)], [(0, 1)], [RIGHT])[1] == [(0, 0)]


def test_a_stag_with_no_free_cell_stays():
    assert scene([(0, 1), (1, 0)], [(0, 0)], [STAY, STAY])[2] == [(0, 0)]


def test_the_hunt_ends_when_all_stags_or_all_agents_have_left():
    both = [CATCH, CATCH]
    assert scene([(0, 0), (1, 1)], [(0, 1), (3, 3)], both)[0].terminated.tolist() == [True]
    outcome, *_ = scene([(0, 0), (1, 1), (3, 3)], [(0, 1)], [*both, STAY])
    assert (outcome.terminated.tolist(), outcome.truncated.tolist()) == ([True], [False])
    outcome, *_ = scene([(0, 0), (1, 1)], [(0, 1), (3, 3)], both, time_limit=1)
    assert (outcome.terminated.tolist(), outcome.truncated.tolist()) == ([True], [False])
    outcome, *_ = scene([(0, 0)], [(3, 3)], [STAY], time_limit=1)
    assert (outcome.terminated.tolist(), outcome.truncated.tolist()) == ([False], [True])


def test_orders_and_choices_are_uniform():
    env = make(4000, n_agents=3, n_stags=2)
    draws = env._draw()
    first = torch.bincount(draws.agent_order[:, 0], minlength=3) / 4000
    assert (first - 1 / 3).abs().max() < 0.04
    agents, stags = env._place()
    everyone = torch.cat([agents, stags], dim=1).flatten()
    counts = torch.bincount(everyone, minlength=len(env._border))
    assert counts[env._border].sum() == 0
    assert (counts[env._field] / 20000 - 0.01).abs().max() < 0.004


def test_equal_seeds_give_equal_hunts():
    def returns(seed):
        env, generator = make(4, seed=seed), torch.Generator().manual_seed(9)
        seen, total = env.reset(), []
        for _ in range(60):
            outcome = env.step(random_actions(seen.avail, generator))
            total.append(outcome.reward)
            seen = outcome.next
        return torch.stack(total)

    assert torch.equal(returns(1), returns(1))
    assert not torch.equal(returns(1), returns(2))


def test_a_saved_state_goes_on_as_if_nothing_had_happened():
    env, other = make(4, **SMALL), make(4, **{**SMALL, "seed": 7})
    generator = torch.Generator().manual_seed(9)
    seen = env.reset()
    for _ in range(17):
        seen = env.step(random_actions(seen.avail, generator)).next
    other.load_state_dict(env.state_dict())
    for _ in range(40):
        actions = random_actions(seen.avail, generator)
        ours, theirs = env.step(actions), other.step(actions)
        assert torch.equal(ours.reward, theirs.reward)
        assert torch.equal(ours.truncated, theirs.truncated)
        assert torch.equal(ours.next.obs, theirs.next.obs)
        assert torch.equal(ours.info["lone_catches"], theirs.info["lone_catches"])
        seen = ours.next


def test_it_is_registered():
    env = make_vector_env("stag_hunt", 3, "cpu", ARGS)
    info = env.get_env_info()
    assert (info["n_agents"], info["n_actions"], info["episode_limit"]) == (8, 6, 200)
    assert (info["obs_shape"], info["state_shape"]) == (50, 200)
    assert REGISTRY["stag_hunt"](**ARGS).get_env_info()["n_agents"] == 8


def test_a_field_that_is_too_small_is_refused():
    with pytest.raises(UserError, match=r"env_args.size=3: 8 agents and 8 stags do not fit on 9 cells"):
        make(size=3)


def test_actions_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"actions have shape \(1, 8\), expected \(2, 8\)"):
        make(2).step(torch.zeros(1, 8, dtype=torch.long))


def test_a_reward_for_lone_catches_is_refused(capsys):
    assert run_main("--config=vdn", "--env-config=stag_hunt", "with", "env_args.punishment=2.0") != 0
    assert "env_args.punishment=2.0" in capsys.readouterr().err
