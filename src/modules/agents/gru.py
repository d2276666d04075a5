"""A GRU over whole sequences at once: `run_gru` by the fastest way there is, `gru` in plain operations.

Legend: T steps, R sequences, X inputs, H units. Sequences of different lengths are packed: the longest first, the rows
of all that reach step 0, then of all that reach step 1, and so on; P rows in all, counts[t] of them at step t.
"""

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable


def run_gru(x: torch.Tensor, hidden_state: torch.Tensor, cell: nn.GRUCell, counts: list[int]) -> torch.Tensor:
    """The cell over packed sequences: x (P, X), memory (R, H) -> the memory after each row (P, H)."""
    weights = [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]
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

        dn = d (1 - z) (1 - n^2),  dz = d (h - n) z (1 - z),  dr = dn m r (1 - r),  dm = dn r,  m = U_n h + b,

    are those before each non-linearity, and dL/dh = d z + [dr, dz] U_rz + dm U_n.
    """

    @staticmethod
    def forward(ctx, x, hidden_state, counts, weight_ih, weight_hh, bias_ih, bias_hh):
        R, H = hidden_state.shape
        U_rz, U_n = weight_hh.t().contiguous().split([2 * H, H], dim=1)  # (H, 2H), (H, H)
        bias = torch.cat([bias_ih[: 2 * H] + bias_hh[: 2 * H], bias_ih[2 * H :]])
        gates = torch.addmm(bias, x, weight_ih.t())  # (P, 3H): r, z and n, once their steps are through
        memories = torch.cat([hidden_state, x.new_empty(len(x), H)])  # before step 0, and after every row
        m = x.new_empty(len(x), H)
        for (start, end), before in _steps(counts):
            h, step = memories[before : before + end - start], gates[start:end]
            rz, n, of_h = step[:, : 2 * H], step[:, 2 * H :], m[start:end]
            rz.addmm_(h, U_rz).sigmoid_()
            torch.addmm(bias_hh[2 * H :], h, U_n, out=of_h)
            n.addcmul_(rz[:, :H], of_h).tanh_()
            torch.lerp(n, h, rz[:, H:], out=memories[R + start : R + end])
        if any(ctx.needs_input_grad):
            ctx.counts = counts
            ctx.save_for_backward(x, memories, gates, m, weight_ih, weight_hh)
        return memories[R:]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, memories, gates, m, weight_ih, weight_hh = ctx.saved_tensors
        H = m.shape[1]
        steps = list(_steps(ctx.counts))
        h = torch.cat([memories[before : before + end - start] for (start, end), before in steps])  # (P, H)
        r, z, n = gates.split(H, dim=1)
        kept = 1 - z
        by_n = torch.addcmul(kept, kept, n * n, value=-1)
        by_z = (h - n).mul_(z).mul_(kept)
        by_r = torch.addcmul(r, r, r, value=-1).mul_(m)
        d_gates, d_m = torch.empty_like(gates), torch.empty_like(m)
        U_rz, U_n = weight_hh.split([2 * H, H])
        later = grad.new_zeros(0, H)  # from the step after, of the sequences that reach it
        for (start, end), _ in reversed(steps):
            d = grad[start:end].clone()
            d[: len(later)] += later
            here, d_of_h = d_gates[start:end], d_m[start:end]
            dn = here[:, 2 * H :]
            torch.mul(d, by_n[start:end], out=dn)
            torch.mul(d, by_z[start:end], out=here[:, H : 2 * H])
            torch.mul(dn, by_r[start:end], out=here[:, :H])
            torch.mul(dn, r[start:end], out=d_of_h)
            later = d.mul_(z[start:end]).addmm_(here[:, : 2 * H], U_rz).addmm_(d_of_h, U_n)
        d_x = d_gates @ weight_ih if ctx.needs_input_grad[0] else None
        d_bias = d_gates.sum(dim=0)
        d_weight_hh = torch.cat([d_gates[:, : 2 * H].t() @ h, d_m.t() @ h])
        d_bias_hh = torch.cat([d_bias[: 2 * H], d_m.sum(dim=0)])
        return d_x, later, None, d_gates.t() @ x, d_weight_hh, d_bias, d_bias_hh


def _steps(counts: list[int]):
    """For every step: where its rows begin and end, and where the memories before them begin."""
    ends = list(accumulate(counts))
    starts = [0, *ends[:-1]]
    before = [0, *(counts[0] + start for start in starts[:-1])]
    return zip(zip(starts, ends, strict=True), before, strict=True)
