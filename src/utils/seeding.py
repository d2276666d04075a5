"""Seeds of the libraries' random numbers."""

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (CPU and CUDA); environments get their seeds by `env_args.seed`."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  the replay samples by numpy's global state, as PyMARL's plug-ins do
    torch.manual_seed(seed)


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

    def _states(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return torch.get_rng_state(), torch.cuda.get_rng_state() if self.cuda else None

    def _set(self, states: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        torch.set_rng_state(states[0])
        if states[1] is not None:
            torch.cuda.set_rng_state(states[1])
