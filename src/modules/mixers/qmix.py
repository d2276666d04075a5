"""QMIX's monotonic mixer (Rashid et al. 2018, section 4).

f(q; s) = ELU(q |W1(s)| + b1(s)) |w2(s)| + v(s), with the weights made from the state by hypernetworks. The absolute
values make f non-decreasing in every agent's value, so that the agents' own best actions are the team's best.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from utils import native
from utils.aside import cores_for
from utils.linear import Linear
from utils.shapes import check_shape


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
        """(B, T, N), (B, T, N, A) -> (B, T, N, A)

        One agent's change is a rank-1 update of the first layer, h + |W1_i| (Q_i(k) - Q_i(a_i)). (Proposition 1.5 of
        docs/theory.md)
        """
        check_shape("chosen", chosen, self.w1.shape[:3])
        check_shape("qs", qs, (*self.w1.shape[:3], None))
        contributions = chosen.unsqueeze(-1) * self.w1  # (B, T, N, E)
        others = contributions.sum(dim=2, keepdim=True) + self.b1.unsqueeze(2) - contributions
        if not torch.compiler.is_compiling() and native.takes(qs, others) and native.is_there():
            return _SecondLayer.apply(qs, others, self.w1, self.w2) + self.v.unsqueeze(-1)
        hidden = F.elu(others.unsqueeze(3) + qs.unsqueeze(-1) * self.w1.unsqueeze(3))  # (B, T, N, A, E)
        return (hidden * self.w2[:, :, None, None]).sum(dim=-1) + self.v.unsqueeze(-1)


class _SecondLayer(torch.autograd.Function):
    """out[i, k] = sum_e w2_e ELU(others_ie + q_ik w1_ie) by a kernel (src/kernels/second_layer.cpp).

    The (.., N, A, E) values in between, which would take longest to write and read, are never in memory.
    Shapes: q (B, T, N, A), others and w1 (B, T, N, E), w2 (B, T, E) -> (B, T, N, A).
    """

    @staticmethod
    def forward(q, others, w1, w2):  # pyright: ignore[reportIncompatibleMethodOverride]
        given = _for_kernel(q, others, w1, w2)
        found = torch.empty_like(given[0])
        _call("second_layer_forward", given, [found])
        return found.view(q.shape)

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
        given = _for_kernel(*ctx.saved_tensors)
        found = [torch.empty_like(x) for x in given]
        _call("second_layer_backward", [*given, grad.contiguous().flatten(0, 1)], found)
        E = ctx.saved_tensors[3].shape[-1]
        shape = grad.shape[:2]
        return found[0].unflatten(0, shape), *(x[..., :E].unflatten(0, shape) for x in found[1:])


def _for_kernel(q: torch.Tensor, others: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor) -> list[torch.Tensor]:
    """The tensors without gaps, with one dimension for episodes and steps, and with E in whole vectors."""
    E = w2.shape[-1] + -w2.shape[-1] % native.VECTOR
    return [x.flatten(0, 1) for x in (q.contiguous(), *(native.padded(x, E) for x in (others, w1, w2)))]


def _call(kernel: str, given: list[torch.Tensor], found: list[torch.Tensor]) -> None:
    P, N, A = given[0].shape
    E = given[3].shape[-1]
    native.call(kernel, *given, P, N, A, E, cores_for(P * N * A * E), *found)
