"""The vector runner on scripted environments whose observations say where and when they were shown."""

from itertools import pairwise

import pytest
import torch
from helpers import (
    RecordingLogger,
    ScriptedVectorEnv,
    assert_as_scripted,
    assert_records,
    make_args,
    make_mac,
    make_scheme,
    masked_greedy,
    random_batch,
    script,
    sharpen,
    step_by_step,
)

from controllers.basic_controller import BasicMAC
from envs import VECTOR_REGISTRY
from runners.episode_runner import EpisodeRunner
from runners.vector_runner import VectorRunner

ENVS, SEED = 4, 10
KINDS = {"native": "scripted", "lifted": "helpers:ScriptedEnv"}  # a batch of its own, and PyMARL's interface


@pytest.fixture(autouse=True)
def _scripted(monkeypatch):
    monkeypatch.setitem(VECTOR_REGISTRY, "scripted", ScriptedVectorEnv)


def make(runner_class, env, env_seed, n_envs, epsilon=0.0, alg="qmix", **overrides):
    exploration = {"epsilon_start": epsilon, "epsilon_finish": epsilon}
    batch_size_run = {"runner": "vector", "batch_size_run": n_envs}
    args = make_args(
        alg,
        unchecked={"env": env, "env_args": {"seed": env_seed}},
        **{"seed": env_seed, **exploration, **batch_size_run, **overrides},
    )
    runner = runner_class(args, RecordingLogger())
    mac = make_mac(args)
    sharpen(mac)
    runner.setup(*make_scheme(args), mac)
    return runner


def make_runner(kind="native", **overrides):
    return make(VectorRunner, KINDS[kind], SEED, ENVS, **overrides)


def alone(number, episodes, epsilon=0.0):
    """What the episode runner plays on environment `number`, with the same weights: its first episodes."""
    runner = make(EpisodeRunner, "helpers:ScriptedEnv", number, 1, epsilon)
    return [runner.run(test_mode=True) for _ in range(episodes)]


def collect(runner, runs, between=lambda: None):
    """The episodes of so many runs by (environment, episode), in the order in which they came; each a batch of 1."""
    episodes = {}
    for _ in range(runs):
        batch = runner.run()
        for e in range(batch.batch_size):
            env, episode = batch["state"][e, 0, :2].int().tolist()
            assert (env, episode) not in episodes, "returned twice"
            episodes[env, episode] = batch[e, :]
        between()
    return episodes


def assert_same_episodes(first, second):
    assert first.keys() == second.keys()
    for where, batch in first.items():
        for field, value in batch.data.transition_data.items():
            assert torch.equal(value, second[where][field]), (where, field)


# Episodes


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_episode_lands_whole_and_in_order(kind, epsilon):
    runner = make_runner(kind, epsilon=epsilon)
    episodes = collect(runner, 40)
    ends = set()
    for (env, episode), batch in episodes.items():
        assert_as_scripted(batch, env, episode)
        ends.add(script(env, episode).end)
    assert ends == {"terminated", "limit", "early"}
    for env in range(SEED, SEED + ENVS):
        mine = [episode for number, episode in episodes if number == env]
        assert mine == list(range(len(mine)))
        assert len(mine) > 5
    # Every step that was paid for is in a returned episode or in one of those that are still open.
    played = sum(script(*where).length for where in episodes)
    still_open = runner.rollout.steps.tolist()
    assert runner.t_env == played + sum(still_open)
    assert any(still_open)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_ends_with_the_first_end_and_returns_all_that_ended_then(kind):
    runner = make_runner(kind)
    clock = 0  # steps of each environment since the start
    ends = {}  # environment -> the clock at the ends of its episodes
    for env in range(SEED, SEED + ENVS):
        lengths = [script(env, episode).length for episode in range(30)]
        ends[env] = [sum(lengths[: k + 1]) for k in range(30)]
    for _ in range(20):
        batch = runner.run()
        clock = min(end for times in ends.values() for end in times if end > clock)
        expected = {env for env, times in ends.items() if clock in times}
        assert set(batch["state"][:, 0, 0].int().tolist()) == expected
        assert runner.t_env == clock * ENVS


@pytest.mark.parametrize("kind", KINDS)
def test_without_bootstrapping_a_time_limit_is_stored_as_an_end(kind):
    for (env, episode), batch in collect(make_runner(kind, bootstrap_time_limit=False), 20).items():
        assert_as_scripted(batch, env, episode, limit_is_an_end=True)


@pytest.mark.parametrize("kind", KINDS)
def test_without_bootstrapping_played_episodes_end_at_a_time_limit_too(kind):
    played = make_runner(kind, bootstrap_time_limit=False).play(12)
    for e in range(12):
        assert_as_scripted(played[[e], :], *played["state"][e, 0, :2].int().tolist(), limit_is_an_end=True)


def test_reset_drops_the_open_episodes():
    runner = make_runner()
    collect(runner, 5)
    begun = list(runner.env.episodes)
    runner.reset()
    for (env, episode), batch in collect(runner, 10).items():
        assert_as_scripted(batch, env, episode)
        assert episode > begun[env - SEED]


# Memory


@pytest.mark.parametrize("kind", KINDS)
def test_agents_remember_their_own_episode_and_nothing_else(kind):
    """Greedy actions are those of a controller that sees one whole episode from fresh memory."""
    runner = make_runner(kind)
    for batch in collect(runner, 30).values():
        length = int(batch["filled"].sum()) - 1
        greedy = masked_greedy(runner.mac.unroll(batch), batch)
        assert torch.equal(batch["actions"][0, :length, :, 0], greedy[0, :length])


@pytest.mark.parametrize("kind", KINDS)
def test_it_plays_what_the_episode_runner_plays(kind):
    episodes = collect(make_runner(kind), 30)
    for env in range(SEED, SEED + ENVS):
        mine = [batch for (number, _), batch in episodes.items() if number == env]
        for ours, theirs in zip(mine, alone(env, len(mine)), strict=True):
            for field, value in ours.data.transition_data.items():
                assert torch.equal(value, theirs[field]), field


class LooksBackMAC(BasicMAC):
    """A controller in PyMARL's style whose agents also see their last observation."""

    def _build_inputs(self, batch, t):
        last = torch.zeros_like(batch["obs"][:, t]) if t == 0 else batch["obs"][:, t - 1]
        return torch.cat([batch["obs"][:, t], last], dim=-1).reshape(batch.batch_size * self.n_agents, -1)

    def _get_input_shape(self, scheme):
        return 2 * scheme["obs"]["vshape"]


def test_controllers_may_look_one_step_back():
    runner = make_runner()
    mac = make_mac(runner.args, mac_class=LooksBackMAC)
    sharpen(mac)
    runner.setup(*make_scheme(runner.args), mac)
    for batch in collect(runner, 30).values():
        length = int(batch["filled"].sum()) - 1
        greedy = masked_greedy(mac.unroll(batch), batch)
        assert torch.equal(batch["actions"][0, :length, :, 0], greedy[0, :length])


def test_stale_memory_would_be_noticed():
    """The two tests above can fail: memory of another episode changes greedy actions of these networks."""
    runner = make_runner()
    changed = 0
    episodes = list(collect(runner, 30).values())
    for before, batch in pairwise(episodes):
        fresh = masked_greedy(runner.mac.unroll(batch), batch)
        step_by_step(runner.mac, before)
        stale = torch.stack([runner.mac.forward(batch, t) for t in range(batch.max_seq_length)], dim=1)
        changed += (masked_greedy(stale, batch) != fresh)[batch["filled"].expand_as(fresh) == 1].any().item()
    assert changed > len(episodes) / 4


def test_the_learner_may_use_the_controller_between_runs():
    undisturbed = collect(make_runner(), 25)
    runner = make_runner()
    batch = random_batch(runner.args, seed=1)
    assert_same_episodes(collect(runner, 25, between=lambda: runner.mac.unroll(batch)), undisturbed)


# Evaluation


@pytest.mark.parametrize("n_episodes", [1, 3, 4, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_plays_exactly_the_first_episodes_of_its_own_environments(kind, n_episodes):
    runner = make_runner(kind, epsilon=0.7)  # exploration is for training
    runner.run()
    t_env = runner.t_env
    summary = runner.evaluate(n_episodes)

    used = min(ENVS, n_episodes)
    shares = [n_episodes // used + (e < n_episodes % used) for e in range(used)]
    assert sum(shares) == n_episodes
    expected = [(SEED + ENVS + e, batch) for e, share in enumerate(shares) for batch in alone(SEED + ENVS + e, share)]
    returns = torch.tensor([batch["reward"].sum().item() for _, batch in expected], dtype=torch.float64)
    lengths = [batch["filled"].sum().item() - 1 for _, batch in expected]
    limits = [1.0 - batch["terminated"].sum().item() for _, batch in expected]
    assert summary == pytest.approx(
        {
            "test_return_mean": returns.mean().item(),
            "test_return_std": returns.std(correction=0).item(),
            "test_ep_length_mean": sum(lengths) / n_episodes,
            "test_last_step_mean": sum(lengths) / n_episodes,
            "test_number_mean": sum(number for number, _ in expected) / n_episodes,
            "test_episode_limit_mean": sum(limits) / n_episodes,
        }
    )
    assert runner.t_env == t_env
    for name, value in summary.items():
        assert runner.logger.stats[name] == [(t_env, pytest.approx(value))]


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_disturbs_neither_open_episodes_nor_memory(kind):
    undisturbed = collect(make_runner(kind), 25)
    runner = make_runner(kind)
    assert_same_episodes(collect(runner, 25, between=lambda: runner.evaluate(5)), undisturbed)
    assert len(runner.logger.stats["test_return_mean"]) == 25


def test_test_environments_are_none_of_the_training_environments():
    """Also where the environments' seed is not the run's."""
    for run_seed in range(SEED - 2 * ENVS, SEED + ENVS):
        runner = make_runner(seed=run_seed)
        runner.evaluate(ENVS)
        assert not set(runner.test_env.numbers) & set(runner.env.numbers), run_seed


def test_a_later_evaluation_starts_fresh_episodes_and_forgets_the_earlier_one():
    runner = make_runner()
    runner.evaluate(6)
    begun = list(runner.test_env.episodes)
    summary = runner.evaluate(6)
    plays = [(SEED + ENVS + e, begun[e] + 1 + k) for e, share in enumerate((2, 2, 1, 1)) for k in range(share)]
    assert summary["test_ep_length_mean"] == pytest.approx(sum(script(*play).length for play in plays) / 6)
    assert summary["test_number_mean"] == pytest.approx(sum(number for number, _ in plays) / 6)


def test_tests_are_not_played_by_run():
    with pytest.raises(ValueError, match="evaluate"):
        make_runner().run(test_mode=True)


def test_all_environments_are_closed():
    runner = make_runner()
    runner.evaluate(2)
    runner.close_env()
    assert runner.env.closed
    assert runner.test_env.closed


# Playing for the learner


@pytest.mark.parametrize("n_episodes", [1, 3, 4, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_playing_gives_exactly_so_many_whole_greedy_episodes(kind, n_episodes):
    runner = make_runner(kind, epsilon=0.7)  # exploration is for training
    runner.run()
    t_env, logged = runner.t_env, dict(runner.logger.stats)
    played = runner.play(n_episodes)
    assert played.batch_size == n_episodes
    assert runner.t_env == t_env
    assert runner.logger.stats == logged

    used = min(ENVS, n_episodes)
    shares = [n_episodes // used + (e < n_episodes % used) for e in range(used)]
    expected = {
        (SEED + ENVS + e, k): batch
        for e, share in enumerate(shares)
        for k, batch in enumerate(alone(SEED + ENVS + e, share))
    }
    found = {tuple(played["state"][e, 0, :2].int().tolist()): played[[e], :] for e in range(n_episodes)}
    assert len(found) == n_episodes  # none of them twice
    assert_same_episodes(dict(sorted(found.items())), expected)
    for (env, episode), batch in found.items():
        assert_as_scripted(batch, env, episode)


def test_playing_again_gives_other_episodes():
    runner = make_runner()
    first, second = runner.play(6), runner.play(6)
    starts = [{tuple(row) for row in batch["state"][:, 0, :2].int().tolist()} for batch in (first, second)]
    assert not starts[0] & starts[1]
    for batch in (first, second):
        for e in range(6):
            assert_as_scripted(batch[[e], :], *batch["state"][e, 0, :2].int().tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_playing_disturbs_neither_open_episodes_nor_memory(kind):
    undisturbed = collect(make_runner(kind), 12)
    runner = make_runner(kind)
    assert_same_episodes(collect(runner, 12, between=lambda: runner.play(5)), undisturbed)


# What the method asks to be kept


@pytest.mark.parametrize("kind", KINDS)
def test_shares_of_the_reward_and_probabilities_of_the_actions_are_kept(kind):
    stored = {"heads": {"reward_independent": "individual"}, "behaviour": {"source": "stored"}, "alg": "greedy_qmix"}
    runner = make_runner(kind, epsilon=0.25, **stored)
    for (env, episode), batch in collect(runner, 15).items():
        assert_as_scripted(batch, env, episode)
        assert_records(batch, runner.mac, epsilon=0.25)
    played = runner.play(5)
    assert_records(played, runner.mac, epsilon=0.0)
    assert "behaviour" not in collect(make_runner(kind), 1).popitem()[1].data.transition_data


# Statistics


@pytest.mark.parametrize("kind", KINDS)
def test_training_statistics_are_those_of_the_episodes_since_the_last(kind):
    runner = make_runner(kind, epsilon=0.25, runner_log_interval=20)
    since_last, next_log, logged = [], 0, 0
    for _ in range(20):
        batch = runner.run()
        since_last += [batch[e, :] for e in range(batch.batch_size)]
        if runner.t_env < next_log:
            assert len(runner.logger.stats["return_mean"]) == logged
            continue
        next_log, logged = runner.t_env + 20, logged + 1
        returns = torch.cat([episode["reward"].sum(dim=1) for episode in since_last]).double()
        lengths = [episode["filled"].sum().item() - 1 for episode in since_last]
        numbers = [episode["state"][0, 0, 0].item() for episode in since_last]
        limits = [1.0 - episode["terminated"].sum().item() for episode in since_last]
        expected = {
            "return_mean": returns.mean().item(),
            "return_std": returns.std(correction=0).item(),
            "ep_length_mean": sum(lengths) / len(lengths),
            "last_step_mean": sum(lengths) / len(lengths),
            "number_mean": sum(numbers) / len(numbers),
            "episode_limit_mean": sum(limits) / len(limits),
            "epsilon": 0.25,
        }
        assert set(runner.logger.stats) == set(expected)
        for name, value in expected.items():
            assert runner.logger.stats[name][-1] == (runner.t_env, pytest.approx(value)), name
        since_last = []
    assert 3 < logged < 20
