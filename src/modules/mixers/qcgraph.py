"""QCGraph (Siu et al. 2021): values mixed along a graph of agents that changes with what they see.

The graph is that of `modules.graphs.neighbourhood`: G = D^-1/2 A D^-1/2, of 0 and 1 before it is normalised. It depends
on the agents' features and not on actions. Two networks read it: a joint value for QTRAN's training, and a mixer that
is monotone in the agents' values. Legend: B episodes, T steps, N agents, A actions, S state, H the agents' features, E
units of a layer.
"""

from typing import Any

import torch
import torch.nn.functional as F

from modules.graphs.neighbourhood import Neighbourhood
from modules.mixers.qmix import QMixer
from modules.mixers.qtran import QTranBase
from utils.shapes import check_shape


class QCGraph(QTranBase):
    """QTRAN's joint network, whose encodings of agents and actions pass between neighbours.

    z = ReLU(W2 G ReLU(W1 [h_i, a_i])) in place of W2 ReLU(W1 [h_i, a_i]): the first layer comes before the graph, so
    that agents who are all neighbours still differ.
    """

    action_encoding: Any

    def __init__(self, args):
        super().__init__(args)
        if self.action_encoding is None:
            raise ValueError("qcgraph encodes features and actions; qtran_arch must be qtran_paper")
        self.neighbourhood = Neighbourhood(args.rnn_hidden_dim, self.embed_dim, args.neighbour_temperature)

    def _encode(self, hidden_states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """(B, T, N, H), (B * T, N, A) -> (B * T, N, H + A)."""
        features = hidden_states.reshape(*actions.shape[:2], -1)
        graph = self.neighbourhood(features)
        first, _, second = self.action_encoding
        own = F.relu(first(torch.cat([features, actions], dim=-1)))
        return F.relu(second(graph @ own))


class QCGraphMixer(QMixer):
    """QMIX's mixer with a layer between its two: every agent gets its neighbours' share of the hidden layer.

    Q_tot = sum_i ELU(sum_j G_ij q_j |W1_j(s)| + b1(s)) |w2(s)| + v(s). All weights on the values are non-negative, G
    included, so that Q_tot rises with every agent's value, and strictly so unless a weight is 0.
    """

    counterfactual: Any = None  # QMIX's shortcut knows no neighbours

    def __init__(self, args):
        super().__init__(args)
        self.neighbourhood = Neighbourhood(args.rnn_hidden_dim, self.embed_dim, args.neighbour_temperature)

    def forward(self, agent_qs: torch.Tensor, states: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """agent_qs (B, T, N), states (B, T, S), features (B, T, N, H) -> Q_tot (B, T, 1)."""
        check_shape("agent_qs", agent_qs, (*states.shape[:2], self.n_agents))
        check_shape("features", features, (*agent_qs.shape, None))
        w1, b1, w2, v = self._weights(states)
        passed = self.neighbourhood(features) @ (agent_qs.unsqueeze(-1) * w1)  # (B, T, N, E)
        hidden = F.elu(passed + b1.unsqueeze(2))
        return (hidden * w2.unsqueeze(2)).sum(dim=(2, 3)).unsqueeze(-1) + v
