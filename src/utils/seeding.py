"""Seeds of the libraries' random numbers."""

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (CPU and CUDA); environments get their seeds by `env_args.seed`."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  the replay samples by numpy's global state, as PyMARL's plug-ins do
    torch.manual_seed(seed)
