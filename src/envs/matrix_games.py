"""Matrix games whose best play and action values are known exactly, to check what a learner can represent.

Legend: E environments, N agents, A actions, O observation size, S state size, K states of the game.
"""

import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch

from envs.scene import Payoffs
from envs.vector_env import Observation, VectorEnv, VectorStep
from utils.errors import UserError


@dataclass(frozen=True, eq=False)  # eq=False: tensors do not compare to one truth value
class GameState:
    """One state of a game: the joint actions that lead there from the start, and what joint actions pay in it."""

    name: str
    path: tuple[tuple[int, ...], ...]
    payoff: torch.Tensor  # (A, A) float32; row: action of agent 1, column: action of agent 2


@dataclass(frozen=True, eq=False)
class Game:
    """A game of `length` steps that starts in its first state."""

    states: tuple[GameState, ...]  # K
    successor: torch.Tensor  # (K, A, A) int64, index of the next state; the last step of an episode stays within it
    length: int


def _matrix(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def _repeated(payoff: torch.Tensor, repeats: int) -> Game:
    """A stateless game, played `repeats` times."""
    return Game((GameState("1", (), payoff),), torch.zeros(1, *payoff.shape, dtype=torch.int64), repeats)


def _games(k: float) -> dict[str, Game]:
    """Every game; `k` is what miscoordination pays in the penalty game."""
    return {
        "two_step": Game(  # Rashid et al. 2018: agent 1's first action alone decides which game follows
            states=(
                GameState("1", (), _matrix([0, 0], [0, 0])),
                GameState("2A", ((0, 0),), _matrix([7, 7], [7, 7])),
                GameState("2B", ((1, 0),), _matrix([0, 1], [1, 8])),
            ),
            successor=torch.tensor([[[1, 1], [2, 2]], [[1, 1], [1, 1]], [[2, 2], [2, 2]]]),
            length=2,
        ),
        "climbing": _repeated(_matrix([11, -30, 0], [-30, 7, 0], [0, 6, 5]), repeats=25),  # Claus and Boutilier 1998
        "penalty": _repeated(_matrix([k, 0, 10], [0, 2, 0], [10, 0, k]), repeats=25),  # Claus and Boutilier 1998
        "nonmonotone": _repeated(_matrix([8, -12, -12], [-12, 0, 0], [-12, 0, 0]), repeats=1),  # Son et al. 2019
        "monotone": _repeated(_matrix([12, -0.1, -0.1], [-0.1, 0, 0], [-0.1, 0, 0]), repeats=1),  # nearly monotone
    }


def _find_game(name: str, k: float | None, repeats: int | None) -> Game:
    if name == "penalty" and (not isinstance(k, int | float) or not -math.inf < k <= 0):
        raise UserError(f"env_args.k={k!r}: the penalty game needs a finite number <= 0, such as -100")
    games = _games(k=k if name == "penalty" and k is not None else 0.0)
    if name not in games:
        near = get_close_matches(str(name), games, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"env_args.game={name!r}: unknown{hint}; available: {', '.join(sorted(games))}")
    game = games[name]
    if repeats is None:
        return game
    if len(game.states) > 1:
        raise UserError(f"env_args.repeats={repeats!r}: {name} always lasts {game.length} steps; leave repeats null")
    if type(repeats) is not int or repeats < 1:
        raise UserError(f"env_args.repeats={repeats!r}: needs an integer >= 1, or null for the game's own number")
    return _repeated(next(iter(game.states)).payoff, repeats)


class MatrixGameVectorEnv(VectorEnv):
    """E copies of a matrix game of N = 2 agents, as tensors on one device.

    Observations (E, N, O) and state (E, S) are the one-hot of the game's state, O = S = K: 3 in two_step; 1, and so
    always 1.0, in the stateless games. All A actions are always available: 2 in two_step, 3 in the others.
    The game is over after its last step, so episodes terminate and are never truncated. No state follows that step:
    its final observation is the state in which it was played.

    Args:
        n_envs: E.
        device: where all tensors live; actions must lie there too.
        game: two_step, climbing, penalty, nonmonotone or monotone.
        k: payoff of miscoordination in the penalty game, <= 0; the other games ignore it.
        repeats: how often a stateless game is played per episode; None: the game's own number.
        seed: accepted because every environment gets one; nothing here is random.

    Raises:
        UserError: unknown game, or a `k` or `repeats` that the game does not allow.
    """

    n_agents = 2

    def __init__(
        self, n_envs: int, device: str | torch.device, game: str, k: float | None, repeats: int | None, seed: Any
    ):
        self._game = _find_game(game, k, repeats)
        self._payoffs = torch.stack([state.payoff for state in self._game.states]).to(device)  # (K, A, A)
        self._successor = self._game.successor.to(device)  # (K, A, A)
        self.n_envs = n_envs
        self.device = device
        self.n_actions = self._payoffs.shape[-1]
        self.obs_size = self.state_size = len(self._game.states)
        self.episode_limit = self._game.length
        self._start_episodes()

    def reset(self) -> Observation:
        self._start_episodes()
        return self._observe()

    def step(self, actions: torch.Tensor) -> VectorStep:
        if actions.shape != (self.n_envs, self.n_agents):  # (1, N) would broadcast silently
            raise ValueError(f"actions have shape {tuple(actions.shape)}, expected {(self.n_envs, self.n_agents)}")
        played = (self._where, actions[:, 0], actions[:, 1])
        self._where = self._successor[played]
        self._elapsed += 1
        final = self._observe()
        over = self._elapsed == self.episode_limit
        truncated = torch.zeros(self.n_envs, dtype=torch.bool, device=self.device)
        return VectorStep(
            reward=self._payoffs[played],
            terminated=torch.full_like(truncated, over),
            truncated=truncated,
            next=self.reset() if over else final,
            final=final,
            info={"episode_limit": truncated.float()},
        )

    def state_dict(self) -> dict[str, Any]:
        return {"where": self._where, "elapsed": self._elapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._where, self._elapsed = state["where"], state["elapsed"]

    def scene(self) -> Payoffs:
        state = self._game.states[int(self._where[0])]
        names = tuple(f"{action + 1}" for action in range(self.n_actions))
        return Payoffs(state.payoff.numpy(), names, f"state {state.name}: what the team gets")

    def game_states(self) -> list[GameState]:
        """The states of the game, the first one first; payoffs on the CPU."""
        return list(self._game.states)

    def _start_episodes(self) -> None:
        self._where = torch.zeros(self.n_envs, dtype=torch.int64, device=self.device)  # (E,) state of each game
        self._elapsed = 0  # one counter for all: episodes start together and have the same length

    def _observe(self) -> Observation:
        state = torch.nn.functional.one_hot(self._where, self.state_size).float()  # (E, S)
        obs = state.unsqueeze(1).repeat(1, self.n_agents, 1)  # (E, N, O)
        avail = torch.ones(self.n_envs, self.n_agents, self.n_actions, dtype=torch.int32, device=self.device)
        return Observation(obs, state, avail)
