"""Diagnostic games in which it is known exactly whether the independent or the cooperative head errs, and why.

`greed_games_solver` gives what each head makes of them. Legend: E environments, N agents, A actions, O observation
size, S state size, Z values of the hidden variable.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from envs.scene import Payoffs
from envs.vector_env import Observation, VectorEnv, VectorStep
from utils.errors import UserError
from utils.seeding import RandomRows

MAX_JOINT_ACTIONS = 100_000  # payoffs are tables over joint actions
REWARDS = ("team", "individual")
TAKE_SAFE, ENTER = 0, 1  # what agent 1 chooses between at the first step of a two-step game


@dataclass(frozen=True, eq=False)  # eq=False: arrays do not compare to one truth value
class Game:
    """One joint decision that pays `payoffs`; in a two-step game agent 1 first chooses between that and `safe`.

    The hidden variable, drawn when the joint decision is entered, is in the state and in no agent's observation.
    """

    name: str
    kappa: float | None  # the game's knob, in [0, 1]; None: it has none
    core_agents: int
    spectators: int  # the last of the N agents
    payoffs: np.ndarray  # (Z, A, ..., A) float64, of the team
    shares: np.ndarray  # (Z, N, A, ..., A) float64, of each agent; they sum to the payoffs
    probabilities: np.ndarray  # (Z,) of the hidden variable's values
    safe: float | None  # what the safe action of a two-step game pays; None: the game has one step

    @property
    def n_agents(self) -> int:
        """N, spectators included."""
        return self.core_agents + self.spectators

    @property
    def action_counts(self) -> tuple[int, ...]:
        return self.payoffs.shape[1:]

    @property
    def mean_payoff(self) -> np.ndarray:
        """E_z[r_z(a)], (A, ..., A): all that decentralised agents can influence."""
        return np.tensordot(self.probabilities, self.payoffs, axes=1)

    @property
    def optimum(self) -> float:
        """The return of the best decentralised play."""
        best = float(self.mean_payoff.max())
        return best if self.safe is None else max(best, self.safe)

    @property
    def uniform_return(self) -> float:
        """The mean return when all actions are equally likely."""
        mean = float(self.mean_payoff.mean())
        return mean if self.safe is None else (self.safe + mean) / 2


class _Core(NamedTuple):
    """What a game pays its core agents, of which there are n."""

    team: np.ndarray  # (Z, A, ..., A), shared equally
    own: np.ndarray | None = None  # (n, A, ..., A), on top, what each agent earns by itself


class _Rules(NamedTuple):
    core: Callable[[int, float], _Core]  # of the number of core agents and kappa
    n_actions: int
    default_agents: int = 2
    two_players: bool = False
    has_knob: bool = True
    safe: float | None = None


_DECOY = np.array([[-4, 5, -1], [0, -3, 6], [-1, -2, -3]], dtype=np.float64)
_HANDSHAKE = np.array([[-2, -2, 3], [0, 0, 0], [0, 0, -1]], dtype=np.float64)


def _anova(base: np.ndarray, _n: int, kappa: float) -> _Core:
    """main + kappa (base - main), main = mean + row effects + column effects: kappa scales the interaction alone."""
    main = base.mean(axis=1, keepdims=True) + base.mean(axis=0, keepdims=True) - base.mean()
    return _Core((kappa * base + (1 - kappa) * main)[None])


def _count(n: int, n_actions: int, action: int) -> np.ndarray:
    """How many of n agents play `action`, for every joint action, (A, ..., A)."""
    return (np.indices((n_actions,) * n) == action).sum(axis=0)


def _stag(n: int, kappa: float) -> _Core:
    """Actions idle, hare, stag; a hare pays its hunter 1/n, the stag 2 kappa if all hunt it, else a penalty."""
    stags = _count(n, 3, 2)
    hunt = kappa * (2.0 * (stags == n) - stags / n * ((stags > 0) & (stags < n)))
    return _Core(hunt[None], (np.indices((3,) * n) == 1) / n)


def _bridge(n: int, kappa: float) -> _Core:
    """Complements: from a sum at kappa = 0 to "all of them" at 1."""
    ones = _count(n, 2, 1)
    return _Core(((1 - kappa) * ones / n + kappa * (ones == n))[None])


def _redundant(n: int, kappa: float) -> _Core:
    """Substitutes: from a sum at kappa = 0 to "any of them" at 1."""
    ones = _count(n, 2, 1)
    return _Core(((1 - kappa) * ones / n + kappa * (ones > 0))[None])


def _mirage(n: int, kappa: float) -> _Core:
    """What is right depends on the hidden variable: either not all ones, for kappa, or all ones, for 1."""
    all_ones = _count(n, 2, 1) == n
    return _Core(np.stack([kappa * ~all_ones, 1.0 * all_ones]))


def _replay(n: int, _kappa: float) -> _Core:
    """Separable: agent i = 1, 2, ... earns i by playing 1."""
    own = np.arange(1.0, n + 1).reshape(n, *[1] * n) * np.indices((2,) * n)
    return _Core(np.zeros((1, *own.shape[1:])), own)


_RULES = {
    "decoy": _Rules(partial(_anova, _DECOY), n_actions=3, two_players=True),
    "handshake": _Rules(partial(_anova, _HANDSHAKE), n_actions=3, two_players=True),
    "stag": _Rules(_stag, n_actions=3),
    "bridge": _Rules(_bridge, n_actions=2, safe=0.6),
    "mirage": _Rules(_mirage, n_actions=2, safe=0.52),
    "redundant": _Rules(_redundant, n_actions=2, safe=1.1),
    "replay": _Rules(_replay, n_actions=2, default_agents=3, has_knob=False),
}
GAMES = tuple(_RULES)


def make_game(name: str, kappa: float | None, n_agents: int | None = None, spectators: int = 0) -> Game:
    """The game `name`; the arguments are those of `GreedGameVectorEnv`.

    Raises:
        UserError: unknown game, or a `kappa`, `n_agents` or `spectators` that the game does not allow.
    """
    if name not in _RULES:
        raise UserError(f"env_args.game={name!r}: unknown{_near(name, GAMES)}; available: {', '.join(sorted(GAMES))}")
    rules = _RULES[name]
    _check_knob(name, rules, kappa)
    n = rules.default_agents if n_agents is None else n_agents
    _check_agents(name, rules, n, spectators)
    core = rules.core(n, float(kappa or 0.0))
    payoffs, shares = _with_spectators(core, n, spectators)
    return Game(
        name=name,
        kappa=kappa if rules.has_knob else None,
        core_agents=n,
        spectators=spectators,
        payoffs=payoffs,
        shares=shares,
        probabilities=np.full(len(payoffs), 1 / len(payoffs)),
        safe=rules.safe,
    )


def _near(name: object, names: tuple[str, ...]) -> str:
    near = get_close_matches(str(name), names, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _check_knob(name: str, rules: _Rules, kappa: float | None) -> None:
    if not rules.has_knob:
        if kappa not in (None, 0):
            remedy = "set it to null or 0 (what varies is the data, not the payoffs)"
            raise UserError(f"env_args.kappa={kappa!r}: the game {name} has no such knob; {remedy}")
    elif not isinstance(kappa, int | float) or isinstance(kappa, bool) or not 0 <= kappa <= 1:
        raise UserError(f"env_args.kappa={kappa!r}: the game {name} needs a number in [0, 1], such as 1.0")


def _check_agents(name: str, rules: _Rules, n: int, spectators: int) -> None:
    if type(n) is not int or n < 2:
        raise UserError(f"env_args.n_agents={n!r}: needs an integer >= 2, or null for the game's own number")
    if rules.two_players and n != 2:
        remedy = "leave n_agents null and add agents by env_args.spectators"
        raise UserError(f"env_args.n_agents={n!r}: the game {name} is between 2 agents; {remedy}")
    if type(spectators) is not int or spectators < 0:
        raise UserError(f"env_args.spectators={spectators!r}: needs an integer >= 0")
    if spectators and rules.safe is not None:
        # A bonus in the second step alone would make the risky branch worth more than the safe one.
        raise UserError(f"env_args.spectators={spectators!r}: the two-step game {name} has none; set it to 0")
    if rules.n_actions ** (n + spectators) > MAX_JOINT_ACTIONS:
        most = int(math.log(MAX_JOINT_ACTIONS, rules.n_actions))
        raise UserError(
            f"env_args.n_agents={n!r} and env_args.spectators={spectators!r}: the game {name} takes at most {most} "
            f"agents in all, because its payoffs are a table over joint actions; lower one of them"
        )


def _with_spectators(core: _Core, n: int, spectators: int) -> tuple[np.ndarray, np.ndarray]:
    """Payoffs (Z, A, ..., A) and shares (Z, N, A, ..., A) of all agents; a spectator earns 1 by action 0."""
    n_hidden, n_actions = core.team.shape[:2]
    own = np.zeros((n, *core.team.shape[1:])) if core.own is None else core.own
    others = (1,) * spectators
    joint_shape = (n_actions,) * (n + spectators)
    core_payoffs = (core.team + own.sum(axis=0)).reshape(*core.team.shape, *others)
    core_shares = (core.team[:, None] / n + own).reshape(n_hidden, *own.shape, *others)
    bonus = 1.0 * (np.indices(joint_shape)[n:] == 0)  # (spectators, A, ..., A)
    shares = np.concatenate(
        [
            np.broadcast_to(core_shares, (n_hidden, n, *joint_shape)),
            np.broadcast_to(bonus, (n_hidden, spectators, *joint_shape)),
        ],
        axis=1,
    )
    return core_payoffs + bonus.sum(axis=0), shares


class GreedGameVectorEnv(VectorEnv):
    """E copies of a diagnostic game, as tensors on one device.

    decoy, handshake, stag and replay are one joint decision. bridge, mirage and redundant have two steps: agent 1
    takes the safe reward (action 0), which ends the episode, or enters the joint decision (action 1), which pays
    nothing by itself; what the others do at the first step has no effect. Episodes terminate and are never truncated.
    No state follows the last step: its final observation is the phase in which it was played.

    Observations (E, N, O) are the one-hot of the phase, the same for all agents; O = 2 in two-step games, else 1, so
    always 1.0. The state (E, S) is that one-hot, then in mirage the one-hot of the hidden variable (zeros at the
    first step: it is drawn when the joint decision is entered), then the noise dimensions.

    Of an episode that ends, `info` has `expected_return`, the expectation of its return given the actions, over the
    reward's noise and the hidden variable; `normalised_return`, the same with uniform play at 0 and the best
    decentralised play at 1; and `optimal`, 1 where it equals the latter.

    Args:
        n_envs: E.
        device: where all tensors live; actions must lie there too.
        game: one of `GAMES`.
        kappa: the game's knob, in [0, 1]; null (or 0) in replay, which has none.
        n_agents: agents without spectators, >= 2; None: the game's own number, 3 in replay and 2 in the others, and
            the only one in decoy and handshake.
        spectators: further agents, each of which adds 1 to the team's reward by action 0; none in two-step games.
        reward_noise: standard deviation of the normal noise of the team's reward at every step; it is the sum of
            independent noises of the agents' shares.
        noise_dims: standard normals in the state, drawn anew at every step.
        rewards: team; or individual, which also returns each agent's share: what it earns by itself (hares in stag,
            everything in replay, a spectator's bonus), and the rest in equal shares among those who are no spectators.
        seed: of everything random; None: another one every time; several: of equal parts of the environments.

    Raises:
        UserError: unknown game, or arguments that the game does not allow.
    """

    def __init__(
        self,
        n_envs: int,
        device: str | torch.device,
        game: str,
        kappa: float | None,
        n_agents: int | None,
        spectators: int,
        reward_noise: float,
        noise_dims: int,
        rewards: str,
        seed: int | list[int] | None,
    ):
        if rewards not in REWARDS:
            raise UserError(
                f"env_args.rewards={rewards!r}: unknown{_near(rewards, REWARDS)}; available: {', '.join(REWARDS)}"
            )
        self.game = make_game(game, kappa, n_agents, spectators)
        self.n_envs = n_envs
        self.device = device
        self.n_agents = self.game.n_agents
        self.n_actions = self.game.action_counts[0]
        self._n_hidden = len(self.game.payoffs)
        self._two_step = self.game.safe is not None
        self.episode_limit = self.obs_size = 2 if self._two_step else 1
        self.state_size = self.obs_size + (self._n_hidden if self._n_hidden > 1 else 0) + noise_dims
        self._noise_dims = noise_dims
        self._agent_noise = reward_noise / math.sqrt(self.n_agents)
        self.individual_reward = rewards == "individual"

        # J = A^N joint actions, numbered with agent 1's action as the most significant digit.
        self._digit_values = self.n_actions ** torch.arange(self.n_agents - 1, -1, -1, device=device)  # (N,)
        self._payoffs = self._table(self.game.payoffs.reshape(self._n_hidden, -1))  # (Z, J)
        self._mean_payoff = self._table(self.game.mean_payoff.ravel())  # (J,)
        shares = self.game.shares.reshape(self._n_hidden, self.n_agents, -1)
        self._shares = self._table(shares.swapaxes(1, 2))  # (Z, J, N)
        self._probabilities = self._table(self.game.probabilities)  # (Z,)
        self._optimum, self._uniform_return = self.game.optimum, self.game.uniform_return

        self._random = RandomRows.seeded(seed, device)
        self.reset()

    def reset(self) -> Observation:
        self._choosing = torch.full((self.n_envs,), self._two_step, device=self.device)  # (E,) at agent 1's choice?
        self._hidden = torch.zeros(self.n_envs, dtype=torch.int64, device=self.device)  # (E,)
        return self._observe(self._choosing, self._normal(self._noise_dims))

    def step(self, actions: torch.Tensor) -> VectorStep:
        if actions.shape != (self.n_envs, self.n_agents):  # (1, N) would broadcast silently
            raise ValueError(f"actions have shape {tuple(actions.shape)}, expected {(self.n_envs, self.n_agents)}")
        entering = self._choosing & (actions[:, 0] == ENTER)
        ended = ~entering
        joint = (actions * self._digit_values).sum(dim=1)  # (E,)
        reward, shares = self._pay(actions, joint)
        info = self._final_info(joint)

        if self._n_hidden > 1:
            drawn = self._random(
                lambda rows, generator: torch.multinomial(self._probabilities, rows, True, generator=generator),
                self.n_envs,
            )
            self._hidden = torch.where(entering, drawn, self._hidden)
        noise = self._normal(self._noise_dims)
        final = self._observe(self._choosing & ended, noise)
        self._choosing = ended & self._two_step
        noise = torch.where(ended.unsqueeze(1), self._normal(self._noise_dims), noise)
        return VectorStep(
            reward=reward,
            terminated=ended,
            truncated=torch.zeros_like(ended),
            next=self._observe(self._choosing, noise),
            final=final,
            info=info,
            individual_reward=shares if self.individual_reward else None,
        )

    def scene(self) -> Payoffs:
        names = tuple(f"{action + 1}" for action in range(self.n_actions))
        if self._choosing[0]:
            table = np.full((self.n_actions,) * self.n_agents, np.nan)
            table[TAKE_SAFE] = self.game.safe
            return Payoffs(table, names, "agent 1 takes what is safe (1), or enters (2)")
        table = self._payoffs[self._hidden[0]].cpu().numpy().reshape((self.n_actions,) * self.n_agents)
        hidden = f", hidden variable {int(self._hidden[0]) + 1}" if self._n_hidden > 1 else ""
        return Payoffs(table, names, f"{self.game.name}: what the team gets{hidden}")

    def state_dict(self) -> dict[str, Any]:
        return {"choosing": self._choosing, "hidden": self._hidden, "random": self._random.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._choosing, self._hidden = state["choosing"], state["hidden"]
        self._random.load_state_dict(state["random"])

    def _pay(self, actions: torch.Tensor, joint: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The team's reward (E,) and each agent's share (E, N)."""
        safe = (actions[:, 0] == TAKE_SAFE) * (self.game.safe or 0.0)  # (E,), where agent 1 chooses
        reward = torch.where(self._choosing, safe, self._payoffs[self._hidden, joint])
        equal = (safe / self.n_agents).unsqueeze(1)
        shares = torch.where(self._choosing.unsqueeze(1), equal, self._shares[self._hidden, joint])
        if self._agent_noise > 0:
            noise = self._agent_noise * self._normal(self.n_agents)
            reward, shares = reward + noise.sum(dim=1), shares + noise
        return reward, shares

    def _final_info(self, joint: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each (E,). An episode that ends at agent 1's choice ends by the safe action."""
        expected = self._mean_payoff[joint]
        if self.game.safe is not None:
            expected = torch.where(self._choosing, self.game.safe, expected)
        return {
            "expected_return": expected,
            "normalised_return": (expected - self._uniform_return) / (self._optimum - self._uniform_return),
            "optimal": (expected >= self._optimum - 1e-5).float(),  # float32 has 7 digits
            "episode_limit": torch.zeros_like(expected),
        }

    def _observe(self, choosing: torch.Tensor, noise: torch.Tensor) -> Observation:
        """choosing (E,) bool, noise (E, noise_dims)."""
        phase = torch.stack([choosing, ~choosing], dim=1) if self._two_step else ~choosing.unsqueeze(1)
        parts = [phase.float()]  # (E, O)
        if self._n_hidden > 1:
            hidden = torch.nn.functional.one_hot(self._hidden, self._n_hidden)
            parts.append(hidden.float().masked_fill(choosing.unsqueeze(1), 0.0))
        state = torch.cat([*parts, noise], dim=1)  # (E, S)
        obs = parts[0].unsqueeze(1).repeat(1, self.n_agents, 1)  # (E, N, O)
        avail = torch.ones(self.n_envs, self.n_agents, self.n_actions, dtype=torch.int32, device=self.device)
        return Observation(obs, state, avail)

    def _normal(self, size: int) -> torch.Tensor:
        return self._random(
            lambda rows, generator: torch.randn(rows, size, device=self.device, generator=generator), self.n_envs
        )

    def _table(self, values: np.ndarray) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)
