"""Linear layers that use the whole width of a CPU, and both of its cores.

Torch multiplies single-precision matrices by Intel's MKL, which on AMD's processors leaves much of AVX-512 unused. The
oneDNN that torch also brings does not, but compiles a program for each number of rows, which differs from batch to
batch: that takes longer than the product. `Linear` and `linear` go to kernels (src/kernels/linear.cpp) where these pay,
and are torch's own elsewhere.
"""

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch._C._functorch import peek_interpreter_stack  # pyright: ignore[reportMissingImports]
from torch.autograd.function import once_differentiable

from utils import native
from utils.aside import cores_for

LEAST_PRODUCTS = 2**21  # of a matrix product: with fewer, torch's own are as fast


class Linear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b, differentiable: x (..., I), weight (O, I), bias (O) -> (..., O)."""
    if not pays(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Linear.apply(x, weight, bias)
    return multiply(x, weight, bias)


def pays(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether kernels are there for x (..., I) and weight (O, I), and faster than torch's own product."""
    return (
        x.numel() * len(weight) >= LEAST_PRODUCTS
        and native.takes(x, weight)
        and x.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and peek_interpreter_stack() is None  # vmap does not know kernels
        and _is_handicapped()
        and native.is_there()
    )


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b by the kernel, without gradient: x (..., I), weight (O, I), bias (O) -> (..., O)."""
    O, I = weight.shape
    rows = x.reshape(-1, I).contiguous()
    found = x.new_empty(len(rows), O)
    weights = weight if weight.is_contiguous() else weight.t().contiguous()
    strides = (1, I) if weight.is_contiguous() else (O, 1)  # from input to input, and from output to output
    cores = cores_for(rows.numel() * O)
    native.call("linear", rows, weights, *strides, bias, len(rows), I, O, cores, found)
    return found.view(*x.shape[:-1], O)


def gradients(grad: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of weight and bias, grad^T x and grad's sum: grad (P, O), x (P, I) -> (O, I), (O)."""
    if not pays(x, grad.t()):
        return grad.t() @ x, grad.sum(dim=0)
    (P, O), I = grad.shape, x.shape[1]
    d_weight, d_bias = grad.new_empty(O, I), grad.new_empty(O)
    cores = cores_for(P * O * I)
    native.call("linear_gradients", grad.contiguous(), x.contiguous(), P, O, I, cores, d_weight, d_bias)
    return d_weight, d_bias


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        d_x = linear(rows, weight.t()).view_as(x) if wants_x else None
        d_weight, d_bias = gradients(rows, x.reshape(-1, x.shape[-1])) if wants_weight or wants_bias else (None, None)
        return d_x, d_weight, d_bias if wants_bias else None


@cache
def _is_handicapped() -> bool:
    """Whether MKL leaves much of this processor's width unused."""
    cpu = Path("/proc/cpuinfo")
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and cpu.exists() and "AuthenticAMD" in cpu.read_text()
