"""The controller of a deep coordination graph (Boehmer et al. 2020): agents act on the graph's best joint action.

Finding it needs messages between agents, so execution is not decentralised. Legend: B episodes, T steps, N agents, A
actions, I inputs, H features, R rows (episodes times agents).
"""

import torch
from torch import nn

from controllers.basic_controller import BasicMAC
from modules.agents import REGISTRY as agent_REGISTRY
from modules.agents.sharing import share_parameters
from modules.graphs.coordination import GraphValues, edge_list
from modules.graphs.payoffs import PayoffNetwork
from utils.errors import UserError
from utils.networks import offers
from utils.registry import resolve


class GraphAgent(nn.Module):
    """The networks of a graph: an agent's, whose values are utilities, and the edges', which reads agents' features.

    Agents share theirs as `share` says. The edges' is one for all pairs.

    The features are kept as the memory: those of a recurrent agent are its memory, and others need none.
    """

    def __init__(self, input_shape: int, args):
        super().__init__()
        build = resolve("agent", args.agent, agent_REGISTRY)
        self.network = share_parameters(lambda: build(input_shape, args), args.agent_groups)
        if not offers(self.network, "unroll_features"):
            raise UserError(
                f"agent={args.agent!r}: payoffs are made from features, which it does not give; set agent=rnn"
            )
        self.features = args.rnn_hidden_dim
        cfg = args.graph
        self.payoffs = PayoffNetwork(self.features, args.n_actions, cfg.payoff_hidden_dim, cfg.payoff_rank)
        self.reduce = cfg.reduce
        self.edges: torch.Tensor
        self.register_buffer("edges", edge_list(cfg.edges, args.n_agents), persistent=False)

    def init_hidden(self) -> torch.Tensor:
        return next(self.parameters()).new_zeros(1, self.features)

    def forward(self, inputs: torch.Tensor, hidden_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step: inputs (R, I), memory -> utilities (R, A), features (R, H)."""
        utilities, features = self.unroll_features(inputs.unsqueeze(0), hidden_state.reshape(len(inputs), -1))
        return utilities[0], features[0]

    def unroll(self, inputs: torch.Tensor, hidden_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All steps: inputs (T, R, I), memory (R, H) -> utilities (T, R, A), the last features (R, H)."""
        utilities, features = self.unroll_features(inputs, hidden_state)
        return utilities, features[-1]

    def unroll_features(self, inputs: torch.Tensor, hidden_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All steps: inputs (T, R, I), memory (R, H) -> utilities (T, R, A), features (T, R, H)."""
        return self.network.unroll_features(inputs, hidden_state)

    def graph(self, utilities: torch.Tensor, features: torch.Tensor) -> GraphValues:
        """The graph's values of situations: (..., N, A), (..., N, H)."""
        payoffs = self.payoffs(features, self.edges)
        if self.reduce == "sum":  # a mean over N of what is N times as large
            utilities, payoffs = utilities.shape[-2] * utilities, payoffs.shape[-3] * payoffs
        return GraphValues(utilities, payoffs, self.edges)


class DCGMAC(BasicMAC):
    def unroll_graph(self, batch) -> GraphValues:
        """The graph's values at every step, with leading dimensions (B, T)."""
        return self.agent.graph(*self.unroll_features(batch))

    def _acting_values(self, ep_batch, t: int, test_mode: bool) -> torch.Tensor:
        """1 for each agent's part of the best joint action and 0 for the others, (B, N, A)."""
        utilities = self.forward(ep_batch, t, test_mode=test_mode)
        graph = self.agent.graph(utilities, self.hidden_states.reshape(*utilities.shape[:2], -1))
        best = graph.best(ep_batch["avail_actions"][:, t], self.args.graph.iterations)
        return torch.zeros_like(utilities).scatter(2, best, 1.0)

    def _build_agents(self, input_shape: int) -> None:
        self.agent = GraphAgent(input_shape, self.args)
