"""The diagnostic games, payoff by payoff, against their definitions written out again as loops."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from envs import REGISTRY, make_vector_env
from envs.greed_games import GAMES, GreedGameVectorEnv, make_game
from utils.errors import UserError

CONFIG = Path(__file__).parents[2] / "src/config/envs/greed_games.yaml"
TWO_STEP = {"bridge": 0.6, "mirage": 0.52, "redundant": 1.1}  # and what their safe action pays
STATELESS = ("decoy", "handshake", "stag", "replay")
BASES = {
    "decoy": [[-4, 5, -1], [0, -3, 6], [-1, -2, -3]],
    "handshake": [[-2, -2, 3], [0, 0, 0], [0, 0, -1]],
}
# Core agents, knob and spectators.
CASES = [
    ("decoy", 2, 0.3, 0),
    ("decoy", 2, 1.0, 2),
    ("handshake", 2, 0.6, 1),
    ("stag", 2, 0.75, 0),
    ("stag", 3, 1.0, 1),
    ("bridge", 2, 0.0, 0),
    ("bridge", 4, 0.5, 0),
    ("mirage", 2, 0.75, 0),
    ("mirage", 3, 0.3, 0),
    ("redundant", 3, 0.5, 0),
    ("replay", 3, None, 0),
    ("replay", 2, None, 2),
]


def make(game="decoy", n_envs=1, kappa=1.0, **options):
    defaults = {"n_agents": None, "spectators": 0, "reward_noise": 0.0, "noise_dims": 0, "rewards": "team", "seed": 0}
    kappa = None if game == "replay" else kappa
    return GreedGameVectorEnv(n_envs=n_envs, device="cpu", game=game, kappa=kappa, **{**defaults, **options})


def naive_shares(game, k, n, joint, hidden):
    """What each of the agents gets; the core agents are the first n."""
    core = joint[:n]
    m = sum(action == 1 for action in core)
    own = [0.0] * n
    if game in BASES:
        base = BASES[game]
        row, column = core
        mean = sum(sum(line) for line in base) / 9
        main = sum(base[row]) / 3 + sum(line[column] for line in base) / 3 - mean
        team = main + k * (base[row][column] - main)
    elif game == "stag":
        stags = sum(action == 2 for action in core)
        own = [(action == 1) / n for action in core]
        team = k * 2 if stags == n else -k * stags / n
    elif game == "bridge":
        team = (1 - k) * m / n + (k if m == n else 0)
    elif game == "redundant":
        team = (1 - k) * m / n + (k if m >= 1 else 0)
    elif game == "mirage":
        team = (k if m < n else 0) if hidden == 0 else (1 if m == n else 0)
    else:
        own = [(agent + 1) * action for agent, action in enumerate(core)]
        team = 0
    return [share + team / n for share in own] + [float(action == 0) for action in joint[n:]]


def joint_actions(env):
    """All joint actions, (A^N, N)."""
    return torch.tensor(list(product(range(env.n_actions), repeat=env.n_agents)))


def naive_payoffs(game, k, n, env, hidden):
    """The shares of all joint actions, (A^N, N)."""
    return torch.tensor([naive_shares(game, k, n, joint, hidden) for joint in joint_actions(env).tolist()])


def enter(env):
    """The step in which agent 1 of every environment leaves the safe action alone."""
    env.reset()
    return env.step(torch.ones(env.n_envs, env.n_agents, dtype=torch.int64))


# --- payoffs


@pytest.mark.parametrize(("game", "n", "k", "spectators"), CASES)
def test_games_pay_what_their_definition_says(game, n, k, spectators):
    options = {"kappa": k, "n_agents": n, "spectators": spectators, "rewards": "individual"}
    n_joint = make(game, **options).n_actions ** (n + spectators)
    env = make(game, n_envs=n_joint, **options)
    means = []
    for _episode in range(3):
        hidden = torch.zeros(n_joint, dtype=torch.int64)
        env.reset()
        if game in TWO_STEP:
            state = enter(env).next.state
            hidden = state[:, 2:].argmax(dim=1) if game == "mirage" else hidden
        step = env.step(joint_actions(env))
        by_hidden = torch.stack([naive_payoffs(game, k, n, env, z) for z in range(2 if game == "mirage" else 1)])
        expected = by_hidden[hidden, torch.arange(n_joint)]
        torch.testing.assert_close(step.individual_reward, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(step.reward, expected.sum(dim=1), rtol=0, atol=1e-6)
        means.append(by_hidden.sum(dim=2).mean(dim=0))
        torch.testing.assert_close(step.info["expected_return"], means[-1], rtol=0, atol=1e-6)
        assert step.terminated.all()
        assert not step.truncated.any()
        assert step.info["episode_limit"].tolist() == [0.0] * n_joint
    best = max(means[0].max().item(), TWO_STEP.get(game, -math.inf))
    average = means[0].mean().item()
    average = (average + TWO_STEP[game]) / 2 if game in TWO_STEP else average
    assert env.game.optimum == pytest.approx(best, abs=1e-6)
    assert env.game.uniform_return == pytest.approx(average, abs=1e-6)
    torch.testing.assert_close(step.info["normalised_return"], (means[0] - average) / (best - average))
    assert step.info["optimal"].tolist() == [float(mean >= best - 1e-6) for mean in means[0].tolist()]


def test_the_tables_of_the_method():
    main = [[-1.3333, 0.3333, 1.0], [-0.3333, 1.3333, 2.0], [-3.3333, -1.6667, -1.0]]
    half = [[-2.6667, 2.6667, 0.0], [-0.1667, -0.8333, 4.0], [-2.1667, -1.8333, -2.0]]
    np.testing.assert_allclose(make_game("decoy", 0).payoffs[0], main, atol=5e-5)
    np.testing.assert_allclose(make_game("decoy", 0.5).payoffs[0], half, atol=5e-5)
    for game, base in BASES.items():
        assert make_game(game, 1).payoffs[0].tolist() == base


@pytest.mark.parametrize(("game", "n", "k", "spectators"), CASES)
def test_shares_sum_to_the_payoffs(game, n, k, spectators):
    game = make_game(game, k, n, spectators)
    assert game.shares.shape == (len(game.payoffs), game.n_agents, *game.action_counts)
    np.testing.assert_allclose(game.shares.sum(axis=1), game.payoffs, atol=1e-12)


def test_a_spectator_earns_its_bonus_itself():
    env = make("handshake", n_envs=2, spectators=1, rewards="individual")
    assert env.get_env_info()["individual_reward"]
    step = env.step(torch.tensor([[0, 2, 0], [0, 2, 1]]))
    assert step.individual_reward.tolist() == [[1.5, 1.5, 1.0], [1.5, 1.5, 0.0]]
    assert step.reward.tolist() == [4.0, 3.0]


@pytest.mark.parametrize(
    ("game", "best", "value"),
    [
        ("decoy", [1, 2], 6),
        ("handshake", [0, 2], 3),
        ("stag", [2, 2], 2),
        ("bridge", [1, 1], 1),
        ("replay", [1, 1, 1], 6),
    ],
)
def test_best_play_is_optimal(game, best, value):
    env = make(game)
    env.reset()
    if game in TWO_STEP:
        enter(env)
    step = env.step(torch.tensor([best]))
    assert step.reward.tolist() == [value]
    assert step.info["optimal"].tolist() == [1]
    assert step.info["normalised_return"].tolist() == [1]


# --- two-step games


@pytest.mark.parametrize("game", TWO_STEP)
def test_agent_1_alone_chooses_between_the_safe_reward_and_the_joint_decision(game):
    env = make(game, n_envs=4, kappa=0.5, rewards="individual")
    start, safe = env.reset(), TWO_STEP[game]
    assert start.obs.tolist() == [[[1, 0]] * 2] * 4
    step = env.step(torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]))
    torch.testing.assert_close(step.reward, torch.tensor([safe, safe, 0, 0]))
    torch.testing.assert_close(step.individual_reward, torch.tensor([safe, safe, 0, 0]).view(4, 1).repeat(1, 2) / 2)
    assert step.terminated.tolist() == [True, True, False, False]
    assert step.final.obs[:, 0].tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    assert step.next.obs[:, 0].tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    assert step.info["expected_return"][:2].tolist() == pytest.approx([safe, safe])

    # The first two begin a second episode while the others go on with their first.
    step = env.step(torch.tensor([[0, 0], [1, 0], [1, 1], [1, 1]]))
    assert step.terminated.tolist() == [True, False, True, True]
    assert step.reward[:2].tolist() == pytest.approx([safe, 0])
    assert step.info["expected_return"][[0, 2, 3]].tolist() == pytest.approx([safe, *[env.game.mean_payoff[1, 1]] * 2])
    assert step.final.obs[:, 1].tolist() == [[1, 0], [0, 1], [0, 1], [0, 1]]
    assert step.next.obs[:, 1].tolist() == [[1, 0], [0, 1], [1, 0], [1, 0]]


@pytest.mark.parametrize(("game", "safe_is_best"), [("bridge", 0), ("mirage", 1), ("redundant", 1)])
def test_where_the_safe_action_is_best(game, safe_is_best):
    env = make(game)
    env.reset()
    step = env.step(torch.tensor([[0, 1]]))
    assert step.info["optimal"].tolist() == [safe_is_best]
    if safe_is_best:
        assert step.info["normalised_return"].tolist() == pytest.approx([1])


def test_reset_in_the_middle_of_an_episode_starts_a_whole_one():
    env = make("bridge", n_envs=2)
    env.step(torch.tensor([[1, 0], [0, 0]]))
    assert env.reset().obs[:, 0].tolist() == [[1, 0], [1, 0]]
    assert env.step(torch.tensor([[0, 0], [1, 0]])).terminated.tolist() == [True, False]


def test_mirage_shows_its_hidden_variable_to_the_state_alone():
    env = make("mirage", n_envs=2000, kappa=0.75)
    assert env.reset().state.tolist() == [[1, 0, 0, 0]] * 2000
    entered = enter(env).next
    assert entered.obs.tolist() == [[[0, 1]] * 2] * 2000
    first = entered.state[:, 2:]
    assert first.sum(dim=1).tolist() == [1] * 2000
    assert first[:, 1].mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2000))
    over = env.step(torch.ones(2000, 2, dtype=torch.int64))
    torch.testing.assert_close(over.reward, first[:, 1])  # all ones are right for the second value, and pay 1
    torch.testing.assert_close(over.final.state[:, 2:], first)
    assert over.next.state.tolist() == [[1, 0, 0, 0]] * 2000
    assert over.info["expected_return"].tolist() == [0.5] * 2000  # whatever the hidden variable was
    assert over.info["optimal"].tolist() == [0] * 2000
    second = enter(env).next.state[:, 2:]
    assert (first != second).any(dim=1).float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2000))


# --- noise and seeds


@pytest.mark.parametrize("game", ["decoy", "bridge"])
def test_reward_noise_has_the_given_deviation_and_is_independent_across_agents(game):
    E, N, deviation = 20_000, 3, 2.0
    agents = {"spectators": 1} if game == "decoy" else {"n_agents": 3}
    env = make(game, n_envs=E, reward_noise=deviation, rewards="individual", **agents)
    step = env.step(torch.zeros(E, N, dtype=torch.int64))
    noise = step.individual_reward - step.individual_reward.mean(dim=0)
    torch.testing.assert_close(step.individual_reward.sum(dim=1), step.reward, rtol=0, atol=1e-5)
    tolerance = 4 * deviation / math.sqrt(E)
    assert step.reward.mean().item() == pytest.approx(env.game.payoffs[0, 0, 0, 0] if game == "decoy" else 0.6, abs=0.1)
    assert step.reward.std().item() == pytest.approx(deviation, abs=tolerance)
    expected = torch.eye(N) * deviation**2 / N
    torch.testing.assert_close(noise.T @ noise / E, expected, rtol=0, atol=2 * tolerance)
    assert step.info["expected_return"].unique().numel() == 1


def test_noise_dims_are_standard_normals_drawn_anew_at_every_step():
    E = 5000
    env = make("mirage", n_envs=E, noise_dims=3)
    seen = [env.reset()]
    actions = torch.zeros(E, 2, dtype=torch.int64)
    actions[: E // 2, 0] = 1
    step = env.step(actions)  # half of the episodes end
    torch.testing.assert_close(step.final.state[: E // 2], step.next.state[: E // 2], rtol=0, atol=0)
    assert (step.final.state[E // 2 :, 4:] != step.next.state[E // 2 :, 4:]).all()
    seen += [step.next, env.step(actions).next]
    noises = torch.stack([observation.state[:, 4:] for observation in seen])  # (3, E, 3)
    assert noises.mean().item() == pytest.approx(0, abs=4 / math.sqrt(noises.numel()))
    assert noises.std().item() == pytest.approx(1, abs=4 / math.sqrt(noises.numel()))
    flat = noises.transpose(0, 1).reshape(E, -1)
    torch.testing.assert_close(flat.T @ flat / E, torch.eye(9), rtol=0, atol=0.08)
    assert seen[1].obs.shape == (E, 2, 2)


def play(env, steps=6):
    """Everything that a fixed sequence of actions brings about, as one vector."""
    generator = torch.Generator().manual_seed(7)
    seen = [env.reset().state]
    for _ in range(steps):
        actions = torch.randint(env.n_actions, (env.n_envs, env.n_agents), generator=generator)
        step = env.step(actions)
        seen += [step.reward, step.final.state, step.next.state, step.terminated]
    return torch.cat([part.flatten().float() for part in seen])


def test_the_seed_alone_decides():
    options = {"game": "mirage", "n_envs": 5, "reward_noise": 0.5, "noise_dims": 2}
    first = play(make(**options, seed=3))
    assert torch.equal(first, play(make(**options, seed=3)))
    assert torch.equal(first, play(make(**options, seed=3, rewards="individual")))
    assert not torch.equal(first, play(make(**options, seed=4)))
    assert not torch.equal(play(make(**options, seed=None)), play(make(**options, seed=None)))


def test_what_a_step_returned_does_not_change_later():
    env = make("mirage", n_envs=4, noise_dims=1)
    start = env.reset()
    step = env.step(torch.tensor([[1, 0], [0, 0], [1, 1], [0, 1]]))
    seen = [start.state, step.terminated, step.next.state, step.final.state]
    before = [tensor.clone() for tensor in seen]
    env.step(torch.ones(4, 2, dtype=torch.int64))
    assert all(map(torch.equal, before, seen))


def test_the_environment_keeps_its_phase_when_the_returned_flags_are_overwritten():
    env = make("bridge", n_envs=2)
    env.step(torch.tensor([[1, 0], [0, 0]])).terminated.fill_(False)
    assert env.step(torch.tensor([[1, 1], [1, 1]])).terminated.tolist() == [True, False]


# --- the interface


@pytest.mark.parametrize(
    ("game", "options", "sizes"),
    [  # state, observation, actions, agents, length
        ("decoy", {}, (1, 1, 3, 2, 1)),
        ("handshake", {"spectators": 2, "noise_dims": 3}, (4, 1, 3, 4, 1)),
        ("stag", {"n_agents": 4}, (1, 1, 3, 4, 1)),
        ("replay", {}, (1, 1, 2, 3, 1)),
        ("bridge", {}, (2, 2, 2, 2, 2)),
        ("redundant", {"n_agents": 8, "noise_dims": 1}, (3, 2, 2, 8, 2)),
        ("mirage", {"noise_dims": 2}, (6, 2, 2, 2, 2)),
    ],
)
def test_sizes_shapes_and_types(game, options, sizes):
    env = make(game, n_envs=4, **options)
    state, obs, n_actions, n_agents, length = sizes
    assert env.get_env_info() == {
        "state_shape": state,
        "obs_shape": obs,
        "n_actions": n_actions,
        "n_agents": n_agents,
        "episode_limit": length,
        "individual_reward": False,
        "agent_types": None,
    }
    start = env.reset()
    step = env.step(torch.zeros(4, n_agents, dtype=torch.int64))
    for seen in (start, step.next, step.final):
        assert (seen.obs.shape, seen.obs.dtype) == ((4, n_agents, obs), torch.float32)
        assert (seen.state.shape, seen.state.dtype) == ((4, state), torch.float32)
        assert (seen.avail.shape, seen.avail.dtype) == ((4, n_agents, n_actions), torch.int32)
        assert (seen.avail == 1).all()
        assert (seen.obs.sum(dim=-1) == 1).all()
    for values in (step.reward, *step.info.values()):
        assert (values.shape, values.dtype) == ((4,), torch.float32)
    for ended in (step.terminated, step.truncated):
        assert (ended.shape, ended.dtype) == ((4,), torch.bool)
    assert set(step.info) == {"expected_return", "normalised_return", "optimal", "episode_limit"}
    assert step.individual_reward is None


@pytest.mark.parametrize("game", GAMES)
def test_the_yaml_defaults_build_every_game(game):
    config = yaml.safe_load(CONFIG.read_text())
    assert config["env"] == "greed_games"
    kappa = None if game == "replay" else config["env_args"]["kappa"]
    env_args = {**config["env_args"], "game": game, "kappa": kappa}
    env = make_vector_env("greed_games", 3, "cpu", env_args)
    assert env.reset().obs.shape[:2] == (3, 3 if game == "replay" else 2)
    single = REGISTRY["greed_games"](**env_args)
    single.reset()
    reward, done, _info = single.step([0] * single.n_agents)
    assert reward == pytest.approx(TWO_STEP.get(game, env.game.payoffs.flat[0]))
    assert done


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"game": "decoi"}, ["env_args.game='decoi'", "did you mean 'decoy'", "bridge, decoy, handshake, mirage"]),
        ({"game": None}, ["env_args.game=None", "available: bridge, "]),
        ({"kappa": None}, ["env_args.kappa=None", "decoy", "[0, 1]"]),
        ({"kappa": 1.1}, ["env_args.kappa=1.1", "[0, 1]"]),
        ({"kappa": -0.1}, ["env_args.kappa=-0.1", "[0, 1]"]),
        ({"kappa": float("nan")}, ["env_args.kappa=nan", "[0, 1]"]),
        ({"kappa": True}, ["env_args.kappa=True", "[0, 1]"]),
        ({"n_agents": 3}, ["env_args.n_agents=3", "decoy", "env_args.spectators"]),
        ({"game": "stag", "n_agents": 1}, ["env_args.n_agents=1", ">= 2", "null"]),
        ({"game": "stag", "n_agents": 2.5}, ["env_args.n_agents=2.5", ">= 2"]),
        ({"spectators": -1}, ["env_args.spectators=-1", ">= 0"]),
        ({"game": "bridge", "spectators": 1}, ["env_args.spectators=1", "bridge", "set it to 0"]),
        ({"spectators": 9}, ["env_args.spectators=9", "at most 10 agents"]),
        ({"game": "redundant", "n_agents": 17}, ["env_args.n_agents=17", "at most 16 agents"]),
        ({"rewards": "indivdual"}, ["env_args.rewards='indivdual'", "did you mean 'individual'", "team"]),
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


def test_replay_has_no_knob():
    assert make_game("replay", None).kappa is make_game("replay", 0.0).kappa is None
    with pytest.raises(UserError, match=r"env_args\.kappa=0\.5: the game replay has no such knob; set it to null"):
        make_game("replay", 0.5)


@pytest.mark.parametrize(("game", "n"), [("stag", 10), ("redundant", 16)])
def test_the_largest_games_are_built(game, n):
    assert make_game(game, 1.0, n).n_agents == n


@pytest.mark.parametrize("shape", [(1, 2), (3,), (3, 3), (2, 3)])
def test_actions_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(3, 2\)"):
        make(n_envs=3).step(torch.zeros(shape, dtype=torch.int64))
