"""Learners: from a batch of episodes to one gradient step."""

from learners.behaviour_regularised_learner import BehaviourRegularisedLearner
from learners.coma_learner import COMALearner
from learners.dcg_learner import DCGLearner
from learners.feature_q_learner import FeatureQLearner
from learners.greedy_lica_learner import GreedyLICALearner
from learners.greedy_maddpg_learner import GreedyMADDPGLearner
from learners.greedy_q_learner import GreedyQLearner
from learners.iac_learner import IACLearner
from learners.icq_learner import ICQLearner
from learners.lica_learner import LICALearner
from learners.maddpg_learner import MADDPGLearner
from learners.ppo_learner import PPOLearner
from learners.q_learner import QLearner
from learners.qtran_learner import QTranLearner
from learners.quantile_q_learner import GreedyQuantileQLearner, QuantileQLearner
from learners.weighted_q_learner import WeightedQLearner

REGISTRY = {
    "q_learner": QLearner,
    "greedy_q_learner": GreedyQLearner,
    "quantile_q_learner": QuantileQLearner,
    "greedy_quantile_q_learner": GreedyQuantileQLearner,
    "lica_learner": LICALearner,
    "greedy_lica_learner": GreedyLICALearner,
    "maddpg_learner": MADDPGLearner,
    "behaviour_regularised_learner": BehaviourRegularisedLearner,
    "greedy_maddpg_learner": GreedyMADDPGLearner,
    "ppo_learner": PPOLearner,
    "coma_learner": COMALearner,
    "iac_learner": IACLearner,
    "icq_learner": ICQLearner,
    "qtran_learner": QTranLearner,
    "weighted_q_learner": WeightedQLearner,
    "dcg_learner": DCGLearner,
    "feature_q_learner": FeatureQLearner,
}
