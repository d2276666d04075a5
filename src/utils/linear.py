"""Linear layers that use the whole width of a CPU.

Torch multiplies single-precision matrices by Intel's MKL, which on AMD's processors leaves half of AVX-512 unused; the
oneDNN that torch also brings does not. `Linear` and `linear` go there where it pays, and are torch's own elsewhere.
"""

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch._C._functorch import peek_interpreter_stack  # pyright: ignore[reportMissingImports]
from torch.autograd.function import once_differentiable

from utils.aside import both, pays_to_halve

LEAST_PRODUCTS = 2**21  # of a matrix product: with fewer, oneDNN's longer preparation costs more than it saves


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
    """Whether `multiply` is there for x (..., I) and weight (O, I), and faster than torch's own product."""
    return (
        x.numel() * len(weight) >= LEAST_PRODUCTS
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and peek_interpreter_stack() is None  # vmap does not know oneDNN's product
        and _is_handicapped()
    )


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b by oneDNN, without gradient."""
    return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")


def _dense(x: torch.Tensor) -> torch.Tensor:
    """Matrices may be transposed, but on views with gaps oneDNN is a hundred times slower."""
    return x if x.is_contiguous() or (x.dim() == 2 and x.t().is_contiguous()) else x.contiguous()


def multiply_columns(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """y^T x, without gradient, for many rows: y (P, O), x (P, I) -> (O, I)."""
    work, half = x.numel() * y.shape[1], len(y) // 2
    if not pays_to_halve(work):
        return _multiply_columns(y, x)
    one, other = both(
        lambda: _multiply_columns(y[:half], x[:half]), lambda: _multiply_columns(y[half:], x[half:]), work
    )
    return one.add_(other)


def _multiply_columns(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if not pays(x, y.t()):
        return y.t() @ x
    # oneDNN is up to twice as fast with the narrower matrix on the left.
    return multiply(y.t(), x.t()) if y.shape[1] <= x.shape[1] else multiply(x.t(), y.t()).t()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        rows, inputs = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad

        def of_weight() -> torch.Tensor | None:
            return multiply_columns(rows, inputs) if wants_weight else None

        def others() -> tuple[torch.Tensor | None, torch.Tensor | None]:
            d_x = linear(rows, weight.t()).view_as(x) if wants_x else None
            return d_x, rows.sum(dim=0) if wants_bias else None

        d_weight, (d_x, d_bias) = both(of_weight, others, work=inputs.numel() * len(weight))
        return d_x, d_weight, d_bias


@cache
def _is_handicapped() -> bool:
    """Whether MKL leaves half of this processor's width unused."""
    cpu = Path("/proc/cpuinfo")
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and cpu.exists()
        and "AuthenticAMD" in cpu.read_text()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
