"""Q-learning of a deep coordination graph's value (Boehmer et al. 2020): utilities of agents, payoffs of edges.

The TD loss is that of `q_learner`; what differs is the value of a joint action and how the best one is found. Legend:
that of `q_learner`.
"""

import torch

from learners.q_learner import QLearner
from modules.graphs.coordination import GraphValues


class DCGLearner(QLearner):
    def joint_values(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The utilities (B, T, N, A) and the value of the batch's joint actions (B, T, 1), without gradient."""
        with torch.no_grad():
            graph = self._unroll(self.mac, batch)
            return graph.utilities, graph.of(batch["actions"])

    def _unroll(self, mac, batch) -> GraphValues:
        return mac.unroll_graph(batch)

    def _next_actions(self, q: GraphValues, q_target: GraphValues, avail: torch.Tensor) -> torch.Tensor:
        choosing = q if self.args.double_q else q_target
        return choosing[:, 1:].best(avail[:, 1:], self.args.graph.iterations)

    def _joint_value(self, mixer, q: GraphValues, actions, avail, state, mask=None) -> torch.Tensor:
        return q.of(actions)
