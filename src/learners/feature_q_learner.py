"""Q-learning with a mixer that reads the agents' features beside their values. Legend: that of `q_learner`.

H is the size of the features.
"""

from dataclasses import dataclass

import torch

from learners.q_learner import QLearner
from utils.networks import unroll_features
from utils.shapes import check_shape


@dataclass
class FeatureValues:
    """The agents' values and features; slices as both do."""

    q: torch.Tensor  # (B, T, N, A)
    features: torch.Tensor  # (B, T, N, H)

    def __getitem__(self, index) -> "FeatureValues":
        return FeatureValues(self.q[index], self.features[index])


class FeatureQLearner(QLearner):
    """The mixer is called as `mixer(agent_qs (B, T, N), states (B, T, S), features (B, T, N, H)) -> (B, T, 1)`."""

    def joint_values(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The agents' values (B, T, N, A) and the value of the batch's joint actions (B, T, 1), without gradient."""
        with torch.no_grad():
            values = self._unroll(self.mac, batch)
            avail = batch["avail_actions"]
            return values.q, self._joint_value(self.mixer, values, batch["actions"], avail, batch["state"])

    def _unroll(self, mac, batch) -> FeatureValues:
        return FeatureValues(*unroll_features(mac, batch))

    def _next_actions(self, q: FeatureValues, q_target: FeatureValues, avail: torch.Tensor) -> torch.Tensor:
        return super()._next_actions(q.q, q_target.q, avail)

    def _joint_value(self, mixer, q: FeatureValues, actions, avail, state, mask=None) -> torch.Tensor:
        check_shape("actions", actions, (*q.q.shape[:-1], 1))
        return mixer(q.q.gather(3, actions).squeeze(3), state, q.features)
