"""Predator-prey with punished lone catches (Boehmer et al. 2020, Deep Coordination Graphs, section 5.1).

Agents hunt stags on a bounded grid. Where enough agents next to a stag play `catch` in one step, it is caught for a
reward and these agents leave the game; where too few do, the team is punished. Uncoordinated explorers therefore learn
not to catch at all. As in the paper's code agents move one after another in random order, then stags do.

Legend: E environments, N agents, M stags, A actions, O observation size, S state size, C cells.
"""

from typing import Any, NamedTuple

import torch

from envs.scene import Field, Piece
from envs.vector_env import Observation, VectorEnv, VectorStep
from utils.errors import UserError
from utils.seeding import RandomRows

RIGHT, DOWN, LEFT, UP, STAY, CATCH = range(6)  # the numbers of the paper's code
GONE = 0  # the cell, outside the field, of caught stags and of the agents that caught them


class Draws(NamedTuple):
    """What is random in one step."""

    agent_order: torch.Tensor  # (E, N) a permutation of the agents: who moves first
    stag_order: torch.Tensor  # (E, M)
    stag_choice: torch.Tensor  # (E, M) in [0, 1), in stag_order: which of its free neighbouring cells a stag takes


class StagHuntVectorEnv(VectorEnv):
    """E hunts as tensors on one device.

    Everyone stands on a cell of a field with a border: C cells, numbered row by row. No two share a cell. A move into a
    border or a taken cell is none. Actions are right, down, left, up, stay, catch; moves off the field are not
    available, `catch` only next to a stag, and to an agent that has left only `stay`.

    Stags take their turns in random order. If at least `catchers` remaining agents above, below, left or right of it
    play `catch`, the stag and these agents leave, for `reward`; if some do but too few, the team gets `punishment`.
    A stag that was not caught moves to a random free neighbouring cell. An episode terminates when all stags or all
    agents have left, and is truncated after `time_limit` steps.

    Observations (E, N, O) are what is within `sight` rows and columns: agents, then stags, O = 2 (2 sight + 1)^2; zeros
    for those that have left. The state (E, S) is the whole field likewise, S = 2 size^2. (The paper's code has a third
    layer for hares, which this game does not have.) Of an episode that ends, `info` has `prey_caught`, the number of
    stags, and `lone_catches`, how often the team was punished.

    Args:
        n_envs: E.
        device: where all tensors live; actions must lie there too.
        n_agents, n_stags: N and M, which together must fit on the field.
        size: rows, and columns, of the field.
        sight: rows and columns that an agent sees in each direction.
        catchers: agents that a catch needs.
        reward: of a catch.
        punishment: of a catch by too few, <= 0: the paper's p.
        time_limit: steps of an episode.
        seed: of everything random; None: another one every time; several: of equal parts of the environments.

    Raises:
        UserError: the field is too small.
    """

    def __init__(
        self,
        n_envs: int,
        device: str | torch.device,
        n_agents: int,
        n_stags: int,
        size: int,
        sight: int,
        catchers: int,
        reward: float,
        punishment: float,
        time_limit: int,
        seed: int | list[int] | None,
    ):
        if n_agents + n_stags > size**2:
            raise UserError(
                f"env_args.size={size!r}: {n_agents} agents and {n_stags} stags do not fit on {size**2} cells; "
                f"raise size, or lower n_agents or n_stags"
            )
        self.n_envs = n_envs
        self.device = device
        self.n_agents, self.n_stags = n_agents, n_stags
        self.n_actions = 6
        self.obs_size = 2 * (2 * sight + 1) ** 2
        self.state_size = 2 * size**2
        self.episode_limit = time_limit
        self._catchers, self._reward, self._punishment = catchers, reward, punishment

        border = max(sight, 1)  # so that whatever an agent sees, and wherever it could go, is a cell
        width = size + 2 * border
        cells = torch.arange(width**2, device=device).view(width, width)
        self._field = cells[border:-border, border:-border].flatten()  # (size^2,) the cells that are no border
        self._size, self._width, self._margin = size, width, border
        self._border = torch.ones(width**2, dtype=torch.bool, device=device)  # (C,)
        self._border[self._field] = False
        self._way = torch.tensor([1, width, -1, -width, 0, 0], device=device)  # (A,) from a cell to the next
        near = torch.arange(-sight, sight + 1, device=device)
        self._window = (near.unsqueeze(1) * width + near).flatten()  # (K,) from a cell to those in sight of it

        self._random = RandomRows.seeded(seed, device)
        self.reset()

    def reset(self) -> Observation:
        self._agents, self._stags = self._place()  # (E, N), (E, M) cells
        self._steps = torch.zeros(self.n_envs, dtype=torch.int64, device=self.device)
        self._lone_catches = torch.zeros(self.n_envs, device=self.device)
        self._shown = self._agents, self._stags
        return self._observe()

    def step(self, actions: torch.Tensor) -> VectorStep:
        if actions.shape != (self.n_envs, self.n_agents):  # (1, N) would broadcast silently
            raise ValueError(f"actions have shape {tuple(actions.shape)}, expected {(self.n_envs, self.n_agents)}")
        draws = self._draw()
        taken = self._border.repeat(self.n_envs, 1)  # (E, C) by the border, an agent or a stag
        taken.scatter_(1, self._agents, True).scatter_(1, self._stags, True)
        self._move_agents(actions, draws, taken)
        reward, lone_catches = self._move_stags(actions == CATCH, draws, taken)
        self._steps = self._steps + 1
        self._lone_catches = self._lone_catches + lone_catches

        terminated = (self._stags == GONE).all(dim=1) | (self._agents == GONE).all(dim=1)
        truncated = (self._steps == self.episode_limit) & ~terminated
        info = {
            "prey_caught": (self._stags == GONE).sum(dim=1).float(),
            "lone_catches": self._lone_catches,
            "episode_limit": truncated.float(),
        }
        final = following = self._observe()
        self._shown = self._agents, self._stags
        ended = terminated | truncated
        if ended.any():
            agents, stags = self._place(ended)
            self._agents = torch.where(ended.unsqueeze(1), agents, self._agents)
            self._stags = torch.where(ended.unsqueeze(1), stags, self._stags)
            self._steps = self._steps.masked_fill(ended, 0)
            self._lone_catches = self._lone_catches.masked_fill(ended, 0.0)
            following = self._observe()
        return VectorStep(reward, terminated, truncated, following, final, info)

    def scene(self) -> Field:
        def place(cell: int, kind: str, label: str) -> Piece | None:
            row, column = divmod(cell, self._width)
            return None if cell == GONE else Piece(kind, column - self._margin, row - self._margin, label)

        agents, stags = (cells[0].tolist() for cells in self._shown)
        return Field(
            self._size,
            self._size,
            agents=tuple(place(cell, "agent", f"{i + 1}") for i, cell in enumerate(agents)),
            others=tuple(place(cell, "prey", "") for cell in stags),
            actions=("right", "down", "left", "up", "stay", "catch"),
            moves={RIGHT: (1, 0), DOWN: (0, 1), LEFT: (-1, 0), UP: (0, -1)},
            is_grid=True,
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "agents": self._agents,
            "stags": self._stags,
            "steps": self._steps,
            "lone_catches": self._lone_catches,
            "random": self._random.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._agents, self._stags = state["agents"], state["stags"]
        self._steps, self._lone_catches = state["steps"], state["lone_catches"]
        self._random.load_state_dict(state["random"])

    def _draw(self) -> Draws:
        agents = self._uniform(self.n_agents).argsort(dim=1)
        return Draws(agents, self._uniform(self.n_stags).argsort(dim=1), self._uniform(self.n_stags))

    def _place(self, wanted: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Different random cells of the field for agents (E, N) and stags (E, M), where they are wanted (E,) bool."""
        cells = self._field[self._uniform(len(self._field), wanted).argsort(dim=1)]
        return cells[:, : self.n_agents], cells[:, self.n_agents : self.n_agents + self.n_stags]

    def _move_agents(self, actions: torch.Tensor, draws: Draws, taken: torch.Tensor) -> None:
        """Move the agents, one after another: who comes later finds cells taken, or left, by those before.

        That is what forces the loop over agents; every turn is one operation for all environments. Changes `taken`.
        """
        here = self._agents.gather(1, draws.agent_order)
        there = here + self._way[actions].gather(1, draws.agent_order).masked_fill(here == GONE, 0)
        for k in range(self.n_agents):
            old, new = here[:, k : k + 1], there[:, k : k + 1]
            moves = ~taken.gather(1, new)
            taken.scatter_(1, old, ~moves).scatter_(1, new, True)
            there[:, k : k + 1] = torch.where(moves, new, old)
        self._agents = self._agents.scatter(1, draws.agent_order, there)

    def _move_stags(
        self, catching: torch.Tensor, draws: Draws, taken: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Catch or move the stags, one after another: those before decide which agents and cells are left.

        Args:
            catching: (E, N) bool, the agents that play `catch`.
            taken: (E, C), which is changed.

        Returns:
            The rewards, and the number of stags that too few tried to catch, each (E,).
        """
        here = self._stags.gather(1, draws.stag_order)
        beside = (here.unsqueeze(2) + self._way[:STAY]).clamp(min=GONE)  # (E, M, 4); around GONE lies border alone
        adjacent = (self._agents[:, None, :, None] == beside.unsqueeze(2)).any(dim=3)  # (E, M, N)
        hunters = adjacent & (catching & (self._agents != GONE)).unsqueeze(1)
        there = here.clone()
        caught, lone = torch.zeros_like(here, dtype=torch.bool), torch.zeros_like(here, dtype=torch.bool)
        for k in range(self.n_stags):
            hunting = hunters[:, k] & (self._agents != GONE)  # (E, N)
            count = hunting.sum(dim=1, keepdim=True)
            caught[:, k : k + 1] = success = count >= self._catchers
            lone[:, k : k + 1] = (count > 0) & ~success
            leaving = hunting & success
            taken.scatter_(1, self._agents, ~leaving)
            self._agents = self._agents.masked_fill(leaving, GONE)
            free = ~taken.gather(1, beside[:, k])  # (E, 4)
            ways = free.cumsum(dim=1)
            wanted = (draws.stag_choice[:, k : k + 1] * ways[:, 3:]).long() + 1  # counts the free cells, from 1
            chosen = (beside[:, k] * (free & (ways == wanted))).sum(dim=1, keepdim=True)
            old = here[:, k : k + 1]
            new = torch.where(ways[:, 3:] > 0, chosen, old).masked_fill(success, GONE)
            taken.scatter_(1, old, False).scatter_(1, new, True)  # in this order: GONE stays taken
            there[:, k : k + 1] = new
        self._stags = self._stags.scatter(1, draws.stag_order, there)
        reward = self._reward * caught.sum(dim=1) + self._punishment * lone.sum(dim=1)
        return reward.float(), lone.sum(dim=1)

    def _observe(self) -> Observation:
        layers = torch.zeros(self.n_envs, 2, len(self._border), device=self.device)  # (E, 2, C)
        layers[:, 0].scatter_(1, self._agents, 1.0)
        layers[:, 1].scatter_(1, self._stags, 1.0)
        layers[:, :, GONE] = 0.0
        left = (self._agents == GONE).unsqueeze(2)  # (E, N, 1)
        in_sight = (self._agents.unsqueeze(2) + self._window).masked_fill(left, GONE).flatten(1)  # (E, N * K)
        seen = layers.gather(2, in_sight.unsqueeze(1).expand(-1, 2, -1))
        obs = seen.view(self.n_envs, 2, self.n_agents, -1).transpose(1, 2).flatten(2)  # (E, N, 2 * K)
        state = layers[:, :, self._field].flatten(1)

        beside = (self._agents.unsqueeze(2) + self._way[:STAY]).masked_fill(left, GONE)  # (E, N, 4)
        moves = ~self._border[beside]
        stags = layers[:, 1].gather(1, beside.flatten(1)).view(beside.shape)
        catch = stags.any(dim=2, keepdim=True)
        avail = torch.cat([moves, torch.ones_like(catch), catch], dim=2).to(torch.int32)
        return Observation(obs, state, avail)

    def _uniform(self, size: int, wanted: torch.Tensor | None = None) -> torch.Tensor:
        return self._random(
            lambda rows, generator: torch.rand(rows, size, device=self.device, generator=generator), self.n_envs, wanted
        )
