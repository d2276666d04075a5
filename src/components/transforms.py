"""Transforms of stored fields."""

import torch
import torch.nn.functional as F


class OneHot:
    """Integers (..., 1) to one-hot vectors (..., out_dim)."""

    def __init__(self, out_dim: int):
        self.out_dim = out_dim

    def transform(self, tensor: torch.Tensor) -> torch.Tensor:
        return F.one_hot(tensor.squeeze(-1).long(), self.out_dim).float()

    def infer_output_info(self, vshape_in, dtype_in) -> tuple[tuple[int], torch.dtype]:
        return (self.out_dim,), torch.float32
