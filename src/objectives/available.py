"""What is taken over the available actions: the best one, and the log-sum-exp and log-softmax of all.

On a CPU by kernels (src/kernels/actions.cpp): torch takes ten times as long to put -inf where nothing is available and
to make exponentials of that.
"""

from typing import Any

import torch
from torch._C._functorch import peek_interpreter_stack  # pyright: ignore[reportMissingImports]
from torch.autograd.function import once_differentiable

from utils import native
from utils.aside import cores_for
from utils.shapes import check_same_shape

EXPONENTIAL = 16  # multiplications that take as long as one


def best_action(q: torch.Tensor, avail: torch.Tensor) -> torch.Tensor:
    """argmax_a Q(a) over the available actions, without gradient: (..., A) -> (..., 1).

    Args:
        q, avail: (..., A), avail 1 where the action may be taken; at least one action must be available.
    """
    check_same_shape(q=q, avail=avail)
    q = q.detach()
    if not _kernels_take(q):
        return q.masked_fill(avail == 0, -torch.inf).argmax(dim=-1, keepdim=True)
    found = torch.empty(*q.shape[:-1], 1, dtype=torch.int64)
    native.call("best_action", *_rows(q, avail), *_sizes(q), found)
    return found


def logsumexp(q: torch.Tensor, avail: torch.Tensor, temperature: Any) -> torch.Tensor:
    """T log sum_a exp(Q(a)/T) over the available actions: (..., A) -> (...).

    Args:
        q, avail: (..., A), avail 1 where the action may be taken; at least one action must be available.
        temperature: T > 0, in units of Q; a number or a scalar tensor. No gradient flows into it.
    """
    check_same_shape(q=q, avail=avail)
    if not _kernels_take(q):
        return temperature * torch.logsumexp(q.masked_fill(avail == 0, -torch.inf) / temperature, dim=-1)
    return _LogSumExp.apply(q, avail, torch.as_tensor(temperature, dtype=q.dtype))


def log_softmax(q: torch.Tensor, avail: torch.Tensor, temperature: Any) -> torch.Tensor:
    """log softmax(Q/T) over the available actions, (..., A) -> (..., A); -inf where an action is not available.

    Arguments are those of `logsumexp`.
    """
    check_same_shape(q=q, avail=avail)
    if not _kernels_take(q):
        scaled = q.masked_fill(avail == 0, -torch.inf) / temperature
        return scaled - scaled.logsumexp(dim=-1, keepdim=True)  # of few actions twice as fast as torch's log_softmax
    return _LogSoftmax.apply(q, avail, torch.as_tensor(temperature, dtype=q.dtype))


class _LogSumExp(torch.autograd.Function):
    """The gradient is the policy softmax(Q/T)."""

    @staticmethod
    def forward(ctx, q, avail, temperature):
        given = (*_rows(q, avail), temperature)
        found = q.new_empty(q.shape[:-1])
        native.call("logsumexp_forward", *given, *_sizes(q), found)
        ctx.save_for_backward(*given, found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        given = ctx.saved_tensors
        d_q = torch.empty_like(given[0])
        native.call("logsumexp_backward", *given, grad.contiguous(), *_sizes(d_q), d_q)
        return d_q, None, None


class _LogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, avail, temperature):
        q, avail = _rows(q, avail)
        found = torch.empty_like(q)
        native.call("log_softmax_forward", q, avail, temperature, *_sizes(q), found)
        ctx.save_for_backward(found, avail, temperature)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        given = ctx.saved_tensors
        d_q = torch.empty_like(grad, memory_format=torch.contiguous_format)
        native.call("log_softmax_backward", *given, grad.contiguous(), *_sizes(d_q), d_q)
        return d_q, None, None


def _kernels_take(q: torch.Tensor) -> bool:
    """Not in compiled code, nor under `torch.vmap`, where tensors have no values to point to."""
    return (
        not torch.compiler.is_compiling() and peek_interpreter_stack() is None and native.takes(q) and native.is_there()
    )


def _rows(q: torch.Tensor, avail: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return q.contiguous(), (avail != 0 if avail.is_floating_point() else avail).to(torch.uint8).contiguous()


def _sizes(q: torch.Tensor) -> tuple[int, int, int]:
    """Rows, actions, and how many cores are for them."""
    return q.shape[:-1].numel(), q.shape[-1], cores_for(EXPONENTIAL * q.numel())
