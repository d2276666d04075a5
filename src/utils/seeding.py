"""Seeds of the libraries' random numbers."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (CPU and CUDA); environments get their seeds by `env_args.seed`."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  the replay samples by numpy's global state, as PyMARL's plug-ins do
    torch.manual_seed(seed)


def random_states() -> dict[str, Any]:
    """The states of the libraries' random numbers, as plain data."""
    state: Any = np.random.get_state()  # noqa: NPY002
    kind, keys, position, has_gauss, gauss = state
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Go on with the random numbers that `random_states` has noted."""
    version, keys, gauss_next = states["python"]
    random.setstate((version, tuple(keys), gauss_next))
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


class RandomRows:
    """Random numbers row by row: torch's global ones; or of several seeds, whose equal parts have generators each."""

    def __init__(self, generators: Sequence[torch.Generator] = ()):
        self.generators = list(generators)

    @classmethod
    def seeded(cls, seed: int | list[int] | None, device: str | torch.device) -> "RandomRows":
        """A generator for each seed; None: one that draws others every time."""
        generators = []
        for one in seed if isinstance(seed, list) else [seed]:
            generators.append(torch.Generator(device))
            if one is None:
                generators[-1].seed()
            else:
                generators[-1].manual_seed(one)
        return cls(generators)

    def __call__(
        self,
        draw: Callable[[int, torch.Generator | None], torch.Tensor],
        rows: int,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(rows, ...) from `draw`, which gives as many rows as it is told from a generator.

        Args:
            wanted: (rows,) bool. A seed that wants none of its rows draws nothing, as it would alone; what it gets then
                means nothing.
        """
        if not self.generators:
            return draw(rows, None)
        share = rows // len(self.generators)
        wants = None if wanted is None else wanted.view(-1, share).any(dim=1).tolist()
        if wants is None or all(wants):
            return torch.cat([draw(share, generator) for generator in self.generators])
        found = [draw(share, generator) if wants[n] else None for n, generator in enumerate(self.generators)]
        nothing = torch.zeros_like(next(part for part in found if part is not None))
        return torch.cat([nothing if part is None else part for part in found])

    def state_dict(self) -> dict[str, Any]:
        return {"generators": [generator.get_state() for generator in self.generators]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for generator, kept in zip(self.generators, state["generators"], strict=True):
            generator.set_state(kept)


class RandomStream:
    """A stream of torch's random numbers beside the global one: what is drawn `with stream:` does not disturb that.

    Args:
        seed: of the stream. device: "cpu" or a CUDA device, whose generator is then set aside as well.
    """

    def __init__(self, seed: int, device: str):
        self.cuda = device != "cpu"
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if self.cuda else []):
            torch.manual_seed(seed)
            self._own = self._states()

    def __enter__(self) -> None:
        self._others = self._states()
        self._set(self._own)

    def __exit__(self, *error) -> None:
        self._own = self._states()
        self._set(self._others)

    def state_dict(self) -> dict[str, Any]:
        return {"cpu": self._own[0], "cuda": self._own[1]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._own = (state["cpu"], state["cuda"])

    def _states(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return torch.get_rng_state(), torch.cuda.get_rng_state() if self.cuda else None

    def _set(self, states: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        torch.set_rng_state(states[0])
        if states[1] is not None:
            torch.cuda.set_rng_state(states[1])
