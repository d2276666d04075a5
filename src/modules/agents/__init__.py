"""Agent networks: from an agent's inputs and memory to its action values."""

from modules.agents.mlp_agent import MLPAgent
from modules.agents.rnn_agent import NormalisedRNNAgent, RNNAgent

REGISTRY = {"mlp": MLPAgent, "rnn": RNNAgent, "rnn_norm": NormalisedRNNAgent}
