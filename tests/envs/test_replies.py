"""What environments must not reply is one clear error, on each of the ways on which episodes are collected."""

import logging

import numpy as np
import pytest
import torch
from helpers import RecordingLogger, make_args, make_mac, make_scheme
from plugins.misbehaving import ACTIONS, AGENTS, BAD_PLAYED, BAD_SEEN, LIMIT, MisbehavingEnv, ScriptedEnv, shown

from envs.multiagentenv import EnvCrash
from envs.process_env import ProcessVectorEnv
from envs.replies import MEND, CheckedEnv
from envs.vector_env import SerialVectorEnv
from runners.episode_runner import EpisodeRunner
from utils.errors import UserError

NUMBER = 7
MISBEHAVING = "plugins.misbehaving:MisbehavingEnv"


def faults(deed: str, where: str, **when) -> list[dict]:
    return [{"do": [deed], "where": where, **when}]


def play(env: CheckedEnv, episodes: int = 40) -> int:
    """Steps until the first error or so many episodes."""
    steps = 0
    for _ in range(episodes):
        env.reset()
        env.observe()
        over = False
        while not over:
            _, terminated, cut, _ = env.step(np.zeros(AGENTS, dtype=int))
            env.observe()
            over, steps = terminated or cut, steps + 1
    return steps


def test_good_replies_come_through():
    env = CheckedEnv(ScriptedEnv(NUMBER))
    assert play(env) > 40
    env.reset()
    obs, state, avail = env.observe()
    for found, expected in zip((obs, state, avail), shown(NUMBER, 40, 0), strict=True):
        assert (found == expected).all()
        assert found.dtype == expected.dtype
    assert (obs.base, state.base) == (None, None)
    obs[:] = 99
    assert (env.observe()[0] != 99).all()


@pytest.mark.parametrize("number", [True, 3, 2.5, np.float32(1), np.int64(-2), np.bool_(True), np.array(4.0)])
def test_rewards_may_be_any_number(number):
    class Paying(ScriptedEnv):
        def step(self, actions):
            return number, *super().step(actions)[1:]

    env = CheckedEnv(Paying(NUMBER))
    env.reset()
    reward = env.step([0] * AGENTS)[0]
    assert reward == float(number)
    assert type(reward) is float


@pytest.mark.parametrize(
    ("deed", "where"), [(d, w) for d in BAD_SEEN for w in ("reset", "step")] + [(d, "step") for d in BAD_PLAYED]
)
def test_bad_replies_name_the_culprit(deed, where):
    env = CheckedEnv(MisbehavingEnv(NUMBER, faults(deed, where, episode=2)), row=5)
    with pytest.raises(EnvCrash) as error:
        play(env)
    text = str(error.value)
    assert (BAD_SEEN | BAD_PLAYED)[deed] in text
    step = 0 if where == "reset" else LIMIT if deed == "go_on" else 1
    if deed != "go_on":  # whose third episode may end before it goes on for too long
        assert text.startswith(f"env MisbehavingEnv 5, step {step} of episode 3: "), text
    assert text.endswith(f"; {MEND}")
    assert "\n" not in text


def test_nobody_acts_behind_a_termination():
    """There an environment may allow nothing; behind a time limit, what comes is bootstrapped."""

    class Ending(ScriptedEnv):
        def get_avail_actions(self):
            return [[0 if self.t else 1] * ACTIONS] * AGENTS

        def step(self, actions):
            self.t += 1
            return 0.0, True, {"episode_limit": self.episode >= 3, "individual_reward": [0.0] * AGENTS}

    with pytest.raises(EnvCrash, match=r"step 1 of episode 4: agent 0 has no available action"):
        play(CheckedEnv(Ending(NUMBER)))


@pytest.mark.parametrize(("key", "value"), [("episode_limit", 0), ("n_agents", 2.0), ("episode_limit", None)])
def test_sizes(key, value):
    env = ScriptedEnv(NUMBER)
    setattr(env, key, value)
    with pytest.raises(UserError, match=rf"env ScriptedEnv: {key} is {value!r} in get_env_info\(\)"):
        CheckedEnv(env)


# On every way


@pytest.mark.parametrize("deed", BAD_SEEN | BAD_PLAYED)
def test_a_batch_says_which_environment(deed):
    env = SerialVectorEnv([MisbehavingEnv(number, faults(deed, "step", env=1)) for number in range(3)])
    env.reset()

    def steps():
        for _ in range(200):
            env.step(torch.zeros(3, AGENTS, dtype=torch.long))

    with pytest.raises(EnvCrash, match="env MisbehavingEnv 1, step "):
        steps()


@pytest.mark.parametrize("deed", ["show_nan", "forbid_all", "pay_nan", "pay_each", "go_on"])
def test_the_episode_runner_plays_the_episode_again(deed, caplog):
    """Once it goes well; what always goes wrong stops the run."""

    def new_runner(**when):
        env_args = {"seed": NUMBER, "faults": faults(deed, "step", **when)}
        args = make_args(
            "qmix", unchecked={"env": MISBEHAVING, "env_args": env_args}, runner="episode", batch_size_run=1
        )
        logger = RecordingLogger()
        logger.console_logger = logging.getLogger("test")
        runner = EpisodeRunner(args, logger)
        runner.setup(*make_scheme(args), make_mac(args))
        return runner

    runner = new_runner(starts=[0])
    for _ in range(40):
        batch = runner.run()
        assert all(torch.isfinite(batch[field]).all() for field in ("obs", "state", "reward"))
    assert runner.crashes == 1
    assert "is dropped and played again" in caplog.text

    def go_on():
        runner = new_runner()
        for _ in range(400):
            runner.run()

    with pytest.raises(EnvCrash, match=r"crash 5 without a whole episode between them \(env_crash_limit=5\)"):
        go_on()


@pytest.mark.parametrize("deed", ["show_nan", "forbid_all", "pay_each"])
def test_a_worker_is_replaced(deed, tmp_path):
    said = []
    env = ProcessVectorEnv(
        MISBEHAVING,
        1,
        "cpu",
        {"seed": NUMBER, "faults": faults(deed, "step", starts=[0])},
        deadline=60,
        crash_limit=3,
        lockstep=True,
        output_folder=tmp_path,
        log=said.append,
    )
    try:
        env.reset()
        for _ in range(20):
            env.step(torch.zeros(1, AGENTS, dtype=torch.long))
    finally:
        env.close()
    assert len(said) == 1
    assert said[0].startswith("Environment 0 failed: env MisbehavingEnv, step 1 of episode 1: ")
    assert (BAD_SEEN | BAD_PLAYED)[deed] in said[0]


def test_a_limit_that_is_none_is_the_users(tmp_path):
    with pytest.raises(UserError, match=r"env MisbehavingEnv: episode_limit is 0 in get_env_info\(\)"):
        ProcessVectorEnv(
            MISBEHAVING,
            1,
            "cpu",
            {"seed": NUMBER, "faults": faults("lose_limit", "constructor")},
            deadline=60,
            crash_limit=3,
            lockstep=True,
            output_folder=tmp_path,
        )
