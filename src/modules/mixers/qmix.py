"""QMIX's monotonic mixer (Rashid et al. 2018, section 4).

f(q; s) = ELU(q |W1(s)| + b1(s)) |w2(s)| + v(s), with the weights made from the state by hypernetworks. The absolute
values make f non-decreasing in every agent's value, so that the agents' own best actions are the team's best.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from utils.linear import Linear
from utils.shapes import check_shape, may_look_at

LOG2_E = math.log2(math.e)
BLOCK = 2**18  # values of the first layer that are in the works at a time: a MiB


class QMixer(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.n_agents = args.n_agents
        self.state_dim = int(np.prod(args.state_shape))
        self.embed_dim = args.mixing_embed_dim
        if args.hypernet_layers == 1:
            self.hyper_w_1 = Linear(self.state_dim, self.embed_dim * self.n_agents)
            self.hyper_w_final = Linear(self.state_dim, self.embed_dim)
        elif args.hypernet_layers == 2:
            self.hyper_w_1 = self._hypernet(args.hypernet_embed, self.embed_dim * self.n_agents)
            self.hyper_w_final = self._hypernet(args.hypernet_embed, self.embed_dim)
        else:
            raise ValueError(f"hypernet_layers must be 1 or 2, got {args.hypernet_layers}")
        self.hyper_b_1 = Linear(self.state_dim, self.embed_dim)
        self.V = self._hypernet(self.embed_dim, 1)

    def forward(self, agent_qs: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """agent_qs (B, T, N), states (B, T, S) -> Q_tot (B, T, 1)."""
        return self.at(states)(agent_qs)

    def counterfactual(self, chosen: torch.Tensor, qs: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Q_tot(k, a_-i; s) for every agent i and action k: chosen (B, T, N), qs (B, T, N, A) -> (B, T, N, A)."""
        return self.at(states).counterfactual(chosen, qs)

    def at(self, states: torch.Tensor) -> "_QMixerAt":
        """The mixer in these states, (B, T, S): the hypernetworks run once, whatever it is asked."""
        return _QMixerAt(*self._weights(states))

    def _weights(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """states (B, T, S) -> |W1| (B, T, N, E), b1 (B, T, E), |w2| (B, T, E), v (B, T, 1)."""
        check_shape("states", states, (None, None, self.state_dim))
        w1 = self.hyper_w_1(states).abs().view(*states.shape[:2], self.n_agents, self.embed_dim)
        return w1, self.hyper_b_1(states), self.hyper_w_final(states).abs(), self.V(states)

    def _hypernet(self, hidden: int, out: int) -> nn.Sequential:
        return nn.Sequential(Linear(self.state_dim, hidden), nn.ReLU(), Linear(hidden, out))


@dataclass
class _QMixerAt:
    w1: torch.Tensor  # (B, T, N, E)
    b1: torch.Tensor  # (B, T, E)
    w2: torch.Tensor  # (B, T, E)
    v: torch.Tensor  # (B, T, 1)

    def __call__(self, agent_qs: torch.Tensor) -> torch.Tensor:
        """(B, T, N) -> (B, T, 1)"""
        check_shape("agent_qs", agent_qs, self.w1.shape[:3])
        hidden = F.elu((agent_qs.unsqueeze(-1) * self.w1).sum(dim=2) + self.b1)  # (B, T, E)
        return (hidden * self.w2).sum(dim=-1, keepdim=True) + self.v

    def counterfactual(self, chosen: torch.Tensor, qs: torch.Tensor) -> torch.Tensor:
        """One agent's change is a rank-1 update of the first layer, h + |W1_i| (Q_i(k) - Q_i(a_i)).

        (Proposition 1.5 of docs/theory.md)
        """
        contributions = chosen.unsqueeze(-1) * self.w1  # (B, T, N, E)
        others = contributions.sum(dim=2, keepdim=True) + self.b1.unsqueeze(2) - contributions
        if torch.compiler.is_compiling():  # which has its own ways not to write all of it to memory
            hidden = F.elu(others.unsqueeze(3) + qs.unsqueeze(-1) * self.w1.unsqueeze(3))  # (B, T, N, A, E)
            return (hidden * self.w2[:, :, None, None]).sum(dim=-1) + self.v.unsqueeze(-1)
        return _SecondLayer.apply(qs, others, self.w1, self.w2) + self.v.unsqueeze(-1)


class _SecondLayer(torch.autograd.Function):
    """out[i, k] = sum_e w2_e ELU(others_ie + q_ik w1_ie), in blocks of rows that stay in a CPU's cache.

    Of each block the (.., N, A, E) values are made anew in the backward pass: to write them all to memory and read them
    again takes longer.
    Shapes: q (B, T, N, A), others and w1 (B, T, N, E), w2 (B, T, E) -> (B, T, N, A).
    """

    @staticmethod
    def forward(q, others, w1, w2):  # pyright: ignore[reportIncompatibleMethodOverride]
        found = torch.empty_like(q, memory_format=torch.contiguous_format)
        for q_, others_, w1_, w2_, out in _blocks(q, others, w1, w2, found):
            elu, _ = _first_layer(q_, others_, w1_)
            torch.sum(elu.mul_(w2_[:, None, None]), dim=-1, out=out)
        return found

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def vmap(info, in_dims, *inputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        """What is mapped over joins the episodes: no weight is shared among them."""
        n = info.batch_size
        rows = [x.expand(n, *x.shape) if d is None else x.movedim(d, 0) for x, d in zip(inputs, in_dims, strict=True)]
        return _SecondLayer.apply(*(x.flatten(0, 1) for x in rows)).unflatten(0, (n, -1)), 0

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        found = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in ctx.saved_tensors]
        for q, others, w1, w2, grad_, d_q, d_others, d_w1, d_w2 in _blocks(*ctx.saved_tensors, grad, *found):
            R, N, A = q.shape
            elu, slope = _first_layer(q, others, w1)
            torch.bmm(grad_.reshape(R, 1, N * A), elu.flatten(1, 2), out=d_w2.unsqueeze(1))
            both = torch.stack([grad_, grad_ * q], dim=2).flatten(0, 1)  # (R N, 2, A)
            summed = torch.bmm(both, slope.flatten(0, 1)).view(R, N, 2, -1)
            summed.mul_(w2[:, None, None])
            d_others.copy_(summed[:, :, 0])
            d_w1.copy_(summed[:, :, 1])
            torch.sum(slope.mul_((w1 * w2.unsqueeze(1)).unsqueeze(2)), dim=-1, out=d_q).mul_(grad_)
        return tuple(found)


def _first_layer(q: torch.Tensor, others: torch.Tensor, w1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """ELU(others + q w1) and its derivative, exp(min(., 0)), (R, N, A, E).

    Torch's exp2 is four times as fast as its exp and its elu.
    """
    x = torch.addcmul(others.unsqueeze(2), q.unsqueeze(-1), w1.unsqueeze(2))
    slope = x.clamp(max=0).mul_(LOG2_E).exp2_()
    return x.clamp_(min=0).add_(slope).sub_(1), slope


def _blocks(q: torch.Tensor, others: torch.Tensor, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """All rows, (B, T, ...) -> (R, ...), so many at a time: q (B, T, N, A), others (B, T, N, E), and more of them."""
    rows = q.shape[0] * q.shape[1]
    size = max(1, BLOCK // (q[0, 0].numel() * others.shape[-1])) if may_look_at(q) else rows
    return zip(*(x.flatten(0, 1).split(size) for x in (q, others, *tensors)), strict=True)
