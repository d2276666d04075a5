"""A GRU over whole sequences at once: `run_gru` by the fastest way there is, `gru` in plain operations.

Legend: T steps, R sequences, X inputs, H units. Sequences of different lengths are packed: the longest first, the rows
of all that reach step 0, then of all that reach step 1, and so on; P rows in all, counts[t] of them at step t.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from utils import native
from utils.aside import cores_for
from utils.linear import gradients, linear
from utils.shapes import check_shape


def run_gru(x: torch.Tensor, hidden_state: torch.Tensor, cell: nn.GRUCell, counts: list[int]) -> torch.Tensor:
    """The cell over packed sequences: x (P, X), memory (R, H) -> the memory after each row (P, H)."""
    weights = [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]
    has_kernels = x.device.type == "cpu" and native.is_there()
    if torch.compiler.is_compiling():  # where nothing is packed
        if x.device.type == "cpu" and not has_kernels:
            return gru(x.unflatten(0, (len(counts), counts[0])), hidden_state, cell).flatten(0, 1)
        return _whole_gru(x, hidden_state, *weights)
    if has_kernels:
        if torch.is_grad_enabled():
            return _PackedGRU.apply(x, hidden_state, counts, *weights)
        memories, _ = _forward(x, hidden_state, counts, *weights, learn=False)
        return _after(memories, hidden_state)
    start = hidden_state.unsqueeze(0).contiguous()
    # biases, 1 layer, no dropout, training (cuDNN has a backward only then), one direction
    how = (weights, True, 1, 0.0, True, False)
    if counts[-1] < counts[0]:
        return torch.gru(x, torch.tensor(counts), start, *how)[0]
    return torch.gru(x.unflatten(0, (len(counts), counts[0])), start, *how, False)[0].flatten(0, 1)


def gru(x: torch.Tensor, hidden_state: torch.Tensor, cell: nn.GRUCell) -> torch.Tensor:
    """h' = n + z (h - n), n = tanh(W_n x + r (U_n h)), with gates r and z: x (T, R, X), memory (R, H) -> (T, R, H)."""
    memories = []
    for given in F.linear(x, cell.weight_ih, cell.bias_ih):  # (R, 3H)
        r_x, z_x, n_x = given.chunk(3, dim=-1)
        r_h, z_h, n_h = F.linear(hidden_state, cell.weight_hh, cell.bias_hh).chunk(3, dim=-1)
        n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
        hidden_state = n + torch.sigmoid(z_x + z_h) * (hidden_state - n)
        memories.append(hidden_state)
    return torch.stack(memories)


class _PackedGRU(torch.autograd.Function):
    """What depends on the step before is a kernel's, forward and back (src/kernels/gru.cpp); the rest are products.

    Torch's own multiplies the weights' gradients at every step anew, which takes a CPU far longer. With d = dL/dh' the
    gradient at a step's memory,

        dn = d (1 - z) (1 - n^2),  dz = d (h - n) z (1 - z),  dm = dn r,  dr = dm m (1 - r),  m = U_n h + b,

    are those before each non-linearity, and dL/dh = d z + [dr, dz, dm] U.
    """

    @staticmethod
    def forward(ctx, x, hidden_state, counts, *weights):
        memories, gates = _forward(x, hidden_state, counts, *weights, learn=any(ctx.needs_input_grad))
        ctx.counts = counts
        ctx.save_for_backward(x, memories, gates, *weights[:2])
        return _after(memories, hidden_state)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        d_x, d_hidden_state, *d_weights = _backward(
            grad, ctx.counts, *ctx.saved_tensors, wants_x=ctx.needs_input_grad[0]
        )
        return d_x, d_hidden_state, None, *d_weights


def _forward(
    x: torch.Tensor,
    hidden_state: torch.Tensor,
    counts: list[int],
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    bias_ih: torch.Tensor,
    bias_hh: torch.Tensor,
    learn: bool,
) -> tuple[torch.Tensor, Any]:
    """The memories (R + P, W), from the given ones on, and r, z, m and n of each row, (P, 4W), for `_backward`.

    W is H in whole vectors: the units that are added stay at 0.
    """
    H = weight_hh.shape[1]
    check_shape("x", x, (sum(counts), None))  # kernels read and write as many rows as they are told, whatever there is
    check_shape("hidden_state", hidden_state, (counts[0], H))
    W = H + -H % (2 * native.VECTOR)
    bias = torch.cat([bias_ih[: 2 * H] + bias_hh[: 2 * H], bias_ih[2 * H :]])
    given = linear(x, _widened(weight_ih, W), _widened(bias, W)).to(weight_hh.dtype)  # which may be of lower precision
    memories = given.new_empty(len(hidden_state) + len(x), W)
    memories[: len(hidden_state)] = native.padded(hidden_state, W)
    gates = given.new_empty(len(x), 4 * W) if learn else None
    weights = native.padded(_widened(weight_hh, W), W).t().contiguous()
    bias_m = native.padded(bias_hh[2 * H :], W)
    steps = torch.tensor(counts)
    cores = cores_for(len(x) * 3 * W * W)
    native.call("gru_forward", given, weights, bias_m, steps, len(counts), W, cores, memories, gates)
    return memories, gates


def _backward(
    grad: torch.Tensor,
    counts: list[int],
    x: torch.Tensor,
    memories: torch.Tensor,
    gates: torch.Tensor,
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    *,
    wants_x: bool = True,
) -> list[Any]:
    """The gradients of inputs, memory and weights, from that of the memory after each row, (P, H)."""
    (P, H), W = grad.shape, memories.shape[1]
    d_rzn, d_rzm = gates.new_empty(P, 3 * W), gates.new_empty(len(memories), 3 * W)  # d_rzm of each memory
    later = gates.new_empty(counts[0], W)
    weights = native.padded(_widened(weight_hh, W), W)
    of_memories = native.padded(grad, W)
    steps = torch.tensor(counts)
    given = (of_memories, gates, memories, weights, steps, len(counts), W)
    native.call("gru_backward", *given, cores_for(P * 3 * W * W), d_rzm, d_rzn, later)
    if W > H:
        d_rzm, d_rzn = (d.unflatten(1, (3, W))[:, :, :H].flatten(1) for d in (d_rzm, d_rzn))
        memories, later = memories[:, :H], later[:, :H]
    d_x = linear(d_rzn, weight_ih.t()).to(x.dtype) if wants_x else None
    d_weight_ih, d_bias_ih = gradients(d_rzn, x.to(d_rzn.dtype))
    d_weight_hh, d_bias_hh = gradients(d_rzm, memories)
    return [d_x, later, d_weight_ih, d_weight_hh, d_bias_ih, d_bias_hh]


def _after(memories: torch.Tensor, hidden_state: torch.Tensor) -> torch.Tensor:
    """The memory after each row, (P, H), of all memories, (R + P, W), and the given ones, (R, H)."""
    return memories[len(hidden_state) :, : hidden_state.shape[1]]


def _widened(weights: torch.Tensor, W: int) -> torch.Tensor:
    """Weights of three gates, (3H, ...) -> (3W, ...), 0 where there was nothing."""
    H = len(weights) // 3
    if W == H:
        return weights
    wide = weights.new_zeros(3, W, *weights.shape[1:])
    wide[:, :H] = weights.unflatten(0, (3, H))
    return wide.flatten(0, 1)


# In compiled code the GRU is one operation of unknown content: torch would write out every step of it, and compile for
# minutes. What lies between forward and backward is computed twice, because cuDNN does not tell its size beforehand.


@torch.library.custom_op("greed::gru", mutates_args=())
def _whole_gru(
    x: torch.Tensor,
    hidden_state: torch.Tensor,
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    bias_ih: torch.Tensor,
    bias_hh: torch.Tensor,
) -> torch.Tensor:
    """`run_gru` over sequences of one length: x (T * R, X), memory (R, H) -> (T * R, H)."""
    weights = [weight_ih, weight_hh, bias_ih, bias_hh]
    if x.device.type == "cpu":
        memories, _ = _forward(x, hidden_state, _full(x, hidden_state), *weights, learn=False)
        # A tensor of its own, as torch wants it of an operation that it does not know
        return _after(memories, hidden_state).clone()
    return torch.ops.aten._cudnn_rnn(**_for_cudnn(x, hidden_state, weights))[0].flatten(0, 1)


@torch.library.custom_op("greed::gru_backward", mutates_args=())
def _whole_gru_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    hidden_state: torch.Tensor,
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    bias_ih: torch.Tensor,
    bias_hh: torch.Tensor,
) -> list[torch.Tensor]:
    """The gradients of x, memory and weights: grad (T * R, H)."""
    weights = [weight_ih, weight_hh, bias_ih, bias_hh]
    if x.device.type == "cpu":
        counts = _full(x, hidden_state)
        memories, gates = _forward(x, hidden_state, counts, *weights, learn=True)
        return _backward(grad, counts, x, memories, gates, *weights[:2])
    given = _for_cudnn(x, hidden_state, weights)
    output, _, _, reserve, given["weight_buf"] = torch.ops.aten._cudnn_rnn(**given)
    d_output = grad.contiguous().view_as(output)
    given |= {"output": output, "grad_output": d_output, "grad_hy": None, "grad_cy": None, "reserve": reserve}
    wanted = [True, True, False, True]  # input, memory, an LSTM's cell, weights
    d_x, d_h, _, d_weights = torch.ops.aten._cudnn_rnn_backward(**given, output_mask=wanted)
    return [d_x.flatten(0, 1), d_h.squeeze(0), *d_weights]


def _full(x: torch.Tensor, hidden_state: torch.Tensor) -> list[int]:
    """The counts of sequences of one length."""
    return [len(hidden_state)] * (len(x) // len(hidden_state))


def _for_cudnn(x: torch.Tensor, hidden_state: torch.Tensor, weights: list[torch.Tensor]) -> dict[str, Any]:
    """What torch's own GRU gives to cuDNN, by name."""
    return {
        "input": x.contiguous().unflatten(0, (-1, len(hidden_state))),
        "weight": weights,
        "weight_stride0": len(weights),
        "weight_buf": None,
        "hx": hidden_state.contiguous().unsqueeze(0),
        "cx": None,
        "mode": 3,  # a GRU
        "hidden_size": hidden_state.shape[1],
        "proj_size": 0,
        "num_layers": 1,
        "batch_first": False,
        "dropout": 0.0,
        "train": True,
        "bidirectional": False,
        "batch_sizes": [],
        "dropout_state": None,
    }


_whole_gru.register_fake(lambda x, hidden_state, *weights: x.new_empty(len(x), hidden_state.shape[1]))
_whole_gru_backward.register_fake(lambda grad, *inputs: [torch.empty_like(given) for given in inputs])
_whole_gru.register_autograd(
    lambda ctx, grad: tuple(_whole_gru_backward(grad, *ctx.saved_tensors)),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
