"""Shape checks. torch broadcasts silently, so that (B,T,1) - (B,T,N) is no error; these functions make it one."""

import torch
from torch._C._functorch import is_batchedtensor  # pyright: ignore[reportMissingImports]


def may_look_at(x: torch.Tensor) -> bool:
    """Whether Python may decide by values of `x`.

    On a GPU it would wait for them, compiled code has none, and under `torch.vmap` they are many.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not is_batchedtensor(x)


def check_same_shape(**tensors: torch.Tensor) -> None:
    """Raise ValueError unless all tensors have one shape; the message names each."""
    if len({tuple(tensor.shape) for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"shapes must be equal: {shapes}")


def check_shape(name: str, tensor: torch.Tensor, expected: tuple) -> None:
    """Raise ValueError unless the tensor has the expected shape; None in `expected` stands for any size."""
    shape = tuple(tensor.shape)
    if len(shape) != len(expected) or any(e is not None and s != e for s, e in zip(shape, expected, strict=True)):
        wanted = ", ".join("any" if e is None else str(e) for e in expected)
        raise ValueError(f"{name} must have shape ({wanted}), got {shape}")


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `values` where `mask` is 1. Both have the same shape; what stands where the mask is 0 has no effect."""
    check_same_shape(values=values, mask=mask)
    return torch.where(mask.bool(), values, 0.0).sum() / mask.sum()


def masked_std(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Standard deviation (of the population) of `values` where `mask` is 1. Both have the same shape."""
    return masked_mean((values - masked_mean(values, mask)) ** 2, mask).sqrt()
