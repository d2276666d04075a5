"""A monotonic mixer that can express substitutes: half of QMIX's hidden units are concave.

f(q; s) = ELU(h) |w2| over the convex units - ELU(-h) |w2| over the concave ones + v(s), with h = q |W1(s)| + b1(s).

QMIX's f is convex and supermodular in the agents' values whatever the state and the number of units are: its
non-negative weights add up units with ELU'' >= 0. So it knows increasing returns alone, and of "one agent suffices"
(OR) it learns the best sum, 1.25 where the truth is 1. Units whose curvature has the other sign mend that and keep f
monotone (Runje & Shankaranarayana 2023, "Constrained monotonic neural networks").
"""

import torch

from modules.mixers.qmix import QMixer


class ConcaveQMixer(QMixer):
    signs: torch.Tensor  # (E,), 1 of convex and -1 of concave units

    def __init__(self, args):
        super().__init__(args)
        if self.embed_dim < 2:
            raise ValueError(f"mixing_embed_dim must be at least 2, a convex and a concave unit, got {self.embed_dim}")
        signs = torch.ones(self.embed_dim)
        signs[self.embed_dim - self.embed_dim // 2 :] = -1
        self.register_buffer("signs", signs, persistent=False)

    def _weights(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """QMIX's weights times the units' signs: states (B, T, S) -> (B, T, N, E), (B, T, E), (B, T, E), (B, T, 1).

        A concave unit is w2 (-ELU(-h)) = (-w2) ELU(q (-W1) + (-b1)), so `forward` and `counterfactual` are QMIX's.
        """
        w1, b1, w2, v = super()._weights(states)
        return self.signs * w1, self.signs * b1, self.signs * w2, v
