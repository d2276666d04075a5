"""The episode runner on scripted environments whose observations say where and when they were shown."""

import pytest
import torch
from helpers import (
    RecordingLogger,
    assert_as_scripted,
    assert_records,
    make_args,
    make_mac,
    make_scheme,
    masked_greedy,
    random_batch,
    script,
    sharpen,
)

from runners.episode_runner import EpisodeRunner

NUMBER = 7


def make_runner(epsilon=0.0, number=NUMBER, alg="qmix", **overrides):
    args = make_args(
        alg,
        unchecked={"env": "helpers:ScriptedEnv", "env_args": {"seed": number}},
        runner="episode",
        batch_size_run=1,
        epsilon_start=epsilon,
        epsilon_finish=epsilon,
        **overrides,
    )
    runner = EpisodeRunner(args, RecordingLogger())
    mac = make_mac(args)
    sharpen(mac)
    runner.setup(*make_scheme(args), mac)
    return runner


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_every_episode_is_whole_and_in_order(epsilon):
    runner = make_runner(epsilon)
    ends, steps = set(), 0
    for episode in range(12):
        assert_as_scripted(runner.run(), NUMBER, episode)
        ends.add(script(NUMBER, episode).end)
        steps += script(NUMBER, episode).length
        assert runner.t_env == steps
    assert ends == {"terminated", "limit", "early"}


def test_without_bootstrapping_a_time_limit_is_stored_as_an_end():
    runner = make_runner(bootstrap_time_limit=False)
    for episode in range(12):
        assert_as_scripted(runner.run(), NUMBER, episode, limit_is_an_end=True)


def test_agents_start_each_episode_with_fresh_memory():
    runner = make_runner()
    other = random_batch(runner.args, seed=1)
    for _ in range(12):
        batch = runner.run()
        length = int(batch["filled"].sum()) - 1
        greedy = masked_greedy(runner.mac.unroll(batch), batch)
        assert torch.equal(batch["actions"][0, :length, :, 0], greedy[0, :length])
        runner.mac.unroll(other)  # the learner uses the controller between episodes


def test_evaluation_plays_exactly_so_many_episodes_without_exploring():
    runner = make_runner(epsilon=1.0)
    trained = runner.run()
    t_env = runner.t_env
    summary = runner.evaluate(5)
    assert runner.env.episode == 5  # the first was for training
    greedy = make_runner()
    episodes = [greedy.run() for _ in range(6)][1:]
    returns = torch.cat([batch["reward"].sum(dim=1) for batch in episodes]).double()
    lengths = [script(NUMBER, episode).length for episode in range(1, 6)]
    cut = [script(NUMBER, episode).end != "terminated" for episode in range(1, 6)]
    assert summary == pytest.approx(
        {
            "test_return_mean": returns.mean().item(),
            "test_return_std": returns.std(correction=0).item(),
            "test_ep_length_mean": sum(lengths) / 5,
            "test_last_step_mean": sum(lengths) / 5,
            "test_number_mean": NUMBER,
            "test_episode_limit_mean": sum(cut) / 5,
        }
    )
    assert runner.t_env == t_env
    assert runner.logger.stats["test_return_mean"] == [(t_env, pytest.approx(returns.mean().item()))]
    assert runner.evaluate(1)["test_ep_length_mean"] == script(NUMBER, 6).length  # the earlier ones are forgotten
    assert trained["filled"].sum() == script(NUMBER, 0).length + 1


def test_training_statistics_are_those_of_the_episodes_since_the_last():
    runner = make_runner(epsilon=0.25, runner_log_interval=8)
    steps, since_last, next_log, logged = 0, [], 0, 0
    for episode in range(15):
        since_last.append(runner.run()["reward"].sum().item())
        steps += script(NUMBER, episode).length
        if steps < next_log:
            continue
        next_log, logged = steps + 8, logged + 1
        played = range(episode + 1 - len(since_last), episode + 1)
        lengths = [script(NUMBER, number).length for number in played]
        cut = [script(NUMBER, number).end != "terminated" for number in played]
        returns = torch.tensor(since_last, dtype=torch.float64)
        expected = {
            "return_mean": returns.mean().item(),
            "return_std": returns.std(correction=0).item(),
            "ep_length_mean": sum(lengths) / len(played),
            "last_step_mean": sum(lengths) / len(played),
            "number_mean": NUMBER,
            "episode_limit_mean": sum(cut) / len(played),
            "epsilon": 0.25,
            "env_crashes": 0,
        }
        assert set(runner.logger.stats) == set(expected)
        for name, value in expected.items():
            assert runner.logger.stats[name][-1] == (steps, pytest.approx(value)), name
        since_last = []
    assert len(runner.logger.stats["return_mean"]) == logged
    assert 2 < logged < 15


def test_shares_of_the_reward_and_probabilities_of_the_actions_are_kept():
    stored = {"heads": {"reward_independent": "individual"}, "behaviour": {"source": "stored"}}
    runner = make_runner(epsilon=0.25, alg="greedy_qmix", **stored)
    for episode in range(8):
        batch = runner.run()
        assert_as_scripted(batch, NUMBER, episode)
        assert_records(batch, runner.mac, epsilon=0.25)
    assert "behaviour" not in make_runner().run().data.transition_data


def test_one_environment_only():
    args = make_args("qmix", runner="vector", batch_size_run=2)
    with pytest.raises(ValueError, match="batch_size_run must be 1, got 2"):
        EpisodeRunner(args, RecordingLogger())


def test_closing_closes_the_environment():
    runner = make_runner()
    runner.close_env()
    assert runner.env.closed
