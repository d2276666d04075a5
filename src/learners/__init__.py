"""Learners: from a batch of episodes to one gradient step."""

from learners.greedy_q_learner import GreedyQLearner
from learners.q_learner import QLearner

REGISTRY = {"q_learner": QLearner, "greedy_q_learner": GreedyQLearner}
