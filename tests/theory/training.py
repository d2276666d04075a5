"""Shared utilities under an independent and a QMIX head, trained on the exact expectations of one-step games.

Legend: R rows, each a game with its data and initial values; N agents, A actions, J joint actions, M hidden units.
"""

from typing import NamedTuple

import numpy as np
import torch

from objectives.gate import combine, direct_weights, lagrange_step, lagrange_weights, smooth


class Trained(NamedTuple):
    greedy: np.ndarray  # (R, N)
    value_i: np.ndarray  # (R,), V_I = mean_i max Q_i
    value_c: np.ndarray  # (R,), V_C = Q_tot(greedy)
    weight_i: np.ndarray  # (R,), the gate's last


def train(payoffs, data, gate, seed=0, steps=6000, embed=8, lr=0.01, signs=None) -> Trained:
    """Adam on w_I L_I + w_C L_C of every row: L_I = 1/(2N) sum_i E (Q_i(a_i) - r)^2, L_C = 1/2 E (Q_tot(a) - r)^2.

    Args:
        payoffs, data: (R, A, ..., A); the data are probabilities.
        gate: a number: w_I, fixed; otherwise what w is made of, smoothed by .98: gap, reciprocal gaps with the joint
            maximum; gap_cf, with one agent at a time; over, reciprocal over-estimations V - G; hedge, multipliers.
        signs: (M,), -1 for hidden units that are concave; None: all convex, as in QMIX.
    """
    n_rows, *counts = payoffs.shape
    n, n_actions = len(counts), counts[0]
    cells = torch.tensor(np.indices(counts).reshape(n, -1).T)  # (J, N)
    target, weight = (torch.tensor(x.reshape(n_rows, -1)) for x in (payoffs, data))  # (R, J)
    plays = torch.nn.functional.one_hot(cells, n_actions).double()  # (J, N, A)
    marginal = torch.einsum("rj,jna->rna", weight, plays)
    sign = torch.ones(embed) if signs is None else torch.as_tensor(signs)
    generator = torch.Generator().manual_seed(seed)

    def initial(scale, *shape):
        return (scale * torch.randn(n_rows, *shape, generator=generator, dtype=torch.float64)).requires_grad_()

    q, v = initial(0.05, n, n_actions), initial(0.0, 1)
    w1, b1, w2 = initial(0.5, n, embed), initial(0.1, 1, embed), initial(0.5, embed, 1)
    optimiser = torch.optim.Adam([q, w1, b1, w2, v], lr=lr)
    agents, columns = torch.arange(n), n_actions ** torch.arange(n - 1, -1, -1)
    smoothed, multipliers = None, torch.zeros(n_rows, 2, dtype=torch.float64)
    w = torch.full((n_rows, 2), 0.5, dtype=torch.float64)
    for _ in range(steps):
        own = q[:, agents, cells]  # (R, J, N)
        hidden = sign * torch.nn.functional.elu(sign * (own @ w1.abs() + b1))  # (R, J, M)
        q_tot = (hidden @ w2.abs()).squeeze(-1) + v  # (R, J)
        with torch.no_grad():
            column = (q.argmax(dim=-1) * columns).sum(dim=-1, keepdim=True)  # of the greedy joint action
            value_i, value_c = q.max(dim=-1).values.mean(dim=-1), q_tot.gather(1, column).squeeze(1)
            if isinstance(gate, float):
                w = torch.tensor([gate, 1 - gate]).double().expand(n_rows, 2)
            else:
                m_i = (marginal * q).sum(dim=-1).mean(dim=-1)
                data_c = (weight * q_tot).sum(dim=1)
                if gate == "over":
                    earned = target.gather(1, column).squeeze(1)
                    statistic = torch.stack([value_i - earned, value_c - earned], dim=1)
                else:
                    sup_c = _counterfactual_sup(q_tot, weight, counts) if gate == "gap_cf" else value_c
                    statistic = torch.stack([value_i - m_i, sup_c - data_c], dim=1)
                if gate == "hedge":
                    multipliers = torch.vmap(lambda l, g: lagrange_step(l, g, 0.01, 4.0))(multipliers, statistic)
                    w = torch.vmap(lagrange_weights)(multipliers)
                else:
                    smoothed = smooth(smoothed, statistic.relu(), 0.98)
                    w = torch.vmap(lambda g: direct_weights(g, 0.01))(smoothed)
        td_i = (weight.unsqueeze(-1) * (own - target.unsqueeze(-1)) ** 2).sum(dim=(1, 2)) / (2 * n)
        td_c = (weight * (q_tot - target) ** 2).sum(dim=1) / 2
        td = torch.stack([td_i, td_c], dim=1)
        loss = torch.vmap(lambda t, u: combine(t, torch.zeros_like(t), u, "loss"))(td, w)
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
    greedy = q.argmax(dim=-1).numpy()
    return Trained(greedy, value_i.numpy(), value_c.numpy(), w[:, 0].numpy())


def _counterfactual_sup(q_tot, weight, counts) -> torch.Tensor:
    """1/N sum_i E_beta[max_k Q_tot(k, a_-i)], (R,)."""
    table, data = (x.view(-1, *counts) for x in (q_tot, weight))
    tops = [(table.amax(dim=i) * data.sum(dim=i)).flatten(1).sum(dim=1) for i in range(1, table.dim())]
    return torch.stack(tops).mean(dim=0)
