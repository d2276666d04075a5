"""Greedy MADDPG: what greedy LICA adds to LICA, added to MADDPG (docs/method.md, section 12).

Its cooperative head is MADDPG's critic, asked at actions that are drawn where LICA's is asked at probabilities. With
every term off it is MADDPG, bit for bit.
"""

from learners.critic_heads import SampledHeads
from learners.greedy_lica_learner import GreedyLICALearner
from learners.maddpg_learner import MADDPGLearner


class GreedyMADDPGLearner(GreedyLICALearner, MADDPGLearner):
    heads = SampledHeads
