"""SMAX as a batch: against jaxmarl's own single environment, and what jaxmarl leaves to us (ends, state, seeds)."""

import numpy as np
import pytest
import torch

pytest.importorskip("jaxmarl")

import jax

from envs.smax import SmaxVectorEnv
from utils.errors import UserError

ENVS, LIMIT, STOP = 8, 12, 4
SIZES = {  # agents, actions, observation, state
    "3m": (3, 8, 75, 72),
    "2s3z": (5, 10, 127, 120),
    "3s5z_vs_3s6z": (8, 14, 218, 204),
    "27m_vs_30m": (27, 35, 738, 684),
}


def make(n_envs=ENVS, seed=5, reward_scale=1.0, time_limit=LIMIT, scale_state=True, map_name="3m"):
    return SmaxVectorEnv(
        n_envs=n_envs,
        device="cpu",
        map_name=map_name,
        seed=seed,
        reward_scale=reward_scale,
        time_limit=time_limit,
        scale_state=scale_state,
        see_enemy_actions=True,
        walls_cause_death=True,
        attack_mode="closest",
    )


def random_actions(seen, generator):
    flat = seen.avail.flatten(0, 1).float()
    return torch.multinomial(flat, 1, generator=generator).view(seen.avail.shape[:2])


def play(env, steps, generator=None):
    """(what was seen, actions, outcome) of random legal play."""
    generator = generator or torch.Generator().manual_seed(0)
    seen = env.reset()
    for _ in range(steps):
        actions = random_actions(seen, generator)
        outcome = env.step(actions)
        yield seen, actions, outcome
        seen = outcome.next


@pytest.mark.parametrize("map_name", SmaxVectorEnv.MAPS)
def test_every_map_can_be_built(map_name):
    env = make(1, map_name=map_name, time_limit=None)
    sizes = (env.n_agents, env.n_actions, env.obs_size, env.state_size)
    assert sizes == SIZES.get(map_name, sizes)
    assert env.episode_limit == 100
    assert env.n_actions >= env.n_agents
    types = {"2s3z": [2, 2, 3, 3, 3], "smacv2_5_units": None}
    assert env.agent_types == types.get(map_name, env.agent_types)
    assert env.agent_types is None or len(env.agent_types) == env.n_agents


def test_unknown_map():
    with pytest.raises(UserError, match=r"env_args.map_name='3mm': .*did you mean '3m'.*2s3z"):
        make(map_name="3mm")


def test_batch_equals_jaxmarls_single_environment():
    """Environment 2 of the batch, against `reset` and `step_env` called alone with the same keys."""
    env, e = make(), 2
    single = env._battle.env
    key, reset_key = jax.random.split(jax.random.PRNGKey(5 + e))
    obs, state = single.reset(reset_key)
    for seen, actions, outcome in play(env, LIMIT - 1):
        np.testing.assert_allclose(seen.obs[e], [obs[agent] for agent in single.agents], atol=1e-5)
        avail = single.get_avail_actions(state)
        np.testing.assert_array_equal(seen.avail[e], [avail[agent] for agent in single.agents])
        key, step_key, _ = jax.random.split(key, 3)
        joint = {agent: int(actions[e, i]) for i, agent in enumerate(single.agents)}
        obs, state, rewards, dones, _ = single.step_env(step_key, state, joint)
        assert outcome.reward[e].item() == pytest.approx(float(rewards["ally_0"]), abs=1e-5)
        np.testing.assert_allclose(outcome.final.obs[e], [obs[agent] for agent in single.agents], atol=1e-5)
        if dones["__all__"]:
            break


def test_a_time_limit_is_a_truncation_and_keeps_the_final_observation():
    env = make()
    env.reset()
    for step in range(1, 2 * LIMIT + 1):
        outcome = env.step(torch.full((ENVS, 3), STOP))  # both sides walk for longer than 12 steps before they meet
        if step % LIMIT:
            assert not (outcome.truncated | outcome.terminated).any()
            assert torch.equal(outcome.final.obs, outcome.next.obs)
            assert torch.equal(outcome.final.state, outcome.next.state)
        else:
            assert outcome.truncated.all()
            assert not outcome.terminated.any()
            assert (outcome.info["episode_limit"] == 1).all()
            assert (outcome.info["battle_won"] == 0).all()
            assert not torch.equal(outcome.final.state, outcome.next.state)


def test_a_battle_is_won_if_all_enemies_are_dead_and_an_ally_is_alive():
    env = make(64, time_limit=None)
    ends = won = 0
    seen = env.reset()
    for _ in range(60):
        # the first enemy in range, or to the right, where the enemies come from
        attack = seen.avail[:, :, 5:]
        actions = torch.where(attack.any(-1), 5 + attack.argmax(-1), 1)
        outcome = env.step(torch.where(seen.avail.gather(2, actions.unsqueeze(2)).squeeze(2) > 0, actions, STOP))
        done = outcome.terminated | outcome.truncated
        info = {key: value[done] for key, value in outcome.info.items()}
        expected = (info["dead_enemies"] == 3) & (info["dead_allies"] < 3)
        assert torch.equal(info["battle_won"].bool(), expected)
        assert ((info["dead_enemies"] == 3) | (info["dead_allies"] == 3))[info["episode_limit"] == 0].all()
        ends, won = ends + int(done.sum()), won + int(info["battle_won"].sum())
        seen = outcome.next
    assert 0 < won < ends


def test_reward_scale_is_a_factor():
    plain, scaled = make(reward_scale=1.0), make(reward_scale=10.0)
    for (_, _, one), (_, _, ten) in zip(play(plain, 40), play(scaled, 40), strict=True):
        torch.testing.assert_close(10 * one.reward, ten.reward)


def test_scaled_states_lie_in_the_unit_interval_and_hold_the_same_battle():
    scaled, raw = make(), make(scale_state=False)
    largest = 0.0
    for (seen, _, _), (as_is, _, _) in zip(play(scaled, 30), play(raw, 30), strict=True):
        assert seen.state.min() >= 0
        assert seen.state.max() <= 1
        largest = max(largest, as_is.state.max().item())
        units, raw_units = seen.state[:, :60].view(ENVS, 6, 10), as_is.state[:, :60].view(ENVS, 6, 10)
        torch.testing.assert_close(units[..., 0], raw_units[..., 0])  # health
        torch.testing.assert_close(units[..., 1:3] * 32, raw_units[..., 1:3])  # position on a map of 32 x 32
        torch.testing.assert_close(units[..., 3], (raw_units[..., 3] / 0.61).clamp(0, 1))  # a marine's cooldown
    assert largest > 1


def test_environment_e_has_the_seed_plus_e():
    together, alone, other = make(seed=5).reset(), make(1, seed=7).reset(), make(1, seed=8).reset()
    assert torch.equal(together.obs[2], alone.obs[0])
    assert not torch.equal(alone.obs, other.obs)


def test_the_same_seed_plays_the_same_battles():
    for (_, _, first), (_, _, again) in zip(play(make(), 30), play(make(), 30), strict=True):
        assert torch.equal(first.final.obs, again.final.obs)
        assert torch.equal(first.reward, again.reward)


def test_step_before_reset():
    with pytest.raises(RuntimeError, match="reset"):
        make().step(torch.zeros(ENVS, 3, dtype=torch.long))
