"""A GRU over whole sequences at once: `run_gru` by the fastest way there is, `gru` in plain operations.

Legend: T steps, R sequences, X inputs, H units. Sequences of different lengths are packed: the longest first, the rows
of all that reach step 0, then of all that reach step 1, and so on; P rows in all, counts[t] of them at step t.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from utils.linear import linear, multiply, multiply_columns, pays


def run_gru(x: torch.Tensor, hidden_state: torch.Tensor, cell: nn.GRUCell, counts: list[int]) -> torch.Tensor:
    """The cell over packed sequences: x (P, X), memory (R, H) -> the memory after each row (P, H)."""
    weights = [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]
    if torch.compiler.is_compiling():  # where nothing is packed
        return _whole_gru(x, hidden_state, *weights)
    if x.device.type == "cpu":
        return _PackedGRU.apply(x, hidden_state, counts, *weights)
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
    """Writes gates and memories in place, and multiplies the weights' gradients once for all steps.

    Torch's own does both for every step anew, which takes a CPU half as long again, and more than twice as long where
    sequences are packed. With d = dL/dh' the gradient at a step's memory,

        dn = d (1 - z) (1 - n^2),  dz = d (h - n) z (1 - z),  dm = dn r,  dr = dm m (1 - r),  m = U_n h + b,

    are those before each non-linearity, and dL/dh = d z + [dr, dz, dm] U: every factor of d is known before the first
    step back, so that a step is one product with all of them and one with U. A step costs little more than the calls
    themselves, so tensors are split once.
    """

    @staticmethod
    def forward(ctx, x, hidden_state, counts, weight_ih, weight_hh, bias_ih, bias_hh):
        P, (R, H) = len(x), hidden_state.shape
        given = linear(x, weight_ih, torch.cat([bias_ih[: 2 * H] + bias_hh[: 2 * H], bias_ih[2 * H :]]))
        gates = x.new_empty(P, 4 * H)  # r, z, m and n, once their steps are through
        gates[:, : 2 * H], gates[:, 2 * H : 3 * H] = given[:, : 2 * H], bias_hh[2 * H :]
        torch.mul(given[:, 2 * H :], 2, out=gates[:, 3 * H :])  # for tanh(y) = 2 s(2y) - 1, in a third of tanh's time
        memories = torch.cat([hidden_state, x.new_empty(P, H)])  # before step 0, and after every row
        after, rzm, rz = (part.split(counts) for part in (memories[R:], gates[:, : 3 * H], gates[:, : 2 * H]))
        r, z, m, n = (part.split(counts) for part in gates.split(H, dim=1))
        wide = pays(memories[: P // len(counts)], weight_hh)  # by a step of the usual number of rows
        U, minus_one = weight_hh.t().contiguous(), x.new_tensor(-1.0)
        for t, h in enumerate(_before(memories, counts)):
            if wide:
                rzm[t].add_(multiply(h, weight_hh))
            else:
                rzm[t].addmm_(h, U)
            rz[t].sigmoid_()
            n[t].addcmul_(r[t], m[t], value=2).sigmoid_()
            torch.sub(minus_one, n[t], alpha=-2, out=n[t])
            torch.lerp(n[t], h, z[t], out=after[t])
        if any(ctx.needs_input_grad):
            ctx.counts, ctx.wide = counts, wide
            ctx.save_for_backward(x, memories, gates, weight_ih, weight_hh)
        return memories[R:]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, memories, gates, weight_ih, weight_hh = ctx.saved_tensors
        counts, P, H = ctx.counts, len(x), gates.shape[1] // 4
        h = torch.cat(_before(memories, counts))  # (P, H)
        r, z, m, n = gates.split(H, dim=1)
        d_rzm, others = x.new_empty(P, 3, H), x.new_empty(P, 2, H)  # the factors of d, and later what d makes of them
        (by_r, by_z, by_m), (by_n, kept) = d_rzm.unbind(dim=1), others.unbind(dim=1)
        kept.copy_(z)
        rest = 1 - z
        torch.addcmul(rest, rest, n * n, value=-1, out=by_n)
        torch.mul((h - n).mul_(z), rest, out=by_z)
        torch.mul(by_n, r, out=by_m)
        torch.mul(torch.addcmul(by_m, by_m, r, value=-1), m, out=by_r)
        step_rzm, step_others, step_kept, grad = (part.split(counts) for part in (d_rzm, others, kept, grad))
        later = x.new_zeros(0, H)  # from the step after, of the sequences that reach it
        for t in reversed(range(len(counts))):
            if len(later) == counts[t]:
                d = (grad[t] + later).unsqueeze(1)
            else:
                d = grad[t].clone().unsqueeze(1)
                d[: len(later), 0] += later
            step_others[t].mul_(d)
            by_U = step_rzm[t].mul_(d).view(-1, 3 * H)
            if ctx.wide:
                later = multiply(by_U, weight_hh.t()).add_(step_kept[t])
            else:
                later = torch.addmm(step_kept[t], by_U, weight_hh)
        d_rzm = d_rzm.view(P, 3 * H)
        d_bias_hh, d_bias_n = d_rzm.sum(dim=0), by_n.sum(dim=0)
        d_gates = d_rzm.clone()
        d_gates[:, 2 * H :] = by_n
        d_x = linear(d_gates, weight_ih.t()) if ctx.needs_input_grad[0] else None
        d_bias_ih = torch.cat([d_bias_hh[: 2 * H], d_bias_n])
        return d_x, later, None, multiply_columns(d_gates, x), multiply_columns(d_rzm, h), d_bias_ih, d_bias_hh


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
        # A tensor of its own, as torch wants it of an operation that it does not know
        return _PackedGRU.apply(x, hidden_state, _full(x, hidden_state), *weights).clone()
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
        ctx: Any = SimpleNamespace(needs_input_grad=[True])
        ctx.save_for_backward = lambda *tensors: setattr(ctx, "saved_tensors", tensors)
        _PackedGRU.forward(ctx, x, hidden_state, _full(x, hidden_state), *weights)
        return [found for found in _PackedGRU.backward(ctx, grad) if found is not None]
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


def _before(memories: torch.Tensor, counts: list[int]) -> list[torch.Tensor]:
    """The memories before every step, of the sequences that reach it."""
    whole = memories.split([counts[0], *counts])
    return [memory[:count] for memory, count in zip(whole, counts, strict=False)]
