"""SMAX: StarCraft-like battles in JAX (package jaxmarl, Rutherford et al. 2023), stepped as one compiled batch.

The allies are the agents; the enemies follow jaxmarl's heuristic policy. Maps carry SMAC's names.
"""

import contextlib
import io
import os
import sys
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

# Compiled steps are kept between runs, and JAX leaves the GPU's memory to torch; both must be said before the import.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "greed_is_good" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import torch

from envs.scene import Field, Piece
from envs.vector_env import Observation, VectorEnv, VectorStep
from utils.errors import UserError


def _import_jaxmarl():
    """jaxmarl's SMAX package. Another package that it imports greets on the screen, and jaxmarl puts sys.stdout and
    sys.stderr back to the process's own streams, past whoever had redirected them: both are undone."""
    own_stdout, greeting = sys.__stdout__, io.StringIO()
    with contextlib.redirect_stdout(greeting), contextlib.redirect_stderr(sys.stderr):
        sys.__stdout__ = greeting
        try:
            from jaxmarl.environments import smax
            from jaxmarl.environments.smax import smax_env
        finally:
            sys.__stdout__ = own_stdout
    return smax, smax_env


_smax, _smax_env = _import_jaxmarl()
MOVEMENTS = 5  # actions before the attacks: four ways, and stop
UNIT_FEATURES = 10  # of a unit in the state: health, x, y, weapon cooldown, one-hot of six unit types


class _View(NamedTuple):
    obs: jax.Array  # (E, N, O)
    state: jax.Array  # (E, S)
    avail: jax.Array  # (E, N, A)


class _Outcome(NamedTuple):
    reward: jax.Array  # (E,)
    terminated: jax.Array  # (E,)
    truncated: jax.Array  # (E,)
    won: jax.Array  # (E,)
    dead_allies: jax.Array  # (E,)
    dead_enemies: jax.Array  # (E,)


class _Battle:
    """The compiled functions of one map: one object per map and setting, so that every batch shares them."""

    def __init__(self, map_name: str, time_limit: int | None, scale_state: bool, **env_kwargs):
        if time_limit is not None:
            env_kwargs["max_steps"] = time_limit
        scenario = _smax.map_name_to_scenario(map_name)
        self.env = _smax.HeuristicEnemySMAX(scenario=scenario, **env_kwargs)
        types = np.asarray(scenario.unit_types)[: scenario.num_allies].tolist()
        self.ally_types = None if scenario.smacv2_unit_type_generation else types
        self.scale_state = scale_state
        self.reset = jax.jit(self._reset)
        self.step = jax.jit(self._step)

    def _reset(self, keys: jax.Array):
        """keys (E, 2) -> the batch's state (a pytree of (E, ...)) and what the agents see."""
        obs, env_state = jax.vmap(self.env.reset)(keys)
        # jaxmarl's first state is weakly typed, which would compile the step a second time.
        env_state = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), env_state)
        return env_state, self._view(obs, env_state)

    def _step(self, keys: jax.Array, env_state, actions: jax.Array):
        """keys (E, 2), actions (E, N) -> keys, states, outcome, final and next view."""
        keys, step_keys, reset_keys = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
        joint_action = {agent: actions[:, i] for i, agent in enumerate(self.env.agents)}
        # `step_env`, not `step`: jaxmarl's `step` resets by itself and drops the final observation.
        obs, after, rewards, _, _ = jax.vmap(self.env.step_env)(step_keys, env_state, joint_action)
        final = self._view(obs, after)
        outcome = self._outcome(after, rewards[self.env.agents[0]])
        done = outcome.terminated | outcome.truncated

        def restart():
            fresh_state, fresh_view = self._reset(reset_keys)

            def pick(new, old):
                return jnp.where(done.reshape(done.shape + (1,) * (new.ndim - 1)), new, old)

            return jax.tree.map(pick, fresh_state, after), jax.tree.map(pick, fresh_view, final)

        next_state, following = jax.lax.cond(done.any(), restart, lambda: (after, final))
        return keys, next_state, outcome, final, following

    def _outcome(self, env_state, reward: jax.Array) -> _Outcome:
        alive = env_state.state.unit_alive  # (E, U)
        n_allies = self.env.num_allies
        dead_allies = (~alive[:, :n_allies]).sum(1)
        dead_enemies = (~alive[:, n_allies:]).sum(1)
        lost, cleared = dead_allies == n_allies, dead_enemies == self.env.num_enemies
        terminated = lost | cleared
        truncated = (env_state.state.step >= self.env.max_steps) & ~terminated
        return _Outcome(reward, terminated, truncated, cleared & ~lost, dead_allies, dead_enemies)

    def _view(self, obs: dict, env_state) -> _View:
        avail = jax.vmap(self.env.get_avail_actions)(env_state)
        stacked_obs = jnp.stack([obs[agent] for agent in self.env.agents], axis=1)
        stacked_avail = jnp.stack([avail[agent] for agent in self.env.agents], axis=1)
        return _View(stacked_obs, self._state(obs["world_state"], env_state.state), stacked_avail.astype(jnp.int32))

    def _state(self, world_state: jax.Array, battle) -> jax.Array:
        """jaxmarl's state, (E, S), with positions, cooldowns and unit types brought to [0, 1] if `scale_state`.

        Raw positions reach 32 and the cooldown of a unit that does not shoot falls without bound: the mixer's
        hypernetworks learn badly on both. The scaled cooldown is the one that jaxmarl's own observations hold.
        """
        if not self.scale_state:
            return world_state
        n_units = battle.unit_alive.shape[1]
        units = world_state[:, : n_units * UNIT_FEATURES].reshape(-1, n_units, UNIT_FEATURES)
        map_size = jnp.array([self.env.map_width, self.env.map_height])
        positions = units[..., 1:3] / map_size
        cooldown = jnp.clip(units[..., 3:4] / self.env.unit_type_weapon_cooldowns[battle.unit_types][..., None], 0, 1)
        units = jnp.concatenate([units[..., :1], positions, cooldown, units[..., 4:]], axis=-1)
        types = battle.unit_types / (self.env.unit_type_bits - 1)
        return jnp.concatenate([units.reshape(units.shape[0], -1), battle.unit_teams, types], axis=-1)


@lru_cache(maxsize=8)
def _battle(**settings) -> _Battle:
    return _Battle(**settings)


class SmaxVectorEnv(VectorEnv):
    """E battles on one SMAX map.

    Args:
        n_envs: E.
        device: where observations are returned; on CUDA they stay on the GPU if JAX has it too.
        map_name: a map of jaxmarl (see `MAPS`).
        seed: of the first battle; battle e has `seed + e`. Several: of the first of equal parts of the battles.
        reward_scale: factor on jaxmarl's reward, which is about 1 for all damage plus 1 for a win.
        time_limit: steps after which a battle is cut (a truncation); None for jaxmarl's 100.
        scale_state: bring the state's positions, cooldowns and types to [0, 1].
        see_enemy_actions, walls_cause_death, attack_mode: as in jaxmarl.

    Raises:
        UserError: unknown map.
    """

    MAPS = tuple(_smax_env.MAP_NAME_TO_SCENARIO)

    def __init__(
        self,
        n_envs: int,
        device: str | torch.device,
        map_name: str,
        seed: int | list[int],
        reward_scale: float,
        time_limit: int | None,
        scale_state: bool,
        see_enemy_actions: bool,
        walls_cause_death: bool,
        attack_mode: str,
    ):
        if map_name not in self.MAPS:
            near = get_close_matches(str(map_name), self.MAPS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise UserError(f"env_args.map_name={map_name!r}: no such SMAX map{hint}; maps: {', '.join(self.MAPS)}")
        self._battle = _battle(
            map_name=map_name,
            time_limit=time_limit,
            scale_state=scale_state,
            see_enemy_actions=see_enemy_actions,
            walls_cause_death=walls_cause_death,
            attack_mode=attack_mode,
        )
        env = self._battle.env
        self.n_envs = n_envs
        self.n_agents = env.num_allies
        self.agent_types = self._battle.ally_types
        self.n_actions = env.num_ally_actions
        self.obs_size = env.obs_size
        self.state_size = env.state_size
        self.episode_limit = env.max_steps
        self.reward_scale = reward_scale
        self.device = torch.device(device)
        self._on_gpu = self.device.type == "cuda" and jax.default_backend() == "gpu"
        firsts = seed if isinstance(seed, list) else [seed]
        count = n_envs // len(firsts)
        seeds = jnp.concatenate([jnp.arange(first, first + count) for first in firsts])
        self._keys = jax.vmap(jax.random.PRNGKey)(seeds)
        self._env_state = None
        self._seen: _View  # as the last step left it

    def reset(self) -> Observation:
        self._keys, reset_keys = jnp.moveaxis(jax.vmap(jax.random.split)(self._keys), 1, 0)
        self._env_state, self._seen = self._battle.reset(reset_keys)
        return self._observation(self._seen)

    def step(self, actions: torch.Tensor) -> VectorStep:
        if self._env_state is None:
            raise RuntimeError("call reset() before step()")
        joint_action = jax.dlpack.from_dlpack(actions.int()) if self._on_gpu else actions.cpu().numpy().astype(np.int32)
        self._keys, self._env_state, outcome, final, following = self._battle.step(
            self._keys, self._env_state, joint_action
        )
        self._seen = final
        done_info = {
            "battle_won": outcome.won,
            "dead_allies": outcome.dead_allies,
            "dead_enemies": outcome.dead_enemies,
            "episode_limit": outcome.truncated,
        }
        return VectorStep(
            reward=self._tensor(outcome.reward).float() * self.reward_scale,
            terminated=self._tensor(outcome.terminated),
            truncated=self._tensor(outcome.truncated),
            next=self._observation(following),
            final=self._observation(final),
            info={key: self._tensor(value).float() for key, value in done_info.items()},
        )

    def scene(self) -> Field:
        env = self._battle.env
        n_units = env.num_allies + env.num_enemies
        units = np.asarray(self._seen.state[0])[: n_units * UNIT_FEATURES].reshape(n_units, UNIT_FEATURES)
        scale = (env.map_width, env.map_height) if self._battle.scale_state else (1, 1)
        pieces: list[Piece | None] = []
        for number, (health, x, y, _, *types) in enumerate(units.tolist()):
            kind, type_number = "agent" if number < env.num_allies else "enemy", int(np.argmax(types))
            of_side = number if kind == "agent" else number - env.num_allies
            label = f"{env.unit_type_shorthands[type_number]}{of_side + 1}"
            size = float(env.unit_type_radiuses[type_number])
            whole = Piece(kind, x * scale[0], y * scale[1], label, size, health)
            pieces.append(whole if health > 0 else None)
        return Field(
            env.map_width,
            env.map_height,
            agents=tuple(pieces[: env.num_allies]),
            others=tuple(pieces[env.num_allies :]),
            actions=("north", "east", "south", "west", "stop", *(f"enemy {k + 1}" for k in range(env.num_enemies))),
            moves={0: (0, 1), 1: (1, 0), 2: (0, -1), 3: (-1, 0)},
            targets={MOVEMENTS + k: k for k in range(env.num_enemies)},
        )

    def state_dict(self) -> dict[str, Any] | None:
        if self._env_state is None:
            return {"keys": _plain(self._keys), "battles": None}
        return {"keys": _plain(self._keys), "battles": [_plain(leaf) for leaf in jax.tree.leaves(self._env_state)]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._keys = _array(state["keys"])
        self._env_state = None
        if state["battles"] is not None:
            fresh, _ = self._battle.reset(self._keys)  # for its structure
            self._env_state = jax.tree.unflatten(jax.tree.structure(fresh), [_array(x) for x in state["battles"]])

    def _observation(self, view: _View) -> Observation:
        return Observation(*(self._tensor(part) for part in view))

    def _tensor(self, array: jax.Array) -> torch.Tensor:
        if self._on_gpu:
            return torch.from_dlpack(array)
        return torch.tensor(np.asarray(array), device=self.device)


def _plain(array: jax.Array) -> dict[str, Any]:
    """An array as bytes, because torch has not all of JAX's types."""
    values = np.asarray(array)
    return {
        "bytes": torch.from_numpy(np.frombuffer(values.tobytes(), np.uint8).copy()),
        "dtype": values.dtype.name,
        "shape": list(values.shape),
    }


def _array(plain: dict[str, Any]) -> jax.Array:
    return jnp.asarray(np.frombuffer(plain["bytes"].numpy().tobytes(), plain["dtype"]).reshape(plain["shape"]))
