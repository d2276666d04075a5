"""Centralised critics: the team's value of what the agents do, known in training only.

A critic is built as `critic(scheme, args)` and called as `critic(policies, states)`, (B, T, N, A) and (B, T, S) ->
(B, T, 1); a policy may be the one-hot vector of an action. `greedy_lica_learner` also needs the methods
`counterfactual` and `deviation` of `LICACritic`.
"""

from modules.critics.lica import LICACritic
from modules.critics.maddpg import MADDPGCritic

REGISTRY = {"lica": LICACritic, "maddpg": MADDPGCritic}
