"""Critics: what the policies are worth, known in training only.

A critic is built as `critic(scheme, args)`. What it is asked depends on the learner:

- `lica_learner`, `maddpg_learner` and what extends them: `critic(policies, states)`, (B, T, N, A) and (B, T, S) ->
  (B, T, 1), the team's value of what the agents do; a policy may be the one-hot vector of an action. MADDPG also asks
  `deviation` of `LICACritic`, and the greedy ones `counterfactual` besides.
- `ppo_learner`: `critic(batch)` -> (B, T, N, 1), the value of the situation to every agent.
- `coma_learner`: `critic(batch, actions=joint)`, (B, T, N, A) one-hot vectors -> (B, T, N, A), the value of each of an
  agent's actions with the others' as they are.
- `icq_learner`: `critic(batch)` -> (B, T, N, A), the agents' values, and the methods `mix` and `gains` of `ICQCritic`.
"""

from modules.critics.coma import COMACritic
from modules.critics.icq import ICQCritic
from modules.critics.lica import LICACritic
from modules.critics.maddpg import MADDPGCritic
from modules.critics.value import CentralValueCritic, ValueCritic

REGISTRY = {
    "lica": LICACritic,
    "maddpg": MADDPGCritic,
    "value": ValueCritic,
    "central_value": CentralValueCritic,
    "coma": COMACritic,
    "icq": ICQCritic,
}
